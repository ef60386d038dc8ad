"""The sampling panel: what its fields take, how they are stepped, and that a running text hears of it."""

import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from textual import events
from textual.app import App
from textual.containers import VerticalScroll
from textual.widgets import Input, Label

from llamatui.app.sampling import MAX_SEED, Sampling
from llamatui.app.tui.sampling_panel import HINT, SETTINGS, Field, Lock, SamplingPanel, Seed
from llamatui.app.tui.themes import DARK
from tests.app.tui.conftest import PIECES, ScriptedBackend


class Host(App[None]):
    """The panel in a column as the rooms have it, and what it says."""

    CSS = "#side { width: 34; height: 1fr; border-left: solid $border-blurred; }"

    def __init__(self, sampling):
        super().__init__()
        self.register_theme(DARK)
        self.theme = "dark"
        self.panel = SamplingPanel(sampling)
        self.heard = []

    def compose(self):
        with VerticalScroll(id="side", can_focus=False):
            yield self.panel

    def on_sampling_panel_changed(self, event):
        self.heard.append(event.sampling)


@asynccontextmanager
async def opened(size=(80, 24), **settings):
    app = Host(Sampling(**settings))
    async with app.run_test(size=size) as pilot:
        while not app.query(Lock):  # the fields come after the first paint
            await pilot.pause()
        await pilot.pause()
        yield app, pilot


def field(app, name):
    return app.query_one(f"#{name}", Input)


async def test_every_setting_has_a_field_and_all_fit_into_18_rows():
    async with opened(size=(80, 18)) as (app, _):
        assert [f.id for f in app.query(Field)] == list(SETTINGS)
        assert set(SETTINGS) | {"seed"} == set(Sampling.__dataclass_fields__)
        assert app.panel.region.height <= 12
        assert app.query_one("#side").max_scroll_y == 0
        for widget in (*app.query(Input), *app.query(Lock)):
            assert app.panel.region.contains_region(widget.region)


async def test_what_is_set_before_the_fields_are_there_is_what_they_say():
    app = Host(Sampling())
    async with app.run_test() as pilot:
        assert not app.query(Field)
        app.panel.put("top_k", 40.0)
        app.panel.put("seed", 12)
        app.panel.show_seed(99)
        assert app.panel.sampling == Sampling(top_k=40, seed=12)
        while not app.query(Lock):
            await pilot.pause()
        assert (field(app, "top_k").value, field(app, "seed").value) == ("40", "12")
        assert app.query_one(Lock).locked


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.35", 0.35),
        ("top_p", ".5", 0.5),
        ("top_k", "40", 40),
        ("min_p", "0.05", 0.05),
        ("repeat_penalty", "1.1", 1.1),
        ("seed", "12", 12),
    ],
)
async def test_what_is_typed_holds(name, text, value):
    async with opened() as (app, pilot):
        field(app, name).clear()
        field(app, name).focus()
        await pilot.press(*text)
        assert app.panel.sampling == replace(Sampling(), **{name: value})
        assert app.heard[-1] == app.panel.sampling
        assert isinstance(getattr(app.panel.sampling, name), type(value))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", ""), ("temperature", "-"), ("temperature", "101"), ("temperature", "0.000001"),
        ("temperature", "nan"), ("top_p", "1.01"), ("top_p", "-0.1"), ("top_k", "-1"),
        ("top_k", "2147483649"), ("min_p", "2"), ("repeat_penalty", "0"),
        ("repeat_penalty", "101"), ("seed", "0"),
        ("seed", str(MAX_SEED + 1)),
    ],
)  # fmt: skip
async def test_nonsense_changes_nothing(name, text):
    async with opened() as (app, pilot):
        field(app, name).value = text
        await pilot.pause()
        assert app.panel.sampling == Sampling()
        assert app.heard == []
        assert field(app, name).has_class("-invalid")


async def test_an_empty_seed_is_a_random_one():
    async with opened(seed=7) as (app, pilot):
        assert app.query_one(Lock).locked
        field(app, "seed").value = ""
        await pilot.pause()
        assert app.panel.sampling.seed == 0
        assert not app.query_one(Lock).locked


