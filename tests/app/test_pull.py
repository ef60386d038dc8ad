"""`llamatui pull` and `models`, against a hub on loopback."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest

from llamatui.app import catalogue, library
from llamatui.app import pull as pull_module
from llamatui.app.cli.models import Shelf
from llamatui.app.cli.progress import progress_bar
from llamatui.app.cli.pull import show_catalogue
from llamatui.app.model import load_model
from llamatui.app.pull import Target, parse, pull
from llamatui.backends.checkpoint import Checkpoint, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import CheckpointError, LlamatuiError, ModelError, UsageError
from llamatui.export.source import HF_LAYER_NAMES, HF_NAMES
from tests.app.hub_server import Hub, serve, use
from tests.tiny import TINY, random_weights, write_tokenizer_bin

pytest.importorskip("huggingface_hub")

STORIES = "karpathy/tinyllamas"
HF_REPO = "someone/Tiny-Chat"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Repositories by name: a .bin with its tokenizer in a folder, one without, and a Hugging Face model."""
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "tiny.bin", TINY, 0, random_weights(TINY))
    write_tokenizer_bin(folder / "tok.bin", TINY.vocab_size)
    model, tokenizer = (folder / "tiny.bin").read_bytes(), (folder / "tok.bin").read_bytes()
    return {
        STORIES: {
            "README.md": b"# stories",
            "stories260K/stories260K.bin": model,
            "stories260K/tok512.bin": tokenizer,
            "lonely.bin": model,
        },
        HF_REPO: {"config.json": hf_config(), "model.safetensors": safetensors(), "README.md": b"# tiny"},
    }


def hf_config() -> bytes:
    c = TINY
    return json.dumps(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": c.dim,
            "intermediate_size": c.hidden_dim,
            "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads,
            "vocab_size": c.vocab_size,
            "max_position_embeddings": c.max_seq_len,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        }
    ).encode()


