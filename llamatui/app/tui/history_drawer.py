"""What was written or said before, in a drawer at the left of a room: to search, name, pin, delete and open.

The library is asked on other threads: the disk may be slow, and another process may have the history locked.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from llamatui.app.tui.bars import Keys, one_line, shortened
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.history_list import MARGIN, QUIET, HistoryList
from llamatui.app.tui.keys import key_of
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llamatui.app.history.collection import Hit, Library
    from llamatui.app.history.saved import Entry

PAGE = 100  # documents that are read at a time
MOST_FOUND = 100
PAUSE = 0.08  # seconds without a key until the words are looked for
PATIENCE = 0.3  # seconds until it is said that something takes long
LONGEST_TITLE = 200
NAMES = {"story": "Stories", "chat": "Chats"}


class SearchField(Input):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "screen.enter_list", "to the list", id="history.list"),
        Binding("up", "screen.enter_list", "to the list", show=False, id="history.list_up"),
    ]


class HistoryDrawer(ModalScreen[str | None], DismissedOnce[str | None]):
    """Dismissed with the uid of the document to open; None if all stays as it is."""

    TITLE = "The history"
    HELP = """
What you write is kept as you write it. Type to search all of it, with all branches: every word must be
there, or the beginning of one. The rest is done in the list below: **↓** goes there from the field.

