"""`llamatui export` as a shell sees it, and GGUF files in place of a .bin."""

import json
import os
import signal
import subprocess
import time
from dataclasses import astuple
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from llamatui.app.gguf_cache import cache_folder, converted
from llamatui.app.model import load_model
from llamatui.app.store import models_folder
from llamatui.backends.checkpoint import LEGACY_HEADER, Checkpoint, ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.app.test_cli import COMMAND, run, run_json
from tests.export.hf_models import write_folder
from tests.export.tiny_gguf import bpe_metadata, write_gguf
from tests.tiny import CHATML_TINY, random_weights, write_chat_tokenizer


def test_a_gguf_file_becomes_a_bin_that_generates(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata())
    result = run("export", tmp_path / "m.bin", "--gguf", tmp_path / "m.gguf")
    assert result.returncode == 0, result.stderr
    assert result.stdout == b""
    assert b"tokenizer: m.tokenizer.json" in result.stderr
    assert Checkpoint(tmp_path / "m.bin").version == 1
    assert run("generate", tmp_path / "m.bin", "-i", "the", "-n", 8, "-s", 1).returncode == 0


def test_the_report_of_a_q8_0_export(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    result = run("export", tmp_path / "m.bin", "--hf", folder, "--version", 2)
    assert result.returncode == 0, result.stderr
    assert b"m.bin: Q8_0 in groups of 16, " in result.stderr
    assert b"kB of" not in result.stderr  # progress, of what takes no time
    assert b" K parameters, " in result.stderr
    assert b"error of a group: at most 0.0" in result.stderr


def test_a_tokenizer_can_be_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", CHATML_TINY, 1, random_weights(CHATML_TINY))
    (tmp_path / "elsewhere").mkdir()
    write_chat_tokenizer(tmp_path / "elsewhere" / "mine.json")
    result = run(
        "export",
        tmp_path / "out.bin",
        "--bin",
        tmp_path / "m.bin",
        "-z",
        tmp_path / "elsewhere" / "mine.json",
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.tokenizer.json").is_file()
    assert load_model(tmp_path / "out.bin").default_system == "You are tiny"


def test_there_and_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", CHATML_TINY, 1, random_weights(CHATML_TINY))
    write_chat_tokenizer(tmp_path / "m.tokenizer.json")
    assert run("export", "--to-hf", tmp_path / "hf", "--bin", tmp_path / "m.bin").returncode == 0
    assert run("export", tmp_path / "again.bin", "--hf", tmp_path / "hf").returncode == 0
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()
    assert load_model(tmp_path / "again.bin").default_system == "You are tiny"


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["m.bin"], b"expected exactly one source, found none"),
        (["m.bin", "--gguf", "a", "--bin", "b"], b"expected exactly one source, found --gguf and --bin"),
        (["--bin", "b"], b"expected one place to write to, found none"),
        (
            ["m.bin", "--to-hf", "d", "--bin", "b"],
            b"expected one place to write to, found OUT.bin and --to-hf",
        ),
        (["--to-hf", "d", "--bin", "b", "--version", "1"], b"--version and --group-size are of .bin files"),
    ],
)
def test_wrong_usage(args: list[str], problem: bytes) -> None:
    result = run("export", *args)
    assert result.returncode == 2
    assert problem in result.stderr


@pytest.mark.parametrize("flag", ["--hf", "--meta-llama", "--checkpoint", "--gguf", "--bin"])
def test_a_source_that_is_not_there(flag: str, tmp_path: Path) -> None:
    result = run("export", tmp_path / "m.bin", flag, tmp_path / "none")
    assert result.returncode in (1, 3)  # 1 where the package that reads it is not installed
    assert b"Traceback" not in result.stderr
    assert b"try:" in result.stderr
    assert not (tmp_path / "m.bin").exists()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_in_the_middle_leaves_nothing(name: str, code: int, tmp_path: Path) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"no {name} here")
    with (tmp_path / "big.bin").open("wb") as file:  # 1.6 GB of zeros, in a file with holes
        config = ModelConfig(1024, 4096, 24, 16, 16, 300, 64)
        file.write(LEGACY_HEADER.pack(*astuple(config)[:7]))
        file.truncate(tensor_layout(config, 0)[-1].end)
    out = tmp_path / "out"
    out.mkdir()
    command = [*COMMAND, "export", str(out / "m.bin"), "--bin", str(tmp_path / "big.bin"), "--version", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while not list(out.iterdir()) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(getattr(signal, name))
        _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert b"Traceback" not in told
    assert not list(out.iterdir())


def test_a_pulled_model_is_exported_by_its_name(tmp_path: Path) -> None:
    models_folder().mkdir(parents=True)
    write_checkpoint(models_folder() / "Mine.bin", CHATML_TINY, 1, random_weights(CHATML_TINY))
    write_chat_tokenizer(models_folder() / "Mine.tokenizer.json")
    result = run("export", tmp_path / "m.bin", "--bin", "mine", "--version", 2)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "m.tokenizer.json").exists()


