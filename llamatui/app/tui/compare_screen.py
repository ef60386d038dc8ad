"""The split view: one prompt and one seed, on two backends or with two settings, and where the texts part."""

import math
import threading
import time
from collections import deque
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.timer import Timer

from llamatui.app.tui.bars import Header, Keys, Status, one_line, rate_text
from llamatui.app.tui.compare_column import Corner
from llamatui.app.tui.dismissed_once import DismissedOnce
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.flow import printable
from llamatui.app.tui.room import FRAMES_PER_SECOND, RATES_PER_SECOND, Room
from llamatui.app.tui.runner import Closing, Piece, Runner
from llamatui.app.tui.sampling_panel import Seed

if TYPE_CHECKING:
    from llamatui.app.duel import Duel, Side
    from llamatui.app.engine import Limits
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling
    from llamatui.app.tui.app import LlamaApp
    from llamatui.backends.base import Backend

PROMPT_TOKENS = 60  # of its end, that are shown above both texts
ALTERNATIVES = 10  # to say what each side thought of the other's token
REASONS = {**Room.REASONS, "eos": "the end"}
SIDES = ("left", "right")


class Stopped(Exception):  # noqa: N818 (no error)
    """Raised inside a job to leave it: nobody wants its result any longer."""


class DuelRun:
    """One duel: made by the screen, called on the inference thread, drained by the screen.

    Attributes:
        duel: None until both backends are there.
        step: What is being done until then.
        error: What ended it, unless it ended well.
    """

    def __init__(
        self,
        runner: Runner,
        model: "LoadedModel",
        backends: "dict[str, Backend]",
        prompt: list[int],
        limits: "Limits",
        seed: int,
        sides: "list[tuple[str, Sampling]]",
        context: int | None,
    ) -> None:
        """`backends`: those that earlier runs made; new ones are added."""
        self._runner = runner
        self._model = model
        self._backends = backends
        self._prompt = prompt
        self._limits = limits
        self._seed = seed
        self._sides = sides
        self._context = context
        self._fresh: tuple[deque[Piece], deque[Piece]] = (deque(), deque())
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self.duel: Duel | None = None
        self.step = "waiting for the room to stop"
        self.error: Exception | None = None

    def __call__(self) -> None:
        from llamatui.app.duel import Duel, Side
        from llamatui.tokenizers.base import StreamDecoder

        try:
            left, right = (Side(self._backend(name), sampling) for name, sampling in self._sides)
            limits = replace(self._limits, alternatives=ALTERNATIVES)
            self.duel = duel = Duel(self._prompt, limits, self._seed, left, right, self._context)
            tokenizer = self._model.tokenizer
            decoders = [StreamDecoder(tokenizer, after=self._prompt[-1]) for _ in SIDES]
            for index, record in duel:
                text = decoders[index].push(record.id)
                self._fresh[index].append(Piece(record, text, decoders[index].pending))
                self._check("")
        except Stopped:
            pass
        except Closing:
            raise
        except Exception as error:  # shown in the status; the app goes on
            self.error = error
        finally:
            self._done.set()

    def _backend(self, name: str) -> "Backend":
        from llamatui.backends.registry import create_backend

        self._check(f"preparing {name}")
        model = self._model
        if name == model.backend.name:
            return model.backend
        if name not in self._backends:
            tell = partial(self._preparing, name)
            self._backends[name] = create_backend(name, model.checkpoint, model.threads, tell)
        return self._backends[name]

    def _preparing(self, name: str, step: str) -> None:
        self._check(f"preparing {name}: {step}")

    def _check(self, step: str) -> None:
        self._runner.check()
        if self._cancelled.is_set():
            raise Stopped
        self.step = step

    def cancel(self) -> None:
        """Ends it after the token, or the prefill chunk, that is under way."""
        self._cancelled.set()
        if self.duel is not None:
            self.duel.cancel()

    def drain(self) -> tuple[list[list[Piece]], bool]:
        """What each side said since the last call, and whether that was all."""
        done = self._done.is_set()  # asked first: what is appended until then is drained below
        return [[fresh.popleft() for _ in range(len(fresh))] for fresh in self._fresh], done


