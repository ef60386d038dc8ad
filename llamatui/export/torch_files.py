"""PyTorch files (`.pth`, `.pt`, `pytorch_model.bin`), read without PyTorch and without running anything.

    open_torch(path)  ->  what was saved, tensors as TorchRows  ->  state_dict(...)  ->  rows by name

A PyTorch file is a pickle (see `torch_pickle`) and the numbers that its tensors are views of, the storages:

    zip      since PyTorch 1.6: data.pkl, and a stored entry data/KEY for each storage
    legacy   five pickles: magic number, version, system, content, keys of the storages; then, for each key,
             how many numbers there are, as int64, and the numbers

Both are memory-mapped, and their pages let go of block by block. Source: `torch/serialization.py`.
"""

import io
import mmap
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llamatui.backends.checkpoint import KNOWN_MAGICS
from llamatui.backends.q8_0 import FloatArray
from llamatui.errors import CheckpointError
from llamatui.export.json_file import LFS_HINT, LFS_POINTER
from llamatui.export.source import drop_pages, to_fp32
from llamatui.export.torch_pickle import (
    GET_AGAIN,
    ITEM_SIZES,
    PickledTensor,
    one_line,
    read_pickle,
)

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickle of torch.serialization.MAGIC_NUMBER
LEGACY_VERSION = 1001
MAX_PICKLE = 1 << 20  # bytes of description; four times that of Llama 3.1 405B's 1138 tensors
LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field that follow it
READABLE = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}  # bits of the last, as NumPy lacks it

Spans = dict[str, tuple[int, int]]
"""Where each storage lies in the file, by key: (start, end)."""


@dataclass(frozen=True, slots=True)
class TorchRows:
    """A tensor of a file; rows become float32 when they are asked for."""

    where: str
    dtype: str
    """PyTorch's name: "bfloat16"."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes, as `offset` from the start of the file."""
    offset: int
    mapping: mmap.mmap

    def check_float(self) -> None:
        """Raises CheckpointError unless the numbers are of one of READABLE."""
        if self.dtype not in READABLE:
            raise CheckpointError(
                f"{self.where}: expected numbers as {', '.join(READABLE)}, found {self.dtype}",
                "quantized PyTorch files are not read: get the original weights",
            )

    def __getitem__(self, rows: slice) -> FloatArray:
        """Raises CheckpointError unless the numbers are of one of READABLE."""
        self.check_float()
        drop_pages(self.mapping)  # of the block before
        stored = np.ndarray(self.shape, READABLE[self.dtype], self.mapping, self.offset, self.strides)[rows]
        return to_fp32(stored, is_bf16=self.dtype == "bfloat16")


def open_torch(path: Path) -> dict[str, object]:
    """What was saved, a mapping at the top. Tensors in it, and in mappings in it, are TorchRows.

    Raises:
        CheckpointError: Missing, damaged, not a PyTorch file, or one that would run code.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise CheckpointError(
                f"{path}: expected a PyTorch file, found a folder or device", "give the file"
            )
        with path.open("rb") as file:
            start = file.read(64)
            size = os.fstat(file.fileno()).st_size
            if start.startswith(ZIP_MAGIC):
                content, spans = _read_zip(path, size)
            elif start.startswith(LEGACY_MAGIC):
                content, spans = _read_legacy(path, size)
            else:
                raise _other_file(path, start)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read: {error.strerror or error}", "check the path and its permissions"
        ) from error
    if not isinstance(content, dict):
        found = "tensor" if isinstance(content, PickledTensor) else type(content).__name__
        raise CheckpointError(
            f"{path}: expected tensors by name, found a {found}", "save the model's state_dict()"
        )

    def opened(name: object, value: object) -> object:
        if not isinstance(value, PickledTensor):
            return value
        where = f"{path}: {one_line(name) if isinstance(name, str) else 'a tensor'}"
        return _rows(where, value, spans, mapping)

    return {
        name: {inner: opened(inner, tensor) for inner, tensor in value.items()}
        if isinstance(value, dict)
        else opened(name, value)
        for name, value in content.items()
        if isinstance(name, str)
    }


def state_dict(path: Path, content: object) -> dict[str, TorchRows]:
    """The tensors of a model, from what `open_torch` gave or a mapping in it.

    Raises:
        CheckpointError: It is no mapping, or something in it is no tensor.
    """
    tensors: dict[str, TorchRows] = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str) or not isinstance(value, TorchRows):
            raise CheckpointError(
                f"{path}: expected only tensors by name, found a {type(value).__name__}",
                "give the file with the model's state_dict()",
            )
        tensors[name] = value
    if not tensors:
        raise CheckpointError(f"{path}: expected tensors by name, found none", GET_AGAIN)
    return tensors


def _rows(where: str, tensor: PickledTensor, spans: Spans, mapping: mmap.mmap) -> TorchRows:
    storage = tensor.storage
    start, end = spans.get(storage.key, (0, 0))
    if storage.n_bytes > end - start:
        raise CheckpointError(
            f"{where}: expected {storage.n_bytes:,} bytes of {storage.dtype} in the file, "
            f"found {end - start:,}",
            GET_AGAIN,
        )
    item = ITEM_SIZES[storage.dtype]
    strides = tuple(stride * item for stride in tensor.strides)
    return TorchRows(where, storage.dtype, tensor.shape, strides, start + tensor.offset * item, mapping)


class _ShortReads(io.FileIO):
    """A file of which nothing long is read: `zipfile` reads as large a directory as the file claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_PICKLE:
            raise zipfile.BadZipFile(f"{size:,} bytes of description")
        return super().read(size)


