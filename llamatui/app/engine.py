"""The one generation loop: terminal app, `generate`, plain chat and benchmarks all use it.

A `Session` owns tokens and their KV cache. `start(prompt, ...)` gives a `Generation`: iterate over it and it
yields a `TokenRecord` per new token. The session keeps whatever prefix of the next prompt it already holds,
so going on, retrying, editing and branching cost only what is new.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from llamatui.app.sampler import Sampler
from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.errors import ContextOverflowError

FinishReason = Literal["stop", "eos", "length", "context", "cancelled", "error"]
OverflowPolicy = Literal["stop", "shift", "error"]

ROWS = 64  # of the table in which the largest logits are looked for


class Alternative(NamedTuple):
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One generated token. What the model thought is measured before temperature and top-p."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability. None, like the rest, unless `alternatives` was given."""
    rank: int | None = None
    """0 for the likeliest token."""
    entropy: float | None = None
    """Of the whole distribution, in nats."""
    top: tuple[Alternative, ...] = ()
    """The likeliest tokens, best first."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop, and what to measure."""

    max_new_tokens: int | None = None
    """None: until the context is full, or has been filled once over under "shift"."""
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the text; they are not yielded."""
    overflow: OverflowPolicy = "stop"
    """A full context: stop there, shift (forget the oldest tokens), or raise ContextOverflowError."""
    keep: int = 1
    """Tokens at the front that a shift never forgets: BOS, system prompt."""
    alternatives: int | None = None
    """Likeliest tokens to record with each one; None measures nothing, 0 only the chosen one."""
    shorten: Callable[[Sequence[int]], list[int]] | None = None
    """For a shift in mid-text, instead of `keep`: what to read on from, given all new tokens. It must fit."""


@dataclass
class Timings:
    """Seconds, by time.perf_counter."""

    prefill_s: float = 0.0
    ttft_s: float = 0.0
    """From the start to the first new token."""
    decode_s: float = 0.0
    """From the first new token to the last."""
    prefill_tokens: int = 0
    """Tokens that were run, not taken from the cache."""
    decode_tokens: int = 0

    @property
    def prefill_tps(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tps(self) -> float:
        """Tokens per second after the first, which belongs to prefill."""
        return max(self.decode_tokens - 1, 0) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True, slots=True)
class Swap:
    """Another backend took over in mid-text."""

    at: int
    """Index of the first new token that the new one chose."""
    old: str
    new: str
    decode_s: float
    """Seconds that the old one had decoded for."""
    reread: bool
    """The new one rounds differently, so it ran the text again; else it went on from the old one's cache."""


class Session:
    """Tokens, and the KV cache of all of them but perhaps the last ones.

    Not for use from two threads at once; `Generation.cancel` may be called from anywhere.
    """

    def __init__(self, backend: Backend, context: int | None = None, *, follows: bool = True) -> None:
        """
        Args:
            context: Most positions to hold; None, or more than the model has, means the model's.
            follows: Whether the backend's `replacement` takes over here when it is ready.
        """
        self.backend = backend
        self._follows = follows
        limit = backend.config.max_seq_len
        self.cache = KVCache(backend.config, min(context or limit, limit))
        self.tokens: list[int] = []

    @property
    def context(self) -> int:
        return self.cache.max_seq_len

    @property
    def latest(self) -> Backend:
        """The backend that the next step runs on."""
        return self.backend.latest if self._follows else self.backend

    def fork(self) -> "Session":
        """A session of its own that goes on from here."""
        other = Session(self.backend, self.context, follows=self._follows)
        other.tokens = list(self.tokens)
        other.cache = self.cache.copy()
        other.swap(self.latest)
        return other

    def swap(self, backend: Backend) -> bool:
        """Goes on with another backend of the same model; returns whether the cache had to be emptied.

        It stays where both compute in fp32. A generation does so by itself, between two steps, when its
        backend's `replacement` is ready.
        """
        if backend.config != self.backend.config:
            raise ValueError("a session can only swap to a backend of the same model")
        differs = backend.quantizes_activations != self.backend.quantizes_activations
        if differs:
            self.cache.truncate(0)
        self.backend = backend
        return differs

    def score(self, prompt: Sequence[int], first: int, alternatives: int) -> Iterator[TokenRecord]:
        """What the model thinks of the tokens of `prompt` from `first` on, whoever wrote them.

        The session stays as it is; what it holds of `prompt` in its cache is not run again.

        Args:
            first: At least 1: nothing stands before token 0.
            alternatives: Likeliest tokens to record with each one.
        """
        backend = self.latest
        if backend.quantizes_activations == self.backend.quantizes_activations:
            at = min(self.shared(prompt), first - 1)
        else:
            at = 0
        cache = self.cache.copy(at)
        while at < len(prompt) - 1:
            # The last token is not run: nothing comes after it.
            chunk = prompt[at : min(at + backend.prefill_chunk, len(prompt) - 1)]
            logits = backend.forward(chunk, cache, all_positions=True)  # (len(chunk), vocab_size)
            for position, row in enumerate(logits, at + 1):
                if position >= first:
                    yield record(prompt[position], row, alternatives)
            at += len(chunk)

    def start(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        limits: Limits = Limits(),
    ) -> "Generation":
        """Makes `prompt` the session's tokens and returns the generation that goes on from it.

        Args:
            prompt: The whole text so far, at least one id. The longest prefix that this session already
                holds is not run again.

        Raises:
            ContextOverflowError: `prompt` does not fit the context and the policy is "error".
        """
        return Generation(self, prompt, sampler, limits)

    def adopt(self, prompt: Sequence[int]) -> int:
        """Cuts tokens and cache back to what they share with `prompt`; returns the length of that."""
        # The last prompt token always runs: its logits choose the first new token.
        shared = min(self.shared(prompt), len(prompt) - 1)
        self.cache.truncate(shared)
        self.tokens = list(prompt)
        return shared

    def shared(self, prompt: Sequence[int]) -> int:
        """How many of the first tokens of `prompt` are in the cache."""
        pairs = zip(self.tokens[: self.cache.length], prompt, strict=False)
        return next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs),
                    min(self.cache.length, len(self.tokens), len(prompt)))  # fmt: skip


