"""Two processes train the model that one would. To start two takes 5 s on two cores."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import LlamatuiError, UsageError  # noqa: E402
from llamatui.train import checkpoints, machine, run  # noqa: E402
from llamatui.train.config import TrainConfig  # noqa: E402
from llamatui.train.distributed import World  # noqa: E402
from llamatui.train.events import Event  # noqa: E402
from llamatui.train.machine import telling_failures  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from tests.train.tiny_runs import SETTINGS, evaluations, flags, losses, write_data  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name == "nt", reason="no processes to train together"
)

RUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
       "-m", "llamatui", "train", "run"]  # fmt: skip


def together(data: Path, out: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*RUN, str(data), str(out), *flags(settings)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def metrics(out: Path, event: str) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line for line in lines if line["event"] == event}


def test_two_processes_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, evaluations and weights are the same to rounding, with dropout; one process writes."""
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    data, settings = write_data(tmp_path / "data"), {**SETTINGS, "grad_accumulation": 4, "eval_iters": 3}
    running = together(data, tmp_path / "two", settings)
    alone: list[Event] = list(train(data, tmp_path / "one", settings))
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    steps, evaluated = metrics(tmp_path / "two", "step"), metrics(tmp_path / "two", "evaluation")
    for step, (loss, norm, rate) in losses(alone).items():
        assert steps[step]["loss"] == pytest.approx(loss, rel=1e-4)
        assert steps[step]["grad_norm"] == pytest.approx(norm, rel=1e-3)
        assert steps[step]["learning_rate"] == rate
    for step, values in evaluations(alone).items():
        assert (evaluated[step]["train_loss"], evaluated[step]["valid_loss"]) == pytest.approx(
            values, rel=1e-4
        )
    assert out.count("step 12  loss") == 1
    assert "2 processes" in out
    one, two = (checkpoints.load(tmp_path / name / "last.pt")["model"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-2, atol=1e-3)
    assert not list((tmp_path / "two").glob(".*"))


def test_a_signal_to_one_stops_both(tmp_path: Path) -> None:
    """After the same step, with a checkpoint. The launcher passes the signal on to both, this test to one."""
    data = write_data(tmp_path / "data")
    running = together(data, tmp_path / "out", {**SETTINGS, "max_iters": 100_000, "eval_interval": 100_000})
    assert running.stdout is not None
    assert any(line.startswith("step 3 ") for line in running.stdout)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.terminate()
        running.communicate(timeout=60)
        pytest.skip("no /proc")
    second = int(children.read_text().split()[1])
    os.kill(second, signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert (match := re.search(r"stopped after ([\d,]+) steps", out)), err
    saved = checkpoints.load(tmp_path / "out" / "last.pt")
    assert saved["iter_num"] == int(match[1].replace(",", "")) < 100_000
    assert not re.search('File ".*llamatui', err)


def test_what_does_not_fit_two_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written. No process is started for this."""
    monkeypatch.setattr(run, "world", lambda device_type: nullcontext(World(rank=0, size=2)))
    monkeypatch.setattr(World, "of_first", lambda self, value: value)
    data = write_data(tmp_path / "data")
    with pytest.raises(UsageError, match="a multiple of the 2 processes, found 3") as error:
        list(train(data, tmp_path / "out", {**SETTINGS, "grad_accumulation": 3}))
    assert error.value.hint == "choose --grad-accumulation 4"
    assert not (tmp_path / "out").exists()


def test_the_first_process_chooses_the_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here bfloat16, which this one finds slower. No process is started for this."""
    made: list[Any] = []

    def trainer(*args: object, **more: object) -> None:
        made.extend(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(run, "world", lambda device_type: nullcontext(World(rank=1, size=2)))
    monkeypatch.setattr(World, "of_first", lambda self, value: torch.bfloat16)
    monkeypatch.setattr(run, "Trainer", trainer)
    with pytest.raises(KeyboardInterrupt):
        list(train(write_data(tmp_path / "data"), tmp_path / "out", {**SETTINGS, "dtype": "auto"}))
    assert (made[0].dtype, made[5].dtype) == ("bfloat16", torch.bfloat16)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]"
        ),
        RuntimeError("[enforce fail at ../third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr."),
        torch.distributed.DistBackendError(
            "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp"
        ),
    ],
)
def test_the_others_end_in_a_line_where_one_fails(error: RuntimeError) -> None:
    with (
        pytest.raises(LlamatuiError, match="another process of this run has ended"),
        telling_failures(TrainConfig()),
    ):
        raise error


def test_processes_that_cannot_meet_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where torchrun's variables are set by hand, but for some."""
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    with pytest.raises(LlamatuiError, match=r"cannot be reached: .*WORLD_SIZE") as error:
        list(train(write_data(tmp_path / "data"), tmp_path / "out", SETTINGS))
    assert "torchrun" in error.value.hint
