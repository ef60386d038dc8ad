"""The `llamatui` command. Commands import what they need when they run, so that `--help` is instant."""

import os
import signal
import sys
from collections.abc import Iterable
from importlib import import_module
from types import FrameType
from typing import Annotated, NoReturn

import typer

from llamatui.app.cli.completion import COMPLETE_VARIABLE
from llamatui.app.cli.terminal import INTERRUPTED, Interrupted, prepare_streams, printable
from llamatui.errors import LlamatuiError

MODULES = {
    "story": "rooms",
    "chat": "rooms",
    "generate": "generate",
    "replay": "replay",
    "web": "web",
    "tokenize": "tokenize",
    "inspect": "inspect",
    "export": "export",
    "bench": "bench",
    "pull": "pull",
    "models": "models",
    "history": "history",
    "train": "train",
    "config": "config",
    "completion": "completion",
}
"""Where each command is, in the order of --help."""
GROUPS = {
    "models": "List the models that have been pulled; delete some.",
    "history": "What you wrote and said: list, search, show, export.",
    "train": "Train a model of your own: from text to a .bin.",
    "config": "Show the settings and where they come from.",
}


def _version(show: bool) -> None:
    if show:
        from llamatui import __version__

        typer.echo(f"llamatui {__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Stories and chats with Llama-family models on your own CPU."""


def app(names: Iterable[str]) -> typer.Typer:
    """The command line with these commands: who asks for one need not wait until all are imported."""
    built = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing Rich would double the time of --help
    )
    built.callback()(root)
    for name in names:
        module = import_module(f"llamatui.app.cli.{MODULES[name]}")
        if name in GROUPS:
            built.add_typer(module.app, name=name, help=GROUPS[name])
        elif name == "web":
            built.command(context_settings=module.CONTEXT, options_metavar=module.USAGE)(module.web)
        else:
            built.command()(getattr(module, name))
    return built


def main() -> NoReturn:
    """Entry point of the console script."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted

    def terminate(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)  # what is half written is removed, and the terminal restored, on the way out

    signal.signal(signal.SIGINT, interrupt)
    for name in ("SIGTERM", "SIGHUP"):  # also a terminal window that is closed
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, terminate)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `llamatui generate | head` ends like any Unix filter
    prepare_streams()
    try:
        code = run()
        sys.stdout.flush()
    except OSError as error:  # a full disk behind `>`, or a closed pipe where there is no SIGPIPE
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        code = 1
    sys.exit(code)


def run() -> int:
    """Runs the command; returns its exit code. Errors made on purpose are told in a line or two."""
    if COMPLETE_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        first = sys.argv[1] if len(sys.argv) > 1 else ""
        app([first] if first in MODULES else MODULES)(prog_name="llamatui")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except LlamatuiError as error:
        report(error)
        return error.exit_code
    except Interrupted:
        return INTERRUPTED
    except MemoryError:
        print("error: not enough memory for this model", file=sys.stderr)
        return 1
    return 0


def report(error: LlamatuiError) -> None:
    """One or two lines on stderr: what is wrong, and what to do."""
    # Names of files are part of messages, and may hold what drives a terminal.
    print(printable(f"error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(printable(f"  try: {error.hint}"), file=sys.stderr)
