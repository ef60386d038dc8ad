"""Causal grouped-query attention over the KV cache, for one new token (decode) and for many (prefill).

A worker has some of the query heads; those that share a key head are done together, so that keys and values
are read once. Keys and values are (n_kv_heads, capacity, head_dim) float32 of one layer.
"""

import math

import numpy as np

from llamatui.backends.kernels.elementwise import exp_scores
from llamatui.backends.kernels.fp32 import clear, dot_tail, pack
from llamatui.backends.kernels.memory import floats, kernel
from llamatui.backends.kernels.params import PAD
from llamatui.backends.kernels.simd import (
    LANES,
    SMALL_TILE_TOKENS,
    TILE_ROWS,
    TILE_TOKENS,
    dot_positions,
    dot_row,
    small_tile,
    tile,
)


@kernel
def score(q, keys, head_dim, seen, scores):
    """scores[t] = q · keys[t] for t in 0..seen - 1; addresses, keys (seen, head_dim)."""
    out = floats(scores, seen)
    row, whole = 4 * head_dim, head_dim // LANES
    done = seen // LANES * LANES
    for t in range(0, done, LANES):
        dot_positions(keys + t * row, row, q, whole, scores + 4 * t)
    for t in range(done, seen):
        dot_row(keys + t * row, row, q, whole, scores + 4 * t)
    if whole * LANES < head_dim:
        for t in range(seen):
            out[t] += dot_tail(keys + t * row, q, whole * LANES, head_dim)


@kernel
def mix(scores, scores_row, values, head_dim, seen, n, out, area):
    """out[i] = sum over t of scores[i, t] * values[t], for n rows of scores; all addresses.

    n <= SMALL_TILE_TOKENS. scores_row: bytes. area: SMALL_TILE_TOKENS * TILE_ROWS floats of scratch. Columns
    that do not fill a tile are done one by one.
    """
    tiles = head_dim // TILE_ROWS
    for c in range(tiles):
        clear(area, 4 * TILE_ROWS, SMALL_TILE_TOKENS, 0, TILE_ROWS)
        at = values + 4 * c * TILE_ROWS
        small_tile(at, 4 * head_dim, scores, scores_row, seen, area, 4 * TILE_ROWS)
        for i in range(n):
            source = floats(area + 4 * i * TILE_ROWS, TILE_ROWS)
            target = floats(out + 4 * (i * head_dim + c * TILE_ROWS), TILE_ROWS)
            for j in range(TILE_ROWS):
                target[j] = source[j]
    rest = tiles * TILE_ROWS
    if rest < head_dim:
        for i in range(n):
            weights = floats(scores + i * scores_row, seen)
            target = floats(out + 4 * (i * head_dim + rest), head_dim - rest)
            for j in range(head_dim - rest):
                target[j] = 0
            for t in range(seen):
                row = floats(values + 4 * (t * head_dim + rest), head_dim - rest)
                for j in range(head_dim - rest):
                    target[j] += weights[t] * row[j]


