"""PyTorch files: what is saved comes back, and nothing that a file says is run, believed or allocated."""

import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import CheckpointError  # noqa: E402
from llamatui.export.torch_files import (  # noqa: E402
    LEGACY_MAGIC,
    MAX_PICKLE,
    TorchRows,
    open_torch,
    state_dict,
)

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


def save_views(path: Path, legacy: bool) -> dict[str, "torch.Tensor"]:
    """Views of one storage, as torch.save keeps them."""
    base = torch.randn(9, 8).bfloat16()
    views = {"all": base, "rows": base[3:], "cols": base[:, 2:5], "steps": base[::3, ::2], "turned": base.T}
    save(path, views, legacy)
    return views


@FORMATS
def test_views_of_a_shared_storage_are_what_was_saved(tmp_path: Path, legacy: bool) -> None:
    views = save_views(tmp_path / "a.pt", legacy)
    for name, rows in state_dict(tmp_path, open_torch(tmp_path / "a.pt")).items():
        saved = views[name].float().numpy()
        np.testing.assert_array_equal(rows[0 : len(saved)], saved)
        np.testing.assert_array_equal(rows[1:2], saved[1:2])


@FORMATS
def test_what_training_saves_is_read(tmp_path: Path, legacy: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "kept as _rebuild_parameter_with_state"
    saved = {
        "model": model.state_dict(),
        "model_args": {"dim": 4, "eps": 1e-5, "n": None, "far": 1 << 70, "less": -7},
        "optimizer": optimizer.state_dict(),
        "config": {"out_dir": "out", "compile": True, "betas": (0.9, (0.95,))},
        "best_val_loss": torch.tensor(1.5),
        "parameter": parameter,
        "empty": torch.zeros(0, 4),
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
    }
    content = open_torch(save(tmp_path / "a.pt", saved, legacy))
    assert list(content) == list(saved)
    for name in ("model_args", "config", "size"):
        assert content[name] == saved[name]
    assert (content["device"], content["dtype"]) == ("cuda:1", "bfloat16")
    rows = state_dict(tmp_path, content["model"])
    assert list(rows) == list(model.state_dict())
    np.testing.assert_array_equal(rows["0.weight"][0:4], model[0].weight.detach().numpy())


PEAK = """
import re, sys
from pathlib import Path
from llamatui.export.torch_files import open_torch, state_dict

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

before = peak()
for rows in state_dict(sys.argv[1], open_torch(Path(sys.argv[1]))).values():
    for start in range(0, rows.shape[0], 256):
        rows[start : start + 256]
assert "torch" not in sys.modules
print(peak() - before)
"""


@FORMATS
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_a_block_and_not_of_the_file(tmp_path: Path, legacy: bool) -> None:
    content = {str(i): torch.zeros(4096, 1024, dtype=torch.bfloat16) for i in range(12)}  # 8 MB each
    path = save(tmp_path / "a.pt", content, legacy)
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24  # MiB


def test_files_are_read_without_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.ones(2, 2)})
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(state_dict(path, open_torch(path))["w"][0:2], np.ones((2, 2)))


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


def called(function: str, *numbers: int) -> bytes:
    """A pickle of {"w": function(*numbers)}."""
    arguments = b"".join(b"\x8a\x05" + number.to_bytes(5, "little") for number in numbers)
    return b"\x80\x02}X\x01\x00\x00\x00wc" + function.encode() + b"\n(" + arguments + b"tRs."


@FORMATS
@pytest.mark.parametrize(
    ("function", "found"),
    [
        ("builtins\nbytearray", r"would execute code \(builtins\.bytearray\)"),
        ("__builtin__\nbytearray", r"would execute code \(__builtin__\.bytearray\)"),
        ("builtins\nset", "would execute code"),
        ("collections\nCounter", "would execute code"),
        ("torch\nTensor", r"expected plain tensors and values, found torch\.Tensor"),
        ("torch._tensor\n_rebuild_from_type_v2", "expected plain tensors"),
        ("torch._utils\n_rebuild_qtensor", "expected plain tensors"),
        ("torch\nFloatStorage", "damaged pickle"),
        ("torch\nfloat32", "a call of what is no function"),
        ("collections\nOrderedDict", "damaged pickle"),
        ("torch\nSize", "damaged pickle"),
        ("torch\ndevice", "damaged pickle"),
        ("torch._utils\n_rebuild_tensor_v2", "damaged pickle"),
        ("torch._utils\n_rebuild_parameter", "damaged pickle"),
    ],
)
def test_nothing_is_called_that_allocates_or_is_no_plain_tensor(
    tmp_path: Path, function: str, found: str, legacy: bool
) -> None:
    path = handmade(tmp_path / "a.pt", called(function, 3 << 30), legacy)
    before = resident()
    with pytest.raises(CheckpointError, match=found):
        open_torch(path)
    assert resident() - before < 64 << 20


