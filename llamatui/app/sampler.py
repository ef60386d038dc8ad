"""Picks the next token. With top-k, min-p and the repetition penalty off, this is llama2.c's sampler bit for
bit: xorshift64*, and softmax, cutoff and cumulative sums in float32, in run.c's order of operations.

With a vocabulary of 128,256 plain NumPy takes longer than a small model does for a token. Two facts save most
of it: of the sorted tokens only the probabilities are needed, as the chosen one's id is found by its value;
and a sum of which only the end is needed is quicker than a cumulative sum.
"""

import math
import secrets
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llamatui.app.sampling import MAX_SEED, Sampling
from llamatui.errors import ModelError

FloatArray = npt.NDArray[np.float32]

REPEAT_WINDOW = 64  # tokens that the repetition penalty looks back on
DROPPED = np.float32(-200)  # e^-200 is 0 in float32, and NumPy is several times slower at e^-inf
BLOCK = 4096  # probabilities summed at a time in a search
SAMPLE = 512  # probabilities looked at to guess where the nucleus ends


class Sampler:
    """A stream of random choices. `state` is all there is to save and restore it."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        """May be set at any time, also from another thread: holds from the next token on."""
        self.used = settings
        """The settings of the token that was sampled last."""
        self.seed = settings.seed or secrets.randbelow((1 << 32) - 1) + 1
        """The seed in use, chosen where `settings.seed` is 0."""
        self.state = self.seed

    def random_f32(self) -> np.float32:
        """Next number in [0, 1): the top 24 bits of xorshift64* (Vigna, arXiv:1402.6246)."""
        s = self.state
        s ^= s >> 12
        s ^= (s << 25) & MAX_SEED
        s ^= s >> 27
        self.state = s
        bits = (s * 0x2545F4914F6CDD1D & MAX_SEED) >> 32
        return np.float32(bits >> 8) / np.float32(1 << 24)

    def sample(self, logits: FloatArray, recent: Sequence[int] = ()) -> int:
        """A token id for logits (vocab_size,). `recent`: the text so far, for the repetition penalty.

        Raises:
            ModelError: The logits are not numbers.
        """
        s = self.used = self.settings
        logits = self._penalized(logits, recent)
        best = int(logits.argmax())
        # NaN is both the largest and the smallest to NumPy, so two numbers tell about all of them.
        if not (math.isfinite(logits[best]) and math.isfinite(logits.min())):
            raise ModelError(
                "the model produced values that are not numbers",
                "its weights are damaged: get the file again",
            )
        if s.temperature == 0:
            return best
        probabilities = self._probabilities(logits, logits[best])
        coin = self.random_f32()
        if not 0 < s.top_p < 1:
            return _first_above(probabilities, _block_sums(probabilities, coin), coin)[0]
        return self._nucleus(probabilities, coin, best)

    def _penalized(self, logits: FloatArray, recent: Sequence[int]) -> FloatArray:
        penalty = self.used.repeat_penalty
        if penalty == 1 or not recent:
            return logits
        ids = np.unique(np.asarray(recent[-REPEAT_WINDOW:], np.int64))
        logits = logits.copy()
        logits[ids] = np.where(
            logits[ids] > 0, logits[ids] / np.float32(penalty), logits[ids] * np.float32(penalty)
        )
        return logits

    def _probabilities(self, logits: FloatArray, largest: np.float32) -> FloatArray:
        """(vocab_size,) float32 softmax at the set temperature, after top-k and min-p."""
        s = self.used
        temperature = np.float32(s.temperature)
        x = logits / temperature
        x -= largest / temperature
        if 0 < s.top_k < x.size:
            x[x < np.partition(x, -s.top_k)[-s.top_k]] = DROPPED
        if s.min_p > 0:
            x[x < np.log(np.float32(s.min_p))] = DROPPED
        # glibc's expf is correctly rounded but for rare cases. NumPy's is not, except by way of float64.
        np.exp(x, out=x, dtype=np.float64, casting="same_kind")
        x /= _sum(x, np.float32(0))
        return x

    def _nucleus(self, probabilities: FloatArray, coin: np.float32, best: int) -> int:
        top_p = np.float32(self.used.top_p)
        # Below this a token cannot be in the nucleus; run.c crops before it sorts.
        cutoff = (np.float32(1) - top_p) / np.float32(probabilities.size - 1)
        # A higher floor will do as long as the tokens above it reach top_p: the others come after them.
        for floor in (max(cutoff, _tail(probabilities, 1 - top_p)), cutoff):
            candidates = _descending(probabilities, floor)
            sums = _block_sums(candidates, top_p)
            if sums[-1] > top_p:
                break
        if not candidates.size:  # a tiny top_p over a flat distribution
            return best
        _, total = _first_above(candidates, sums, top_p)
        rank, _ = _first_above(candidates, sums, coin * total)
        # Equal probabilities are in the order of their ids.
        chosen = candidates[rank]
        among_equals = rank - candidates.size + int(np.searchsorted(candidates[::-1], chosen, side="right"))
        return int(np.flatnonzero(probabilities == chosen)[among_equals])


def _sum(x: FloatArray, start: np.float32) -> np.float32:
    """start + x[0] + x[1] + ..., rounded to float32 after each addition, as a loop in C.

    NumPy adds pairwise, but subtracts one by one, in half the time of a cumulative sum.
    """
    return np.float32(-np.subtract.reduce(x, initial=-start))


def _block_sums(x: FloatArray, bound: np.float32) -> list[np.float32]:
    """Sums of x before each block of BLOCK and after the last; no more blocks after the first above bound."""
    sums = [np.float32(0)]
    for start in range(0, x.size, BLOCK):
        sums.append(_sum(x[start : start + BLOCK], sums[-1]))
        if sums[-1] > bound:
            break
    return sums


def _first_above(x: FloatArray, sums: list[np.float32], bound: np.float32) -> tuple[int, np.float32]:
    """The first i with x[0] + ... + x[i] > bound, and that sum. By rounding there may be none: then the last.

    `sums`: the block sums of x up to bound or further.
    """
    block = min(bisect_right(sums, bound), len(sums) - 1) - 1
    cdf = x[block * BLOCK : (block + 1) * BLOCK].copy()
    cdf[0] += sums[block]
    np.cumsum(cdf, out=cdf)  # sequential float32
    i = min(int(np.searchsorted(cdf, bound, side="right")), cdf.size - 1)
    return block * BLOCK + i, cdf[i]


def _tail(probabilities: FloatArray, mass: np.float32) -> np.float32:
    """A probability such that those below it sum to a little less than `mass`: a guess, from a sample."""
    stride = probabilities.size // SAMPLE + 1
    sample = np.sort(probabilities[::stride])
    below = np.cumsum(sample)
    return np.float32(
        sample[min(int(np.searchsorted(below, mass * np.float32(0.8 / stride))), sample.size - 1)]
    )


def _descending(probabilities: FloatArray, floor: np.float32) -> FloatArray:
    """The probabilities that are at least `floor`, largest first."""
    kept = probabilities >= floor
    n = int(np.count_nonzero(kept))
    cropped = kept.size - n
    bits = probabilities.view(np.uint32)  # in the same order, and faster to sort
    if n <= kept.size // 32:
        bits = np.sort(bits.compress(kept))
    elif n < kept.size // 2:  # a mask of this many is slow
        bits = np.sort(np.partition(bits, cropped)[cropped:])
    else:
        bits = np.sort(bits)[cropped:]
    return bits.view(np.float32)[::-1]
