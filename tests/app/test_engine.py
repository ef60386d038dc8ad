"""Sessions: what is generated, why it stops, and that nothing is computed twice."""

import math
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llamatui.app.engine import Generation, Limits, Session, TokenRecord, likeliest, record
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.backends.registry import create_backend
from llamatui.errors import BackendError, ContextOverflowError

GREEDY = Sampling(temperature=0.0)


class Counting(NumpyBackend):
    """Remembers the size of each call; a small chunk shows prefill's steps."""

    prefill_chunk = 8

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        super().__init__(checkpoint, threads)
        self.calls: list[int] = []

    def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        self.calls.append(tokens.size)
        return super()._forward(tokens, cache, all_positions)


@pytest.fixture
def backend(tiny_model: Path) -> Counting:
    return Counting(Checkpoint(tiny_model), 1)


def run(
    session: Session, prompt: list[int], sampling: Sampling = GREEDY, **limits: object
) -> tuple[list[int], Generation]:
    limits.setdefault("max_new_tokens", 10)
    generation = session.start(prompt, Sampler(sampling), Limits(**limits))  # type: ignore[arg-type]
    return [record.id for record in generation], generation


def test_it_generates_what_repeated_forwards_give(backend: Counting) -> None:
    ids, generation = run(Session(backend), [1, 2, 3])
    tokens = [1, 2, 3]
    for _ in range(10):
        tokens.append(int(backend.forward(tokens, KVCache(backend.config)).argmax()))
    assert [1, 2, 3, *ids] == tokens
    assert generation.finish_reason == "length"
    assert generation.new_tokens == ids


def test_prefill_runs_in_chunks_and_decode_one_by_one(backend: Counting) -> None:
    _, generation = run(Session(backend), list(range(20)), max_new_tokens=3)
    assert backend.calls == [8, 8, 4, 1, 1]
    assert generation.timings.prefill_tokens == generation.processed == 20
    assert generation.timings.decode_tokens == 3
    assert generation.timings.ttft_s >= generation.timings.prefill_s > 0


def test_going_on_runs_only_what_is_new(backend: Counting) -> None:
    session = Session(backend)
    first, _ = run(session, [1, 2, 3], max_new_tokens=4)
    backend.calls.clear()
    more, generation = run(session, list(session.tokens), max_new_tokens=4)
    assert backend.calls == [1, 1, 1, 1], "the last token of the first run had not been run yet"
    assert generation.cached_tokens == 6
    whole, _ = run(Session(backend), [1, 2, 3], max_new_tokens=8)
    assert first + more == whole


def test_a_changed_prompt_keeps_the_shared_prefix(backend: Counting) -> None:
    session = Session(backend)
    run(session, [1, 2, 3, 4, 5], max_new_tokens=2)
    backend.calls.clear()
    ids, generation = run(session, [1, 2, 9, 9], max_new_tokens=2)
    assert generation.cached_tokens == 2
    assert backend.calls == [2, 1]
    assert ids == run(Session(backend), [1, 2, 9, 9], max_new_tokens=2)[0]


def test_the_same_prompt_again_runs_its_last_token(backend: Counting) -> None:
    session = Session(backend)
    first, _ = run(session, [1, 2, 3])
    backend.calls.clear()
    again, generation = run(session, [1, 2, 3])
    assert again == first
    assert generation.cached_tokens == 2
    assert backend.calls[0] == 1


