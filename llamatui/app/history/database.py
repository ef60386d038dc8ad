"""The file of the history: opening it, bringing it to this version's schema, and what may be wrong with it.

Several processes may have it open. What is damaged is set aside under another name, and a new file begun;
what another program or a newer llamatui wrote stays untouched.

SQLite looks for its log and its journal by name, next to the database, when it first reads a file that it has
opened, and when it closes it. Had the file been renamed in between, it would play back or delete those of the
new database. So a lock, of which SQLite knows nothing, keeps these moments apart from the renaming.
"""

import errno
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from llamatui.app import store
from llamatui.errors import HistoryError

APPLICATION_ID = 0x6C6C6D74  # "llmt", in the header of the file
PATIENCE = 5.0  # seconds to wait for another process
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # EDQUOT: Windows has none

FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)
"""What may go wrong. The last one where a message of SQLite's quotes a damaged schema."""

# What is searched, of the revision `indexed` of each document, under its `place`; `others`: on branches that
# are not shown. It holds nothing of its own: an older one is made anew, see `fulltext`, and not migrated.
TEXTS = """CREATE VIRTUAL TABLE texts USING fts5 (
    title, text, others, prefix = '2 3',
    tokenize = "unicode61 remove_diacritics 2 categories 'L* N* Co So'"
)"""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE documents (
            id INTEGER PRIMARY KEY,
            uid TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL CHECK (kind IN ('story', 'chat')),
            title TEXT NOT NULL,
            named INTEGER NOT NULL DEFAULT 0,
            pinned INTEGER NOT NULL DEFAULT 0,
            created REAL NOT NULL,
            changed REAL NOT NULL,
            model TEXT NOT NULL,
            model_path TEXT NOT NULL,
            model_sha256 TEXT NOT NULL,
            tokenizer TEXT NOT NULL,
            settings TEXT NOT NULL,
            state TEXT NOT NULL,
            words INTEGER NOT NULL DEFAULT 0,
            revision INTEGER NOT NULL,
            indexed INTEGER NOT NULL DEFAULT 0,
            place INTEGER UNIQUE
        )""",
        "CREATE INDEX documents_by_time ON documents (pinned DESC, changed DESC)",
        "CREATE INDEX documents_to_index ON documents (id) WHERE indexed <> revision",
        """CREATE TABLE tokens (
            document INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            parent INTEGER NOT NULL,
            token INTEGER NOT NULL,
            text TEXT NOT NULL,
            author TEXT NOT NULL,
            pending INTEGER NOT NULL,
            begins INTEGER NOT NULL,
            PRIMARY KEY (document, number)
        ) WITHOUT ROWID""",
        """CREATE TABLE turns (
            document INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            parent INTEGER NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            ids TEXT,
            stopped INTEGER NOT NULL,
            PRIMARY KEY (document, number)
        ) WITHOUT ROWID""",
        TEXTS,
    ),
)
"""What takes the schema from each version to the next. One that was released is never changed."""


def database_path() -> Path:
    return store.data_folder() / "history.db"


def open_database(
    path: Path,
    told: Callable[[str], object] | None = None,
    *,
    check: bool = False,
    damaged: os.stat_result | None = None,
    patience: float = PATIENCE,
    migrations: Sequence[Sequence[str]] = MIGRATIONS,
) -> sqlite3.Connection:
    """A connection to the history, which is created or migrated if it must be. Any one thread may use it.

    Args:
        told: Called with a sentence where a damaged file was set aside; None: it stays, and is an error.
        check: Whether to look at every page, which takes a second for a big file.
        damaged: The file that was found to be so, if it was.
        patience: Seconds to wait for another process.

    Raises:
        HistoryError: It cannot be opened, or is none of ours, or a newer version wrote it.
    """
    alone = partial(_alone, path, patience)
    if damaged is None or told is None:
        try:
            return _open(path, check, patience, migrations, alone)
        except FAILURES as error:
            if told is None or not is_damage(error):
                raise explained(error, path) from error
    try:
        with alone():
            if damaged is None or not same_file(damaged, path):
                try:  # another process may have set it aside by now
                    return _open(path, check, patience, migrations, nullcontext)
                except FAILURES as error:
                    if not is_damage(error):
                        raise
            aside = set_aside(path)
            told(f"the history was damaged; it was set aside as {aside}, and a new one is begun")
            return _open(path, check, patience, migrations, nullcontext)
    except FAILURES as error:
        raise explained(error, path) from error


def _open(
    path: Path,
    check: bool,
    patience: float,
    migrations: Sequence[Sequence[str]],
    alone: Callable[[], AbstractContextManager[None]],
) -> sqlite3.Connection:
    """`alone` is entered where SQLite looks for files by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone():
        connection = _connect(path, patience, len(migrations))
    try:
        _migrate(connection, path, migrations)
        for table in ("documents", "tokens", "turns"):  # the index can be built anew: see `fulltext`
            connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()
            if check and connection.execute(f"PRAGMA quick_check({table})").fetchone() != ("ok",):
                raise _failure(sqlite3.SQLITE_CORRUPT, "a page of it is damaged")
    except BaseException:
        with alone():
            connection.close()
        raise
    return connection


