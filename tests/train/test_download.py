"""TinyStories from a hub on loopback."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamatui.errors import LlamatuiError, MissingExtraError, ModelError
from llamatui.export import hub
from llamatui.train.download import REPO, TRAIN, VALID, download
from tests.app.hub_server import Hub, serve, use

pytest.importorskip("huggingface_hub")

TEXTS = {VALID: b"one <|endoftext|>" * 1000, TRAIN: b"two <|endoftext|>" * 20_000, "README.md": b"# stories"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as running:
        running.repos[REPO] = dict(TEXTS)
        use(running, monkeypatch)
        yield running


def test_the_texts_arrive_from_a_dataset(server: Hub, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    paths = download(tmp_path / "data", progress=lambda *step: steps.append(step))
    assert [path.name for path in paths] == [VALID, TRAIN]
    assert {path.name: path.read_bytes() for path in paths} == {name: TEXTS[name] for name in (VALID, TRAIN)}
    assert steps[-1] == (len(TEXTS[VALID]) + len(TEXTS[TRAIN]),) * 2
    assert f"/api/{REPO}/revision/main" in [request.path for request in server.requests]
    assert server.fetched(TRAIN)[0].path == f"/{REPO}/resolve/{server.commit}/{TRAIN}"
    server.requests.clear()
    download(tmp_path / "data")
    assert server.fetched(TRAIN) == []


def test_only_the_small_one(server: Hub, tmp_path: Path) -> None:
    assert download(tmp_path, valid_only=True) == [tmp_path / VALID]
    assert [path.name for path in tmp_path.iterdir()] == [VALID]


def test_it_goes_on_where_it_stopped(server: Hub, tmp_path: Path) -> None:
    part = tmp_path / f"{TRAIN}.{hashlib.sha256(TEXTS[TRAIN]).hexdigest()[:12]}.part"
    part.write_bytes(TEXTS[TRAIN][:1000])
    download(tmp_path)
    assert server.fetched(TRAIN)[0].range == "bytes=1000-"
    assert (tmp_path / TRAIN).read_bytes() == TEXTS[TRAIN]


def test_what_is_not_as_the_hub_says_is_refused(server: Hub, tmp_path: Path) -> None:
    server.sends[TRAIN] = TEXTS[TRAIN][:-1] + b"x"
    with pytest.raises(ModelError, match="expected sha256"):
        download(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [VALID]


def test_a_dataset_that_is_gone(server: Hub, tmp_path: Path) -> None:
    del server.repos[REPO][VALID]
    with pytest.raises(ModelError, match=r"datasets/roneneldan/TinyStories: expected a file"):
        download(tmp_path)
    del server.repos[REPO]
    with pytest.raises(LlamatuiError, match="no such repository"):
        download(tmp_path)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        download(tmp_path)
    assert caught.value.hint == 'pip install "llamatui[train]"'
