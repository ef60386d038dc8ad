"""`llamatui bench` as a shell sees it, in this process: the memory bandwidth is made up."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamatui.app.bench import plan, speed
from llamatui.app.cli import main
from llamatui.app.cli.terminal import Interrupted
from llamatui.backends.numpy_backend import NumpyBackend

KEYS = [
    "model", "backend", "threads", "test", "n_tokens", "depth", "tps_median", "tps_min", "tps_max",
    "bytes_per_token", "bandwidth_fraction",
]  # fmt: skip
SHORT = ("-p", "8", "-n", "4", "-r", "2", "--backend", "numpy", "--threads", "1")


class Shell:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: object, code: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of `llamatui bench`."""
        self._monkeypatch.setattr(sys, "argv", ["llamatui", "bench", *map(str, args)])
        found = main.run()
        out, err = self._capsys.readouterr()
        assert found == code, err
        return out, err

    def json(self, *args: object) -> Any:
        return json.loads(self(*args, "--json")[0])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    module = ModuleType("llamatui.backends.bandwidth")
    module.read_bandwidth = lambda threads: 1e9  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(NumpyBackend, "bytes_per_token", 1000, raising=False)
    monkeypatch.setattr(plan, "default_backend", lambda checkpoint: "numpy")
    return Shell(monkeypatch, capsys)


def test_json_is_a_list_of_rows(bench: Shell, tiny_model: Path) -> None:
    rows = bench.json(tiny_model, *SHORT, "-d", "0,20")
    assert [list(row) for row in rows] == [KEYS] * 4
    assert [(row["test"], row["n_tokens"], row["depth"]) for row in rows] == [
        ("prefill", 8, 0), ("decode", 4, 0), ("prefill", 8, 20), ("decode", 4, 20),
    ]  # fmt: skip
    for row in rows:
        assert (row["model"], row["backend"], row["threads"]) == ("tiny", "numpy", 1)
        assert 0 < row["tps_min"] <= row["tps_median"] <= row["tps_max"]
        assert row["bytes_per_token"] == 1000
        fraction = row["tps_median"] * 1000 / 1e9 if row["test"] == "decode" else None
        assert row["bandwidth_fraction"] == pytest.approx(fraction)


def test_a_table_is_plain_text_where_nobody_looks(bench: Shell, tiny_model: Path) -> None:
    out, err = bench(tiny_model, *SHORT)
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == "backend threads test depth tok/s min max MB/token bandwidth"
    assert lines[1].split()[:4] == ["numpy", "1", "prefill", "8"]
    assert lines[2].split()[:4] == ["numpy", "1", "decode", "4"]
    assert lines[2].split()[-1].endswith("%")
    assert lines[3] == "tiny; median of 2 rounds; memory is read at 1.0 GB/s by 1 thread"
    assert err == ""
    assert "\x1b" not in out


def test_markdown(bench: Shell, tiny_model: Path) -> None:
    lines = bench(tiny_model, *SHORT, "--md")[0].splitlines()
    assert [line[0] for line in lines[:4]] == ["|"] * 4
    assert lines[4] == ""
    assert lines[5].startswith("tiny; median of 2 rounds")


def test_defaults_that_do_not_fit_are_cut_and_told_on_stderr(bench: Shell, tiny_model: Path) -> None:
    out, err = bench(tiny_model, "-r", "1")
    assert [line.split()[2:4] for line in out.splitlines()[1:3]] == [["prefill", "64"], ["decode", "64"]]
    assert err.splitlines() == [
        "note: -p 64: 512 does not fit the context of 64", "note: -n 64: 128 does not fit the context of 64",
    ]  # fmt: skip


