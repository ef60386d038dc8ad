"""Reads GGUF headers, versions 2 and 3: metadata and where each tensor lies. Made for files that lie.

    "GGUF", version, n_tensors, n_metadata | metadata: key, type, value | tensors: name, dims, type, offset
    | padding to `general.alignment` | tensors, each at a multiple of it

The gguf library's own reader takes seconds for a real vocabulary, and hours for a file with a count that is
made up. Here every count and length is checked against what is left of the file before anything is read.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt

from llamatui.errors import CheckpointError, MissingExtraError

MAGIC = b"GGUF"
HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata entries
DEFAULT_ALIGNMENT = 32

# What no real header comes near: the largest vocabularies make 20 MB and a million strings.
MAX_HEADER = 64 << 20  # bytes
MAX_ENTRIES = 1 << 16  # metadata entries, and tensors
MAX_STRINGS = 1 << 21  # in all arrays together

_BOOL, _STRING, _ARRAY = 7, 8, 9
_DTYPES = {
    number: np.dtype(name)
    for number, name in {
        0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "u1",
        10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip
"""Of metadata values, by type number."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

DAMAGED = "the file is damaged: get it again"

Value = int | float | bool | str | list[bytes] | npt.NDArray[np.generic]
"""Of a metadata entry. Arrays of strings are UTF-8, undecoded; other arrays are one-dimensional."""


class Metadata(dict[str, Value]):
    """Metadata by key. The methods take an absent key for `default`, and raise CheckpointError for a value of
    another type."""

    def __init__(self, where: str, values: Mapping[str, Value]) -> None:
        super().__init__(values)
        self.where = where

    def text(self, key: str, default: str = "") -> str:
        value = self.get(key, default)
        return value if isinstance(value, str) else self._fail(key, "a text")

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        return value if isinstance(value, bool) else self._fail(key, "true or false")

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self._fail(key, "a number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """The number, or what all numbers of an array have in common: some files write one a layer."""
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
            if (value != value[0]).any():
                self._fail(key, "the same number in every layer")
            return int(value[0])
        if isinstance(value, bool) or not isinstance(value, int):
            self._fail(key, "a whole number")
        return value

    def strings(self, key: str) -> list[bytes]:
        value = self.get(key, [])
        return value if isinstance(value, list) else self._fail(key, "an array of texts")

    def numbers(self, key: str) -> npt.NDArray[np.generic]:
        value = self.get(key, np.empty(0, np.int32))
        return value if isinstance(value, np.ndarray) else self._fail(key, "an array of numbers")

    def _fail(self, key: str, expected: str) -> Never:
        value = self.get(key)
        found = "none" if value is None else f"{str(value)[:80]!r}"
        raise CheckpointError(f"{self.where}: expected {expected} in {key}, found {found}", DAMAGED)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    name: str
    shape: tuple[int, ...]
    """In NumPy's order, (rows, cols): GGUF has it the other way round."""
    type: int
    """Of `gguf.GGMLQuantizationType`."""
    offset: int
    """In the file."""
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, GgufTensor]
    mapping: mmap.mmap
    """The whole file."""


