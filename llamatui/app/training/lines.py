"""A training run as lines of text, for logs and pipes, and what is said at its end."""

import math
import shlex
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from llamatui.app.cli.terminal import counted, printable, short_count
from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step
from llamatui.train.run_folder import BEST, LAST


def lines(event: Event, log_interval: int) -> Iterator[str]:
    """What a log says about an event. The end is told by `summary`."""
    match event:
        case Started():
            all_trained = event.n_trained == event.n_params
            trained = "" if all_trained else f", {short_count(event.n_trained)} of them trained"
            processes = f", {event.world_size} processes" if event.world_size > 1 else ""
            yield (
                f"{short_count(event.n_params)} parameters{trained}; {event.device} {event.dtype}, "
                f"{counted(event.threads, 'thread')}{processes}, {event.peak_flops / 1e9:,.0f} GFLOP/s"
            )
            yield (
                f"{event.tokens_per_iter:,} tokens per step, {event.epoch_iters:,.1f} steps per epoch, "
                f"{counted(event.max_iters, 'step')}"
                + (f", going on after step {event.iteration}" if event.iteration else "")
            )
        case Step() if event.iteration % log_interval == 0:
            yield (
                f"step {event.iteration}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
                f"norm {event.grad_norm:.2f}  {event.tokens_per_second:,.0f} tok/s  MFU {event.mfu:.1%}  "
                f"left {duration(event.eta)}"
            )
        case Evaluation():
            best = "  best so far" if event.is_best else ""
            yield f"step {event.iteration}  {losses(event)}{best}"
            yield from (f"  | {line}" for line in printable(event.sample).strip().splitlines())
        case Saved():
            yield f"step {event.iteration}  saved {printable(str(event.path))}"


def losses(event: Evaluation) -> str:
    bits = "" if math.isnan(event.bits_per_byte) else f"  {event.bits_per_byte:.4f} bits per byte"
    return f"train {event.train_loss:.4f}  valid {event.valid_loss:.4f}{bits}"


def summary(end: Finished, best: Evaluation | None, out: Path) -> str:
    """How far it came, how good it is, where it is; each on lines that a narrow terminal does not break.

    Args:
        best: The evaluation of the lowest validation loss.
    """
    how = "stopped after" if end.stopped else "finished"
    told = [f"{how} {counted(end.iteration, 'step')}, {duration(end.seconds)}"]
    if best is not None:
        told.append(f"best after step {best.iteration}: {losses(best)}")
    told += [str(out / name) for name in (LAST, BEST) if (out / name).exists()]
    return printable("\n".join(told))


def next_commands(end: Finished, out: Path) -> str:
    """What to do with it."""
    folder = shlex.quote(str(out))
    commands = [
        f"llamatui train sample {folder}",
        f"llamatui train export {folder} story.bin",
        "llamatui story story.bin",
    ]
    if end.stopped:
        commands.insert(0, "the same command with --resume")
    return printable("\n".join(f"  try: {command}" for command in commands))


def duration(seconds: float) -> str:
    """`0:01:30`, `2 days, 3:00:00`"""
    return str(timedelta(seconds=round(seconds)))
