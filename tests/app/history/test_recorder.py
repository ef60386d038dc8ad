"""The writer: what is saved when, and what becomes of what cannot be written."""

import gc
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamatui.app.conversation import Conversation
from llamatui.app.history import recorder as recorder_module
from llamatui.app.history.collection import Library
from llamatui.app.history.database import open_database, same_file, set_aside
from llamatui.app.history.recorder import Notice, Recorder
from llamatui.app.history.snapshot import Change, Document
from llamatui.app.model import LoadedModel
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from tests.app.history.writing import Told, text_of, until, write


def test_what_is_empty_is_never_stored(
    recorder: Recorder, story: Document, chat: Document, path: Path
) -> None:
    recorder.save(story)
    recorder.save(chat, partial="of nothing")
    assert recorder.close()
    assert not path.exists()


def test_what_was_saved_is_there_without_waiting_for_the_end(
    recorder: Recorder, story: Document, path: Path
) -> None:
    write(story, "the hen")
    recorder.save(story)
    until(lambda: path.exists() and Library(path).list() and text_of(path, story) == "the hen")
    write(story, "and")
    recorder.save(story)
    until(lambda: text_of(path, story) == "the hen and")
    recorder.close()


def test_many_saves_are_few_commits(story: Document, path: Path) -> None:
    recorder = Recorder(path, interval=60)
    revisions = []
    for count in (1, 50):
        for _ in range(count):
            write(story, "hen")
            recorder.save(story)
        assert recorder.flush()
        revisions += sqlite3.connect(path).execute("SELECT revision FROM documents").fetchone()
    assert 0 < revisions[1] - revisions[0] <= 2
    assert text_of(path, story) == " ".join(["hen"] * 51)
    recorder.close()


def test_a_question_that_was_taken_back_leaves_nothing(
    recorder: Recorder, chat: Document, path: Path
) -> None:
    assert isinstance(chat.content, Conversation)
    chat.content.ask("hi")
    recorder.save(chat)
    assert recorder.flush()
    assert Library(path).count() == 1
    chat.content.give_up()
    recorder.save(chat)
    assert recorder.flush()
    assert Library(path).count() == 0
    chat.content.ask("hello")
    recorder.save(chat)
    assert recorder.close()
    assert Library(path).load(chat.uid).entry.title == "hello"


def test_a_text_is_indexed_at_the_end_of_all(recorder: Recorder, story: Document, path: Path) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT words, indexed = revision FROM documents").fetchall() == [(2, 1)]


def test_a_full_disk_is_told_once_and_what_was_not_written_is_kept(
    recorder: Recorder, story: Document, path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*args: object, **options: object) -> sqlite3.Connection:
        connection = open_database(*args, **options)  # type: ignore[arg-type]
        connection.execute("PRAGMA max_page_count = 26")
        return connection

    monkeypatch.setattr(recorder_module, "open_database", small)
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    for count in (800, 1, 1):
        write(story, "and that " * count)
        recorder.save(story)
        assert not recorder.flush()
    assert [notice.is_problem for notice in told] == [True]
    assert "no space left" in told[0].message
    assert text_of(path, story) == "the hen"
    connection = recorder._connection
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 100000")
    until(recorder.flush)
    assert recorder.close()
    assert [notice.is_problem for notice in told] == [True, False]
    assert text_of(path, story) == story.content.text  # type: ignore[union-attr]


