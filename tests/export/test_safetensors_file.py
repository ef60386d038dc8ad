"""safetensors files: read as specified, written so that the library reads them, refused if damaged."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.backends import checkpoint_writer
from llamatui.backends.q8_0 import FloatArray, quantize
from llamatui.errors import CheckpointError
from llamatui.export.json_file import MAX_BYTES
from llamatui.export.safetensors_file import DTYPE_BITS, NewTensor, SafetensorsFile, write_safetensors
from llamatui.export.source import LazyRows
from tests.export.hf_models import safetensors_bytes, safetensors_file

W = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
LARGE = 10**9


def new(name: str, w: FloatArray) -> NewTensor:
    return NewTensor(name, w.shape, lambda: w)


def test_rows_of_fp32_are_exact(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F32", (4, 3), W.tobytes()), "s": ("F32", (), b"\0" * 4)}))
    file = SafetensorsFile(path)
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {"w": (4, 3), "s": ()}
    rows = file.open("w")
    assert rows.shape == (4, 3)
    np.testing.assert_array_equal(np.asarray(rows[slice(1, 3)]), W[1:3])


def test_rows_of_fp16_are_exact(tmp_path: Path) -> None:
    half = W.astype(np.float16)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F16", (4, 3), half.tobytes())}))
    read = np.asarray(SafetensorsFile(path).open("w")[slice(0, 4)])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, half.astype(np.float32))


@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=50))
def test_bf16_is_the_upper_half_of_a_float(
    tmp_path_factory: pytest.TempPathFactory, values: list[int]
) -> None:
    path = tmp_path_factory.mktemp("bf16") / "model.safetensors"
    stored = np.array(values, "<u2")
    path.write_bytes(safetensors_bytes({"w": ("BF16", stored.shape, stored.tobytes())}))
    read = np.asarray(SafetensorsFile(path).open("w")[slice(0, len(values))])
    expected = [struct.unpack("<f", struct.pack("<HH", 0, value))[0] for value in values]
    np.testing.assert_array_equal(read, np.array(expected, np.float32))


def test_every_pattern_of_half_floats_is_read_without_a_warning(tmp_path: Path) -> None:
    stored = np.arange(1 << 16, dtype=np.uint16)  # signalling NaNs too
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({d: (d, stored.shape, stored.tobytes()) for d in ("F16", "BF16")}))
    for dtype in ("F16", "BF16"):
        read = np.asarray(SafetensorsFile(path).open(dtype)[slice(0, 1 << 16)])
        assert np.isnan(read).sum() == (2 * 1023 if dtype == "F16" else 2 * 127)


def test_an_unaligned_header_is_read(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}}
    for spaces in range(8):
        path = tmp_path / f"{spaces}.safetensors"
        path.write_bytes(safetensors_file(json.dumps(header).encode() + b" " * spaces, W.tobytes()))
        np.testing.assert_array_equal(np.asarray(SafetensorsFile(path).open("w")[slice(0, 4)]), W)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 35615])
def test_a_header_whose_length_looks_like_another_format_is_read(tmp_path: Path, length: int) -> None:
    """640 is 80 02 in hexadecimal, as a pickle begins; 35615 is 1f 8b, as gzip does."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_file(header.ljust(length), W.tobytes()))
    assert list(SafetensorsFile(path).tensors) == ["w"]


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BITS) - {"F32", "F16", "BF16"}))
def test_other_dtypes_are_listed_but_not_opened(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"w": (dtype, (8,), bytes(DTYPE_BITS[dtype]))}))
    file = SafetensorsFile(path)
    assert file.tensors["w"].dtype == dtype
    with pytest.raises(CheckpointError, match=f"w: expected F32, F16 or BF16, found {dtype}"):
        file.open("w")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_safetensors(tmp_path, [new("a", W), new("b", W[0])], LARGE)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    file = SafetensorsFile(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(np.asarray(file.open("a")[slice(0, 4)]), W)
    np.testing.assert_array_equal(np.asarray(file.open("b")[slice(0, 3)]), W[0])
    assert file.tensors["a"].offset % 8 == 0


def test_above_the_limit_shards_are_numbered_and_indexed(tmp_path: Path) -> None:
    tensors = [new(name, W) for name in "abcde"]  # 48 bytes each
    seen: list[tuple[int, int]] = []
    write_safetensors(tmp_path, tensors, 100, lambda *n: seen.append(n))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["metadata"] == {"total_size": 240}
    assert index["weight_map"] == dict(zip("abcde", [names[i] for i in (0, 0, 1, 1, 2)], strict=True))
    for name, shard in index["weight_map"].items():
        np.testing.assert_array_equal(
            np.asarray(SafetensorsFile(tmp_path / shard).open(name)[slice(0, 4)]), W
        )
    assert seen == [(48 * i, 240) for i in (1, 2, 3, 4, 5)]


def test_a_tensor_above_the_limit_has_its_own_shard(tmp_path: Path) -> None:
    write_safetensors(tmp_path, [new("a", W[0]), new("b", W), new("c", W[0])], 20)
    assert [len(SafetensorsFile(path).tensors) for path in sorted(tmp_path.glob("*.safetensors"))] == [
        1,
        1,
        1,
    ]


def test_q8_rows_are_written_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    q8 = quantize(np.random.default_rng(0).standard_normal((4, 32), dtype=np.float32), 16)
    write_safetensors(tmp_path, [NewTensor("w", (4, 32), lambda: q8)], LARGE)
    read = SafetensorsFile(tmp_path / "model.safetensors").open("w")[slice(0, 4)]
    np.testing.assert_array_equal(np.asarray(read), q8.dequantize())


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"w: expected shape \(3, 4\), found \(4, 3\)"):
        write_safetensors(tmp_path, [NewTensor("w", (3, 4), lambda: W)], LARGE)


