"""How the live view looks. After a change that is meant: pytest THIS --snapshot-update"""

import threading

import pytest

from llamatui.app.training import live
from llamatui.app.training.live import TrainView
from llamatui.app.training.stop import Stop
from llamatui.app.training.worker import Worker
from tests.app.training.runs import fake_run


@pytest.fixture
def snapshot_of(snap_compare, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PATIENCE", 1e9)
    monkeypatch.chdir(tmp_path)
    gate = threading.Event()

    def compare(step, size, theme="dark", stopping=False):
        from pathlib import Path

        def hold(now):
            if now == step + 1:
                gate.wait(30)

        out, stop = Path("runs"), Stop()
        view = TrainView(Worker(fake_run(out, stop, steps=300, on_step=hold)), stop, out, theme)
        view._worker.start()

        async def run(pilot):
            while view._started is None or view._iteration < step:
                await pilot.pause(0.01)
            if stopping:
                await pilot.press("q")
            await pilot.pause(0.2)

        return snap_compare(view, terminal_size=size, run_before=run)

    yield compare
    gate.set()


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_under_way(snapshot_of, theme):
    assert snapshot_of(170, (80, 24), theme)


def test_wide(snapshot_of):
    assert snapshot_of(170, (140, 40))


def test_small_and_stopping(snapshot_of):
    assert snapshot_of(170, (60, 16), stopping=True)


def test_at_the_beginning(snapshot_of):
    assert snapshot_of(0, (80, 24))
