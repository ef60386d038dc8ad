"""LoRA: the matrices of a model stay as they are, and what is trained is a low-rank addition to each.

Source: arXiv:2106.09685. A checkpoint holds `NAME.weight`, `NAME.lora_a` and `NAME.lora_b`;
`llamatui.export.llama2c_checkpoint` adds them up.
"""

import torch
from torch import Tensor, nn

from llamatui.train.model import Llama


class LoraLinear(nn.Module):
    """x (weight + scale b a)^T, of which a and b are trained; b begins as zeros, so the sum as `weight`."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.weight = linear.weight  # (out, in)
        self.weight.requires_grad_(False)
        self.scale = scale
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))  # (rank, in)
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))  # (out, rank)
        nn.init.kaiming_uniform_(self.lora_a, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., in)."""
        out = nn.functional.linear(x, self.weight)
        low = nn.functional.linear(x, self.lora_a)  # (..., rank)
        return out + self.scale * nn.functional.linear(low, self.lora_b)


def add_lora(model: Llama, rank: int, alpha: float) -> None:
    """Freezes the model and adds a trained `LoraLinear` in place of each matrix of its layers."""
    model.requires_grad_(False)
    for layer in model.layers:
        for part in layer.children():
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, LoraLinear(linear, rank, alpha / rank))