@pytest.mark.parametrize("temperature", [0.004, 0.12345678])
async def test_it_does_not_round_what_was_given(temperature):
    async with opened(temperature=temperature) as (app, pilot):
        box = field(app, "temperature")
        box.value, given = "0.5", box.value
        await pilot.pause()
        assert app.panel.sampling.temperature == 0.5
        box.value = given
        await pilot.pause()
        assert app.panel.sampling.temperature == temperature


@pytest.mark.parametrize(
    ("name", "start", "keys", "end"),
    [
        ("temperature", 0.8, ["up", "up"], 0.9),
        ("temperature", 0.1, ["down", "down", "down"], 0.0),
        ("temperature", 0.82, ["up"], 0.85),
        ("temperature", 0.82, ["down"], 0.8),
        ("temperature", 100.0, ["up"], 100.0),
        ("top_p", 0.97, ["up", "up"], 1.0),
        ("top_p", 0.9, ["down"], 0.85),
        ("top_k", 0, ["down", "up"], 1),
        ("min_p", 0.0, ["up"], 0.01),
        ("repeat_penalty", 1.0, ["up", "up"], 1.1),
        ("repeat_penalty", 0.05, ["down"], 0.05),
    ],
)
async def test_arrows_step_as_far_as_it_makes_sense(name, start, keys, end):
    async with opened(**{name: start}) as (app, pilot):
        field(app, name).focus()
        await pilot.press(*keys)
        assert getattr(app.panel.sampling, name) == end


def wheel(app, widget, *, up):
    """The wheel turns over `widget`."""
    x, y = widget.region.x + 1, widget.region.y
    kind = events.MouseScrollUp if up else events.MouseScrollDown
    app.screen._forward_event(
        kind(app.screen, x=x, y=y, delta_x=0, delta_y=0, button=0, shift=False, meta=False, ctrl=False,
             screen_x=x, screen_y=y)
    )  # fmt: skip


async def test_the_wheel_steps_the_field_that_was_clicked():
    async with opened(temperature=0.8) as (app, pilot):
        box = field(app, "temperature")
        await pilot.click(box)
        wheel(app, box, up=True)
        wheel(app, box, up=True)
        await pilot.pause()
        assert app.panel.sampling.temperature == 0.9
        wheel(app, box, up=False)
        await pilot.pause()
        assert app.panel.sampling.temperature == 0.85


async def test_the_wheel_scrolls_past_other_fields():
    async with opened(size=(80, 6), temperature=0.8) as (app, pilot):
        field(app, "temperature").focus()
        await pilot.pause()
        wheel(app, field(app, "top_p"), up=False)
        await pilot.pause()
        assert app.query_one("#side").scroll_target_y > 0
        assert app.panel.sampling == Sampling(temperature=0.8)


async def test_off_is_said_where_a_number_changes_nothing():
    async with opened(temperature=0.0, top_p=1.0, repeat_penalty=1.1) as (app, pilot):
        notes = {f.id: f.parent.query_one(".note", Label) for f in app.query(Field)}
        said = {name: str(label.content) for name, label in notes.items()}
        assert said == {
            "temperature": "greedy",
            "top_p": "off",
            "top_k": "off",
            "min_p": "off",
            "repeat_penalty": "",
        }
        field(app, "temperature").value = "0.5"
        field(app, "repeat_penalty").value = "1"
        field(app, "top_k").value = ""
        await pilot.pause()
        assert [str(notes[name].content) for name in ("temperature", "repeat_penalty", "top_k")] == [
            "",
            "off",
            "",
        ]


async def test_the_hint_says_what_the_field_with_the_focus_means():
    async with opened() as (app, pilot):
        hint = app.query_one(".hint", Label)
        app.screen.set_focus(None)
        await pilot.pause()
        assert str(hint.content) == HINT
        for name in (*SETTINGS, "seed"):
            field(app, name).focus()
            await pilot.pause()
            lines = str(hint.content).splitlines()
            assert lines[0] != HINT.splitlines()[0]
            assert max(map(len, lines)) <= hint.content_region.width
        app.screen.set_focus(None)
        await pilot.pause()
        assert str(hint.content) == HINT


