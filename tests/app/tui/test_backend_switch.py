"""Another backend for the model that is open, chosen by a person: in mid-text, while idle, or in vain."""

import threading

import pytest
from textual.widgets import OptionList, Static

from llamatui.app.tui.backend_picker import BackendPicker
from llamatui.app.tui.bars import Header
from llamatui.app.tui.transcript import Note
from llamatui.backends import registry
from llamatui.errors import BackendError
from tests.app.tui.conftest import ScriptedBackend


class Numpy(ScriptedBackend):
    name = "numpy"


class Numba(ScriptedBackend):
    name = "numba"


class Q8(ScriptedBackend):
    name = "q8_0"
    quantizes_activations = True


KINDS = {kind.name: kind for kind in (Numpy, Numba, Q8)}


@pytest.fixture(autouse=True)
def made(say, monkeypatch):
    """Backends by name, which say what the script says; those that were made, in order."""
    found = []
    real = registry.create_backend

    def create(name, checkpoint, threads=None, progress=lambda step: None):
        progress("quantizing 40 %")
        found.append(real(name, checkpoint, threads))
        return found[-1]

    monkeypatch.setattr(registry, "create_backend", create)
    for name in list(registry.KERNELS):  # the dict itself is emptied: other modules hold it too
        monkeypatch.delitem(registry.KERNELS, name)
    monkeypatch.setattr(registry, "backend_class", KINDS.__getitem__)
    monkeypatch.setattr(registry, "default_backend", lambda checkpoint: "numba")
    return found


def header(room):
    return room.query_one(Header).left.plain


def labels(room):
    """What the reader is told, in the transcript or beside the page."""
    notes = [str(note.content) for note in room.query(Note)]
    return notes + [notice.message for notice in room.app._notifications]


async def begin(room, pilot, write, wait_until):
    if room.NAME == "story":
        await pilot.press("1")
    else:
        await write(pilot, "hello")
        await pilot.press("enter")
    await wait_until(lambda: room.run and room.run.pieces)


async def ask(room, pilot, write, wait_until, text):
    """Asks, and waits for the whole answer."""
    held = len(room.session.tokens)
    await write(pilot, text)
    await pilot.press("enter")
    await wait_until(lambda: len(room.session.tokens) > held and not room.busy)


@pytest.mark.parametrize("name", ["story", "chat"])
@pytest.mark.parametrize(
    ("backend", "cached", "told"),
    [("numpy", True, "numpy took over from numba here"), ("q8_0", False, "it read the text again")],
)
async def test_a_switch_in_mid_text_is_taken_over_and_labelled(
    name, backend, cached, told, open_room, say, write, wait_until
):
    gate = threading.Semaphore(3)
    say("one two three", gate)
    async with open_room(name) as (room, pilot):
        await begin(room, pilot, write, wait_until)
        generation = room.run.generation
        pilot.app.action_switch_backend(backend)
        await wait_until(lambda: header(room).startswith(f"{name}   tiny · {backend}"))
        assert room.busy
        gate.release(100)
        await wait_until(lambda: not room.busy)
        assert generation.swap.reread is not cached
        assert (room.session.backend.name, generation.swap.new) == (backend, backend)
        await wait_until(lambda: labels(room))
        assert told in labels(room)[0]
        assert len(labels(room)) == 1


async def test_a_switch_while_nothing_is_written_is_told_with_the_next_words(
    open_room, say, write, wait_until
):
    say("one two", again=9)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, write, wait_until, "hello")
        pilot.app.action_switch_backend("q8_0")
        await wait_until(lambda: header(room).startswith("chat   tiny · q8_0"))
        assert not labels(room)
        say("three", again=9)
        await write(pilot, "more")
        await pilot.press("enter")
        await wait_until(lambda: labels(room))
        assert "q8_0 took over from numba here" in labels(room)[0]


async def test_there_and_back_again_before_the_next_words_changes_nothing(open_room, say, write, wait_until):
    say("one two", again=9)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, write, wait_until, "hello")
        held = room.session.cache.length
        for name in ("q8_0", "numpy"):
            pilot.app.action_switch_backend(name)
            await wait_until(lambda name=name: f"· {name}" in header(room))
        say("three", gate=(gate := threading.Semaphore(0)), again=9)
        await write(pilot, "more")
        await pilot.press("enter")
        await wait_until(lambda: room.run and room.run.generation)
        assert room.run.generation.cached_tokens >= held - 1, "q8_0 never ran: nothing is read again"
        gate.release(100)
        await wait_until(lambda: not room.busy)
        assert "numpy took over from numba" in labels(room)[0]


