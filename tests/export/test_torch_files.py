"""PyTorch files: what is saved comes back, and nothing that a file says is run, believed or allocated."""

import io
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import CheckpointError, LlamatuiError, MissingExtraError  # noqa: E402
from llamatui.export.torch_files import LEGACY_MAGIC, TorchRows, open_torch, state_dict  # noqa: E402

FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def save(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


class Claimed:
    """Pickles as a tensor of any claimed size, over a storage of `stored` floats that the file has 16 of."""

    def __init__(
        self, stored: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
    ) -> None:
        self.arguments = (Storage(stored), offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Storage:
    def __init__(self, size: int) -> None:
        self.size = size


class TorchPickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, Storage):
            return None
        return ("storage", torch.FloatStorage, "0", "cpu", obj.size, *[None] * self.legacy)


class LegacyPickler(TorchPickler):
    legacy = True


def handmade(path: Path, content: object, legacy: bool = False, compression: int = 0) -> Path:
    """A PyTorch file of a pickle that torch.save would never write, with one storage of 16 floats.

    `content` is pickled, or is a pickle as bytes.
    """
    data = np.arange(16, dtype="<f4").tobytes()
    pickled = io.BytesIO(content if isinstance(content, bytes) else b"")
    if not isinstance(content, bytes):
        (LegacyPickler if legacy else TorchPickler)(pickled, 2).dump(content)
    if legacy:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
        parts = [pickle.dumps(1001, 2), pickle.dumps(system, 2), pickled.getvalue(), pickle.dumps(["0"], 2)]
        path.write_bytes(LEGACY_MAGIC + b"".join(parts) + struct.pack("<q", 16) + data)
    else:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled.getvalue())
            archive.writestr("archive/data/0", data)
            archive.writestr("archive/version", "3\n")
    return path


@FORMATS
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_what_was_saved(tmp_path: Path, dtype: str, legacy: bool) -> None:
    tensor = torch.randn(7, 5).to(getattr(torch, dtype))
    content = open_torch(save(tmp_path / "a.pt", {"w": tensor, "t": tensor.T}, legacy))
    for name, saved in {"w": tensor, "t": tensor.T}.items():
        rows = content[name]
        assert isinstance(rows, TorchRows)
        assert (rows.shape, rows.dtype) == (tuple(saved.shape), dtype)
        assert rows[1:3].dtype == np.float32
        np.testing.assert_array_equal(rows[1:3], saved.float().numpy()[1:3])


@FORMATS
def test_parameters_and_plain_values_come_along(tmp_path: Path, legacy: bool) -> None:
    saved = {
        "model": OrderedDict(w=torch.nn.Parameter(torch.ones(2, 2))),
        "args": {"dim": 2, "n": None},
        "i": 3,
    }
    content = open_torch(save(tmp_path / "a.pt", saved, legacy))
    assert (content["args"], content["i"]) == ({"dim": 2, "n": None}, 3)
    rows = state_dict(tmp_path / "a.pt", content["model"])["w"]
    np.testing.assert_array_equal(rows[0:2], np.ones((2, 2)))


