"""What a backend is (token ids in, logits out), and the KV cache that a session lends it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llamatui.backends.checkpoint import Checkpoint, ModelConfig
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.errors import BackendError, ContextOverflowError

FloatArray = npt.NDArray[np.float32]


class KVCache:
    """Keys (after RoPE) and values of every position so far, fp32.

    Owned by the session, not by the backend: it can be cut at any token, so rewinding, branching and
    swapping backends never recompute the prefix. Memory grows by doubling, up to `max_seq_len` positions
    of 2 · n_layers · kv_dim · 4 bytes.

    Attributes:
        keys, values: (n_layers, n_kv_heads, capacity, head_dim) float32; positions from `length` on are junk.
        length: Number of positions filled.
    """

    def __init__(self, config: ModelConfig, max_seq_len: int | None = None) -> None:
        self.max_seq_len = max_seq_len or config.max_seq_len
        self.length = 0
        shape = (config.n_layers, config.n_kv_heads, 0, config.head_dim)
        self.keys: FloatArray = np.empty(shape, np.float32)  # (n_layers, n_kv_heads, capacity, head_dim)
        self.values: FloatArray = np.empty(shape, np.float32)  # (n_layers, n_kv_heads, capacity, head_dim)

    @property
    def capacity(self) -> int:
        return int(self.keys.shape[2])

    def reserve(self, n: int) -> None:
        """Makes room for `n` more positions.

        Raises:
            ContextOverflowError: They do not fit `max_seq_len`.
        """
        needed = self.length + n
        if needed > self.max_seq_len:
            raise ContextOverflowError(
                f"{needed} tokens do not fit the context of {self.max_seq_len}",
                "shorten the text, or choose --overflow shift",
            )
        if needed > self.capacity:
            capacity = min(self.max_seq_len, max(needed, 2 * self.capacity, 256))
            # Both or none: without memory for the second, the cache stays as it was.
            self.keys, self.values = self._grown(self.keys, capacity), self._grown(self.values, capacity)

    def _grown(self, old: FloatArray, capacity: int) -> FloatArray:
        new = np.empty((*old.shape[:2], capacity, old.shape[3]), np.float32)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new

    def truncate(self, n: int) -> None:
        """Forgets every position from `n` on."""
        if not 0 <= n <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} positions at {n}")
        self.length = n

    def copy(self, n: int | None = None) -> "KVCache":
        """An independent cache with the same positions, or the first `n` of them."""
        other = object.__new__(KVCache)
        other.max_seq_len = self.max_seq_len
        other.length = n = self.length if n is None else min(n, self.length)
        other.keys = self.keys[:, :, :n].copy()  # (n_layers, n_kv_heads, n, head_dim)
        other.values = self.values[:, :, :n].copy()  # (n_layers, n_kv_heads, n, head_dim)
        return other


class Backend(ABC):
    """Runs one checkpoint. A backend is stateless between calls: all state is in the cache."""

    name: ClassVar[str]
    description: ClassVar[str]
    """One line for people: precision and what it is good for."""

    quantizes_activations: ClassVar[bool] = False
    """Whether its keys and values differ from those that fp32 backends agree on."""

    prefill_chunk: ClassVar[int] = 128
    """Tokens per `forward` call that keep memory bounded and cancelling prompt."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.threads = threads
        self.replacement: Backend | None = None
        """A faster backend of this model, ready to take over: sessions swap to it between tokens."""
        self.preparing = ""
        """Name of the backend that is being made ready to replace it; "" if none is."""
        self.note = ""
        """What a person may want to know about it: that another is on its way, or why it is not."""

    @property
    def latest(self) -> "Backend":
        """What runs in its place now: it may have been replaced several times."""
        backend = self
        while backend.replacement is not None:
            backend = backend.replacement
        return backend

    @property
    def tensors(self) -> Mapping[str, FloatArray | Q8Tensor]:
        """Weights as this backend reads them, by the checkpoint's names."""
        return self.checkpoint.tensors

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads: all but the embedding of other tokens."""
        return sum(
            sum(part.nbytes for part in ((t.q, t.scale) if isinstance(t, Q8Tensor) else (t,)))
            for name, t in self.tensors.items()
            if name != "tok_embeddings"
        )

    @abstractmethod
    def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        """`forward` after its arguments were checked and room was made in the cache."""

    def forward(self, tokens: Sequence[int], cache: KVCache, *, all_positions: bool = False) -> FloatArray:
        """Runs `tokens` at the positions that follow the cache's current length, and appends to it.

        Prefill and decode are the same call. Callers cut long prompts into `prefill_chunk` tokens.

        Args:
            tokens: 1..n token ids.
            all_positions: Return the logits of every token, not of the last one only.

        Returns:
            (vocab_size,) float32 logits, or (n, vocab_size) with `all_positions`. The caller owns them.

        Raises:
            ContextOverflowError: The tokens do not fit the cache's `max_seq_len`.
            BackendError: No token, or a token outside the vocabulary.
        """
        ids = np.asarray(tokens, np.int64)  # (n,)
        if ids.ndim != 1 or ids.size == 0:
            raise BackendError(f"expected a sequence of token ids, found shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise BackendError(
                f"token ids must be in 0..{self.config.vocab_size - 1}, found {ids.min()}..{ids.max()}",
                "the tokenizer does not belong to this model: choose it with -z",
            )
        cache.reserve(ids.size)
        return self._forward(ids, cache, all_positions)
