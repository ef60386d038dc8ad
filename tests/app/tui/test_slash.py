"""Commands: what is one, how they are completed, and what they do."""

import json

import pytest

from llamatui.app.tui import slash
from llamatui.app.tui.chat_commands import COMMANDS
from llamatui.app.tui.chat_message import Answer
from llamatui.app.tui.chat_welcome import Opening
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.app.tui.slash import suggestions
from llamatui.app.tui.slash_menu import SlashMenu
from llamatui.app.tui.system_dialog import SystemDialog


def nothing(command, argument):
    return []


def labels(text, values=nothing):
    return [one.label for one in suggestions(text, COMMANDS, values)]


def test_what_is_a_command():
    assert slash.is_command("/help")
    for text in ("//help", "/ help", "help", " /help", ""):
        assert not slash.is_command(text)
    assert slash.message("//usr/bin") == "/usr/bin"
    assert slash.message("/ x") == "/ x"


def test_parse():
    assert slash.parse("/set temperature 0.7") == ("set", "temperature 0.7")
    assert slash.parse("/SYSTEM  be kind\nand brief ") == ("system", "be kind\nand brief")
    assert slash.parse("/system\nbe kind") == ("system", "be kind")
    assert slash.parse("/") == ("", "")


def test_names_are_completed_those_that_begin_so_first():
    assert len(labels("/")) == len(COMMANDS)
    assert labels("/s")[:3] == ["/system [TEXT]", "/set NAME VALUE", "/save [FILE.json]"]
    assert labels("/port") == ["/export [FILE.md]"]
    assert labels("/nothing") == labels("//") == labels("/help\n") == []


def test_arguments_are_completed():
    def values(command, argument):
        assert command == "backend"
        return [("numba", "runs now"), ("numpy", "")]

    assert labels("/backend ", values) == ["numba", "numpy"]
    (one,) = suggestions("/backend nump", COMMANDS, values)
    assert (one.text, one.complete) == ("/backend numpy", True)
    assert labels("/backend numpy", values) == []
    assert labels("/unknown x", values) == []


@pytest.fixture
def ask(wait_until, write):
    async def ask(room, pilot, text):
        before = len(room.conversation.turns)
        await write(pilot, text)
        await pilot.press("enter")
        await wait_until(lambda: len(room.conversation.turns) == before + 2 and not room.busy, "an answer")

    return ask


def toasts(pilot):
    return [note.message for note in pilot.app._notifications]


async def test_the_menu_completes_and_closes(open_room):
    async with open_room("chat") as (room, pilot):
        menu, composer = room.query_one(SlashMenu), room.query_one(Composer)
        assert not menu.display
        await pilot.press("/", "s", "e")
        assert menu.display
        assert menu.choice.label == "/set NAME VALUE"
        await pilot.press("tab")
        assert composer.text == "/set "
        await pilot.press("t", "o", "p", "down", "up", "enter")
        assert composer.text == "/set top_p "
        await pilot.press("escape")
        assert not menu.display
        await pilot.press(*"0.5", "enter")
        await pilot.pause()
        assert room.query_one(SamplingPanel).sampling.top_p == 0.5
        assert composer.text == ""
        await pilot.press("/")
        await pilot.click(menu, offset=(3, 3))
        await pilot.pause()
        assert composer.text == "/set "
        composer.put("")
        await pilot.press("/")
        await pilot.click(menu, offset=(3, 2))
        await pilot.pause()
        assert isinstance(pilot.app.screen, SystemDialog), "what needs no argument is done at once"


async def test_only_a_typed_slash_is_a_command(open_room, ask, say, write, wait_until):
    async with open_room("chat", context=512) as (room, pilot):
        say("a", again=9)
        composer, menu = room.query_one(Composer), room.query_one(SlashMenu)
        await write(pilot, "/quit")
        assert not menu.display
        await pilot.press("enter")
        await wait_until(lambda: len(room.conversation.turns) == 2 and not room.busy)
        assert room.conversation.turns[0].content == "/quit"
        await write(pilot, "/new\n")
        await pilot.press("ctrl+z", "ctrl+y", "enter")
        await wait_until(lambda: len(room.conversation.turns) == 4 and not room.busy)
        await pilot.press(*"//x", "enter")
        await wait_until(lambda: len(room.conversation.turns) == 6 and not room.busy)
        assert room.conversation.turns[4].content == "/x"
        await pilot.press(*"/nonsense", "enter")
        await pilot.pause()
        assert composer.text == "/nonsense"
        assert "no command /nonsense" in toasts(pilot)[-1]


async def test_letters_that_are_typed_elsewhere_belong_to_the_composer(open_room, ask, say):
    async with open_room("chat") as (room, pilot):
        composer = room.query_one(Composer)
        await pilot.press("up")
        assert isinstance(room.focused, Opening)
        await pilot.press(*"/foo")
        assert (composer.text, composer.is_command) == ("/foo", True)
        assert room.focused is composer
        composer.put("")
        say("yes")
        await ask(room, pilot, "hi")
        await pilot.press("up")
        assert room.message is not None
        await pilot.press(*"/foo")
        assert (composer.text, composer.is_command) == ("/foo", True)


