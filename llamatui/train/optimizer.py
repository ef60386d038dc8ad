"""AdamW with decay on matrices alone, and a learning rate that rises, then falls along a cosine.

Sources: AdamW arXiv:1711.05101; cosine schedule arXiv:1608.03983; `train.py` of llama2.c for both settings.
"""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from llamatui.train.config import TrainConfig


def adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> AdamW:
    """Decays matrices and embeddings, not norms. One fused kernel updates all, on CPU as on CUDA."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=trained[0].device.type in ("cpu", "cuda"),
    )


def learning_rate(config: TrainConfig, iteration: int) -> float:
    """That of the step from `iteration` to the next; the first step is iteration 0."""
    c = config
    if iteration < c.warmup_iters:
        return c.learning_rate * (iteration + 1) / c.warmup_iters
    done = (iteration - c.warmup_iters) / max(c.max_iters - c.warmup_iters, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))  # 1 to 0
    return c.min_lr + cosine * (c.learning_rate - c.min_lr)
