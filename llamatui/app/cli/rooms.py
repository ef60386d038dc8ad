"""`llamatui story` and `llamatui chat`: the terminal app, or plain lines where there is no terminal."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamatui.app import store
from llamatui.app.cli import loading, options
from llamatui.app.cli.terminal import printable
from llamatui.app.config import Settings, resolve
from llamatui.errors import ModelError, UsageError

if TYPE_CHECKING:
    from llamatui.app.history.saved import Saved
    from llamatui.app.tui import RoomName

STORY_TEMPERATURE = 0.8
"""Of the story room, where nobody says another: small models lose the thread at 1.0, run.c's."""


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
    last: options.Last = False,
    uid: options.Reopened = "",
) -> None:
    """Write a story together with a model, in the terminal."""
    if not is_terminal():
        raise UsageError("the story room needs a terminal", "for scripts and pipes: llamatui generate")
    flags = {
        "tokenizer": tokenizer, "backend": backend, "threads": threads, "temperature": temperature,
        "top_p": top_p, "seed": seed, "top_k": top_k, "min_p": min_p, "repeat_penalty": repeat_penalty,
        "context": context, "overflow": overflow, "theme": theme,
    }  # fmt: skip
    if temperature is None and resolve()[1]["temperature"] == "default":
        flags["temperature"] = STORY_TEMPERATURE
    document, model = reopened("story", last, uid, prompt, model, flags)
    open_room("story", loading.settings_from(model, **flags), prompt, None, document)


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
    last: options.Last = False,
    uid: options.Reopened = "",
) -> None:
    """Chat with an instruct model, in the terminal; without one, a line in and an answer out."""
    flags = {
        "system": system, "tokenizer": tokenizer, "backend": backend, "threads": threads,
        "chat_format": chat_format, "temperature": temperature, "top_p": top_p, "seed": seed, "top_k": top_k,
        "min_p": min_p, "repeat_penalty": repeat_penalty, "context": context, "overflow": overflow,
        "theme": theme,
    }  # fmt: skip
    to_screen = is_terminal() and not json
    if (last or uid) and not to_screen:
        raise UsageError("a chat is opened again in a terminal", "its text: llamatui history show")
    document, model = reopened("chat", last, uid, prompt, model, flags)
    settings = loading.settings_from(model, store.refuse_chat, **flags)
    # Only `-y ""` means none at all.
    system = settings.system if settings.system or system is not None else None
    if to_screen:
        open_room("chat", settings, prompt, system, document)
        return
    from llamatui.app.cli.repl import repl

    repl(settings, system, prompt, json=json)


def is_terminal() -> bool:
    """Whether there is a screen: a terminal, or the browser of `llamatui web`."""
    return "TEXTUAL_DRIVER" in os.environ or (sys.stdin.isatty() and sys.stdout.isatty())


def reopened(
    kind: "RoomName", last: bool, uid: str, prompt: str, model: str | None, flags: dict[str, Any]
) -> tuple[str, str | None]:
    """(uid, model) of what is taken out of the history: the model that wrote it, if none is named.

    What else was said of that model goes to the `flags`, where they leave it open.

    Raises:
        UsageError: There is no such text of this kind, or something begins anew that is to be opened again.
        ModelError: None is named, and the one that wrote it is gone.
    """
    if not (last or uid):
        return "", model
    if last and uid:
        raise UsageError("--continue and --open are two ways to say which", "give one of them")
    if prompt:
        raise UsageError("--prompt begins something new", "leave it out, or --continue and --open")
    from llamatui.app.history.collection import Library

    library = Library()
    try:
        if last and (latest := library.latest(kind)) is None:
            raise UsageError(f"there is no {kind} in the history yet", f"llamatui {kind}")
        saved = library.load(latest.uid if last and latest else uid)
    finally:
        library.close()
    entry = saved.entry
    if entry.kind != kind:
        raise UsageError(
            f"{entry.uid[:8]} is a {entry.kind}", f"llamatui {entry.kind} --open {entry.uid[:8]}"
        )
    if model is None:
        model = str(writer(saved))
        if flags["tokenizer"] is None and store.is_file(Path(saved.tokenizer)):
            flags["tokenizer"] = saved.tokenizer
        if kind == "chat" and flags["chat_format"] is None:
            from llamatui.tokenizers.chat_formats import CHAT_FORMATS

            flags["chat_format"] = saved.chat_format if saved.chat_format in CHAT_FORMATS else None
    return entry.uid, model


def writer(saved: "Saved") -> Path:
    """The model that wrote it: by its path, else by its name, as folders move.

    Raises:
        ModelError: It is gone.
    """
    from llamatui.app.file_hash import known_sha256

    entry, path = saved.entry, Path(saved.model_path)
    if not store.is_file(path):
        here = [model.path for model in [*store.list_models(), store.BUNDLED] if model.name == entry.model]
        if not here:
            raise ModelError(
                f"the model that wrote it is gone: {printable(saved.model_path)}",
                f"name another: llamatui {entry.kind} MODEL --open {entry.uid[:8]}",
            )
        path = here[0]
    status = path.stat()
    known = known_sha256(path, (status.st_size, status.st_mtime_ns))
    if known and saved.model_sha256 and known != saved.model_sha256:
        print(f"note: {printable(str(path))} is not the model that wrote it", file=sys.stderr)
    return path


def open_room(
    room: "RoomName", settings: Settings, prompt: str, system: str | None, document: str = ""
) -> None:
    """`document`: uid of what is taken out of the history."""
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
        history=settings.history == "on",
        kv_cache_mb=settings.kv_cache_mb,
        document=document,
        keys=keys,
    )
    raise typer.Exit(run_app(room, launch))
