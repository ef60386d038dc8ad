"""Ctrl+C in a generation: keep what is there."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from llamatui.app.engine import Generation


@contextmanager
def cancel_on_interrupt(generation: Generation) -> Iterator[None]:
    """Ctrl+C ends the generation after the current token or prefill chunk; a second one acts as before."""
    before = signal.getsignal(signal.SIGINT)

    def cancel(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        generation.cancel()

    signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
