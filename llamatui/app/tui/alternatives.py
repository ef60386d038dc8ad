"""What could stand in the place of a token: a list beside it, likeliest first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Offset, Region
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from llamatui.app.tui.flow import printable

if TYPE_CHECKING:
    from llamatui.app.engine import TokenRecord
    from llamatui.tokenizers.base import Tokenizer

KEYS = "1234567890"
LABEL = 18  # columns
BAR = 8
WIDTH = 42
BARS = 2  # lines at the bottom of the screen
_EIGHTHS = " ▏▎▍▌▋▊▉█"


class Choice(NamedTuple):
    id: int
    label: str
    probability: float
    tried: bool
    """Whether the story has a branch that begins with it."""


class Alternatives(Widget, can_focus=True):
    """Stands beside the cursor's token. Digits take one at once; Enter steps inside, where arrows choose."""

    BINDING_GROUP_TITLE = "among the other words"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "take it", id="list.take"),
        Binding("up", "move(-1)", "likelier", show=False, id="list.up"),
        Binding("down,tab", "move(1)", "less likely", show=False, id="list.down"),
        Binding("escape", "back", "back", id="list.back"),
    ]
    DEFAULT_CSS = """
    Alternatives {
        overlay: screen; width: 42; height: auto; max-height: 100%; padding: 0 1; background: $surface;
        border-left: outer $border-blurred; display: none; pointer: pointer;
    }
    Alternatives:focus { border-left: outer $accent; }
    """

    choices: reactive[Sequence[Choice]] = reactive((), layout=True)
    title: reactive[Content] = reactive(Content, layout=True)
    note: reactive[str] = reactive("", layout=True)
    chosen: reactive[int] = reactive(0)

    @dataclass
    class Taken(Message):
        id: int

    class Left(Message):
        """Esc: back to the page."""

    def ask(self, label: str, note: str = "…") -> None:
        """Shows only which token it is about."""
        self.choices, self.title, self.note = (), Content.styled(label, "bold"), note

    def tell(self, label: str, record: "TokenRecord", choices: Sequence[Choice]) -> None:
        assert record.logprob is not None
        rank = f"{(record.rank or 0) + 1}." if record.rank else "likeliest"
        thought = f"{percent(math.exp(record.logprob))}  {rank}"
        self.title = Content.assemble((label, "bold"), "  ", (thought, "dim"))
        self.choices = choices
        self.chosen = next((i for i, choice in enumerate(choices) if choice.id == record.id), 0)
        self.note = ""

    def place(self, token: Region, page: Region) -> None:
        """Below `token` if the bars stay free, else above it, else where more room is: never over it."""
        size = self.app.size
        height = 2 + len(self.choices)
        above, below = token.y, size.height - token.bottom
        y = token.bottom if below - BARS >= height or below > above else max(token.y - height, 0)
        x = max(min(token.x - 2, page.right - WIDTH), 0)
        self.absolute_offset = Offset(x, y)
        self.display = True
        self.refresh(layout=True)

    def render(self) -> Content:
        lines = [self.title.truncate(self.content_size.width, ellipsis=True)]
        for i, choice in enumerate(self.choices):
            inside = self.has_focus and i == self.chosen
            style = "reverse" if inside else "bold" if i == self.chosen else ""
            label = Content.styled(choice.label, style).truncate(LABEL, ellipsis=True)
            line = Content.assemble(
                (KEYS[i], "$accent"),
                (" • " if choice.tried else "   ", "dim"),
                label,
                " " * (LABEL - label.cell_length),
                f"{percent(choice.probability):>8} ",
                (bar(choice.probability), "dim"),
            )
            lines.append(line)
        if self.note:
            lines.append(Content.styled(self.note, "dim"))
        else:
            hint = "↑ ↓ choose · enter takes it" if self.has_focus else "enter chooses · 1-0 take one"
            lines.append(Content.styled(hint, "dim"))
        return Content("\n").join(lines)

    def take(self, number: int) -> None:
        """Takes what stands at that place."""
        if number < len(self.choices):
            self.post_message(self.Taken(self.choices[number].id))

    def action_take(self) -> None:
        self.take(self.chosen)

    def action_move(self, step: int) -> None:
        if self.choices:
            self.chosen = (self.chosen + step) % len(self.choices)

    def action_back(self) -> None:
        self.post_message(self.Left())

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.take(event.y - 1)  # the title is above them


def percent(probability: float) -> str:
    p = probability * 100
    return f"{p:.0f} %" if p >= 99.5 else f"{p:.1f} %" if p >= 0.1 else "< 0.1 %"


def bar(probability: float) -> str:
    """BAR cells, in eighths."""
    full, part = divmod(round(probability * BAR * 8), 8)
    return ("█" * full + _EIGHTHS[part] * (full < BAR)).ljust(BAR)


def token_label(tokenizer: "Tokenizer", token: int, stop_ids: frozenset[int]) -> str:
    """A token as one can see it: its spaces as dots, control tokens and half characters by name."""
    if token in stop_ids:
        return "‹the end›"
    raw = tokenizer.decode_bytes(token)
    if not raw:
        return f"‹{token}›"
    try:
        text = raw.decode()
    except UnicodeDecodeError:  # a part of a character
        return f"‹{raw.hex(' ').upper()}›"
    return printable(text).replace(" ", "·").replace("\n", "↵")


def choices_of(
    record: "TokenRecord", tokenizer: "Tokenizer", stop_ids: frozenset[int], tried: set[int]
) -> list[Choice]:
    return [
        Choice(
            choice.id,
            token_label(tokenizer, choice.id, stop_ids),
            math.exp(choice.logprob),
            choice.id in tried,
        )
        for choice in record.top
    ]
