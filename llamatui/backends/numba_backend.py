"""fp32 with compiled kernels: the fastest way to run version 0 and 1 files as they are."""

from collections.abc import Callable

import numpy as np

from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.compiled import CompiledBackend
from llamatui.backends.kernels.cache import Kernels
from llamatui.backends.q8_0 import FloatArray, Q8Tensor


class NumbaBackend(CompiledBackend):
    """Uses fp32 weights in place, memory-mapped; version 2 is dequantized into memory, 4 bytes a weight."""

    name = "numba"
    description = "fp32, compiled by Numba for this CPU"

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int,
        kernels: Kernels,
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        """`progress`: told how far dequantizing is."""
        tensors: dict[str, FloatArray | Q8Tensor] = {}
        with np.errstate(invalid="ignore"):  # damaged weights end in logits that the sampler tells
            for i, (name, tensor) in enumerate(checkpoint.tensors.items()):
                if name == "wcls" and tensor is checkpoint.tensors["tok_embeddings"]:
                    tensors[name] = tensors["tok_embeddings"]
                elif isinstance(tensor, Q8Tensor):
                    progress(f"dequantizing {i * 100 // len(checkpoint.tensors)} %")
                    tensors[name] = tensor.dequantize()
                else:
                    tensors[name] = tensor
        super().__init__(checkpoint, threads, kernels, tensors)
