"""Setting a run up: what does not go together is said before anything is written."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends import checkpoint_writer  # noqa: E402
from llamatui.errors import CheckpointError, LlamatuiError, ModelError, UsageError  # noqa: E402
from llamatui.export.llama2c_checkpoint import open_llama2c  # noqa: E402
from llamatui.train import checkpoints, machine  # noqa: E402
from llamatui.train.config import read_config  # noqa: E402
from llamatui.train.events import Started  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from tests.train.tiny_runs import SETTINGS, losses, train_until, write_data  # noqa: E402

ONE = {**SETTINGS, "max_iters": 1}
FREE = {k: v for k, v in ONE.items() if k not in ("dim", "n_layers", "n_heads", "n_kv_heads")}
"""Without an architecture."""


pytestmark = pytest.mark.usefixtures("not_measured")


def refused(error: type[LlamatuiError], problem: str, data: Path, out: Path, *args: Any, **more: Any) -> str:
    """The hint of an error that leaves no folder behind."""
    with pytest.raises(error, match=problem) as told:
        list(train(data, out, *args, **more))
    assert not out.exists()
    return told.value.hint


def test_a_run_leaves_a_folder_of_its_own(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    list(train(data, out, ONE))
    assert sorted(p.name for p in out.iterdir()) == ["best.pt", "config.toml", "last.pt", "tokenizer.bin"]
    assert (out / "tokenizer.bin").read_bytes() == (data / "tokenizer.bin").read_bytes()


def test_config_toml_is_the_same_run_again(data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "sample_prompt": '"é" 😀', "seed": 5}
    first = losses(train(data, tmp_path / "a", settings))
    assert losses(train(data, tmp_path / "b", read_config(tmp_path / "a" / "config.toml"))) == first
    assert (tmp_path / "a" / "config.toml").read_text("utf-8") == (tmp_path / "b" / "config.toml").read_text(
        "utf-8"
    )


def test_what_a_resumed_run_is_told_wins_and_the_rest_is_as_it_was(data: Path, tmp_path: Path) -> None:
    train_until(1, data, tmp_path, SETTINGS)
    list(train(data, tmp_path, {"max_iters": 3, "batch_size": 4, "grad_accumulation": 1}, resume=True))
    expected = {**SETTINGS, "max_iters": 3, "batch_size": 4, "grad_accumulation": 1}
    assert read_config(tmp_path / "config.toml").items() >= expected.items()
    assert checkpoints.load(tmp_path / "last.pt")["config"].items() >= expected.items()
    assert checkpoints.load(tmp_path / "last.pt")["windows"] == 3 * 4


@pytest.mark.parametrize("left", ["last.pt", "best.pt"])
def test_a_folder_with_a_run_is_left_alone(data: Path, tmp_path: Path, left: str) -> None:
    list(train(data, tmp_path, ONE))
    if left == "best.pt":
        (tmp_path / "last.pt").unlink()
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=f"expected a folder without a run, found {left}") as error:
        list(train(data, tmp_path, {**ONE, "dim": 32}))
    assert "--resume" in error.value.hint
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_data_s_own_folder_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    before = {p: p.read_bytes() for p in data.iterdir()}
    with pytest.raises(UsageError, match="expected a folder of the run's own, found the data"):
        list(train(data, tmp_path / "x" / ".." / "data", ONE))
    assert {p: p.read_bytes() for p in data.iterdir()} == before


def test_the_fastest_dtype_is_chosen_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run keeps it, whatever is measured then."""
    fastest = torch.bfloat16
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 2e9 if dtype == fastest else 1e9)
    train_until(1, data, tmp_path, {**SETTINGS, "dtype": "auto"})
    assert read_config(tmp_path / "config.toml")["dtype"] == "bfloat16"
    fastest = torch.float32
    first = next(iter(train(data, tmp_path, {"max_iters": 2}, resume=True)))
    assert isinstance(first, Started)
    assert first.dtype == "bfloat16"


def test_a_short_run_warms_up_for_a_tenth_of_it(data: Path, tmp_path: Path) -> None:
    short = {k: v for k, v in SETTINGS.items() if k != "warmup_iters"}
    for n, expected in ((1, 0), (20, 2)):
        out = tmp_path / str(n)
        rates = [rate for *_, rate in losses(train(data, out, {**short, "max_iters": n})).values()]
        assert read_config(out / "config.toml")["warmup_iters"] == expected
        assert max(rates) == short["learning_rate"]


def test_a_config_of_one_s_own_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    mine = "# why\nmax_iters = 1\n"
    (tmp_path / "config.toml").write_text(mine)
    list(train(data, tmp_path, ONE))
    assert (tmp_path / "config.before.toml").read_text() == mine
    (tmp_path / "config.before.toml").unlink()
    list(train(data, tmp_path, {"max_iters": 2}, resume=True))
    assert read_config(tmp_path / "config.toml")["max_iters"] == 2
    assert not list(tmp_path.glob("*before*"))


