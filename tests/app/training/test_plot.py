"""loss.svg, which no run depends on."""

import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from llamatui.app.training import plot as module
from llamatui.app.training.metrics import recorded
from llamatui.app.training.plot import plot
from tests.app.training.runs import fake_run


@pytest.fixture
def figure(monkeypatch):
    """A stand-in for matplotlib; the figure that it makes."""
    package, figures = ModuleType("matplotlib"), ModuleType("matplotlib.figure")
    figures.Figure = MagicMock()
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "matplotlib", package)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", figures)
    return figures.Figure.return_value


@pytest.fixture
def out(tmp_path):
    list(recorded(fake_run(tmp_path, steps=4, eval_interval=2), tmp_path))
    return tmp_path


def test_without_matplotlib_there_is_no_picture(out, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert plot(out) is None


def test_both_losses_and_the_learning_rate_are_drawn(out, figure):
    assert plot(out) == out / "loss.svg"
    axes = figure.add_subplot.return_value
    train, valid = axes.plot.call_args_list
    (rate,) = axes.twinx.return_value.plot.call_args_list
    assert train.args[0] == rate.args[0] == [1, 2, 3, 4]
    assert valid.args[0] == [0, 2, 4]
    assert len(train.args[1]) == 4
    assert rate.args[1][-1] == 1e-3
    figure.savefig.assert_called_once_with(out / "loss.svg")


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("cannot load the font"), ImportError()])
def test_a_picture_that_fails_is_no_error(out, figure, error):
    figure.savefig.side_effect = error
    assert plot(out) is None


def test_a_mistake_of_ours_is_not_hidden(out, figure):
    figure.savefig.side_effect = NameError("axis")
    with pytest.raises(NameError):
        plot(out)


def test_matplotlib_draws_it(out):
    pytest.importorskip("matplotlib")
    assert plot(out) == out / "loss.svg"
    assert (out / "loss.svg").read_text().startswith("<?xml")
