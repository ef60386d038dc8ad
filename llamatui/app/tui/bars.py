"""The two lines around a room: what runs, and how it goes."""

from textual.app import RenderResult
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

METER_CELLS = 10


class Bar(Widget):
    """One line, with something at the left that gives way to something at the right."""

    DEFAULT_CSS = """
    Bar { height: 1; width: 1fr; padding: 0 2; color: $text-muted; }
    """

    left: reactive[Content] = reactive(Content)
    right: reactive[Content] = reactive(Content)

    def render(self) -> RenderResult:
        room = self.content_size.width - self.right.cell_length
        if room < 8:  # too narrow for both
            return self.left.truncate(self.content_size.width, ellipsis=True)
        left = self.left.truncate(max(room - 2, 0), ellipsis=True)
        return Content.assemble(left, " " * (room - left.cell_length), self.right)


class Header(Bar):
    """`story   stories15M · numpy · 2 threads · compiling numba     31 tok/s`"""

    DEFAULT_CSS = """
    Header { dock: top; height: 2; border-bottom: solid $border-blurred; padding: 0 2; }
    """

    def __init__(self, room: str) -> None:
        super().__init__()
        self._room = room

    def show(self, what: str, soon: str = "") -> None:
        """`soon`: what is on its way, more quietly."""
        self.left = Content.assemble((self._room, "bold $accent"), "   ", what, (soon, "dim") if soon else "")

    def show_rate(self, tokens_per_second: float) -> None:
        rate = tokens_per_second
        self.right = Content(f"{rate:.0f} tok/s" if rate >= 10 else f"{rate:.1f} tok/s" if rate else "")


class Status(Bar):
    """`the end                              context 312/1024 ━━━───────`"""

    def say(self, text: str, style: str = "") -> None:
        self.left = Content.styled(text, style)

    def show_context(self, used: int, limit: int, dropped: int) -> None:
        used = min(used, limit)  # a last token may stand outside, unread
        filled = -(-METER_CELLS * used // limit)
        full = used >= 0.9 * limit
        self.right = Content.assemble(
            (f"{dropped} forgotten · ", "$text-warning") if dropped else "",
            f"context {used}/{limit} ",
            ("━" * filled, "$text-warning" if full else "$accent"),
            ("─" * (METER_CELLS - filled), "$border-blurred"),
        )
