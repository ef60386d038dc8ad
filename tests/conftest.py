"""Fixtures for all rooms: tiny random models and vocabularies made on the spot, and a home of their own.

The engine is compiled at the start where it has changed since the last run, which takes about 20 s, and kept
in pytest's own cache. With LLAMATUI_SIMD all tests run on kernels for another target.
"""

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.tiny import TINY, random_weights, write_tokenizer_bin

# A busy machine is no reason to fail. What decides over others' work tries the same examples each time; new
# ones are for who can look at what they find.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("ours")

REPOSITORY = Path(__file__).parent.parent
WAITING = 2  # workers beyond one for each core: tests of screens wait for timers a good part of their time
OURS = ("LLAMATUI_TEST_DATA", "LLAMATUI_KERNELS", "LLAMATUI_SIMD", "LLAMATUI_ALL_TARGETS")


def pytest_xdist_auto_num_workers() -> int:
    return (os.cpu_count() or 1) + WAITING


@pytest.fixture(scope="session", autouse=True)
def kernels(pytestconfig: pytest.Config) -> Iterator[Path]:
    """The folder of compiled kernels that all tests share: none starts a compiler by accident."""
    folder = pytestconfig.cache.mkdir("kernels")  # type: ignore[union-attr]
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMATUI_KERNELS", str(folder))
        if find_spec("numba") is not None:
            from llamatui.backends.kernels.cache import Compilation, load_kernels

            for compilation in [Compilation(kind) for kind in ("fp32", "q8_0") if load_kernels(kind) is None]:
                compilation.wait()
        yield folder


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """Tests that were started in the background, where shells ignore signals, can send them nevertheless."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)  # no SIGHUP on Windows
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own files or settings."""
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith("LLAMATUI_") and name not in OURS]:
        monkeypatch.delenv(name)
    for name, folder in {
        "HOME": "",
        "XDG_CONFIG_HOME": "c",
        "XDG_DATA_HOME": "d",
        "XDG_CACHE_HOME": "k",
    }.items():
        monkeypatch.setenv(name, str(home / folder))
    return home


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real models, tokenizers and vectors: LLAMATUI_TEST_DATA, or `shared` beside the repository."""
    folder = Path(os.environ.get("LLAMATUI_TEST_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "vectors").is_dir():
        pytest.skip("no real data: set LLAMATUI_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random version-0 model of 300 tokens, context 64, with a tokenizer.bin next to it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder / "tiny.bin", TINY, 0, random_weights(TINY, seed=1))
    write_tokenizer_bin(folder / "tokenizer.bin", TINY.vocab_size)
    return folder / "tiny.bin"
