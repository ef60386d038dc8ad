"""llama.cpp in the same rounds, by way of llama-cpp-python: https://llama-cpp-python.readthedocs.io

The model is loaded by its high-level class; what is timed is `llama_decode` itself, whose Python costs a few
microseconds a call. Settings are llama.cpp's own defaults, the half-precision KV cache among them.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from llamatui.app.bench.speed import Case, random_ids
from llamatui.errors import BackendError

BATCH = 512  # tokens per call in prefill: llama.cpp's


class LlamaCppRunner:
    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, positions: int) -> None:
        """`positions`: most tokens that a test puts into the cache.

        Raises:
            BackendError: llama-cpp-python is not installed, or cannot load the file.
            ModelError: The file is no GGUF file.
        """
        try:
            import llama_cpp
        except ImportError as error:
            raise BackendError(
                f"--peer llama-cpp needs llama-cpp-python: {error}", "pip install llama-cpp-python"
            ) from None
        self.model = path.stem
        self.threads = threads
        self.bytes_per_token = bytes_per_token(path)
        self._llama_cpp = llama_cpp
        try:
            self._llama = llama_cpp.Llama(
                str(path),
                n_ctx=positions,
                n_batch=BATCH,
                n_threads=threads,
                n_threads_batch=threads,
                # Where it was built with a GPU, that stays out of it.
                n_gpu_layers=0,
                offload_kqv=False,
                op_offload=False,
                verbose=False,
            )
        except ValueError as error:  # what it raises for all that goes wrong
            raise BackendError(f"{path}: llama.cpp cannot load it: {error}") from error
        self._ids = random_ids(self._llama.n_vocab(), positions)
        self._length = 0

    def seconds(self, case: Case) -> float:
        ids = self._ids[: case.n_tokens]
        self._go_to(case.depth)
        self._decode(ids[:1])  # as for our own backends
        self._go_to(case.depth)
        step = BATCH if case.kind == "prefill" else 1
        began = time.perf_counter()
        for at in range(0, case.n_tokens, step):
            self._decode(ids[at : at + step])
        self._llama_cpp.llama_synchronize(self._llama.ctx)
        return time.perf_counter() - began

    def _go_to(self, depth: int) -> None:
        """Cuts the cache there; what it lacks is computed, as llama.cpp lets nobody write into its cache."""
        lib = self._llama_cpp
        kept = min(depth, self._length)
        lib.llama_memory_seq_rm(lib.llama_get_memory(self._llama.ctx), 0, kept, -1)
        self._length = kept
        for at in range(kept, depth, BATCH):
            self._decode(self._ids[at : min(at + BATCH, depth)])

    def _decode(self, ids: Sequence[int]) -> None:
        lib = self._llama_cpp
        batch = lib.llama_batch_get_one((lib.llama_token * len(ids))(*ids), len(ids))
        if code := lib.llama_decode(self._llama.ctx, batch):
            raise BackendError(f"llama.cpp failed with code {code}")
        self._length += len(ids)


def bytes_per_token(path: Path) -> int:
    """Bytes of the tensors that decoding one token reads: the embedding only where it is the classifier too.

    Raises:
        ModelError: The file is no GGUF file.
    """
    from llamatui.export.gguf_header import read_gguf_header

    tensors = read_gguf_header(path).tensors
    unread = {"token_embd.weight"} if "output.weight" in tensors else set()
    return sum(tensor.n_bytes for name, tensor in tensors.items() if name not in unread)
