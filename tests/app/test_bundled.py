"""The model that comes with llamatui: its files, and every way to run it without naming one.

Nothing here depends on what it writes.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import llamatui
from llamatui.app import catalogue, store
from llamatui.app.cli import main
from llamatui.app.cli.options import complete_model
from llamatui.app.model import tokenizer_of
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import ModelError
from llamatui.tokenizers.loading import load_tokenizer
from tests.tiny import TINY, random_weights, write_tokenizer_bin

FOLDER = store.BUNDLED.path.parent
TOKENIZER = FOLDER / "stories.tokenizer.model"
LIMIT = 4_000_000
"""Bytes of all files: what a package may weigh before it is a download of its own."""


class Shell:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: object, code: int = 0) -> tuple[str, str]:
        """(stdout, stderr) of a command."""
        self._monkeypatch.setattr(sys, "argv", ["llamatui", *map(str, args)])
        found = main.run()
        out, err = self._capsys.readouterr()
        assert found == code, err
        return out, err

    def json(self, *args: object) -> Any:
        return json.loads(self(*args, "--json")[0])


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsys)


def make(path: Path) -> Path:
    """A tiny model with a tokenizer of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, TINY, 1, random_weights(TINY))
    write_tokenizer_bin(path.with_name(f"{path.stem}.tokenizer.bin"))
    return path


# The files.


def test_the_folder_holds_a_model_its_tokenizer_and_its_card() -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert files.keys() == {"stories.bin", "stories.tokenizer.model", "MODEL_CARD.md"}
    assert all(files.values())
    assert sum(files.values()) <= LIMIT


def test_the_model_is_q8_0_with_a_shared_classifier() -> None:
    checkpoint = Checkpoint(store.bundled())
    assert checkpoint.version == 2
    assert checkpoint.config.shared_classifier
    assert tokenizer_of(checkpoint) == TOKENIZER
    assert load_tokenizer(TOKENIZER).vocab_size == checkpoint.config.vocab_size


def test_its_name_is_nobody_else_s() -> None:
    assert catalogue.find(store.BUNDLED.name) is None
    assert store.bundled().stem == store.BUNDLED.name


# The library.


def test_load_without_a_path_loads_it() -> None:
    model = llamatui.load(backend="numpy", threads=1)
    assert (model.name, model.path, model.tokenizer_path) == ("stories", store.BUNDLED.path, TOKENIZER)
    text = llamatui.generate(model, "Once upon a time", max_tokens=5, seed=1)
    assert text == model.generate("Once upon a time", max_tokens=5, seed=1)
    with pytest.raises(ModelError, match="chat needs an instruct model"):
        model.chat()


# The commands.


def test_generate_runs_it(shell: Shell) -> None:
    content = shell.json("generate", "-i", "Once", "--max-tokens", 8, "--backend", "numpy", "--logprobs", 0)
    assert (content["model"]["name"], content["model"]["path"]) == ("stories", str(store.BUNDLED.path))
    assert content["model"]["format"] == "v2"
    vocab_size = Checkpoint(store.BUNDLED.path).config.vocab_size
    assert all(0 <= token["id"] < vocab_size for token in content["tokens"])
    assert shell("generate", "-i", "Once", "-n", 8, "--backend", "numpy", "-q")[0].startswith("Once")


def test_inspect_shows_it(shell: Shell) -> None:
    content = shell.json("inspect")
    assert content["path"] == str(store.BUNDLED.path)
    assert content["tokenizer"] == {"path": str(TOKENIZER), "format": "sentencepiece"}


def test_bench_measures_it(shell: Shell) -> None:
    rows = shell.json("bench", "-p", 0, "-n", 2, "-r", 1, "--backend", "numpy", "--threads", 1)
    assert [row["model"] for row in rows] == ["stories"]


