"""How many threads, and telling NumPy's BLAS before it is loaded.

OpenBLAS reads its thread count once, from the environment, when NumPy is first imported. So whoever
wants a number of threads asks here before importing anything that imports NumPy: this module does not.
"""

import math
import os
import sys
from pathlib import Path, PurePosixPath

BLAS_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

_replaced: dict[str, str | None] = {}
"""What the environment had where `limit_blas_threads` wrote, which is not the user's wish for later."""


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


def cgroup_cpus() -> float:
    """CPUs' worth of time that a container or a service may use; infinity without a limit.

    Its group and all groups around it count (cgroups(7): cpu.max, or cpu.cfs_quota_us in version 1). Inside
    of a container the path in /proc may be the host's: what does not exist is passed over, up to the root.
    """
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return math.inf
    least = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / "cpu" if controllers else CGROUPS
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            least = min(least, _limit(root / group))
    return least


def _limit(group: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join([(group / name).read_text() for name in names]).split()
        except OSError:
            continue
        return int(quota) / int(period) if quota not in ("max", "-1") else math.inf
    return math.inf


def default_threads() -> int:
    """`OMP_NUM_THREADS` where the user set it, else one per physical core that there is CPU time for."""
    name = "OMP_NUM_THREADS"
    wanted = (_replaced[name] if name in _replaced else os.environ.get(name)) or ""
    outermost = wanted.partition(",")[0].strip()  # it may be a list, for parallel regions within others
    if outermost.isdecimal() and int(outermost) > 0:
        return int(outermost)
    return max(1, math.ceil(min(physical_cores(), cgroup_cpus())))


def limit_blas_threads(threads: int | None) -> bool:
    """Sets the number of BLAS threads (None: `default_threads()`), and lets them sleep when idle.

    OpenMP gets it in the environment as well, for a BLAS that is built on it. Ours does not look there: it is
    told with every call.

    Returns:
        Whether it takes effect: False once NumPy is loaded.
    """
    if "numpy" in sys.modules:
        return False
    count = str(threads or default_threads())
    for variable in BLAS_VARIABLES:
        if threads is not None or variable not in os.environ:
            _replaced.setdefault(variable, os.environ.get(variable))
            os.environ[variable] = count
    # OpenBLAS's idle threads spin for a tenth of a second. While something else wants the core, that was
    # measured to cost a factor of three; sleeping at once (2^4 cycles) costs nothing when it is idle.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    return True
