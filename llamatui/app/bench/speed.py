"""Tokens per second of prefill and decode, measured in rounds that are interleaved.

Every round runs each case of each runner once, so that a machine whose speed drifts favours nobody; the first
round warms up and is not counted. Nothing is sampled: prefill and decode are fed fixed random ids, as
llama.cpp's llama-bench does, so that the model alone is measured.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import ModelConfig


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed."""

    kind: Literal["prefill", "decode"]
    n_tokens: int
    depth: int
    """Tokens that are in the KV cache before the first one."""

    @property
    def positions(self) -> int:
        return self.depth + self.n_tokens


class Runner(Protocol):
    """Something that runs one model: a backend of ours, or a peer."""

    model: str
    name: str
    threads: int
    bytes_per_token: int
    """Bytes of weights read to decode one token."""

    def seconds(self, case: Case) -> float:
        """Runs `case` once; the time that its tokens took."""


class BackendRunner:
    """One of our backends, on a cache that several may share: see `random_cache`."""

    def __init__(self, backend: Backend, cache: KVCache) -> None:
        self.model = backend.checkpoint.path.stem
        self.name = backend.name
        cache.length = 0
        backend.forward([0], cache)  # OpenMP says only then how many threads it gives
        self.threads = backend.threads
        self.bytes_per_token = backend.bytes_per_token
        self._backend = backend
        self._cache = cache
        self._ids = random_ids(backend.config.vocab_size, cache.capacity)

    def seconds(self, case: Case) -> float:
        backend, cache = self._backend, self._cache
        ids = self._ids[: case.n_tokens]
        step = backend.prefill_chunk if case.kind == "prefill" else 1
        # One token first: it wakes the threads, and brings the weights back into the processor's caches.
        cache.length = case.depth
        backend.forward(ids[:1], cache)
        cache.length = case.depth
        began = time.perf_counter()
        for at in range(0, case.n_tokens, step):
            backend.forward(ids[at : at + step], cache)
        return time.perf_counter() - began


def random_cache(config: ModelConfig, positions: int) -> KVCache:
    """A cache of random keys and values (standard normal) at every position.

    A case at any depth begins by setting `length`: how long attention takes does not depend on what is in the
    cache, so nothing has to be computed to get there.
    """
    cache = KVCache(config, positions)
    cache.reserve(positions)
    rng = np.random.default_rng(0)
    rng.standard_normal(out=cache.keys, dtype=np.float32)
    rng.standard_normal(out=cache.values, dtype=np.float32)
    cache.length = positions
    return cache


def random_ids(vocab_size: int, n: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(vocab_size, size=n)]


@dataclass
class Series:
    """What one case gave with one runner, a number a round."""

    runner: Runner
    case: Case
    tps: list[float] = field(default_factory=list)


@dataclass
class Bench:
    """All series, in the order in which a round runs them. They stay readable when a run is broken off.

    Attributes:
        bandwidths: Bytes per second that the memory gives by number of threads, a number a round: it drifts
            as much as the speed of the backends does.
    """

    series: list[Series]
    bandwidths: dict[int, list[float]]

    @classmethod
    def of(cls, runners: Sequence[Runner], cases: Iterable[Case]) -> "Bench":
        series = [Series(runner, case) for case in cases for runner in runners]
        return cls(series, {s.runner.threads: [] for s in series if s.case.kind == "decode"})

    def run(self, rounds: int, progress: Callable[[str], None]) -> None:
        """A warm-up round, and `rounds` that count. `progress` is told what is about to run."""
        from llamatui.backends.bandwidth import read_bandwidth

        for number in range(rounds + 1):
            stage = f"round {number} of {rounds}" if number else "warming up"
            for series in self.series:
                runner, case = series.runner, series.case
                progress(
                    f"{stage}: {runner.name}, {runner.threads} threads, {case.kind} of {case.n_tokens} tokens"
                )
                seconds = runner.seconds(case)
                if number:
                    series.tps.append(case.n_tokens / seconds)
            for threads, speeds in self.bandwidths.items() if number else ():
                progress(f"{stage}: memory bandwidth, {threads} threads")
                speeds.append(read_bandwidth(threads))

    def bandwidth(self, threads: int) -> float | None:
        """Median in bytes per second; None where it was not measured."""
        speeds = self.bandwidths.get(threads)
        return statistics.median(speeds) if speeds else None
