"""Text to shards: the same bytes for any number of processes, and nothing half done."""

import json
import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from llamatui.errors import LlamatuiError, UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train import pretokenize as module
from llamatui.train.dataset import FORMAT, INFO, Dataset, open_dataset
from llamatui.train.pretokenize import pretokenize
from tests.tiny import write_chat_tokenizer, write_tokenizer_bin


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tok512.bin"
    write_tokenizer_bin(path)
    return path


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_file)


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("<|endoftext|>".join(documents), "utf-8")
    return path


def contents(dataset: Dataset, tokenizer: Tokenizer, split: str) -> list[str]:
    """The documents of a split, from its ids."""
    shards = dataset.splits[split].shards  # type: ignore[index]
    dtype = {"uint16": "<u2", "uint32": "<u4"}[dataset.dtype]
    ids = np.concatenate([np.fromfile(dataset.path / shard.name, dtype) for shard in shards])
    starts = [*np.flatnonzero(ids == tokenizer.bos_id), len(ids)]
    assert starts[0] == 0
    return [tokenizer.decode(ids[a + 1 : b].tolist()) for a, b in pairwise(starts)]


DOCUMENTS = [f"story {i} has </s> and <s> and <|im_end|> in it" for i in range(50)]


def test_any_number_of_processes_writes_the_same(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 200)
    monkeypatch.setattr(module, "SHARD", 500)
    text = write(tmp_path / "a.txt", DOCUMENTS)
    steps: list[tuple[int, int]] = []
    one = pretokenize([text], tmp_path / "one", tokenizer_file, processes=1)
    three = pretokenize(
        [text], tmp_path / "three", tokenizer_file, processes=3, progress=lambda *step: steps.append(step)
    )
    assert one.splits == three.splits == open_dataset(tmp_path / "three").splits
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "three").iterdir()}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
    assert steps == sorted(steps)
    assert steps[-1] == (text.stat().st_size,) * 2

    assert contents(three, tokenizer, "valid") == DOCUMENTS[19::20]
    assert contents(three, tokenizer, "train") == [d for i, d in enumerate(DOCUMENTS, 1) if i % 20]
    train = three.splits["train"]
    assert (train.n_documents, train.n_bytes) == (48, sum(len(d) for d in DOCUMENTS) - 2 * len(DOCUMENTS[19]))
    assert len(train.shards) > 2
    for shard in train.shards:
        ids = np.fromfile(tmp_path / "three" / shard.name, "<u2")
        assert ids[0] == tokenizer.bos_id
        assert (ids == 2).sum() == 0  # </s> in a text is text
    assert all(500 <= shard.n_tokens < 800 for shard in train.shards[:-1])


@pytest.mark.parametrize(
    ("n", "n_train", "n_valid"), [(1, 1, 1), (2, 2, 2), (19, 19, 19), (20, 19, 1), (21, 20, 1), (40, 38, 2)]
)
def test_what_is_held_out(n: int, n_train: int, n_valid: int) -> None:
    documents = [f"document {i} " + "word " * 50 + "end" for i in range(n)]
    marked = list(module._held_out(iter(documents)))
    assert [split for split, _ in marked].count("train") == n_train
    assert [split for split, _ in marked].count("valid") == n_valid
    if n < 20:
        texts = [text for _, text in marked]
        assert [f"{a} {b}" for a, b in zip(texts[::2], texts[1::2], strict=True)] == documents
        assert all(len(text) < len(documents[0]) / 10 for text in texts[1::2])
    else:
        assert [text for split, text in marked if split == "valid"] == documents[19::20]


@pytest.mark.parametrize("text", ["a " + "日" * 1000, "日" * 1000])
def test_a_text_without_spaces_is_not_all_held_out(text: str) -> None:
    (_, train), (_, valid) = module._held_out(iter([text]))
    assert train + valid == text
    assert len(valid) == 50


def test_own_text_to_validate_on_and_a_rerun(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "data"
    train, valid = write(tmp_path / "a.txt", ["one", "two"]), write(tmp_path / "b.txt", ["three"])
    out.mkdir(parents=True)
    (out / INFO).write_text(json.dumps({"format": FORMAT, "tokenizer": "tokenizer.bin"}))
    for name in ("train-0000.bin", "train-0007.bin", "tokenizer.bin", "tokenizer_config.json"):
        (out / name).write_text("of before")
    for name in ("train-data.bin", "train-2024-mine.bin", "valid-123.bin"):
        (out / name).write_text("of the user's")
    dataset = pretokenize([train], out, tokenizer_file, valid=[valid], processes=1)
    assert contents(dataset, tokenizer, "train") == ["one", "two"]
    assert contents(dataset, tokenizer, "valid") == ["three"]
    assert {path.name for path in out.iterdir()} == {
        INFO, "tokenizer.bin", "train-0000.bin", "valid-0000.bin",
        "train-data.bin", "train-2024-mine.bin", "valid-123.bin",
    }  # fmt: skip
    assert load_tokenizer(out / dataset.tokenizer, dataset.vocab_size)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("tokenizer.bin", ""),
        ("tokenizer.bin", "tokenizer.json"),
        ("tokenizer_config.json", ""),
        ("train-0000.bin", ""),
        ("valid-0007.bin", ""),
        (INFO, ""),
    ],
)
def test_files_of_others_are_not_replaced(
    name: str, listed: str, tokenizer_file: Path, tmp_path: Path
) -> None:
    """`listed`: the tokenizer of a dataset that is there."""
    out, text = tmp_path / "d", write(tmp_path / "a.txt", DOCUMENTS)
    out.mkdir()
    if listed:
        (out / INFO).write_text(json.dumps({"format": FORMAT, "tokenizer": listed}))
    (out / name).write_text('["a story"]')
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=f"a dataset to replace, found another {name}") as caught:
        pretokenize([text], out, tokenizer_file, processes=1)
    assert caught.value.hint == "choose another folder"
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_one_that_fails_leaves_no_folder(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="text for train"):
        pretokenize(
            [write(tmp_path / "a.txt", [""])], tmp_path / "there" / "b" / "c", tokenizer_file, processes=1
        )
    assert list((tmp_path / "there").iterdir()) == []


