"""What a session held is there again after it was left, and only where it is right."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llamatui.app import kv_store
from llamatui.app.config import Settings
from llamatui.app.engine import Limits, Session
from llamatui.app.kv_store import KVStore
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.registry import create_backend
from tests.tiny import TINY, random_weights

SHA = "5a" * 32
BACKENDS = ["numpy", *(["numba", "q8_0"] if find_spec("numba") else [])]
PROMPT = [int(i) for i in np.random.default_rng(0).integers(0, 300, 120)]

Start = Callable[[str], Backend]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts a backend of a random model with a context of 400."""
    path = tmp_path_factory.mktemp("model") / "tiny.bin"
    config = replace(TINY, max_seq_len=400)
    write_checkpoint(path, config, 0, random_weights(config, seed=1))
    checkpoint = Checkpoint(path)
    return lambda name: create_backend(name, checkpoint, threads=1)


@pytest.fixture
def backend(start: Start) -> Backend:
    return start("numpy")


@pytest.fixture
def store(tmp_path: Path) -> KVStore:
    return KVStore(tmp_path / "kv")


def run(session: Session, prompt: Sequence[int], n: int = 8, **limits: object) -> tuple[list[int], int]:
    """(new tokens, prompt tokens that were not run), greedily."""
    generation = session.start(prompt, Sampler(Sampling(temperature=0)), Limits(n, **limits))  # type: ignore[arg-type]
    return [record.id for record in generation], generation.cached_tokens


def ran(backend: Backend, prompt: Sequence[int] = PROMPT, context: int | None = None) -> Session:
    session = Session(backend, context)
    run(session, prompt)
    return session


def files(store: KVStore) -> list[Path]:
    return sorted(store.folder.iterdir()) if store.folder.exists() else []


@pytest.mark.parametrize("name", BACKENDS)
def test_a_text_goes_on_as_if_it_had_not_been_left(name: str, start: Start, store: KVStore) -> None:
    left = ran(start(name))
    assert store.keep(left, SHA)
    prompt = [*left.tokens, 5, 6, 7]
    opened = Session(start(name))
    assert store.adopt(opened, prompt, SHA) == left.cache.length == 127
    np.testing.assert_array_equal(opened.cache.keys[:, :, :127], left.cache.keys[:, :, :127])
    np.testing.assert_array_equal(opened.cache.values[:, :, :127], left.cache.values[:, :, :127])
    rest = prompt[127:]
    np.testing.assert_array_equal(
        opened.backend.forward(rest, opened.cache.copy(), all_positions=True),
        left.backend.forward(rest, left.cache.copy(), all_positions=True),
    )
    assert run(opened, prompt, 30) == run(left, prompt, 30)
    assert store.problems == []


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("at", [64, 100, 119])
def test_another_end_goes_on_from_where_it_differs(name: str, at: int, start: Start, store: KVStore) -> None:
    left = ran(start(name))
    store.keep(left, SHA)
    prompt = [*PROMPT[:at], (PROMPT[at] + 1) % 300, *PROMPT[at + 1 :]]
    opened = Session(start(name))
    assert store.adopt(opened, prompt, SHA) == at
    assert opened.tokens == prompt[:at]
    expected = run(left, prompt, 30)
    assert run(opened, prompt, 30) == expected
    assert expected[1] == at


def test_the_same_prompt_runs_its_last_token(backend: Backend, store: KVStore) -> None:
    left = ran(backend)
    store.keep(left, SHA)
    opened = Session(backend)
    assert store.adopt(opened, PROMPT, SHA) == len(PROMPT) - 1
    assert run(opened, PROMPT) == run(left, PROMPT)


def test_what_is_too_short_or_differs_early_is_left_alone(backend: Backend, store: KVStore) -> None:
    assert not store.keep(ran(backend, PROMPT[:50]), SHA)
    assert store.keep(ran(backend), SHA)
    opened = Session(backend)
    assert store.adopt(opened, [*PROMPT[:63], 1, 1, 1], SHA) == 0
    assert store.adopt(opened, PROMPT[:64], SHA) == 0
    assert store.adopt(opened, [], SHA) == 0
    assert (opened.tokens, opened.cache.length) == ([], 0)


