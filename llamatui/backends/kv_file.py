"""A KV cache as a file: a text that is opened again goes on without being run again.

    prefix          magic, format, bytes of the description, bytes of tokens and checksums, CRC-32 of the head
    description     JSON: where it comes from, the shape, the length
    tokens          int32 (length,)
    checksums       uint32 (2 · n_layers · n_kv_heads, blocks): CRC-32 of every BLOCK positions of a head
    keys, values    float32 (n_layers, n_kv_heads, length, head_dim) each

All little-endian. The head is the first four, and has one checksum; the positions have one for each block, so
that the beginning of a text is read and verified without the rest. CRC-32 finds every flipped bit and every
burst of 32, and goes at 3 GB/s where BLAKE2b does 0.6; who may write the file could write any hash of it too.

The file is read, not mapped: one that shrinks under a map kills the process.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import numpy.typing as npt

from llamatui.backends.base import FloatArray, KVCache
from llamatui.backends.checkpoint import MAX_DIMENSION, ModelConfig
from llamatui.errors import BackendError

MAGIC = b"LTUI-KV\0"
FORMAT = 1
PREFIX = struct.Struct("<8sIII")  # magic, format, bytes of the description, bytes of tokens and checksums
CHECKSUM = struct.Struct("<I")

BLOCK = 64
"""Positions with one checksum: 16 kB where heads have 64 dimensions."""

MAX_HEAD = 1 << 26  # bytes; 1,000 tokens of a model with 30 layers of 3 heads take 16 kB


class KVFileError(BackendError):
    """It cannot be used here: something else, of another model, backend or version, ..."""


class KVFileDamagedError(KVFileError):
    """... or ours, and not as it was written."""


def file_size(config: ModelConfig, origin: Mapping[str, str], length: int) -> int:
    """Bytes of the file of a cache with `length` positions."""
    head = PREFIX.size + CHECKSUM.size + len(_description(config, origin, length))
    return head + _table_size(config, length) + length * config.kv_bytes_per_token


def save(
    file: BinaryIO, cache: KVCache, tokens: Sequence[int], config: ModelConfig, origin: Mapping[str, str]
) -> None:
    """Writes all positions of a cache.

    Args:
        tokens: Those that `cache` holds, `cache.length` of them.
        origin: What else must be equal when it is read: the model, who computed it.

    Raises:
        OSError: It cannot be written.
    """
    n = cache.length
    description = _description(config, origin, n)
    sums = [[crc32(run[at : at + BLOCK].data) for at in range(0, n, BLOCK)] for run in _runs(cache, n)]
    table = np.array(tokens, "<i4").tobytes() + np.array(sums, "<u4").tobytes()
    prefix = PREFIX.pack(MAGIC, FORMAT, len(description), len(table))
    file.write(prefix + CHECKSUM.pack(crc32(prefix + description + table)) + description + table)
    for run in _runs(cache, n):
        file.write(run.data)


class KVFile:
    """An open file whose head is intact and fits the model. A context manager, which closes it.

    Attributes:
        tokens: (length,) int32, the ids at its positions.
    """

    def __init__(self, path: Path, config: ModelConfig, origin: Mapping[str, str]) -> None:
        """
        Raises:
            OSError: It cannot be read.
            KVFileDamagedError: It is not as it was written.
            KVFileError: It is no such file, or its shape or origin is another.
        """
        self._path = path
        self._file = path.open("rb")
        try:
            self.tokens, self._checksums = self._read_head(config, origin)
        except BaseException:
            self._file.close()
            raise
        self._data = self._file.tell()

    def __enter__(self) -> "KVFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def shared(self, tokens: npt.NDArray[np.int64]) -> int:
        """How many of the first `tokens` are those of the file."""
        n = min(len(tokens), len(self.tokens))
        different = np.flatnonzero(self.tokens[:n] != tokens[:n])
        return int(different[0]) if different.size else n

    def read(self, cache: KVCache, n: int) -> None:
        """Puts the first `n` positions, at most all, into a cache, which then holds nothing else.

        Raises:
            OSError: They cannot be read.
            KVFileDamagedError: They are not as they were written. The cache is empty then.
        """
        cache.truncate(0)
        cache.reserve(n)
        end = min(-(-n // BLOCK) * BLOCK, len(self.tokens))  # of the last block, which is verified whole
        row = cache.keys.shape[3] * cache.keys.itemsize
        for i, (run, sums) in enumerate(zip(_runs(cache, n), self._checksums, strict=True)):
            self._file.seek(self._data + i * len(self.tokens) * row)
            self._file.readinto(run.data)
            rest = self._file.read((end - n) * row)
            for at, expected in zip(range(0, n, BLOCK), sums.tolist(), strict=False):
                found = crc32(run[at : at + BLOCK].data)
                if (found if at + BLOCK <= n else crc32(rest, found)) != expected:
                    raise self._damaged(f"positions from {at} on are not as they were written")
        cache.length = n

    def _read_head(
        self, config: ModelConfig, origin: Mapping[str, str]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint32]]:
        """(length,) tokens and (heads, blocks) checksums; the file then stands at the first key."""
        size = os.fstat(self._file.fileno()).st_size
        prefix = self._file.read(PREFIX.size)
        checksum = self._file.read(CHECKSUM.size)
        if len(checksum) < CHECKSUM.size:
            raise self._damaged(f"expected at least {PREFIX.size + CHECKSUM.size} bytes, found {size}")
        magic, format_, description_size, table_size = PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise KVFileError(f"{self._path}: not a kept KV cache")
        if format_ != FORMAT:
            raise KVFileError(f"{self._path}: expected format {FORMAT}, found {format_}")
        if description_size + table_size > min(MAX_HEAD, size):
            raise self._damaged(f"a head of {description_size + table_size} bytes in {size}")
        head = self._file.read(description_size + table_size)
        if CHECKSUM.pack(crc32(head, crc32(prefix))) != checksum:
            raise self._damaged("the head is not as it was written")
        try:
            description = json.loads(head[:description_size])
        except (ValueError, RecursionError) as error:
            raise self._damaged("the head cannot be read") from error
        length = description.get("length") if isinstance(description, dict) else None
        if type(length) is not int or not 0 < length <= MAX_DIMENSION:
            raise self._damaged(f"a length of {length}")
        if description != json.loads(_description(config, origin, length)):
            raise KVFileError(f"{self._path}: of another model, backend or version")
        if table_size != _table_size(config, length) or size != file_size(config, origin, length):
            raise self._damaged(f"expected {file_size(config, origin, length)} bytes, found {size}")
        table = head[description_size:]
        checksums = np.frombuffer(table, "<u4", offset=4 * length)
        return np.frombuffer(table, "<i4", length), checksums.reshape(_heads(config), -1)

    def _damaged(self, problem: str) -> KVFileDamagedError:
        return KVFileDamagedError(f"{self._path}: damaged: {problem}")


def _description(config: ModelConfig, origin: Mapping[str, str], length: int) -> bytes:
    content: dict[str, Any] = {
        **origin,
        "n_layers": config.n_layers,
        "n_kv_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling and asdict(config.rope_scaling),
        "length": length,
    }
    return json.dumps(content).encode()


def _heads(config: ModelConfig) -> int:
    """Heads of keys and of values, in all layers."""
    return 2 * config.n_layers * config.n_kv_heads


def _table_size(config: ModelConfig, length: int) -> int:
    """Bytes of the tokens and the checksums."""
    return 4 * (length + _heads(config) * -(-length // BLOCK))


def _runs(cache: KVCache, n: int) -> Iterator[FloatArray]:
    """Of every head its first `n` positions, (n, head_dim) without gaps, in the order of the file."""
    for tensor in (cache.keys, cache.values):
        for layer in tensor:
            for head in layer:
                yield head[:n]