def _connect(path: Path, patience: float, known: int) -> sqlite3.Connection:
    """A connection that has its log open. Until it is closed, it does not look for files by name any more."""
    with suppress(FileExistsError):  # for nobody else's eyes; SQLite's own files beside it become like it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        connection.text_factory = _text
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")
        _refuse_others(connection, path, known)
        _use_wal(connection, patience)
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection to a history in a folder where nothing can be written.

    Raises:
        HistoryError: It cannot be read, or is none of ours.
    """
    where = path.absolute().as_uri()
    try:
        try:
            return _reading(f"{where}?mode=ro", path)
        except sqlite3.OperationalError:  # SQLite's own files beside it are not there, and cannot be made
            return _reading(f"{where}?immutable=1", path)
    except FAILURES as error:
        raise explained(error, path) from error


def _reading(where: str, path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)
    try:
        connection.text_factory = _text
        connection.execute("PRAGMA trusted_schema = OFF")
        _refuse_others(connection, path, len(MIGRATIONS))
    except BaseException:
        connection.close()
        raise
    return connection


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _failure(code: int, message: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(message)
    error.sqlite_errorcode = code
    return error


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _refuse_others(connection: sqlite3.Connection, path: Path, known: int) -> None:
    """
    Raises:
        HistoryError: Another program wrote this file, or a newer llamatui.
    """
    connection.execute("SAVEPOINT look")  # one moment: another process may be making it
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    tables = connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    connection.execute("RELEASE look")
    is_new = (application, version) == (0, 0) and not tables
    if application != APPLICATION_ID and not is_new:
        raise HistoryError(
            f"{path}: expected the history of llamatui, found the database of another program",
            "move that file away",
        )
    if version > known:
        raise _newer(f"{path}:", version, known)


def _newer(what: str, version: int, known: int) -> HistoryError:
    return HistoryError(
        f"{what} written by a newer llamatui (schema version {version}; this one knows {known})",
        "update llamatui: pip install -U llamatui",
    )


def _use_wal(connection: sqlite3.Connection, patience: float) -> None:
    """Readers do not wait for the writer then, and a commit does not wait for the disk.

    Changing to it, of all things, does not wait by itself for a process that does the same.
    """
    deadline = time.monotonic() + patience
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not _is(error, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[Sequence[str]]) -> None:
    if _pragma(connection, "user_version") == len(migrations):
        return
    with writing(connection, len(migrations)):
        _refuse_others(connection, path, len(migrations))
        for steps in migrations[_pragma(connection, "user_version") :]:  # another process may have done some
            for step in steps:
                connection.execute(step)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


@contextmanager
def writing(connection: sqlite3.Connection, known: int = len(MIGRATIONS)) -> Iterator[None]:
    """One transaction. It has the right to write from the beginning: one that has to ask later may fail.

    Raises:
        HistoryError: A newer llamatui has brought it to a schema version that is not `known` here.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        if (version := _pragma(connection, "user_version")) > known:  # since it was opened
            raise _newer("the history was", version, known)
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it too
            connection.execute("ROLLBACK")
        raise


# What may be wrong.


def _is(error: BaseException, *codes: int) -> bool:
    return getattr(error, "sqlite_errorcode", -1) & 0xFF in codes  # the rest of it says where


def is_damage(error: BaseException) -> bool:
    return (
        isinstance(error, UnicodeDecodeError)
        or _is(error, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        or (isinstance(error, sqlite3.DatabaseError) and "no such table" in str(error))
    )


def explained(error: Exception, path: Path) -> HistoryError:
    """What a person should know about it."""
    if is_damage(error):
        return HistoryError(
            f"{path}: the history is damaged ({error})",
            "it is set aside, and a new one begun, as soon as you write in llamatui story or chat",
        )
    if _is(error, sqlite3.SQLITE_FULL) or getattr(error, "errno", 0) in NO_SPACE:
        return HistoryError(f"{path}: no space left on the disk for the history", "make room there")
    if _is(error, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return HistoryError(f"{path}: another program keeps the history locked", "end that program")
    if isinstance(error, OSError):
        problem = f"cannot be written: {error.strerror}"
    elif _is(error, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        problem = "cannot be written: it is read-only, or its folder is"
    elif _is(error, sqlite3.SQLITE_IOERR):
        return HistoryError(f"{path}: the disk cannot write the history", "is it full, or failing?")
    else:
        problem = f"cannot be used: {error}"
    return HistoryError(
        f"{path}: the history {problem}", "make that folder writable, or turn it off: LLAMATUI_HISTORY=off"
    )


def same_file(connection_file: os.stat_result, path: Path) -> bool:
    """Whether `path` still is the file that was opened: another process may have set it aside."""
    try:
        return os.path.samestat(connection_file, path.stat())
    except OSError:
        return False


def set_aside(path: Path) -> Path:
    """Renames a damaged file and what SQLite keeps beside it; returns the new name.

    The log goes first: a new database must never find it.
    """
    moment = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}.damaged-{moment}{path.suffix}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.stem}.damaged-{moment}-{number}{path.suffix}")
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            Path(f"{path}{end}").rename(f"{aside}{end}")
    return aside


@contextmanager
def _alone(path: Path, patience: float) -> Iterator[None]:
    """Waits for other processes and threads to be done in here. The lock ends with its process."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        deadline = time.monotonic() + patience
        while not _take(lock):
            if time.monotonic() > deadline:
                raise _failure(sqlite3.SQLITE_BUSY, "another process keeps it locked")
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    """Whether the lock of this open file is ours now, until it is closed."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
    else:
        import fcntl

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: SQLite does without them there, too
            return True
    return True
