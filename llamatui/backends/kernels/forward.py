"""All layers, as one worker of a team runs them: it does its share of each step, then meets the others.

One forward pass serves prefill and decode. A step on one token shares out rows or heads; on many, tiles,
heads or tokens. No result depends on the number of workers. `me` is (worker, workers); addresses are int64;
activations are (tokens, padded row) in float32.
"""

from typing import Any

import numpy as np

from llamatui.backends.kernels import fp32, q8_0
from llamatui.backends.kernels.attention import attend_many, attend_one
from llamatui.backends.kernels.elementwise import rms_norm, rotate, silu_times
from llamatui.backends.kernels.memory import barrier, call, floats, int8s, int64s, kernel, params_at, share
from llamatui.backends.kernels.params import MATRICES, PAD
from llamatui.backends.kernels.simd import ROWS_AT_ONCE, TILE_ROWS

WQ, WK, WV, WO, W1, W2, W3 = range(len(MATRICES))
N_MATRICES = len(MATRICES)


@kernel
def row_bytes(size):
    """From token to token of activations of `size` numbers."""
    return 4 * ((size + PAD - 1) // PAD * PAD)


@kernel
def matrix_address(p, matrix):
    """Of a matrix, and of its scales: number 7 * layer + WQ and so on, wcls behind the last layer's."""
    table = int64s(p.weights, 2 * (N_MATRICES * p.n_layers + 1))
    return table[2 * matrix], table[2 * matrix + 1]


@kernel
def embed_fp32(p, token, out):
    """out (dim,) = the embedding of a token."""
    row = floats(p.tok_embeddings + 4 * token * p.dim, p.dim)
    for i in range(p.dim):
        out[i] = row[i]


@kernel
def embed_q8_0(p, token, out):
    groups = p.dim // p.group_size
    row = int8s(p.tok_embeddings + token * p.dim, p.dim)
    scales = floats(p.tok_embeddings_scale + 4 * token * groups, groups)
    for i in range(p.dim):
        out[i] = np.float32(row[i]) * scales[i // p.group_size]


@kernel
def prepare_fp32(p, x, cols, n, passed, me):
    """Nothing: matmuls take x as it is."""
    return passed


@kernel
def prepare_q8_0(p, x, cols, n, passed, me):
    """Quantizes n tokens of x (cols,) for the matmuls that follow, and waits until all are done."""
    groups = cols // p.group_size
    # Few tokens share out groups, many share out tokens.
    together = n < me[1]
    t0, t1 = (0, n) if together else share(n, 1, me)
    g0, g1 = share(groups, 1, me) if together else (0, groups)
    for t in range(t0, t1):
        first = t * p.quantized_row
        groups_at = 4 * (first // p.group_size)
        q8_0.quantize(
            x + t * row_bytes(cols),
            p.group_size,
            p.quantized + first,
            p.scales + groups_at,
            p.group_excess + groups_at,
            p.excess + first,
            g0,
            g1,
        )
    return barrier(p, passed, me)


@kernel
def matmul_fp32(p, matrix, rows, cols, x, n, out, accumulate, me):
    """out[t] = W x[t] for n tokens, or += with `accumulate`; this worker's rows of W (rows, cols)."""
    w, _ = matrix_address(p, matrix)
    scratch = p.scratch + me[0] * p.scratch_size
    if n == 1:
        first, last = share(rows, ROWS_AT_ONCE, me)
        fp32.multiply_one(w, cols, x, out, accumulate, first, last, scratch)
        return
    first, last = share(rows, TILE_ROWS, me)
    fp32.multiply_many(w, cols, x, row_bytes(cols), n, out, row_bytes(rows), accumulate, first, last, scratch)


@kernel
def matmul_q8_0(p, matrix, rows, cols, x, n, out, accumulate, me):
    """As `matmul_fp32`, for the tokens that were quantized last, which are those of x."""
    w, w_scales = matrix_address(p, matrix)
    size = p.group_size
    if n == 1:
        first, last = share(rows, ROWS_AT_ONCE, me)
        scratch = p.scratch + me[0] * p.scratch_size
        q8_0.multiply_one(
            w, w_scales, cols, size, p.quantized, p.scales, p.excess, out, accumulate, first, last, scratch
        )
        return
    first, last = share(rows, TILE_ROWS, me)
    q8_0.multiply_many(
        w,
        w_scales,
        cols,
        size,
        p.quantized,
        p.quantized_row,
        p.scales,
        p.group_excess,
        4 * (p.quantized_row // size),
        n,
        out,
        row_bytes(rows),
        accumulate,
        first,
        last,
        p.scratch + me[0] * p.scratch_size,
    )


@kernel
def normalize(p, x, weight, out, n, passed, me):
    """out[t] = RMSNorm of x[t], for n tokens of dim numbers; waits until all are done."""
    first, last = share(n, 1, me)
    for t in range(first, last):
        at = t * row_bytes(p.dim)
        rms_norm(floats(out + at, p.dim), floats(x + at, p.dim), floats(weight, p.dim), p.norm_eps)
    return barrier(p, passed, me)


@kernel
def cache_and_rotate(p, keys, values, n, me):
    """Turns queries by their positions, and puts keys, turned too, and values into a layer's cache."""
    head_dim = p.head_dim
    first, last = share(n * p.n_kv_heads, 1, me)
    for pair in range(first, last):
        t, head = pair // p.n_kv_heads, pair % p.n_kv_heads
        position = p.start + t
        source = t * row_bytes(p.n_kv_heads * head_dim) + 4 * head * head_dim
        at = 4 * (head * p.capacity + position) * head_dim
        key, value = floats(keys + at, head_dim), floats(values + at, head_dim)
        k, v = floats(p.k + source, head_dim), floats(p.v + source, head_dim)
        for i in range(head_dim):
            key[i] = k[i]
            value[i] = v[i]
        turn(p, key, position)
    first, last = share(n * p.n_heads, 1, me)
    for pair in range(first, last):
        t, head = pair // p.n_heads, pair % p.n_heads
        turn(p, floats(p.q + t * row_bytes(p.dim) + 4 * head * head_dim, head_dim), p.start + t)


@kernel
def turn(p, head, position):
    """RoPE of one head (head_dim,)."""
    half = p.head_dim // 2
    at = 4 * position * half
    rotate(head, floats(p.cos + at, half), floats(p.sin + at, half))


@kernel
def attend(p, keys, values, n, me):
    """mixed = attention of this worker's heads, for n tokens; keys and values of one layer."""
    first, last = share(p.n_heads, 1, me)
    scratch = p.scratch + me[0] * p.scratch_size
    if n == 1:
        attend_one(
            p.q, keys, values, p.n_heads, p.n_kv_heads, p.head_dim, p.capacity, p.start + 1, p.mixed, first,
            last, scratch,
        )  # fmt: skip
    else:
        attend_many(
            p.q, row_bytes(p.dim), keys, values, p.n_heads, p.n_kv_heads, p.head_dim, p.capacity, p.start, n,
            p.mixed, first, last, scratch,
        )  # fmt: skip


@kernel
def gate_times_up(p, n, me):
    """This worker's share of the hidden numbers, which is what its matmuls wrote: no barrier before it."""
    first, last = share(p.hidden_dim, ROWS_AT_ONCE if n == 1 else TILE_ROWS, me)
    for t in range(n):
        at = t * row_bytes(p.hidden_dim) + 4 * first
        silu_times(floats(p.gate + at, last - first), floats(p.up + at, last - first))


def _forward(embed: Any, prepare: Any, matmul: Any) -> Any:
    @kernel
    def forward(address, worker, workers):
        p = params_at(address)
        me = (worker, workers)
        n, dim, hidden_dim, kv_dim = p.n_tokens, p.dim, p.hidden_dim, p.n_kv_heads * p.head_dim
        cache_bytes = 4 * p.n_kv_heads * p.capacity * p.head_dim  # of a layer's keys
        passed = 0
        tokens = int64s(p.tokens, n)
        first, last = share(n, 1, me)  # as `normalize`, so that needs no barrier
        for t in range(first, last):
            embed(p, tokens[t], floats(p.x + t * row_bytes(dim), dim))
        for layer in range(p.n_layers):
            m = N_MATRICES * layer
            keys, values = p.keys + layer * cache_bytes, p.values + layer * cache_bytes
            passed = normalize(p, p.x, p.attention_norm + 4 * layer * dim, p.h, n, passed, me)
            passed = prepare(p, p.h, dim, n, passed, me)
            matmul(p, m + WQ, dim, dim, p.h, n, p.q, False, me)
            matmul(p, m + WK, kv_dim, dim, p.h, n, p.k, False, me)
            matmul(p, m + WV, kv_dim, dim, p.h, n, p.v, False, me)
            passed = barrier(p, passed, me)
            cache_and_rotate(p, keys, values, n, me)
            passed = barrier(p, passed, me)
            attend(p, keys, values, n, me)
            passed = barrier(p, passed, me)
            passed = prepare(p, p.mixed, dim, n, passed, me)
            matmul(p, m + WO, dim, dim, p.mixed, n, p.x, True, me)
            passed = barrier(p, passed, me)
            passed = normalize(p, p.x, p.ffn_norm + 4 * layer * dim, p.h, n, passed, me)
            passed = prepare(p, p.h, dim, n, passed, me)
            matmul(p, m + W1, hidden_dim, dim, p.h, n, p.gate, False, me)
            matmul(p, m + W3, hidden_dim, dim, p.h, n, p.up, False, me)
            gate_times_up(p, n, me)
            passed = barrier(p, passed, me)
            passed = prepare(p, p.gate, hidden_dim, n, passed, me)
            matmul(p, m + W2, dim, hidden_dim, p.gate, n, p.x, True, me)
            passed = barrier(p, passed, me)
        # Logits of the last token, or of all.
        count = n if p.all_positions else 1
        passed = normalize(p, p.x + (n - count) * row_bytes(dim), p.norm, p.h, count, passed, me)
        passed = prepare(p, p.h, dim, count, passed, me)
        matmul(p, N_MATRICES * p.n_layers, p.vocab_size, dim, p.h, count, p.logits, False, me)

    return forward


forward_fp32 = _forward(embed_fp32, prepare_fp32, matmul_fp32)
forward_q8_0 = _forward(embed_q8_0, prepare_q8_0, matmul_q8_0)


def _entry(forward: Any) -> Any:
    @kernel
    def entry(address):
        """What OpenMP calls in each thread of a team."""
        p = params_at(address)
        worker, workers = call(p.omp_get_thread_num), call(p.omp_get_num_threads)
        if worker == 0:
            p.team_size = workers
        forward(address, worker, workers)

    return entry


entry_fp32, entry_q8_0 = _entry(forward_fp32), _entry(forward_q8_0)
