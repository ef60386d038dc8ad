"""`llamatui story` and `llamatui chat`: the terminal app, or plain lines where there is no terminal."""

import sys
from typing import Annotated, Any, Literal

import typer

from llamatui.app.cli import loading, options
from llamatui.app.config import Settings
from llamatui.errors import UsageError


def story(
    model: options.Model = None,
    prompt: Annotated[str, typer.Option("-i", "--prompt", help="How the story begins.")] = "",
    tokenizer: options.Tokenizer = None,
    backend: options.Backend = None,
    threads: options.Threads = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    context: options.Context = None,
    overflow: options.Overflow = None,
) -> None:
    """Write a story together with a model, in the terminal."""
    if not is_terminal():
        raise UsageError("the story room needs a terminal", "for scripts and pipes: llamatui generate")
    flags = {
        "tokenizer": tokenizer, "backend": backend, "threads": threads, "temperature": temperature,
        "top_p": top_p, "seed": seed, "top_k": top_k, "min_p": min_p, "repeat_penalty": repeat_penalty,
        "context": context, "overflow": overflow,
    }  # fmt: skip
    open_room("story", loading.settings_from(model, **flags), prompt)


def chat(
    model: options.Model = None,
    system: options.System = None,
    tokenizer: options.Tokenizer = None,
    backend: options.Backend = None,
    threads: options.Threads = None,
    chat_format: options.ChatFormat = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    context: options.Context = None,
    overflow: options.Overflow = None,
) -> None:
    """Chat with an instruct model, in the terminal; without one, a line in and an answer out."""
    flags = {
        "system": system, "tokenizer": tokenizer, "backend": backend, "threads": threads,
        "chat_format": chat_format, "temperature": temperature, "top_p": top_p, "seed": seed, "top_k": top_k,
        "min_p": min_p, "repeat_penalty": repeat_penalty, "context": context, "overflow": overflow,
    }  # fmt: skip
    settings = loading.settings_from(model, **flags)
    if is_terminal():
        open_room("chat", settings, "")
        return
    from llamatui.app.cli.repl import repl

    repl(settings)


def is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def open_room(room: Literal["story", "chat"], settings: Settings, prompt: str) -> None:
    sampling = loading.sampling(settings)
    from llamatui.app.tui import Launch, run_app

    launch: dict[str, Any] = {"overflow": settings.overflow} if settings.overflow else {}
    raise typer.Exit(run_app(room, Launch(settings.model, sampling=sampling, prompt=prompt, **launch)))
