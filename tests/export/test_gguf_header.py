"""GGUF headers: what the gguf library writes is read, what lies is refused at once."""

import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamatui.errors import CheckpointError, MissingExtraError
from llamatui.export import gguf_header
from llamatui.export.gguf_header import GgufHeader, Metadata, read_gguf_header
from tests.export.tiny_gguf import (
    ARRAY,
    BOOL,
    STRING,
    U8,
    U32,
    array,
    entry,
    raw_gguf,
    tensor_info,
    text,
    write_gguf,
)

HUGE = 1 << 60
NUMBER = struct.pack("<I", 7)


def read(tmp_path: Path, data: bytes) -> GgufHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_gguf_header(path)


def test_all_kinds_of_metadata(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 1 << 31)
    writer.add_int32("i32", -70000)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("text", "ein Käse")
    writer.add_array("texts", ["a", "", "日本"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

    metadata = read_gguf_header(tmp_path / "model.gguf").metadata

    numbers = metadata.pop("numbers")
    flags = metadata.pop("flags")
    assert isinstance(numbers, np.ndarray)
    assert isinstance(flags, np.ndarray)
    assert numbers.tolist() == [1, -2, 3]
    assert flags.tolist() == [True, False]
    assert metadata == {
        "general.architecture": "llama", "u8": 200, "i8": -3, "u16": 60000, "i16": -300, "u32": 1 << 31,
        "i32": -70000, "u64": 1 << 63, "i64": -(1 << 40), "f32": 0.5, "f64": 0.1, "bool": True,
        "text": "ein Käse", "texts": [b"a", b"", "日本".encode()],
    }  # fmt: skip
    assert metadata["bool"] is True


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0])
def test_tensors_lie_where_the_library_says(tmp_path: Path, kind: gguf.GGMLQuantizationType) -> None:
    path = write_gguf(tmp_path / "model.gguf", kind=kind)
    header = read_gguf_header(path)
    theirs = gguf.GGUFReader(path)
    assert [t.name for t in theirs.tensors] == list(header.tensors)
    for tensor in theirs.tensors:
        ours = header.tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.type, ours.offset, ours.n_bytes) == (
            tensor.tensor_type,
            tensor.data_offset,
            tensor.n_bytes,
        )
        assert header.mapping[ours.offset : ours.offset + ours.n_bytes] == tensor.data.tobytes()


def test_version_2_and_an_alignment_of_its_own(tmp_path: Path) -> None:
    infos = [tensor_info("a", [2, 3]), tensor_info("b", [4], offset=64)]
    entries = [entry("general.alignment", U32, struct.pack("<I", 64))]
    header = read(tmp_path, raw_gguf(entries, infos, bytes(80), version=2, alignment=64))
    assert (header.version, header.alignment) == (2, 64)
    assert header.tensors["a"].shape == (3, 2)
    assert header.tensors["a"].offset % 64 == 0
    assert header.tensors["b"].offset == header.tensors["a"].offset + 64


def test_many_texts(tmp_path: Path) -> None:
    texts = [f"token {i}" for i in range(100_000)]
    elements = b"".join(map(text, texts))
    header = read(tmp_path, raw_gguf([entry("tokens", ARRAY, array(STRING, len(texts), elements))]))
    assert [token.decode() for token in header.metadata.strings("tokens")] == texts


