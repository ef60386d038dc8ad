"""SHA-256 of model files, which takes seconds: computed once for each."""

import json
import os
from collections.abc import Callable
from hashlib import file_digest
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from platformdirs import user_cache_path

from llamatui.app.text_file import write_whole
from llamatui.errors import ModelError

Version = tuple[int, int]
"""Size and time of change, in ns."""

_remembering = Lock()


def file_sha256(path: Path, check: Callable[[], None] = lambda: None, opened: Version | None = None) -> str:
    """SHA-256 of a file, remembered in the cache folder by path, size and time of change.

    Args:
        check: Called now and then; it may end it by an exception.
        opened: The file that is meant; None: the one that is there now.

    Raises:
        OSError: It cannot be read.
        ModelError: Another one is there by now.
    """
    opened = opened or _version(path.stat())
    if known := known_sha256(path, opened):
        return known
    with _Checked(path) as file:
        file.check = check
        _refuse_another(path, os.fstat(file.fileno()), opened)
        digest = file_digest(file, "sha256").hexdigest()
        _refuse_another(path, os.fstat(file.fileno()), opened)
    _remember(_key(path, opened), digest)
    return digest


class _Checked(FileIO):
    check: Callable[[], None]

    def readinto(self, buffer: Any) -> int:
        self.check()
        return super().readinto(buffer) or 0


def known_sha256(path: Path, opened: Version) -> str | None:
    """The SHA-256 of a file if it has been computed before; None where that would take seconds.

    Raises:
        OSError: It is not there.
        ModelError: Another one is there by now.
    """
    _refuse_another(path, path.stat(), opened)
    digest = _remembered().get(_key(path, opened))
    return digest if isinstance(digest, str) else None


def _refuse_another(path: Path, status: os.stat_result, opened: Version) -> None:
    if _version(status) != opened:
        raise ModelError(f"{path}: the file has changed since it was opened", "open the model again")


def _version(status: os.stat_result) -> Version:
    return status.st_size, status.st_mtime_ns


def _key(path: Path, version: Version) -> str:
    size, changed = version
    return f"{path.resolve()}:{size}:{changed}"


def _store() -> Path:
    return user_cache_path("llamatui", appauthor=False) / "sha256.json"


def _remember(key: str, digest: str) -> None:
    store = _store()
    try:
        with _remembering:
            store.parent.mkdir(parents=True, exist_ok=True)
            write_whole(store, json.dumps({**_remembered(), key: digest}).encode(), overwrite=True)
    except OSError:
        pass  # only a cache: a read-only home costs time, not the result


def _remembered() -> dict[str, Any]:
    try:
        known = json.loads(_store().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
