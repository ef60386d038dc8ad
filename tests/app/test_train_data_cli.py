"""`llamatui train download`, `vocab` and `pretokenize` as a shell sees them."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llamatui.tokenizers.loading import load_tokenizer
from llamatui.train.dataset import open_dataset
from llamatui.train.download import REPO, TRAIN, VALID
from tests.app.hub_server import Hub
from tests.tiny import write_tokenizer_bin

COMMAND = [sys.executable, "-m", "llamatui", "train"]
STORY = "Once upon a time, there was a little girl named Lily. She loved to play in the park. The end."
TEXT = "<|endoftext|>".join([STORY] * 40)


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60
    )


def suggested(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Arguments of the command that the last line says to try."""
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "\x1b" not in result.stderr
    words = shlex.split(result.stderr.splitlines()[-1])
    assert words[:3] == ["try:", "llamatui", "train"]
    return words[3:]


def test_from_text_to_ids_as_each_step_suggests(tmp_path: Path) -> None:
    text, model = tmp_path / "my stories.txt", tmp_path / "data" / "tokenizer.model"
    text.write_text(TEXT)
    made = run("vocab", text, "-o", model, "--size", 290)
    next_command = suggested(made)
    assert made.stderr.splitlines()[0] == "finding the 290 best pieces for 4.2 kB of text ..."
    assert load_tokenizer(model).vocab_size == 290
    written = run(*next_command)
    assert suggested(written) == ["run", str(tmp_path / "data" / "tokens"), "runs/first"]
    lines = written.stderr.splitlines()
    assert lines[-3].startswith("train: 38 documents, ")
    assert lines[-2].startswith("valid: 2 documents, ")
    assert open_dataset(tmp_path / "data" / "tokens").vocab_size == 290


def test_no_text_counts_twice(tmp_path: Path) -> None:
    """What is to validate on is no text to train on, wherever it lies."""
    (tmp_path / "text").mkdir()
    for name, documents in (("train", 3), ("valid", 2)):
        (tmp_path / "text" / f"{name}.txt").write_text("<|endoftext|>".join([STORY] * documents))
    write_tokenizer_bin(tmp_path / "tok.bin")
    text = [tmp_path / "text", tmp_path / "text" / ".." / "text" / "train.txt"]
    valid = tmp_path / "text" / "valid.txt"
    result = run("pretokenize", *text, "--valid", valid, "-z", tmp_path / "tok.bin", "-o", tmp_path / "d")
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[0] == "2 of 3 files left out: named twice, or to validate on"
    splits = open_dataset(tmp_path / "d").splits
    assert (splits["train"].n_documents, splits["valid"].n_documents) == (3, 2)


def test_an_error_is_two_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(STORY)
    for args in (
        ["vocab", tmp_path / "none.txt", "-o", tmp_path / "t.model"],
        ["vocab", tmp_path / "a.txt", "-o", tmp_path, "--size", "290"],
        ["vocab", tmp_path / "a.txt", "-o", tmp_path / "t.model"],  # 4096 pieces
        ["vocab", tmp_path / "a.txt", "-o", tmp_path / "a.txt", "--size", "290"],
        ["vocab", tmp_path / "a.txt", "-o", tmp_path / "a.txt" / "t.model", "--size", "290"],
        ["pretokenize", tmp_path, "-z", tmp_path / "a.txt", "-o", tmp_path / "d"],
    ):
        result = run(*args)
        assert result.returncode in (1, 2, 3)
        error, hint = result.stderr.splitlines()[-2:]
        assert error.startswith("error: ")
        assert hint.startswith("  try: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_size_that_makes_no_sense_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(STORY)
    result = run("vocab", tmp_path / "a.txt", "-o", tmp_path / "t.model", "--size", "-5")
    assert result.stderr.startswith("error: --size: expected 260 to ")


def test_the_text_itself_is_never_replaced(tmp_path: Path) -> None:
    text = tmp_path / "a.model"
    text.write_text(STORY)
    result = run("vocab", text, "-o", tmp_path / ".." / tmp_path.name / "a.model", "--size", "290")
    assert (result.returncode, text.read_text()) == (2, STORY)
    assert "expected a file to write, found one of the texts" in result.stderr


def test_of_one_document_the_end_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join([STORY] * 9))
    write_tokenizer_bin(tmp_path / "tok.bin")
    lines = run("pretokenize", tmp_path, "-z", tmp_path / "tok.bin", "-o", tmp_path / "d").stderr.splitlines()
    assert lines[-4] == "fewer than 20 documents: to validate on, the end of each"
    assert lines[-3].startswith("train: 1 document, ")
    assert lines[-2].startswith("valid: 1 document, ")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes(stop: signal.Signals, tmp_path: Path) -> None:
    write_tokenizer_bin(tmp_path / "tok.bin")
    (tmp_path / "a.txt").write_text(TEXT * 5000)  # seconds of work: a busy machine may see the file late
    args = ["pretokenize", "a.txt", "-z", "tok.bin", "-o", "d", "--processes", "2"]
    # A session of its own: Ctrl+C in a terminal reaches all its processes, also those that just begin.
    process = subprocess.Popen(
        [*COMMAND, *args], stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True
    )
    while not list((tmp_path / "d").rglob("train-0000.bin")):
        assert process.poll() is None
        time.sleep(0.01)
    (os.killpg if stop == signal.SIGINT else os.kill)(process.pid, stop)
    _, told = process.communicate(timeout=60)  # to the end of what all of them write
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(stop, -stop)
    assert "Traceback" not in told
    assert not (tmp_path / "d" / "dataset.json").exists()
    if stop != signal.SIGKILL:
        assert not (tmp_path / "d").exists()


def test_download_suggests_what_is_next(server: Hub, tmp_path: Path) -> None:
    server.repos[REPO] = {TRAIN: TEXT.encode(), VALID: STORY.encode()}
    result = run("download", tmp_path)
    assert result.returncode == 0, result.stderr
    vocab, pretokenize = result.stderr.splitlines()[-2:]
    assert vocab == f"  try: llamatui train vocab {tmp_path / TRAIN} -o {tmp_path / 'tokenizer.model'}"
    assert pretokenize.startswith(
        f"  then: llamatui train pretokenize {tmp_path / TRAIN} --valid {tmp_path / VALID} -z "
    )


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_download_that_is_stopped_goes_on(server: Hub, tmp_path: Path) -> None:
    server.repos[REPO] = {TRAIN: bytes(1 << 20), VALID: b"a"}
    server.cut_after, server.go_on = 600_000, threading.Event()
    process = subprocess.Popen([*COMMAND, "download", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        while " kB of" not in process.stderr.readline() and process.poll() is None:
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        server.go_on.set()
    assert process.returncode == 130
    assert told.splitlines()[-1] == "stopped; the same command goes on from here"
    assert run("download", tmp_path).returncode == 0
    assert server.fetched(TRAIN)[-1].range.startswith("bytes=")
    assert (tmp_path / TRAIN).read_bytes() == bytes(1 << 20)
