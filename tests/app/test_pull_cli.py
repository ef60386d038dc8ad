"""`llamatui pull`, `models` and `export --hf` as a shell sees them, against a hub on loopback."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from llamatui.app import catalogue, store
from llamatui.app.cli.models import Shelf
from llamatui.app.cli.progress import progress_bar
from llamatui.app.cli.pull import show_catalogue
from llamatui.app.gguf_cache import cache_folder
from llamatui.app.pull import fetched_repository, pull
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import LlamatuiError, MissingExtraError, ModelError, UsageError
from tests.app.hub_server import HF_REPO, STORIES, Hub
from tests.tiny import CHATML_TEMPLATE, TINY, random_weights, write_tokenizer_bin

pytest.importorskip("huggingface_hub")


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
    assert lines[-2] == f"pulled to {store.models_folder() / 'stories260K.bin'}"
    assert lines[-1] == "  try: llamatui story stories260K"
    assert len(lines) < 8
    assert "\x1b" not in pulled.stderr
    content = json.loads(run("models", "--json").stdout)
    assert content["folder"] == str(store.models_folder())
    (model,) = content["models"]
    assert (model["name"], model["format"], model["revision"]) == ("stories260K", "v0", server.commit)
    refused = run("models", "rm", "stories260K")
    assert refused.returncode == 2
    assert "models rm -y stories260K" in refused.stderr
    assert run("models", "rm", "-y", "stories260k").returncode == 0
    assert list(store.models_folder().iterdir()) == []


def test_what_is_here_is_said_and_force_pulls_it_again(server: Hub) -> None:
    assert run("pull", "stories260K").returncode == 0
    again = run("pull", "stories260K")
    assert again.returncode == 0
    assert "stories260K is here already" in again.stderr
    assert "(--force pulls it again)" in again.stderr
    forced = run("pull", "stories260K", "--force")
    assert forced.returncode == 0
    assert "pulled to " in forced.stderr


@pytest.mark.parametrize(
    ("template", "room"),
    [(CHATML_TEMPLATE, "chat"), ("{{ messages[0]['content'] }}<end_of_turn>", "story"), ("", "story")],
)
def test_a_chat_is_suggested_where_the_format_is_known(template: str, room: str, server: Hub) -> None:
    config = {"chat_template": template} if template else {}
    server.repos[HF_REPO]["tokenizer_config.json"] = json.dumps(config).encode()
    pulled = run("pull", HF_REPO)
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stderr.splitlines()[-1] == f"  try: llamatui {room} Tiny-Chat"


def test_a_repository_is_exported_and_its_download_deleted(server: Hub, tmp_path: Path) -> None:
    kept = store.downloads_folder() / "other"
    kept.mkdir(parents=True)
    out = tmp_path / "tiny.bin"
    result = run("export", str(out), "--hf", HF_REPO)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[0].startswith(f"{HF_REPO}: ")
    assert (Checkpoint(out).fp32("wq") == 0.5).all()
    assert [path for path in store.downloads_folder().iterdir() if path.is_dir()] == [kept]
    assert store.list_models() == []


def test_a_failed_export_of_a_repository_keeps_the_download(server: Hub, tmp_path: Path) -> None:
    out = tmp_path / "none" / "tiny.bin"
    assert run("export", str(out), "--hf", HF_REPO).returncode == 1
    out.parent.mkdir()
    server.requests.clear()
    assert run("export", str(out), "--hf", HF_REPO).returncode == 0
    assert server.fetched("model.safetensors") == []


def test_a_folder_of_the_users_is_never_deleted(server: Hub, tmp_path: Path) -> None:
    """Not even one in the place where downloads are."""
    folder = store.downloads_folder()
    folder.mkdir(parents=True)
    for name, content in server.repos[HF_REPO].items():
        (folder / name).write_bytes(content)
    assert run("export", str(tmp_path / "tiny.bin"), "--hf", str(folder)).returncode == 0
    assert {path.name for path in folder.iterdir()} == set(server.repos[HF_REPO])


def test_a_repository_is_held_while_it_is_read(server: Hub) -> None:
    with fetched_repository(HF_REPO) as folder:
        assert (folder / "model.safetensors").is_file()
        with pytest.raises(LlamatuiError, match="another pull"):
            pull(HF_REPO)
    assert pull(HF_REPO).is_new


def test_one_file_is_no_repository_of_safetensors(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a repository"), fetched_repository("a/b:c.gguf"):
        pass
    result = run("export", str(tmp_path / "m.bin"), "--hf", "a/b:c.gguf")
    assert result.returncode == 2
    assert "try: llamatui pull a/b:c.gguf" in result.stderr


def test_without_the_extra_that_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(MissingExtraError) as caught:
        pull("stories260K")
    assert "llamatui[export]" in caught.value.hint


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
@pytest.mark.parametrize("answer", ["y\n", "\n", "n\n", "\x04"])  # the last: Ctrl+D
def test_a_terminal_is_asked_whether_to_fetch_the_tokenizer(answer: str, server: Hub, tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=catalogue.LLAMA2.vocab_size)
    write_checkpoint(tmp_path / "m.bin", config, 0, random_weights(config))
    write_tokenizer_bin(tmp_path / "fetched", 300)
    fillers = [b"<filler %d>" % i for i in range(300, config.vocab_size)]
    records = [struct.pack("<fi", 0.0, len(piece)) + piece for piece in fillers]
    tokenizer = (tmp_path / "fetched").read_bytes() + b"".join(records)
    server.repos[catalogue.LLAMA2.repo] = {catalogue.LLAMA2.file: tokenizer}
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llamatui", "generate", str(tmp_path / "m.bin"), "-i", "the", "-n", "4"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    screen = b""
    while piece := read_terminal(ours):
        screen += piece
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert b"no tokenizer of 32000 tokens" in screen
    assert b"Fetch llama2-tokenizer (0.5 MB from huggingface.co)? [Y/n]" in screen
    path = store.tokenizers_folder() / "llama2-tokenizer.model"
    if answer in ("n\n", "\x04"):
        assert process.returncode == 3
        assert b"try: llamatui pull llama2-tokenizer" in screen
        assert not path.exists()
        assert out == b""
    else:
        assert process.returncode == 0, screen
        assert path.read_bytes() == tokenizer
        assert out.startswith(b"the")


def read_terminal(terminal: int) -> bytes:
    """b"" at the end, which Linux tells by an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_path_is_no_name(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull("stories260K")
    monkeypatch.chdir(tmp_path)
    assert run("generate", "stories260K", "-n", "3", "-i", "a").returncode == 0
    result = run("generate", "./stories260K", "-n", "3", "-i", "a")
    assert result.returncode == 3
    assert "no such file" in result.stderr


def test_what_gguf_files_became_is_listed_and_deleted(server: Hub) -> None:
    pull("stories260K")
    for folder, name in (("1f-1", "m.Q8_0"), ("2f-1", "stories260K")):
        (cache_folder() / folder).mkdir(parents=True)
        (cache_folder() / folder / f"{name}.bin").write_bytes(bytes(2000))
        (cache_folder() / folder / f"{name}.tokenizer.json").touch()
    (row,) = [row for row in run("models").stdout.splitlines() if row.startswith("m.Q8_0")]
    assert row.split() == ["m.Q8_0", "converted", "GGUF", "2.0", "kB"]
    content = json.loads(run("models", "--json").stdout)
    assert content["converted"][0] == {
        "name": "m.Q8_0", "path": str(cache_folder() / "1f-1" / "m.Q8_0.bin"), "file_size": 2000,
    }  # fmt: skip
    assert run("models", "rm", "-y", "m.q8_0", "stories260K").returncode == 0
    assert store.list_models() == []
    assert [path.name for path in cache_folder().iterdir()] == ["2f-1"]
    assert run("models", "rm", "-y", "stories260K").returncode == 0
    assert list(cache_folder().iterdir()) == []


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
        _, err = process.communicate(timeout=60)
    finally:
        server.go_on.set()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; llamatui pull stories260K goes on from here"
    assert "Traceback" not in err
    assert store.list_models() == []
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
    assert "nothing has been pulled yet" in capsys.readouterr().err
    pull("stories260K")
    (store.models_folder() / "bad.bin").write_bytes(b"GGUF")
    store.tokenizers_folder().mkdir()
    write_tokenizer_bin(store.tokenizers_folder() / "mine.bin", 300)
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
