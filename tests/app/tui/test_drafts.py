"""What is typed and not sent yet: it comes back with its text, however the app ended."""

import pytest
from textual.widgets import TextArea

from llamatui.app.history.collection import Library
from llamatui.app.history.draft import Draft
from llamatui.app.tui.bars import Status
from llamatui.app.tui.desk import Desk
from llamatui.app.tui.openings import OPENINGS, WritingLine
from llamatui.app.tui.page import Page


def saved(room):
    """What the history holds of the room's document now."""
    room.keeping.flush()
    library = Library()
    try:
        return library.load(room.keeping._shelves[room].document.uid)
    finally:
        library.close()


def saved_titles(room):
    """Of all that the history holds now."""
    room.keeping.flush()
    library = Library()
    try:
        return [entry.title for entry in library.list()]
    finally:
        library.close()


@pytest.fixture
def told(kept, say, wait_until):
    """A story of one sentence."""

    async def tell(room, pilot):
        say(" He ran.")
        await pilot.press("1")
        await wait_until(lambda: page(room).endswith(" He ran.") and not room.busy)
        await pilot.pause()

    return tell


def page(room):
    return room.query_one(Page).text


def status(room):
    return room.query_one(Status).query_one("#message").content


async def test_the_page_that_is_edited_comes_back(kept, told, write, wait_until):
    async with kept("story") as (room, pilot):
        await told(room, pilot)
        before = page(room)
        await pilot.press("e")
        room.query_one(Desk).editor.text = "It was all different."
        await wait_until(lambda: saved(room).draft.page)  # whatever happens from now on
        document = saved(room)
        assert document.draft.page == "It was all different."
        assert document.text == before
    async with kept("story", document=document.entry.uid) as (room, pilot):
        await wait_until(lambda: page(room) == before)
        await wait_until(lambda: "e brings your changes back" in str(room.query_one(Status).render()))
        await pilot.press("e")
        assert room.query_one(Desk).editor.text == "It was all different."
        await pilot.press("ctrl+s")
        await wait_until(lambda: page(room) == "It was all different.")
        assert saved(room).draft == Draft()


async def test_changes_of_the_page_that_were_left_come_back(kept, told, wait_until):
    async with kept("story") as (room, pilot):
        await told(room, pilot)
        await pilot.press("e")
        room.query_one(Desk).editor.text = "Other."
        await pilot.press("escape", "u")
        assert saved(room).draft.page == ""
        await pilot.press("U")
        uid = saved(room).entry.uid
    async with kept("story", document=uid) as (room, pilot):
        await wait_until(lambda: page(room))
        await pilot.press("e")
        assert room.query_one(Desk).editor.text == "Other."


async def test_the_writing_line_comes_back(kept, told, write, wait_until):
    async with kept("story") as (room, pilot):
        await told(room, pilot)
        await pilot.press("w", *"But")
        await pilot.press("ctrl+j", *"he", "ctrl+q")
    async with kept("story", document=room.keeping._shelves[room].document.uid) as (room, pilot):
        await wait_until(lambda: page(room))
        await wait_until(lambda: room.query_one(WritingLine).words == "But\nhe")
        await pilot.press("w", "enter")
        await wait_until(lambda: "But\nhe" in page(room) and not room.busy)
        assert saved(room).draft == Draft()


async def test_memory_comes_back_to_be_saved(kept, told, wait_until):
    async with kept("story", context=400) as (room, pilot):
        await told(room, pilot)
        await pilot.press("m", *"Max", "tab", *"sad")
        await wait_until(lambda: saved(room).draft.note == "sad")
        assert saved(room).draft == Draft(memory="Max", note="sad")
        uid = saved(room).entry.uid
    async with kept("story", document=uid) as (room, pilot):
        await wait_until(lambda: page(room))
        assert room.story.memory == ""
        await pilot.press("m")
        assert pilot.app.screen.query_one("#memory").text == "Max"
        await pilot.press("ctrl+s")
        await wait_until(lambda: pilot.app.screen is room)
        assert (room.story.memory, room.story.note) == ("Max", "sad")
        assert saved(room).draft == Draft()


async def test_the_composer_comes_back(kept, ask, say, write, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "hi")
        await write(pilot, "two\nlines")
        await wait_until(lambda: saved(room).draft.typed)
        await pilot.press("!", "ctrl+q")
        uid = room.keeping._shelves[room].document.uid
    async with kept("chat", document=uid) as (room, pilot):
        await wait_until(lambda: room.composer.text == "two\nlines!")
        await pilot.press("enter")
        await wait_until(lambda: len(room.conversation.turns) == 4 and not room.busy)
        assert saved(room).draft == Draft()


