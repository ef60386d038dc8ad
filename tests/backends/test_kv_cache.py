"""The cache grows, is cut and copied without losing a position."""

import numpy as np
import pytest

from llamatui.backends.base import KVCache
from tests.tiny import TINY


def filled(n: int) -> KVCache:
    cache = KVCache(TINY, 4000)
    cache.reserve(n)
    rng = np.random.default_rng(0)
    cache.keys[:, :, :n] = rng.standard_normal(cache.keys[:, :, :n].shape)
    cache.values[:, :, :n] = rng.standard_normal(cache.values[:, :, :n].shape)
    cache.length = n
    return cache


def test_nothing_is_allocated_before_it_is_needed() -> None:
    assert KVCache(TINY, 1 << 24).keys.nbytes == 0


def test_growth_keeps_what_is_there_and_doubles() -> None:
    cache = filled(250)
    keys, values = cache.keys[:, :, :250].copy(), cache.values[:, :, :250].copy()
    cache.reserve(100)
    assert cache.capacity == 512
    np.testing.assert_array_equal(cache.keys[:, :, :250], keys)
    np.testing.assert_array_equal(cache.values[:, :, :250], values)
    cache.length = 350
    cache.reserve(3650)
    assert cache.capacity == 4000


def test_a_copy_is_independent() -> None:
    cache = filled(10)
    other = cache.copy()
    other.reserve(1)
    other.keys[:] = 0
    assert cache.keys[:, :, :10].all()
    assert (other.length, other.max_seq_len) == (10, 4000)


@pytest.mark.parametrize(("n", "kept"), [(0, 0), (4, 4), (10, 10), (11, 10), (None, 10)])
def test_a_copy_holds_the_first_positions(n: int | None, kept: int) -> None:
    cache = filled(10)
    other = cache.copy(n)
    assert (other.length, other.capacity, other.max_seq_len) == (kept, kept, 4000)
    np.testing.assert_array_equal(other.keys, cache.keys[:, :, :kept])
    np.testing.assert_array_equal(other.values, cache.values[:, :, :kept])
    assert not np.shares_memory(other.keys, cache.keys)
    other.reserve(5)
    np.testing.assert_array_equal(other.keys[:, :, :kept], cache.keys[:, :, :kept])
    assert cache.length == 10


@pytest.mark.parametrize("n", [-1, 11])
def test_it_cannot_be_cut_where_there_is_nothing(n: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        filled(10).truncate(n)
