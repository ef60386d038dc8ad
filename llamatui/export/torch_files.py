"""PyTorch files (`.pth`, `.pt`, `pytorch_model.bin`), opened so that nothing in them is run.

    open_torch(path)  ->  what was saved, tensors as TorchRows  ->  state_dict(...)  ->  rows by name

A PyTorch file is a pickle, and a pickle may call any function: `weights_only` refuses those that do more than
build tensors and plain values. Files in the zip format (PyTorch 1.6 and later) are memory-mapped; the older
format cannot be, so such a file is read as a whole. Source: `torch/serialization.py`.
"""

import io
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamatui.backends.checkpoint import KNOWN_MAGICS
from llamatui.backends.q8_0 import FloatArray
from llamatui.errors import CheckpointError, LlamatuiError, MissingExtraError
from llamatui.export.json_file import LFS_HINT, LFS_POINTER

if TYPE_CHECKING:
    import torch

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickle of torch.serialization.MAGIC_NUMBER
MAX_PICKLE = 1 << 20  # bytes of description; four times that of Llama 3.1 405B's 1138 tensors
MAX_TUPLE = 1000  # things in a tuple, those of tuples within it counted with them; PyTorch writes some ten
FLOATS = ("float32", "float16", "bfloat16")
GET_AGAIN = "the file is damaged or cut short: get it again"


@dataclass(frozen=True, slots=True)
class TorchRows:
    """A tensor of a file; rows become float32 when they are asked for."""

    where: str
    tensor: "torch.Tensor"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """PyTorch's name: "bfloat16"."""
        return str(self.tensor.dtype).removeprefix("torch.")

    def check_float(self) -> None:
        """Raises CheckpointError unless the numbers are one of FLOATS."""
        if self.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.where}: expected numbers as {', '.join(FLOATS)}, found {self.dtype}",
                "quantized PyTorch files are not read: get the original weights",
            )

    def __getitem__(self, rows: slice) -> FloatArray:
        """Raises CheckpointError unless the numbers are one of FLOATS."""
        self.check_float()
        array: FloatArray = self.tensor[rows].float().numpy(force=True)  # force: also if it requires grad
        return array


