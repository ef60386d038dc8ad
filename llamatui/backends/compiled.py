"""What the compiled backends share: buffers, addresses, and running a forward pass as a team."""

import threading
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.kernels.cache import load_kernels
from llamatui.backends.kernels.params import MATRICES, PARAMS, SPARE_TOKENS, padded
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.backends.rope import rope_table
from llamatui.backends.team import openmp, yield_core


class CompiledBackend(Backend):
    kind: ClassVar[str]

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        super().__init__(checkpoint, threads)
        c = self.config
        self._kernels = load_kernels(self.kind)
        self._lock = threading.Lock()
        self._positions = 0
        self._params = np.zeros(1, PARAMS)
        self._kept: dict[str, npt.NDArray] = {}
        for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "norm_eps"):
            self._params[name] = getattr(c, name)
        self._tensors = self._weights()
        group_size = next((t.group_size for t in self._tensors.values() if isinstance(t, Q8Tensor)), 1)
        self._params["group_size"] = group_size
        self._set_weights()
        rows = {"dim_row": c.dim, "kv_row": c.n_kv_heads * c.head_dim, "hidden_row": c.hidden_dim, "vocab_row": c.vocab_size}
        rows = {name: padded(n) for name, n in rows.items()}
        for name, n in rows.items():
            self._params[name] = n
        n = self.prefill_chunk + SPARE_TOKENS
        for name in ("x", "h", "q", "mixed"):
            self._keep(name, np.zeros((n, rows["dim_row"]), np.float32))
        for name in ("k", "v"):
            self._keep(name, np.zeros((n, rows["kv_row"]), np.float32))
        for name in ("gate", "up"):
            self._keep(name, np.zeros((n, rows["hidden_row"]), np.float32))
        row = max(rows["dim_row"], rows["hidden_row"])
        if group_size > 1:
            row = -(-row // group_size) * group_size
            self._params["quantized_row"] = row
            self._keep("quantized", np.zeros((n, row), np.int8))
            self._keep("scales", np.zeros((n, row // group_size), np.float32))
            self._keep("group_excess", np.zeros((n, row // group_size), np.int32))
            self._keep("excess", np.zeros((n, row // 4), np.int32))
        self._keep("arrivals", np.zeros(64, np.int64))
        self._params["yield_core"] = yield_core()
        omp = openmp()
        self._openmp = omp
        if omp:
            self._params["omp_get_thread_num"], self._params["omp_get_num_threads"] = omp.thread_num, omp.num_threads

    def _keep(self, name: str, array: npt.NDArray) -> None:
        """Puts an array's address into the params; holding the array keeps that valid."""
        self._kept[name] = array
        self._params[name] = array.ctypes.data

    def _weights(self):
        raise NotImplementedError

    def _set_weights(self) -> None:
        table = np.zeros((self.config.n_layers, len(MATRICES), 2), np.int64)
        for m, name in enumerate(MATRICES):
            for layer in range(self.config.n_layers):
                t = self._tensors[name][layer]
                table[layer, m] = (t.q.ctypes.data, t.scale.ctypes.data) if isinstance(t, Q8Tensor) else (t.ctypes.data, 0)
        self._keep("weights", table)
        for name in ("tok_embeddings", "wcls"):
            t = self._tensors[name]
            if isinstance(t, Q8Tensor):
                self._params[name], self._params[name + "_scale"] = t.q.ctypes.data, t.scale.ctypes.data
            else:
                self._params[name] = t.ctypes.data
        for name in ("attention_norm", "ffn_norm", "norm"):
            self._params[name] = self.checkpoint.fp32(name).ctypes.data

    def _grow(self, capacity: int) -> None:
        c = self.config
        self._positions = capacity
        cos, sin = rope_table(c, capacity)
        self._keep("cos", np.ascontiguousarray(cos)), self._keep("sin", np.ascontiguousarray(sin))
        tile_rows = 32
        attention = 2 * (capacity + tile_rows) * (c.head_dim + tile_rows) + SPARE_TOKENS * (capacity + 4 * tile_rows) + 4096
        n = self.prefill_chunk + SPARE_TOKENS
        matmul = tile_rows * (max(c.dim, c.hidden_dim) + 512) * 2 + n * 512
        size = -(-4 * max(attention, matmul) // 4096) * 4096
        self._params["scratch_size"] = size
        self._keep("scratch", np.empty(size * self.threads, np.uint8))

    def _forward(self, tokens, cache: KVCache, all_positions: bool) -> FloatArray:
        with self._lock:
            if self._positions < cache.capacity:
                self._grow(cache.capacity)
            p = self._params
            n = tokens.size
            count = n if all_positions else 1
            rows = int(p["vocab_row"][0])
            logits = np.empty((count + (SPARE_TOKENS if count > 1 else 0), rows), np.float32)
            p["n_tokens"], p["start"], p["capacity"], p["all_positions"] = n, cache.length, cache.capacity, all_positions
            p["tokens"], p["keys"], p["values"], p["logits"] = tokens.ctypes.data, cache.keys.ctypes.data, cache.values.ctypes.data, logits.ctypes.data
            self._kept["arrivals"][0] = 0
            self._openmp.run(self._kernels.run_openmp, p.ctypes.data, self.threads)
            cache.length += n
            return logits[:count, : self.config.vocab_size] if all_positions else logits[0, : self.config.vocab_size]


class NumbaBackend(CompiledBackend):
    name = "numba"
    kind = "fp32"
    description = "fp32"

    def _weights(self):
        return {k: (t.dequantize() if isinstance(t, Q8Tensor) else t) for k, t in self.checkpoint.tensors.items()}


class Q8Backend(CompiledBackend):
    name = "q8_0"
    kind = "q8_0"
    description = "int8"

    def _weights(self):
        from llamatui.backends.q8_0 import fit_group_size, quantize
        out = {}
        gs = fit_group_size(64, self.config.dim, self.config.hidden_dim)
        for k, t in self.checkpoint.tensors.items():
            if isinstance(t, Q8Tensor) or k.endswith("norm"): out[k] = t
            else: out[k] = quantize(t, gs)
        return out
