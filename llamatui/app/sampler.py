"""Picks the next token. With top-k, min-p and the repetition penalty off, this is llama2.c's sampler bit for
bit: xorshift64*, and softmax, cutoff and cumulative sums in float32, in run.c's order of operations.
"""

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llamatui.app.sampling import MAX_SEED, Sampling
from llamatui.errors import ModelError

FloatArray = npt.NDArray[np.float32]

REPEAT_WINDOW = 64  # tokens that the repetition penalty looks back on


class Sampler:
    """A stream of random choices. `state` is all there is to save and restore it."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
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
        s = self.settings
        logits = self._penalized(logits, recent)
        if not np.isfinite(logits).all():
            raise ModelError(
                "the model produced values that are not numbers",
                "its weights are damaged: get the file again",
            )
        best = int(logits.argmax())
        if s.temperature == 0:
            return best
        probabilities = self._probabilities(logits)
        coin = self.random_f32()
        if not 0 < s.top_p < 1:
            # First i with coin < cdf[i]; ids beyond the sum are rounding.
            cdf = np.cumsum(probabilities)  # sequential float32
            return min(int(np.searchsorted(cdf, coin, side="right")), probabilities.size - 1)
        return self._nucleus(probabilities, coin, best)

    def _penalized(self, logits: FloatArray, recent: Sequence[int]) -> FloatArray:
        penalty = self.settings.repeat_penalty
        if penalty == 1 or not recent:
            return logits
        ids = np.unique(np.asarray(recent[-REPEAT_WINDOW:], np.int64))
        logits = logits.copy()
        logits[ids] = np.where(
            logits[ids] > 0, logits[ids] / np.float32(penalty), logits[ids] * np.float32(penalty)
        )
        return logits

    def _probabilities(self, logits: FloatArray) -> FloatArray:
        """(vocab_size,) float32 softmax at the set temperature, after top-k and min-p."""
        s = self.settings
        x = logits / np.float32(s.temperature)
        x -= x.max()
        if 0 < s.top_k < x.size:
            x[x < np.partition(x, -s.top_k)[-s.top_k]] = -np.inf
        if s.min_p > 0:
            x[x < np.log(np.float32(s.min_p))] = -np.inf
        # glibc's expf is correctly rounded but for rare cases. NumPy's is not, except by way of float64.
        x = np.exp(x.astype(np.float64)).astype(np.float32)
        total = np.cumsum(x)[-1]  # sequential float32, as the loop in C
        x /= total
        return x

    def _nucleus(self, probabilities: FloatArray, coin: np.float32, best: int) -> int:
        top_p = np.float32(self.settings.top_p)
        # Below this a token cannot be in the nucleus; run.c crops before it sorts.
        cutoff = (np.float32(1) - top_p) / np.float32(probabilities.size - 1)
        candidates = np.flatnonzero(probabilities >= cutoff)
        if not candidates.size:  # a tiny top_p over a flat distribution
            return best
        candidates = candidates[np.argsort(-probabilities[candidates], kind="stable")]
        cdf = np.cumsum(probabilities[candidates])  # sequential float32
        last = min(int(np.searchsorted(cdf, top_p, side="right")), cdf.size - 1)
        r = coin * cdf[last]
        return int(candidates[min(int(np.searchsorted(cdf, r, side="right")), last)])
