"""Two generations side by side: the same as two by themselves, and where they part."""

import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llamatui.app.duel import Duel, Side
from llamatui.app.engine import Limits, Session
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.backends.base import FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.errors import BackendError

PROMPT = [1, 2, 3, 4, 5]
WARM, COLD = Sampling(temperature=1.0), Sampling(temperature=0.0)
LIMITS = Limits(max_new_tokens=20, alternatives=5)


class Counting(NumpyBackend):
    prefill_chunk = 4

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        super().__init__(checkpoint, threads)
        self.calls: list[int] = []

    def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        self.calls.append(tokens.size)
        return super()._forward(tokens, cache, all_positions)


@pytest.fixture
def backend(tiny_model: Path) -> Counting:
    return Counting(Checkpoint(tiny_model), 1)


@pytest.fixture
def other(tiny_model: Path) -> Counting:
    """A backend of its own, whose logits lean towards other tokens from the 10th position on."""

    class Leaning(Counting):
        def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
            logits = super()._forward(tokens, cache, all_positions)
            return logits[..., ::-1].copy() if cache.length >= 10 else logits

    return Leaning(Checkpoint(tiny_model), 1)


def alone(backend: NumpyBackend, sampling: Sampling, seed: int, limits: Limits = LIMITS) -> list[int]:
    sampler = Sampler(replace(sampling, seed=seed))
    return [record.id for record in Session(backend).start(PROMPT, sampler, limits)]


def ids(duel: Duel) -> list[list[int]]:
    """Runs it; the ids of both sides."""
    found: list[list[int]] = [[], []]
    for index, record in duel:
        found[index].append(record.id)
    assert [[record.id for record in side.records] for side in duel.sides] == found
    return found


def test_both_say_what_they_say_alone(backend: Counting, other: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(other, replace(WARM, top_p=0.5)))
    assert ids(duel) == [alone(backend, WARM, 7), alone(other, replace(WARM, top_p=0.5), 7)]
    assert [side.reason for side in duel.sides] == ["length", "length"]
    assert all(side.rate > 0 for side in duel.sides)


def test_they_take_turns(backend: Counting, other: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(other, WARM))
    assert [index for index, _ in duel] == [0, 1] * 20


def test_the_same_settings_are_identical(backend: Counting, tiny_model: Path) -> None:
    twin = Counting(Checkpoint(tiny_model), 1)
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(twin, WARM))
    left, right = ids(duel)
    assert left == right
    assert (duel.same, duel.parted) == (20, False)
    assert backend.calls == twin.calls == [4, 1, *[1] * 19]


def test_a_backend_that_is_on_both_sides_reads_the_prompt_once(backend: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(backend, COLD))
    expected = [alone(backend, WARM, 7), alone(backend, COLD, 7)]
    backend.calls.clear()
    assert ids(duel) == expected
    assert sum(backend.calls) == len(PROMPT) + 1 + 2 * 19, "but for its last token"


def test_the_first_token_where_they_part(backend: Counting, other: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, COLD), Side(other, COLD))
    left, right = ids(duel)
    assert duel.parted
    assert left[: duel.same] == right[: duel.same]
    assert left[duel.same] != right[duel.same]
    assert duel.same == 5, "position 10 is that of the prompt's five and five more"


def test_it_is_known_while_they_write(backend: Counting, other: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, COLD), Side(other, COLD))
    seen = [(index, duel.same, duel.parted) for index, _ in duel]
    assert seen[:4] == [(0, 0, False), (1, 1, False), (0, 1, False), (1, 2, False)]
    assert seen[9:12] == [(1, 5, False), (0, 5, False), (1, 5, True)]
    assert seen[-1] == (1, 5, True)


def test_both_probabilities_of_both_tokens(backend: Counting, other: Counting) -> None:
    left, right = Side(backend, COLD), Side(other, COLD)
    duel = Duel(PROMPT, LIMITS, 7, left, right)
    written = ids(duel)
    at = duel.same
    logits = backend.forward([*PROMPT, *written[0][:at]], KVCache(backend.config)).astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    assert left.chance(at, written[0][at]) == pytest.approx(p.max(), abs=1e-4)
    for token in range(backend.config.vocab_size):
        known = token in np.argsort(-p)[:5]
        assert left.chance(at, token) == (pytest.approx(p[token], abs=1e-4) if known else None)
    assert right.chance(at, written[1][at]) == pytest.approx(p.max(), abs=1e-4), "the same, turned round"
    assert left.chance(20, 1) is None


