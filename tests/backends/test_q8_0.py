"""The int8 backend: tokens and memory. Its arithmetic, group size by group size: test_simd_targets.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends.base import KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.backends.registry import create_backend
from tests.backends.reference import runq_logits
from tests.tiny import TINY, random_weights

pytest.importorskip("numba")


@pytest.mark.parametrize("shared", [True, False])
def test_greedy_tokens_are_those_of_runq(shared: bool, tmp_path: Path) -> None:
    config = ModelConfig(96, 160, 2, 6, 2, 211, 64, shared_classifier=shared)
    write_checkpoint(tmp_path / "m.bin", config, 2, random_weights(config, std=None))
    checkpoint = Checkpoint(tmp_path / "m.bin")
    backend = create_backend("q8_0", checkpoint, 2)
    cache = KVCache(config)
    tokens = [1]
    while len(tokens) < 30:
        tokens.append(int(backend.forward(tokens[-1:], cache).argmax()))
    expected = runq_logits(config, checkpoint.tensors, tokens[:-1])  # (29, vocab_size)
    best = expected.max(axis=1)
    chosen = expected[np.arange(29), tokens[1:]]
    # Equal, but where two tokens are as likely as each other to the last bits.
    assert (best - chosen).max() < 0.05 * expected.std()
    assert (best == chosen).mean() > 0.9


@pytest.mark.parametrize("n", [1, 3])
def test_numbers_between_two_int8_are_rounded_away_from_zero(n: int, tmp_path: Path) -> None:
    """As C's round() does. Numbers are such that nothing else is rounded."""
    config = ModelConfig(64, 64, 1, 2, 2, 40, 64, shared_classifier=False)
    odd = np.arange(1, 128, 2)  # (64,)
    odd[0] = 254  # the scale is 2, and all the others lie in the middle
    weights = np.where(np.arange(64) % 3, odd, -odd).astype(np.float32)
    source = random_weights(config)

    def exact(name: str, layer: int) -> np.ndarray:
        w = source(name, layer)
        if name in ("wo", "w2"):
            return np.zeros_like(w)  # the embedding goes through as it is
        constants = {"tok_embeddings": np.float32(127), "norm": weights}  # 127 / sqrt(127^2) = 1
        return np.broadcast_to(constants.get(name, w), w.shape)

    write_checkpoint(tmp_path / "m.bin", config, 2, exact, group_size=64)
    backend = create_backend("q8_0", Checkpoint(tmp_path / "m.bin"), 1)
    classifier = backend.tensors["wcls"]
    assert isinstance(classifier, Q8Tensor)
    q = np.copysign((np.abs(weights) + 1) // 2, weights).astype(np.int32)  # (64,)
    expected = (classifier.q.astype(np.int32) @ q) * classifier.scale[:, 0] * np.float32(2)
    for row in backend.forward([5] * n, KVCache(config), all_positions=True):
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(("dim", "group_size"), [(128, 64), (96, 32), (40, 8)])
def test_quantizing_on_load_is_what_export_does(
    version: int, dim: int, group_size: int, tmp_path: Path
) -> None:
    config = replace(TINY, dim=dim, hidden_dim=2 * dim, shared_classifier=version == 0)
    source = random_weights(config)
    write_checkpoint(tmp_path / "fp32.bin", config, version, source)
    write_checkpoint(tmp_path / "int8.bin", config, 2, source)
    loaded, stored = (
        create_backend("q8_0", Checkpoint(tmp_path / name), 2) for name in ("fp32.bin", "int8.bin")
    )
    assert stored.config.group_size == group_size
    np.testing.assert_array_equal(
        loaded.forward(range(20), KVCache(config), all_positions=True),
        stored.forward(range(20), KVCache(config), all_positions=True),
    )


def test_version_2_is_used_where_it_lies(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", TINY, 2, random_weights(TINY))
    checkpoint = Checkpoint(tmp_path / "m.bin")
    backend = create_backend("q8_0", checkpoint, 1)
    assert all(backend.tensors[name] is tensor for name, tensor in checkpoint.tensors.items())


def test_bytes_read_for_a_token(tmp_path: Path) -> None:
    config = replace(TINY, dim=128, hidden_dim=192, shared_classifier=False)
    write_checkpoint(tmp_path / "m.bin", config, 1, random_weights(config))
    fp32, int8 = (create_backend(name, Checkpoint(tmp_path / "m.bin"), 1) for name in ("numba", "q8_0"))
    norms = (2 * config.n_layers + 1) * config.dim
    matrices = config.n_params - norms - config.vocab_size * config.dim
    assert fp32.bytes_per_token == 4 * (matrices + norms)
    assert int8.bytes_per_token == matrices + matrices // 64 * 4 + 4 * norms


def test_int8_weights_of_minus_128_are_taken_as_they_are(tmp_path: Path) -> None:
    """Q8_0 has -127..127, but nothing keeps another program from writing the one that is left."""
    config = replace(TINY, dim=128, hidden_dim=192)
    write_checkpoint(tmp_path / "m.bin", config, 2, random_weights(config, std=None))
    checkpoint = Checkpoint(tmp_path / "m.bin")
    content = bytearray((tmp_path / "m.bin").read_bytes())
    q = checkpoint.tensors["tok_embeddings"]
    assert isinstance(q, Q8Tensor)
    at = content.index(q.q[:2].tobytes())
    content[at : at + 256] = bytes([0x80]) * 256  # the rows of tokens 0 and 1
    (tmp_path / "m2.bin").write_bytes(content)
    checkpoint = Checkpoint(tmp_path / "m2.bin")
    backend = create_backend("q8_0", checkpoint, 1)
    expected = runq_logits(config, checkpoint.tensors, [5])[0]
    np.testing.assert_allclose(backend.forward([5], KVCache(config)), expected, atol=0.05)
    assert abs(expected[0]) > 1
