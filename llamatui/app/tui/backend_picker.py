"""Three ways to run the same model: which one goes on?"""

from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from llamatui.app.tui.dismissed_once import DismissedOnce

if TYPE_CHECKING:
    from llamatui.backends.base import Backend


class BackendPicker(ModalScreen[str], DismissedOnce[str]):
    """Dismissed with the name of a backend, or "" if all stays as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss('')", "leave", id="backends.leave"),
    ]
    DEFAULT_CSS = """
    BackendPicker {
        align: center middle;
        & > Vertical {
            width: 76; max-width: 100%; height: auto; max-height: 96%; padding: 1 2;
            background: $surface; border-left: outer $accent;
        }
        & .title { text-style: bold; margin-bottom: 1; width: 1fr; }
        & .hint { color: $text-muted; width: 1fr; margin-top: 1; }
        & OptionList, & OptionList:focus {
            border: none; padding: 0; height: auto; background: $surface; background-tint: transparent;
            & > .option-list--option { padding: 0 1; }
        }
    }
    """

    def __init__(self, current: "Backend") -> None:
        super().__init__()
        self._current = current

    def compose(self) -> ComposeResult:
        from llamatui.backends.registry import backend_names

        self._names = backend_names()
        with Vertical():
            yield Static("Which backend goes on?", classes="title")
            yield OptionList(*[Option(self._line(name), id=name) for name in self._names], markup=False)
            soon = self._current.preparing
            coming = f"… {soon} is being compiled, and takes over by itself. " if soon else ""
            yield Static(
                f"● runs now. {coming}Another takes over at the next word, in mid-sentence too. What has "
                "been read stays; only to or from q8_0, which rounds differently, the text is read again.",
                classes="hint",
            )

    def on_mount(self) -> None:
        options = self.query_one(OptionList)
        options.highlighted = (
            self._names.index(self._current.name) if self._current.name in self._names else 0
        )
        options.focus()

    def _line(self, name: str) -> Content:
        from llamatui.backends.registry import backend_class
        from llamatui.errors import LlamatuiError

        try:
            about = backend_class(name).description
        except LlamatuiError as error:
            about = error.message
        mark = "●" if name == self._current.name else "…" if name == self._current.preparing else " "
        return Content.assemble(
            f"{mark} ", (f"{name:7}", "bold"), about
        )  # no colours: the cursor has its own

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id or "")

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:  # beside the dialog
            self.dismiss("")
