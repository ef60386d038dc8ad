"""`llamatui tokenize`: what a text is to a model."""

import json as json_library
from pathlib import Path
from typing import Annotated

import typer

from llamatui.app.cli import loading
from llamatui.app.cli.options import Json
from llamatui.app.cli.terminal import decode, printable, read_bytes
from llamatui.app.config import resolve


def tokenize(
    text: Annotated[str | None, typer.Argument(help="Text; default: stdin, byte for byte.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "-z", "--tokenizer", help="Tokenizer file; default: the setting `tokenizer`, else the model's."
        ),
    ] = None,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Do not begin with BOS.")] = False,
    special: Annotated[bool, typer.Option("--special", help="Parse special tokens in the text.")] = False,
    json: Json = False,
) -> None:
    """Print the token ids of a text, one per line with what it stands for."""
    from llamatui.tokenizers.loading import load_tokenizer

    named = tokenizer or resolve()[0].tokenizer
    path = Path(named) if named else tokenizer_of_the_model()
    loaded = load_tokenizer(path)
    content = decode(read_bytes(None)) if text is None else text
    ids = loaded.encode(content, bos=loaded.adds_bos and not no_bos, special=special)
    if json:
        pieces = [loaded.decode_bytes(token) for token in ids]
        result = {
            "ids": ids,
            "pieces": [{"text": piece.decode("utf-8", "replace"), "bytes": list(piece)} for piece in pieces],
            "count": len(ids),
            "tokenizer": {"path": str(path), "format": loaded.format, "vocab_size": loaded.vocab_size},
        }
        typer.echo(json_library.dumps(result, ensure_ascii=False))
        return
    names = {token: name for name, token in loaded.special_tokens.items()}
    for token in ids:
        piece = loaded.decode_bytes(token).decode("utf-8", "backslashreplace")
        typer.echo(f"{token}\t{names.get(token) or printable(repr(piece))}")


def tokenizer_of_the_model() -> Path:
    """Of the model that runs where none is named."""
    from llamatui.app.model import needed_tokenizer

    return needed_tokenizer(loading.checkpoint(loading.settings_from(None)))
