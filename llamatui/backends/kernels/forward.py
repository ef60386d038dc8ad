"""All layers, as one worker of a team runs them: every worker does its share of each step, then meets the others.

One forward pass serves prefill and decode: a step on one token shares out rows or heads, a step on many shares
out tiles, heads or tokens. No result depends on the number of workers.
"""

from typing import Any

import numpy as np

from llamatui.backends.kernels import fp32, q8_0
from llamatui.backends.kernels.attention import attend_many, attend_one
from llamatui.backends.kernels.elementwise import rms_norm, rotate, silu_times
from llamatui.backends.kernels.memory import barrier, call, floats, int8s, int64s, kernel, params_at, share
from llamatui.backends.kernels.params import MATRICES
from llamatui.backends.kernels.simd import TILE_ROWS

WQ, WK, WV, WO, W1, W2, W3 = range(len(MATRICES))


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
def prepare_fp32(p, x, x_row, cols, n, worker, workers):
    """Nothing: matmuls take x as it is."""


@kernel
def prepare_q8_0(p, x, x_row, cols, n, worker, workers):
    """Quantizes n tokens of x (cols,), for the matmuls that follow a barrier."""
    groups = cols // p.group_size
    # Few tokens share out groups, many share out tokens.
    t0, t1 = share(n, 1, worker, workers) if n >= workers else (0, n)
    g0, g1 = (0, groups) if n >= workers else share(groups, 1, worker, workers)
    for t in range(t0, t1):
        at = t * p.quantized_row
        q8_0.quantize(
            x + t * x_row, p.group_size, p.quantized + at, p.scales + 4 * at // p.group_size,
            p.group_excess + 4 * at // p.group_size, p.excess + at, g0, g1,
        )  # fmt: skip


@kernel
def matmul_fp32(p, w, w_scales, rows, cols, x, x_row, n, out, out_row, accumulate, worker, workers):
    """out[t] = W x[t] for n tokens, or += with `accumulate`."""
    if n == 1:
        first, last = share(rows, 1, worker, workers)
        fp32.multiply_one(w, cols, x, out, accumulate, first, last)
    else:
        first, last = share(rows, TILE_ROWS, worker, workers)
        scratch = p.scratch + worker * p.scratch_size
        fp32.multiply_many(w, rows, cols, x, x_row, n, out, out_row, accumulate, first, last, scratch)


@kernel
def matmul_q8_0(p, w, w_scales, rows, cols, x, x_row, n, out, out_row, accumulate, worker, workers):
    """As `matmul_fp32`, of the tokens that were quantized last."""
    if n == 1:
        first, last = share(rows, 1, worker, workers)
        q8_0.multiply_one(
            w, w_scales, cols, p.group_size, p.quantized, p.scales, p.excess, out, accumulate, first, last
        )
    else:
        first, last = share(rows, TILE_ROWS, worker, workers)
        q8_0.multiply_many(
            w, w_scales, rows, cols, p.group_size, p.quantized, p.quantized_row, p.scales, p.group_excess,
            4 * p.quantized_row // p.group_size, n, out, out_row, accumulate, first, last,
            p.scratch + worker * p.scratch_size,
        )  # fmt: skip


