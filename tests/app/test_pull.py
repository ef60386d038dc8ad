"""`pull`, against a hub on loopback."""

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.app import catalogue, store
from llamatui.app import pull as pull_module
from llamatui.app.model import load_model
from llamatui.app.pull import Target, parse, pull
from llamatui.backends.checkpoint import Checkpoint
from llamatui.errors import CheckpointError, LlamatuiError, ModelError, UsageError
from tests.app.hub_server import HF_REPO, STORIES, Hub
from tests.export.hf_models import random_tensors, write_folder, write_shards
from tests.export.tiny_gguf import bpe_metadata, write_gguf
from tests.tiny import TINY, write_tokenizer_bin

pytest.importorskip("huggingface_hub")


TOKENIZER = catalogue.Tokenizer(
    name="t", repo="a/b", file="tok.bin", vocab_size=300, size=1, licence="", about=""
)


class Stop(BaseException):
    """Ctrl+C."""


def stop_in(step: str) -> dict[str, object]:
    """Arguments of `pull` that stop it at the first bytes of a step."""
    steps: list[str] = []

    def progress(done: int, total: int) -> None:
        if step in steps:
            raise Stop

    return {"step": steps.append, "progress": progress}


def is_clean() -> bool:
    """Whether nothing of a download is left."""
    return not [path for path in store.downloads_folder().rglob("*") if not path.name.endswith(".lock")]


def test_a_story_model_runs_by_its_name(server: Hub, contents: dict[str, dict[str, bytes]]) -> None:
    pulled = pull("STORIES260k")
    assert pulled.is_new
    assert pulled.path == store.models_folder() / "stories260K.bin"
    assert pulled.path.read_bytes() == contents[STORIES]["stories260K/stories260K.bin"]
    assert pulled.path.with_name("stories260K.tokenizer.bin").exists()
    assert load_model(store.resolve("stories260K")).tokenizer.vocab_size == TINY.vocab_size
    assert is_clean()


def test_the_origin_is_written_down(server: Hub) -> None:
    pull("stories260K")
    origin = store.stored("stories260K")[0].origin()
    assert (origin["repo"], origin["file"]) == (STORIES, "stories260K/stories260K.bin")
    assert origin["revision"] == server.commit
    assert [source["name"] for source in origin["sources"]] == [
        "stories260K/tok512.bin", "stories260K/stories260K.bin",
    ]  # fmt: skip
    assert all(len(source["sha256"]) == 64 and source["size"] > 0 for source in origin["sources"])


def test_what_is_here_is_left_alone_unless_forced(server: Hub) -> None:
    pull("stories260K")
    server.requests.clear()
    again = pull("stories260k")
    assert not again.is_new
    assert server.requests == []
    assert pull("stories260K", force=True).is_new


def test_one_file_of_a_repository(server: Hub) -> None:
    pulled = pull(f"{STORIES}:lonely.bin")
    assert pulled.name == "lonely"
    assert "no tokenizer of 300 tokens" in pulled.notes[0]
    assert pull(f"{STORIES}:stories260K/stories260K.bin").notes == ()


def test_a_tokenizer_of_the_users_own_will_do(server: Hub) -> None:
    store.tokenizers_folder().mkdir(parents=True)
    write_tokenizer_bin(store.tokenizers_folder() / "mine.bin", 300)
    assert pull(f"{STORIES}:lonely.bin").notes == ()


