"""What outlives a room: its texts go into the history, and what the model has read of them to the disk.

Each room has a shelf: the document that is shown, and those before it, which undo reaches from a blank page.
They share one session, so that only one KV cache is held for each room.

Nothing here is imported before the first paint but this module itself: see `Keeping.opened`.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Union

from llamatui.app.tui.flow import printable
from llamatui.app.tui.launch import Launch
from llamatui.app.tui.runner import Runner
from llamatui.app.tui.sampling_panel import SamplingPanel

if TYPE_CHECKING:
    from pathlib import Path

    from llamatui.app.conversation import Conversation
    from llamatui.app.engine import Generation, Session
    from llamatui.app.history.recorder import Notice, Recorder
    from llamatui.app.history.snapshot import Document
    from llamatui.app.kv_store import KVStore
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling
    from llamatui.app.story import Story
    from llamatui.app.tree import Place
    from llamatui.app.tui.app import LlamaApp
    from llamatui.app.tui.room import Room

Content = Union["Story", "Conversation"]
Start = Callable[["Sampling"], "Generation"]

PATIENCE = 2.0  # seconds that leaving waits for each: the model's last token, the history, a KV cache
LARGEST = 1_000_000_000  # bytes of a KV cache that is still written when the app is left: about a second


@dataclass
class Shelf:
    document: "Document"
    earlier: list["Document"] = field(default_factory=list)
    later: "list[tuple[Document, Place]]" = field(default_factory=list)
    """What undo left, and where it led to: redo goes back from there, and from nowhere else."""
    is_cold: bool = True
    """Nobody has looked yet for what is kept on disk of what it reads."""


class Keeping:
    """Attributes:
    unsaved: Whether something was left that could not be saved.
    """

    def __init__(self, app: "LlamaApp", runner: Runner, options: Launch) -> None:
        """`runner`: the inference thread."""
        self._app = app
        self._runner = runner
        self._hasher = Runner("hashing", self._failed)
        self._options = options
        self._shelves: dict[Room, Shelf] = {}
        self._recorder: Recorder | None = None
        self._store: KVStore | None = None
        self._told: set[str] = set()  # problems of the store
        self._sha256: dict[Path, str] = {}
        self.unsaved = False

    # The history.

    def opened(self, room: "Room") -> None:
        """The room has another model, or its first."""
        from llamatui.app.history.snapshot import Document

        content = content_of(room)
        if room in self._shelves:
            self._shelves[room].document.content = content
            self._shelves[room].is_cold = True
        else:
            self._shelves[room] = Shelf(Document(content, room.sampling))
        if self._options.history:
            self._begin()
            self._hash(content.model)
        self.save(room)

    def _begin(self) -> None:
        if self._recorder is not None:
            return
        from llamatui.app.history.recorder import Recorder
        from llamatui.app.kv_store import KVStore

        self._recorder = Recorder(told=lambda notice: self._app.call_later(self._say, notice))
        # What is read is what was written: without a history it is not kept either.
        if self._options.kv_cache_mb > 0:
            self._store = KVStore(limit_bytes=self._options.kv_cache_mb * 10**6)

    def _say(self, notice: "Notice") -> None:
        self._app.notify(
            "\n".join(filter(None, (printable(notice.message), printable(notice.hint)))),
            title="History", severity="warning" if notice.is_problem else "information",
            timeout=12 if notice.is_problem else 6, markup=False,
        )  # fmt: skip

    def _failed(self, error: Exception) -> None:
        """Called on the thread that reads model files."""
        self._app.call_later(self._tell, f"The model file cannot be read: {error}")

    def _tell(self, problem: str) -> None:
        self._app.notify(printable(problem), title="KV cache", severity="warning", markup=False)

    def save(self, room: "Room") -> None:
        """Notes what is new in a room; to be called after each change, and with each frame."""
        shelf = self._shelves.get(room)
        if shelf is None or self._recorder is None:
            return
        document = shelf.document
        document.content = content_of(room)
        document.sampling = room.sampling
        document.sha256 = self.sha256(document.content.model)
        text, ids = room.partial()
        self._recorder.save(document, partial=text, ids=ids)

    def flush(self) -> None:
        """What comes next reads what was written."""
        if self._recorder is not None:
            self._recorder.flush(PATIENCE)

    def show_history(self, room: "Room", chosen: Callable[[str], object]) -> None:
        """`chosen` is called with the uid of what is to be opened."""
        if not self._options.history:
            self._app.notify("The history is off: see the setting `history`.")
            return
        from llamatui.app.history.collection import Library
        from llamatui.app.history.recorder import Notice
        from llamatui.app.tui.history_drawer import HistoryDrawer

        self.flush()
        library = Library(told=lambda message: self._app.call_later(self._say, Notice(message)))
        shelf = self._shelves.get(room)
        current = shelf.document.uid if shelf else None

        def left(uid: str | None) -> None:
            self._app.run_worker(library.close, thread=True)  # somebody may still be reading
            if uid is not None and uid != current:
                chosen(uid)

        self._app.push_screen(HistoryDrawer(library, room.NAME, current), left)

    # The shelf.

    def begin(self, room: "Room", content: Content) -> None:
        """A blank page takes the place of the text, which undo brings back from there."""
        from llamatui.app.history.snapshot import Document

        self.leave(room)
        shelf = self._shelves[room]
        self._share(shelf.document, content)
        shelf.earlier.append(shelf.document)
        shelf.later.clear()
        shelf.document = Document(content, room.sampling)

    def can_turn(self, room: "Room", step: int) -> bool:
        """Whether undo (-1) or redo (1) leads to another text."""
        shelf = self._shelves.get(room)
        if shelf is None:
            return False
        tree = content_of(room).tree
        if step < 0:
            return bool(shelf.earlier) and not tree.path and not tree.can_undo
        return bool(shelf.later) and not tree.can_redo and tree.here == shelf.later[-1][1]

    def turn(self, room: "Room", step: int) -> Content | None:
        """The text that undo (-1) or redo (1) leads to, which is the room's from now on."""
        if not self.can_turn(room, step):
            return None
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
        return content

    async def put(self, room: "Room", document: "Document") -> None:
        """Shows what was taken out of the history.

        Raises:
            ModelError: A chat, and the model that was opened meanwhile has no chat format.
        """
        content = self._told_to(document.content, room)
        self.leave(room)
        for left in self._all(self._shelves[room]):
            left.content.session = content.session  # the recorder knows them still: no second KV cache
        document.content = content
        self._shelves[room] = Shelf(document)
        panel = room.query_one(SamplingPanel)
        room.sampling = panel.sampling = document.sampling
        await panel.recompose()
        await room.put(content)

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
        """Of its file; "" as long as nobody knows."""
        return self._sha256.get(model.path, "")

    def _hash(self, model: "LoadedModel") -> None:
        from llamatui.app.file_hash import file_sha256, known_sha256

        path = model.path
        if path in self._sha256:
            return

        def compute() -> None:
            self._sha256[path] = file_sha256(path, self._hasher.check)

        with suppress(OSError):  # it is in memory, and may be gone from the disk
            if known := known_sha256(path):
                self._sha256[path] = known
            else:
                self._hasher.submit(compute)

    def starting(self, room: "Room", start: Start) -> Start:
        """`start`, which first takes from disk what is kept of what it reads. For the inference thread."""
        shelf, store = self._shelves.get(room), self._store
        if shelf is None or store is None or not shelf.is_cold:
            return start
        content = content_of(room)
        sha256 = self.sha256(content.model)
        if not sha256:
            return start
        shelf.is_cold = False

        def begin(sampling: "Sampling") -> "Generation":
            store.adopt(content.session, prompt_of(content), sha256)
            self._tell_problems(store)
            return start(sampling)

        return begin

    def leave(self, room: "Room") -> None:
        """Keeps what the model has read of the text that is left."""
        session, store = room.session, self._store
        if session is None or store is None or room.model is None:
            return
        if sha256 := self.sha256(room.model):
            self._runner.submit(partial(self._keep, store, session, sha256))

    def _keep(self, store: "KVStore", session: "Session", sha256: str) -> None:
        store.keep(session, sha256)
        self._tell_problems(store)

    def _tell_problems(self, store: "KVStore") -> None:
        for problem in store.problems:
            if problem not in self._told:
                self._told.add(problem)
                self._app.call_later(self._tell, problem)

    # The end.

    def close(self) -> None:
        """Saves the last words, then KV caches as far as that is quick. The inference thread still runs."""
        for room in self._shelves:
            self.save(room)
        self.flush()  # before anything that may take long
        for room in self._shelves:
            if room.run is not None:
                room.run.cancel()
        if self._settle():
            for room in self._shelves:
                if room.run is not None:
                    room.run.drain()
                    room.collect(room.run)
                    self.save(room)
            if self._recorder is not None:
                self.unsaved = not self._recorder.close(PATIENCE)
            for room in self._shelves:
                if room.session is not None and _size(room.session) <= LARGEST:
                    self.leave(room)
            self._settle()
        elif self._recorder is not None:
            self.unsaved = not self._recorder.close(PATIENCE)
        self._hasher.close()

    def _settle(self) -> bool:
        """Waits for what the inference thread was asked for; False if that takes too long."""
        if not self._shelves:
            return True
        settled = threading.Event()
        self._runner.submit(settled.set)
        return settled.wait(PATIENCE)


def content_of(room: "Room") -> Content:
    content = room.content
    assert content is not None
    return content


def prompt_of(content: Content) -> list[int]:
    """What the model is about to read."""
    from llamatui.app.engine import Limits
    from llamatui.app.story import Story

    if isinstance(content, Story):
        return content.prompt().ids
    question = content.question(Limits())
    return question[0] if question else []


def _size(session: "Session") -> int:
    return session.cache.length * session.backend.config.kv_bytes_per_token
