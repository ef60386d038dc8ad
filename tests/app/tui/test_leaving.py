"""The end: what the history could not take is in a file, whatever ended the app."""

import os
import pty
import re
import select
import signal
import sys
from pathlib import Path

import pytest

from llamatui.app import tui
from llamatui.app.conversation import Conversation
from llamatui.app.history import database
from llamatui.app.history.database import database_path
from llamatui.app.history.draft import Draft
from llamatui.app.history.snapshot import Document
from llamatui.app.model import load_model
from llamatui.app.sampling import Sampling
from llamatui.app.tui import keeping, rescue
from llamatui.app.tui.launch import LEAVING
from llamatui.app.tui.openings import OPENINGS, WritingLine

ROOM_IN_A_TERMINAL = """
import sys
from llamatui.app.cli.main import main
from llamatui.app.tui.app import LlamaApp

def fail(app):
    raise RuntimeError("a bug")

LlamaApp.action_help = fail
sys.argv = ["llamatui", "story", sys.argv[1], "-i", "the llama", "--backend", "numpy"]
main()
"""


@pytest.fixture
def no_history():
    """Nothing can be saved."""
    folder = database_path().parent
    folder.parent.mkdir(parents=True)
    folder.write_text("a file, where the folder should be")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("end", ["the key", "SIGTERM", "SIGHUP", "a crash"])
def test_what_cannot_be_saved_is_written_into_a_file(no_history, here, tiny_model, end):
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", ROOM_IN_A_TERMINAL, str(tiny_model)])
    screen = read(terminal, lambda screen: b"not saved" in screen and b"tok/s" in screen)
    if end == "SIGHUP":
        os.close(terminal)
    elif end == "SIGTERM":
        os.kill(child, signal.SIGTERM)
    else:
        os.write(terminal, b"\x11" if end == "the key" else b"\x1bOP")
    if end != "SIGHUP":
        screen = read(terminal, lambda screen: False)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    (file,) = here.iterdir()
    assert re.match(r"the llama \w+", file.read_text())
    assert file.stat().st_mode & 0o777 == 0o600
    if end != "SIGHUP":
        assert f"could not be saved in the history; they are in {file}".encode() in screen


def read(terminal, is_enough):
    screen = b""
    while not is_enough(screen) and select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # it has ended
            break
        screen += data
    return screen


async def test_what_was_typed_and_the_answer_so_far_are_in_the_file(
    no_history, here, kept, say, write, wait_until
):
    async with kept("chat", context=512) as (room, pilot):
        say("yes, of course" + " and on" * 9, delay=0.1)
        await write(pilot, "hi")
        await pilot.press("enter")
        await wait_until(lambda: room.partial()[0].startswith("yes"))
        await write(pilot, "and then?")
        await pilot.press("ctrl+q")
    text = room.keeping.rescued.read_text()
    assert re.fullmatch(r"You: hi\n\ntiny: yes[ ,a-z]*\n\nTyped: and then\?\n", text)


async def test_each_text_that_could_not_be_saved_is_in_the_file(no_history, here, kept, say, wait_until):
    async with kept("story") as (room, pilot):
        for key in ("1", "2"):
            say(" He ran.")
            await pilot.press(key)
            await wait_until(lambda: room.story.text.endswith(" He ran.") and not room.busy)
            await pilot.pause()
            await pilot.press("n")
        await pilot.press("ctrl+z")
        room.query_one(WritingLine).give_back("But")
        await pilot.pause()
    assert room.keeping.unsaved
    expected = f"{OPENINGS[0]} He ran.\n\n\n{OPENINGS[1]} He ran.\n\nTyped: But\n"
    assert room.keeping.rescued.read_text() == expected


async def test_what_was_saved_needs_no_file(here, home, kept, say, wait_until):
    async with kept("story") as (room, pilot):
        say(" He ran.")
        await pilot.press("1")
        await wait_until(lambda: room.story.text.endswith(" He ran.") and not room.busy)
    assert (room.keeping.unsaved, room.keeping.rescued) == (False, None)
    assert not list(here.iterdir())


def test_the_first_folder_that_can_be_written_gets_the_file(
    no_history, here, tiny_model, monkeypatch, tmp_path_factory
):
    chat = Conversation(load_model(tiny_model, backend="numpy", chat_format="llama2"))
    chat.ask("hi")
    document = Document(chat, Sampling())
    document.draft = Draft(edits=((0, "hello"),))
    other = tmp_path_factory.mktemp("other")
    monkeypatch.setattr(rescue.tempfile, "gettempdir", lambda: str(other))
    assert rescue.rescue([(document, "")]).parent == here
    (here / "file").touch()
    monkeypatch.setattr(Path, "cwd", lambda: here / "file")
    file = rescue.rescue([(document, "")])
    assert file.parent == other
    assert file.read_text() == "You: hi\n\nTyped: hello\n"
    monkeypatch.setattr(rescue.tempfile, "gettempdir", lambda: str(here / "file"))
    assert rescue.rescue([(document, "")]) is None


def test_a_full_disk_leaves_no_half_file(here, monkeypatch, tmp_path):
    def full(number, mode):
        os.close(number)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rescue.os, "fdopen", full)
    with pytest.raises(OSError, match="No space"):
        rescue._written(tmp_path, b"words")
    assert not list(tmp_path.iterdir())


def test_the_end_waits_longer_than_the_history_does_and_a_signal_longer_than_the_end():
    assert keeping.SETTLING + database.PATIENCE < LEAVING < tui.GRACE
