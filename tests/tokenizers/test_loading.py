"""Recognising tokenizer files, refusing others, and finding the one that belongs to a model."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from llamatui.errors import TokenizerError
from llamatui.tokenizers import loading
from llamatui.tokenizers.binary_vocab import MAX_TOKENS
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer, vocabulary_size
from tests.tokenizers.conftest import ALL

FORMATS = {
    "tiktoken": "tiktoken",
    "llama3 json": "bpe",
    "llama3 bin": "bpe",
    "sentencepiece": "sentencepiece",
    "llama2 bin": "llama2.c",
    "smollm json": "bpe",
}


@pytest.mark.parametrize("name", ALL)
def test_formats_are_recognised_by_their_contents(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = shutil.copy(files[name], tmp_path / "vocabulary.xyz")
    tokenizer = load_tokenizer(path)
    assert tokenizer.format == FORMATS[name]
    assert vocabulary_size(path) == tokenizer.vocab_size
    assert load_tokenizer(path, tokenizer.vocab_size).vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("name", ALL)
def test_another_size_than_the_model(files: dict[str, Path], name: str) -> None:
    size = vocabulary_size(files[name])
    with pytest.raises(TokenizerError, match=f"expected {size + 1} tokens.* found {size}$") as raised:
        load_tokenizer(files[name], size + 1)
    assert "-z" in raised.value.hint


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("pickle-was-run",))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    return file.getvalue()


NOT_TOKENIZERS = {
    "empty": (b"", "an empty file"),
    "png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG picture"),
    "gzip": (gzip.compress(b"{}"), "a gzip archive"),
    "zip": (zipped(), "a zip archive"),
    "pickle 2": (pickle.dumps(Bomb(), 2), "a Python pickle"),
    "pickle 5": (pickle.dumps(Bomb(), 5), "a Python pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 100, "a GGUF model"),
    "checkpoint": (b"24ka\x01\0\0\0" + b"\0" * 248, "a model checkpoint"),
    "text": (b"Once upon a time\nthere was", "a text file"),
    "newlines": (b"\n" * 100, "100 bytes that do not parse"),
    "long text": (b"Once upon a time, \xc3\xa9. " * 1000, "a text file"),
    "html": (b"<!DOCTYPE html><html>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
    "other json": (b'{"dim": 64}', "JSON that is not a tokenizer.json"),
    "broken json": (b'{"model": {"vocab": {', "expected JSON"),
    "json of another kind": (b'{"model": {"vocab": 5}}', "JSON without a vocabulary"),
    "zeros": (b"\0" * 5000, "longest token of 0 bytes"),
    "random": (bytes(range(7, 256, 3)), "an unknown binary file"),
    "old checkpoint": (struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + b"\x3f" * 500, "bytes long"),
    "few bytes": (b"\x05\0", "an unknown binary file"),
}


@pytest.mark.parametrize("name", NOT_TOKENIZERS)
def test_files_that_are_no_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    data, found = NOT_TOKENIZERS[name]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=found) as raised:
        load_tokenizer(path)
    assert raised.value.message.startswith(f"{path}: expected ")
    assert raised.value.hint
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ALL)
def test_files_cut_short(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    data = files[name].read_bytes()
    path = tmp_path / "cut"
    # Ten places in the first half, where none of the formats can be complete.
    for end in range(0, len(data) // 2, len(data) // 20):
        path.write_bytes(data[: end + 5])
        with pytest.raises(TokenizerError, match="expected"):
            load_tokenizer(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="found no such file"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(TokenizerError, match="found a folder"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenizerError, match="a device or a pipe"):
        load_tokenizer(tmp_path / "pipe")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.model"
    with path.open("wb") as file:
        file.truncate(50 << 30)
    with pytest.raises(TokenizerError, match="at most 48 MiB, found 51200 MiB"):
        load_tokenizer(path)


def json_of(vocab: str, added: str = "") -> bytes:
    return b'{"added_tokens":[%s],"model":{"merges":[],"vocab":{%s}}}' % (added.encode(), vocab.encode())


MORE = MAX_TOKENS + 1
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "pieces": (lambda: b"\n\x03\n\x01a" + b"\n\x00" * (4 * MORE), "at most 524288 pieces"),
    "lines": (lambda: b"YQ== 0\n" * MORE, "at most 524288 lines"),
    "empty lines": (lambda: b"YQ== 0" + b"\n" * MORE, "at most 524288 lines"),
    "records": (lambda: b"\x05\0\0\0" + bytes(8 * MORE), "token 524288 to be 0 bytes long"),
    "vocab": (lambda: json_of(",".join(f'"{i:x}":1' for i in range(MORE))), "at most 524288 tokens"),
    "added": (lambda: json_of('"a":0', ",".join(["{}"] * MORE)), "at most 524288 tokens"),
    "values": (lambda: json_of('"a":0', ",".join(["[[[[[]]]]]"] * MORE)), "about 3,145,7.. values"),
}
"""More tokens than any model has, and what refuses them before they cost much."""


@pytest.mark.parametrize("kind", HOSTILE)
def test_more_tokens_than_any_model_has(tmp_path: Path, kind: str) -> None:
    content, problem = HOSTILE[kind]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content())
    for read in (load_tokenizer, vocabulary_size):
        with pytest.raises(TokenizerError, match=problem) as raised:
            read(path)
        assert raised.value.message.startswith(str(path))
        assert raised.value.hint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file, in a folder with files that are often beside one."""
    path = tmp_path / "models" / "story.bin"
    path.parent.mkdir()
    path.write_bytes(struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + b"\x3f" * 500)
    (path.parent / "config.json").write_text(json.dumps({"vocab_size": 340, "model_type": "llama"}))
    (path.parent / "tokyo.bin").write_bytes(path.read_bytes())
    (path.parent / "tok.model").mkdir()
    return path


