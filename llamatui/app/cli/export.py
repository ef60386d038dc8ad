"""`llamatui export`: any Llama model to a `.bin`, or to a Hugging Face folder."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamatui.app.cli import options
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.backends.checkpoint_writer import WriteReport
    from llamatui.export.source import Source

LARGE = 100_000_000
"""Bytes of a file whose progress is worth lines in a log: others are written in a second."""


def export(
    out: Annotated[Path | None, typer.Argument(help="The .bin file to write.", metavar="OUT.bin")] = None,
    hf: Annotated[
        str | None,
        typer.Option(help="Hugging Face folder, or a repository to fetch: owner/name.", metavar="DIR|REPO"),
    ] = None,
    meta_llama: Annotated[
        Path | None, typer.Option(help="Meta's folder: params.json and consolidated.*.pth.", metavar="DIR")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Training checkpoint of llama2.c (ckpt.pt).", metavar="FILE")
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(help="GGUF file, of the llama architecture.", metavar="FILE")
    ] = None,
    bin_file: Annotated[
        Path | None, typer.Option("--bin", help="Another .bin, to change its version.", metavar="FILE")
    ] = None,
    to_hf: Annotated[
        Path | None,
        typer.Option(help="Write a Hugging Face folder instead of OUT.bin: a new folder.", metavar="DIR"),
    ] = None,
    version: options.Version = None,
    group_size: options.GroupSize = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("-z", "--tokenizer", help="Tokenizer file; default: the one that the source has."),
    ] = None,
) -> None:
    """Turn a model of any kind into a .bin, with its tokenizer beside it.

    Example: llamatui export smollm2.bin --gguf SmolLM2-135M-Instruct.Q4_1.gguf
    """
    sources = {
        "--hf": hf, "--meta-llama": meta_llama, "--checkpoint": checkpoint, "--gguf": gguf, "--bin": bin_file,
    }  # fmt: skip
    given = [(flag, str(value)) for flag, value in sources.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(flag for flag, _ in given) or "none"
        raise UsageError(f"expected exactly one source, found {found}", f"give one of {', '.join(sources)}")
    if (out is None) == (to_hf is None):
        raise UsageError(
            "expected one place to write to, found " + ("none" if out is None else "OUT.bin and --to-hf"),
            "llamatui export OUT.bin, or llamatui export --to-hf DIR",
        )
    if to_hf is not None and (version is not None or group_size is not None):
        raise UsageError("--version and --group-size are of .bin files", "leave them out with --to-hf")
    began = time.perf_counter()
    with open_source(*given[0]) as source:
        if tokenizer is not None:
            from dataclasses import replace

            from llamatui.export.tokenizer_files import from_file

            source = replace(source, tokenizer=from_file(tokenizer, source.config.vocab_size))
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
        if to_hf is not None:
            write_hf(source, to_hf)
            lines = [f"{to_hf}: written in {time.perf_counter() - began:.1f} s"]
            lines += [] if source.tokenizer else ["tokenizer: the source has none that fits"]
        else:
            assert out is not None
            report = write_bin(source, out, version, group_size)
            lines = summary(source, out, report, time.perf_counter() - began)
    for line in lines:
        print(line, file=sys.stderr)


def write_hf(source: "Source", folder: Path) -> None:
    from llamatui.app.cli.progress import progress_bar
    from llamatui.export.to_hf import export_hf

    with progress_bar(folder.name, least=LARGE) as progress:
        export_hf(source, folder, progress=progress)


def write_bin(source: "Source", out: Path, version: int | None, group_size: int | None) -> "WriteReport":
    from llamatui.app.cli.progress import progress_bar
    from llamatui.export.to_bin import export_bin

    with progress_bar(out.name, least=LARGE) as progress:
        return export_bin(source, out, version=version, group_size=group_size, progress=progress)


@contextmanager
def open_source(flag: str, value: str) -> Iterator["Source"]:
    """The source that a flag names. What `--hf OWNER/NAME` fetched is deleted when the block ended well."""
    path = Path(value)
    if flag == "--hf":
        from llamatui.app.pull import REPO, fetched_repository
        from llamatui.export.hf import open_hf

        if path.exists() or not REPO.fullmatch(value):
            yield open_hf(path)
            return
        from llamatui.app.cli.progress import progress_bar

        print(f"{value}: no such folder here, so from the hub", file=sys.stderr)
        with ExitStack() as stack:
            with progress_bar(value) as progress:
                folder = stack.enter_context(fetched_repository(value, progress=progress))
            yield open_hf(folder)
    elif flag == "--meta-llama":
        from llamatui.export.meta import open_meta

        yield open_meta(path)
    elif flag == "--checkpoint":
        from llamatui.export.llama2c_checkpoint import open_llama2c

        yield open_llama2c(path)
    elif flag == "--gguf":
        from llamatui.export.gguf_file import open_gguf

        yield open_gguf(path)
    else:
        from llamatui.app.store import resolve
        from llamatui.export.bin_file import open_bin

        yield open_bin(resolve(value))


def summary(source: "Source", out: Path, report: "WriteReport", seconds: float) -> list[str]:
    from rich.filesize import decimal as size

    from llamatui.app.cli.terminal import short_count
    from llamatui.tokenizers.file_names import TOKENIZER_ENDS

    c = report.config
    kind = f"Q8_0 in groups of {c.group_size}" if c.group_size else "fp32"
    params, file_size = short_count(c.n_params), size(report.file_size)
    lines = [f"{out}: {kind}, {params} parameters, {file_size}, {seconds:.1f} s"]
    if report.max_error:
        lines.append(
            f"error of a group: at most {report.max_error:.6f} (in {report.worst_tensor}), "
            f"{report.mean_error:.6f} on average"
        )
    elif report.errors:
        lines.append("the Q8_0 weights are those of the source, bit for bit")
    if source.tokenizer:
        names = ", ".join(out.stem + end for end in source.tokenizer)
        lines.append(f"tokenizer: {names}" + (f"; chat format: {c.chat_format}" if c.chat_format else ""))
    else:
        lines.append("tokenizer: the source has none that fits; name one with -z")
        there = [name for end in TOKENIZER_ENDS if (name := out.with_name(out.stem + end)).exists()]
        lines += [f"  {path} was there before, and stays: is it this model's?" for path in there]
    return lines
