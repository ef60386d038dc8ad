"""The two lines around a room: what runs, and how it goes."""

from rich.cells import cell_len
from textual import events
from textual.app import RenderResult
from textual.binding import ActiveBinding, Binding
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from llamatui.app.tui.flow import printable

METER_CELLS = 10
WHEN_FULL = {"stop": "stops when full", "shift": "forgets when full", "error": "fails when full"}
KEY_GAP = 2  # columns between two keys
HELP = "app.help"  # the key that tells all others
SHORT_NAME = 14  # cells that a model's name has at least before something else gives way


class Bar(Widget):
    """One line: something at the left, and something at the right that gives way where both do not fit."""

    DEFAULT_CSS = """
    Bar { height: 1; width: 1fr; padding: 0 2; color: $text-muted; }
    """

    left: reactive[Content] = reactive(Content)
    right: reactive[Content] = reactive(Content)
    """All that there is to say at the right."""
    shorter: reactive[tuple[Content, ...]] = reactive(())
    """The same in fewer words, one shorter than the other."""

    def render(self) -> RenderResult:
        width = self.content_size.width
        wanted = min(self.left.cell_length, width // 2)
        right = next(
            (text for text in (self.right, *self.shorter) if wanted + 2 + text.cell_length <= width),
            Content(),
        )
        return joined(self.left, right, width)


def joined(left: Content, right: Content, width: int) -> Content:
    """Both in one line; the left one is cut if it must be."""
    room = width - right.cell_length
    left = left.truncate(max(room - 2, 0) if right.cell_length else width, ellipsis=True)
    return Content.assemble(left, " " * (room - left.cell_length), right)


def one_line(text: str) -> str:
    """A name that somebody else gave: safe, and without line ends."""
    return " ".join(printable(text).split())


def rate_text(tokens_per_second: float) -> str:
    """ "" for 0."""
    rate = tokens_per_second
    return f"{rate:.0f} tok/s" if rate >= 10 else f"{rate:.1f} tok/s" if rate else ""


def shortened(name: str, cells: int) -> str:
    """A name without its middle: its end tells the sizes and versions of a model apart."""
    if len(name) <= cells:
        return name
    end = (cells - 1) // 2
    return f"{name[: cells - 1 - end]}…{name[len(name) - end :]}"


class Header(Bar):
    """`story   stories15M · numpy · 2 threads · compiling numba     first 0.21 s · 31 tok/s`"""

    DEFAULT_CSS = """
    Header { dock: top; height: 2; border-bottom: solid $border-blurred; padding: 0 2; }
    """

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room
        self._model = ""
        self._engine: tuple[str, ...] = ()
        self._soon = ""

    def show(self, name: str, engine: tuple[str, ...] = (), soon: str = "") -> None:
        """`engine`: what runs the model, the least important last; `soon`: what is on its way."""
        self._model, self._engine, self._soon = name, engine, soon
        self.left = self._assemble(name, engine)

    def show_rate(self, tokens_per_second: float, first_s: float = 0.0) -> None:
        """`first_s`: seconds until the first token, 0 if there is none yet."""
        shown = rate_text(tokens_per_second)
        first = "" if not first_s else f"{first_s:.2f} s" if first_s >= 0.1 else f"{first_s * 1000:.0f} ms"
        self.right = Content(" · ".join(filter(None, (first and f"first {first}", shown))))
        self.shorter = (Content(shown),)

    def render(self) -> RenderResult:
        width = self.content_size.width
        name = min(len(self._model), SHORT_NAME)
        for right in (self.right, *self.shorter, Content()):
            for parts in range(len(self._engine), -1, -1):
                rest = (
                    self._assemble("", self._engine[:parts]).cell_length + bool(right) * 2 + right.cell_length
                )
                if rest + name <= width:
                    shown = shortened(self._model, width - rest)
                    return joined(self._assemble(shown, self._engine[:parts]), right, width)
        return self._assemble(shortened(self._model, name), ()).truncate(width, ellipsis=True)

    def _assemble(self, name: str, engine: tuple[str, ...]) -> Content:
        return Content.assemble(
            (self._room, "bold $accent"),
            "   ",
            " · ".join((name, *engine)),
            (f" · {self._soon}", "dim") if self._soon else "",
        )


class Status(Bar):
    """`the end                         312 forgotten · shift · context 312/1024 ━━━───────`"""

    _said = Content()
    _detail = ""
    _warning = ""

    def say(self, text: str, style: str = "") -> None:
        self._said = Content.styled(text, style)
        self._show()

    def detail(self, text: str) -> None:
        """What stands behind that, more quietly, and stays."""
        self._detail = text
        self._show()

    def warn(self, text: str) -> None:
        """What stands in front of all that, and stays; "" for nothing."""
        self._warning = text
        self._show()

    def _show(self) -> None:
        warning = Content.styled(self._warning, "$text-warning")
        parts = [warning, self._said, Content.styled(self._detail, "dim")]
        self.left = Content(" · ").join([part for part in parts if part.plain])

    def show_context(self, used: int, limit: int, dropped: int, policy: str) -> None:
        """`policy`: what happens to a full context; said louder when it matters."""
        used = min(used, limit)  # a last token may stand outside, unread
        filled = -(-METER_CELLS * used // limit)
        full = used >= 0.9 * limit
        said = f"{dropped} forgotten" if dropped else WHEN_FULL[policy]
        told = Content.styled(f"{said} · ", "$text-warning" if dropped or full else "dim")
        matters = told if dropped or full else Content()
        numbers = Content(f"{used}/{limit} ")
        meter = Content.assemble(
            ("━" * filled, "$text-warning" if full else "$accent"),
            ("─" * (METER_CELLS - filled), "$border-blurred"),
        )
        self.right = Content.assemble(told, "context ", numbers, meter)
        self.shorter = (
            Content.assemble(matters, "context ", numbers, meter),
            Content.assemble(matters, numbers, meter),
            Content.assemble(matters, numbers).rstrip(),
            numbers.rstrip(),
        )


class Keys(Widget):
    """The keys that fit, whole, and the one for help always; a click presses them.

    One widget: Textual's footer mounts one for each key again whenever what can be done changes.
    """

    DEFAULT_CSS = """
    Keys {
        dock: bottom; height: 1; width: 1fr; padding: 0 2;
        color: $text-muted; background: $footer-background;
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[tuple[int, int, str]] = []  # (first column, column behind, key) of what is shown

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, lambda _: self.refresh())

    def render(self) -> RenderResult:
        shown: dict[str, tuple[str, str, str]] = {}  # by action: the first of several keys
        active_bindings = self.screen.active_bindings.values()
        nodes = list(dict.fromkeys(active.node for active in active_bindings))  # the focused one first
        for active in sorted(active_bindings, key=lambda active: (nodes.index(active.node), _order(active))):
            binding = active.binding
            if binding.show and active.enabled and binding.description:
                display = self.app.get_key_display(binding)
                shown.setdefault(binding.action, (binding.key, display, binding.description))
        room = self.content_size.width + KEY_GAP
        help_ = shown.get(HELP)
        left = room - (_cells(help_) if help_ else 0)
        self._keys = []
        parts: list[Content] = []
        at = 0
        for key in shown.values():
            if key is not help_:
                if _cells(key) > left:
                    left = 0  # none of those behind it, either: their order says what matters
                    continue
                left -= _cells(key)
            parts.append(Content.assemble((key[1], "bold $accent"), f" {key[2]}"))
            self._keys.append((at, at + _cells(key) - KEY_GAP, key[0]))
            at += _cells(key)
        return Content(" " * KEY_GAP).join(parts)

    def on_click(self, event: events.Click) -> None:
        x = event.get_content_offset_capture(self).x
        for first, behind, key in self._keys:
            if first <= x < behind:
                self.app.simulate_key(key)


def _order(active: ActiveBinding) -> int:
    """As the bindings were declared: a key that was changed stays in its place."""
    ids = [binding.id for binding in type(active.node).BINDINGS if isinstance(binding, Binding)]
    return ids.index(active.binding.id) if active.binding.id in ids else len(ids)


def _cells(key: tuple[str, str, str]) -> int:
    return cell_len(f"{key[1]} {key[2]}") + KEY_GAP
