"""A model that becomes ready while something else holds on to the words of the one before."""

import shutil

import pytest
from textual.widgets import TextArea

from llamatui.app.model import load_model
from llamatui.app.tui.compare_screen import CompareScreen
from llamatui.app.tui.story_dialogs import MemoryDialog
from llamatui.backends import registry


@pytest.fixture
def other(tiny_model, tmp_path, say):
    for name in ("tiny.bin", "tokenizer.bin"):
        shutil.copy(tiny_model.parent / name, tmp_path / name)
    (tmp_path / "tiny.bin").rename(tmp_path / "other.bin")
    return load_model(tmp_path / "other.bin", threads=1)


@pytest.fixture
def story(open_room, say, wait_until, monkeypatch):
    """async with story() as (room, pilot): there is a page."""
    from contextlib import asynccontextmanager

    monkeypatch.setattr(registry, "backend_names", lambda: ["scripted"])

    @asynccontextmanager
    async def run():
        async with open_room("story") as (room, pilot):
            say(" He ran.")
            await pilot.press("1")
            await wait_until(lambda: room.query_one("Page").text.endswith("ran.") and not room.busy)
            await pilot.pause()
            yield room, pilot

    return run


@pytest.mark.parametrize("key", ["f1", "f2", "m", "e", "x", "ctrl+b", "ctrl+o", "ctrl+p"])
async def test_it_opens_when_the_reader_is_back(key, story, other, wait_until):
    async with story() as (room, pilot):
        before = room.model
        await pilot.press(key)
        await wait_until(lambda: room.editing or pilot.app.screen is not room)
        await pilot.pause()
        pilot.app._take(other)
        await pilot.pause()
        assert room.model is before
        assert "other is ready" in [*pilot.app._notifications][-1].message
        await wait_until(lambda: not getattr(pilot.app.screen, "busy", False))
        await pilot.press("escape")
        await wait_until(lambda: room.model is other)
        assert pilot.app.screen is room


async def test_memory_that_was_typed_meanwhile_is_remembered(story, other, wait_until):
    async with story() as (room, pilot):
        await pilot.press("m")
        await wait_until(lambda: isinstance(pilot.app.screen, MemoryDialog))
        pilot.app.screen.query_one("#memory", TextArea).text = "Max is blue."
        pilot.app._take(other)
        await pilot.press("ctrl+s")
        await wait_until(lambda: room.model is other)
        assert room.story.memory == "Max is blue."


async def test_a_later_wish_calls_it_off(story, other, wait_until):
    async with story() as (room, pilot):
        before = room.model
        await pilot.press("f1")
        pilot.app._take(other)
        pilot.app.action_pick_model(str(before.path))
        await pilot.press("escape")
        await wait_until(lambda: pilot.app.screen is room)
        pilot.app._open_coming()
        assert room.model is before


async def test_words_of_another_model_are_not_taken(story, other, say, wait_until):
    async with story() as (room, pilot):
        say(" Far away.", again=2)
        await pilot.press("f2")
        await wait_until(lambda: isinstance(pilot.app.screen, CompareScreen))
        screen = pilot.app.screen
        await wait_until(lambda: not screen.busy and screen.corners[0].pieces)
        room.open(other)
        text = room.story.text
        await pilot.press("1")
        await wait_until(lambda: pilot.app.screen is room)
        await pilot.pause()
        assert room.story.text == text
        assert "Another model" in [*pilot.app._notifications][-1].message
