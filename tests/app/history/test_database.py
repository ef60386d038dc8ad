"""The file: created, migrated, and what is done about one that is damaged or none of ours."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from llamatui.app.history.database import (
    APPLICATION_ID,
    MIGRATIONS,
    database_path,
    explained,
    is_damage,
    open_database,
    set_aside,
    writing,
)
from llamatui.errors import HistoryError

INSERT = """INSERT INTO documents (uid, kind, title, created, changed, model, model_path, model_sha256,
    tokenizer, settings, state, revision) VALUES (?, 'story', 't', 0, 0, '', '', '', '', '{}', '{}', 1)"""


def uids(connection: sqlite3.Connection) -> list[str]:
    return [uid for (uid,) in connection.execute("SELECT uid FROM documents ORDER BY uid")]


def filled(path: Path, count: int = 200) -> None:
    connection = open_database(path)
    with writing(connection):
        for i in range(count):
            connection.execute(INSERT, (f"{i:032}",))
            connection.execute(
                "INSERT INTO texts (rowid, title, text) VALUES (?, 't', ?)", (i + 1, "word " * 50)
            )
    connection.close()


def test_it_is_made_in_the_user_s_data_folder_for_nobody_else(home: Path) -> None:
    open_database(database_path()).close()
    assert home in database_path().parents
    if os.name == "posix":
        assert database_path().stat().st_mode & 0o077 == 0


def test_it_is_opened_as_several_processes_need_it(path: Path) -> None:
    connection = open_database(path, patience=2.5)

    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("busy_timeout") == 2500
    assert (pragma("foreign_keys"), pragma("synchronous")) == (1, 1)
    assert (pragma("application_id"), pragma("user_version")) == (APPLICATION_ID, len(MIGRATIONS))


def test_what_was_written_is_there_again(path: Path) -> None:
    filled(path, 3)
    assert len(uids(open_database(path, check=True))) == 3


def test_an_older_file_is_migrated_and_keeps_what_it_has(path: Path) -> None:
    filled(path, 3)
    later = (*MIGRATIONS, ("ALTER TABLE documents ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'",))
    connection = open_database(path, migrations=later)
    assert connection.execute("SELECT DISTINCT colour FROM documents").fetchall() == [("red",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (len(later),)
    assert len(uids(connection)) == 3


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    filled(path, 3)
    broken = (*MIGRATIONS, ("ALTER TABLE documents ADD COLUMN colour TEXT", "nonsense"))
    with pytest.raises(HistoryError, match="nonsense"):
        open_database(path, migrations=broken)
    columns = [row[1] for row in open_database(path).execute("PRAGMA table_info(documents)")]
    assert "colour" not in columns


def test_a_newer_version_s_file_is_refused_and_not_touched(path: Path) -> None:
    filled(path, 3)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(HistoryError, match=f"schema version 7; this one knows {len(MIGRATIONS)}") as caught:
        open_database(path, check=True)
    assert "update" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("application", [0, 77])
def test_another_program_s_database_is_refused_and_not_touched(application: int, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {application}")
    connection.execute("CREATE TABLE songs (name)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="another program"):
        open_database(path)
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} == {"history.db", "history.db.lock"}


def damage_garbage(data: bytes) -> bytes:
    return b"no database, but long enough to be one. " * 500


def damage_truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def damage_pages(data: bytes) -> bytes:
    """All pages but the first say they are something that there is not."""
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    return pages[0] + b"".join(bytes([page[0] ^ 0x55]) + page[1:] for page in pages[1:])


def damage_schema(data: bytes) -> bytes:
    """A name in the schema is no UTF-8, which SQLite quotes in its message."""
    return data.replace(b"CREATE TABLE documents", b"CREATE TABXE doc\xfd\xfe\xffnts", 1)


@pytest.mark.parametrize("damage", [damage_garbage, damage_truncated, damage_pages, damage_schema])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(damage, path: Path) -> None:
    filled(path)
    path.write_bytes(damage(path.read_bytes()))
    bad, told = path.read_bytes(), []
    connection = open_database(path, told.append, check=True)
    assert uids(connection) == []
    (aside,) = path.parent.glob("history.damaged-*.db")
    assert aside.read_bytes() == bad
    assert len(told) == 1
    assert str(aside) in told[0]
    connection.execute(INSERT, ("1",))


def test_a_file_without_our_tables_is_damaged(path: Path) -> None:
    connection = open_database(path)
    connection.execute("DROP TABLE tokens")
    connection.close()
    told: list[str] = []
    open_database(path, told.append)
    assert len(told) == 1


def test_damage_that_nobody_sees_in_the_file_is_set_aside_once(path: Path) -> None:
    filled(path)
    damaged, told = path.stat(), []
    for _ in range(2):  # the second finds a new one
        assert uids(open_database(path, told.append, damaged=damaged)) == []
    assert len(told) == 1


def test_only_who_is_told_sets_a_damaged_file_aside(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(HistoryError, match="damaged"):
        open_database(path, check=True)
    assert path.read_bytes() == b"garbage " * 1000


def test_nothing_is_written_into_a_schema_that_is_newer_by_now(path: Path) -> None:
    connection = open_database(path)
    open_database(path, migrations=[*MIGRATIONS, ["ALTER TABLE tokens ADD COLUMN more TEXT"]])
    with pytest.raises(HistoryError, match="newer llamatui"), writing(connection):
        connection.execute(INSERT, ("1",))
    assert uids(connection) == []


def test_what_is_set_aside_never_overwrites_anything(path: Path) -> None:
    asides = set()
    for content in (b"first", b"second", b"third"):
        path.write_bytes(content)
        Path(f"{path}-wal").write_bytes(b"log of " + content)
        asides.add(set_aside(path))
    assert {aside.read_bytes() for aside in asides} == {b"first", b"second", b"third"}
    assert {Path(f"{aside}-wal").read_bytes()[7:] for aside in asides} == {b"first", b"second", b"third"}
    assert not Path(f"{path}-wal").exists()


def test_many_that_find_the_same_damage_set_it_aside_once(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)
    told: list[str] = []
    with ThreadPoolExecutor(6) as pool:
        connections = list(pool.map(lambda _: open_database(path, told.append, check=True), range(6)))
    assert len(told) == 1
    assert len(list(path.parent.glob("history.damaged-*.db"))) == 1
    for i, connection in enumerate(connections):  # all have the same new file
        connection.execute(INSERT, (str(i),))
    assert len(uids(connections[0])) == 6


def test_one_that_is_about_to_read_the_damaged_file_never_touches_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"garbage " * 1000)
    connect = sqlite3.connect
    others: list[Future[sqlite3.Connection]] = []

    def slowly(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        if not others:  # the first has opened the file, and now another is to set it aside
            others.append(pool.submit(open_database, path, print))
            wait(others, timeout=0.5)
        return connection

    monkeypatch.setattr(sqlite3, "connect", slowly)
    with ThreadPoolExecutor(1) as pool:
        first = open_database(path, print)
        other = others[0].result()
    for number, connection in enumerate((other, first)):
        connection.execute(INSERT, (str(number),))
        connection.close()
    assert uids(open_database(path, check=True)) == ["0", "1"]
    (aside,) = path.parent.glob("history.damaged-*.db")
    assert aside.read_bytes() == b"garbage " * 1000


def test_a_lock_that_a_killed_process_left_is_no_obstacle(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)
    path.with_name("history.db.lock").touch()
    assert uids(open_database(path, print)) == []


def test_it_is_not_opened_while_another_process_sets_it_aside(path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from llamatui.app.history import database
with database._alone(Path({str(path)!r}), 1):
    print("alone", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alone\n"
        with pytest.raises(HistoryError, match="locked"):
            open_database(path, patience=0.01)
        process.kill()
    assert uids(open_database(path)) == []


def test_processes_that_create_it_at_the_same_time_share_it(path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from llamatui.app.history.database import open_database, writing
sys.stdin.readline()
connection = open_database(Path({str(path)!r}))
for i in range(20):
    with writing(connection):
        connection.execute('''{INSERT}''', (f"{{sys.argv[1]}}-{{i}}",))
"""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, text=True) for n in range(3)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(uids(open_database(path, check=True))) == 60


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match="cannot be written") as caught:
        open_database(tmp_path / "file" / "history.db")
    assert "LLAMATUI_HISTORY=off" in caught.value.hint


def test_a_folder_in_its_place_is_told(path: Path) -> None:
    path.mkdir()
    with pytest.raises(HistoryError, match="cannot be written"):
        open_database(path)


def test_a_full_disk_is_told(path: Path) -> None:
    connection = open_database(path)
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(sqlite3.OperationalError) as caught, writing(connection):
        connection.executemany(INSERT, ((f"{i:032}",) for i in range(1000)))
    assert "no space left" in explained(caught.value, path).message
    assert uids(connection) == []
    assert "no space left" in explained(OSError(28, "No space left on device"), path).message


def test_a_lock_that_somebody_keeps_is_told(path: Path) -> None:
    other = open_database(path)
    other.execute("BEGIN IMMEDIATE")
    connection = open_database(path, patience=0.01)
    with pytest.raises(sqlite3.OperationalError) as caught, writing(connection):
        pass
    error = explained(caught.value, path)
    assert "locked" in error.message
    assert not is_damage(caught.value)
