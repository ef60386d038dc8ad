"""int8 weights and activations with compiled kernels, as llama2.c's runq.c defines Q8_0."""

from collections.abc import Callable

import numpy as np

from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.compiled import CompiledBackend
from llamatui.backends.kernels.cache import Kernels
from llamatui.backends.q8_0 import FloatArray, Q8Tensor, fit_group_size, quantize

GROUP_SIZE = 64


class Q8Backend(CompiledBackend):
    """Uses version 2 files in place, memory-mapped; others are quantized into memory, about 1.06 bytes a
    weight.
    """

    name = "q8_0"
    description = "int8 weights and activations, compiled by Numba for this CPU"
    quantizes_activations = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        threads: int,
        kernels: Kernels,
        progress: Callable[[str], None] = lambda step: None,
    ) -> None:
        """`progress`: told how far quantizing is."""
        c = checkpoint.config
        group_size = fit_group_size(GROUP_SIZE, c.dim, c.hidden_dim)
        tensors: dict[str, FloatArray | Q8Tensor] = {}
        with np.errstate(invalid="ignore"):  # damaged weights end in logits that the sampler tells
            for i, (name, tensor) in enumerate(checkpoint.tensors.items()):
                if name == "wcls" and tensor is checkpoint.tensors["tok_embeddings"]:
                    tensors[name] = tensors["tok_embeddings"]
                elif isinstance(tensor, Q8Tensor) or name.endswith("norm"):
                    tensors[name] = tensor
                else:
                    progress(f"quantizing {i * 100 // len(checkpoint.tensors)} %")
                    tensors[name] = quantized(tensor, group_size)
        super().__init__(checkpoint, threads, kernels, tensors)


def quantized(tensor: FloatArray, group_size: int) -> Q8Tensor:
    """Q8_0 of a matrix or a stack of them, a block at a time: temporaries are fp32."""
    rows = tensor.reshape(-1, tensor.shape[-1])  # (rows of all layers, cols)
    q = np.empty(rows.shape, np.int8)
    scale = np.empty((len(rows), rows.shape[1] // group_size), np.float32)
    block = max(1, (1 << 22) // rows.shape[1])
    for first in range(0, len(rows), block):
        part = quantize(rows[first : first + block], group_size)
        q[first : first + block], scale[first : first + block] = part.q, part.scale
    return Q8Tensor(q.reshape(tensor.shape), scale.reshape(*tensor.shape[:-1], -1))
