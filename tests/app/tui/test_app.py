"""Loading, errors, leaving, and what the app offers around the rooms."""

import subprocess
import sys
import threading
import time

import pytest
from textual.widgets import HelpPanel, Static

from llamatui.app import catalogue, pull
from llamatui.app.tui.chat_room import ChatRoom
from llamatui.app.tui.error_screen import ErrorScreen
from llamatui.app.tui.page import Page
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.app.tui.story_room import OPENINGS, StoryRoom
from llamatui.app.tui.transcript import Note
from llamatui.backends.checkpoint import Checkpoint
from llamatui.errors import UsageError


def inference_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "inference"]


async def test_missing_model_is_explained_and_retried(make_app, wait_until, tmp_path, tiny_model):
    path = tmp_path / "late.bin"
    app = make_app("story", model=path)
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.pause()
        words = " ".join(str(widget.content) for widget in app.screen.query(Static))
        assert "late.bin" in words
        path.write_bytes(tiny_model.read_bytes())
        (tmp_path / "tokenizer.bin").write_bytes((tiny_model.parent / "tokenizer.bin").read_bytes())
        await pilot.press("r")
        await wait_until(lambda: app.room.model is not None)
        assert app.screen is app.room


async def test_a_missing_tokenizer_can_be_fetched_from_the_error_screen(
    make_app, wait_until, tmp_path, tiny_model, monkeypatch
):
    path = tmp_path / "model.bin"
    path.write_bytes(tiny_model.read_bytes())
    size = Checkpoint(path).config.vocab_size
    monkeypatch.setattr(
        catalogue, "tokenizer_for", lambda n: catalogue.find("llama2-tokenizer") if n == size else None
    )
    fetched = []

    def fake_pull(name, *, progress):
        progress(1, 2)
        fetched.append(name)
        (tmp_path / "tokenizer.bin").write_bytes((tiny_model.parent / "tokenizer.bin").read_bytes())

    monkeypatch.setattr(pull, "pull", fake_pull)
    app = make_app("story", model=path)
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.pause()
        words = " ".join(str(widget.content) for widget in app.screen.query(Static))
        assert "fetch llama2-tokenizer (0.5 MB" in words
        await pilot.press("f")
        await wait_until(lambda: app.room.model is not None)
    assert fetched == ["llama2-tokenizer"]


async def test_nothing_is_offered_where_nothing_can_be_fetched(make_app, wait_until, tmp_path):
    app = make_app("story", model=tmp_path / "none.bin")
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.press("f")
        await pilot.pause()
        assert isinstance(app.screen, ErrorScreen)
        assert "fetch" not in " ".join(str(widget.content) for widget in app.screen.query(Static))


async def test_leaving_the_error_screen_gives_its_exit_code(make_app, wait_until, tmp_path):
    app = make_app("chat", model=tmp_path / "none.bin")
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.press("escape")
        assert app.is_running
        await pilot.press("q")
    assert app.return_code == 3


async def test_bug_while_loading_is_a_message(make_app, wait_until, monkeypatch):
    from llamatui.app import model

    def broken(*args, **options):
        raise ZeroDivisionError("[red]oops")

    monkeypatch.setattr(model, "load_model", broken)
    app = make_app("story")
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.pause()
        assert "ZeroDivisionError: [red]oops" in str(app.screen.query_one("#message", Static).content)


async def test_model_without_a_chat_format_offers_the_story_room(make_app, wait_until):
    app = make_app("chat", chat_format="llama3")
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.pause()
        assert str(app.screen.query_one("#hint", Static).content)
        await pilot.press("s")
        await wait_until(lambda: isinstance(app.screen, StoryRoom) and app.room.model is not None)
        await pilot.press("1")
        await wait_until(lambda: app.room.query_one(Page).text)
    assert not app.return_code


@pytest.mark.parametrize("key", ["ctrl+q", "q"])
async def test_quitting_while_generating_leaves_no_thread(open_room, wait_until, say, key):
    say(" one two three four", delay=0.05)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.query_one(Page).text.count("o") > OPENINGS[0].count("o"))
        assert inference_threads()
        await pilot.press(key)
        began = time.monotonic()
    assert time.monotonic() - began < 3


async def test_quitting_while_loading_leaves_no_thread(make_app, wait_until, monkeypatch):
    from llamatui.app import model

    in_the_middle = threading.Event()

    def endless(*args, progress, **options):
        while True:
            progress("counting sheep")
            in_the_middle.set()
            time.sleep(0.01)

    monkeypatch.setattr(model, "load_model", endless)
    app = make_app("story")
    async with app.run_test() as pilot:
        await wait_until(in_the_middle.is_set)
        await pilot.press("ctrl+q")
    assert not inference_threads()


async def test_rooms_change_with_the_same_model(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        await pilot.app.action_enter("chat")
        await wait_until(lambda: isinstance(pilot.app.screen, ChatRoom) and pilot.app.room.model is not None)
        assert pilot.app.room.model is room.model


async def test_palette_offers_what_fits(open_room, wait_until, make_app):
    async with open_room("story") as (room, pilot):
        titles = [command.title for command in pilot.app.get_system_commands(room)]
        assert {"Light theme", "Sampling", "Go to the chat room", "Quit"} <= set(titles)
        assert "New story" not in titles
        await pilot.press("1")
        await wait_until(lambda: room.story.passages and not room.busy)
        commands = {command.title: command.callback for command in pilot.app.get_system_commands(room)}
        commands["Copy the story"]()
        assert pilot.app.clipboard == room.query_one(Page).text
        commands["Light theme"]()
        assert pilot.app.theme == "light"


async def test_help_opens_and_closes(open_room):
    async with open_room("story") as (room, pilot):
        await pilot.press("f1")
        await pilot.pause()
        assert room.query(HelpPanel)
        await pilot.press("f1")
        await pilot.pause()
        assert not room.query(HelpPanel)


async def test_panel_folds_away_on_narrow_screens(open_room):
    async with open_room("chat") as (room, pilot):
        panel = room.query_one(SamplingPanel)
        assert not panel.display
        await pilot.press("ctrl+t")
        assert panel.display
        assert room.focused.id == "temperature"
        await pilot.press("ctrl+t")
        assert not panel.display
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        assert not panel.display  # closed on purpose


async def test_light_theme_and_unknown_theme(make_app):
    app = make_app("story", theme="light")
    async with app.run_test():
        assert not app.current_theme.dark
    with pytest.raises(UsageError, match="no theme"):
        make_app("story", theme="mauve")


async def test_chat_keeps_going_after_an_error_to_start(open_room, wait_until, write, monkeypatch):
    async with open_room("chat") as (room, pilot):

        def broken(*args):
            raise RuntimeError("no")

        monkeypatch.setattr(room.conversation, "start", broken)
        await write(pilot, "hi")
        await pilot.press("enter")
        await wait_until(lambda: room.query(Note))
        assert room.query_one("Composer").text == "hi"
        assert not room.busy


def test_the_command_line_gets_the_launch_without_textual_or_numpy():
    code = "import sys, llamatui.app.tui; print('textual' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]


def test_nothing_before_the_first_paint_imports_numpy():
    code = (
        "import sys, llamatui.app.tui.story_room, llamatui.app.tui.chat_room; print('numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
