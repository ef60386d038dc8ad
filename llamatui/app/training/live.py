"""The live view of a training run: the loss as a curve, what matters as numbers, and the newest story."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from textual.app import App, ComposeResult, RenderResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Footer, Static

from llamatui.app.cli.terminal import Interrupted, counted, short_count
from llamatui.app.training.chart import POINT, Curve, Role, axis_end, draw
from llamatui.app.training.lines import duration
from llamatui.app.training.metrics import read_metrics
from llamatui.app.training.stop import Stop
from llamatui.app.training.worker import Worker
from llamatui.app.tui.bars import Bar, Header
from llamatui.app.tui.flow import printable
from llamatui.app.tui.themes import DARK, LIGHT
from llamatui.errors import LlamatuiError, UsageError
from llamatui.train.events import Evaluation, Event, Finished, Saved, Started, Step

FRAMES_PER_SECOND = 10
METER_CELLS = 10
PATIENCE = 2.0
"""Seconds without an event after which the view counts them, to show that something goes on."""
GRACE = 5.0
"""Seconds that a run has to clean up when it is left at once."""


def follow(events: Iterator[Event], stop: Stop, out: Path, theme: str) -> Finished:
    """Trains on another thread and shows how it goes, until it ends.

    Args:
        events: The run, not begun yet.
        stop: What it asks in each step.

    Raises:
        LlamatuiError: What the run raised; or the view failed, and the run was stopped.
        Interrupted: It was left at once.
    """
    worker = Worker(events)
    view = TrainView(worker, stop, out, theme)
    try:
        # What is wrong with data or flags is told in the shell, before the screen is taken.
        worker.start()
        if worker.running:
            view.run()
    except BaseException:  # the second signal
        worker.interrupt()
        worker.join(GRACE)
        raise
    if view.left:
        worker.interrupt()
        worker.join(GRACE)
        if worker.running:  # in a computation, which nothing interrupts
            raise Interrupted
    elif worker.running:  # the view failed, and said so
        stop.ask()
        worker.join()
    if worker.error is not None:
        raise worker.error
    if view.return_code:
        raise LlamatuiError(
            "the live view failed; the run was stopped and saved", "go on with --resume --plain"
        )
    assert worker.end is not None
    return worker.end


class LossChart(Widget):
    DEFAULT_CSS = """
    LossChart { width: 1fr; height: 1fr; padding: 0 2; color: $text-muted; }
    """
    STYLES: ClassVar[dict[Role, str]] = {
        "axis": "",
        "train": "$foreground",
        "valid": "bold $accent",
    }

    def __init__(self) -> None:
        super().__init__()
        self._curve = Curve()
        self._points: list[tuple[int, float]] = []
        self._step = 0
        self.max_iters = 1

    def add(self, event: Step | Evaluation) -> None:
        self._step = max(self._step, event.iteration)
        if isinstance(event, Step):
            self._curve.add(event.iteration, event.loss)
        else:
            self._points.append((event.iteration, event.valid_loss))

    def render(self) -> RenderResult:
        width, height = self.content_size
        lines = draw(self._curve, self._points, axis_end(self._step, self.max_iters), width, height)
        return Content("\n").join(
            Content.assemble(*((text, self.STYLES[role]) for text, role in line)) for line in lines
        )


class Numbers(Widget):
    """`loss 3.12  valid 3.20  left 0:01:30`: as many as there is room for."""

    DEFAULT_CSS = """
    Numbers { height: 1; padding: 0 2; color: $text-muted; }
    """
    GAP = 2

    pairs: reactive[tuple[tuple[str, str], ...]] = reactive(())

    def render(self) -> RenderResult:
        content = Content()
        for name, value in self.pairs:
            more = Content.assemble(f"{name} ", (value, "$foreground"))
            if content:
                more = Content(" " * self.GAP) + more
            if content.cell_length + more.cell_length > self.content_size.width:
                break
            content += more
        return content


class TrainView(App[None]):
    """Leaves when the run has ended.

    Attributes:
        left: Whether it was asked twice to stop, and did not wait for the run.
    """

    TITLE = "llamatui"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "stop", "stop and save"),
        Binding("q", "leave", "leave at once, unsaved"),
        Binding("escape", "stop", show=False),
        Binding("escape", "leave", show=False),
        Binding("ctrl+c,ctrl+q", "stop", show=False, priority=True),
        Binding("ctrl+c,ctrl+q", "leave", show=False, priority=True),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012 (Textual's own type)
    VERTICAL_BREAKPOINTS = [(0, "-short"), (22, "-tall")]  # noqa: RUF012
    CSS = """
    Screen {
        & #body { height: 1fr; layout: vertical; }
        & #curve { height: 3fr; }
        & #story { height: 2fr; }
        & #scroll { height: 1fr; scrollbar-size-vertical: 1; padding: 0 2; }
        & #text { width: 1fr; max-width: 72; height: auto; color: $foreground 88%; }
        & Footer { padding: 0 2; }
        &.-tall #body { margin: 1 0; }
        &.-tall #curve { margin-bottom: 1; }
        &.-wide #body { layout: horizontal; }
        &.-wide #curve { width: 1fr; height: 1fr; margin-bottom: 0; }
        &.-wide #story { width: 1fr; height: 1fr; }
        &.-wide #scroll { margin-top: 1; }
    }
    """

    def __init__(self, worker: Worker, stop: Stop, out: Path, theme: str) -> None:
        """
        Raises:
            UsageError: There is no such theme.
        """
        super().__init__()
        self._worker = worker
        self._stop = stop
        self._out = out
        self._started: Started | None = None
        self._valid_loss = ""
        self._doing = ""
        self._last_event = time.monotonic()
        self.left = False
        # Kept, not queried: the last tick may come while the screen is taken down.
        self._header, self._numbers, self._chart = Header("train"), Numbers(), LossChart()
        self._about, self._text, self._status = (
            Bar(id="about"),
            Static(id="text", markup=False),
            Bar(id="status"),
        )
        self._scroll = VerticalScroll(self._text, id="scroll")
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        if theme not in self.available_themes:
            raise UsageError(f"no theme is called {theme!r}", "choose dark or light")
        self.theme = theme

    def compose(self) -> ComposeResult:
        legend = Bar(id="legend")
        legend.left = Content("loss, nats per token")
        legend.right = Content.assemble(("⠒⠒", "$foreground"), " train   ", (POINT, "bold $accent"), " valid")
        self._about.left = Content("a story comes with each evaluation")
        yield self._header
        yield self._numbers
        with Container(id="body"):
            yield Vertical(legend, self._chart, id="curve")
            yield Vertical(self._about, self._scroll, id="story")
        yield self._status
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self._tick()
        self.set_interval(1 / FRAMES_PER_SECOND, self._tick)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What a key does depends on whether the run was asked to stop."""
        if action in ("stop", "leave"):
            return self._stop() is (action == "leave")
        return True

    def action_stop(self) -> None:
        self._stop.ask()
        self._show_status()

    def action_leave(self) -> None:
        if self._stop.ask():
            self.left = True
            self.exit()

    def _tick(self) -> None:
        events, done = self._worker.drain()
        step: Step | None = None
        for event in events:
            match event:
                case Started():
                    self._begin(event)
                case Step():
                    step = event
                    self._chart.add(event)
                case Evaluation():
                    self._chart.add(event)
                    self._show_story(event)
            self._doing = self._what_follows(event)
        if step is not None:
            self._show_step(step)
        if events:
            self._last_event = time.monotonic()
            self._chart.refresh()
        self._show_status()
        if done:
            self.exit()

    def _begin(self, event: Started) -> None:
        self._started = event
        self._iteration = event.iteration
        self._header.show(
            printable(str(self._out)),
            (
                f"{short_count(event.n_params)} parameters",
                f"{event.device} {event.dtype}",
                counted(event.threads, "thread"),
            ),
        )
        self._numbers.pairs = (
            ("tokens per step", f"{event.tokens_per_iter:,}"),
            ("steps per epoch", f"{event.epoch_iters:,.1f}"),
        )
        self._chart.max_iters = event.max_iters
        if event.iteration:
            # What came before is in the file; what this run adds to it comes here as well.
            for before in read_metrics(self._out):
                if before.iteration <= event.iteration:
                    self._chart.add(before)
                    if isinstance(before, Evaluation):
                        self._show_story(before)

    def _show_step(self, event: Step) -> None:
        assert self._started is not None
        self._iteration = event.iteration
        self._header.right = Content(f"{event.tokens_per_second:,.0f} tok/s")
        pairs = [
            ("loss", f"{event.loss:.3f}"),
            ("valid", self._valid_loss),
            ("left", duration(event.eta)),
            ("lr", f"{event.learning_rate:.1e}"),
            ("MFU", f"{event.mfu:.1%}"),
            ("epoch", f"{event.iteration / self._started.epoch_iters:.2f}"),
        ]
        self._numbers.pairs = tuple((name, value) for name, value in pairs if value)

    def _show_story(self, event: Evaluation) -> None:
        self._valid_loss = f"{event.valid_loss:.3f}"
        bits = "" if math.isnan(event.bits_per_byte) else f" · {event.bits_per_byte:.3f} bits/byte"
        when = f"after step {event.iteration:,}" if event.iteration else "before training"
        self._about.left = Content.assemble(
            (when, "$foreground"), f"   valid {event.valid_loss:.3f}{bits} · train {event.train_loss:.3f}"
        )
        self._about.right = (
            Content.styled("best", "$accent") if event.is_best and event.iteration else Content()
        )
        self._text.update(printable(event.sample).strip())
        self._scroll.scroll_home(animate=False)

    def _what_follows(self, event: Event) -> str:
        """What the run does after an event, until the next."""
        assert self._started is not None
        run = self._started
        match event:
            case Started(iteration=0):
                return "evaluating the untrained model"
            case Started():
                return f"going on after step {event.iteration:,}"
            case Step() if event.iteration % run.eval_interval == 0 or event.iteration == run.max_iters:
                return "evaluating"
            case Evaluation() if event.iteration:
                return "saving"
            case Saved():
                return f"training · saved after step {event.iteration:,}"
            case Evaluation() | Step() if "saved" not in self._doing:
                return "training"
            case _:
                return self._doing

    def _show_status(self) -> None:
        doing = self._doing
        if (waited := time.monotonic() - self._last_event) > PATIENCE:
            doing += f" · {waited:.0f} s"
        if self._stop():
            self._status.left = Content.styled("stopping after this step", "$accent")
            self.refresh_bindings()
        else:
            self._status.left = Content(doing)
        if self._started is not None:
            step, steps = self._iteration, self._started.max_iters
            filled = min(METER_CELLS * step // steps, METER_CELLS)
            self._status.right = Content.assemble(
                f"step {step:,}/{steps:,} ",
                ("━" * filled, "$accent"),
                ("─" * (METER_CELLS - filled), "$border-blurred"),
            )
