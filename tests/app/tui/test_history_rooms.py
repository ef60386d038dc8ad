"""What the rooms keep: texts that come back after the app has ended, in whatever way, and go on at once."""

import threading

import pytest
from textual.widgets import Input

from llamatui.app.history.collection import Library
from llamatui.app.history.database import database_path
from llamatui.app.history.recorder import Recorder
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from llamatui.app.tui.bars import Status
from llamatui.app.tui.history_drawer import HistoryDrawer
from llamatui.app.tui.openings import OPENINGS, Openings
from llamatui.app.tui.page import Page
from llamatui.app.tui.sampling_panel import SamplingPanel


@pytest.fixture
def tell(say, wait_until):
    async def told(room, pilot, key, text):
        say(text)
        await pilot.press(key)
        await wait_until(lambda: page(room).endswith(text) and not room.busy)
        await pilot.pause()

    return told


def page(room):
    return room.query_one(Page).text


async def fill(room, pilot, wait_until):
    """The model reads 150 tokens and more."""
    await pilot.press("1")
    await wait_until(lambda: len(room.story.path) > 150 and not room.busy)
    room.story.cut(150)
    room.show_story()
    await wait_until(lambda: room.keeping.sha256(room.model))


def runs_of(room):
    """The runs that end from now on."""
    runs, finished = [], room.finished

    async def note(run):
        runs.append(run)
        await finished(run)

    room.finished = note
    return runs


def last(kind):
    library = Library()
    try:
        return library.latest(kind).uid
    finally:
        library.close()


def saved(kind="story"):
    library = Library()
    try:
        return library.load(library.latest(kind).uid)
    finally:
        library.close()


def toasts(pilot):
    return [f"{notice.title}: {notice.message}" for notice in pilot.app._notifications]


async def test_a_story_comes_back_with_all_that_belongs_to_it(kept, tell, write, wait_until):
    async with kept("story", context=256, overflow="shift") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "r", " He sat.")
        room._remember("Max is old.", "Brief")
        room.query_one(SamplingPanel).put("temperature", 0.7)
        await pilot.pause()
        before = page(room)
    async with kept("story", document=last("story")) as (room, pilot):
        await wait_until(lambda: page(room) == before)
        await wait_until(lambda: [box.value for box in room.query("#temperature").results(Input)] == ["0.7"])
        story = room.story
        assert (story.memory, story.note, story.overflow, story.context) == (
            "Max is old.", "Brief", "shift", 256,
        )  # fmt: skip
        assert room.query_one(SamplingPanel).sampling.temperature == 0.7
        await pilot.press("u", "u")
        assert page(room) == OPENINGS[0] + " He ran."
        await pilot.press("U")
        assert page(room) == before
        await tell(room, pilot, "space", " Far.")
    assert saved().text == before + " Far."
    library = Library()
    assert library.count() == 1
    library.close()