def _read_zip(path: Path, size: int) -> tuple[object, Spans]:
    """The content of a zip archive of `size` bytes, all of whose entries are checked."""
    try:
        with _ShortReads(path) as file, zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            root = _root(path, archive.namelist())
            spans = {name: _span(path, file, info, size) for name, info in entries.items()}
            pickled = archive.read(root + "data.pkl")
            if root + "byteorder" in entries and archive.read(root + "byteorder") != b"little":
                raise _big_endian(path)
    except (zipfile.BadZipFile, struct.error, RuntimeError, ValueError, EOFError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a PyTorch file, found a damaged zip archive ({one_line(str(error))})",
            GET_AGAIN,
        ) from None
    content, _ = read_pickle(io.BytesIO(pickled), str(path))
    folder = f"{root}data/"
    return content, {
        name.removeprefix(folder): span for name, span in spans.items() if name.startswith(folder)
    }


def _root(path: Path, names: list[str]) -> str:
    """The folder in a PyTorch archive that has all its entries: "archive/"."""
    ends = [name.rpartition("/")[2] for name in names]
    if "constants.pkl" in ends:
        raise CheckpointError(
            f"{path}: expected weights, found a TorchScript program", "save the model's state_dict()"
        )
    if ends.count("data.pkl") != 1:
        raise CheckpointError(
            f"{path}: expected a PyTorch file, found another kind of zip archive", "give the .pth or .pt file"
        )
    return names[ends.index("data.pkl")].removesuffix("data.pkl")


def _span(path: Path, file: io.FileIO, info: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Where the bytes of an entry lie in a file of `size` bytes: (start, end)."""
    # Compressed data would unpack to any size, and cannot be mapped.
    if info.compress_type == zipfile.ZIP_STORED and info.header_offset + LOCAL_HEADER.size <= size:
        file.seek(info.header_offset)
        lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        start = info.header_offset + LOCAL_HEADER.size + sum(lengths)
        if start + info.file_size <= size:
            return start, start + info.file_size
    raise CheckpointError(
        f"{path}: expected {one_line(info.filename)} uncompressed within {size:,} bytes, found "
        f"{info.file_size:,} bytes at {info.header_offset:,}, compression {info.compress_type}",
        GET_AGAIN,
    )


def _read_legacy(path: Path, size: int) -> tuple[object, Spans]:
    """The content of a file of `size` bytes in the older format."""
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE))
        # A number, a number, and a dict of a few sizes.
        _magic, version, system = (read_pickle(stream, str(path), max_steps=1000)[0] for _ in range(3))
        content, storages = read_pickle(stream, str(path))
        keys, _ = read_pickle(stream, str(path))
        if version != LEGACY_VERSION or not isinstance(system, dict) or not isinstance(keys, list):
            raise CheckpointError(
                f"{path}: expected a PyTorch file of version {LEGACY_VERSION}, found another", GET_AGAIN
            )
        if system.get("little_endian") is False:
            raise _big_endian(path)
        spans: Spans = {}
        start = stream.tell()
        for key in keys:
            storage = storages.get(key) if isinstance(key, str) else None
            file.seek(start)
            n_items = int.from_bytes(file.read(8), "little")
            if storage is None or n_items != storage.size or start + 8 + storage.n_bytes > size:
                raise CheckpointError(
                    f"{path}: expected the storages that the pickle names within {size:,} bytes, "
                    f"found one of {n_items:,} numbers at {start:,}",
                    GET_AGAIN,
                )
            spans[storage.key] = start + 8, start + 8 + storage.n_bytes
            start = spans[storage.key][1]
    return content, spans


def _big_endian(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected little-endian numbers, found big-endian ones", "save the model on another computer"
    )


def _other_file(path: Path, start: bytes) -> CheckpointError:
    if start.startswith(LFS_POINTER):
        return CheckpointError(f"{path}: expected a PyTorch file, found a Git LFS pointer to it", LFS_HINT)
    found = next((kind for magic, kind in KNOWN_MAGICS.items() if start.startswith(magic)), None)
    found = found or (f"one that begins with {start[:8]!r}" if start else "an empty one")
    return CheckpointError(f"{path}: expected a PyTorch file, found {found}", "give the .pth or .pt file")