def test_a_session_that_holds_as_much_itself_stays_as_it_is(backend: Backend, store: KVStore) -> None:
    store.keep(ran(backend), SHA)
    session = ran(backend, PROMPT[:100])
    cache = session.cache
    assert store.adopt(session, PROMPT, SHA) == 0
    assert session.cache is cache
    shorter = ran(backend, PROMPT[:20])
    assert store.adopt(shorter, PROMPT, SHA) == len(PROMPT) - 1


def test_another_model_or_backend_gets_nothing(start: Start, store: KVStore) -> None:
    if "q8_0" not in BACKENDS:
        pytest.skip("needs Numba")
    store.keep(ran(start("q8_0")), SHA)
    for name, sha in (("numpy", SHA), ("numba", SHA), ("q8_0", "00" * 32)):
        assert store.adopt(Session(start(name)), PROMPT, sha) == 0
    store.keep(ran(start("numpy")), SHA)
    assert len(files(store)) == 2
    for name in BACKENDS:  # those that compute in fp32 share
        assert store.adopt(Session(start(name)), PROMPT, SHA) == len(PROMPT) - 1


def test_another_version_gets_nothing(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.keep(ran(backend), SHA)
    monkeypatch.setattr(kv_store, "llamatui", SimpleNamespace(__version__="999"))
    assert store.adopt(Session(backend), PROMPT, SHA) == 0
    assert len(files(store)) == 1


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="no compiled kernels without it")
def test_other_kernels_of_the_same_version_get_nothing(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = ran(backend)
    assert store.keep(left, SHA)
    monkeypatch.setattr("llamatui.backends.kernels.cache.SOURCES_DIGEST", bytes(32))
    assert store.adopt(Session(backend), [*left.tokens, 5], SHA) == 0


def test_a_file_under_another_s_name_is_ignored(backend: Backend, store: KVStore) -> None:
    session = ran(backend)
    store.keep(session, SHA)
    store.keep(session, "00" * 32)
    mine, other = files(store)
    shutil.copy(other, mine)
    shutil.copy(mine, other)
    found = [store.adopt(Session(backend), PROMPT, sha) for sha in (SHA, "00" * 32)]
    assert sorted(found) == [0, len(PROMPT) - 1]
    assert len(files(store)) == 2


@pytest.mark.parametrize("at", [0, 8, 20, 100, 1000, -1])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_file_is_ignored_and_replaced(at: int, cut: bool, backend: Backend, store: KVStore) -> None:
    left = ran(backend)
    store.keep(left, SHA)
    [path] = files(store)
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content[:at] if cut else content)
    opened = Session(backend)
    prompt = [*left.tokens, 5, 6]  # the last block too
    assert store.adopt(opened, prompt, SHA) == 0
    assert (opened.tokens, opened.cache.length) == ([], 0)
    ours = cut or at not in (0, 8)  # else it might be anything, or of a newer version
    assert files(store) == ([] if ours else [path])
    assert [f"{path}: damaged" in problem for problem in store.problems] == ([True] if ours else [])
    assert store.keep(left, SHA)
    assert store.adopt(opened, prompt, SHA) == left.cache.length


def test_what_goes_on_replaces_what_it_goes_on_from(backend: Backend, store: KVStore) -> None:
    session = ran(backend)
    store.keep(session, SHA)
    [short] = files(store)
    run(session, [*session.tokens, 1, 2, 3])
    assert store.keep(session, SHA)
    [longer] = files(store)
    assert short != longer
    session.tokens = session.tokens[:110]
    session.cache.truncate(110)
    assert store.keep(session, SHA), "it is in the longer one"
    assert files(store) == [longer]
    run(session, [*session.tokens, 9, 9, 9])
    assert store.keep(session, SHA)
    assert len(files(store)) == 2, "another branch"
    opened = Session(backend)
    assert store.adopt(opened, [*session.tokens, 4], SHA) == session.cache.length, "the longest one"