async def test_a_chat_comes_back_with_all_that_belongs_to_it(kept, ask, say, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        room.set_system("You are Max.")
        say("no")
        await pilot.press("ctrl+r")
        await wait_until(lambda: room.conversation.turns[-1].content == "no" and not room.busy)
    async with kept("chat", document=last("chat")) as (room, pilot):
        await wait_until(lambda: room.conversation.turns)
        assert [turn.content for turn in room.conversation.turns] == ["hi", "no"]
        assert room.conversation.system == "You are Max."
        assert room.conversation.versions(1) == (2, 2)
        await wait_until(lambda: room.transcript.display)
        await room.action_undo()
        assert room.conversation.turns[-1].content == "yes"


async def test_words_are_saved_while_they_come(kept, say, wait_until, monkeypatch):
    gate = threading.Semaphore(2)
    async with kept("story") as (room, pilot):
        say(" He ran far away.", gate)
        await pilot.press("1")
        gate.release(2)
        await wait_until(lambda: page(room).startswith(OPENINGS[0] + " H"))
        room.keeping.flush()
        assert saved().text == page(room)
        gate.release(50)


async def test_an_answer_that_was_killed_is_there(kept, say, write, wait_until):
    gate = threading.Semaphore(3)
    async with kept("chat", context=512) as (room, pilot):
        say("yes, of course", gate)
        await write(pilot, "hi")
        await pilot.press("enter")
        await wait_until(lambda: room.partial()[0])
        gate.release(3)
        await wait_until(lambda: room.partial()[0].startswith("yes,"))
        await pilot.pause(0.1)
        room.keeping.flush()
        found = saved("chat").partial
        # As if the process had ended here.
        room.keeping._recorder._closing = True
        said = room.partial()[0]
        room.keeping._recorder.save = lambda *_, **__: None
        gate.release(50)
    assert said.startswith(found.text)
    assert found.text.startswith("yes")
    async with kept("chat", document=last("chat")) as (room, pilot):
        await wait_until(lambda: room.conversation.turns)
        assert [turn.content for turn in room.conversation.turns] == ["hi", found.text]
        assert room.conversation.tree.end.stopped


@pytest.fixture
def unanswered(kept, say, write, wait_until):
    """A chat whose app ended before the first word of its answer."""

    async def leave():
        gate = threading.Semaphore(0)
        async with kept("chat", context=512) as (room, pilot):
            say("yes", gate)
            await write(pilot, "hi")
            await pilot.press("enter")
            await wait_until(lambda: room.busy)
            room.keeping.flush()
            room.keeping._recorder.save = lambda *_, **__: None  # as if the process had ended here
            gate.release(50)
        say("ok", again=9)

    return leave


def said(room):
    return [turn.content for turn in room.conversation.turns]


@pytest.mark.parametrize("way", ["regenerate", "resume", "retry_message"])
async def test_a_question_that_was_killed_is_there_to_be_answered(unanswered, kept, wait_until, way):
    await unanswered()
    async with kept("chat", document=last("chat")) as (room, pilot):
        await wait_until(lambda: room.conversation.turns and room.transcript.items)
        assert said(room) == ["hi"]
        if way == "retry_message":
            await pilot.press("up")
        await getattr(room, f"action_{way}")()
        await wait_until(lambda: said(room) == ["hi", "ok"] and not room.busy)
        await room.action_undo()
        assert said(room) == []


async def test_who_asks_on_behind_a_question_without_an_answer_is_told(unanswered, kept, write, wait_until):
    await unanswered()
    async with kept("chat", document=last("chat")) as (room, pilot):
        await wait_until(lambda: room.conversation.turns and room.transcript.items)
        await write(pilot, "and this?")
        await pilot.press("enter")
        await wait_until(lambda: toasts(pilot))
        assert "has no answer yet" in toasts(pilot)[0]
        assert room.composer.text == "and this?"
        assert said(room) == ["hi"]


async def test_a_question_that_gets_no_answer_again_comes_back_into_the_composer(
    unanswered, kept, say, wait_until
):
    await unanswered()
    async with kept("chat", document=last("chat")) as (room, pilot):
        await wait_until(lambda: room.conversation.turns and room.transcript.items)
        say(fail_after=0)
        await pilot.press("ctrl+r")
        await wait_until(lambda: room.composer.text == "hi" and not room.busy)
        assert said(room) == []


async def test_another_answer_that_was_killed_before_its_first_word_leaves_the_old_one(
    kept, ask, say, wait_until
):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "hi")
        await ask(room, pilot, "ho")
        room.conversation.regenerate(1)
        room.save()
        room.keeping.flush()
        room.keeping._recorder.save = lambda *_, **__: None  # as if the process had ended here
    async with kept("chat", document=last("chat")) as (room, pilot):
        await wait_until(lambda: room.conversation.turns and room.transcript.items)
        assert said(room) == ["hi", "yes", "ho", "yes"]
        say("ok")
        await ask(room, pilot, "he")
        assert said(room)[-2:] == ["he", "ok"]


@pytest.mark.parametrize("name", ["story", "chat"])
async def test_who_leaves_in_mid_text_loses_nothing(kept, name, say, write, wait_until):
    async with kept(name, context=512) as (room, pilot):
        say(" He ran far away. He never came back." * 9, delay=0.02)
        if name == "story":
            await pilot.press("1")
        else:
            await write(pilot, "hi")
            await pilot.press("enter")
        await wait_until(lambda: room.run and room.run.pieces)
        pilot.app.exit()
        await pilot.pause()
    found, run = saved(name), room.run
    said = "".join(piece.text for piece in run.pieces)
    if name == "story":
        assert found.text == OPENINGS[0] + said
    else:
        assert found.partial.text == said


