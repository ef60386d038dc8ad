"""A story or a conversation goes into the history and comes back as it was, whatever was done to it."""

import json
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llamatui.app.conversation import Conversation
from llamatui.app.engine import Limits
from llamatui.app.history.collection import Library
from llamatui.app.history.database import open_database
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document, title_from
from llamatui.app.model import LoadedModel
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story, decoded
from llamatui.app.tree import Tree
from llamatui.errors import HistoryError

# What is done to a story or a chat, and with what.
STEPS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 50), st.text("ab é日\n\ud800", max_size=4)), max_size=25
)


def tell(story: Story, step: int, n: int, text: str) -> None:
    length = len(story.path)
    if step == 0:
        story.write(text or "x")
    elif step == 1:
        story.tree.mark()
        story.begin()
        for token, piece, pending in list(decoded(story.model.tokenizer, [3 + n, 200 + n, 60], None)):
            story.grow(token, piece, pending=pending)
        story.finish(None)
        story.forgotten = len(story.path) // 2  # as a shift leaves it
    elif step == 2 and length:
        story.cut(n % length)
    elif step == 3:
        story.retry()
    elif step == 4 and length:
        story.edit(n % len(story.text or "x"), n, text)
    elif step == 5:
        story.flip(1)
    elif step == 6 and length:
        story.take(n % length, 60 + n)
    elif step == 7:
        story.tree.undo()
    elif step == 8:
        story.tree.redo()


def talk(chat: Conversation, step: int, n: int, text: str) -> None:
    length = len(chat.tree.path)
    asked = length % 2 == 1
    if step in (0, 1) and not asked:
        chat.ask(text)
    elif step in (0, 1, 2) and asked:
        chat.finish(chat.model.tokenizer.encode(text), text, stopped=n % 2 == 0)
        chat.forgotten = length
    elif step == 3 and not asked and length:
        chat.regenerate(n % (length // 2) * 2 + 1)
        chat.finish([], text)
    elif step == 4 and length:
        chat.edit(n % length, text)
    elif step == 5 and length:
        chat.flip(n % length, 1)
    elif step == 6 and not asked and length:
        chat.resume()
        chat.finish([5], text)
    elif step == 7:
        chat.tree.undo()
    elif step == 8 and asked:
        chat.give_up()


ATTRIBUTES = ("id", "text", "author", "pending", "begins", "message", "stopped")


def shape(tree: Tree) -> object:
    """All that a tree is, as values."""
    nodes = [tree.root, *tree.walk()]
    numbers = {node: number for number, node in enumerate(nodes)}
    return (
        [
            (
                *(getattr(node, name, None) for name in ATTRIBUTES),
                [numbers[child] for child in node.children],
                node.chosen if node.children else 0,
            )
            for node in nodes
        ],
        [numbers[node] for node in tree.path],
        [(numbers[place.end], place.beside) for place in tree.places],
        (tree.at, tree.beside),
    )  # fmt: skip


def stored(document: Document, folder: Path) -> Library:
    recorder = Recorder(folder / "history.db")
    recorder.save(document)
    assert recorder.close()
    return Library(folder / "history.db")


@given(STEPS, st.integers(1, 7))
@settings(max_examples=25)
def test_stories_come_back(model: LoadedModel, steps: list[tuple[int, int, str]], often: int) -> None:
    story = Story(model, 300, "shift")
    document = Document(story, Sampling(seed=9))
    story.write("it")
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder, "history.db"), interval=0)
        for i, step in enumerate(steps):
            tell(story, *step)
            if i % often == 0:
                recorder.save(document)
        story.remember("mem", "note")
        recorder.save(document)
        assert recorder.close()
        again = Library(Path(folder, "history.db")).load(document.uid).restore(model)
    assume(not story.path or not story.path[-1].pending)  # half a character at the end does not come back
    assert isinstance(again.content, Story)
    assert shape(again.content.tree) == shape(story.tree)
    assert (again.content.memory, again.content.note) == ("mem", "note")
    assert (again.content.overflow, again.content.context) == ("shift", 300)
    assert again.content.forgotten == min(story.forgotten, len(story.path))
    assert again.sampling == document.sampling
    assert again.look() is None


