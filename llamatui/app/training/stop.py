"""Stopping a training run: one request ends it after its step, with a checkpoint; a second leaves at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llamatui.app.cli.terminal import INTERRUPTED

NOTICE = "\nstopping: this step is finished and saved first; once more to leave at once\n"
SAME_REQUEST = 0.5
"""Seconds in which more requests are still the first: a key that is held down, or a signal that the terminal
sent to all processes and a launcher such as torchrun passes on."""


class Stop:
    """The question that the trainer asks in each step.

    Attributes:
        exit_code: What a run ends with that was stopped: of a signal 128 more than it, as a shell says it.
    """

    def __init__(self) -> None:
        self.exit_code = INTERRUPTED
        self._asked_at: float | None = None

    def __call__(self) -> bool:
        return self._asked_at is not None

    def ask(self, exit_code: int = INTERRUPTED) -> bool:
        """Returns whether this is the second request, by somebody who does not want to wait."""
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at, self.exit_code = now, exit_code
            return False
        return now - self._asked_at > SAME_REQUEST


Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_on_signal(notice: str = "") -> Iterator[Stop]:
    """Ctrl+C and SIGTERM ask to stop; the second one acts as before. A terminal that is closed asks, too.

    A reader of stdout that goes away is no signal meanwhile, but an error of who prints.

    Args:
        notice: Written to stderr at the first.
    """
    stop = Stop()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(signum: int, frame: FrameType | None) -> None:
        first = not stop()
        if stop.ask(128 + signum):
            restore()
            signal.raise_signal(signum)
        elif first and notice:
            # Not printed: a signal may come in the midst of a print, which cannot be entered twice.
            os.write(2, notice.encode())

    def hang_up(signum: int, frame: FrameType | None) -> None:
        """However often: nobody is there to be in a hurry."""
        stop.ask(128 + signum)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in terminals:  # to write there would fail
            os.dup2(nowhere, fd)
        os.close(nowhere)

    handlers: dict[int, Handler | signal.Handlers] = {signal.SIGINT: ask, signal.SIGTERM: ask}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = hang_up
    if hasattr(signal, "SIGPIPE"):
        handlers[signal.SIGPIPE] = signal.SIG_IGN
    before = {number: signal.getsignal(number) for number in handlers}
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:  # nohup, or in the background of a script
            signal.signal(number, handler)
    try:
        yield stop
    finally:
        restore()
