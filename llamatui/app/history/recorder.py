"""Writes what is open into the history while it grows, on a thread of its own, and never fails.

`save` notes what is new, which is cheap, and the writer commits it a moment later: less than a second of work
is lost when the process is killed. What cannot be written is kept in memory and tried again.
"""

import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

from llamatui.app.history.database import (
    FAILURES,
    database_path,
    explained,
    is_damage,
    open_database,
    same_file,
    writing,
)
from llamatui.app.history.fulltext import refresh, remove, with_index
from llamatui.app.history.rows import Row, delete_rows, readable, storable, write_rows
from llamatui.app.history.snapshot import Change, Document
from llamatui.errors import HistoryError

INTERVAL = 0.3  # seconds between commits
RETRY = 3.0  # seconds until what failed is tried again
QUIET = 2.0  # seconds without anything new until the index is brought up to date

COPIED = "changed elsewhere; what is here goes on as a copy"
KEPT = "deleted elsewhere; what is here is kept, for it goes on"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a person should know."""

    message: str
    hint: str = ""
    is_problem: bool = False
    """Nothing is saved now. Another notice, which is none, follows once everything is."""


@dataclass(slots=True)
class _Stored:
    """What the history holds of a document, as far as this process knows."""

    uid: str
    revision: int
    rows: dict[int, Row]

    def after(self, change: Change) -> dict[int, Row]:
        """All rows, once `change` is written too."""
        rows = change.rows if change.whole else {**self.rows, **change.rows}
        return {number: row for number, row in rows.items() if row is not None}

    def apply(self, change: Change) -> None:
        if change.whole:
            self.rows = {}
        for number, row in change.rows.items():
            if row is None:
                self.rows.pop(number, None)
            else:
                self.rows[number] = row


class Recorder:
    """Saves documents. Its methods are for one thread, the event loop's; `flush` is for others.

    Attributes:
        is_failing: Whether the last thing that was to be committed could not be.
    """

    def __init__(
        self,
        path: Path | None = None,
        told: Callable[[Notice], object] = lambda notice: None,
        *,
        interval: float = INTERVAL,
    ) -> None:
        """
        Args:
            path: Of the database; None: the user's.
            told: Called on the writer's thread.
            interval: Seconds between commits.
        """
        self._path = path or database_path()
        self._told = told
        self._interval = interval
        self._changed = threading.Condition()  # guards what follows
        self._waiting: dict[Document, Change] = {}
        self._batch: dict[Document, Change] = {}  # is being written
        self._hurry = False  # somebody waits for it
        self._closing = False
        self._failures = 0
        self._thread: threading.Thread | None = None
        # Of the writer's thread alone:
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._stored = WeakKeyDictionary[Document, _Stored]()
        self._begun = 0.0  # when another file took the place of the one before, by the monotonic clock
        self.is_failing = False

    def save(self, document: Document, *, partial: str = "", ids: Sequence[int] = ()) -> None:
        """Notes what is new in a document; the writer follows.

        To be called after every change, and while a text grows, as often as the screen is drawn.

        Args:
            partial: Of a chat: what has been said of an answer that is still being given ...
            ids: ... and its ids.
        """
        change = document.look(partial, ids)
        if change is None:
            return
        with self._changed:
            before = self._waiting.get(document)
            self._waiting[document] = before.then(change) if before else change
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="history", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until everything is committed; False if it could not be, or took longer."""
        with self._changed:
            failures = self._failures
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_idle or self._failures > failures, timeout)
            return self._is_idle

    def close(self, timeout: float | None = None) -> bool:
        """`flush`, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)
        return self._is_idle

    @property
    def unsaved(self) -> list[Document]:
        """What has changed since it was committed."""
        with self._changed:
            return list({**self._batch, **self._waiting})

    @property
    def _is_idle(self) -> bool:
        return not (self._waiting or self._batch)

    # The writer's thread.

    def _work(self) -> None:
        due, is_stale = 0.0, False
        while True:
            with self._changed:
                fresh = self._changed.wait_for(
                    lambda: bool(self._waiting) or self._closing, QUIET if is_stale else None
                )
                if fresh:
                    self._changed.wait_for(
                        lambda: self._hurry or self._closing, max(due - time.monotonic(), 0)
                    )
                # Of no variable here: one would hold on to what was written last.
                self._batch, self._waiting = self._waiting, {}
                closing, self._hurry = self._closing, False
            failed, problem = self._write(self._batch)
            self._tell(problem)
            is_stale = bool(self._batch) and not failed
            with self._changed:
                self._wait_again(failed)
                self._batch = {}
                self._failures += bool(failed)
                due = time.monotonic() + (RETRY if failed else self._interval)
                self._changed.notify_all()
            if not failed and (closing or not fresh) and self._connection is not None:
                with suppress(Exception):  # only what is searched; the next search tries again
                    refresh(self._connection, partial(self._is_awaited, time.monotonic()))
            if closing:
                break
        self._close()

    def _is_awaited(self, since: float) -> bool:
        """Whether the index has to wait: there are new words, or it has held up the end for long enough."""
        return bool(self._waiting) or (self._closing and time.monotonic() - since > INTERVAL)

    def _wait_again(self, failed: dict[Document, Change]) -> None:
        for document, change in failed.items():
            later = self._waiting.get(document)
            self._waiting[document] = change.then(later) if later else change

    def _tell(self, problem: HistoryError | None) -> None:
        """Says once that something is not saved, and once that all is again."""
        if problem is not None and not self.is_failing:
            self.is_failing = True
            self._say(Notice(f"not saved: {problem.message}", problem.hint, is_problem=True))
        elif problem is None and self.is_failing:
            self.is_failing = False
            self._say(Notice("everything is saved again"))

    def _say(self, notice: Notice) -> None:
        with suppress(Exception):  # who was to be told may be gone; the words are to be saved
            self._told(notice)

    def _write(self, batch: dict[Document, Change]) -> tuple[dict[Document, Change], HistoryError | None]:
        """Commits changes; returns those that could not be, and what is wrong."""
        failed: dict[Document, Change] = {}
        problem = None
        for document, change in batch.items():
            try:
                self._commit(document, change)
            except Exception as error:  # whatever it is, the others and what comes next are to be saved
                failed[document] = change
                problem = error if isinstance(error, HistoryError) else explained(error, self._path)
        return failed, problem

    def _commit(self, document: Document, change: Change) -> None:
        """Writes one document. A damaged file that opening does not set aside is set aside all the same."""
        for is_sure in (False, True):
            try:
                self._put(document, change)
            except FAILURES as error:
                if not is_damage(error):
                    raise
                damaged = self._file if is_sure else None
                self._close()
                self._open(damaged)
            else:
                return
        self._put(document, change)

    def _put(self, document: Document, change: Change) -> None:
        connection = self._open()
        before = self._stored.get(document)
        if before is None:
            revision, rows = document.stored
            before = _Stored(document.uid, revision if document.opened > self._begun else 0, rows)

        def write() -> tuple[_Stored, str]:
            with writing(connection):
                return self._put_into(connection, document, change, before)

        stored, happened = with_index(connection, write)
        stored.apply(change)
        self._stored[document] = stored
        document.uid = stored.uid
        if happened:
            self._say(Notice(f"“{change.columns['title']}” was {happened}"))

    def _open(self, damaged: os.stat_result | None = None) -> sqlite3.Connection:
        """The connection, to the file that is there now: another process may have set the old one aside."""
        if self._file is not None and not same_file(self._file, self._path):
            self._close()
            self._forget()
        if self._connection is None:
            self._connection = open_database(self._path, self._begin_anew, check=True, damaged=damaged)
            self._file = self._path.stat()
        return self._connection

    def _begin_anew(self, message: str) -> None:
        self._forget()
        self._say(Notice(message))

    def _forget(self) -> None:
        """The file that held the documents is there no more; they are not deleted, but not yet stored."""
        self._begun = time.monotonic()
        for stored in self._stored.values():
            stored.revision = 0

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._file = None

    def _put_into(
        self, connection: sqlite3.Connection, document: Document, change: Change, stored: _Stored
    ) -> tuple[_Stored, str]:
        """Writes one document: what is new where nobody else has changed it, else all of it.

        What was deleted elsewhere comes back with new words only.

        Returns:
            What is stored then, but for the rows of `change`; and what happened to it elsewhere.
        """
        found = connection.execute(
            "SELECT id, revision, title FROM documents WHERE uid = ?", (stored.uid,)
        ).fetchone()
        is_copy = found is not None and found[1] != stored.revision
        is_deleted = found is None and stored.revision > 0
        columns = {name: storable(value) for name, value in change.columns.items()}
        if is_copy:
            stored = replace(stored, uid=uuid.uuid4().hex)
            columns["title"] = storable(f"{readable(found[2]).removesuffix(' (copy)')} (copy)")
        if change.is_blank:
            if found is not None and not is_copy:
                remove(connection, stored.uid)
            return replace(stored, revision=0), ""
        if is_deleted and not change.touches:
            return stored, ""
        now = time.time()
        # None that another process knows from before the document was deleted: it would take this for that.
        first = secrets.randbelow(1 << 30) + 1
        if found is None or is_copy:
            values = {
                "uid": stored.uid, "kind": document.kind, "named": is_copy, "created": document.created,
                "changed": now, "revision": first, **columns,
            }  # fmt: skip
            names = ", ".join(values)
            number = connection.execute(
                f"INSERT INTO documents ({names}) VALUES (?{', ?' * (len(values) - 1)})",
                tuple(values.values()),
            ).lastrowid
            assert number is not None
            write_rows(connection, number, document.kind, stored.after(change))
            happened = COPIED if is_copy else KEPT if is_deleted else ""
            return replace(stored, revision=first), happened
        number, title = found[0], columns.pop("title")
        connection.execute(
            f"""UPDATE documents SET title = CASE WHEN named THEN title ELSE ? END, revision = revision + 1,
            indexed = max(indexed, 0),
            changed = CASE WHEN ? THEN ? ELSE changed END, {", ".join(f"{name} = ?" for name in columns)}
            WHERE id = ?""",
            (title, change.touches, now, *columns.values(), number),
        )
        if change.whole:
            delete_rows(connection, number, document.kind)
        write_rows(connection, number, document.kind, change.rows)
        return replace(stored, revision=stored.revision + 1), ""
