"""`llamatui train`: from raw text to a model that tells stories. Needs `llamatui[train]`."""

import inspect
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from llamatui.app.cli import options, train_data
from llamatui.errors import MissingExtraError, UsageError
from llamatui.train.config import TrainConfig, check, checked_values, read_config, with_defaults

app = typer.Typer(no_args_is_help=True)
app.command()(train_data.download)
app.command()(train_data.vocab)
app.command()(train_data.pretokenize)

AFTER_THE_FIRST = 5.0
"""Seconds until another process of a run tells what is wrong. Most often the first one finds the same and
tells it, and torchrun ends the others."""

Checkpoint = Annotated[
    Path, typer.Argument(help="A run's folder, or a checkpoint in one; of a folder the best is taken.")
]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an option for each field of TrainConfig; those given come as the dict `settings`."""
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
    kinds = get_type_hints(TrainConfig)
    more = []
    for entry in fields(TrainConfig):
        kind = kinds[entry.name] if kinds[entry.name] in (int, float, bool) else str
        default = repr(entry.default) if entry.default == "" else str(entry.default).lower()
        option = typer.Option(help=f"{entry.metadata['help']} [{default}]", show_default=False)
        annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
        more.append(
            inspect.Parameter(entry.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )

    def wrapper(**values: Any) -> None:
        settings = {p.name: values.pop(p.name) for p in more}
        command(**values, settings={name: value for name, value in settings.items() if value is not None})

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *more]}
    return wrapper


@app.command()
@with_settings
def run(
    data: Annotated[Path, typer.Argument(help="The folder that `train pretokenize` wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for checkpoints and metrics.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the settings below.", metavar="FILE")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from OUT's last checkpoint.")] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="Begin with a model: .bin, .pt, .gguf or a folder.", metavar="MODEL")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines of text, also in a terminal.")] = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Train a model on tokenized text. Ctrl+C stops and saves; --resume goes on.

    Example: llamatui train run data/ runs/first --dim 192 --max-iters 2000
    """
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        # What is wrong with the arguments is told before PyTorch is imported, which takes seconds.
        if resume and init_from is not None:
            raise UsageError("--resume and --init-from exclude each other", "a resumed run has its model")
        settings = {**(read_config(config) if config else {}), **checked_values(settings, "the command line")}
        if not resume and init_from is None:
            check(with_defaults(settings))
        from llamatui.train.dataset import open_dataset

        open_dataset(data)
        require_torch(tell=is_first)
        from llamatui.app.config import resolve
        from llamatui.app.training.watch import watch
        from llamatui.train.run import train

        code = watch(
            lambda stop: train(data, out, settings, resume=resume, init_from=init_from, stop=stop),
            out,
            plain=plain,
            theme=resolve()[0].theme or "dark",
        )
    except UsageError:
        if not is_first:
            time.sleep(AFTER_THE_FIRST)
        raise
    if code:
        raise typer.Exit(code)


@app.command()
def sample(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option("-i", "--input", help="What the text begins with.")] = "",
    n: Annotated[int, typer.Option("-n", min=1, help="Positions to run, prompt included.")] = 256,
    temperature: Annotated[float, typer.Option("-t", "--temperature", help="0: the likeliest.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keeps the k likeliest tokens; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("-s", "--seed", help="Random seed.")] = 1337,
    samples: Annotated[int, typer.Option(min=1, help="How many texts.")] = 1,
) -> None:
    """Print text from a checkpoint, computed by PyTorch: the reference for what it becomes as a .bin."""
    from llamatui.app.sampling import Sampling

    for used in (seed, seed + samples - 1):
        Sampling(temperature=temperature, top_k=top_k, seed=used)  # of the same ranges as `generate`'s
    require_torch()
    from llamatui.train.pretrained import load_trained
    from llamatui.train.sample import sample_text

    model, tokenizer = load_trained(checkpoint)
    for number in range(samples):
        if number:
            print("---")
        print(prompt, end="")
        pieces = sample_text(
            model, tokenizer, prompt, n, temperature=temperature, top_k=top_k, seed=seed + number
        )
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


@app.command("eval")
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[Path, typer.Argument(help="The folder that `train pretokenize` wrote.")],
    batches: Annotated[int, typer.Option(min=0, help="At most so many of each split; 0: all.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in a batch.")] = 16,
) -> None:
    """Print a checkpoint's losses on both splits, computed by PyTorch."""
    from llamatui.train.dataset import open_dataset

    dataset = open_dataset(data)
    require_torch()
    from llamatui.train.evaluate import evaluate

    found = evaluate(checkpoint, dataset, batches=batches, batch_size=batch_size)
    print(f"train {found.train:.4f}  valid {found.valid:.4f}  {found.bits_per_byte:.4f} bits per byte")


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(help="The .bin file to write.", metavar="OUT.bin")],
    version: options.Version = None,
    group_size: options.GroupSize = None,
) -> None:
    """Turn a checkpoint into a .bin with its tokenizer beside it; needs no PyTorch.

    Example: llamatui train export runs/first story.bin --version 2
    """
    from llamatui.app.cli.export import summary, write_bin
    from llamatui.export.llama2c_checkpoint import open_llama2c
    from llamatui.train.run_folder import checkpoint_path

    began = time.perf_counter()
    source = open_llama2c(checkpoint_path(checkpoint))
    report = write_bin(source, out, version, group_size)
    for line in summary(source, out, report, time.perf_counter() - began):
        print(line, file=sys.stderr)


def require_torch(*, tell: bool = True) -> None:
    """To be called before PyTorch is imported, which takes seconds: says so in a terminal.

    Raises:
        MissingExtraError: It is not installed.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("training", "train")
    if tell and sys.stderr.isatty():
        print("starting PyTorch ...", file=sys.stderr, flush=True)
