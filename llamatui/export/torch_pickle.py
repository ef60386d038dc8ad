"""The pickles in PyTorch files, read by a machine that can run nothing.

    read_pickle(stream, where)  ->  what was saved, with a PickledTensor for each tensor

A pickle is a program for a stack machine, and may call any function of Python. Here it gets nothing but the
few things in CALLS, which are functions of this module and make tuples, dicts and descriptions of tensors;
every other name is refused. Memory and time are in proportion to the length of the pickle, and bounded.

Sources: `pickletools` of Python's library for the machine, `torch/_utils.py` and `persistent_id` in
`torch/serialization.py` for what PyTorch saves.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from llamatui.errors import CheckpointError

ITEM_SIZES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex64": 8,
}
"""Bytes per number, by PyTorch's names."""

STORAGES = {
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch DoubleStorage": "float64",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
    "torch ComplexFloatStorage": "complex64",
}

MAX_RANK = 8
MAX_STEPS = 250_000
"""Five times what 1138 tensors need, those of Llama 3.1 405B; a hostile pickle takes half a second."""
MAX_NUMBER = 1 << 56
"""Sizes, strides and keys are smaller: 64 bits hold them in bytes, and keys do not all have the same hash."""

GET_AGAIN = "the file is damaged or cut short: get it again"


@dataclass(frozen=True, slots=True)
class Storage:
    """Numbers of one dtype in a row, which tensors are views of."""

    dtype: str
    key: str
    """Name in the file."""
    size: int
    """How many numbers."""

    @property
    def n_bytes(self) -> int:
        return self.size * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view that lies within its storage; `offset` and `strides` are in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """A function or class that the pickle names: "collections OrderedDict"."""

    name: str


_MARK = object()


def read_pickle(
    stream: BinaryIO, where: str, max_steps: int = MAX_STEPS
) -> tuple[object, dict[str, Storage]]:
    """What the next pickle in `stream` holds, and the storages that it names, by key.

    Of values there are None, bool, int, float, str, tuple, list, dict and PickledTensor. The stream is left
    behind the pickle.

    Raises:
        CheckpointError: It is damaged, or holds something else; the message begins with `where`.
    """
    machine = _Machine(where)
    try:
        for i, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if i == max_steps:
                raise ValueError(f"more than {max_steps:,} steps")
            machine.step(opcode.name, argument)
        return machine.stack.pop(), machine.storages
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"{where}: expected a PyTorch file, found a damaged pickle ({one_line(str(error))})", GET_AGAIN
        ) from None


def one_line(text: str) -> str:
    """What a terminal can show of text that a file had a part in."""
    first = text.partition("\n")[0][:200]
    return "".join(character if character.isprintable() else "?" for character in first)


class _Machine:
    """The opcodes that torch.save writes (protocol 2); damage raises what `read_pickle` catches."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[object] = []
        self.storages: dict[str, Storage] = {}
        self._memo: dict[object, object] = {}

    def step(self, opcode: str, argument: object) -> None:
        stack = self.stack
        match opcode:
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(items)))
            case "EMPTY_TUPLE":
                stack.append(())
            case "NEWFALSE" | "NEWTRUE":
                stack.append(opcode == "NEWTRUE")
            case "NONE":
                stack.append(None)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "APPEND":
                self._append([stack.pop()])
            case "APPENDS":
                self._append(self._pop_to_mark())
            case "GLOBAL":
                stack.append(self._name(str(argument)))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _Name) or not isinstance(arguments, tuple):
                    raise ValueError("a call of what is no function")
                stack.append(CALLS[function.name](*arguments))
            case "BUILD":  # attributes of an OrderedDict: versions of the modules that a state_dict is of
                stack.pop()
            case "PROTO" | "STOP":
                pass
            case _:
                raise ValueError(f"{opcode}, which torch.save does not write")

    def _pop_to_mark(self) -> list[object]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("names in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Of tuples, the hash may take for ever.
            if not isinstance(key, str) and not (type(key) is int and abs(key) < MAX_NUMBER):
                raise ValueError("a key that is neither a name nor a number")
            target[key] = value

    def _append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("items of what is no list")
        target.extend(items)

    def _name(self, name: str) -> object:
        if name in CALLS or name in STORAGES:
            return _Name(name)
        if name.startswith("torch ") and name[6:] in ITEM_SIZES:
            return name[6:]
        shown = one_line(name.replace(" ", "."))
        if name.startswith("torch"):
            raise CheckpointError(
                f"{self.where}: expected plain tensors and values, found {shown}",
                "give a file of plain float32, float16 or bfloat16 weights: the model's state_dict()",
            )
        raise CheckpointError(
            f"{self.where}: expected only weights, found a pickle that would execute code ({shown}): "
            "refused, nothing of it was executed",
            "get the model as .safetensors, or have its state_dict() saved alone",
        )

    def _storage(self, persistent_id: object) -> Storage:
        if not isinstance(persistent_id, tuple) or persistent_id[0] != "storage":
            raise ValueError("something outside of the pickle that is no storage")
        _, kind, key, _, size, *view = persistent_id
        if not isinstance(kind, _Name) or not isinstance(key, str) or view not in ([], [None]):
            raise ValueError("a storage of an unknown kind")
        storage = Storage(STORAGES[kind.name], key, _sizes((size,))[0])
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two storages with the key {key[:40]!r}")
        return storage


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_RANK:
        raise ValueError(f"no tuple of at most {MAX_RANK} sizes")
    if not all(type(value) is int and 0 <= value < MAX_NUMBER for value in values):
        raise ValueError("sizes that are no whole numbers from 0")
    return values


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> PickledTensor:
    if not isinstance(storage, Storage) or metadata:  # metadata: the numbers are to be negated or conjugated
        raise ValueError("no plain tensor")
    (start,), sizes, steps = _sizes((offset,)), _sizes(shape), _sizes(strides)
    n_items = math.prod(sizes)
    span = 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True)) if n_items else 0
    # Strides of 0 would let 2^60 numbers lie in 4 bytes: `n_items` is held to the storage, too.
    if max(start + span, n_items) > storage.size:
        raise ValueError(f"a tensor of shape {sizes} in a storage of {storage.size} numbers")
    return PickledTensor(storage, start, sizes, steps)


def _parameter(
    data: object, requires_grad: object, hooks: object, attributes: object = None
) -> PickledTensor:
    if not isinstance(data, PickledTensor):
        raise ValueError("a parameter that is no tensor")
    return data


def _empty_dict() -> dict[object, object]:
    return {}


def _size(sizes: object) -> tuple[int, ...]:
    return _sizes(sizes)


def _device(kind: object, index: object = 0) -> str:
    if not isinstance(kind, str) or type(index) is not int:
        raise ValueError("an unknown device")
    return f"{kind}:{index}"


CALLS: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _empty_dict,
    "torch Size": _size,
    "torch device": _device,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
}
"""All that a pickle can call."""