def test_tokenize_takes_the_tokenizer_of_the_model_that_runs(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shell.json("tokenize", "Once upon a time")["tokenizer"]
    assert found["path"] == str(TOKENIZER)
    assert found["vocab_size"] == Checkpoint(store.BUNDLED.path).config.vocab_size
    monkeypatch.setenv("LLAMATUI_MODEL", str(make(tmp_path / "mine.bin")))
    assert shell.json("tokenize", "Once")["tokenizer"]["path"] == str(tmp_path / "mine.tokenizer.bin")
    monkeypatch.setenv("LLAMATUI_TOKENIZER", str(TOKENIZER))
    assert shell.json("tokenize", "Once")["tokenizer"]["path"] == str(TOKENIZER)


def test_the_story_room_opens_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("llamatui.app.cli.rooms.is_terminal", lambda: True)
    monkeypatch.setattr("llamatui.app.tui.run_app", lambda room, launch: opened.append(launch.model) or 0)
    shell("story")
    assert opened == [str(store.BUNDLED.path)]


@pytest.mark.parametrize(
    "command", [["chat"], ["chat", "stories"], ["generate", "-y", "Be brief.", "-i", "Hi"]]
)
def test_who_wants_to_chat_is_told_a_model_that_can(command: list[str], shell: Shell) -> None:
    err = shell(*command, code=3)[1]
    assert "chat needs an instruct model" in err
    command, _, name = err.splitlines()[-1].strip().removeprefix("try: ").partition(", then: llamatui chat ")
    assert command == f"llamatui pull {name}"
    assert isinstance(catalogue.find(name), catalogue.Model)


def test_the_setting_wins_over_it_and_an_argument_over_both(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMATUI_MODEL", str(make(tmp_path / "mine.bin")))
    assert shell.json("inspect")["path"] == str(tmp_path / "mine.bin")
    assert shell.json("inspect", "stories")["path"] == str(store.BUNDLED.path)
    other = make(tmp_path / "other.bin")
    assert shell.json("inspect", other)["path"] == str(other)


# Its name.


def test_its_name_stands_for_it_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.resolve("stories") == store.resolve("Stories") == store.BUNDLED.path


def test_a_pulled_model_and_a_file_of_its_name_go_first_where_it_is_named(
    shell: Shell, tmp_path: Path
) -> None:
    pulled = make(store.models_folder() / "stories.bin")
    assert store.resolve("stories") == pulled
    assert shell.json("inspect", "stories")["path"] == str(pulled)
    (tmp_path / "stories").write_bytes(pulled.read_bytes())
    assert store.resolve("stories") == Path("stories")
    assert store.complete_names("s") == ["stories"]
    # Unnamed, it is neither: what lies in a folder does not choose the model.
    assert shell.json("inspect")["path"] == str(store.BUNDLED.path)


def test_the_name_of_a_file_that_is_not_there_is_not_its_name(shell: Shell) -> None:
    assert "no such file" in shell("inspect", "stories.bin", code=3)[1]


def test_models_lists_it(shell: Shell) -> None:
    out, err = shell("models")
    (row,) = [row for row in out.splitlines() if row.startswith("stories ")]
    assert row.rstrip().endswith("comes with llamatui")
    assert "q8_0" in row
    assert "llamatui pull" in err
    content = shell.json("models")
    assert content["models"] == []
    assert (content["bundled"]["name"], content["bundled"]["path"]) == ("stories", str(store.BUNDLED.path))
    assert content["bundled"].keys() >= {"format", "precision", "params", "file_size"}


def test_it_is_not_removed(shell: Shell) -> None:
    assert "stories comes with llamatui" in shell("models", "rm", "-y", "stories", code=2)[1]
    make(store.models_folder() / "stories.bin")
    shell("models", "rm", "-y", "stories")
    assert store.list_models() == []
    assert store.bundled().exists()


def test_its_name_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert complete_model("sto") == ["stories"]


# Without it.


@pytest.mark.parametrize("left_out", ["stories.bin", "stories.tokenizer.model"])
def test_a_package_without_it_says_what_to_do(
    left_out: str, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in FOLDER.iterdir():
        if path.name != left_out:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(store, "BUNDLED", store.StoredModel("stories", tmp_path / "stories.bin"))
    for command in (["generate"], ["inspect"], ["bench"], ["tokenize", "x"], ["generate", "stories"]):
        err = shell(*command, code=3)[1]
        assert f"{left_out}: expected the model that comes with llamatui, found no such file" in err
        assert "llamatui pull stories15M" in err
    with pytest.raises(ModelError, match="comes with llamatui"):
        llamatui.load()
    assert shell.json("inspect", make(tmp_path / "mine.bin"))["params"]


def test_a_package_in_a_zip_file_says_what_to_do(tmp_path: Path) -> None:
    package = Path(llamatui.__file__).parent
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        for path in [*package.rglob("*.py"), *FOLDER.iterdir()]:
            archive.write(path, path.relative_to(package.parent))
    code = "import llamatui, sys; print(llamatui.__file__)\nllamatui.load()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "app.zip")},
        timeout=60,
    )
    assert str(tmp_path / "app.zip") in result.stdout
    assert "ModelError" in result.stderr
    assert "expected the model that comes with llamatui" in result.stderr


@pytest.mark.parametrize(
    ("args", "environment", "temperature"),
    [([], "", 0.8), (["-t", "0.5"], "", 0.5), ([], "1.0", 1.0)],
)
def test_stories_are_told_a_little_cooler_unless_somebody_says_otherwise(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, args: list[str], environment: str, temperature: float
) -> None:
    opened: list[float] = []
    monkeypatch.setattr("llamatui.app.cli.rooms.is_terminal", lambda: True)
    monkeypatch.setenv("LLAMATUI_TEMPERATURE", environment)
    monkeypatch.setattr(
        "llamatui.app.tui.run_app", lambda room, launch: opened.append(launch.sampling.temperature) or 0
    )
    shell("story", *args)
    assert opened == [temperature]