def test_a_tokenizer_that_may_be_another_model_s_is_told(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"tokenizer.ggml.model": None})
    (tmp_path / "m.tokenizer.bin").write_bytes(b"mine")
    result = run("export", tmp_path / "m.bin", "--gguf", tmp_path / "m.gguf")
    assert result.returncode == 0, result.stderr
    assert b"m.tokenizer.bin was there before, and stays" in result.stderr
    assert (tmp_path / "m.tokenizer.bin").read_bytes() == b"mine"


def test_gguf_files_run_as_they_are_and_are_converted_once(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata())
    first = run("generate", tmp_path / "m.gguf", "-i", "the", "-n", 8, "-s", 1, "-q")
    assert first.returncode == 0, first.stderr
    assert b"converting" in first.stderr
    second = run("generate", tmp_path / "m.gguf", "-i", "the", "-n", 8, "-s", 1, "-q")
    assert b"converting" not in second.stderr
    assert first.stdout == second.stdout
    (tmp_path / "m.gguf").rename(tmp_path / "by its contents, not its name.bin")
    third = run("generate", tmp_path / "by its contents, not its name.bin", "-i", "the", "-n", 8, "-s", 1)
    assert third.stdout == first.stdout
    assert len(list(cache_folder().iterdir())) == 1


def test_a_damaged_conversion_is_made_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata())
    first = run("generate", path, "-i", "the", "-n", 8, "-s", 1)
    (converted,) = cache_folder().glob("*/m.bin")
    converted.write_bytes(converted.read_bytes()[:-8])
    again = run("generate", path, "-i", "the", "-n", 8, "-s", 1)
    assert (again.returncode, again.stdout) == (0, first.stdout)


def test_a_damaged_gguf_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata())
    path.write_bytes(path.read_bytes()[:-1000])
    result = run("generate", path)
    assert result.returncode == 3
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.bin")
    result = run("inspect", tmp_path / "m.bin")
    assert result.returncode == 3
    assert b"found a device or pipe" in result.stderr


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata())
    assert run("generate", path, "-n", 2, "-i", "a").returncode == 0
    (folder,) = cache_folder().iterdir()
    (folder / "m.bin").unlink()
    (folder / ".m.bin.1.part").write_bytes(b"old")
    os.utime(folder / ".m.bin.1.part", (0, 0))
    (folder / ".m.bin.2.part").write_bytes(b"of another process")
    assert run("generate", path, "-n", 2, "-i", "a").returncode == 0
    assert {path.name for path in folder.glob(".*")} == {".m.bin.2.part"}


def test_a_part_that_another_process_renames_meanwhile_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata())
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*glob(self, pattern), self / ".gone.part"])
    assert converted(path, lambda step: None).is_file()


def test_a_missing_tokenizer_tells_a_script_the_exact_command(tmp_path: Path) -> None:
    from dataclasses import replace

    config = replace(CHATML_TINY, vocab_size=32000, chat_format="", bos_id=-1, eos_ids=())
    write_checkpoint(tmp_path / "m.bin", config, 0, random_weights(config))
    content = run_json("generate", tmp_path / "m.bin", code=3)
    assert content["error"]["code"] == "tokenizer_missing"
    result = run("generate", tmp_path / "m.bin")
    assert result.returncode == 3
    assert b"try: llamatui pull llama2-tokenizer\n" in result.stderr


def test_the_tokenizer_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    write_checkpoint(tmp_path / "models" / "m.bin", CHATML_TINY, 1, random_weights(CHATML_TINY))
    write_chat_tokenizer(tmp_path / "tokenizer.json")
    monkeypatch.chdir(tmp_path)
    assert run("generate", tmp_path / "models" / "m.bin", "-i", "a", "-n", 3).returncode == 0


def test_an_unknown_chat_template_is_never_guessed(tmp_path: Path) -> None:
    template = "{% for m in messages %}<start_of_turn>{{ m['content'] }}<end_of_turn>{% endfor %}"
    metadata = bpe_metadata() | {"tokenizer.chat_template": template}
    write_gguf(tmp_path / "m.gguf", metadata=metadata)
    exported = run("export", tmp_path / "m.bin", "--gguf", tmp_path / "m.gguf")
    assert b"--chat-format" in exported.stderr
    result = run("chat", tmp_path / "m.bin", stdin=b"hello\n")
    assert result.returncode == 3
    assert b"--chat-format" in result.stderr
    assert run("chat", tmp_path / "m.bin", "--chat-format", "chatml", stdin=b"").returncode == 0


def test_inspect_shows_what_a_gguf_says_and_converts_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata=bpe_metadata(), kind=GGMLQuantizationType.Q8_0)
    content = json.loads(run("inspect", path, "--json").stdout)
    assert (content["path"], content["format"], content["precision"]) == (str(path), "gguf", "q8_0")
    assert content["file_size"] == path.stat().st_size
    assert {"name": "blk.1.ffn_up.weight", "shape": [96, 64], "type": "q8_0", "bytes": 6528} in content[
        "tensors"
    ]
    assert content["config"]["vocab_size"] == 300
    shown = run("inspect", path)
    assert shown.returncode == 0
    assert b"once it is converted" in shown.stdout
    assert not cache_folder().exists()
