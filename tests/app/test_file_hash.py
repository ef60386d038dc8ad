"""SHA-256 of model files, remembered."""

import json
import os
from hashlib import sha256
from pathlib import Path
from threading import Barrier, Thread

import pytest

from llamatui.app import file_hash
from llamatui.app.file_hash import file_sha256, known_sha256
from llamatui.errors import ModelError


def test_hashes_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    assert file_sha256(path) == sha256(b"one").hexdigest()
    monkeypatch.setattr(file_hash, "file_digest", lambda *a: pytest.fail("hashed again"))
    assert file_sha256(path) == sha256(b"one").hexdigest()
    monkeypatch.undo()
    path.write_bytes(b"other")
    assert file_sha256(path) == sha256(b"other").hexdigest()


def test_what_is_known_is_told_without_reading_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    assert known_sha256(path, opened(path)) is None
    file_sha256(path)
    assert known_sha256(path, opened(path)) == sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert known_sha256(path, opened(path)) is None


def opened(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns


def test_no_hash_is_given_for_another_file_of_the_same_name(tmp_path: Path) -> None:
    path, other = tmp_path / "m.bin", tmp_path / "other.bin"
    path.write_bytes(b"one")
    before = opened(path)
    other.write_bytes(b"other")
    other.replace(path)
    with pytest.raises(ModelError, match="has changed since it was opened"):
        file_sha256(path, opened=before)
    assert file_sha256(path) == sha256(b"other").hexdigest()


def test_a_file_that_changes_while_it_is_read_gets_no_hash(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    with pytest.raises(ModelError, match="has changed since it was opened"):
        file_sha256(path, check=lambda: os.utime(path, (1, 1)))
    assert not list(home.rglob("sha256.json"))


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, json.dumps({"x": 1})])
def test_a_damaged_or_unwritable_cache_costs_nothing_but_time(
    content: str, tmp_path: Path, home: Path
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    store = file_hash.user_cache_path("llamatui", appauthor=False) / "sha256.json"
    store.parent.mkdir(parents=True)
    store.write_text(content)
    assert file_sha256(path) == sha256(b"one").hexdigest()
    store.unlink()
    store.mkdir()
    assert file_sha256(path) == sha256(b"one").hexdigest()


def test_hashes_that_are_computed_at_once_are_all_remembered(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(40)]
    for path in paths:
        path.write_bytes(path.name.encode())
    together = Barrier(4)

    def compute(mine: list[Path]) -> None:
        for path in mine:
            together.wait(60)
            file_sha256(path)

    threads = [Thread(target=compute, args=(paths[first::4],)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path for path in paths if known_sha256(path, opened(path)) is None] == []
    store = file_hash.user_cache_path("llamatui", appauthor=False) / "sha256.json"
    assert list(store.parent.iterdir()) == [store]
