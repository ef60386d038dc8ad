"""Vector instructions as Numba intrinsics: LLVM's portable vectors, and int8 dot products where the CPU has
them.

Tiles keep their sums in registers through a whole loop, which no loop nest makes LLVM do. All addresses and
strides are int64 bytes. The vector length and the use of VNNI are chosen when this module is imported, see
`cpu.py`; LLVM turns vectors that the CPU lacks into those that it has.
"""

import os
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llamatui.backends.kernels.cpu import TARGETS
from llamatui.backends.kernels.memory import FLOAT_FLAGS
from llamatui.backends.kernels.params import PAD, SPARE_TOKENS

TARGET = TARGETS[os.environ["LLAMATUI_SIMD"]]
LANES, VNNI = TARGET.lanes, TARGET.vnni
VECTOR_BYTES = 4 * LANES
TILE_ROWS = 2 * LANES
"""Weight rows in a tile."""
TILE_TOKENS = 12 if LANES == 16 else 4
"""Tokens in a tile: with two vectors of rows their sums fill the registers."""
SMALL_TILE_TOKENS = 4
assert TILE_ROWS <= PAD
assert TILE_TOKENS <= SPARE_TOKENS
ROWS_AT_ONCE = 4
"""Rows that one token is multiplied with together. Workers share rows out in so many: else their number would
decide which rows are, and so the last bits of the results."""
PREFETCH = 4096
"""Bytes ahead: hardware prefetchers stop at the end of a page, streams of weights do not."""

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
BYTES = ir.VectorType(I8, VECTOR_BYTES)
FLAGS = tuple(sorted(FLOAT_FLAGS))
Builder = Any


def _load(b: Builder, address: Any, kind: Any, offset: int = 0, align: int = 1) -> Any:
    if offset:
        address = b.add(address, I64(offset))
    return b.load(b.inttoptr(address, kind.as_pointer()), align=align)


def _store(b: Builder, value: Any, address: Any, offset: int = 0, align: int = 1) -> None:
    if offset:
        address = b.add(address, I64(offset))
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=align)


def _splat(b: Builder, value: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = b.insert_element(undefined, value, I32(0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count))


def _shuffle(b: Builder, x: Any, y: Any, picks: list[int]) -> Any:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(picks)), picks))


def _multiply_add(b: Builder, x: Any, y: Any, z: Any) -> Any:
    # Not llvm.fma: without the instruction that is a slow library call.
    return b.fadd(b.fmul(x, y, flags=FLAGS), z, flags=FLAGS)


def _sum(b: Builder, x: Any) -> Any:
    name = f"llvm.vector.reduce.fadd.v{LANES}f32"
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(F32, [F32, FLOATS]), name)
    return b.call(function, [F32(0.0), x], fastmath=FLAGS)


def _halves(size: int) -> tuple[list[int], list[int]]:
    """Picks of two vectors in runs of `size` lanes: the even runs of both by turns, and the odd ones."""
    lanes = range(LANES)
    even = [lane if not lane & size else LANES + (lane ^ size) for lane in lanes]
    odd = [lane | size if not lane & size else LANES + lane for lane in lanes]
    return even, odd


def _prefetch(b: Builder, address: Any, ahead: int = PREFETCH) -> None:
    pointer = I8.as_pointer()
    function_type = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    function = cgutils.get_or_insert_function(b.module, function_type, "llvm.prefetch.p0")
    read, keep, data = I32(0), I32(3), I32(1)
    b.call(function, [b.inttoptr(b.add(address, I64(ahead)), pointer), read, keep, data])


