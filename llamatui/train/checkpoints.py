"""Training checkpoints: llama2.c's `ckpt.pt`, with all that a run needs to go on as if it had not stopped.

    model          weights by llama2.c's names
    model_args     the architecture: llama2.c's keys, and those it has no name for
    optimizer, scaler, iter_num, windows, best_val_loss
    config         every setting of the run

`llamatui.export.llama2c_checkpoint` reads them without PyTorch. Order of data and dropout follow from the
seed, `iter_num` and `windows`: there is no state of a random number generator to keep.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch

from llamatui.backends.checkpoint import ModelConfig, RopeScaling
from llamatui.errors import CheckpointError, LlamatuiError, UsageError
from llamatui.train.config import ARCHITECTURE, TrainConfig, checked_values


@dataclass(slots=True)
class TrainState:
    """What a checkpoint holds beside the tensors."""

    iteration: int = 0
    """Steps of the optimizer that are done."""
    windows: int = 0
    """Training windows that were seen."""
    best_valid_loss: float = float("inf")


def model_args(config: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """llama2.c's `ModelArgs`, then what it takes for granted."""
    return {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "hidden_dim": config.hidden_dim,
        "multiple_of": 32,
        "norm_eps": config.norm_eps,
        "max_seq_len": config.max_seq_len,
        "dropout": train.dropout,
        "rope_theta": config.rope_theta,
        "rope_scaling": asdict(config.rope_scaling) if config.rope_scaling else None,
        "lora_scale": train.lora_alpha / train.lora_rank if train.lora_rank else 0.0,
        "shared_classifier": config.shared_classifier,
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint under another name first: where that fails, the one that was there stays.

    Raises:
        LlamatuiError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer makes a RuntimeError of a full disk
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        kept = f"; the last good one is {path}" if path.exists() else ""
        raise LlamatuiError(
            f"{path}: cannot be written: {reason:.200}{kept}", "make room, then go on with --resume"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Makes `target` the same file, by a second name where the disk can do that.

    Raises:
        LlamatuiError: It cannot be written.
    """
    part = target.with_name(f".{target.name}.{token_hex(4)}.part")
    try:
        try:
            part.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, part)
        part.replace(target)
    except OSError as error:
        raise LlamatuiError(
            f"{target}: cannot be written: {error.strerror}", "make room, then go on with --resume"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Nothing in the file is executed.

    Raises:
        CheckpointError: Missing, damaged, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint, found none", "was the run's folder named?")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything in PyTorch's reader
        raise CheckpointError(
            f"{path}: expected a checkpoint, found something else: {str(error).partition(chr(10))[0]:.120}",
            "it is damaged, or none that `train run` wrote",
        ) from error
    wanted = {"model", "model_args", "optimizer", "iter_num", "windows", "best_val_loss", "config"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise CheckpointError(
            f"{path}: expected a checkpoint of `train run`, found another file",
            "to begin from a model of another kind, give it as --init-from",
        )
    return content


def saved_config(content: dict[str, Any], path: Path) -> TrainConfig:
    """The settings of the run that wrote a checkpoint."""
    return TrainConfig(**checked_values(content["config"], str(path)))


def saved_model_config(content: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture that a checkpoint's `model_args` say.

    Raises:
        CheckpointError: They are not ours.
    """
    args = content["model_args"]
    try:
        scaling = args["rope_scaling"]
        return ModelConfig(
            **{name: args[name] for name in (
                "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len",
                "rope_theta", "norm_eps", "shared_classifier",
            )},
            rope_scaling=RopeScaling(**scaling) if scaling else None,
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: model_args: {error!r:.100}", "it is none that `train run` wrote"
        ) from error


def check_same_architecture(saved: TrainConfig, wanted: TrainConfig) -> None:
    """A resumed run may change its schedule, not its model.

    Raises:
        UsageError: A flag says another architecture than the checkpoint has.
    """
    for name in (*ARCHITECTURE, "lora_rank", "lora_alpha"):
        before, now = getattr(saved, name), getattr(wanted, name)
        if before != now:
            raise UsageError(
                f"--resume: {name} is {before} in the checkpoint, found {now}",
                "leave it out, or begin a new run in another folder",
            )
