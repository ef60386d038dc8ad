"""Checkpoint files: whole or not there, and nothing in one is ever executed."""

import errno
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import CheckpointError, LlamatuiError  # noqa: E402
from llamatui.export.llama2c_checkpoint import open_llama2c  # noqa: E402
from llamatui.train import checkpoints, machine  # noqa: E402
from llamatui.train.events import Step  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from tests.train.tiny_runs import SETTINGS, train_until  # noqa: E402

pytestmark = pytest.mark.usefixtures("not_measured")


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder after two steps."""
    out = tmp_path_factory.mktemp("stopped")
    train_until(2, data, out, SETTINGS)
    return out


def fails_midway(error: Exception) -> Any:
    def save(content: object, file: io.BufferedWriter) -> None:
        file.write(b"half a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:783] . unexpected pos 64 vs 0\nat ..."),
            "unexpected pos",
        ),
    ],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    path = tmp_path / "last.pt"
    checkpoints.save(path, {"a": 1})
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", fails_midway(error))
    with pytest.raises(
        LlamatuiError, match=f"cannot be written: .*{reason}.*the last good one is {path}"
    ) as told:
        checkpoints.save(path, {"a": 2})
    assert "--resume" in told.value.hint
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", fails_midway(KeyboardInterrupt()))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path / "last.pt", {})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_run_and_can_be_mended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = fails_midway(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    events = train(data, tmp_path, {**SETTINGS, "max_iters": 5})
    while not isinstance(next(events), Step):
        pass
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LlamatuiError, match="No space left"):
        list(events)
    monkeypatch.undo()
    monkeypatch.setattr(machine, "matmul_flops", lambda device, dtype: 1e9)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.pt",
        "config.toml",
        "last.pt",
        "tokenizer.bin",
    ]
    assert checkpoints.load(tmp_path / "last.pt")["iter_num"] == 0
    *_, end = train(data, tmp_path, {}, resume=True)
    assert end.iteration == 5


def no_hardlink(self: Path, target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("hardlinks", [True, False])
def test_best_stays_when_last_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardlinks: bool
) -> None:
    if not hardlinks:
        monkeypatch.setattr(Path, "hardlink_to", no_hardlink)
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    for number in (1, 2):
        last.write_bytes(b"%d" % number)
        if number == 1:
            checkpoints.copy(last, best)
    assert (best.read_bytes() == b"1") != hardlinks  # written in place, a second name would change with it
    checkpoints.copy(last, best)
    checkpoints.save(last, {"a": 3})
    assert best.read_bytes() == b"2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_a_copy_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LlamatuiError, match=r"best\.pt: cannot be written: No such file"):
        checkpoints.copy(tmp_path / "none.pt", tmp_path / "best.pt")
    assert not list(tmp_path.iterdir())


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def broken(kind: str, path: Path, good: Path) -> None:
    """Writes a file that is no checkpoint."""
    content = good.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "text":
        path.write_text("once upon a time")
    elif kind == "pickle that executes":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))
    elif kind == "zip that executes":
        with zipfile.ZipFile(good) as whole, zipfile.ZipFile(path, "w") as changed:
            for name in whole.namelist():
                data = whole.read(name)
                bomb = pickle.dumps(Bomb(path.with_name("executed")), protocol=2)
                changed.writestr(name, bomb if name.endswith("/data.pkl") else data)
    elif kind == "another program's":
        torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, path)
    elif kind == "a bare tensor":
        torch.save(torch.ones(2), path)
    else:
        saved = torch.load(good, weights_only=True)
        if kind == "no config":
            saved["config"] = None
        elif kind == "foreign config":
            saved["config"] = {"out_dir": "out"}
        elif kind == "no optimizer":
            saved["optimizer"] = {}
        elif kind == "no step":
            saved["iter_num"] = "three"
        elif kind == "other weights":
            saved["model"]["norm.weight"] = torch.ones(7)
        elif kind == "missing weights":
            del saved["model"]["layers.0.attention.wq.weight"]
        elif kind == "foreign weights":
            saved["model"]["extra"] = torch.ones(7)
        torch.save(saved, path)


@pytest.mark.parametrize(
    "kind",
    ["empty", "truncated", "text", "pickle that executes", "zip that executes", "another program's",
     "a bare tensor", "no config", "foreign config", "no optimizer", "no step", "other weights",
     "missing weights", "foreign weights"],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused_and_never_executed(
    data: Path, stopped: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "last.pt"
    broken(kind, path, stopped / "last.pt")
    shutil.copy(stopped / "tokenizer.bin", tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(CheckpointError) as error:
        list(train(data, tmp_path, {}, resume=True))
    assert str(path) in error.value.message
    assert "\n" not in error.value.message
    assert len(error.value.message) < len(str(path)) + 400
    assert error.value.hint
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_llama2c_s_own_checkpoint_is_to_begin_from_not_to_resume(
    data: Path, stopped: Path, tmp_path: Path
) -> None:
    saved = torch.load(stopped / "last.pt", weights_only=True)
    for key in ("windows", "scaler"):
        del saved[key]
    torch.save(saved, tmp_path / "last.pt")
    with pytest.raises(CheckpointError) as error:
        list(train(data, tmp_path, {}, resume=True))
    assert "--init-from" in error.value.hint
    settings = {"max_iters": 1, "batch_size": 2, "max_seq_len": 8, "sample_tokens": 0}
    *_, end = train(data, tmp_path / "out", settings, init_from=tmp_path / "last.pt")
    assert end.iteration == 1


def test_without_a_checkpoint_there_is_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.pt: expected a checkpoint, found none"):
        list(train(data, tmp_path / "none", {}, resume=True))
    assert not (tmp_path / "none").exists()


def test_what_a_killed_run_leaves_is_found_and_harms_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed where the part is a second name of the best checkpoint."""
    last, best, part = (tmp_path / name for name in ("last.pt", "best.pt", ".last.pt.part"))
    checkpoints.save(best, {"a": 1})
    before = best.read_bytes()
    part.hardlink_to(best)
    checkpoints.save(last, {"a": 2})
    assert best.read_bytes() == before
    part.hardlink_to(best)
    monkeypatch.setattr(Path, "hardlink_to", no_hardlink)
    last.write_bytes(b"another")
    checkpoints.copy(best, last)
    assert last.read_bytes() == best.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_its_model_args_are_those_of_llama2c(stopped: Path) -> None:
    """Whose programs call `ModelArgs(**checkpoint["model_args"])`."""
    assert checkpoints.load(stopped / "last.pt")["model_args"] == {
        "dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 300, "hidden_dim": 64,
        "multiple_of": 32, "norm_eps": 1e-5, "max_seq_len": 8, "dropout": 0.2,
    }  # fmt: skip


