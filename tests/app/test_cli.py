"""The command as a shell sees it: stdout, stderr, exit codes, signals."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import FloatArray
from tests.tiny import TINY, random_weights, write_tokenizer_bin

COMMAND = [sys.executable, "-m", "llamatui"]


def run(*args: object, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], input=stdin, capture_output=True, env={**os.environ, **env}, timeout=60
    )


def run_json(*args: object, code: int = 0, **env: str) -> dict[str, Any]:
    result = run(*args, "--json", **env)
    assert result.returncode == code, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Big enough that a signal arrives in mid-generation; greedy, it never takes a control token."""
    folder = tmp_path_factory.mktemp("slow")
    config = ModelConfig(256, 512, 6, 4, 4, 300, 1 << 16, shared_classifier=False)
    weights = random_weights(config)

    def source(name: str, layer: int) -> FloatArray:
        w = weights(name, layer)
        if name == "wcls":
            w[:3] = 0
        return w

    write_checkpoint(folder / "slow.bin", config, 1, source)
    write_tokenizer_bin(folder / "tokenizer.bin", 300)
    return folder / "slow.bin"


def test_text_goes_to_stdout_and_numbers_to_stderr(tiny_model: Path) -> None:
    result = run("generate", tiny_model, "-i", "the cat", "-s", 7, "-n", 20)
    assert result.returncode == 0
    assert result.stdout.startswith(b"the cat")
    assert result.stdout.endswith(b"\n")
    assert b"tok/s" in result.stderr
    assert b"\x1b" not in result.stdout + result.stderr
    assert run("generate", tiny_model, "-i", "the cat", "-s", 7, "-n", 20, "-q").stderr == b""
    assert b"tokenizer" in run("generate", tiny_model, "-n", 3, "-v").stderr


def test_json_has_the_whole_schema(tiny_model: Path) -> None:
    content = run_json(
        "generate",
        tiny_model,
        "-i",
        "the",
        "-t",
        0.7,
        "-p",
        0.8,
        "-s",
        5,
        "-n",
        12,
        "--logprobs",
        2,
        "--threads",
        1,
        "--backend",
        "numpy",
    )
    assert list(content) == [
        "schema", "id", "created_at", "model", "backend", "mode", "sampling", "prompt", "text",
        "finish_reason", "stop_sequence", "context", "usage", "timings", "warnings",
        "error", "tokens", "prompt_token_ids",
    ]  # fmt: skip
    assert content["schema"] == "llamatui.generate/1"
    assert content["model"]["name"] == "tiny"
    assert content["model"]["format"] == "v0"
    assert len(content["model"]["sha256"]) == 64
    assert content["backend"] == {"name": "numpy", "threads": 1, "swapped": None}
    assert content["sampling"] == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "seed": 5,
    }  # fmt: skip
    assert content["context"] == {"limit": 64, "used": 12, "policy": "stop", "dropped_tokens": 0}
    assert set(content["timings"]) == {
        "load_ms", "prefill_ms", "ttft_ms", "decode_ms", "prefill_tps", "decode_tps",
    }  # fmt: skip
    n_prompt = len(content["prompt_token_ids"])
    assert content["usage"] == {
        "prompt_tokens": n_prompt, "cached_tokens": 0, "completion_tokens": 13 - n_prompt,
    }  # fmt: skip
    assert len(content["tokens"]) == 13 - n_prompt
    assert (
        b"".join(bytes(token["bytes"]) for token in content["tokens"]).decode("utf-8", "replace")
        == content["text"]
    )
    assert all(len(token["top"]) == 2 and token["logprob"] < 0 for token in content["tokens"])
    assert content["error"] is None


def test_tokens_only_with_logprobs(tiny_model: Path) -> None:
    assert "tokens" not in run_json("generate", tiny_model, "-n", 3)
    none = run_json("generate", tiny_model, "-n", 3, "--logprobs", 0)
    assert [token["top"] for token in none["tokens"]] == [[], [], []]


def test_a_seed_is_picked_and_told(tiny_model: Path) -> None:
    first = run_json("generate", tiny_model, "-n", 30)
    again = run_json("generate", tiny_model, "-n", 30, "-s", first["sampling"]["seed"])
    assert again["text"] == first["text"]


