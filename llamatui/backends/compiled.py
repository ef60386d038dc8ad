"""What the compiled backends share: buffers, addresses, and running a forward pass with a team of threads."""

import os
import threading
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.kernels.cache import Kernels
from llamatui.backends.kernels.params import MATRICES, PARAMS, SPARE_TOKENS, padded, scratch_bytes
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.backends.rope import rope_table
from llamatui.backends.team import make_team, yield_core

SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "norm_eps")


class CompiledBackend(Backend):
    """A forward pass in object code.

    Memory beside the weights and the KV cache: activations of a chunk, 4 · prefill_chunk · (4 dim + 2 kv_dim
    + 2 hidden_dim) bytes, and for each thread what prefill packs of a matrix and of one head's keys and
    values, about 4 · 32 · max(dim, hidden_dim) + 8 · positions · (head_dim + 32) bytes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int,
        kernels: Kernels,
        tensors: Mapping[str, FloatArray | Q8Tensor],
    ) -> None:
        """`tensors`: as the checkpoint's, with matrices of the kind that the kernels take."""
        super().__init__(checkpoint, threads)
        self._team = make_team(kernels, threads)
        self._kernels = kernels
        self.threads = self._team.threads
        self._lock = threading.Lock()  # one set of buffers
        self._process = os.getpid()
        self._params = np.zeros(1, PARAMS)
        self._arrays: dict[str, npt.NDArray[np.generic]] = {}
        self._positions = 0
        for name in SIZES:
            self._params[name] = getattr(self.config, name)
        self._params["yield_core"] = yield_core()
        self._set_array("arrivals", np.zeros(1, np.int64))
        self._tensors = tensors
        self._set_weights()
        self._set_activations()

    @property
    def tensors(self) -> Mapping[str, FloatArray | Q8Tensor]:
        return self._tensors

    def _set_array(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Puts the array's address into the params. To hold the array is to keep that valid."""
        self._arrays[name] = array
        self._params[name] = array.ctypes.data

    def _set_weights(self) -> None:
        layers = range(self.config.n_layers)
        table = [addresses(self._tensors[name][layer]) for layer in layers for name in MATRICES]
        self._set_array("weights", np.array([*table, addresses(self._tensors["wcls"])], np.int64))
        embedding = addresses(self._tensors["tok_embeddings"])
        self._params["tok_embeddings"], self._params["tok_embeddings_scale"] = embedding
        for name in ("attention_norm", "ffn_norm", "norm"):
            self._params[name], _ = addresses(self._tensors[name])

    def _set_activations(self) -> None:
        c = self.config
        n = self.prefill_chunk + SPARE_TOKENS
        rows = {"x": c.dim, "h": c.dim, "q": c.dim, "mixed": c.dim, "k": c.kv_dim, "v": c.kv_dim}
        rows |= {"gate": c.hidden_dim, "up": c.hidden_dim}
        for name, row in rows.items():
            self._set_array(name, np.zeros((n, padded(row)), np.float32))
        wq = self._tensors["wq"]
        if isinstance(wq, Q8Tensor):
            group_size = wq.group_size
            groups = -(-padded(max(c.dim, c.hidden_dim)) // group_size)
            size = groups * group_size
            self._params["group_size"], self._params["quantized_row"] = group_size, size
            self._set_array("quantized", np.zeros((n, size), np.int8))
            self._set_array("scales", np.zeros((n, groups), np.float32))
            self._set_array("group_excess", np.zeros((n, groups), np.int32))
            self._set_array("excess", np.zeros((n, size // 4), np.int32))

    def _set_positions(self, capacity: int) -> None:
        """Makes room for a cache of `capacity` positions."""
        cos, sin = rope_table(self.config, capacity)  # (capacity, head_dim / 2)
        size = scratch_bytes(self.config, capacity, self.prefill_chunk)
        # All or nothing: without memory for one, the params must stay as they were.
        scratch = np.empty(size * self._team.size, np.uint8)
        self._set_array("cos", cos)
        self._set_array("sin", sin)
        self._params["scratch_size"] = size
        self._set_array("scratch", scratch)
        self._positions = capacity

    def _forward(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        n = tokens.size
        if n > self.prefill_chunk:
            return self._chunks(tokens, cache, all_positions)
        p = self._params
        if os.getpid() != self._process:
            # A fork has our memory, but neither our threads nor a lock that anybody will open.
            self._process, self._lock = os.getpid(), threading.Lock()
            self._team = make_team(self._kernels, 1)
        with self._lock:
            if self._positions < cache.capacity:
                self._set_positions(cache.capacity)
            count, spare = (n, SPARE_TOKENS) if all_positions else (1, 0)
            logits = np.empty((count + spare, padded(self.config.vocab_size)), np.float32)
            p["n_tokens"], p["start"], p["capacity"] = n, cache.length, cache.capacity
            p["all_positions"] = all_positions
            tokens = np.ascontiguousarray(tokens)  # (n,)
            p["tokens"], p["logits"] = tokens.ctypes.data, logits.ctypes.data
            p["keys"], p["values"] = cache.keys.ctypes.data, cache.values.ctypes.data
            self._arrays["arrivals"][0] = 0
            self._team.run(p)
            self.threads = self._team.threads
        cache.length += n
        logits = logits[:count, : self.config.vocab_size]
        return logits if all_positions else logits[0]

    def _chunks(self, tokens: npt.NDArray[np.int64], cache: KVCache, all_positions: bool) -> FloatArray:
        size = self.prefill_chunk
        parts = [
            self._forward(tokens[i : i + size], cache, all_positions) for i in range(0, tokens.size, size)
        ]
        return np.concatenate(parts) if all_positions else parts[-1]


def addresses(tensor: FloatArray | Q8Tensor) -> tuple[int, int]:
    """Of a tensor's numbers, and of their scales or 0."""
    if isinstance(tensor, Q8Tensor):
        return tensor.q.ctypes.data, tensor.scale.ctypes.data
    return tensor.ctypes.data, 0
