"""What is pasted is text, whatever stands in it.

Textual 8.2 takes an ESC inside a bracketed paste for the beginning of a key, and what follows it for keys
that were pressed: a log with colours would be sent in pieces, and a "/quit" in it would quit. Most terminals
keep ESC out of pastes; tmux does not.
"""

import sys
from collections.abc import Iterable
from typing import Any

from textual._xterm_parser import XTermParser
from textual.driver import Driver
from textual.message import Message

ESC = "\x1b"
BEGIN, END = f"{ESC}[200~", f"{ESC}[201~"
SHOWN = "␛"


class PasteParser(XTermParser):
    """Textual's, which gets no ESC out of a paste."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._inside = False
        self._held = ""  # may be the beginning of END
        self._before = ""  # the last that came, as far as it may be the beginning of BEGIN
        super().__init__(*arguments, **options)

    def feed(self, data: str) -> Iterable[Message]:
        safe = self._shielded(data)
        return super().feed(safe) if safe or not data else ()  # nothing at all would be the end

    def _shielded(self, data: str) -> str:
        safe = ""
        data, self._held = self._held + data, ""
        while data:
            if self._inside:
                text, end, data = data.partition(END)
                if not end:
                    held = _begun(text, END)
                    text, self._held = text[: len(text) - held], text[len(text) - held :]
                safe += text.replace(ESC, SHOWN) + end
                self._inside = not end
                continue
            # Nothing is held back here: an ESC is a key of its own.
            came = self._before + data
            at = came.find(BEGIN)
            if at < 0:
                self._before = came[len(came) - _begun(came, BEGIN) :]
                return safe + data
            at += len(BEGIN) - len(self._before)
            safe, data = safe + data[:at], data[at:]
            self._inside, self._before = True, ""
        return safe


def _begun(text: str, marker: str) -> int:
    """How many characters at the end of `text` begin `marker`."""
    return next((n for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n])), 0)


def safe_driver(driver: type[Driver]) -> type[Driver]:
    """The driver, with this parser: Textual has no other place to say so."""
    module = sys.modules[driver.__module__]
    if hasattr(module, "XTermParser"):
        module.XTermParser = PasteParser  # type: ignore[attr-defined]
    return driver