def test_jsonl_is_start_deltas_and_an_end_that_equals_the_object(tiny_model: Path) -> None:
    args = ("generate", tiny_model, "-i", "the", "-s", 3, "-n", 15, "--logprobs", 1)
    lines = [json.loads(line) for line in run(*args, "--stream", "jsonl").stdout.splitlines()]
    assert [line["event"] for line in lines] == ["start", *["delta"] * (len(lines) - 2), "end"]
    whole = run_json(*args)
    varying = {"id", "created_at", "timings", "event"}
    assert {k: v for k, v in lines[-1].items() if k not in varying} == {
        k: v for k, v in whole.items() if k not in varying
    }
    assert "".join(line["text"] for line in lines[1:-1]) == whole["text"]
    assert [line["token"] for line in lines[1:-1] if "token" in line] == whole["tokens"]
    assert lines[0]["id"] == lines[-1]["id"]


@pytest.mark.parametrize(
    ("args", "new"),
    [
        (["-n", 10], 10),
        (["-n", 0], 64),
        (["-n", 1000], 64),
        ([], 64),
        (["--max-tokens", 5], 5),
        (["--max-tokens", 5, "-n", 3], 3),
        (["--max-tokens", 5, "-n", 10], 5),
        (["--max-tokens", 0], 0),
        (["-n", 100, "--overflow", "shift"], 100),
        (["-n", 100, "--context", 20], 20),
        (["-n", 20, "--context", 20, "--overflow", "error"], 20),
    ],
)
def test_lengths(args: list[object], new: int, tiny_model: Path) -> None:
    content = run_json("generate", tiny_model, "-s", 1, *args)
    assert content["finish_reason"] in ("length", "context")
    assert content["usage"]["completion_tokens"] == new


def test_a_prompt_longer_than_n_generates_nothing_and_says_so(tiny_model: Path) -> None:
    content = run_json("generate", tiny_model, "-i", "the cat and the hat", "-n", 2)
    assert content["usage"]["completion_tokens"] == 0
    assert "-n 2 " in content["warnings"][0]


def test_no_new_tokens_asked_for_is_no_warning(tiny_model: Path) -> None:
    assert run_json("generate", tiny_model, "-i", "the", "--max-tokens", 0)["warnings"] == []


def test_overflow_policies(tiny_model: Path) -> None:
    prompt = "x" * 100
    stopped = run_json("generate", tiny_model, "-i", prompt)
    assert (stopped["finish_reason"], stopped["usage"]["completion_tokens"]) == ("context", 0)
    assert "context" in stopped["warnings"][0]
    failed = run_json("generate", tiny_model, "-i", prompt, "--overflow", "error", code=4)
    assert failed["error"]["code"] == "context_overflow"
    assert failed["finish_reason"] == "context"
    assert failed.keys() == stopped.keys()
    partial = run("generate", tiny_model, "-i", "the", "-n", 0, "-s", 1, "--overflow", "error")
    assert partial.returncode == 4
    assert len(partial.stdout) > 20
    shifted = run_json(
        "generate", tiny_model, "-i", prompt, "--overflow", "shift", "--max-tokens", 3, "-s", 1
    )
    assert shifted["usage"]["completion_tokens"] == 3
    assert shifted["context"]["dropped_tokens"] == 102 - 32


def test_stop_sequences(tiny_model: Path) -> None:
    free = run_json("generate", tiny_model, "-s", 4, "-n", 40)["text"]
    stop = free[15:18]
    content = run_json("generate", tiny_model, "-s", 4, "-n", 40, "--stop", "@@never", "--stop", stop)
    assert content["text"] == free[: free.index(stop)]
    assert (content["finish_reason"], content["stop_sequence"]) == ("stop", stop)


def test_prompts_from_everywhere_are_the_same(tiny_model: Path, tmp_path: Path) -> None:
    text = "the caté\nand the"
    (tmp_path / "p.txt").write_text(text + "\n", "utf-8")
    args = ("generate", tiny_model, "-s", 9, "-n", 40, "-q")
    expected = run(*args, "-i", text).stdout
    assert run(*args, "-f", tmp_path / "p.txt").stdout == expected
    assert run(*args, "-f", "-", stdin=text.encode()).stdout == expected
    assert run(*args, "-i", "-", stdin=text.encode() + b"\n").stdout == expected


