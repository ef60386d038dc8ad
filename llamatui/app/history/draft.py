"""What was typed in a room and is no part of its text yet."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Draft:
    """Typed, and neither sent nor saved; "" where nothing was.

    Attributes:
        typed: In the line, or the composer.
        page: What the page of a story was changed to.
        memory, note: Of a story.
        system: Of a chat.
        edits: Messages that were changed: (index on the path that is shown, its words).
    """

    typed: str = ""
    page: str = ""
    memory: str = ""
    note: str = ""
    system: str = ""
    edits: tuple[tuple[int, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What there is of it."""
        return {name: value for name, value in asdict(self).items() if value}