def test_there_must_be_room_for_the_checkpoints(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For three of them: the last, the best, and one that is written. Those that are there have theirs."""
    list(train(data, tmp_path / "a", ONE))
    size = (tmp_path / "a" / "last.pt").stat().st_size
    free = 2 * size
    monkeypatch.setattr(checkpoint_writer.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(LlamatuiError, match="are needed"):
        list(train(data, tmp_path / "b", ONE))
    assert list((tmp_path / "b").iterdir()) == []
    list(train(data, tmp_path / "a", {"max_iters": 2}, resume=True))
    free = 3 * size
    list(train(data, tmp_path / "b", ONE))


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("n_tokens", [1, 8])
def test_data_shorter_than_a_window_is_refused(tmp_path: Path, split: str, n_tokens: int) -> None:
    data = write_data(tmp_path / "data", **{split: (n_tokens,)})  # type: ignore[arg-type]
    hint = refused(
        UsageError, f"expected a {split} shard of more than 8 tokens, the longest has {n_tokens}",
        data, tmp_path / "out", ONE,
    )  # fmt: skip
    assert ("--max-seq-len 2" if n_tokens == 8 else "more text") in hint


def test_the_window_of_the_hint_fits_both_splits(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=(1000,), valid=(72,))
    hint = refused(UsageError, "train shard", data, tmp_path / "out", {**ONE, "max_seq_len": 2000})
    assert "--max-seq-len 18," in hint
    list(train(data, tmp_path / "out", {**ONE, "max_seq_len": 18}))


def test_a_resumed_run_keeps_its_seed(data: Path, tmp_path: Path) -> None:
    train_until(1, data, tmp_path, SETTINGS)
    with pytest.raises(UsageError, match=r"seed: expected \d+, that of the checkpoint, found 9"):
        list(train(data, tmp_path, {"seed": 9}, resume=True))


def test_there_is_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    hint = refused(
        CheckpointError, "expected a checkpoint, found none", data, tmp_path / "out", {}, resume=True
    )
    assert hint == "leave out --resume to begin a run"


def test_data_as_long_as_a_window_and_its_target_is_enough(tmp_path: Path) -> None:
    list(train(write_data(tmp_path / "data", train=(9,), valid=(9,)), tmp_path / "out", ONE))


@pytest.mark.parametrize("settings", [{"dim": 15}, {"learning_rate": float("nan")}, {"eval_iters": 0}])
def test_settings_are_checked_first(data: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    refused(UsageError, next(iter(settings)), data, tmp_path / "out", {**ONE, **settings})


def test_no_data_is_refused(tmp_path: Path) -> None:
    refused(UsageError, r"expected a folder with dataset\.json", tmp_path / "none", tmp_path / "out", ONE)


@pytest.mark.parametrize("content", [b"\0", None])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes | None) -> None:
    data = write_data(tmp_path / "data")
    (data / "tokenizer.bin").unlink()
    if content:
        (data / "tokenizer.bin").write_bytes(content)
    assert "train pretokenize" in refused(ModelError, "tokenizer", data, tmp_path / "out", ONE)


def test_an_id_outside_the_vocabulary_is_told(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    np.full(50, 400, "<u2").tofile(data / "valid-0000.bin")
    with pytest.raises(LlamatuiError, match="expected ids of a vocabulary of 300, found 400"):
        list(train(data, tmp_path / "out", ONE))


def test_low_rank_additions_need_a_model(data: Path, tmp_path: Path) -> None:
    hint = refused(UsageError, "lora_rank: expected a model", data, tmp_path / "out", {**ONE, "lora_rank": 2})
    assert "--init-from" in hint


def test_a_model_decides_the_architecture(data: Path, model: Path, tmp_path: Path) -> None:
    list(train(data, tmp_path / "out", FREE, init_from=model))
    written = read_config(tmp_path / "out" / "config.toml")
    assert (written["dim"], written["n_layers"], written["hidden_dim"], written["max_seq_len"]) == (
        32,
        2,
        48,
        8,
    )
    assert open_llama2c(tmp_path / "out" / "last.pt").config.max_seq_len == 64
    list(train(data, tmp_path / "again", written, init_from=model))


@pytest.mark.parametrize(
    ("name", "value"), [("dim", 16), ("n_layers", 3), ("tied", False), ("rope_theta", 5e5)]
)
def test_another_architecture_than_the_model_s_is_refused(
    data: Path, model: Path, tmp_path: Path, name: str, value: object
) -> None:
    settings = {**FREE, name: value}
    refused(
        UsageError, f"{name}: expected .* found {value}", data, tmp_path / "out", settings, init_from=model
    )


def test_a_context_longer_than_the_model_s_is_refused(data: Path, model: Path, tmp_path: Path) -> None:
    settings = {**FREE, "max_seq_len": 65}
    refused(
        UsageError, "max_seq_len: expected 64, that of .*, found 65", data, tmp_path / "out", settings,
        init_from=model,
    )  # fmt: skip


def test_a_run_is_known_by_its_checkpoints(data: Path, tmp_path: Path) -> None:
    list(train(data, tmp_path / "a", ONE))
    (tmp_path / "a" / "config.toml").unlink()
    list(train(data, tmp_path / "b", FREE, init_from=tmp_path / "a"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        list(train(data, tmp_path / "c", FREE, init_from=tmp_path))


def test_the_first_losses_are_those_of_the_model_to_begin_with(
    data: Path, model: Path, tmp_path: Path
) -> None:
    runs = {"all": {}, "lora": {"lora_rank": 4}}
    first = {k: losses(train(data, tmp_path / k, {**FREE, **more, "dropout": 0.0}, init_from=model))[1][0]
             for k, more in runs.items()}  # fmt: skip
    assert first["all"] == pytest.approx(first["lora"], rel=1e-6)
    again = tmp_path / "again"
    list(train(data, tmp_path / "lr0", {**FREE, "learning_rate": 1e-30}, init_from=model))
    same = losses(train(data, again, {**FREE, "dropout": 0.0}, init_from=tmp_path / "lr0" / "last.pt"))
    assert same[1][0] == pytest.approx(first["all"], rel=1e-6)


def test_a_folder_that_cannot_be_made_is_an_error(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LlamatuiError, match="cannot be written") as error:
        list(train(data, tmp_path / "file" / "out", ONE))
    assert error.value.exit_code == 1


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_to_is_an_error(data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LlamatuiError, match="cannot be written: Permission denied"):
        list(train(data, tmp_path, ONE))
