"""SHA-256 of model files, which takes seconds: computed once for each."""

import json
import os
from collections.abc import Callable
from hashlib import file_digest
from io import FileIO
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path


def file_sha256(path: Path, check: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file, remembered in the cache folder by path, size and time of change.

    `check` is called now and then, and may end it by an exception.
    """
    key, known = _key(path), _remembered()
    if isinstance(known.get(key), str):
        return str(known[key])
    with _Checked(path) as file:
        file.check = check
        digest = file_digest(file, "sha256").hexdigest()
    store = _store()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        temporary = store.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**_remembered(), key: digest}), "utf-8")
        temporary.replace(store)
    except OSError:
        pass  # only a cache: a read-only home costs time, not the result
    return digest


class _Checked(FileIO):
    check: Callable[[], None]

    def readinto(self, buffer: Any) -> int:
        self.check()
        return super().readinto(buffer) or 0


def known_sha256(path: Path) -> str | None:
    """The SHA-256 of a file if it has been computed before; None where that would take seconds.

    Raises:
        OSError: It is not there.
    """
    digest = _remembered().get(_key(path))
    return digest if isinstance(digest, str) else None


def _key(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"


def _store() -> Path:
    return user_cache_path("llamatui", appauthor=False) / "sha256.json"


def _remembered() -> dict[str, Any]:
    try:
        known = json.loads(_store().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