def test_a_locked_file_is_waited_for(
    recorder: Recorder, story: Document, path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_database(path)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(
        recorder_module,
        "open_database",
        lambda *args, **options: open_database(*args, **options, patience=0.01),
    )
    write(story, "the hen")
    recorder.save(story)
    assert not recorder.flush()
    assert "locked" in told[0].message
    other.execute("COMMIT")
    until(lambda: len(told) == 2)  # by itself
    assert text_of(path, story) == "the hen"
    assert recorder.close()


def test_a_folder_that_cannot_be_written_never_raises(story: Document, tmp_path: Path, told: Told) -> None:
    (tmp_path / "file").touch()
    recorder = Recorder(tmp_path / "file" / "history.db", told.append)
    write(story, "the hen")
    recorder.save(story)
    assert not recorder.flush()
    recorder.save(story)
    assert not recorder.close()
    assert len(told) == 1
    assert "cannot be written" in told[0].message


def test_a_newer_version_s_file_is_told_and_left_alone(
    recorder: Recorder, story: Document, path: Path, told: Told
) -> None:
    connection = open_database(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    write(story, "the hen")
    recorder.save(story)
    assert not recorder.close()
    assert "newer llamatui" in told[0].message
    assert not list(path.parent.glob("*damaged*"))


def test_a_file_that_is_damaged_meanwhile_is_set_aside_and_all_is_written_anew(
    recorder: Recorder, story: Document, path: Path, told: Told
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    set_aside(path)
    path.write_bytes(b"garbage " * 1000)
    write(story, "and that")
    recorder.save(story)
    assert recorder.close()
    assert text_of(path, story) == "the hen and that"
    assert [(notice.is_problem, "set aside" in notice.message) for notice in told] == [(False, True)]
    assert len(list(path.parent.glob("history.damaged-*.db"))) == 2


def test_a_file_that_was_deleted_meanwhile_is_written_anew(
    recorder: Recorder, story: Document, path: Path
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    for file in path.parent.glob("history.db*"):
        file.unlink()
    write(story, "and that")
    recorder.save(story)
    assert recorder.close()
    assert text_of(path, story) == "the hen and that"


def test_words_do_not_wait_for_the_index(
    recorder: Recorder, story: Document, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def refresh(connection: sqlite3.Connection, is_over: Callable[[], bool]) -> None:
        begun.set()
        until(is_over)

    monkeypatch.setattr(recorder_module, "refresh", refresh)
    monkeypatch.setattr(recorder_module, "QUIET", 0)
    write(story, "the hen")
    recorder.save(story)
    assert begun.wait(60)
    write(story, "sat")
    recorder.save(story)
    assert recorder.flush(60)
    assert text_of(path, story) == "the hen sat"
    assert recorder.close(60)


def test_a_history_whose_revisions_begin_at_1_goes_on(
    recorder: Recorder, story: Document, model: LoadedModel, path: Path
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE documents SET revision = 1, indexed = 1")
    connection.commit()
    again = Library(path).load(story.uid).restore(model)
    later = Recorder(path, interval=0)
    write(again, "and")
    later.save(again)
    assert later.flush()
    assert [hit.entry.uid for hit in Library(path).search("and")] == [again.uid] == [story.uid]
    assert later.close()
    assert connection.execute("SELECT revision, indexed FROM documents").fetchall() == [(2, 2)]


def test_a_document_that_nobody_holds_any_more_is_let_go(model: LoadedModel, path: Path) -> None:
    recorder = Recorder(path, interval=0)
    document = Document(Story(model, 64, "stop"), Sampling())
    write(document, "the hen")
    recorder.save(document)
    gone = weakref.ref(document)
    del document
    assert recorder.flush()
    until(lambda: gc.collect() is not None and gone() is None)
    assert Library(path).count() == 1
    assert recorder.close()


def test_a_file_that_is_anew_gets_all_even_where_only_settings_change(
    recorder: Recorder, story: Document, path: Path, told: Told
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    set_aside(path)
    story.sampling = Sampling(seed=8)
    recorder.save(story)
    assert recorder.close()
    assert text_of(path, story) == "the hen"
    assert not told


def test_what_was_opened_from_a_file_that_is_anew_gets_into_it_where_only_settings_change(
    recorder: Recorder, story: Document, model: LoadedModel, path: Path
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    again = Library(path).load(story.uid).restore(model)
    set_aside(path)
    again.sampling = Sampling(seed=8)
    recorder.save(again)
    assert recorder.close()
    assert text_of(path, again) == "the hen"


def test_what_is_deleted_from_a_file_that_was_anew_stays_deleted(
    recorder: Recorder, story: Document, model: LoadedModel, path: Path
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    set_aside(path)
    write(story, "and that")
    recorder.save(story)
    assert recorder.flush()
    library = Library(path)
    again = library.load(story.uid).restore(model)
    library.remove(story.uid)
    for document in (story, again):
        document.sampling = Sampling(seed=8)
        recorder.save(document)
    assert recorder.close()
    assert library.count() == 0


def refuse(document: Document, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a document can be written."""
    put = Recorder._put

    def put_others(recorder: Recorder, other: Document, change: Change) -> None:
        if other is document:
            raise error("not this one")
        put(recorder, other, change)

    monkeypatch.setattr(Recorder, "_put", put_others)


@pytest.mark.parametrize("error", [sqlite3.OperationalError, MemoryError, KeyError])
def test_one_document_that_cannot_be_saved_keeps_no_other_from_it(
    error: type[Exception],
    recorder: Recorder,
    story: Document,
    chat: Document,
    path: Path,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(chat.content, Conversation)
    with monkeypatch.context() as broken:
        refuse(story, error, broken)
        write(story, "the hen")
        chat.content.ask("hi")
        recorder.save(story)
        recorder.save(chat)
        until(lambda: path.exists() and Library(path).count() == 1)
        assert not recorder.flush()
        assert recorder.unsaved == [story]
        assert "not saved" in told[0].message
    until(recorder.flush)
    assert text_of(path, story) == "the hen"
    assert recorder.close()
    assert [notice.is_problem for notice in told] == [True, False]


def test_who_cannot_be_told_does_not_end_the_writer(
    story: Document, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(notice: Notice) -> None:
        raise RuntimeError("the event loop is closed")

    monkeypatch.setattr(recorder_module, "RETRY", 0.01)
    path.mkdir()
    recorder = Recorder(path, gone, interval=0)
    write(story, "the hen")
    recorder.save(story)
    assert not recorder.flush(20)
    path.rmdir()
    until(lambda: recorder.flush(20))
    assert recorder.close()
    assert text_of(path, story) == "the hen"


def test_a_newer_llamatui_that_comes_in_between_is_told(
    recorder: Recorder, story: Document, path: Path, told: Told
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE tokens ADD COLUMN more TEXT")
        connection.execute("PRAGMA user_version = 99")
    before = len(story.content.tree.path)
    write(story, "and")
    recorder.save(story)
    assert not recorder.close()
    assert "newer llamatui" in told[0].message
    assert "update" in told[0].hint
    assert connection.execute("SELECT count(*) FROM tokens").fetchone() == (before,)
    connection.close()


def test_damage_that_opening_does_not_see_is_set_aside_and_all_is_written_anew(
    recorder: Recorder, story: Document, path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    write_rows, bad = recorder_module.write_rows, path.stat()

    def damaged(connection: sqlite3.Connection, *args: Any) -> None:
        if same_file(bad, path):
            error = sqlite3.DatabaseError("database disk image is malformed")
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
        write_rows(connection, *args)

    monkeypatch.setattr(recorder_module, "write_rows", damaged)
    write(story, "and that")
    recorder.save(story)
    assert recorder.close()
    assert text_of(path, story) == "the hen and that"
    assert [(notice.is_problem, "set aside" in notice.message) for notice in told] == [(False, True)]


def test_nothing_waits_longer_than_a_second(story: Document, path: Path) -> None:
    recorder = Recorder(path)
    waits: list[float] = []
    wait_for = recorder._changed.wait_for

    def noted(predicate: Callable[[], object], timeout: float | None = None) -> object:
        if recorder._waiting and timeout is not None and threading.current_thread() is recorder._thread:
            waits.append(timeout)
        return wait_for(predicate, timeout)

    recorder._changed.wait_for = noted  # type: ignore[assignment, method-assign]
    for count in range(1, 4):
        write(story, "hen")
        recorder.save(story)
        until(lambda count=count: len(waits) == count)  # type: ignore[misc]
        until(lambda: not recorder.unsaved)  # nobody asks for it
    assert 0 < max(waits) <= 1
    assert recorder.close()
