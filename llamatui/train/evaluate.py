"""The losses of a checkpoint on a dataset, all of it or a part: `eval_only` of llama2.c's `train.py`."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from llamatui.errors import UsageError
from llamatui.train.dataset import SPLITS, Dataset, Split, Windows
from llamatui.train.model import Llama
from llamatui.train.pretrained import load_trained


@dataclass(frozen=True, slots=True)
class Losses:
    """Nats per token, and for the validation split bits per byte of its text."""

    train: float
    valid: float
    bits_per_byte: float


def evaluate(checkpoint: Path, dataset: Dataset, *, batches: int, batch_size: int) -> Losses:
    """Runs the model, without dropout, over batches from all over each split; the same each time.

    Args:
        checkpoint: A run's folder, of which the best is taken, or a file.
        batches: At most so many of each split; 0 for all.
        batch_size: Windows in a batch, each as long as the model's context.

    Raises:
        UsageError: The data is of another vocabulary, or its shards are shorter than the context.
        CheckpointError: Missing, damaged, or not a checkpoint.
    """
    model, _ = load_trained(checkpoint)
    if dataset.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"{dataset.path}: expected ids of the checkpoint's vocabulary of {model.config.vocab_size}, "
            f"found one of {dataset.vocab_size}",
            "give the data that it was trained on",
        )
    train, valid = (_mean_loss(model, dataset, split, batches, batch_size) for split in SPLITS)
    text = dataset.splits["valid"]
    return Losses(train, valid, valid / math.log(2) * text.n_tokens / text.n_bytes)


@torch.no_grad()
def _mean_loss(model: Llama, dataset: Dataset, split: Split, batches: int, batch_size: int) -> float:
    windows = Windows(dataset, split, model.config.max_seq_len, seed=None)
    size = min(batch_size, windows.n_windows)
    n = min(batches or windows.n_windows, windows.n_windows // size)
    total = 0.0
    for batch in range(n):
        ids, targets = windows.batch(batch * windows.n_windows // n, size)  # (size, max_seq_len) each
        total += float(model(torch.from_numpy(ids), torch.from_numpy(targets)))
    return total / n