F32_TENSOR = tensor_info("a", [8])
LIES = {
    "other magic": (b"GGML" + bytes(100), "GGUF file"),
    "empty": (b"", "GGUF file"),
    "only the magic": (b"GGUF", "GGUF file"),
    "version 1": (raw_gguf(version=1), "version 2 or 3, found 1"),
    "version 4": (raw_gguf(version=4), "version 2 or 3, found 4"),
    "big-endian": (raw_gguf(version=3 << 24), "big-endian"),
    "count of metadata": (raw_gguf(n_entries=HUGE), "metadata entries"),
    "count of tensors": (raw_gguf(n_tensors=HUGE), "tensors"),
    "more metadata than there is": (raw_gguf(n_entries=60_000), "expected"),
    "more tensors than there are": (raw_gguf([], [F32_TENSOR], n_tensors=60_000), "expected"),
    "length of a key": (raw_gguf([struct.pack("<Q", HUGE)]), "a key"),
    "length of a text": (raw_gguf([entry("k", STRING, struct.pack("<Q", HUGE))]), "for k"),
    "length of an array": (raw_gguf([entry("k", ARRAY, array(U32, HUGE))]), "for k"),
    "array of 2^64 - 1": (raw_gguf([entry("k", ARRAY, array(U8, (1 << 64) - 1))]), "for k"),
    "count of texts": (raw_gguf([entry("k", ARRAY, array(STRING, HUGE))]), "texts in arrays"),
    "more texts than there are": (raw_gguf([entry("k", ARRAY, array(STRING, 1 << 20))]), "for k"),
    "length of a text in an array": (
        raw_gguf([entry("k", ARRAY, array(STRING, 2, text("a") + struct.pack("<Q", HUGE)))]),
        "for k",
    ),
    "array of arrays": (
        raw_gguf([entry("k", ARRAY, array(ARRAY, 1, array(U8, 1, b"a")))]),
        "array in an array",
    ),
    "type of a value": (raw_gguf([entry("k", 13, bytes(64))]), "known type of k, found type 13"),
    "type of an array": (raw_gguf([entry("k", ARRAY, array(99, 1, bytes(64)))]), "known type of k"),
    "neither true nor false": (raw_gguf([entry("k", BOOL, b"\2")]), "0 or 1"),
    "key twice": (raw_gguf([entry("k", U32, NUMBER)] * 2), "'k' twice"),
    "key of no characters": (raw_gguf([entry("", U32, NUMBER)]), "a key, found an empty one"),
    "key not in UTF-8": (raw_gguf([entry(b"\xff", U32, NUMBER)]), "UTF-8 in a key"),
    "text not in UTF-8": (raw_gguf([entry("k", STRING, text(b"\xff"))]), "UTF-8 in k"),
    "alignment of 48": (raw_gguf([entry("general.alignment", U32, struct.pack("<I", 48))]), "power of two"),
    "alignment of 0": (raw_gguf([entry("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment as a text": (raw_gguf([entry("general.alignment", STRING, text("32"))]), "whole number"),
    "part of a model": (raw_gguf([entry("split.count", U32, NUMBER)]), "one of 7 parts"),
    "tensor twice": (raw_gguf([], [F32_TENSOR] * 2, bytes(64)), "'a' twice"),
    "no dimensions": (raw_gguf([], [tensor_info("a", [])]), "1 to 4 dimensions"),
    "five dimensions": (raw_gguf([], [tensor_info("a", [1] * 5)]), "1 to 4 dimensions"),
    "dimension of 0": (raw_gguf([], [tensor_info("a", [0])]), "dimensions that make sense"),
    "dimensions that overflow": (raw_gguf([], [tensor_info("a", [1 << 62] * 4)]), "dimensions that make"),
    "larger than the file": (raw_gguf([], [tensor_info("a", [1 << 50])]), "bytes for these tensors"),
    "type of a tensor": (
        raw_gguf([], [tensor_info("a", [8], 5)], bytes(32)),
        "known type of a, found type 5",
    ),
    "half a block": (raw_gguf([], [tensor_info("a", [33], 8)], bytes(64)), "blocks of 32 in a"),
    "unaligned": (raw_gguf([], [tensor_info("a", [8], offset=4)], bytes(64)), "multiple of 32"),
    "past the end": (raw_gguf([], [tensor_info("a", [8], offset=HUGE)], bytes(64)), "bytes for these"),
    "overlapping": (
        raw_gguf([], [tensor_info("a", [9]), tensor_info("b", [8], offset=32)], bytes(64)),
        "b to begin inside a",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path: Path, lie: str) -> None:
    data, message = LIES[lie]
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            read(tmp_path, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert caught.value.message.startswith(str(tmp_path / "model.gguf"))
    assert caught.value.hint


def test_a_truncated_model_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    with pytest.raises(CheckpointError, match=f"expected {size:,} bytes .* found {size - 1000:,}") as caught:
        read_gguf_header(path)
    assert "truncated" in caught.value.hint


def test_every_truncation_of_a_header_is_refused(tmp_path: Path) -> None:
    entries = [entry("k", U32, NUMBER), entry("tokens", ARRAY, array(STRING, 2, text("a") + text("bc")))]
    whole = raw_gguf(entries, [F32_TENSOR], bytes(32))
    assert read(tmp_path, whole).metadata["tokens"] == [b"a", b"bc"]
    for size in range(len(whole)):
        with pytest.raises(CheckpointError):
            read(tmp_path, whole[:size])


@pytest.mark.parametrize("limit", ["MAX_STRINGS", "MAX_HEADER"])
def test_headers_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Files may be sparse: a header of gigabytes takes no room on the disk."""
    entries = [entry(key, ARRAY, array(STRING, 60, text("abc") * 60)) for key in ("a", "b")]
    whole = raw_gguf(entries, [F32_TENSOR], bytes(32))
    assert read(tmp_path, whole).metadata["b"] == [b"abc"] * 60
    monkeypatch.setattr(gguf_header, limit, 100)
    with pytest.raises(CheckpointError, match="at most 100"):
        read(tmp_path, whole)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "found a folder"),
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path / "pipe", "device or a pipe"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_gguf_header(path)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match="Reading GGUF") as caught:
        read_gguf_header(tmp_path / "model.gguf")
    assert "llamatui[export]" in caught.value.hint


def test_numbers_of_layers(tmp_path: Path) -> None:
    metadata = Metadata("x.gguf", {"same": np.array([4, 4, 4]), "other": np.array([4, 2])})
    assert metadata.integer("same") == 4
    with pytest.raises(CheckpointError, match="the same number in every layer in other"):
        metadata.integer("other")


@pytest.mark.parametrize(
    "ask",
    [
        lambda metadata: metadata.text("number"),
        lambda metadata: metadata.flag("number", True),
        lambda metadata: metadata.number("text", 0.0),
        lambda metadata: metadata.number("nan", 0.0),
        lambda metadata: metadata.number("flag", 0.0),
        lambda metadata: metadata.integer("flag"),
        lambda metadata: metadata.integer("nan"),
        lambda metadata: metadata.integer("none"),
        lambda metadata: metadata.strings("number"),
        lambda metadata: metadata.numbers("text"),
    ],
)
def test_values_of_another_type(ask: Callable[[Metadata], object]) -> None:
    metadata = Metadata("x.gguf", {"number": 7, "text": "7", "flag": True, "nan": float("nan")})
    with pytest.raises(CheckpointError, match=r"^x\.gguf: expected .* in \w+, found"):
        ask(metadata)
