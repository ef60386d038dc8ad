"""What the rooms share: bars, sampling panel, starting and stopping, and draining the inference thread."""

import time
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget

from llamatui.app.history.draft import Draft
from llamatui.app.tui.bars import Header, Keys, Status, one_line
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.keeping import Content, Keeping
from llamatui.app.tui.keys import key_of, own_bindings, rebound
from llamatui.app.tui.launch import Launch, RoomName
from llamatui.app.tui.runner import Piece, Run, Runner
from llamatui.app.tui.sampling_panel import SamplingPanel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from llamatui.app.engine import Generation, Limits, Session
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling

FRAMES_PER_SECOND = 30
SCREEN_SHARE = 0.03  # of one core: where the model has them all, what the screen takes the model lacks
SLOWEST_FRAME = 0.25  # seconds; twice that ...
UNREADABLE = 50  # ... from so many tokens per second on: nobody reads along
WIDE = 100  # columns that leave room for the side column
RATES_PER_SECOND = 2  # a number that changes faster cannot be read
TEXTS_PER_RATE = 3  # frames with new words that come first: where frames are rare, they are for the words


def swap_notice(generation: "Generation | None") -> str:
    """What a reader should know about a text that two backends wrote; "" if one did."""
    swap = generation.swap if generation else None
    if swap is None:
        return ""
    if swap.reread:
        return f"{swap.new} took over from {swap.old} here. It rounds differently, so it read the text again."
    return f"{swap.new} took over from {swap.old} here, and went on from what it had read."


