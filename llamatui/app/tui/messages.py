"""What the errands thread tells the app."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
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
class BackendReady(Message):
    errand: "Errand"
    model: "LoadedModel"
    """Whose backend it is."""
    backend: "Backend"
