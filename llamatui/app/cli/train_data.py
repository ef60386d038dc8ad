"""`llamatui train download`, `vocab` and `pretokenize`: text, a vocabulary for it, and its token ids."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llamatui.errors import LlamatuiError

Text = Annotated[
    list[Path],
    typer.Argument(help="Text: .txt (<|endoftext|> between documents), .jsonl, .json, or folders of them."),
]


def download() -> None: ...


def vocab(
    text: Text,
    out: Annotated[Path, typer.Option("-o", "--out", help="The tokenizer.model to write.")],
    size: Annotated[int, typer.Option(help="Pieces: 512 to 4096 for stories, 32000 as Llama 2.")] = 4096,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
) -> None:
    """Make a vocabulary of your own: SentencePiece BPE with Llama 2's settings.

    Example: llamatui train vocab stories.txt -o data/tokenizer.model --size 2048
    """
    from llamatui.backends.threads import physical_cores
    from llamatui.train.documents import read_documents, text_files
    from llamatui.train.vocab import train_vocab

    files = text_files(text)
    model = train_vocab(read_documents(files), size, threads=threads or physical_cores())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(model)
    except OSError as error:
        raise LlamatuiError(f"{out}: cannot be written: {error.strerror}", "choose another place") from error
    print(f"{out}: {size} pieces", file=sys.stderr)


def pretokenize(
    text: Text,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    tokenizer: Annotated[Path, typer.Option("-z", "--tokenizer", help="Tokenizer file of any kind.")],
    valid: Annotated[
        list[Path] | None,
        typer.Option(help="Text to validate on; default: one document in 20 of TEXT.", metavar="TEXT"),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
) -> None:
    """Turn text into token ids to train on.

    Example: llamatui train pretokenize stories.txt -z data/tokenizer.model -o data
    """
    from llamatui.app.cli.progress import progress_bar
    from llamatui.backends.threads import physical_cores
    from llamatui.train.dataset import SPLITS
    from llamatui.train.documents import text_files
    from llamatui.train.pretokenize import pretokenize

    with progress_bar(out.name) as progress:
        dataset = pretokenize(
            text_files(text), out, tokenizer,
            valid=text_files(valid or []) if valid else [],
            processes=processes or physical_cores(),
            progress=progress,
        )  # fmt: skip
    for name in SPLITS:
        split = dataset.splits[name]
        print(
            f"{name}: {split.n_documents:,} documents, {split.n_tokens:,} tokens of {dataset.dtype}, "
            f"{split.n_bytes / max(split.n_tokens, 1):.2f} bytes each",
            file=sys.stderr,
        )