@dataclass
class Generation:
    """One run from a prompt to a finish reason. Iterate over it once, from one thread.

    Attributes:
        finish_reason: "length" until it ends, then why.
        cached_tokens: Prompt tokens that were already in the cache.
        dropped_tokens: Tokens that shifting, or cutting the prompt, forgot.
        processed: Prompt tokens run so far; grows chunk by chunk, for progress.
        prompt: The prompt in use, which is shorter than the one given if it did not fit and was cut.
        swap: The session's backend was replaced, which had run some of its tokens.
    """

    session: Session
    prompt: Sequence[int]
    sampler: Sampler
    limits: Limits
    finish_reason: FinishReason = "length"
    cached_tokens: int = 0
    dropped_tokens: int = 0
    processed: int = 0
    new_tokens: list[int] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    swap: Swap | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt needs at least one token")
        self._cancelled = threading.Event()
        self._max_new = self.limits.max_new_tokens
        if self._max_new is None and self.limits.overflow == "shift":
            self._max_new = self.session.context  # a model that never ends its text must not run forever
        self._stopped = False
        room = self.session.context
        if len(self.prompt) > room:
            if self.limits.overflow == "error":
                raise self._overflow(len(self.prompt))
            if self.limits.overflow == "shift":
                self.prompt = self._shortened(list(self.prompt), room // 2)
        self.cached_tokens = self.session.adopt(self.prompt)

    @property
    def rate(self) -> float:
        """Tokens per second of decoding, by the backend that runs now."""
        times, swap = self.timings, self.swap
        if swap is None or not swap.at:
            return times.decode_tps
        seconds = times.decode_s - swap.decode_s
        return (times.decode_tokens - swap.at) / seconds if seconds else 0.0

    def cancel(self) -> None:
        """Ends it after the token, or the prefill chunk, that is under way. Safe from any thread."""
        self._cancelled.set()

    def stop(self) -> None:
        """Ends it with "stop": the consumer saw a stop sequence."""
        self._stopped = True

    def __iter__(self) -> Iterator[TokenRecord]:
        try:
            yield from self._run()
        except ContextOverflowError:
            self.finish_reason = "context"
            raise
        except Exception:
            self.finish_reason = "error"
            raise

    def _run(self) -> Iterator[TokenRecord]:
        session, limits = self.session, self.limits
        began = time.perf_counter()
        if len(self.prompt) > session.context:  # policy "stop": there is no room to begin
            self.finish_reason = "context"
            return
        logits = self._catch_up()
        self.timings.prefill_s = time.perf_counter() - began
        if logits is None:
            self.finish_reason = "cancelled"
            return
        while True:
            if self._max_new is not None and len(self.new_tokens) >= self._max_new:
                self.finish_reason = "length"
                return
            token = self.sampler.sample(logits, session.tokens)
            now = time.perf_counter()
            if not self.new_tokens:
                self.timings.ttft_s = now - began
            self.timings.decode_s = now - began - self.timings.ttft_s
            if token in limits.stop_ids:
                self.finish_reason = "eos"
                return
            session.tokens.append(token)
            self.new_tokens.append(token)
            self.timings.decode_tokens = len(self.new_tokens)
            wanted = self.limits.alternatives  # may be asked for in mid-text
            yield TokenRecord(token) if wanted is None else record(token, logits, wanted)
            if self._stopped:
                self.finish_reason = "stop"
                return
            if len(self.new_tokens) == self._max_new:
                continue  # its logits are not needed
            if session.cache.length >= session.context:
                if limits.overflow == "error":
                    raise self._overflow(len(session.tokens))
                if limits.overflow == "stop":
                    self.finish_reason = "context"
                    return
                # RoPE is part of the cached keys: what stays behind the gap is run again where it is now.
                session.adopt(self._shortened(session.tokens, session.context // 2))
            logits = self._catch_up()
            if logits is None:
                self.finish_reason = "cancelled"
                return

    def _catch_up(self) -> FloatArray | None:
        """Runs the tokens that the cache lacks, chunk by chunk: the last one's logits, None if cancelled."""
        session = self.session
        logits = None
        while session.cache.length < len(session.tokens):
            if self._cancelled.is_set():
                return None
            self._take_replacement()
            at = session.cache.length
            logits = session.backend.forward(
                session.tokens[at : at + session.backend.prefill_chunk], session.cache
            )
            if not self.new_tokens:
                self.processed = self.timings.prefill_tokens = session.cache.length - self.cached_tokens
        return logits

    def _take_replacement(self) -> None:
        old, new = self.session.backend, self.session.latest
        if new is not old:
            held = self.session.cache.length
            reread = self.session.swap(new)
            if held:
                self.swap = Swap(len(self.new_tokens), old.name, new.name, self.timings.decode_s, reread)
            if reread and not self.new_tokens:
                self.cached_tokens = 0

    def _shortened(self, tokens: list[int], length: int) -> list[int]:
        """`tokens` cut to `length`, the first `keep` and the newest; or what `shorten` makes of them."""
        if self.limits.shorten is not None and self.new_tokens:
            shorter = self.limits.shorten(self.new_tokens)
        else:
            keep = min(self.limits.keep, length // 2)  # a long system prompt must leave room for the question
            shorter = tokens[:keep] + tokens[keep - length :]
        self.dropped_tokens += len(tokens) - len(shorter)
        return shorter

    def _overflow(self, needed: int) -> ContextOverflowError:
        return ContextOverflowError(
            f"{needed} tokens do not fit the context of {self.session.context}",
            "shorten the prompt, or choose --overflow stop or shift",
        )


def record(token: int, logits: FloatArray, alternatives: int) -> TokenRecord:
    """What logits (vocab_size,) say about `token`."""
    x = logits - logits.max()  # (vocab_size,)
    top = likeliest(x, alternatives)
    odds = np.exp(x)  # (vocab_size,)
    total = odds.sum()
    log_total = math.log(total)
    ahead = x[top] if token in top else x  # (alternatives,) or (vocab_size,): who may be before it
    return TokenRecord(
        token,
        logprob=float(x[token]) - log_total,
        rank=int(np.count_nonzero(ahead > x[token])),
        entropy=log_total - float(odds @ x) / float(total),
        top=tuple(Alternative(i, float(x[i]) - log_total) for i in top),
    )


def likeliest(logits: FloatArray, n: int) -> list[int]:
    """Ids of the n largest of logits (vocab_size,), largest first; of equal ones the lower id first."""
    if n == 0:
        return []
    columns = logits.size // ROWS
    if n < columns:
        # At least n logits reach the n-th largest of the columns' maxima, and hardly more: few to sort.
        table, rest = logits[: ROWS * columns].reshape(ROWS, columns), logits[ROWS * columns :]
        maxima = table.max(axis=0)  # (columns,)
        least = np.partition(maxima, -n)[-n]
        among = np.flatnonzero(maxima >= least)  # (>= n,): the columns that have such logits
        rows, places = divmod(np.flatnonzero(table[:, among] >= least), among.size)  # (>= n,)
        ids = np.concatenate((rows * columns + among[places], ROWS * columns + np.flatnonzero(rest >= least)))
    else:
        ids = np.arange(logits.size)
    return ids[np.argsort(-logits[ids], kind="stable")[:n]].tolist()  # type: ignore[no-any-return]