class Room(Screen[None]):
    """Subclasses say what is on the screen and what a generation's text becomes."""

    NAME: ClassVar[RoomName]
    REASONS: ClassVar[dict[str, str]] = {
        "length": "length reached",
        "context": "the context is full",
        "cancelled": "stopped",
        "error": "failed",
    }
    """What the status says when a generation ends; subclasses add "eos"."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "stop", id="app.stop"),
        Binding("escape", "home", "back", id="app.back"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide")]  # noqa: RUF012 (Textual's own type)
    DEFAULT_CSS = """
    Room {
        & #body { height: 1fr; }
        & #main { width: 1fr; height: 1fr; }
        & #side { width: 34; height: 1fr; border-left: solid $border-blurred; scrollbar-size-vertical: 1; }
        &.-narrow #side { display: none; }
        &.-side-open #side { display: block; }
        &.-side-closed #side { display: none; }
    }
    """

    def __init__(self, options: Launch, runner: Runner, keeping: Keeping) -> None:
        super().__init__()
        self.title = f"The {self.NAME} room"
        self.options = options
        self.runner = runner
        self.keeping = keeping
        self.sampling = options.sampling
        """What the panel says."""
        self.model: LoadedModel | None = None
        self.run: Run | None = None
        self.announced = "opening the model"
        """What happens until there is a model."""
        self._turning = False
        self._stopped = False  # while turning: what follows shall not begin
        self._told = 0.0  # when a number was shown last
        self._texts = 0  # frames since then that had something new
        self._numbers = cycle((self._show_rate, self._show_position))
        self._drawn = (0.0, 0.0)  # the clock, and what the event loop had computed, at the last frame
        self._soon = ""  # what is on its way beside what the room does
        self._ticker: Timer | None = None

    # What a subclass fills in.

    def compose_main(self) -> ComposeResult:
        """The widgets of the main column."""
        raise NotImplementedError

    def compose_side(self) -> ComposeResult:
        """The widgets of the side column, which narrow screens hide until it is asked for."""
        yield SamplingPanel(self.options.sampling)

    def question(self) -> "tuple[list[int], Limits] | None":
        """(prompt, limits) of what the model would say now; None where there is nothing to go on from."""
        raise NotImplementedError

    async def accept(self, pieces: list[Piece]) -> None:
        """Takes over how the model went on from `question` in the split view."""
        raise NotImplementedError

    @property
    def content(self) -> Content | None:
        """What is written here, once there is a model."""
        raise NotImplementedError

    async def put(self, content: Any) -> None:
        """Shows another text in the place of this one. `content`: of the room's own kind."""
        raise NotImplementedError

    def draft(self) -> Draft:
        """What was typed here and is no part of `content` yet."""
        raise NotImplementedError

    def take_draft(self, draft: Draft) -> None:
        """Puts back what `draft` gave when `content` was left."""
        raise NotImplementedError

    def partial(self) -> tuple[str, list[int]]:
        """What is being said, and its ids, as far as `content` does not have it yet."""
        return "", []

    def collect(self, run: Run) -> None:
        """Gives `content` what was drained last, without showing it: the app is closing."""

    def opened(self, model: "LoadedModel") -> None:
        """The model is ready.

        Raises:
            ModelError: It is none for this room.
        """
        raise NotImplementedError

    async def receive(self, text: str) -> None:
        """Shows what was generated since the last call."""
        raise NotImplementedError

    async def finished(self, run: Run) -> None:
        """Records what `run` made, before the first await; `self.run` is None already."""
        raise NotImplementedError

    def commands(self) -> "Iterable[SystemCommand]":
        """What the command palette offers beside what it always does."""
        raise NotImplementedError

    @property
    def home(self) -> Widget:
        """What has the focus when nothing else needs it."""
        raise NotImplementedError

    @property
    def editing(self) -> bool:
        """Whether a text is being changed that another model would replace."""
        return False

    # What all rooms do.

    def compose(self) -> ComposeResult:
        # Before there are widgets: Textual says so later, and computes all their styles again for it.
        self.add_class("-wide" if self.app.size.width >= WIDE else "-narrow", update=False)
        yield Header(self.NAME)
        with Horizontal(id="body"):
            with Vertical(id="main"):
                yield from self.compose_main()
            with VerticalScroll(id="side", can_focus=False):
                yield from self.compose_side()
        yield Status()
        yield Keys()

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        if not self.stack_updates:
            event.refresh_styles = False  # for the first time they were computed just now

    def on_mount(self) -> None:
        self._ticker = self.set_interval(1 / FRAMES_PER_SECOND, self._tick, pause=True)
        if self.model is None:
            self.query_one(Header).show(one_line(Path(self.options.model).stem))
            self.query_one(Status).say(self.announced)

    def show_step(self, step: str) -> None:
        """How far the room's first model is."""
        self.query_one(Status).say(f"{self.announced}: {step}")

    def show_soon(self, text: str) -> None:
        """What is on its way beside what the room does; "" for nothing."""
        self._soon = text
        self.show_engine()

    def open(self, model: "LoadedModel") -> None:
        """Lets the room begin with `model`, or go on with it.

        Raises:
            ModelError: It is none for this room.
        """
        assert not self.busy
        self.keeping.leave(self)
        self.opened(model)
        before, self.model = self.model, model
        self.keeping.opened(self)
        self.query_one(Header).show_rate(0)
        self.show_engine()
        self.query_one(Status).say(f"{one_line(model.name)} is open" if before else "ready")
        self._show_context()
        self.refresh_bindings()

    @property
    def session(self) -> "Session | None":
        """What the meter measures, once there is a model."""
        return self.content.session if self.content else None

    def save(self) -> None:
        """Something has changed."""
        self.keeping.save(self)

    def show_engine(self) -> None:
        """Names what runs, and what is on its way."""
        assert self.model is not None
        backend = self.model.backend
        threads = f"{backend.threads} thread{'s' if backend.threads != 1 else ''}"
        soon = self._soon or (f"compiling {backend.preparing}" if backend.preparing else "")
        for header in self.query(Header):  # none is left when the app closes
            header.show(one_line(self.model.name), (backend.name, threads), soon)

    def announce(self, text: str) -> None:
        """Says what follows as soon as the model is ready."""
        self.announced = text
        self.query_one(Status).say(text)

    @property
    def busy(self) -> bool:
        return self.run is not None or self._turning

    @contextmanager
    def changing(self) -> "Iterator[None]":
        """Between two states, while turns and widgets are added or recorded, the room is busy."""
        self._turning, self._stopped = True, False
        try:
            yield
        finally:
            self._turning = self._stopped = False

    def generate(
        self, start: "Callable[[Sampling], Generation]", until: "Callable[[str, str], bool] | None" = None
    ) -> None:
        """Starts a generation on the inference thread; `receive` and `finished` follow.

        `until(text so far, piece)`: whether to stop before that piece.
        """
        assert self.run is None
        assert self.model is not None
        assert self._ticker is not None
        start = self.keeping.starting(self, start)
        self.run = Run(start, self.query_one(SamplingPanel).sampling, self.model.tokenizer, until)
        if self._stopped:
            self.run.cancel()
        self.runner.submit(self.run)
        self.query_one(Status).say("reading")
        self._told = time.monotonic()
        self._ticker.resume()
        self.refresh_bindings()

    async def _tick(self) -> None:
        run = self.run
        if run is None:
            return
        at_once = run.done or run.begins
        if not self._frame_is_due(at_once):
            return
        has_turn = self._texts >= TEXTS_PER_RATE or not run.waits
        if not at_once and has_turn and (now := time.monotonic()) - self._told > 0.5 / RATES_PER_SECOND:
            # In frames of their own, by turns: Textual draws all that lies between two changes, too.
            self._told, self._texts = now, 0
            next(self._numbers)(run)
            return
        self._texts += run.waits
        text, done = run.drain()
        if text:
            await self.receive(text)
            self.keeping.save(self, typed=False)
        if done:
            await self._finish(run)

    def _frame_is_due(self, at_once: bool) -> bool:
        """Whether what the last frame cost is little enough of the time since then, or nobody shall wait."""
        now, computed = time.monotonic(), time.thread_time()
        drawn, before = self._drawn
        generation = self.run.generation if self.run else None
        slowest = SLOWEST_FRAME * (2 if generation and generation.rate > UNREADABLE else 1)
        if not at_once and now - drawn < min((computed - before) / SCREEN_SHARE, slowest):
            return False
        self._drawn = now, computed
        return True

    async def _finish(self, run: Run) -> None:
        with self.changing():
            assert self._ticker is not None
            self._ticker.pause()
            self.run = None
            await self.finished(run)
        self.save()
        self._show_rate(run)
        self._show_position(run)
        self.show_engine()  # how many threads there are is known for certain only now
        if run.error is not None:
            message, hint = explain(run.error)
            self.query_one(Status).say(f"{message}: {hint}" if hint else message, "$text-error")
        elif run.generation is not None:
            self.query_one(Status).say(self.REASONS.get(run.generation.finish_reason, ""))
        self.refresh_bindings()

    def _show_rate(self, run: Run) -> None:
        if run.generation is not None:
            self.query_one(Header).show_rate(run.generation.rate, run.generation.timings.ttft_s)

    def _show_position(self, run: Run) -> None:
        generation = run.generation
        if generation is None:
            return
        if not generation.new_tokens:
            unread = len(generation.prompt) - generation.cached_tokens
            self.query_one(Status).say(f"reading {generation.processed}/{unread}")
        elif self.run is not None:
            self.query_one(Status).say("writing")
        self.query_one(SamplingPanel).show_seed(generation.sampler.seed)
        self._show_context(generation.dropped_tokens)

    def _show_context(self, dropped: int = 0) -> None:
        """Tells how full the context is. `dropped`: tokens that went since the generation began."""
        raise NotImplementedError

    @property
    def typing(self) -> bool:
        """Whether keys are letters now."""
        return self.focused is not None and self.focused.check_consume_key("a", "a")

    def stop(self) -> None:
        """Ends the generation, or the one that is about to begin; what it made so far stays."""
        if self.run is not None:
            self.run.cancel()
        self._stopped = self._turning

    def tell_to_wait(self, then: str) -> None:
        self.notify(f"{key_of(self, 'app.stop')} stops the model, {then}.")

    def on_key(self, event: events.Key) -> None:
        """Tells why nothing happens, where a key would do something if the model did not write."""
        if self.busy and event.key not in self.active_bindings:
            own = [binding for kind in type(self).__mro__ for binding in own_bindings(kind)]
            if event.key in [binding.key for binding in rebound(own, self.app._keymap)]:
                self.tell_to_wait("then this can be done")

    def action_stop(self) -> None:
        self.stop()

    def action_home(self) -> None:
        self.home.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.busy
        if action == "home":
            return not self.busy and self.focused is not self.home
        return True

    def on_text_area_changed(self) -> None:
        self.save()

    def on_input_changed(self) -> None:
        self.save()

    def on_sampling_panel_changed(self, event: SamplingPanel.Changed) -> None:
        """What the panel says holds from the next token on; a seed, from the next generation on."""
        self.sampling = event.sampling
        self.save()
        if self.run is not None:
            self.run.sample(event.sampling)

    def action_toggle_sampling(self) -> None:
        shown = self.query_one("#side").display
        self.set_class(not shown, "-side-open")
        self.set_class(shown, "-side-closed")
        if shown:
            self.home.focus()
        else:
            for field in self.query("#temperature"):  # it comes a little later than the rest
                field.focus()
