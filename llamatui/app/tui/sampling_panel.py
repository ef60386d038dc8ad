"""Temperature, top-p and seed; what they say holds from the next generation on."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.validation import Function, Number
from textual.widget import Widget
from textual.widgets import Input, Label

from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.app.sampling import Sampling

MAX_TEMPERATURE = 100.0  # as Sampling has it
MAX_SEED = (1 << 64) - 1


class Field(Input):
    """A number that also goes up and down with the arrow keys."""

    BINDINGS: ClassVar[list[BindingType]] = [("up", "step(1)", "more"), ("down", "step(-1)", "less")]

    def __init__(self, name: str, sampling: "Sampling", high: float, step: float) -> None:
        self._exact: float = getattr(sampling, name)
        self._text = f"{self._exact:g}"
        self._key, self._sampling, self._high, self._step = name, sampling, high, step
        super().__init__(
            self._text, id=name, type="number", compact=True, validators=[Function(self._sensible)],
            max_length=12,
        )  # fmt: skip

    @property
    def number(self) -> float:
        """What the text says; where that is rounded, what it was rounded from."""
        return self._exact if self.value == self._text else float(self.value)

    def put_in(self, sampling: "Sampling", number: float) -> "Sampling":
        """
        Raises:
            UsageError: The number is out of its range.
        """
        if self._key == "temperature":
            return replace(sampling, temperature=number)
        return replace(sampling, top_p=number)

    def _sensible(self, text: str) -> bool:
        try:
            self.put_in(self._sampling, float(text))
        except (ValueError, UsageError):
            return False
        return True

    def action_step(self, direction: int) -> None:
        value = self.number if self.value and self.is_valid else 0.0
        self.value = f"{round(min(max(value + direction * self._step, 0), self._high), 5):g}"


class Lock(Widget, can_focus=True):
    """Whether the seed stays, so that the same words come again."""

    BINDINGS: ClassVar[list[BindingType]] = [("space,enter", "turn", "keep or renew the seed")]
    DEFAULT_CSS = """
    Lock { height: 1; width: auto; color: $text-muted; pointer: pointer; }
    Lock:focus { text-style: reverse; }
    """

    locked = reactive(False)

    @dataclass
    class Toggled(Message):
        locked: bool

    def render(self) -> Content:
        if self.locked:
            return Content.assemble(("● ", "$accent"), "kept: same words again")
        return Content("○ a new one each time")

    def get_content_width(self, *_: object) -> int:
        return 24

    def action_turn(self) -> None:
        self.locked = not self.locked
        self.post_message(self.Toggled(self.locked))

    def on_click(self) -> None:
        self.action_turn()


class SamplingPanel(Vertical):
    """The settings as fields. `sampling` is what they last said that made sense."""

    DEFAULT_CSS = """
    SamplingPanel {
        width: 32; padding: 1 2 0 2; border-left: solid $border-blurred; height: 1fr;
        & Horizontal { height: 1; }
        & .title { text-style: bold; margin-bottom: 1; }
        & Horizontal > Label { width: 14; color: $text-muted; }
        & Horizontal > Input { width: 1fr; background: $background; }
        & Horizontal > Input:focus { background: $surface; }
        & Horizontal > Input.-invalid { color: $error; }
        & Lock { margin: 0 0 1 0; }
        & .hint { color: $text-disabled; width: 1fr; }
    }
    """

    def __init__(self, sampling: "Sampling") -> None:
        super().__init__()
        self.sampling = sampling
        self._seed_shown = 0

    def compose(self) -> ComposeResult:
        yield Label("sampling", classes="title")
        with Horizontal():
            yield Label("temperature")
            yield Field("temperature", self.sampling, MAX_TEMPERATURE, 0.05)
        with Horizontal():
            yield Label("top-p")
            yield Field("top_p", self.sampling, 1.0, 0.05)
        with Horizontal():
            yield Label("seed")
            seed = str(self.sampling.seed or "")
            yield Input(
                seed, id="seed", placeholder="random", compact=True, restrict="[0-9]*", max_length=20,
                validators=[Number(1, MAX_SEED)], valid_empty=True,
            )  # fmt: skip
        yield Lock()
        yield Label("↑ ↓ change the value\nfor the next words", classes="hint")

    def on_mount(self) -> None:
        self.query_one(Lock).set_reactive(Lock.locked, self.sampling.seed != 0)

    def show_seed(self, seed: int) -> None:
        """Tells once which seed is in use; with the lock open, the next one is another."""
        field = self.query_one("#seed", Input)
        if seed == self._seed_shown or field.has_focus or self.query_one(Lock).locked:
            return
        self._seed_shown = seed
        with self.prevent(Input.Changed):
            field.value = str(seed)

    @on(Input.Changed, "Field")
    def _number_changed(self, event: Input.Changed) -> None:
        event.stop()
        assert isinstance(event.input, Field)
        if event.input.value and event.input.is_valid:
            self.sampling = event.input.put_in(self.sampling, event.input.number)

    @on(Input.Changed, "#seed")
    def _seed_changed(self, event: Input.Changed) -> None:
        """Who types a seed wants that one."""
        event.stop()
        if event.input.is_valid:
            self.query_one(Lock).locked = bool(event.value)
            self.sampling = replace(self.sampling, seed=int(event.value or 0))

    def on_lock_toggled(self, event: Lock.Toggled) -> None:
        event.stop()
        seed = self.query_one("#seed", Input).value
        if event.locked and not seed:
            self.query_one(Lock).locked = False
            self.query_one("#seed").focus()
            return
        self.sampling = replace(self.sampling, seed=int(seed) if event.locked else 0)

    def on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            self.screen.focus_next()
