"""Keys that come faster than the screen: what they ask for is done to what is there by then."""

import asyncio
import threading

import pytest
from textual.geometry import Size

from llamatui.app.tui.bars import Status
from llamatui.app.tui.openings import WritingLine
from llamatui.app.tui.page import Page
from llamatui.app.tui.runner import Scoring


@pytest.fixture
def told(open_room, wait_until):
    """A room with a story whose end is looked at."""

    def run(**options):
        return open_room("story", **options)

    async def begin(room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.story.path and not room.busy)
        await pilot.pause()

    return run, begin


@pytest.fixture
def held(monkeypatch):
    """What is scored waits until this is set."""
    go, score = threading.Event(), Scoring.__call__

    def later(job):
        go.wait(60)
        score(job)

    monkeypatch.setattr(Scoring, "__call__", later)
    return go


async def test_a_held_backspace_takes_back_word_by_word(told, burst, wait_until):
    opened, begin = told
    async with opened() as (room, pilot):
        await begin(room, pilot)
        length = len(room.story.path)
        await burst(pilot, *["backspace"] * 8)
        await wait_until(lambda: len(room.story.path) == length - 8)


async def test_a_held_backspace_ends_at_the_blank_page(told, burst, wait_until):
    opened, begin = told
    async with opened() as (room, pilot):
        await begin(room, pilot)
        room.story.cut(3)
        room.show_story()
        await burst(pilot, *["backspace"] * 5)
        await wait_until(lambda: not room.story.path)


async def test_what_is_scrolled_to_may_be_gone_by_then(told, burst):
    opened, begin = told
    async with opened() as (room, pilot):
        await begin(room, pilot)
        page = room.query_one(Page)
        page.look_at(len(room.story.path) - 1)
        room.story.cut(1)
        room.show_story()
        await pilot.pause()
        await pilot.resize_terminal(70, 20)
        page.move_to(0)
        page.on_resize(type("Resize", (), {"size": Size(70, 20)})())
        page.move_to(None)
        await pilot.pause()
        assert page.cursor is None


async def test_undoing_all_while_the_heat_map_is_filled(told, held):
    opened, begin = told
    async with opened() as (room, pilot):
        await begin(room, pilot)
        await pilot.press("h")
        assert room.insight.filling
        await pilot.press(*"uuu")
        assert not room.story.path
        held.set()
        await asyncio.sleep(0.1)
        await pilot.pause()
        assert not room.query(Page).first().display


async def test_a_version_that_comes_while_the_heat_map_is_filled_is_filled_too(told, held, wait_until):
    opened, begin = told
    async with opened() as (room, pilot):
        await begin(room, pilot)
        room.story.cut(20)
        room.story.write("and then the llama went home")
        room.show_story()
        await pilot.press("u", "h")
        assert room.insight.filling
        await pilot.press("U")
        held.set()
        await wait_until(lambda: not room.insight.filling)
        assert [token for token in room.story.path[1:] if token.record is None] == []
        assert "ends where the context does" not in str(room.query_one(Status).render())


async def test_undo_while_one_types_leaves_the_keys_with_the_line(told, wait_until):
    opened, begin = told
    async with opened() as (room, pilot):
        await begin(room, pilot)
        await pilot.press("w", *"hello", "ctrl+z", *"new")
        line = room.query_one(WritingLine)
        assert (line.words, line.has_focus) == ("hellonew", True)


async def test_a_key_that_has_to_wait_says_so(open_room, say, wait_until):
    gate = threading.Semaphore(3)
    say(" He ran. He ate.", gate)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.run and len(room.story.path) > 0)
        await pilot.press("m", "r", "h", "h", "x")
        await pilot.press("escape")
        gate.release(50)
        await wait_until(lambda: not room.busy)
        said = [notice.message for notice in pilot.app._notifications]
        assert said == ["Esc stops the model, then this can be done."] * 2
