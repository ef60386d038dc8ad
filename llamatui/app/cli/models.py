"""`llamatui models`: what is here by name, and how to be rid of it."""

import json as json_library
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llamatui.app import store
from llamatui.app.cli.options import Json
from llamatui.app.cli.terminal import short_count
from llamatui.errors import CheckpointError, TokenizerError, UsageError

app = typer.Typer()


@app.callback(invoke_without_command=True)
def models(context: typer.Context, json: Json = False) -> None:
    """List the models that are here: their names work wherever a path does.

    Those that were pulled, and the one that comes with llamatui and runs where none is named. Also what GGUF
    files became when they were run, which `rm` deletes too.
    """
    if context.invoked_subcommand is not None:
        return
    shelf = Shelf.look()
    if json:
        indent = 2 if sys.stdout.isatty() else None
        typer.echo(json_library.dumps(shelf.as_json(), ensure_ascii=False, indent=indent))
    else:
        shelf.show()


def complete_stored(incomplete: str) -> list[str]:
    models = (*store.list_models(), *store.list_converted())
    return sorted({model.name for model in models if model.name.startswith(incomplete)})


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(help="Names in the list.", autocompletion=complete_stored)],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete models, with their tokenizers."""
    # A wrong name is told before anything is gone.
    found = list(dict.fromkeys(model for name in names for model in store.stored(name)))
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError("nobody is there to be asked", f"llamatui models rm -y {' '.join(names)}")
        for path in [path for model in found for path in model.files]:
            print(path, file=sys.stderr)
        typer.confirm("Delete these files?", abort=True, err=True)
    for model in found:
        store.remove(model)
        print(f"deleted {model.name}", file=sys.stderr)


@dataclass
class Shelf:
    """All that is kept on the disk."""

    bundled: dict[str, Any] | None
    """Comes with llamatui; None where it was left out."""
    models: list[dict[str, Any]]
    converted: list[dict[str, Any]]
    """From GGUF files."""
    tokenizers: list[dict[str, Any]]
    unfinished: int
    """Bytes in the downloads folder."""

    @classmethod
    def look(cls) -> "Shelf":
        tokenizers = [path for path in sorted(store.tokenizers_folder().glob("*")) if path.is_file()]
        unfinished = [path for path in store.downloads_folder().rglob("*") if path.is_file()]
        return cls(
            describe(store.BUNDLED) if store.BUNDLED.path.exists() else None,
            [describe(model) for model in store.list_models()],
            [describe_converted(model) for model in store.list_converted()],
            [describe_tokenizer(path) for path in tokenizers],
            sum(path.stat().st_size for path in unfinished),
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(store.models_folder()),
            "models": self.models,
            "bundled": self.bundled,
            "converted": self.converted,
            "tokenizers": self.tokenizers,
            "downloads": {"folder": str(store.downloads_folder()), "bytes": self.unfinished},
        }

    def show(self) -> None:
        from rich.filesize import decimal as size

        rows = []
        for model in [*self.models, *filter(None, [self.bundled])]:
            pulled_from = ":".join(filter(None, (model["repo"], model["file"])))
            origin = "comes with llamatui" if model is self.bundled else pulled_from
            if model["problem"]:
                rows.append((model["name"], "", "damaged", "", origin))
            else:
                kind = f"{model['format']} {model['precision']}"
                params, file_size = short_count(model["params"]), size(model["file_size"])
                rows.append((model["name"], params, kind, file_size, origin))
        rows += [(m["name"], "", "converted GGUF", size(m["file_size"]), "") for m in self.converted]
        for tokenizer in self.tokenizers:
            kind = f"{tokenizer['vocab_size']} tokens" if tokenizer["vocab_size"] else "damaged"
            rows.append((tokenizer["name"], "", kind, size(tokenizer["file_size"]), ""))
        if rows:
            print_table(("name", ">params", "format", ">size", "from"), rows)
        if self.models:
            print(f"\npulled models are in {store.models_folder()}", file=sys.stderr)
        else:
            print("nothing has been pulled yet: llamatui pull shows what there is", file=sys.stderr)
        if self.unfinished:
            where = store.downloads_folder()
            print(f"downloads that are kept: {size(self.unfinished)} in {where}", file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """On stdout. Where that is no terminal, no line is cut. `>name`: that column is of numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def describe(model: store.StoredModel) -> dict[str, Any]:
    from llamatui.backends.checkpoint import Checkpoint

    origin = model.origin()
    content: dict[str, Any] = {
        "name": model.name,
        "path": str(model.path),
        **dict.fromkeys(("format", "precision", "params", "file_size", "chat_format", "problem")),
        **{key: origin.get(key) for key in ("repo", "file", "revision", "pulled_at", "sources")},
    }
    try:
        checkpoint = Checkpoint(model.path)
    except CheckpointError as error:
        return {**content, "problem": error.message}
    return {
        **content,
        "format": f"v{checkpoint.version}",
        "precision": "q8_0" if checkpoint.version == 2 else "fp32",
        "params": checkpoint.config.n_params,
        "file_size": checkpoint.file_size,
        "chat_format": checkpoint.config.chat_format,
    }


def describe_converted(model: store.StoredModel) -> dict[str, Any]:
    return {"name": model.name, "path": str(model.path), "file_size": model.path.stat().st_size}


def describe_tokenizer(path: Path) -> dict[str, Any]:
    from llamatui.tokenizers.loading import vocabulary_size

    content: dict[str, Any] = {
        "name": path.stem,
        "path": str(path),
        "file_size": path.stat().st_size,
        "vocab_size": None,
        "problem": None,
    }
    try:
        return {**content, "vocab_size": vocabulary_size(path)}
    except TokenizerError as error:
        return {**content, "problem": error.message}
