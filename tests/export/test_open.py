"""A model of any kind is opened by what lies at its path."""

import json
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import CheckpointError
from llamatui.export.open import open_model
from tests.export.hf_models import HF_TINY, random_tensors, write_folder
from tests.tiny import TINY, random_weights


def test_a_bin_is_opened(tiny_model: Path) -> None:
    source = open_model(tiny_model)
    assert source.path == tiny_model
    assert (source.config.dim, source.config.vocab_size) == (TINY.dim, TINY.vocab_size)


def test_a_bin_may_have_any_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "story", TINY, 1, random_weights(TINY))
    assert open_model(tmp_path / "story").config == TINY


def test_a_gguf_file_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.export.tiny_gguf import CONFIG, write_gguf

    assert open_model(write_gguf(tmp_path / "model.gguf")).config == CONFIG


def test_a_folder_of_hugging_face_is_opened(tmp_path: Path) -> None:
    source = open_model(write_folder(tmp_path / "hf"))
    assert source.config.hidden_dim == HF_TINY.hidden_dim
    np.testing.assert_array_equal(source.tensor("norm", 0)[0:32], random_tensors()["model.norm.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_checkpoint_of_training_is_opened(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("torch")
    from tests.export.test_llama2c_checkpoint import state_of, write_checkpoint

    path = write_checkpoint(tmp_path / f"model{suffix}", state_of(TINY))
    assert open_model(path).config == TINY


def test_metas_folder_is_opened(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.export.test_meta import SMALL, shards_of, state_of, write_folder

    source = open_model(write_folder(tmp_path / "meta", shards_of(state_of(SMALL), 1)))
    assert any("params.json" in note for note in source.notes)


def test_a_folder_with_both_is_read_as_hugging_faces(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "both")
    (folder / "params.json").write_text(json.dumps({"dim": 1}))
    assert open_model(folder).config.dim == HF_TINY.dim


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.gguf", "folder", "folder/model"])
def test_what_is_not_there_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="found no such file") as caught:
        open_model(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.gguf", "notes.txt"])
@pytest.mark.parametrize("content", [b"Once upon a time", b"PK\x03\x04", b"GGUF", b"ak42"])
def test_what_is_no_model_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_model(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message
    assert caught.value.hint


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected") as caught:
        open_model(tmp_path)
    assert caught.value.hint
