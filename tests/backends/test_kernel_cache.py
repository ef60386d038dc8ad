"""Kernels are compiled once, by one process, into a cache that may be damaged or unwritable.

The compilers here are stand-ins that take no time, but where the real one is what is tested.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends.base import KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.backends.registry import create_backend, start_backend
from llamatui.errors import BackendError

pytest.importorskip("numba")
from llamatui.backends.kernels import cache

COPY = "import shutil; shutil.copy({good!r}, path)"
FAIL = "import pathlib; pathlib.Path(path).with_suffix('.failed').write_text('a\\nb: broken'); exit(1)"
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"


@pytest.fixture
def good(kernels: Path) -> Path:
    """An object file of fp32 kernels, as it is in the cache of all tests."""
    return cache.object_path("fp32")


@pytest.fixture
def cold(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path that fp32 kernels would have, in a cache without any."""
    monkeypatch.setenv("LLAMATUI_KERNELS", str(tmp_path / "kernels"))
    cache.folder.cache_clear()
    path = cache.object_path("fp32")
    assert path == tmp_path / "kernels" / good.name
    yield path
    cache.folder.cache_clear()


class Compilers:
    """Stands in for `subprocess.Popen`: runs a program of one line as the compiler."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.calls: list[tuple[list[str], dict[str, object]]] = []

    def __call__(self, command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        self.calls.append((command, options))
        return POPEN([sys.executable, "-c", f"path = {command[-1]!r}; {self.program}"], **options)  # type: ignore[call-overload, no-any-return]


POPEN = subprocess.Popen


@pytest.fixture
def compilers(good: Path, monkeypatch: pytest.MonkeyPatch) -> Compilers:
    stand_in = Compilers(COPY.format(good=str(good)))
    monkeypatch.setattr(subprocess, "Popen", stand_in)
    return stand_in


def check(model: Path) -> None:
    """The numba backend runs."""
    checkpoint = Checkpoint(model)
    config = checkpoint.config
    found = create_backend("numba", checkpoint, 2).forward([1, 2, 3], KVCache(config))
    expected = NumpyBackend(checkpoint, 1).forward([1, 2, 3], KVCache(config))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("cold")
def test_kernels_are_compiled_once(compilers: Compilers, tiny_model: Path) -> None:
    steps: list[str] = []
    create_backend("numba", Checkpoint(tiny_model), 1, steps.append)
    assert "compiling" in steps[0]
    steps.clear()
    create_backend("numba", Checkpoint(tiny_model), 1, steps.append)
    assert steps == []
    assert len(compilers.calls) == 1


@pytest.mark.parametrize("damage", ["empty", "short", "cut", "changed", "longer"])
def test_damaged_kernels_are_compiled_again(
    damage: str, cold: Path, good: Path, compilers: Compilers, tiny_model: Path
) -> None:
    content = good.read_bytes()
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    damaged = {
        "empty": b"",
        "short": content[:20],
        "cut": content[:-1],
        "changed": bytes(changed),
        "longer": content + b"\0",
    }
    cold.write_bytes(damaged[damage])
    check(tiny_model)
    assert len(compilers.calls) == 1
    assert cold.read_bytes() == content


@pytest.mark.parametrize("variable", ["LLAMATUI_KERNELS", "XDG_CACHE_HOME"])
def test_where_nothing_can_be_written_the_kernels_are_temporary(
    variable: str,
    tmp_path: Path,
    compilers: Compilers,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("LLAMATUI_KERNELS")
    monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))
    cache.folder.cache_clear()
    try:
        check(tiny_model)
        assert cache.folder().stat().st_mode & 0o777 == 0o700
        assert len(list(cache.folder().glob("fp32-*.o"))) == 1
    finally:
        cache.folder.cache_clear()
    assert len(compilers.calls) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    monkeypatch.setenv("LLAMATUI_KERNELS", str(shared))
    cache.folder.cache_clear()
    try:
        assert cache.folder() != shared
        shared.chmod(0o700)
        cache.folder.cache_clear()
        assert cache.folder() == shared
    finally:
        cache.folder.cache_clear()


def test_temporary_kernels_go_with_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = "from llamatui.backends.kernels.cache import folder; print(folder()); assert folder().is_dir()"
    environment = {**os.environ, "LLAMATUI_KERNELS": str(tmp_path / "file")}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert not Path(result.stdout.strip()).exists()


@pytest.mark.usefixtures("cold")
def test_a_failed_compilation_is_an_error_that_says_what_to_do(
    compilers: Compilers, tiny_model: Path
) -> None:
    compilers.program = FAIL
    with pytest.raises(BackendError, match="could not be compiled: b: broken") as caught:
        create_backend("numba", Checkpoint(tiny_model), 1)
    assert "--backend numpy" in caught.value.hint
    assert ".failed" in caught.value.hint


@pytest.mark.usefixtures("cold")
def test_a_compiler_that_dies_is_an_error(compilers: Compilers, tiny_model: Path) -> None:
    compilers.program = DIE
    with pytest.raises(BackendError, match="the compiler ended with"):
        create_backend("numba", Checkpoint(tiny_model), 1)


@pytest.mark.usefixtures("cold")
def test_a_compiler_that_cannot_be_started_is_an_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(BackendError, match=r"the compiler cannot be started: .*no/such/python"):
        create_backend("numba", Checkpoint(tiny_model), 1)
    backend = start_backend(Checkpoint(tiny_model), 1)
    assert backend.name == "numpy"
    assert "cannot be started" in backend.note


def settled(model: Path) -> NumpyBackend:
    """What `start_backend` gives, when its compiler is done."""
    backend = start_backend(Checkpoint(model), 2)
    assert isinstance(backend, NumpyBackend)
    end = time.monotonic() + 30
    while backend.preparing and time.monotonic() < end:
        time.sleep(0.01)
    assert not backend.preparing
    return backend


@pytest.mark.usefixtures("cold", "compilers")
def test_numpy_runs_until_its_replacement_is_ready(tiny_model: Path) -> None:
    backend = settled(tiny_model)
    assert backend.replacement is not None
    assert backend.replacement.name == "numba"
    np.testing.assert_allclose(
        backend.replacement.forward([1, 2], KVCache(backend.config)),
        backend.forward([1, 2], KVCache(backend.config)),
        atol=1e-4,
    )


@pytest.mark.parametrize("program", [FAIL, DIE])
@pytest.mark.usefixtures("cold")
def test_numpy_goes_on_where_the_compiler_fails(program: str, compilers: Compilers, tiny_model: Path) -> None:
    compilers.program = program
    backend = settled(tiny_model)
    assert backend.replacement is None
    assert "could not be compiled" in backend.note


@pytest.mark.usefixtures("cold")
def test_what_failed_is_tried_again_only_when_asked_for(
    compilers: Compilers, good: Path, tiny_model: Path
) -> None:
    compilers.program = FAIL
    settled(tiny_model)
    backend = start_backend(Checkpoint(tiny_model), 1)
    assert backend.name == "numpy"
    assert "could not be compiled: b: broken" in backend.note
    assert len(compilers.calls) == 1
    compilers.program = COPY.format(good=str(good))
    check(tiny_model)
    assert start_backend(Checkpoint(tiny_model), 1).name == "numba"


def test_the_users_settings_of_numba_are_not_the_compilers(
    cold: Path, compilers: Compilers, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NUMBA_DISABLE_JIT", "NUMBA_NUM_THREADS", "NUMBA_CPU_NAME"):
        monkeypatch.setenv(name, "1")
    check(tiny_model)
    ((_, options),) = compilers.calls
    environment = options["env"]
    assert isinstance(environment, dict)
    assert not [name for name in environment if name.startswith("NUMBA_")]
    assert environment["LLAMATUI_SIMD"]
    assert options["cwd"] == cold.parent  # Numba reads a .numba_config.yaml where it finds itself


def test_nothing_of_the_current_folder_is_imported(
    cold: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real child, which finds its work done: it has imported Numba by then."""
    marker = tmp_path / "marker"
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in ("numba", "numpy", "llvmlite", "llamatui"):
        (evil / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close(); raise SystemExit(1)")
    monkeypatch.chdir(evil)
    compilation = cache.Compilation("fp32")
    cold.write_bytes(good.read_bytes())
    compilation.wait()
    assert not marker.exists()
    assert not cold.with_suffix(".failed").exists()


@pytest.mark.usefixtures("cold")
def test_an_upgrade_during_the_compilation(
    compilers: Compilers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilation = cache.Compilation("fp32")
    monkeypatch.setattr(cache, "object_path", lambda kind: tmp_path / "of the new version.o")
    assert compilation.wait().run


BUILD = """
import os, sys, time
from pathlib import Path
from llamatui.backends.kernels import build, cache

good, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def object_code(kind):
    with log.open("a") as file:
        file.write("compiled\\n")
    time.sleep(seconds)
    return good.read_bytes()[cache.DIGEST_SIZE :]

build.object_code = object_code
sys.argv[1:] = ["fp32", sys.argv[4]]
sys.exit(build.main())
"""


def builder(good: Path, log: Path, seconds: float, path: Path) -> "subprocess.Popen[bytes]":
    """A compiler's process that takes so many seconds, and puts `good` into the cache."""
    return subprocess.Popen([sys.executable, "-c", BUILD, good, log, str(seconds), path])


def test_two_processes_compile_once(good: Path, cold: Path, tmp_path: Path) -> None:
    both = [builder(good, tmp_path / "log", 0.5, cold) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "compiled\n"
    assert cold.read_bytes() == good.read_bytes()
    assert {path.suffix for path in cold.parent.iterdir()} == {".o", ".lock"}


def test_a_compiler_that_was_killed_is_not_waited_for(good: Path, cold: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    victim = builder(good, log, 1000, cold)
    while not log.exists() and victim.poll() is None:
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert builder(good, log, 0, cold).wait(60) == 0
    assert cold.read_bytes() == good.read_bytes()


@pytest.mark.parametrize("wrong", ["no object", "of another kind"])
def test_kernels_that_fail_their_test_are_not_kept(
    wrong: str, good: Path, cold: Path, kernels: Path, tmp_path: Path
) -> None:
    if wrong == "no object":
        source = tmp_path / "wrong.o"
        source.write_bytes(bytes(1000))
    else:
        (source,) = kernels.glob(good.name.replace("fp32-", "q8_0-"))
    assert builder(source, tmp_path / "log", 0, cold).wait(60) == 1
    assert "compiled, but failed its test" in cold.with_suffix(".failed").read_text()
    assert not cold.exists()
