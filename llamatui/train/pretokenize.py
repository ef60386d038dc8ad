"""Turns text into shards of token ids, on all cores, in an order that does not depend on their number."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from llamatui.errors import LlamatuiError, UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train.dataset import (
    DTYPES,
    INFO,
    SPLITS,
    Dataset,
    Shard,
    Split,
    SplitInfo,
    smallest_dtype,
    start_id,
    write_info,
)
from llamatui.train.documents import read_documents

HELD_OUT = 20
"""One document in this many is for validation where no text for it is given."""
BATCH = 1 << 20  # characters in one piece of work
SHARD = 100_000_000  # tokens

Progress = Callable[[int, int], None]
"""(bytes of text done, bytes in all)."""


def pretokenize(
    files: Sequence[Path],
    folder: Path,
    tokenizer_file: Path,
    *,
    valid: Sequence[Path] = (),
    processes: int,
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """Writes a dataset. `dataset.json` comes last: without it, the folder is not one.

    Args:
        files: Text to train on.
        valid: Text to validate on; without it, every 20th document of `files` is held out, or the last 20th
            of each where there are fewer.

    Raises:
        UsageError: A file cannot be read, or there is too little text.
        TokenizerError: The tokenizer cannot be read.
        LlamatuiError: The folder cannot be written to.
    """
    tokenizer = load_tokenizer(tokenizer_file)
    if start_id(tokenizer) < 0:
        raise UsageError(
            f"{tokenizer_file}: expected a token that begins or ends a document, found none",
            "choose another tokenizer",
        )
    if valid:
        documents = chain(_marked("train", read_documents(files)), _marked("valid", read_documents(valid)))
    else:
        documents = _held_out(read_documents(files))
    dtype = smallest_dtype(tokenizer.vocab_size)
    name = f"tokenizer{tokenizer_file.suffix}"
    total = sum(path.stat().st_size for path in (*files, *valid))
    done = 0
    try:
        _clear(folder)
        (folder / name).write_bytes(tokenizer_file.read_bytes())
        writers = {split: SplitWriter(folder, split, DTYPES[dtype]) for split in SPLITS}
        for split, batch in _encoded(documents, folder / name, processes):
            writers[split].write(batch)
            done += batch.n_bytes
            progress(min(done, total), total)
        splits = {split: writer.finish() for split, writer in writers.items()}
        progress(total, total)
        for split, info in splits.items():
            if not info.n_documents:
                raise UsageError(f"expected text for {split}, found none", "give more, or other files")
        dataset = Dataset(folder, name, tokenizer.vocab_size, dtype, splits)
        write_info(dataset)
    except OSError as error:
        raise LlamatuiError(
            f"{folder}: cannot be written: {error.strerror}", "choose another folder, or make room"
        ) from error
    return dataset


def _clear(folder: Path) -> None:
    """Makes the folder, without what an earlier dataset left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INFO).unlink(missing_ok=True)
    for split in SPLITS:
        for path in folder.glob(f"{split}-????.bin"):
            path.unlink()


def _marked(split: Split, documents: Iterable[str]) -> Iterator[tuple[Split, str]]:
    return ((split, document) for document in documents)


def _held_out(documents: Iterator[str]) -> Iterator[tuple[Split, str]]:
    """Every HELD_OUT-th document for validation; of fewer documents, the end of each."""
    first = list(islice(documents, HELD_OUT))
    if len(first) == HELD_OUT:
        for number, document in enumerate(chain(first, documents), 1):
            yield "train" if number % HELD_OUT else "valid", document
        return
    for document in first:
        cut = len(document) - len(document) // HELD_OUT
        cut = max(document.rfind(mark, 0, cut) for mark in " \n") + 1 or cut  # after a space, if there is one
        yield "train", document[:cut].rstrip()
        yield "valid", document[cut:]


@dataclass(frozen=True, slots=True)
class Batch:
    ids: npt.NDArray[np.uint32]
    n_documents: int
    n_bytes: int


def _encoded(
    documents: Iterable[tuple[Split, str]], tokenizer_file: Path, processes: int
) -> Iterator[tuple[Split, Batch]]:
    """Ids of the documents, about BATCH characters together, in order.

    Raises:
        LlamatuiError: A process was killed, most likely for want of memory.
    """
    # `spawn`, since a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Split, Future[Batch]]] = deque()
    with ProcessPoolExecutor(processes, context, _load, (tokenizer_file,)) as pool:
        try:
            for split, texts in _batches(documents):
                waiting.append((split, pool.submit(_encode, texts)))
                if len(waiting) > 2 * processes:  # text is read no faster than it is tokenized
                    split, future = waiting.popleft()
                    yield split, future.result()
            while waiting:
                split, future = waiting.popleft()
                yield split, future.result()
        except BrokenProcessPool as error:
            raise LlamatuiError("a process that tokenizes was killed", "is there enough memory?") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[tuple[Split, str]]) -> Iterator[tuple[Split, list[str]]]:
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for split, document in documents:
        texts[split].append(document)
        sizes[split] += len(document)
        if sizes[split] >= BATCH:
            yield split, texts[split]
            texts[split], sizes[split] = [], 0
    yield from ((split, rest) for split, rest in texts.items() if rest)


_tokenizer: Tokenizer
"""Of this process."""


def _load(tokenizer_file: Path) -> None:
    global _tokenizer
    _tokenizer = load_tokenizer(tokenizer_file)


def _encode(texts: list[str]) -> Batch:
    start = start_id(_tokenizer)
    ids = [np.array([start, *_tokenizer.encode(text)], np.uint32) for text in texts]
    return Batch(np.concatenate(ids), len(texts), sum(len(text.encode()) for text in texts))


class SplitWriter:
    """Writes the shards of one split."""

    def __init__(self, folder: Path, split: Split, dtype: str) -> None:
        self._folder, self._split, self._dtype = folder, split, dtype
        self._file: BinaryIO | None = None
        self._names: list[str] = []
        self._counts: list[int] = []
        self._n_documents = self._n_bytes = 0

    def write(self, batch: Batch) -> None:
        if self._file is None:
            self._names.append(f"{self._split}-{len(self._names):04}.bin")
            self._counts.append(0)
            self._file = (self._folder / self._names[-1]).open("wb")
        self._file.write(batch.ids.astype(self._dtype).data)
        self._counts[-1] += len(batch.ids)
        self._n_documents += batch.n_documents
        self._n_bytes += batch.n_bytes
        if self._counts[-1] >= SHARD:
            self.finish()

    def finish(self) -> SplitInfo:
        """What was written so far, with the shard closed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        shards = tuple(Shard(name, n) for name, n in zip(self._names, self._counts, strict=True))
        return SplitInfo(shards, self._n_documents, self._n_bytes)
