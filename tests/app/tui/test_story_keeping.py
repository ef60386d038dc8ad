"""Nothing is lost: undo, versions, branches, editing, memory, files, and other models."""

import threading
from pathlib import Path

import pytest
from textual.widgets import Input

from llamatui.app.tui.bars import Status
from llamatui.app.tui.branches import Branches, branches_of
from llamatui.app.tui.desk import Desk, smallest_change
from llamatui.app.tui.openings import OPENINGS, Openings, WritingLine
from llamatui.app.tui.page import Page
from llamatui.app.tui.page_editor import PageEditor
from llamatui.app.tui.story_dialogs import MemoryDialog, SaveDialog
from llamatui.app.tui.story_side import StorySide


def page(room) -> str:
    return room.query_one(Page).text


def status(room) -> str:
    return room.query_one(Status).left.plain


@pytest.fixture
def tell(say, wait_until):
    """await tell(room, pilot, key, " words"): presses a key, upon which the model says this."""

    async def told(room, pilot, key: str, words: str) -> None:
        say(words)
        await pilot.press(key)
        await wait_until(lambda: page(room).endswith(words) and not room.busy, words)
        await pilot.pause()

    return told


async def test_versions_are_kept_and_flipped_through(open_room, tell):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "r", " He slept.")
        await tell(room, pilot, "r", " He ate.")
        assert "version 3 of 3" in status(room)
        assert status(room).index("words") < status(room).index("version"), "narrow lines lose their end"
        seen = []
        for _ in range(3):
            await pilot.press("]")
            seen.append(page(room).removeprefix(OPENINGS[0]))
        assert seen == [" He ran.", " He slept.", " He ate."]
        await pilot.press("[")
        assert "version 2 of 3" in status(room)


async def test_undo_and_redo_go_through_every_change(open_room, tell, write, wait_until, say):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "space", " Far.")
        await tell(room, pilot, "r", " Fast.")
        texts = [page(room)]
        for key in ("u", "ctrl+z", "u", "u"):
            await pilot.press(key)
            texts.append(page(room))
        assert [text.removeprefix(OPENINGS[0]) for text in texts] == [
            " He ran. Fast.", " He ran. Far.", " He ran.", "", "",
        ]  # fmt: skip
        assert texts[-1] == "", "before the opening"
        assert room.query_one(Openings).display
        for key in ("ctrl+y", "ctrl+y"):
            await pilot.press(key)
        assert page(room) == OPENINGS[0] + " He ran."
        await pilot.press("U", "U")
        assert page(room) == texts[0]


async def test_a_new_story_leaves_the_old_one_on_a_branch(open_room, tell):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        old = page(room)
        await pilot.press("n")
        assert page(room) == ""
        assert room.query_one(Openings).query_one(".back").display
        await tell(room, pilot, "2", " It fell.")
        assert room.story.prompt().ids[1:] == [token.id for token in room.story.path]
        await pilot.press("u", "u", "ctrl+z")
        assert page(room) == old


async def test_one_sentence_at_a_time(open_room, tell, say, wait_until):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        for words in (" One two.", ' "Oh!"'):
            say(f"{words} Then more. And more.")
            await pilot.press(".")
            await wait_until(lambda words=words: page(room).endswith(words) and not room.busy)
            assert status(room).startswith("a sentence")


async def test_words_that_never_came_do_not_replace_what_was_there(open_room, tell, say, wait_until, write):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        for story in (OPENINGS[0] + " He ran.", OPENINGS[0] + " He ran. Then she spoke."):
            if story != page(room):
                await pilot.press("w")
                await write(pilot, "Then she spoke.")
                await pilot.press("enter")
                await wait_until(lambda: room.story.path[-1].author == "writer" and not room.busy)
            say(fail_after=0)
            await pilot.press("r")
            await wait_until(lambda: pilot.app._notifications and not room.busy)
            assert [n.title for n in pilot.app._notifications] == ["The model failed"]
            pilot.app._notifications.clear()
            assert page(room) == story
            say()
            assert not room.story.tree.can_redo
            await pilot.press("u", "U")
            assert page(room) == story
        await pilot.press("u")
        assert page(room) == OPENINGS[0] + " He ran."


