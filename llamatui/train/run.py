"""Sets up a training run, new, resumed or begun from another model, in a folder of its own.

OUT/config.toml       every setting, for the next run
OUT/last.pt, best.pt  checkpoints; best is the one of the lowest validation loss
OUT/tokenizer.*       that of the data
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamatui.backends.checkpoint import MAX_EOS_IDS, ModelConfig
from llamatui.errors import LlamatuiError, UsageError
from llamatui.export.llama2c_checkpoint import open_llama2c
from llamatui.export.open import open_model
from llamatui.export.source import Source
from llamatui.export.tokenizer_files import load_files
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train import checkpoints
from llamatui.train.config import ARCHITECTURE, TrainConfig, check, check_fixed, to_toml
from llamatui.train.dataset import open_dataset
from llamatui.train.distributed import world
from llamatui.train.events import Event
from llamatui.train.machine import find_machine, telling_failures
from llamatui.train.run_folder import CONFIG, LAST, checkpoint_path
from llamatui.train.trainer import Trainer, config_of


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
    dataset = open_dataset(data)
    tokenizer_file = data / dataset.tokenizer
    tokenizer = load_tokenizer(tokenizer_file, dataset.vocab_size)
    if not resume and (out / LAST).exists():
        raise UsageError(
            f"{out}: expected a folder without a run, found {LAST}",
            "go on with it by --resume, or choose another folder",
        )
    resumed, source = None, None
    if resume:
        resumed = checkpoints.load(out / LAST)
        saved = checkpoints.saved_config(resumed, out / LAST)
        check_fixed(
            saved, settings, (*ARCHITECTURE, "max_seq_len", "lora_rank", "lora_alpha"), "the checkpoint"
        )
        config = replace(saved, **settings)
        model_config = replace(open_llama2c(out / LAST).config, shared_classifier=config.tied)
        _check_same_tokenizer(out / dataset.tokenizer, tokenizer_file)
    elif init_from is not None:
        source = open_model(checkpoint_path(init_from) if (init_from / CONFIG).is_file() else init_from)
        _check_same_vocabulary(source, tokenizer, init_from)
        config = config_of(source.config, TrainConfig(**settings))
        check_fixed(config, settings, ARCHITECTURE, str(init_from))
        model_config = replace(source.config, group_size=0)
    else:
        config = TrainConfig(**settings)
        check(config)
        model_config = config.model_config(dataset.vocab_size)
        if config.lora_rank:
            raise UsageError("lora_rank: expected a model to add to, found none", "name one with --init-from")
    check(config)
    model_config = _with_token_ids(model_config, tokenizer)
    machine = find_machine(config)
    with world(machine.device.type) as processes, telling_failures(config):
        trainer = Trainer(
            config, model_config, dataset, tokenizer, out, machine, processes, source=source, resumed=resumed
        )
        source = resumed = None  # as large as the model
        if processes.is_first:
            _prepare(out, config, tokenizer_file)
        yield from trainer.run(stop)


def _with_token_ids(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """With BOS and EOS of the data where the model has none, as the reader of checkpoints does it."""
    return replace(
        config,
        bos_id=config.bos_id if config.bos_id >= 0 else tokenizer.bos_id,
        eos_ids=config.eos_ids or tuple(sorted(tokenizer.eos_ids)[:MAX_EOS_IDS]),
    )


def _check_same_vocabulary(source: Source, tokenizer: Tokenizer, path: Path) -> None:
    """Vocabularies of one size are told apart by what their tokens stand for."""
    size = source.config.vocab_size
    if not source.tokenizer or tokenizer.vocab_size != size:
        return  # nothing to compare with, or told later
    own = load_files(source.tokenizer, path, size)
    for token in range(size):
        if own.decode_bytes(token) != tokenizer.decode_bytes(token):
            raise UsageError(
                f"{path}: expected data of its own vocabulary, found one where token {token} is "
                f"{tokenizer.decode_bytes(token)!r}, not {own.decode_bytes(token)!r}",
                "tokenize the text with the model's tokenizer: llamatui train pretokenize -z",
            )


def _check_same_tokenizer(kept: Path, given: Path) -> None:
    if kept.is_file() and kept.read_bytes() != given.read_bytes():
        raise UsageError(
            f"{given}: expected the tokenizer that the run was begun with, {kept}, found another",
            "give the data that the run was begun with",
        )


def _prepare(out: Path, config: TrainConfig, tokenizer: Path) -> None:
    """Makes the folder, with what is there before the first checkpoint."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).write_text(to_toml(config), "utf-8")
        for file in (tokenizer, tokenizer.with_name("tokenizer_config.json")):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    except OSError as error:
        raise LlamatuiError(f"{out}: cannot be written: {error.strerror}", "choose another folder") from error
