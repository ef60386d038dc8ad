"""Teams of threads that run a kernel: OpenMP's, or Python's own where there is no OpenMP.

A kernel is a C function that is given a worker's number and how many there are. OpenMP is entered through
GOMP_parallel, which GCC's libgomp and LLVM's libomp both have: its threads wait actively for a moment, so that the
next token finds them awake. It says itself how many threads it made, so that a limit (OMP_THREAD_LIMIT, a
container's) makes a team smaller and never leaves a barrier waiting.
"""

import ctypes
import os
import sys
import threading
from functools import cache

LIBRARIES = {
    "linux": ("libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so"),
    "darwin": (
        "libomp.dylib",
        "/opt/homebrew/opt/libomp/lib/libomp.dylib",
        "/usr/local/opt/libomp/lib/libomp.dylib",
    ),
}
INSTALL = {
    "linux": "install libgomp: apt install libgomp1, dnf install libgomp, or apk add libgomp",
    "darwin": "install libomp: brew install libomp",
}


class OpenMP:
    """GCC's entry points to an OpenMP library."""

    name = "OpenMP"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        self.thread_num = address_of(library.omp_get_thread_num)
        self.num_threads = address_of(library.omp_get_num_threads)

    def run(self, run_openmp: int, params: int, threads: int) -> None:
        self._parallel(run_openmp, params, threads, 0)


@cache
def openmp() -> OpenMP | None:
    """The machine's OpenMP library, None where there is none."""
    # Spinning for a moment after each token is what makes the next one start at once; see `Team`.
    for name in LIBRARIES.get(sys.platform, ()):
        try:
            return OpenMP(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue
    return None


def address_of(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def yield_core() -> int:
    """Address of the C function that lets another thread have the core."""
    if sys.platform == "win32":
        return address_of(ctypes.windll.kernel32.SwitchToThread)
    return address_of(ctypes.CDLL(None).sched_yield)