def test_writing_and_reading_hold_one_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "BLOCK", 1 << 16)
    shape = (4096, 512)  # 8 MB as fp32, blocks of 256 KB
    path = tmp_path / "source.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("BF16", shape, bytes(4096 * 512 * 2))}))
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    file = SafetensorsFile(path)
    write_safetensors(tmp_path / "out", [NewTensor("w", shape, lambda: file.open("w"))], LARGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_blocks_are_asked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "BLOCK", 6)
    asked: list[slice] = []

    def read(rows: slice) -> FloatArray:
        asked.append(rows)
        return W[rows]

    write_safetensors(tmp_path, [NewTensor("w", (4, 3), lambda: LazyRows((4, 3), read))], LARGE)
    assert asked == [slice(0, 2), slice(2, 4)]


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path, [new("a", W), new("ü", W[0])], LARGE)
    read = library.load_file(tmp_path / "model.safetensors")
    assert set(read) == {"a", "ü"}
    np.testing.assert_array_equal(read["a"], W)
    np.testing.assert_array_equal(read["ü"], W[0])


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    tensors = {
        "a": W,
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(7, np.int64),
        "h": W.astype("f2"),
    }
    library.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "np"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        name: w.shape for name, w in tensors.items()
    }
    np.testing.assert_array_equal(np.asarray(file.open("a")[slice(0, 4)]), W)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes: object) -> bytes:
    return safetensors_file({"w": ENTRY | changes}, b"\0" * 8)


