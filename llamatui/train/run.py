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

from llamatui.errors import LlamatuiError, UsageError
from llamatui.export.open import open_model
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train import checkpoints
from llamatui.train.config import TrainConfig, check, merged, to_toml
from llamatui.train.dataset import open_dataset
from llamatui.train.distributed import world
from llamatui.train.events import Event
from llamatui.train.machine import find_machine
from llamatui.train.run_folder import CONFIG, LAST
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
    resumed, source = None, None
    if resume:
        resumed = checkpoints.load(out / LAST)
        saved = checkpoints.saved_config(resumed, out / LAST)
        config = merged(saved, settings)
        checkpoints.check_same_architecture(saved, config)
        model_config = checkpoints.saved_model_config(resumed, out / LAST)
    elif init_from is not None:
        source = open_model(init_from)
        config = config_of(source.config, merged(TrainConfig(), settings))
        model_config = replace(source.config, group_size=0)
    else:
        config = merged(TrainConfig(), settings)
        check(config)
        model_config = config.model_config(dataset.vocab_size)
    check(config)
    if config.lora_rank and source is None and resumed is None:
        raise UsageError("--lora-rank: expected a model to add to, found none", "name one with --init-from")
    machine = find_machine(config)
    with world(machine.device.type) as processes:
        if processes.is_first:
            _prepare(out, config, tokenizer_file, resume=resume)
        trainer = Trainer(
            config, model_config, dataset, tokenizer, out, machine, processes, source=source, resumed=resumed
        )
        source = resumed = None  # as large as the model
        yield from trainer.run(stop)


def _prepare(out: Path, config: TrainConfig, tokenizer: Path, *, resume: bool) -> None:
    if not resume and (out / LAST).exists():
        raise UsageError(
            f"{out}: expected a folder without a run, found {LAST}",
            "go on with it by --resume, or choose another folder",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).write_text(to_toml(config), "utf-8")
        shutil.copyfile(tokenizer, out / tokenizer.name)
    except OSError as error:
        raise LlamatuiError(f"{out}: cannot be written: {error.strerror}", "choose another folder") from error