@given(STEPS, st.integers(1, 7))
@example([(4, 0, ""), (7, 0, ""), (0, 0, ""), (7, 0, "")], 1)
@settings(max_examples=25)
def test_conversations_come_back(model: LoadedModel, steps: list[tuple[int, int, str]], often: int) -> None:
    chat = Conversation(model, "be kind\ud800")
    document = Document(chat, Sampling(top_k=5))
    chat.ask("hello")
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder, "history.db"), interval=0)
        recorder.save(document)
        for i, step in enumerate(steps):
            talk(chat, *step)
            if i % often == 0:
                recorder.save(document)
        recorder.save(document)
        assert recorder.close()
        library = Library(Path(folder, "history.db"))
        if not chat.tree.root.children:
            assert library.count() == 0
            return
        saved = library.load(document.uid)
        tree, _ = saved.tree()
    assert shape(tree) == shape(chat.tree)
    assert (saved.system, saved.chat_format) == ("be kind\ud800", "llama2")
    assert saved.forgotten == min(chat.forgotten, len(chat.turns))
    again = saved.restore(model)
    assert isinstance(again.content, Conversation)
    if chat.turns and chat.turns[-1].role == "user":
        chat.tree.follow(chat.tree.end)  # a question is opened with the answer that it has
    assert [turn.content for turn in again.content.turns] == [turn.content for turn in chat.turns]


def test_a_story_keeps_its_ids_for_the_same_model_only(
    story: Document, model: LoadedModel, other_model: LoadedModel, tmp_path: Path
) -> None:
    told = story.content
    assert isinstance(told, Story)
    story.sha256 = "one"
    told.write("the hen and the 日")
    told.cut(3)
    told.write("and that")
    library = stored(story, tmp_path)
    saved = library.load(story.uid)
    ids = [token.id for token in told.path]
    assert [token.id for token in saved.restore(model, "one").content.tree.path] == ids
    for again in (saved.restore(model, "two"), saved.restore(other_model, "one"), saved.restore(other_model)):
        assert isinstance(again.content, Story)
        assert again.content.text == told.text
        assert len(list(again.content.tree.root.children)) == len(told.tree.root.children)
        assert again.look() is None
    assert max(token.id for token in saved.restore(other_model).content.tree.walk()) < 270


def test_words_told_to_another_model_are_written_as_it_has_them(
    story: Document, model: LoadedModel, other_model: LoadedModel, path: Path
) -> None:
    assert isinstance(story.content, Story)
    story.content.write("the hen and that")
    again = stored(story, path.parent).load(story.uid).restore(other_model)
    assert isinstance(again.content, Story)
    again.content.write("more")
    library = stored(again, path.parent)
    saved = library.load(story.uid)
    assert saved.text == again.content.text == "the hen and that more"
    assert shape(saved.tree()[0])[0] == shape(again.content.tree)[0]
    assert library.count() == 1


def test_a_model_that_is_changed_while_it_is_open_replaces_the_rows(
    story: Document, other_model: LoadedModel, path: Path
) -> None:
    recorder = Recorder(path, interval=0)
    assert isinstance(story.content, Story)
    story.content.write("the hen and that")
    recorder.save(story)
    assert recorder.flush()
    story.content = story.content.told_to(other_model)
    recorder.save(story)
    assert recorder.close()
    assert shape(Library(path).load(story.uid).tree()[0])[0] == shape(story.content.tree)[0]


