"""Bad model files: one clear line, quickly, without large allocations."""

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamatui.backends.checkpoint import Checkpoint, parse_header, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import CheckpointError
from tests.tiny import TINY, random_weights

GOOD = (32, 48, 2, 4, 2, 300, 64)
BIG = 2**31 - 1


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('executed')",))


def a_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("data.pkl", pickle.dumps(Bomb()))
    return buffer.getvalue()


def v0(*numbers: int) -> bytes:
    return struct.pack("<7i", *numbers) + bytes(1000)


def v2(group_size: int, *numbers: int, version: int = 2) -> bytes:
    header = struct.pack("<Ii7iBi", 0x616B3432, version, *numbers, 1, group_size)
    return header.ljust(256, b"\0") + bytes(1000)


BAD = {
    "empty": (b"", "empty file"),
    "short": (b"abc", "found 3 bytes"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(500), "PNG image"),
    "text": (
        b"Once upon a time there was a text file, not a model.\n" * 20,
        "must be in|not divisible|expected .* bytes",
    ),
    "pickle": (pickle.dumps(Bomb()) + bytes(500), "Python pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(500), "GGUF"),
    "zip": (a_zip(), "zip archive"),
    "version 3": (v2(64, *GOOD, version=3), "version 1 or 2 behind the magic, found 3"),
    "header cut": (v2(64, *GOOD)[:100], "header of 256 bytes, found 100"),
    "zeros": (bytes(5000), "dim must be in"),
    "negative": (v0(-32, 48, 2, 4, 2, 300, 64), "dim must be in"),
    "huge": (v0(BIG, BIG, BIG, BIG, BIG, BIG, BIG), "dim must be in"),
    "huge but in bounds": (v0(1 << 24, 1 << 24, 1 << 24, 2, 2, 1 << 24, 1 << 24), "expected .* bytes"),
    "most negative vocab": (v0(32, 48, 2, 4, 2, -(2**31), 64), "vocab_size must be in"),
    "heads": (v0(32, 48, 2, 5, 5, 300, 64), "dim 32 is not divisible by n_heads 5"),
    "kv heads": (v0(32, 48, 2, 4, 3, 300, 64), "n_heads 4 is not divisible by n_kv_heads 3"),
    "odd head": (v0(20, 48, 2, 4, 2, 300, 64), "head_dim 5"),
    "group 0": (v2(0, *GOOD), "group size must be positive, found 0"),
    "group -1": (v2(-1, *GOOD), "group size must be positive, found -1"),
    "group of another size": (v2(32, *GOOD), "does not divide hidden_dim 48"),
    "truncated": (v0(*GOOD), "expected .* bytes for this header, found 1,028"),
}


@pytest.mark.parametrize(("data", "problem"), BAD.values(), ids=BAD)
def test_bad_files_are_told_in_one_line(data: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=problem) as caught:
        Checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.exit_code == 3
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert peak < 1 << 20


def test_missing_and_odd_paths(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Checkpoint(tmp_path / "none.bin")
    with pytest.raises(CheckpointError, match="found a folder"):
        Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="found a device"):
        Checkpoint("/dev/null")


@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_one_byte_off_is_noticed(change: int, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    write_checkpoint(path, TINY, 1, random_weights(TINY))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(CheckpointError, match="expected 100,736 bytes") as caught:
        Checkpoint(path)
    assert ("truncated" if change < 0 else "longer") in caught.value.hint


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=0, max_size=192), st.integers(0, 64))
def test_any_header_is_a_config_or_an_error(tail: bytes, offset: int) -> None:
    """Fuzzes the extension, and everything before it."""
    header = bytearray(v2(16, *GOOD)[:256])
    header[offset : offset + len(tail)] = tail
    try:
        version, config = parse_header(bytes(header[:256]), "x")
    except CheckpointError:
        return
    assert version in (0, 1, 2)
    assert tensor_layout(config, version)[-1].end > 0


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=80, max_size=80))
def test_any_extension_is_a_config_or_an_error(extension: bytes) -> None:
    header = v2(16, *GOOD)[:64] + b"LTUI" + struct.pack("<I", 1) + extension
    try:
        _, config = parse_header(header.ljust(256, b"\0"), "x")
    except CheckpointError:
        return
    assert config.rope_theta > 0
    assert config.chat_format.isascii()
