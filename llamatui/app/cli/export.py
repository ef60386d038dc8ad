"""`llamatui export`: any Llama model to a `.bin`, or to a Hugging Face folder."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.backends.checkpoint_writer import WriteReport
    from llamatui.export.source import Source


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
    gguf: Annotated[Path | None, typer.Option(help="GGUF file, of the llama architecture.")] = None,
    bin_file: Annotated[
        Path | None, typer.Option("--bin", help="Another .bin, to change its version.", metavar="FILE")
    ] = None,
    to_hf: Annotated[
        Path | None,
        typer.Option(help="Write a Hugging Face folder instead of OUT.bin: a new folder.", metavar="DIR"),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2,
            help="0 and 1 are fp32, 2 is Q8_0; default: 1, but 2 above 1 GiB or for Q8_0 sources.",
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(min=1, help="Weights per scale in version 2; default: the source's, or 64."),
    ] = None,
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
    source = open_source(*given[0])
    if tokenizer is not None:
        from dataclasses import replace

        from llamatui.export.tokenizer_files import from_file

        source = replace(source, tokenizer=from_file(tokenizer, source.config.vocab_size))
    for note in source.notes:
        print(f"note: {note}", file=sys.stderr)
    from llamatui.app.cli.progress import progress_bar

    if to_hf is not None:
        from llamatui.export.to_hf import export_hf

        with progress_bar(to_hf.name) as progress:
            export_hf(source, to_hf, progress=progress)
        forget_download(source)
        print(f"{to_hf}: written in {time.perf_counter() - began:.1f} s", file=sys.stderr)
        return
    assert out is not None
    from llamatui.export.to_bin import export_bin

    with progress_bar(out.name) as progress:
        report = export_bin(source, out, version=version, group_size=group_size, progress=progress)
    forget_download(source)
    for line in summary(source, out, report, group_size, time.perf_counter() - began):
        print(line, file=sys.stderr)


def open_source(flag: str, value: str) -> "Source":
    path = Path(value)
    if flag == "--hf":
        from llamatui.export.hf import open_hf

        if not path.exists() and is_repository(value):
            from llamatui.app.cli.progress import progress_bar
            from llamatui.app.pull import fetch_repository

            with progress_bar(value) as progress:
                path = fetch_repository(value, progress=progress)
        return open_hf(path)
    if flag == "--meta-llama":
        from llamatui.export.meta import open_meta

        return open_meta(path)
    if flag == "--checkpoint":
        from llamatui.export.llama2c_checkpoint import open_llama2c

        return open_llama2c(path)
    if flag == "--gguf":
        from llamatui.export.gguf_file import open_gguf

        return open_gguf(path)
    from llamatui.export.bin_file import open_bin

    return open_bin(path)


def forget_download(source: "Source") -> None:
    """Deletes what `--hf REPO` fetched; a folder of the user's own stays, of course."""
    import shutil

    from llamatui.app.library import downloads_folder

    if source.path.is_relative_to(downloads_folder()):
        shutil.rmtree(source.path, ignore_errors=True)


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/name."""
    import re

    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def summary(
    source: "Source", out: Path, report: "WriteReport", wanted: int | None, seconds: float
) -> list[str]:
    from rich.filesize import decimal as size

    c = report.config
    kind = f"Q8_0 in groups of {c.group_size}" if c.group_size else "fp32"
    lines = [f"{out}: {kind}, {c.n_params / 1e6:.1f} M parameters, {size(report.file_size)}, {seconds:.1f} s"]
    if wanted and c.group_size and c.group_size != wanted:
        lines.append(f"groups of {wanted} do not divide dim {c.dim} and hidden_dim {c.hidden_dim}")
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
    return lines
