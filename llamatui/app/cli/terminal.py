"""Reading and writing text without surprises."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from llamatui.errors import UsageError

INTERRUPTED = 130


class Interrupted(BaseException):
    """Ctrl+C where nothing catches it. Not KeyboardInterrupt, which Typer turns into exit code 1."""


def prepare_streams() -> None:
    """UTF-8 whatever the locale says; a stream that the caller closed swallows what is written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    # A prompt with bytes that are not UTF-8 is echoed as it came.
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)


def counted(n: int, what: str) -> str:
    """`1 round`, `2,000 rounds`"""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def short_count(number: int) -> str:
    """12345 -> `12.3 K`, 1235814400 -> `1.24 B`"""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * size:  # what is rounded to it
            return f"{number / size:.3g} {unit}"
    return str(number)


# C0 but tab and newline, DEL, and C1: what a model says must not drive the terminal.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))


def printable(text: str) -> str:
    """`text` without characters that a terminal would act on."""
    return text.translate(_CONTROL)


def read_bytes(path: Path | None) -> bytes:
    """A file's contents, or stdin's for None.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if path is None else path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path or 'stdin'}: cannot be read: {error.strerror}") from error


def decode(data: bytes) -> str:
    """Text of any bytes: those that are not UTF-8 travel as surrogate escapes."""
    return data.decode("utf-8", "surrogateescape")


def read_text(path: Path | None) -> str:
    """Text of a file or stdin, without one newline at its end, which editors and `echo` put there."""
    return decode(read_bytes(path)).removesuffix("\n")


def dumps(content: dict[str, Any] | list[dict[str, Any]], indent: int | None = None) -> str:
    """JSON that is valid Unicode: bytes of a prompt or path that are not UTF-8 become U+FFFD."""
    line = json.dumps(content, ensure_ascii=False, indent=indent)
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