def read_gguf_header(path: Path) -> GgufHeader:
    """Everything but the weights. All tensors lie within the file, apart from each other.

    Raises:
        CheckpointError: Missing, not a GGUF file that is read here, truncated or damaged.
        MissingExtraError: The gguf library, which knows the sizes of quantized blocks, is not installed.
    """
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError:
        raise MissingExtraError("Reading GGUF", "export") from None
    block_sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}

    reader = _Reader(path, _map(path))
    version, n_tensors, n_metadata = reader.start()
    metadata = Metadata(str(path), reader.metadata(n_metadata))
    # Before the tensors are looked at: those of a part are not the whole model.
    if (n_parts := metadata.integer("split.count", 0)) > 1:
        raise CheckpointError(
            f"{path}: expected a whole GGUF file, found one of {n_parts} parts",
            "merge them first: llama-gguf-split --merge, which comes with llama.cpp",
        )
    alignment = metadata.integer("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        reader.fail(f"an alignment that is a power of two, found {alignment}")
    tensors = reader.tensors(n_tensors, alignment, block_sizes)
    return GgufHeader(version, alignment, metadata, tensors, reader.mapping)


def _map(path: Path) -> mmap.mmap:
    try:
        if path.is_dir():
            raise CheckpointError(
                f"{path}: expected a GGUF file, found a folder", "give the .gguf file in it"
            )
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: expected a GGUF file, found a device or a pipe")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < HEADER.size or file.read(4) != MAGIC:
                raise CheckpointError(
                    f"{path}: expected a GGUF file, found something else or one cut short",
                    "check the path, or get the file again",
                )
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


class _Reader:
    """Walks through the header; nothing is read that lies behind the file's end or MAX_HEADER."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.mapping = mapping
        self.end = min(len(mapping), MAX_HEADER)
        self.at = 0
        self.n_strings = 0

    def fail(self, problem: str, hint: str = DAMAGED) -> Never:
        raise CheckpointError(f"{self.path}: expected {problem}", hint)

    def start(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of metadata entries."""
        _, version, n_tensors, n_metadata = HEADER.unpack_from(self.mapping)
        if version & 0xFFFF == 0:
            self.fail("a little-endian GGUF file, found a big-endian one", "get the file for this machine")
        if version not in (2, 3):
            self.fail(
                f"GGUF version 2 or 3, found {version}",
                "get a newer conversion of the model" if version == 1 else "update llamatui, or " + DAMAGED,
            )
        for count, what in ((n_metadata, "metadata entries"), (n_tensors, "tensors")):
            if count > MAX_ENTRIES:
                self.fail(f"at most {MAX_ENTRIES:,} {what}, found {count:,}")
        self.at = HEADER.size
        return version, n_tensors, n_metadata

    def metadata(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for _ in range(count):
            key = self._name("a key")
            if key in values:
                self.fail(f"different metadata keys, found {key!r} twice")
            values[key] = self._value(key)
        return values

    def tensors(
        self, count: int, alignment: int, block_sizes: Mapping[int, tuple[int, int]]
    ) -> dict[str, GgufTensor]:
        """Tensors by name; `block_sizes`: (elements, bytes) of a block by type number."""
        found: dict[str, GgufTensor] = {}
        for _ in range(count):
            tensor = self._tensor(block_sizes)
            if tensor.name in found:
                self.fail(f"different tensor names, found {tensor.name!r} twice")
            if tensor.offset % alignment:
                self.fail(f"{tensor.name} at a multiple of {alignment}, found offset {tensor.offset:,}")
            found[tensor.name] = tensor
        data = -(-self.at // alignment) * alignment
        end, before = 0, ""
        tensors: dict[str, GgufTensor] = {}
        for t in sorted(found.values(), key=lambda tensor: tensor.offset):
            if data + t.offset < end:
                self.fail(f"tensors apart from each other, found {t.name} to begin inside {before}")
            tensors[t.name] = GgufTensor(t.name, t.shape, t.type, data + t.offset, t.n_bytes)
            end, before = data + t.offset + t.n_bytes, t.name
        if end > len(self.mapping):
            self.fail(
                f"{end:,} bytes for these tensors, found {len(self.mapping):,}",
                "the file is truncated: download it again",
            )
        return tensors

    def _tensor(self, block_sizes: Mapping[int, tuple[int, int]]) -> GgufTensor:
        """One entry, its offset still relative to the first tensor."""
        name = self._name("a tensor's name")
        n_dims = self._u32(name)
        if not 1 <= n_dims <= 4:
            self.fail(f"1 to 4 dimensions in {name}, found {n_dims}")
        dims = [self._u64(name) for _ in range(n_dims)]
        if 0 in dims or math.prod(dims) >= 1 << 62:
            self.fail(f"dimensions that make sense in {name}, found {dims}")
        kind = self._u32(name)
        if kind not in block_sizes:
            self.fail(
                f"a known type of {name}, found type {kind}", "get the model as Q8_0, Q6_K, Q4_K_M or F16"
            )
        block, block_bytes = block_sizes[kind]
        if dims[0] % block:
            self.fail(f"rows of whole blocks of {block} in {name}, found rows of {dims[0]:,}")
        n_bytes = math.prod(dims) // block * block_bytes
        return GgufTensor(name, tuple(reversed(dims)), kind, self._u64(name), n_bytes)

    def _value(self, key: str) -> Value:
        kind = self._u32(key)
        if kind == _STRING:
            return self._text(key)
        if kind != _ARRAY:
            return self._numbers(key, kind, 1)[0].item()  # type: ignore[no-any-return]
        kind, count = self._u32(key), self._u64(key)
        return self._strings(key, count) if kind == _STRING else self._numbers(key, kind, count)

    def _numbers(self, key: str, kind: int, count: int) -> npt.NDArray[np.generic]:
        if kind not in _DTYPES:
            nested = " (an array in an array)" if kind == _ARRAY else ""
            self.fail(f"a known type of {key}, found type {kind}{nested}")
        dtype = _DTYPES[kind]
        start = self._take(count * dtype.itemsize, key)
        values = np.frombuffer(self.mapping, dtype, count, start).copy()  # (count,)
        if kind != _BOOL:
            return values
        if (values > 1).any():
            self.fail(f"0 or 1 for true or false in {key}, found {values.max()}")
        return values.astype(np.bool_)

    def _strings(self, key: str, count: int) -> list[bytes]:
        self.n_strings += count
        if self.n_strings > MAX_STRINGS:
            self.fail(f"at most {MAX_STRINGS:,} texts in arrays, found {self.n_strings:,} up to {key}")
        self._need(count * _U64.size, key)
        # The one hot loop here: 400,000 turns for Llama 3.
        mapping, at, end, length = self.mapping, self.at, self.end, _U64.unpack_from
        strings = []
        for _ in range(count):
            start = at + _U64.size
            if start > end or (at := start + length(mapping, at)[0]) > end:
                self._need(at - self.at + _U64.size, key)
            strings.append(mapping[start:at])
        self.at = at
        return strings

    def _name(self, what: str) -> str:
        name = self._text(what)
        if not name:
            self.fail(f"{what}, found an empty one at byte {self.at:,}")
        return name

    def _text(self, what: str) -> str:
        length = self._u64(what)
        start = self._take(length, what)
        try:
            return self.mapping[start : self.at].decode()
        except UnicodeDecodeError:
            self.fail(f"UTF-8 in {what}, found {self.mapping[start : self.at][:40]!r}")

    def _u32(self, what: str) -> int:
        value: int = _U32.unpack_from(self.mapping, self._take(_U32.size, what))[0]
        return value

    def _u64(self, what: str) -> int:
        value: int = _U64.unpack_from(self.mapping, self._take(_U64.size, what))[0]
        return value

    def _take(self, n: int, what: str) -> int:
        """Where the next `n` bytes begin; moves behind them."""
        self._need(n, what)
        self.at += n
        return self.at - n

    def _need(self, n: int, what: str) -> None:
        left = self.end - self.at
        if n <= left:
            return
        if self.end < len(self.mapping):
            self.fail(f"a header of at most {MAX_HEADER:,} bytes, found {what} to go beyond")
        self.fail(
            f"{n:,} bytes at byte {self.at:,} for {what}, found {left:,}",
            "the file is truncated or damaged: download it again",
        )
