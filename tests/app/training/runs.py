"""Training runs of which nothing is trained: the events of a real one, as fast as somebody takes them."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step

STORY = "Once upon a time, there was a llama.\nIt told stories, and \x1b[31mnobody\x1b[0m minded."


def loss_after(step: int) -> float:
    return 1.5 + 6 / (1 + step / 20) + 0.1 * math.sin(2.5 * step)


def started(step: int = 0, steps: int = 100, *, eval_interval: int = 50, log_interval: int = 1) -> Started:
    return Started(
        iteration=step,
        max_iters=steps,
        n_params=1_234_567,
        n_trained=1_234_567,
        tokens_per_iter=2048,
        epoch_iters=40.0,
        eval_interval=eval_interval,
        log_interval=log_interval,
        device="cpu",
        dtype="float32",
        threads=2,
        world_size=1,
        peak_flops=5e10,
    )


def evaluation(step: int, sample: str = STORY, *, is_best: bool = True) -> Evaluation:
    return Evaluation(step, loss_after(step), loss_after(step) + 0.1, loss_after(step) / 3, is_best, sample)


def fake_run(
    out: Path,
    stop: Callable[[], bool] = lambda: False,
    *,
    first: int = 0,
    steps: int = 100,
    eval_interval: int = 50,
    log_interval: int = 1,
    error_after: int | None = None,
    error: BaseException | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Iterator[Event]:
    """Steps `first` + 1 to `steps`; as the trainer, it is asked in each step whether to stop after it."""
    out.mkdir(exist_ok=True)
    yield started(first, steps, eval_interval=eval_interval, log_interval=log_interval)
    if first == 0:
        yield evaluation(0)
    stopped = False
    step = first
    while step < steps and not stopped:
        stopped = stop()
        step += 1
        on_step(step)
        if error is not None and step - 1 == error_after:
            raise error
        yield Step(step, loss_after(step), 1e-3 * step / steps, 0.5, 12345.6, 0.315, 0.5 * (steps - step))
        if stopped or step % eval_interval == 0 or step == steps:
            if not stopped:
                yield evaluation(step)
            (out / "last.pt").write_bytes(b"")
            yield Saved(step, out / "last.pt")
    yield Finished(step, 75.0, loss_after(step), stopped)
