"""One side of the split view: what it runs on, what it wrote, and how likely that was where the two part."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Label

from llamatui.app.tui.flow import MEASURE, Flow, printable
from llamatui.app.tui.sampling_panel import SETTINGS, Field

if TYPE_CHECKING:
    from llamatui.app.sampling import Sampling
    from llamatui.app.tui.runner import Piece

ROWS = (("temperature", "top_p"), ("top_k", "min_p", "repeat_penalty"))
SHORT = {"repeat_penalty": "repeat"}


class BackendChoice(Widget, can_focus=True):
    """`‹ numba ›`: the arrow keys, the wheel and clicks go through the backends."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,down,space", "step(1)", "next backend", show=False, id="compare.next-backend"),
        Binding("left,up", "step(-1)", "backend before", show=False, id="compare.last-backend"),
    ]
    DEFAULT_CSS = """
    BackendChoice { height: 1; width: auto; pointer: pointer; }
    BackendChoice:focus { text-style: reverse; }
    """

    name_shown = reactive("", layout=True)

    def __init__(self, names: list[str], name: str) -> None:
        super().__init__()
        self._names = names
        self.set_reactive(BackendChoice.name_shown, name)

    def render(self) -> Content:
        return Content.assemble(("‹ ", "$accent"), (self.name_shown, "bold"), (" ›", "$accent"))

    def get_content_width(self, *_: object) -> int:
        return len(self.name_shown) + 4

    def action_step(self, direction: int) -> None:
        at = self._names.index(self.name_shown) + direction
        self.name_shown = self._names[at % len(self._names)]
        self.post_message(Corner.Edited())

    def on_click(self, event: events.Click) -> None:
        self.action_step(-1 if event.x < 2 else 1)

    def _on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_step(1)

    def _on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_step(-1)


