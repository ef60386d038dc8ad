"""The live view, driven by runs of which nothing is trained."""

import asyncio
import re
import threading
import time

import pytest
from textual.widgets import Static

from llamatui.app.cli.terminal import Interrupted
from llamatui.app.training import live
from llamatui.app.training import stop as stop_module
from llamatui.app.training.live import LossChart, Numbers, TrainView, follow
from llamatui.app.training.metrics import recorded
from llamatui.app.training.stop import Stop
from llamatui.app.training.worker import Worker
from llamatui.app.tui.bars import Bar, Header
from llamatui.errors import LlamatuiError, UsageError
from tests.app.training.runs import fake_run


@pytest.fixture
def view_of(tmp_path):
    """view_of(last step): a view of a run that is `held` before the step after that; `gate` lets it go."""
    gates = []

    def make(hold_after, *, theme="dark", **options):
        gate, held = threading.Event(), threading.Event()
        gates.append(gate)

        def on_step(step):
            if step == hold_after + 1:
                held.set()
                gate.wait(120)

        stop = Stop()
        events = recorded(fake_run(tmp_path, stop, on_step=on_step, **options), tmp_path)
        view = TrainView(Worker(events), stop, tmp_path, theme)
        view._worker.start()
        view.gate, view.held = gate, held
        return view

    yield make
    for gate in gates:
        gate.set()


async def until(condition):
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited 60 s")


def text_of(widget):
    return "\n".join(strip.text for strip in widget.render_lines(widget.size.region))


def has_step(view, step):
    return view.query("#status") and f"step {step}/" in text_of(view.query_one("#status"))


async def test_it_shows_the_run_and_leaves_at_its_end(view_of):
    view = view_of(60)
    async with view.run_test(size=(80, 24)) as pilot:
        await until(lambda: has_step(view, 60))
        await pilot.pause()
        assert "12,346 tok" in text_of(view.query_one(Header))
        numbers = text_of(view.query_one(Numbers))
        assert re.search(
            r"loss 2\.\d+  valid 3\.\d+  left 0:00:20  lr 6.0e-04  MFU 31.5%  epoch 1.50", numbers
        )
        assert "●" in text_of(view.query_one(LossChart))
        about = text_of(view.query_one("#about"))
        assert "after step 50   valid" in about
        assert "bits/byte" in about
        assert "saved after step 50" in text_of(view.query_one("#status"))
        story = text_of(view.query_one("#text", Static))
        assert "there was a llama." in story
        assert "\x1b" not in story
        view.gate.set()
        await until(lambda: not view.is_running)
    assert view._worker.end is not None
    assert not view._worker.end.stopped


@pytest.mark.parametrize("key", ["q", "escape", "ctrl+c", "ctrl+q"])
async def test_a_key_stops_after_the_step(view_of, tmp_path, monkeypatch, key):
    monkeypatch.setattr(stop_module, "SAME_REQUEST", 1e9)
    view = view_of(7)
    async with view.run_test() as pilot:
        await until(lambda: view.held.is_set() and has_step(view, 7))
        await pilot.press(key)
        await until(lambda: "stopping after this step" in text_of(view.query_one("#status")))
        await pilot.press(key)  # held down
        view.gate.set()
        await until(lambda: not view.is_running)
    assert not view.left
    assert view._worker.end.stopped
    assert view._worker.end.iteration == 9  # it was asked before step 8 began
    assert (tmp_path / "last.pt").exists()


async def test_a_second_request_leaves_at_once(view_of, monkeypatch):
    monkeypatch.setattr(stop_module, "SAME_REQUEST", -1)
    view = view_of(7)
    async with view.run_test() as pilot:
        await until(lambda: has_step(view, 7))
        await pilot.press("q", "q")
        await until(lambda: not view.is_running)
        assert view.left
        assert view._worker.running


async def test_a_request_from_elsewhere_is_shown(view_of):
    view = view_of(3)
    async with view.run_test():
        await until(lambda: has_step(view, 3))
        view._stop.ask()
        await until(lambda: "stopping" in text_of(view.query_one("#status")))
        view.gate.set()
        await until(lambda: not view.is_running)


