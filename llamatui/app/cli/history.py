"""`llamatui history`: what was written and said, without opening a model."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llamatui.app.cli.options import Json
from llamatui.app.cli.terminal import counted, dumps, printable
from llamatui.errors import HistoryError, UsageError

if TYPE_CHECKING:
    from llamatui.app.history.collection import Library
    from llamatui.app.history.saved import Entry

app = typer.Typer(no_args_is_help=True)

Number = Annotated[int, typer.Option("-n", "--limit", min=1, max=1 << 31, help="Most of them.")]
Kind = Annotated[str | None, typer.Option(help="Only these: story or chat.")]


def complete_uid(incomplete: str) -> "Sequence[tuple[str, str]]":
    from llamatui.app.history.collection import SHORT, Library

    try:
        entries = Library().list(limit=1000)
    except HistoryError:
        return []
    return [(e.uid[:SHORT], printable(e.title)) for e in entries if e.uid.startswith(incomplete)]


Uid = Annotated[
    str, typer.Argument(help="Its id in the list, or how it begins.", autocompletion=complete_uid)
]


@app.command("list")
def list_(kind: Kind = None, n: Number = 50, json: Json = False) -> None:
    """List what is in the history: pinned ones first, then what changed last."""
    library = open_library()
    wanted = checked(kind)
    entries = library.list(wanted, n)
    if json:
        print_json([as_dict(entry) for entry in entries])
        return
    show_table(entries)
    if not entries:
        print("nothing here yet: what you write in llamatui story and llamatui chat is kept", file=sys.stderr)
    elif (rest := library.count(wanted) - len(entries)) > 0:
        print(f"{rest:,} more: -n {len(entries) + rest}", file=sys.stderr)


@app.command()
def show(uid: Uid, json: Json = False) -> None:
    """Print a story, or what was said in a chat."""
    from llamatui.app.history.files import as_json, as_text

    saved = open_library().load(uid)
    if json:
        print_json(as_dict(saved.entry) | as_json(saved))
    else:
        text = as_text(saved)
        # Into a pipe or a file it goes as it is, as `export` would write it.
        print(printable(text) if sys.stdout.isatty() else text.encode("utf-8", "replace").decode(), end="")


@app.command()
def search(
    text: Annotated[list[str], typer.Argument(help="Words, or how they begin; all must be there.")],
    kind: Kind = None,
    n: Number = 20,
    json: Json = False,
) -> None:
    """Find words in what was written and said, on all branches, and in titles."""
    from llamatui.app.history.collection import ELSEWHERE

    wanted = checked(kind)
    hits = open_library().search(" ".join(text), wanted, n)
    if json:
        print_json(
            [
                as_dict(hit.entry)
                | {"snippet": "".join([part for part, _ in hit.snippet]), "shown": hit.shown}
                for hit in hits
            ]
        )
        return
    if not hits:
        print("nothing found", file=sys.stderr)
    bold, plain = ("\x1b[1m", "\x1b[0m") if _is_colourful() else ("", "")
    for hit in hits:
        print(
            printable(f"{short(hit.entry)}  {hit.entry.title}  ({hit.entry.kind}, {when(hit.entry.changed)})")
        )
        parts = [
            f"{bold}{printable(part)}{plain}" if found else printable(part) for part, found in hit.snippet
        ]
        print(f"          {'' if hit.shown else ELSEWHERE}{''.join(parts)}")


@app.command()
def export(
    uid: Uid,
    file: Annotated[
        str | None,
        typer.Argument(help="Ends in .txt, .md or .json, which has all branches; default: from the title."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    json: Json = False,
) -> None:
    """Write a story or a chat into a file."""
    from llamatui.app.history.files import export, suggested_name

    saved = open_library().load(uid)
    written = export(saved, file or suggested_name(saved), overwrite=force)
    if json:
        print_json(as_dict(saved.entry) | {"file": str(written)})
    else:
        print(printable(f"written to {written}"), file=sys.stderr)


@app.command()
def rm(
    uids: Annotated[
        list[str], typer.Argument(metavar="UID...", help="Ids in the list.", autocompletion=complete_uid)
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete stories and chats from the history, for good."""
    from llamatui.app.kv_store import KVStore

    library = open_library()
    # A wrong id is told before anything is gone.
    entries = list(dict.fromkeys(library.get(uid) for uid in uids))
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("nobody is there to be asked", f"llamatui history rm -y {' '.join(uids)}")
        for entry in entries:
            print(printable(f"{short(entry)}  {entry.title}"), file=sys.stderr)
        typer.confirm(f"Delete {'this' if len(entries) == 1 else 'these'} for good?", abort=True, err=True)
    for entry in entries:
        library.remove(entry.uid)
    KVStore().clear()  # what models have read of them
    if json:
        print_json([as_dict(entry) for entry in entries])
    else:
        print(f"deleted {counted(len(entries), 'document')}", file=sys.stderr)


def open_library() -> "Library":
    from llamatui.app.history.collection import Library

    return Library()


def checked(kind: str | None) -> Literal["story", "chat"] | None:
    match kind:
        case None | "story" | "chat":
            return kind
    raise UsageError(f"--kind is story or chat, found {kind!r}")


def as_dict(entry: "Entry") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(entry), "created": iso(entry.created), "changed": iso(entry.changed)}


def print_json(content: dict[str, Any] | list[dict[str, Any]]) -> None:
    typer.echo(dumps(content, 2 if sys.stdout.isatty() else None))


def show_table(entries: "Sequence[Entry]") -> None:
    from llamatui.app.cli.models import print_table

    rows = [
        (
            short(entry), printable(entry.kind), printable(f"{'* ' if entry.pinned else ''}{entry.title}"),
            f"{entry.words:,}", printable(entry.model), when(entry.changed),
        )
        for entry in entries
    ]  # fmt: skip
    if rows:
        print_table(("id", "kind", "title", ">words", "model", "when"), rows)


def short(entry: "Entry") -> str:
    from llamatui.app.history.collection import SHORT

    return printable(entry.uid[:SHORT])


def iso(moment: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def when(moment: float) -> str:
    """In the user's time."""
    from datetime import datetime

    return f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M}"


def _is_colourful() -> bool:
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
