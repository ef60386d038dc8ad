"""The page while it is edited."""

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message

from llamatui.app.tui.composer import Editor


class PageEditor(Editor):
    BINDING_GROUP_TITLE = "while you edit the page"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "save", id="edit.save"),
        Binding("escape", "leave", "leave", id="edit.leave"),
    ]
    # The text stands where the page has it; hanging spaces and the cursor need a column each.
    DEFAULT_CSS = """
    PageEditor, PageEditor:focus {
        width: 80; max-width: 100%; height: 1fr; padding: 1 2 1 4; border: none; background: $background;
        scrollbar-size-vertical: 1;
        & .text-area--cursor-line { background: transparent; }
    }
    """

    @dataclass
    class Done(Message):
        text: str
        saved: bool

    def action_save(self) -> None:
        self.post_message(self.Done(self.text, True))

    def action_leave(self) -> None:
        self.post_message(self.Done(self.text, False))
