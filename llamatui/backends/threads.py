"""How many threads, and telling NumPy's BLAS before it is loaded.

OpenBLAS reads its thread count once, from the environment, when NumPy is first imported. So whoever
wants a number of threads asks here before importing anything that imports NumPy: this module does not.
"""

import os
import sys
from pathlib import Path

BLAS_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def physical_cores() -> int:
    """Cores this process may run on, hyper-threads counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            return len(cpus)
    return len(cores)


def default_threads() -> int:
    """`OMP_NUM_THREADS` where it is set to a number, else one per physical core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) > 0 else physical_cores()


def limit_blas_threads(threads: int | None) -> bool:
    """Sets the number of BLAS threads (None: `default_threads()`), and lets them sleep when idle.

    Returns:
        Whether it takes effect: False once NumPy is loaded.
    """
    if "numpy" in sys.modules:
        return False
    for variable in BLAS_VARIABLES:
        if threads is not None or variable not in os.environ:
            os.environ[variable] = str(threads or default_threads())
    # OpenBLAS's idle threads spin for a tenth of a second. While something else wants the core, that was
    # measured to cost a factor of three; sleeping at once (2^4 cycles) costs nothing when it is idle.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    return True
