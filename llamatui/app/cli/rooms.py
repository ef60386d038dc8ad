"""`llamatui story` and `llamatui chat`: the terminal app, or plain lines where there is no terminal."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llamatui.app import store
from llamatui.app.cli import loading, options
from llamatui.app.config import Settings
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.app.tui import RoomName


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
    theme: options.Theme = None,
) -> None:
    """Write a story together with a model, in the terminal."""
    if not is_terminal():
        raise UsageError("the story room needs a terminal", "for scripts and pipes: llamatui generate")
    flags = {
        "tokenizer": tokenizer, "backend": backend, "threads": threads, "temperature": temperature,
        "top_p": top_p, "seed": seed, "top_k": top_k, "min_p": min_p, "repeat_penalty": repeat_penalty,
        "context": context, "overflow": overflow, "theme": theme,
    }  # fmt: skip
    open_room("story", loading.settings_from(model, **flags), prompt, None)


def chat(
    model: options.InstructModel = None,
    prompt: Annotated[str, typer.Option("-i", "--prompt", help="The first message.")] = "",
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
    theme: options.Theme = None,
    json: Annotated[
        bool, typer.Option("--json", help="A line in, a line of JSON out, also in a terminal.")
    ] = False,
) -> None:
    """Chat with an instruct model, in the terminal; without one, a line in and an answer out."""
    flags = {
        "system": system, "tokenizer": tokenizer, "backend": backend, "threads": threads,
        "chat_format": chat_format, "temperature": temperature, "top_p": top_p, "seed": seed, "top_k": top_k,
        "min_p": min_p, "repeat_penalty": repeat_penalty, "context": context, "overflow": overflow,
        "theme": theme,
    }  # fmt: skip
    settings = loading.settings_from(model, store.refuse_chat, **flags)
    # Only `-y ""` means none at all.
    system = settings.system if settings.system or system is not None else None
    if is_terminal() and not json:
        open_room("chat", settings, prompt, system)
        return
    from llamatui.app.cli.repl import repl

    repl(settings, system, prompt, json=json)


def is_terminal() -> bool:
    """Whether there is a screen: a terminal, or the browser of `llamatui web`."""
    return "TEXTUAL_DRIVER" in os.environ or (sys.stdin.isatty() and sys.stdout.isatty())


def open_room(room: "RoomName", settings: Settings, prompt: str, system: str | None) -> None:
    # A wrong value is told in the shell, before the screen is taken.
    sampling = loading.sampling(settings)
    overflow = loading.overflow_policy(settings, "stop") if settings.overflow else None
    keys: dict[str, str] = {}
    if settings.keys:
        from llamatui.app.tui.keys import keymap_from

        keys = keymap_from(settings.keys)
    from llamatui.app.tui import Launch, run_app

    launch = Launch(
        settings.model,
        sampling,
        tokenizer=settings.tokenizer or None,
        backend=settings.backend or None,
        threads=settings.threads or None,
        chat_format=settings.chat_format,
        prompt=prompt,
        system=system,
        context=settings.context or None,
        overflow=overflow,
        theme=settings.theme or "dark",
        keys=keys,
    )
    raise typer.Exit(run_app(room, launch))
