"""How much memory a model may take now, as the system says."""

import ctypes
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Bytes that can be had without swapping, those that hold cached files among them; None if unknown."""
    try:
        if sys.platform == "win32":
            return _windows()
        if sys.platform == "darwin":
            return _macos()
        return _linux()
    except (OSError, AttributeError, ValueError):
        return None


def _linux() -> int | None:
    for line in MEMINFO.read_text("ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.removesuffix("kB")) * 1024
    return None


if sys.platform == "darwin":

    def _macos() -> int:
        libc = ctypes.CDLL(None)

        def read(name: str) -> int:
            value, size = ctypes.c_uint64(), ctypes.c_size_t(8)
            if libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, 0):
                raise OSError(name)
            return value.value

        pages = ("vm.page_free_count", "vm.page_purgeable_count", "vm.page_pageable_external_count")
        return sum(map(read, pages)) * read("hw.pagesize")


if sys.platform == "win32":

    class _Status(ctypes.Structure):
        """`MEMORYSTATUSEX` in sysinfoapi.h."""

        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_uint64),
            ("available", ctypes.c_uint64),
            ("others", ctypes.c_uint64 * 5),
        ]

    def _windows() -> int:
        status = _Status(length=ctypes.sizeof(_Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise OSError("GlobalMemoryStatusEx")
        return int(status.available)
