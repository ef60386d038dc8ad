"""What happens to activations between matmuls: RMSNorm, RoPE, SiLU, softmax, quantization.

Arrays are one-dimensional float32 unless said otherwise. The loops are plain: LLVM turns them into vectors.
"""

import math

import numpy as np
from numba import njit

from llamatui.backends.kernels.memory import FLOAT_FLAGS, OPTIONS, kernel
from llamatui.backends.kernels.simd import power_of_two

LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts, the first exact in a few bits, so that x - n ln 2 loses nothing (Cody and Waite, 1980).
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
MAX_QUANTIZED = np.float32(127)


@njit(**{**OPTIONS, "fastmath": {"contract"}})
def exp(x):
    """e^x, x clipped to -87..88: a polynomial, which LLVM can vectorize, where exp would be a call."""
    x = np.float32(-87) if x < np.float32(-87) else x
    x = np.float32(88) if x > np.float32(88) else x
    n = np.floor(x * LOG2_E + np.float32(0.5))
    f = (x - n * LN2_HIGH) - n * LN2_LOW  # in -ln 2 / 2 .. ln 2 / 2
    p = np.float32(1 / 5040)
    p = p * f + np.float32(1 / 720)
    p = p * f + np.float32(1 / 120)
    p = p * f + np.float32(1 / 24)
    p = p * f + np.float32(1 / 6)
    p = p * f + np.float32(1 / 2)
    p = p * f + np.float32(1)
    p = p * f + np.float32(1)
    return p * power_of_two(n)


@njit(**{**OPTIONS, "fastmath": FLOAT_FLAGS | {"nnan", "ninf"}})
def largest(x):
    """Largest of x. Only here may LLVM forget NaN, which keeps a maximum from being vectorized."""
    m = x[0]
    for i in range(x.size):
        m = max(m, x[i])
    return m


@kernel
def rms_norm(out, x, weight, eps):
    """RMSNorm, arXiv:1910.07467."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    scale = np.float32(1) / np.float32(math.sqrt(total / np.float32(x.size) + np.float32(eps)))
    for i in range(x.size):
        out[i] = weight[i] * (scale * x[i])


@kernel
def rotate(head, cos, sin):
    """RoPE, arXiv:2104.09864, in place: the pairs of head (head_dim,) by angles (head_dim / 2,)."""
    for i in range(cos.size):
        a, b = head[2 * i], head[2 * i + 1]
        head[2 * i] = a * cos[i] - b * sin[i]
        head[2 * i + 1] = a * sin[i] + b * cos[i]


@kernel
def silu_times(gate, up):
    """gate = SiLU(gate) * up."""
    for i in range(gate.size):
        x = gate[i]
        gate[i] = x / (np.float32(1) + exp(-x)) * up[i]


@kernel
def exp_scores(scores, scale):
    """scores = e^((scores - max) * scale); returns their sum. Softmax without the division."""
    m = largest(scores) * scale
    total = np.float32(0)
    for i in range(scores.size):
        e = exp(scores[i] * scale - m)
        scores[i] = e
        total += e
    return total


@kernel
def largest_magnitude_bits(x_bits):
    """Bits of the largest |x|, from those of x (n,) int32: magnitudes are ordered as their bits, NaN last."""
    m = np.int32(0)
    for i in range(x_bits.size):
        m = max(m, np.int32(x_bits[i] & np.int32(0x7FFFFFFF)))
    return m
