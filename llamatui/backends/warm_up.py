"""First use: NumPy at once, while a child process compiles the kernels that take over."""

import threading

from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.kernels.cache import Compilation, failure
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.backends.registry import KERNELS, compiled_backend
from llamatui.errors import BackendError

KEPT_BYTES = 64 << 20
"""Dequantized weights that the interim backend keeps: the compiled one needs none of them."""


def numpy_until_compiled(name: str, checkpoint: Checkpoint, threads: int) -> Backend:
    """A numpy backend whose `replacement` will be the compiled backend `name`, when its kernels are ready."""
    kind = KERNELS[name]
    interim = NumpyBackend(checkpoint, threads, KEPT_BYTES)
    if reason := failure(kind):
        interim.note = (
            f"{name} could not be compiled: {reason.splitlines()[-1]}; --backend {name} tries it again"
        )
        return interim
    try:
        compilation = Compilation(kind)
    except BackendError as error:
        interim.note = error.message
        return interim
    interim.preparing = name
    interim.note = f"{name} is being compiled for this CPU, once; until then numpy runs"

    def replace() -> None:
        try:
            compiled = compiled_backend(name, checkpoint, threads, compilation.wait())
            interim.replacement = interim.replacement or compiled  # unless another one was chosen meanwhile
        except Exception as error:  # numpy goes on; a thread that dies would only litter the screen
            interim.note = str(error) or f"{name} could not be prepared: {type(error).__name__}"
        interim.preparing = ""

    threading.Thread(target=replace, name="kernels", daemon=True).start()
    return interim
