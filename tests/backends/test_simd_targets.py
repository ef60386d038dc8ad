"""Every vector instruction set gives the same results, damaged weights included.

The portable kernels and those for this CPU are always tested. With LLAMATUI_ALL_TARGETS all that it can run
are: to compile them takes about 20 s each, once.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.registry import create_backend
from llamatui.errors import BackendError
from tests.backends.reference import assert_equal_but_for_ties, reference_logits, runq_logits
from tests.tiny import random_weights

pytest.importorskip("numba")
from llvmlite import binding

from llamatui.backends.kernels import cpu
from llamatui.backends.kernels.cache import Compilation, load_kernels

NEEDED = {
    "portable": (),
    "avx2": ("avx2",),
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "avx-vnni": ("avx512vnni", "avx512vl"),  # 256-bit vpdpbusd: AVX-VNNI, or this
    "avx512-vnni": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"),
}
TARGETS = list(NEEDED) if os.environ.get("LLAMATUI_ALL_TARGETS") else ["portable", ""]


@pytest.fixture(params=TARGETS, ids=lambda name: name or "this CPU", scope="module")
def target(request: pytest.FixtureRequest, kernels: Path) -> Iterator[str]:
    features = binding.get_host_cpu_features()
    name = request.param
    missing = [feature for feature in NEEDED.get(name, ()) if not features.get(feature)]
    if missing and not (name == "avx-vnni" and features.get("avxvnni")):
        pytest.skip(f"this CPU has no {', '.join(missing)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMATUI_SIMD", name)
        for compilation in [Compilation(kind) for kind in ("fp32", "q8_0") if load_kernels(kind) is None]:
            compilation.wait()
    return name


@pytest.fixture(autouse=True)
def forced(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if target:
        monkeypatch.setenv("LLAMATUI_SIMD", target)


def logits(backend: Backend, tokens: list[int], at_once: int) -> np.ndarray:
    """(n, vocab_size): the first `at_once` of `tokens` together, the others one by one."""
    cache = KVCache(backend.config)
    rows = [*backend.forward(tokens[:at_once], cache, all_positions=True)] if at_once else []
    return np.array(rows + [backend.forward([token], cache) for token in tokens[at_once:]])


@pytest.mark.parametrize(("dim", "n_heads", "n_kv_heads"), [(96, 4, 2), (130, 5, 1), (34, 17, 17)])
def test_fp32(dim: int, n_heads: int, n_kv_heads: int, tmp_path: Path) -> None:
    config = ModelConfig(dim, 77, 2, n_heads, n_kv_heads, 70, 64)
    source = random_weights(config, std=None)
    write_checkpoint(tmp_path / "m.bin", config, 1, source)
    backend = create_backend("numba", Checkpoint(tmp_path / "m.bin"), 2)
    tokens = [(i * i + 3) % 70 for i in range(30)]
    expected = reference_logits(config, source, tokens)
    for at_once in (30, 17, 0):
        found = logits(backend, tokens, at_once)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("group_size", [4, 16, 32, 64, 128])
def test_q8_0(group_size: int, tmp_path: Path) -> None:
    # Two groups and more; rows that do not fill a tile, and with groups of 32 a vector that is not filled.
    config = ModelConfig(max(2 * group_size, 48), 3 * max(group_size, 16), 2, 4, 2, 70, 64)
    write_checkpoint(tmp_path / "m.bin", config, 2, random_weights(config, std=None), group_size=group_size)
    checkpoint = Checkpoint(tmp_path / "m.bin")
    assert checkpoint.config.group_size == group_size
    backend = create_backend("q8_0", checkpoint, 2)
    texts = [[(i * i + 7 * k) % 70 for i in range(17)] for k in range(5)]
    expected = np.array([runq_logits(config, checkpoint.tensors, text) for text in texts])
    for at_once in (17, 13, 5, 0):
        found = np.array([logits(backend, text, at_once) for text in texts])
        assert_equal_but_for_ties(found, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stored", ["fp32", 16, 64])
@pytest.mark.parametrize("name", ["numba", "q8_0"])
def test_damaged_weights_end_in_logits_that_are_no_numbers(
    name: str, stored: int | str, value: float, tmp_path: Path
) -> None:
    """One weight, or one scale, is NaN or infinite: the sampler has to see that."""
    config = ModelConfig(128, 192, 1, 4, 2, 70, 64, shared_classifier=False)
    source = random_weights(config, std=None)
    if isinstance(stored, int):
        write_checkpoint(tmp_path / "m.bin", config, 2, source, group_size=stored)
    else:
        write_checkpoint(tmp_path / "m.bin", config, 1, source)
    for tensor in ("tok_embeddings", "attention_norm", "wq", "wk", "wv", "wo", "w1", "w2", "norm", "wcls"):
        backend = create_backend(name, damaged(tmp_path / "m.bin", tensor, value), 2)
        for at_once in (0, 3):
            assert not np.isfinite(logits(backend, [5, 5, 5], at_once)[-1]).all(), (tensor, at_once)


def damaged(path: Path, tensor: str, value: float) -> Checkpoint:
    """A copy with `value` at the beginning of a tensor, or of the embedding of token 5."""
    checkpoint = Checkpoint(path)
    spec = next(s for s in tensor_layout(checkpoint.config, checkpoint.version) if s.name == tensor)
    first = 5 * spec.shape[-1] if tensor == "tok_embeddings" else 0
    if spec.group_size:
        at = spec.offset + math.prod(spec.shape) + 4 * (first // spec.group_size)
    else:
        at = spec.offset + 4 * first
    content = bytearray(path.read_bytes())
    content[at : at + 4] = np.float32(value).tobytes()
    copy = path.with_name(f"{tensor}.bin")
    copy.write_bytes(content)
    return Checkpoint(copy)


def test_an_unknown_target_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMATUI_SIMD", "sse9")
    with pytest.raises(BackendError, match=r"LLAMATUI_SIMD: expected one of avx512-vnni, .*, found 'sse9'"):
        cpu.detect()
