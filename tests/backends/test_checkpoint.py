"""What is written is what is read, byte for byte as llama2.c has it."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends import checkpoint_writer
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import Q8Tensor, fit_group_size, group_errors, quantize
from llamatui.errors import CheckpointError
from tests.tiny import TINY, random_weights

FULL = replace(
    TINY,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    norm_eps=1e-6,
    chat_format="llama3",
    bos_id=1,
    eos_ids=(2, 7, 9),
)


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_round_trip(version: int, shared: bool, tmp_path: Path) -> None:
    config = replace(TINY if version == 0 else FULL, shared_classifier=shared)
    source = random_weights(config)
    report = write_checkpoint(tmp_path / "m.bin", config, version, source, group_size=64)
    checkpoint = Checkpoint(tmp_path / "m.bin")
    assert checkpoint.version == version
    assert checkpoint.config == report.config == replace(config, group_size=16 if version == 2 else 0)
    assert checkpoint.file_size == report.file_size == (tmp_path / "m.bin").stat().st_size
    for spec in tensor_layout(checkpoint.config, version):
        if spec.name == "rope_freqs":
            continue
        tensor = checkpoint.tensors[spec.name]
        for layer in range(max(spec.n_layers, 1)):
            part = tensor[layer] if spec.n_layers else tensor
            w = source(spec.name, layer)
            if isinstance(part, Q8Tensor):
                expected = quantize(w, 16)
                np.testing.assert_array_equal(part.q, expected.q)
                np.testing.assert_array_equal(part.scale, expected.scale)
            else:
                np.testing.assert_array_equal(part, w)
    if shared:
        assert checkpoint.tensors["wcls"] is checkpoint.tensors["tok_embeddings"]


def test_v0_bytes_are_those_of_legacy_export(tmp_path: Path) -> None:
    config = replace(TINY, n_layers=1, shared_classifier=False)
    source = random_weights(config)
    write_checkpoint(tmp_path / "m.bin", config, 0, source)
    names = ["tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm"]
    inverse = 1.0 / 10000.0 ** (np.arange(0, 8, 2) / 8)
    angles = np.outer(np.arange(64), inverse)
    data = (tmp_path / "m.bin").read_bytes()
    weights = b"".join(source(name, 0).tobytes() for name in names)
    assert data[:28] == struct.pack("<7i", 32, 48, 1, 4, 2, -300, 64)
    assert data[28 : 28 + len(weights)] == weights
    tables = np.frombuffer(data, np.float32, 2 * angles.size, 28 + len(weights)).reshape(2, 64, 4)
    np.testing.assert_allclose(tables, [np.cos(angles), np.sin(angles)], atol=1e-5)
    assert data.endswith(source("wcls", 0).tobytes())


def test_v2_bytes_are_those_of_version2_export(tmp_path: Path) -> None:
    config = replace(TINY, n_layers=2)
    source = random_weights(config)
    write_checkpoint(tmp_path / "m.bin", config, 2, source, group_size=16)
    data = (tmp_path / "m.bin").read_bytes()
    assert data[:41] == struct.pack("<Ii7iBi", 0x616B3432, 2, 32, 48, 2, 4, 2, 300, 64, 1, 16)
    norms = (
        [source("attention_norm", i) for i in (0, 1)]
        + [source("ffn_norm", i) for i in (0, 1)]
        + [source("norm", 0)]
    )
    body = b"".join(w.tobytes() for w in norms)
    for name in ("tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        for layer in range(1 if name == "tok_embeddings" else 2):
            q = quantize(source(name, layer), 16)
            body += q.q.tobytes() + q.scale.tobytes()
    assert data[256:] == body


def test_the_extension_hides_where_c_readers_do_not_look(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", FULL, 1, random_weights(FULL))
    header = (tmp_path / "m.bin").read_bytes()[:256]
    assert header[37:64] == bytes(27)
    assert header[64:68] == b"LTUI"
    (tmp_path / "plain.bin").write_bytes(header[:64] + bytes(192) + (tmp_path / "m.bin").read_bytes()[256:])
    assert Checkpoint(tmp_path / "plain.bin").config == TINY


def test_llama3_vocabulary_means_its_theta() -> None:
    config = ModelConfig(8, 8, 1, 2, 1, 128256, 16)
    header = struct.pack("<7i", 8, 8, 1, 2, 1, 128256, 16)
    from llamatui.backends.checkpoint import parse_header

    assert parse_header(header, "x") == (0, replace(config, rope_theta=500000.0))


@pytest.mark.parametrize(
    ("dims", "expected"), [((64, 128), 64), ((288, 768), 32), ((64, 172), 4), ((30, 34), 2), ((7, 9), 1)]
)
def test_group_size_backs_off_until_it_divides(dims: tuple[int, int], expected: int) -> None:
    assert fit_group_size(64, *dims) == expected


def test_quantization_error_is_reported_by_tensor(tmp_path: Path) -> None:
    source = random_weights(TINY)
    report = write_checkpoint(tmp_path / "m.bin", TINY, 2, source, group_size=16)
    w = source("w2", 1)
    assert report.errors["w2.1"] == group_errors(w, quantize(w, 16)).max()
    assert report.max_error == max(report.errors.values())
    assert len(report.errors) == 1 + 7 * TINY.n_layers


def test_quantize_is_symmetric_and_takes_zeros() -> None:
    w = np.array([[0, 0, 0, 0, -2.54, 1.27, 0.635, 0.01]], np.float32)
    tensor = quantize(w, 4)
    assert tensor.q.tolist() == [[0, 0, 0, 0, -127, 64, 32, 0]]
    assert tensor.scale.tolist() == [[0, pytest.approx(0.02)]]
    assert group_errors(w, tensor).max() <= 0.02 / 2 + 1e-6


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"the old file")
    source = random_weights(TINY)

    def interrupted(name: str, layer: int) -> np.ndarray:
        if name == "w3":
            raise KeyboardInterrupt
        return source(name, layer)

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, TINY, 1, interrupted)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_progress_ends_at_the_size_of_the_file(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = write_checkpoint(
        tmp_path / "m.bin",
        TINY,
        2,
        random_weights(TINY),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (report.file_size, report.file_size)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"n_kv_heads": 3}, "n_heads 4 is not divisible"),
        ({"chat_format": "x" * 17}, "16 ASCII characters"),
        ({"eos_ids": tuple(range(9))}, "8 eos ids"),
        ({"eos_ids": (300,)}, "token id 300"),
    ],
)
def test_a_config_that_makes_no_sense_is_not_written(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    config = replace(TINY, **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=problem):
        write_checkpoint(tmp_path / "m.bin", config, 1, random_weights(TINY))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"rope_theta": 500000.0}, {"norm_eps": 1e-6}, {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 64)}]
)
def test_version_0_refuses_what_it_would_lose(change: dict[str, object], tmp_path: Path) -> None:
    config = replace(TINY, **change)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="version 0 cannot hold"):
        write_checkpoint(tmp_path / "m.bin", config, 0, random_weights(config))


def test_a_group_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="group size must be positive, found 0"):
        write_checkpoint(tmp_path / "m.bin", TINY, 2, random_weights(TINY), group_size=0)


def test_a_tensor_of_another_shape_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tok_embeddings: expected shape \(300, 32\), found \(3, 3\)"):
        write_checkpoint(tmp_path / "m.bin", TINY, 0, lambda name, layer: np.zeros((3, 3), np.float32))


def test_a_tensor_is_written_in_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "BLOCK", 5 * 32)
    asked: list[int] = []

    class Counted:
        def __init__(self, w: np.ndarray) -> None:
            self.w, self.shape = w, w.shape

        def __getitem__(self, rows: slice) -> np.ndarray:
            asked.append(self.w[rows].size)
            return self.w[rows]

    weights = random_weights(TINY)
    for version in (1, 2):
        write_checkpoint(tmp_path / "whole.bin", TINY, version, weights, group_size=16)
        write_checkpoint(
            tmp_path / "blocks.bin", TINY, version, lambda *key: Counted(weights(*key)), group_size=16
        )
        assert (tmp_path / "whole.bin").read_bytes() == (tmp_path / "blocks.bin").read_bytes()
    assert max(asked) == 5 * 32


def test_the_file_may_be_read_by_others(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", TINY, 1, random_weights(TINY))
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "m.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_subnormal_weights_keep_their_sign() -> None:
    w = np.array([[1e-43, -1e-43, 1e-44, 0]], np.float32)
    assert (np.sign(quantize(w, 4).q) == np.sign(w)).all()
