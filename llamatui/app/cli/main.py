"""The `llamatui` command. Commands import what they need when they run, so that `--help` is instant."""

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from llamatui.app.cli import config, generate, inspect, rooms, tokenize
from llamatui.app.cli.completion import completion
from llamatui.errors import LlamatuiError

INTERRUPTED = 130

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
app.command()(tokenize.tokenize)
app.command()(inspect.inspect)
app.add_typer(config.app, name="config", help="Show the settings and where they come from.")
app.command()(completion)


class Interrupted(BaseException):
    """Ctrl+C where nothing catches it. Not KeyboardInterrupt, which Typer turns into exit code 1."""


def main() -> NoReturn:
    """Entry point of the console script."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGINT, interrupt)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `llamatui generate | head` ends like any Unix filter
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        app(prog_name="llamatui")
    except LlamatuiError as error:
        report(error)
        sys.exit(error.exit_code)
    except Interrupted:
        sys.exit(INTERRUPTED)
    except MemoryError:
        print("error: not enough memory for this model", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def report(error: LlamatuiError) -> None:
    """One or two lines on stderr: what is wrong, and what to do."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  try: {error.hint}", file=sys.stderr)