class CompareScreen(DismissedOnce[list[Piece] | None]):
    """Dismissed with the continuation that the reader chose, or None."""

    TITLE = "The split view"
    AUTO_FOCUS = "Column"
    HELP = """
Both sides go on from the same words with the same random numbers: what differs is due to the backend or the
settings that you choose above each text.
"""
    BINDING_GROUP_TITLE = "both sides"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "stop", id="compare.stop"),
        Binding("escape", "back", "back", id="compare.back"),
        Binding(
            "r",
            "again",
            "again",
            tooltip="run it again: with another seed, unless that is kept",
            id="compare.again",
        ),
        Binding("p", "parting", "parting", tooltip="show where they part", id="compare.parting"),
        Binding(
            "1", "take(0)", "take left", tooltip="take the left text back into the room", id="compare.left"
        ),
        Binding(
            "2", "take(1)", "take right", tooltip="take the right text back into the room", id="compare.right"
        ),
        Binding("question_mark", "app.help", "help", id="compare.help"),
    ]
    HORIZONTAL_BREAKPOINTS = [(0, "-stacked"), (60, "-beside")]  # noqa: RUF012 (Textual's own type)
    DEFAULT_CSS = """
    CompareScreen {
        & Seed { layout: horizontal; height: 1; padding: 0 2; margin-bottom: 1; }
        & Seed Horizontal { width: 19; }
        & Seed Horizontal > Label { width: 5; }
        & #sides { layout: horizontal; height: 1fr; padding: 0 1; }
        & #sides Corner:last-of-type { border-left: solid $border-blurred; }
        &.-stacked {
            & Seed { margin-bottom: 0; }
            & #sides { layout: vertical; }
            & #sides Corner:last-of-type { border-left: none; }
        }
    }
    """

    def __init__(
        self,
        model: "LoadedModel",
        prompt: list[int],
        limits: "Limits",
        sampling: "Sampling",
        context: int | None = None,
    ) -> None:
        """
        Args:
            limits: Of both sides.
            sampling: Of both sides to begin with; its seed, unless 0, is kept.
            context: Most positions to hold; None: what the model has.
        """
        super().__init__()
        self.model = model
        self.prompt = prompt
        self.limits = limits
        self.seed = sampling.seed
        """Of the last run."""
        self.run: DuelRun | None = None
        self.busy = False
        self.context = context
        self._sampling = sampling
        self._backends: dict[str, Backend] = {}
        self._edited = False
        self._marked = False
        self._state_shown = 0.0
        self._ticker: Timer | None = None

    def compose(self) -> ComposeResult:
        yield Header("compare")
        yield Seed(self._sampling.seed)
        names, pair = backends_of(self.model)
        with Container(id="sides"):
            for name in pair:
                yield Corner(names, name, self._sampling)
        yield Status()
        yield Keys()

    def on_mount(self) -> None:
        self._ticker = self.set_interval(1 / FRAMES_PER_SECOND, self._tick, pause=True)
        self.query_one(Header).show(one_line(self.model.name))
        self._start(self.seed)

    def on_unmount(self) -> None:
        if self.run is not None:
            self.run.cancel()

    @property
    def corners(self) -> list[Corner]:
        return list(self.query(Corner))

    def _start(self, seed: int) -> None:
        """Begins anew, with a seed that nobody chose if it is 0."""
        import secrets

        if self.run is not None:
            self.run.cancel()
        self.seed = seed or secrets.randbelow((1 << 32) - 1) + 1
        self.query_one(Seed).show(self.seed)
        prompt = self._prompt_tail()
        for corner in self.corners:
            corner.begin(prompt)
        runner = cast("LlamaApp", self.app).runner
        sides = [(corner.backend, corner.sampling) for corner in self.corners]
        self.run = DuelRun(
            runner, self.model, self._backends, self.prompt, self.limits, self.seed, sides, self.context
        )
        runner.submit(self.run)
        self.busy = True
        self._edited = False
        self._marked = False
        assert self._ticker is not None
        self._ticker.resume()
        self.refresh_bindings()

    def _prompt_tail(self) -> str:
        """The last words that both go on from."""
        ids = self.prompt[-PROMPT_TOKENS:]
        before = self.prompt[-PROMPT_TOKENS - 1] if len(self.prompt) > len(ids) else None
        text = self.model.tokenizer.decode(ids, after=before)
        return text if before is None else f"…{text}"

    # While it runs.

    def _tick(self) -> None:
        assert self.run is not None
        fresh, done = self.run.drain()
        for corner, pieces in zip(self.corners, fresh, strict=True):
            if pieces:
                corner.append(pieces)
        duel = self.run.duel
        if duel is not None and duel.parted and not self._marked:
            self._marked = self._mark(duel)
            self.refresh_bindings()
        if done:
            assert self._ticker is not None
            self._ticker.pause()
            self.busy = False
            self.refresh_bindings()
        if done or (now := time.monotonic()) - self._state_shown > 1 / RATES_PER_SECOND:
            self._state_shown = 0.0 if done else now
            self._show_state(self.run)

    def _at_parting(self, duel: "Duel") -> list[int | None]:
        """What each side said first that the other did not; None where it said nothing more."""
        texts = [corner.pieces for corner in self.corners]
        return [pieces[duel.same].record.id if duel.same < len(pieces) else None for pieces in texts]

    def _mark(self, duel: "Duel") -> bool:
        """Marks where they part; False until both tokens are shown."""
        said = self._at_parting(duel)
        sides = list(zip(self.corners, duel.sides, said, strict=True))
        for corner, side, mine in sides:
            if mine is not None and not corner.column.mark(duel.same):
                return False
            if mine is None:
                if not side.ended:
                    return False
                corner.column.mark_end()
        tokens = [token for token in said if token is not None]
        for corner, side, mine in sides:
            corner.show_foot(self._chances(side, duel.same, mine, tokens))
        return True

    def _chances(self, side: "Side", index: int, mine: int | None, tokens: list[int]) -> Content:
        """`#35  ball 61.2 %   balloon 13.0 %`: what this side thought of both tokens, its own first."""
        parts: list[str | tuple[str, str]] = [f"#{index + 1}  "]
        if mine is None:
            parts.append((REASONS.get(side.reason or "", ""), "bold $accent"))
        else:
            for token in sorted(tokens, key=lambda token: token != mine):
                style = "bold $accent" if token == mine else "bold"
                parts += [(self._word(token), style), f" {percent(side, index, token)}   "]
        return Content.assemble(*parts)

    def _word(self, token: int) -> str:
        """A token by itself, whatever it is made of."""
        text = printable(self.model.tokenizer.decode_bytes(token).decode("utf-8", "replace"))
        return text.strip() or text.replace("\n", "↵").replace(" ", "␣") or "(nothing)"

    def _show_state(self, run: DuelRun) -> None:
        duel, status = run.duel, self.query_one(Status)
        if duel is not None:
            for corner, side in zip(self.corners, duel.sides, strict=True):
                reading = side.generation is not None and not side.records and self.busy
                why = "reading" if reading else REASONS.get(side.reason or "", "")
                corner.show_state(" · ".join(filter(None, [rate_text(side.rate), why])))
        if run.error is not None:
            message, hint = explain(run.error)
            status.say(f"{message}: {hint}" if hint else message, "$text-error")
        elif duel is None:
            status.say(run.step if self.busy else "stopped")
        else:
            status.say(self._verdict(duel))
        right = "changed: Enter in the field runs it again" if self._edited and not self.busy else ""
        status.right = Content.styled(right, "$text-warning")

    def _verdict(self, duel: "Duel") -> str:
        same = f"{duel.same} token{'s' if duel.same != 1 else ''}"
        if duel.parted:
            words = [
                f"{name} ends" if token is None else f"“{self._word(token)}”"
                for name, token in zip(SIDES, self._at_parting(duel), strict=True)
            ]
            then = " | ".join(words)
            return (
                f"the same for {same}, then {then}" if duel.same else f"not the same from the start: {then}"
            )
        if self.busy:
            return f"the same so far: {same}" if duel.same else ""
        if all(side.ended for side in duel.sides):
            if duel.same:
                return f"identical: {same}"
            full = duel.sides[0].reason == "context"
            return (
                "the context is full: there is no room to go on"
                if full
                else "both say that the text ends here"
            )
        return f"the same for {same}, then stopped"

    # What the reader does.

    def action_stop(self) -> None:
        if self.run is not None:
            self.run.cancel()

    def action_back(self) -> None:
        self.dismiss(None)

    def action_again(self) -> None:
        self._start(self.query_one(Seed).seed)

    def on_corner_submitted(self) -> None:
        self._start(self.query_one(Seed).seed or self.seed)

    def on_input_submitted(self) -> None:
        """Of the seed."""
        self.action_again()

    def on_corner_edited(self) -> None:
        self._edited = True
        if self.run is not None:
            self._show_state(self.run)

    def on_corner_taken(self, event: Corner.Taken) -> None:
        self.action_take(next(i for i, corner in enumerate(self.corners) if corner.column is event.column))

    def action_parting(self) -> None:
        for corner in self.corners:
            corner.column.show_parting()

    def action_take(self, index: int) -> None:
        """Goes back with what that side wrote so far."""
        pieces = list(self.corners[index].pieces)
        while pieces and pieces[-1].pending:  # an unfinished character would be torn by going on
            pieces.pop()
        if not pieces:
            self.notify("There is nothing to take yet.")
            return
        self.dismiss(pieces)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.busy
        if action == "back":
            return not self.busy
        if action == "parting":
            return self._marked
        return True


def percent(side: "Side", index: int, token: int) -> str:
    """How likely `side` found `token` as the one at `index`."""
    chance = side.chance(index, token)
    if chance is not None:
        return f"{100 * chance:.1f} %"
    return f"< {100 * math.exp(side.records[index].top[-1].logprob):.1f} %"


def backends_of(model: "LoadedModel") -> tuple[list[str], tuple[str, str]]:
    """(names of the backends there are, which two of them to begin with)."""
    from llamatui.backends.registry import KERNELS, backend_names

    compiler = find_spec("llvmlite") is not None
    names = [name for name in backend_names() if compiler or name not in KERNELS]
    running = model.backend.name
    if running not in names:
        names.append(running)
    other = next((name for name in ("q8_0", "numba", "numpy") if name in names and name != running), running)
    return names, (running, other)
