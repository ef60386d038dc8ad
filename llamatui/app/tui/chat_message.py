"""What stands in a transcript: the user's turns, quiet and right, the model's in full width, and notes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widget import Widget
from textual.widgets import Static

from llamatui.app.tui.answer_markdown import AnswerMarkdown, VirtualSize
from llamatui.app.tui.composer import pass_on
from llamatui.app.tui.flow import Flow, printable

if TYPE_CHECKING:
    from llamatui.app.conversation import Turn


@dataclass(eq=False)
class Item:
    """One entry of a transcript, whether it has a widget just now or not."""

    kind: Literal["user", "assistant", "note", "warning", "error"]
    text: str
    turn: "Turn | None" = None
    """None for a note, and for an answer that is being given."""
    version: tuple[int, int] = (1, 1)
    """(which, of how many) in its place."""
    stopped: bool = False
    index: int = 0
    """Place in the transcript."""
    _width: int = -1
    _rows: int = 0

    @property
    def may_hold_code(self) -> bool:
        return any(mark in self.text for mark in ("```", "~~~", "\n    "))

    def measured(self, width: int, rows: int) -> None:
        self._width, self._rows = width, rows

    def rows(self, width: int) -> int:
        """Lines on a screen of `width`: as it was laid out last, or about that many."""
        if self._width != width:
            flow = Flow(max(width - 4, 1))
            flow.append(self.text)
            self.measured(width, len(flow) + (2 if self.kind == "user" else 1))
        return self._rows


class Marks(Static):
    """The line below a message: which version of it this is, and whether it was cut off."""

    DEFAULT_CSS = """
    Marks { height: 1; color: $text-muted; link-style: none; link-color: $accent; }
    """

    @dataclass
    class Flipped(Message):
        item: Item
        step: int

    def __init__(self, item: Item) -> None:
        super().__init__(self._content(item))
        self.item = item

    @staticmethod
    def _content(item: Item) -> Content:
        which, of = item.version
        parts = []
        if of > 1:
            back, on = (Style.from_meta({"@click": f"flip({step})"}) for step in (-1, 1))
            parts.append(Content.assemble(("‹ ", back), f"{which}/{of}", (" ›", on)))
        if item.stopped:
            parts.append(Content("stopped"))
        return Content("  ·  ").join(parts)

    def renew(self) -> None:
        self.update(self._content(self.item), layout=False)

    def action_flip(self, step: int) -> None:
        self.post_message(self.Flipped(self.item, step))


class ChatMessage(Vertical, can_focus=True):
    """A turn. Its keys are the room's actions, and shown while it has the focus."""

    virtual_size = VirtualSize()
    BINDING_GROUP_TITLE = "on a message"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "e", "screen.edit_message", "edit", tooltip="edit it, on a branch of its own", id="chat.edit"
        ),
        Binding("r", "screen.retry_message", "again", tooltip="another answer", id="chat.again"),
        Binding("c", "screen.copy_message", "copy", tooltip="copy it", id="chat.copy"),
        Binding(
            "y",
            "screen.copy_code",
            "code",
            tooltip="copy its code; again: the next block",
            id="chat.copy-code",
        ),
        Binding("space", "screen.resume", "go on", tooltip="let the answer go on", id="chat.continue"),
        Binding(
            "left",
            "screen.flip(-1)",
            "versions",
            tooltip="version before",
            key_display="← →",
            id="chat.previous-version",
        ),
        Binding("right", "screen.flip(1)", "next version", show=False, id="chat.next-version"),
        Binding("u", "screen.undo", "undo", id="chat.undo"),
        Binding("U", "screen.redo", "redo", show=False, id="chat.redo"),
        Binding("up", "screen.step(-1)", "message before", show=False, id="chat.previous-message"),
        Binding("down", "screen.step(1)", "message after", show=False, id="chat.next-message"),
    ]
    DEFAULT_CSS = """
    ChatMessage {
        height: auto; padding: 0 2 0 1; border-left: blank;
        &:focus { border-left: wide $accent; }
    }
    """

    def __init__(self, item: Item) -> None:
        super().__init__()
        self.item = item

    def on_key(self, event: events.Key) -> None:
        pass_on(self, event)


class Question(ChatMessage):
    """What the user said: at the right, but not turned around, as it may be code."""

    DEFAULT_CSS = """
    Question {
        & Vertical { height: auto; border-top: solid $border-blurred; align-horizontal: right; }
        &.-first Vertical { border-top: none; padding-top: 1; }
        & Vertical > Static { width: auto; max-width: 100%; color: $text-muted; }
        & Marks { text-align: right; }
    }
    """

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(printable(self.item.text), markup=False)
        yield Marks(self.item)


class Answer(ChatMessage):
    """What the model says, as it says it."""

    def compose(self) -> ComposeResult:
        yield AnswerMarkdown(self.item.text)
        yield Marks(self.item)

    @property
    def source(self) -> str:
        return self.query_one(AnswerMarkdown).source

    async def write(self, text: str) -> None:
        await self.query_one(AnswerMarkdown).write(text)

    async def finish(self) -> None:
        await self.query_one(AnswerMarkdown).finish()
        if (text := printable(self.item.text)) != self.source:  # half a character was taken back
            await self.query_one(AnswerMarkdown).update(text)


class Note(Static):
    """Something that happened to the conversation."""

    DEFAULT_CSS = """
    Note { height: auto; padding: 0 2 1 2; color: $text-muted; text-style: italic; }
    Note.-warning { color: $text-warning; }
    Note.-error { color: $text-error; }
    """

    def __init__(self, item: Item) -> None:
        super().__init__(printable(item.text), markup=False, classes=f"-{item.kind}")
        self.item = item


def widget_for(item: Item) -> Widget:
    return {"user": Question, "assistant": Answer}.get(item.kind, Note)(item)
