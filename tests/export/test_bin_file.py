"""`.bin` files as a source: from version to version nothing is lost that the version can hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.errors import CheckpointError
from llamatui.export.bin_file import open_bin
from llamatui.export.to_bin import export_bin
from llamatui.export.to_hf import export_hf
from tests.tiny import TINY, random_weights, write_tokenizer_bin

OWN_CLASSIFIER = replace(TINY, shared_classifier=False)
RICH = replace(
    TINY,
    rope_theta=5e5,
    rope_scaling=RopeScaling(32, 1, 4, 8192),
    norm_eps=1e-6,
    chat_format="llama3",
    bos_id=1,
    eos_ids=(2, 3),
)


def write(path: Path, config: ModelConfig, version: int) -> Path:
    write_checkpoint(path, config, version, random_weights(config), group_size=16)
    return path


@pytest.mark.parametrize("config", [TINY, OWN_CLASSIFIER], ids=["shared", "own"])
def test_version_0_to_1_and_back_is_the_same_file(tmp_path: Path, config: ModelConfig) -> None:
    first = write(tmp_path / "0.bin", config, 0)
    export_bin(open_bin(first), tmp_path / "1.bin", version=1)
    assert Checkpoint(tmp_path / "1.bin").version == 1
    export_bin(open_bin(tmp_path / "1.bin"), tmp_path / "back.bin", version=0)
    assert (tmp_path / "back.bin").read_bytes() == first.read_bytes()


@pytest.mark.parametrize("config", [TINY, OWN_CLASSIFIER, RICH], ids=["shared", "own", "rich"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_same_version_is_the_same_file(tmp_path: Path, config: ModelConfig, version: int) -> None:
    first = write(tmp_path / "a.bin", config, version)
    report = export_bin(open_bin(first), tmp_path / "b.bin", version=version)
    assert (tmp_path / "b.bin").read_bytes() == first.read_bytes()
    assert report.max_error == 0


@pytest.mark.parametrize("config", [OWN_CLASSIFIER, RICH], ids=["own", "rich"])
def test_version_2_to_1_holds_the_values_that_q8_0_means(tmp_path: Path, config: ModelConfig) -> None:
    quantized = Checkpoint(write(tmp_path / "2.bin", config, 2))
    export_bin(open_bin(tmp_path / "2.bin"), tmp_path / "1.bin", version=1)
    exact = Checkpoint(tmp_path / "1.bin")
    assert exact.config == replace(quantized.config, group_size=0)
    for spec in tensor_layout(config, 1):
        tensor = quantized.tensors[spec.name]
        values = tensor.dequantize() if isinstance(tensor, Q8Tensor) else tensor
        np.testing.assert_array_equal(exact.fp32(spec.name), values)


def test_q8_0_rows_pass_as_they_are(tmp_path: Path) -> None:
    source = open_bin(write(tmp_path / "2.bin", TINY, 2))
    assert source.config.group_size == 16
    stored = Checkpoint(tmp_path / "2.bin").tensors["w2"]
    rows = source.tensor("w2", 1)[3:9]
    assert isinstance(rows, Q8Tensor)
    assert isinstance(stored, Q8Tensor)
    np.testing.assert_array_equal(rows.q, stored.q[1, 3:9])
    np.testing.assert_array_equal(rows.scale, stored.scale[1, 3:9])


def test_a_version_2_file_stays_one_unless_told_otherwise(tmp_path: Path) -> None:
    export_bin(open_bin(write(tmp_path / "2.bin", TINY, 2)), tmp_path / "b.bin")
    assert Checkpoint(tmp_path / "b.bin").version == 2


def test_the_tokenizer_beside_the_file_goes_along(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", TINY, 0)
    write_tokenizer_bin(tmp_path / "tokenizer.bin", TINY.vocab_size)
    source = open_bin(tmp_path / "a.bin")
    assert len(source.tokenizer) == 1
    assert next(iter(source.tokenizer)).startswith(".tokenizer.")


def test_the_tokenizer_tells_ids_that_the_file_lacks(tmp_path: Path) -> None:
    write(tmp_path / "a.bin", TINY, 0)
    write(tmp_path / "rich.bin", RICH, 1)
    write_tokenizer_bin(tmp_path / "tokenizer.bin", TINY.vocab_size)
    source = open_bin(tmp_path / "a.bin")
    assert (source.config.bos_id, source.config.eos_ids) == (1, (2,))
    assert open_bin(tmp_path / "rich.bin").config == RICH
    export_hf(source, tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_bytes())["eos_token_id"] == 2


def test_without_a_tokenizer_there_is_none(tmp_path: Path) -> None:
    assert open_bin(write(tmp_path / "a.bin", TINY, 0)).tokenizer == {}


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"GGUF" + bytes(300))
    with pytest.raises(CheckpointError, match="found a GGUF file"):
        open_bin(tmp_path / "a.bin")