async def test_enter_goes_from_field_to_field():
    async with opened() as (app, pilot):
        field(app, "temperature").focus()
        await pilot.press("enter", "enter")
        assert app.focused.id == "top_k"
        field(app, "seed").focus()
        await pilot.press("enter")
        assert isinstance(app.focused, Lock)


@pytest.mark.parametrize("how", ["space", "enter", "mouse"])
async def test_the_seed_in_use_can_be_kept_and_let_go(how):
    async with opened() as (app, pilot):
        lock = app.query_one(Lock)

        async def turn():
            if how == "mouse":
                await pilot.click(Lock)
            else:
                lock.focus()
                await pilot.press(how)

        app.panel.show_seed(1234)
        assert field(app, "seed").value == "1234"
        assert app.panel.sampling.seed == 0, "shown, not kept"
        await turn()
        assert lock.locked
        assert app.panel.sampling.seed == 1234
        app.panel.show_seed(99)
        assert field(app, "seed").value == "1234", "what is kept stays"
        await turn()
        assert not lock.locked
        assert app.panel.sampling.seed == 0
        app.panel.show_seed(99)
        assert field(app, "seed").value == "99"


@pytest.mark.parametrize("value", ["", "0", str(MAX_SEED + 1)])
async def test_a_seed_that_is_none_cannot_be_kept(value):
    async with opened() as (app, pilot):
        field(app, "seed").value = value
        await pilot.pause()
        app.query_one(Seed).query_one(Lock).locked = False
        await pilot.click(Lock)
        assert app.focused.id == "seed"
        assert not app.query_one(Lock).locked
        assert app.panel.sampling.seed == 0


async def test_a_shown_seed_leaves_alone_who_types():
    async with opened() as (app, pilot):
        box = field(app, "seed")
        app.panel.show_seed(5)
        box.focus()
        await pilot.press("backspace")
        app.panel.show_seed(6)
        assert box.value == ""
        await pilot.press("7")
        field(app, "top_p").focus()
        await pilot.pause()
        app.panel.show_seed(8)
        assert box.value == "7"
        assert app.panel.sampling.seed == 7


async def test_a_change_holds_from_the_next_token_of_a_running_text(open_room, say, wait_until, monkeypatch):
    """The model would say "a", and likes "b" almost as much."""
    a, b = (PIECES.index(f"<0x{ord(letter):02X}>".encode()) for letter in "ab")

    def likes_a(self, tokens, cache, all_positions):
        cache.length += len(tokens)
        self.gate.acquire(timeout=60)
        logits = np.full(self.config.vocab_size, -1000, np.float32)
        logits[[a, b]] = 1.0, 0.9
        return logits

    gate = threading.Semaphore(10)
    say("", gate)
    monkeypatch.setattr(ScriptedBackend, "_forward", likes_a)

    async with open_room("story", temperature=0.0, size=(120, 36), prompt="Once") as (room, pilot):
        await wait_until(lambda: room.run and len(room.run.pieces) == 10, "ten tokens")
        field(pilot.app, "temperature").value = "100"
        await wait_until(lambda: room.run.generation.sampler.settings.temperature == 100)
        gate.release(30)
        await wait_until(lambda: len(room.run.pieces) == 40, "thirty more")
        field(pilot.app, "top_k").value = "1"
        await wait_until(lambda: room.run.generation.sampler.settings.top_k == 1)
        gate.release(200)
        run = room.run
        await wait_until(lambda: room.run is None, "the end")
        said = [piece.record.id for piece in run.pieces]
        assert set(said[:10]) == {a}, "greedy"
        assert set(said[11:40]) == {a, b}, "hot; the token that was under way may still be the old one"
        assert set(said[41:]) == {a}
