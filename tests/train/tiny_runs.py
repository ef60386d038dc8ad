"""Data and settings of training runs that take a fraction of a second. Needs no PyTorch to be imported."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamatui.train.dataset import DTYPES, Dataset, Shard, Split, SplitInfo, write_info
from llamatui.train.events import Evaluation, Event, Saved, Step
from tests.tiny import write_tokenizer_bin

VOCAB = 300
SETTINGS: dict[str, Any] = {
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "max_seq_len": 8,
    "dropout": 0.2,
    "batch_size": 2,
    "grad_accumulation": 2,
    "max_iters": 12,
    "learning_rate": 1e-2,
    "warmup_iters": 0,
    "eval_interval": 4,
    "eval_iters": 2,
    "sample_tokens": 0,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
}
"""With `write_data`'s ten windows, 12 steps of 4 windows are nearly five epochs."""


def flags(settings: dict[str, Any]) -> list[str]:
    """The same on the command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def write_data(
    folder: Path, train: Sequence[int] = (60, 45), valid: Sequence[int] = (50,), *, vocab_size: int = VOCAB
) -> Path:
    """A dataset with shards of that many ids, each a noisy function of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer_bin(folder / "tokenizer.bin", vocab_size)
    rng = np.random.default_rng(7)
    lengths: dict[Split, Sequence[int]] = {"train": train, "valid": valid}
    splits: dict[Split, SplitInfo] = {}
    for split, counts in lengths.items():
        shards = [Shard(f"{split}-{i:04}.bin", n) for i, n in enumerate(counts)]
        for shard in shards:
            ids = (5 * np.arange(shard.n_tokens) + rng.integers(0, 3, shard.n_tokens)) % 40 + 3
            ids.astype(DTYPES["uint16"]).tofile(folder / shard.name)
        splits[split] = SplitInfo(tuple(shards), n_documents=1, n_bytes=4 * sum(counts))
    write_info(Dataset(folder, "tokenizer.bin", vocab_size, "uint16", splits))
    return folder


def train_until(
    step: int, data: Path, out: Path, settings: dict[str, Any], *, init_from: Path | None = None
) -> list[Event]:
    """Events of a run that is asked to stop once the step before is done, and evaluated where it is."""
    from llamatui.train.run import train

    before = Saved if (step - 1) % settings["eval_interval"] == 0 else Step
    events: list[Event] = []

    def stop() -> bool:
        return any(isinstance(event, before) and event.iteration == step - 1 for event in events)

    for event in train(data, out, settings, init_from=init_from, stop=stop):
        events.append(event)  # noqa: PERF402 - `stop` looks at them
    return events


def losses(events: Iterator[Event] | Sequence[Event]) -> dict[int, tuple[float, float, float]]:
    """Loss, norm of the gradient and learning rate by step."""
    return {e.iteration: (e.loss, e.grad_norm, e.learning_rate) for e in events if isinstance(e, Step)}


def evaluations(events: Sequence[Event]) -> dict[int, tuple[float, float]]:
    """Both losses by step."""
    return {e.iteration: (e.train_loss, e.valid_loss) for e in events if isinstance(e, Evaluation)}
