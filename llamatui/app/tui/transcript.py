"""A chat as it is shown: however long it is, only the messages around the reader are widgets.

The layout knows the height of every message, measured or estimated, so the scrollbar is true and the widgets
stand where they belong. What the reader looks at stays in its place when messages above it turn out to be
taller than estimated: the layout itself moves the scroll position, so that no frame shows a jump.
"""

import asyncio
from bisect import bisect_left, bisect_right
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.geometry import Region
from textual.layout import WidgetPlacement
from textual.timer import Timer
from textual.widget import Widget

from llamatui.app.tui.answer_markdown import VirtualSize
from llamatui.app.tui.chat_message import Answer, ChatMessage, Item, Marks, Note, widget_for

if TYPE_CHECKING:
    from llamatui.app.conversation import Turn
    from llamatui.app.tree import Node, Tree

AT_ONCE = 2
"""Messages that are made beside what is in view; then those who scroll or type have their turn."""
REST = 0.1  # seconds without scrolling until ...
BREATH = 0.01  # ... and from then on between two such times


class Rest(Widget):
    """Reaches down to where the last message ends, or the screen."""

    DEFAULT_CSS = "Rest { width: 100%; height: 100%; visibility: hidden; }"


class Transcript(VerticalScroll, can_focus=False):
    """Follows its end, unless the reader scrolled up."""

    DEFAULT_CSS = """
    Transcript { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    """
    virtual_size = VirtualSize()  # the gutter is there with and without a scroll bar

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Item] = []
        self.following = True
        self._of_turn: dict[Node, Item] = {}
        self._notes: dict[Node, list[Item]] = {}
        self._tops: list[int] = [0]  # where each item begins, and where the last one ends
        self._seen: tuple[Item, int] | None = None  # the first in view, and how many of its rows are above
        self._lock = asyncio.Lock()
        self._filling = False
        self._complete = True  # no widget is missing, or too much
        self._ahead: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Rest()

    # What it shows.

    async def show(self, tree: "Tree[Turn]", growing: Item | None = None) -> None:
        """Shows the path of `tree`, and an answer that is being given; what was there already stays."""
        items = list(self._notes.get(tree.root, ()))
        for turn in tree.path:
            items += [self._item(tree, turn), *self._notes.get(turn, ())]
        if growing is not None:
            items.append(growing)
        for index, item in enumerate(items):
            item.index = index
        self.items = items
        if self._seen and (
            self._seen[0].index >= len(items) or items[self._seen[0].index] is not self._seen[0]
        ):
            self._seen = None
        self._measure(self.scrollable_content_region.width or self.app.size.width)
        async with self._lock:
            await self._mount_window()
        for marks in self.query(Marks):
            marks.renew()

    def _item(self, tree: "Tree[Turn]", turn: "Turn") -> Item:
        item = self._of_turn.get(turn)
        if item is None:
            message = turn.message
            item = Item("user" if message.role == "user" else "assistant", message.content, turn)
            self._of_turn[turn] = item
        siblings = tree.siblings(turn)
        item.version = siblings.index(turn) + 1, len(siblings)
        item.stopped = turn.stopped
        return item

    def keep(self, item: Item, turn: "Turn") -> None:
        """The answer that was being given is `turn` now."""
        item.turn, item.text = turn, turn.message.content
        self._of_turn[turn] = item

    def note(self, after: "Node", text: str, kind: Any = "note") -> None:
        """Something that happened behind a turn; `show` shows it."""
        self._notes.setdefault(after, []).append(Item(kind, text))

    async def write(self, item: Item, text: str) -> None:
        """An answer goes on."""
        async with self._lock:  # a widget that is being made must not get a text twice, or never
            item.text += text
            if isinstance(widget := self.widget(item), Answer):
                await widget.write(text)

    async def finish(self, item: Item) -> None:
        """An answer has ended."""
        async with self._lock:
            if isinstance(widget := self.widget(item), Answer):
                await widget.finish()

    def widget(self, item: Item) -> Widget | None:
        return next((child for child in self._mounted() if child.item is item), None)

    def _mounted(self) -> list["ChatMessage | Note"]:
        return [child for child in self.children if isinstance(child, ChatMessage | Note)]

    def last_turn(self, kind: str = "") -> Item | None:
        """The last message, if it is of that kind."""
        turns = [item for item in self.items if item.turn is not None]
        return turns[-1] if turns and kind in ("", turns[-1].kind) else None

    # Where everything stands.

    def _measure(self, width: int) -> None:
        self._tops = list(accumulate((item.rows(width) for item in self.items), initial=0))

    def process_layout(self, placements: list[WidgetPlacement]) -> list[WidgetPlacement]:
        """Moves widgets to where their items are, and the scroll position with them."""
        rest = next(placement for placement in placements if isinstance(placement.widget, Rest))
        size = rest.region.size  # of the screen's part that is ours
        here = [
            p for p in placements if isinstance(p.widget, ChatMessage | Note) and self._has(p.widget.item)
        ]
        for placement in here:
            placement.widget.item.measured(size.width, placement.region.height)  # type: ignore[attr-defined]
        self._measure(size.width)
        placed = []
        for placement in here:
            top = self._tops[placement.widget.item.index]  # type: ignore[attr-defined]
            placed.append(placement._replace(region=placement.region.at_offset((placement.region.x, top))))
        end = self._tops[-1]
        gone = Region(0, end, size.width, 0)
        placed += [
            placement._replace(region=gone)
            for placement in placements
            if placement not in here and not isinstance(placement.widget, Rest)
        ]
        placed.append(rest._replace(region=Region(0, 0, size.width, max(end, size.height))))
        bottom = max(end - size.height, 0)
        if self.following or self._seen is None:
            self._put(bottom if self.following else min(self.scroll_y, bottom))
        else:
            item, hidden = self._seen
            self._put(min(self._tops[item.index] + min(hidden, item.rows(size.width) - 1), bottom))
        self._look_ahead(size.height, BREATH)
        return placed

    def _has(self, item: Item) -> bool:
        return item.index < len(self.items) and self.items[item.index] is item

    def _put(self, y: float) -> None:
        if y != self.scroll_y:
            # No watchers: this is a part of the layout, which is drawn from these numbers at once.
            self.set_reactive(Widget.scroll_y, y)
            self.set_reactive(Widget.scroll_target_y, y)
            self.vertical_scrollbar.position = y

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.following = new_value >= self.max_scroll_y
        if self.items:
            index = min(max(bisect_right(self._tops, new_value) - 1, 0), len(self.items) - 1)
            self._seen = self.items[index], int(new_value) - self._tops[index]
        self._look_ahead(self.size.height, REST)

    def _scroll_to(self, *args: Any, **options: Any) -> bool:
        # An animation would go on to where it was going, though that has moved meanwhile.
        return super()._scroll_to(*args, **{**options, "animate": False})

    # Which of them are widgets.

    def _range(self, height: int, margin: int) -> tuple[int, int]:
        """Items [first, last) from `margin` rows above the screen to `margin` rows below."""
        top = max(self._tops[-1] - height, 0) if self.following else self.scroll_y
        first = max(bisect_right(self._tops, top - margin) - 1, 0)
        return first, min(bisect_left(self._tops, top + height + margin), len(self.items))

    def _look_ahead(self, height: int, pause: float) -> None:
        """Has widgets made for what is in view, and for more of them, few by few, when the reader rests."""
        if self._ahead is not None:
            self._ahead.stop()
        if not self._covered(height, 0):
            self._fill_soon()
        elif not (self._complete and self._covered(height, height)):
            self._ahead = self.set_timer(pause, self._fill_soon)

    def _covered(self, height: int, margin: int) -> bool:
        first, last = self._range(height, margin)
        mounted = {child.item for child in self._mounted()}
        return mounted.issuperset(self.items[first:last])

    def _fill_soon(self) -> None:
        if not self._filling and self.is_attached:
            self._filling = True
            self.call_later(self._fill)

    async def _fill(self) -> None:
        async with self._lock:
            self._filling = False
            await self._mount_window()

    async def _mount_window(self) -> None:
        """Has widgets for what is in view, and for a few more of what is less than a screen away.

        Those that are more than two screens away go little by little.
        """
        height = self.size.height or self.app.size.height  # it may have never been shown
        keep = set(self.items[slice(*self._range(height, 2 * height))])
        there: dict[Item, Widget] = {}
        gone, far = [], []
        for child in self._mounted():
            if not self._has(child.item):
                gone.append(child)
            elif child.item in keep or child.has_focus:
                there[child.item] = child
            else:
                far.append(child)
        first, last = self._range(height, 0)
        wanted = self.items[slice(*self._range(height, height))]
        missing = sorted(
            (item for item in wanted if item not in there),
            key=lambda item: max(first - item.index, item.index - (last - 1), 0),
        )
        new = missing[: max(sum(first <= item.index < last for item in missing), AT_ONCE)]
        count = max(len(new), AT_ONCE)
        gone += far[:count]
        there |= {child.item: child for child in far[count:]}
        self._complete = len(new) == len(missing) and len(far) <= count
        with self.app.batch_update():
            if gone:
                await self.remove_children(gone)
            order = sorted({*new, *there}, key=lambda item: item.index)
            for is_there, run in groupby(order, key=lambda item: item in there):
                if not is_there:
                    made = list(run)
                    at = order.index(made[-1]) + 1
                    after = there[order[at]] if at < len(order) else None
                    await self.mount_all([widget_for(item) for item in made], before=after)
        for child in self._mounted():
            child.set_class(child.item.index == 0, "-first")

    # Going about in it.

    def last_in_view(self) -> int:
        """Index of the last item of which something can be seen."""
        return min(bisect_left(self._tops, self.scroll_y + self.size.height), len(self.items)) - 1

    def scroll_on(self, item: Item, step: int) -> bool:
        """Scrolls on within a message that is taller than the screen; False where its end is in view."""
        top, end = self._tops[item.index], self._tops[item.index + 1]
        hidden = self.scroll_y - top if step < 0 else end - (self.scroll_y + self.size.height)
        if hidden <= 0:
            return False
        self.scroll_to(y=self.scroll_y + step * min(hidden, max(self.size.height // 2, 1)), immediate=True)
        return True

    async def reveal(self, index: int) -> ChatMessage | None:
        """Scrolls to a message, and gives it the focus."""
        if not 0 <= index < len(self.items):
            return None
        item, height = self.items[index], self.size.height
        top, end = self._tops[index], self._tops[index + 1]
        if top < self.scroll_y or end > self.scroll_y + height:
            # From above, it is entered at its beginning; from below, at its end.
            fits = end - top <= height
            self.scroll_to(y=top if fits == (top < self.scroll_y) else end - height, immediate=True)
        async with self._lock:
            await self._mount_window()
        widget = self.widget(item)
        if isinstance(widget, ChatMessage):
            widget.focus(scroll_visible=False)
            return widget
        return None
