"""The page: a column of tokens that grows, wrapped as it comes, in the middle of whatever room there is."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.cache import LRUCache
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from llamatui.app.tui.flow import MEASURE, Flow, character, printable
from llamatui.app.tui.heat import Styles

if TYPE_CHECKING:
    from llamatui.app.story import Token


class Page(ScrollView, can_focus=True):
    """Renders only the lines on the screen, and wraps only what was added.

    While it grows, the page follows its end, unless the reader scrolled up. A cursor may stand on a token.
    """

    BINDING_GROUP_TITLE = "on the page"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter",
            "other_words",
            "other words",
            tooltip="choose among the words that could stand here",
            id="story.other",
        ),
        Binding(
            "backspace,delete",
            "rewind",
            "rewind",
            tooltip="end the story before the cursor",
            key_display="⌫",
            id="story.rewind",
        ),
        Binding("backspace,delete", "take_back", "last token back", show=False, id="story.take-back"),
        Binding("escape", "leave", "leave", tooltip="take the cursor away", id="story.leave"),
        Binding("left", "step(-1)", "token before", show=False, id="story.left"),
        Binding("right", "step(1)", "token behind", show=False, id="story.right"),
        Binding("up", "line(-1)", "line above", show=False, id="story.up"),
        Binding("down", "line(1)", "line below", show=False, id="story.down"),
        Binding("home", "edge(-1)", "start of the line", show=False, id="story.home"),
        Binding("end", "edge(1)", "end of the line", show=False, id="story.end"),
        Binding("ctrl+home", "far(-1)", "first token", show=False, id="story.first"),
        Binding("ctrl+end", "far(1)", "last token", show=False, id="story.last"),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "page--writer", "page--model", "page--caret", "page--forgotten", "page--cursor", "page--mark",
    }  # fmt: skip
    DEFAULT_CSS = """
    Page {
        height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1;
        & > .page--writer { text-style: bold; }
        & > .page--model { color: $foreground 88%; }
        & > .page--forgotten { color: $foreground 45%; }
        & > .page--caret { color: $accent; }
        & > .page--mark { color: $text-muted; }
        & > .page--cursor { background: $accent; color: $background; }
        &:ansi > .page--forgotten { text-style: dim; }
        &:ansi > .page--cursor { background: ansi_default; color: ansi_default; text-style: reverse; }
    }
    """

    @dataclass
    class CursorMoved(Message):
        """It stands on another token, on none, or that token on another place of the screen."""

        cursor: int | None

    @dataclass
    class Choose(Message):
        """The reader wants another token in the place of the cursor's."""

    @dataclass
    class Rewind(Message):
        """The story shall end before this token; None: before its last one."""

        token: "Token | None"

    def __init__(self) -> None:
        super().__init__()
        self._flow = Flow(MEASURE)
        self._tokens: list[Token] = []
        self._ends: list[int] = []  # where each token ends in the flow's text
        self._cursor: int | None = None
        self._column = 0  # where the cursor wants to be when it goes up and down
        self._writing = False
        self._heat = False
        self._forgotten = 0
        self._marks: dict[Token, str] = {}
        # Every line but the last stays as it is while the page grows.
        self._rendered: LRUCache[int, Strip] = LRUCache(1024)

    def on_mount(self) -> None:
        self.anchor()  # until the reader scrolls up

    @property
    def text(self) -> str:
        """As it is shown."""
        return self._flow.text

    @property
    def tokens(self) -> "Sequence[Token]":
        return self._tokens

    # What is on it.

    @property
    def writing(self) -> bool:
        """Whether a caret shows that more is coming."""
        return self._writing

    @writing.setter
    def writing(self, writing: bool) -> None:
        self._writing = writing
        self.refresh()

    @property
    def heat(self) -> bool:
        """Whether tokens are coloured by how likely the model found them."""
        return self._heat

    @heat.setter
    def heat(self, heat: bool) -> None:
        self._heat = heat
        self.redraw()

    @property
    def forgotten(self) -> int:
        """Tokens at the front that the model no longer reads."""
        return self._forgotten

    @forgotten.setter
    def forgotten(self, forgotten: int) -> None:
        if forgotten != self._forgotten:
            self._forgotten = forgotten
            self.redraw()

    def mark(self, token: "Token", label: str) -> None:
        """Puts `label` into the margin of the line where `token` begins."""
        self._marks[token] = label
        self.redraw()

    def redraw(self) -> None:
        """Shows what changed about tokens that are there."""
        self._rendered.clear()
        self.refresh()

    def append(self, tokens: "Sequence[Token]") -> None:
        texts = [printable(token.text) for token in tokens]
        end = len(self._flow.text)
        for text in texts:
            end += len(text)
            self._ends.append(end)
        self._tokens += tokens
        changed = self._flow.append("".join(texts)) + 1  # the page begins with an empty line
        for y in range(changed, len(self._flow) + 1):
            self._rendered.discard(y)
        self._resized()
        self.refresh_lines(changed, len(self._flow) + 1 - changed)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens."""
        del self._tokens[length:]
        del self._ends[length:]
        self._flow.truncate(self._ends[-1] if self._ends else 0)
        self._resized()
        self.redraw()

    def show(self, tokens: "Sequence[Token]") -> None:
        """Shows these tokens; those at the front that are there already stay."""
        pairs = enumerate(zip(self._tokens, tokens, strict=False))
        same = next(
            (i for i, (old, new) in pairs if old is not new),
            min(len(self._tokens), len(tokens)),
        )
        if same < len(self._tokens):
            self.truncate(same)
        if same < len(tokens):
            self.append(tokens[same:])
        if self._cursor is not None:
            if self._cursor >= len(tokens):
                self.move_to(None)
            else:
                self.post_message(self.CursorMoved(self._cursor))

    # Layout.

    def on_resize(self, event: events.Resize) -> None:
        width = max(1, min(MEASURE, self.size.width - 4))
        if width != self._flow.width:
            self._flow.resize(width)
        self._rendered.clear()
        self._resized()
        self.call_after_refresh(self._show_cursor)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._rendered.clear()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self._cursor is not None and round(old_value) != round(new_value):
            self.post_message(self.CursorMoved(self._cursor))

    @property
    def _margin(self) -> int:
        return max(0, (self.size.width - self._flow.width) // 2)

    def _resized(self) -> None:
        size = Size(self.size.width, len(self._flow) + 2)  # a line of air above and below
        scrolls, scrolled = size.height > self.size.height, self.virtual_size.height > self.size.height
        if size.width != self.virtual_size.width or scrolls != scrolled:
            self.virtual_size = size
        elif size != self.virtual_size:
            # Another line needs no layout of the screen, which takes longer than the model for a word.
            self.set_reactive(Widget.virtual_size, size)
            if scrolls:
                self._scroll_update(size)
                if self._anchored and not self._anchor_released:
                    self.scroll_y = self.max_scroll_y
                self.refresh()

    # The cursor.

    @property
    def cursor(self) -> int | None:
        """The token that it stands on."""
        return self._cursor

    def move_to(self, cursor: int | None) -> None:
        """Puts the cursor on a token, or takes it away."""
        if cursor is not None:
            cursor = self._visible(cursor)
        if cursor == self._cursor:
            return
        self._cursor = cursor
        self.redraw()
        if cursor is not None:
            self._column = self._place(cursor)[1]
            self._show_cursor()
        self.refresh_bindings()
        self.post_message(self.CursorMoved(cursor))

    def start_of(self, token: int) -> int:
        """Where `token` begins in `text`."""
        return self._ends[token - 1] if token else 0

    def look_at(self, token: int) -> None:
        """Scrolls to `token`, as soon as the page has its size, if it is there then."""

        def look() -> None:
            if (shown := self._visible(token)) is not None:
                self._scroll_to_token(shown)

        self.call_after_refresh(look)

    def cursor_region(self) -> Region | None:
        """Where the cursor is on the screen; None where it is not."""
        if self._cursor is None:
            return None
        line, column = self._place(self._cursor)
        y = line + 1 - self.scroll_offset.y
        if not 0 <= y < self.size.height:
            return None
        width = max(cell_len(printable(self._tokens[self._cursor].text).strip()), 1)
        return Region(self.region.x + self._margin + column, self.region.y + y, width, 1)

    def _visible(self, token: int) -> int | None:
        """`token`, or what completes the character that it begins; None behind the end."""
        while token < len(self._ends) and self._ends[token] == self.start_of(token):
            token += 1
        return token if token < len(self._ends) else None

    def _place(self, token: int) -> tuple[int, int]:
        """(line, column) of the first character of `token` that is no space."""
        start, end = self.start_of(token), self._ends[token]
        text = self._flow.text[start:end]
        at = start + len(text) - len(text.lstrip()) if text.strip() else start
        line = bisect_right(self._flow.starts, at) - 1
        return line, cell_len(self._flow.text[self._flow.starts[line] : at])

    def _at(self, line: int, column: int) -> int | None:
        """The token that is shown there; at the end of the line, the last one on it."""
        start, end = self._flow.line(line)
        at = start + character(self._flow.text[start:end], column)
        token = bisect_right(self._ends, max(min(at, end - 1), start))
        return min(token, len(self._tokens) - 1) if self._tokens else None

    def _show_cursor(self) -> None:
        if self._cursor is not None:
            self._scroll_to_token(self._cursor)

    def _scroll_to_token(self, token: int) -> None:
        line, _ = self._place(token)
        self.scroll_to_region(Region(0, line, 1, 3), animate=False, force=True)  # with a line around it

    def _put_in(self) -> bool:
        """Puts the cursor on the last token on the screen, unless it is somewhere already."""
        if self._cursor is not None or not self._tokens:
            return False
        last = min(self.scroll_offset.y + self.size.height - 2, len(self._flow) - 1)
        token = self._at(max(last, 0), self._flow.width)
        while token and self._ends[token] == self.start_of(token):
            token -= 1
        self.move_to(token)
        return True

    def action_step(self, step: int) -> None:
        if self._put_in() or self._cursor is None:
            return
        to = self._cursor + step
        while 0 <= to < len(self._ends) and self._ends[to] == self.start_of(to):
            to += step
        if to >= 0:
            self.move_to(to if to < len(self._tokens) else None)

    def action_line(self, step: int) -> None:
        if self._put_in() or self._cursor is None:
            return
        column = self._column
        line = self._place(self._cursor)[0] + step
        while 0 <= line < len(self._flow):
            to = self._at(line, column)
            if to is not None and to != self._cursor:
                self.move_to(to)
                self._column = column
                return
            line += step

    def action_edge(self, step: int) -> None:
        if self._cursor is None:
            self.action_scroll_home() if step < 0 else self.action_scroll_end()
            return
        line = self._place(self._cursor)[0]
        self.move_to(self._at(line, 0 if step < 0 else self._flow.width))

    def action_far(self, step: int) -> None:
        if self._tokens:
            last = len(self._tokens) - 1
            self.move_to(0 if step < 0 else last)

    def action_leave(self) -> None:
        self.move_to(None)

    def action_other_words(self) -> None:
        self.post_message(self.Choose())

    def action_rewind(self) -> None:
        if self._cursor is not None:
            self.post_message(self.Rewind(self._tokens[self._cursor]))

    def action_take_back(self) -> None:
        self.post_message(self.Rewind(None))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("other_words", "rewind"):
            return self._cursor is not None
        if action == "leave":
            return self._cursor is not None and not self._writing
        if action == "take_back":
            return bool(self._tokens)
        return True

    def on_click(self, event: events.Click) -> None:
        if event.chain > 1 or not self._tokens or self.text_selection is not None:
            return
        line = event.y + self.scroll_offset.y - 1
        column = event.x - self._margin
        if not 0 <= line < len(self._flow):
            self.move_to(None)
            return
        start, end = self._flow.line(line)
        inside = 0 <= column < max(cell_len(self._flow.text[start:end]), 1)
        self.move_to(self._at(line, column) if inside else None)

    # Rendering.

    def render_lines(self, crop: Region) -> list[Strip]:
        # Not by way of Textual's cache, which would style all lines again whenever the page scrolls.
        strips = [self.render_line(y) for y in crop.line_range]
        background = self.background_colors[1]
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
        if crop.column_span == (0, self.outer_size.width):
            return strips
        return [strip.crop(*crop.column_span) for strip in strips]

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
        width = self.outer_size.width  # the scroll bar is drawn over its last column
        if not 1 <= y <= len(self._flow):
            return Strip.blank(width, base)
        start, end = self._flow.line(y - 1)
        segments = self._segments(start, end)
        if self._writing and y == len(self._flow):
            segments.append(Segment("▌", self.get_component_rich_style("page--caret")))
        line = Strip(segments).apply_offsets(0, y)
        if (selection := self.text_selection) and (span := selection.get_span(y)):
            line = self._highlighted(line, *span)
        return Strip([self._margin_segment(y - 1, base), *line]).adjust_cell_length(width, base)

    def _margin_segment(self, line: int, base: Style) -> Segment:
        """What stands left of the text: the last mark of a token that begins on `line`."""
        margin = self._margin
        label = next((label for token, label in self._marks.items() if self._line_of(token) == line), "")
        if not label or margin < 2:
            return Segment(" " * margin, base)
        text = (label if len(label) < margin else label[:1]).rjust(margin - 1)
        return Segment(f"{text} ", self.get_component_rich_style("page--mark"))

    def _line_of(self, token: "Token") -> int:
        try:
            return self._place(self._tokens.index(token))[0]
        except ValueError:  # on another branch
            return -1

    def _segments(self, start: int, end: int) -> list[Segment]:
        """The text from `start` to `end`, cut where its style changes."""
        text = self._flow.text
        segments: list[Segment] = []
        index = bisect_right(self._ends, start)
        styles = Styles(self)
        while start < end:
            stop, style = min(end, self._ends[index]), styles.of(index)
            if segments and segments[-1].style is style:
                segments[-1] = Segment(segments[-1].text + text[start:stop], style)
            else:
                segments.append(Segment(text[start:stop], style))
            start, index = stop, index + 1
        if self._cursor is not None and text[end : end + 1] in ("\n", ""):
            # A newline is a token too, which nobody could see.
            here = bisect_right(self._ends, end)
            if here == self._cursor and self._tokens[here].text.lstrip(" ").startswith("\n"):
                segments.append(Segment("↵", self.get_component_rich_style("page--cursor")))
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
