"""Every backend against the naive reference, on tiny random models of every shape that matters."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends import numpy_backend
from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import Q8Tensor, quantize
from llamatui.backends.registry import BUILTIN, create_backend
from llamatui.errors import BackendError, ContextOverflowError
from tests.backends.reference import assert_equal_but_for_ties, reference_logits, runq_logits
from tests.tiny import TINY, random_weights

CONFIGS = {
    "multi-query": replace(TINY, n_kv_heads=1),
    "grouped-query": TINY,
    "multi-head": replace(TINY, n_kv_heads=4),
    "own classifier": replace(TINY, shared_classifier=False),
    "theta and eps": replace(TINY, rope_theta=500000.0, norm_eps=1e-6),
    "llama 3 rope": replace(TINY, rope_theta=50.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
    "odd sizes": ModelConfig(
        dim=30, hidden_dim=34, n_layers=1, n_heads=5, n_kv_heads=5, vocab_size=7, max_seq_len=40
    ),
}
TOKENS = [1, 5, 2, 6, 3, 3, 0, 4, 1, 2, 5, 6]


def backend_for(path: Path, name: str) -> Backend:
    return create_backend(name, Checkpoint(path), threads=2)


FP32 = [name for name in BUILTIN if name != "q8_0"]


@pytest.mark.parametrize("name", FP32)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("version", [1, 2])
def test_logits_equal_the_reference(name: str, config: ModelConfig, version: int, tmp_path: Path) -> None:
    source = random_weights(config)
    report = write_checkpoint(tmp_path / "m.bin", config, version, source, group_size=16)

    def as_stored(tensor: str, layer: int) -> np.ndarray:
        w = source(tensor, layer)
        return (
            w
            if version == 1 or tensor.endswith("norm")
            else quantize(w, report.config.group_size).dequantize()
        )

    expected = reference_logits(config, as_stored, TOKENS)
    backend = backend_for(tmp_path / "m.bin", name)
    cache = KVCache(backend.config)
    found = backend.forward(TOKENS, cache, all_positions=True)
    assert found.dtype == np.float32
    assert cache.length == len(TOKENS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("version", [1, 2])
def test_int8_logits_equal_the_reference(config: ModelConfig, version: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", config, version, random_weights(config), group_size=16)
    backend = backend_for(tmp_path / "m.bin", "q8_0")
    texts = [TOKENS, TOKENS[::-1], TOKENS[7:] + TOKENS[:7]]
    expected = [runq_logits(backend.config, backend.tensors, text) for text in texts]
    found = [backend.forward(text, KVCache(backend.config), all_positions=True) for text in texts]
    assert_equal_but_for_ties(np.array(found), np.array(expected))


@pytest.mark.parametrize("name", BUILTIN)
def test_prefill_and_decode_are_the_same_call(name: str, tiny_model: Path) -> None:
    backend = backend_for(tiny_model, name)
    whole, parts = KVCache(backend.config), KVCache(backend.config)
    expected = backend.forward(TOKENS, whole, all_positions=True)
    found = [backend.forward([token], parts) for token in TOKENS[:4]]
    found += [*backend.forward(TOKENS[4:9], parts, all_positions=True), backend.forward(TOKENS[9:], parts)]
    np.testing.assert_allclose(found, np.delete(expected, [9, 10], axis=0), atol=2e-5)
    np.testing.assert_allclose(parts.keys[:, :, :12], whole.keys[:, :, :12], atol=2e-5)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_cut_cache_goes_on_as_if_the_rest_had_never_been(name: str, tiny_model: Path) -> None:
    backend = backend_for(tiny_model, name)
    cache = KVCache(backend.config)
    backend.forward([1, 2, 3, 4, 5], cache)
    kept = cache.copy()
    cache.truncate(2)
    branched = backend.forward([7, 8], cache)
    fresh = backend.forward([1, 2, 7, 8], KVCache(backend.config))
    np.testing.assert_allclose(branched, fresh, atol=2e-5)
    assert kept.length == 5
    np.testing.assert_allclose(
        backend.forward([6], kept), backend.forward([1, 2, 3, 4, 5, 6], KVCache(backend.config)), atol=2e-5
    )


def test_attention_in_blocks_of_queries_changes_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backend_for(tiny_model, "numpy")
    tokens = list(range(50))
    expected = backend.forward(tokens, KVCache(backend.config), all_positions=True)
    monkeypatch.setattr(numpy_backend, "ATTENTION_BYTES", 3 * 4 * 4 * 50)  # three queries at a time
    found = backend.forward(tokens, KVCache(backend.config), all_positions=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_v2_is_dequantized_lazily_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, shared_classifier=False)
    write_checkpoint(tmp_path / "m.bin", config, 2, random_weights(config), group_size=16)
    sizes: list[int] = []
    dequantize = Q8Tensor.dequantize
    monkeypatch.setattr(Q8Tensor, "dequantize", lambda self: sizes.append(self.q.size) or dequantize(self))
    backend = backend_for(tmp_path / "m.bin", "numpy")
    assert sizes == []
    cache = KVCache(backend.config)
    backend.forward([3], cache)
    assert min(sizes) == config.dim  # one row of the embedding, not all of it
    assert len(sizes) == 7 * config.n_layers + 2
    backend.forward([4], cache)
    assert len(sizes) == 7 * config.n_layers + 3


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("tokens", [[], [-1], [300], [[1, 2]]])
def test_bad_tokens_are_refused(name: str, tokens: list[int], tiny_model: Path) -> None:
    backend = backend_for(tiny_model, name)
    cache = KVCache(backend.config)
    with pytest.raises(BackendError):
        backend.forward(tokens, cache)
    assert cache.length == 0


@pytest.mark.parametrize("name", BUILTIN)
def test_a_full_context_is_refused_before_anything_is_written(name: str, tiny_model: Path) -> None:
    backend = backend_for(tiny_model, name)
    cache = KVCache(backend.config, max_seq_len=8)
    backend.forward(list(range(8)), cache)
    with pytest.raises(ContextOverflowError, match="9 tokens do not fit the context of 8"):
        backend.forward([1], cache)
    assert cache.length == 8