def test_a_block_of_rows_costs_no_more_than_itself(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.zeros(4096, 1024, dtype=torch.bfloat16)})  # 8 MB
    before = resident()
    rows = state_dict(path, open_torch(path))["w"]
    assert resident() - before < 4 << 20
    tracemalloc.start()
    for start in range(0, 4096, 64):
        assert rows[start : start + 64].nbytes == 64 * 1024 * 4
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def resident() -> int:
    """Bytes of memory in use, where the system says."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


class System(Touch):
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"echo > {self.path}",)


@FORMATS
@pytest.mark.parametrize("kind", [Touch, System])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    tmp_path: Path, kind: type[Touch], legacy: bool
) -> None:
    trace = tmp_path / "trace"
    path = handmade(tmp_path / "a.pt", {"w": kind(trace)}, legacy)
    with pytest.raises(CheckpointError, match=r"would execute code.*refused") as caught:
        open_torch(path)
    assert str(path) in caught.value.message
    assert "safetensors" in caught.value.hint
    assert not trace.exists()


def test_a_plain_pickle_is_not_even_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"w": Touch(tmp_path / "trace")}, protocol))
        with pytest.raises(CheckpointError, match="found a Python pickle"):
            open_torch(path)
    assert not (tmp_path / "trace").exists()


@FORMATS
@pytest.mark.parametrize(
    "tensor",
    [
        Claimed(1 << 60, (1 << 30, 1 << 30), (1 << 30, 1)),
        Claimed(16, (1 << 30, 1 << 30), (1 << 30, 1)),
        Claimed(16, (1 << 30, 1 << 30), (0, 0)),
        Claimed(16, (1 << 31,), (1,)),
        Claimed(17, (17,), (1,), offset=1 << 40),
        Claimed(16, (4, 4), (4, 1), offset=1),
        Claimed(16, (4, 4), (4, 1), offset=-1),
        Claimed(16, (4, 4), (4, -1)),
        Claimed(16, (4, -4), (4, 1)),
        Claimed(1000, (1000,), (1,)),
        Claimed(-4, (4, 4), (4, 1)),
    ],
    ids=lambda claimed: str(claimed.arguments[1:4]),
)
def test_a_tensor_that_the_file_has_no_room_for_is_refused(
    tmp_path: Path, tensor: Claimed, legacy: bool
) -> None:
    path = handmade(tmp_path / "a.pt", {"w": tensor}, legacy)
    before = resident()
    with pytest.raises(CheckpointError, match=r"cannot be read|a number in the file for each"):
        open_torch(path)
    assert resident() - before < 64 << 20


@FORMATS
def test_the_handmade_file_is_sound_otherwise(tmp_path: Path, legacy: bool) -> None:
    path = handmade(tmp_path / "a.pt", {"w": Claimed(16, (4, 4), (4, 1))}, legacy)
    np.testing.assert_array_equal(state_dict(path, open_torch(path))["w"][1:2], [[4, 5, 6, 7]])


@FORMATS
def test_a_truncated_file_is_refused(tmp_path: Path, legacy: bool) -> None:
    whole = save(tmp_path / "a.pt", {"w": torch.ones(100, 100)}, legacy).read_bytes()
    path = tmp_path / "cut.pt"
    for length in [1, 4, 20, 100, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt: expected"):
            open_torch(path)


@FORMATS
def test_damage_anywhere_is_an_error_or_harmless(tmp_path: Path, legacy: bool) -> None:
    whole = save(tmp_path / "a.pt", {"w": torch.ones(4, 4), "model_args": {"dim": 4}}, legacy).read_bytes()
    path, rng = tmp_path / "b.pt", random.Random(0)
    refused = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 8])):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            for rows in open_torch(path).values():
                if isinstance(rows, TorchRows):
                    assert rows[0:4].nbytes <= len(whole)
        except CheckpointError as error:
            refused.append(error.message)
    assert len(refused) > 50
    assert all(message.isprintable() for message in refused)


@FORMATS
@pytest.mark.parametrize(
    "key",
    [
        b"\x85" * 500_000,  # (((...),),): hashing it would overflow the stack
        b"q\x00h\x00\x86" * 40,  # (x, x) of (x, x) of ...: hashing it would take 2^40 steps
        b"q\x00(" + b"h\x00" * 999 + b"tq\x01(" + b"h\x01" * 999 + b"t",
    ],
    ids=["deep", "doubled", "wide"],
)
def test_a_key_that_cannot_be_hashed_in_time_is_refused(tmp_path: Path, key: bytes, legacy: bool) -> None:
    path = handmade(tmp_path / "a.pt", b"\x80\x02})" + key + b"K\x01s.", legacy)
    with pytest.raises(CheckpointError, match="found more than 1000"):
        open_torch(path)


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    handmade(path, {"w": Claimed(16, (4, 4), (4, 1))}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="uncompressed"):
        open_torch(path)


def zip_of(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty one"),
        (b"once upon a time", "begins with b'once upo'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"GGUF" + bytes(100), "a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "a damaged zip archive"),
        (zip_of(["photo.png"]), "another kind of zip archive"),
        (zip_of(["m/data.pkl", "n/data.pkl"]), "another kind of zip archive"),
        (zip_of(["m/data.pkl", "m/constants.pkl"]), "a TorchScript program"),
        (zip_of(["m/data.pkl"]), "a damaged pickle"),
        (LEGACY_MAGIC, "a damaged pickle"),
        (LEGACY_MAGIC + b"\x80\x04\x95" + bytes(100), "a damaged pickle"),
        (LEGACY_MAGIC + pickle.dumps(1001, 4) * 4, "does not read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_pytorch_file_is_named(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=found) as caught:
        open_torch(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_torch(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="found a folder"):
        open_torch(tmp_path)


@pytest.mark.parametrize(
    "saved",
    [
        torch.ones(2),
        [torch.ones(2)],
        {"w": torch.ones(2, device="meta")},
        {"w": torch.eye(2).to_sparse()},
    ],
    ids=["tensor", "list", "meta", "sparse"],
)
def test_what_is_no_plain_state_dict_is_refused(tmp_path: Path, saved: object) -> None:
    with pytest.raises(CheckpointError, match=r"expected (tensors by name|a plain tensor)"):
        open_torch(save(tmp_path / "a.pt", saved))


@pytest.mark.parametrize("content", [{}, {"w": 1}, {"w": {"x": 2}}, None, 3])
def test_a_state_dict_is_tensors_by_name(content: object) -> None:
    with pytest.raises(CheckpointError, match="tensors by name"):
        state_dict(Path("a.pt"), content)


def test_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.ones(2, 2, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="found int8"):
        state_dict(path, open_torch(path))["w"][0:1]


def test_without_pytorch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.ones(2)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError) as caught:
        open_torch(path)
    assert caught.value.hint == 'pip install "llamatui[train]"'


def test_a_pytorch_whose_refusals_can_be_evaded_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.ones(2)})
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(LlamatuiError, match=r"2\.6 or later, found 2\.5\.1"):
        open_torch(path)