def safetensors() -> bytes:
    """A file of TINY's tensors, all 0.5."""
    header: dict[str, object] = {}
    end = 0
    for spec in tensor_layout(TINY, 1):
        for layer in range(max(spec.n_layers, 1)):
            name = (
                f"model.layers.{layer}.{HF_LAYER_NAMES[spec.name]}.weight"
                if spec.n_layers
                else f"{HF_NAMES[spec.name]}.weight"
            )
            start, end = end, end + 4 * int(np.prod(spec.shape))
            header[name] = {"dtype": "F32", "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.full(end // 4, 0.5, "<f4").tobytes()


@pytest.fixture
def server(contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as running:
        running.repos = {repo: dict(files) for repo, files in contents.items()}
        use(running, monkeypatch)
        yield running


def is_clean() -> bool:
    """Whether nothing of a download is left."""
    return not [path for path in library.downloads_folder().rglob("*") if not path.name.endswith(".lock")]


def test_a_story_model_runs_by_its_name(server: Hub, contents: dict[str, dict[str, bytes]]) -> None:
    pulled = pull("STORIES260k")
    assert pulled.is_new
    assert pulled.path == library.models_folder() / "stories260K.bin"
    assert pulled.path.read_bytes() == contents[STORIES]["stories260K/stories260K.bin"]
    assert pulled.path.with_name("stories260K.tokenizer.bin").exists()
    assert load_model(library.resolve("stories260K")).tokenizer.vocab_size == TINY.vocab_size
    assert is_clean()


def test_the_origin_is_written_down(server: Hub) -> None:
    pull("stories260K")
    origin = library.pulled("stories260K").origin()
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
    library.tokenizers_folder().mkdir(parents=True)
    write_tokenizer_bin(library.tokenizers_folder() / "mine.bin", 300)
    assert pull(f"{STORIES}:lonely.bin").notes == ()


def test_a_story_model_brings_a_tokenizer_from_another_repository(
    server: Hub, contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = catalogue.Tokenizer("t", "a/b", "tok.bin", 300, 1, gated=False, licence="", about="")
    model = catalogue.Model("lone", STORIES, 1, 1, "", "", file="lonely.bin", tokenizer=elsewhere)
    monkeypatch.setitem(catalogue._BY_NAME, "lone", model)
    server.repos["a/b"] = {"tok.bin": contents[STORIES]["stories260K/tok512.bin"]}
    pulled = pull("lone")
    assert pulled.notes == ()
    assert [path.name for path in library.pulled("lone").files] == [
        "lone.tokenizer.bin", "lone.json", "lone.bin",
    ]  # fmt: skip
    assert [s["name"] for s in library.pulled("lone").origin()["sources"]] == ["lonely.bin", "tok.bin"]


def test_a_tokenizer_goes_where_models_look_for_it(
    server: Hub, contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalogue.Tokenizer("t", "a/b", "original/tok.bin", 300, 1, gated=False, licence="", about="")
    monkeypatch.setitem(catalogue._BY_NAME, "tok-300", replace(entry, name="tok-300"))
    server.repos["a/b"] = {"original/tok.bin": contents[STORIES]["stories260K/tok512.bin"]}
    pulled = pull("tok-300")
    assert pulled.path == library.tokenizers_folder() / "tok-300.bin"
    assert not pull("tok-300").is_new
    assert is_clean()
    assert pull(f"{STORIES}:lonely.bin").notes == ()


def test_a_hugging_face_model_is_exported(server: Hub) -> None:
    steps: list[str] = []
    bytes_done: list[tuple[int, int]] = []
    pulled = pull(HF_REPO, step=steps.append, progress=lambda *done: bytes_done.append(done))
    assert pulled.path == library.models_folder() / "Tiny-Chat.bin"
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
    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done > 60_000:
            raise Stop

    with pytest.raises(Stop):
        pull("stories260K", progress=stop)
    assert library.list_models() == []
    server.requests.clear()
    pull("stories260K")
    assert server.fetched("stories260K.bin")[0].range.startswith("bytes=")
    assert is_clean()


def test_an_export_that_was_stopped_goes_on_without_a_download(server: Hub) -> None:

    class Stop(BaseException):
        pass

    steps: list[str] = []

    def stop(done: int, total: int) -> None:
        if "exporting" in steps:
            raise Stop

    with pytest.raises(Stop):
        pull(HF_REPO, progress=stop, step=steps.append)
    assert library.list_models() == []
    server.requests.clear()
    pull(HF_REPO)
    assert server.fetched("model.safetensors") == []


def test_a_wrong_hash_leaves_no_model(server: Hub) -> None:
    server.hashes["stories260K/stories260K.bin"] = "0" * 64
    with pytest.raises(ModelError, match="expected sha256 0000"):
        pull("stories260K")
    assert library.list_models() == []


def test_a_file_that_is_no_model_is_refused(server: Hub) -> None:
    server.repos[STORIES]["zip.bin"] = b"PK\x03\x04" + bytes(1000)
    with pytest.raises(CheckpointError, match="zip archive"):
        pull(f"{STORIES}:zip.bin")
    assert library.list_models() == []


def test_a_gguf_comes_alone_and_a_damaged_one_is_refused(server: Hub) -> None:
    server.repos[HF_REPO]["tiny.Q8_0.gguf"] = b"GGUF" + bytes(100)
    with pytest.raises(ModelError):
        pull(f"{HF_REPO}:tiny.Q8_0.gguf")
    assert {request.path for request in server.requests} == {
        f"/api/models/{HF_REPO}/revision/main",
        f"/{HF_REPO}/resolve/{server.commit}/tiny.Q8_0.gguf",
        f"/cdn/{HF_REPO}/tiny.Q8_0.gguf",
    }
    assert library.list_models() == []


def test_no_room_is_told_before_the_first_byte(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    size = len(server.repos[HF_REPO]["model.safetensors"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(size + 50_000))  # room for one, not for two
    with pytest.raises(LlamatuiError, match="are needed"):
        pull(HF_REPO)
    assert server.fetched("model.safetensors") == []


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
    assert library.pulled("lonely").origin()["repo"] == "other/x"


def test_a_model_put_in_the_place_of_another_does_not_get_its_tokenizer(server: Hub) -> None:
    pull("stories260K")
    server.repos["other/x"] = {"stories260K.bin": server.repos[STORIES]["lonely.bin"]}
    pull("other/x:stories260K.bin", force=True)
    assert not (library.models_folder() / "stories260K.tokenizer.bin").exists()


def test_two_pulls_of_one_model_do_not_mix(server: Hub) -> None:
    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(LlamatuiError, match="another pull of this is running"):
            pull("stories260K")

    pull("stories260K", progress=meanwhile)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("stories15m", Target("stories15M", STORIES, "stories15M.bin", catalogue.LLAMA2)),
        (f"{STORIES}:stories15M.bin", Target("stories15M", STORIES, "stories15M.bin", catalogue.LLAMA2)),
        ("a/b.c-d", Target("b.c-d", "a/b.c-d", "")),
        ("a/b:sub/x y.Q8_0.gguf", Target("x-y.Q8_0", "a/b", "sub/x y.Q8_0.gguf")),
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


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llamatui", *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
        timeout=60,
    )


def test_pull_and_models_and_rm(server: Hub) -> None:
    pulled = run("pull", "stories260K")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == ""
    lines = pulled.stderr.splitlines()
    assert lines[0].startswith("downloading stories260K: ")
    assert lines[-2] == f"pulled to {library.models_folder() / 'stories260K.bin'}"
    assert lines[-1] == "  try: llamatui story stories260K"
    assert len(lines) < 8
    assert "\x1b" not in pulled.stderr
    content = json.loads(run("models", "--json").stdout)
    assert content["folder"] == str(library.models_folder())
    (model,) = content["models"]
    assert (model["name"], model["format"], model["revision"]) == ("stories260K", "v0", server.commit)
    refused = run("models", "rm", "stories260K")
    assert refused.returncode == 2
    assert "models rm -y stories260K" in refused.stderr
    assert run("models", "rm", "-y", "stories260k").returncode == 0
    assert list(library.models_folder().iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_it_and_the_next_pull_goes_on(server: Hub) -> None:
    server.cut_after, server.go_on = 60_000, threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-m", "llamatui", "pull", "stories260K"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        line = process.stderr.readline()  # "25 %": bytes have come
        while "of" in line and line.split(":")[1].strip().startswith("0 "):
            line = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        server.go_on.set()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; llamatui pull stories260K goes on from here"
    assert "Traceback" not in err
    assert library.list_models() == []
    server.requests.clear()
    pull("stories260K")
    assert server.fetched("stories260K.bin")[0].range.startswith("bytes=")


def test_a_failed_pull_says_what_to_do(server: Hub) -> None:
    result = run("pull", "nobody/nothing")
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("  try: ")


def test_names_are_completed() -> None:
    words = {"COMP_WORDS": "llamatui pull Smol", "COMP_CWORD": "2"}
    completed = run(_LLAMATUI_COMPLETE="complete_bash", **words)
    assert completed.stdout.split() == ["SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct"]


def test_the_catalogue_says_what_is_gated_and_what_is_here(
    server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    pull("stories260K")
    show_catalogue()
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines()}
    assert rows["stories260K"].split() == ["stories260K", "260", "K", "1.1", "MB", "MIT", "here"]
    assert rows["Llama-3.2-3B-Instruct"].rstrip().endswith("Llama 3.2 Community, gated")
    assert {*catalogue.names()} < rows.keys()


def test_the_list_tells_damaged_models_and_what_did_not_end(
    server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    Shelf.look().show()
    assert "no models are here yet" in capsys.readouterr().err
    pull("stories260K")
    (library.models_folder() / "bad.bin").write_bytes(b"GGUF")
    library.tokenizers_folder().mkdir()
    write_tokenizer_bin(library.tokenizers_folder() / "mine.bin", 300)
    server.hashes["lonely.bin"] = "0" * 64
    server.repos["a/b"] = {**server.repos[STORIES], "tok.bin": b"x" * 100}
    with pytest.raises(ModelError):
        pull("a/b:lonely.bin")
    Shelf.look().show()
    out, err = capsys.readouterr()
    rows = {row.split()[0]: row.split() for row in out.splitlines()}
    assert rows["stories260K"][3:5] == ["v0", "fp32"]
    assert rows["stories260K"][-1] == f"{STORIES}:stories260K/stories260K.bin"
    assert "damaged" in rows["bad"]
    assert rows["mine"][1:3] == ["300", "tokens"]
    assert "downloads that are kept: 100 bytes" in err


def test_progress_in_a_log_is_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("x.bin") as progress:
        for done in range(0, 1001, 10):
            progress(done, 1000)
        progress.step("exporting")
        progress(0, 0)
    assert capsys.readouterr().err.splitlines() == [
        "x.bin: 0 bytes of 1.0 kB",
        "x.bin: 250 bytes of 1.0 kB",
        "x.bin: 500 bytes of 1.0 kB",
        "x.bin: 750 bytes of 1.0 kB",
        "x.bin: 1.0 kB of 1.0 kB",
        "exporting: 0 bytes of 0 bytes",
    ]


def test_progress_in_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("x[1].bin") as progress:
        progress(500_000, 1_000_000)
        progress.step("exporting")
        progress(2_000_000, 2_000_000)
    drawn = terminal.getvalue()
    assert "x[1].bin" in drawn
    assert "0.5/1.0 MB" in drawn
    assert "exporting" in drawn
    assert "2.0/2.0 MB" in drawn
