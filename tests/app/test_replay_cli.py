"""`generate --record` and `replay`, as a shell sees them."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatui.app.cli import replay as command
from llamatui.app.cli.main import run
from llamatui.app.replay import Replay
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import FloatArray
from tests.tiny import TINY, random_weights, write_tokenizer_bin

Result = tuple[int, str, str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call("replay", ...): (exit code, stdout, stderr)."""

    def called(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["llamatui", *map(str, args)])
        code = run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def record(call: Any, tiny_model: Path, tmp_path: Path) -> Any:
    """record(options): (file, stdout) of a text of 20 tokens."""

    def recorded(*options: object) -> tuple[Path, str]:
        file = tmp_path / "r.json"
        args = ("generate", tiny_model, "-i", "the cat", "-s", 7, "--max-tokens", 20, "--backend", "numpy")
        code, out, err = call(*args, "-q", "--threads", 1, "--record", file, *options)
        assert code == 0, err
        return file, out

    return recorded


def spoiled(file: Path, **values: Any) -> Path:
    content = json.loads(file.read_text("utf-8"))
    content["steps"][0] |= values
    file.write_text(json.dumps(content), "utf-8")
    return file


def test_the_text_is_the_same_as_without_a_record(call: Any, record: Any, tiny_model: Path) -> None:
    file, out = record()
    plain = call(
        "generate", tiny_model, "-i", "the cat", "-s", 7, "--max-tokens", 20, "--backend", "numpy", "-q"
    )
    assert plain[1] == out
    assert len(Replay.read(file).steps[0].logprobs) == 20


def test_it_is_played_at_once_where_there_is_no_terminal(call: Any, record: Any) -> None:
    file, out = record()
    assert call("replay", file) == (0, out, "")