def _dot_bytes(b: Builder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """sums + the four products of unsigned and signed bytes below each: VNNI's vpdpbusd."""
    name = f"llvm.x86.avx512.vpdpbusd.{8 * VECTOR_BYTES}"
    # Its operands became vectors of bytes in LLVM 22.
    operand = BYTES if binding.llvm_version_info[0] >= 22 else INTS
    function_type = ir.FunctionType(INTS, [INTS, operand, operand])
    function = cgutils.get_or_insert_function(b.module, function_type, name)
    return b.call(function, [sums, b.bitcast(unsigned, operand), b.bitcast(signed, operand)])


def _unsigned(b: Builder, signed: Any) -> Any:
    """q + 128 as unsigned bytes."""
    return b.xor(signed, ir.Constant(BYTES, [-128] * VECTOR_BYTES))


def _variables(b: Builder, count: int, initial: Any) -> list[Any]:
    return [cgutils.alloca_once_value(b, initial) for _ in range(count)]


def _procedure(n_args: int, body: Callable[..., None]) -> Any:
    """An intrinsic of `n_args` int64 that returns nothing; `body(builder, *args)` writes its code."""

    def procedure(typing_context: Any, *args: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            body(builder, *args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * n_args), generate

    # Numba asks for the number of arguments.
    names = ["typing_context", *(f"a{i}" for i in range(n_args))]
    procedure.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    return intrinsic(procedure)


def _dot_rows(n_rows: int, unroll: int) -> Any:
    """(w, row_stride, x, n, out): out[r] = w's row r · x, of n vectors of floats."""

    def body(b: Builder, w: Any, stride: Any, x: Any, n: Any, out: Any) -> None:
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        sums = [_variables(b, unroll, zero) for _ in range(n_rows)]
        rows = [b.add(w, b.mul(stride, I64(r))) for r in range(n_rows)]

        def step(offset: Any, u: int) -> None:
            xs = _load(b, b.add(x, offset), FLOATS, u * VECTOR_BYTES, 4)
            for row, accumulators in zip(rows, sums, strict=True):
                at = b.add(row, offset)
                if n_rows == 1 and (u * VECTOR_BYTES) % 64 == 0:
                    _prefetch(b, at, PREFETCH + u * VECTOR_BYTES)
                ws = _load(b, at, FLOATS, u * VECTOR_BYTES, 4)
                b.store(_multiply_add(b, ws, xs, b.load(accumulators[u])), accumulators[u])

        blocks = b.udiv(n, I64(unroll))
        with cgutils.for_range(b, blocks) as loop:
            offset = b.mul(loop.index, I64(unroll * VECTOR_BYTES))
            for u in range(unroll):
                step(offset, u)
        done = b.mul(blocks, I64(unroll))
        with cgutils.for_range(b, b.sub(n, done)) as loop:
            step(b.mul(b.add(done, loop.index), I64(VECTOR_BYTES)), 0)
        for r, accumulators in enumerate(sums):
            total = b.load(accumulators[0])
            for other in accumulators[1:]:
                total = b.fadd(total, b.load(other), flags=FLAGS)
            _store(b, _sum(b, total), out, 4 * r, 4)

    return _procedure(5, body)


def _dot_positions() -> Any:
    """(w, row_stride, x, n, out): as `dot_row`, for LANES rows at once, whose sums are added up together."""

    def body(b: Builder, w: Any, stride: Any, x: Any, n: Any, out: Any) -> None:
        sums = _variables(b, LANES, ir.Constant(FLOATS, [0.0] * LANES))
        rows = [b.add(w, b.mul(stride, I64(r))) for r in range(LANES)]
        with cgutils.for_range(b, n) as loop:
            offset = b.mul(loop.index, I64(VECTOR_BYTES))
            xs = _load(b, b.add(x, offset), FLOATS, 0, 4)
            for row, total in zip(rows, sums, strict=True):
                ws = _load(b, b.add(row, offset), FLOATS, 0, 4)
                b.store(_multiply_add(b, ws, xs, b.load(total)), total)
        # Each step adds two vectors into one, by their even and odd runs, until one holds all sums in order.
        vectors = [b.load(total) for total in sums]
        half = LANES // 2
        while half:
            low, high = _halves(half)
            pairs = zip(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :], strict=True)
            vectors = [b.fadd(_shuffle(b, v, u, low), _shuffle(b, v, u, high), flags=FLAGS) for v, u in pairs]
            half //= 2
        _store(b, vectors[0], out, 0, 4)

    return _procedure(5, body)


def _transpose() -> Any:
    """(source, row_stride, out, out_stride): LANES rows of LANES 32-bit numbers, columns to rows."""

    def body(b: Builder, source: Any, stride: Any, out: Any, out_stride: Any) -> None:
        rows = [_load(b, b.add(source, b.mul(stride, I64(r))), INTS) for r in range(LANES)]
        for r, row in enumerate(_transposed(b, rows)):
            _store(b, row, b.add(out, b.mul(out_stride, I64(r))), 0, 4)

    return _procedure(4, body)


def _transposed(b: Builder, rows: list[Any]) -> list[Any]:
    half = LANES // 2
    while half:
        low, high = _halves(half)
        for i in range(LANES):
            if not i & half:
                x, y = rows[i], rows[i | half]
                rows[i], rows[i | half] = _shuffle(b, x, y, low), _shuffle(b, x, y, high)
        half //= 2
    return rows


def _transpose_bytes() -> Any:
    """(source, row_stride, out, out_stride): as `transpose`, of int8 quadruples made unsigned."""

    def body(b: Builder, source: Any, stride: Any, out: Any, out_stride: Any) -> None:
        rows = [
            b.bitcast(_unsigned(b, _load(b, b.add(source, b.mul(stride, I64(r))), BYTES)), INTS)
            for r in range(LANES)
        ]
        for r, row in enumerate(_transposed(b, rows)):
            _store(b, row, b.add(out, b.mul(out_stride, I64(r))), 0, 4)

    return _procedure(4, body)


def _tile(n_tokens: int) -> Any:
    """(w, w_stride, x, x_stride, n, out, out_stride): out[t, r] += sum over k of x[t, k] * w[k, r].

    TILE_ROWS numbers r, `n_tokens` tokens t, n numbers k; w is packed: rows of k.
    """

    def body(
        b: Builder, w: Any, w_stride: Any, x: Any, x_stride: Any, n: Any, out: Any, out_stride: Any
    ) -> None:
        tokens = [b.add(x, b.mul(x_stride, I64(t))) for t in range(n_tokens)]
        outs = [b.add(out, b.mul(out_stride, I64(t))) for t in range(n_tokens)]
        sums = [
            [cgutils.alloca_once_value(b, _load(b, at, FLOATS, part * VECTOR_BYTES, 4)) for part in range(2)]
            for at in outs
        ]

        def step(k: Any) -> None:
            at = b.add(w, b.mul(k, w_stride))
            ws = [_load(b, at, FLOATS, part * VECTOR_BYTES, 4) for part in range(2)]
            for token, accumulators in zip(tokens, sums, strict=True):
                xs = _splat(b, _load(b, b.add(token, b.mul(k, I64(4))), F32, 0, 4), FLOATS)
                for weights, accumulator in zip(ws, accumulators, strict=True):
                    b.store(_multiply_add(b, weights, xs, b.load(accumulator)), accumulator)

        unroll = 4
        blocks = b.udiv(n, I64(unroll))
        with cgutils.for_range(b, blocks) as loop:
            for u in range(unroll):
                step(b.add(b.mul(loop.index, I64(unroll)), I64(u)))
        done = b.mul(blocks, I64(unroll))
        with cgutils.for_range(b, b.sub(n, done)) as loop:
            step(b.add(done, loop.index))
        for at, accumulators in zip(outs, sums, strict=True):
            for part, accumulator in enumerate(accumulators):
                _store(b, b.load(accumulator), at, part * VECTOR_BYTES, 4)

    return _procedure(7, body)


def _tile_bytes(n_tokens: int, group_size: int) -> Any:
    """(w, w_scales, x, x_stride, scales, excess, group_stride, n_groups, out, out_stride): out += tile of W
    x.

    w: n_groups of (group_size / 4, TILE_ROWS) packed unsigned quadruples; w_scales (n_groups, TILE_ROWS).
    x: int8 rows of tokens; scales float32 and excess int32, (n_groups,) rows `group_stride` bytes apart.
    """

    def body(
        b: Builder, w: Any, w_scales: Any, x: Any, x_stride: Any, scales: Any, excess: Any,
        group_stride: Any, n_groups: Any, out: Any, out_stride: Any,
    ) -> None:  # fmt: skip
        tokens = [b.add(x, b.mul(x_stride, I64(t))) for t in range(n_tokens)]
        outs = [b.add(out, b.mul(out_stride, I64(t))) for t in range(n_tokens)]
        token_scales = [b.add(scales, b.mul(group_stride, I64(t))) for t in range(n_tokens)]
        token_excess = [b.add(excess, b.mul(group_stride, I64(t))) for t in range(n_tokens)]
        with cgutils.for_range(b, n_groups) as loop:
            four_g = b.mul(loop.index, I64(4))
            group = b.add(w, b.mul(loop.index, I64(group_size * TILE_ROWS)))
            group_scales = b.add(w_scales, b.mul(loop.index, I64(4 * TILE_ROWS)))
            starts = [_splat(b, _load(b, b.add(at, four_g), I32, 0, 4), INTS) for at in token_excess]
            sums = [[start, start] for start in starts]
            at = b.mul(loop.index, I64(group_size))
            xs = [b.add(token, at) for token in tokens]
            for k in range(group_size // 4):
                ws = [_load(b, group, BYTES, (2 * k + part) * VECTOR_BYTES, 4) for part in range(2)]
                for token, accumulators in zip(xs, sums, strict=True):
                    quadruple = b.bitcast(_splat(b, _load(b, token, I32, 4 * k, 1), INTS), BYTES)
                    accumulators[:] = [
                        _dot_bytes(b, total, weights, quadruple)
                        for total, weights in zip(accumulators, ws, strict=True)
                    ]
            ws_scales = [_load(b, group_scales, FLOATS, part * VECTOR_BYTES, 4) for part in range(2)]
            for token_scale, accumulators, to in zip(token_scales, sums, outs, strict=True):
                scale = _splat(b, _load(b, b.add(token_scale, four_g), F32, 0, 4), FLOATS)
                for part, total in enumerate(accumulators):
                    old = _load(b, to, FLOATS, part * VECTOR_BYTES, 4)
                    factor = b.fmul(ws_scales[part], scale, flags=FLAGS)
                    new = _multiply_add(b, b.sitofp(total, FLOATS), factor, old)
                    _store(b, new, to, part * VECTOR_BYTES, 4)

    return _procedure(10, body)


def _dot_bytes_rows(n_rows: int, group_size: int, unroll: int) -> Any:
    """(w, row_stride, w_scales, scale_stride, x, excess, scales, n, out): out[r] = row r of W times x.

    n: blocks of max(group_size, VECTOR_BYTES) numbers. excess: int32, one for each four numbers.
    """
    block = max(group_size, VECTOR_BYTES)
    groups = block // group_size

    def body(
        b: Builder, w: Any, stride: Any, w_scales: Any, scale_stride: Any, x: Any, excess: Any, scales: Any,
        n: Any, out: Any,
    ) -> None:  # fmt: skip
        sums = [_variables(b, unroll, ir.Constant(FLOATS, [0.0] * LANES)) for _ in range(n_rows)]
        rows = [b.add(w, b.mul(stride, I64(r))) for r in range(n_rows)]
        row_scales = [b.add(w_scales, b.mul(scale_stride, I64(r))) for r in range(n_rows)]

        def scale_vector(address: Any) -> Any:
            """Scales of a block's groups, each in the lanes of its numbers."""
            if groups == 1:
                return _splat(b, _load(b, address, F32), FLOATS)
            kind = ir.VectorType(F32, groups)
            picks = [lane * groups // LANES for lane in range(LANES)]
            return _shuffle(b, _load(b, address, kind), ir.Constant(kind, ir.Undefined), picks)

        def step(index: Any, u: int) -> None:
            offset, scale_offset = b.mul(index, I64(block)), b.mul(index, I64(4 * groups))
            x_scales = scale_vector(b.add(scales, scale_offset))
            parts = range(0, block, VECTOR_BYTES)
            xs = [_load(b, b.add(x, offset), BYTES, part) for part in parts]
            starts = [_load(b, b.add(excess, offset), INTS, part, 4) for part in parts]
            for r, row in enumerate(rows):
                at = b.add(row, offset)
                _prefetch(b, at)
                total = None
                for part, vector, start in zip(parts, xs, starts, strict=True):
                    if total is not None:
                        start = b.add(start, total)
                    total = _dot_bytes(b, start, _unsigned(b, _load(b, at, BYTES, part)), vector)
                factor = b.fmul(scale_vector(b.add(row_scales[r], scale_offset)), x_scales, flags=FLAGS)
                b.store(_multiply_add(b, b.sitofp(total, FLOATS), factor, b.load(sums[r][u])), sums[r][u])

        blocks = b.udiv(n, I64(unroll))
        with cgutils.for_range(b, blocks) as loop:
            first = b.mul(loop.index, I64(unroll))
            for u in range(unroll):
                step(b.add(first, I64(u)), u)
        if unroll > 1:
            done = b.mul(blocks, I64(unroll))
            with cgutils.for_range(b, b.sub(n, done)) as loop:
                step(b.add(done, loop.index), 0)
        for r, accumulators in enumerate(sums):
            total = b.load(accumulators[0])
            for other in accumulators[1:]:
                total = b.fadd(total, b.load(other), flags=FLAGS)
            _store(b, _sum(b, total), out, 4 * r, 4)

    return _procedure(9, body)


@intrinsic
def power_of_two(typing_context: Any, n: Any) -> Any:
    """2^n for a whole float32 n in -126..127."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        exponent = builder.add(builder.fptosi(args[0], I32), I32(127))
        return builder.bitcast(builder.shl(exponent, I32(23)), F32)

    return types.float32(types.float32), generate


dot_row = _dot_rows(1, 4)
dot_rows = _dot_rows(ROWS_AT_ONCE, 2)
dot_positions = _dot_positions()
transpose = _transpose()
tile = _tile(TILE_TOKENS)
small_tile = tile if TILE_TOKENS == SMALL_TILE_TOKENS else _tile(SMALL_TILE_TOKENS)
if VNNI:
    transpose_bytes = _transpose_bytes()
    dot_q8_row_64 = _dot_bytes_rows(1, 64, 4)
    dot_q8_rows_32 = _dot_bytes_rows(ROWS_AT_ONCE, 32, 1)
    dot_q8_row_32 = _dot_bytes_rows(1, 32, 4)
    tile_q8_64, small_tile_q8_64 = _tile_bytes(TILE_TOKENS, 64), _tile_bytes(SMALL_TILE_TOKENS, 64)
    tile_q8_32, small_tile_q8_32 = _tile_bytes(TILE_TOKENS, 32), _tile_bytes(SMALL_TILE_TOKENS, 32)
