"""What a training run tells while it goes on: terminal view, log lines and `metrics.jsonl` are made of it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins, or goes on after `iteration` steps."""

    iteration: int
    max_iters: int
    n_params: int
    n_trained: int
    """Parameters that change: fewer with LoRA."""
    tokens_per_iter: int
    epoch_iters: float
    """Steps in which every window of the training text comes once."""
    eval_interval: int
    log_interval: int
    device: str
    dtype: str
    threads: int
    world_size: int
    peak_flops: float
    """Floating-point operations per second of one large matrix product here: what MFU is a share of."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the optimizer is done."""

    iteration: int
    """Steps done so far."""
    loss: float
    """Nats per token, mean over the step's tokens."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    tokens_per_second: float
    mfu: float
    """Model FLOPs utilization, 0 to 1."""
    eta: float
    """Seconds to the end at the speed so far."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss on both splits, without dropout, after `iteration` steps."""

    iteration: int
    train_loss: float
    """Nats per token."""
    valid_loss: float
    bits_per_byte: float
    """Of the validation split."""
    is_best: bool
    sample: str


@dataclass(frozen=True, slots=True)
class Saved:
    iteration: int
    path: Path


@dataclass(frozen=True, slots=True)
class Finished:
    iteration: int
    seconds: float
    best_valid_loss: float
    stopped: bool
    """Before its last step, because it was asked to."""


Event = Started | Step | Evaluation | Saved | Finished
