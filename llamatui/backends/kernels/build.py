"""A child process's work: compile a forward pass, try it, and put it into the cache.

It is started by `cache.Compilation`, with LLAMATUI_SIMD naming the target. The object file has two C
functions, `run(void *params, int64 worker, int64 workers)` and `run_openmp(void *params)`, and needs nothing
of Numba's when it runs.
"""

import os
import subprocess
import sys
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from llamatui.backends.kernels.cache import child_command, object_path, store

FINAL = "llamatui"
"""Name of the library that has all the code in the end."""

CHECK_SECONDS = 120
"""Kernels whose test takes so long never come back."""


class InlineLibrary(JITCodeLibrary):
    """Code of a function that is only ever inlined into others: neither optimized nor made executable by
    itself.

    Numba does both for each function that it compiles, which takes three times as long as all the rest.
    """

    def finalize(self) -> None:
        if self.name == FINAL:
            super().finalize()
            return
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._final_module._JITCodeLibrary__library = weakref.proxy(self)
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0


def object_code(kind: str) -> bytes:
    """An object file for this machine of the "fp32" or "q8_0" forward pass."""
    codegen = cpu_target.target_context.codegen()
    codegen._library_class = InlineLibrary
    codegen.set_env = lambda name, environment: None  # of functions that are never called from Python

    from llamatui.backends.kernels import forward

    with global_compiler_lock:
        library = codegen.create_library(FINAL)
        library.enable_object_caching()
        module = ir.Module(FINAL)
        _export(module, library, getattr(forward, f"forward_{kind}"), "run", 3)
        _export(module, library, getattr(forward, f"entry_{kind}"), "run_openmp", 1)
        library.add_ir_module(module)
        library.finalize()
        code: bytes = library._get_compiled_object()
        return code


def _export(module: Any, library: Any, kernel: Any, name: str, n_args: int) -> None:
    """Adds a C function `name` of `n_args` int64 that calls a kernel in Numba's calling convention."""
    signature = (types.int64,) * n_args
    kernel.compile(signature)
    match kernel.overloads[signature]:
        case CompileResult(library=code, fndesc=description):
            library.add_linking_library(code)
    i64, i32, pointer = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
    inner_type = ir.FunctionType(i32, [pointer.as_pointer(), pointer.as_pointer(), *[i64] * n_args])
    inner = ir.Function(module, inner_type, description.llvm_func_name)
    outer = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * n_args), name)
    builder = ir.IRBuilder(outer.append_basic_block("entry"))
    result, exception = builder.alloca(pointer), builder.alloca(pointer)
    builder.call(inner, [result, exception, *outer.args])
    builder.ret_void()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits for other processes to be done in here. The lock ends with its process, however that ends."""
    with path.open("w") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with suppress(OSError):  # after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            with suppress(OSError):  # a file system without locks: to compile twice is better than not at all
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(kind: str, path: Path) -> None:
    """Compiles into `path`, unless another process just does: then waits for it."""
    with alone(path.with_suffix(".lock")):
        if path.exists():
            return
        if object_path(kind) != path:
            raise RuntimeError("the sources changed since this compilation was asked for")
        candidate = path.with_suffix(f".{os.getpid()}.candidate")
        try:
            code = object_code(kind)
            candidate.write_bytes(code)
            # In a process of its own: code that is wrong for this machine may do anything.
            check = child_command("check", kind, str(candidate))
            result = subprocess.run(check, capture_output=True, text=True, timeout=CHECK_SECONDS)
            if result.returncode:
                raise RuntimeError(f"compiled, but failed its test ({result.returncode}): {result.stderr}")
            store(path, code)
        finally:
            candidate.unlink(missing_ok=True)


def main() -> int:
    kind, path = sys.argv[1], Path(sys.argv[2])
    failed = path.with_suffix(".failed")
    try:
        build(kind, path)
    except Exception:
        failed.write_text(traceback.format_exc(), "utf-8")
        return 1
    failed.unlink(missing_ok=True)
    return 0
