"""The split view: two texts on one seed, where they part, and what becomes of them."""

import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from textual.app import App
from textual.widgets import Input

from llamatui.app.engine import Limits, Session
from llamatui.app.model import load_model
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.tui.bars import Status
from llamatui.app.tui.compare_column import BackendChoice, Column, Corner
from llamatui.app.tui.compare_screen import CompareScreen
from llamatui.app.tui.page import Page
from llamatui.app.tui.runner import Runner
from llamatui.app.tui.sampling_panel import Lock, Seed
from llamatui.app.tui.themes import DARK
from llamatui.backends import registry
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.errors import BackendError
from tests.app.tui.conftest import PIECES

TEXT = "a little llama"
CONTEXT = 60
TURN = 20
WARM = Sampling(temperature=1.0, seed=7)


class Turning(NumpyBackend):
    """Its logits lean the other way from position TURN on, among words. It waits at its gate, if any."""

    name = "turning"
    gate: threading.Semaphore | None = None

    def _forward(self, tokens, cache, all_positions):
        logits = super()._forward(tokens, cache, all_positions)
        if self.gate is not None:
            self.gate.acquire(timeout=60)
        if cache.length >= TURN:
            words = slice(len(PIECES) - 40, len(PIECES) - 1)
            logits[..., words] = logits[..., words][..., ::-1].copy()
        return logits


@pytest.fixture(autouse=True)
def backends(monkeypatch):
    """Those that the screen offers, and those that it made."""
    made = []
    create = registry.create_backend

    def make(name, checkpoint, threads=None, progress=lambda step: None):
        progress("starting")
        made.append(name)
        return Turning(checkpoint, 1) if name == "turning" else create(name, checkpoint, threads, progress)

    monkeypatch.setattr(registry, "backend_names", lambda: ["numpy", "turning"])
    monkeypatch.setattr(registry, "create_backend", make)
    monkeypatch.setattr(Turning, "gate", None)
    return made


class Host(App[None]):
    def __init__(self, model, sampling):
        super().__init__()
        self.register_theme(DARK)
        self.theme = "dark"
        self.failed = []
        self.runner = Runner("inference", self.failed.append)
        self.answers = []
        prompt = model.encode_prompt(TEXT)
        limits = Limits(stop_ids=model.stop_ids)
        self.compare = CompareScreen(model, prompt, limits, sampling, CONTEXT)

    def on_mount(self):
        self.push_screen(self.compare, self.answers.append)

    def on_unmount(self):
        self.runner.close()


@pytest.fixture
def opened(tiny_model, wait_until):
    """async with opened(sampling, size) as (screen, pilot): both sides have ended, unless done is False."""

    @asynccontextmanager
    async def run(sampling=WARM, size=(80, 24), done=True):
        app = Host(load_model(tiny_model, backend="numpy", threads=1), sampling)
        async with app.run_test(size=size) as pilot:
            await wait_until(lambda: app.compare.run is not None)
            if done:
                await wait_until(lambda: not app.compare.busy, "both texts")
            await pilot.pause()
            yield app.compare, pilot
        assert "inference" not in [thread.name for thread in threading.enumerate()]

    return run


def status(screen):
    return screen.query_one(Status).left.plain


def feet(screen):
    return [str(corner.query_one(".foot").content) for corner in screen.corners]


def alone(screen, backend, sampling):
    """Ids that a generation by itself gives."""
    session = Session(backend, CONTEXT)
    return [record.id for record in session.start(screen.prompt, Sampler(sampling), screen.limits)]


def ids(corner):
    return [piece.record.id for piece in corner.pieces]


async def choose(screen, pilot, side, name):
    """Puts the backend `name` on a side."""
    corner = screen.corners[side]
    corner.query_one(BackendChoice).focus()
    while corner.backend != name:
        await pilot.press("right")


async def test_both_say_what_they_say_alone_and_their_parting_is_marked(opened):
    async with opened() as (screen, _):
        left, right = screen.corners
        assert (left.backend, right.backend) == ("numpy", "numpy"), "there is nothing better here"
        assert left.column.text == right.column.text
        assert ids(left) == ids(right) == alone(screen, screen.model.backend, WARM)
        assert status(screen) == f"identical: {len(left.pieces)} tokens"
        assert left.column.parting == ""


async def test_where_two_backends_part(opened, wait_until, backends):
    async with opened() as (screen, pilot):
        await choose(screen, pilot, 1, "turning")
        assert screen.query_one(Status).right.plain == "changed: Enter in the field runs it again"
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        left, right = screen.corners
        assert backends == ["turning"], "numpy is the model's own"
        other = Turning(screen.model.checkpoint, 1)
        assert [ids(left), ids(right)] == [alone(screen, b, WARM) for b in (screen.model.backend, other)]
        same = screen.run.duel.same
        assert same == TURN - len(screen.prompt)
        words = [corner.column.parting for corner in (left, right)]
        assert words[0] != words[1]
        assert status(screen) == f"the same for {same} tokens, then “{words[0]}” | “{words[1]}”"
        for foot, corner in zip(feet(screen), (left, right), strict=True):
            assert foot.startswith(f"#{same + 1}  {corner.column.parting} ")
            assert foot.count(" %") == 2
        assert [piece.text.strip() for piece in (left.pieces[same], right.pieces[same])] == words