def _forward(embed: Any, prepare: Any, matmul: Any) -> Any:
    @kernel
    def forward(address, worker, workers):
        p = params_at(address)
        n = p.n_tokens
        head_dim, kv_dim = p.head_dim, p.n_kv_heads * p.head_dim
        dim_row, kv_row, hidden_row = 4 * p.dim_row, 4 * p.kv_row, 4 * p.hidden_row
        scratch = p.scratch + worker * p.scratch_size
        weights = int64s(p.weights, p.n_layers * 14)  # (n_layers, 7, 2)
        cache_layer = 4 * p.n_kv_heads * p.capacity * head_dim
        tokens = int64s(p.tokens, n)
        passed = 0
        t0, t1 = share(n, 1, worker, workers)
        for t in range(t0, t1):
            embed(p, tokens[t], floats(p.x + t * dim_row, p.dim))
        for layer in range(p.n_layers):
            w = weights[14 * layer : 14 * layer + 14]
            keys, values = p.keys + layer * cache_layer, p.values + layer * cache_layer
            # The token's own worker normalizes it, so that needs no barrier before.
            norm = floats(p.attention_norm + 4 * layer * p.dim, p.dim)
            for t in range(t0, t1):
                x = floats(p.x + t * dim_row, p.dim)
                rms_norm(floats(p.h + t * dim_row, p.dim), x, norm, p.norm_eps)
            if n < workers:
                passed = barrier(p, passed, workers)
            prepare(p, p.h, dim_row, p.dim, n, worker, workers)
            passed = barrier(p, passed, workers)
            matmul(
                p,
                w[2 * WQ],
                w[2 * WQ + 1],
                p.dim,
                p.dim,
                p.h,
                dim_row,
                n,
                p.q,
                dim_row,
                False,
                worker,
                workers,
            )
            matmul(
                p,
                w[2 * WK],
                w[2 * WK + 1],
                kv_dim,
                p.dim,
                p.h,
                dim_row,
                n,
                p.k,
                kv_row,
                False,
                worker,
                workers,
            )
            matmul(
                p,
                w[2 * WV],
                w[2 * WV + 1],
                kv_dim,
                p.dim,
                p.h,
                dim_row,
                n,
                p.v,
                kv_row,
                False,
                worker,
                workers,
            )
            passed = barrier(p, passed, workers)
            # Each worker turns the queries of its heads, and the keys of its share of all (token, head) pairs.
            first, last = share(n * p.n_kv_heads, 1, worker, workers)
            for pair in range(first, last):
                t, head = pair // p.n_kv_heads, pair % p.n_kv_heads
                position = p.start + t
                cos = floats(p.cos + 2 * position * head_dim, head_dim // 2)
                sin = floats(p.sin + 2 * position * head_dim, head_dim // 2)
                at = 4 * (head * p.capacity + position) * head_dim
                key, value = floats(keys + at, head_dim), floats(values + at, head_dim)
                k = floats(p.k + t * kv_row + 4 * head * head_dim, head_dim)
                v = floats(p.v + t * kv_row + 4 * head * head_dim, head_dim)
                for i in range(head_dim):
                    key[i] = k[i]
                    value[i] = v[i]
                rotate(key, head_dim, cos, sin)
            h0, h1 = share(p.n_heads, 1, worker, workers)
            for t in range(n):
                cos = floats(p.cos + 2 * (p.start + t) * head_dim, head_dim // 2)
                sin = floats(p.sin + 2 * (p.start + t) * head_dim, head_dim // 2)
                mine = floats(p.q + t * dim_row + 4 * h0 * head_dim, (h1 - h0) * head_dim)
                rotate(mine, head_dim, cos, sin)
            passed = barrier(p, passed, workers)
            if n == 1:
                attend_one(
                    p.q, keys, values, p.n_heads, p.n_kv_heads, head_dim, p.capacity, p.start + 1, p.mixed,
                    h0, h1, scratch,
                )  # fmt: skip
            else:
                attend_many(
                    p.q, dim_row, keys, values, p.n_heads, p.n_kv_heads, head_dim, p.capacity, p.start, n, p.mixed,
                    h0, h1, scratch,
                )  # fmt: skip
            passed = barrier(p, passed, workers)
            prepare(p, p.mixed, dim_row, p.dim, n, worker, workers)
            passed = barrier(p, passed, workers)
            matmul(
                p,
                w[2 * WO],
                w[2 * WO + 1],
                p.dim,
                p.dim,
                p.mixed,
                dim_row,
                n,
                p.x,
                dim_row,
                True,
                worker,
                workers,
            )
            passed = barrier(p, passed, workers)
            norm = floats(p.ffn_norm + 4 * layer * p.dim, p.dim)
            for t in range(t0, t1):
                x = floats(p.x + t * dim_row, p.dim)
                rms_norm(floats(p.h + t * dim_row, p.dim), x, norm, p.norm_eps)
            if n < workers:
                passed = barrier(p, passed, workers)
            prepare(p, p.h, dim_row, p.dim, n, worker, workers)
            passed = barrier(p, passed, workers)
            hidden = p.hidden_dim
            matmul(
                p,
                w[2 * W1],
                w[2 * W1 + 1],
                hidden,
                p.dim,
                p.h,
                dim_row,
                n,
                p.gate,
                hidden_row,
                False,
                worker,
                workers,
            )
            matmul(
                p,
                w[2 * W3],
                w[2 * W3 + 1],
                hidden,
                p.dim,
                p.h,
                dim_row,
                n,
                p.up,
                hidden_row,
                False,
                worker,
                workers,
            )
            # The same shares as the matmuls': a worker reads what it wrote.
            first, last = share(hidden, 1 if n == 1 else TILE_ROWS, worker, workers)
            for t in range(n):
                at = t * hidden_row + 4 * first
                silu_times(floats(p.gate + at, last - first), floats(p.up + at, last - first))
            passed = barrier(p, passed, workers)
            prepare(p, p.gate, hidden_row, hidden, n, worker, workers)
            passed = barrier(p, passed, workers)
            matmul(
                p,
                w[2 * W2],
                w[2 * W2 + 1],
                p.dim,
                hidden,
                p.gate,
                hidden_row,
                n,
                p.x,
                dim_row,
                True,
                worker,
                workers,
            )
            passed = barrier(p, passed, workers)
        # Logits of the last token, or of all.
        count = n if p.all_positions else 1
        t0, t1 = share(count, 1, worker, workers)
        norm = floats(p.norm, p.dim)
        for t in range(t0, t1):
            x = floats(p.x + (n - count + t) * dim_row, p.dim)
            rms_norm(floats(p.h + t * dim_row, p.dim), x, norm, p.norm_eps)
        passed = barrier(p, passed, workers)
        prepare(p, p.h, dim_row, p.dim, count, worker, workers)
        passed = barrier(p, passed, workers)
        matmul(
            p, p.wcls, p.wcls_scale, p.vocab_size, p.dim, p.h, dim_row, count, p.logits, 4 * p.vocab_row, False,
            worker, workers,
        )  # fmt: skip

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
