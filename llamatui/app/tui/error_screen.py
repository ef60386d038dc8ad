"""Shown instead of a room when there is no model to run: what is wrong, what to do, and the keys for it."""

from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from llamatui.errors import LlamatuiError

ErrorChoice = Literal["fetch", "retry", "story"]


class ErrorScreen(Screen[ErrorChoice]):
    """Dismissed with what the reader chose; quitting is the app's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "dismiss('fetch')", "fetch"),
        Binding("r", "dismiss('retry')", "try again"),
        Binding("s", "dismiss('story')", "tell a story instead"),
        Binding("q", "app.quit", "quit"),
    ]
    DEFAULT_CSS = """
    ErrorScreen {
        align: center middle;
        & VerticalScroll { width: 76; max-width: 100%; height: auto; max-height: 1fr; padding: 1 2; }
        & Static { width: 1fr; height: auto; margin-bottom: 1; }
        & #title { text-style: bold; color: $error; }
        & #hint { border-left: outer $accent; padding-left: 1; }
        & .note { color: $text-muted; }
    }
    """

    def __init__(self, title: str, error: Exception, *, fetch: str = "", story_instead: bool = False) -> None:
        """`fetch`: what could be fetched to mend it; "" for nothing."""
        super().__init__()
        self._title = title
        self._error = error
        # What each key does, in the order shown.
        self._keys = {
            "f": f"fetch {fetch}" if fetch else "",
            "r": "try again",
            "s": "tell a story instead" if story_instead else "",
            "q": "quit",
        }

    def compose(self) -> ComposeResult:
        message, hint = explain(self._error)
        with VerticalScroll(can_focus=False):
            yield Static(self._title, id="title", markup=False)
            yield Static(message, id="message", markup=False)
            if hint:
                yield Static(hint, id="hint", markup=False)
            keys = [
                Content.assemble((key, "bold $accent"), f" {does}")
                for key, does in self._keys.items()
                if does
            ]
            yield Static(Content("   ").join(keys), classes="note")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        offered = {"fetch": self._keys["f"], "story": self._keys["s"]}
        return action != "dismiss" or bool(offered.get(str(parameters[0]), True))


def explain(error: Exception) -> tuple[str, str]:
    """(what went wrong, what to do) in words; a bug says that it is one."""
    if isinstance(error, LlamatuiError):
        return error.message, error.hint
    return f"{type(error).__name__}: {error}", "this should not happen: please report it, with these words"
