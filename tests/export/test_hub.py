"""Files from the hub: resumed, verified, and errors that say what to do."""

import errno
import hashlib
import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from llamatui.errors import LlamatuiError, MissingExtraError, ModelError, UsageError
from llamatui.export import hub
from llamatui.export.hub import Repository, fetch, look_up, part_of
from tests.app.hub_server import Hub, serve, use

pytest.importorskip("huggingface_hub")

REPO = "someone/tiny"
WEIGHTS = bytes(range(256)) * 4000  # 1 MB
SMALL = b'{"dim": 64}'


@pytest.fixture
def server() -> Iterator[Hub]:
    with serve() as running:
        running.repos[REPO] = {"config.json": SMALL, "sub/weights.bin": WEIGHTS}
        yield running


@pytest.fixture(autouse=True)
def waits(server: Hub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited between attempts, had there been any."""
    return use(server, monkeypatch)


def fetch_all(folder: Path, room: int = 0) -> list[hub.FetchedFile]:
    repository = look_up(REPO)
    return fetch(repository, repository.files, folder, room=room)


def test_files_arrive_verified(server: Hub, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    repository = look_up(REPO)
    fetched = fetch(repository, repository.files, tmp_path, progress=lambda *step: steps.append(step))
    assert repository.commit == server.commit
    assert [file.name for file in fetched] == ["config.json", "sub/weights.bin"]
    for file, content in zip(fetched, [SMALL, WEIGHTS], strict=True):
        assert file.path.read_bytes() == content
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert len(done) > 4
    assert steps[-1] == (len(SMALL) + len(WEIGHTS),) * 2
    assert not list(tmp_path.rglob("*.part"))


def test_files_come_from_the_commit_that_was_listed(server: Hub, tmp_path: Path) -> None:
    fetch_all(tmp_path)
    assert server.requests[0].path == f"/api/models/{REPO}/revision/main"
    assert server.fetched("config.json")[0].path == f"/{REPO}/resolve/{server.commit}/config.json"


def test_what_is_here_is_not_fetched_again(server: Hub, tmp_path: Path) -> None:
    fetch_all(tmp_path)
    server.requests.clear()
    (tmp_path / "config.json").write_bytes(b"{}")  # but what was changed is
    fetch_all(tmp_path)
    assert server.fetched("weights.bin") == []
    assert (tmp_path / "config.json").read_bytes() == SMALL


def test_no_file_is_held_in_memory(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos[REPO]["large.txt"] = b"of git, with no sha256 of the hub's" * 100_000

    def refuse(path: Path) -> bytes:
        raise AssertionError(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    fetched = fetch_all(tmp_path)
    assert fetched[-1].sha256 == hashlib.sha256(server.repos[REPO]["large.txt"]).hexdigest()


def test_what_another_commit_left_is_deleted(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    repository = look_up(REPO)
    part = part_of(tmp_path / "sub/weights.bin", repository.file("sub/weights.bin"))
    kept = [tmp_path / "config.json", part]
    gone = ["sub/weights.bin.0123456789ab.part", "sub/model.safetensors", "tokenizer.json"]
    for path in [*kept, *(tmp_path / name for name in gone)]:
        path.touch()
    hub.keep_only(tmp_path, repository.files)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    hub.keep_only(tmp_path / "none", repository.files)


def test_a_cut_connection_is_taken_up_where_it_ended(server: Hub, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 300_000, 3
    fetch_all(tmp_path)
    assert (tmp_path / "sub/weights.bin").read_bytes() == WEIGHTS
    ranges = [request.range for request in server.fetched("weights.bin") if request.path.startswith("/cdn")]
    assert ranges == ["", "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_server_without_ranges_begins_anew(server: Hub, tmp_path: Path) -> None:
    server.cut_after, server.cuts, server.ranges = 300_000, 2, False
    fetch_all(tmp_path)
    assert (tmp_path / "sub/weights.bin").read_bytes() == WEIGHTS


def test_a_line_that_is_always_cut_is_given_up_and_taken_up_in_the_next_run(
    server: Hub, tmp_path: Path, waits: list[float]
) -> None:
    server.cut_after, server.cuts, server.ranges = 300_000, 1000, False
    with pytest.raises(LlamatuiError, match="cannot be reached") as caught:
        fetch_all(tmp_path)
    assert "where it stopped" in caught.value.hint
    assert waits == [2, 4, 8, 10]
    server.ranges, server.cuts = True, 0
    server.requests.clear()
    fetch_all(tmp_path)
    assert server.fetched("weights.bin")[0].range == "bytes=300000-"
    assert (tmp_path / "sub/weights.bin").read_bytes() == WEIGHTS


def test_ctrl_c_keeps_what_is_there(server: Hub, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done > 200_000:
            raise Stop

    repository = look_up(REPO)
    with pytest.raises(Stop):
        fetch(repository, repository.files, tmp_path, progress=stop)
    part = part_of(tmp_path / "sub/weights.bin", repository.file("sub/weights.bin"))
    kept = part.stat().st_size
    assert 0 < kept < len(WEIGHTS)
    server.requests.clear()
    fetch_all(tmp_path)
    assert server.fetched("weights.bin")[0].range == f"bytes={kept}-"
    assert (tmp_path / "sub/weights.bin").read_bytes() == WEIGHTS


@pytest.mark.parametrize("file", ["sub/weights.bin", "config.json"])
def test_a_wrong_hash_is_told_and_nothing_is_kept(file: str, server: Hub, tmp_path: Path) -> None:
    content = server.repos[REPO][file]
    server.sends[file] = content[:-1] + b"?"
    kind = "sha256" if file.endswith("bin") else "sha1"
    with pytest.raises(ModelError, match=f"{file}: expected {kind} [0-9a-f]+, found [0-9a-f]+") as caught:
        fetch_all(tmp_path)
    assert caught.value.hint == "try again"
    assert not list((tmp_path / file).parent.glob(f"{Path(file).name}*"))
    server.sends.clear()
    fetch_all(tmp_path)
    assert (tmp_path / file).read_bytes() == content


def test_a_file_that_is_longer_than_it_says_does_not_fill_the_disk(server: Hub, tmp_path: Path) -> None:
    server.sends["sub/weights.bin"] = WEIGHTS * 3
    with pytest.raises(ModelError, match="expected 1,024,000 bytes, found more"):
        fetch_all(tmp_path)
    assert not list(tmp_path.rglob("weights*"))


def test_a_file_that_is_shorter_than_it_says(server: Hub, tmp_path: Path) -> None:
    server.sends["sub/weights.bin"] = WEIGHTS[:1000]
    with pytest.raises(LlamatuiError, match="the hub has less of a file than it says"):
        fetch_all(tmp_path)


def test_a_new_version_is_not_put_behind_half_an_old_one(server: Hub, tmp_path: Path) -> None:
    server.cut_after, server.cuts, server.ranges = 300_000, 1000, False
    with pytest.raises(LlamatuiError):
        fetch_all(tmp_path)
    new = WEIGHTS[::-1]
    server.repos[REPO]["sub/weights.bin"] = new
    server.cuts, server.ranges = 0, True
    fetch_all(tmp_path)
    assert (tmp_path / "sub/weights.bin").read_bytes() == new


@pytest.mark.parametrize("start", ["/api", f"/{REPO}/resolve"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository(start: str, status: int, server: Hub, tmp_path: Path) -> None:
    server.refuses[start] = (status, "GatedRepo")
    with pytest.raises(LlamatuiError, match=f"{REPO} is gated") as caught:
        fetch_all(tmp_path)
    assert caught.value.exit_code == 1
    assert f"accept the licence at {server.address}/{REPO}, then log in: hf auth login" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "no such repository on .*, or it is private"),
        (404, "RepoNotFound", "no such repository on .*, or it is private"),
        (404, "RevisionNotFound", "not there any more"),
        (404, "EntryNotFound", "not there any more"),
        (403, "", r"does not reach this repository \(403\)"),
        (418, "", "HTTP 418"),
        (500, "", "HTTP 500"),
    ],
)
@pytest.mark.parametrize("start", ["/api", f"/{REPO}/resolve"])
def test_refusals(status: int, code: str, message: str, start: str, server: Hub, tmp_path: Path) -> None:
    server.refuses[start] = (status, code)
    with pytest.raises(LlamatuiError, match=message) as caught:
        fetch_all(tmp_path)
    assert caught.value.hint


def test_a_repository_that_is_not_there(server: Hub) -> None:
    with pytest.raises(ModelError, match="nobody/nothing: no such repository") as caught:
        look_up("nobody/nothing")
    assert "hf auth login" in caught.value.hint


def test_a_busy_hub_is_asked_again(server: Hub, tmp_path: Path, waits: list[float]) -> None:
    server.busy = 2
    repository = look_up(REPO)
    server.busy = 2
    fetch(repository, repository.files, tmp_path)
    assert waits == [2, 4, 2, 4]


def test_no_connection(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LlamatuiError, match=r"127\.0\.0\.1:9 cannot be reached") as caught:
        look_up(REPO)
    assert "connection" in caught.value.hint


def test_offline_mode(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LlamatuiError, match="HF_HUB_OFFLINE is set"):
        look_up(REPO)


@pytest.mark.parametrize(
    "address", ["huggingface.co", "ftp://hub", "http://", "http://hub:port", "http://[::1"]
)
def test_an_endpoint_that_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(UsageError, match="HF_ENDPOINT: expected an address"):
        look_up(REPO)


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>",
        b"[]",
        b"null",
        b'{"id": "a"',
        b'{"id": "a", "siblings": 3}',
        b"[" * 100_000,
        b'{"id": "a", "siblings": [{}]}',
        b'{"id": "a", "siblings": [{"rfilename": "a", "lfs": 1}]}',
    ],
)
def test_an_answer_that_is_not_a_hubs(listing: bytes, server: Hub) -> None:
    server.listing = listing
    with pytest.raises(LlamatuiError, match="does not answer as a hub does"):
        look_up(REPO)


@pytest.mark.parametrize(
    "name", ["../x.bin", "/x.bin", "a/../../x.bin", "a//b", "C:/x", "a\\..\\x", "a\nb", "", ".", "\x1b[31m"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, server: Hub, tmp_path: Path) -> None:
    server.repos[REPO] = {name: b"x"}
    with pytest.raises(ModelError, match="inside the repository"):
        fetch_all(tmp_path / "folder")
    assert not list(tmp_path.rglob("x*"))


def test_a_file_of_unknown_size_is_refused(server: Hub, tmp_path: Path) -> None:
    server.listing = b'{"id": "x", "sha": "c", "siblings": [{"rfilename": "config.json"}]}'
    with pytest.raises(LlamatuiError, match="does not say the size and hash"):
        fetch_all(tmp_path)


@pytest.mark.parametrize("sha256", ["../../../x", "", "z" * 64, "0" * 63])
def test_a_hash_that_is_none_is_refused(sha256: str, server: Hub, tmp_path: Path) -> None:
    server.listing = server.describe(REPO).replace(
        hashlib.sha256(WEIGHTS).hexdigest().encode(), sha256.encode()
    )
    with pytest.raises(LlamatuiError, match="does not say the size and hash"):
        fetch_all(tmp_path)


def test_room_is_checked_before_the_first_byte(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(3_000_000))
    with pytest.raises(LlamatuiError, match=r"0\.00 MB are free|MB are needed") as caught:
        fetch_all(tmp_path, room=2_000_000)
    assert "make room" in caught.value.hint
    assert server.fetched("config.json") == []
    fetch_all(tmp_path, room=1_900_000)
    fetch_all(tmp_path, room=2_900_000)  # what is here already needs no room


def test_a_disk_that_fills_up(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = look_up(REPO)
    receive_once = hub._receive_once

    class Full:
        def __init__(self, output: BinaryIO) -> None:
            self.output = output

        def __getattr__(self, name: str) -> Any:
            return getattr(self.output, name)

        def write(self, data: bytes) -> int:
            if self.output.tell() > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.output.write(data)

    def receive_onto_a_full_disk(url: str, headers: dict[str, str], output: Any, *rest: Any) -> None:
        receive_once(url, headers, cast(BinaryIO, Full(output)), *rest)

    monkeypatch.setattr(hub, "_receive_once", receive_onto_a_full_disk)
    with pytest.raises(LlamatuiError, match="the disk is full") as caught:
        fetch(repository, repository.files, tmp_path)
    assert "where it stopped" in caught.value.hint
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    server.requests.clear()
    fetch(repository, repository.files, tmp_path)
    assert server.fetched("weights.bin")[0].range.startswith("bytes=1")
    assert (tmp_path / "sub/weights.bin").read_bytes() == WEIGHTS


def test_a_token_goes_to_the_hub_alone(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve() as elsewhere:
        elsewhere.repos = server.repos
        server.address = elsewhere.address  # redirects lead there
        fetch_all(tmp_path)
        assert {request.authorization for request in server.requests} == {"Bearer hf_secret"}
        assert {request.authorization for request in elsewhere.requests} == {""}


def test_nobody_is_told_what_is_installed(server: Hub, tmp_path: Path) -> None:
    fetch_all(tmp_path)
    for request in server.requests:
        assert request.agent.startswith("llamatui/")
        assert "torch" not in request.agent


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        look_up(REPO)
    assert "llamatui[export]" in caught.value.hint


def test_a_missing_file_names_those_there_are() -> None:
    repository = Repository(REPO, "c", (hub.HubFile("a.gguf", 1, "0", ""), hub.HubFile("b.txt", 1, "", "0")))
    with pytest.raises(ModelError, match=r"expected a file 'x\.gguf'") as caught:
        repository.file("x.gguf")
    assert "a.gguf" in caught.value.hint
    assert "b.txt" not in caught.value.hint