async def test_a_key_that_changed_nothing_leaves_redo_as_it_was(open_room, tell, say, wait_until):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "space", " Far.")
        for key in ("space", "r"):
            await pilot.press("u")
            say("")
            await pilot.press(key)
            await wait_until(lambda: not room.busy)
            await pilot.press("U")
            assert page(room) == OPENINGS[0] + " He ran. Far."


async def test_words_that_come_again_stop_where_they_are_stopped(open_room, tell, say, wait_until):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran. He ate. He slept.")
        at = len(OPENINGS[0] + " He ran.")
        widget = room.query_one(Page)
        room.on_page_rewind(
            Page.Rewind(widget.tokens[next(i for i in range(at) if widget.start_of(i) == at)])
        )
        say(" He ate. He slept.")
        await pilot.press(".")
        await wait_until(lambda: page(room).endswith("He ate.") and not room.busy)
        gate = threading.Semaphore(5)
        say(" He ate. He slept.", gate)
        await pilot.press("r")
        await wait_until(lambda: page(room).endswith(" He a"))
        await pilot.press("escape")
        gate.release(20)
        await wait_until(lambda: not room.busy)
        assert page(room) in [OPENINGS[0] + " He ran. He a", OPENINGS[0] + " He ran. He at"]
        assert not pilot.app._notifications


async def test_branches_are_listed_and_gone_to(open_room, tell, wait_until):
    async with open_room("story", size=(120, 36)) as (room, pilot):
        await tell(room, pilot, "1", " He ran far.")
        await tell(room, pilot, "r", " He ran fast.")
        branches = branches_of(room.story)
        assert [(b.depth, b.words, b.shown, b.ends) for b in branches] == [
            (0, OPENINGS[0], True, False), (1, "…far.", False, False), (1, "…fast.", True, True),
        ]  # fmt: skip
        side = room.query_one(Branches)
        assert side.option_count == 3
        assert side.highlighted == 2
        await pilot.click(side, offset=(8, 1))
        await wait_until(lambda: page(room).endswith("far."))
        assert room.query_one(Page).has_focus
        side.focus()
        await pilot.press("end", "enter")
        await wait_until(lambda: page(room).endswith("fast."))
        shape = str(room.query_one(StorySide).query_one("#shape").content)
        assert shape.startswith("story\n14 words · ")


async def test_any_text_is_edited_in_place_and_gone_on_from(open_room, tell, wait_until):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran home.")
        kept = room.story.path[0]
        await pilot.press("e")
        editor = room.query_one(PageEditor)
        assert editor.has_focus
        assert editor.text == page(room)
        assert not room.query_one(Page).display
        await pilot.press(*["left"] * 6, *["backspace"] * 3, *"sat", "ctrl+s")
        await wait_until(lambda: room.query_one(Page).display)
        assert page(room) == room.story.text == OPENINGS[0] + " He sat home."
        assert room.story.path[0] is kept
        assert [t.author for t in room.story.path[-5:]] == ["model"] * 5
        await tell(room, pilot, "space", " Then.")
        await pilot.press("u", "u")
        assert page(room) == OPENINGS[0] + " He ran home."


async def test_the_editor_opens_at_the_cursor(open_room, tell):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran\nhome.")
        widget = room.query_one(Page)
        await pilot.press("ctrl+end", "left", "left")
        at = widget.start_of(widget.cursor)
        before = page(room)
        await pilot.press("e", *"my ", "ctrl+s")
        await pilot.pause()
        assert page(room) == before[:at] + "my " + before[at:]
        assert widget.has_focus


