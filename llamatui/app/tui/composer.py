"""Where a message is written: grows with its text, Enter sends, a paste never does."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea


class Composer(TextArea):
    """Ctrl+J is a newline in every terminal; Shift+Enter where the terminal tells it from Enter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "send"),
        Binding("ctrl+j,shift+enter", "newline", "new line", show=False),
    ]
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

    def action_newline(self) -> None:
        self.insert("\n")
        self.scroll_cursor_visible()

    async def _on_key(self, event: events.Key) -> None:
        # Not a priority binding: that would overtake letters that are still in the queue.
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.action_submit()

    async def _on_paste(self, event: events.Paste) -> None:
        # Terminals send a paste's line ends as carriage returns.
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        await super()._on_paste(events.Paste(text))
        event.prevent_default()
        event.stop()
