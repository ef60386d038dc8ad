"""What every reader of a foreign format gives: a config, tensors by llama2.c's names, and a tokenizer.

    open_hf, open_meta, open_llama2c, open_gguf, open_bin  ->  Source  ->  export_bin, export_hf

Tensors are named and shaped as `llamatui.backends.checkpoint.tensor_layout` says, with the rows of wq and wk
in llama2.c's (and Meta's) order, where the two numbers that RoPE rotates together are neighbours.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.checkpoint_writer import TensorSource
from llamatui.backends.q8_0 import FloatArray, Q8Tensor

TokenizerFiles = dict[str, bytes]
"""Contents by what follows the stem: ".tokenizer.model" or ".tokenizer.json", ".tokenizer_config.json"."""

HF_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
"""Ours to Hugging Face's, in `model.layers.{layer}.{name}.weight`."""

HF_NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "wcls": "lm_head"}
"""Ours to Hugging Face's, in `{name}.weight`."""

META_LAYER_NAMES = {
    "attention_norm": "attention_norm",
    "wq": "attention.wq",
    "wk": "attention.wk",
    "wv": "attention.wv",
    "wo": "attention.wo",
    "ffn_norm": "ffn_norm",
    "w1": "feed_forward.w1",
    "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
}
"""Ours to Meta's and llama2.c's, in `layers.{layer}.{name}.weight`."""

META_NAMES = {"tok_embeddings": "tok_embeddings", "norm": "norm", "wcls": "output"}
"""Ours to Meta's and llama2.c's, in `{name}.weight`."""


@dataclass(frozen=True)
class Source:
    """A model to export. Nothing large is read before `tensor` is asked for rows."""

    path: Path
    config: ModelConfig
    """`group_size`: of Q8_0 weights, else 0. `chat_format`: see `chat_templates.UNKNOWN_FORMAT`."""
    tensor: TensorSource
    """Raises CheckpointError where the file is damaged. Not asked for `wcls` if the classifier is shared."""
    tokenizer: TokenizerFiles = field(default_factory=dict)
    """Empty where the source has none."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: what was assumed, what was left out."""


@dataclass(frozen=True, slots=True)
class LazyRows:
    """Rows that `read` fetches when they are asked for."""

    shape: tuple[int, ...]
    read: Callable[[slice], FloatArray | Q8Tensor]

    def __getitem__(self, rows: slice) -> FloatArray | Q8Tensor:
        return self.read(rows)


def to_fp32(stored: npt.NDArray[np.generic], *, is_bf16: bool) -> FloatArray:
    """float32 of fp16 or fp32 numbers, or of bfloat16 held as uint16: the upper half of a float32."""
    if is_bf16:
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN stays a NaN
        return stored.astype(np.float32, copy=False)


def drop_pages(mapping: mmap.mmap) -> None:
    """Lets go of what was read of a file, so that memory is that of one tensor and not of the whole model.

    The pages stay in the system's cache, but no longer count as ours.
    """
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)


def interleave(head_dim: int) -> npt.NDArray[np.int64]:
    """Row of a head of Hugging Face's wq or wk that each row of ours is.

    HF rotates numbers i and i + head_dim / 2 of a head together, llama2.c numbers 2i and 2i + 1. Source:
    `permute` in transformers' `convert_llama_weights_to_hf.py`, which this undoes.
    """
    return np.arange(head_dim).reshape(2, -1).T.ravel()  # (head_dim,)


def deinterleave(head_dim: int) -> npt.NDArray[np.int64]:
    """Row of a head of our wq or wk that each row of Hugging Face's is: the inverse of `interleave`."""
    return np.arange(head_dim).reshape(-1, 2).T.ravel()  # (head_dim,)
