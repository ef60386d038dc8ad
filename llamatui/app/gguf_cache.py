"""GGUF files run without a command of their own: converted once, kept in the cache by content."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from llamatui.app.file_hash import file_sha256
from llamatui.errors import CheckpointError, LlamatuiError

CONVERTING = "converting the GGUF file, which happens once"

NOTE = "note: "
"""How progress begins that a person should read."""

STALE = 3600  # seconds after which nobody is writing a file any more

LAYOUT = 1
"""Goes up when a conversion of the same file comes out differently."""


def is_gguf(path: Path) -> bool:
    """Whether a file begins like GGUF, whatever it is called. What cannot be read is none."""
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def converted(path: Path, progress: Callable[[str], None]) -> Path:
    """The `.bin` that a GGUF file becomes, with its tokenizer beside it.

    Raises:
        ModelError: The file is damaged, or of an architecture that is not Llama's.
        LlamatuiError: The cache folder has no room.
        MissingExtraError: The package that reads GGUF is not installed.
    """
    progress("reading the GGUF file")
    folder = cache_folder() / f"{file_sha256(path)[:32]}-{LAYOUT}"
    target = folder / f"{path.stem}.bin"
    if _is_whole(target):
        return target
    from llamatui.export.gguf_file import open_gguf
    from llamatui.export.to_bin import export_bin

    source = open_gguf(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".*.part"):  # of a process that was killed
            with suppress(FileNotFoundError):  # or of one that has just finished
                if time.time() - part.stat().st_mtime > STALE:
                    part.unlink()
    except OSError as error:
        raise LlamatuiError(f"{folder}: cannot be written: {error.strerror}") from error

    for note in source.notes:
        progress(f"{NOTE}{note}")
    progress(CONVERTING)

    def step(done: int, total: int) -> None:
        progress(f"{CONVERTING}: {done * 100 // total} %")

    export_bin(source, target, progress=step)
    return target


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint is there, of the size that its header says."""
    from llamatui.backends.checkpoint import Checkpoint

    try:
        Checkpoint(path)
    except CheckpointError:
        return False
    return True


def cache_folder() -> Path:
    return user_cache_path("llamatui", appauthor=False) / "gguf"
