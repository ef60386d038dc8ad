"""What a room would do with a document, and what the history has of it."""

import time
from collections.abc import Callable
from pathlib import Path

from llamatui.app.history.collection import Library
from llamatui.app.history.recorder import Notice
from llamatui.app.history.snapshot import Document
from llamatui.app.story import Story

Told = list[Notice]


def write(document: Document, text: str) -> None:
    assert isinstance(document.content, Story)
    document.content.write(text)


def text_of(path: Path, document: Document) -> str:
    return Library(path).load(document.uid).text


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
