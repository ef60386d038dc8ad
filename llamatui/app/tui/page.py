"""The page: a column of text that grows, wrapped as it comes, in the middle of whatever room there is."""

from bisect import bisect_left, bisect_right
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.cache import LRUCache
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from llamatui.app.tui.flow import Flow, printable

MEASURE = 72  # columns of text, about what a line of a book holds


class Page(ScrollView, can_focus=True):
    """Renders only the lines on the screen, and wraps only what was added.

    Text has an author, "writer" or "model", each with a style of its own. While it grows, the page follows
    its end, unless the reader scrolled up.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"page--writer", "page--model", "page--caret"}
    DEFAULT_CSS = """
    Page {
        height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1;
        & > .page--writer { text-style: bold; }
        & > .page--model { color: $foreground 88%; }
        & > .page--caret { color: $accent; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._flow = Flow(MEASURE)
        self._parts: list[tuple[int, str]] = []  # where each author's words start
        self._writing = False
        # Every line but the last stays as it is while the page grows.
        self._rendered: LRUCache[int, Strip] = LRUCache(1024)

    def on_mount(self) -> None:
        self.anchor()  # until the reader scrolls up

    @property
    def text(self) -> str:
        """As it is shown."""
        return self._flow.text

    @property
    def writing(self) -> bool:
        """Whether a caret shows that more is coming."""
        return self._writing

    @writing.setter
    def writing(self, writing: bool) -> None:
        self._writing = writing
        self.refresh()

    def append(self, text: str, author: str) -> None:
        if not self._parts or self._parts[-1][1] != author:
            self._parts.append((len(self._flow.text), author))
        changed = self._flow.append(printable(text)) + 1  # the page begins with an empty line
        for y in range(changed, len(self._flow) + 1):
            self._rendered.discard(y)
        self._resized()
        self.refresh_lines(changed, len(self._flow) + 1 - changed)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` characters of `text`."""
        self._flow.truncate(length)
        self._rendered.clear()
        del self._parts[bisect_left(self._parts, (length, "")) :]
        self._resized()
        self.refresh()

    def on_resize(self, event: events.Resize) -> None:
        width = max(1, min(MEASURE, self._room))
        if width != self._flow.width:
            self._flow.resize(width)
        self._rendered.clear()
        self._resized()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._rendered.clear()

    @property
    def _room(self) -> int:
        """Columns between the margins."""
        return self.size.width - 4

    @property
    def _margin(self) -> int:
        return max(0, (self.size.width - self._flow.width) // 2)

    def _resized(self) -> None:
        self.virtual_size = Size(self.size.width, len(self._flow) + 2)  # a line of air above and below

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        settled = y != len(self._flow) and self.text_selection is None
        if settled and (known := self._rendered.get(y)):
            return known
        strip = self._render_line(y)
        if settled:
            self._rendered[y] = strip
        return strip

    def _render_line(self, y: int) -> Strip:
        """Line `y` of the page."""
        base = self.rich_style
        width = self.size.width
        if not 1 <= y <= len(self._flow):
            return Strip.blank(width, base)
        segments = self._segments(*self._flow.line(y - 1))
        if self._writing and y == len(self._flow):
            segments.append(Segment("▌", self.get_component_rich_style("page--caret")))
        line = Strip(segments).apply_offsets(0, y)
        if (selection := self.text_selection) and (span := selection.get_span(y)):
            line = self._highlighted(line, *span)
        return Strip([Segment(" " * self._margin, base), *line]).adjust_cell_length(width, base)

    def _segments(self, start: int, end: int) -> list[Segment]:
        """The text from `start` to `end`, cut where its author changes."""
        text, parts = self._flow.text, self._parts
        segments = []
        part = bisect_right(parts, start, key=lambda p: p[0]) - 1
        while start < end:
            stop = min(end, parts[part + 1][0]) if part + 1 < len(parts) else end
            segments.append(
                Segment(text[start:stop], self.get_component_rich_style(f"page--{parts[part][1]}"))
            )
            start, part = stop, part + 1
        return segments

    def _highlighted(self, line: Strip, start: int, end: int) -> Strip:
        """`line` with characters start..end (-1: to its end) marked as selected."""
        selected = self.screen.get_component_rich_style("screen--selection")
        segments, at = [], 0
        for text, style, _ in line:
            stop = len(text) if end < 0 else max(0, min(len(text), end - at))
            first = max(0, min(stop, start - at))
            plain = style or Style.null()
            segments += [
                Segment(text[:first], plain),
                Segment(text[first:stop], plain + selected),
                Segment(text[stop:], plain),
            ]
            at += len(text)
        return Strip([segment for segment in segments if segment.text])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        lines = ["", *(self._flow.text[slice(*self._flow.line(y))] for y in range(len(self._flow)))]
        return selection.extract("\n".join(lines)), "\n"