@pytest.mark.parametrize(
    "order",
    [
        ["story.tokenizer.model", "story.tokenizer.bin"],
        ["story.tokenizer.bin", "tokenizer.model"],
        ["tokenizer.model", "tokenizer.bin"],
        ["tokenizer.bin", "tok340.bin"],
        ["tok340.bin", "../mine/any.bin"],
        ["vocabulary.model", "../mine/any.bin"],
    ],
)
def test_the_nearest_name_wins(files: dict[str, Path], model: Path, order: list[str]) -> None:
    mine = model.parent.parent / "mine"
    mine.mkdir()
    for name in order:
        source = files["sentencepiece" if name.endswith("model") else "llama2 bin"]
        shutil.copy(source, model.parent / name)
    assert find_tokenizer(model, 340, own=mine) == model.parent / order[0]
    (model.parent / order[0]).unlink()
    found = find_tokenizer(model, 340, own=mine)
    assert found is not None
    assert found.resolve() == (model.parent / order[1]).resolve()


@pytest.mark.parametrize(
    "order",
    [
        ["story.tokenizer.model", "tokenizer.model"],
        ["tokenizer.bin", "tok340.bin"],
        ["tok.model", "../mine/story.tokenizer.model"],
        ["../mine/tokenizer.model", "../mine/any.bin"],
    ],
)
def test_the_same_order_in_other_folders(files: dict[str, Path], model: Path, order: list[str]) -> None:
    """A folder given first comes first, whatever the names in the next."""
    here, mine = model.parent.parent / "here", model.parent.parent / "mine"
    here.mkdir()
    mine.mkdir()
    for name in order:
        shutil.copy(files["sentencepiece" if name.endswith("model") else "llama2 bin"], here / name)
    for name in order:
        found = find_tokenizer(model, 340, here, own=mine)
        assert found is not None
        assert found.resolve() == (here / name).resolve()
        found.unlink()


