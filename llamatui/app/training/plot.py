"""`loss.svg` of a run: losses of both splits and the learning rate, where matplotlib is installed."""

from importlib.util import find_spec
from pathlib import Path

from llamatui.app.training.metrics import read_metrics
from llamatui.train.events import Evaluation, Step

PLOT = "loss.svg"
ACCENT, QUIET = "#9a4f12", "#4a6472"  # of the light theme


def plot(out: Path) -> Path | None:
    """Draws what is in the run's metrics; None where nothing is drawn. A picture is no reason to fail."""
    if find_spec("matplotlib") is None:
        return None
    steps, evaluations = [], []
    for event in read_metrics(out):
        if isinstance(event, Step):
            steps.append(event)
        elif isinstance(event, Evaluation):
            evaluations.append(event)
    try:
        _draw(steps, evaluations, out / PLOT)
    except (ImportError, OSError, RuntimeError):  # a broken installation, a full disk, a damaged font
        return None
    return out / PLOT


def _draw(steps: list[Step], evaluations: list[Evaluation], path: Path) -> None:
    # Without pyplot, which would look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="steps", ylabel="loss (nats per token)", yscale="log")
    axes.plot(
        [s.iteration for s in steps], [s.loss for s in steps], color=QUIET, linewidth=0.8, label="train"
    )
    axes.plot(
        [e.iteration for e in evaluations],
        [e.valid_loss for e in evaluations],
        color=ACCENT,
        marker="o",
        markersize=4,
        label="valid",
    )
    axes.legend(frameon=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    rate = axes.twinx()
    rate.set_ylabel("learning rate")
    rate.plot(
        [s.iteration for s in steps], [s.learning_rate for s in steps], "--", color="#a8a294", linewidth=1
    )
    rate.set_ylim(bottom=0)
    for side in (axes, rate):
        side.spines["top"].set_visible(False)
    figure.savefig(path)