@kernel
def attend_one(q, keys, values, n_heads, n_kv_heads, head_dim, capacity, seen, out, first, last, scratch):
    """Heads first..last - 1 of one token: q and out (n_heads, head_dim), addresses.

    scratch: SMALL_TILE_TOKENS * (seen rounded up + TILE_ROWS) floats.
    """
    group = n_heads // n_kv_heads
    scale = np.float32(1 / math.sqrt(head_dim))
    scores_row = 4 * ((seen + PAD - 1) // PAD * PAD)
    area = scratch + SMALL_TILE_TOKENS * scores_row
    h = first
    while h < last:
        kv = h // group
        n = min(min((kv + 1) * group, last) - h, SMALL_TILE_TOKENS)
        at = 4 * kv * capacity * head_dim
        for i in range(n):
            row = scratch + i * scores_row
            score(q + 4 * (h + i) * head_dim, keys + at, head_dim, seen, row)
            weights = floats(row, seen)
            inverse = np.float32(1) / exp_scores(weights, scale)
            for t in range(seen):
                weights[t] *= inverse
        mix(scratch, scores_row, values + at, head_dim, seen, n, out + 4 * h * head_dim, area)
        h += n


@kernel
def attend_many(
    q, q_row, keys, values, n_heads, n_kv_heads, head_dim, capacity, start, n, out, first, last, scratch
):
    """Heads first..last - 1 of n tokens at positions start..start + n - 1, their keys and values included.

    q and out: (n, q_row bytes), each row (n_heads, head_dim), with spare tokens behind. scratch: (seen +
    TILE_ROWS) * head_dim floats for packed keys, seen * (head_dim + TILE_ROWS) for values, TILE_TOKENS *
    (seen + 2 * TILE_ROWS) for scores and a tile of results.
    """
    group = n_heads // n_kv_heads
    scale = np.float32(1 / math.sqrt(head_dim))
    seen = start + n
    tiles = (seen + TILE_ROWS - 1) // TILE_ROWS
    value_tiles = (head_dim + TILE_ROWS - 1) // TILE_ROWS
    key_tile = 4 * head_dim * TILE_ROWS
    value_tile = 4 * seen * TILE_ROWS
    packed_keys = scratch
    packed_values = packed_keys + tiles * key_tile
    scores = packed_values + value_tiles * value_tile
    scores_row = 4 * tiles * TILE_ROWS
    area = scores + TILE_TOKENS * scores_row
    packed_kv = -1
    for h in range(first, last):
        kv = h // group
        at = 4 * kv * capacity * head_dim
        if kv != packed_kv:
            packed_kv = kv
            for i in range(tiles):
                rows = min(TILE_ROWS, seen - i * TILE_ROWS)
                pack(
                    keys + at + 4 * i * TILE_ROWS * head_dim,
                    4 * head_dim,
                    rows,
                    head_dim,
                    packed_keys + i * key_tile,
                )
            for c in range(value_tiles):
                width = min(TILE_ROWS, head_dim - c * TILE_ROWS)
                for t in range(seen):
                    source = floats(values + at + 4 * (t * head_dim + c * TILE_ROWS), width)
                    target = floats(packed_values + c * value_tile + 4 * t * TILE_ROWS, TILE_ROWS)
                    for j in range(width):
                        target[j] = source[j]
        for t in range(0, n, TILE_TOKENS):
            m = min(TILE_TOKENS, n - t)
            visible = start + t + m
            visible_tiles = (visible + TILE_ROWS - 1) // TILE_ROWS
            clear(scores, scores_row, TILE_TOKENS, 0, visible_tiles * TILE_ROWS)
            for i in range(visible_tiles):
                tile(
                    packed_keys + i * key_tile, 4 * TILE_ROWS, q + t * q_row + 4 * h * head_dim, q_row,
                    head_dim, scores + 4 * i * TILE_ROWS, scores_row,
                )  # fmt: skip
            for j in range(m):
                row = floats(scores + j * scores_row, visible)
                mine = start + t + j + 1
                inverse = np.float32(1) / exp_scores(row[:mine], scale)
                for i in range(mine):
                    row[i] *= inverse
                for i in range(mine, visible):
                    row[i] = 0
            for c in range(value_tiles):
                clear(area, 4 * TILE_ROWS, TILE_TOKENS, 0, TILE_ROWS)
                tile(
                    packed_values + c * value_tile,
                    4 * TILE_ROWS,
                    scores,
                    scores_row,
                    visible,
                    area,
                    4 * TILE_ROWS,
                )
                width = min(TILE_ROWS, head_dim - c * TILE_ROWS)
                for j in range(m):
                    source = floats(area + 4 * j * TILE_ROWS, width)
                    target = floats(out + (t + j) * q_row + 4 * (h * head_dim + c * TILE_ROWS), width)
                    for i in range(width):
                        target[i] = source[i]
