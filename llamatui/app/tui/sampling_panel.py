"""Temperature and the rest as fields; what they say holds from the next token on."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.validation import Function, Number
from textual.widget import Widget
from textual.widgets import Input, Label

from llamatui.app.sampling import MAX_SEED
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.app.sampling import Sampling


class Setting(NamedTuple):
    """How a field of `Sampling` is shown."""

    label: str
    step: float
    off: str
    """What to say where it changes nothing, "" where it always changes something."""
    off_at: tuple[float, ...]
    meaning: str
    """In two lines of the panel."""


SETTINGS = {
    "temperature": Setting("temperature", 0.05, "greedy", (0,), "higher is bolder;\n0 takes the likeliest"),
    "top_p": Setting("top-p", 0.05, "off", (0, 1), "from the likeliest that\ntogether hold this much"),
    "top_k": Setting("top-k", 1, "off", (0,), "from this many likeliest\n"),
    "min_p": Setting("min-p", 0.01, "off", (0,), "none below this part of\nthe likeliest one's chance"),
    "repeat_penalty": Setting("repeat penalty", 0.05, "off", (1,), "above 1: less of what\nwas said lately"),
}
HINT = "↑ ↓ or the wheel change it,\nfrom the next word on"
SEED_HINT = "the same seed gives\nthe same words"


class Field(Input):
    """A number that also goes up and down with the arrow keys and the mouse wheel.

    `Sampling` decides what makes sense.
    """

    BINDING_GROUP_TITLE = "in the panel"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "step(1)", "more", show=False, id="sampling.more"),
        Binding("down", "step(-1)", "less", show=False, id="sampling.less"),
    ]

    def __init__(self, name: str, sampling: "Sampling") -> None:
        self._exact: float = getattr(sampling, name)
        self._text = f"{self._exact:g}"
        self._key, self._sampling = name, sampling
        super().__init__(
            self._text, id=name, type="integer" if name == "top_k" else "number", compact=True,
            validators=[Function(self._sensible)], max_length=12,
        )  # fmt: skip

    @property
    def number(self) -> float:
        """What the text says; where that is rounded, what it was rounded from."""
        return self._exact if self.value == self._text else float(self.value)

    @property
    def note(self) -> str:
        """ "off" where the number changes nothing."""
        setting = SETTINGS[self._key]
        return setting.off if self.value and self.is_valid and self.number in setting.off_at else ""

    def put_in(self, sampling: "Sampling", number: float) -> "Sampling":
        """
        Raises:
            UsageError: The number is out of its range.
        """
        value: Any = int(number) if self._key == "top_k" else number
        return replace(sampling, **{self._key: value})

    def _sensible(self, text: str) -> bool:
        try:
            self.put_in(self._sampling, float(text))
        except (ValueError, UsageError):
            return False
        return True

    def action_step(self, direction: int) -> None:
        """To the next multiple of the step, unless that makes no sense."""
        step = SETTINGS[self._key].step
        steps = (self.number if self.value and self.is_valid else 0.0) / step
        nearest = round(steps)
        if abs(steps - nearest) > 1e-6 and (nearest > steps) == (direction > 0):
            stepped = nearest  # the number stands between two
        else:
            stepped = nearest + direction
        text = f"{round(stepped * step, 5):g}"
        if self._sensible(text):
            self.value = text

    # Only where the focus is: who scrolls past must not change anything.

    def _on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        if self.has_focus:
            event.stop()
            event.prevent_default()
            self.action_step(1)

    def _on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        if self.has_focus:
            event.stop()
            event.prevent_default()
            self.action_step(-1)


class Lock(Widget, can_focus=True):
    """Whether the seed stays, so that the same words come again."""

    BINDING_GROUP_TITLE = "in the panel"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space,enter", "turn", "keep or renew the seed", show=False, id="sampling.lock")
    ]
    DEFAULT_CSS = """
    Lock { height: 1; width: auto; color: $text-muted; pointer: pointer; }
    Lock:focus { text-style: reverse; }
    """

    locked = reactive(False)

    @dataclass
    class Toggled(Message):
        locked: bool

    def __init__(self, locked: bool) -> None:
        super().__init__()
        self.set_reactive(Lock.locked, locked)

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


class Seed(Vertical):
    """The seed, and whether it stays. `seed` is the one to begin with: 0 for a new one."""

    DEFAULT_CSS = """
    Seed {
        height: auto;
        & Horizontal { height: 1; }
        & Horizontal > Label { width: 16; color: $text-muted; }
        & Input { width: 1fr; background: $background; }
        & Input:focus { background: $surface; }
        & Input.-invalid { color: $text-error; }
    }
    """

    @dataclass
    class Changed(Message):
        seed: int

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self._shown = 0

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Label("seed")
            yield Input(
                str(self.seed or ""), id="seed", placeholder="random", compact=True, restrict="[0-9]*",
                max_length=20, validators=[Number(1, MAX_SEED)], valid_empty=True,
            )  # fmt: skip
        yield Lock(self.seed != 0)

    def show(self, seed: int) -> None:
        """Tells once which seed is in use; with the lock open, the next one is another."""
        field = self.query_one(Input)
        if seed == self._shown or field.has_focus or self.query_one(Lock).locked:
            return
        self._shown = seed
        with self.prevent(Input.Changed):
            field.value = str(seed)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Who types a seed wants that one."""
        event.stop()
        if event.input.is_valid:
            self.query_one(Lock).locked = bool(event.value)
            self._set(int(event.value or 0))

    def on_lock_toggled(self, event: Lock.Toggled) -> None:
        event.stop()
        field = self.query_one(Input)
        if event.locked and not (field.value and field.is_valid):
            self.query_one(Lock).locked = False
            field.focus()
            return
        self._set(int(field.value) if event.locked else 0)

    def _set(self, seed: int) -> None:
        self.seed = seed
        self.post_message(self.Changed(seed))