def test_probabilities_are_unknown_where_none_were_recorded(backend: Counting) -> None:
    duel = Duel(PROMPT, Limits(max_new_tokens=2), 7, Side(backend, COLD), Side(backend, COLD))
    left, _ = ids(duel)
    assert duel.sides[0].chance(0, left[0]) is None


def test_a_side_that_ends_first_parts_them(backend: Counting, tiny_model: Path) -> None:
    free = alone(backend, COLD, 7)
    limits = replace(LIMITS, stop_ids=frozenset({free[3]}))

    class Never(Counting):
        """Says token 9 wherever the other one ends."""

        def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
            logits = super()._forward(tokens, cache, all_positions)
            if logits.argmax() == free[3]:
                logits[9] = logits.max() + 1
            return logits

    duel = Duel(PROMPT, limits, 7, Side(backend, COLD), Side(Never(Checkpoint(tiny_model), 1), COLD))
    left, right = ids(duel)
    assert left == free[: free.index(free[3])]
    assert right[: len(left) + 1] == [*left, 9]
    assert len(right) == 20, "the other goes on"
    assert (duel.same, duel.parted) == (len(left), True)
    assert [side.reason for side in duel.sides] == ["eos", "length"]


def test_cancel_stops_both_and_parts_none(backend: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(backend, WARM))
    for index, _ in duel:
        if len(duel.sides[0].records) == 3 and index == 0:
            thread = threading.Thread(target=duel.cancel)
            thread.start()
            thread.join()
    counts = [len(side.records) for side in duel.sides]
    assert counts[0] == 3
    assert counts[1] in (2, 3), "stopped in mid-turn"
    assert [side.reason for side in duel.sides] == ["cancelled", "cancelled"]
    assert not duel.parted


def test_cancel_before_the_first_turn(backend: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(backend, WARM))
    duel.cancel()
    assert ids(duel) == [[], []]
    assert [side.reason for side in duel.sides] == ["cancelled", "cancelled"]
    assert backend.calls == []


def test_cancel_while_the_second_one_reads(backend: Counting, other: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(other, WARM))
    forward = other._forward

    def cancelling(tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        duel.cancel()
        return forward(tokens, cache, all_positions)

    other._forward = cancelling  # type: ignore[method-assign]
    left, right = ids(duel)
    assert (len(left), right) == (1, [])
    assert other.calls == [4], "not the second chunk"
    assert not duel.parted


def test_an_error_on_one_side_ends_both(backend: Counting, other: Counting) -> None:
    def fail(*args: object) -> FloatArray:
        raise BackendError("boom")

    other._forward = fail  # type: ignore[method-assign, assignment]
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(other, WARM))
    with pytest.raises(BackendError, match="boom"):
        ids(duel)
    assert [side.reason for side in duel.sides] == ["cancelled", "error"]
    assert not duel.parted


def test_a_consumer_that_leaves_ends_both(backend: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, WARM), Side(backend, WARM))
    turns = iter(duel)
    next(turns)
    turns.close()  # type: ignore[attr-defined]
    assert [side.reason for side in duel.sides] == ["cancelled", "cancelled"]


def test_a_full_context_is_an_end_of_both(backend: Counting) -> None:
    duel = Duel(PROMPT, Limits(), 7, Side(backend, COLD), Side(backend, COLD))
    left, right = ids(duel)
    assert left == right
    assert len(left) == backend.config.max_seq_len - len(PROMPT) + 1
    assert [side.reason for side in duel.sides] == ["context", "context"]
    assert not duel.parted


def test_records_carry_what_each_thought(backend: Counting) -> None:
    duel = Duel(PROMPT, LIMITS, 7, Side(backend, COLD), Side(backend, COLD))
    ids(duel)
    for side in duel.sides:
        for record in side.records:
            assert record.logprob is not None
            assert len(record.top) == 5
            assert math.exp(record.top[0].logprob) == side.chance(side.records.index(record), record.id)