def as_of_old(path: Path) -> None:
    """What we said beside llama2.c's arguments was among them, and some of it not at all."""
    saved = torch.load(path, weights_only=True)
    saved["model_args"] |= saved.pop("llamatui")
    del saved["evaluated"], saved["data"]
    torch.save(saved, path)


def test_an_older_checkpoint_is_read_and_gone_on_from(data: Path, tmp_path: Path) -> None:
    train_until(4, data, tmp_path, {**SETTINGS, "tied": False, "rope_theta": 5e5})
    config = open_llama2c(tmp_path / "last.pt").config
    as_of_old(tmp_path / "last.pt")
    assert open_llama2c(tmp_path / "last.pt").config == config
    *_, end = train(data, tmp_path, {}, resume=True)
    assert end.iteration == 12
    assert open_llama2c(tmp_path / "last.pt").config == config


def test_a_checkpoint_says_all_of_its_architecture(data: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "max_iters": 1, "tied": False, "rope_theta": 5e5, "hidden_dim": 40}
    list(train(data, tmp_path, settings))
    config = open_llama2c(tmp_path / "last.pt").config
    assert (config.dim, config.n_layers, config.n_heads, config.n_kv_heads) == (16, 1, 2, 1)
    assert (config.hidden_dim, config.max_seq_len, config.vocab_size) == (40, 8, 300)
    assert (config.rope_theta, config.shared_classifier) == (5e5, False)
