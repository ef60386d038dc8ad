"""Where a message is written: grows with its text, Enter sends, a paste never does."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea


class Editor(TextArea):
    """Survives what Textual 8.2's own does not."""

    def render_line(self, y: int) -> Strip:
        # A placeholder cannot be wrapped to no columns at all.
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width)

    def scroll_cursor_visible(self, center: bool = False, animate: bool = False) -> Offset:
        # Undo takes the scrollbar away while the cursor still stands on a line that is gone.
        if self.cursor_location[0] >= self.wrapped_document.document.line_count:
            return Offset(0, 0)
        return super().scroll_cursor_visible(center, animate)


class Composer(Editor):
    """Ctrl+J is a newline in every terminal; Shift+Enter where the terminal tells it from Enter."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "submit", "send")]
    DEFAULT_CSS = """
    Composer, Composer:focus {
        height: auto; min-height: 2; max-height: 9; padding: 0 2; background: $background;
        border: none; border-top: solid $border-blurred; scrollbar-size-vertical: 1;
        & .text-area--cursor-line { background: transparent; }
    }
    Composer:focus { border-top: solid $accent; }
    """

    @dataclass
    class Submitted(Message):
        text: str

    def __init__(self, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, highlight_cursor_line=False)

    def action_submit(self) -> None:
        self.post_message(self.Submitted(self.text))

    async def _on_key(self, event: events.Key) -> None:
        # Bindings come after keys that are still in the queue, priority bindings before them.
        if event.key not in ("enter", "ctrl+j", "shift+enter"):
            return
        event.stop()
        event.prevent_default()
        if event.key == "enter":
            self.action_submit()
        else:
            self.replace("\n", *self.selection, maintain_selection_offset=False)
            self.scroll_cursor_visible()

    async def _on_paste(self, event: events.Paste) -> None:
        # Terminals send a paste's line ends as carriage returns.
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        await super()._on_paste(events.Paste(text))
        event.prevent_default()
        event.stop()
