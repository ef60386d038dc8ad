"""Backends by name. A new one is a file in this folder and a line here; other packages add theirs
through the entry-point group `llamatui.backends` (name = "package.module:Class")."""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.threads import default_threads
from llamatui.errors import BackendError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from llamatui.backends.kernels.cache import Kernels

BUILTIN = {
    "numba": "llamatui.backends.numba_backend:NumbaBackend",
    "q8_0": "llamatui.backends.q8_0_backend:Q8Backend",
    "numpy": "llamatui.backends.numpy_backend:NumpyBackend",
}
KERNELS = {"numba": "fp32", "q8_0": "q8_0"}
"""Backends whose constructor takes compiled kernels, and which."""

COMPILING = "compiling the engine for this CPU, once"


def backend_names() -> list[str]:
    """Names of all backends: ours first, then those of other packages."""
    others = {entry.name for entry in _entry_points()}
    return [*BUILTIN, *sorted(others - BUILTIN.keys())]


def default_backend(checkpoint: Checkpoint) -> str:
    """The fastest for a checkpoint as it is: q8_0 for version 2, numba for fp32, numpy without Numba."""
    if find_spec("numba") is None or find_spec("llvmlite") is None:
        return "numpy"
    return "q8_0" if checkpoint.version == 2 else "numba"


def backend_class(name: str) -> type[Backend]:
    """Imports the backend called `name`.

    Raises:
        UsageError: There is none.
        BackendError: It cannot be imported.
    """
    target = BUILTIN.get(name)
    if target is None:
        found = [entry.value for entry in _entry_points() if entry.name == name]
        if not found:
            raise UsageError(f"no backend is called {name!r}", f"choose one of: {', '.join(backend_names())}")
        target = found[0]
    module, _, attribute = target.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError(
            f"backend {name!r} ({target}) cannot be imported: {error}", "use --backend numpy"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise BackendError(f"backend {name!r}: {target} is not a Backend class")
    return cls


def create_backend(
    name: str,
    checkpoint: Checkpoint,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Backend:
    """A backend for `checkpoint`, which waits for its kernels to be compiled where that was not done before.

    Args:
        threads: None means one per physical core.
        progress: Told if there is something to wait for, again and again: what it raises ends the waiting.

    Raises:
        UsageError: No backend is called so.
        BackendError: It cannot be imported, or compiled.
    """
    cls = backend_class(name)
    threads = threads or default_threads()
    if name not in KERNELS:
        return cls(checkpoint, threads)
    try:
        from llamatui.backends.kernels.cache import Compilation, load_kernels
    except (ImportError, OSError) as error:
        raise BackendError(f"{name} needs llvmlite: {error}", "use --backend numpy") from error

    kernels = load_kernels(KERNELS[name])
    if kernels is None:
        compilation = Compilation(KERNELS[name])
        began = time.monotonic()
        progress(COMPILING)
        while compilation.running():
            time.sleep(0.1)
            progress(f"{COMPILING}: {time.monotonic() - began:.0f} s")
        kernels = compilation.wait()
    return compiled_backend(name, checkpoint, threads, kernels, progress)


def start_backend(checkpoint: Checkpoint, threads: int | None = None) -> Backend:
    """The default backend if it is ready to run; else numpy, which knows when the other is: see
    `replacement`.
    """
    name = default_backend(checkpoint)
    threads = threads or default_threads()
    if name not in KERNELS:
        return create_backend(name, checkpoint, threads)
    try:
        from llamatui.backends.kernels.cache import load_kernels
    except (ImportError, OSError) as error:
        backend = create_backend("numpy", checkpoint, threads)
        backend.note = f"{name} needs llvmlite, which does not load: {error}"
        return backend
    kernels = load_kernels(KERNELS[name])
    if kernels is not None:
        return compiled_backend(name, checkpoint, threads, kernels)
    from llamatui.backends.warm_up import numpy_until_compiled

    return numpy_until_compiled(name, checkpoint, threads)


def compiled_backend(
    name: str,
    checkpoint: Checkpoint,
    threads: int,
    kernels: "Kernels",
    progress: Callable[[str], None] = lambda step: None,
) -> Backend:
    """The backend `name` of KERNELS, with a note where its threads cannot work together as they should.

    `progress`: told how far converting the weights is, which takes seconds for large models.
    """
    from llamatui.backends.team import INSTALL, openmp

    backend = backend_class(name)(checkpoint, threads, kernels, progress)  # type: ignore[call-arg]
    if backend.threads > 1 and openmp() is None and sys.platform in INSTALL:
        backend.note = (
            f"there is no OpenMP library, so {name} starts its threads slowly: {INSTALL[sys.platform]}"
        )
    return backend


def _entry_points() -> "EntryPoints":
    # Slow to import, and needed only for names that are not ours.
    from importlib.metadata import entry_points

    return entry_points(group="llamatui.backends")
