"""Computes a replay again, and tells where it comes out differently, and how near that was.

Nothing is forced: up to the first difference the model chooses every token by itself, with the recorded
settings and random numbers. All that was recorded before is then the same, so the logits compare.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llamatui.app.engine import Generation, Limits, Session, record
from llamatui.app.file_hash import file_sha256
from llamatui.app.model import LoadedModel
from llamatui.app.replay import Change, Replay, Step
from llamatui.app.sampler import REPEAT_WINDOW, Sampler
from llamatui.app.text_stream import StopMatcher, stream_text
from llamatui.backends.base import Backend, FloatArray
from llamatui.backends.registry import create_backend
from llamatui.errors import ContextOverflowError, ModelError, UsageError


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token that is another one, or where one of the two ended."""

    step: int
    index: int
    recorded: int | None
    """Its id; None where the recorded text ended, for `recorded_end`."""
    computed: int | None
    """Where the computed text ended with a control token, the id of that."""
    recorded_end: str | None
    computed_end: str | None
    logprob_then: float | None
    """Of the recorded token, when it was recorded."""
    logprob_now: float | None
    """Of the recorded token, in what was computed."""
    computed_logprob: float | None
    """Of the computed token."""
    nudge: float | None
    """How far from the random number, in [0, 1), the nearest is that chooses the recorded token. None where
    there is none, or where the likeliest token was taken."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """The identical token whose probabilities are furthest apart."""

    step: int
    index: int
    recorded: float
    computed: float

    @property
    def difference(self) -> float:
        return abs(self.recorded - self.computed)


@dataclass
class Verdict:
    """What came out.

    Attributes:
        tokens: So many are identical, from the first on.
        largest: None where no logprobs were recorded, or nothing is identical.
        backends: Those that ran, in order.
        notes: What is otherwise than when it was recorded.
    """

    tokens: int = 0
    difference: Difference | None = None
    largest: Logprobs | None = None
    backends: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        return self.difference is None


def verify(replay: Replay, model: LoadedModel, *, backend: str | None = None) -> Verdict:
    """Computes each step of `replay`, up to the first difference.

    Args:
        backend: Runs all of it; None: the recorded ones, each where it ran.

    Raises:
        ModelError: It was recorded with another model.
        UsageError: The file says what this model cannot have; or a backend that is not here.
        BackendError: A recorded backend does not run here.
    """
    check_model(replay, model)
    verdict = Verdict()
    same_tokenizer = file_sha256(model.tokenizer_path) == replay.tokenizer["sha256"]
    if not same_tokenizer:
        verdict.notes.append(f"another tokenizer than the recorded one: {model.tokenizer_path}")
    check = _Check(model, backend, verdict)
    for number, step in enumerate(replay.steps):
        text = check.run(number, step)
        if verdict.difference is not None:
            break
        if same_tokenizer and text is not None and text != step.text:
            verdict.notes.append(f"step {number}: the recorded text is not what its tokens say")
    return verdict


def check_model(replay: Replay, model: LoadedModel) -> None:
    """Raises ModelError for another model than the recorded one, UsageError for ids that it does not have."""
    expected, found = replay.model["sha256"], model.sha256()
    if expected != found:
        raise ModelError(
            f"{model.path}: expected the recorded {replay.model['name']}, of SHA-256 {expected}, "
            f"found {found}",
            "name the file of that very model: llamatui replay FILE --verify MODEL",
        )
    config = model.checkpoint.config
    for number, step in enumerate(replay.steps):
        largest = max(*step.prompt_ids, *step.output_ids, *step.stop_ids, 0)
        if largest >= config.vocab_size:
            raise UsageError(
                f"steps[{number}]: expected ids below {config.vocab_size}, found {largest}",
                "the file is damaged",
            )
        if step.context > config.max_seq_len:
            raise UsageError(
                f"steps[{number}]: expected a context of at most {config.max_seq_len}, found {step.context}",
                "the file is damaged",
            )


class Watched(Sampler):
    """Keeps what the last token was chosen from."""

    logits: FloatArray | None = None
    recent: tuple[int, ...] = ()
    before = 0
    chosen = 0

    def sample(self, logits: FloatArray, recent: Sequence[int] = ()) -> int:
        self.logits, self.recent, self.before = logits, tuple(recent[-REPEAT_WINDOW:]), self.state
        self.chosen = super().sample(logits, recent)
        return self.chosen

    def nudge(self, wanted: int) -> float | None:
        """How far from the last random number the nearest is that chooses `wanted`; None: there is none."""
        if self.logits is None or self.used.temperature == 0:
            return None
        logits = self._penalized(self.logits, self.recent)
        probabilities = self._probabilities(logits, logits.max())  # (vocab_size,)
        self.state, after = self.before, self.state
        coin = float(self.random_f32())
        self.state = after
        nucleus = 0 < self.used.top_p < 1
        order = np.argsort(-probabilities, kind="stable") if nucleus else np.arange(probabilities.size)
        sums = np.cumsum(probabilities[order], dtype=np.float64)  # (vocab_size,)
        if nucleus:
            sums = sums[: int(np.searchsorted(sums, self.used.top_p, side="right")) + 1]
        ends = sums / sums[-1]
        rank = int(np.flatnonzero(order == wanted)[0])
        if rank >= ends.size or probabilities[wanted] == 0:
            return None
        begin = ends[rank - 1] if rank else 0.0
        return max(float(begin) - coin, coin - float(ends[rank]), 0.0)


class _Check:
    """The session that computes the steps one after the other, as they were recorded."""

    def __init__(self, model: LoadedModel, backend: str | None, verdict: Verdict) -> None:
        self._model = model
        self._forced = backend
        self._verdict = verdict
        self._backends: dict[str, Backend] = {model.backend.name: model.backend}
        self._session: Session | None = None
        self._replaced: Backend | None = None
        self._text = ""

    def run(self, number: int, step: Step) -> str | None:
        """The text, if it came to an end by itself, and as it was recorded."""
        session = self._session_for(step)
        sampler = Watched(step.sampling)
        sampler.state = step.rng_state
        limits = Limits(step.max_new_tokens, frozenset(step.stop_ids), step.overflow, step.keep)
        # Who stopped it there did so from outside.
        cut = step.finish_reason in ("cancelled", "error") or (
            step.finish_reason == "stop" and not step.stops
        )
        if cut and not step.output_ids:
            return None
        _read(session, step.prompt_ids[: step.cached_tokens])
        generation = session.start(step.prompt_ids, sampler, limits)
        try:
            for index, token in self._tokens(generation, step):
                if index == len(step.output_ids) or token != step.output_ids[index]:
                    self._verdict.difference = self._difference(number, index, step, sampler, None)
                    return None
                self._compare(number, index, step, sampler)
                if cut and index + 1 == len(step.output_ids):
                    return None
        except ContextOverflowError:
            pass  # as it was recorded, with "context"
        finally:
            self._restore()
        count = len(generation.new_tokens)
        if count < len(step.output_ids) or generation.finish_reason != step.finish_reason:
            self._verdict.difference = self._difference(
                number, count, step, sampler, generation.finish_reason
            )
        return self._text

    def _session_for(self, step: Step) -> Session:
        began = next((c.backend for c in reversed(step.changes) if c.at == 0 and c.backend), step.backend)
        backend = self._backend(began)
        if self._session is None or self._session.context != step.context:
            self._session = Session(backend, step.context)
        elif self._session.backend is not backend:
            self._session.swap(backend)
        return self._session

    def _backend(self, name: str) -> Backend:
        name = self._forced or name
        if name not in self._backends:
            self._backends[name] = create_backend(name, self._model.checkpoint, self._model.threads)
        if name not in self._verdict.backends:
            self._verdict.backends.append(name)
        return self._backends[name]

    def _tokens(self, generation: Generation, step: Step) -> Iterator[tuple[int, int]]:
        """(index, id) of each new token; what changed in mid-text changes again."""
        changes = [change for change in step.changes if change.at > 0 or change.sampling]
        self._apply(generation, [change for change in changes if change.at == 0])
        self._text = ""
        for taken, piece in stream_text(generation, self._model.tokenizer, StopMatcher(step.stops)):
            self._text += piece
            if taken is None:
                continue  # text that was held back
            self._restore()
            count = len(generation.new_tokens)
            yield count - 1, taken.id
            self._apply(generation, [change for change in changes if change.at == count])

    def _apply(self, generation: Generation, changes: list[Change]) -> None:
        for change in changes:
            if change.sampling is not None:
                generation.sampler.settings = change.sampling
            if change.backend is not None:
                new, old = self._backend(change.backend), generation.session.backend
                if new is not old:
                    old.replacement = new  # the engine takes it before the next token, as it did then
                    self._replaced = old

    def _restore(self) -> None:
        """A later step may want the older backend again."""
        if self._replaced is not None:
            self._replaced.replacement = None
            self._replaced = None

    def _compare(self, number: int, index: int, step: Step, sampler: Watched) -> None:
        verdict = self._verdict
        verdict.tokens += 1
        recorded = step.logprobs[index]
        if recorded is None or sampler.logits is None:
            return
        computed = _logprob(sampler, step.output_ids[index])
        assert computed is not None
        found = Logprobs(number, index, recorded, computed)
        if verdict.largest is None or found.difference > verdict.largest.difference:
            verdict.largest = found

    def _difference(
        self, number: int, index: int, step: Step, sampler: Watched, end: str | None
    ) -> Difference:
        recorded = step.output_ids[index] if index < len(step.output_ids) else None
        sampled = end in (None, "eos")
        computed = sampler.chosen if sampled else None
        return Difference(
            number,
            index,
            recorded,
            computed,
            None if recorded is not None else step.finish_reason,
            end,
            step.logprobs[index] if recorded is not None else None,
            _logprob(sampler, recorded) if sampled else None,
            _logprob(sampler, computed),
            sampler.nudge(recorded) if sampled and recorded is not None else None,
        )


def _read(session: Session, ids: Sequence[int]) -> None:
    """Puts into the cache what was there when the step began, though no recorded step computed it.

    Read together with the rest of the prompt, that would round differently.
    """
    ids = ids[: session.context]
    session.cache.truncate(session.shared(ids))
    session.tokens = list(ids)
    while (at := session.cache.length) < len(ids):
        session.backend.forward(ids[at : at + session.backend.prefill_chunk], session.cache)


def _logprob(sampler: Watched, token: int | None) -> float | None:
    if token is None or sampler.logits is None:
        return None
    return record(token, sampler.logits, 0).logprob