async def test_another_model_goes_on_with_what_is_reopened(kept, tell, wait_until, tiny_model, tmp_path):
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
    other = tmp_path / "other.bin"
    data = bytearray(tiny_model.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    (tmp_path / "tokenizer.bin").write_bytes((tiny_model.parent / "tokenizer.bin").read_bytes())
    async with kept("story", model=other, document=last("story")) as (room, pilot):
        await wait_until(lambda: page(room) == OPENINGS[0] + " He ran.")
        assert ": It was written with tiny; other goes on." in toasts(pilot)
        await tell(room, pilot, "space", " Far.")
    assert (saved().entry.model, saved().text) == ("other", OPENINGS[0] + " He ran. Far.")


async def test_each_new_story_is_a_document_of_its_own(kept, tell):
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("n")
        assert room.query_one(Openings).query_one(".back").display
        await tell(room, pilot, "2", " It fell.")
        await pilot.press("u", "u", "ctrl+z")
        assert page(room) == OPENINGS[0] + " He ran."
        await pilot.press("ctrl+y", "ctrl+y", "ctrl+y")
        assert page(room) == OPENINGS[1] + " It fell."
        await pilot.press("u", "u", "ctrl+z")
        await tell(room, pilot, "space", " Far.")
        assert not room.check_action("redo", ())
    library = Library()
    assert [entry.title[:10] for entry in library.list("story")] == [OPENINGS[0][:10], OPENINGS[1][:10]]
    library.close()
    assert saved().text == OPENINGS[0] + " He ran. Far."


async def test_each_new_chat_is_a_document_of_its_own(kept, ask, say, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "one")
        room.set_system("You are Max.")
        for text in ("two", "three"):
            await pilot.press("ctrl+n")
            await wait_until(lambda: not room.conversation.turns)
            assert room.conversation.system == "You are Max."
            await ask(room, pilot, text)
        room.keeping.flush()
        library = Library()
        assert [entry.title for entry in library.list("chat")] == ["three", "two", "one"]
        library.close()
        for _ in range(4):
            await room.action_undo()
        assert room.conversation.turns[0].content == "one"


async def test_one_is_chosen_in_the_drawer(kept, tell, wait_until):
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        first = room.keeping._shelves[room].document.uid
        await pilot.press("n")
        await tell(room, pilot, "2", " It fell.")
        await pilot.press("escape", "ctrl+l")
        await wait_until(lambda: type(pilot.app.screen).__name__ == "HistoryDrawer")
        pilot.app.screen.dismiss(first)
        await wait_until(lambda: page(room) == OPENINGS[0] + " He ran.")
        await tell(room, pilot, "space", " Far.")
    library = Library()
    assert library.count() == 2
    assert library.load(first).text == OPENINGS[0] + " He ran. Far."
    library.close()


@pytest.mark.parametrize("is_open", [True, False])
async def test_what_is_found_on_another_branch_is_shown(is_open, kept, tell, wait_until):
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "r", " He sat.")
        if not is_open:
            await pilot.press("n")
            await tell(room, pilot, "2", " It fell.")
        await pilot.press("ctrl+l")
        await wait_until(lambda: isinstance(pilot.app.screen, HistoryDrawer))
        await pilot.press(*"ran", "enter")
        await wait_until(lambda: page(room) == OPENINGS[0] + " He ran.")
        await wait_until(lambda: "Another branch is shown" in toasts(pilot)[-1])
        await pilot.press("u")
        assert page(room) == OPENINGS[0] + " He sat."
        await pilot.press("U")
    assert saved().text == OPENINGS[0] + " He ran."


async def test_an_answer_that_is_found_on_another_branch_is_shown(kept, ask, say, wait_until):
    async with kept("chat") as (room, pilot):
        say("Grün")
        await ask(room, pilot, "hi")
        say("red")
        await pilot.press("ctrl+r")
        await wait_until(lambda: not room.busy and said(room) == ["hi", "red"])
        await pilot.press("ctrl+l")
        await wait_until(lambda: isinstance(pilot.app.screen, HistoryDrawer))
        await pilot.press(*"grun", "enter")
        await wait_until(lambda: said(room) == ["hi", "Grün"])


async def test_what_was_typed_stays_with_the_branch_it_was_typed_for(kept, ask, say, tell, wait_until):
    async with kept("chat") as (room, pilot):
        say("green")
        await ask(room, pilot, "hi")
        say("red")
        room.edit(room.conversation.tree.path[0])
        await pilot.press("end", *" zebra", "enter")
        await wait_until(lambda: not room.busy and said(room) == ["hi zebra", "red"])
        room.edit(room.conversation.tree.path[0])
        await pilot.press("end", *" and more", "escape")
        await pilot.press("ctrl+n")
        say("other")
        await ask(room, pilot, "ho")
        await pilot.press("ctrl+l")
        await wait_until(lambda: isinstance(pilot.app.screen, HistoryDrawer))
        await pilot.press(*"green", "enter")
        await wait_until(lambda: said(room) == ["hi", "green"])
        assert room.draft().edits == ()
        await room.action_undo()
        assert said(room) == ["hi zebra", "red"]
        assert room.draft().edits == ((0, "hi zebra and more"),)


