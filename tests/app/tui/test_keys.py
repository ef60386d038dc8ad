"""Bindings have ids by which config.toml can give them other keys; the help screen shows what came of it."""

import os
import subprocess
import sys

import pytest
from textual.binding import Binding
from textual.widgets import Static

from llamatui.app.tui import keys
from llamatui.app.tui.bars import Keys, Status
from llamatui.app.tui.help_screen import HelpScreen
from llamatui.app.tui.page import Page
from llamatui.backends import registry
from llamatui.errors import UsageError


def declared():
    """(class, binding) of all of ours, with ids or not."""
    keys.all_bindings()  # imports everything
    seen, queue = set(), [keys.DOMNode]
    while queue:
        kind = queue.pop()
        queue += kind.__subclasses__()
        if kind.__module__.startswith("llamatui.app.tui.") and kind not in seen:
            seen.add(kind)
            for binding in kind.__dict__.get("BINDINGS", ()):
                yield kind, binding


def test_every_binding_has_an_id():
    without = [(kind.__name__, binding) for kind, binding in declared() if not getattr(binding, "id", None)]
    assert not without
    assert len(keys.all_bindings()) > 20


def test_nothing_to_rebind_imports_nothing():
    code = (
        "import sys; from llamatui.app.tui.keys import keymap_from as k; k({}); print('numpy' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


@pytest.mark.parametrize(
    ("table", "problem", "hint"),
    [
        ({"story.rtry": "x"}, "no binding 'story.rtry'", "story.retry"),
        ({"story.retry": "cntrl+y"}, "no key 'cntrl+y'", "ctrl"),
        ({"story.retry": "hyperspace"}, "no key 'hyperspace'", "ctrl"),
        ({"story.retry": ""}, "no key ''", "ctrl"),
        ({"story.retry": "z,,"}, "no key ''", "ctrl"),
        ({"story.retry": "ctrl+q"}, "'ctrl+q' is taken by app.quit", "app.quit"),
        ({"story.retry": "space"}, "'space' is taken by story.continue", "another"),
        ({"app.model": "ctrl+r"}, "'ctrl+r' is taken by chat.", "another"),
    ],
)
def test_what_cannot_be_is_told(table, problem, hint):
    with pytest.raises(UsageError, match="keys: ") as caught:
        keys.keymap_from(table)
    assert problem in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"story.retry": "?"}, None),  # the help's
        ({"story.retry": "ctrl+g"}, "ctrl+g"),
        ({"story.retry": " f5 , é"}, "f5,é"),
        ({"story.retry": "space", "story.continue": "ctrl+g"}, "space"),
        ({"error.retry": "ctrl+r"}, None),  # a dialog's keys clash with no room's
    ],
)
def test_keys_are_written_as_people_do(table, expected):
    if "?" in table.values():
        with pytest.raises(UsageError, match=r"question_mark.* is taken by story.help"):
            keys.keymap_from(table)
        return
    mapped = keys.keymap_from(table)
    if expected:
        assert mapped["story.retry"] == expected


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("ctrl+r", "Ctrl+R"),
        ("question_mark", "?"),
        ("f1", "F1"),
        ("r", "r"),
        ("U", "U"),
        ("shift+up", "Shift+↑"),
    ],
)
def test_keys_are_shown_as_they_stand_on_a_keyboard(key, shown):
    assert keys.show_key(Binding(key, "x")) == shown


async def test_a_key_that_was_changed_works_and_the_old_one_does_not(open_room, wait_until, say):
    say("one two", again=9)
    async with open_room("story", keys=keys.keymap_from({"story.retry": "ctrl+g"})) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        await pilot.press("r")
        await pilot.pause()
        assert not room.busy
        assert "^g" in str(room.query_one(Keys).render())
        say("three", again=9)
        await pilot.press("ctrl+g")
        await wait_until(lambda: room.query_one(Page).text.endswith("three") and not room.busy)


async def test_a_key_beside_a_changed_one_stays(open_room, wait_until, say):
    say("one two", delay=0.05)
    async with open_room("chat", keys=keys.keymap_from({"app.stop": "f9"})) as (room, pilot):
        await pilot.press("ctrl+t")
        assert room.focused is not room.home
        await pilot.press("escape")
        assert room.focused is room.home


def texts(screen):
    return "\n".join(str(widget.content) for widget in screen.query(Static))


