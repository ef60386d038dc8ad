"""Files that are written whole or not at all."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from llamatui.app.text_file import name_from, write_text, write_whole
from llamatui.errors import LlamatuiError

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")
LARGE = b"words " * 2000


@contextmanager
def full_disk() -> Iterator[None]:
    """Where no file may have more than 4 KiB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_nothing_away_and_leaves_nothing_behind(tmp_path: Path) -> None:
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_bytes(LARGE)
    for path, overwrite in ((old, True), (new, False)):
        with full_disk(), pytest.raises(LlamatuiError, match=r"txt cannot be written: File too large"):
            write_text(path, "others " * 2000, overwrite=overwrite)
    assert old.read_bytes() == LARGE
    assert list(tmp_path.iterdir()) == [old]
    assert write_text(new, "short") == new


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_written_as_it_is(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "one\ntwo\ud800é", overwrite=overwrite)
    assert path.read_bytes() == "one\ntwo?é".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appeared_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    monkeypatch.setattr(os, "fsync", lambda _: path.write_text("theirs"))
    with pytest.raises(FileExistsError):
        write_text(path, "mine")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_permissions_are_those_that_open_gives(tmp_path: Path) -> None:
    new, private = tmp_path / "new.txt", tmp_path / "private.txt"
    private.touch(0o600)
    before = os.umask(0o027)
    try:
        write_text(new, "x")
        write_text(private, "x", overwrite=True)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new, private)] == [0o640, 0o600]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_only_be_read_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("mine")
    path.chmod(0o400)
    with pytest.raises(LlamatuiError, match="no permission"):
        write_text(path, "x", overwrite=True)
    assert path.read_text() == "mine"


@posix
@pytest.mark.parametrize("there", [True, False])
def test_what_a_link_leads_to_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "other").mkdir()
    target, link = tmp_path / "other" / "a.txt", tmp_path / "link.txt"
    if there:
        target.write_text("old")
    link.symlink_to(Path("other", "a.txt"))
    with pytest.raises(FileExistsError):
        write_text(link, "new")
    assert write_text(link, "new", overwrite=True) == link
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    assert list(target.parent.iterdir()) == [target]


@posix
def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.symlink_to(path)
    with pytest.raises(LlamatuiError, match="symbolic links"):
        write_text(path, "x", overwrite=True)
    assert path.is_symlink()


@posix
def test_a_pipe_takes_what_is_written(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe.txt", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_text(pipe, "words", overwrite=True)
    reader.join(10)
    assert (read, pipe.is_fifo()) == ([b"words"], True)


def null(folder: Path) -> Path:
    link = folder / "null.txt"
    link.symlink_to(os.devnull)
    return link


@posix
@pytest.mark.parametrize("device", [lambda _: Path(os.devnull), null])
def test_a_device_stays_one(tmp_path: Path, device: Callable[[Path], Path]) -> None:
    path = device(tmp_path)
    write_text(path, "words", overwrite=True)
    assert path.is_char_device()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path, overwrite: bool) -> None:
    path = tmp_path / ("a" * 251 + ".txt")
    assert write_text(path, "x", overwrite=overwrite).read_text() == "x"


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_name_comes_from_the_first_words() -> None:
    assert name_from("../../Who *are* you, my __friend__ of old?", "chat") == "who-are-you-my-__friend__-of"
    assert name_from("a" * 100, "chat") == "a" * 60
    assert name_from("???", "chat") == "chat"
