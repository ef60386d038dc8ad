"""What was typed beside a text is saved with it, and is no change of it."""

import json
import sqlite3
from pathlib import Path

import pytest

from llamatui.app.history.collection import Library
from llamatui.app.history.draft import Draft
from llamatui.app.history.files import as_text
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.model import LoadedModel
from llamatui.errors import HistoryError

DRAFT = Draft("ty\ud800ped", "page", "memory", "note", "system", ((0, "edited"), (2, "also")))


@pytest.fixture
def written(story: Document, path: Path) -> Document:
    """A story with a draft, in the history."""
    story.content.write("the llama")  # type: ignore[union-attr]
    recorder = Recorder(path)
    recorder.save(story)
    assert recorder.flush()
    story.draft = DRAFT
    recorder.save(story)
    assert recorder.close()
    return story


def test_a_draft_comes_back(written: Document, path: Path, model: LoadedModel) -> None:
    library = Library(path)
    saved = library.load(written.uid)
    library.close()
    assert saved.draft == DRAFT
    document = saved.restore(model)
    assert document.draft == DRAFT
    assert document.look() is None  # it is what the history has
    document.draft = Draft()
    change = document.look()
    assert change is not None
    assert not change.touches  # the text is no newer for it
    assert "draft" not in json.loads(change.columns["settings"])


@pytest.mark.parametrize(
    "draft", [None, [], {"typed": 1}, {"page": None}, {"edits": 5}, {"edits": [[0]]}, {"edits": [["0", "x"]]}]
)
def test_a_draft_that_is_none_is_damage(written: Document, path: Path, draft: object) -> None:
    with sqlite3.connect(path) as connection:
        (settings,) = connection.execute("SELECT settings FROM documents").fetchone()
        damaged = json.dumps({**json.loads(settings), "draft": draft})
        connection.execute("UPDATE documents SET settings = ?", (damaged,))
    connection.close()
    library = Library(path)
    with pytest.raises(HistoryError, match="is damaged in the history"):
        library.load(written.uid)
    library.close()


def test_what_a_newer_version_drafts_is_left_out(written: Document, path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("""UPDATE documents SET settings = json_set(settings, '$.draft.voice', 'x')""")
    connection.close()
    library = Library(path)
    assert library.load(written.uid).draft == DRAFT
    library.close()


def test_what_was_typed_before_the_first_word_is_kept_as_long_as_it_is_there(
    story: Document, chat: Document, path: Path, model: LoadedModel
) -> None:
    recorder, library = Recorder(path), Library(path)

    def titles() -> list[str]:
        recorder.save(story)
        recorder.save(chat)
        assert recorder.flush()
        return sorted(entry.title for entry in library.list())

    assert titles() == []
    story.draft, chat.draft = Draft("once upon\na"), Draft("hello", system="be brief")
    assert titles() == ["hello", "once upon a"]
    saved = library.load(story.uid)
    assert (saved.draft, saved.shown, as_text(saved)) == (story.draft, [], "Typed: once upon\na\n")
    assert saved.restore(model).look() is None  # it is what the history has
    assert library.load(chat.uid).restore(model).draft == chat.draft
    before = library.get(story.uid).changed
    story.draft = Draft("once upon a time")
    assert titles() == ["hello", "once upon a time"]
    assert library.get(story.uid).changed > before, "there is nothing else that could have changed"
    chat.draft = Draft()
    assert titles() == ["once upon a time"], "what was deleted again is gone"
    chat.draft = Draft("hi")
    assert titles() == ["hi", "once upon a time"]
    story.content.write("the llama")  # type: ignore[union-attr]
    story.draft = Draft()
    assert titles() == ["hi", "the llama"]
    assert library.count() == 2
    recorder.close()
    library.close()