async def test_an_edit_that_was_left_comes_back(open_room, tell, wait_until):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        before = page(room)
        await pilot.press("e", *" Oh", "escape")
        await wait_until(lambda: room.query_one(Page).display)
        assert page(room) == before
        assert "brings your changes back" in status(room)
        await pilot.press("e")
        assert room.query_one(PageEditor).text == before + " Oh"
        await pilot.press("ctrl+s")
        await wait_until(lambda: page(room) == before + " Oh")
        await pilot.press("e", "escape")
        await wait_until(lambda: not room.query_one(Desk).display)
        assert status(room).startswith("nothing changed")


async def test_each_page_brings_back_what_was_left_on_it(open_room, tell, wait_until):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("e", *" Oh", "escape")
        await wait_until(lambda: not room.editing)
        await tell(room, pilot, "space", " Far.")
        await pilot.press("e", *" No", "escape")
        await wait_until(lambda: not room.editing)
        await pilot.press("u", "e")
        assert room.query_one(PageEditor).text.endswith(" He ran. Oh")
        await pilot.press("ctrl+s")
        await wait_until(lambda: page(room).endswith(" Oh"))
        await pilot.press("u", "U", "u")
        await tell(room, pilot, "space", " Far.")
        await pilot.press("e")
        assert room.query_one(PageEditor).text.endswith(" Far. No")


async def test_what_was_edited_is_in_view(open_room, tell, wait_until):
    async with open_room("story", context=512) as (room, pilot):
        await tell(room, pilot, "1", "\n".join(f" Line {i}" for i in range(30)))
        widget = room.query_one(Page)
        assert widget.scroll_offset.y > 3
        await pilot.press("e")
        room.query_one(PageEditor).move_cursor((0, 0))
        await pilot.press(*"Hey! ", "ctrl+s")
        await wait_until(lambda: page(room).startswith("Hey! "))
        await wait_until(lambda: widget.scroll_offset.y == 0)
        assert widget.cursor is None
        await pilot.press("u")
        assert page(room).startswith("Once")


async def test_an_edit_stops_the_model_first(open_room, say, wait_until):
    gate = threading.Semaphore(3)
    say(" He ran and ran", gate)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: page(room).endswith(" He"))
        await pilot.press("e")
        gate.release(1)
        await wait_until(lambda: room.editing)
        assert room.query_one(PageEditor).text == page(room)
        assert not room.busy


@pytest.mark.parametrize(
    ("story", "edited", "change"),
    [
        ("abc", "abc", (3, 3, "")),
        ("abc", "axc", (1, 2, "x")),
        ("aaa", "aaaa", (3, 3, "a")),
        ("a\tb", "a    c", (2, 3, "c")),
        ("a\tb", "a  b", (1, 2, "  ")),
        ("a\r\nb", "a\nc", (3, 4, "c")),
        ("a\x1bb", "a␛", (2, 3, "")),
        ("", "new", (0, 0, "new")),
    ],
)
def test_only_what_changed_is_changed(story, edited, change):
    assert smallest_change(story, edited) == change


async def test_memory_and_note_are_read_and_not_shown(open_room, tell, wait_until):
    async with open_room("story", context=400, size=(120, 36)) as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        shown = page(room)
        await pilot.press("m")
        await wait_until(lambda: isinstance(pilot.app.screen, MemoryDialog))
        await pilot.press(*"Max is old", "tab", *"sad", "ctrl+s")
        await wait_until(lambda: pilot.app.screen is room)
        assert (room.story.memory, room.story.note) == ("Max is old", "sad")
        assert page(room) == shown
        read = room.model.tokenizer.decode(room.story.prompt().ids)
        assert read.startswith("Max is old\n")
        assert "[Author's note: sad]" in read
        assert "memory and note" in str(room.query_one("#kept").content)
        await pilot.press("m", *"er", "escape")
        await wait_until(lambda: pilot.app.screen is room)
        assert room.story.memory == "Max is old"
        await pilot.press("m")
        await wait_until(lambda: isinstance(pilot.app.screen, MemoryDialog))
        dialog = pilot.app.screen
        assert dialog.query_one("#memory").text == "Max is older"
        assert "not saved yet" in str(dialog.query_one(".error").content)
        await pilot.press("ctrl+s")
        await wait_until(lambda: pilot.app.screen is room)
        assert room.story.memory == "Max is older"


