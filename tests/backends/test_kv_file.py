"""A cache comes back from its file as it was, or not at all."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from llamatui.backends.base import KVCache
from llamatui.backends.checkpoint import ModelConfig, RopeScaling
from llamatui.backends.kv_file import FORMAT, MAGIC, KVFile, KVFileDamagedError, KVFileError, file_size, save
from tests.tiny import TINY

ORIGIN = {"model": "ab" * 32, "family": "fp32", "llamatui": "1.0"}
LENGTH = 150  # two blocks and a part of one


def filled(length: int) -> KVCache:
    cache = KVCache(TINY, 4000)
    cache.reserve(length)
    rng = np.random.default_rng(length)
    cache.keys[:, :, :length] = rng.standard_normal((2, 2, length, 8))
    cache.values[:, :, :length] = rng.standard_normal((2, 2, length, 8))
    cache.length = length
    return cache


def written(path: Path, length: int = LENGTH) -> Path:
    with path.open("wb") as file:
        save(file, filled(length), range(length), TINY, ORIGIN)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "a.kv")


def load(path: Path, n: int | None = None) -> KVCache:
    with KVFile(path, TINY, ORIGIN) as file:
        cache = KVCache(TINY, 4000)
        file.read(cache, len(file.tokens) if n is None else n)
    return cache


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 300])
def test_a_cache_comes_back_as_it_was(length: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv", length)
    found, expected = load(path), filled(length)
    assert found.length == length
    np.testing.assert_array_equal(found.keys[:, :, :length], expected.keys[:, :, :length])
    np.testing.assert_array_equal(found.values[:, :, :length], expected.values[:, :, :length])
    assert path.stat().st_size == file_size(TINY, ORIGIN, length)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 127, 128, 129, 149, 150])
def test_any_beginning_of_it_can_be_read(n: int, path: Path) -> None:
    found = load(path, n)
    assert (found.length, found.max_seq_len) == (n, 4000)
    np.testing.assert_array_equal(found.keys[:, :, :n], filled(LENGTH).keys[:, :, :n])
    np.testing.assert_array_equal(found.values[:, :, :n], filled(LENGTH).values[:, :, :n])


def test_what_a_cache_held_before_is_replaced(path: Path) -> None:
    cache = filled(300)
    with KVFile(path, TINY, ORIGIN) as file:
        file.read(cache, LENGTH)
    assert cache.length == LENGTH
    np.testing.assert_array_equal(cache.keys[:, :, :LENGTH], filled(LENGTH).keys[:, :, :LENGTH])


def test_its_tokens_are_compared_from_the_beginning(path: Path) -> None:
    with KVFile(path, TINY, ORIGIN) as file:
        assert file.tokens.tolist() == list(range(LENGTH))
        assert file.shared(np.arange(1000)) == LENGTH
        assert file.shared(np.arange(7)) == 7
        assert file.shared(np.array([0, 1, 5, 3])) == 2
        assert file.shared(np.array([1 << 40])) == 0


def test_a_flipped_bit_is_noticed_anywhere(path: Path) -> None:
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    places = [*range(30), *rng.integers(30, len(content), 60).tolist(), len(content) - 1]
    for at in places:
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(KVFileError):
            load(path)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 100, 300, 2000, -4, -1])
def test_a_truncated_file_is_noticed(size: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(KVFileDamagedError, match="damaged: "):
        load(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(path: Path) -> None:
    cache = filled(300)
    with KVFile(path, TINY, ORIGIN) as file:
        with path.open("r+b") as other:
            other.truncate(path.stat().st_size // 2)
        with pytest.raises(KVFileDamagedError):
            file.read(cache, LENGTH)
    assert cache.length == 0


def test_a_file_that_is_longer_is_noticed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(KVFileDamagedError):
        load(path)


def test_damage_behind_the_blocks_that_are_read_does_not_matter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last block of the last head
    path.write_bytes(content)
    assert load(path, 128).length == 128
    with pytest.raises(KVFileDamagedError, match="positions from 128 on"):
        load(path, 129)


@pytest.mark.parametrize(
    "content",
    [b"x" * 1000, MAGIC + struct.pack("<IIII", FORMAT + 1, 2, 2, 0)],
    ids=["something else", "another format"],
)
def test_something_else_and_another_format_are_not_damaged(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(KVFileError) as caught:
        load(path)
    assert not isinstance(caught.value, KVFileDamagedError)


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, n_layers=1),
        replace(TINY, n_kv_heads=4),
        replace(TINY, dim=64),
        replace(TINY, rope_theta=500.0),
        replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
    ],
)
def test_a_model_of_another_shape_is_noticed(config: ModelConfig, path: Path) -> None:
    with pytest.raises(KVFileError, match="of another model"):
        KVFile(path, config, ORIGIN)


@pytest.mark.parametrize("key", ORIGIN)
def test_another_origin_is_noticed(key: str, path: Path) -> None:
    with pytest.raises(KVFileError, match="of another model") as caught:
        KVFile(path, TINY, ORIGIN | {key: "other"})
    assert not isinstance(caught.value, KVFileDamagedError)


def test_rope_scaling_comes_back_equal(tmp_path: Path) -> None:
    config = replace(TINY, rope_scaling=RopeScaling(8.0, 1.0, 4.1, 32))
    with (tmp_path / "a.kv").open("wb") as file:
        save(file, filled(5), range(5), config, ORIGIN)
    with KVFile(tmp_path / "a.kv", config, ORIGIN) as kept:
        assert len(kept.tokens) == 5


def with_head(description: bytes, table: bytes = b"", sizes: tuple[int, int] | None = None) -> bytes:
    """A head whose checksum is right, whatever it says."""
    prefix = MAGIC + struct.pack("<III", FORMAT, *(sizes or (len(description), len(table))))
    return prefix + struct.pack("<I", crc32(prefix + description + table)) + description + table


LENGTHS = (0, -1, True, "9", None, 1.5, 1 << 25, 10**20)
LYING_HEADS = {
    "nothing": b"",
    "a list": b"[1]",
    "no UTF-8": b"\xff",
    "deep": b"[" * 100_000,
    **{f"length {length!r}": json.dumps({"length": length}).encode() for length in LENGTHS},
}


@pytest.mark.parametrize("head", LYING_HEADS)
def test_a_head_that_lies_is_noticed_before_anything_is_allocated(head: str, path: Path) -> None:
    path.write_bytes(with_head(LYING_HEADS[head]))
    with pytest.raises(KVFileDamagedError):
        load(path)


@pytest.mark.parametrize("sizes", [((1 << 32) - 1, (1 << 32) - 1), (0, 1 << 31), (25, 0)])
def test_a_head_longer_than_the_file_is_not_read(sizes: tuple[int, int], path: Path) -> None:
    path.write_bytes(with_head(b"", sizes=sizes))
    with pytest.raises(KVFileDamagedError, match="a head of"):
        load(path)


def test_a_length_that_is_not_that_of_the_file_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    size, table = struct.unpack_from("<II", content, 12)
    description = json.loads(content[24 : 24 + size]) | {"length": 1 << 24}
    path.write_bytes(
        with_head(json.dumps(description).encode(), content[24 + size : 24 + size + table])
        + content[24 + size + table :]
    )
    with pytest.raises(KVFileDamagedError, match=r"expected \d+ bytes"):
        load(path)