HOSTILE = {
    "empty": (b"", "an empty file"),
    "short": (b"\x08\0\0", "one that begins with"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer to it"),
    "html": (b"<!DOCTYPE html><html>", "one that begins with b'<!DOCTYPE'"),
    "pickle": (b"PK\x03\x04" + b"\0" * 60, "a zip archive or PyTorch checkpoint"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 60, "a GGUF file"),
    "header beyond the end": (safetensors_file({}, length=1 << 20), "of 1,048,576 bytes, found 10 bytes"),
    "huge header": (safetensors_file({}, length=(1 << 64) - 1), "found 10 bytes in all"),
    "long header": (safetensors_file(b"{" + b" " * MAX_BYTES + b"}"), "expected at most 4,194,304 bytes"),
    "list": (safetensors_file([]), "one that begins with"),
    "no JSON": (safetensors_file(b'{"w": '), "expected a JSON object"),
    "no UTF-8": (safetensors_file(b'{"\xff": 1}'), "expected a JSON object, found 'utf-8' codec"),
    "UTF-16": (safetensors_file(b"{\0}\0"), "expected a JSON object"),
    "deep": (safetensors_file(b'{"w":' + b"[" * 100_000), "expected a JSON object, found maximum recursion"),
    "deep objects": (safetensors_file(b'{"w":' * 100_000), "expected a JSON object, found maximum recursion"),
    "same name twice": (safetensors_file(b'{"w": 1, "w": 1}'), "found the name 'w' twice"),
    "many names twice": (
        safetensors_file(b"{" + b",".join(b'"%d":0' % (i // 2) for i in range(100_000)) + b"}"),
        "found the name '0' twice",
    ),
    "name that moves the cursor": (safetensors_file({"\x1b[2J\n": 5}), "expected a dtype"),
    "no entry": (safetensors_file({"w": 5}), "expected a dtype of the format, found 'None'"),
    "unknown dtype": (entry(dtype="F128"), "expected a dtype of the format, found 'F128'"),
    "dtype is a list": (entry(dtype=["F32"]), "expected a dtype of the format"),
    "no shape": (entry(shape=None), "expected a shape"),
    "negative shape": (entry(shape=[-1, -2]), "expected a shape"),
    "float shape": (entry(shape=[2.0]), "expected a shape"),
    "bool shape": (entry(shape=[True, 2]), "expected a shape"),
    "NaN shape": (entry(shape=[float("nan")]), "expected a shape"),
    "too many dimensions": (entry(shape=[1] * 9), "expected a shape of at most 8"),
    "sizes without end": (entry(shape=[10**4000, 10**4000]), "expected a shape"),
    "endless dimensions": (entry(shape=[10**4000] * 900), "expected a shape of at most 8"),
    "huge shape": (entry(shape=[1 << 60]), "expected 4,611,686,018,427,387,904 bytes"),
    "product overflows": (entry(shape=[1 << 32, 1 << 32]), "found 8"),
    "number too long": (safetensors_file(b'{"w": ' + b"9" * 5000 + b"}"), "expected a JSON object"),
    "no offsets": (entry(data_offsets=None), "expected two data_offsets"),
    "one offset": (entry(data_offsets=[0]), "expected two data_offsets"),
    "negative offset": (entry(data_offsets=[-8, 0]), "expected two data_offsets"),
    "offset without end": (entry(data_offsets=[0, 10**4000]), "expected two data_offsets"),
    "offset beyond the end": (entry(data_offsets=[0, 1 << 60]), "expected an end within the file's"),
    "offsets swapped": (entry(data_offsets=[8, 0]), "expected an end within the file's"),
    "truncated": (entry()[:-1], "the file's"),
    "size is not the shape's": (entry(shape=[3]), r"expected 12 bytes for F32 of shape \[3\], found 8"),
    "half bytes": (entry(dtype="F4", shape=[3], data_offsets=[0, 8]), "expected 1 bytes for F4"),
    "overlap": (
        safetensors_file({"v": ENTRY, "w": ENTRY | {"data_offsets": [4, 12]}}, b"\0" * 12),
        "they overlap between 'v' and 'w'",
    ),
    "hole": (
        safetensors_file({"v": ENTRY, "w": ENTRY | {"data_offsets": [16, 24]}}, b"\0" * 24),
        "they leave a hole between 'v' and 'w'",
    ),
    "hole at the start": (
        safetensors_file({"w": ENTRY | {"data_offsets": [8, 16]}}, b"\0" * 16),
        "a hole between the header and 'w'",
    ),
    "more at the end": (entry() + b"\0", "a hole between 'w' and the end of the file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    content, message = HOSTILE[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint
    assert len(caught.value.message) < 600 + len(str(path))
    assert caught.value.message.isprintable()
    assert peak < 100 << 20


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found no such file"):
        SafetensorsFile(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="found something else"):
        SafetensorsFile(tmp_path)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "model.safetensors"
    for content in (noise, safetensors_file(b"{" + noise, b"\0" * 8)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            SafetensorsFile(path)


@given(st.data())
def test_a_changed_byte_never_reads_outside_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(safetensors_bytes({"a": ("BF16", (2, 3), bytes(12)), "b": ("F32", (3,), bytes(12))}))
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / "model.safetensors"
    path.write_bytes(content)
    try:
        file = SafetensorsFile(path)
        for name, tensor in file.tensors.items():
            file.open(name)[slice(0, tensor.shape[0])]
    except CheckpointError:
        pass