async def test_where_two_settings_part(opened, wait_until):
    async with opened() as (screen, pilot):
        field = screen.corners[1].query_one("#temperature", Input)
        field.focus()
        field.value = "0"
        await pilot.press("enter")
        await wait_until(lambda: not screen.busy)
        left, right = screen.corners
        backend = screen.model.backend
        assert ids(left) == alone(screen, backend, WARM), "enter keeps the seed"
        assert ids(right) == alone(screen, backend, replace(WARM, temperature=0))
        assert screen.run.duel.parted
        chances = [float(foot.split()[2]) for foot in feet(screen)]
        assert chances[1] >= chances[0], "greedy took the likeliest"


@pytest.mark.parametrize("how", ["key", "mouse"])
async def test_a_choice_goes_round_the_backends(opened, how):
    async with opened() as (screen, pilot):
        choice = screen.corners[0].query_one(BackendChoice)
        seen = []
        for _ in range(3):
            if how == "mouse":
                await pilot.click(choice, offset=(choice.size.width - 1, 0))
            else:
                choice.focus()
                await pilot.press("right")
            seen.append(choice.name_shown)
        assert seen == ["turning", "numpy", "turning"]
        await pilot.click(choice, offset=(0, 0))
        assert choice.name_shown == "numpy"


async def test_again_takes_another_seed_unless_it_is_kept(opened, wait_until):
    async with opened(replace(WARM, seed=0)) as (screen, pilot):
        seeds, texts = [screen.seed], [screen.corners[0].column.text]
        for _ in range(2):
            await pilot.press("r")
            await wait_until(lambda: not screen.busy)
            seeds.append(screen.seed)
            texts.append(screen.corners[0].column.text)
        assert len(set(seeds)) == 3
        assert len(set(texts)) > 1
        assert screen.query_one("#seed", Input).value == str(seeds[-1]), "shown"
        await pilot.click(Lock)
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        assert screen.seed == screen.query_one(Seed).seed == seeds[-1]
        assert screen.corners[0].column.text == texts[-1]


async def test_a_typed_seed_is_run_by_enter(opened, wait_until):
    async with opened() as (screen, pilot):
        field = screen.query_one("#seed", Input)
        field.focus()
        field.clear()
        await pilot.press("1", "2", "enter")
        await wait_until(lambda: not screen.busy)
        assert screen.seed == 12
        assert ids(screen.corners[0]) == alone(screen, screen.model.backend, replace(WARM, seed=12))


async def test_esc_stops_and_then_returns(opened, wait_until):
    Turning.gate = threading.Semaphore(6)
    async with opened() as (screen, pilot):
        await choose(screen, pilot, 0, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: screen.run.duel and len(screen.corners[0].pieces) >= 3)
        assert status(screen).startswith("the same so far: ") or screen.busy
        await pilot.press("escape")
        Turning.gate.release(100)
        await wait_until(lambda: not screen.busy)
        await pilot.pause()
        assert 3 <= len(screen.corners[0].pieces) < 20
        assert pilot.app.answers == []
        assert "stopped" in str(screen.corners[0].query_one(".fill").content)
        await pilot.press("escape")
        await pilot.pause()
        assert pilot.app.answers == [None]


@pytest.mark.parametrize(("keys", "side"), [(["1"], 0), (["2"], 1), (["enter"], 0)])
async def test_a_side_can_be_taken(opened, keys, side):
    async with opened() as (screen, pilot):
        expected = list(screen.corners[side].pieces)
        screen.query_one(Column).focus()
        await pilot.press(*keys)
        await pilot.pause()
        assert pilot.app.answers == [expected]
        text = "".join(piece.text for piece in expected)
        assert screen.model.tokenizer.decode([piece.record.id for piece in expected]).strip() == text.strip()


@pytest.mark.parametrize("keys", [("enter", "tab"), ("enter", "enter")])
@pytest.mark.parametrize("side", [0, 1])
async def test_the_side_that_enter_was_pressed_on_is_taken_once(opened, burst, wait_until, keys, side):
    async with opened() as (screen, pilot):
        expected = list(screen.corners[side].pieces)
        screen.corners[side].column.focus()
        await pilot.pause()
        await burst(pilot, *keys)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert pilot.app.answers == [expected]