async def test_help_lists_the_keys_as_they_are(open_room):
    async with open_room("story", keys=keys.keymap_from({"story.retry": "ctrl+g"})) as (room, pilot):
        await pilot.press("f1")
        await pilot.pause()
        assert isinstance(pilot.app.screen, HelpScreen)
        lines = [line.split() for line in texts(pilot.app.screen).splitlines()]
        retry = ["other", "words", "for", "the", "model's", "last"]
        assert ["Ctrl+G", *retry] in lines
        assert ["r", *retry] not in lines
        assert ["on", "the", "page"] in lines
        assert any(line[:2] == ["Ctrl+O", "open"] for line in lines)
        await pilot.press("f1")
        await pilot.pause()
        assert pilot.app.screen is room


async def test_help_says_what_a_room_is_about_and_scrolls(open_room):
    async with open_room("chat") as (room, pilot):
        await pilot.press("f1")
        await pilot.pause()
        scroll = pilot.app.screen.query_one("VerticalScroll")
        assert pilot.app.screen.query("Markdown")
        assert scroll.max_scroll_y > 0, "24 lines are too few for all of it"
        hint = pilot.app.screen.query_one(".hint")
        assert hint.region.bottom <= 24
        await pilot.press("end")
        assert scroll.scroll_y == scroll.max_scroll_y
        await pilot.press("home", "down")
        assert scroll.scroll_y == 1
        await pilot.press("escape")
        await pilot.pause()
        assert pilot.app.screen is room


@pytest.mark.parametrize("command", [["story"], ["chat"], ["config", "show"]])
def test_the_shell_is_told_before_the_screen_is_taken(command, home, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('[keys]\n"story.nap" = "z"\n')
    code = (
        "import sys; from llamatui.app.cli import rooms, main; rooms.is_terminal = lambda: True;"
        f"sys.argv = ['llamatui', *{command!r}]; main.main()"
    )
    env = {**os.environ, "LLAMATUI_CONFIG": str(config), "LLAMATUI_MODEL": "stories"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "keys: there is no binding 'story.nap'" in done.stderr
    assert "story.retry" in done.stderr


async def test_enter_is_a_new_line_where_another_key_sends(open_room):
    keymap = keys.keymap_from({"chat.send": "f5"})
    async with open_room("chat", keys=keymap) as (room, pilot):
        await pilot.press("a", "enter", "b")
        assert room.composer.text == "a\nb"
        await pilot.press("f5")
        await pilot.pause()
        assert room.composer.text == ""
        assert room.conversation.turns[0].content == "a\nb"


async def test_help_on_the_split_view(open_room, wait_until, monkeypatch, say):
    monkeypatch.setattr(registry, "backend_names", lambda: ["scripted"])
    keymap = keys.keymap_from({"compare.parting": "z"})
    async with open_room("story", keys=keymap) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        await pilot.press("f2")
        await wait_until(lambda: pilot.app.screen is not room)
        split = pilot.app.screen
        for key in ("f1", "question_mark"):
            await pilot.press(key)
            await pilot.pause()
            assert isinstance(pilot.app.screen, HelpScreen)
            lines = [line.split() for line in texts(pilot.app.screen).splitlines()]
            assert ["The", "split", "view"] in lines
            assert ["z", "show", "where", "they", "part"] in lines
            await pilot.press("escape")
            await pilot.pause()
            assert pilot.app.screen is split


async def test_hints_name_the_keys_as_they_are(open_room, wait_until):
    table = {
        "story.edit": "f9",
        "story.memory": "f7",
        "memory.save": "f12",
        "app.stop": "f8",
        "story.undo": "z,f4",
    }
    async with open_room("story", keys=keys.keymap_from(table)) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        room.tell_to_wait("then it is your turn")
        await pilot.pause()
        (notice,) = pilot.app._notifications
        assert notice.message == "F8 stops the model, then it is your turn."
        await pilot.press("f7")
        await wait_until(lambda: "F12 saves, Esc leaves." in texts(pilot.app.screen))
        await pilot.press("M", "a", "x", "f12")
        await wait_until(lambda: "memory set (F7)" in texts(room))
        await pilot.press("f9", "x", "escape")
        await wait_until(lambda: "F9 brings your changes back" in str(room.query_one(Status).render()))
        await pilot.press("n")
        await wait_until(lambda: "F4 brings it back" in texts(room))
    async with open_room("chat", keys=keys.keymap_from({"chat.send": "f5", "app.back": "f6"})) as (
        room,
        pilot,
    ):
        assert "F5 sends, Ctrl+J makes a new line, Esc stops an answer." in texts(room)