def test_a_story_model_brings_a_tokenizer_from_another_repository(
    server: Hub, contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = catalogue.Model(
        name="lone",
        repo=STORIES,
        parameters=1,
        size=1,
        licence="",
        about="",
        file="lonely.bin",
        tokenizer=TOKENIZER,
    )
    monkeypatch.setitem(catalogue._BY_NAME, "lone", model)
    server.repos["a/b"] = {"tok.bin": contents[STORIES]["stories260K/tok512.bin"]}
    pulled = pull("lone")
    assert pulled.notes == ()
    assert [path.name for path in store.stored("lone")[0].files] == [
        "lone.tokenizer.bin", "lone.json", "lone.bin",
    ]  # fmt: skip
    assert [s["name"] for s in store.stored("lone")[0].origin()["sources"]] == ["lonely.bin", "tok.bin"]


def test_a_tokenizer_goes_where_models_look_for_it(
    server: Hub, contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(TOKENIZER, name="tok-300", file="original/tok.bin")
    monkeypatch.setitem(catalogue._BY_NAME, "tok-300", entry)
    server.repos["a/b"] = {"original/tok.bin": contents[STORIES]["stories260K/tok512.bin"]}
    pulled = pull("tok-300")
    assert pulled.path == store.tokenizers_folder() / "tok-300.bin"
    assert not pull("tok-300").is_new
    assert is_clean()
    assert pull(f"{STORIES}:lonely.bin").notes == ()


def test_a_hugging_face_model_is_exported(server: Hub) -> None:
    steps: list[str] = []
    bytes_done: list[tuple[int, int]] = []
    pulled = pull(HF_REPO, step=steps.append, progress=lambda *done: bytes_done.append(done))
    assert pulled.path == store.models_folder() / "Tiny-Chat.bin"
    assert steps == ["downloading", "exporting"]
    assert bytes_done[-1] == (pulled.path.stat().st_size,) * 2
    checkpoint = Checkpoint(pulled.path)
    assert checkpoint.version == 1
    assert (checkpoint.fp32("wq") == 0.5).all()
    assert server.fetched("README.md") == []
    assert is_clean()


def test_the_version_can_be_chosen(server: Hub) -> None:
    pulled = pull(HF_REPO, version=2, group_size=16)
    assert Checkpoint(pulled.path).config.group_size == 16
    assert Checkpoint(pull(f"{STORIES}:lonely.bin", version=2).path).version == 2


def test_the_best_weights_are_chosen() -> None:
    from llamatui.export.hub import HubFile, Repository

    def chosen(*names: str) -> list[str]:
        others = ("config.json", "README.md", "x/config.json")
        files = tuple(HubFile(name, 1, "0", "") for name in (*names, *others))
        return [file.name for file in pull_module.choose(Repository("a/b", "c", files), "")]

    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "model.safetensors.index.json"
    assert chosen("model.safetensors", "pytorch_model.bin", "onnx/model.safetensors") == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
    assert chosen(*shards, index, "pytorch_model.bin") == ["config.json", index, *shards]
    assert chosen(*shards, index, "model.safetensors") == ["config.json", "model.safetensors"]
    assert chosen("pytorch_model.bin", "tokenizer.model", "original/tokenizer.model") == [
        "config.json", "tokenizer.model", "pytorch_model.bin",
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"expected config\.json and model\.safetensors") as caught:
        chosen("tiny.Q4_0.gguf")
    assert caught.value.hint == "name one file: a/b:tiny.Q4_0.gguf"


def test_another_architecture_is_told_before_its_weights_come(server: Hub) -> None:
    server.repos[HF_REPO]["config.json"] = b'{"model_type": "gpt2"}'
    with pytest.raises(CheckpointError):
        pull(HF_REPO)
    assert server.fetched("model.safetensors") == []


def test_a_download_that_was_stopped_goes_on(server: Hub) -> None:
    def stop(done: int, total: int) -> None:
        if done > 60_000:
            raise Stop

    with pytest.raises(Stop):
        pull("stories260K", progress=stop)
    assert store.list_models() == []
    server.requests.clear()
    pull("stories260K")
    assert server.fetched("stories260K.bin")[0].range.startswith("bytes=")
    assert is_clean()


def test_an_export_that_was_stopped_goes_on_without_a_download(server: Hub) -> None:
    with pytest.raises(Stop):
        pull(HF_REPO, **stop_in("exporting"))  # type: ignore[arg-type]
    assert store.list_models() == []
    server.requests.clear()
    pull(HF_REPO)
    assert server.fetched("model.safetensors") == []


def test_what_an_earlier_commit_left_is_not_exported(server: Hub, tmp_path: Path) -> None:
    """Whole files of it, and files that were begun."""
    with pytest.raises(Stop):
        pull(HF_REPO, **stop_in("exporting"))  # type: ignore[arg-type]
    (downloads,) = [path for path in store.downloads_folder().iterdir() if path.is_dir()]
    (downloads / "tokenizer.json.0123456789ab.part").touch()
    write_folder(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()
    tensors = random_tensors()
    write_shards(tmp_path / "hf", tensors)
    server.commit = "f00d" + "0" * 36
    server.repos[HF_REPO] = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    with pytest.raises(Stop):
        pull(HF_REPO, **stop_in("exporting"))  # type: ignore[arg-type]
    assert {path.name for path in downloads.iterdir()} == set(server.repos[HF_REPO])
    pulled = pull(HF_REPO)
    w1 = Checkpoint(pulled.path).fp32("w1")
    assert np.array_equal(w1[0], tensors["model.layers.0.mlp.gate_proj.weight"])
    assert store.stored("Tiny-Chat")[0].origin()["revision"] == server.commit


def test_a_wrong_hash_leaves_no_model(server: Hub) -> None:
    server.hashes["stories260K/stories260K.bin"] = "0" * 64
    with pytest.raises(ModelError, match="expected sha256 0000"):
        pull("stories260K")
    assert store.list_models() == []


def test_a_file_that_is_no_model_is_refused(server: Hub) -> None:
    server.repos[STORIES]["zip.bin"] = b"PK\x03\x04" + bytes(1000)
    with pytest.raises(CheckpointError, match="zip archive"):
        pull(f"{STORIES}:zip.bin")
    assert store.list_models() == []


def test_a_gguf_comes_alone_and_a_damaged_one_is_refused(server: Hub) -> None:
    server.repos[HF_REPO]["tiny.Q8_0.gguf"] = b"GGUF" + bytes(100)
    with pytest.raises(ModelError):
        pull(f"{HF_REPO}:tiny.Q8_0.gguf")
    assert {request.path for request in server.requests} == {
        f"/api/models/{HF_REPO}/revision/main",
        f"/{HF_REPO}/resolve/{server.commit}/tiny.Q8_0.gguf",
        f"/cdn/{HF_REPO}/tiny.Q8_0.gguf",
    }
    assert store.list_models() == []


@pytest.mark.parametrize(
    ("target", "options", "times"),
    [
        (HF_REPO, {}, 2),  # as much again, since it is fp32 already
        (HF_REPO, {"version": 2}, 1 + 17 / 64),
        (f"{HF_REPO}:tiny.gguf", {}, 3),
        (f"{STORIES}:lonely.bin", {"version": 1}, 3),
        (f"{STORIES}:lonely.bin", {}, 1),
    ],
)
def test_no_room_is_told_before_the_weights_come(
    target: str,
    options: dict[str, int],
    times: float,
    server: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.repos[HF_REPO]["tiny.gguf"] = write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata()).read_bytes()
    repo, _, file = target.partition(":")
    weights = file or "model.safetensors"
    needed = times * len(server.repos[repo][weights])
    free = [0.0]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(free[0]))
    free[0] = 0.97 * needed
    with pytest.raises(LlamatuiError, match="are needed"):
        pull(target, **options)  # type: ignore[arg-type]
    assert server.fetched(weights) == []
    free[0] = 1.03 * needed + 2000
    assert pull(target, **options).is_new  # type: ignore[arg-type]


def test_a_gated_model(server: Hub) -> None:
    server.repos["meta-llama/Llama-3.2-1B"] = server.repos[HF_REPO]
    server.refuses["/meta-llama"] = (403, "GatedRepo")
    with pytest.raises(LlamatuiError, match=r"meta-llama/Llama-3\.2-1B is gated") as caught:
        pull("llama-3.2-1b")
    assert "accept the licence at" in caught.value.hint


def test_another_model_of_the_same_name_is_not_overwritten(server: Hub) -> None:
    server.repos["other/Tiny-Chat"] = server.repos[STORIES]
    pull(f"{STORIES}:lonely.bin")
    server.repos["other/x"] = {"lonely.bin": server.repos[STORIES]["lonely.bin"]}
    with pytest.raises(ModelError, match=f"another model of this name is here, from {STORIES}"):
        pull("other/x:lonely.bin")
    pull("other/x:lonely.bin", force=True)
    assert store.stored("lonely")[0].origin()["repo"] == "other/x"


def test_a_model_put_in_the_place_of_another_does_not_get_its_tokenizer(server: Hub) -> None:
    pull("stories260K")
    server.repos["other/x"] = {"stories260K.bin": server.repos[STORIES]["lonely.bin"]}
    pull("other/x:stories260K.bin", force=True)
    assert not (store.models_folder() / "stories260K.tokenizer.bin").exists()


def test_of_two_spellings_of_a_name_only_one_stays(server: Hub) -> None:
    pull("stories260K")
    server.repos["other/x"] = {"STORIES260k.bin": server.repos[STORIES]["lonely.bin"]}
    pull("other/x:STORIES260k.bin", force=True)
    (model,) = store.list_models()
    assert model.origin()["repo"] == "other/x"
    assert not (store.models_folder() / "stories260K.tokenizer.bin").exists()


@pytest.mark.parametrize("second", ["stories260K", "other/x:stories260K.bin", "other/x:Stories260k.bin"])
def test_two_pulls_of_one_name_do_not_mix(second: str, server: Hub) -> None:
    server.repos["other/x"] = {"stories260K.bin": server.repos[STORIES]["lonely.bin"]}
    server.repos["other/x"]["Stories260k.bin"] = server.repos["other/x"]["stories260K.bin"]
    refused = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(LlamatuiError, match="another pull of it is running"):
            pull(second, force=True)
        refused.append(done)

    pull("stories260K", progress=meanwhile)
    assert refused
    assert store.stored("stories260K")[0].origin()["repo"] == STORIES


def test_a_pull_that_had_to_wait_sees_what_came_meanwhile(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repos["other/x"] = {"lonely.bin": server.repos[STORIES]["lonely.bin"]}
    alone = pull_module._alone

    @contextmanager
    def after_another(name: str) -> Iterator[None]:
        monkeypatch.setattr(pull_module, "_alone", alone)
        pull("other/x:lonely.bin")
        with alone(name):
            yield

    monkeypatch.setattr(pull_module, "_alone", after_another)
    with pytest.raises(ModelError, match="another model of this name is here, from other/x"):
        pull(f"{STORIES}:lonely.bin")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("target", ["stories260K", HF_REPO])
def test_where_it_cannot_be_put_in_place_nothing_is_listed_and_the_download_is_kept(
    target: str, links: bool, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    name = parse(target).name
    in_the_way = store.models_folder() / f"{name}.json" / "x"
    in_the_way.mkdir(parents=True)
    with pytest.raises(LlamatuiError, match="cannot be written"):
        pull(target)
    assert store.list_models() == []
    in_the_way.rmdir()
    in_the_way.parent.rmdir()
    server.requests.clear()
    assert pull(target).is_new
    assert [request.path for request in server.requests if not request.path.startswith("/api")] == []
    assert is_clean()


def test_a_replacement_that_fails_half_way_lists_no_mixture(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull("stories260K")
    real = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target.parent == store.models_folder() and target.suffix == ".bin" and "tok" not in target.name:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(LlamatuiError):
        pull("stories260K", force=True)
    assert store.list_models() == []
    monkeypatch.undo()


def test_a_tokenizer_that_cannot_be_put_in_place_leaves_the_old_one(
    server: Hub, contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(TOKENIZER, name="tok-300", file="original/tok.bin")
    monkeypatch.setitem(catalogue._BY_NAME, "tok-300", entry)
    server.repos["a/b"] = {"original/tok.bin": contents[STORIES]["stories260K/tok512.bin"]}
    path = pull("tok-300").path
    whole = path.read_bytes()

    def half(source: Path, target: Path) -> None:
        target.write_bytes(whole[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(LlamatuiError, match="No space left"):
        pull("tok-300", force=True)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def no_links(source: object, target: object) -> None:
    """What a disk that knows no links answers."""
    raise OSError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("stories15m", Target("stories15M", STORIES, "stories15M.bin", catalogue.LLAMA2)),
        (f"{STORIES}:stories15M.bin", Target("stories15M", STORIES, "stories15M.bin", catalogue.LLAMA2)),
        ("a/b.c-d", Target("b.c-d", "a/b.c-d", "")),
        ("a/b:sub/x y.Q8_0.gguf", Target("x-y.Q8_0", "a/b", "sub/x y.Q8_0.gguf")),
        ("a/b:foo.BIN.bin", Target("foo", "a/b", "foo.BIN.bin")),
        ("a/b:foo.tokenizer.bin", Target("foo", "a/b", "foo.tokenizer.bin")),
        ("a/foo.bin", Target("foo", "a/foo.bin", "")),
        ("llama3-tokenizer", catalogue.LLAMA3),
    ],
)
def test_targets(target: str, expected: Target | catalogue.Tokenizer) -> None:
    assert parse(target) == expected


@pytest.mark.parametrize(
    "target",
    ["", "stories", "a/b/c", "/a", "a/", "a/b:", "a/b:model.safetensors", "a/b:pytorch_model.bin", "a/b:c.pt",
     "https://huggingface.co/a/b", "a b/c", "é/b", "../..", "a/..", "a/b:...bin"],
)  # fmt: skip
def test_what_cannot_be_pulled(target: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(target)
    assert caught.value.hint