async def test_a_busy_room_is_stopped_first(kept, tell, say, wait_until):
    async with kept("story", context=512) as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        room.keeping.flush()
        first = last("story")
        await pilot.press("n")
        say(" It fell. It rose." * 12, delay=0.03)
        await pilot.press("2")
        await wait_until(lambda: room.run and room.run.pieces)
        pilot.app.reopen(first)
        await wait_until(lambda: page(room) == OPENINGS[0] + " He ran.")
        room.keeping.flush()
        library = Library()
        texts = [library.load(entry.uid).text for entry in library.list()]
        library.close()
        assert len(texts) == 2
        assert any(text.startswith(OPENINGS[1] + " I") for text in texts)


async def test_what_cannot_be_reopened_is_said(kept, tell, wait_until):
    async with kept("story", document="f" * 32) as (_, pilot):
        await wait_until(lambda: toasts(pilot))
        assert toasts(pilot)[0].startswith("reopening failed: nothing in the history begins with")


async def test_a_damaged_history_is_set_aside(kept, tell, wait_until):
    path = database_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"what is this?" * 1000)
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        room.keeping.flush()
        await wait_until(lambda: toasts(pilot))
        assert toasts(pilot)[0].startswith("History: ")
    assert saved().text == OPENINGS[0] + " He ran."


async def test_where_nothing_can_be_saved_the_room_works(kept, tell, wait_until, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where what is unsaved goes at the end
    path = database_path()
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.write_text("a file, where the folder should be")
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await wait_until(lambda: toasts(pilot))
        assert "not saved" in toasts(pilot)[0]
        await tell(room, pilot, "space", " Far.")
        assert page(room) == OPENINGS[0] + " He ran. Far."
        assert len(toasts(pilot)) == 1
        assert str(room.query_one(Status).left).startswith("not saved · "), "also when the toast is gone"
    assert room.keeping.unsaved


@pytest.mark.parametrize("kv_cache_mb", [0, 50])
async def test_without_a_history_nothing_is_written(open_room, tell, home, kv_cache_mb):
    async with open_room("story", kv_cache_mb=kv_cache_mb, overflow="shift") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "space", " Far." * 9)
        await pilot.press("ctrl+l")
        assert toasts(pilot)[-1].startswith(": The history is off")
    assert not [path for path in home.rglob("*") if path.is_file()]


async def test_what_was_read_is_not_read_again(kept, wait_until):
    async with kept("story", context=512) as (room, pilot):
        await fill(room, pilot, wait_until)
    async with kept("story", context=512, document=last("story")) as (room, pilot):
        await wait_until(lambda: room.story.path)
        runs = runs_of(room)
        await pilot.press("space")
        await wait_until(lambda: runs)
        assert runs[0].generation.cached_tokens == 150


async def test_a_damaged_cache_is_said_once_and_does_no_harm(kept, wait_until, home):
    async with kept("story", context=512) as (room, pilot):
        await fill(room, pilot, wait_until)
    (file,) = home.rglob("*.kv")
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 4, len(data), 64):
        data[at] ^= 1
    file.write_bytes(data)
    async with kept("story", context=512, document=last("story")) as (room, pilot):
        await wait_until(lambda: room.story.path)
        runs = runs_of(room)
        await pilot.press("space")
        await wait_until(lambda: runs and toasts(pilot))
        assert runs[0].generation.cached_tokens == 0
        assert sum(toast.startswith("KV cache: ") for toast in toasts(pilot)) == 1


async def test_two_apps_on_one_text_make_two(kept, make_app, tell, wait_until):
    async with kept("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
    uid = last("story")
    async with kept("story", document=uid) as (room, pilot):
        await wait_until(lambda: page(room))
        other = Recorder()
        library = Library()
        document = library.load(uid).restore(room.model)
        assert isinstance(document.content, Story)
        document.content.write("Elsewhere.")
        document.content.tree.mark()
        other.save(document)
        other.close()
        await tell(room, pilot, "space", " Far.")
        room.keeping.flush()
        await wait_until(lambda: toasts(pilot))
        assert "goes on as a copy" in toasts(pilot)[0]
        texts = {library.load(entry.uid).text for entry in library.list()}
        library.close()
        assert texts == {OPENINGS[0] + " He ran. Elsewhere.", OPENINGS[0] + " He ran. Far."}


async def test_the_settings_of_the_panel_come_back_as_they_are(kept, tell, wait_until):
    async with kept("story", temperature=1 / 3, seed=7) as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
    async with kept("story", document=last("story")) as (room, pilot):
        await wait_until(lambda: page(room))
        await pilot.pause()
        assert room.sampling == room.query_one(SamplingPanel).sampling == Sampling(1 / 3, 0.9, seed=7)
