"""What is in the history: listed, searched, named, and taken out again to be opened."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llamatui.app.history.database import (
    FAILURES,
    database_path,
    explained,
    open_database,
    open_for_reading,
    same_file,
    writing,
)
from llamatui.app.history.fulltext import (
    MARKS,
    WORDS_SHOWN,
    Parts,
    around,
    check_index,
    match_of,
    refresh,
    remove,
    snippet,
    to_index,
    with_index,
)
from llamatui.app.history.rows import UNREADABLE, Kind, spoken, storable
from llamatui.app.history.saved import COLUMNS, Entry, Saved, entry_from, read_saved
from llamatui.errors import HistoryError, UsageError

SHORT = 8
"""Digits of a uid that are shown."""
ELSEWHERE = "other branch: "
"""Before what was found where opening it does not show it at once."""


@dataclass(frozen=True, slots=True)
class Hit:
    entry: Entry
    snippet: Parts
    """Of the text, where it was found."""
    shown: bool
    """False: it was found on another branch than the one that is shown."""


class Library:
    """Any thread may use it; others wait. Nothing is created by looking: without a history, it is empty.

    A damaged history stays as it is: it is set aside by who writes the next words into it.

    Every method may raise HistoryError: the history cannot be read, or written where that is needed.
    """

    def __init__(self, path: Path | None = None) -> None:
        """`path`: of the database; None: the user's."""
        self.path = path or database_path()
        self._in_use = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: os.stat_result | None = None
        self._is_closing = False

    def list(self, kind: Kind | None = None, limit: int = 100, offset: int = 0) -> "Sequence[Entry]":
        """Pinned ones first, then by when they changed last."""
        with self._open() as connection:
            if connection is None:
                return []
            rows = connection.execute(
                f"""SELECT {COLUMNS} FROM documents {"WHERE kind = :kind" if kind else ""}
                ORDER BY pinned DESC, changed DESC LIMIT :limit OFFSET :offset""",
                {"kind": kind, "limit": limit, "offset": offset},
            )
            return [entry_from(row) for row in rows]

    def count(self, kind: Kind | None = None) -> int:
        with self._open() as connection:
            if connection is None:
                return 0
            where = "WHERE kind = ?" if kind else ""
            found = connection.execute(f"SELECT count(*) FROM documents {where}", (kind,) if kind else ())
            return int(found.fetchone()[0])

    def search(self, text: str, kind: Kind | None = None, limit: int = 50) -> "Sequence[Hit]":
        """Documents that have all words of `text`, or words that begin so, on any branch.

        Pinned ones come first, then what changed last; of more than `limit`, the last that changed. A text of
        signs alone, without a word, is looked for as it stands.
        """
        with self._open() as connection:
            if connection is None or not text.strip():
                return []
            return with_index(connection, partial(self._found, connection, text, kind, limit))

    def _found(
        self, connection: sqlite3.Connection, text: str, kind: Kind | None, limit: int
    ) -> "Sequence[Hit]":
        with suppress(sqlite3.OperationalError):  # locked: the newest words are not found yet
            refresh(connection, lambda: self._is_closing)
        check_index(connection)
        match = match_of(text)
        if match:
            where, is_shown = "texts MATCH :sought", "texts MATCH :shown"
            pieces = [f"snippet(texts, {i}, :begin, :end, '…', {WORDS_SHOWN})" for i in (1, 2)]
        else:
            pieces = ["texts.text", "texts.others"]
            is_shown = "(instr(texts.title, :sought) OR instr(texts.text, :sought))"
            where = f"({is_shown} OR instr(texts.others, :sought))"
        sought = match or to_index(text.strip())
        names = ", ".join(f"d.{name}" for name in COLUMNS.split(", "))
        values = {"kind": kind, "limit": limit, "sought": sought, "begin": MARKS[0], "end": MARKS[1]}
        rows = connection.execute(
            f"""SELECT {names}, d.place, {", ".join(pieces)}
            FROM texts CROSS JOIN documents AS d ON d.place = texts.rowid
            WHERE {where} {"AND d.kind = :kind" if kind else ""}
            ORDER BY texts.rowid DESC LIMIT :limit""",
            values,
        ).fetchall()
        places = [place for *_, place, _, _ in rows]
        # At once: for each row, SQLite would look up anew how the words may go on.
        found = connection.execute(
            f"SELECT rowid FROM texts WHERE {is_shown} AND rowid BETWEEN :last AND :first",
            {
                "sought": sought, "shown": f"{{title text}} : ({match})",
                "last": min(places, default=0), "first": max(places, default=0),
            },
        )  # fmt: skip
        shown = {place for (place,) in found}
        cut = snippet if match else partial(around, sought=text.strip())
        hits = [
            Hit(entry_from(columns), cut(text if place in shown else others), place in shown)
            for *columns, place, text, others in rows
        ]
        return sorted(hits, key=lambda hit: not hit.entry.pinned)

    def get(self, uid: str) -> Entry:
        """The document whose uid begins so.

        Raises:
            UsageError: There is none, or there are several.
        """
        with self._find(uid) as (_, entry):
            return entry

    def latest(self, kind: Kind) -> Entry | None:
        """The one that changed last, pinned or not."""
        with self._open() as connection:
            if connection is None:
                return None
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM documents WHERE kind = ? ORDER BY changed DESC, id DESC LIMIT 1",
                (kind,),
            )
            return next(map(entry_from, rows), None)

    def load(self, uid: str) -> Saved:
        """All of a document. `uid`: as for `get`."""
        with self._find(uid) as (connection, entry):
            return read_saved(connection, entry.uid)

    def rename(self, uid: str, title: str) -> None:
        """Gives it a title of the user's; "" lets it follow the text again."""
        line = " ".join(title.split())
        self._change("title = ?, named = ?, indexed = -1", line or self._own_title(uid), bool(line), uid=uid)

    def _own_title(self, uid: str) -> str:
        """What it would be called by what it says."""
        from llamatui.app.history.snapshot import title_from  # imports NumPy

        with self._find(uid) as (connection, entry):
            number, state = connection.execute(
                "SELECT id, state FROM documents WHERE uid = ?", (entry.uid,)
            ).fetchone()
            try:
                shown, others = spoken(connection, number, entry.kind, state)
            except UNREADABLE:
                return entry.title
        return title_from(next(filter(None, [*shown, *others]), ""))

    def pin(self, uid: str, pinned: bool = True) -> None:
        self._change("pinned = ?", pinned, uid=uid)

    def remove(self, uid: str) -> None:
        """Deletes it for good: its words are in no file of the database then."""
        with self._find(uid) as (connection, entry):

            def delete() -> None:
                with writing(connection):
                    remove(connection, entry.uid)
                    connection.execute("INSERT INTO texts (texts) VALUES ('optimize')")

            with_index(connection, delete)
            connection.execute("PRAGMA wal_checkpoint (TRUNCATE)")  # the log has them, too

    def _change(self, assignments: str, *values: object, uid: str) -> None:
        with self._find(uid) as (connection, entry), writing(connection):
            connection.execute(
                f"UPDATE documents SET {assignments} WHERE uid = ?", (*map(storable, values), entry.uid)
            )

    def close(self) -> None:
        self._is_closing = True  # a search that brings the index up to date leaves it at that
        with self._in_use:
            self._is_closing = False
            if self._connection is not None:
                self._connection.close()
            self._connection = self._file = None

    @contextmanager
    def _find(self, uid: str) -> Iterator[tuple[sqlite3.Connection, Entry]]:
        """The connection, and the document in it: see `get`. It stays though the file goes meanwhile."""
        with self._open() as connection:
            found: list[Entry] = []
            if connection is not None and uid and storable(uid) == uid:
                rows = connection.execute(
                    f"SELECT {COLUMNS} FROM documents WHERE substr(uid, 1, ?) = ? LIMIT 2",
                    (len(uid), uid.casefold()),
                )
                found = [entry_from(row) for row in rows]
            if connection is None or not found:
                raise UsageError(
                    f"nothing in the history begins with {uid or 'nothing'}", "llamatui history list"
                )
            if len(found) > 1:
                raise UsageError(
                    f"several in the history begin with {uid}", "give more of its letters and digits"
                )
            yield connection, found[0]

    @contextmanager
    def _open(self) -> "Iterator[sqlite3.Connection | None]":
        """The connection, to the file that is there now: another process may have set the old one aside."""
        with self._in_use:
            if self._file is not None and not same_file(self._file, self.path):
                self.close()
            if self._connection is None and self._exists():
                self._connection = self._connect()
                self._file = self.path.stat()
            try:
                yield self._connection
            except FAILURES as error:
                raise explained(error, self.path) from error

    def _connect(self) -> sqlite3.Connection:
        try:
            return open_database(self.path)
        except HistoryError:
            if os.access(self.path.parent, os.W_OK):
                raise
            return open_for_reading(self.path)

    def _exists(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:
            raise explained(error, self.path) from error
