"""The one generation loop: terminal app, `generate`, plain chat and benchmarks all use it.

A `Session` owns tokens and their KV cache. `start(prompt, ...)` gives a `Generation`: iterate over it and it
yields a `TokenRecord` per new token. The session keeps whatever prefix of the next prompt it already holds,
so going on, retrying, editing and branching cost only what is new.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llamatui.app.sampler import Sampler
from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.errors import ContextOverflowError

FinishReason = Literal["stop", "eos", "length", "context", "cancelled", "error"]
OverflowPolicy = Literal["stop", "shift", "error"]


@dataclass(frozen=True, slots=True)
class Alternative:
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
    """Another backend took over in mid-text, on the cache that the old one had filled."""

    at: int
    """Index of the first new token that the new one chose."""
    old: str
    new: str
    decode_s: float
    """Seconds that the old one had decoded for."""


class Session:
    """Tokens, and the KV cache of all of them but perhaps the last ones.

    Not for use from two threads at once; `Generation.cancel` may be called from anywhere.
    """

    def __init__(self, backend: Backend, context: int | None = None) -> None:
        """`context`: most positions to hold; None, or more than the model has, means the model's."""
        self.backend = backend
        limit = backend.config.max_seq_len
        self.cache = KVCache(backend.config, min(context or limit, limit))
        self.tokens: list[int] = []

    @property
    def context(self) -> int:
        return self.cache.max_seq_len

    def rewind(self, n: int) -> None:
        """Keeps the first `n` tokens."""
        self.tokens = self.tokens[:n]
        self.cache.truncate(min(n, self.cache.length))

    def fork(self) -> "Session":
        """A session of its own that goes on from here."""
        other = Session(self.backend.replacement or self.backend, self.context)
        other.tokens = list(self.tokens)
        other.cache = self.cache.copy()
        return other

    def swap(self, backend: Backend) -> None:
        """Goes on with another backend of the same model, on the same cache.

        A generation does so by itself, between two steps, when its backend's `replacement` is ready.
        """
        if backend.config != self.backend.config:
            raise ValueError("a session can only swap to a backend of the same model")
        self.backend = backend

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
        shared = 0
        for mine, theirs in zip(self.tokens[: self.cache.length], prompt, strict=False):
            if mine != theirs:
                break
            shared += 1
        # The last prompt token always runs: its logits choose the first new token.
        shared = min(shared, len(prompt) - 1)
        self.cache.truncate(shared)
        self.tokens = list(prompt)
        return shared


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
            yield self._record(token, logits)
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
        old, new = self.session.backend, self.session.backend.replacement
        if new is not None:
            self.session.swap(new)
            if self.session.cache.length:
                self.swap = Swap(len(self.new_tokens), old.name, new.name, self.timings.decode_s)

    def _shortened(self, tokens: list[int], length: int) -> list[int]:
        """`tokens` cut to `length`: the first `keep` stay, then the newest."""
        keep = min(self.limits.keep, length // 2)  # a long system prompt must leave room for the question
        tail = length - keep
        self.dropped_tokens += len(tokens) - length
        return tokens[:keep] + tokens[-tail:]

    def _overflow(self, needed: int) -> ContextOverflowError:
        return ContextOverflowError(
            f"{needed} tokens do not fit the context of {self.session.context}",
            "shorten the prompt, or choose --overflow stop or shift",
        )

    def _record(self, token: int, logits: FloatArray) -> TokenRecord:
        n = self.limits.alternatives
        if n is None:
            return TokenRecord(token)
        x = logits.astype(np.float64)  # (vocab_size,)
        x -= x.max()
        logprobs = x - np.log(np.exp(x).sum())  # (vocab_size,)
        n = min(n, x.size)
        best = np.argpartition(-logprobs, n - 1)[:n] if n else np.empty(0, np.int64)  # (n,) unordered
        best = best[np.argsort(-logprobs[best], kind="stable")]
        return TokenRecord(
            token,
            logprob=float(logprobs[token]),
            rank=int((logprobs > logprobs[token]).sum()),
            entropy=float(-(np.exp(logprobs) * logprobs).sum()),
            top=tuple(Alternative(int(i), float(logprobs[i])) for i in best),
        )
