"""Which vector instructions the kernels are compiled for, found at run time.

Imported without Numba, to choose among the kernels in the cache.
"""

import os
import platform
from dataclasses import dataclass

from llamatui.errors import BackendError


@dataclass(frozen=True, slots=True)
class Target:
    lanes: int
    """32-bit numbers in a vector."""
    vnni: bool
    """Whether int8 dot products are an instruction (vpdpbusd)."""


TARGETS = {
    "avx512-vnni": Target(16, True),
    "avx512": Target(16, False),
    "avx-vnni": Target(8, True),
    "avx2": Target(8, False),
    "portable": Target(4, False),
}


def detect() -> str:
    """The best target for this CPU; `LLAMATUI_SIMD` names another.

    Raises:
        BackendError: `LLAMATUI_SIMD` names none.
    """
    named = os.environ.get("LLAMATUI_SIMD", "")
    if named:
        if named not in TARGETS:
            raise BackendError(
                f"LLAMATUI_SIMD: expected one of {', '.join(TARGETS)}, found {named!r}", "unset LLAMATUI_SIMD"
            )
        return named
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    if platform.machine().lower() not in ("x86_64", "amd64") or not features.get("avx2"):
        return "portable"
    wide = all(features.get(name) for name in ("avx512f", "avx512bw", "avx512vl", "avx512dq"))
    if wide:
        return "avx512-vnni" if features.get("avx512vnni") else "avx512"
    return "avx-vnni" if features.get("avxvnni") else "avx2"
