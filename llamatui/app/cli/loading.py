"""From settings to a model, a sampler and limits, the same way in every command."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatui.app import store
from llamatui.app.config import Settings, resolve
from llamatui.errors import TokenizerMissingError, UsageError

if TYPE_CHECKING:
    from llamatui.app.engine import OverflowPolicy
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling
    from llamatui.backends.checkpoint import Checkpoint


def settings_from(
    model: str | None, fallback: Callable[[], Path] = store.bundled, /, **flags: Any
) -> Settings:
    """Settings with these flags on top; sets the number of BLAS threads before NumPy is loaded.

    Args:
        model: What the command line names; None leaves it to the settings.
        fallback: Finds the model where those name none either, or raises what is wrong.

    Raises:
        ModelError: No model is named, and there is none to fall back to.
        UsageError: A setting is out of its range.
    """
    if model == "":  # a script's variable that is not set is no reason to run another model
        raise UsageError("expected a model, found an empty name", "llamatui models lists what is here")
    tokenizer = flags.pop("tokenizer", None)
    named = {"model": model, "tokenizer": tokenizer and str(tokenizer)}
    settings, _ = resolve({**flags, **named})
    if not settings.model:
        settings = replace(settings, model=str(fallback()))
    if not 0 <= settings.threads <= 1024:
        raise UsageError(f"threads must be in 0..1024, found {settings.threads}")
    if settings.chat_format:
        from llamatui.tokenizers.chat_formats import chat_format_named

        chat_format_named(settings.chat_format)
    if settings.context < 0 or settings.context == 1:
        raise UsageError(f"context must be at least 2, found {settings.context}")
    from llamatui.backends.threads import limit_blas_threads

    limit_blas_threads(settings.threads or None)
    return settings


def load(settings: Settings) -> "LoadedModel":
    """The model; where only its tokenizer is missing, a terminal is asked whether to fetch it."""
    try:
        return _load(settings)
    except TokenizerMissingError as error:
        if not error.pull or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        print(f"{error.message}.", file=sys.stderr)
        if not offer(error.pull):
            raise
    return _load(settings)


def offer(name: str) -> bool:
    """Asks whether to fetch `name` of the catalogue, and does; False if it is not wanted."""
    from llamatui.app import catalogue

    entry = catalogue.find(name)
    assert entry is not None, name
    # Not with typer.confirm: it writes a blank to stdout, which is the model's.
    print(f"Fetch {entry.offer}? [Y/n] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()  # "" at its end
    if not answer or answer.strip().casefold() not in ("", "y", "yes"):
        return False
    from llamatui.app.cli.progress import progress_bar
    from llamatui.app.pull import pull

    with progress_bar(entry.name) as progress:
        pull(name, progress=progress)
    return True


def checkpoint(settings: Settings) -> "Checkpoint":
    """The model's file alone, for what needs no tokenizer."""
    from llamatui.app.model import open_checkpoint

    return open_checkpoint(settings.model, _narrate)


def _load(settings: Settings) -> "LoadedModel":
    from llamatui.app.model import load_model

    return load_model(
        settings.model,
        tokenizer=settings.tokenizer or None,
        backend=settings.backend or None,
        threads=settings.threads or None,
        chat_format=settings.chat_format,
        progress=_narrate,
    )


def _narrate(step: str) -> None:
    """Says only what takes long, converting a GGUF file or compiling, and what there is to know about it."""
    from llamatui.app.gguf_cache import CONVERTING, NOTE
    from llamatui.backends.registry import COMPILING

    if step.startswith(NOTE):
        print(step, file=sys.stderr)
    elif sys.stderr.isatty():
        shown = step if step.startswith((CONVERTING, COMPILING)) else ""
        print(f"\r{shown}\x1b[K", end="", file=sys.stderr, flush=True)
    elif step in (CONVERTING, COMPILING):
        print(step, file=sys.stderr, flush=True)


def sampling(settings: Settings) -> "Sampling":
    """Raises UsageError for a value out of its range."""
    from llamatui.app.sampling import Sampling

    s = settings
    return Sampling(s.temperature, s.top_p, s.top_k, s.min_p, s.repeat_penalty, s.seed)


def overflow_policy(settings: Settings, default: "OverflowPolicy") -> "OverflowPolicy":
    """Raises UsageError for an unknown policy."""
    policy = settings.overflow or default
    if policy not in ("stop", "shift", "error"):
        raise UsageError(f"--overflow must be stop, shift or error, found {policy!r}")
    return policy  # type: ignore[return-value]  # mypy does not narrow str to a Literal
