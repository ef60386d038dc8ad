"""Matrix times activations in Q8_0: int8 times int8 summed in int32, as runq.c, one scale for each group of
both.

With VNNI and groups of 64 or 32 the products are four to an instruction. Elsewhere one token is plain loops
that LLVM turns into vectors, and many tokens are tiles of fp32: a tile's weights are dequantized once for all
of them.
"""

import numpy as np
from numba import njit

from llamatui.backends.kernels import simd
from llamatui.backends.kernels.elementwise import largest_magnitude_bits
from llamatui.backends.kernels.fp32 import add_tiles, clear, pack
from llamatui.backends.kernels.memory import OPTIONS, floats, int8s, int32s, kernel
from llamatui.backends.kernels.params import DEQUANTIZED_BLOCK
from llamatui.backends.kernels.simd import (
    LANES,
    ROWS_AT_ONCE,
    SMALL_TILE_TOKENS,
    TILE_ROWS,
    TILE_TOKENS,
    VECTOR_BYTES,
    VNNI,
)

K_BLOCK = DEQUANTIZED_BLOCK


@njit(**{**OPTIONS, "fastmath": False})
def quantize_group(x, quantized, scale, n):
    """n numbers of x: int8 and one float32 scale = max |x| / 127. Arguments but n are addresses.

    Rounds half away from zero and divides, as runq.c does: a reciprocal would round otherwise now and then.
    """
    source, q = floats(x, n), int8s(quantized, n)
    int32s(scale, 1)[0] = largest_magnitude_bits(int32s(x, n))
    s = floats(scale, 1)[0] / np.float32(127)
    floats(scale, 1)[0] = s
    if s == 0:
        for i in range(n):
            q[i] = 0
        return
    for i in range(n):
        v = source[i] / s
        whole = np.int32(v)
        rest = v - np.float32(whole)
        up = np.int32(1) if rest >= np.float32(0.5) else np.int32(0)
        down = np.int32(1) if rest <= np.float32(-0.5) else np.int32(0)
        q[i] = np.int8(whole + up - down)


@kernel
def quantize(x, group_size, quantized, scales, group_excess, excess, first, last):
    """Groups first..last - 1 of x.

    With VNNI weights become unsigned by adding 128: excess (int32) is -128 times the sum of each four
    numbers, group_excess that of each group.
    """
    for g in range(first, last):
        at = quantized + g * group_size
        quantize_group(x + 4 * g * group_size, at, scales + 4 * g, group_size)
        if VNNI and group_size % 32 == 0:
            note_excess(at, group_size, group_excess + 4 * g, excess + g * group_size)


