"""KV caches kept on disk: a conversation or story that is opened again goes on at once.

store = KVStore(limit_bytes=settings.kv_cache_mb * 10**6)
store.adopt(session, prompt, sha256)        before `session.start(prompt, ...)`, in the same thread
store.keep(session, sha256)                 when the text is left, while nothing is generated

One file for each text, as `llamatui.backends.kv_file` writes it. Its name is a hash of where it comes from
and of its first tokens, and one of all its tokens. Several apps may share the folder without a lock: files
appear whole and are never changed, and one that vanished is one that is not there.
"""

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

import llamatui
from llamatui.app.config import Settings
from llamatui.app.engine import Session
from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.kv_file import KVFile, KVFileDamagedError, KVFileError, file_size, save

MIN_TOKENS = 64
"""What is shorter is run faster than it is looked for."""

ROOM = 256
"""Positions to hold beside the prompt, so that the first new ones do not copy all the others."""

END, PART = ".kv", ".part"  # of a file, and of one that is being written

STALE = 600  # seconds after which nobody is writing a file any more

SPARE = 100_000_000
"""Bytes of the disk that are left to what matters more: a history that cannot be saved is lost."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path
    size: int
    used: int
    """When last, in ns."""


class KVStore:
    """
    Attributes:
        problems: What went wrong and was got over: damaged files, a full disk. For a note; each once.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = Settings().kv_cache_mb * 10**6) -> None:
        """
        Args:
            folder: None is the user's cache folder.
            limit_bytes: What all files may take together; 0 keeps and gives nothing.
        """
        self.folder = user_cache_path("llamatui", appauthor=False) / "kv" if folder is None else folder
        self.limit_bytes = limit_bytes
        self.problems: list[str] = []

    def keep(self, session: Session, model_sha256: str) -> bool:
        """Saves what a session holds in its cache, in the place of what it goes on from.

        Those not used for longest make room. Not for a session that is generating.

        Returns:
            Whether it is there now; False if it is too short, too long, or cannot be written: see `problems`.
        """
        try:
            return self._keep(session, _origin(session.backend, model_sha256))
        except FileNotFoundError:
            return False  # another app has cleared the folder meanwhile
        except OSError as error:
            self._note(f"{self.folder}: cannot be written: {error.strerror}")
            return False
        finally:
            self._make_room(0)  # the limit may have been lowered, and other apps write too

    def _keep(self, session: Session, origin: dict[str, str]) -> bool:
        config, n = session.backend.config, session.cache.length
        tokens = np.array(session.tokens[:n], np.int64)  # (n,)
        size = file_size(config, origin, n)
        if n < MIN_TOKENS or size > self.limit_bytes:
            return False
        older = []
        for path in self._beginning_like(tokens, origin):
            kept = self._using(path, config, origin, lambda file: file.tokens)
            if kept is None or not np.array_equal(kept[:n], tokens[: len(kept)]):
                continue
            if len(kept) >= n:
                _touch(path)
                return True
            older.append(path)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._make_room(size, older):
            return False
        if shutil.disk_usage(self.folder).free < size + SPARE:
            self._note(f"{self.folder}: the disk is nearly full")
            return False
        self._write(self.folder / _name(tokens, origin), session, origin)
        for path in older:
            _remove(path)
        return True

    def adopt(self, session: Session, prompt: Sequence[int], model_sha256: str) -> int:
        """Gives a session the longest kept beginning of `prompt`, so that `start` runs only the rest.

        The session stays as it is where that is hardly more than it holds itself.

        Returns:
            How many tokens came from disk.
        """
        backend = session.backend.latest  # it takes over with the next step
        config, origin = backend.config, _origin(backend, model_sha256)
        tokens = np.array(prompt, np.int64)  # (len(prompt),)
        room = min(len(prompt) - 1, session.context)  # the last token always runs: its logits are needed
        held = session.shared(prompt) if _family(backend) == _family(session.backend) else 0
        if self.limit_bytes <= 0 or room - held < MIN_TOKENS:
            return 0

        def matching(kept: KVFile) -> int:
            return min(kept.shared(tokens), room)

        def read(kept: KVFile) -> KVCache:
            cache = KVCache(config, session.context)
            cache.reserve(min(len(prompt) + ROOM, session.context))
            kept.read(cache, matching(kept))
            return cache

        found = [(self._using(path, config, origin, matching) or 0, path)
                 for path in self._beginning_like(tokens, origin)]  # fmt: skip
        for n, path in sorted(found, reverse=True):
            if n - held < MIN_TOKENS:
                break
            if cache := self._using(path, config, origin, read):
                session.swap(backend)
                session.cache, session.tokens = cache, list(prompt[: cache.length])
                _touch(path)
                return cache.length
        return 0

    def clear(self) -> None:
        """Removes all that is kept, as far as possible: it holds what somebody wrote."""
        for file in self._files():
            _remove(file.path)

    def _using(
        self, path: Path, config: ModelConfig, origin: dict[str, str], use: Callable[[KVFile], T]
    ) -> T | None:
        """What `use` makes of a file; None if it vanished or cannot be used. A damaged one is removed."""
        try:
            with KVFile(path, config, origin) as kept:
                return use(kept)
        except KVFileDamagedError as error:
            self._note(error.message)
            _remove(path)
        except (OSError, KVFileError):
            pass
        return None

    def _beginning_like(self, tokens: npt.NDArray[np.int64], origin: dict[str, str]) -> list[Path]:
        """Files of the same origin that have the first MIN_TOKENS of `tokens`."""
        start = _name(tokens, origin).partition("-")[0]
        return [file.path for file in self._files() if file.path.name.startswith(start)]

    def _files(self) -> list[_Stored]:
        """All that are there now, unfinished ones too."""
        found = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith((END, PART)):
                        with suppress(FileNotFoundError):  # another app has just removed it
                            status = entry.stat(follow_symlinks=False)
                            if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                                found.append(_Stored(Path(entry.path), status.st_size, status.st_mtime_ns))
        except OSError:
            return []
        return found

    def _make_room(self, size: int, older: Collection[Path] = ()) -> bool:
        """Removes files, `older` ones first, then those not used for longest, until `size` bytes fit."""
        files = sorted(self._files(), key=lambda file: (file.path not in older, file.used))
        total = sum(file.size for file in files)
        fresh = time.time_ns() - STALE * 10**9
        for file in files:
            unfinished = file.path.suffix == PART
            unwanted = file.used < fresh if unfinished else total + size > self.limit_bytes
            if unwanted and _remove(file.path):
                total -= file.size
        return total + size <= self.limit_bytes

    def _write(self, path: Path, session: Session, origin: dict[str, str]) -> None:
        """Not flushed to the disk itself: what a power failure leaves is noticed by its checksums."""
        descriptor, name = tempfile.mkstemp(PART, dir=self.folder)  # nobody else may read it
        try:
            with os.fdopen(descriptor, "wb") as file:
                tokens = session.tokens[: session.cache.length]
                save(file, session.cache, tokens, session.backend.config, origin)
            Path(name).replace(path)
        except BaseException:
            _remove(Path(name))
            raise

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _family(backend: Backend) -> str:
    """Backends whose keys and values may stand in for each other's, as `Session.swap` has it."""
    return backend.name if backend.quantizes_activations else "fp32"


def _origin(backend: Backend, model_sha256: str) -> dict[str, str]:
    # Other code may compute otherwise: to read a text once more after an update is cheap.
    return {
        "model": model_sha256,
        "family": _family(backend),
        "llamatui": llamatui.__version__,
        "kernels": _kernels_digest(),
    }


def _kernels_digest() -> str:
    """Of their sources: between two releases the version stays as it is."""
    try:
        from llamatui.backends.kernels.cache import SOURCES_DIGEST
    except (ImportError, OSError):  # without LLVM only NumPy computes
        return ""
    return SOURCES_DIGEST.hex()[:16]


def _name(tokens: npt.NDArray[np.int64], origin: dict[str, str]) -> str:
    """Of the file: texts with the same origin and first MIN_TOKENS begin alike."""
    start = blake2b(json.dumps(origin).encode() + tokens[:MIN_TOKENS].tobytes(), digest_size=16)
    return f"{start.hexdigest()}-{blake2b(tokens.tobytes(), digest_size=16).hexdigest()}{END}"


def _touch(path: Path) -> None:
    with suppress(OSError):  # gone, or not ours to change
        os.utime(path)


def _remove(path: Path) -> bool:
    """Whether it is gone: on Windows one that another app has open stays."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
