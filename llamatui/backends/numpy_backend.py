"""The readable reference: Llama in fp32 with NumPy, all heads and positions at once.

Prefill is matrix-matrix work for BLAS, decode is matrix-vector. Every step writes its shapes. Activations are
columns, (dim, n), so that a matmul is w @ x as in the papers: with both sides in memory order, OpenBLAS was
measured to be a fifth faster than with x @ w.T.
"""

import numpy as np
import numpy.typing as npt

from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.backends.rope import rope_table

Complex64Array = npt.NDArray[np.complex64]

DEQUANTIZED_BYTES = 16 << 20  # of weights that are not kept, at a time
ATTENTION_BYTES = 64 << 20  # bound on the scores of one block of queries


class NumpyBackend(Backend):
    """Runs checkpoint versions 0, 1 and 2.

    Memory beside the KV cache: fp32 files are used in place, memory-mapped. Version 2 is dequantized tensor
    by tensor when first touched and kept, so at its peak it holds 4 bytes a weight, next to the mapped file
    of about 1.06 bytes a weight; the embedding is dequantized row by row unless the classifier shares it.
    Activations of a chunk add about 4 · prefill_chunk · (4 dim + 3 hidden_dim) bytes and 64 MB of scores.
    """

    name = "numpy"
    description = "fp32, pure NumPy: the readable reference"

    def __init__(self, checkpoint: Checkpoint, threads: int, kept_bytes: int | None = None) -> None:
        """`kept_bytes`: most bytes of dequantized weights to keep, None for all; the rest is dequantized each
        time.
        """
        super().__init__(checkpoint, threads)
        self._room = kept_bytes
        self._weights: dict[tuple[str, int], FloatArray] = {}
        self._turns = np.empty(
            (0, self.config.head_dim // 2), np.complex64
        )  # (positions so far, head_dim / 2)
        self._norms = {name: checkpoint.fp32(name) for name in ("attention_norm", "ffn_norm", "norm")}

    def _matmul(self, name: str, layer: int, x: FloatArray) -> FloatArray:
        """W x, (out, n), for the weights (out, in) of one layer, or of none (-1), and x (in, n)."""
        w = self._weights.get((name, layer))
        if w is not None:
            return w @ x
        tensor = self.checkpoint.tensors[name]
        part = tensor if layer < 0 else tensor[layer]
        if not isinstance(part, Q8Tensor):
            self._weights[name, layer] = part
            return part @ x
        rows, cols = part.shape
        if self._room is None or 4 * rows * cols <= self._room:
            w = self._weights[name, layer] = part.dequantize()  # (out, in)
            if self._room is not None:
                self._room -= w.nbytes
            return w @ x
        out = np.empty((rows, x.shape[1]), np.float32)
        block = max(1, DEQUANTIZED_BYTES // (4 * cols))
        for first in range(0, rows, block):
            np.matmul(part[first : first + block].dequantize(), x, out=out[first : first + block])
        return out

    def _embed(self, ids: npt.NDArray[np.int64]) -> FloatArray:
        """(dim, n) columns of the embedding."""
        rows = self.checkpoint.tensors["tok_embeddings"][ids]  # (n, dim)
        return np.ascontiguousarray((rows.dequantize() if isinstance(rows, Q8Tensor) else rows).T)

    def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        # exp(-x) of a very negative x is inf, and x / (1 + inf) is the 0 that SiLU means. Damaged weights end
        # in logits that are not numbers, which the sampler tells.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._layers(tokens, cache, all_positions)

    def _layers(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        c = self.config
        n, start = tokens.size, cache.length
        end = start + n
        if len(self._turns) < end:
            cos, sin = rope_table(c, cache.capacity)
            self._turns = cos + 1j * sin  # (capacity, head_dim / 2)
        turns = self._turns[start:end, None]  # (n, 1, head_dim / 2)
        x = self._embed(tokens)  # (dim, n)
        for layer in range(c.n_layers):
            h = rms_norm(x, self._norms["attention_norm"][layer], c.norm_eps)  # (dim, n)
            q = heads(self._matmul("wq", layer, h), c.head_dim)  # (n, n_heads, head_dim)
            k = heads(self._matmul("wk", layer, h), c.head_dim)  # (n, n_kv_heads, head_dim)
            v = heads(self._matmul("wv", layer, h), c.head_dim)  # (n, n_kv_heads, head_dim)
            keys, values = cache.keys[layer], cache.values[layer]  # (n_kv_heads, capacity, head_dim)
            keys[:, start:end] = rotate(k, turns).transpose(1, 0, 2)
            values[:, start:end] = v.transpose(1, 0, 2)
            mixed = attention(rotate(q, turns), keys[:, :end], values[:, :end])  # (n, n_heads, head_dim)
            x += self._matmul("wo", layer, mixed.reshape(n, c.dim).T)  # (dim, n)
            h = rms_norm(x, self._norms["ffn_norm"][layer], c.norm_eps)  # (dim, n)
            gate = silu(self._matmul("w1", layer, h))  # (hidden_dim, n)
            gate *= self._matmul("w3", layer, h)  # (hidden_dim, n)
            x += self._matmul("w2", layer, gate)  # (dim, n)
        cache.length = end
        if not all_positions:
            x = x[:, -1:]  # (dim, 1)
        logits = self._matmul(
            "wcls", -1, rms_norm(x, self._norms["norm"], c.norm_eps)
        )  # (vocab_size, n or 1)
        return logits.T if all_positions else logits[:, 0]


def rms_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    """RMSNorm (arXiv:1910.07467) of each column of x (dim, n); weight (dim,)."""
    mean_square = np.einsum("dn,dn->n", x, x) / np.float32(len(x))  # (n,)
    h: FloatArray = x * (1 / np.sqrt(mean_square + np.float32(eps)))  # (dim, n)
    h *= weight[:, None]
    return h


def heads(x: FloatArray, head_dim: int) -> FloatArray:
    """Columns x (heads * head_dim, n) as rows of heads, (n, heads, head_dim)."""
    return np.ascontiguousarray(x.T).reshape(x.shape[1], -1, head_dim)


def silu(x: FloatArray) -> FloatArray:
    """x / (1 + exp(-x)), in one temporary: these arrays are the largest there are."""
    e = np.negative(x)
    np.exp(e, out=e)
    e += 1
    return np.divide(x, e, out=e)


def rotate(x: FloatArray, turns: Complex64Array) -> FloatArray:
    """RoPE: pairs of x (n, heads, head_dim) as complex numbers, times turns (n, 1, head_dim / 2)."""
    pairs = x.view(np.complex64) * turns  # (n, heads, head_dim / 2)
    return pairs.view(np.float32)


def attention(q: FloatArray, keys: FloatArray, values: FloatArray) -> FloatArray:
    """Causal grouped-query attention of the last n positions over all of them.

    Args:
        q: (n, n_heads, head_dim)
        keys, values: (n_kv_heads, positions, head_dim), the n new positions included.

    Returns:
        (n, n_heads, head_dim)
    """
    n, n_heads, head_dim = q.shape
    n_kv_heads, positions, _ = keys.shape
    group = n_heads // n_kv_heads  # query heads that share a key
    start = positions - n
    out = np.empty((n, n_kv_heads, group, head_dim), np.float32)
    block = max(1, ATTENTION_BYTES // (4 * n_heads * positions))
    scaled = q.reshape(n, n_kv_heads, group, head_dim) * np.float32(1 / np.sqrt(head_dim))
    for first in range(0, n, block):
        last = min(first + block, n)
        m, seen = last - first, start + last  # queries of this block, keys that any of them may see
        qs = scaled[first:last].transpose(1, 2, 0, 3)  # (n_kv_heads, group, m, head_dim)
        scores = qs.reshape(n_kv_heads, group * m, head_dim) @ keys[:, :seen].transpose(0, 2, 1)
        if m > 1:
            future = np.arange(seen) > np.arange(start + first, start + last)[:, None]  # (m, seen)
            np.copyto(scores.reshape(n_kv_heads, group, m, seen), -np.inf, where=future)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)  # (n_kv_heads, group * m, seen)
        mixed = scores @ values[:, :seen]  # (n_kv_heads, group * m, head_dim)
        mixed /= scores.sum(axis=-1, keepdims=True)
        out[first:last] = mixed.reshape(n_kv_heads, group, m, head_dim).transpose(2, 0, 1, 3)
    return out.reshape(n, n_heads, head_dim)
