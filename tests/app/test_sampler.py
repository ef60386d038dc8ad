"""The sampler against run.c's, said again number by number, and the additions that are off by default."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatui.app import sampler as sampler_module
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.errors import ModelError, UsageError

f32 = np.float32


class RunC:
    """llama2.c's sampler, one scalar float32 operation after the other."""

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        self.temperature, self.top_p, self.state = f32(temperature), f32(top_p), seed

    def coin(self) -> np.float32:
        s = self.state
        s ^= s >> 12
        s = (s ^ (s << 25)) % 2**64
        s ^= s >> 27
        self.state = s
        return f32((s * 0x2545F4914F6CDD1D % 2**64 >> 32 >> 8) / 16777216.0)

    def sample(self, logits: np.ndarray) -> int:
        if self.temperature == 0:
            return max(range(len(logits)), key=lambda i: (logits[i], -i))
        scaled = [f32(x / self.temperature) for x in logits]
        largest = max(scaled)
        exps = [f32(math.exp(f32(x - largest))) for x in scaled]
        total = f32(0)
        for e in exps:
            total = f32(total + e)
        probabilities = [f32(e / total) for e in exps]
        coin = self.coin()
        if self.top_p <= 0 or self.top_p >= 1:
            chosen, cumulative = list(range(len(probabilities))), coin
        else:
            cutoff = f32(f32(f32(1) - self.top_p) / f32(len(probabilities) - 1))
            kept = [i for i, p in enumerate(probabilities) if p >= cutoff]
            kept.sort(key=lambda i: -probabilities[i])
            if not kept:  # run.c reads in front of its buffer here; the likeliest token is the sane answer
                return int(np.argmax(logits))
            reached, chosen = f32(0), []
            for i in kept:
                reached = f32(reached + probabilities[i])
                chosen.append(i)
                if reached > self.top_p:
                    break
            cumulative = f32(coin * reached)
        cdf = f32(0)
        for i in chosen:
            cdf = f32(cdf + probabilities[i])
            if cumulative < cdf:
                return i
        return chosen[-1]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(1, 2**64 - 1),
    temperature=st.sampled_from([0.0, 0.1, 0.8, 1.0, 1.7]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    n=st.integers(2, 400),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
)
def test_the_same_tokens_as_run_c(seed: int, temperature: float, top_p: float, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed % 1000)
    mine, theirs = Sampler(Sampling(temperature, top_p, seed=seed)), RunC(temperature, top_p, seed)
    for _ in range(10):
        # Rounded, so that equal logits happen and the order among equals matters.
        logits = np.round(rng.standard_normal(n) * scale, 2).astype(f32)
        assert mine.sample(logits) == theirs.sample(logits.copy())
    assert mine.state == theirs.state