def test_special_tokens_are_text_unless_asked_for(tiny_model: Path) -> None:
    args = ("generate", tiny_model, "-i", "</s>the", "-n", 12, "--logprobs", 0)
    assert 2 not in run_json(*args)["prompt_token_ids"]
    assert run_json(*args, "--special")["prompt_token_ids"][:2] == [1, 2]


def test_chat_prints_a_line_of_json_for_each_answer(tiny_model: Path) -> None:
    args = ["chat", tiny_model, "--json", "--chat-format", "llama2", "-t", 0, "--context", 64]
    result = run(*args, stdin=b"hello\n\nagain\n")
    assert result.returncode == 0, result.stderr
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["schema"] == "llamatui.generate/1"
    assert [first["mode"], first["prompt"], second["prompt"]] == ["chat", "hello", "again"]
    assert first["usage"]["cached_tokens"] == 0
    assert len(first["model"]["sha256"]) == 64
    plain = run(*[arg for arg in args if arg != "--json"], stdin=b"hello\n").stdout
    assert plain == first["text"].encode() + b"\n"


def test_a_system_prompt_makes_it_a_chat_turn(tiny_model: Path) -> None:
    content = run_json(
        "generate",
        tiny_model,
        "-i",
        "hi",
        "-y",
        "be kind",
        "--max-tokens",
        2,
        "--logprobs",
        0,
        "--overflow",
        "shift",
    )
    assert content["mode"] == "chat"
    plain = run_json("generate", tiny_model, "-i", "hi", "-y", "", "--max-tokens", 2, "--logprobs", 0)
    assert len(plain["prompt_token_ids"]) < len(content["prompt_token_ids"])


def test_settings_come_from_the_environment_and_the_file(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f'temperature = 0.25\nmodel = "{tiny_model.as_posix()}"\n')
    env = {"LLAMATUI_CONFIG": str(tmp_path / "c.toml"), "LLAMATUI_TOP_P": "0.5"}
    content = run_json("generate", "-n", 3, **env)
    assert content["sampling"]["temperature"] == 0.25
    assert content["sampling"]["top_p"] == 0.5
    shown = json.loads(run("config", "show", "--json", **env).stdout)
    assert shown["temperature"] == {"value": 0.25, "source": "config"}
    assert run("config", "path", **env).stdout.decode().strip() == env["LLAMATUI_CONFIG"]


