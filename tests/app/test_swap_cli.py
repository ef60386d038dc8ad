"""On the command line: an engine that takes over in mid-text, or never does, and what makes it slow."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamatui.app.cli import loading
from llamatui.app.cli.main import run
from llamatui.app.model import LoadedModel, load_model
from llamatui.backends import registry, team
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.numpy_backend import NumpyBackend

STEPS = 5  # of the interim backend; the prompt's is one of them


class Interim(NumpyBackend):
    """Has another on its way, of which something becomes known after STEPS steps."""

    steps = 0

    def __init__(self, checkpoint: Checkpoint, known: Callable[[NumpyBackend], None]) -> None:
        super().__init__(checkpoint, 2)
        self.preparing, self.note = "faster", "faster is being compiled"
        self.known = known

    def _forward(self, *args: Any) -> Any:
        logits = super()._forward(*args)
        self.steps += 1
        if self.steps == STEPS:
            self.known(self)
        return logits


class Faster(NumpyBackend):
    name = "faster"


def ready(backend: NumpyBackend) -> None:
    backend.replacement = Faster(backend.checkpoint, 1)
    backend.preparing = ""


def failed(backend: NumpyBackend) -> None:
    backend.note = "faster could not be compiled: boom"
    backend.preparing = ""


@pytest.fixture
def command(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """command(known, "generate", ...): (stdout, stderr) of a command whose model has an interim backend."""

    def call(known: Callable[[NumpyBackend], None], name: str, *args: object) -> tuple[str, str]:
        def load(settings: object) -> LoadedModel:
            model = load_model(tiny_model, backend="numpy", threads=2)
            model._backend = Interim(model.checkpoint, known)
            return model

        monkeypatch.setattr(loading, "load", load)
        monkeypatch.setattr(sys, "argv", ["llamatui", name, str(tiny_model), *map(str, args)])
        assert run() == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


ARGS = ("-i", "the", "-t", 0, "-n", 30)
Command = Callable[..., tuple[str, str]]


def never(backend: NumpyBackend) -> None:
    pass


def test_the_text_is_the_same_and_the_swap_is_told(command: Command) -> None:
    alone, alone_err = command(never, "generate", *ARGS, "-v")
    text, err = command(ready, "generate", *ARGS, "-v")
    assert text == alone
    assert "faster is being compiled\n" in alone_err
    assert "swapped" not in alone_err
    assert f"swapped from numpy to faster at token {STEPS}\n" in err
    assert "numpy, then faster, 1 thread" in err
    quiet = command(ready, "generate", *ARGS)[1]
    assert "swapped" not in quiet
    assert "being compiled" not in quiet
    assert "warning: 2 threads asked for, 1 available\n" in quiet


def test_json_has_the_backend_that_ended_the_text(command: Command) -> None:
    content = json.loads(command(ready, "generate", *ARGS, "--json")[0])
    assert content["backend"] == {"name": "faster", "threads": 1, "swapped": {"from": "numpy", "at": STEPS}}
    assert content["warnings"] == ["2 threads asked for, 1 available"]
    content = json.loads(command(never, "generate", *ARGS, "--json")[0])
    assert content["backend"] == {"name": "numpy", "threads": 2, "swapped": None}
    assert content["warnings"] == []


def test_jsonl_says_at_which_token_it_was(command: Command) -> None:
    lines = [
        json.loads(line) for line in command(ready, "generate", *ARGS, "--stream", "jsonl")[0].splitlines()
    ]
    assert lines[0]["backend"] == {"name": "numpy", "threads": 2, "swapped": None}
    told = [(at, line["backend"]) for at, line in enumerate(lines[1:-1]) if "backend" in line]
    assert told == [(STEPS, lines[-1]["backend"])]
    assert lines[-1]["backend"]["name"] == "faster"


def test_a_failed_compilation_is_a_warning_and_numpy_goes_on(command: Command) -> None:
    alone, _ = command(never, "generate", *ARGS)
    text, err = command(failed, "generate", *ARGS)
    assert text == alone
    assert "warning: faster could not be compiled: boom\n" in err
    content = json.loads(command(failed, "generate", *ARGS, "--json")[0])
    assert content["warnings"] == ["faster could not be compiled: boom"]
    assert content["backend"]["name"] == "numpy"


def test_chat_warns_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    out, err = command(failed, "chat", "-t", 0, "--json", "--chat-format", "llama2")
    first, second = map(json.loads, out.splitlines())
    assert first["warnings"] == ["faster could not be compiled: boom"]
    assert second["warnings"] == []
    assert err.count("boom") == 1


@pytest.mark.parametrize(("threads", "warned"), [(1, False), (2, True)])
def test_a_missing_openmp_library_is_named(
    threads: int, warned: bool, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(team, "openmp", lambda: None)
    monkeypatch.setattr(team, "usable_cpus", lambda: 2)
    model = load_model(tiny_model, backend="numba", threads=threads)
    assert [("OpenMP" in warning) for warning in model.warnings] == [True] * warned
    if warned and sys.platform in team.INSTALL:
        assert team.INSTALL[sys.platform] in model.warnings[0]


def test_waiting_for_a_compiler_is_shown_and_can_be_left(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    from llamatui.backends.kernels import cache

    class Endless:
        def __init__(self, kind: str) -> None: ...

        def running(self) -> bool:
            return True

    monkeypatch.setattr(cache, "load_kernels", lambda kind: None)
    monkeypatch.setattr(cache, "Compilation", Endless)
    steps: list[str] = []

    def progress(step: str) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registry.create_backend("numba", Checkpoint(tiny_model), 1, progress)
    assert steps == [registry.COMPILING, *[f"{registry.COMPILING}: 0 s"] * 2]