def test_after_a_shift_the_cache_is_that_of_the_tokens(backend: Backend, store: KVStore) -> None:
    session = Session(backend, 140)
    run(session, PROMPT, 60, overflow="shift", keep=4)
    assert session.tokens[4:20] != PROMPT[4:20], "it shifted"
    assert store.keep(session, SHA)
    prompt = [*session.tokens[: session.cache.length], 7, 8]
    opened = Session(backend)
    assert store.adopt(opened, prompt, SHA) == session.cache.length
    assert run(opened, prompt, 30)[0] == run(Session(backend), prompt, 30)[0]


def test_after_a_swap_the_cache_is_that_of_the_new_backend(start: Start, store: KVStore) -> None:
    if "q8_0" not in BACKENDS:
        pytest.skip("needs Numba")
    session = ran(start("numpy"))
    old, new = session.backend, start("q8_0")
    old.replacement = new
    run(session, [*session.tokens, 3, 4])
    assert session.backend is new
    store.keep(session, SHA)
    prompt = [*session.tokens, 5, 6]
    waiting = Session(old)  # the new one takes over with the first step
    assert store.adopt(waiting, prompt, SHA) == session.cache.length
    assert waiting.backend is new
    assert run(waiting, prompt, 30) == run(session, prompt, 30)
    assert store.adopt(Session(start("numpy")), prompt, SHA) == 0


def test_a_session_of_a_smaller_context_takes_what_fits(backend: Backend, store: KVStore) -> None:
    left = ran(backend)
    store.keep(left, SHA)
    opened = Session(backend, 90)
    assert store.adopt(opened, left.tokens, SHA) == 90
    assert run(opened, left.tokens[:80])[0] == run(left, left.tokens[:80])[0]


def test_disk_use_stays_under_its_bound(backend: Backend, tmp_path: Path) -> None:
    one = KVStore(tmp_path / "one")
    one.keep(ran(backend), SHA)
    size = files(one)[0].stat().st_size
    store = KVStore(tmp_path / "kv", 3 * size + 10)
    for first in range(6):
        assert store.keep(ran(backend, [first, *PROMPT[1:]]), SHA)
        assert sum(path.stat().st_size for path in files(store)) <= 3 * size + 10
        os.utime(files(store)[0])
    assert len(files(store)) == 3


def test_a_bound_that_was_lowered_holds_at_once(backend: Backend, store: KVStore) -> None:
    for first in range(3):
        store.keep(ran(backend, [first, *PROMPT[1:]]), SHA)
    store.limit_bytes = files(store)[0].stat().st_size
    assert not store.keep(Session(backend), SHA), "there is nothing to keep"
    assert len(files(store)) == 1


def test_those_not_used_for_longest_are_removed(backend: Backend, tmp_path: Path) -> None:
    prompts = [[first, *PROMPT[1:]] for first in range(4)]
    store = KVStore(tmp_path / "kv")
    for age, prompt in enumerate(prompts[:3]):
        before = files(store)
        store.keep(ran(backend, prompt), SHA)
        [path] = set(files(store)) - set(before)
        os.utime(path, ns=(age * 10**9, age * 10**9))
    store.limit_bytes = 3 * path.stat().st_size
    assert store.adopt(Session(backend), prompts[0], SHA), "used now"
    store.keep(ran(backend, prompts[3]), SHA)
    assert [store.adopt(Session(backend), prompt, SHA) > 0 for prompt in prompts] == [True, False, True, True]


def test_what_alone_exceeds_the_bound_is_not_kept(backend: Backend, tmp_path: Path) -> None:
    store = KVStore(tmp_path / "kv", 5000)
    assert not store.keep(ran(backend), SHA)
    assert (files(store), store.problems) == ([], [])


