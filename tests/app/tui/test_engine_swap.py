"""A faster engine that gets ready while the app runs: what the header, the transcript and the toasts say."""

import threading

import pytest

from llamatui.app import model as model_module
from llamatui.app.tui.bars import Header
from llamatui.app.tui.transcript import Note
from llamatui.backends import registry


@pytest.fixture
def interim(say, monkeypatch):
    """Backends that the app began with: numpy, while `coming` is being prepared."""
    begun = []

    def start(checkpoint, threads=None):
        backend = registry.create_backend("scripted", checkpoint, 2)
        backend.name, backend.preparing, backend.note = "numpy", interim.coming, "being compiled"
        begun.append(backend)
        return backend

    def make(coming="numba"):
        interim.coming = coming
        return begun

    monkeypatch.setattr(model_module, "start_backend", start)
    return make


def finish(backend):
    """What was being prepared is ready."""
    faster = registry.create_backend("scripted", backend.checkpoint, 1)
    faster.name = backend.preparing
    faster.quantizes_activations = faster.name == "q8_0"
    backend.replacement, backend.preparing = faster, ""


def fail(backend):
    backend.note, backend.preparing = "numba could not be compiled: [boom]", ""


def header(room):
    return room.query_one(Header).left.plain


def toasts(room):
    return [notice.message for notice in room.app._notifications]


async def test_the_header_changes_while_nothing_is_written(open_room, interim, wait_until):
    begun = interim()
    async with open_room("story") as (room, _):
        assert header(room) == "story   tiny · numpy · 2 threads · compiling numba"
        finish(begun[0])
        await wait_until(lambda: header(room) == "story   tiny · numba · 1 thread")
        assert room.model.backend.name == "numba"
        assert toasts(room) == []


async def test_the_header_changes_in_mid_text(open_room, interim, say, wait_until):
    begun, gate = interim(), threading.Semaphore(3)
    say("one two three", gate)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.run and room.run.pieces)
        assert header(room).endswith("compiling numba")
        finish(begun[0])
        await wait_until(lambda: header(room) == "story   tiny · numba · 1 thread")
        assert room.busy
        gate.release(100)
        await wait_until(lambda: not room.busy)
        assert room.query_one("Page").text.endswith("one two three")
        assert room.session.backend.name == "numba"
        await wait_until(lambda: toasts(room))
        assert toasts(room) == ["numba took over from numpy here, and went on from what it had read."]


async def test_a_failure_is_told_once_and_numpy_goes_on(open_room, interim, say, wait_until):
    begun = interim()
    say("fine")
    async with open_room("story") as (room, pilot):
        fail(begun[0])
        await wait_until(lambda: header(room) == "story   tiny · numpy · 2 threads")
        await wait_until(lambda: toasts(room))
        assert toasts(room) == ["numba could not be compiled: [boom]"]
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        assert room.query_one("Page").text.endswith("fine")
        await pilot.app.action_enter("chat")
        await pilot.pause()
        assert len(toasts(room)) == 1


async def test_the_other_room_knows_what_happened_meanwhile(open_room, interim, wait_until):
    begun = interim()
    async with open_room("story") as (room, pilot):
        await pilot.app.action_enter("chat")
        finish(begun[0])
        await wait_until(
            lambda: "numba" in header(pilot.app.room) and "compiling" not in header(pilot.app.room)
        )
        await pilot.app.action_enter("story")
        assert header(room) == "story   tiny · numba · 1 thread"


async def answer_across_a_swap(room, pilot, write, wait_until, begun, gate):
    await write(pilot, "hello")
    await pilot.press("enter")
    await wait_until(lambda: room.run and len(room.run.pieces) > 1)
    finish(begun[0])
    gate.release(1000)
    await wait_until(lambda: not room.busy)


@pytest.mark.parametrize(
    ("coming", "what_it_did"),
    [("q8_0", "it read the text again"), ("numba", "went on from what it had read")],
)
async def test_a_chat_that_another_backend_went_on_with_is_labelled(
    coming, what_it_did, open_room, interim, say, write, wait_until
):
    begun, gate = interim(coming), threading.Semaphore(6)
    say("one two three", gate)
    async with open_room("chat") as (room, pilot):
        await answer_across_a_swap(room, pilot, write, wait_until, begun, gate)
        found = [str(note.content) for note in room.query(Note)]
        assert len(found) == 1
        assert found[0].startswith(f"{coming} took over from numpy here")
        assert what_it_did in found[0]


async def test_an_engine_that_comes_while_the_app_closes_is_no_error(open_room):
    async with open_room("story") as (room, _):
        await room.query_one(Header).remove()  # widgets go before the timer that looks for the engine
        room.show_engine()


async def test_a_story_that_went_on_in_int8_is_labelled(open_room, interim, say, write, wait_until):
    begun, gate = interim("q8_0"), threading.Semaphore(6)
    say("one two three", gate)
    async with open_room("story") as (room, pilot):
        await answer_across_a_swap(room, pilot, write, wait_until, begun, gate)
        await wait_until(lambda: toasts(room))
        assert ["q8_0 took over from numpy" in toast for toast in toasts(room)] == [True]
