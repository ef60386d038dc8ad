"""The writer: what is saved when, and what becomes of what cannot be written."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamatui.app.conversation import Conversation
from llamatui.app.history import recorder as recorder_module
from llamatui.app.history.collection import Library
from llamatui.app.history.database import open_database, set_aside
from llamatui.app.history.recorder import Notice, Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.model import LoadedModel
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story

Told = list[Notice]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def recorder(path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(recorder_module, "RETRY", 0.01)
    return Recorder(path, told.append, interval=0)


def write(document: Document, text: str) -> None:
    assert isinstance(document.content, Story)
    document.content.write(text)


def text_of(path: Path, document: Document) -> str:
    return Library(path).load(document.uid).text


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
    for _ in range(50):
        write(story, "hen")
        recorder.save(story)
    assert recorder.flush()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT revision FROM documents").fetchone()[0] <= 3
    assert text_of(path, story) == " ".join(["hen"] * 50)
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


def test_what_another_process_changed_is_not_overwritten(
    recorder: Recorder, story: Document, model: LoadedModel, path: Path, told: Told
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    first = Library(path).load(story.uid).restore(model)
    second = Recorder(path, told.append, interval=0)
    write(first, "here")
    second.save(first)
    assert second.flush()
    uid = story.uid
    write(story, "there")
    recorder.save(story)
    assert recorder.flush()
    assert first.uid == uid != story.uid
    assert text_of(path, first) == "the hen here"
    assert text_of(path, story) == "the hen there"
    assert Library(path).get(story.uid).title == "the hen here (copy)"
    assert ["goes on as a copy" in notice.message for notice in told] == [True]
    write(first, "on")
    second.save(first)
    write(story, "on")
    recorder.save(story)
    assert recorder.close()
    assert second.close()
    assert Library(path).count() == 2
    assert text_of(path, story) == "the hen there on"


def test_a_title_of_the_user_s_stays(recorder: Recorder, story: Document, path: Path) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    library = Library(path)
    library.rename(story.uid, "Hens")
    library.pin(story.uid)
    write(story, "and that")
    recorder.save(story)
    assert recorder.flush()
    entry = library.get(story.uid)
    assert (entry.title, entry.pinned) == ("Hens", True)
    library.rename(story.uid, "")
    write(story, "and that")
    recorder.save(story)
    assert recorder.close()
    assert library.get(story.uid).title == "the hen and that and that"


def test_what_the_user_deletes_does_not_come_back(recorder: Recorder, story: Document, path: Path) -> None:
    write(story, "the hen")
    recorder.save(story)
    recorder.forget(story)
    assert recorder.flush()
    library = Library(path)
    for entry in library.list():
        library.remove(entry.uid)
    write(story, "and")
    recorder.save(story)
    assert recorder.close()
    assert library.count() == 0


def test_two_recorders_write_at_once(model: LoadedModel, path: Path) -> None:
    documents = [Document(Story(model, 64, "stop"), Sampling()) for _ in range(2)]
    recorders = [Recorder(path, interval=0) for _ in documents]

    def work(document: Document, recorder: Recorder) -> None:
        for _ in range(30):
            write(document, "hen")
            recorder.save(document)
        assert recorder.close()

    threads = [threading.Thread(target=work, args=pair) for pair in zip(documents, recorders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text_of(path, document) for document in documents] == [" ".join(["hen"] * 30)] * 2


WRITER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story

config = SimpleNamespace(max_seq_len=64, n_layers=1, n_kv_heads=1, head_dim=1)
backend = SimpleNamespace(config=config, name="none")
model = SimpleNamespace(backend=backend, name="m", path="m.bin", tokenizer_path="t.bin")
recorder = Recorder(Path(sys.argv[1]), print, interval=0.01)
story = Story(model, None, "stop")
document = Document(story, Sampling())
print(document.uid, flush=True)
story.begin()
for i in range(1_000_000):
    story.grow(i, f" {i}")
    recorder.save(document)
    if i % 200 == 0:
        assert recorder.flush()
        print(i, flush=True)
    time.sleep(0.0001)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_killed_process_leaves_a_sound_file_with_what_was_flushed(path: Path) -> None:
    moments = random.Random(1)
    command = [sys.executable, "-c", WRITER, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:  # both write to the same file
        assert process.stdout is not None
        process.uid = process.stdout.readline().strip()  # type: ignore[attr-defined]
        process.stdout.readline()
    for process in running:
        time.sleep(moments.random() / 20)
        process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        *_, last = ["0", *process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        connection = open_database(path, check=True)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        words = Library(path).load(process.uid).text.split()  # type: ignore[attr-defined]
        assert words == [str(i) for i in range(len(words))]
        assert len(words) > int(last)
