"""Backends by name. A new one is a file in this folder and a line here; other packages add theirs
through the entry-point group `llamatui.backends` (name = "package.module:Class")."""

from importlib import import_module
from importlib.metadata import entry_points

from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.threads import default_threads
from llamatui.errors import BackendError, UsageError

BUILTIN = {"numpy": "llamatui.backends.numpy_backend:NumpyBackend"}
DEFAULT = "numpy"


def backend_names() -> list[str]:
    """Names of all backends: ours first, then those of other packages."""
    others = {entry.name for entry in entry_points(group="llamatui.backends")}
    return [*BUILTIN, *sorted(others - BUILTIN.keys())]


def backend_class(name: str) -> type[Backend]:
    """Imports the backend called `name`.

    Raises:
        UsageError: There is none.
        BackendError: It cannot be imported.
    """
    target = BUILTIN.get(name)
    if target is None:
        found = [entry.value for entry in entry_points(group="llamatui.backends") if entry.name == name]
        if not found:
            raise UsageError(f"no backend is called {name!r}", f"choose one of: {', '.join(backend_names())}")
        target = found[0]
    module, _, attribute = target.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError(f"backend {name!r} ({target}) cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Backend)):
        raise BackendError(f"backend {name!r}: {target} is not a Backend class")
    return cls


def create_backend(name: str, checkpoint: Checkpoint, threads: int | None = None) -> Backend:
    """A backend for `checkpoint`. `threads` None means one per physical core."""
    return backend_class(name)(checkpoint, threads or default_threads())
