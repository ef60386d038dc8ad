"""Writes what is open into the history while it grows, on a thread of its own, and never fails.

`save` notes what is new, which is cheap, and the writer commits it a moment later: less than a second of work
is lost when the process is killed. What cannot be written is kept in memory and tried again.
"""

import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from llamatui.app.history.database import (
    FAILURES,
    database_path,
    explained,
    is_damage,
    open_database,
    same_file,
    writing,
)
from llamatui.app.history.fulltext import refresh, remove
from llamatui.app.history.rows import Row, delete_rows, readable, storable, write_rows
from llamatui.app.history.snapshot import Change, Document
from llamatui.errors import HistoryError

INTERVAL = 0.3  # seconds between commits
RETRY = 3.0  # seconds until what failed is tried again
QUIET = 2.0  # seconds without anything new until the index is brought up to date


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
    """Saves documents. Its methods are for one thread, the event loop's."""

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
        self._forgotten: set[Document] = set()
        self._is_writing = False
        self._hurry = False  # somebody waits for it
        self._closing = False
        self._failures = 0
        self._thread: threading.Thread | None = None
        # Of the writer's thread alone:
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._stored: dict[Document, _Stored] = {}
        self._is_failing = False

    def save(self, document: Document, *, partial: str = "", ids: Sequence[int] = ()) -> None:
        """Notes what is new in a document; the writer follows.

        To be called after every change, and while a text grows, as often as the screen is drawn.

        Args:
            partial: Of a chat: what has been said of an answer that is still being given ...
            ids: ... and its ids.
        """
        change = document.look(partial, ids)
        if change is None or document in self._forgotten:
            return
        with self._changed:
            before = self._waiting.get(document)
            self._waiting[document] = before.then(change) if before else change
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="history", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def forget(self, document: Document) -> None:
        """Writes no more of a document that the user deletes. What is under way ends with `flush`."""
        with self._changed:
            self._waiting.pop(document, None)
            self._forgotten.add(document)

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
    def _is_idle(self) -> bool:
        return not (self._waiting or self._is_writing)

    # The writer's thread.

    def _work(self) -> None:
        due, is_stale = 0.0, False
        while True:
            with self._changed:
                fresh = self._changed.wait_for(
                    lambda: self._waiting or self._closing, QUIET if is_stale else None
                )
                if fresh:
                    self._changed.wait_for(
                        lambda: self._hurry or self._closing, max(due - time.monotonic(), 0)
                    )
                batch, self._waiting = self._waiting, {}
                for document in self._forgotten:
                    self._stored.pop(document, None)
                closing, self._hurry, self._is_writing = self._closing, False, True
            problem = self._write(batch) if batch else None
            is_stale = bool(batch) and problem is None
            if problem is None and (closing or not fresh) and self._connection is not None:
                with suppress(*FAILURES):  # only what is searched; the next search tries again
                    refresh(self._connection)
            self._tell(problem)
            with self._changed:
                self._is_writing = False
                if problem is not None:
                    self._failures += 1
                    for document, change in batch.items():
                        if document not in self._forgotten:
                            later = self._waiting.get(document)
                            self._waiting[document] = change.then(later) if later else change
                due = time.monotonic() + (self._interval if problem is None else RETRY)
                self._changed.notify_all()
                if closing:
                    break
        self._close()

    def _tell(self, problem: HistoryError | None) -> None:
        """Says once that nothing is saved, and once that all is again."""
        if problem is not None and not self._is_failing:
            self._told(Notice(f"not saved: {problem.message}", problem.hint, is_problem=True))
        elif problem is None and self._is_failing:
            self._told(Notice("everything is saved again"))
        self._is_failing = problem is not None

    def _write(self, batch: dict[Document, Change]) -> HistoryError | None:
        """Commits changes, all or none; what is wrong if it could not."""
        try:
            try:
                self._commit(batch)
            except FAILURES as error:
                if not is_damage(error):
                    raise
                self._close()
                self._commit(batch)  # it has been set aside now
        except HistoryError as error:
            return error
        except FAILURES as error:
            return explained(error, self._path)
        return None

    def _commit(self, batch: dict[Document, Change]) -> None:
        connection = self._open()
        written = []
        with writing(connection):
            for document, change in batch.items():
                stored = self._stored.get(document) or _Stored(document.uid, *document.stored)
                written.append((document, change, *self._put(connection, document, change, stored)))
        for document, change, stored, is_copy in written:
            stored.apply(change)
            self._stored[document] = stored
            document.uid = stored.uid
            if is_copy:
                title = change.columns["title"]
                self._told(Notice(f"“{title}” was changed elsewhere; what is here goes on as a copy"))

    def _open(self) -> sqlite3.Connection:
        """The connection, to the file that is there now: another process may have set the old one aside."""
        if self._file is not None and not same_file(self._file, self._path):
            self._close()
        if self._connection is None:
            self._connection = open_database(
                self._path, lambda message: self._told(Notice(message)), check=True
            )
            self._file = self._path.stat()
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._file = None

    def _put(
        self, connection: sqlite3.Connection, document: Document, change: Change, stored: _Stored
    ) -> tuple[_Stored, bool]:
        """Writes one document: what is new where nobody else has changed it, else all of it.

        Returns:
            What is stored then, but for the rows of `change`; and whether that is a copy.
        """
        found = connection.execute(
            "SELECT id, revision, title FROM documents WHERE uid = ?", (stored.uid,)
        ).fetchone()
        is_copy = found is not None and found[1] != stored.revision
        columns = {name: storable(value) for name, value in change.columns.items()}
        if is_copy:
            stored = replace(stored, uid=uuid.uuid4().hex)
            columns["title"] = storable(f"{readable(found[2])} (copy)")
        if None in change.rows.values() and not stored.after(change):
            if found is not None and not is_copy:
                remove(connection, found[0])
            return replace(stored, revision=0), False
        now = time.time()
        if found is None or is_copy:
            values = {
                "uid": stored.uid, "kind": document.kind, "named": is_copy, "created": document.created,
                "changed": now, "revision": 1, **columns,
            }  # fmt: skip
            names = ", ".join(values)
            number = connection.execute(
                f"INSERT INTO documents ({names}) VALUES (?{', ?' * (len(values) - 1)})",
                tuple(values.values()),
            ).lastrowid
            assert number is not None
            write_rows(connection, number, document.kind, stored.after(change))
            return replace(stored, revision=1), is_copy
        number, title = found[0], columns.pop("title")
        connection.execute(
            f"""UPDATE documents SET title = CASE WHEN named THEN title ELSE ? END, revision = revision + 1,
            changed = CASE WHEN ? THEN ? ELSE changed END, {", ".join(f"{name} = ?" for name in columns)}
            WHERE id = ?""",
            (title, change.touches, now, *columns.values(), number),
        )
        if change.whole:
            delete_rows(connection, number, document.kind)
        write_rows(connection, number, document.kind, change.rows)
        return replace(stored, revision=stored.revision + 1), False
