"""Puts a story into a file: plain text, or Markdown that reads the same."""

import re
from pathlib import Path

from llamatui.app.text_file import name_from, named_path, write_text
from llamatui.errors import UsageError

SUFFIXES = (".txt", ".md")
# What Markdown would take for its own inside a line ...
_INLINE = re.compile(r"[\\`*_\[\]<>&~]")
# ... and at the beginning of one.
_BLOCK = re.compile(r"^( *)(#{1,6}(?= |$)|[-+=](?=[ \-=]|$)|\d+(?=[.)](?: |$)))", re.MULTILINE)


def suggested_name(text: str) -> str:
    """A file name from the first words."""
    return f"{name_from(text, 'story')}.txt"


def export_story(text: str, name: str, *, overwrite: bool = False) -> Path:
    """Writes `text` into the file; its suffix says how.

    Raises:
        UsageError: The name has no suffix that says how.
        FileExistsError: There is such a file, and it may not be overwritten.
        LlamatuiError: It cannot be written.
    """
    path = named_path(name)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path.name or name!r} is neither a .txt nor a .md file", "add .txt, .md or .replay"
        )
    shown = markdown(text) if path.suffix.lower() == ".md" else text
    return write_text(path, shown.rstrip("\n") + "\n", overwrite=overwrite)


def markdown(text: str) -> str:
    """Markdown that shows `text`, its lines where they are."""
    text = _INLINE.sub(r"\\\g<0>", text)
    text = _BLOCK.sub(_escaped_block, text)
    # A lone newline would be a space; an indented line, code.
    lines = [line.strip(" ") for line in text.split("\n")]
    shown = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        shown.append(f"{line}\\" if line and following else line)
    return "\n".join(shown)


def _escaped_block(match: re.Match[str]) -> str:
    indent, mark = match.groups()
    return f"{indent}{mark}\\" if mark[0].isdigit() else f"{indent}\\{mark}"
