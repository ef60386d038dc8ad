"""Llama as slowly and plainly as it can be said: float64, one position, one head, one number at a time."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.q8_0 import FloatArray


def reference_logits(
    config: ModelConfig, source: Callable[[str, int], FloatArray], tokens: Sequence[int]
) -> np.ndarray:
    """(n, vocab_size) float64 logits of every position."""
    c = config

    def w(name: str, layer: int = 0) -> np.ndarray:
        return source(name, layer).astype(np.float64)

    keys: list[list[np.ndarray]] = [[] for _ in range(c.n_layers)]
    values: list[list[np.ndarray]] = [[] for _ in range(c.n_layers)]
    rows = []
    for position, token in enumerate(tokens):
        x = w("tok_embeddings")[token]
        for layer in range(c.n_layers):
            h = norm(x, w("attention_norm", layer), c.norm_eps)
            q = rotate(w("wq", layer) @ h, position, c)
            keys[layer].append(rotate(w("wk", layer) @ h, position, c))
            values[layer].append(w("wv", layer) @ h)
            heads = []
            for head in range(c.n_heads):
                kv = head // (c.n_heads // c.n_kv_heads)
                mine = slice(head * c.head_dim, (head + 1) * c.head_dim)
                theirs = slice(kv * c.head_dim, (kv + 1) * c.head_dim)
                scores = [q[mine] @ k[theirs] / math.sqrt(c.head_dim) for k in keys[layer]]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                heads.append(sum(a * v[theirs] for a, v in zip(weights, values[layer], strict=True)))
            x = x + w("wo", layer) @ np.concatenate(heads)
            h = norm(x, w("ffn_norm", layer), c.norm_eps)
            gate = w("w1", layer) @ h
            x = x + w("w2", layer) @ (gate / (1 + np.exp(-gate)) * (w("w3", layer) @ h))
        classifier = w("tok_embeddings") if c.shared_classifier else w("wcls")
        rows.append(classifier @ norm(x, w("norm"), c.norm_eps))
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
