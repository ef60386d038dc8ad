"""Sets up a training run, new, resumed or begun from another model, in a folder of its own.

OUT/config.toml       every setting, for the next run
OUT/last.pt, best.pt  checkpoints; best is the one of the lowest validation loss
OUT/tokenizer.*       that of the data; the model's own where the data's is only the first part of it
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamatui.backends.checkpoint import MAX_EOS_IDS, ModelConfig
from llamatui.backends.checkpoint_writer import check_room
from llamatui.errors import LlamatuiError, TokenizerError, UsageError
from llamatui.export.llama2c_checkpoint import open_llama2c
from llamatui.export.open import open_model
from llamatui.export.source import Source
from llamatui.export.tokenizer_files import load_files
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train import checkpoints
from llamatui.train.config import (
    ARCHITECTURE,
    TrainConfig,
    check,
    check_fixed,
    config_of,
    read_config,
    to_toml,
    with_defaults,
)
from llamatui.train.dataset import AGAIN, Dataset, open_dataset
from llamatui.train.distributed import world
from llamatui.train.events import Event
from llamatui.train.machine import find_machine, telling_failures
from llamatui.train.run_folder import BEST, CONFIG, LAST, checkpoint_path
from llamatui.train.trainer import Trainer

Files = dict[str, bytes]
"""By name."""
OLD_CONFIG = "config.before.toml"
"""Somebody's own file that lay where the run's settings go."""


def train(
    data: Path,
    out: Path,
    settings: dict[str, Any],
    *,
    resume: bool = False,
    init_from: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
    """Trains, telling each step.

    Args:
        data: A folder of `train pretokenize`.
        out: Folder for checkpoints, made where there is none.
        settings: Fields of `TrainConfig`; what is missing is the default's, or the resumed run's.
        resume: Go on from `out`'s last checkpoint.
        init_from: A model to begin with: .bin, .pt, .gguf or a folder.
        stop: Asked in each step; True ends the run after it, with a checkpoint.

    Raises:
        UsageError: Settings, data and machine do not go together.
        ModelError: A checkpoint or model cannot be read.
        LlamatuiError: The run failed: see `Trainer.run`.
    """
    if out.resolve() == data.resolve():
        raise UsageError(
            f"{out}: expected a folder of the run's own, found the data", "choose another folder"
        )
    dataset = open_dataset(data)
    try:
        tokenizer = load_tokenizer(data / dataset.tokenizer, dataset.vocab_size)
    except TokenizerError as error:
        raise TokenizerError(error.message, AGAIN) from error
    files = _tokenizer_files(dataset)
    resumed, source = None, None
    if resume:
        resumed = checkpoints.load(out / LAST)
        saved = checkpoints.saved_config(resumed, out / LAST)
        check_fixed(
            saved,
            settings,
            (*ARCHITECTURE, "max_seq_len", "lora_rank", "lora_alpha", "seed"),
            "the checkpoint",
        )
        config = replace(saved, **settings)
        kept = open_llama2c(out / LAST)
        model_config = replace(kept.config, shared_classifier=config.tied)
        if dataset.vocab_size == model_config.vocab_size:
            _check_same_tokenizer(out / dataset.tokenizer, data / dataset.tokenizer)
        else:
            tokenizer, _ = _fitting(kept, tokenizer, files, out / LAST)
        del kept  # an open file, of which another takes the place
        _check_same_text(resumed, dataset)
        files = {}
    else:
        _check_no_run(out)
        config = with_defaults(settings)
        if init_from is not None:
            source = open_model(_model_path(init_from))
            tokenizer, files = _fitting(source, tokenizer, files, init_from)
            config = config_of(source.config, config)
            check_fixed(config, settings, (*ARCHITECTURE, "max_seq_len"), str(init_from))
            model_config = replace(source.config, group_size=0)
        else:
            check(config)
            model_config = config.model_config(dataset.vocab_size)
            if config.lora_rank:
                raise UsageError(
                    "lora_rank: expected a model to add to, found none", "name one with --init-from"
                )
    check(config)
    model_config = _with_token_ids(model_config, tokenizer)
    machine = find_machine(config)
    with world(machine.device.type) as processes, telling_failures(config):
        # What is fastest is measured at each start by each process: it is chosen once, by the first.
        machine = replace(machine, dtype=processes.of_first(machine.dtype))
        config = replace(config, dtype=machine.dtype_name)
        trainer = Trainer(
            config, model_config, dataset, tokenizer, out, machine, processes, source=source, resumed=resumed
        )
        source = resumed = None  # as large as the model
        if processes.is_first:
            _prepare(out, config, files, trainer.checkpoint_size)
        yield from trainer.run(stop)


def _check_no_run(out: Path) -> None:
    for name, hint in (
        (LAST, "go on with it by --resume, or choose another folder"),
        (BEST, f"copy it to {LAST} to go on with it by --resume, or choose another folder"),
    ):
        if (out / name).exists():
            raise UsageError(f"{out}: expected a folder without a run, found {name}", hint)


def _model_path(path: Path) -> Path:
    """A run's folder is its best checkpoint; other folders are models."""
    return checkpoint_path(path) if any((path / name).is_file() for name in (BEST, LAST)) else path


