"""Teams of threads: as many as there really are, never waiting for one that does not come."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends import team
from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.registry import create_backend

pytest.importorskip("numba")

TOKENS = [(i * i + 3) % 300 for i in range(40)]
PROGRAM = """
import json, sys
from llamatui.backends.base import KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.registry import create_backend

backend = create_backend(sys.argv[1], Checkpoint(sys.argv[2]), int(sys.argv[3]))
cache = KVCache(backend.config)
tokens = [(i * i + 3) % 300 for i in range(40)]
backend.forward(tokens[:20], cache)
for token in tokens[20:]:
    logits = backend.forward([token], cache)
print(json.dumps({"threads": backend.threads, "logits": logits.tolist()}))
"""
CORES = team.usable_cpus()


def last_logits(backend: Backend) -> np.ndarray:
    cache = KVCache(backend.config)
    backend.forward(TOKENS[:20], cache)
    return np.array([backend.forward([token], cache) for token in TOKENS[20:]])[-1]


def in_a_process(
    model: Path, threads: int, environment: dict[str, str], before: list[str], name: str
) -> tuple[int, np.ndarray]:
    """(threads that there were, last logits)."""
    result = subprocess.run(
        [*before, sys.executable, "-c", PROGRAM, name, str(model), str(threads)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(result.stdout)
    return found["threads"], np.array(found["logits"], np.float32)


@pytest.mark.parametrize(
    ("environment", "threads", "expected"),
    [
        ({"OMP_THREAD_LIMIT": "1"}, 2, 1),
        ({"OMP_NUM_THREADS": "1"}, 2, min(2, CORES)),
        ({"OMP_DYNAMIC": "true"}, 2, None),
        ({"OMP_MAX_ACTIVE_LEVELS": "0"}, 2, 1),
        ({}, 64, min(64, CORES)),
    ],
    ids=lambda value: str(value),
)
def test_openmp_settings(
    environment: dict[str, str], threads: int, expected: int | None, tiny_model: Path
) -> None:
    """Whatever makes teams smaller, they work, and tell how small."""
    if team.openmp() is None:
        pytest.skip("no OpenMP here")
    found, logits = in_a_process(tiny_model, threads, environment, [], "numba")
    assert found == expected or (expected is None and 1 <= found <= threads)
    np.testing.assert_array_equal(logits, last_logits(create_backend("numba", Checkpoint(tiny_model), 1)))


def test_one_core(tiny_model: Path) -> None:
    if not shutil.which("taskset"):
        pytest.skip("no taskset here")
    core = min(os.sched_getaffinity(0))
    found, logits = in_a_process(tiny_model, 2, {}, ["taskset", "-c", str(core)], "q8_0")
    assert found == 1
    np.testing.assert_array_equal(logits, last_logits(create_backend("q8_0", Checkpoint(tiny_model), 1)))


def test_a_core_that_is_taken_away_later(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More workers than cores: those that wait let the others run."""
    monkeypatch.setattr(team, "usable_cpus", lambda: 8)
    backend = create_backend("numba", Checkpoint(tiny_model), 8)
    assert backend.threads == 8
    np.testing.assert_array_equal(
        last_logits(backend), last_logits(create_backend("numba", Checkpoint(tiny_model), 1))
    )


def test_a_small_team_does_not_stay_small(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP may give fewer threads for a while, as OMP_DYNAMIC does under load."""
    if team.openmp() is None:
        pytest.skip("no OpenMP here")
    monkeypatch.setattr(team, "usable_cpus", lambda: 8)
    backend = create_backend("numba", Checkpoint(tiny_model), 3)
    expected = last_logits(backend)
    limit = team.openmp().omp_set_dynamic
    assert backend.threads == 3
    limit(1)
    try:
        last_logits(backend)
    finally:
        limit(0)
    np.testing.assert_array_equal(last_logits(backend), expected)
    assert backend.threads == 3


@pytest.mark.parametrize("name", ["numba", "q8_0"])
@pytest.mark.parametrize("threads", [2, 3])
def test_without_openmp_pythons_threads_do(
    name: str, threads: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last_logits(create_backend(name, Checkpoint(tiny_model), 1))
    monkeypatch.setattr(team, "usable_cpus", lambda: 8)
    monkeypatch.setattr(team, "openmp", lambda: None)
    backend = create_backend(name, Checkpoint(tiny_model), threads)
    assert backend.threads == threads
    np.testing.assert_array_equal(last_logits(backend), expected)


def at_the_same_time(*work: Callable[[], np.ndarray]) -> list[np.ndarray]:
    results: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i, f=f: results.update({i: f()}), daemon=True)
        for i, f in enumerate(work)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[i] for i in range(len(work))]


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("backends", [1, 2])
def test_several_sessions_at_once(
    backends: int, openmp: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "usable_cpus", lambda: 8)
    if not openmp:
        monkeypatch.setattr(team, "openmp", lambda: None)
    made = [create_backend("numba", Checkpoint(tiny_model), 2) for _ in range(backends)]
    expected = last_logits(made[0])
    for found in at_the_same_time(*[lambda i=i: last_logits(made[i % backends]) for i in range(3)]):
        np.testing.assert_array_equal(found, expected)


def test_each_call_from_a_thread_of_its_own(tiny_model: Path) -> None:
    backend = create_backend("q8_0", Checkpoint(tiny_model), 2)
    cache = KVCache(backend.config)
    backend.forward(TOKENS[:20], cache)
    for token in TOKENS[20:]:
        (logits,) = at_the_same_time(lambda token=token: backend.forward([token], cache))
    np.testing.assert_array_equal(logits, last_logits(backend))


FORK = (
    PROGRAM.split("print(")[0]
    + """
import os
child = os.fork()
again = KVCache(backend.config)
backend.forward(tokens[:20], again)
for token in tokens[20:]:
    found = backend.forward([token], again)
assert found.tolist() == logits.tolist()
if not child:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_goes_on_alone(tiny_model: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, "numba", str(tiny_model), "2"]
    subprocess.run(command, timeout=60, check=True)


def test_without_memory_for_more_positions_a_backend_stays_as_it_was(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = create_backend("numba", Checkpoint(tiny_model), 2)
    small, large = KVCache(backend.config, 30), KVCache(backend.config)
    before = backend.forward(TOKENS[:20], small)
    small.truncate(0)

    def nothing_left(*arguments: object) -> np.ndarray:
        raise MemoryError

    large.reserve(64)
    with monkeypatch.context() as patch:
        patch.setattr("llamatui.backends.compiled.np.empty", nothing_left)
        with pytest.raises(MemoryError):
            backend.forward(TOKENS[:20], large)
    np.testing.assert_array_equal(backend.forward(TOKENS[:20], small), before)
    np.testing.assert_array_equal(backend.forward(TOKENS[:20], large), before)


def test_a_team_that_cannot_have_its_threads_is_one_worker(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last_logits(create_backend("numba", Checkpoint(tiny_model), 1))

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(team, "openmp", lambda: None)
    monkeypatch.setattr(team, "usable_cpus", lambda: 4)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        backend = create_backend("numba", Checkpoint(tiny_model), 4)
    assert backend.threads == 1
    np.testing.assert_array_equal(last_logits(backend), expected)