@pytest.mark.parametrize(
    "pickled",
    [
        b"]", b"}", b"(t", b"ctorch\nSize\n", b"NQ", b"0", b"\x95", b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"h\xff", b"\x85", b"u", b"e", b"s", b"a", b"b", b"R",
    ],
)  # fmt: skip
def test_a_pickle_of_one_thing_over_and_over_is_refused_in_time(tmp_path: Path, pickled: bytes) -> None:
    content = b"\x80\x02N" + pickled * ((MAX_PICKLE - 100) // len(pickled)) + b"."
    with pytest.raises(CheckpointError, match=r"a\.pt: expected"):
        open_torch(handmade(tmp_path / "a.pt", content))


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
    with pytest.raises(
        CheckpointError, match=r"a tensor of shape|whole numbers from 0|of float32 in the file|numbers at"
    ):
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
    with pytest.raises(CheckpointError, match=r"neither a name nor a number|no dict|250,000 steps"):
        open_torch(path)


@FORMATS
@pytest.mark.parametrize("key", [1 << 60, -(1 << 60), 1.5, None])
def test_keys_whose_hashes_could_collide_are_refused(tmp_path: Path, key: object, legacy: bool) -> None:
    path = handmade(tmp_path / "a.pt", {"state": {key: 1}}, legacy)
    with pytest.raises(CheckpointError, match="neither a name nor a number"):
        open_torch(path)


class Negated(Claimed):
    """A tensor whose numbers are to be negated, as PyTorch marks it."""

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, (*self.arguments, {"neg": True})


@FORMATS
def test_a_tensor_that_is_to_be_negated_is_refused(tmp_path: Path, legacy: bool) -> None:
    with pytest.raises(CheckpointError, match="no plain tensor"):
        open_torch(handmade(tmp_path / "a.pt", {"w": Negated(16, (4, 4), (4, 1))}, legacy))


@FORMATS
def test_one_storage_of_two_sizes_is_refused(tmp_path: Path, legacy: bool) -> None:
    content = {"v": Claimed(16, (4, 4), (4, 1)), "w": Claimed(15, (3, 4), (4, 1))}
    with pytest.raises(CheckpointError, match="two storages with the key '0'"):
        open_torch(handmade(tmp_path / "a.pt", content, legacy))


@pytest.mark.parametrize(("field", "value"), [(20, 1 << 30), (24, 1 << 30), (42, 1 << 30)])
def test_an_entry_that_reaches_beyond_the_file_is_refused(tmp_path: Path, field: int, value: int) -> None:
    path = handmade(tmp_path / "a.pt", {"w": Claimed(16, (4, 4), (4, 1))})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"archive/data/0"))  # in the directory at the end
    struct.pack_into("<I", data, entry + field, value)  # compressed size, size or offset of the entry
    path.write_bytes(data)
    if field == 20:
        open_torch(path)  # not used, as nothing is compressed
        return
    with pytest.raises(CheckpointError, match=r"expected archive/data/0 uncompressed within \d+ bytes"):
        open_torch(path)


def test_a_storage_that_is_shorter_than_the_pickle_says_is_refused(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.pt", {"w": Claimed(17, (17,), (1,))})
    with pytest.raises(
        CheckpointError, match=r"a\.pt: w: expected 68 bytes of float32 in the file, found 64"
    ):
        open_torch(path)


def test_a_directory_of_a_million_entries_is_not_read(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.pt", {"w": Claimed(16, (4, 4), (4, 1))})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    directory = data[start:end] * (2 * MAX_PICKLE // (end - start))
    tail = bytearray(data[end:])
    struct.pack_into("<I", tail, 12, len(directory))
    path.write_bytes(data[:start] + directory + tail)
    with pytest.raises(CheckpointError, match=r"damaged zip archive .*bytes of description"):
        open_torch(path)


def test_a_long_data_pkl_is_not_read(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.pt", b"\x80\x02" + b"N" * MAX_PICKLE + b".")
    with pytest.raises(CheckpointError, match="bytes of description"):
        open_torch(path)


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.pt", {"w": Claimed(16, (4, 4), (4, 1))})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", b"big")
    legacy = handmade(tmp_path / "b.pt", {"w": Claimed(16, (4, 4), (4, 1))}, legacy=True)
    data = legacy.read_bytes()
    assert data.count(b"\x88") == 1  # True, of little_endian
    legacy.write_bytes(data.replace(b"\x88", b"\x89"))
    for file in (path, legacy):
        with pytest.raises(CheckpointError, match="found big-endian"):
            open_torch(file)


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
        (LEGACY_MAGIC + pickle.dumps(1001, 4) * 4, "FRAME, which torch.save does not write"),
        (LEGACY_MAGIC + pickle.dumps(1001, 2) * 4, "of version 1001, found another"),
        (LEGACY_MAGIC + pickle.dumps([1 << 3000], 2), "LONG4, which torch.save does not write"),
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
    with pytest.raises(CheckpointError, match=r"expected (tensors by name|plain tensors)"):
        open_torch(save(tmp_path / "a.pt", saved))


@pytest.mark.parametrize("content", [{}, {"w": 1}, {"w": {"x": 2}}, None, 3])
def test_a_state_dict_is_tensors_by_name(content: object) -> None:
    with pytest.raises(CheckpointError, match="tensors by name"):
        state_dict(Path("a.pt"), content)


def test_integers_are_not_taken_for_weights(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"w": torch.ones(2, 2, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match="found int8"):
        state_dict(path, open_torch(path))["w"][0:1]


def test_a_legacy_storage_of_another_length_than_the_pickle_says_is_refused(tmp_path: Path) -> None:
    path = handmade(tmp_path / "a.pt", {"w": Claimed(15, (3, 5), (5, 1))}, legacy=True)  # the file has 16
    with pytest.raises(CheckpointError, match="found one of 16 numbers"):
        open_torch(path)