async def test_the_dialog_shows_what_runs_and_enter_chooses(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        await pilot.press("ctrl+b")
        await wait_until(lambda: isinstance(pilot.app.screen, BackendPicker))
        await pilot.pause()
        options = pilot.app.screen.query_one(OptionList)
        lines = [str(options.get_option_at_index(i).prompt) for i in range(options.option_count)]
        assert [line.startswith("●") for line in lines] == ["numba" in line for line in lines]
        assert "the text is read again" in str(pilot.app.screen.query_one(".hint", Static).content)
        await pilot.press("down", "enter")
        await wait_until(lambda: header(room).startswith("story   tiny · q8_0"))
        assert pilot.app.screen is room


async def test_escape_and_a_click_beside_the_dialog_change_nothing(open_room, made, wait_until):
    async with open_room("story", size=(120, 36)) as (room, pilot):
        for leave in (lambda: pilot.press("escape"), lambda: pilot.click(offset=(0, 20))):
            await pilot.press("ctrl+b")
            await wait_until(lambda: isinstance(pilot.app.screen, BackendPicker))
            await leave()
            await pilot.pause()
            assert pilot.app.screen is room
        assert len(made) == 1


async def test_what_runs_already_is_not_made_again(open_room, made, wait_until):
    async with open_room("story") as (room, pilot):
        pilot.app.action_switch_backend("numba")
        await wait_until(lambda: labels(room))
        assert labels(room) == ["numba runs already."]
        assert len(made) == 1


async def test_a_backend_that_cannot_be_made_is_told_and_the_old_one_goes_on(
    open_room, say, write, wait_until, monkeypatch
):
    def broken(*args, **options):
        raise BackendError("q8_0 needs [llvmlite]", "use --backend numpy")

    say("one two", again=9)
    async with open_room("story") as (room, pilot):
        monkeypatch.setattr(registry, "create_backend", broken)
        pilot.app.action_switch_backend("q8_0")
        await wait_until(lambda: labels(room))
        assert "q8_0 needs [llvmlite]\nuse --backend numpy" in labels(room)[0]
        assert header(room) == "story   tiny · numba · 2 threads".replace(
            "2 threads", header(room).split("· ")[-1]
        )
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        assert room.query_one("Page").text.endswith("two")


async def test_quitting_while_a_backend_is_made_leaves_no_thread(
    open_room, wait_until, monkeypatch, threads_of_ours
):
    def endless(name, checkpoint, threads, progress):
        while True:
            progress("compiling")
            threading.Event().wait(0.01)

    async with open_room("story") as (room, pilot):
        monkeypatch.setattr(registry, "create_backend", endless)
        pilot.app.action_switch_backend("q8_0")
        await wait_until(lambda: "preparing q8_0: compiling" in header(room))
        await pilot.press("ctrl+q")
    assert not threads_of_ours()
    assert not pilot.app.return_code


async def test_the_newest_wish_counts(open_room, wait_until, monkeypatch):
    real = registry.create_backend
    async with open_room("story") as (room, pilot):

        def slow(name, checkpoint, threads, progress):
            while name == "q8_0":
                progress("compiling")
                threading.Event().wait(0.01)
            return real(name, checkpoint, threads)

        monkeypatch.setattr(registry, "create_backend", slow)
        pilot.app.action_switch_backend("q8_0")
        await wait_until(lambda: "preparing q8_0" in header(room))
        pilot.app.action_switch_backend("numpy")
        await wait_until(lambda: header(room).startswith("story   tiny · numpy"))
        assert "preparing" not in header(room)


async def test_the_next_model_begins_with_the_backend_that_was_chosen(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        pilot.app.action_switch_backend("numpy")
        await wait_until(lambda: header(room).startswith("story   tiny · numpy"))  # not: it is on its way
        pilot.app.action_pick_model("stories")
        await wait_until(lambda: header(room).startswith("story   stories · numpy"))


async def test_a_compiler_that_is_ready_late_does_not_undo_a_choice(tiny_model, monkeypatch):
    from llamatui.backends import warm_up
    from llamatui.backends.checkpoint import Checkpoint

    ready = threading.Event()

    class Compilation:
        def __init__(self, kind):
            pass

        def wait(self):
            assert ready.wait(60)

    monkeypatch.setitem(registry.KERNELS, "numba", "fp32")
    monkeypatch.setattr(warm_up, "Compilation", Compilation)
    monkeypatch.setattr(warm_up, "failure", lambda kind: "")
    monkeypatch.setattr(
        warm_up, "compiled_backend", lambda name, ckpt, threads, kernels: Numba(ckpt, threads)
    )
    checkpoint = Checkpoint(tiny_model)
    interim = warm_up.numpy_until_compiled("numba", checkpoint, 1)
    chosen = interim.replacement = Q8(checkpoint, 1)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "kernels"]
    ready.set()
    thread.join(10)
    assert interim.latest is chosen
