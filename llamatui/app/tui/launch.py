"""What the command line hands over to the app."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llamatui.app.engine import OverflowPolicy
    from llamatui.app.sampling import Sampling

RoomName = Literal["story", "chat"]

LEAVING = 8.0  # seconds that the end may take: the model's last token 2, a history that is locked 5


@dataclass(frozen=True, slots=True)
class Launch:
    model: str | Path
    sampling: "Sampling"
    """Where the panel starts. A seed other than 0 is locked."""
    tokenizer: str | Path | None = None
    backend: str | None = None
    threads: int | None = None
    chat_format: str = ""
    prompt: str = ""
    """Story: told at once. Chat: asked at once."""
    system: str | None = None
    """None: the model's own."""
    context: int | None = None
    overflow: "OverflowPolicy | None" = None
    """None: "stop" in the story room, "shift" in the chat room."""
    theme: str = "dark"
    """"dark", "light", "contrast", or any of Textual's."""
    history: bool = False
    """Whether what is written is kept."""
    kv_cache_mb: int = 0
    """Megabytes of disk for KV caches; only with a history."""
    document: str = ""
    """Uid of what is taken out of the history at once; "" for a blank page."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys for bindings, by their ids, as `keys.keymap_from` gives them."""
