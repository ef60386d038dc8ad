"""Follows a training run: a live view in a terminal, plain lines elsewhere, and always `metrics.jsonl`."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from llamatui.app.training.lines import print_line
from llamatui.train.events import Event


def watch(events: Iterator[Event], out: Path, *, log_interval: int, plain: bool) -> None:
    for event in events:
        print_line(event, log_interval)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A question whether Ctrl+C or a polite kill has come; the second one acts as before."""
    asked = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        restore()
