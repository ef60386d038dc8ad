"""What the rooms keep while they are open: whose hash is whose, settings, and who waits for the disk."""

import gc
import hashlib
import threading
import weakref

import pytest

from llamatui.app.model import load_model
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from llamatui.app.tui.caches import Caches
from llamatui.app.tui.history_drawer import HistoryDrawer
from llamatui.app.tui.openings import OPENINGS
from llamatui.app.tui.page import Page
from llamatui.app.tui.runner import Runner
from llamatui.app.tui.sampling_panel import SamplingPanel


def page(room):
    return room.query_one(Page).text


@pytest.fixture
def told(say, wait_until):
    """told(room, pilot, 1): the story that begins with the first opening, and its uid."""

    async def tell(room, pilot, number):
        say(" He ran.")
        await pilot.press(str(number))
        await wait_until(lambda: page(room) == OPENINGS[number - 1] + " He ran." and not room.busy)
        await pilot.pause()
        room.keeping.flush()
        return room.keeping._shelves[room].document.uid

    return tell


@pytest.fixture
def model_file(tiny_model, tmp_path):
    """A model that may be changed."""
    for name in ("tiny.bin", "tokenizer.bin"):
        (tmp_path / name).write_bytes((tiny_model.parent / name).read_bytes())
    return tmp_path / "tiny.bin"


def replace_weights(path):
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.with_suffix(".new").write_bytes(data)
    path.with_suffix(".new").replace(path)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_weights_that_come_under_the_same_name_have_a_hash_of_their_own(kept, wait_until, model_file):
    async with kept("story", model=model_file) as (room, _):
        old = room.model
        await wait_until(lambda: room.keeping.sha256(old))
        before = sha256_of(model_file)
        replace_weights(model_file)
        room.open(load_model(model_file, backend="numpy"))
        await wait_until(lambda: room.keeping.sha256(room.model))
        assert room.keeping.sha256(room.model) == sha256_of(model_file) != before
        assert room.keeping.sha256(old) == before


async def test_weights_whose_file_is_another_by_now_have_no_hash(kept, wait_until, model_file):
    async with kept("story") as (room, _):
        model = load_model(model_file, backend="numpy")
        replace_weights(model_file)
        room.open(model)
        other = load_model(model_file, backend="numpy")
        room.open(other)
        await wait_until(lambda: room.keeping.sha256(other))  # one after the other
        assert room.keeping.sha256(model) == ""


async def test_another_model_leaves_nothing_of_the_one_before(kept, told, wait_until, tiny_model):
    async with kept("story") as (room, pilot):
        await told(room, pilot, 1)
        await room.action_new()
        await told(room, pilot, 2)
        old = weakref.ref(room.model)
        pilot.app._take(load_model(tiny_model))
        await wait_until(lambda: room.model is not old())
        await wait_until(lambda: gc.collect() >= 0 and old() is None)
        await pilot.press("n")
        await room.action_undo()
        await room.action_undo()
        assert page(room).startswith(OPENINGS[1])


async def test_undo_to_the_story_before_brings_its_settings_back(kept, told, wait_until):
    async with kept("story", temperature=0.3) as (room, pilot):
        await told(room, pilot, 1)
        await room.action_new()
        room.query_one(SamplingPanel).put("temperature", 1.5)
        await pilot.pause()
        assert room.sampling.temperature == 1.5
        await room.action_undo()
        await pilot.pause()
        assert page(room).startswith(OPENINGS[0])
        assert room.sampling.temperature == room.query_one(SamplingPanel).sampling.temperature == 0.3
        assert room.keeping._shelves[room].document.sampling.temperature == 0.3
        await room.action_redo()
        await pilot.pause()
        await room.action_redo()
        assert room.query_one(SamplingPanel).sampling.temperature == 1.5


async def test_the_event_loop_does_not_wait_for_the_history(kept, told, wait_until):
    async with kept("story") as (room, pilot):
        uid = await told(room, pilot, 1)
        recorder, loop, asked = room.keeping._recorder, threading.get_ident(), []
        flush = recorder.flush
        recorder.flush = lambda *timeout: asked.append(threading.get_ident()) or flush(*timeout)
        await pilot.press("escape", "ctrl+l")
        await wait_until(lambda: isinstance(pilot.app.screen, HistoryDrawer))
        pilot.app.screen.dismiss(uid)
        await pilot.press("n")
        pilot.app.reopen(uid)
        await wait_until(lambda: page(room).startswith(OPENINGS[0]))
        assert len(asked) == 2
        assert loop not in asked


async def test_a_second_reopening_takes_the_place_of_the_first(kept, told, wait_until):
    async with kept("story") as (room, pilot):
        first = await told(room, pilot, 1)
        await pilot.press("n")
        second = await told(room, pilot, 2)
        await pilot.press("n", "w")
        shown, put = [], room.put

        async def note(content):
            shown.append(content.text)
            await put(content)

        room.put = note
        await pilot.press("f1")  # the room waits
        for uid in (first, second):
            pilot.app.reopen(uid)
            await wait_until(lambda: pilot.app._errand is None and pilot.app._reopened)
        await pilot.press("escape")
        await wait_until(lambda: page(room).startswith(OPENINGS[1]))
        await pilot.pause(0.3)
        assert shown == [OPENINGS[1] + " He ran."]


async def test_what_is_reopened_for_the_other_room_waits_there(kept, told, wait_until):
    async with kept("story", context=512) as (room, pilot):
        first = await told(room, pilot, 1)
        await pilot.press("n", "f1")
        pilot.app.reopen(first)
        await wait_until(lambda: pilot.app._reopened)
        await pilot.press("escape")
        await pilot.app.action_enter("chat")
        await wait_until(lambda: pilot.app.room.NAME == "chat")
        await pilot.app.action_enter("story")
        await wait_until(lambda: page(room).startswith(OPENINGS[0]))


def test_a_cache_of_other_weights_is_not_taken(model_file):
    runner, problems = Runner("inference", pytest.fail), []
    caches = Caches(runner, 10**9, problems.append)

    def told():
        """A story of 80 words."""
        story = Story(load_model(model_file, backend="numpy"), 512, "stop")
        story.write(" the llama went up" * 20)
        caches._learn(story.model)
        return story

    first = told()
    assert caches.adopt(first)
    next(iter(first.start(Sampler(Sampling()))))
    caches.keep(first.model, first.session)
    kept = threading.Event()
    runner.submit(kept.set)
    assert kept.wait(60)
    runner.close()
    again = told()
    assert caches.adopt(again)
    assert len(again.session.tokens) > 100
    replace_weights(model_file)
    other = told()
    assert caches.adopt(other)
    assert other.session.tokens == []
    assert not problems
