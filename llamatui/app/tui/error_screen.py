"""Shown over a room when a model cannot be opened: what is wrong, what to do, and the keys for it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.flow import printable
from llamatui.app.tui.keys import own_bindings, rebound, show_key
from llamatui.errors import LlamatuiError

ErrorChoice = Literal["fetch", "retry", "story", "back"]


class Choice(Static):
    """One of the keys; a click does the same."""

    DEFAULT_CSS = """
    Choice { width: auto; height: auto; color: $text-muted; pointer: pointer; }
    Choice:hover { text-style: underline; }
    """

    def __init__(self, key: str, does: str, action: str) -> None:
        super().__init__(Content.assemble((f"{key:4}", "bold $accent"), does))
        self._action = action

    async def on_click(self, event: events.Click) -> None:
        event.stop()
        await self.screen.run_action(self._action)


class ErrorScreen(DismissedOnce[ErrorChoice]):
    """Dismissed with what the reader chose; quitting is the app's."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "dismiss('fetch')", "fetch", id="error.fetch"),
        Binding("s", "dismiss('story')", "tell a story instead", id="error.story"),
        Binding("escape", "dismiss('back')", "go on as before", id="error.back"),
        Binding("r", "dismiss('retry')", "try again", id="error.retry"),
        Binding("o", "app.pick_model", "open another model", id="error.other"),
        Binding("q", "quit", "quit", id="error.quit"),
    ]
    DEFAULT_CSS = """
    ErrorScreen {
        align: center middle;
        & VerticalScroll { width: 76; max-width: 100%; height: auto; max-height: 1fr; padding: 1 2; }
        & VerticalScroll > .text { width: 1fr; height: auto; margin-bottom: 1; }
        & #title { text-style: bold; color: $error; }
        & #hint { border-left: outer $accent; padding-left: 1; }
    }
    """

    def __init__(
        self,
        title: str,
        error: Exception,
        *,
        fetch: str = "",
        story_instead: bool = False,
        back: str = "",
        keymap: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """
        Args:
            fetch: What could be fetched to mend it; "" for nothing.
            back: The model that is open still; "" if none is.
        """
        super().__init__()
        self._title = title
        self._keymap = keymap
        self._error = error
        # What each of the bindings says here; "" for what is not to be chosen.
        self._offered = {
            "fetch": f"fetch {fetch}" if fetch else "",
            "story": "tell a story instead" if story_instead else "",
            "back": f"go on with {back}" if back else "",
            "retry": "try again",
            "other": "open another model",
            "quit": "" if back else "quit",
        }

    def compose(self) -> ComposeResult:
        message, hint = explain(self._error)
        with VerticalScroll(can_focus=False):
            yield Static(self._title, id="title", classes="text", markup=False)
            yield Static(message, id="message", classes="text", markup=False)
            if hint:
                yield Static(hint, id="hint", classes="text", markup=False)
            for binding in rebound(own_bindings(type(self)), self._keymap):
                if does := self._offered[(binding.id or "").partition(".")[2]]:
                    yield Choice(show_key(binding), does, binding.action)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        choice = str(parameters[0]) if action == "dismiss" else action
        return bool(self._offered.get(choice, True))

    async def action_quit(self) -> None:
        await self.app.action_quit()


def explain(error: Exception) -> tuple[str, str]:
    """(what went wrong, what to do) in words that are safe to show; a bug says that it is one."""
    if isinstance(error, LlamatuiError):
        return printable(error.message), printable(error.hint)
    said = f"{type(error).__name__}: {error}"
    return printable(said), "this should not happen: please report it, with these words"
