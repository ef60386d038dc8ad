"""Loading, errors, leaving, and what the app offers around the rooms."""

import subprocess
import sys
import threading
import time

import pytest
from textual.color import Color
from textual.command import CommandList
from textual.widgets import Static

from llamatui.app import catalogue, pull
from llamatui.app.tui import room as tui_room
from llamatui.app.tui.bars import Status
from llamatui.app.tui.chat_room import ChatRoom
from llamatui.app.tui.error_screen import ErrorScreen
from llamatui.app.tui.page import Page
from llamatui.app.tui.story_room import OPENINGS, StoryRoom
from llamatui.app.tui.themes import CONTRAST, DARK, LIGHT
from llamatui.app.tui.transcript import Note
from llamatui.backends.checkpoint import Checkpoint
from llamatui.errors import UsageError
from tests.app.tui.conftest import PIECES, ScriptedBackend


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

    def fake_pull(name, *, progress, step):
        step("downloading")
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


async def test_enter_twice_in_the_palette_leaves_it_once(open_room, burst, wait_until):
    async with open_room("story") as (room, pilot):
        await pilot.press("ctrl+p", *"keys")
        palette = pilot.app.screen
        await wait_until(lambda: palette.query_one(CommandList).option_count)
        await pilot.press("down")
        await burst(pilot, "enter", "enter", "enter")
        await wait_until(lambda: palette not in pilot.app.screen_stack)
        assert pilot.app.room is room


async def test_q_does_not_quit_where_one_can_go_back(open_room, wait_until, tmp_path):
    async with open_room("story") as (room, pilot):
        pilot.app.action_pick_model(str(tmp_path / "none.bin"))
        await wait_until(lambda: isinstance(pilot.app.screen, ErrorScreen))
        await pilot.press("q")
        await pilot.press("escape")
        await wait_until(lambda: pilot.app.screen is room)
        assert pilot.app.is_running


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
    say(" one two three four" * 10, delay=0.05)
    async with open_room("story", context=512) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.query_one(Page).text.count("o") > OPENINGS[0].count("o"))
        assert inference_threads()
        await pilot.press(key)
    assert ScriptedBackend.script  # it was not waited for until the end


async def test_words_are_seen_while_they_are_written_however_dear_a_frame_is(
    open_room, wait_until, say, monkeypatch
):
    # Each frame is as late as it may be, when a number is due too.
    monkeypatch.setattr(tui_room, "SCREEN_SHARE", 1e-9)
    monkeypatch.setattr(tui_room, "SLOWEST_FRAME", 0.6 / tui_room.RATES_PER_SECOND)
    gate = threading.Semaphore(20)
    say(" one two three four" * 10, gate=gate)
    async with open_room("story", context=512) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: " one two th" in room.query_one(Page).text, seconds=20)
        assert not room.run.done
        gate.release(1000)


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


@pytest.mark.parametrize("name", ["story", "chat"])
async def test_a_backend_that_fails_in_mid_text_leaves_what_there_is(name, open_room, wait_until, say, write):
    async with open_room(name) as (room, pilot):
        say("one two three", fail_after=4)
        await write(pilot, "hello")
        await pilot.press("enter")
        await wait_until(lambda: "wires" in room.query_one(Status).left.plain and not room.busy)
        assert "[bold]" in room.query_one(Status).left.plain
        say("fine")
        if name == "chat":
            await write(pilot, "again")
        await pilot.press("enter" if name == "chat" else "space")
        await wait_until(lambda: room.session.tokens[-1:] == [PIECES.index(b"<0x65>")] and not room.busy)
    assert not pilot.app.return_code


@pytest.mark.parametrize("name", ["story", "chat"])
async def test_a_window_may_change_its_size_all_the_time(name, open_room, wait_until, say, write):
    async with open_room(name) as (room, pilot):
        say("one two three four five six seven", delay=0.01)
        await write(pilot, "hello")
        await pilot.press("enter")
        for width, height in [(120, 36), (40, 10), (20, 5), (100, 24), (8, 3), (1, 1), (200, 60), (80, 24)]:
            await pilot.resize_terminal(width, height)
            await pilot.pause()
        await wait_until(lambda: room.session.tokens[-1:] == [PIECES.index(b"<0x6E>")] and not room.busy)
        assert app_is_sound(pilot.app)