class Column(ScrollView, can_focus=True):
    """A text that grows behind the end of the prompt. What both sides say is quieter than what one says."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "take it", show=False, id="compare.take")
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "column--prompt", "column--same", "column--parting", "column--own",
    }  # fmt: skip
    DEFAULT_CSS = """
    Column {
        height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; padding: 0 0 0 1;
        & > .column--prompt { color: $text-disabled; }
        & > .column--same { color: $foreground 70%; }
        & > .column--parting { color: $accent; text-style: bold underline; }
        & > .column--own { color: $foreground; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._flow = Flow(MEASURE)  # until it is laid out
        self._ends: list[int] = []  # where each piece ends in the flow's text
        self._prompt = 0  # ... and the prompt
        self._parting: tuple[int, int] | None = None

    def on_mount(self) -> None:
        self.anchor()  # until the reader scrolls up

    @property
    def text(self) -> str:
        """What was written, as it is shown."""
        return self._flow.text[self._prompt :]

    @property
    def parting(self) -> str:
        """The marked token, as it is shown."""
        return self._flow.text[slice(*self._parting)] if self._parting else ""

    def begin(self, prompt: str) -> None:
        self._flow.truncate(0)
        self._flow.append(printable(prompt))
        self._prompt = len(self._flow.text)
        self._ends.clear()
        self._parting = None
        self.anchor()
        self._resized()

    def append(self, pieces: "list[Piece]") -> None:
        for piece in pieces:
            self._flow.append(printable(piece.text))
            self._ends.append(len(self._flow.text))
        self._resized()

    def mark(self, index: int) -> bool:
        """Marks piece `index` as the first that differs; False until it is there, and whole."""
        start = self._ends[index - 1] if index else self._prompt
        end = next((end for end in self._ends[index:] if end > start), start)
        if start == end:
            return False
        blank = len(self._flow.text[start:end]) - len(self._flow.text[start:end].lstrip())
        self._parting = (start + blank if start + blank < end else start, end)
        self.refresh()
        return True

    def show_parting(self) -> None:
        """Scrolls to the mark, if there is one."""
        if self._parting:
            line = bisect_right(self._flow.starts, self._parting[0]) - 1
            self.scroll_to(y=line - self.size.height // 2, animate=False)

    def mark_end(self) -> None:
        """It has ended where the other one goes on."""
        self._parting = (len(self._flow.text),) * 2
        self.refresh()

    def action_take(self) -> None:
        self.post_message(Corner.Taken(self))

    def on_resize(self) -> None:
        # As if there always were a scrollbar: when it comes, nothing is wrapped anew.
        width = max(self.outer_size.width - 2, 1)
        if width != self._flow.width:
            self._flow.resize(width)
            self._resized()

    def _resized(self) -> None:
        self.virtual_size = Size(self._flow.width, len(self._flow))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        at = y + self.scroll_offset.y
        if at >= len(self._flow):
            return Strip.blank(self.size.width, self.rich_style)
        start, end = self._flow.line(at)
        parting = self._parting or (len(self._flow.text),) * 2
        segments = []
        for kind, upto in zip(
            ("prompt", "same", "parting", "own"), (self._prompt, *parting, len(self._flow.text)), strict=True
        ):
            if start < (stop := min(upto, end)):
                style = self.get_component_rich_style(f"column--{kind}")
                segments.append(Segment(self._flow.text[start:stop], style))
                start = stop
        return Strip(segments).adjust_cell_length(self.size.width, self.rich_style)


class Corner(Vertical):
    """A side: `backend` and `sampling` are what it will run on next time."""

    DEFAULT_CSS = """
    Corner {
        width: 1fr; height: 1fr;
        & .row { height: 1; padding: 0 1; }
        & .row > Label { width: auto; margin-right: 1; color: $text-muted; }
        & .row > .fill { width: 1fr; margin: 0; text-align: right; }
        & Field { width: 1fr; margin-right: 1; background: $background; }
        & Field:focus { background: $surface; }
        & Field.-invalid { color: $text-error; }
        & Column { border-top: solid $border-blurred; }
        & Column:focus { border-top: solid $accent; }
        & .foot { height: 1; padding: 0 1; width: 1fr; color: $text-muted; }
    }
    """

    @dataclass
    class Edited(Message):
        """The next run will differ."""

    @dataclass
    class Submitted(Message):
        """Run it now."""

    @dataclass
    class Taken(Message):
        """The reader wants this text."""

        column: Column

    def __init__(self, names: list[str], backend: str, sampling: "Sampling") -> None:
        super().__init__()
        self.sampling = sampling
        self._choice = BackendChoice(names, backend)
        self.column = Column()
        self.pieces: list[Piece] = []

    @property
    def backend(self) -> str:
        return self._choice.name_shown

    def compose(self) -> ComposeResult:
        with Horizontal(classes="row"):
            yield self._choice
            yield Label(classes="fill", markup=False)
        for row in ROWS:
            with Horizontal(classes="row"):
                for name in row:
                    yield Label(SHORT.get(name) or SETTINGS[name].label)
                    yield Field(name, self.sampling)
        yield self.column
        yield Label(classes="foot")

    def begin(self, prompt: str) -> None:
        self.pieces.clear()
        self.column.begin(prompt)
        self.show_state("")
        self.show_foot(Content())

    def append(self, pieces: "list[Piece]") -> None:
        self.pieces += pieces
        self.column.append(pieces)

    def show_state(self, text: str) -> None:
        """`412 tok/s · the end`"""
        self.query_one(".fill", Label).update(text)

    def show_foot(self, text: Content) -> None:
        self.query_one(".foot", Label).update(text)

    @on(Input.Changed, "Field")
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        field = event.input
        assert isinstance(field, Field)
        if field.value and field.is_valid:
            sampling = field.put_in(self.sampling, field.number)
            if sampling != self.sampling:
                self.sampling = sampling
                self.post_message(self.Edited())

    @on(Input.Submitted, "Field")
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Submitted())
