"""What outlives a room: its texts go into the history, and what the model has read of them to the disk.

Each room has a shelf: the document that is shown, and those before it, which undo reaches from a blank page.
They share one session, so that only one KV cache is held for each room.

Nothing here is imported before the first paint but this module itself: see `Keeping.opened`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Union

from llamatui.app.tui.bars import Status
from llamatui.app.tui.flow import printable
from llamatui.app.tui.launch import LEAVING, Launch
from llamatui.app.tui.runner import Runner
from llamatui.app.tui.sampling_panel import SamplingPanel

if TYPE_CHECKING:
    from pathlib import Path

    from llamatui.app.conversation import Conversation
    from llamatui.app.engine import Generation, Session
    from llamatui.app.history.recorder import Notice, Recorder
    from llamatui.app.history.snapshot import Document
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling
    from llamatui.app.story import Story
    from llamatui.app.tree import Place
    from llamatui.app.tui.app import LlamaApp
    from llamatui.app.tui.caches import Caches
    from llamatui.app.tui.room import Room

Content = Union["Story", "Conversation"]
Start = Callable[["Sampling"], "Generation"]

PATIENCE = 2.0  # seconds that reading waits for what is being written
SETTLING = 2.0  # seconds of LEAVING that the model's last token may take
LARGEST = 1_000_000_000  # bytes of a KV cache that is still written when the app is left: about a second


@dataclass
class Shelf:
    """The documents of a room: the one that is shown, and what undo and redo reach from a blank page."""

    document: "Document"
    earlier: list["Document"] = field(default_factory=list)
    later: "list[tuple[Document, Place]]" = field(default_factory=list)
    """What undo left, and where it led to: redo goes back from there, and from nowhere else."""
    is_cold: bool = True
    """Nobody has looked yet for what is kept on disk of what it reads."""


class Keeping:
    """Between the rooms and the disk: knows which documents each room has, and has them saved.

    Attributes:
        unsaved: Whether something was left that could not be saved ...
        rescued: ... and the file that its text is in instead, if there was anything to write, and a place.
    """

    def __init__(self, app: "LlamaApp", runner: Runner, options: Launch) -> None:
        """`runner`: the inference thread."""
        self._app = app
        self._runner = runner
        self._options = options
        self._shelves: dict[Room, Shelf] = {}
        self._recorder: Recorder | None = None
        self._caches: Caches | None = None
        self._showing: Room | None = None  # has its document, and not yet what was typed beside it
        self.unsaved = False
        self.rescued: Path | None = None

    # The history.

    def opened(self, room: "Room") -> None:
        """The room has another model, or its first."""
        from llamatui.app.history.snapshot import Document

        content = content_of(room)
        if room in self._shelves:
            shelf = self._shelves[room]
            shelf.document.content = content
            shelf.is_cold = True
            for document in self._all(shelf):  # none holds on to the weights of the model before
                document.content = self._told_to(document.content, room)
        else:
            self._shelves[room] = Shelf(Document(content, room.sampling))
        if self._options.history:
            self._begin().learn(content.model)
        self.save(room)

    def _begin(self) -> "Caches":
        """There are no caches without a history: they would hold what was written."""
        if self._caches is None:
            from llamatui.app.history.recorder import Recorder
            from llamatui.app.tui.caches import Caches

            self._recorder = Recorder(told=lambda notice: self._app.call_later(self._say, notice))
            limit = self._options.kv_cache_mb * 10**6
            self._caches = Caches(self._runner, limit, lambda text: self._app.call_later(self._tell, text))
        return self._caches

    def _say(self, notice: "Notice") -> None:
        assert self._recorder is not None
        for room in self.rooms:
            for status in room.query(Status):  # none is left when the app closes
                status.warn("not saved" if self._recorder.is_failing else "")
        self._app.notify(
            "\n".join(filter(None, (printable(notice.message), printable(notice.hint)))),
            title="History", severity="warning" if notice.is_problem else "information",
            timeout=12 if notice.is_problem else 6, markup=False,
        )  # fmt: skip

    def _tell(self, problem: str) -> None:
        self._app.notify(printable(problem), title="KV cache", severity="warning", markup=False)

    def save(self, room: "Room", *, typed: bool = True) -> None:
        """Notes what is new in a room; to be called after each change, and with each frame.

        Args:
            typed: Whether to ask what was typed, too: not while a text grows, nor when the widgets are gone.
        """
        shelf = self._shelves.get(room)
        if shelf is None:
            return
        document = shelf.document
        document.content = content_of(room)
        document.sampling = room.sampling
        document.sha256 = self.sha256(document.content.model)
        if typed and room is not self._showing:
            document.draft = room.draft()
        if self._recorder is not None:
            text, ids = room.partial()
            self._recorder.save(document, partial=text, ids=ids)

    @property
    def rooms(self) -> "list[Room]":
        """Those that have a document."""
        return list(self._shelves)

    def flush(self) -> None:
        """What comes next reads what was written. Not for the event loop."""
        if self._recorder is not None:
            self._recorder.flush(PATIENCE)

    async def show_history(self, room: "Room", chosen: Callable[[str, str], object]) -> None:
        """`chosen` is called with the uid of what is to be opened, and what of it another branch has."""
        if not self._options.history:
            self._app.notify("The history is off: see the setting `history`.")
            return
        from llamatui.app.history.collection import Library
        from llamatui.app.tui.history_drawer import HistoryDrawer

        await asyncio.to_thread(self.flush)
        if self._app.screen is not room:
            return
        library = Library()
        shelf = self._shelves.get(room)
        current = shelf.document.uid if shelf else None
        drawer = HistoryDrawer(library, room.NAME, current)

        async def left(uid: str | None) -> None:
            self._app.run_worker(library.close, thread=True)  # somebody may still be reading
            if uid is not None and uid != current:
                chosen(uid, drawer.elsewhere)
            elif uid is not None and drawer.elsewhere:
                await self._turn_to(room, drawer.elsewhere)

        self._app.push_screen(drawer, left)

    async def _turn_to(self, room: "Room", sought: str) -> None:
        """Shows the branch of what is open that has `sought`."""
        from llamatui.app.history.branch import turn_to

        if room.busy or room.editing or not turn_to(content_of(room).tree, sought):
            self._app.notify("It stands on another branch.")
            return
        await room.put(content_of(room))
        self._app.notify("Another branch is shown, as it has what was looked for. Undo goes back.")

    # The shelf.

    async def begin(self, room: "Room", content: Content) -> None:
        """A blank page takes the place of the text, which undo brings back from there."""
        from llamatui.app.history.snapshot import Document

        self.leave(room)
        shelf = self._shelves[room]
        left = shelf.document
        self._share(left, content)
        shelf.earlier.append(left)
        shelf.later.clear()
        shelf.document = Document(content, room.sampling)
        await self._show(room, left)

    def can_turn(self, room: "Room", step: int) -> bool:
        """Whether undo (-1) or redo (1) leads to another text."""
        shelf = self._shelves.get(room)
        if shelf is None:
            return False
        tree = content_of(room).tree
        if step < 0:
            return bool(shelf.earlier) and not tree.path and not tree.can_undo
        return bool(shelf.later) and not tree.can_redo and tree.here == shelf.later[-1][1]

    async def turn(self, room: "Room", step: int) -> bool:
        """Shows the text that undo (-1) or redo (1) leads to, if there is one."""
        if not self.can_turn(room, step):
            return False
        self.leave(room)
        shelf = self._shelves[room]
        left = shelf.document
        if step < 0:
            shelf.document = shelf.earlier.pop()
            shelf.later.append((left, shelf.document.content.tree.here))
        else:
            shelf.document = shelf.later.pop()[0]
            shelf.earlier.append(left)
        content = self._told_to(shelf.document.content, room)
        self._share(left, content)
        shelf.document.content = content
        shelf.is_cold = True
        await self._show(room, left)
        return True

    async def put(self, room: "Room", document: "Document", sought: str = "") -> None:
        """Shows what was taken out of the history, on the branch that has `sought`.

        Raises:
            ModelError: A chat, and the model that was opened meanwhile has no chat format.
        """
        content = self._told_to(document.content, room)
        self.leave(room)
        shelf = self._shelves[room]
        for left in self._all(shelf):
            left.content.session = content.session  # the recorder knows them still: no second KV cache
        document.content = content
        self._shelves[room] = Shelf(document)
        await self._show(room, shelf.document)
        if sought:  # now that drafts are back with what they belong to
            await self._turn_to(room, sought)

    async def _show(self, room: "Room", left: "Document") -> None:
        """Brings the room to its document. What was typed beside a blank page goes along."""
        document = self._shelves[room].document
        content, draft = document.content, document.draft
        if not (left.content.tree.root.children and content.tree.root.children):
            words = dict.fromkeys(filter(None, (draft.typed, left.draft.typed)))
            draft = replace(draft, typed="\n".join(words))
            left.draft = replace(left.draft, typed="")
            if self._recorder is not None:
                self._recorder.save(left)
        panel = room.query_one(SamplingPanel)
        is_other = panel.sampling != document.sampling
        room.sampling = panel.sampling = document.sampling
        self._showing = room
        try:
            await room.put(content)  # before any other wait: what is saved meanwhile is what the room has
            room.take_draft(draft)
        finally:
            self._showing = None
        self.save(room)
        if is_other:
            await panel.recompose()

    @staticmethod
    def _all(shelf: Shelf) -> "list[Document]":
        return [shelf.document, *shelf.earlier, *(document for document, _ in shelf.later)]

    @staticmethod
    def _share(left: "Document", content: Content) -> None:
        """The session goes along: what both texts begin with is not read again."""
        session = left.content.session
        if content.session.context == session.context and content.model is left.content.model:
            content.session = session

    @staticmethod
    def _told_to(content: Content, room: "Room") -> Content:
        assert room.model is not None
        return content if content.model is room.model else content.told_to(room.model)

    # KV caches.

    def sha256(self, model: "LoadedModel") -> str:
        """Of the weights; "" as long as nobody knows."""
        return self._caches.sha256(model) if self._caches else ""

    def known_sha256(self, model: "LoadedModel") -> str:
        """The same, and looks whether the disk knows. Not for the event loop."""
        return self._caches.known(model) if self._caches else ""

    def starting(self, room: "Room", start: Start) -> Start:
        """`start`, which first takes from disk what is kept of what it reads. For the inference thread."""
        shelf, caches = self._shelves.get(room), self._caches
        if shelf is None or caches is None or not shelf.is_cold:
            return start
        content = content_of(room)

        def begin(sampling: "Sampling") -> "Generation":
            shelf.is_cold = not caches.adopt(content)
            return start(sampling)

        return begin

    def leave(self, room: "Room") -> None:
        """Keeps what the model has read of the text that is left."""
        if self._caches is not None and room.session is not None and room.model is not None:
            self._caches.keep(room.model, room.session)

    # The end.

    def close(self) -> None:
        """Saves the last words, then KV caches as far as that is quick. The inference thread still runs.

        What cannot be saved goes into a file.
        """
        deadline = time.monotonic() + LEAVING
        for room in self._shelves:
            if room.run is not None:
                room.run.cancel()
            self.save(room, typed=False)  # written while the model ends its last token
        settled = self._settle(SETTLING)
        if settled:
            for room in self._shelves:
                if room.run is not None:
                    room.run.drain()
                    room.collect(room.run)
                    self.save(room, typed=False)
        if self._recorder is not None and not self._recorder.close(deadline - time.monotonic()):
            self._rescue(self._recorder.unsaved)
        if settled:
            for room in self._shelves:
                if room.session is not None and _size(room.session) <= LARGEST:
                    self.leave(room)
            self._settle(deadline - time.monotonic())
        if self._caches is not None:
            self._caches.close()

    def _settle(self, timeout: float) -> bool:
        """Waits for what the inference thread was asked for; False if that takes too long."""
        if not self._shelves:
            return True
        settled = threading.Event()
        self._runner.submit(settled.set)
        return settled.wait(timeout)

    def _rescue(self, unsaved: "list[Document]") -> None:
        from llamatui.app.tui.rescue import rescue

        self.unsaved = True
        saying = {shelf.document: room.partial()[0] for room, shelf in self._shelves.items()}
        self.rescued = rescue([(document, saying.get(document, "")) for document in unsaved])


def content_of(room: "Room") -> Content:
    content = room.content
    assert content is not None
    return content


def _size(session: "Session") -> int:
    return session.cache.length * session.backend.config.kv_bytes_per_token
