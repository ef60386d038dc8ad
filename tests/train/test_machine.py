"""What a machine offers, and what is said of one that cannot do what is asked."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import LlamatuiError, UsageError  # noqa: E402
from llamatui.train import machine  # noqa: E402
from llamatui.train.config import TrainConfig  # noqa: E402
from llamatui.train.machine import find_machine, telling_failures  # noqa: E402

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _cpu_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without accelerators, of which nothing is measured."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def found(**settings: Any) -> machine.Machine:
    return find_machine(TrainConfig(**settings))


@pytest.mark.parametrize(("ratio", "dtype"), [(0.3, FLOAT32), (1.2, FLOAT32), (1.5, BFLOAT16)])
def test_a_cpu_uses_bfloat16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, ratio: float, dtype: Any
) -> None:
    speeds = {FLOAT32: 1e9, BFLOAT16: ratio * 1e9}
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: speeds[dtype])
    here = found()
    assert (here.device.type, here.dtype, here.flops) == ("cpu", dtype, speeds[dtype])
    assert here.is_mixed == (dtype == BFLOAT16)


def test_threads_are_the_cores_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: 6)
    assert found().threads == torch.get_num_threads() == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert found().threads == 1
    assert found(threads=3).threads == torch.get_num_threads() == 3


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "xpu", "meta"])
def test_a_device_that_is_not_there_is_an_error(device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: PyTorch finds none") as error:
        found(device=device)
    assert "--device cpu" in error.value.hint


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cuda:-1", "CPU 1"])
def test_a_device_that_does_not_exist_is_an_error(device: str) -> None:
    with pytest.raises(UsageError, match="--device: expected cpu, cuda, cuda:1 or mps"):
        found(device=device)


def test_float16_is_for_cuda_alone() -> None:
    with pytest.raises(UsageError, match="float16 needs CUDA, found cpu") as error:
        found(dtype="float16")
    assert "bfloat16" in error.value.hint


@pytest.mark.parametrize(
    ("supported", "dtype", "expected"),
    [
        (True, "auto", BFLOAT16),
        (False, "auto", FLOAT16),
        (False, "float32", FLOAT32),
        (True, "float16", FLOAT16),
    ],
)
def test_cuda_is_taken_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: Any, expected: Any
) -> None:
    """Each process of a machine has its own device."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    here = found(dtype=dtype)
    assert (here.device, here.dtype) == (torch.device("cuda:1"), expected)
    assert chosen == [here.device]
    assert found(device="cuda:0").device.index == 0
    with pytest.raises(UsageError, match="--device cuda:2: expected one of 2 devices"):
        found(device="cuda:2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert found().device == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--device cuda:0: expected one for each of the 2 processes"):
        found(device="cuda:0")


def test_a_product_is_measured_in_operations_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ticks = iter(range(100))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    assert machine.matmul_flops(torch.device("cpu"), FLOAT32) == 2 * 768**3


@pytest.mark.parametrize(
    "message",
    ["[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
     "allocate 4611686018427387904 bytes. Error code 12 (Cannot allocate memory)",
     "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: not enough memory: you tried to "
     "allocate 4 bytes.",
     "MPS backend out of memory (MPS allocated: 9.01 GB)"],
)  # fmt: skip
def test_too_little_memory_is_told(message: str) -> None:
    with (
        pytest.raises(LlamatuiError, match="not enough memory for a batch of 7") as error,
        telling_failures(TrainConfig(batch_size=7)),
    ):
        raise RuntimeError(message)
    assert "--batch-size" in error.value.hint


def test_too_little_memory_of_a_gpu_is_told() -> None:
    with pytest.raises(LlamatuiError, match="not enough memory"), telling_failures(TrainConfig()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")


def test_memory_that_no_machine_has_is_told() -> None:
    with pytest.raises(LlamatuiError, match="not enough memory"), telling_failures(TrainConfig()):
        torch.empty(1 << 60)


@pytest.mark.parametrize("message", ["a mistake of ours", "no file gloomy.bin", "gloo is not built"])
def test_other_errors_are_not_hidden(message: str) -> None:
    with pytest.raises(RuntimeError, match=message), telling_failures(TrainConfig(compile=True)):
        raise RuntimeError(message)
