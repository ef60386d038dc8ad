"""The record through which Python and the kernels share sizes, settings and addresses.

Imported on both sides: by the process that runs kernels, and by the one that compiles them.
"""

import numpy as np

from llamatui.backends.checkpoint import ModelConfig

MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
"""Order of a layer's matrices in the table at `weights`, which ends with wcls."""

PAD = 64
"""Rows of activations are padded to a multiple of this many numbers, so that kernels write whole tiles."""

SPARE_TOKENS = 12
"""Rows that exist behind the last token's, for the same reason: the most tokens that a tile holds."""

PARAMS = np.dtype(
    [
        # Sizes of the model.
        *(
            (name, np.int64)
            for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim")
        ),
        *((name, np.int64) for name in ("vocab_size", "group_size")),
        ("norm_eps", np.float64),
        # This call: `tokens` at positions start..start + n_tokens - 1, into caches of `capacity` positions.
        *((name, np.int64) for name in ("n_tokens", "start", "capacity", "all_positions")),
        *((name, np.int64) for name in ("tokens", "keys", "values", "logits")),
        # Weights. `weights` is int64 (n_layers * 7 + 1, 2): address of each matrix, and of its scales or 0.
        *((name, np.int64) for name in ("weights", "tok_embeddings", "tok_embeddings_scale")),
        *((name, np.int64) for name in ("attention_norm", "ffn_norm", "norm", "cos", "sin")),
        # Activations, fp32: (tokens, padded row).
        *((name, np.int64) for name in ("x", "h", "q", "k", "v", "mixed", "gate", "up")),
        # Quantized activations, the input of the next matmul: int8 (tokens, quantized_row), their scales, and
        # what unsigned weights add too much: of each group, and of each four numbers.
        *((name, np.int64) for name in ("quantized_row", "quantized", "scales", "group_excess", "excess")),
        # One scratch area of `scratch_size` bytes for each worker.
        *((name, np.int64) for name in ("scratch", "scratch_size")),
        # The team: arrivals at the barrier, and C functions: how a worker lets others run, and who it is.
        *(
            (name, np.int64)
            for name in ("arrivals", "yield_core", "omp_get_thread_num", "omp_get_num_threads")
        ),
        ("team_size", np.int64),
    ]
)


FP32_BLOCK, DEQUANTIZED_BLOCK = 512, 256
"""Columns of a matrix that are packed at a time, in fp32.py and q8_0.py."""


def padded(n: int) -> int:
    """`n` rounded up to a multiple of PAD."""
    return -(-n // PAD) * PAD


def scratch_bytes(config: ModelConfig, positions: int, n_tokens: int) -> int:
    """Scratch that one worker needs for calls of up to `n_tokens` tokens, at up to `positions` positions."""
    rows = positions + PAD
    # Packed keys and values of a head, scores of a tile of tokens, and a tile of results: see attention.py.
    attention = 2 * rows * (config.head_dim + PAD) + SPARE_TOKENS * (rows + PAD)
    # A packed tile of a matrix with its scales, or two blocks of it and one of tokens: see q8_0.py, fp32.py.
    columns = max(config.dim, config.hidden_dim, FP32_BLOCK, 2 * DEQUANTIZED_BLOCK)
    matmul = PAD * columns + (n_tokens + SPARE_TOKENS) * DEQUANTIZED_BLOCK
    return 4 * padded(max(attention, matmul))
