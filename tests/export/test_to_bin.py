"""From a source to a `.bin` with its tokenizer beside it."""

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.app.model import load_model
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, tensor_layout
from llamatui.backends.q8_0 import Q8Tensor, quantize
from llamatui.errors import CheckpointError, LlamatuiError, UsageError
from llamatui.export import to_bin
from llamatui.export.source import Source
from llamatui.export.to_bin import default_version, export_bin
from tests.tiny import CHATML_TINY, TINY, random_weights, write_chat_tokenizer


def source(tmp_path: Path, config: ModelConfig = CHATML_TINY) -> Source:
    write_chat_tokenizer(tmp_path / "t.json")
    files = {
        ".tokenizer.json": (tmp_path / "t.json").read_bytes(),
        ".tokenizer_config.json": (tmp_path / "t_config.json").read_bytes(),
    }
    return Source(tmp_path / "source", config, random_weights(config), files)


def q8_0_source(tmp_path: Path, *, whole: bool = True) -> Source:
    weights = random_weights(TINY)

    def tensor(name: str, layer: int):
        w = weights(name, layer)
        return quantize(w, 16) if w.ndim == 2 and (whole or name != "wo") else w

    return Source(tmp_path / "source", replace(TINY, group_size=16), tensor)


def test_the_model_chats_with_no_other_flag(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_bin(source(tmp_path), out / "m.bin", version=1)
    assert {path.name for path in out.iterdir()} == {"m.bin", "m.tokenizer.json", "m.tokenizer_config.json"}
    model = load_model(out / "m.bin")
    assert model.checkpoint.config == CHATML_TINY
    assert model.chat_format.name == "chatml"
    assert model.default_system == "You are tiny"


def test_a_tokenizer_of_another_model_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "m.tokenizer.model").write_bytes(b"old")
    (tmp_path / "m.tokenizer.bin").write_bytes(b"old")
    export_bin(source(tmp_path), tmp_path / "m.bin")
    assert not list(tmp_path.glob("m.tokenizer.[mb]*"))


def test_an_interrupted_export_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.tokenizer.bin").write_bytes(b"old")
    whole = source(tmp_path)

    def interrupted(name: str, layer: int):
        if name == "w1":
            raise KeyboardInterrupt
        return whole.tensor(name, layer)

    with pytest.raises(KeyboardInterrupt):
        export_bin(replace(whole, tensor=interrupted), out / "m.bin")
    assert [path.name for path in out.iterdir()] == ["m.tokenizer.bin"]


def test_the_tokenizer_is_there_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed: list[str] = []
    replace_file = Path.replace

    def tell(self: Path, target: Path) -> Path:
        renamed.append(target.name)
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", tell)
    export_bin(source(tmp_path), tmp_path / "m.bin")
    assert renamed[-1] == "m.bin"
    assert set(renamed) == {"m.bin", "m.tokenizer.json", "m.tokenizer_config.json"}


def test_a_tokenizer_that_cannot_be_written_leaves_no_model(tmp_path: Path) -> None:
    whole = source(tmp_path)
    (tmp_path / "m.tokenizer.json").mkdir()
    with pytest.raises(LlamatuiError, match=r"m\.bin: cannot be written"):
        export_bin(whole, tmp_path / "m.bin")
    assert not (tmp_path / "m.bin").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_the_old_tokenizer_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = source(tmp_path)
    export_bin(whole, tmp_path / "m.bin")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("m.*")}
    write_bytes = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "_config" in self.name:
            raise OSError(28, "No space left on device")
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    other = replace(whole, tokenizer={end: content + b" " for end, content in whole.tokenizer.items()})
    with pytest.raises(LlamatuiError, match="No space left"):
        export_bin(other, tmp_path / "m.bin")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("m.*")} == before
    assert not list(tmp_path.glob(".*"))


def test_small_models_stay_exact_and_large_ones_become_q8_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_version(source(tmp_path)) == 1
    monkeypatch.setattr(to_bin, "LARGEST_FP32", 1000)
    assert default_version(source(tmp_path)) == 2


def test_q8_0_stays_what_it_is(tmp_path: Path) -> None:
    q8_0 = q8_0_source(tmp_path)
    assert default_version(q8_0) == 2
    report = export_bin(q8_0, tmp_path / "m.bin")
    assert report.config.group_size == 16
    assert set(report.errors.values()) == {0.0}
    for name in ("wq", "w2", "tok_embeddings"):
        stored = Checkpoint(tmp_path / "m.bin").tensors[name]
        assert isinstance(stored, Q8Tensor)
        expected = q8_0.tensor(name, 0)
        part = stored if name == "tok_embeddings" else stored[0]
        np.testing.assert_array_equal(part.q, expected.q)
        np.testing.assert_array_equal(part.scale, expected.scale)


