"""safetensors: a memory-mapped reader, and a writer that holds one block of rows.

    8 bytes            N, length of the header, little-endian
    N bytes            JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
    to the end         the tensors' bytes, little-endian, row-major; offsets count from here

Source: "Format" in the README of https://github.com/huggingface/safetensors, and checks in its `tensor.rs`.
The library itself hands NumPy no bfloat16, the type that most Llama models are stored in.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeGuard

import numpy as np
import numpy.typing as npt

from llamatui.backends.checkpoint import KNOWN_MAGICS
from llamatui.backends.checkpoint_writer import Progress, Rows, row_blocks
from llamatui.backends.q8_0 import FloatArray, Q8Tensor
from llamatui.errors import CheckpointError
from llamatui.export.json_file import AGAIN, LFS_HINT, LFS_POINTER, MAX_BYTES, parse_object
from llamatui.export.source import LazyRows, drop_pages, to_fp32

LENGTH = struct.Struct("<Q")
MAX_RANK = 8

DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Every dtype of the format, by bits per element."""

READABLE: dict[str, npt.DTypeLike] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


class SafetensorsFile:
    """A safetensors file, memory-mapped read-only: nothing is read before `rows` is called.

    Attributes:
        tensors: What the header lists, checked against the file's size.
    """

    def __init__(self, path: Path) -> None:
        """Opens and checks the file; time and memory depend on its header alone.

        Raises:
            CheckpointError: Missing, not a safetensors file, damaged or truncated.
        """
        self.path = path
        try:
            if not path.is_file():
                found = "something else" if path.exists() else "no such file"
                raise CheckpointError(
                    f"{path}: expected a safetensors file, found {found}", "get the whole folder of the model"
                )
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                header = _read_header(file, size, str(path))
                data_start = file.tell()
                self.tensors = _read_tensors(header, data_start, size, str(path))
                self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read: {error.strerror or error}", "check the path and its permissions"
            ) from None

    def open(self, name: str) -> LazyRows:
        """A tensor whose rows are read when they are asked for.

        Raises:
            CheckpointError: Its dtype is not a floating-point one of 16 or 32 bits.
        """
        tensor = self.tensors[name]
        if tensor.dtype not in READABLE:
            raise CheckpointError(
                f"{self.path}: {name}: expected F32, F16 or BF16, found {tensor.dtype}",
                "the model is quantized: get the one that it was made from",
            )
        return LazyRows(tensor.shape, partial(self.rows, name))

    def rows(self, name: str, rows: slice) -> FloatArray:
        """(rows, ...) float32 of a tensor that `open` accepts."""
        tensor = self.tensors[name]
        drop_pages(self._mapping)  # of the block before
        stored = np.ndarray(tensor.shape, READABLE[tensor.dtype], self._mapping, tensor.offset)[rows]
        return to_fp32(stored, is_bf16=tensor.dtype == "BF16")


def _read_header(file: BinaryIO, size: int, where: str) -> dict[str, object]:
    expected = f"{where}: expected a safetensors file"
    start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise CheckpointError(f"{expected}, found a Git LFS pointer to it", LFS_HINT)
    if start[LENGTH.size : LENGTH.size + 1] != b"{":
        kinds = (kind for magic, kind in KNOWN_MAGICS.items() if start.startswith(magic))
        found = next(kinds, f"one that begins with {start[:9]!r}" if start else "an empty file")
        raise CheckpointError(f"{expected}, found {found}", AGAIN)
    (length,) = LENGTH.unpack_from(start)
    if length > size - LENGTH.size:
        raise CheckpointError(
            f"{expected} with a header of {length:,} bytes, found {size:,} bytes in all",
            "the file is cut short, or no safetensors file: get it again",
        )
    file.seek(LENGTH.size)
    # One byte more than is allowed tells that it is too long. The format itself allows 100 MB.
    header = parse_object(file.read(min(length, MAX_BYTES + 1)), f"{where}: header")
    header.pop("__metadata__", None)
    return header


