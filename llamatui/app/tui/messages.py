"""What the loading thread tells the app."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from llamatui.app.model import LoadedModel


@dataclass
class LoadStep(Message):
    """Loading got to another step."""

    step: str


@dataclass
class ModelReady(Message):
    model: "LoadedModel"


@dataclass
class LoadFailed(Message):
    error: Exception
