"""Windows of a dataset: each once in an epoch, by number alone; and damaged datasets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatui.errors import LlamatuiError, UsageError
from llamatui.train.dataset import (
    DTYPES,
    INFO,
    Dataset,
    Shard,
    SplitInfo,
    Windows,
    open_dataset,
    smallest_dtype,
    write_info,
)


def write_dataset(folder: Path, train: list[int], valid: int = 40, dtype: str = "uint16") -> Dataset:
    """A dataset of shards with so many tokens; an id tells its shard and place: 1000 * shard + place."""

    def write(name: str, lengths: list[int]) -> SplitInfo:
        shards = []
        for i, n in enumerate(lengths):
            shards.append(Shard(f"{name}-{i:04}.bin", n))
            (folder / shards[-1].name).write_bytes(np.arange(1000 * i, 1000 * i + n).astype(DTYPES[dtype]))
        return SplitInfo(tuple(shards), len(lengths), 4 * sum(lengths))

    splits = {"train": write("train", train), "valid": write("valid", [valid])}
    dataset = Dataset(folder, "tokenizer.model", 60_000, dtype, splits)  # type: ignore[arg-type]
    write_info(dataset)
    return dataset


shard_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=4).filter(lambda lengths: max(lengths) > 9)


@settings(max_examples=40)
@given(shard_lengths, st.integers(1, 9), st.integers(0, 5))
def test_each_epoch_has_every_window_once_and_never_crosses_shards(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seq_len: int, seed: int
) -> None:
    windows = Windows(write_dataset(tmp_path_factory.mktemp("d"), lengths), "train", seq_len, seed=seed)
    whole = sum((n - 1) // seq_len for n in lengths)
    assert whole - len(lengths) <= windows.n_windows <= whole
    for epoch in range(2):
        ids, targets = windows.batch(epoch * windows.n_windows, windows.n_windows)
        assert ids.shape == targets.shape == (windows.n_windows, seq_len)
        assert ids.dtype == np.int64
        assert (targets == ids + 1).all()  # the next ids of the same shard
        assert len(np.unique(ids)) == ids.size  # none comes twice
        assert (targets[:, -1] % 1000 < np.array(lengths)[ids[:, 0] // 1000]).all()


def test_epochs_and_seeds_differ_in_order_and_offset(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [900])
    windows = Windows(dataset, "train", 10, seed=1)
    n = windows.n_windows
    first, second = windows.batch(0, n)[0], windows.batch(n, n)[0]
    assert (first != second).any()
    assert set(first[:, 0] % 10) != set(second[:, 0] % 10)
    assert (first != Windows(dataset, "train", 10, seed=2).batch(0, n)[0]).any()


@settings(max_examples=40)
@given(st.integers(0, 40), st.integers(1, 12), st.sampled_from([None, 3]))
def test_a_batch_depends_on_its_number_alone(
    tmp_path_factory: pytest.TempPathFactory, first: int, n: int, seed: int | None
) -> None:
    dataset = write_dataset(tmp_path_factory.mktemp("d"), [50, 33])
    windows = Windows(dataset, "train", 7, seed=seed)
    from_start = windows.batch(0, first + n)[0][first:]
    assert (Windows(dataset, "train", 7, seed=seed).batch(first, n)[0] == from_start).all()
    assert (windows.batch(first, n)[0] == from_start).all()


def test_in_order_the_text_is_covered_and_begins_again(tmp_path: Path) -> None:
    windows = Windows(write_dataset(tmp_path, [31, 5, 21]), "train", 10, seed=None)
    assert windows.n_windows == 5
    ids, targets = windows.batch(0, 6)
    text = [*range(30), *range(2000, 2020)]
    assert ids[:5].ravel().tolist() == text
    assert (targets[:5].ravel() == np.array(text) + 1).all()
    assert (ids[5] == ids[0]).all()


def test_a_context_longer_than_the_text(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [900], valid=40)
    with pytest.raises(UsageError) as caught:
        Windows(dataset, "valid", 40, seed=None)
    assert "expected a valid shard of more than 40 tokens, the longest has 40" in caught.value.message
    assert caught.value.hint == "choose --max-seq-len 10, or give more text"
    assert Windows(dataset, "valid", 39, seed=None).n_windows == 1


def test_ids_that_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [40])
    (tmp_path / "train-0000.bin").write_bytes(np.full(40, 60_000, "<u2"))
    with pytest.raises(LlamatuiError, match="expected ids of a vocabulary of 60000, found 60000"):
        Windows(dataset, "train", 10, seed=1).batch(0, 2)


@pytest.mark.parametrize(("size", "dtype"), [(1, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_ids_take_two_bytes_where_they_can(size: int, dtype: str) -> None:
    assert smallest_dtype(size) == dtype


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_what_was_written_is_read(dtype: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, [50, 60], dtype=dtype)
    assert open_dataset(tmp_path) == dataset
    assert {path.name for path in tmp_path.iterdir()} == {
        INFO, "train-0000.bin", "train-0001.bin", "valid-0000.bin",
    }  # fmt: skip
    assert Windows(dataset, "train", 10, seed=None).batch(4, 1)[0].tolist() == [list(range(1000, 1010))]


DELETE = object()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        ((), "x"),
        (("format",), "llamatui.dataset/2"),
        (("format",), DELETE),
        (("tokenizer",), "../tokenizer.model"),
        (("tokenizer",), "/etc/passwd"),
        (("tokenizer",), ".."),
        (("tokenizer",), 3),
        (("vocab_size",), 0),
        (("vocab_size",), 65537),
        (("vocab_size",), True),
        (("vocab_size",), "300"),
        (("dtype",), "float64"),
        (("dtype",), ["uint16"]),
        (("splits",), 7),
        (("splits", "valid"), DELETE),
        (("splits", "train", "n_bytes"), 0),
        (("splits", "train", "n_documents"), -1),
        (("splits", "train", "shards"), None),
        (("splits", "train", "shards"), ["train-0000.bin"]),
        (("splits", "train", "shards", 0, "name"), "../train-0000.bin"),
        (("splits", "train", "shards", 0, "name"), "valid-0000.bin"),
        (("splits", "train", "shards", 0, "name"), "train-0001.bin"),
        (("splits", "train", "shards", 0, "name"), f"train-{'0' * 300}.bin"),
        (("splits", "train", "shards", 0, "n_tokens"), 49),
        (("splits", "train", "shards", 0, "n_tokens"), -50),
        (("splits", "train", "shards", 0, "n_tokens"), 50.0),
        (("splits", "train", "shards", 0, "n_tokens"), 10**4000),
    ],
)
def test_a_damaged_description_is_refused(place: tuple[str | int, ...], value: Any, tmp_path: Path) -> None:
    write_dataset(tmp_path, [50])
    content = json.loads((tmp_path / INFO).read_text("utf-8"))
    if place:
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if value is DELETE:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
    else:
        content = value
    (tmp_path / INFO).write_text(json.dumps(content), "utf-8")
    with pytest.raises(LlamatuiError) as caught:
        open_dataset(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert len(caught.value.message) < 300 + len(str(tmp_path))
    assert "train pretokenize" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": NaN}', b"null"])
def test_what_is_no_description_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / INFO).write_bytes(content)
    with pytest.raises(LlamatuiError, match=r"expected llamatui\.dataset/1, found something else"):
        open_dataset(tmp_path)


def test_what_is_wrong_is_said_in_words(tmp_path: Path) -> None:
    write_dataset(tmp_path, [50])
    whole = json.loads((tmp_path / INFO).read_text("utf-8"))
    for content, found in (
        ('{"format":', "Expecting value: line 1 column 11"),
        (json.dumps({**whole, "dtype": "int8"}), "dtype 'int8'"),
        (json.dumps({k: v for k, v in whole.items() if k != "splits"}), "no 'splits'"),
    ):
        (tmp_path / INFO).write_text(content, "utf-8")
        with pytest.raises(LlamatuiError, match=f"found something else: {found}"):
            open_dataset(tmp_path)
    (tmp_path / INFO).write_text(json.dumps(whole), "utf-8")
    (tmp_path / "train-0000.bin").unlink()
    with pytest.raises(LlamatuiError, match=r"train-0000\.bin: expected 100 bytes, found no file"):
        open_dataset(tmp_path)


def test_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(UsageError, match=r"expected a folder with dataset\.json, found none"):
            open_dataset(path)
