"""Training checkpoints: llama2.c's `ckpt.pt`, with all that a run needs to go on as if it had not stopped.

    model          weights by llama2.c's names
    model_args     the architecture: llama2.c's keys, so that its `export.py` and `sample.py` read the file
    llamatui       what llama2.c takes for granted
    optimizer, scaler, iter_num, windows, best_val_loss, evaluated
    config         every setting of the run
    data           tokens in each split

`llamatui.export.llama2c_checkpoint` reads them without PyTorch. Order of data and dropout follow from the
seed, `iter_num` and `windows`: there is no state of a random number generator to keep.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from llamatui.backends.checkpoint import ModelConfig
from llamatui.errors import CheckpointError, LlamatuiError, UsageError
from llamatui.train.config import TrainConfig, checked_values
from llamatui.train.run_folder import BEST


@dataclass(slots=True)
class TrainState:
    """What a checkpoint holds beside the tensors."""

    iteration: int = 0
    """Steps of the optimizer that are done."""
    windows: int = 0
    """Training windows that were seen."""
    best_valid_loss: float = float("inf")
    evaluated: bool = False
    """Since the last step."""


def model_args(config: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """llama2.c's `ModelArgs`, and nothing else: its constructor is called with them."""
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
    }


def more_args(config: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """What llama2.c has no name for."""
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": asdict(config.rope_scaling) if config.rope_scaling else None,
        "lora_scale": train.lora_alpha / train.lora_rank if train.lora_rank else 0.0,
        "shared_classifier": config.shared_classifier,
        "chat_format": config.chat_format,
        "bos_id": config.bos_id,
        "eos_ids": list(config.eos_ids),
    }


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint under another name first: where that fails, the one that was there stays.

    Raises:
        LlamatuiError: It cannot be written.
    """
    part = _part(path)
    try:
        part.unlink(missing_ok=True)
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
    part = _part(target)
    try:
        part.unlink(missing_ok=True)
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


def _part(path: Path) -> Path:
    """Always the same, so that what a killed run leaves is found. That may be a second name of a checkpoint:
    it is removed, not written to."""
    return path.with_name(f".{path.name}.part")


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Nothing in the file is executed.

    Raises:
        CheckpointError: Missing, damaged, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint, found none", "leave out --resume to begin a run"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything in PyTorch's reader
        raise _damaged(path, error) from error
    wanted = {"model", "optimizer", "scaler", "iter_num", "windows", "best_val_loss", "config"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise CheckpointError(
            f"{path}: expected a checkpoint of `train run`, found another file",
            "to begin from a model of another kind, give it as --init-from",
        )
    return content


def saved_config(content: dict[str, Any], path: Path) -> TrainConfig:
    """The settings of the run that wrote a checkpoint.

    Raises:
        CheckpointError: They are not ours.
    """
    try:
        return TrainConfig(**checked_values(dict(content["config"]), "config"))
    except (UsageError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def restore(
    content: dict[str, Any], path: Path, model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler
) -> TrainState:
    """Gives model, optimizer and scaler what they were when `content` was saved; settings stay the new ones.

    Raises:
        CheckpointError: It does not fit the model.
    """
    try:
        model.load_state_dict(content["model"])
        # Of the optimizer its moments alone: its groups hold settings, such as the weight decay.
        optimizer.load_state_dict({**optimizer.state_dict(), "state": content["optimizer"]["state"]})
        if scaler.is_enabled() and content["scaler"]:
            scaler.load_state_dict(content["scaler"])
        return TrainState(
            int(content["iter_num"]),
            int(content["windows"]),
            float(content["best_val_loss"]),
            bool(content.get("evaluated")),
        )
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    # PyTorch's unpickler advises to trust the file.
    reason = "" if isinstance(error, UnpicklingError) else ": " + " ".join(str(error).split())
    return CheckpointError(
        f"{path}: expected a checkpoint of `train run`, found something else{reason:.200}",
        f"it is damaged, or of another program: if {BEST} is whole, copy it over {path.name}",
    )
