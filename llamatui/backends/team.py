"""Teams of threads that run a kernel: OpenMP's, or Python's where there is no OpenMP.

A kernel is a C function that is told which worker it is, of how many. OpenMP is entered through
GOMP_parallel, which GCC's libgomp and LLVM's libomp both have. Its threads wait actively for a moment after
each call, so that the next token finds them awake. It says itself how many threads there are: a limit
(OMP_THREAD_LIMIT) makes a team smaller, and leaves nobody waiting at a barrier.
"""

import ctypes
import os
import sys
import threading
from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llamatui.backends.kernels.cache import Kernels

LIBRARIES = {
    "linux": ("libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so"),
    "darwin": (
        "libomp.dylib",
        "/opt/homebrew/opt/libomp/lib/libomp.dylib",
        "/usr/local/opt/libomp/lib/libomp.dylib",
    ),
}
INSTALL = {
    "linux": "install libgomp (apt install libgomp1, dnf install libgomp, apk add libgomp)",
    "darwin": "install libomp (brew install libomp)",
}


class Team(Protocol):
    size: int
    """Most workers there may be."""
    threads: int
    """Workers there were in the last run."""

    def run(self, params: npt.NDArray[np.void]) -> None:
        """Runs the kernel on `params` with every worker, and returns when all are done."""


class OpenMPTeam:
    def __init__(self, kernels: Kernels, threads: int, library: ctypes.CDLL) -> None:
        self.size = self.threads = threads
        self._entry = kernels.run_openmp
        self._parallel = library.GOMP_parallel
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        self._who = address(library.omp_get_thread_num), address(library.omp_get_num_threads)

    def run(self, params: npt.NDArray[np.void]) -> None:
        params["omp_get_thread_num"], params["omp_get_num_threads"] = self._who
        self._parallel(self._entry, params.ctypes.data, self.size, 0)
        self.threads = int(params["team_size"][0])


class PythonTeam:
    """Safe everywhere; waking its threads costs some tens of microseconds a token."""

    def __init__(self, kernels: Kernels, threads: int) -> None:
        self.size = self.threads = threads
        self._kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(kernels.run)
        if threads > 1:
            from concurrent.futures import ThreadPoolExecutor  # slow to import

            self._pool = ThreadPoolExecutor(threads)
            everybody = threading.Barrier(threads)
            try:
                # All of them now: workers wait for each other, so one that cannot be had is missed for ever.
                list(self._pool.map(lambda _: everybody.wait(), range(threads)))
            except RuntimeError:
                everybody.abort()
                self.size = self.threads = 1

    def run(self, params: npt.NDArray[np.void]) -> None:
        at = params.ctypes.data
        if self.threads == 1:
            self._kernel(at, 0, 1)
            return
        # Ctrl+C reaches this thread only, so that another one leads: no worker may be left waiting for the
        # rest, and none may go on when the buffers are used again.
        led = self._pool.submit(self._lead, at)
        while not led.done():
            try:
                led.result()
            except KeyboardInterrupt:
                led.exception()
                raise

    def _lead(self, at: int) -> None:
        others = [self._pool.submit(self._kernel, at, i, self.threads) for i in range(1, self.threads)]
        self._kernel(at, 0, self.threads)
        for other in others:
            other.result()


@cache
def openmp() -> ctypes.CDLL | None:
    """The machine's OpenMP library, None where there is none."""
    for name in LIBRARIES.get(sys.platform, ()):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        if hasattr(library, "GOMP_parallel"):
            return library
    return None


def make_team(kernels: Kernels, threads: int) -> Team:
    """A team of `threads` workers, or as many as there are cores to run on if they are fewer."""
    threads = min(threads, usable_cpus())
    library = openmp() if threads > 1 else None
    return OpenMPTeam(kernels, threads, library) if library else PythonTeam(kernels, threads)


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def yield_core() -> int:
    """Address of the C function by which a thread lets another have its core."""
    if sys.platform == "win32":
        return address(ctypes.windll.kernel32.SwitchToThread)
    return address(ctypes.CDLL(None).sched_yield)
