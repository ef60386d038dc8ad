"""The `llamatui` command. Commands import what they need when they run, so that `--help` is instant."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from llamatui.app.cli import (
    bench,
    config,
    export,
    generate,
    history,
    inspect,
    models,
    pull,
    replay,
    rooms,
    tokenize,
    train,
    web,
)
from llamatui.app.cli.completion import COMPLETE_VARIABLE, completion
from llamatui.app.cli.terminal import INTERRUPTED, Interrupted, prepare_streams, printable
from llamatui.errors import LlamatuiError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing Rich would double the time of --help
)


def _version(show: bool) -> None:
    if show:
        from llamatui import __version__

        typer.echo(f"llamatui {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Stories and chats with Llama-family models on your own CPU."""


app.command()(rooms.story)
app.command()(rooms.chat)
app.command()(generate.generate)
app.command()(replay.replay)
app.command(context_settings=web.CONTEXT, options_metavar=web.USAGE)(web.web)
app.command()(tokenize.tokenize)
app.command()(inspect.inspect)
app.command()(export.export)
app.command()(bench.bench)
app.command()(pull.pull)
app.add_typer(models.app, name="models", help="List the models that have been pulled; delete some.")
app.add_typer(history.app, name="history", help="What you wrote and said: list, search, show, export.")
app.add_typer(train.app, name="train", help="Train a model of your own: from text to a .bin.")
app.add_typer(config.app, name="config", help="Show the settings and where they come from.")
app.command()(completion)


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
        app(prog_name="llamatui")
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
