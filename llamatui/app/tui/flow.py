"""Text that grows: made safe for a terminal, and wrapped as it arrives."""

import re
from bisect import bisect_left

from rich.cells import cell_len, split_graphemes

MEASURE = 72  # columns of text, about what a line of a book holds

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CHUNK = re.compile(r"\n|[^\S\n]+|\S+")


def printable(text: str) -> str:
    """`text` without anything that a terminal would obey: a model can say whatever it likes.

    Control characters show as their pictures (␛), line separators become newlines, tabs spaces; carriage
    returns and marks that turn the writing direction vanish.
    """
    return _UNSAFE.sub(_picture, text).replace("\t", "    ")


def visible(line: str) -> str:
    """The same for a line that is edited: a character of the same width for each."""
    return _UNSAFE.sub(lambda match: _picture(match).strip("\n") or "\ufffd", line)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in (0x85, 0x2028, 0x2029):
        return "\n"
    if code == 0x0D or 0x202A <= code <= 0x2069:
        return ""
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else "\ufffd"


class Flow:
    """Wrapped lines of a growing text. Appending costs what was appended, however long the text is.

    Lines break at spaces, which hang over the edge, around wide characters, and inside words only where
    these are longer than a line.

    Attributes:
        text: All of it.
        starts: Where each line starts in `text`.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.text = ""
        self.starts = [0]

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, y: int) -> tuple[int, int]:
        """Start and end of line `y` in `text`, without its newline and hanging spaces."""
        start = self.starts[y]
        if y + 1 == len(self.starts):
            return start, len(self.text)  # its spaces are about to be followed by a word
        return start, start + len(self.text[start : self.starts[y + 1]].rstrip(" \n"))

    def append(self, text: str) -> int:
        """Adds `text`; returns the first line that may have changed."""
        changed = len(self.starts) - 1
        self.text += text
        # A greedy break depends on nothing before the start of its line.
        self._wrap(self.starts[-1])
        return changed

    def truncate(self, length: int) -> None:
        """Keeps the first `length` characters."""
        self.text = self.text[:length]
        # A word that is cut short may fit the line before: begins again after the last newline.
        start = self.text.rfind("\n") + 1
        del self.starts[bisect_left(self.starts, start) :]
        self.starts.append(start)
        self._wrap(start)

    def resize(self, width: int) -> None:
        self.width = width
        self.starts = [0]
        self._wrap(0)

    def _wrap(self, start: int) -> None:
        """Adds the lines that follow the one that starts at `start`."""
        column = 0
        for match in _CHUNK.finditer(self.text, start):
            chunk = match[0]
            if chunk == "\n":
                self.starts.append(match.end())
                column = 0
            elif chunk.isspace():
                column += cell_len(chunk)
            else:
                for begin, size in self._units(match.start(), chunk):
                    if column and column + size > self.width:
                        self.starts.append(begin)
                        column = 0
                    column += size

    def _units(self, start: int, word: str) -> list[tuple[int, int]]:
        """(where, cells) of the parts of `word` that a line break must not tear."""
        if word.isascii() and len(word) <= self.width:
            return [(start, len(word))]
        units: list[tuple[int, int]] = []
        joined = False  # whether the next narrow character belongs to the last unit
        for begin, _, size in split_graphemes(word)[0]:
            if joined and size < 2 and units[-1][1] + size <= self.width:
                units[-1] = (units[-1][0], units[-1][1] + size)
            else:
                units.append((start + begin, size))
            joined = size < 2
        return units


def character(text: str, column: int) -> int:
    """Index of the character of `text` that is shown in `column`; its length behind the end."""
    if text.isascii():
        return min(max(column, 0), len(text))
    at = 0
    for begin, _, size in split_graphemes(text)[0]:
        if at + size > column:
            return begin
        at += size
    return len(text)
