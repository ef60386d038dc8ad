"""The empty chat: what one could begin with, and what one can do here."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from llamatui.app.tui.composer import Composer, pass_on
from llamatui.app.tui.keys import key_of

OPENINGS = (
    "Explain to a curious child why the sky is blue.",
    "Write a short poem about a llama who learned to read.",
    "Show me how to count the words of a text in Python.",
)


class Opening(Static, can_focus=True):
    """Something to ask."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "choose", "ask", id="chat.ask-opening"),
        Binding("up", "app.focus_previous", "before", show=False, id="chat.opening-before"),
        Binding("down", "app.focus_next", "after", show=False, id="chat.opening-after"),
    ]

    def __init__(self, number: int, text: str) -> None:
        super().__init__(Content.assemble((f"{number}  ", "$accent"), text))
        self._text = text

    def action_choose(self) -> None:
        self.post_message(Welcome.Chosen(self._text))

    def on_click(self) -> None:
        self.action_choose()

    def on_key(self, event: events.Key) -> None:
        pass_on(self, event)


class Welcome(Vertical):
    DEFAULT_CSS = """
    Welcome {
        align: center middle; height: 1fr;
        & Static { width: 72; max-width: 100%; height: auto; padding: 0 2; }
        & .title { text-style: bold; margin-bottom: 1; }
        & .hint { color: $text-muted; }
        & .first { margin-top: 1; }
        & Opening { pointer: pointer; }
        & Opening:hover { background: $surface; }
        & Opening:focus { background: $surface; text-style: bold; }
    }
    """

    @dataclass
    class Chosen(Message):
        text: str

    def compose(self) -> ComposeResult:
        yield Static("What would you like to talk about?", classes="title")
        for number, text in enumerate(OPENINGS, 1):
            yield Opening(number, text)
        yield Static("↑ and Enter, or a click, asks one of these.", classes="hint first")
        keys = [
            key_of(self.screen.query_one(Composer), name)
            for name in ("chat.send", "chat.new-line", "app.stop")
        ]
        yield Static("{} sends, {} makes a new line, {} stops an answer.".format(*keys), classes="hint")
        yield Static("/ begins a command: /system says who the model shall be.", classes="hint")

    def enter(self) -> None:
        """From below."""
        self.query(Opening).last().focus()
