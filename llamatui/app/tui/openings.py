"""How a story begins: openings to choose from, and the line where the writer's words come from."""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Static

from llamatui.app.tui.keys import key_of

OPENINGS = (
    "Once upon a time, there was a little dog named Max.",
    "Lily and Tom found a small box under the big tree.",
    "It was late at night. All the toys in the box woke up.",
)
CHOICES = frozenset(str(n) for n in range(1, len(OPENINGS) + 1))


class Opening(Horizontal):
    """One of the openings; a click takes it."""

    DEFAULT_CSS = """
    Opening {
        width: 72; max-width: 100%; height: auto; padding: 0 2; pointer: pointer;
        &:hover { background: $surface; }
        & .number { width: 3; color: $accent; text-style: bold; }
        & .text { width: 1fr; }
    }
    """

    @dataclass
    class Chosen(Message):
        text: str

    def __init__(self, number: int, text: str) -> None:
        super().__init__(Static(str(number), classes="number"), Static(text, classes="text"))
        self._text = text

    def on_click(self) -> None:
        self.post_message(self.Chosen(self._text))


class Openings(VerticalScroll):
    """The empty page: what one can do here."""

    DEFAULT_CSS = """
    Openings {
        align: center middle; height: 1fr; scrollbar-size-vertical: 1;
        & > Static { width: 72; max-width: 100%; height: auto; padding: 0 2; }
        & .title { text-style: bold; margin-bottom: 1; }
        & .hint { color: $text-muted; margin-top: 1; }
        & .back { color: $text-muted; display: none; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static("A blank page. How does the story begin?", classes="title")
        for number, text in enumerate(OPENINGS, 1):
            yield Opening(number, text)
        yield Static("Press 1, 2 or 3, or write a beginning of your own below.", classes="hint")
        yield Static(classes="back")

    def show_way_back(self, shown: bool) -> None:
        """Tells how to get back to the stories that were begun before."""
        line = self.query_one(".back", Static)
        line.display = shown
        undo = key_of(self, "story.undo", typing=True)
        line.update(f"The story before this one is not lost: {undo} brings it back.")


NEWLINE = "⏎"  # in the writing line, which has but one


class WritingLine(Input):
    """Where the writer's words come from."""

    BINDING_GROUP_TITLE = "in the line"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "screen.to_page", "to the page", show=False, id="story.to_page"),
        Binding("ctrl+j", "newline", "new line", show=False, id="story.newline"),
    ]
    DEFAULT_CSS = """
    WritingLine, WritingLine:focus {
        border: none; border-top: solid $border-blurred; background: $background; height: 2; padding: 0 2;
        background-tint: transparent;
    }
    WritingLine:focus { border-top: solid $accent; }
    """

    shortcuts: frozenset[str] = frozenset()
    """Keys that are not letters while the line is empty."""

    @dataclass
    class Shortcut(Message):
        key: str

    @dataclass
    class Written(Message):
        """The text left the line; who cannot use it gives it back."""

        text: str

    async def action_submit(self) -> None:
        self.post_message(self.Written(self.words))
        self.clear()  # at once: what is typed while the room is busy with it is no part of it

    @property
    def words(self) -> str:
        return self.value.replace(NEWLINE, "\n")

    def put(self, text: str) -> None:
        """Replaces what was typed, with the cursor behind it."""
        self.value = text.replace("\n", NEWLINE)
        self.cursor_position = len(self.value)

    def give_back(self, text: str) -> None:
        """Puts `text` in front of what was typed since."""
        self.put(" ".join(filter(None, (text, self.value))))

    def action_newline(self) -> None:
        self.insert_text_at_cursor(NEWLINE)

    async def _on_key(self, event: events.Key) -> None:
        if event.key in self.shortcuts and not self.value:
            event.stop()
            event.prevent_default()
            self.post_message(self.Shortcut(event.key))

    def _on_paste(self, event: events.Paste) -> None:
        # An Input keeps only the first line.
        event.stop()
        event.prevent_default()
        super()._on_paste(events.Paste(NEWLINE.join(event.text.splitlines())))
