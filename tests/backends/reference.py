"""Llama as slowly and plainly as it can be said: float64, one position, one head, one number at a time.

And once more with llama2.c's int8 arithmetic, where how numbers are rounded is what is said.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.q8_0 import FloatArray, Q8Tensor

Matmul = Callable[[str, int, np.ndarray], np.ndarray]


def reference_logits(
    config: ModelConfig, source: Callable[[str, int], FloatArray], tokens: Sequence[int]
) -> np.ndarray:
    """(n, vocab_size) float64 logits of every position."""

    def w(name: str, layer: int = -1) -> np.ndarray:
        shared = name == "wcls" and config.shared_classifier
        return source("tok_embeddings" if shared else name, max(layer, 0)).astype(np.float64)

    return _logits(config, w, lambda name, layer, x: w(name, layer) @ x, tokens)


def runq_logits(
    config: ModelConfig, tensors: Mapping[str, FloatArray | Q8Tensor], tokens: Sequence[int]
) -> np.ndarray:
    """(n, vocab_size) float32 logits of every position, in the arithmetic of llama2.c's runq.c.

    Args:
        tensors: By the checkpoint's names, all but the norms in Q8_0.
    """

    def part(name: str, layer: int) -> FloatArray | Q8Tensor:
        return tensors[name] if layer < 0 else tensors[name][layer]

    def w(name: str, layer: int = -1) -> np.ndarray:
        tensor = part(name, layer)
        return tensor.dequantize() if isinstance(tensor, Q8Tensor) else tensor

    def matmul(name: str, layer: int, x: np.ndarray) -> np.ndarray:
        tensor = part(name, layer)
        assert isinstance(tensor, Q8Tensor)
        return quantized_matmul(tensor, x)

    return _logits(config, w, matmul, tokens)


def quantized_matmul(w: Q8Tensor, x: np.ndarray) -> np.ndarray:
    """W x of w (rows, cols) and x (cols,): x in int8 as well, int32 sums of groups, added up in float32."""
    x = x.astype(np.float32)
    groups = x.reshape(-1, w.group_size)  # (groups, gs)
    scales = np.abs(groups).max(axis=1) / np.float32(127)  # (groups,)
    v = (groups / np.where(scales > 0, scales, np.float32(1))[:, None]).astype(np.float64)
    q = np.trunc(v + np.copysign(0.5, v)).astype(np.int32)  # (groups, gs), half away from zero
    rows = w.q.reshape(-1, *q.shape).astype(np.int32)  # (rows, groups, gs)
    sums = (rows * q).sum(axis=2)  # (rows, groups) int32
    out = np.zeros(len(rows), np.float32)
    for g in range(len(scales)):
        out += sums[:, g].astype(np.float32) * w.scale[:, g] * scales[g]
    return out


def assert_equal_but_for_ties(found: np.ndarray, expected: np.ndarray) -> None:
    """Compares int8 logits, (sequences, positions, vocab_size), of several unrelated sequences.

    The last bits of float32 decide how a number that lies between two int8 is rounded. Now and then that
    moves the logits by hundredths of their standard deviation, from there to the end of its sequence. So at
    any position most sequences are equal to rounding, and none is far off.
    """
    errors = np.abs(found - expected).max(axis=2) / expected.std()  # (sequences, positions)
    assert np.median(errors, axis=0).max() < 1e-4
    assert errors.max() < 0.3


def _logits(
    c: ModelConfig, w: Callable[..., np.ndarray], matmul: Matmul, tokens: Sequence[int]
) -> np.ndarray:
    keys: list[list[np.ndarray]] = [[] for _ in range(c.n_layers)]
    values: list[list[np.ndarray]] = [[] for _ in range(c.n_layers)]
    rows = []
    for position, token in enumerate(tokens):
        x = w("tok_embeddings")[token]
        for layer in range(c.n_layers):
            h = norm(x, w("attention_norm", layer), c.norm_eps)
            q = rotate(matmul("wq", layer, h), position, c)
            keys[layer].append(rotate(matmul("wk", layer, h), position, c))
            values[layer].append(matmul("wv", layer, h))
            heads = []
            for head in range(c.n_heads):
                kv = head // (c.n_heads // c.n_kv_heads)
                mine = slice(head * c.head_dim, (head + 1) * c.head_dim)
                theirs = slice(kv * c.head_dim, (kv + 1) * c.head_dim)
                scores = [q[mine] @ k[theirs] / math.sqrt(c.head_dim) for k in keys[layer]]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                heads.append(sum(a * v[theirs] for a, v in zip(weights, values[layer], strict=True)))
            x = x + matmul("wo", layer, np.concatenate(heads))
            h = norm(x, w("ffn_norm", layer), c.norm_eps)
            gate = matmul("w1", layer, h)
            x = x + matmul("w2", layer, gate / (1 + np.exp(-gate)) * matmul("w3", layer, h))
        rows.append(matmul("wcls", -1, norm(x, w("norm"), c.norm_eps)))
    return np.array(rows)


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * x / math.sqrt((x * x).mean() + eps)


def frequency(i: int, c: ModelConfig) -> float:
    """Of pair i; Llama 3's scaling as Meta's `apply_scaling` words it."""
    freq = c.rope_theta ** (-2 * i / c.head_dim)
    s = c.rope_scaling
    if s is None:
        return freq
    wavelength = 2 * math.pi / freq
    if wavelength < s.original_max_seq_len / s.high_freq_factor:
        return freq
    if wavelength > s.original_max_seq_len / s.low_freq_factor:
        return freq / s.factor
    smooth = (s.original_max_seq_len / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    return (1 - smooth) * freq / s.factor + smooth * freq


def rotate(x: np.ndarray, position: int, c: ModelConfig) -> np.ndarray:
    out = x.copy()
    for start in range(0, len(x), c.head_dim):
        for i in range(c.head_dim // 2):
            angle = position * frequency(i, c)
            a, b = x[start + 2 * i], x[start + 2 * i + 1]
            out[start + 2 * i] = a * math.cos(angle) - b * math.sin(angle)
            out[start + 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out
