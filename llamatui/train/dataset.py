"""A folder of token ids to train on: shards, the tokenizer they were made with, and `dataset.json`.

    dataset.json              what is in the folder: see `Dataset`
    tokenizer.model|json|bin  the vocabulary of the ids
    train-0000.bin ...        ids as little-endian uint16 or uint32, each document after its BOS
    valid-0000.bin ...

llama2.c's shards are the same without `dataset.json`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llamatui.errors import LlamatuiError, UsageError
from llamatui.tokenizers.base import Tokenizer

IdArray = npt.NDArray[np.int64]
Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")

FORMAT = "llamatui.dataset/1"
INFO = "dataset.json"
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
TOKENIZER_NAME = r"tokenizer\.(model|json|bin)"
AGAIN = "write it again: llamatui train pretokenize TEXT -z TOKENIZER -o DIR"


@dataclass(frozen=True, slots=True)
class Shard:
    name: str
    n_tokens: int


@dataclass(frozen=True, slots=True)
class SplitInfo:
    shards: tuple[Shard, ...]
    n_documents: int
    n_bytes: int
    """Of text, UTF-8: what turns nats per token into bits per byte."""

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder that `train pretokenize` wrote."""

    path: Path
    tokenizer: str
    """Name of the tokenizer's file in the folder."""
    vocab_size: int
    dtype: str
    """ "uint16" or "uint32"."""
    splits: dict[Split, SplitInfo]

    @property
    def n_tokens(self) -> dict[Split, int]:
        return {name: split.n_tokens for name, split in self.splits.items()}


def start_id(tokenizer: Tokenizer) -> int:
    """Id in front of every document: BOS, or where a vocabulary has none in use the end of the one before."""
    if tokenizer.bos_id >= 0 and tokenizer.adds_bos:
        return tokenizer.bos_id
    return min(tokenizer.eos_ids, default=tokenizer.bos_id)


