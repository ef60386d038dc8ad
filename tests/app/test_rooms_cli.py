"""`llamatui story` and `llamatui chat`: what is taken out of the history, and with which model."""

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llamatui.app import tui
from llamatui.app.cli.main import run
from llamatui.app.conversation import Conversation
from llamatui.app.file_hash import file_sha256
from llamatui.app.history.database import database_path
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.model import load_model
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from llamatui.app.tui import Launch

Call = Callable[..., tuple[int, str]]
Open = Callable[..., tuple[str, Launch, str]]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """One that a test may remove."""
    folder = tmp_path / "models"
    shutil.copytree(tiny_model.parent, folder)
    return folder / tiny_model.name


@pytest.fixture
def kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """uids of a story, two chats and another story, the oldest first; their model was named by `tiny.bin`."""
    monkeypatch.chdir(model.parent)
    loaded = load_model("tiny.bin", backend="numpy", threads=1, chat_format="zephyr")
    documents = []
    for text in ("Once", "Hello", "Hi", "Then"):
        if text.startswith("H"):
            chat = Conversation(loaded)
            chat.ask(text)
            chat.finish([], "A hen.")
            documents.append(Document(chat, Sampling(), file_sha256(model)))
        else:
            story = Story(loaded, None, "stop")
            story.write(text)
            documents.append(Document(story, Sampling(), file_sha256(model)))
    recorder = Recorder()
    for document in documents:
        recorder.save(document)
        assert recorder.flush()
    recorder.close()
    monkeypatch.chdir("/")
    return [document.uid for document in documents]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """call(...): (exit code, stderr) of `llamatui ...`."""

    def called(*args: object) -> tuple[int, str]:
        monkeypatch.setenv("TEXTUAL_DRIVER", "of a browser")
        monkeypatch.setattr(sys, "argv", ["llamatui", *map(str, args)])
        code = run()
        return code, capsys.readouterr().err

    return called


@pytest.fixture
def opened(call: Call, monkeypatch: pytest.MonkeyPatch) -> Open:
    """opened(...): (room, what it begins with, stderr) of `llamatui ...`."""

    def open_it(*args: object) -> tuple[str, Launch, str]:
        found: list[tuple[str, Launch]] = []
        monkeypatch.setattr(tui, "run_app", lambda *given: found.append(given) or 0)
        code, err = call(*args)
        assert code == 0, err
        return *found[0], err

    return open_it


def test_the_last_of_the_room_is_opened_again(kept: list[str], opened: Open) -> None:
    room, launch, err = opened("story", "--continue")
    assert (room, launch.document, err) == ("story", kept[3], "")
    room, launch, err = opened("chat", "-c")
    assert (room, launch.document, err) == ("chat", kept[2], "")


def test_one_is_opened_by_the_beginning_of_its_id(kept: list[str], opened: Open) -> None:
    assert opened("story", "--open", kept[0][:8])[1].document == kept[0]
    assert opened("chat", "--open", kept[1])[1].document == kept[1]


def test_model_tokenizer_and_format_are_its_own_in_any_folder(
    kept: list[str], opened: Open, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.bin").write_bytes(b"another of this name")
    monkeypatch.chdir(tmp_path)
    launch = opened("chat", "-c")[1]
    assert launch.model == str(model)
    assert launch.tokenizer == str(model.with_name("tokenizer.bin"))
    assert launch.chat_format == "zephyr"


def test_what_the_command_line_says_goes_before_it(kept: list[str], opened: Open, tiny_model: Path) -> None:
    launch = opened("chat", tiny_model, "-c")[1]
    assert (launch.model, launch.tokenizer, launch.chat_format) == (str(tiny_model), None, "")
    launch = opened("chat", "-c", "--chat-format", "chatml", "-z", tiny_model.with_name("tokenizer.bin"))[1]
    assert (launch.chat_format, launch.tokenizer) == ("chatml", str(tiny_model.with_name("tokenizer.bin")))


def test_a_model_that_is_gone_is_told(kept: list[str], call: Call, model: Path) -> None:
    model.unlink()
    for kind, uid in (("story", kept[3]), ("chat", kept[2])):
        code, err = call(kind, "--continue")
        assert code == 3
        assert f"the model that wrote it is gone: {model}" in err
        assert f"llamatui {kind} MODEL --open {uid[:8]}" in err


def test_a_path_that_no_file_can_have_is_told(kept: list[str], call: Call) -> None:
    with closing(sqlite3.connect(database_path())) as connection, connection:
        connection.execute("UPDATE documents SET model_path = ?", (f"/{'x' * 300}\x1b",))
    code, err = call("story", "--continue")
    assert (code, "is gone: /xxx" in err, "\x1b" in err) == (3, True, False)


def test_a_model_that_moved_is_found_by_its_name(
    kept: list[str], opened: Open, model: Path, home: Path
) -> None:
    pulled = home / "d" / "llamatui" / "models"
    shutil.move(model.parent, pulled)
    _, launch, err = opened("story", "-c")
    assert (launch.model, err) == (str(pulled / "tiny.bin"), "")


def test_another_model_in_its_place_is_said(kept: list[str], opened: Open, model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-4] + b"\x00\x00\x00\x01")
    file_sha256(model)
    assert f"note: {model} is not the model that wrote it" in opened("story", "-c")[2]


def test_what_cannot_be_opened_again_is_told(kept: list[str], call: Call) -> None:
    story = kept[0][:8]
    for args, message in (
        (("story", "-c", "--open", story), "--continue and --open are two ways to say which"),
        (("story", "-c", "-i", "Once"), "--prompt begins something new"),
        (("chat", "--open", story, "-i", "Hi"), "--prompt begins something new"),
        (("chat", "--open", story), f"{story} is a story"),
        (("story", "--open", "nonsense"), "nothing in the history begins with nonsense"),
    ):
        code, err = call(*args)
        assert (code, message in err) == (2, True), err


def test_without_a_history_nothing_can_be_opened_again(call: Call) -> None:
    for kind in ("story", "chat"):
        code, err = call(kind, "-c")
        assert (code, f"there is no {kind} in the history yet" in err) == (2, True)
    assert not database_path().exists()


def test_a_pipe_opens_nothing_again(call: Call, kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, err = call("chat", "-c", "--json")
    assert (code, "a chat is opened again in a terminal" in err) == (2, True)