def test_answers_keep_their_ids_for_the_same_vocabulary_only(
    chat: Document, model: LoadedModel, other_model: LoadedModel, path: Path
) -> None:
    talked = chat.content
    assert isinstance(talked, Conversation)
    talked.ask("hi")
    talked.finish(model.tokenizer.encode("the hen and"), "the hen and")
    saved = stored(chat, path.parent).load(chat.uid)
    assert saved.restore(model, "abc").content.turns[1].ids  # type: ignore[union-attr]
    for again in (saved.restore(model, "x"), saved.restore(other_model)):
        assert again.content.turns[1].ids is None  # type: ignore[union-attr]
        assert again.content.turns[1].content == "the hen and"  # type: ignore[union-attr]
        assert again.content.system == "be kind"  # type: ignore[union-attr]


def test_an_answer_that_was_cut_off_comes_back_as_one_that_was_stopped(
    chat: Document, model: LoadedModel, path: Path
) -> None:
    talked = chat.content
    assert isinstance(talked, Conversation)
    talked.ask("hi")
    recorder = Recorder(path, interval=0)
    recorder.save(chat)
    recorder.save(chat, partial="the hen", ids=model.tokenizer.encode("the hen"))
    assert recorder.flush()
    again = Library(path).load(chat.uid).restore(model)
    turn = again.content.tree.path[-1]
    assert (turn.message.role, turn.message.content, turn.stopped) == ("assistant", "the hen", True)
    assert turn.message.ids == tuple(model.tokenizer.encode("the hen"))
    assert Library(path).search("hen")
    talked.finish(model.tokenizer.encode("the hen."), "the hen.")
    recorder.save(chat)
    assert recorder.close()
    saved = Library(path).load(chat.uid)
    assert saved.partial is None
    assert [row[2] for row in saved.rows.values()] == ["hi", "the hen."]


def test_a_question_without_an_answer_stays_and_an_old_answer_is_shown_again(
    chat: Document, model: LoadedModel, path: Path
) -> None:
    talked = chat.content
    assert isinstance(talked, Conversation)
    recorder = Recorder(path)

    def reopened() -> list[str]:
        recorder.save(chat)
        assert recorder.flush()
        again = Library(path).load(chat.uid).restore(model).content
        assert isinstance(again, Conversation)
        return [turn.content for turn in again.turns]

    talked.ask("hi")
    assert reopened() == ["hi"]
    talked.finish([], "hen")
    talked.ask("ho")
    talked.finish([], "dog")
    talked.regenerate(1)
    assert reopened() == ["hi", "hen", "ho", "dog"]
    recorder.close()


def test_an_answer_that_was_being_made_longer_comes_back_as_one(
    chat: Document, model: LoadedModel, path: Path
) -> None:
    talked = chat.content
    assert isinstance(talked, Conversation)
    talked.ask("hi")
    talked.finish(model.tokenizer.encode("the"), "the")
    talked.resume()
    recorder = Recorder(path)
    recorder.save(chat, partial=" hen", ids=(200_000,))
    assert recorder.close()
    again = Library(path).load(chat.uid).restore(model)
    (_, answer) = again.content.tree.path
    assert (answer.message.content, answer.message.ids, answer.stopped) == ("the hen", None, True)
    change = again.look()
    assert change is not None
    assert list(change.rows) == [2]


def test_half_a_character_that_a_killed_process_left_is_gone(
    story: Document, model: LoadedModel, path: Path
) -> None:
    told = story.content
    assert isinstance(told, Story)
    told.write("hen")
    told.begin()
    told.grow(3 + 0xE6, "", pending=True)
    again = stored(story, path.parent).load(story.uid).restore(model)
    assert isinstance(again.content, Story)
    assert again.content.text == "hen"
    assert not again.content.path[-1].pending


