"""Documents from text, JSON and JSON lines, whatever their size and however they are saved."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.errors import UsageError
from llamatui.train import documents
from llamatui.train.documents import SEPARATOR, read_documents, text_files


def read(path: Path, content: bytes) -> list[str]:
    path.write_bytes(content)
    return list(read_documents([path]))


def test_a_text_file_is_split_at_separators(tmp_path: Path) -> None:
    text = f"\n one\nline {SEPARATOR}{SEPARATOR} \n {SEPARATOR}two\n".encode()
    assert read(tmp_path / "a.txt", text) == ["one\nline", "two"]


def test_without_separators_it_is_one_document(tmp_path: Path) -> None:
    assert read(tmp_path / "book", b"one\n\ntwo") == ["one\n\ntwo"]


def test_line_ends_and_a_byte_order_mark_make_no_difference(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n") == ["one\ntwo"]
    assert read(tmp_path / "a.jsonl", b'\xef\xbb\xbf"one"\r\n\r\n"two"\r\n') == ["one", "two"]
    assert read(tmp_path / "a.json", b'\xef\xbb\xbf["one"]') == ["one"]


@given(
    st.lists(st.text(st.sampled_from("ab é<|\n"), max_size=8), max_size=8),
    st.integers(2 * len(SEPARATOR), 4 * len(SEPARATOR)),
)
def test_no_separator_is_missed_at_the_border_of_two_chunks(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "CHUNK", chunk)
        found = read(path, SEPARATOR.join(parts).encode())
    assert found == [part.strip() for part in parts if part.strip()]


@pytest.mark.parametrize("letter", ["a", "a "])
def test_a_document_larger_than_memory_is_cut(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CHUNK", 50)
    found = read(tmp_path / "a.txt", (letter * 500 + SEPARATOR + "end").encode())
    assert max(map(len, found)) <= 100
    assert len(found) > 5
    assert "".join(found).replace(" ", "") == "a" * 500 + "end"


def test_json_takes_strings_and_objects(tmp_path: Path) -> None:
    entries = ["one", {"id": 1, "text": "two"}, {"story": "three"}, {"text": None, "content": "four"}, " "]
    found = ["one", "two", "three", "four"]
    assert read(tmp_path / "a.jsonl", "\n".join(map(json.dumps, entries)).encode()) == found
    assert read(tmp_path / "a.JSON", json.dumps(entries).encode()) == found
    assert read(tmp_path / "one.json", b'{"text": "alone"}') == ["alone"]


def test_half_a_surrogate_pair_becomes_utf8(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", rb'"a\ud83d"') == ["a?"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b"caf\xe9", "expected UTF-8, found byte 0xe9 at offset 3, in line 1"),
        ("a.txt", b"\xc3\xa9\n" * 5000 + b"\xff", "found byte 0xff at offset 15,000, in line 5,001"),
        ("a.txt", b"cut off \xe2\x82", "expected UTF-8, found byte 0xe2"),
        ("a.jsonl", b'"one"\n\n{"text": \n', "line 3: expected JSON: "),
        ("a.jsonl", b'"one"\n{"title": "x"}', "line 2: expected a string, or an object with text or story"),
        ("a.json", b'["one", 2]', "entry 2: expected a string"),
        ("a.json", b"", "expected JSON: "),
        ("a.json", b"[" * 100_000, "expected JSON: "),
    ],
)
def test_what_is_no_text_says_where(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path / name, content)
    assert caught.value.message.startswith(str(tmp_path / name))
    assert problem in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_has_no_documents(name: str, tmp_path: Path) -> None:
    assert read(tmp_path / name, b"") == []


def test_a_folder_gives_its_text_in_order_of_name(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a.jsonl",
        "sub/c.JSON",
        ".hidden.txt",
        ".git/x.txt",
        "picture.png",
        "dataset.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.txt").mkdir()
    assert text_files([tmp_path]) == [tmp_path / name for name in ("a.jsonl", "b.txt", "sub/c.JSON")]
    assert text_files([tmp_path / "picture.png"]) == [tmp_path / "picture.png"]


def test_no_text_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found no file that ends with .txt, .jsonl, .json"):
        text_files([tmp_path])
    with pytest.raises(UsageError, match="expected a text file or a folder, found neither"):
        text_files([tmp_path / "none"])


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch(0o000)
    with pytest.raises(UsageError, match=r"a\.txt: cannot be read: "):
        list(read_documents([tmp_path / "a.txt"]))