def _read_tensors(
    header: dict[str, object], data_start: int, size: int, where: str
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    spans = [(data_start, data_start, "the header"), (size, size, "the end of the file")]  # start, end, name
    for name, entry in header.items():
        tensors[name], end = _read_tensor(entry, data_start, size, f"{where}: {name[:80]!r}")
        spans.append((tensors[name].offset, end, repr(name[:80])))
    for (_, end, name), (start, _, following) in pairwise(sorted(spans)):
        if start != end:
            problem = "overlap" if start < end else "leave a hole"
            raise CheckpointError(
                f"{where}: expected tensors back to back up to the end of the file, "
                f"found that they {problem} between {name} and {following}",
                AGAIN,
            )
    return tensors


def _read_tensor(entry: object, data_start: int, size: int, where: str) -> tuple[StoredTensor, int]:
    """The tensor, and where it ends."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where}: expected a dtype of the format, found {str(dtype)[:80]!r}", AGAIN)
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{where}: expected a shape of at most {MAX_RANK} sizes, found another", AGAIN)
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: expected two data_offsets, found something else", AGAIN)
    start, end = data_start + offsets[0], data_start + offsets[1]
    if not start <= end <= size:
        raise CheckpointError(
            f"{where}: expected an end within the file's {size:,} bytes, found {end:,}",
            "the file is truncated: get it again",
        )
    n_bytes, rest = divmod(math.prod(shape) * DTYPE_BITS[dtype], 8)
    if rest or end - start != n_bytes:
        raise CheckpointError(
            f"{where}: expected {n_bytes:,} bytes for {dtype} of shape {shape}, found {end - start:,}", AGAIN
        )
    return StoredTensor(dtype, tuple(shape), start), end


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to write, as float32."""

    name: str
    shape: tuple[int, ...]
    open: Callable[[], Rows]
    """Called once, when its turn comes."""

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * 4


def write_safetensors(
    folder: Path, tensors: Sequence[NewTensor], shard_size: int, progress: Progress | None = None
) -> None:
    """Writes `model.safetensors`; above `shard_size`, numbered files and `model.safetensors.index.json`.

    Names and index are those of transformers' `save_pretrained`. Memory is that of one block of rows. Files
    are on the disk when this returns. To be atomic is the caller's part, who knows what else belongs to it.

    Raises:
        CheckpointError: A tensor has another shape than it says.
        OSError: `folder` cannot be written to, or has such files.
    """
    total = sum(tensor.n_bytes for tensor in tensors)
    written = 0

    def step(n: int) -> None:
        nonlocal written
        written += n
        if progress:
            progress(written, total)

    shards = _shards(tensors, shard_size)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        weight_map |= {tensor.name: name for tensor in shard}
        with (folder / name).open("xb") as file:
            file.write(_header(shard))
            for tensor in shard:
                _write_tensor(file, tensor, step)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def _shards(tensors: Sequence[NewTensor], limit: int) -> list[list[NewTensor]]:
    """In their order, as many per file as fit; a tensor above the limit has a file of its own."""
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.n_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.n_bytes
    return shards


def _header(tensors: Sequence[NewTensor]) -> bytes:
    header: dict[str, object] = {
        "__metadata__": {"format": "pt"}
    }  # without it, transformers refuses the file
    offset = 0
    for tensor in tensors:
        end = offset + tensor.n_bytes
        header[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    return LENGTH.pack(len(text)) + text


def _write_tensor(file: BinaryIO, tensor: NewTensor, step: Callable[[int], None]) -> None:
    rows = tensor.open()
    if tuple(rows.shape) != tensor.shape:
        raise CheckpointError(f"{tensor.name}: expected shape {tensor.shape}, found {tuple(rows.shape)}")
    for block in row_blocks(tensor.shape):
        w = rows[block]  # (block, ...)
        w = w.dequantize() if isinstance(w, Q8Tensor) else w
        step(file.write(np.ascontiguousarray(w, "<f4").data))