async def test_a_message_that_is_edited_comes_back(kept, ask, say, write, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "hi")
        await write(pilot, "not sent")
        room.edit(room.conversation.tree.path[0])
        await write(pilot, " there")
        await wait_until(lambda: saved(room).draft == Draft("not sent", edits=((0, "hi there"),)))
        uid = saved(room).entry.uid
    async with kept("chat", document=uid) as (room, pilot):
        await wait_until(lambda: room.composer.text == "not sent")
        room.edit(room.conversation.tree.path[0])
        assert room.composer.text == "hi there"
        await pilot.press("enter")
        await wait_until(lambda: room.conversation.turns[0].content == "hi there" and not room.busy)
        await wait_until(lambda: room.composer.text == "not sent")
        await wait_until(lambda: saved(room).draft == Draft("not sent"))


async def test_a_system_prompt_comes_back_to_be_saved(kept, ask, say, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "hi")
        await pilot.press("ctrl+s", *"Max", "escape")
        await pilot.pause()
        assert saved(room).draft == Draft(system="Max")
        uid = saved(room).entry.uid
    async with kept("chat", document=uid) as (room, pilot):
        await wait_until(lambda: room.conversation.turns)
        await wait_until(lambda: room._unsaved_system)
        await pilot.press("ctrl+s")
        assert pilot.app.screen.query_one(TextArea).text == "Max"
        await pilot.press("ctrl+s")
        await wait_until(lambda: room.conversation.system == "Max")
        await wait_until(lambda: saved(room).draft == Draft())


async def test_each_text_has_a_draft_of_its_own(kept, ask, say, write, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "one")
        await pilot.press("ctrl+n")
        await wait_until(lambda: not room.conversation.turns)
        await ask(room, pilot, "two")
        await write(pilot, "of two")
        for _ in range(2):
            await room.action_undo()
        assert room.conversation.turns[0].content == "one"
        assert room.composer.text == ""
        await write(pilot, "of one")
        await pilot.pause()
        await room.action_redo()
        await room.action_redo()
        assert room.conversation.turns[0].content == "two"
        assert room.composer.text == "of two"


async def test_what_is_typed_goes_along_to_a_blank_page_and_back(kept, ask, say, write, wait_until):
    async with kept("chat", context=512) as (room, pilot):
        say("yes", again=9)
        await ask(room, pilot, "one")
        await write(pilot, "about")
        await pilot.press("ctrl+n")
        await wait_until(lambda: not room.conversation.turns)
        assert room.composer.text == "about"
        await write(pilot, " two")
        await pilot.pause()
        await room.action_undo()
        assert room.conversation.turns[0].content == "one"
        assert room.composer.text == "about two"


async def test_opening_another_text_leaves_the_draft_with_its_own(kept, told, write, wait_until):
    async with kept("story") as (room, pilot):
        await told(room, pilot)
        first = saved(room).entry.uid
        await pilot.press("n", "2")
        await wait_until(lambda: page(room).startswith(OPENINGS[1]) and not room.busy)
        second = saved(room).entry.uid
        await pilot.press("w", *"then")
        pilot.app.reopen(first)
        await wait_until(lambda: page(room).startswith(OPENINGS[0]))
        await wait_until(lambda: room.query_one(WritingLine).words == "")
        pilot.app.reopen(second)
        await wait_until(lambda: room.query_one(WritingLine).words == "then")


async def test_without_a_history_a_blank_page_gets_what_was_typed_too(open_room, told, wait_until):
    async with open_room("story", temperature=0.5) as (room, pilot):
        await told(room, pilot)
        await pilot.press("w", *"then", "escape", "n")
        assert room.query_one(WritingLine).words == "then"
        assert room.sampling.temperature == 0.5


async def test_a_message_is_a_turn_before_it_is_no_draft_any_more(
    kept, ask, say, write, wait_until, monkeypatch
):
    async with kept("chat") as (room, pilot):
        say("hello")
        await ask(room, pilot, "hi")
        await write(pilot, "and then?")
        await pilot.pause()
        found = []

        def save(document, **_):
            found.append((document.draft.typed, [turn.content for turn in document.content.turns][2:]))

        monkeypatch.setattr(room.keeping._recorder, "save", save)
        say("yes")
        await pilot.press("enter")
        await wait_until(lambda: found and not room.busy and len(room.conversation.turns) == 4)
    at_first = next(turns for typed, turns in found if not typed)
    assert at_first == ["and then?"]


@pytest.mark.parametrize("room_name", ["story", "chat"])
async def test_what_was_typed_before_the_first_word_comes_back(kept, say, write, wait_until, room_name):
    async with kept(room_name) as (room, pilot):
        await write(pilot, "There was a")
        await wait_until(lambda: saved_titles(room) == ["There was a"])
        uid = room.keeping._shelves[room].document.uid
    async with kept(room_name, document=uid) as (room, pilot):
        await wait_until(lambda: room.draft().typed == "There was a")
        say(" llama.")
        await pilot.press(*" big", "enter")
        await wait_until(
            lambda: saved_titles(room) == ["There was a big" + (" llama." * (room_name == "story"))]
        )
        assert saved(room).entry.uid == uid
        assert saved(room).draft == Draft()
    async with kept(room_name) as (room, pilot):
        await write(pilot, "x")
        await wait_until(lambda: len(saved_titles(room)) == 2)
        await pilot.press("backspace")
        await wait_until(lambda: len(saved_titles(room)) == 1)
