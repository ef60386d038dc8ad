"""Turns text into shards of token ids, on all cores, in an order that does not depend on their number."""

import multiprocessing
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import numpy as np
import numpy.typing as npt

from llamatui.errors import LlamatuiError, UsageError
from llamatui.export.tokenizer_files import from_file
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.file_names import CONFIG
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train.dataset import (
    DTYPES,
    INFO,
    SPLITS,
    TOKENIZER_NAME,
    Dataset,
    Shard,
    Split,
    SplitInfo,
    listed_tokenizer,
    smallest_dtype,
    start_id,
    write_info,
)
from llamatui.train.documents import read_documents

HELD_OUT = 20
"""One document in this many is for validation where no text for it is given."""
BATCH = 1 << 18  # characters in one piece of work
SHARD = 100_000_000  # tokens after which another file begins, at the end of a document

PART = ".dataset.part"
"""Folder of a dataset that is being written."""
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{4,9}}\.bin", re.ASCII)
TOKENIZER_CONFIG = CONFIG.removeprefix(".")

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
    """Writes a dataset, hidden in `folder` until it is whole: then it replaces the one that is there.

    Args:
        files: Text to train on.
        valid: Text to validate on; without it, every 20th document of `files` is held out, or the last 20th
            of each where there are fewer.

    Raises:
        UsageError: A file cannot be read, there is too little text, or files of others are in the way.
        TokenizerError: The tokenizer cannot be read.
        LlamatuiError: The folder cannot be written to.
    """
    tokenizer = load_tokenizer(tokenizer_file)
    tokenizer_files = {
        ending.removeprefix("."): data
        for ending, data in from_file(tokenizer_file, tokenizer.vocab_size).items()
    }
    if start_id(tokenizer) < 0:
        raise UsageError(
            f"{tokenizer_file}: expected a token that begins or ends a document, found none",
            "choose another tokenizer",
        )
    documents: Iterator[tuple[Split, str]]
    if valid:
        documents = chain(_marked("train", read_documents(files)), _marked("valid", read_documents(valid)))
    else:
        documents = _held_out(read_documents(files))
    dtype = smallest_dtype(tokenizer.vocab_size)
    total = sum(path.stat().st_size for path in (*files, *valid))
    done = 0
    part = folder / PART
    try:
        _check_place(folder, tokenizer_file, tokenizer_files)
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        shutil.rmtree(part, ignore_errors=True)  # of one that was killed
        part.mkdir(parents=True)
        try:
            writers = {split: SplitWriter(part, split, DTYPES[dtype]) for split in SPLITS}
            with closing(_encoded(documents, tokenizer_file, processes)) as batches:
                for split, batch in batches:
                    writers[split].write(batch)
                    done += batch.n_bytes
                    progress(min(done, total), total)
            for split, writer in writers.items():
                if not writer.n_documents:
                    raise UsageError(f"expected text for {split}, found none", "give more, or other files")
            for name, data in tokenizer_files.items():
                if (folder / name).resolve() != tokenizer_file.resolve():
                    (part / name).write_bytes(data)
            name = next(name for name in tokenizer_files if re.fullmatch(TOKENIZER_NAME, name))
            splits = {split: writer.info() for split, writer in writers.items()}
            dataset = Dataset(part, name, tokenizer.vocab_size, dtype, splits)
            write_info(dataset)
            _replace(folder, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            for path in made:
                with suppress(OSError):  # it is not empty
                    path.rmdir()
    except OSError as error:
        raise LlamatuiError(
            f"{folder}: cannot be written: {error.strerror}", "choose another folder, or make room"
        ) from error
    progress(total, total)
    return replace(dataset, path=folder)


def _check_place(folder: Path, tokenizer_file: Path, tokenizer_files: dict[str, bytes]) -> None:
    """Raises UsageError: files that no dataset of ours has brought would be lost."""
    listed = listed_tokenizer(folder)
    if listed:
        names = tokenizer_files.keys() - {listed, TOKENIZER_CONFIG}
    else:
        names = {*tokenizer_files, TOKENIZER_CONFIG, INFO}
    given = tokenizer_file.resolve()
    kept = (given, given.with_name(f"{given.stem}_config.json"))
    for path in sorted(folder.glob("*")):
        is_lost = path.name in names and path.read_bytes() != tokenizer_files.get(path.name)
        if (is_lost or (not listed and SHARD_NAME.fullmatch(path.name))) and path.resolve() not in kept:
            raise UsageError(
                f"{folder}: expected a new folder, or a dataset to replace, found another {path.name}",
                "choose another folder",
            )


def _replace(folder: Path, part: Path) -> None:
    """Puts what is in `part` in the place of a dataset. `dataset.json` goes first and comes last."""
    old = [path for path in folder.iterdir() if SHARD_NAME.fullmatch(path.name)]
    if not (part / TOKENIZER_CONFIG).exists():
        old.append(folder / TOKENIZER_CONFIG)
    for path in (folder / INFO, *old):
        path.unlink(missing_ok=True)
    for path in sorted(part.iterdir(), key=lambda path: path.name == INFO):
        path.replace(folder / path.name)


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
        held = len(document) // HELD_OUT
        end = len(document) - held
        # After a white space, if there is one near.
        cut = max(document.rfind(mark, end - held, end) for mark in " \n") + 1 or end
        yield "train", document[:cut].rstrip()
        if rest := document[cut:].lstrip():
            yield "valid", rest


@dataclass(frozen=True, slots=True)
class Batch:
    ids: npt.NDArray[np.uint32]
    n_documents: int
    n_bytes: int


def _encoded(
    documents: Iterable[tuple[Split, str]], tokenizer_file: Path, processes: int
) -> Generator[tuple[Split, Batch], None, None]:
    """Ids of the documents, about BATCH characters together, in order.

    Raises:
        LlamatuiError: A process was killed, most likely for want of memory.
    """
    # `spawn`, since a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Split, Future[Batch]]] = deque()
    reader, writer = context.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(processes, context, _load, (tokenizer_file, reader)) as pool:
        try:
            for split, texts in _batches(documents):
                with _no_signals():  # it may start processes and threads
                    future = pool.submit(_encode, texts)
                waiting.append((split, future))
                if len(waiting) > 2 * processes:  # text is read no faster than it is tokenized
                    split, future = waiting.popleft()
                    yield split, future.result()
            while waiting:
                split, future = waiting.popleft()
                yield split, future.result()
        except BrokenProcessPool as error:
            raise LlamatuiError(
                "a process that tokenizes was killed", "if memory is short, choose --processes 1"
            ) from error
        finally:
            # They end what they are at: of one that dies in the middle of an answer, the pool reads for ever.
            pool.shutdown(cancel_futures=True)


@contextmanager
def _no_signals() -> Iterator[None]:
    """Processes and threads that begin in the block see neither Ctrl+C nor SIGPIPE.

    Ctrl+C reaches all processes of a terminal, and is the parent's to handle. SIGPIPE ends the command when
    its stdout is closed, but here a pool gives up a pipe when a process of it was killed.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGPIPE})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _load(tokenizer_file: Path, life: Connection) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where signals cannot be masked
    Thread(target=_end_with, args=(life,), daemon=True).start()
    _tokenizer = load_tokenizer(tokenizer_file)


def _end_with(life: Connection) -> None:
    """Ends this process when the other end is closed: the parent was killed."""
    life.poll(None)
    os._exit(1)


def _encode(texts: list[str]) -> Batch:
    start = start_id(_tokenizer)
    ids = [np.array([start, *_tokenizer.encode(text)], np.uint32) for text in texts]
    return Batch(np.concatenate(ids), len(texts), sum(len(text.encode()) for text in texts))


class SplitWriter:
    """Writes the shards of one split."""

    def __init__(self, folder: Path, split: Split, dtype: str) -> None:
        self._folder, self._split, self._dtype = folder, split, dtype
        self._counts = [0]  # tokens in each shard
        self.n_documents = self._n_bytes = 0

    def write(self, batch: Batch) -> None:
        if self._counts[-1] >= SHARD:
            self._counts.append(0)
        with (self._folder / self._name(len(self._counts) - 1)).open("ab") as file:
            file.write(batch.ids.astype(self._dtype).data)
        self._counts[-1] += len(batch.ids)
        self.n_documents += batch.n_documents
        self._n_bytes += batch.n_bytes

    def info(self) -> SplitInfo:
        """What was written."""
        shards = tuple(Shard(self._name(i), count) for i, count in enumerate(self._counts))
        return SplitInfo(shards, self.n_documents, self._n_bytes)

    def _name(self, shard: int) -> str:
        return f"{self._split}-{shard:04}.bin"
