"""Matrix times activations in fp32: one token row by row, many in tiles.

Addresses are int64; matrices are (rows, cols) float32 in memory order.
"""

import numpy as np

from llamatui.backends.kernels.memory import floats, kernel
from llamatui.backends.kernels.params import FP32_BLOCK
from llamatui.backends.kernels.simd import (
    LANES,
    ROWS_AT_ONCE,
    SMALL_TILE_TOKENS,
    TILE_ROWS,
    TILE_TOKENS,
    dot_row,
    dot_rows,
    small_tile,
    tile,
    transpose,
)

LONG_ROW = 1024
"""Columns from which rows are read several at a time. Hardware prefetchers begin anew at each page: while one
row does, the others go on. Short rows gain nothing from that, and lose by a stream for each."""

# Of so many columns a tile's activations fit the first-level cache.
K_BLOCK = FP32_BLOCK


@kernel
def dot_tail(w, x, first, n):
    """Sum over k in first..n - 1 of w[k] * x[k]: the columns that do not fill a vector."""
    a, b = floats(w, n), floats(x, n)
    total = np.float32(0)
    for k in range(first, n):
        total += a[k] * b[k]
    return total


@kernel
def multiply_one(w, cols, x, out, accumulate, first, last, scratch):
    """out[r] = W[r] · x for rows first..last - 1, or += with `accumulate`. One token.

    scratch: Address of ROWS_AT_ONCE floats.
    """
    y, sums = floats(out, last), floats(scratch, ROWS_AT_ONCE)
    whole = cols // LANES
    r = first
    while r < last:
        row = w + 4 * r * cols
        if cols >= LONG_ROW and r + ROWS_AT_ONCE <= last:
            dot_rows(row, 4 * cols, x, whole, scratch)
            n = ROWS_AT_ONCE
        else:
            dot_row(row, 4 * cols, x, whole, scratch)
            n = 1
        for i in range(n):
            total = sums[i]
            if whole * LANES < cols:
                total += dot_tail(row + 4 * i * cols, x, whole * LANES, cols)
            y[r + i] = y[r + i] + total if accumulate else total
        r += n


@kernel
def pack(w, row_stride, rows, cols, packed):
    """Columns of a block of W to rows: packed[k, r] = W[r, k], (cols, TILE_ROWS), 0 for r >= rows.

    rows <= TILE_ROWS. row_stride: in bytes.
    """
    whole_rows = rows // LANES * LANES
    whole_cols = cols // LANES * LANES
    for r in range(0, whole_rows, LANES):
        for k in range(0, whole_cols, LANES):
            transpose(w + r * row_stride + 4 * k, row_stride, packed + 4 * (k * TILE_ROWS + r), 4 * TILE_ROWS)
    out = floats(packed, cols * TILE_ROWS)
    for r in range(TILE_ROWS):
        row = floats(w + min(r, rows - 1) * row_stride, cols)
        begin = whole_cols if r < whole_rows else 0
        for k in range(begin, cols):
            out[k * TILE_ROWS + r] = row[k] if r < rows else np.float32(0)


@kernel
def add_tiles(packed, cols, x, x_row, n, out, out_row):
    """out[t, 0..TILE_ROWS - 1] += packed block times token t's `cols` numbers at x. Rows in bytes."""
    t = 0
    while t + TILE_TOKENS <= n or n - t > 2 * SMALL_TILE_TOKENS:
        tile(packed, 4 * TILE_ROWS, x + t * x_row, x_row, cols, out + t * out_row, out_row)
        t += TILE_TOKENS
    while t < n:
        small_tile(packed, 4 * TILE_ROWS, x + t * x_row, x_row, cols, out + t * out_row, out_row)
        t += SMALL_TILE_TOKENS


@kernel
def clear(out, out_row, n, first, last):
    """out[t, first..last - 1] = 0 for n tokens; out_row in bytes."""
    for t in range(n):
        row = floats(out + t * out_row, last)
        for r in range(first, last):
            row[r] = 0


@kernel
def multiply_many(w, cols, x, x_row, n, out, out_row, accumulate, first, last, packed):
    """out[t, r] = W[r] · x[t] for n tokens, rows first..last - 1 (first a multiple of TILE_ROWS).

    Writes whole tiles: out needs rows of a multiple of TILE_ROWS numbers, and TILE_TOKENS - 1 spare tokens.

    Args:
        x_row, out_row: Bytes from token to token.
        packed: Address of K_BLOCK * TILE_ROWS floats of scratch.
    """
    if not accumulate:
        clear(out, out_row, n, first, last)
    for r in range(first, last, TILE_ROWS):
        for k in range(0, cols, K_BLOCK):
            width = min(K_BLOCK, cols - k)
            pack(w + 4 * (r * cols + k), 4 * cols, min(TILE_ROWS, last - r), width, packed)
            add_tiles(packed, width, x + 4 * k, x_row, n, out + 4 * r, out_row)