@pytest.mark.parametrize("name", ["any.bin", "any.model", "any.json", "other.tokenizer.model"])
def test_other_folders_hold_other_things_too(files: dict[str, Path], model: Path, name: str) -> None:
    """There, only a name tells a tokenizer of this model from another one of its size."""
    here = model.parent.parent / "here"
    here.mkdir()
    shutil.copy(files["smollm json" if name.endswith("json") else "sentencepiece"], here / name)
    size = vocabulary_size(here / name)
    assert find_tokenizer(model, size, here) is None
    assert find_tokenizer(model, size, here, own=here) == here / name


def test_no_file_is_read_twice(files: dict[str, Path], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(files["sentencepiece"], model.parent / "tokenizer.model")
    (model.parent / "link").symlink_to(model.parent, target_is_directory=True)
    read = []
    monkeypatch.setattr(loading, "vocabulary_size", lambda path: read.append(path) or 1)
    folders = [model.parent, model.parent / "link", model.parent / ".." / "models"]
    assert find_tokenizer(model, 340, *folders, own=model.parent) == model.parent / "tokenizer.model"
    assert len(read) == len(set(map(os.path.realpath, read)))


OTHER_FILES = {
    "data.json": b'{"data": [' + b"0, " * (6 << 20) + b"0]}",
    "checkpoint.model": b"PK\x03\x04" + bytes(20 << 20),
    "notes.json": b"Once upon a time" * (1 << 20),
    "tok_of_all.bin": b"24ka" + bytes(20 << 20),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_of_other_files_only_the_beginning_is_read(model: Path, name: str) -> None:
    (model.parent / name).write_bytes(OTHER_FILES[name])
    tracemalloc.start()
    assert find_tokenizer(model, 340, own=model.parent) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_huge_files_in_other_folders_are_not_read(model: Path) -> None:
    here = model.parent.parent / "here"
    here.mkdir()
    for name in ("tokenizer.model", "model.bin", "big.json"):
        with (here / name).open("wb") as file:
            file.truncate(50 << 30)
    tracemalloc.start()
    assert find_tokenizer(model, 340, here) is None
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ALL)
def test_size_decides_among_the_users_own(files: dict[str, Path], model: Path, name: str) -> None:
    folder = files[name].parent
    found = find_tokenizer(model, vocabulary_size(files[name]), model.parent / "absent", own=folder)
    assert found is not None
    assert found.parent == folder
    assert vocabulary_size(found) == vocabulary_size(files[name])


def test_a_named_file_of_another_size_gives_way_to_one_that_fits(files: dict[str, Path], model: Path) -> None:
    shutil.copy(files["tiktoken"], model.parent / "tokenizer.model")
    shutil.copy(files["llama2 bin"], model.parent / "tok340.bin")
    assert find_tokenizer(model, 340) == model.parent / "tok340.bin"


@pytest.mark.parametrize("problem", ["damaged", "another size"])
def test_a_named_file_is_reported_when_nothing_fits(
    files: dict[str, Path], model: Path, problem: str
) -> None:
    named = model.parent / "tokenizer.bin"
    data = files["llama2 bin"].read_bytes()
    named.write_bytes(data[:-1] if problem == "damaged" else data)
    assert find_tokenizer(model, 341) == named
    with pytest.raises(TokenizerError):
        load_tokenizer(named, 341)


def test_nothing_is_found(model: Path) -> None:
    (model.parent / "tok340.bin").write_bytes(b"damaged")
    assert find_tokenizer(model, 340, model.parent.parent / "absent") is None


@pytest.mark.real
def test_real_files_are_found_by_their_size(real_data: Path) -> None:
    model = real_data / "models" / "stories260K.bin"
    assert find_tokenizer(model, 512) == real_data / "models" / "tok512.bin"
    found = find_tokenizer(model, 128256, own=real_data / "tokenizers")
    assert found is not None
    assert vocabulary_size(found) == 128256
