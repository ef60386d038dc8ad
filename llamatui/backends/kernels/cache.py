"""Compiled kernels on disk: where they are kept, making them in a child process, and loading them.

An object file's name has a hash of all that its code depends on: the kernels' sources, Numba's and LLVM's
versions, the CPU and the vector instructions chosen for it. So an upgrade, or a home that is shared with
another kind of machine, finds nothing and compiles anew, and what is found fits. Loading takes only llvmlite,
whose import is a fraction of Numba's.
"""

import atexit
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import llvmlite
from llvmlite import binding
from platformdirs import user_cache_path

from llamatui.backends.kernels.cpu import detect
from llamatui.errors import BackendError

DIGEST_SIZE = 32
FAILURE_SECONDS = 24 * 3600
"""For so long a failed compilation is not tried again unasked: its cause, as a full disk, may have passed."""
TERMINATED = {
    -number for name, number in vars(signal).items() if name in ("SIGHUP", "SIGINT", "SIGKILL", "SIGTERM")
}
"""Exit codes of a compiler that somebody stopped: no reason not to try again."""


def _sources_digest() -> bytes:
    hashed = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        hashed.update(source.read_bytes())
    return hashed.digest()


# Of the code that this process has loaded, whatever an upgrade does to the files while it runs.
SOURCES_DIGEST = _sources_digest()


class Kernels:
    """Object code in memory, ready to run.

    Attributes:
        run: Address of the C function `run(void *params, int64 worker, int64 workers)`.
        run_openmp: Address of `run_openmp(void *params)`.
    """

    def __init__(self, code: bytes) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(jit=True)
        # The engine owns the memory that the code is in.
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.run: int = self._engine.get_function_address("run")
        self.run_openmp: int = self._engine.get_function_address("run_openmp")


@cache
def folder() -> Path:
    """Where object files are: `LLAMATUI_KERNELS`, the user's cache folder, or one for this process alone."""
    named = os.environ.get("LLAMATUI_KERNELS")
    path = Path(named).absolute() if named else user_cache_path("llamatui", appauthor=False) / "kernels"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_if_shared(path)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="llamatui-kernels-"))
        atexit.register(shutil.rmtree, path, ignore_errors=True)
        return path


def _refuse_if_shared(path: Path) -> None:
    """Raises OSError for a folder where others may put code, which we would run."""
    status = path.stat()
    if sys.platform != "win32" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        raise PermissionError(f"{path}: others may write here")


def object_path(kind: str) -> Path:
    """The object file of a kind of kernels, "fp32" or "q8_0", for this machine and this version."""
    target = detect()
    features = binding.get_host_cpu_features().flatten()
    depends = [
        llvmlite.__version__,
        binding.get_process_triple(),
        binding.get_host_cpu_name(),
        features,
        target,
    ]
    hashed = hashlib.sha256("\n".join(depends).encode() + SOURCES_DIGEST)
    numba = find_spec("numba")
    if numba is None or numba.origin is None:
        raise BackendError("Numba is not installed", "pip install numba, or use --backend numpy")
    hashed.update(Path(numba.origin).with_name("_version.py").read_bytes())
    return folder() / f"{kind}-{target}-{hashed.hexdigest()[:16]}.o"


def load_kernels(kind: str) -> Kernels | None:
    """Kernels from the cache; None where they are not there, or damaged."""
    return _load(object_path(kind))


def _load(path: Path) -> Kernels | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if hashlib.sha256(code).digest() != digest:
        with suppress(OSError):
            path.unlink()
        return None
    return Kernels(code)


def store(path: Path, code: bytes) -> None:
    """Puts object code into the cache, whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        temporary.write_bytes(hashlib.sha256(code).digest() + code)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def failure(kind: str) -> str:
    """What an earlier compilation of these kernels failed with, not long ago; "" if none did."""
    return _failure(object_path(kind))


def _failure(path: Path) -> str:
    failed = path.with_suffix(".failed")
    try:
        if time.time() - failed.stat().st_mtime > FAILURE_SECONDS:
            return ""
        return failed.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def child_command(module: str, *args: str) -> list[str]:
    """Runs `main` of a module next to this one in a new process, from where this package was imported."""
    package = str(Path(__file__).parents[3])
    # -P: not modules of the current folder, which may be anyone's. Our package's folder comes last: it may be
    # site-packages, whose modules must not stand in for Python's own.
    code = (
        f"import sys; sys.path.append({package!r}); "
        f"from llamatui.backends.kernels.{module} import main; sys.exit(main())"
    )
    return [sys.executable, "-P", "-c", code, *args]


class Compilation:
    """A child process that compiles kernels. It goes on when this process ends, for the next one to find
    them.
    """

    def __init__(self, kind: str) -> None:
        """Raises:
        BackendError: There can be no process.
        """
        self._kind = kind
        self._path = object_path(kind)
        # NUMBA_* is for the user's own programs: some of it, as NUMBA_DISABLE_JIT, would break this.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        environment["LLAMATUI_SIMD"] = detect()
        command = child_command("build", kind, str(self._path))
        null = subprocess.DEVNULL
        # Numba reads settings from the current folder, so that is ours.
        try:
            self._child = subprocess.Popen(
                command,
                cwd=self._path.parent,
                env=environment,
                stdin=null,
                stdout=null,
                stderr=null,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendError(f"the compiler cannot be started: {error}", "use --backend numpy") from error

    def running(self) -> bool:
        return self._child.poll() is None

    def wait(self) -> Kernels:
        """The kernels, as soon as they are there.

        Raises:
            BackendError: They cannot be compiled.
        """
        code = self._child.wait()
        kernels = _load(self._path)
        if kernels is None:
            if code not in TERMINATED and not _failure(self._path):
                with suppress(OSError):
                    self._path.with_suffix(".failed").write_text(
                        f"the compiler crashed, signal {-code}", "utf-8"
                    )
            reason = _failure(self._path).splitlines() or [f"the compiler ended with {code}"]
            details = self._path.with_suffix(".failed")
            raise BackendError(
                f"the {self._kind} kernels could not be compiled: {reason[-1]}",
                "use --backend numpy" + (f"; {details} has the details" if _failure(self._path) else ""),
            )
        return kernels

    def __del__(self) -> None:
        # A child that is still at work when its parent lets go of it is meant to be, so no ResourceWarning.
        if hasattr(self, "_child") and self._child.returncode is None:
            self._child.returncode = 0
