"""How many threads there are by default, and what the environment says afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamatui.backends import threads


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of eight cores; write `self` and the groups' files to limit it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_replaced", {})
    monkeypatch.setattr(threads, "physical_cores", lambda: 8)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(threads, "MEMBERSHIP", tmp_path / "self")
    return tmp_path


def limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_no_limit_is_one_thread_per_core(cgroups: Path) -> None:
    assert threads.default_threads() == 8, "nothing is known about groups"
    (cgroups / "self").write_text("0::/\n")
    limit(cgroups / "fs", cpu__max="max 100000")
    assert threads.default_threads() == 8


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("150000 100000", 2), ("200000 100000", 2), ("1000 100000", 1), ("9900000 100000", 8)],
)
def test_a_container_s_share_is_rounded_up(quota: str, expected: int, cgroups: Path) -> None:
    (cgroups / "self").write_text("0::/\n")
    limit(cgroups / "fs", cpu__max=quota)
    assert threads.default_threads() == expected


def test_the_strictest_group_around_it_counts(cgroups: Path) -> None:
    (cgroups / "self").write_text("0::/user.slice/app.scope\n")
    limit(cgroups / "fs/user.slice", cpu__max="300000 100000")
    limit(cgroups / "fs/user.slice/app.scope", cpu__max="max 100000")
    assert threads.default_threads() == 3


def test_a_path_of_the_host_leads_to_the_container_s_root(cgroups: Path) -> None:
    (cgroups / "self").write_text("0::/docker/0123abcd\n")
    limit(cgroups / "fs", cpu__max="400000 100000")
    assert threads.default_threads() == 4


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 8)])
def test_version_1(quota: str, expected: int, cgroups: Path) -> None:
    (cgroups / "self").write_text("5:cpuset:/\n4:cpuacct,cpu:/docker/abc\n1:name=systemd:/\n0::/\n")
    limit(cgroups / "fs/cpu/docker/abc", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert threads.default_threads() == expected


def test_the_user_s_number_wins_over_the_share(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cgroups / "self").write_text("0::/\n")
    limit(cgroups / "fs", cpu__max="100000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", "6,2")
    assert threads.default_threads() == 6


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, "default_threads()"), ({"OMP_NUM_THREADS": "3"}, "3")]
)
def test_what_one_model_was_given_is_not_the_default_of_the_next(
    environment: dict[str, str], expected: str
) -> None:
    code = f"""
import os
from llamatui.backends.threads import default_threads, limit_blas_threads
expected = {expected}
limit_blas_threads(expected + 4)
assert os.environ["OMP_NUM_THREADS"] == str(expected + 4)
assert default_threads() == expected, default_threads()
"""
    inherited = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    subprocess.run([sys.executable, "-c", code], check=True, env={**inherited, **environment})