def test_it_is_played_word_by_word_in_a_terminal(
    call: Any, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = record()
    spoiled(file, shown="\x1b[2J", text="One day, \x1b]0;x\x07 she  saw.\n")
    waits: list[float] = []
    monkeypatch.setattr(command.time, "sleep", waits.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = call("replay", file)
    assert (code, out) == (0, "[2JOne day, ]0;x she  saw.\n\n")
    assert len(waits) == 5


def test_verify_says_that_it_is_identical(call: Any, record: Any, tiny_model: Path) -> None:
    file, _ = record()
    code, out, _ = call("replay", file, "--verify", tiny_model)
    assert code == 0
    assert out == "identical: 20 tokens\nlargest difference of a logprob: 0\n"


def test_verify_names_the_first_token_that_differs(call: Any, record: Any, tiny_model: Path) -> None:
    file, _ = record()
    ids = list(Replay.read(file).steps[0].output_ids)
    was, ids[4] = ids[4], 262 if ids[4] != 262 else 263
    code, out, _ = call("replay", spoiled(file, output_ids=ids), "--verify", tiny_model)
    assert code == 1
    assert out.startswith(f"differs: step 0, token 4: recorded {ids[4]} ")
    assert f", computed {was} " in out.splitlines()[0]
    assert "when recorded, " in out
    assert "identical before it: 4 tokens" in out
    code, out, _ = call("replay", file, "--verify", tiny_model, "--json")
    assert code == 1
    told = json.loads(out)
    assert (told["identical"], told["tokens"], told["error"]) == (False, 4, None)
    assert (told["difference"]["recorded"], told["difference"]["computed"]) == (ids[4], was)
    assert isinstance(told["difference"]["computed_text"], str)


def test_verify_with_another_backend_says_so(call: Any, record: Any, tiny_model: Path) -> None:
    pytest.importorskip("numba")
    file, _ = record("-t", 0)
    code, out, _ = call("replay", file, "--verify", tiny_model, "--backend", "numba")
    assert code == 0
    assert "note: recorded with numpy, computed with numba" in out
    code, out, _ = call("replay", file, "--verify", tiny_model, "--backend", "numba", "--json")
    assert json.loads(out)["backends"] == {"recorded": ["numpy"], "computed": ["numba"]}


def test_the_model_is_found_by_its_name_or_asked_for(call: Any, record: Any, tiny_model: Path) -> None:
    file, _ = record()
    code, out, err = call("replay", file, "--verify")
    assert (code, out) == (3, "")
    assert "tiny" in err
    assert f"llamatui replay {file} --verify MODEL" in err
    code, out, err = call("replay", file, "--verify", "--json")
    assert code == 3
    assert json.loads(out)["error"]["code"] == "model"


def test_another_model_exits_with_3(call: Any, record: Any) -> None:
    file, _ = record()
    code, _, err = call("replay", file, "--verify", "stories")
    assert code == 3
    assert "expected the recorded tiny, of SHA-256" in err
    assert "found" in err


def test_a_record_is_not_written_over(call: Any, record: Any, tiny_model: Path) -> None:
    file, _ = record()
    before = file.read_bytes()
    code, out, err = call("generate", tiny_model, "--record", file)
    assert (code, out) == (2, "")
    assert "is there already" in err
    assert file.read_bytes() == before
    record("--force")
    assert Replay.read(file)
    code, _, err = call("generate", tiny_model, "--force")
    assert (code, "--force needs --record" in err) == (2, True)
    code, _, err = call("generate", tiny_model, "--record", file.parent / "none" / "r.json")
    assert (code, "expected a folder, found none" in err) == (2, True)


def test_a_record_beside_json_has_no_tokens_that_were_not_asked_for(record: Any) -> None:
    file, out = record("--json")
    assert "tokens" not in json.loads(out)
    file, out = record("--force", "--json", "--logprobs", 2)
    told = [token["logprob"] for token in json.loads(out)["tokens"]]
    assert list(Replay.read(file).steps[0].logprobs) == told


def test_a_chat_is_recorded_without_what_was_not_shown(call: Any, record: Any, tiny_model: Path) -> None:
    file, out = record("--system", "be kind", "--chat-format", "llama2")
    assert Replay.read(file).steps[0].shown == ""
    assert call("replay", file)[1] == out
    assert call("replay", file, "--verify", tiny_model)[0] == 0


def test_stop_sequences_are_recorded(call: Any, record: Any, tiny_model: Path) -> None:
    file, _ = record()
    text = Replay.read(file).steps[0].text
    file, _ = record("--force", "--stop", text[4:6])
    assert Replay.read(file).steps[0].finish_reason == "stop"
    assert call("replay", file, "--verify", tiny_model)[0] == 0


@pytest.mark.parametrize("options", [("--json",), ("--backend", "numpy"), ("--threads", "2"), ("stories",)])
def test_options_of_verify_need_it(options: tuple[str, ...], call: Any, record: Any) -> None:
    code, _, err = call("replay", record()[0], *options)
    assert (code, "needs --verify" in err) == (2, True)


def test_what_is_no_replay_exits_with_2(call: Any, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    code, _, err = call("replay", tmp_path / "x.json")
    assert (code, "schema: expected a text, found nothing" in err) == (2, True)
    code, out, _ = call("replay", tmp_path / "none.json", "--verify", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")


@pytest.fixture
def endless_model(tmp_path: Path) -> Path:
    """Greedy, it never takes a control token."""
    config = replace(TINY, shared_classifier=False)
    weights = random_weights(config)

    def source(name: str, layer: int) -> FloatArray:
        w = weights(name, layer)
        if name == "wcls":
            w[:3] = 0
        return w

    write_checkpoint(tmp_path / "endless.bin", config, 1, source)
    write_tokenizer_bin(tmp_path / "tokenizer.bin", 300)
    return tmp_path / "endless.bin"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_what_was_recorded(endless_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    args = ["-t", "0", "--overflow", "shift", "--max-tokens", str(10**9), "--backend", "numpy"]
    command = [sys.executable, "-m", "llamatui", "generate", str(endless_model), *args, "--record", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout
        first = b""
        while len(first) < 40 and (part := process.stdout.read(40)):
            first += part
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    step = Replay.read(file).steps[0]
    assert step.finish_reason == "cancelled"
    assert len(step.text) >= len(first.decode("utf-8", "ignore")) > 0
