"""The rows of the history: two lines for each document, under quiet headings, and how they are worded."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.style import Style as VisualStyle
from textual.visual import Visual

from llamatui.app.history.collection import ELSEWHERE
from llamatui.app.tui.bars import one_line, shortened
from llamatui.app.tui.flow import printable

if TYPE_CHECKING:
    from llamatui.app.history.collection import Hit
    from llamatui.app.history.saved import Entry

QUIET = "$foreground-muted"
FOUND = "$accent underline"
SHORT_NAME = 7  # cells that a model's name has at least
MARGIN = 2
"""Cells at the left of a row, where the document that is open has its mark."""
CURRENT = "●"
PINNED = "★"


class HistoryList(ScrollView, can_focus=True):
    """Enter or a click opens; above the first row is the field. What is not on the screen costs nothing."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"history--cursor", "history--hover"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "want('open')", "open", show=False, id="history.open"),
        Binding("r,f2", "want('rename')", "rename", id="history.rename"),
        Binding("p", "want('pin')", "pin", id="history.pin"),
        Binding("delete", "want('remove')", "delete", id="history.delete"),
        Binding("up", "up", "up", show=False, id="history.up"),
        Binding("down", "move(1)", "down", show=False, id="history.down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="history.page_up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="history.page_down"),
        Binding("home", "first", "first", show=False, id="history.first"),
        Binding("end", "last", "last", show=False, id="history.last"),
    ]
    DEFAULT_CSS = """
    HistoryList {
        height: 1fr; background: $surface; scrollbar-size-vertical: 1; overflow-x: hidden;
        & > .history--hover { background: $foreground 5%; }
        & > .history--cursor { background: $foreground 10%; }
        &:focus > .history--cursor { background: $accent 28%; }
        &:ansi > .history--hover, &:ansi > .history--cursor { background: $surface; }
        &:ansi:focus > .history--cursor { background: $surface; text-style: reverse; }
    }
    """

    cursor: reactive[int | None] = reactive(None)
    """Which of the entries."""
    hover: reactive[int | None] = reactive(None)

    @dataclass
    class Wanted(Message):
        """Something is to be done with the document under the cursor: open, rename, pin or remove it."""

        deed: str
        entry: "Entry"

    class Moved(Message):
        """The cursor is on another document."""

    class Left(Message):
        """The cursor went up from the first row."""

    class NearEnd(Message):
        """What is loaded will soon be at its end."""

    def __init__(self, current: str | None) -> None:
        """`current`: uid of the document that is open."""
        super().__init__()
        self._current = current
        self._now = datetime.now().astimezone()
        self._lines: list[tuple[int, int] | str] = []
        """(number of the entry, which of its lines), or a heading."""
        self._tops: list[int] = []  # the first line of each entry
        self.entries: list[Entry] = []
        self.hits: Mapping[str, Hit] = {}
        """By uid; empty unless something is looked for."""
        self.sought = ""

    # What is shown.

    def show(
        self, entries: "Iterable[Entry]", hits: "Mapping[str, Hit]", sought: str, at: str | None
    ) -> None:
        """Shows these instead, with the cursor on the document `at`, or on the first."""
        self._now = datetime.now().astimezone()
        self._lines, self._tops, self.entries = [], [], []
        self.hits, self.sought = hits, sought
        self.append(entries)
        uids = [entry.uid for entry in self.entries]
        self.set_reactive(HistoryList.cursor, None)
        self.hover = None
        self.cursor = (uids.index(at) if at in uids else 0) if uids else None

    def append(self, entries: "Iterable[Entry]") -> None:
        known = {entry.uid for entry in self.entries}
        last = self._heading(self.entries[-1]) if self.entries else ""
        for entry in entries:
            if entry.uid in known:  # something else became newer meanwhile, and pushed it down
                continue
            known.add(entry.uid)
            heading = self._heading(entry)
            if heading != last:
                self._lines += ["", heading] if self._lines else [heading]
                last = heading
            number = len(self.entries)
            self.entries.append(entry)
            self._tops.append(len(self._lines))
            self._lines += [(number, 0), (number, 1)]
        self.virtual_size = Size(self.outer_size.width, len(self._lines))
        self.refresh()

    def _heading(self, entry: "Entry") -> str:
        return "" if self.sought else heading_of(entry, self._now)

    def on_resize(self) -> None:
        self._show_cursor()

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        width = self.size.width
        line = self._lines[y] if y < len(self._lines) else ""
        if isinstance(line, str):
            content, component = Content.assemble(" " * MARGIN, (line, QUIET)), ""
        else:
            number, part = line
            content = self._row(self.entries[number])[part]
            component = (
                "history--cursor" if number == self.cursor
                else "history--hover" if number == self.hover else ""
            )  # fmt: skip
        style = self.get_visual_style(component) if component else self.visual_style
        if component:
            style += VisualStyle(reverse=self.get_component_styles(component).text_style.reverse)
        strip = Visual.to_strips(self, content, width, 1, style)[0]
        return strip.adjust_cell_length(width, style.rich_style)

    def _row(self, entry: "Entry") -> tuple[Content, Content]:
        cells = self.outer_size.width - MARGIN - 2  # a scrollbar may come, and something between
        is_current = entry.uid == self._current
        mark = (f"{CURRENT:{MARGIN}}", "$accent") if is_current else " " * MARGIN
        room = cells - (2 if entry.pinned else 0)
        title = one_line(entry.title) or "untitled"
        name = marked(title, self.sought, "bold" if is_current else "").truncate(room, ellipsis=True)
        pin = " " * (room - name.cell_length) + f" {PINNED}" if entry.pinned else ""
        hit = self.hits.get(entry.uid)
        if hit and any(found for _, found in hit.snippet):
            origin = "" if hit.shown or cells < 2 * len(ELSEWHERE) else ELSEWHERE
            second = Content.assemble((origin, QUIET), excerpt(hit.snippet, cells - len(origin)))
        else:
            second = Content.styled(about(entry, self._now, cells), QUIET)
        return (
            Content.assemble(mark, name, (pin, "$accent")),
            Content.assemble(" " * MARGIN, second.truncate(cells, ellipsis=True)),
        )

    # The cursor.

    @property
    def chosen(self) -> "Entry | None":
        """What is under the cursor."""
        return self.entries[self.cursor] if self.cursor is not None else None

    @property
    def place(self) -> Offset:
        """Where the title under the cursor begins, from the list's own corner."""
        assert self.cursor is not None
        return Offset(MARGIN, self._tops[self.cursor] - self.scroll_offset.y)

    def watch_cursor(self) -> None:
        self._show_cursor()
        self.post_message(self.Moved())

    def _show_cursor(self) -> None:
        if self.cursor is not None:
            top = self._tops[self.cursor] if self.cursor else 0  # with the heading above the first
            region = Region(0, top, 1, self._tops[self.cursor] + 2 - top)
            self.scroll_to_region(region, animate=False, force=True, immediate=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if len(self._lines) - new_value < 3 * self.size.height:
            self.post_message(self.NearEnd())

    def action_move(self, step: int) -> None:
        if self.cursor is not None:
            self.cursor = min(max(self.cursor + step, 0), len(self.entries) - 1)

    def action_page(self, pages: int) -> None:
        self.action_move(pages * max(self.size.height // 2 - 1, 1))

    def action_up(self) -> None:
        if self.cursor:
            self.action_move(-1)
        else:
            self.post_message(self.Left())

    def action_first(self) -> None:
        self.action_move(-len(self.entries))

    def action_last(self) -> None:
        self.action_move(len(self.entries))

    def action_want(self, deed: str) -> None:
        if self.chosen is not None:
            self.post_message(self.Wanted(deed, self.chosen))

    # The mouse.

    def _at(self, event: events.MouseEvent) -> int | None:
        y = event.y + self.scroll_offset.y
        line = self._lines[y] if y < len(self._lines) else ""
        return None if isinstance(line, str) else line[0]

    def on_mouse_move(self, event: events.MouseMove) -> None:
        self.hover = self._at(event)

    def on_leave(self) -> None:
        self.hover = None

    def on_click(self, event: events.Click) -> None:
        number = self._at(event)
        if number is not None:
            self.cursor = number
            self.action_want("open")


def heading_of(entry: "Entry", now: datetime) -> str:
    """Below which heading a document stands."""
    if entry.pinned:
        return "Pinned"
    day = datetime.fromtimestamp(entry.changed, now.tzinfo)
    days = (now.date() - day.date()).days
    if days <= 0:
        return "Today"
    if days == 1:
        return "Yesterday"
    if days < 7:
        return "Last 7 days"
    return f"{day:%B}" if day.year == now.year else f"{day:%B %Y}"


def ago(moment: float, now: datetime) -> str:
    """ "5 min ago", "Sunday", "3 Sep", "3 Sep 2024": what one remembers it by."""
    then = datetime.fromtimestamp(moment, now.tzinfo)
    seconds = (now - then).total_seconds()
    days = (now.date() - then.date()).days
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if days < 1:
        return f"{seconds // 3600:.0f} h ago"
    if days == 1:
        return "yesterday"
    if days < 7:
        return f"{then:%A}"
    return f"{then.day} {then:%b}" if then.year == now.year else f"{then.day} {then:%b %Y}"


def about(entry: "Entry", now: datetime, cells: int) -> str:
    """`312 words · stories · 5 min ago`; words are counted a little after they were written."""
    words = f"{entry.words:,} word{'s' if entry.words != 1 else ''}" if entry.words else ""
    age = ago(entry.changed, now)
    room = cells - len(words) - len(age) - 6
    model = shortened(one_line(entry.model), room) if room >= SHORT_NAME else ""
    return " · ".join(filter(None, (words, model, age)))


def marked(title: str, sought: str, style: str) -> Content:
    """A title, with the words that begin as those that are looked for."""
    content = Content.styled(title, style)
    if words := sorted(map(re.escape, sought.split()), key=len, reverse=True):
        for match in re.finditer(rf"(?<!\w)(?:{'|'.join(words)})", title, re.IGNORECASE):
            content = content.stylize(FOUND, match.start(), match.end())
    return content


def excerpt(parts: "Sequence[tuple[str, bool]]", cells: int) -> Content:
    """What was found in a text, and as much around it as fits a line."""
    pieces = [(" ".join(re.split(r"\s", printable(text))), found) for text, found in parts]
    first = next(i for i, (_, found) in enumerate(pieces) if found)
    before = "".join(text for text, _ in pieces[:first])
    most = max(cells - 1 - sum(cell_len(text) for text, _ in pieces[first:]), cells // 3, 0)
    if cell_len(before) > most:
        while cell_len(before) > most and " " in before.rstrip():
            before = before.partition(" ")[2]
        before = before[-most:]
        while cell_len(before) > most:
            before = before[1:]
        before = f"…{before}"
    return Content.assemble(
        (before, QUIET), *((text, FOUND if found else QUIET) for text, found in pieces[first:])
    )
