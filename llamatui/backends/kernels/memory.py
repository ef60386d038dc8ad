"""Arrays at addresses, the barrier between workers, and calls through addresses.

Kernels get addresses, not arrays: they run without the interpreter, in threads that it does not know.
"""

import platform
from typing import Any

import numba
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from llamatui.backends.kernels.params import PARAMS

# Not `nnan` and `ninf`: damaged weights must end in logits that are not numbers, not in just any logits.
FLOAT_FLAGS = {"reassoc", "contract", "arcp", "nsz"}
OPTIONS: dict[str, Any] = {
    "fastmath": FLOAT_FLAGS,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    # No reference counts: nothing here is allocated, and the object code stays free of Numba's run time.
    "_nrt": False,
}
kernel = njit(**OPTIONS)

I32, I64 = ir.IntType(32), ir.IntType(64)
PARAMS_TYPE = numba.from_dtype(PARAMS)


def _array_view(dtype: Any) -> Any:
    array_type = types.Array(dtype, 1, "C")

    @intrinsic
    def view(typing_context: Any, address: Any, n: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = make_array(array_type)(context, builder)
            size = context.get_constant(types.intp, dtype.bitwidth // 8)
            data = builder.inttoptr(args[0], array.data.type)
            populate_array(array, data=data, shape=[args[1]], strides=[size], itemsize=size, meminfo=None)
            return array._getvalue()

        return array_type(types.int64, types.int64), generate

    return view


floats = _array_view(types.float32)
int8s = _array_view(types.int8)
int32s = _array_view(types.int32)
int64s = _array_view(types.int64)


@intrinsic
def params_at(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return PARAMS_TYPE(types.int64), generate


@intrinsic
def call(typing_context: Any, function: Any) -> Any:
    """Calls `int function(void)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function_type = ir.FunctionType(I32, [])
        result = builder.call(builder.inttoptr(args[0], function_type.as_pointer()), [])
        return builder.sext(result, I64)

    return types.int64(types.int64), generate


@intrinsic
def _atomic_add(typing_context: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _atomic_load(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _pause(typing_context: Any) -> Any:
    """Tells the core that this is a spin loop."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        name, arguments = ("llvm.x86.sse2.pause", []) if x86 else ("llvm.aarch64.hint", [I32(1)])
        function_type = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def barrier(p, passed, me):
    """Waits until all workers are here.

    Args:
        p: The params; `p.arrivals` is the address of an int64 that counts arrivals since the team began.
        passed: What the previous barrier returned, 0 at first.
        me: (worker, workers).

    Spinning is 30 times faster than letting the operating system wake a thread. Where a worker has no core
    to run on, yielding gives it one.
    """
    target = passed + me[1]
    if _atomic_add(p.arrivals, 1) + 1 < target:
        spins = 0
        while _atomic_load(p.arrivals) < target:
            _pause()
            spins += 1
            if spins > 2000:
                call(p.yield_core)
    return target


@kernel
def share(total, unit, me):
    """(first, last + 1) of the part of 0..total - 1 that worker me[0] of me[1] does; it begins at a multiple
    of `unit`.
    """
    worker, workers = me
    units = (total + unit - 1) // unit
    first = units * worker // workers * unit
    last = units * (worker + 1) // workers * unit
    return min(first, total), min(last, total)