class SamplingPanel(Vertical):
    """The settings as fields. `sampling` is what they last said that made sense."""

    DEFAULT_CSS = """
    SamplingPanel {
        width: 1fr; padding: 1 2 0 2; height: auto;
        & .title { text-style: bold; }
        & .setting { height: 1; }
        & .setting > .label { width: 16; color: $text-muted; }
        & .setting > .note { width: auto; color: $text-disabled; }
        & Field { width: 1fr; background: $background; }
        & Field:focus { background: $surface; }
        & Field.-invalid { color: $text-error; }
        & .hint { color: $text-disabled; width: 1fr; height: 2; }
    }
    """

    @dataclass
    class Changed(Message):
        sampling: "Sampling"

    def __init__(self, sampling: "Sampling") -> None:
        super().__init__()
        self.sampling = sampling
        self._has_fields = False

    def on_mount(self) -> None:
        # They are half of a room's widgets, and the first thing to be seen should not wait for them.
        self.call_after_refresh(self._show_fields)

    async def _show_fields(self) -> None:
        self._has_fields = True
        await self.recompose()

    def compose(self) -> ComposeResult:
        if not self._has_fields:
            return
        yield Label("sampling", classes="title")
        for name, setting in SETTINGS.items():
            field = Field(name, self.sampling)
            label, note = Label(setting.label, classes="label"), Label(field.note, classes="note")
            yield Horizontal(label, field, note, classes="setting")
        yield Seed(self.sampling.seed)
        yield Label(HINT, classes="hint")

    def put(self, name: str, value: float) -> None:
        """Sets a field, as if somebody typed it; the seed 0 is none."""
        if not self._has_fields:  # they will begin with it
            exact: Any = int(value) if name in ("top_k", "seed") else value
            self._set(replace(self.sampling, **{name: exact}))
            return
        text = str(value or "") if name == "seed" else f"{value:.12g}"
        self.query_one(f"#{name}", Input).value = text

    def show_seed(self, seed: int) -> None:
        """Tells which seed is in use."""
        for field in self.query(Seed):
            field.show(seed)

    @on(Input.Changed, "Field")
    def _number_changed(self, event: Input.Changed) -> None:
        event.stop()
        field = event.input
        assert isinstance(field, Field)
        assert field.parent is not None
        field.parent.query_one(".note", Label).update(field.note)
        if field.value and field.is_valid:
            self._set(field.put_in(self.sampling, field.number))

    def on_seed_changed(self, event: Seed.Changed) -> None:
        event.stop()
        self._set(replace(self.sampling, seed=event.seed))

    def _set(self, sampling: "Sampling") -> None:
        if sampling != self.sampling:
            self.sampling = sampling
            self.post_message(self.Changed(sampling))

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        name = event.widget.id or ""
        meaning = SETTINGS[name].meaning if name in SETTINGS else SEED_HINT
        self.query_one(".hint", Label).update(meaning)

    def on_descendant_blur(self) -> None:
        self.query_one(".hint", Label).update(HINT)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.screen.focus_next()