@kernel
def note_excess(quantized, n, group_excess, excess):
    q, fours = int8s(quantized, n), int32s(excess, n // 4)
    total = np.int32(0)
    for i in range(n // 4):
        four = np.int32(q[4 * i]) + np.int32(q[4 * i + 1])
        four = np.int32(four + np.int32(q[4 * i + 2]) + np.int32(q[4 * i + 3]))
        fours[i] = np.int32(-128 * four)
        total = np.int32(total + four)
    int32s(group_excess, 1)[0] = np.int32(-128 * total)


@kernel
def dot_groups(w, w_scales, x, x_scales, first, n_groups, group_size):
    """Sum over groups first..n_groups - 1 of (int8 dot product) * scale * scale; all addresses."""
    a, b = int8s(w, n_groups * group_size), int8s(x, n_groups * group_size)
    s, t = floats(w_scales, n_groups), floats(x_scales, n_groups)
    total = np.float32(0)
    # A literal length is what lets LLVM turn the inner loop into int8 dot products: 25 times faster.
    if group_size == 64:
        for g in range(first, n_groups):
            part = np.int32(0)
            for i in range(64):
                part = np.int32(part + np.int32(a[64 * g + i]) * np.int32(b[64 * g + i]))
            total += np.float32(part) * (s[g] * t[g])
    elif group_size == 32:
        for g in range(first, n_groups):
            part = np.int32(0)
            for i in range(32):
                part = np.int32(part + np.int32(a[32 * g + i]) * np.int32(b[32 * g + i]))
            total += np.float32(part) * (s[g] * t[g])
    else:
        for g in range(first, n_groups):
            part = np.int32(0)
            for i in range(group_size):
                part = np.int32(part + np.int32(a[g * group_size + i]) * np.int32(b[g * group_size + i]))
            total += np.float32(part) * (s[g] * t[g])
    return total


@kernel
def multiply_one(
    w, w_scales, cols, group_size, x, x_scales, excess, out, accumulate, first, last, scratch
):  # fmt: skip
    """out[r] = W[r] · x for rows first..last - 1, or += with `accumulate`. One token, quantized.

    scratch: Address of ROWS_AT_ONCE floats.
    """
    y, sums = floats(out, last), floats(scratch, ROWS_AT_ONCE)
    groups = cols // group_size
    # A vector may hold two groups of 32, of which the last may be left over.
    block = max(group_size, VECTOR_BYTES)
    blocks = cols // block
    r = first
    while r < last:
        row, scales = w + r * cols, w_scales + 4 * r * groups
        n, done = 1, 0
        if VNNI:
            if group_size == 64:
                simd.dot_q8_row_64(row, cols, scales, 4 * groups, x, excess, x_scales, blocks, scratch)
                done = blocks * block // group_size
            elif group_size == 32:
                # Smaller groups have more scales to spread over vectors: rows share those of x.
                if r + ROWS_AT_ONCE <= last:
                    simd.dot_q8_rows_32(row, cols, scales, 4 * groups, x, excess, x_scales, blocks, scratch)
                    n = ROWS_AT_ONCE
                else:
                    simd.dot_q8_row_32(row, cols, scales, 4 * groups, x, excess, x_scales, blocks, scratch)
                done = blocks * block // group_size
        for i in range(n):
            total = sums[i] if done else np.float32(0)
            if done < groups:
                row, scales = w + (r + i) * cols, w_scales + 4 * (r + i) * groups
                total += dot_groups(row, scales, x, x_scales, done, groups, group_size)
            y[r + i] = y[r + i] + total if accumulate else total
        r += n


@kernel
def pack_groups(w, w_scales, row_stride, rows, cols, group_size, packed, packed_scales):
    """A tile of W for VNNI: packed (cols / 4, TILE_ROWS, 4) unsigned bytes, packed_scales (groups,
    TILE_ROWS).

    rows <= TILE_ROWS; where there are fewer, the last one stands in for those that are missing.
    """
    groups = cols // group_size
    whole = cols // VECTOR_BYTES * VECTOR_BYTES if rows == TILE_ROWS else 0
    for k in range(0, whole, VECTOR_BYTES):
        for r in range(0, TILE_ROWS, LANES):
            simd.transpose_bytes(
                w + r * row_stride + k, row_stride, packed + k * TILE_ROWS + 4 * r, 4 * TILE_ROWS
            )
    scales = floats(packed_scales, groups * TILE_ROWS)
    out = int8s(packed, cols * TILE_ROWS)
    for r in range(TILE_ROWS):
        row = min(r, rows - 1)
        q, s = int8s(w + row * row_stride, cols), floats(w_scales + row * groups * 4, groups)
        for k in range(whole, cols):
            out[k // 4 * 4 * TILE_ROWS + 4 * r + k % 4] = np.int8(np.int32(q[k]) ^ np.int32(-128))
        for g in range(groups):
            scales[g * TILE_ROWS + r] = s[g]


@kernel
def add_group_tiles(
    packed, packed_scales, groups, group_size, x, x_row, x_scales, excess, scales_row, n, out, out_row
):
    """out[t, 0..TILE_ROWS - 1] += packed tile times n quantized tokens. Rows in bytes."""
    if VNNI:
        t = 0
        while t < n:
            big = t + TILE_TOKENS <= n or n - t > 2 * SMALL_TILE_TOKENS
            x_t, out_t = x + t * x_row, out + t * out_row
            s_t, e_t = x_scales + t * scales_row, excess + t * scales_row
            if group_size == 64 and big:
                simd.tile_q8_64(
                    packed, packed_scales, x_t, x_row, s_t, e_t, scales_row, groups, out_t, out_row
                )
            elif group_size == 64:
                simd.small_tile_q8_64(
                    packed, packed_scales, x_t, x_row, s_t, e_t, scales_row, groups, out_t, out_row
                )
            elif big:
                simd.tile_q8_32(
                    packed, packed_scales, x_t, x_row, s_t, e_t, scales_row, groups, out_t, out_row
                )
            else:
                simd.small_tile_q8_32(
                    packed, packed_scales, x_t, x_row, s_t, e_t, scales_row, groups, out_t, out_row
                )
            t += TILE_TOKENS if big else SMALL_TILE_TOKENS


@kernel
def dequantize(q, scales, group_size, first, n, out):
    """n numbers from number `first` of a row at q (int8) with its scales, as float32; addresses."""
    source, s, y = int8s(q, first + n), floats(scales, (first + n - 1) // group_size + 1), floats(out, n)
    for i in range(n):
        y[i] = np.float32(source[first + i]) * s[(first + i) // group_size]


@kernel
def multiply_many(
    w, w_scales, cols, group_size, x, x_row, x_scales, group_excess, scales_row, n,
    out, out_row, accumulate, first, last, scratch,
):  # fmt: skip
    """out[t, r] = W[r] · x[t] for n quantized tokens, rows first..last - 1 (first a multiple of TILE_ROWS).

    Writes whole tiles, as its fp32 twin. scratch: see `scratch_bytes`.
    """
    if not accumulate:
        clear(out, out_row, n, first, last)
    groups = cols // group_size
    if VNNI:  # noqa: SIM102  # alone, so that Numba sees a constant and drops the branch where it is false
        if group_size == 64 or group_size == 32:
            packed_scales = scratch + cols * TILE_ROWS
            for r in range(first, last, TILE_ROWS):
                pack_groups(
                    w + r * cols, w_scales + r * groups * 4, cols, min(TILE_ROWS, last - r), cols, group_size,
                    scratch, packed_scales,
                )  # fmt: skip
                add_group_tiles(
                    scratch, packed_scales, groups, group_size, x, x_row, x_scales, group_excess, scales_row,
                    n, out + 4 * r, out_row,
                )  # fmt: skip
            return
    # fp32: a block of W and of x, dequantized, then W packed.
    plain, packed = scratch, scratch + 4 * TILE_ROWS * K_BLOCK
    tokens = packed + 4 * TILE_ROWS * K_BLOCK
    for k in range(0, cols, K_BLOCK):
        width = min(K_BLOCK, cols - k)
        for t in range(n):
            dequantize(
                x + t * x_row, x_scales + t * scales_row, group_size, k, width, tokens + 4 * t * K_BLOCK
            )
        for r in range(first, last, TILE_ROWS):
            m = min(TILE_ROWS, last - r)
            for i in range(m):
                at = r + i
                dequantize(
                    w + at * cols, w_scales + at * groups * 4, group_size, k, width, plain + 4 * i * K_BLOCK
                )
            pack(plain, 4 * K_BLOCK, m, width, packed)
            add_tiles(packed, width, tokens, 4 * K_BLOCK, n, out + 4 * r, out_row)