@pytest.fixture
def files(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    """What the mistakes below are made with."""
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (tmp_path / "lonely.bin").write_bytes(tiny_model.read_bytes())
    write_tokenizer_bin(tmp_path / "small", 280)
    names = {"MODEL": tiny_model, "SMALL": tmp_path / "small", "PNG": tmp_path / "x.png"}
    return {**names, "LONELY": tmp_path / "lonely.bin", "NONE": tmp_path / "none.bin"}


MISTAKES = {
    "missing": (["generate", "NONE"], 3, "no such file"),
    "an empty name": (["generate", ""], 2, "expected a model, found an empty name"),
    "a picture": (["generate", "PNG"], 3, "PNG image"),
    "no tokenizer": (["generate", "LONELY"], 3, "no tokenizer of 300 tokens"),
    "tokenizer missing": (["generate", "MODEL", "-z", "NONE"], 3, "none.bin"),
    "tokenizer of another size": (["generate", "MODEL", "-z", "SMALL"], 3, "300.*280|280.*300"),
    "tokenizer a picture": (["generate", "MODEL", "-z", "PNG"], 3, "x.png"),
    "temperature": (["generate", "MODEL", "-t", "-1"], 2, "temperature must be in"),
    "not a number": (["generate", "MODEL", "-t", "warm"], 2, "valid float"),
    "unknown flag": (["generate", "MODEL", "--wat"], 2, "wat"),
    "unknown command": (["tell"], 2, "tell"),
    "unknown backend": (["generate", "MODEL", "--backend", "cuda"], 2, "no backend is called 'cuda'"),
    "overflow": (["generate", "MODEL", "--overflow", "wrap"], 2, "stop, shift or error"),
    "stream": (["generate", "MODEL", "--stream", "xml"], 2, "jsonl"),
    "two prompts": (["generate", "MODEL", "-i", "a", "-f", "b"], 2, "not both"),
    "prompt file missing": (["generate", "MODEL", "-f", "NONE"], 2, "cannot be read"),
    "logprobs without json": (["generate", "MODEL", "--logprobs", "1"], 2, "--json"),
    "chat format": (["generate", "MODEL", "-y", "s", "--chat-format", "alpaca"], 2, "alpaca"),
    "story without a terminal": (["story", "MODEL"], 2, "llamatui generate"),
    "shell": (["completion", "csh"], 2, "bash"),
    "inspect": (["inspect", "PNG"], 3, "PNG image"),
    "chat": (["chat", "NONE"], 3, "no such file"),
    "chat without a model": (["chat"], 3, "llamatui pull SmolLM2-135M-Instruct"),
}


@pytest.mark.parametrize(("args", "code", "said"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_briefly(args: list[str], code: int, said: str, files: dict[str, Path]) -> None:
    result = run(*[files.get(arg, arg) for arg in args], stdin=b"hello\n")
    stderr = result.stderr.decode()
    assert result.returncode == code, stderr
    assert re.search(said, stderr), stderr
    assert "Traceback" not in stderr
    assert result.stdout == b""


def test_a_failure_is_an_object_too(tmp_path: Path) -> None:
    content = run_json("generate", tmp_path / "none.bin", "-i", "x", code=3)
    assert (content["finish_reason"], content["error"]["code"]) == ("error", "checkpoint")
    result = run("generate", tmp_path / "none.bin", "--stream", "jsonl")
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["event"] == "end"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("flags", [[], ["--stream", "jsonl"]])
def test_ctrl_c_keeps_what_is_there(flags: list[str], slow_model: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", str(slow_model), "-n", "0", "-t", "0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # `communicate` does not see what a buffer of ours has read ahead
    )
    assert process.stdout
    first = b""
    while len(first) < (1500 if flags else 40) and (part := process.stdout.read(1500)):
        first += part
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    if flags:
        *_, last = (first + out).splitlines()
        content = json.loads(last)
        assert content["event"] == "end"
        assert content["finish_reason"] == "cancelled"
        assert content["usage"]["completion_tokens"] > 0
    else:
        assert len(first + out) >= 40


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_closed_pipe_ends_it_quietly(slow_model: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", str(slow_model), "-n", "0", "-t", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == -signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def test_tokenize(tiny_model: Path) -> None:
    tokenizer = tiny_model.with_name("tokenizer.bin")
    content = json.loads(run("tokenize", "the é", "-z", tokenizer, "--json").stdout)
    assert content["ids"][0] == 1
    assert b"".join(bytes(piece["bytes"]) for piece in content["pieces"]) == " the é".encode()
    assert content["count"] == len(content["ids"])
    bare = json.loads(run("tokenize", "the é", "-z", tokenizer, "--json", "--no-bos").stdout)
    assert bare["ids"] == content["ids"][1:]
    assert b"<s>" in run("tokenize", "a", "-z", tokenizer).stdout


@pytest.mark.parametrize("data", [b"a\r\nb\n", b"\xff\xfe\x80", b"\xe6\x97", b"\x00x", b""])
def test_tokenize_takes_stdin_byte_for_byte(data: bytes, tiny_model: Path) -> None:
    result = run("tokenize", "-z", tiny_model.with_name("tokenizer.bin"), "--json", "--no-bos", stdin=data)
    content = json.loads(result.stdout)
    assert b"".join(bytes(piece["bytes"]) for piece in content["pieces"]) == (b" " + data if data else b"")


def test_inspect(tiny_model: Path, tmp_path: Path) -> None:
    content = json.loads(run("inspect", tiny_model, "--json").stdout)
    assert content["config"]["dim"] == 32
    assert content["file_size"] == tiny_model.stat().st_size
    assert sum(tensor["bytes"] for tensor in content["tensors"]) + 28 == content["file_size"]
    assert content["tokenizer"] == {"path": str(tiny_model.with_name("tokenizer.bin")), "format": "llama2.c"}
    assert content["memory"]["kv_cache_full"] == 2 * 4 * 2 * 16 * 64
    text = run("inspect", tiny_model).stdout.decode()
    assert str(tiny_model) in text
    assert content["sha256"] in text
    write_checkpoint(tmp_path / "q.bin", TINY, 2, random_weights(TINY))
    lonely = json.loads(run("inspect", tmp_path / "q.bin", "--json").stdout)
    assert lonely["tokenizer"]["path"] is None
    assert lonely["memory"]["weights_dequantized"] == 4 * lonely["params"]


def test_chat_without_a_terminal_answers_line_by_line(tiny_model: Path) -> None:
    result = run("chat", tiny_model, "-s", 3, stdin=b"hi\n\nwho?\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(b"\n") >= 2
    assert result.stdout == run("chat", tiny_model, "-s", 3, stdin=b"hi\nwho?").stdout
    assert result.stdout == run("chat", tiny_model, "-s", 3, "-i", "hi", stdin=b"who?").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX devices")
@pytest.mark.parametrize("args", [["generate"], ["generate", "--json"], ["--help"]])
def test_a_full_disk_behind_stdout_is_told(args: list[str], tiny_model: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    model = [str(tiny_model)] if args[0] == "generate" else []
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*COMMAND, args[0], *model, *args[1:]], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert result.returncode == 1
    assert b"No space left" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["generate MODEL -f -", "chat MODEL", "tokenize -z TOKENIZER"])
def test_closed_streams_are_no_accident(command: str, closed: str, tiny_model: Path) -> None:
    line = command.replace("MODEL", str(tiny_model)).replace(
        "TOKENIZER", str(tiny_model.with_name("tokenizer.bin"))
    )
    result = subprocess.run(
        f"{' '.join(COMMAND)} {line} {closed}", shell=True, capture_output=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX arguments")
def test_a_prompt_that_is_not_utf_8_is_echoed_as_it_came(tiny_model: Path) -> None:
    prompt = b"caf\xe9 "
    assert run("generate", tiny_model, "-f", "-", "-n", 20, stdin=prompt).stdout.startswith(prompt)
    result = run("generate", tiny_model, "-f", "-", "-n", 20, "--json", stdin=prompt)
    assert json.loads(result.stdout.decode("utf-8"))["prompt"] == "caf\ufffd "


def test_completion_completes() -> None:
    env = {"_LLAMATUI_COMPLETE": "complete_bash", "COMP_WORDS": "llamatui ge", "COMP_CWORD": "1"}
    assert run(**env).stdout.split() == [b"generate"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert b"_LLAMATUI_COMPLETE" in run("completion", shell).stdout


def test_help_and_version() -> None:
    assert b"story" in run("--help").stdout
    assert run("--version").stdout.startswith(b"llamatui 0.")
    assert run().returncode in (0, 2)


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    config = ModelConfig(8, 8, 1, 2, 1, 300, 16)
    write_checkpoint(tmp_path / "m.bin", config, 1, random_weights(config))
    data = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(data[:256] + struct.pack("<f", float("nan")) * 8 + data[288:])
    write_tokenizer_bin(tmp_path / "tokenizer.bin", 300)
    result = run("generate", tmp_path / "m.bin")
    assert result.returncode == 3
    assert b"not numbers" in result.stderr
    assert b"Warning" not in result.stderr


def test_only_printable_text_reaches_a_terminal() -> None:
    from llamatui.app.cli.terminal import printable

    assert printable("a\x1b[31mb\r\x07\tc\nd\x9b é日🙂") == "a[31mb\tc\nd é日🙂"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"), (999, "999"), (12_345, "12.3 K"), (999_499, "999 K"), (999_500, "1 M"),
        (2_828_736, "2.83 M"), (1_235_814_400, "1.24 B"),
    ],
)  # fmt: skip
def test_numbers_of_parameters_have_three_digits(number: int, expected: str) -> None:
    from llamatui.app.cli.terminal import short_count

    assert short_count(number) == expected
