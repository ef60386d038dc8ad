"""One request ends a run after its step, the next one leaves at once."""

import os
import signal

import pytest

from llamatui.app.training import stop as module
from llamatui.app.training.stop import Stop, stop_on_signal

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture
def handlers():
    """Signals that are counted, so that nothing else happens to the tests' own process."""
    came = []
    before = {n: signal.signal(n, lambda n, _: came.append(n)) for n in SIGNALS}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_acts_as_before(handlers, monkeypatch, capfd, number):
    with stop_on_signal("stopping") as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert stop.exit_code == 128 + number
        assert handlers == []
        assert capfd.readouterr().err == "stopping"
        monkeypatch.setattr(module, "SAME_REQUEST", -1)
        signal.raise_signal(number)
    assert handlers == [number]
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminals that hang up")
def test_a_terminal_that_is_closed_asks_once_however_often_it_says_so(handlers, monkeypatch):
    monkeypatch.setattr(module, "SAME_REQUEST", -1)
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop()
        signal.raise_signal(signal.SIGHUP)
    assert handlers == []


def test_a_signal_that_comes_twice_at_once_is_one_request(handlers):
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop()
    assert handlers == []


def test_a_signal_after_a_key_is_the_second_request(handlers, monkeypatch):
    monkeypatch.setattr(module, "SAME_REQUEST", -1)
    with stop_on_signal() as stop:
        assert not stop.ask()
        signal.raise_signal(signal.SIGTERM)
    assert handlers == [signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_as_before_afterwards(handlers, number):
    before = signal.getsignal(number)
    with stop_on_signal():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_so(handlers, number):
    signal.signal(number, signal.SIG_IGN)  # as nohup does, and a shell for `command &` in a script
    with stop_on_signal() as stop:
        os.kill(os.getpid(), number)
        assert not stop()


def test_asking_once_is_no_hurry(monkeypatch):
    stop = Stop()
    assert not stop()
    assert not stop.ask()
    assert stop()
    assert not stop.ask()  # a key held down
    monkeypatch.setattr(module, "SAME_REQUEST", -1)
    assert stop.ask()
