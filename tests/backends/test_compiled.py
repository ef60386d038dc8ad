"""The compiled fp32 backend gives what NumPy gives, to rounding: any shape, any cuts, any threads."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamatui.backends import team
from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.registry import create_backend
from tests.tiny import TINY, random_weights

pytest.importorskip("numba")

COMPILED = ["numba", "q8_0"]


@contextmanager
def model_of(config: ModelConfig, version: int = 1, group_size: int = 64) -> Iterator[Checkpoint]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.bin"
        write_checkpoint(path, config, version, random_weights(config, std=None), group_size=group_size)
        yield Checkpoint(path)


def run(backend: Backend, tokens: list[int], cuts: list[int], all_positions: bool = True) -> np.ndarray:
    """Logits of `tokens`, run in parts of the lengths `cuts`, again and again until all are run."""
    cache = KVCache(backend.config)
    rows = []
    at, turn = 0, 0
    while at < len(tokens):
        part = tokens[at : at + cuts[turn % len(cuts)]]
        logits = backend.forward(part, cache, all_positions=all_positions)
        rows.append(logits.reshape(-1, backend.config.vocab_size))
        at, turn = at + len(part), turn + 1
    return np.concatenate(rows)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teams of more workers than this machine has cores for."""
    monkeypatch.setattr(team, "usable_cpus", lambda: 8)


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    n_kv_heads = draw(st.integers(1, 5))
    group = draw(st.integers(1, 16))
    head_dim = 2 * draw(st.integers(1, 40))
    n_heads = n_kv_heads * max(1, min(group, 640 // (n_kv_heads * head_dim)))
    return ModelConfig(
        dim=n_heads * head_dim,
        hidden_dim=draw(st.integers(1, 200)),
        n_layers=draw(st.integers(1, 2)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=draw(st.integers(2, 200)),
        max_seq_len=256,
        shared_classifier=draw(st.booleans()),
    )


@pytest.mark.usefixtures("many_cores")
@settings(max_examples=25, deadline=None)
@given(
    config=shapes(),
    n=st.integers(1, 200),
    cuts=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    all_positions=st.booleans(),
    threads=st.integers(1, 3),
)
@example(replace(TINY, max_seq_len=256), 200, [1], True, 2)
@example(replace(TINY, max_seq_len=256), 200, [140, 1], True, 3)
@example(ModelConfig(1024, 520, 1, 16, 1, 33, 256), 60, [30, 1], True, 2)  # more than one block of columns
def test_numba_equals_numpy(
    config: ModelConfig, n: int, cuts: list[int], all_positions: bool, threads: int
) -> None:
    tokens = np.random.default_rng(n).integers(0, config.vocab_size, n).tolist()
    with model_of(config) as checkpoint:
        backend = create_backend("numba", checkpoint, threads)
        assert backend.threads == threads
        found = run(backend, tokens, cuts, all_positions)
        expected = run(create_backend("numpy", checkpoint, 1), tokens, cuts, all_positions)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize(
    "config",
    [ModelConfig(192, 352, 2, 6, 2, 333, 256), ModelConfig(1024, 1088, 1, 16, 2, 333, 256)],
    ids=["groups of 32", "long rows"],
)
def test_results_do_not_depend_on_the_number_of_threads(config: ModelConfig, name: str) -> None:
    tokens = [i * 37 % 333 for i in range(90)]
    with model_of(config) as checkpoint:
        one, *others = (
            run(create_backend(name, checkpoint, threads), tokens, [50, 1, 1, 7]) for threads in (1, 2, 3, 7)
        )
        again = run(create_backend(name, checkpoint, 2), tokens, [50, 1, 1, 7])
    for other in [*others, again]:
        np.testing.assert_array_equal(other, one)


@pytest.mark.parametrize("name", COMPILED)
def test_a_call_leaves_nothing_behind_for_the_next(name: str) -> None:
    with model_of(replace(TINY, max_seq_len=256)) as checkpoint:
        backend = create_backend(name, checkpoint, 2)
        expected = run(backend, [5, 6, 7], [2, 1])
        run(backend, [i % 300 for i in range(200)], [128])
        np.testing.assert_array_equal(run(backend, [5, 6, 7], [2, 1]), expected)


@pytest.mark.parametrize("name", COMPILED)
def test_a_call_of_more_tokens_than_a_chunk(name: str) -> None:
    tokens = [i * 7 % 300 for i in range(300)]
    with model_of(replace(TINY, max_seq_len=512)) as checkpoint:
        backend = create_backend(name, checkpoint, 2)
        for all_positions in (True, False):
            whole = run(backend, tokens, [300], all_positions)
            parts = run(backend, tokens, [128], all_positions)
            np.testing.assert_array_equal(whole, parts[-len(whole) :])


@pytest.mark.parametrize("name", COMPILED)
def test_tokens_may_be_any_array(name: str, tiny_model: Path) -> None:
    backend = create_backend(name, Checkpoint(tiny_model), 2)
    ids = np.arange(40, dtype=np.int64)
    for view in (ids[::2], ids[::-1], ids[:20].astype(np.int32)):
        expected = backend.forward(view.tolist(), KVCache(backend.config))
        np.testing.assert_array_equal(backend.forward(view, KVCache(backend.config)), expected)


def test_a_cache_that_grows_on_the_way() -> None:
    config = replace(TINY, max_seq_len=600)
    tokens = [i * 11 % 300 for i in range(530)]
    with model_of(config) as checkpoint:
        backend = create_backend("numba", checkpoint, 2)
        capacities = set()
        cache = KVCache(config)
        for at in [*range(0, 240, 80), *range(240, 270), 270, 390, *range(510, 520)]:
            n = {270: 120, 390: 120}.get(at, 80 if at < 240 else 1)
            logits = backend.forward(tokens[at : at + n], cache)
            capacities.add(cache.capacity)
        expected = run(create_backend("numpy", checkpoint, 1), tokens[: cache.length], [128])[-1]
    assert capacities == {256, 512, 600}
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_one_cache_goes_from_backend_to_backend() -> None:
    tokens = [i * 11 % 300 for i in range(24)]
    with model_of(TINY) as checkpoint:
        numpy, numba = create_backend("numpy", checkpoint, 1), create_backend("numba", checkpoint, 2)
        expected = run(numpy, tokens, [24])
        cache = KVCache(TINY)
        found = [(numba if i // 3 % 2 else numpy).forward([token], cache) for i, token in enumerate(tokens)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_caches_of_different_sizes_take_turns() -> None:
    config = replace(TINY, max_seq_len=2000)
    with model_of(config) as checkpoint:
        backend = create_backend("numba", checkpoint, 2)
        small, large = KVCache(config, 100), KVCache(config, 1500)
        backend.forward(range(90), small)
        large.reserve(1400)
        backend.forward(range(90), large)
        np.testing.assert_array_equal(backend.forward([1], small), backend.forward([1], large))


@pytest.mark.parametrize("version", [0, 2])
@pytest.mark.parametrize("name", COMPILED)
def test_an_embedding_that_is_the_classifier_is_held_once(name: str, version: int) -> None:
    with model_of(TINY, version) as checkpoint:
        tensors = create_backend(name, checkpoint, 1).tensors
        assert tensors["wcls"] is tensors["tok_embeddings"]
