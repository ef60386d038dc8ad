"""What the errands thread tells the app."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from llamatui.app.history.snapshot import Document
    from llamatui.app.model import LoadedModel
    from llamatui.app.tui.errands import Errand
    from llamatui.backends.base import Backend


@dataclass
class ErrandStep(Message):
    """It got to another step."""

    errand: "Errand"
    step: str


@dataclass
class ErrandFailed(Message):
    errand: "Errand"
    error: Exception


@dataclass
class ModelReady(Message):
    errand: "Errand"
    model: "LoadedModel"


@dataclass
class DocumentReady(Message):
    """It was taken out of the history."""

    errand: "Errand"
    document: "Document"
    model: str
    """Name of the one that it was written with."""
    sha256: str


@dataclass
class BackendReady(Message):
    errand: "Errand"
    model: "LoadedModel"
    """Whose backend it is."""
    backend: "Backend"
