"""`llamatui train run`, `sample` and `export` as a shell sees them."""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from llamatui.app.cli import main  # noqa: E402
from llamatui.app.cli import train as command  # noqa: E402
from llamatui.backends.checkpoint import Checkpoint  # noqa: E402
from llamatui.backends.checkpoint_writer import write_checkpoint  # noqa: E402
from llamatui.train import machine, trainer  # noqa: E402
from llamatui.train.config import TrainConfig, read_config  # noqa: E402
from tests.tiny import TINY, random_weights, write_tokenizer_bin  # noqa: E402
from tests.train.test_checkpoints import broken  # noqa: E402
from tests.train.tiny_runs import SETTINGS, flags, write_data  # noqa: E402

FAST = {**SETTINGS, "max_iters": 4, "eval_interval": 2, "sample_tokens": 3}


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def llamatui(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process: PyTorch takes seconds to import."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["llamatui", *map(str, arguments)])
        code = main.run()
        sys.stdout.flush()
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module", autouse=True)
def _not_measured() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def done(llamatui: Command, data: Path, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    assert llamatui("train", "run", data, tmp_path / "done", *flags(FAST)).code == 0
    return tmp_path / "done"


def test_every_setting_is_an_option_with_help_and_default(
    llamatui: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = llamatui("train", "run", "--help")
    assert result.code == 0
    text = " ".join(result.out.split())
    for entry in fields(TrainConfig):
        option = f"--{entry.name.replace('_', '-')} "
        assert option in text, option
        assert entry.metadata["help"] in text
    assert "[5e-05]" not in text
    assert "after warm-up. [0.002]" in text
    assert "--tied --no-tied" in text.replace("/", "").replace("  ", " ")


def test_a_run_prints_lines_and_leaves_a_model(llamatui: Command, data: Path, tmp_path: Path) -> None:
    result = llamatui("train", "run", data, tmp_path / "out", *flags(FAST))
    assert result.code == 0
    assert len(re.findall(r"^step \d+  loss \d", result.out, re.MULTILINE)) == 4
    assert len(re.findall(r"^step \d+  train \d\S+  valid \d", result.out, re.MULTILINE)) == 3
    assert "finished 4 steps" in result.out
    assert "llamatui train export" in result.err
    assert "\x1b" not in result.out + result.err
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4]


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(
    llamatui: Command, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("tied = false\nbeta1 = 0.5\nbeta2 = 0.5\n")
    result = llamatui(
        "train", "run", data, tmp_path / "out", "--config", file, "--beta1", "0.6", *flags(FAST)
    )
    assert result.code == 0, result.err
    used = read_config(tmp_path / "out" / "config.toml")
    assert (used["tied"], used["beta1"], used["beta2"], used["grad_clip"]) == (False, 0.6, 0.5, 1.0)


@pytest.mark.parametrize(("flag", "expected"), [("--tied", True), ("--no-tied", False)])
def test_a_setting_that_is_true_or_false_has_two_flags(
    llamatui: Command, data: Path, tmp_path: Path, flag: str, expected: bool
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"tied = {json.dumps(not expected)}\n")
    out = tmp_path / "out"
    assert llamatui("train", "run", data, out, "--config", file, flag, *flags(FAST)).code == 0
    assert read_config(out / "config.toml")["tied"] is expected


def test_a_resumed_run_takes_its_settings_from_the_checkpoint(
    llamatui: Command, data: Path, done: Path
) -> None:
    """A default overrides nothing; the file and the flags do."""
    before = read_config(done / "config.toml")
    result = llamatui("train", "run", data, done, "--resume", "--max-iters", 6)
    assert result.code == 0, result.err
    assert "going on after step 4" in result.out
    assert read_config(done / "config.toml") == {**before, "max_iters": 6}
    (done / "more.toml").write_text("max_iters = 8\ngrad_clip = 0.5\n")
    result = llamatui(
        "train", "run", data, done, "--resume", "--config", done / "more.toml", "--grad-clip", "0.25"
    )
    assert result.code == 0, result.err
    assert read_config(done / "config.toml") == {**before, "max_iters": 8, "grad_clip": 0.25}


def test_the_config_of_a_run_goes_with_resume(llamatui: Command, data: Path, done: Path) -> None:
    result = llamatui(
        "train", "run", data, done, "--resume", "--config", done / "config.toml", "--max-iters=5"
    )
    assert result.code == 0, result.err


def test_an_export_replaces_no_checkpoint(llamatui: Command, done: Path) -> None:
    before = (done / "last.pt").read_bytes()
    result = llamatui("train", "export", done, done / "last.pt")
    assert result.code == 2
    assert (done / "last.pt").read_bytes() == before


def test_a_finished_run_says_so(llamatui: Command, data: Path, done: Path) -> None:
    result = llamatui("train", "run", data, done, "--resume")
    assert result.code == 2
    assert "the run is finished: 4 of 4 steps" in result.err
    assert "try: to train longer, choose a --max-iters above 4" in result.err


def test_ctrl_c_saves_and_ends_with_130(
    llamatui: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.Trainer._step

    def step(self: Any, stop: Any) -> Any:
        if self.state.iteration == 2:
            signal.raise_signal(signal.SIGINT)
        return real(self, stop)

    monkeypatch.setattr(trainer.Trainer, "_step", step)
    result = llamatui("train", "run", data, tmp_path / "out", *flags({**FAST, "eval_interval": 100}))
    assert result.code == 130
    assert "stopped after 3 steps" in result.out
    assert "--resume" in result.err
    monkeypatch.undo()
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    monkeypatch.setattr(
        sys, "argv", ["llamatui", "train", "run", str(data), str(tmp_path / "out"), "--resume"]
    )
    assert main.run() == 0


def test_a_run_that_diverges_ends_with_1(llamatui: Command, data: Path, tmp_path: Path) -> None:
    settings = {**FAST, "learning_rate": 1e30, "grad_clip": 0.0}
    result = llamatui("train", "run", data, tmp_path / "out", *flags(settings))
    assert result.code == 1
    assert re.search(r"error: .*step \d.*the run has diverged", result.err)
    assert llamatui("train", "sample", tmp_path / "out", "-n", 2).code == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--dtype", "int8"],
            "the command line: dtype: expected one of auto, float32, bfloat16, float16, found 'int8'",
        ),
        (["--dtype", "float16", "--device", "cpu"], "float16 needs CUDA"),
        (["--max-iters", "50", "--warmup-iters", "50"], "warmup_iters: expected less than max_iters 50"),
        (["--learning-rate", "nan"], "learning_rate: expected a positive number, found nan"),
        (["--config", "none.toml"], "none.toml: cannot be read: No such file"),
        (["--resume", "--init-from", "m.bin"], "--resume and --init-from exclude each other"),
        (["--lora-rank", "4"], "lora_rank: expected a model to add to"),
        (["--dim", "x"], "'x' is not a valid int"),
    ],
)
def test_wrong_flags_are_usage_errors(
    llamatui: Command, data: Path, tmp_path: Path, arguments: list[str], problem: str
) -> None:
    result = llamatui("train", "run", data, tmp_path / "out", *arguments)
    assert result.code == 2
    assert problem in result.err
    assert result.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--config", "none.toml"], ["--dim", 7], ["--dtype", "int8"], ["--beta1", 1]]
)
def test_wrong_arguments_are_told_before_pytorch_is_imported(
    llamatui: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object]
) -> None:
    monkeypatch.setitem(sys.modules, "llamatui.train.run", None)
    assert llamatui("train", "run", data, tmp_path / "out", *arguments).code == 2
    assert llamatui("train", "run", tmp_path / "none", tmp_path / "out").code == 2


