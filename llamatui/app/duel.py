"""Two generations from one prompt with the same random numbers, token by token in turn, and where they part.

duel = Duel(prompt, limits, seed, Side(numba, sampling), Side(q8_0, sampling))
for side, record in duel: ...                  side 0 or 1; on one thread, so that none slows the other
duel.same, duel.parted                         for so many tokens they are the same, and then are not
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from llamatui.app.engine import FinishReason, Generation, Limits, Session, TokenRecord
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.backends.base import Backend


@dataclass
class Side:
    """One of the two.

    Attributes:
        generation: None until its turn came.
        records: What it has said so far.
        reason: Why nothing more comes; None while more may.
        decode_s: Seconds of its own turns after the first, which belongs to prefill.
    """

    backend: Backend
    sampling: Sampling
    generation: Generation | None = None
    records: list[TokenRecord] = field(default_factory=list)
    reason: FinishReason | None = None
    decode_s: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second of its own turns."""
        return max(len(self.records) - 1, 0) / self.decode_s if self.decode_s else 0.0

    @property
    def ended(self) -> bool:
        """Whether it came to an end of its own, not by a cancel or an error."""
        return self.reason not in (None, "cancelled", "error")

    def chance(self, index: int, token: int) -> float | None:
        """Probability of `token` as the one at `index`, before temperature and top-p.

        None where it is unknown, because it is not among the likeliest that were recorded.
        """
        if index >= len(self.records):
            return None
        record = self.records[index]
        if record.id == token and record.logprob is not None:
            return math.exp(record.logprob)
        return next((math.exp(other.logprob) for other in record.top if other.id == token), None)


class Duel:
    def __init__(
        self,
        prompt: Sequence[int],
        limits: Limits,
        seed: int,
        left: Side,
        right: Side,
        context: int | None = None,
    ) -> None:
        """
        Args:
            limits: Of both, for `alternatives` too.
            seed: Of both, instead of those in their sampling; not 0.
            context: Most positions to hold; None: what the model has.
        """
        self.prompt = prompt
        self.limits = limits
        self.seed = seed
        self.sides = (left, right)
        self._context = context
        self.same = 0
        """How many tokens at the front are the same on both sides, as far as they have got."""
        self._cancelled = threading.Event()

    @property
    def parted(self) -> bool:
        """Whether token number `same` differs, or is missing on one side because that one has ended."""
        left, right = self.sides
        counts = len(left.records), len(right.records)
        if self.same < min(counts):
            return True
        shorter = left if counts[0] < counts[1] else right
        return counts[0] != counts[1] and shorter.ended

    def cancel(self) -> None:
        """Ends both after the token, or the prefill chunk, that is under way. Safe from any thread."""
        self._cancelled.set()
        for side in self.sides:
            if side.generation is not None:
                side.generation.cancel()

    def __iter__(self) -> Iterator[tuple[int, TokenRecord]]:
        """Each record with its side. An error on one ends both."""
        live = [(index, side, self._run(side)) for index, side in enumerate(self.sides)]
        try:
            while live and not self._cancelled.is_set():
                for turn in list(live):
                    index, side, records = turn
                    began = time.perf_counter()
                    record = next(records, None)
                    if record is None:
                        assert side.generation is not None
                        side.reason = side.generation.finish_reason
                        live.remove(turn)
                        continue
                    if side.records:
                        side.decode_s += time.perf_counter() - began
                    side.records.append(record)
                    self._compare()
                    yield index, record
        finally:
            for side in self.sides:
                if side.reason is None:
                    failed = side.generation is not None and side.generation.finish_reason == "error"
                    side.reason = "error" if failed else "cancelled"

    def _run(self, side: Side) -> Iterator[TokenRecord]:
        # The same backend need not read the prompt twice; another one must, or it would not be seen whole.
        first = self.sides[0]
        if side is not first and side.backend is first.backend and first.generation is not None:
            session = first.generation.session.fork()
        else:
            session = Session(side.backend, self._context, follows=False)
        sampler = Sampler(replace(side.sampling, seed=self.seed))
        side.generation = session.start(self.prompt, sampler, self.limits)
        if self._cancelled.is_set():  # before there was a generation to cancel
            side.generation.cancel()
        yield from side.generation

    def _compare(self) -> None:
        left, right = (side.records for side in self.sides)
        while self.same < min(len(left), len(right)) and left[self.same].id == right[self.same].id:
            self.same += 1