def app_is_sound(app):
    return app.is_running and app._exception is None


async def test_rooms_change_with_the_same_model(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        await pilot.app.action_enter("chat")
        await wait_until(lambda: isinstance(pilot.app.screen, ChatRoom) and pilot.app.room.model is not None)
        assert pilot.app.room.model is room.model


async def test_palette_offers_what_fits(open_room, wait_until, make_app):
    async with open_room("story") as (room, pilot):
        titles = [command.title for command in pilot.app.get_system_commands(room)]
        assert {"Theme: light", "Sampling", "Open another model", "Change the backend"} <= set(titles)
        assert {"Keys", "Go to the chat room", "Screenshot", "Quit"} <= set(titles)
        assert "New story" not in titles
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        commands = {command.title: command.callback for command in pilot.app.get_system_commands(room)}
        commands["Copy the story"]()
        assert pilot.app.clipboard == room.query_one(Page).text
        commands["Theme: light"]()
        assert pilot.app.theme == "light"


async def test_panel_folds_away_on_narrow_screens(open_room):
    async with open_room("chat") as (room, pilot):
        panel = room.query_one("#side")
        assert not panel.display
        await pilot.press("ctrl+t")
        assert panel.display
        assert room.focused.id == "temperature"
        await pilot.press("ctrl+t")
        assert not panel.display
        await pilot.resize_terminal(120, 36)
        await pilot.pause()
        assert not panel.display  # closed on purpose


async def test_themes_by_setting_and_palette(make_app):
    app = make_app("story", theme="light")
    async with app.run_test():
        assert not app.current_theme.dark
        commands = {command.title: command.callback for command in app.get_system_commands(app.screen)}
        assert "Theme: light" not in commands
        for name in ("dark", "contrast"):
            commands[f"Theme: {name}"]()
            assert app.theme == name
    with pytest.raises(UsageError, match="no theme") as caught:
        make_app("story", theme="mauve")
    assert caught.value.hint == "choose dark, light, contrast"


def ratio(one: Color, other: Color) -> float:
    """As WCAG 2 defines it: 1 to 21."""

    def luminance(color: Color) -> float:
        parts = [c / 255 for c in (color.r, color.g, color.b)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("theme", "least"), [(DARK, 4.5), (LIGHT, 4.5), (CONTRAST, 7.0)])
@pytest.mark.parametrize("surface", ["background", "surface"])
def test_what_is_said_in_colour_can_be_read(theme, least, surface):
    ground = Color.parse(getattr(theme, surface))
    for name in ("foreground", "accent", "warning", "error", "success"):
        assert ratio(Color.parse(getattr(theme, name)), ground) >= least, name


def test_the_quiet_words_of_the_high_contrast_theme_are_not_grey():
    for name in ("text-muted", "text-disabled", "foreground-muted"):
        assert ratio(Color.parse(CONTRAST.variables[name]), Color.parse(CONTRAST.surface)) >= 7, name


@pytest.mark.parametrize("theme", ["dark", "light", "contrast"])
@pytest.mark.parametrize(
    "terminal",
    [
        {"TERM": "xterm", "COLORTERM": ""},
        {"TERM": "linux", "COLORTERM": ""},
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
    ],
)
async def test_few_colours_are_the_terminal_s_own(make_app, wait_until, monkeypatch, terminal, theme):
    for name, value in {"COLORTERM": "", **terminal}.items():
        monkeypatch.setenv(name, value)
    app = make_app("story", theme=theme)
    async with app.run_test() as pilot:
        await wait_until(lambda: app.room.model is not None)
        await pilot.pause()
        found = set()
        for strip in app.screen._compositor.render_strips():
            for segment in strip:
                if segment.style is not None:
                    found |= {segment.style.color, segment.style.bgcolor} - {None}
        assert found
        assert not [color for color in found if color.triplet is not None], "no colours of ours"


async def test_many_colours_are_ours(make_app):
    app = make_app("story")
    async with app.run_test():
        assert not app.native_ansi_color
        assert app.current_theme.background == DARK.background


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