def test_what_no_longer_fits_stays_forgotten(story: Document, model: LoadedModel, path: Path) -> None:
    told = story.content
    assert isinstance(told, Story)
    told.overflow = "shift"
    told.write("the hen and that " * 20)
    told.forgotten = told.prompt().forgotten
    told.write("he")
    again = stored(story, path.parent).load(story.uid).restore(model)
    assert isinstance(again.content, Story)
    assert told.forgotten > 0
    assert again.content.prompt() == told.prompt()


def test_a_story_that_was_taken_back_behind_a_shift_comes_back(
    story: Document, model: LoadedModel, path: Path
) -> None:
    told = story.content
    assert isinstance(told, Story)
    told.overflow = "shift"
    told.write("it was a dark night")
    told.tree.mark()
    generation = told.start(Sampler(Sampling(seed=3)), max_new=100)
    for record in generation:
        told.grow(record.id, "x")
    told.finish(generation)
    told.tree.undo()
    assert told.forgotten > len(told.path) > 0
    again = stored(story, path.parent).load(story.uid).restore(model)
    assert isinstance(again.content, Story)
    assert again.content.text == "it was a dark night"
    assert again.content.prompt() == told.prompt()
    assert again.look() is None
    assert again.content.tree.redo()


def test_a_chat_that_was_taken_back_behind_a_shift_comes_back(model: LoadedModel, path: Path) -> None:
    talked = Conversation(model, "", context=64)
    chat = Document(talked, Sampling())
    for _ in range(6):
        talked.ask("hello there")
        talked.start(Sampler(Sampling(seed=3)), Limits(overflow="shift"))
        talked.finish([], "yes")
    while len(talked.turns) > 2:
        talked.tree.undo()
    assert talked.forgotten > 2
    again = stored(chat, path.parent).load(chat.uid).restore(model)
    assert [turn.content for turn in again.content.turns] == ["hello there", "yes"]  # type: ignore[union-attr]
    assert again.look() is None


def test_more_forgotten_than_there_is_is_all_that_there_is(
    story: Document, model: LoadedModel, path: Path
) -> None:
    assert isinstance(story.content, Story)
    story.content.write("the hen")
    library = stored(story, path.parent)
    connection = open_database(path)
    connection.execute("UPDATE documents SET state = json_set(state, '$.forgotten', 99)")
    connection.close()
    again = library.load(story.uid).restore(model)
    assert again.content.forgotten == len(story.content.path)
    assert again.look() is None


def test_a_growing_story_is_not_gone_through_again(story: Document) -> None:
    told = story.content
    assert isinstance(told, Story)
    told.write("the hen")
    story.look()
    told.tree.walk = None  # type: ignore[assignment, method-assign]
    told.grow(60, "x")
    change = story.look()
    assert change is not None
    assert len(change.rows) == 1
    assert not change.whole
    assert story.look() is None


def test_where_a_passage_begins_is_saved_when_it_is_known_later(
    story: Document, model: LoadedModel, path: Path
) -> None:
    told = story.content
    assert isinstance(told, Story)
    told.write("the hen and")
    library = stored(story, path.parent)
    again = library.load(story.uid).restore(model)
    assert isinstance(again.content, Story)
    for document in (story, again):
        tree = document.content.tree
        tree.path[-1].begins = True  # type: ignore[union-attr]
        tree.mark()
        change = document.look()
        assert change is not None
        assert [row and row[-1] for row in change.rows.values()] == [True]


def test_only_words_are_a_change_and_not_settings(story: Document) -> None:
    assert isinstance(story.content, Story)
    story.content.write("hen")
    first = story.look()
    story.sampling = Sampling(seed=4)
    second = story.look()
    assert first is not None
    assert second is not None
    assert (first.touches, second.touches) == (True, False)
    assert not second.rows


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("  Once upon\n a time\t", "Once upon a time"),
        ("", "untitled"),
        ("\x1b[2J\x07", "[2J"),
        ("word " * 40, "word word word word word word word word word word word word…"),
        ("日" * 100, "日" * 60 + "…"),
    ],
)
def test_titles_are_the_first_words_on_one_line(text: str, title: str) -> None:
    assert title_from(text) == title