async def test_memory_is_undone_like_words(open_room, tell, wait_until):
    async with open_room("story", context=400) as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        for key in ("a", "b"):
            await pilot.press("m")
            await wait_until(lambda: isinstance(pilot.app.screen, MemoryDialog))
            await pilot.press(key, "ctrl+s")
            await wait_until(lambda: pilot.app.screen is room)
        assert room.story.memory == "ab"
        await pilot.press("u")
        assert room.story.memory == "a"
        assert status(room).startswith("undone: memory and note")
        await pilot.press("u", "u")
        assert (room.story.memory, page(room)) == ("", OPENINGS[0])
        assert status(room).startswith("undone ")


async def test_memory_that_is_too_long_is_explained(open_room, tell, wait_until):
    async with open_room("story", context=64) as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("m")
        await wait_until(lambda: isinstance(pilot.app.screen, MemoryDialog))
        dialog = pilot.app.screen
        await pilot.press(*"abcdefghijklmnopqrstuvwxyz", "ctrl+s")
        await wait_until(lambda: dialog.query_one(".error").display)
        assert "the memory has" in str(dialog.query_one(".error").content)
        assert pilot.app.screen is dialog


async def test_a_story_is_saved_and_nothing_overwritten_by_accident(
    open_room, tell, wait_until, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("x")
        await wait_until(lambda: isinstance(pilot.app.screen, SaveDialog))
        line = pilot.app.screen.query_one(Input)
        assert line.value == "once-upon-a-time-there-was.txt"
        await pilot.press("enter")
        await wait_until(lambda: pilot.app.screen is room)
        path = Path("once-upon-a-time-there-was.txt")
        assert path.read_text() == page(room) + "\n"

        path.write_text("precious")
        await pilot.press("ctrl+s", "enter")
        dialog = pilot.app.screen
        await wait_until(lambda: dialog.query_one(".error").display)
        assert path.read_text() == "precious"
        await pilot.press("end", "a", "backspace", "enter")  # asked anew once the name was touched
        assert path.read_text() == "precious"
        await pilot.press("enter")
        await wait_until(lambda: pilot.app.screen is room)
        assert path.read_text() == page(room) + "\n"

        await pilot.press("x")
        pilot.app.screen.query_one(Input).value = "no/such.txt"
        await pilot.press("enter")
        dialog = pilot.app.screen
        await wait_until(lambda: "no folder" in str(dialog.query_one(".error").content))
        await pilot.press("escape")
        await wait_until(lambda: pilot.app.screen is room)

        await pilot.press("x", *"llama.md", "enter")  # typed over what is selected
        await wait_until(lambda: pilot.app.screen is room)
        assert Path("llama.md").exists()


async def test_a_story_is_not_lost_in_a_folder_that_is_gone(
    open_room, tell, wait_until, tmp_path, monkeypatch
):
    folder = tmp_path / "gone"
    folder.mkdir()
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        monkeypatch.chdir(folder)
        folder.rmdir()
        await pilot.press("x", "enter")
        dialog = pilot.app.screen
        await wait_until(lambda: dialog.query_one(".error").display)
        dialog.query_one(Input).value = str(tmp_path / "story.txt")
        await pilot.press("enter")
        await wait_until(lambda: pilot.app.screen is room)
        assert (tmp_path / "story.txt").read_text() == page(room) + "\n"


async def test_no_letter_quits(open_room, tell):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("q")
        await pilot.pause()
        assert pilot.app.is_running
        assert not pilot.app._exit


async def test_the_story_is_copied(open_room, tell):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("y")
        assert pilot.app.clipboard == page(room)


async def test_what_was_forgotten_is_dimmed(open_room, wait_until):
    async with open_room("story", overflow="shift", context=64) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.query_one(Page).forgotten, "a shift")
        assert any("forgotten" in note.message for note in pilot.app._notifications)
        await wait_until(lambda: not room.busy)
        widget = room.query_one(Page)
        assert widget.forgotten == room.story.prompt().forgotten > 0
        widget.scroll_home(animate=False)
        await pilot.pause()
        dim = widget.get_component_rich_style("page--forgotten").color
        assert widget.render_line(1)._segments[1].style.color == dim


