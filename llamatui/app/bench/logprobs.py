"""Log-probabilities of whole texts, in blocks that bound the memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.errors import ModelError

Float64Array = npt.NDArray[np.float64]

LOGPROB_BYTES = 64_000_000  # bound on one block in float64; its logits are half of that


def block_length(backend: Backend) -> int:
    """Tokens of a block: (n, vocab_size) float64 stays below LOGPROB_BYTES."""
    return max(1, min(backend.prefill_chunk, LOGPROB_BYTES // (8 * backend.config.vocab_size)))


def log_softmax(logits: FloatArray) -> Float64Array:
    """(n, vocab_size) float32 logits to natural logarithms of probabilities, float64.

    Raises:
        ModelError: A logit is not a number.
    """
    if not np.isfinite(logits).all():
        raise ModelError(
            "the model produced values that are not numbers",
            "its weights are damaged: get the file again",
        )
    x = logits.astype(np.float64)  # (n, vocab_size)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))  # (n, vocab_size)
    return x


def blocks(backend: Backend, tokens: Sequence[int], cache: KVCache) -> Iterator[tuple[int, Float64Array]]:
    """Runs `tokens` behind what is in `cache`, block by block.

    Yields:
        The index of a block's first token, and the distributions behind each of its tokens, (n, vocab_size).
    """
    length = block_length(backend)
    for at in range(0, len(tokens), length):
        yield at, log_softmax(backend.forward(tokens[at : at + length], cache, all_positions=True))