def smallest_dtype(vocab_size: int) -> str:
    """uint16 where it holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def write_info(dataset: Dataset) -> None:
    """Writes `dataset.json`, last of all files: a folder that has one is whole."""
    content = {
        "format": FORMAT,
        "tokenizer": dataset.tokenizer,
        "vocab_size": dataset.vocab_size,
        "dtype": dataset.dtype,
        "splits": {
            name: {
                "n_documents": split.n_documents,
                "n_bytes": split.n_bytes,
                "n_tokens": split.n_tokens,
                "shards": [{"name": shard.name, "n_tokens": shard.n_tokens} for shard in split.shards],
            }
            for name, split in dataset.splits.items()
        },
    }
    part = dataset.path / f".{INFO}.part"
    try:
        part.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        part.replace(dataset.path / INFO)
    finally:
        part.unlink(missing_ok=True)


def listed_tokenizer(path: Path) -> str | None:
    """Name of the tokenizer in a folder that we wrote, whole or damaged; None in any other."""
    try:
        content = json.loads((path / INFO).read_text("utf-8"))
        return _name(content["tokenizer"], TOKENIZER_NAME) if content["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def open_dataset(path: Path) -> Dataset:
    """Reads `dataset.json` and checks that the shards are as it says.

    Raises:
        UsageError: No such folder, or not one that `train pretokenize` wrote.
        LlamatuiError: It is damaged.
    """
    try:
        content = json.loads((path / INFO).read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.40}")
        dtype = str(content["dtype"])
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r:.40}")
        dataset = Dataset(
            path,
            tokenizer=_name(content["tokenizer"], TOKENIZER_NAME),
            vocab_size=_number(content["vocab_size"], np.iinfo(DTYPES[dtype]).max + 1),
            dtype=dtype,
            splits={name: _split(content["splits"][name], name) for name in SPLITS},
        )
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: expected a folder with {INFO}, found none", AGAIN) from None
    except OSError as error:
        raise LlamatuiError(f"{path / INFO}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise LlamatuiError(
            f"{path / INFO}: expected {FORMAT}, found something else: {reason}", AGAIN
        ) from error
    for split in dataset.splits.values():
        for shard in split.shards:
            expected = shard.n_tokens * np.dtype(DTYPES[dtype]).itemsize
            file = path / shard.name
            found = file.stat().st_size if file.is_file() else "no file"
            if found != expected:
                raise LlamatuiError(f"{file}: expected {expected} bytes, found {found}", AGAIN)
    return dataset


def _split(content: dict[str, Any], split: Split) -> SplitInfo:
    shards = tuple(
        Shard(_name(shard["name"], rf"{split}-\d{{4,9}}\.bin"), _number(shard["n_tokens"]))
        for shard in content["shards"]
    )
    return SplitInfo(shards, _number(content["n_documents"]), _number(content["n_bytes"]))


def _name(value: object, pattern: str) -> str:
    """Raises ValueError: it is none that we give, and may lead elsewhere."""
    if not (isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII)):
        raise ValueError(f"file name {value!r:.40}")
    return value


def _number(value: object, most: int = 1 << 62) -> int:
    """Raises ValueError: it counts nothing, or more than there can be."""
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"number {value!r:.40}")
    return value


def _longest(split: SplitInfo) -> int:
    """Tokens in the longest shard."""
    return max((shard.n_tokens for shard in split.shards), default=0)


class Windows:
    """Stretches of seq_len + 1 ids of one split, numbered without end.

    The order is a function of the seed and of the window's number alone: a run that is resumed, or one of
    several processes, needs no state to go on. In each epoch all windows come once, in a new order, and begin
    at another offset, so that text that is seen many times is not always cut at the same places.
    """

    def __init__(self, dataset: Dataset, split: Split, seq_len: int, *, seed: int | None) -> None:
        """`seed` None: in the order of the text, from its first id, and again after the last.

        What is left at the end of a shard, shorter than a window, is not read; nor is a shard that is.

        Raises:
            UsageError: No shard is as long as one window.
        """
        self.seq_len, self.seed = seq_len, seed
        self._dataset = dataset
        info = dataset.splits[split]
        longest = _longest(info)
        if longest <= seq_len:
            shortest = min(map(_longest, dataset.splits.values()))  # of what is enough for both
            raise UsageError(
                f"{dataset.path}: expected a {split} shard of more than {seq_len} tokens, "
                f"the longest has {longest}",
                f"choose --max-seq-len {max(shortest // 4, 1)}, or give more text"
                if shortest > 1
                else "give more text",
            )
        self._shards = [
            np.memmap(dataset.path / shard.name, DTYPES[dataset.dtype], "r")
            for shard in info.shards
            if shard.n_tokens > seq_len
        ]
        self._counts = np.array([self._count(len(shard)) for shard in self._shards])
        self._ends = np.cumsum(self._counts)
        self.n_windows = int(self._ends[-1])
        """In one epoch."""
        self._epoch = -1

    def _count(self, n_tokens: int) -> int:
        whole = (n_tokens - 1) // self.seq_len
        # One fewer where there are several, to have room for the offset.
        return whole if self.seed is None else max(whole - 1, 1)

    def _begin(self, epoch: int) -> None:
        if self.seed is None:
            self._order = np.arange(self.n_windows)
            self._offsets = np.zeros(len(self._shards), np.int64)
        else:
            rng = np.random.default_rng((self.seed, epoch))
            self._order = rng.permutation(self.n_windows)
            spare = np.array([len(shard) - 1 for shard in self._shards]) - self._counts * self.seq_len
            self._offsets = rng.integers(0, np.minimum(spare, self.seq_len - 1), endpoint=True)
        self._epoch = epoch

    def _window(self, number: int) -> IdArray:
        epoch, i = divmod(number, self.n_windows)
        if epoch != self._epoch:
            self._begin(epoch)
        i = int(self._order[i])
        shard = int(np.searchsorted(self._ends, i, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        start = int(self._offsets[shard]) + (i - first) * self.seq_len
        return self._shards[shard][start : start + self.seq_len + 1].astype(np.int64)  # (seq_len + 1,)

    def batch(self, first: int, n: int) -> tuple[IdArray, IdArray]:
        """Windows `first` to `first + n - 1`: ids and the ids that follow each, both (n, seq_len).

        Raises:
            LlamatuiError: A shard is damaged: an id is none of the vocabulary.
        """
        windows = np.stack([self._window(number) for number in range(first, first + n)])  # (n, seq_len + 1)
        if windows.max() >= self._dataset.vocab_size:
            raise LlamatuiError(
                f"{self._dataset.path}: expected ids of a vocabulary of {self._dataset.vocab_size}, "
                f"found {windows.max()}",
                AGAIN,
            )
        return windows[:, :-1], windows[:, 1:]