WRONG = [
    "UPDATE documents SET state = '['",
    "UPDATE documents SET state = '{}'",
    "UPDATE documents SET state = " + "'" + "[" * 100_000 + "'",
    "UPDATE documents SET state = replace(state, '\"end\": ', '\"end\": 9')",
    "UPDATE documents SET state = replace(state, '\"places\": [[', '\"places\": [[true, ')",
    "UPDATE documents SET state = replace(state, '\"forgotten\": 0', '\"forgotten\": -1')",
    "UPDATE documents SET settings = replace(settings, '\"top_p\": 0.9', '\"top_p\": NaN')",
    'UPDATE documents SET settings = replace(settings, \'"top_p": 0.9\', \'"top_p": "much"\')',
    "UPDATE documents SET settings = replace(settings, '\"context\": 64', '\"context\": -1')",
    "UPDATE documents SET settings = 'null'",
    "UPDATE tokens SET parent = 2 WHERE number = 2",
    "UPDATE tokens SET parent = 3 WHERE number = 2",
    "UPDATE tokens SET parent = -1 WHERE number = 1",
    "UPDATE tokens SET token = 1 << 40",
    "UPDATE tokens SET token = 'one'",
    "UPDATE tokens SET author = 'nobody'",
    "UPDATE tokens SET text = x'ff'",
    "DELETE FROM tokens WHERE number = 1",
    "UPDATE tokens SET number = number - 1, parent = max(parent - 1, 0)",
    "UPDATE tokens SET number = 'last' WHERE number = 2",
    "UPDATE documents SET settings = replace(settings, '\"seed\": 3', '\"seed\": 3' || hex(zeroblob(200)))",
    "UPDATE documents SET settings = replace(settings, '\"seed\": 3', '\"seed\": 3' || hex(zeroblob(5000)))",
]


@pytest.mark.parametrize("statement", WRONG)
def test_what_cannot_be_is_told(statement: str, story: Document, path: Path) -> None:
    assert isinstance(story.content, Story)
    story.content.write("the hen")
    library = stored(story, path.parent)
    connection = open_database(path)
    connection.execute(statement)
    with pytest.raises(HistoryError, match="is damaged in the history") as caught:
        library.load(story.uid)
    assert len(caught.value.message) < 250
    assert library.list()
    library.search("hen")


def test_a_chat_whose_turns_do_not_alternate_is_told(chat: Document, path: Path) -> None:
    assert isinstance(chat.content, Conversation)
    chat.content.ask("hi")
    library = stored(chat, path.parent)
    for change in ("role = 'assistant'", "role = 'system'", "role = 'user', ids = '[-1]'", "ids = '{}'"):
        open_database(path).execute(f"UPDATE turns SET {change}")
        with pytest.raises(HistoryError, match="damaged"):
            library.load(chat.uid)


def test_ids_that_no_vocabulary_has_never_reach_the_model(
    story: Document, model: LoadedModel, path: Path
) -> None:
    assert isinstance(story.content, Story)
    story.content.write("the hen")
    library = stored(story, path.parent)
    open_database(path).execute("UPDATE tokens SET token = 2000000000")
    again = library.load(story.uid).restore(model)
    assert isinstance(again.content, Story)
    assert again.content.text == "the hen"
    assert max(token.id for token in again.content.path) < 300


def test_rows_hold_what_the_tables_say(story: Document, path: Path) -> None:
    assert isinstance(story.content, Story)
    story.content.write("hen")
    stored(story, path.parent)
    connection = sqlite3.connect(path)
    (settings_, state) = connection.execute("SELECT settings, state FROM documents").fetchone()
    assert json.loads(settings_)["sampling"]["seed"] == 3
    assert json.loads(settings_)["backend"] == "numpy"
    assert json.loads(state)["end"] == len(story.content.path)
