"""`metrics.jsonl`: a training run as one JSON object per line, for scripts, for `tail -f`, and for --resume.

    {"event": "start", "time": 1764000000.5, "iteration": 0, "max_iters": 300, ...}
    {"event": "step", "time": 1764000001.1, "iteration": 1, "loss": 6.25, "learning_rate": 5e-07, ...}
    {"event": "evaluation", ... "train_loss": 3.9, "valid_loss": 4.0, "sample": "Once upon a time"}
    {"event": "saved", ... "path": "runs/first/last.pt"}
    {"event": "end", ... "seconds": 71.5, "stopped": false}

The fields are those of `llamatui.train.events`. `time` is in seconds since the epoch. NaN is null.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from llamatui.app.cli.terminal import dumps
from llamatui.app.text_file import write_whole
from llamatui.errors import LlamatuiError
from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step

METRICS = "metrics.jsonl"
NAMES: dict[type[Event], str] = {
    Started: "start", Step: "step", Evaluation: "evaluation", Saved: "saved", Finished: "end",
}  # fmt: skip


def recorded(events: Iterator[Event], out: Path) -> Iterator[Event]:
    """Passes events on, each after its line is in the file; of steps every `log_interval`-th.

    A resumed run goes on in the file it has: steps after the checkpoint are cut, for they come again.

    Args:
        out: The run's folder, which is there when the first event comes.

    Raises:
        LlamatuiError: The file cannot be written.
    """
    path, log_interval = out / METRICS, 1
    for event in events:
        if isinstance(event, Started):
            log_interval = event.log_interval
            with _writing(path):
                _cut(path, event.iteration)
        if not isinstance(event, Step) or event.iteration % log_interval == 0:
            with _writing(path), path.open("a", encoding="utf-8") as file:
                file.write(dumps(as_json(event)) + "\n")
        yield event


def as_json(event: Event) -> dict[str, Any]:
    values = {entry.name: getattr(event, entry.name) for entry in fields(event)}
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[name] = None
        elif isinstance(value, Path):
            values[name] = str(value)
    return {"event": NAMES[type(event)], "time": round(time.time(), 3), **values}


def read_metrics(out: Path) -> Iterator[Step | Evaluation]:
    """The steps and evaluations in a run's file so far, none where there is no file."""
    kinds: dict[str, type[Step | Evaluation]] = {NAMES[kind]: kind for kind in (Step, Evaluation)}
    for _, content in _read(out / METRICS):
        kind = kinds.get(content["event"])
        if kind is not None:
            names = {entry.name for entry in fields(kind)}
            if content.keys() >= names:
                values = {name: content[name] for name in names}
                values |= {name: math.nan for name, value in values.items() if value is None}
                yield kind(**values)


def _cut(path: Path, iteration: int) -> None:
    """Keeps what belongs to the first `iteration` steps; a run that begins has a new file."""
    kept = [line for line, content in _read(path) if content["iteration"] <= iteration] if iteration else []
    write_whole(path, "".join(kept).encode(), overwrite=True)


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line and what it says; passes over what a power cut or an editor made of one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if (
                isinstance(content, dict)
                and isinstance(content.get("event"), str)
                and isinstance(content.get("iteration"), int)
            ):
                yield line.rstrip("\n") + "\n", content


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LlamatuiError(
            f"{path}: cannot be written: {error.strerror}", "make room, then go on with --resume"
        ) from error
