"""Rotary position embedding: llama2.c's interleaved pairs, and Llama 3's frequency scaling.

Sources: RoFormer, arXiv:2104.09864; `apply_scaling` in Meta's llama-models for Llama 3.1.
"""

import math

import numpy as np

from llamatui.backends.checkpoint import ModelConfig, RopeScaling
from llamatui.backends.q8_0 import FloatArray


def rope_frequencies(config: ModelConfig) -> FloatArray:
    """Radians per position of each pair, (head_dim / 2,) float32, in run.c's float32 order of operations."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    freqs = np.float32(1) / np.power(np.float32(config.rope_theta), exponents)  # (head_dim / 2,)
    return _scale(freqs, config.rope_scaling) if config.rope_scaling else freqs


def _scale(freqs: FloatArray, s: RopeScaling) -> FloatArray:
    """Llama 3: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / freqs.astype(np.float64)  # (head_dim / 2,)
    ratio = s.original_max_seq_len / wavelengths
    smooth = (ratio - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)  # 0: scaled in full, 1: kept
    scaled = (1 - smooth) * freqs / s.factor + smooth * freqs
    return scaled.astype(np.float32)


def rope_table(config: ModelConfig, n: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of positions 0..n-1, each (n, head_dim / 2) float32."""
    positions = np.arange(n, dtype=np.float32)
    angles = positions[:, None] * rope_frequencies(config)  # (n, head_dim / 2)
    return np.cos(angles), np.sin(angles)