async def test_there_is_nothing_to_take_at_first(opened):
    Turning.gate = threading.Semaphore(0)
    async with opened() as (screen, pilot):
        await choose(screen, pilot, 0, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r", "1")
        await pilot.pause()
        assert pilot.app.answers == []
        Turning.gate.release(1000)


async def test_leaving_while_they_write_leaves_no_thread(opened, wait_until):
    Turning.gate = threading.Semaphore(3)
    async with opened() as (screen, pilot):
        await choose(screen, pilot, 1, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: screen.corners[1].pieces)
        Turning.gate.release(1000)


async def test_quitting_while_a_backend_is_made_leaves_no_thread(opened, wait_until, monkeypatch):
    compiling = threading.Event()

    def forever(name, checkpoint, threads=None, progress=None):
        while True:
            progress("compiling")
            compiling.set()
            threading.Event().wait(0.01)

    async with opened() as (screen, pilot):
        monkeypatch.setattr(registry, "create_backend", forever)
        await choose(screen, pilot, 1, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(compiling.is_set)
        await wait_until(lambda: status(screen) == "preparing turning: compiling")
        await pilot.press("escape")
        await wait_until(lambda: not screen.busy)
        assert status(screen) == "stopped"
        await pilot.press("r")
        await wait_until(lambda: status(screen) == "preparing turning: compiling")


async def test_a_backend_that_cannot_be_made_is_told(opened, wait_until, monkeypatch):
    def fail(name, *args):
        raise BackendError("it [burnt]", "use another")

    async with opened() as (screen, pilot):
        monkeypatch.setattr(registry, "create_backend", fail)
        await choose(screen, pilot, 1, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        assert status(screen) == "it [burnt]: use another"
        await choose(screen, pilot, 1, "numpy")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        assert status(screen).startswith("identical")


async def test_a_backend_that_takes_over_in_the_room_leaves_the_sides_alone(opened, wait_until, monkeypatch):
    async with opened() as (screen, pilot):
        model = screen.model
        model.switch(turning := Turning(model.checkpoint, 1))
        monkeypatch.setattr(Turning, "gate", gate := threading.Semaphore(3))
        await choose(screen, pilot, 0, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: screen.corners[0].pieces)
        model.switch(NumpyBackend(model.checkpoint, 1))
        gate.release(1000)
        await wait_until(lambda: not screen.busy)
        assert turning.latest is not turning
        assert screen.run.duel.sides[0].generation.session.backend is turning


async def test_it_opens_with_the_running_backend_and_another(monkeypatch, opened):
    monkeypatch.setattr(registry, "backend_names", lambda: ["numba", "q8_0", "numpy"])
    pytest.importorskip("llvmlite")
    async with opened() as (screen, _):
        assert [corner.backend for corner in screen.corners] == ["numpy", "q8_0"]
        assert [side.backend.name for side in screen.run.duel.sides] == ["numpy", "q8_0"]


@pytest.mark.parametrize(
    ("size", "beside"),
    [((80, 24), True), ((120, 36), True), ((60, 24), True), ((59, 24), False), ((40, 20), False)],
)  # fmt: skip
async def test_columns_stand_beside_or_above_each_other_and_lose_no_letter(opened, size, beside, shown):
    async with opened(size=size) as (screen, pilot):
        left, right = (corner.region for corner in screen.corners)
        assert (left.y == right.y) == beside
        assert (left.x == right.x) != beside
        for corner in screen.corners:
            column = corner.column
            column.scroll_home(animate=False)
            await pilot.pause()
            lines = shown(column).splitlines()[1:]  # below the rule
            text = " ".join(column._flow.text.split())
            seen = " ".join(" ".join(lines).split())
            assert len(seen) > 20
            assert text.startswith(seen)
            assert column.region.height >= 3


async def test_p_shows_where_they_part(opened, wait_until, shown):
    async with opened(size=(60, 16)) as (screen, pilot):
        await choose(screen, pilot, 1, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        column = screen.corners[0].column
        await wait_until(lambda: column.scroll_offset.y > 0)
        await pilot.press("p")
        await pilot.pause()
        assert column.scroll_offset.y == 0
        assert column.parting in shown(column)


async def test_a_side_that_ends_is_told(opened, wait_until, monkeypatch):
    async with opened() as (screen, pilot):
        free = ids(screen.corners[0])

        class Ending(NumpyBackend):
            name = "turning"

            def _forward(self, tokens, cache, all_positions):
                logits = super()._forward(tokens, cache, all_positions)
                if cache.length == len(screen.prompt) + 4:
                    logits[...] = 0
                    logits[..., 2] = 100
                return logits

        monkeypatch.setattr(registry, "create_backend", lambda name, checkpoint, *_: Ending(checkpoint, 1))
        await choose(screen, pilot, 1, "turning")
        screen.query_one(Column).focus()
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        left, right = screen.corners
        assert ids(right) == free[:4]
        assert status(screen) == f"the same for 4 tokens, then “{left.column.parting}” | right ends"
        assert feet(screen)[1] == "#5  the end"
        assert isinstance(left, Corner)


async def test_the_story_goes_on_with_the_side_that_was_taken(open_room, wait_until):
    async with open_room("story", temperature=1.0, seed=7, prompt="the sun", backend="numpy", threads=1) as (
        room,
        pilot,
    ):
        await wait_until(lambda: room.story and room.story.path and not room.busy, "the story")
        before = room.story.text
        written = next(i for i, token in enumerate(room.story.path) if token.author == "model")
        room.story.cut(written)
        kept = room.story.text
        room.show_story()
        await pilot.press("f2")
        await wait_until(lambda: isinstance(pilot.app.screen, CompareScreen), "the split view")
        screen = pilot.app.screen
        assert screen.prompt == room.story.prompt().ids
        await wait_until(lambda: screen.run and not screen.busy)
        assert kept + screen.corners[1].column.text == before, "the seed is the room's"
        await pilot.press("2")
        await wait_until(lambda: pilot.app.screen is room)
        await wait_until(lambda: room.story.text == before)
        assert room.story.path[written].begins
        await pilot.press("u")
        assert room.story.text == kept


async def test_from_the_cursor_both_go_on_where_it_stands(open_room, wait_until):
    async with open_room("story", temperature=1.0, seed=7, backend="numpy", threads=1) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.story.path and not room.busy, "the story")
        whole, page = room.story.text, room.query_one(Page)
        page.move_to(len(room.story.path) - 8)
        at = page.cursor
        kept = "".join(token.text for token in room.story.path[:at])
        await pilot.press("f2")
        await wait_until(lambda: isinstance(pilot.app.screen, CompareScreen), "the split view")
        screen = pilot.app.screen
        assert screen.prompt == room.story.prompt(at).ids
        await wait_until(lambda: screen.run and not screen.busy)
        taken = screen.corners[0].column.text
        await pilot.press("1")
        await wait_until(lambda: pilot.app.screen is room and page.cursor is None)
        assert room.story.text == kept + taken
        await pilot.press("u", "u")
        assert room.story.text == whole


async def test_a_context_that_is_full_is_told(opened, wait_until):
    async with opened() as (screen, pilot):
        screen.prompt = screen.prompt + [5] * (CONTEXT + 1 - len(screen.prompt))
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        assert status(screen) == "the context is full: there is no room to go on"


async def test_the_chat_keeps_the_answer_that_was_taken_beside_the_old_one(open_room, say, wait_until):
    say("one answer", again=5)
    async with open_room("chat", prompt="Hi") as (room, pilot):
        await wait_until(lambda: room.conversation and len(room.conversation.turns) == 2, "an answer")
        await wait_until(lambda: not room.busy)
        pilot.app.action_compare()
        await wait_until(lambda: isinstance(pilot.app.screen, CompareScreen), "the split view")
        screen = pilot.app.screen
        await wait_until(lambda: screen.run and not screen.busy)
        expected = screen.corners[0].column.text
        await pilot.press("1")
        await wait_until(lambda: pilot.app.screen is room)
        await wait_until(lambda: room.conversation.versions(1) == (2, 2))
        assert room.conversation.turns[1].content.strip() == expected.strip()


async def test_there_is_nothing_to_compare_on_an_empty_page(open_room):
    async with open_room("story") as (room, pilot):
        await pilot.press("f2")
        await pilot.pause()
        assert pilot.app.screen is room
        assert [notice.message for notice in pilot.app._notifications] == [
            "There is nothing to go on from yet."
        ]


async def test_a_text_that_both_end_at_once_is_told(opened, wait_until):
    async with opened() as (screen, pilot):
        screen.limits = Limits(stop_ids=frozenset(range(len(PIECES))))
        await pilot.press("r")
        await wait_until(lambda: not screen.busy)
        assert status(screen) == "both say that the text ends here"


async def test_a_full_context_is_what_it_is_in_the_room(open_room, say, wait_until, monkeypatch):
    monkeypatch.setattr(registry, "backend_names", lambda: ["scripted"])
    async with open_room("story", overflow="shift") as (room, pilot):
        say("ab")
        await pilot.press("1")
        await wait_until(lambda: room.story.path and not room.busy)
        room.story.write("x" * (room.story.session.context - len(room.story.prompt().ids) - 1))
        say("abcdefghij" * 2)
        await pilot.press("f2")
        await wait_until(lambda: isinstance(pilot.app.screen, CompareScreen))
        screen = pilot.app.screen
        await wait_until(lambda: screen.run and not screen.busy)
        assert screen.limits == room.question()[1]
        assert [side.reason for side in screen.run.duel.sides] == ["eos", "eos"]