def test_a_bound_of_0_keeps_and_gives_nothing_and_removes_what_is_there(
    backend: Backend, store: KVStore
) -> None:
    session = ran(backend)
    store.keep(session, SHA)
    off = KVStore(store.folder, 0)
    assert off.adopt(Session(backend), PROMPT, SHA) == 0
    assert not off.keep(session, SHA)
    assert files(store) == []


def test_the_bound_is_the_setting_s(home: Path) -> None:
    assert KVStore().limit_bytes == Settings().kv_cache_mb * 10**6 == 2 * 10**9
    assert home in KVStore().folder.parents


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_nobody_else_can_read_it(backend: Backend, store: KVStore) -> None:
    store.keep(ran(backend), SHA)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert files(store)[0].stat().st_mode & 0o777 == 0o600


def test_all_of_it_can_be_removed(backend: Backend, store: KVStore) -> None:
    store.keep(ran(backend), SHA)
    store.clear()
    assert files(store) == []
    store.clear()


def test_a_full_disk_is_told_and_leaves_nothing(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    session = ran(backend)
    monkeypatch.setattr(kv_store, "save", full)
    assert not store.keep(session, SHA)
    assert not store.keep(session, SHA)
    assert store.problems == [f"{store.folder}: cannot be written: No space left on device"]
    assert files(store) == []


def test_a_folder_that_another_app_clears_meanwhile_is_no_problem(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = KVStore(store.folder)
    monkeypatch.setattr(kv_store, "save", lambda *args: other.clear())
    assert not store.keep(ran(backend), SHA)
    assert (files(store), store.problems) == ([], [])


def test_the_last_of_the_disk_is_left_to_others(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    assert not store.keep(ran(backend), SHA)
    assert store.problems == [f"{store.folder}: the disk is nearly full"]


def test_a_folder_that_cannot_be_made_is_told(backend: Backend, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = KVStore(tmp_path / "file" / "kv")
    assert not store.keep(ran(backend), SHA)
    assert store.adopt(Session(backend), PROMPT, SHA) == 0
    assert len(store.problems) == 1


def test_a_file_that_another_app_removes_is_not_there(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = ran(backend)
    store.keep(session, SHA)
    listed = store._files()
    monkeypatch.setattr(store, "_files", lambda: listed)
    files(store)[0].unlink()
    assert store.adopt(Session(backend), PROMPT, SHA) == 0
    store.limit_bytes = listed[0].size + 10
    assert store.keep(session, SHA), "what is gone makes room"
    assert len(files(store)) == 1
    assert store.problems == []


def test_a_file_that_cannot_be_removed_stays(
    backend: Backend, store: KVStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses while another app has it open."""

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "in use")

    session = ran(backend)
    store.keep(session, SHA)
    run(session, [*session.tokens, 1])
    monkeypatch.setattr(Path, "unlink", refused)
    assert store.keep(session, SHA)
    assert len(files(store)) == 2
    store.limit_bytes = files(store)[0].stat().st_size
    assert not store.keep(ran(backend, PROMPT[1:]), SHA), "there is no room"
    store.clear()


def test_what_a_killed_app_was_writing_is_removed_later(backend: Backend, store: KVStore) -> None:
    store.folder.mkdir()
    for name, age in (("old.part", 2 * kv_store.STALE), ("new.part", 0)):
        (store.folder / name).write_bytes(b"x")
        os.utime(store.folder / name, (time.time() - age,) * 2)
    (store.folder / "note.txt").write_text("not ours")
    store.keep(ran(backend), SHA)
    assert {path.suffix for path in files(store)} == {".kv", ".part", ".txt"}
    assert not (store.folder / "old.part").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_in_the_folder_does_not_stop_it(backend: Backend, store: KVStore) -> None:
    store.keep(ran(backend), SHA)
    [path] = files(store)
    path.unlink()
    os.mkfifo(path)
    assert store.adopt(Session(backend), PROMPT, SHA) == 0