async def test_a_resumed_run_shows_what_came_before(view_of, tmp_path):
    list(recorded(fake_run(tmp_path, steps=60, eval_interval=20), tmp_path))
    view = view_of(61, first=60)
    async with view.run_test(size=(80, 24)) as pilot:
        await until(lambda: has_step(view, 61))
        await pilot.pause()
        chart = text_of(view.query_one(LossChart))
        assert chart.count("●") == 4
        assert "after step 60" in text_of(view.query_one("#about"))


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (140, 40), (30, 8)])
async def test_it_fits(view_of, size):
    view = view_of(100)
    async with view.run_test(size=size) as pilot:
        await until(lambda: has_step(view, 100) or not view.is_running)
        await pilot.pause()
        for widget in view.query("Bar, Numbers, LossChart"):
            assert widget.region.right <= size[0]
            assert widget.region.bottom <= size[1]


async def test_it_counts_the_seconds_when_nothing_comes(view_of, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", -1)
    view = view_of(0)
    async with view.run_test():
        await until(lambda: re.search(r"training · \d+ s", text_of(view.query_one("#status", Bar))))


def test_an_unknown_theme_is_told_before_the_run_begins(tmp_path):
    with pytest.raises(UsageError, match="mauve"):
        TrainView(Worker(fake_run(tmp_path)), Stop(), tmp_path, "mauve")


def test_what_fails_before_the_first_step_takes_no_screen(tmp_path, monkeypatch):
    def no_data():
        raise UsageError("no data")
        yield

    monkeypatch.setattr(TrainView, "run", lambda self: pytest.fail("the screen was taken"))
    with pytest.raises(UsageError, match="no data"):
        follow(no_data(), Stop(), tmp_path, "dark")


def run_headless(self):
    asyncio.run(self.run_async(headless=True))


def test_an_error_of_the_run_leaves_the_view_and_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainView, "run", run_headless)
    events = fake_run(tmp_path, error_after=20, error=LlamatuiError("it has diverged"))
    with pytest.raises(LlamatuiError, match="diverged"):
        follow(events, Stop(), tmp_path, "dark")


def test_a_view_that_fails_stops_the_run_with_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TrainView, "run", run_headless)
    gate = threading.Event()

    def fail(self):
        self.exit(return_code=1)
        gate.set()

    monkeypatch.setattr(TrainView, "_tick", fail)
    events = fake_run(tmp_path, stop := Stop(), steps=10**9, on_step=lambda step: gate.wait(30))
    with pytest.raises(LlamatuiError, match="live view failed") as caught:
        follow(events, stop, tmp_path, "dark")
    assert "--plain" in caught.value.hint
    assert (tmp_path / "last.pt").exists()


def test_who_leaves_at_once_does_not_wait_for_a_long_computation(tmp_path, monkeypatch):
    """A thread is interrupted between two of Python's instructions."""
    gate = threading.Lock()
    gate.acquire()
    monkeypatch.setattr(live, "GRACE", 0.01)
    monkeypatch.setattr(TrainView, "run", lambda self: setattr(self, "left", True))
    events = fake_run(
        tmp_path, steps=10**9, eval_interval=10**9, on_step=lambda step: gate.acquire(timeout=30)
    )
    try:
        with pytest.raises(Interrupted):
            follow(events, Stop(), tmp_path, "dark")
    finally:
        gate.release()


def test_who_leaves_at_once_interrupts_the_run(tmp_path, monkeypatch):
    cleaned = threading.Event()

    def events():
        try:
            yield from fake_run(
                tmp_path, steps=10**9, eval_interval=10**9, on_step=lambda step: time.sleep(0.01)
            )
        finally:
            cleaned.set()

    def leave(self):
        self.left = True

    monkeypatch.setattr(TrainView, "run", leave)
    with pytest.raises(Interrupted):
        follow(events(), Stop(), tmp_path, "dark")
    assert cleaned.is_set()
