"""How far a download or an export is, on stderr: a bar in a terminal, else a line at each quarter."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Bar:
    """Told the bytes that are done, as `progress`, and the step that begins, as `step`."""

    def __init__(self, rich: "RichProgress", name: str) -> None:
        self._rich = rich
        self._name = name
        self._task: TaskID | None = None

    def step(self, name: str) -> None:
        self._name = name
        self._task = None

    def __call__(self, done: int, total: int) -> None:
        if self._task is None:
            # What is here from an earlier run is no speed.
            self._task = self._rich.add_task(self._name, total=total, completed=done)
        self._rich.update(self._task, completed=done, total=total)


class Lines:
    """The same for a log: where it begins, and each quarter."""

    def __init__(self, name: str, least: int) -> None:
        self._least = least
        self.step(name)

    def step(self, name: str) -> None:
        self._name = name
        self._quarter = -1

    def __call__(self, done: int, total: int) -> None:
        quarter = done * 4 // total if total else 4
        if quarter > self._quarter and total >= self._least:
            self._quarter = quarter
            from rich.filesize import decimal

            print(f"{self._name}: {decimal(done)} of {decimal(total)}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(name: str, least: int = 0) -> Iterator[Bar | Lines]:
    """`with progress_bar("model.bin") as progress: write(progress=progress)`.

    Args:
        least: Bytes from which on there are lines in a log.
    """
    if not sys.stderr.isatty():
        yield Lines(name, least)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as rich:
        yield Bar(rich, name)