def test_seed_decides(backend: Counting) -> None:
    runs = [run(Session(backend), [1], Sampling(seed=seed))[0] for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_stop_ids_end_it_and_are_not_yielded(backend: Counting) -> None:
    free, _ = run(Session(backend), [1])
    stop = free[4]
    ids, generation = run(Session(backend), [1], stop_ids=frozenset({stop}))
    assert ids == free[: free.index(stop)]
    assert generation.finish_reason == "eos"
    assert stop not in generation.session.tokens


def test_no_new_tokens_asked_for(backend: Counting) -> None:
    ids, generation = run(Session(backend), [1, 2], max_new_tokens=0)
    assert (ids, generation.finish_reason) == ([], "length")


def test_a_full_context_stops(backend: Counting) -> None:
    ids, generation = run(Session(backend, 16), [1, 2, 3], max_new_tokens=None)
    # As run.c: 16 positions are run, and the token that the last one gives is part of the text.
    assert len(ids) == 14
    assert generation.finish_reason == "context"
    assert generation.session.cache.length == 16


def test_the_context_is_never_more_than_the_model_s(backend: Counting) -> None:
    assert Session(backend, 1000).context == 64
    assert Session(backend).context == 64


def test_a_full_context_can_be_an_error(backend: Counting) -> None:
    session = Session(backend, 16)
    ids: list[int] = []
    generation = session.start([1, 2, 3], Sampler(GREEDY), Limits(overflow="error"))
    with pytest.raises(ContextOverflowError, match="17 tokens do not fit the context of 16"):
        ids.extend(record.id for record in generation)
    assert generation.finish_reason == "context"
    assert len(generation.new_tokens) == 14


def test_shifting_keeps_the_front_and_the_newest(backend: Counting) -> None:
    session = Session(backend, 16)
    prompt = [1, 2, 3, 4, 5]
    ids, generation = run(session, prompt, max_new_tokens=30, overflow="shift", keep=3)
    assert len(ids) == 30
    assert session.tokens[:3] == [1, 2, 3]
    assert session.tokens[3:] == ids[-len(session.tokens[3:]) :]
    assert generation.dropped_tokens == len(prompt) + len(ids) - len(session.tokens)
    # What is left gives what a fresh session with the same tokens would go on with.
    here = session.tokens[:]
    expected, _ = run(Session(backend, 16), here, max_new_tokens=1)
    assert run(session, here, max_new_tokens=1)[0] == expected


def test_who_started_it_may_say_what_a_shift_keeps(backend: Counting) -> None:
    session = Session(backend, 16)
    ids, generation = run(
        session,
        [1, 2, 3],
        max_new_tokens=30,
        overflow="shift",
        shorten=lambda new: [7, *new[-4:-2], 8, *new[-2:]],
    )
    assert len(ids) == 30
    at = session.tokens.index(8)
    told = session.tokens[1:at] + session.tokens[at + 1 :]
    assert (session.tokens[0], at, told) == (7, 3, ids[-len(told) :])
    assert generation.dropped_tokens == 3 + len(ids) - len(session.tokens)


def test_shifting_without_a_limit_ends_some_time(backend: Counting) -> None:
    ids, generation = run(Session(backend, 16), [1], max_new_tokens=None, overflow="shift")
    assert (len(ids), generation.finish_reason) == (16, "length")


def test_a_prompt_that_is_too_long(backend: Counting) -> None:
    prompt = list(range(20))
    ids, stopped = run(Session(backend, 16), prompt)
    assert (ids, stopped.finish_reason, backend.calls) == ([], "context", [])
    with pytest.raises(ContextOverflowError, match="20 tokens do not fit the context of 16"):
        run(Session(backend, 16), prompt, overflow="error")
    ids, shifted = run(Session(backend, 16), prompt, overflow="shift", keep=2, max_new_tokens=2)
    assert shifted.prompt == [0, 1, 14, 15, 16, 17, 18, 19]
    assert (len(ids), shifted.dropped_tokens) == (2, 12)


def test_a_prompt_that_just_fits_gives_one_token(backend: Counting) -> None:
    ids, generation = run(Session(backend, 16), list(range(16)))
    assert (len(ids), generation.finish_reason) == (1, "context")


def test_cancel_takes_effect_after_the_token_under_way(backend: Counting) -> None:
    generation = Session(backend).start([1], Sampler(GREEDY), Limits())
    ids = []
    for found in generation:
        ids.append(found.id)
        if len(ids) == 3:
            threading.Thread(target=generation.cancel).start()
            while not generation._cancelled.is_set():
                pass
    assert len(ids) == 3
    assert generation.finish_reason == "cancelled"
    assert generation.session.tokens == [1, *ids]


def test_cancel_during_prefill_ends_after_the_chunk(
    backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(backend)
    generation = session.start(list(range(30)), Sampler(GREEDY), Limits())
    forward = backend.forward
    monkeypatch.setattr(backend, "forward", lambda *a, **k: (generation.cancel(), forward(*a, **k))[1])
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    assert (backend.calls, session.cache.length) == ([8], 8)
    monkeypatch.undo()
    assert run(session, list(range(30)))[0] == run(Session(backend), list(range(30)))[0]


def test_stop_ends_it(backend: Counting) -> None:
    generation = Session(backend).start([1], Sampler(GREEDY), Limits())
    for _ in generation:
        generation.stop()
    assert (generation.finish_reason, len(generation.new_tokens)) == ("stop", 1)


def test_an_error_in_mid_token_leaves_a_session_that_goes_on(
    backend: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(backend)
    generation = session.start([1, 2], Sampler(GREEDY), Limits())
    records = iter(generation)
    ids = [next(records).id for _ in range(3)]

    def fail(*args: object) -> None:
        raise BackendError("boom")

    monkeypatch.setattr(backend, "_forward", fail)
    with pytest.raises(BackendError, match="boom"):
        next(records)
    assert generation.finish_reason == "error"
    monkeypatch.undo()
    more, _ = run(session, list(session.tokens), max_new_tokens=2)
    assert ids + more == run(Session(backend), [1, 2], max_new_tokens=5)[0]


def test_going_back_leaves_a_fork_as_it_is(backend: Counting) -> None:
    session = Session(backend)
    ids, _ = run(session, [1, 2, 3])
    other = session.fork()
    assert run(session, [1, 2, 3, *ids[:2]], max_new_tokens=8)[0] == ids[2:]
    assert other.tokens == [1, 2, 3, *ids]
    assert run(other, list(other.tokens), max_new_tokens=1)[1].cached_tokens == 12


def test_swap_goes_on_with_the_same_cache(backend: Counting, tiny_model: Path, tmp_path: Path) -> None:
    session = Session(backend)
    first, _ = run(session, [1, 2, 3], max_new_tokens=4)
    session.swap(NumpyBackend(Checkpoint(tiny_model), 1))
    more, generation = run(session, list(session.tokens), max_new_tokens=4)
    assert generation.cached_tokens == 6
    assert first + more == run(Session(backend), [1, 2, 3], max_new_tokens=8)[0]


class Rounding(Counting):
    """Its keys and values are not those of the others."""

    name = "rounding"
    quantizes_activations = True


@pytest.fixture
def rounding(tiny_model: Path) -> Rounding:
    return Rounding(Checkpoint(tiny_model), 1)


def test_swap_to_a_backend_that_rounds_otherwise_reads_the_text_again(
    backend: Counting, rounding: Rounding
) -> None:
    session = Session(backend)
    assert session.swap(NumpyBackend(backend.checkpoint, 1)) is False
    run(session, [1, 2, 3], max_new_tokens=4)
    tokens = list(session.tokens)
    assert session.swap(rounding) is True
    assert (session.tokens, session.cache.length) == (tokens, 0)
    _, generation = run(session, tokens, max_new_tokens=1)
    assert (rounding.calls, generation.cached_tokens) == ([7], 0)
    assert session.swap(Rounding(backend.checkpoint, 1)) is False
    assert session.swap(backend) is True, "and the way back"


def replace_after(backend: Counting, n: int, replacement: Backend) -> None:
    """`replacement` is ready after `n` of the backend's steps."""
    forward = backend._forward

    def step(tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        logits = forward(tokens, cache, all_positions)
        if len(backend.calls) == n:
            backend.replacement = replacement
        return logits

    backend._forward = step  # type: ignore[method-assign]


@pytest.fixture
def faster(tiny_model: Path) -> Counting:
    faster = Counting(Checkpoint(tiny_model), 1)
    faster.name = "faster"  # type: ignore[misc]
    return faster


def test_a_replacement_takes_over_in_mid_text(backend: Counting, faster: Counting) -> None:
    expected, _ = run(Session(backend), [1, 2, 3])
    backend.calls.clear()
    replace_after(backend, 4, faster)
    session = Session(backend)
    ids, generation = run(session, [1, 2, 3])
    assert ids == expected
    assert (backend.calls, faster.calls) == ([3, 1, 1, 1], [1] * 6), "nothing is run twice"
    assert session.backend is faster
    assert generation.swap is not None
    assert (generation.swap.at, generation.swap.old, generation.swap.new) == (4, "numpy", "faster")
    assert not generation.swap.reread
    assert 0 < generation.swap.decode_s < generation.timings.decode_s
    assert generation.rate > 0
    # The next generation began with it.
    assert run(session, list(session.tokens))[1].swap is None


def test_a_replacement_takes_over_between_chunks_of_prefill(backend: Counting, faster: Counting) -> None:
    expected, _ = run(Session(backend), list(range(20)), max_new_tokens=3)
    backend.calls.clear()
    replace_after(backend, 1, faster)
    ids, generation = run(Session(backend), list(range(20)), max_new_tokens=3)
    assert ids == expected
    assert (backend.calls, faster.calls) == ([8], [8, 4, 1, 1])
    assert generation.swap is not None
    assert generation.swap.at == 0
    assert generation.rate == generation.timings.decode_tps


def test_a_replacement_that_is_there_from_the_start_is_no_swap(backend: Counting, faster: Counting) -> None:
    session = Session(backend)
    backend.replacement = faster
    assert run(session, [1, 2, 3])[1].swap is None
    assert backend.calls == []


def test_a_replacement_that_rounds_otherwise_reads_the_text_again_in_mid_text(
    backend: Counting, rounding: Rounding
) -> None:
    expected, _ = run(Session(backend), [1, 2, 3])
    replace_after(backend, len(backend.calls) + 4, rounding)
    session = Session(backend)
    ids, generation = run(session, [1, 2, 3])
    assert ids == expected
    assert rounding.calls == [7, 1, 1, 1, 1, 1], "the prompt and four tokens, then one by one"
    assert generation.swap is not None
    assert (generation.swap.at, generation.swap.reread) == (4, True)


def test_a_prompt_that_is_read_again_was_not_cached(backend: Counting, rounding: Rounding) -> None:
    session = Session(backend)
    run(session, list(range(20)), max_new_tokens=1)
    backend.replacement = rounding
    _, generation = run(session, list(range(20)), max_new_tokens=1)
    assert rounding.calls == [8, 8, 4]
    assert (generation.cached_tokens, generation.timings.prefill_tokens, generation.processed) == (0, 20, 20)
    assert generation.swap is not None
    assert (generation.swap.at, generation.swap.reread) == (0, True)


def test_a_fork_goes_on_with_the_replacement(backend: Counting, faster: Counting) -> None:
    session = Session(backend)
    run(session, [1, 2, 3], max_new_tokens=2)
    backend.replacement = faster
    other = session.fork()
    assert other.backend is faster
    assert other.cache.length == session.cache.length


def test_a_fork_does_not_take_the_cache_to_a_backend_that_rounds_otherwise(
    backend: Counting, rounding: Rounding
) -> None:
    session = Session(backend)
    run(session, [1, 2, 3], max_new_tokens=2)
    backend.replacement = rounding
    other = session.fork()
    assert (other.backend, other.cache.length, other.tokens) == (rounding, 0, session.tokens)


@pytest.mark.skipif(find_spec("numba") is None, reason="no Numba")
def test_numpy_s_text_goes_on_with_compiled_kernels(backend: Counting) -> None:
    expected, _ = run(Session(backend), [1, 2, 3], max_new_tokens=40)
    backend.calls.clear()
    replace_after(backend, 17, create_backend("numba", backend.checkpoint, 2))
    session = Session(backend)
    ids, generation = run(session, [1, 2, 3], max_new_tokens=40)
    assert ids == expected
    assert generation.swap is not None
    assert (generation.swap.at, session.backend.name) == (17, "numba")


def check(record: TokenRecord, logits: FloatArray, n: int) -> None:
    """`record` against what follows from logits (vocab_size,) in float64."""
    x = logits.astype(np.float64)
    p = np.exp(x - x.max())
    p /= p.sum()
    assert record.logprob == pytest.approx(math.log(p[record.id]), abs=1e-4)
    assert record.rank == (logits > logits[record.id]).sum()
    assert record.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
    best = np.argsort(-x, kind="stable")[:n].tolist()
    assert [other.id for other in record.top] == best
    assert [other.logprob for other in record.top] == pytest.approx(np.log(p[best]).tolist(), abs=1e-4)


def test_records_say_what_the_model_thought(backend: Counting) -> None:
    session = Session(backend)
    generation = session.start([1, 2], Sampler(Sampling(seed=3)), Limits(max_new_tokens=5, alternatives=3))
    tokens = [1, 2]
    for found in generation:
        check(found, backend.forward(tokens, KVCache(backend.config)), 3)
        tokens.append(found.id)


@pytest.mark.parametrize("size", [1, 63, 64, 700, 32000, 128256])
@pytest.mark.parametrize("alternatives", [0, 1, 10])
def test_records_of_vocabularies_of_any_size(size: int, alternatives: int) -> None:
    rng = np.random.default_rng(size)
    logits = (rng.standard_normal(size) * 3).astype(np.float32)
    for token in {0, size - 1, int(logits.argmax()), int(logits.argmin())}:
        check(record(token, logits, alternatives), logits, alternatives)


@pytest.mark.parametrize(
    "logits",
    [
        np.zeros(1000),
        np.arange(1000) // 7,
        -(np.arange(1000) // 7),
        np.arange(1000) % 3,
        np.where(np.arange(1000) < 990, 0, 5),  # the largest stand side by side at the end
        np.where(np.arange(1000) % 15 == 4, 5, 0),  # ... or in one column of the table
    ],
)  # fmt: skip
@pytest.mark.parametrize("n", [0, 1, 9, 15, 16, 999, 1000, 2000])
def test_the_likeliest_are_those_of_a_stable_sort(logits: npt.NDArray[np.float64], n: int) -> None:
    expected = np.argsort(-logits, kind="stable")[:n].tolist()
    assert likeliest(logits.astype(np.float32), n) == expected


def test_score_gives_the_records_that_generating_gave(backend: Counting) -> None:
    session = Session(backend)
    generation = session.start(
        [1, 2, 3], Sampler(Sampling(seed=3)), Limits(max_new_tokens=20, alternatives=5)
    )
    lived = list(generation)
    tokens = list(session.tokens)
    for scored in (session, Session(backend)):  # with all of it in the cache, and with nothing
        found = list(scored.score(tokens, 3, 5))
        assert [r.id for r in found] == [r.id for r in lived]
        assert [r.rank for r in found] == [r.rank for r in lived]
        assert [[a.id for a in r.top] for r in found] == [[a.id for a in r.top] for r in lived]
        for one, other in zip(found, lived, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert one.entropy == pytest.approx(other.entropy, abs=1e-4)


def test_score_of_what_the_writer_wrote(backend: Counting) -> None:
    text = [1, 7, 5, 200, 9, 9, 9, 30, 31, 32, 33]
    found = list(Session(backend).score(text, 1, 4))
    assert [r.id for r in found] == text[1:]
    for i, one in enumerate(found, 1):
        check(one, backend.forward(text[:i], KVCache(backend.config)), 4)


def test_score_leaves_the_session_as_it_is_and_runs_only_what_it_lacks(backend: Counting) -> None:
    session = Session(backend)
    run(session, [1, 2, 3], max_new_tokens=4)
    tokens, length, keys = list(session.tokens), session.cache.length, session.cache.keys[:, :, :6].copy()
    expected, _ = run(session.fork(), tokens)
    backend.calls.clear()
    assert len(list(session.score([*tokens, 9, 8, 7], 7, 2))) == 3
    assert backend.calls == [3], "from the session's last token, which had not been run, to the one before 7"
    backend.calls.clear()
    assert len(list(session.score([*tokens[:5], 9], 5, 2))) == 1
    assert backend.calls == [1], "the token before 9, whose logits nobody kept"
    assert (session.tokens, session.cache.length) == (tokens, length)
    np.testing.assert_array_equal(session.cache.keys[:, :, :6], keys)
    assert run(session, tokens)[0] == expected


def test_score_runs_long_texts_in_chunks(backend: Counting) -> None:
    records = list(Session(backend).score(list(range(30)), 12, 0))
    assert backend.calls == [8, 8, 8, 5]
    assert [r.id for r in records] == list(range(12, 30))


def test_score_of_nothing(backend: Counting) -> None:
    assert list(Session(backend).score([1, 2], 2, 3)) == []
    assert list(Session(backend).score([1], 1, 3)) == []


def test_score_with_a_replacement(backend: Counting, faster: Counting, rounding: Rounding) -> None:
    session = Session(backend)
    run(session, [1, 2, 3], max_new_tokens=4)
    text = [*session.tokens, 9]
    expected = list(session.score(text, 7, 2))
    backend.calls.clear()
    backend.replacement = faster
    assert list(session.score(text, 7, 2)) == expected
    backend.replacement = rounding
    assert len(list(session.score(text, 7, 2))) == 1
    assert (backend.calls, faster.calls, rounding.calls) == ([], [1], [7]), "rounding: on nobody else's cache"
    assert session.backend is backend


def test_alternatives_may_be_none_or_more_than_there_are(backend: Counting) -> None:
    plain = next(iter(Session(backend).start([1], Sampler(GREEDY), Limits())))
    assert (plain.logprob, plain.top) == (None, ())
    none = next(iter(Session(backend).start([1], Sampler(GREEDY), Limits(alternatives=0))))
    assert none.logprob is not None
    assert none.top == ()
    every = next(iter(Session(backend).start([1], Sampler(GREEDY), Limits(alternatives=1000))))
    assert len(every.top) == 300


def test_two_sessions_share_a_backend(backend: Counting) -> None:
    a, b = Session(backend), Session(backend)
    left = iter(a.start([1], Sampler(GREEDY), Limits(max_new_tokens=5)))
    right = iter(b.start([2], Sampler(GREEDY), Limits(max_new_tokens=5)))
    mixed = [(next(left).id, next(right).id) for _ in range(5)]
    assert [x for x, _ in mixed] == run(Session(backend), [1], max_new_tokens=5)[0]
    assert [y for _, y in mixed] == run(Session(backend), [2], max_new_tokens=5)[0]