def _tokenizer_files(dataset: Dataset) -> Files:
    paths = (dataset.path / name for name in (dataset.tokenizer, "tokenizer_config.json"))
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _with_token_ids(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """With BOS and EOS of the data where the model has none, as the reader of checkpoints does it."""
    return replace(
        config,
        bos_id=config.bos_id if config.bos_id >= 0 else tokenizer.bos_id,
        eos_ids=config.eos_ids or tuple(sorted(tokenizer.eos_ids)[:MAX_EOS_IDS]),
    )


def _fitting(source: Source, tokenizer: Tokenizer, files: Files, path: Path) -> tuple[Tokenizer, Files]:
    """The data's tokenizer, or the model's where that has more tokens: many end with unused ones.

    Raises:
        UsageError: The data is not of the model's vocabulary.
    """
    size, hint = (
        source.config.vocab_size,
        "tokenize the text with the model's own tokenizer: llamatui train pretokenize -z",
    )
    own = load_files(source.tokenizer, path, size) if source.tokenizer else None
    if tokenizer.vocab_size > size or (own is None and tokenizer.vocab_size < size):
        raise UsageError(
            f"{path}: expected data of the model's vocabulary of {size}, found one of {tokenizer.vocab_size}",
            hint,
        )
    if own is None:
        return tokenizer, files
    for token in range(tokenizer.vocab_size):
        if own.decode_bytes(token) != tokenizer.decode_bytes(token):
            raise UsageError(
                f"{path}: expected data of its own vocabulary, found one where token {token} is "
                f"{_shown(tokenizer, token)}, not {_shown(own, token)}",
                hint,
            )
    if tokenizer.vocab_size == size:
        return tokenizer, files
    return own, {ending.removeprefix("."): content for ending, content in source.tokenizer.items()}


def _shown(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizer.decode_bytes(token).decode("utf-8", "backslashreplace"))


def _check_same_tokenizer(kept: Path, given: Path) -> None:
    if not kept.is_file() or kept.read_bytes() != given.read_bytes():
        raise UsageError(
            f"{given}: expected the tokenizer that the run was begun with, {kept}, "
            f"found {'another' if kept.is_file() else 'none there'}",
            "give the data that the run was begun with",
        )


def _check_same_text(checkpoint: dict[str, Any], dataset: Dataset) -> None:
    if checkpoint.get("data", dataset.n_tokens) != dataset.n_tokens:  # the first ones did not say
        raise UsageError(
            f"{dataset.path}: expected the data that the run was begun with, of {checkpoint['data']} tokens, "
            f"found {dataset.n_tokens}",
            "to go on with other text, begin a run in another folder with --init-from",
        )


def _prepare(out: Path, config: TrainConfig, files: Files, checkpoint_size: int) -> None:
    """Makes the folder, with what is there before the first checkpoint."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {path.stat().st_ino for path in (out / LAST, out / BEST) if path.exists()}
        check_room(out, (3 - len(there)) * checkpoint_size)  # for the last, the best, and the next one
        if (out / CONFIG).exists() and not _is_ours(out / CONFIG):
            (out / CONFIG).replace(out / OLD_CONFIG)
        for name, content in {CONFIG: to_toml(config).encode(), **files}.items():
            part = out / f".{name}.part"
            part.write_bytes(content)
            part.replace(out / name)
    except OSError as error:
        raise LlamatuiError(f"{out}: cannot be written: {error.strerror}", "choose another folder") from error


def _is_ours(path: Path) -> bool:
    """Whether nobody has written into it since a run did."""
    try:
        return path.read_bytes() == to_toml(TrainConfig(**read_config(path))).encode()
    except UsageError:
        return False
