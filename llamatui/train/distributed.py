"""Several processes that train one model, started by torchrun: one per GPU, or per machine.

    torchrun --nproc-per-node 2 -m llamatui train run DATA OUT ...

A step's forward passes are dealt out among them, so that the losses are those of one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from llamatui.errors import LlamatuiError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes files."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of each element over all processes."""
        return self.sum(values) / self.size

    def of_first(self, value: T) -> T:
        """The first process's `value`, in all."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def world(device_type: str) -> Iterator[World]:
    """The processes that torchrun started; only this one where it started none.

    Raises:
        LlamatuiError: The others cannot be reached.
    """
    if "RANK" not in os.environ:
        yield World()
        return
    try:
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise LlamatuiError(
            f"the other processes of this run cannot be reached: {str(error).partition(chr(10))[0]:.200}",
            "start them all with torchrun",
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
