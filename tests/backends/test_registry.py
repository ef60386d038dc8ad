"""Backends are found by name, ours and other packages'."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from llamatui.backends import registry, threads
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.errors import BackendError, UsageError


class Third(NumpyBackend):
    name = "third"


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("third", f"{__name__}:Third", "llamatui.backends"),
        EntryPoint("broken", "no_such_module:Nothing", "llamatui.backends"),
        EntryPoint("odd", "pathlib:Path", "llamatui.backends"),
    ]
    monkeypatch.setattr(registry, "_entry_points", lambda: points)


@pytest.mark.usefixtures("others")
def test_other_packages_add_backends(tiny_model: Path) -> None:
    assert registry.backend_names() == ["numba", "q8_0", "numpy", "broken", "odd", "third"]
    assert registry.create_backend("third", Checkpoint(tiny_model)).name == "third"


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("broken", "cannot be imported"),
        ("odd", "is not a Backend class"),
    ],
)
def test_a_backend_that_cannot_be_had(name: str, problem: str) -> None:
    with pytest.raises(BackendError, match=problem):
        registry.backend_class(name)


def test_an_unknown_backend_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no backend is called 'cuda'") as caught:
        registry.backend_class("cuda")
    assert "numpy" in caught.value.hint


def test_threads_default_to_omp_num_threads_then_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= threads.default_threads() <= (os.cpu_count() or 1)


def test_blas_is_told_before_numpy_is_loaded_and_never_after() -> None:
    code = (
        "import os, sys; from llamatui.backends.threads import limit_blas_threads as f\n"
        "assert 'numpy' not in sys.modules; assert f(3); assert os.environ['OPENBLAS_NUM_THREADS'] == '3'\n"
        "import numpy; assert not f(2); assert os.environ['OPENBLAS_NUM_THREADS'] == '3'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
