"""Two processes on one history: neither overwrites what the other wrote, and a killed one leaves it sound."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llamatui.app.conversation import Conversation
from llamatui.app.history.collection import Library
from llamatui.app.history.database import open_database
from llamatui.app.history.recorder import COPIED, KEPT, Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.model import LoadedModel
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from tests.app.history.writing import Told, text_of, until, write


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


def test_a_copy_of_a_copy_is_called_a_copy_once(
    recorder: Recorder, story: Document, model: LoadedModel, path: Path
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    Library(path).rename(story.uid, "hen (copy)")
    second = Recorder(path, interval=0)
    first = Library(path).load(story.uid).restore(model)
    write(first, "here")
    second.save(first)
    assert second.close()
    write(story, "there")
    recorder.save(story)
    assert recorder.close()
    assert Library(path).get(story.uid).title == "hen (copy)"
    assert Library(path).count() == 2


def test_what_was_deleted_and_written_again_is_another_document_for_another_process(
    recorder: Recorder, story: Document, model: LoadedModel, path: Path, told: Told
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    library = Library(path)
    first = library.load(story.uid).restore(model)
    second = Recorder(path, told.append, interval=0)
    library.remove(story.uid)
    write(story, "here")
    recorder.save(story)
    assert recorder.close()
    write(first, "there")
    second.save(first)
    assert second.close()
    assert text_of(path, story) == "the hen here"
    assert text_of(path, first) == "the hen there"
    assert [notice.message.rpartition(" was ")[2] for notice in told] == [KEPT, COPIED]


def test_what_was_taken_back_and_asked_anew_is_another_document_for_another_process(
    recorder: Recorder, chat: Document, model: LoadedModel, path: Path
) -> None:
    assert isinstance(chat.content, Conversation)
    chat.content.ask("hi")
    recorder.save(chat)
    assert recorder.flush()
    first = Library(path).load(chat.uid).restore(model)
    chat.content.give_up()
    recorder.save(chat)
    assert recorder.flush()
    chat.content.ask("ho")
    recorder.save(chat)
    assert recorder.close()
    second = Recorder(path, interval=0)
    first.content.finish([], "hen")  # type: ignore[call-arg, arg-type]
    second.save(first)
    assert second.close()
    for document, words in ((chat, ["ho"]), (first, ["hi", "hen"])):
        assert [row[2] for row in Library(path).load(document.uid).rows.values()] == words


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


def test_what_was_deleted_elsewhere_comes_back_with_new_words_only(
    recorder: Recorder, story: Document, path: Path, told: Told
) -> None:
    write(story, "the hen")
    recorder.save(story)
    assert recorder.flush()
    library = Library(path)
    library.remove(story.uid)
    story.sampling = Sampling(seed=8)
    recorder.save(story)
    assert recorder.flush()
    assert library.count() == 0
    assert not told
    write(story, "and")
    recorder.save(story)
    assert recorder.close()
    assert text_of(path, story) == "the hen and"
    assert library.load(story.uid).sampling.seed == 8
    assert ["deleted elsewhere" in notice.message for notice in told] == [True]


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
model = SimpleNamespace(backend=backend, name="m", path=Path("m.bin"), tokenizer_path=Path("t.bin"))
recorder = Recorder(Path(sys.argv[1]), print)
story = Story(model, None, "stop")
document = Document(story, Sampling())
print(document.uid, flush=True)
story.begin()
for i in range(1_000_000):
    story.grow(i, f" {i}")
    recorder.save(document)
    time.sleep(0.001)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's")
def test_a_killed_process_that_waited_for_nothing_leaves_a_sound_file_with_its_words(path: Path) -> None:
    moments = random.Random(1)
    command = [sys.executable, "-c", WRITER, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    uids = [process.stdout.readline().strip() for process in running]  # type: ignore[union-attr]

    def words(uid: str) -> list[str]:
        return Library(path).load(uid).text.split() if Library(path).count() == 2 else []

    for uid, process in zip(uids, running, strict=True):  # both write to the same file
        until(lambda uid=uid: words(uid))  # type: ignore[misc]
        first = len(words(uid))
        until(lambda uid=uid, first=first: len(words(uid)) > first)  # type: ignore[misc]
        seen = words(uid)
        time.sleep(moments.random() / 20)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        connection = open_database(path, check=True)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert words(uid)[: len(seen)] == seen
        assert words(uid) == [str(i) for i in range(len(words(uid)))]