def test_in_a_terminal_it_says_that_pytorch_starts(
    llamatui: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert llamatui("train", "sample", tmp_path).err.startswith("starting PyTorch ...\n")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_tells_what_is_wrong(
    llamatui: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """The others give it the time to."""
    waited: list[float] = []
    monkeypatch.setattr(command.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    result = llamatui("train", "run", data, tmp_path / "out", "--dim", 7)
    assert result.code == 2
    assert waited == ([] if rank == "0" else [command.AFTER_THE_FIRST])


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is there")
def test_a_device_that_is_not_there(llamatui: Command, data: Path, tmp_path: Path) -> None:
    result = llamatui("train", "run", data, tmp_path / "out", "--device", "cuda")
    assert (result.code, "--device cuda: PyTorch finds none" in result.err) == (2, True)


def test_a_checkpoint_is_evaluated_on_both_splits(llamatui: Command, data: Path, done: Path) -> None:
    result = llamatui("train", "eval", done, data, "--batches", 1)
    assert (result.code, result.err) == (0, "")
    assert re.fullmatch(r"train \d\.\d{4}  valid \d\.\d{4}  \d\.\d{4} bits per byte\n", result.out)
    assert llamatui("train", "eval", done, done).code == 2


def test_a_sample_is_text_on_stdout_and_the_same_each_time(llamatui: Command, done: Path) -> None:
    result = llamatui("train", "sample", done, "-i", "the cat", "-n", 5, "-s", 3)
    assert result.code == 0
    assert result.out.startswith("the cat")
    assert result.err == ""
    assert llamatui("train", "sample", done / "last.pt", "-i", "the cat", "-n", 5, "-s", 3).out == result.out
    two = llamatui("train", "sample", done, "-i", "the cat", "-n", 5, "-s", 3, "--samples", 2).out
    assert two.startswith(result.out + "---\nthe cat")
    greedy = [llamatui("train", "sample", done, "-t", 0, "-n", 5, "-s", seed).out for seed in (1, 2)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["-t", "nan"], "temperature must be in 0.0..100.0, found nan"),
        (["-t", "inf", "--top-k", 3], "temperature must be in 0.0..100.0, found inf"),
        (["-t", "-1"], "temperature must be in"),
        (["-t", "1e-320"], "temperature must be 0 or at least 1e-05"),
        (["--top-k", "-1"], "top_k must be in"),
        (["-s", "99999999999999999999"], "seed must be in"),
        (["-s", (1 << 64) - 1, "--samples", 2], "seed must be in"),
        (["-s", "-1"], "seed must be in"),
    ],
)
def test_a_sample_has_the_ranges_of_generate(
    llamatui: Command, tmp_path: Path, flags: list[object], problem: str
) -> None:
    result = llamatui("train", "sample", tmp_path, *flags)
    assert (result.code, result.out) == (2, "")
    assert problem in result.err


def test_a_seed_may_be_as_large_as_generate_s(llamatui: Command, done: Path) -> None:
    assert llamatui("train", "sample", done, "-n", 3, "-s", (1 << 64) - 1).code == 0


@pytest.mark.parametrize("lora", [False, True])
def test_an_export_is_the_model_of_the_checkpoint(
    llamatui: Command, data: Path, tmp_path: Path, lora: bool
) -> None:
    """The same greedy text by PyTorch and, of the .bin, by our own engine; low-rank additions are merged."""
    pytest.importorskip("numba")
    write_checkpoint(tmp_path / "m.bin", TINY, 1, random_weights(TINY, std=None))
    write_tokenizer_bin(tmp_path / "tokenizer.bin")
    settings = {"max_seq_len": 8, "batch_size": 2, "max_iters": 3, "learning_rate": 0.01, "sample_tokens": 0}
    settings |= {"warmup_iters": 0, "dtype": "float32", "device": "cpu", "lora_rank": 2 * lora}
    result = llamatui(
        "train", "run", data, tmp_path / "out", "--init-from", tmp_path / "m.bin", *flags(settings)
    )
    assert result.code == 0, result.err
    exported = llamatui("train", "export", tmp_path / "out" / "last.pt", tmp_path / "story.bin")
    assert exported.code == 0, exported.err
    assert exported.out == ""
    assert Checkpoint(tmp_path / "story.bin").config.dim == TINY.dim
    reference = llamatui("train", "sample", tmp_path / "out" / "last.pt", "-t", 0, "-n", 13, "-i", "the").out
    ours = llamatui("generate", tmp_path / "story.bin", "-t", 0, "-n", 13, "-i", "the")
    assert ours.code == 0, ours.err
    assert ours.out == reference


@pytest.mark.parametrize("command", ["sample", "export"])
@pytest.mark.parametrize(
    "kind", ["truncated", "pickle that executes", "zip that executes", "another program's"]
)
def test_what_is_no_checkpoint_is_refused(
    llamatui: Command, done: Path, tmp_path: Path, command: str, kind: str
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    broken(kind, folder / "last.pt", done / "last.pt")
    result = llamatui("train", command, folder, *([tmp_path / "x.bin"] if command == "export" else []))
    assert result.code == 3
    assert result.err.startswith(f"error: {folder / 'last.pt'}")
    assert not (folder / "executed").exists()
    assert not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize("command", ["sample", "export"])
def test_a_folder_without_a_checkpoint_is_refused(llamatui: Command, tmp_path: Path, command: str) -> None:
    result = llamatui("train", command, tmp_path, *([tmp_path / "x.bin"] if command == "export" else []))
    assert result.code == 3
    assert "expected best.pt or last.pt, found neither" in result.err


def test_training_without_pytorch_names_the_package(
    llamatui: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamatui.app.cli.train.find_spec", lambda name: None)
    result = llamatui("train", "run", data, tmp_path)
    assert result.code == 1
    assert 'pip install "llamatui[train]"' in result.err