def test_other_group_sizes_are_quantized_again(tmp_path: Path) -> None:
    report = export_bin(q8_0_source(tmp_path), tmp_path / "m.bin", group_size=8)
    assert report.config.group_size == 8
    assert report.errors["wq.0"] > 0


def test_a_mixed_source_is_exact_where_it_is_small(tmp_path: Path) -> None:
    assert default_version(q8_0_source(tmp_path, whole=False)) == 1


def test_the_report_names_the_worst_tensor(tmp_path: Path) -> None:
    whole = source(tmp_path)

    def tensor(name: str, layer: int):
        w = whole.tensor(name, layer)
        return w * 100 if (name, layer) == ("w3", 1) else w

    report = export_bin(replace(whole, tensor=tensor), tmp_path / "m.bin", version=2)
    assert report.worst_tensor == "w3.1"
    w = tensor("w3", 1)
    assert report.max_error == pytest.approx(np.abs(w - quantize(w, 16).dequantize()).max())
    largest = []  # of each group of 16
    for spec in tensor_layout(report.config, 2):
        for layer in range(max(spec.n_layers, 1) if spec.group_size else 0):
            w = tensor(spec.name, layer)
            largest.append(np.abs(w - quantize(w, 16).dequantize()).reshape(-1, 16).max(axis=1))
    assert report.mean_error == pytest.approx(np.concatenate(largest).mean())


def test_version_0_drops_only_what_the_vocabulary_says_again(tmp_path: Path) -> None:
    report = export_bin(source(tmp_path), tmp_path / "m.bin", version=0)
    assert report.config == TINY_AS_READ
    with pytest.raises(CheckpointError, match="version 0 cannot hold rope_theta"):
        export_bin(source(tmp_path, replace(CHATML_TINY, rope_theta=5e5)), tmp_path / "m.bin", version=0)


TINY_AS_READ = replace(CHATML_TINY, chat_format="", bos_id=-1, eos_ids=())


def test_no_room_is_told_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 1000))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(LlamatuiError, match=r"0\.10 MB are needed, 0\.00 MB are free"):
        export_bin(source(tmp_path), out / "m.bin")
    assert not list(out.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LlamatuiError, match="expected a folder, found none"):
        export_bin(source(tmp_path), tmp_path / "no" / "m.bin")
    (tmp_path / "file").touch()
    with pytest.raises(LlamatuiError, match="file: expected a folder, found a file"):
        export_bin(source(tmp_path), tmp_path / "file" / "m.bin")
    with pytest.raises(UsageError, match="expected a file to write, found a folder"):
        export_bin(source(tmp_path), tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_or_device_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.bin")
    with pytest.raises(UsageError, match="found a device or pipe"):
        export_bin(source(tmp_path), tmp_path / "m.bin")
    assert (tmp_path / "m.bin").is_fifo()


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"mine")
    with pytest.raises(UsageError, match="another file than the source"):
        export_bin(source(tmp_path), tmp_path / "source")
    assert (tmp_path / "source").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["last.pt", "ex"])
def test_another_ending_than_bin_is_refused(tmp_path: Path, name: str) -> None:
    """It may be a checkpoint of somebody's."""
    (tmp_path / "last.pt").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"expected a name that ends in \.bin") as caught:
        export_bin(source(tmp_path), tmp_path / name)
    assert caught.value.hint == str((tmp_path / name).with_suffix(".bin"))
    assert (tmp_path / "last.pt").read_bytes() == b"mine"
    assert not (tmp_path / "ex").exists()


@pytest.mark.parametrize("size", [7, 64, 48])
def test_a_group_size_that_does_not_fit_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(UsageError, match=rf"divides dim 32 and hidden_dim 48, found {size}") as caught:
        export_bin(source(tmp_path), tmp_path / "m.bin", version=2, group_size=size)
    assert caught.value.hint == "--group-size 4 | 8 | 16"
    assert not (tmp_path / "m.bin").exists()


@pytest.mark.parametrize("version", [0, 1, None])
def test_only_version_2_has_groups(tmp_path: Path, version: int | None) -> None:
    with pytest.raises(UsageError, match="group size 8: expected version 2, found") as caught:
        export_bin(source(tmp_path), tmp_path / "m.bin", version=version, group_size=8)
    assert caught.value.hint == "--version 2"


def test_weights_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    whole = source(tmp_path)

    def tensor(name: str, layer: int):
        w = whole.tensor(name, layer)
        if name == "wv":
            w[0, 0] = np.nan
        return w

    with pytest.raises(CheckpointError, match=r"wv\.0: expected numbers, found"):
        export_bin(replace(whole, tensor=tensor), tmp_path / "m.bin", version=2)