def test_the_settings_name_model_and_backend(
    bench: Shell, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMATUI_MODEL", str(tiny_model))
    monkeypatch.setenv("LLAMATUI_BACKEND", "numpy")
    monkeypatch.setattr(plan, "default_backend", lambda checkpoint: "none")
    assert bench.json("-p", "0", "-n", "2", "-r", "1")[0]["backend"] == "numpy"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("-p 65", "error: -p 65 does not fit the context of 64\n  try: -p 64 or less"),
        ("-n 9 -d 56", "error: -n 9 does not fit the context of 64 behind -d 56\n  try: -n 8 or less"),
        ("-d 64", "-d 64 leaves no room"),
        ("-p many", "-p expected numbers like 1,2"),
        ("--threads 0", "--threads expected numbers like 1,2 in 1..1024, found '0'"),
        ("--backend fast", "no backend is called 'fast'"),
        ("--json --md", "give --json or --md, not both"),
        ("-i text", "-i does not go with a measurement of speed"),
        ("--stories 3", "--stories does not go with a measurement of speed"),
        ("--gguf m.gguf", "--gguf does not go with a measurement without --peer"),
        ("--peer vllm", "--peer knows llama-cpp, found 'vllm'"),
        ("--peer llama-cpp", "--peer llama-cpp expected a GGUF file"),
        ("--compare numpy", "--compare expected two backends"),
        ("--compare numpy,fast", "no backend is called 'fast'"),
        ("--compare numpy,numpy -p 8", "-p does not go with --compare"),
        ("--compare numpy,numpy -n 4,8", "--compare takes one -n, found '4,8'"),
        ("--compare numpy,numpy -n 0", "-n 0 leaves nothing to compare"),
        ("--compare numpy,numpy -n 64", "do not fit the context of 64"),
        ("--bits-per-byte t.txt --md", "--md does not go with --bits-per-byte"),
        ("--bits-per-byte t.txt --threads 1,2", "--bits-per-byte takes one --threads, found '1,2'"),
        ("--bits-per-byte no-such-file", "no-such-file: cannot be read"),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(
    bench: Shell, tiny_model: Path, options: str, problem: str
) -> None:
    out, err = bench(tiny_model, *options.split(), code=2)
    assert problem in err
    assert out == ""


def test_without_a_model_the_peer_s_is_run(bench: Shell, tmp_path: Path) -> None:
    assert "missing.gguf" in bench("--peer", "llama-cpp", "--gguf", tmp_path / "missing.gguf", code=2)[1]


def test_a_peer_that_is_not_installed(
    bench: Shell, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    err = bench(tiny_model, *SHORT, "--peer", "llama-cpp", "--gguf", path, code=1)[1]
    assert "try: pip install llama-cpp-python" in err


def test_bits_per_byte(bench: Shell, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("the cat<|endoftext|>and the dog<|endoftext|>")
    found = bench.json(tiny_model, "--bits-per-byte", path)
    assert list(found) == ["bits_per_byte", "nats_per_token", "tokens", "bytes"]
    assert found["bytes"] == len("the catand the dog")
    assert bench.json(tiny_model, "--bits-per-byte", path, "--stories", "1")["bytes"] == len("the cat")
    lines = bench(tiny_model, "--bits-per-byte", path)[0].splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    assert lines[3].split()[1] == "18"


def test_compare(bench: Shell, tiny_model: Path) -> None:
    found = bench.json(tiny_model, "--compare", "numpy,numpy", "-i", "the cat", "-n", "5")
    assert [side.pop("tps") > 0 for side in found["backends"]] == [True, True]
    assert found == {
        "model": "tiny", "prompt": "the cat", "n_tokens": 5, "first_divergence": None, "kl_mean": 0.0,
        "kl_max": 0.0, "backends": [{"backend": "numpy", "threads": found["backends"][0]["threads"]}] * 2,
    }  # fmt: skip
    out, err = bench(tiny_model, "--compare", "numpy,numpy", "-n", "5", "--threads", "1")
    assert "first divergence: none in 5 tokens" in out
    assert "KL divergence:    mean 0, max 0 nats" in out
    assert err == ""


def test_where_two_backends_part_is_told(
    bench: Shell, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamatui.app.bench import compare

    a, b = compare.Greedy([40, 300 - 1, 5], 10.0), compare.Greedy([40, 1, 5], 20.0)
    result = compare.Comparison(a, b, [0.0, 0.25, 0.5])
    monkeypatch.setattr(compare, "compare", lambda *args: result)
    found = bench.json(tiny_model, "--compare", "numpy,numpy")
    assert found["first_divergence"]["position"] == 1
    assert [side["id"] for side in found["first_divergence"]["tokens"]] == [299, 1]
    assert found["first_divergence"]["tokens"][1]["text"] == "<s>"
    assert (found["kl_mean"], found["kl_max"]) == (0.25, 0.5)
    assert ", '<s>' by numpy" in bench(tiny_model, "--compare", "numpy,numpy")[0]


def test_ctrl_c_shows_the_rounds_that_are_done(
    bench: Shell, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def seconds(self: speed.BackendRunner, case: speed.Case) -> float:
        nonlocal calls
        calls += 1
        if calls % 6 == 0:  # in the second round that counts
            raise Interrupted
        return 1.0

    monkeypatch.setattr(speed.BackendRunner, "seconds", seconds)
    out, _ = bench(tiny_model, *SHORT, code=130)
    assert [line.split()[2:4] for line in out.splitlines()[1:3]] == [["prefill", "8"], ["decode", "4"]]
    assert bench(tiny_model, *SHORT, "--json", code=130)[0] == ""