def distribution(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Logits (n,) of the kinds that take different ways through the search for the nucleus."""
    x = rng.standard_normal(n)
    match kind:
        case "nearly flat":
            x *= 0.5
        case "peaked":
            x *= 3
            x[rng.integers(0, n, 3)] += 12
        case "by id":  # as in vocabularies sorted by how frequent a token is
            x -= np.log(np.arange(1, n + 1))
        case "few values":
            x = np.round(x)
        case "all equal":
            x[:] = 1.5
        case "most underflow":
            x *= 100
    return x.astype(f32)


KINDS = ["nearly flat", "peaked", "by id", "few values", "all equal", "most underflow"]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(1, 2**64 - 1),
    temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]),
    top_p=st.sampled_from([0.0, 1e-6, 1e-3, 0.5, 0.9, 0.99, 0.99999, 1.0]),
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 300),
    block=st.integers(1, 40),
    sample=st.integers(1, 40),
)
def test_the_same_tokens_as_run_c_wherever_blocks_end_and_whatever_the_guess(
    seed: int, temperature: float, top_p: float, kind: str, n: int, block: int, sample: int
) -> None:
    rng = np.random.default_rng(seed)
    mine, theirs = Sampler(Sampling(temperature, top_p, seed=seed)), RunC(temperature, top_p, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "BLOCK", block)
        patch.setattr(sampler_module, "SAMPLE", sample)
        for _ in range(5):
            logits = distribution(kind, n, rng)
            assert mine.sample(logits) == theirs.sample(logits)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_tokens_as_run_c_with_a_large_vocabulary(kind: str, top_p: float) -> None:
    rng = np.random.default_rng(5)
    mine, theirs = Sampler(Sampling(0.9, top_p, seed=9)), RunC(0.9, top_p, 9)
    for _ in range(3):
        logits = distribution(kind, 3 * sampler_module.BLOCK + 5, rng)
        assert mine.sample(logits) == theirs.sample(logits)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(1, 2**64 - 1),
    top_k=st.integers(0, 60),
    min_p=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    kind=st.sampled_from(KINDS),
)
def test_top_k_and_min_p_are_run_c_on_what_they_leave(
    seed: int, top_k: int, min_p: float, top_p: float, kind: str
) -> None:
    logits = distribution(kind, 50, np.random.default_rng(seed))
    shifted = logits - logits.max()
    kept = np.ones(50, bool)
    if 0 < top_k < 50:
        kept &= shifted >= np.sort(shifted)[-top_k]
    if min_p:
        kept &= shifted >= np.log(f32(min_p))
    left = np.where(kept, logits, f32(-1e6))
    mine, theirs = Sampler(Sampling(1.0, top_p, top_k, min_p, seed=seed)), RunC(1.0, top_p, seed)
    assert [mine.sample(logits) for _ in range(5)] == [theirs.sample(left) for _ in range(5)]


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 1000, 5001])
def test_sums_round_after_each_addition(n: int) -> None:
    """NumPy does not promise how it reduces; the softmax of run.c needs this order."""
    x = np.exp(np.random.default_rng(n).normal(0, 8, n)).astype(f32)
    total = f32(0.1)
    for value in x:
        total = f32(total + value)
    assert sampler_module._sum(x, f32(0.1)) == total
    assert sampler_module._sum(x[::-1].copy()[::-1], f32(0.1)) == total, "of a view backwards"


def test_xorshift_numbers() -> None:
    sampler = Sampler(Sampling(seed=42))
    # From the definition of xorshift64*, worked out by hand with big integers.
    state = 42
    for _ in range(5):
        state ^= state >> 12
        state = (state ^ state << 25) & (2**64 - 1)
        state ^= state >> 27
        assert sampler.random_f32() == f32(((state * 2685821657736338717 % 2**64) >> 40) / 2**24)


def test_logits_are_left_as_they_were() -> None:
    logits = np.linspace(-3, 3, 50, dtype=f32)
    before = logits.copy()
    Sampler(Sampling(0.7, 0.9, 5, 0.1, 1.3, 9)).sample(logits, [1, 2, 49])
    np.testing.assert_array_equal(logits, before)


def draws(settings: Sampling, logits: np.ndarray, recent: tuple[int, ...] = (), n: int = 300) -> set[int]:
    sampler = Sampler(settings)
    return {sampler.sample(logits, recent) for _ in range(n)}


LOGITS = np.array([0.0, 1.0, 2.0, 3.0, 2.5], f32)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert draws(Sampling(2.0, 1.0, top_k=2, seed=1), LOGITS) == {3, 4}
    assert draws(Sampling(2.0, 1.0, top_k=99, seed=1), LOGITS) == {0, 1, 2, 3, 4}


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    assert draws(Sampling(1.0, 1.0, min_p=0.5, seed=1), LOGITS) == {3, 4}


def test_repeat_penalty_makes_recent_tokens_less_likely() -> None:
    greedy = Sampling(0.0, repeat_penalty=1.5, seed=1)
    assert draws(greedy, LOGITS, (3, 3)) == {4}
    assert draws(greedy, np.array([-1.0, -1.2], f32), (0,)) == {1}
    assert draws(greedy, LOGITS, (3, *[0] * 64)) == {3}, "older than the window"


@pytest.mark.parametrize("top_p", [0.0, 0.5, 1.0])
def test_additions_that_are_off_change_nothing(top_p: float) -> None:
    rng = np.random.default_rng(0)
    plain, explicit = Sampler(Sampling(1.0, top_p, seed=7)), Sampler(Sampling(1.0, top_p, 0, 0.0, 1.0, 7))
    for _ in range(100):
        logits = rng.standard_normal(50, dtype=f32)
        assert plain.sample(logits) == explicit.sample(logits, [1, 2, 3])


def test_a_tiny_top_p_over_a_flat_distribution_takes_the_first() -> None:
    assert draws(Sampling(1.0, 1e-6, seed=3), np.zeros(512, f32)) == {0}


def test_seed_zero_picks_one_and_says_which() -> None:
    sampler = Sampler(Sampling(seed=0))
    assert sampler.seed > 0
    again = Sampler(Sampling(seed=sampler.seed))
    assert [sampler.random_f32() for _ in range(3)] == [again.random_f32() for _ in range(3)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(ModelError, match="not numbers"):
        Sampler(Sampling(seed=1)).sample(np.array([0, bad, 1], f32))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": 1e-46},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 2},
        {"repeat_penalty": 0},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_values_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(values))} must be"):
        Sampling(**values)  # type: ignore[arg-type]
