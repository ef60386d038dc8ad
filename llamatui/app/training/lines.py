"""A training run as lines of text, for logs and pipes."""

from datetime import timedelta

from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step


def print_line(event: Event, log_interval: int) -> None:
    match event:
        case Started():
            print(
                f"{event.n_params / 1e6:.2f} M parameters, {event.tokens_per_iter:,} tokens per step, "
                f"{event.epoch_iters:.1f} steps per epoch; {event.device} {event.dtype}, {event.threads} threads, "
                f"{event.peak_flops / 1e9:.0f} GFLOP/s",
                flush=True,
            )
        case Step() if event.iteration % log_interval == 0:
            print(
                f"step {event.iteration}  loss {event.loss:.4f}  lr {event.learning_rate:.2e}  "
                f"norm {event.grad_norm:.2f}  {event.tokens_per_second:,.0f} tok/s  mfu {event.mfu:.0%}  "
                f"left {timedelta(seconds=round(event.eta))}",
                flush=True,
            )
        case Evaluation():
            best = ", the best so far" if event.is_best else ""
            print(
                f"step {event.iteration}  train {event.train_loss:.4f}  valid {event.valid_loss:.4f}  "
                f"{event.bits_per_byte:.4f} bits per byte{best}",
                flush=True,
            )
            if event.sample:
                print(f"  | {event.sample.strip()}", flush=True)
        case Saved():
            print(f"step {event.iteration}  saved {event.path}", flush=True)
        case Finished():
            print(
                f"{timedelta(seconds=round(event.seconds))}, best validation loss {event.best_valid_loss:.4f}"
            )