def test_what_belongs_to_a_tokenizer_comes_along(tmp_path: Path) -> None:
    """It says what begins a document: here a token of its configuration's."""
    write_chat_tokenizer(tmp_path / "chat.json")
    text = write(tmp_path / "a.txt", ["one", "two"])
    dataset = pretokenize([text], tmp_path / "d", tmp_path / "chat.json", valid=[text], processes=1)
    before, after = load_tokenizer(tmp_path / "chat.json"), load_tokenizer(tmp_path / "d" / dataset.tokenizer)
    assert (before.bos_id, before.eos_ids) == (after.bos_id, after.eos_ids)
    assert np.fromfile(tmp_path / "d" / "train-0000.bin", "<u2")[0] == module.start_id(after)


def test_ids_may_take_four_bytes(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "smallest_dtype", lambda vocab_size: "uint32")
    text = write(tmp_path / "a.txt", ["one"])
    dataset = pretokenize([text], tmp_path / "d", tokenizer_file, valid=[text], processes=1)
    assert open_dataset(tmp_path / "d").dtype == "uint32"
    assert contents(dataset, tokenizer, "train") == ["one"]


@pytest.mark.parametrize(("text", "problem"), [("", "text for train"), ("short", "text for valid")])
def test_too_little_text(text: str, problem: str, tokenizer_file: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", [text])
    with pytest.raises(UsageError, match=f"expected {problem}, found none"):
        pretokenize([path], tmp_path / "d", tokenizer_file, processes=1)
    assert not (tmp_path / "d").exists()


class Stop(BaseException):
    """Ctrl+C."""


def test_one_that_is_stopped_leaves_nothing(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 100)

    def progress(done: int, total: int) -> None:
        assert list((tmp_path / "d").rglob("train-0000.bin"))
        raise Stop

    text = write(tmp_path / "a.txt", DOCUMENTS)
    with pytest.raises(Stop):
        pretokenize([text], tmp_path / "d", tokenizer_file, processes=2, progress=progress)
    assert not (tmp_path / "d").exists()


def kill(texts: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_process_that_is_killed(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_encode", kill)
    text = write(tmp_path / "a.txt", DOCUMENTS)
    with pytest.raises(LlamatuiError, match="a process that tokenizes was killed"):
        pretokenize([text], tmp_path / "d", tokenizer_file, processes=2)
    assert not (tmp_path / "d").exists()


def test_a_folder_that_cannot_be_written_to(tokenizer_file: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", DOCUMENTS)
    with pytest.raises(LlamatuiError, match="cannot be written") as caught:
        pretokenize([text], text / "d", tokenizer_file, processes=1)
    assert "choose another folder" in caught.value.hint


def test_a_full_disk(tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(module.SplitWriter):
        def write(self, batch: module.Batch) -> None:
            super().write(batch)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "SplitWriter", Full)
    text = write(tmp_path / "a.txt", DOCUMENTS)
    with pytest.raises(LlamatuiError, match="d: cannot be written: No space left on device"):
        pretokenize([text], tmp_path / "d", tokenizer_file, processes=1)
    assert not (tmp_path / "d").exists()


def test_one_that_fails_leaves_the_dataset_that_was_there(tokenizer_file: Path, tmp_path: Path) -> None:
    text, out = write(tmp_path / "a.txt", DOCUMENTS), tmp_path / "d"
    pretokenize([text], out, tokenizer_file, processes=1)
    before = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "b.jsonl").write_text('"one"\n{')
    with pytest.raises(UsageError, match="expected JSON"):
        pretokenize([text, tmp_path / "b.jsonl"], out, tokenizer_file, processes=1)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_what_a_killed_one_leaves_is_not_kept(
    tokenizer_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "d" / module.PART).mkdir(parents=True)
    (tmp_path / "d" / module.PART / "train-0000.bin").write_bytes(b"half")
    text = write(tmp_path / "a.txt", ["one", "two"])
    dataset = pretokenize([text], tmp_path / "d", tokenizer_file, valid=[text], processes=1)
    assert contents(dataset, tokenizer, "train") == ["one", "two"]
    assert not (tmp_path / "d" / module.PART).exists()


def test_a_tokenizer_in_the_folder_stays_as_it_is(tokenizer_file: Path, tmp_path: Path) -> None:
    own = tmp_path / "d" / "tokenizer.bin"
    own.parent.mkdir()
    own.write_bytes(tokenizer_file.read_bytes())
    before = own.stat().st_ino, own.stat().st_mtime_ns
    text = write(tmp_path / "a.txt", ["one"])
    assert pretokenize([text], own.parent, own, valid=[text], processes=1).tokenizer == own.name
    assert (own.stat().st_ino, own.stat().st_mtime_ns) == before


def test_text_that_cannot_be_read_is_no_trouble_of_the_folder(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"one"\n{')
    with pytest.raises(UsageError, match=r"a\.jsonl, line 2: expected JSON"):
        pretokenize([tmp_path / "a.jsonl"], tmp_path / "d", tokenizer_file, processes=1)


def test_text_is_read_no_faster_than_it_is_tokenized(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    read = 0

    def documents() -> Iterator[tuple[module.Split, str]]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield "train", "a"

    batches = module._encoded(documents(), tokenizer_file, 1)
    next(batches)
    assert read < 5
    batches.close()
