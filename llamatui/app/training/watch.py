"""Follows a training run: a live view in a terminal, plain lines elsewhere, and always `metrics.jsonl`.

Of processes that torchrun started, the first shows and writes: lines, for the terminal is not its own.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from llamatui.app.training.lines import lines, next_commands, summary
from llamatui.app.training.metrics import read_metrics, recorded
from llamatui.app.training.plot import plot
from llamatui.app.training.stop import NOTICE, Stop, stop_on_signal
from llamatui.train.events import Evaluation, Event, Finished, Started


def watch(start: Callable[[Stop], Iterator[Event]], out: Path, *, plain: bool, theme: str) -> int:
    """Runs it to its end.

    Args:
        start: Begins the run, given what it has to ask in each step.
        out: The run's folder.
        plain: Lines, also in a terminal.
        theme: Of the live view.

    Returns:
        The command's exit code: 0, or `Stop.exit_code` where it was stopped before its last step.

    Raises:
        LlamatuiError: It failed, or a file of metrics cannot be written.
    """
    rank = os.environ.get("RANK")
    if rank not in (None, "0"):
        with stop_on_signal() as stop:
            end = _end(start(stop), lambda event: None)
        return stop.exit_code if end.stopped else 0
    if plain or rank is not None or not _is_terminal():
        with stop_on_signal(NOTICE) as stop:
            end = _end(recorded(start(stop), out), _Printer(stop))
    else:
        from llamatui.app.training.live import follow

        with stop_on_signal() as stop:
            end = follow(recorded(start(stop), out), stop, out, theme)
    best = [event for event in read_metrics(out) if isinstance(event, Evaluation) and event.is_best]
    print(summary(end, best[-1] if best else None, out), flush=True)
    if picture := plot(out):
        print(picture, flush=True)
    print(next_commands(end, out), file=sys.stderr)
    return stop.exit_code if end.stopped else 0


def _end(events: Iterator[Event], show: Callable[[Event], None]) -> Finished:
    """Shows every event; returns the last."""
    for event in events:
        show(event)
        if isinstance(event, Finished):
            end = event
    return end


class _Printer:
    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._log_interval = 1

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._log_interval = event.log_interval
        try:
            for line in lines(event, self._log_interval):
                print(line, flush=True)
        except OSError:  # who read it is gone, or the disk behind `>` is full: the run is saved first
            self._stop.ask()


def _is_terminal() -> bool:
    """Whether there is one to take over: Textual reads stdin and draws on stderr."""
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()