async def test_a_full_context_can_be_let_forget(open_room, wait_until):
    async with open_room("story", context=64) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.story.path and not room.busy)
        await pilot.press("space")
        await wait_until(lambda: any("Take words back" in n.message for n in pilot.app._notifications))
        command = next(c for c in room.commands() if c.title.startswith("When the context is full"))
        command.callback()
        await pilot.press("space")
        await wait_until(lambda: room.query_one(Page).forgotten)
        await pilot.press("escape")
        await wait_until(lambda: not room.busy)


async def test_another_model_goes_on_with_all_branches(open_room, tell, say, tiny_model):
    from llamatui.app.model import load_model

    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await tell(room, pilot, "r", " He sat.")
        before = room.story
        room.open(load_model(tiny_model))
        assert room.story is not before
        assert page(room) == room.story.text == before.text
        await pilot.press("n", "ctrl+z", "u")
        assert page(room).endswith(" He ran.")
        await pilot.press("U")
        assert page(room).endswith(" He sat.")
        await tell(room, pilot, "space", " Far.")
        ids, limits = room.question()
        assert (ids, limits.stop_ids) == (room.story.prompt().ids, room.story.model.stop_ids)
        await pilot.press("[")
        assert page(room).endswith(" He ran.")


async def test_the_palette_offers_what_can_be_done(open_room, tell):
    async with open_room("story") as (room, pilot):
        assert room.question() is None
        await tell(room, pilot, "1", " He ran.")
        titles = [command.title for command in room.commands()]
        assert {"New story", "Edit the page", "Heat map", "Save the story", "Copy the story"} <= set(titles)
        await pilot.press("e")
        assert not room.check_action("retry", ())
        assert "Heat map" not in [command.title for command in room.commands()]


async def test_up_goes_from_the_line_to_the_page(open_room, tell):
    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        await pilot.press("w")
        assert room.query_one(WritingLine).has_focus
        await pilot.press("up")
        assert room.query_one(Page).has_focus


async def test_words_chosen_in_the_split_view_are_a_passage_that_undo_takes_back(open_room, tell, say):
    from llamatui.app.engine import TokenRecord
    from llamatui.app.tui.runner import Piece

    async with open_room("story") as (room, pilot):
        await tell(room, pilot, "1", " He ran.")
        before = page(room)
        ids = room.model.tokenizer.encode("so far")
        await room.accept([Piece(TokenRecord(ids[0]), " so"), Piece(TokenRecord(ids[-1]), "", True)])
        assert page(room) == room.story.text == before + " so", "half a character is left out"
        assert room.story.path[-1].begins
        await pilot.press("u")
        assert page(room) == before


async def test_wide_characters_are_found_where_they_stand(open_room, tell, write, wait_until, say):
    async with open_room("story") as (room, pilot):
        say(" x")
        await write(pilot, "東京🦙 is far")
        await pilot.press("enter")
        await wait_until(lambda: page(room).endswith(" x") and not room.busy)
        widget = room.query_one(Page)
        for column, shown in ((0, "東"), (1, "東"), (2, "京"), (5, "🦙")):
            await pilot.click(widget, offset=(widget._margin + column, 1))
            assert widget.tokens[widget.cursor].text == shown
        region = widget.cursor_region()
        assert (region.x, region.y) == (widget.region.x + widget._margin + 4, widget.region.y + 1)