async def test_a_message_that_begins_like_a_command_is_none(open_room, write, say):
    async with open_room("chat") as (room, pilot):
        for line in ("/quit smoking: how?", "/clear now", "/help me"):
            await pilot.press("/")
            await write(pilot, line[1:])
            await pilot.press("enter")
            await pilot.pause()
            assert room.query_one(Composer).text == line
            assert "takes nothing behind it" in toasts(pilot)[-1]
            assert pilot.app.screen is room
            room.query_one(Composer).put("")


async def test_commands(open_room, ask, say, tmp_path, monkeypatch, wait_until):
    monkeypatch.chdir(tmp_path)
    copied: list[str] = []
    monkeypatch.setattr("llamatui.app.tui.chat_room.copy", lambda app, text: copied.append(text))
    async with open_room("chat", context=512) as (room, pilot):
        composer = room.query_one(Composer)

        async def do(line):
            composer.put(line, command=True)
            await pilot.press("enter")
            await wait_until(lambda: not room.busy)
            await pilot.pause()

        await do("/retry")
        assert "no chat yet" in toasts(pilot)[-1]
        assert composer.text == "/retry"
        composer.put("")
        say("yes")
        await ask(room, pilot, "Why is the sky blue?")
        await do("/system be brief")
        assert room.conversation.system == "be brief"
        await do("/set seed 1234567890123456789")
        assert room.query_one(SamplingPanel).sampling.seed == 1234567890123456789
        await do("/set seed 7")
        room.composer.put("")
        await pilot.press(*"/set seed ", "tab")
        assert composer.text == "/set seed 7"
        await do("/set seed 1234567")
        composer.put("")
        await pilot.press(*"/set seed ", "tab")
        assert composer.text == "/set seed 1234567"
        await do("/set seed 7")
        await do("/set temperature 0")
        assert (room.query_one(SamplingPanel).sampling.seed, composer.text) == (7, "")
        for wrong in (
            "/set temperature -1",
            "/set colour 3",
            "/set top_k many",
            "/backend warp",
            "/theme mauve",
            "/copy that",
        ):
            await do(wrong)
            assert composer.text == wrong
        await do("/save")
        assert composer.text == "/save why-is-the-sky-blue.json"
        await do(composer.text)
        saved = json.loads((tmp_path / "why-is-the-sky-blue.json").read_text("utf-8"))
        assert saved["schema"] == "llamatui.chat/1"
        await do("/save why-is-the-sky-blue.json")
        assert "there already" in toasts(pilot)[-1]
        await do("/export a.md")
        assert "Why is the sky blue?" in (tmp_path / "a.md").read_text("utf-8")
        say("no")
        await do("/retry")
        assert room.conversation.turns[1].content == "no"
        await do("/undo")
        assert room.conversation.turns[1].content == "yes"
        await do("/redo")
        await do("/edit")
        assert composer.text == "Why is the sky blue?"
        await pilot.press("escape")
        await do("/clear")
        assert not room.conversation.turns
        await do("/undo")
        assert room.conversation.turns[1].content == "no"
        await do("/theme light")
        assert pilot.app.theme == "light"
        say(" more\n```\nx = 1\n```\n")
        await do("/continue")
        assert room.query(Answer).last().source.startswith("no more")
        await do("/copy")
        await do("/copy code")
        assert [text.strip() for text in copied] == ["no more\n```\nx = 1\n```", "x = 1"]


async def test_the_text_is_written_in_an_editor(open_room, write, monkeypatch, tmp_path):
    from contextlib import nullcontext

    script = tmp_path / "editor"
    script.write_text("#!/bin/sh\nprintf ' and more\\n' >> \"$1\"\n")
    script.chmod(0o755)
    async with open_room("chat") as (room, pilot):
        monkeypatch.setattr(type(pilot.app), "suspend", lambda self: nullcontext())
        composer = room.query_one(Composer)
        await write(pilot, "/new words")
        monkeypatch.setenv("VISUAL", str(script))
        await pilot.press("ctrl+g")
        await pilot.pause()
        assert composer.text == "/new words and more"
        assert not composer.is_command
        for editor, message in (
            ("false", "exit code 1"),
            (str(tmp_path / "none"), "No such file"),
            ("", "no editor"),
        ):
            monkeypatch.setenv("VISUAL", editor)
            monkeypatch.setenv("EDITOR", editor)
            await pilot.press("ctrl+g")
            await pilot.pause()
            assert message in toasts(pilot)[-1]
            assert composer.text == "/new words and more"


async def test_a_model_s_name_is_a_name_whatever_it_is(open_room, monkeypatch):
    asked = []
    async with open_room("chat") as (room, pilot):
        monkeypatch.setattr(pilot.app, "action_pick_model", asked.append)
        room.composer.put('/model it\'s ("here")', command=True)
        await pilot.press("enter")
        await pilot.pause()
        assert asked == ['it\'s ("here")']


async def test_names_in_the_menu_are_safe_for_the_terminal(open_room):
    async with open_room("chat") as (room, _):
        menu = room.query_one(SlashMenu)
        menu.offer([slash.Suggestion("/model a\x1bb", "a\x1bb", "", True)])
        assert "a␛b" in str(menu.get_option_at_index(0).prompt)


@pytest.mark.parametrize("name", ["a\0b.json", "no/such/folder.json"])
async def test_a_file_that_cannot_be_written_is_told(open_room, ask, say, name):
    async with open_room("chat") as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        room.composer.put(f"/save {name}", command=True)
        await pilot.press("enter")
        await pilot.pause()
        assert room.composer.text == f"/save {name}"
        assert toasts(pilot)
