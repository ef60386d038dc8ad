"""SHA-256 of model files, which takes seconds: computed once for each."""

import json
import os
from hashlib import file_digest
from pathlib import Path

from platformdirs import user_cache_path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, remembered in the cache folder by path, size and time of change."""
    status = path.stat()
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    store = user_cache_path("llamatui", appauthor=False) / "sha256.json"
    try:
        known = json.loads(store.read_text("utf-8"))
        if isinstance(known, dict) and isinstance(known.get(key), str):
            return str(known[key])
    except (OSError, ValueError):
        known = {}
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        temporary = store.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({**(known if isinstance(known, dict) else {}), key: digest}), "utf-8")
        temporary.replace(store)
    except OSError:
        pass  # only a cache: a read-only home costs time, not the result
    return digest
