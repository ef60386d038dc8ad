"""Keys and clicks that come as one burst: a screen is left once, and takes no other with it."""

from types import SimpleNamespace

import pytest
from textual import events
from textual.app import App
from textual.widgets import OptionList

from llamatui.app.tui.backend_picker import BackendPicker
from llamatui.app.tui.composer import Editor
from llamatui.app.tui.error_screen import Choice, ErrorScreen
from llamatui.app.tui.help_screen import HelpScreen
from llamatui.app.tui.model_picker import ModelPicker
from llamatui.app.tui.runner import Runner
from llamatui.app.tui.story_dialogs import MemoryDialog, SaveDialog
from llamatui.app.tui.system_dialog import SystemDialog
from llamatui.app.tui.themes import DARK

BESIDE = (1, 1)  # a place where no dialog is


class Host(App):
    def __init__(self, screen):
        super().__init__()
        self.register_theme(DARK)
        self.theme = "dark"
        self.opened = screen
        self.answers = []

    def on_mount(self):
        self.push_screen(self.opened, self.answers.append)


@pytest.fixture
def shown_over(wait_until, tiny_model):
    """async with shown_over(screen) as pilot: it is there, with what it lists."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def run(screen):
        app = Host(screen)
        async with app.run_test(size=(120, 40)) as pilot:
            await wait_until(lambda: all(options.options for options in screen.query(OptionList)))
            await pilot.pause()
            yield pilot
            assert app.screen_stack[0] is app.screen

    return run


@pytest.fixture
def model_picker(tiny_model):
    reader = Runner("headers", lambda error: None)
    yield ModelPicker(tiny_model, True, None, reader)
    reader.close()


def backend_picker():
    return BackendPicker(SimpleNamespace(name="numpy", preparing=""))


def help_screen():
    return HelpScreen(BackendPicker(SimpleNamespace(name="numpy", preparing="")), {})


async def click_twice(pilot, x, y):
    """As one read of the terminal."""
    for kind in (events.MouseDown, events.MouseUp) * 2:
        pilot.app.post_message(kind(None, x, y, 0, 0, 1, False, False, False, x, y))
    await pilot.pause()


@pytest.mark.parametrize("keys", [("enter", "enter"), ("enter", "escape"), ("escape", "enter")])
async def test_a_backend_is_picked_once(shown_over, burst, wait_until, keys):
    async with shown_over(backend_picker()) as pilot:
        await burst(pilot, *keys)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert len(pilot.app.answers) == 1


@pytest.mark.parametrize("keys", [("enter", "enter"), ("enter", "escape"), ("escape", "enter")])
async def test_a_model_is_picked_once(shown_over, burst, wait_until, model_picker, keys):
    async with shown_over(model_picker) as pilot:
        await burst(pilot, *keys)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert len(pilot.app.answers) == 1


async def test_two_clicks_beside_a_dialog_leave_it_once(shown_over, wait_until, model_picker):
    for screen in (backend_picker(), help_screen(), model_picker):
        async with shown_over(screen) as pilot:
            await click_twice(pilot, *BESIDE)
            await wait_until(lambda app=pilot.app: app.answers)
            await pilot.pause()
            assert len(pilot.app.answers) == 1


async def test_two_clicks_on_what_an_error_offers_choose_it_once(shown_over, wait_until):
    async with shown_over(ErrorScreen("It broke", ValueError("x"), story_instead=True)) as pilot:
        await click_twice(pilot, *pilot.app.screen.query(Choice).first().region.offset)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert pilot.app.answers == ["story"]


async def test_what_lies_over_an_error_is_not_left_with_it(shown_over, wait_until):
    error = ErrorScreen("It broke", ValueError("x"))
    async with shown_over(error) as pilot:
        picker = backend_picker()
        await pilot.app.push_screen(picker)
        error.dismiss("retry")
        await pilot.pause()
        assert pilot.app.screen is picker
        await pilot.press("escape", "r")
        await wait_until(lambda: pilot.app.answers)
        assert pilot.app.answers == ["retry"]


@pytest.mark.parametrize("kind", [MemoryDialog, SystemDialog])
@pytest.mark.parametrize("keys", [("x", "ctrl+s", "ctrl+s"), ("x", "ctrl+s", "escape")])
async def test_what_was_typed_is_saved_once(shown_over, burst, wait_until, kind, keys):
    saved = []
    nothing = ("", "") if kind is MemoryDialog else ""
    dialog = kind(nothing, nothing, lambda *typed: saved.append(typed), lambda typed: None)
    async with shown_over(dialog) as pilot:
        dialog.query(Editor).first().focus()
        await pilot.pause()
        await burst(pilot, *keys)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert pilot.app.answers == [None]
    assert len(saved) == 1


@pytest.mark.parametrize("keys", [("enter", "enter"), ("enter", "enter", "enter")])
async def test_a_story_is_written_once(shown_over, burst, wait_until, tmp_path, monkeypatch, keys):
    monkeypatch.chdir(tmp_path)
    async with shown_over(SaveDialog("A hen.", SimpleNamespace())) as pilot:
        await burst(pilot, *keys)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert [path.name for path in pilot.app.answers] == [path.name for path in tmp_path.iterdir()]
