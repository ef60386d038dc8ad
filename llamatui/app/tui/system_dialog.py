"""Edits the system prompt."""

from collections.abc import Callable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Label

from llamatui.app.tui.composer import Editor
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.keys import key_of


class SystemDialog(ModalScreen[None], DismissedOnce[None]):
    """A field for who the model shall be."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "save", id="system.save"),
        Binding("escape", "leave", "leave as it is", id="system.leave"),
    ]
    DEFAULT_CSS = """
    SystemDialog {
        align: center middle;
        & Vertical {
            width: 76; max-width: 96%; height: auto; max-height: 96%; padding: 1 2;
            background: $surface; border-left: outer $accent;
        }
        & .title { text-style: bold; }
        & .hint { color: $text-muted; width: 1fr; }
        & TextArea, & TextArea:focus {
            height: auto; min-height: 4; max-height: 10; margin: 1 0; border: none; padding: 0 1;
            background: $background;
        }
    }
    """

    def __init__(
        self, saved: str, shown: str, save: Callable[[str], None], typed: Callable[[str], None]
    ) -> None:
        """
        Args:
            shown: As it is, or as it was when the dialog was left.
            typed: Told what the field holds, as it changes and at the end; "": what is saved.
        """
        super().__init__()
        self._saved, self._shown, self._save, self._tell = saved, shown, save, typed

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Label("Who shall the model be?", classes="title")
            yield Editor(self._shown, highlight_cursor_line=False, placeholder="You are a helpful assistant.")
            again = "This was typed before and not saved yet. " if self._shown != self._saved else ""
            save, leave = key_of(self, "system.save"), key_of(self, "system.leave")
            hint = f"{again}{save} saves it, from the next message on. {leave} leaves it as it is."
            yield Label(hint, classes="hint")

    def on_mount(self) -> None:
        area = self.query_one(Editor)
        area.move_cursor(area.document.end)

    def action_save(self) -> None:
        self._save(self._typed)
        self._saved = self._typed
        self.action_leave()

    def action_leave(self) -> None:
        self.on_text_area_changed()
        self.dismiss(None)

    def on_text_area_changed(self) -> None:
        self._tell(self._typed if self._typed != self._saved else "")

    @property
    def _typed(self) -> str:
        return self.query_one(Editor).text.strip()
