"""Weights between PyTorch and the readers of other formats."""

import torch

from llamatui.backends.checkpoint import tensor_layout
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.export.meta import original_name
from llamatui.export.source import Source
from llamatui.train.model import Llama


@torch.no_grad()
def copy_weights(source: Source, model: Llama) -> None:
    """Makes a model's weights those of a source of the same architecture.

    Raises:
        CheckpointError: The source is damaged.
    """
    parameters = dict(model.named_parameters())
    for spec in tensor_layout(model.config, 1):
        for layer in range(max(spec.n_layers, 1)):
            rows = source.tensor(spec.name, layer)[0 : spec.shape[0]]
            values = rows.dequantize() if isinstance(rows, Q8Tensor) else rows
            parameters[original_name(spec.name, layer)].copy_(torch.from_numpy(values.astype("f4")))
