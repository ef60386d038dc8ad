"""`llamatui train download`, `vocab` and `pretokenize`: text, a vocabulary for it, and its token ids."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llamatui.app.cli.terminal import Interrupted, counted
from llamatui.app.text_file import write_whole
from llamatui.errors import LlamatuiError, UsageError

Text = Annotated[
    list[Path],
    typer.Argument(
        help="Files, or folders of them: .txt with <|endoftext|> between documents, .jsonl, .json.",
        metavar="TEXT",
    ),
]


def download(
    folder: Annotated[Path, typer.Argument(help="Where to.", metavar="[DIR]")] = Path("data"),
    valid_only: Annotated[
        bool, typer.Option("--valid-only", help="The 22 MB of validation text: enough to try everything.")
    ] = False,
) -> None:
    """Get TinyStories, 2.2 GB of short stories, from the Hugging Face hub.

    Example: llamatui train download data
    """
    from llamatui.app.cli.progress import progress_bar
    from llamatui.train.download import TRAIN, VALID
    from llamatui.train.download import download as fetch

    try:
        with progress_bar("TinyStories") as progress:
            paths = fetch(folder, valid_only=valid_only, progress=progress)
    except Interrupted:
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    for path in paths:
        print(f"{path}: {_size([path])}", file=sys.stderr)
    model = folder / "tokenizer.model"
    text = [folder / VALID] if valid_only else [folder / TRAIN, "--valid", folder / VALID]
    _suggest("vocab", text[0], "-o", model)
    _suggest("pretokenize", *text, "-z", model, "-o", folder / "tokens", before="then")


def vocab(
    text: Text,
    out: Annotated[Path, typer.Option("-o", "--out", help="The tokenizer.model to write.", metavar="FILE")],
    size: Annotated[
        int, typer.Option(help="Pieces: 512 to 4096 for small models of stories; Llama 2 has 32000.")
    ] = 4096,
) -> None:
    """Make a vocabulary of your own: SentencePiece BPE with Llama 2's settings.

    Example: llamatui train vocab stories.txt -o data/tokenizer.model --size 2048
    """
    from llamatui.train.documents import read_documents
    from llamatui.train.vocab import check_size, train_vocab

    check_size(size)
    files = _files(text)
    if out.is_dir():
        raise UsageError(f"{out}: expected a file to write, found a folder", f"-o {out / 'tokenizer.model'}")
    if out.suffix != ".model":
        raise UsageError(f"{out}: expected a name that ends in .model", f"-o {out.with_suffix('.model')}")
    if out.resolve() in [path.resolve() for path in files]:
        raise UsageError(f"{out}: expected a file to write, found one of the texts", "choose another name")
    print(f"finding the {size:,} best pieces for {_size(files)} of text ...", file=sys.stderr, flush=True)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # the library lets no handler of ours run, and nothing is written yet
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    model = train_vocab(read_documents(files), size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, model, overwrite=True)
    except OSError as error:
        raise LlamatuiError(f"{out}: cannot be written: {error.strerror}", "choose another place") from error
    print(f"{out}: {size:,} pieces", file=sys.stderr)
    _suggest("pretokenize", *text, "-z", out, "-o", out.parent / "tokens")


def pretokenize(
    text: Text,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder to write; a dataset in it is replaced.", metavar="DIR")
    ],
    tokenizer: Annotated[
        Path, typer.Option("-z", "--tokenizer", help="Tokenizer: .model, .json or .bin.", metavar="FILE")
    ],
    valid: Annotated[
        list[Path] | None,
        typer.Option(help="Text to validate on; default: one document in 20 of TEXT.", metavar="TEXT"),
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
) -> None:
    """Turn text into token ids to train on.

    Example: llamatui train pretokenize stories.txt -z data/tokenizer.model -o data/tokens
    """
    from llamatui.app.cli.progress import progress_bar
    from llamatui.backends.threads import default_threads
    from llamatui.train.dataset import SPLITS
    from llamatui.train.pretokenize import HELD_OUT
    from llamatui.train.pretokenize import pretokenize as write

    valid_files = _files(valid) if valid else []
    files = _files(text, valid_files)
    with progress_bar("tokenizing") as progress:
        dataset = write(
            files, out, tokenizer,
            valid=valid_files, processes=processes or default_threads(), progress=progress,
        )  # fmt: skip
    n_train, n_valid = (dataset.splits[name].n_documents for name in SPLITS)
    if not valid_files and n_train < (HELD_OUT - 1) * n_valid:
        print(f"fewer than {HELD_OUT} documents: to validate on, the end of each", file=sys.stderr)
    for name in SPLITS:
        split = dataset.splits[name]
        print(
            f"{name}: {counted(split.n_documents, 'document')}, {counted(split.n_tokens, 'token')}, "
            f"{split.n_bytes / split.n_tokens:.2f} bytes each",
            file=sys.stderr,
        )
    _suggest("run", out, "runs/first")


def _files(text: list[Path], used: Sequence[Path] = ()) -> list[Path]:
    """The files of `text`, each once, and none that is used for something else; tells what is left out."""
    from llamatui.train.documents import text_files

    found = text_files(text)
    files = {path.resolve(): path for path in found}
    for path in used:
        files.pop(path.resolve(), None)
    if left_out := len(found) - len(files):
        why = "named twice, or to validate on" if used else "named twice"
        print(f"{left_out} of {len(found)} files left out: {why}", file=sys.stderr)
    return list(files.values())


def _size(files: list[Path]) -> str:
    from rich.filesize import decimal

    return decimal(sum(path.stat().st_size for path in files))


def _suggest(command: str, *args: object, before: str = "try") -> None:
    print(f"  {before}: llamatui train {command} {shlex.join(map(str, args))}", file=sys.stderr)
