"""What this machine offers: device, number format, threads, and how fast a matrix product can be."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from llamatui.backends.threads import physical_cores
from llamatui.errors import LlamatuiError, UsageError
from llamatui.train.config import Dtype, TrainConfig

DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FASTER = 1.3
"""How much faster bf16 products must be than fp32 ones to pay for the conversions around them."""

GLOO = re.compile(r"\[(enforce fail at )?\S*/gloo/")
"""How its errors, which have no class of their own, begin: with the place in its source."""


@dataclass(frozen=True, slots=True)
class Machine:
    device: torch.device
    dtype: torch.dtype
    """Of the matrix products; weights and optimizer are float32."""
    threads: int
    flops: float
    """Floating-point operations per second of one large matrix product."""

    @property
    def is_mixed(self) -> bool:
        return self.dtype != torch.float32

    @property
    def dtype_name(self) -> Dtype:
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)


def find_machine(config: TrainConfig) -> Machine:
    """Chooses what the config leaves open, and sets PyTorch's threads.

    Raises:
        UsageError: The device is not there, or cannot do the dtype.
    """
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    threads = config.threads or max(physical_cores() // local_processes, 1)
    torch.set_num_threads(threads)
    device = _device(config.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    if config.dtype == "auto":
        dtype = _fastest(device)
    else:
        dtype = DTYPES[config.dtype]
        if dtype == torch.float16 and device.type != "cuda":
            raise UsageError(
                f"dtype float16 needs CUDA, found {device.type}", "choose --dtype bfloat16 or float32"
            )
    return Machine(device, dtype, threads, matmul_flops(device, dtype))


def _device(name: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if has_cuda else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: expected cpu, cuda, cuda:1 or mps, found {name!r}") from None
    there = {"cpu": True, "cuda": has_cuda, "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise UsageError(
            f"--device {name}: PyTorch finds none on this machine", "choose --device cpu, or auto"
        )
    if device.type == "cuda":
        if device.index is not None and (processes := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > 1:
            raise UsageError(
                f"--device {name}: expected one for each of the {processes} processes, found one for all",
                "choose --device cuda",
            )
        # torchrun starts one process for each device of a machine.
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UsageError(
                f"--device cuda:{index}: expected one of {torch.cuda.device_count()} devices",
                "start at most as many processes as there are devices",
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float32
    pays = matmul_flops(device, torch.bfloat16) > FASTER * matmul_flops(device, torch.float32)
    return torch.bfloat16 if pays else torch.float32


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of several."""
    size = 4096 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    try:
        for _ in range(6):  # the first ones load kernels and wake threads
            began = time.perf_counter()
            torch.mm(a, a)
            getattr(torch, device.type).synchronize()  # of the CPU, which does nothing, too
            best = min(best, time.perf_counter() - began)
    except RuntimeError as error:
        raise LlamatuiError(f"{device}: cannot compute: {error!s:.200}", "choose --device cpu") from error
    return 2 * size**3 / best


@contextmanager
def telling_failures(config: TrainConfig) -> Iterator[None]:
    """Failures that are none of the program: PyTorch raises RuntimeError for all of them.

    Raises:
        LlamatuiError: There is too little memory, no compiler, or another process of the run has ended.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        if "out of memory" in reason or "not enough memory" in reason or "can't allocate memory" in reason:
            raise LlamatuiError(
                f"not enough memory for a batch of {config.batch_size}: {reason:.200}",
                "choose a smaller --batch-size, and a --grad-accumulation as much larger",
            ) from error
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise LlamatuiError(
                f"--compile: PyTorch cannot compile here: {reason:.200}",
                "leave --compile out, or install a C++ compiler",
            ) from error
        if isinstance(error, torch.distributed.DistError) or GLOO.match(reason):
            raise LlamatuiError("another process of this run has ended", "see what it said") from error
        raise