A title that you give stays; an empty one follows the text again. What you pin stays on top.
"""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "close", id="history.close"),
        Binding("slash", "search", "search", show=False, id="history.search"),
        Binding("f1", "app.help", "help", id="history.help"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-beside")]  # noqa: RUF012 (Textual's own type)
    DEFAULT_CSS = """
    HistoryDrawer {
        layout: horizontal; background: $background 45%;
        & > Vertical {
            width: 44; height: 100%; padding: 1 1 0 2;
            background: $surface; border-right: solid $border-blurred;
        }
        &.-narrow > Vertical { width: 100%; border-right: none; }
        & Horizontal { height: 1; padding: 0 2; }
        & .title { width: 1fr; text-style: bold; }
        & .count { width: auto; }
        & #search, & #search:focus {
            border: none; height: 1; padding: 0; margin: 1 0 1 2; background: $surface;
            background-tint: transparent;
        }
        & Container { height: 1fr; layers: below above; }
        & HistoryList { layer: below; }
        & .empty { layer: above; color: $foreground-muted; padding: 0 1 0 2; height: auto; display: none; }
        & #name, & #name:focus {
            layer: above; position: absolute; display: none; border: none; height: 1; padding: 0;
            background: $background; background-tint: transparent;
        }
        & .note { height: auto; max-height: 7; padding: 1 0 0 2; display: none; color: $text-error; }
        & Keys { dock: none; padding: 0; margin: 1 0 0 2; background: $surface; }
    }
    """

    def __init__(
        self, library: "Library", kind: Literal["story", "chat"], current: str | None = None
    ) -> None:
        """`current`: uid of the document that is open."""
        super().__init__()
        self._library = library
        self._kind = kind
        self._current = current
        self._is_looking = False
        self._has_all = False
        self.elsewhere = ""
        """What was looked for, where a branch of the chosen document has it that is not shown."""
        self._opens = False  # the first that is found, because Enter was pressed meanwhile
        self._named: Entry | None = None  # gets a new title
        self._doomed: Entry | None = None  # is deleted, if that was meant

    def compose(self) -> ComposeResult:
        with Vertical():
            with Horizontal():
                yield Static(NAMES[self._kind], classes="title")
                yield Static(classes="count")
            yield SearchField(placeholder="type to search", compact=True, id="search")
            with Container():
                yield HistoryList(self._current)
                yield Static(classes="empty", markup=False)
                yield Input(
                    placeholder="empty: the text names it", max_length=LONGEST_TITLE, compact=True, id="name"
                )
            yield Static(classes="note", markup=False)
            yield Keys()

    def on_mount(self) -> None:
        self._field.focus()
        self._look()

    @property
    def _list(self) -> HistoryList:
        return self.query_one(HistoryList)

    @property
    def _field(self) -> Input:
        return self.query_one("#search", Input)

    # Reading.

    @on(Input.Changed, "#search")
    def _look_soon(self) -> None:
        self._look(PAUSE)

    def _look(self, pause: float = 0, at: str | None = None) -> None:
        """Reads again what there is. `at`: uid for the cursor."""
        self._is_looking, self._opens = True, False
        self._read(pause, at)

    @work(exclusive=True, exit_on_error=False)
    async def _read(self, pause: float, at: str | None) -> None:
        await asyncio.sleep(pause)
        slow = self.set_timer(PATIENCE, self._say_looking)
        sought = self._field.value.strip()
        limit = PAGE if at is None else max(PAGE, len(self._list.entries))
        try:
            entries, hits, total = await asyncio.to_thread(self._ask, sought, limit)
        except Exception as error:  # shown; the room goes on
            self._is_looking = False
            self._fail(error)
            return
        finally:
            slow.stop()
        self._is_looking = False  # not if it was cancelled: then the next one looks
        self._has_all = bool(sought) or len(entries) < limit
        self._say("")
        if not entries:
            self._say_empty(
                f"Nothing has “{one_line(sought)}” in it." if sought
                else "Nothing here yet. What you write is kept as you write it."
            )  # fmt: skip
        else:
            self.query_one(".empty").display = False
        if sought and len(entries) == MOST_FOUND:
            self._say("More was found than is shown. Another word would narrow it.", QUIET)
        count = f"{len(entries):,} found" if sought else f"{total:,}" if total else ""
        self.query_one(".count", Static).update(Content.styled(count, QUIET))
        self._list.show(entries, hits, sought, at or (None if sought else self._current))
        if self._opens:
            self._open(self._list.chosen)

    def _ask(self, sought: str, limit: int) -> "tuple[Sequence[Entry], Mapping[str, Hit], int]":
        total = self._library.count(self._kind)
        if not sought:
            return self._library.list(self._kind, limit), {}, total
        hits = self._library.search(sought, self._kind, MOST_FOUND)
        return [hit.entry for hit in hits], {hit.entry.uid: hit for hit in hits}, total

    @on(HistoryList.NearEnd)
    def _look_further(self) -> None:
        if not (self._is_looking or self._has_all):
            self._is_looking = True
            self._read_on()

    @work(exclusive=True, exit_on_error=False)
    async def _read_on(self) -> None:
        try:
            offset = len(self._list.entries)
            entries = await asyncio.to_thread(self._library.list, self._kind, PAGE, offset)
        except Exception as error:
            self._is_looking, self._has_all = False, True
            self._fail(error)
            return
        self._is_looking, self._has_all = False, len(entries) < PAGE
        self._list.append(entries)

    def on_resize(self) -> None:
        self._stop_renaming()

    # Saying.

    def _say(self, text: str, style: str = "$text-error") -> None:
        note = self.query_one(".note", Static)
        note.update(Content.styled(text, style))
        note.display = bool(text)

    def _say_looking(self) -> None:
        if self._list.entries:
            self._say("Looking …", QUIET)
        else:
            self._say_empty("Looking …")

    def _say_empty(self, text: str) -> None:
        empty = self.query_one(".empty", Static)
        empty.update(text)
        empty.display = True

    def _fail(self, error: Exception) -> None:
        self._say("\n".join(filter(None, explain(error))))

    # Opening and leaving.

    @on(Input.Submitted, "#search")
    def _submitted(self) -> None:
        if self._is_looking:
            self._opens = True
        else:
            self._open(self._list.chosen)

    def _open(self, entry: "Entry | None") -> None:
        if self._doomed is not None:
            self._answer(entry is self._doomed)
        elif entry is not None and self._named is None:
            hit = self._list.hits.get(entry.uid)
            self.elsewhere = self._list.sought if hit and not hit.shown else ""
            self.dismiss(entry.uid)

    def action_leave(self) -> None:
        if self._doomed is not None:
            self._answer(False)
        elif self._named is not None:
            self._stop_renaming()
        else:
            self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        if event.widget is self:  # beside the drawer
            self.dismiss(None)

    def action_enter_list(self) -> None:
        if self._list.chosen is not None:
            self._list.focus()

    @on(HistoryList.Left)
    def action_search(self) -> None:
        self._field.focus()

    # Changing.

    @on(HistoryList.Wanted)
    def _do(self, message: HistoryList.Wanted) -> None:
        entry = message.entry
        if not self.is_active:  # the key before it has closed the drawer
            return
        if message.deed == "open":
            self._open(entry)
            return
        self._answer(False)
        if message.deed == "pin":
            self._change(lambda: self._library.pin(entry.uid, not entry.pinned), entry.uid)
        elif message.deed == "rename":
            self._rename(entry)
        elif entry.uid == self._current:
            self._say("It is open. Go to another one first: then it can be deleted.")
        else:
            self._doomed = entry
            title, keeps = shortened(one_line(entry.title), 20), key_of(self, "history.close")
            self._say(f"Delete “{title}” for good?\nEnter deletes, {keeps} keeps.", "$text-error bold")

    @work(group="changes", exit_on_error=False)
    async def _change(self, deed: Callable[[], None], at: str | None) -> None:
        """`at`: uid for the cursor then."""
        try:
            await asyncio.to_thread(deed)
        except UsageError:
            self.notify("It is not there any more: it was deleted elsewhere.")
        except Exception as error:
            self._fail(error)
            return
        self._look(at=at)

    def _answer(self, yes: bool) -> None:
        """Whether what was asked about goes; nothing may have been asked."""
        entry, self._doomed = self._doomed, None
        self._say("")
        if entry is not None and yes:
            entries = self._list.entries
            place = entries.index(entry)
            beside = [*entries[place + 1 : place + 2], *entries[place - 1 : place]]
            self._change(lambda: self._delete(entry.uid), beside[0].uid if beside else None)

    def _delete(self, uid: str) -> None:
        from llamatui.app.kv_store import KVStore

        self._library.remove(uid)
        KVStore().clear()  # what models have read of it

    @on(HistoryList.Moved)
    def _moved(self) -> None:
        if self._doomed is not None and self._list.chosen is not self._doomed:
            self._answer(False)

    def _rename(self, entry: "Entry") -> None:
        entries = self._list
        self._named = entry
        name = self.query_one("#name", Input)
        name.styles.offset = entries.place
        name.styles.width = entries.outer_size.width - MARGIN - 2
        name.value = one_line(entry.title)
        name.display = True
        name.focus()
        self._say(f"Enter keeps this title, {key_of(self, 'history.close')} the old one.", QUIET)

    def _stop_renaming(self) -> None:
        if self._named is not None:
            self._named = None
            self.query_one("#name").display = False
            self._say("")
            self._list.focus()

    @on(Input.Submitted, "#name")
    def _renamed(self, event: Input.Submitted) -> None:
        entry, title = self._named, event.value.strip()
        if entry is None:
            return
        self._stop_renaming()
        if title != one_line(entry.title):
            self._change(lambda: self._library.rename(entry.uid, title), entry.uid)

    @on(events.DescendantBlur)
    def _left(self, event: events.DescendantBlur) -> None:
        if event.widget is self._list and self._doomed is not None:
            self._answer(False)  # Enter means something else now
        elif event.widget.id == "name" and self._named is not None:
            self._named = None
            self._say("")
            event.widget.display = False