def open_torch(path: Path) -> dict[str, object]:
    """What was saved, a mapping at the top. Tensors in it, and in mappings in it, are TorchRows.

    Raises:
        CheckpointError: Missing, damaged, not a PyTorch file, or one that would run code.
        MissingExtraError: PyTorch is not installed.
        LlamatuiError: PyTorch is so old that `weights_only` does not protect.
    """
    is_zip = _check_format(path)
    torch = _import_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within PyTorch, pickle protocols
            content = torch.load(path, map_location="cpu", mmap=is_zip, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from None
    except Exception as error:  # a damaged file ends anywhere in PyTorch's reader, with any exception
        raise CheckpointError(
            f"{path}: expected a PyTorch file, found one that cannot be read: "
            f"{type(error).__name__}: {_line(str(error))}",
            GET_AGAIN,
        ) from None
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: expected tensors by name, found a {type(content).__name__}",
            "save the model's state_dict()",
        )
    return {
        name: {inner: _rows(path, inner, tensor) for inner, tensor in value.items()}
        if isinstance(value, Mapping)
        else _rows(path, name, value)
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


def _rows(path: Path, name: object, value: object) -> object:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    where = f"{path}: {_line(name) if isinstance(name, str) else 'a tensor'}"
    plain = type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided
    if not plain or not value.is_cpu:
        raise CheckpointError(
            f"{where}: expected a plain tensor, found a {value.dtype} {value.layout} one on {value.device}",
            "give a file of plain float32, float16 or bfloat16 weights",
        )
    # PyTorch sees to it that the storage lies in the file and the tensor in its storage. With strides of 0,
    # 2^60 numbers would lie in 4 bytes.
    stored = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > stored:
        raise CheckpointError(
            f"{where}: expected a number in the file for each of shape {tuple(value.shape)}, "
            f"found {stored:,} bytes",
            GET_AGAIN,
        )
    return TorchRows(where, value)


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("Reading PyTorch files", "train") from None
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        # CVE-2025-32434: in earlier ones, `weights_only` could be made to run code.
        raise LlamatuiError(
            f"reading PyTorch files safely needs torch 2.6 or later, found {torch.__version__}",
            'pip install --upgrade "llamatui[train]"',
        )
    return torch


def _check_format(path: Path) -> bool:
    """Whether it is in the zip format. Raises CheckpointError if it is in neither of PyTorch's two."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(
                f"{path}: expected a PyTorch file, found a folder or device", "give the file"
            )
        with path.open("rb") as file:
            start = file.read(64)
            if start.startswith(ZIP_MAGIC):
                pickled = _zip_pickle(path, zipfile.ZipFile(file), os.fstat(file.fileno()).st_size)
                _check_tuples(path, pickled, n_pickles=1)
                return True
            if start.startswith(LEGACY_MAGIC):
                file.seek(0)
                # Magic number, version, system, content, keys of the storages.
                _check_tuples(path, file.read(MAX_PICKLE), n_pickles=5)
                return False
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", "check the path") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, struct.error, RuntimeError, ValueError, EOFError) as error:  # of zipfile
        raise CheckpointError(
            f"{path}: expected a PyTorch file, found a damaged zip archive ({_line(str(error))})", GET_AGAIN
        ) from None
    if start.startswith(LFS_POINTER):
        raise CheckpointError(f"{path}: expected a PyTorch file, found a Git LFS pointer to it", LFS_HINT)
    found = next((kind for magic, kind in KNOWN_MAGICS.items() if start.startswith(magic)), None)
    found = found or (f"one that begins with {start[:8]!r}" if start else "an empty one")
    raise CheckpointError(f"{path}: expected a PyTorch file, found {found}", "give the .pth or .pt file")


def _zip_pickle(path: Path, archive: zipfile.ZipFile, size: int) -> bytes:
    """The pickle in a PyTorch zip archive of `size` bytes, all of whose entries are checked."""
    names = [info.filename.rpartition("/")[2] for info in archive.infolist()]
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path}: expected weights, found a TorchScript program", "save the model's state_dict()"
        )
    if names.count("data.pkl") != 1:
        raise CheckpointError(
            f"{path}: expected a PyTorch file, found another kind of zip archive", "give the .pth or .pt file"
        )
    for info, name in zip(archive.infolist(), names, strict=True):
        # Compressed data would be mapped as they are, and unpack to any size.
        if info.compress_type != zipfile.ZIP_STORED or info.header_offset + info.file_size > size:
            raise CheckpointError(
                f"{path}: expected {_line(name)} uncompressed within {size:,} bytes, found "
                f"{info.file_size:,} bytes at {info.header_offset:,}, compression {info.compress_type}",
                GET_AGAIN,
            )
        if name == "data.pkl" and info.file_size > MAX_PICKLE:
            raise CheckpointError(
                f"{path}: expected at most {MAX_PICKLE:,} bytes of data.pkl, found {info.file_size:,}",
                GET_AGAIN,
            )
    return archive.read(archive.infolist()[names.index("data.pkl")])


def _check_tuples(path: Path, pickled: bytes, n_pickles: int) -> None:
    """Refuses tuples whose hash would take for ever or overflow the stack, as keys of a dict may.

    `weights_only` does not: 40 pairs, each of the one before twice, hang it, and a million within one another
    crash it. So each tuple is weighed here as the opcodes would build it.
    """
    stream = io.BytesIO(pickled)
    try:
        for _ in range(n_pickles):
            stack: list[int] = []  # what each thing on the pickle's stack holds; 0 for a mark
            memo: dict[object, int] = {}
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("BINPUT", "LONG_BINPUT"):
                    memo[argument] = stack[-1]
                    continue
                if opcode.name in ("BINGET", "LONG_BINGET"):
                    stack.append(memo[argument])
                    continue
                n_popped, held = len(opcode.stack_before), 0
                if pickletools.markobject in opcode.stack_before:
                    n_popped = opcode.stack_before.index(pickletools.markobject)
                    while weight := stack.pop():
                        held += weight
                for _ in range(n_popped):
                    held += stack.pop()
                weight = 1 + held if opcode.name.startswith("TUPLE") else 1
                if weight > MAX_TUPLE:
                    raise CheckpointError(
                        f"{path}: expected tuples of some ten numbers, found more than {MAX_TUPLE}", GET_AGAIN
                    )
                stack.extend(0 if kind is pickletools.markobject else weight for kind in opcode.stack_after)
    except (ValueError, LookupError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a PyTorch file, found a damaged pickle ({_line(str(error))})", GET_AGAIN
        ) from None


def _refused(path: Path, message: str) -> CheckpointError:
    """What `weights_only` met, from its message. Source: `torch/_weights_only_unpickler.py`."""
    found = re.search(r"GLOBAL ([\w.]+)|(?:unrecognized function|allowlisted.*but got) ([^\n]+)", message)
    if found:
        return CheckpointError(
            f"{path}: expected only weights, found a pickle that would execute code "
            f"({_line(found[1] or found[2])}): refused, nothing of it was executed",
            "get the model as .safetensors, or have its state_dict() saved alone",
        )
    found = re.search(r"WeightsUnpickler error: ([^\n]+)", message) or re.search(r"\n\n([^\n]+)", message)
    return CheckpointError(
        f"{path}: expected a PyTorch file, found a pickle that PyTorch does not read"
        f" ({_line(found[1] if found else message)})",
        GET_AGAIN,
    )


def _line(text: str) -> str:
    """What a terminal can show of text that a file had a part in."""
    first = text.partition("\n")[0][:200]
    return "".join(character if character.isprintable() else "?" for character in first)
