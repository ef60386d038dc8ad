"""A child process's work: compile a forward pass into an object file.

    python -m llamatui.backends.kernels.build fp32 OUT

with LLAMATUI_SIMD naming the target. The file has two C functions, `run(void *params, int64 worker, int64 workers)`
and `run_openmp(void *params)`, and needs no other symbol.
"""

import sys
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

KINDS = ("fp32", "q8_0")


def main() -> None:
    kind, out = sys.argv[1:]
    Path(out).write_bytes(object_code(kind))


def object_code(kind: str) -> bytes:
    """An object file for this machine."""
    from llamatui.backends.kernels import forward

    with global_compiler_lock:
        return _object_code(getattr(forward, f"forward_{kind}"), getattr(forward, f"entry_{kind}"))


def _object_code(run: Any, run_openmp: Any) -> bytes:
    codegen = cpu_target.target_context.codegen()
    library = codegen.create_library("llamatui")
    library.enable_object_caching()
    module = ir.Module("llamatui")
    _export(module, library, run, "run", 3)
    _export(module, library, run_openmp, "run_openmp", 1)
    library.add_ir_module(module)
    library.finalize()
    code: bytes = library._get_compiled_object()
    return code


def _export(module: Any, library: Any, kernel: Any, name: str, n_args: int) -> None:
    """Adds a C function `name` of `n_args` int64 that calls a kernel in Numba's calling convention."""
    signature = (types.int64,) * n_args
    kernel.compile(signature)
    compiled = kernel.overloads[signature]
    library.add_linking_library(compiled.library)
    i64, i32, pointer = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
    inner_type = ir.FunctionType(i32, [pointer.as_pointer(), pointer.as_pointer(), *[i64] * n_args])
    inner = ir.Function(module, inner_type, compiled.fndesc.llvm_func_name)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * n_args), name)
    builder = ir.IRBuilder(outer.append_basic_block("entry"))
    result, exception = builder.alloca(pointer), builder.alloca(pointer)
    builder.call(inner, [result, exception, *outer.args])
    builder.ret_void()


if __name__ == "__main__":
    main()
