"""The chat room on a scripted backend: what is said is known, so what is shown can be checked."""

import asyncio
import threading

import pytest
from textual import events
from textual.widgets import TextArea

from llamatui.app.model import load_model
from llamatui.app.tui.bars import Status
from llamatui.app.tui.chat_message import Answer, Note, Question
from llamatui.app.tui.chat_welcome import Welcome
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.errands import Loading
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.app.tui.system_dialog import SystemDialog
from llamatui.app.tui.transcript import Transcript


def composer(room) -> Composer:
    return room.query_one(Composer)


def texts(room, kind) -> list[str]:
    if kind is Answer:
        return [answer.source for answer in room.query(Answer)]
    return [widget.item.text for widget in room.query(kind)]


async def test_answers_stream_as_markdown(open_room, ask, say):
    say("## Yes\n\n- *one*\n- [bold]two[/]\n")
    async with open_room("chat") as (room, pilot):
        assert room.query_one(Welcome).display
        await ask(room, pilot, "hi [x] there")
        assert not room.query_one(Welcome).display
        assert texts(room, Question) == ["hi [x] there"]
        assert texts(room, Answer) == ["## Yes\n\n- *one*\n- [bold]two[/]\n"]
        assert room.query_one("MarkdownH2")
        assert [message.role for message in room.conversation.turns] == ["user", "assistant"]
        assert composer(room).text == ""
        assert room.focused is composer(room)


async def test_esc_keeps_the_partial_answer_and_the_chat_goes_on(open_room, ask, say, write, wait_until):
    gate = threading.Semaphore(4)
    say("one two", gate)
    async with open_room("chat") as (room, pilot):
        await write(pilot, "go")
        await pilot.press("enter")
        await wait_until(lambda: texts(room, Answer) == ["one "])
        await write(pilot, "next")
        await pilot.press("enter")  # not now: the text stays
        assert composer(room).text == "next"
        await pilot.press("escape")
        gate.release()
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        assert "stopped" in str(room.query_one("Answer Marks").content)
        assert room.conversation.turns[1].content.startswith("one ")
        say("three")
        await pilot.press("enter")
        await wait_until(lambda: len(room.conversation.turns) == 4)
        assert texts(room, Question) == ["go", "next"]
        assert texts(room, Answer)[1] == "three"


async def test_regenerate(open_room, ask, say, wait_until):
    say("first")
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        say("second")
        await pilot.press("ctrl+r")
        await wait_until(lambda: not room.busy and texts(room, Answer) == ["second"])
        assert texts(room, Question) == ["hi"]
        assert [message.content for message in room.conversation.turns] == ["hi", "second"]


async def test_regenerate_does_nothing_before_the_first_answer(open_room):
    async with open_room("chat") as (room, pilot):
        await pilot.press("ctrl+r", "ctrl+n")
        await pilot.pause()
        assert room.query_one(Welcome).display


async def test_composer_grows_with_its_lines(open_room, write):
    async with open_room("chat") as (room, pilot):
        heights = []
        for _ in range(12):
            await write(pilot, "a\n")
            await pilot.pause()
            heights.append(composer(room).size.height)
        assert heights[:3] == [2, 3, 4]
        assert heights[-1] == 8
        await pilot.press("b")
        assert composer(room).text == "a\n" * 12 + "b"


async def test_paste_is_never_sent(open_room, say):
    say("no")
    async with open_room("chat") as (room, pilot):
        composer(room).post_message(events.Paste("one\r\n/new\rthree\n"))
        await pilot.pause()
        assert composer(room).text == "one\n/new\nthree\n"
        assert not room.conversation.turns
        assert not room.busy


async def test_enter_does_not_overtake_the_letters_before_it(open_room, say, wait_until):
    say("yes")
    async with open_room("chat") as (room, pilot):
        for key, character in (("h", "h"), ("i", "i"), ("enter", "\r")):
            pilot.app.post_message(events.Key(key, character))
        await wait_until(lambda: len(room.conversation.turns) == 2)
        assert texts(room, Question) == ["hi"]


async def test_what_is_typed_after_enter_is_another_message(open_room, say, wait_until):
    gate = threading.Semaphore(0)
    say("yes", gate=gate)
    async with open_room("chat") as (room, pilot):
        for key in ("a", "enter", "b", "enter"):
            pilot.app.post_message(events.Key(key, None if key == "enter" else key))
        await wait_until(lambda: room.busy and composer(room).text)
        assert texts(room, Question) == ["a"]
        assert composer(room).text == "b"
        gate.release(9)


async def test_messages_written_while_the_model_loads_are_one(make_app, say, wait_until, monkeypatch):
    say("yes")
    gate = threading.Event()
    load = Loading.__call__
    monkeypatch.setattr(Loading, "__call__", lambda self: gate.wait(60) and load(self))
    app = make_app("chat")
    async with app.run_test() as pilot:
        await pilot.press("a", "enter", "b", "enter")
        gate.set()
        await wait_until(lambda: app.room.conversation and len(app.room.conversation.turns) == 2)
        assert texts(app.room, Question) == ["a\nb"]


async def test_a_command_that_cannot_be_done_stands_before_what_was_typed_since(open_room, wait_until):
    async with open_room("chat") as (room, pilot):
        for key in ("slash", "r", "e", "t", "r", "y", "enter", "x"):
            character = {"slash": "/", "enter": None}.get(key, key)
            pilot.app.post_message(events.Key(key, character))
        await wait_until(lambda: composer(room).text == "/retry\nx")
        assert not composer(room).is_command


async def test_empty_message_is_not_sent(open_room, write):
    async with open_room("chat") as (room, pilot):
        await write(pilot, "  \n")
        await pilot.press("enter")
        assert not room.conversation.turns


async def test_system_prompt_holds_from_the_next_message_on(open_room, ask, say, write):
    say("hm", again=2)
    async with open_room("chat", system="old") as (room, pilot):
        await ask(room, pilot, "a")
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert isinstance(pilot.app.screen, SystemDialog)
        area = pilot.app.screen.query_one(TextArea)
        assert area.text == "old"
        area.text = "new"
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert room.conversation.system == "new"
        assert any("next message" in note.message for note in pilot.app._notifications)
        await ask(room, pilot, "b")
        assert "new" in room.model.tokenizer.decode(room.session.tokens)

        await pilot.press("ctrl+s", "x", "escape")
        await pilot.pause()
        assert room.conversation.system == "new"


async def test_forgotten_words_are_shown(open_room, ask, say):
    say("answer " * 12)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hello?")
        (note,) = texts(room, Note)
        assert note.startswith("The context of 96 tokens was full: the oldest ")
        assert "forgotten" in room.query_one(Status).right.plain


async def test_question_that_does_not_fit_comes_back(open_room, ask, say, wait_until, write):
    say("no")
    async with open_room("chat", context=24, overflow="stop") as (room, pilot):
        await write(pilot, "what is the meaning of this?")
        await pilot.press("enter")
        await wait_until(lambda: texts(room, Note))
        assert "/clear" in texts(room, Note)[0]
        assert composer(room).text == "what is the meaning of this?"
        assert not room.conversation.turns
        assert not texts(room, Question)


async def test_error_policy_shows_the_error(open_room, wait_until, say, write):
    say("answer " * 20)
    async with open_room("chat", overflow="error") as (room, pilot):
        await write(pilot, "hi")
        await pilot.press("enter")
        await wait_until(lambda: texts(room, Note))
        assert "do not fit the context of 96" in texts(room, Note)[0]
        assert texts(room, Answer)[0].startswith("answer ")
        assert pilot.app.is_running


async def test_error_mid_answer_keeps_what_was_said(open_room, ask, say):
    say("well then", fail_after=4)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        assert texts(room, Answer) == ["well"]
        assert "RuntimeError: the [bold]wires[/] burnt" in texts(room, Note)[0]
        say("fine")
        await ask(room, pilot, "again")
        assert texts(room, Answer) == ["well", "fine"]


async def test_new_chat(open_room, ask, say):
    say("a", again=2)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert room.query_one(Welcome).display
        assert not texts(room, Question)
        await ask(room, pilot, "ho")
        assert texts(room, Question) == ["ho"]


async def test_control_characters_never_reach_the_terminal(open_room, ask, say, shown):
    say("a\x1b[31mb\x07\r\x9b c")
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        assert texts(room, Answer) == ["a␛[31mb␇� c"]


async def test_a_pasted_control_character_is_shown_safely_and_stays(open_room, write):
    async with open_room("chat") as (room, pilot):
        await write(pilot, "a\x1b[31mb\u202e")
        await pilot.pause()
        lines = composer(room).render_lines(composer(room).outer_size.region)
        assert "a␛[31mb\ufffd" in "\n".join(strip.text for strip in lines)
        assert composer(room).text == "a\x1b[31mb\u202e"


async def test_tall_answer_is_followed_to_its_end(open_room, ask, say):
    say("a\n\n" * 18)
    async with open_room("chat", size=(60, 15)) as (room, pilot):
        await ask(room, pilot, "hi")
        await pilot.pause()
        transcript = room.query_one(Transcript)
        assert transcript.scroll_offset.y == transcript.max_scroll_y > 0


async def test_short_chat_begins_at_the_top(open_room, ask, say):
    say("a")
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        assert room.query_one(Transcript).scroll_offset.y == 0
        assert room.query_one(Question).region.y == room.query_one(Transcript).region.y


async def test_keys_between_two_states_do_nothing(open_room, ask, say, wait_until):
    say("yes", again=9)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        composer(room).text = "ho"
        asking = asyncio.create_task(room.ask("ho"))
        while not asking.done():
            await asyncio.sleep(0)
            assert room.busy
            await room.action_regenerate()
            await room.action_new()
        await wait_until(lambda: not room.busy)
        assert [message.content for message in room.conversation.turns] == ["hi", "yes", "ho", "yes"]


async def test_end_of_an_answer_is_recorded_before_anything_waits(open_room, say, wait_until, monkeypatch):
    say("yes", again=9)
    async with open_room("chat") as (room, _):
        seen = []
        finish = Answer.finish

        async def slow(self):
            seen.append((len(room.conversation.turns), room.busy))
            await asyncio.sleep(0.05)
            await room.action_regenerate()
            await finish(self)

        monkeypatch.setattr(Answer, "finish", slow)
        await room.ask("hi")
        await wait_until(lambda: seen and not room.busy)
        assert seen == [(2, True)]
        assert texts(room, Answer) == ["yes"]


@pytest.mark.parametrize("fail_after", [None, 0])
async def test_old_answer_stays_when_there_is_no_new_one(open_room, ask, say, wait_until, fail_after):
    say("first")
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        say(fail_after=fail_after)
        await pilot.press("ctrl+r")
        await wait_until(lambda: not room.busy and texts(room, Note))
        assert texts(room, Answer) == ["first"]
        assert [message.content for message in room.conversation.turns] == ["hi", "first"]
        if fail_after is None:
            assert texts(room, Note) == ["The model said nothing."]
        say("second")
        await pilot.press("ctrl+r")
        await wait_until(lambda: not room.busy and texts(room, Answer) == ["second"])
        assert not texts(room, Note)


async def test_withdrawn_question_stands_before_the_draft(open_room, say, wait_until):
    gate = threading.Semaphore(0)
    say(gate=gate)
    async with open_room("chat") as (room, _):
        await room.ask("hi")
        composer(room).text = "draft"
        gate.release(9)
        await wait_until(lambda: not room.busy and texts(room, Note))
        assert composer(room).text == "hi\ndraft"


async def test_undo_of_a_long_paste(open_room, write):
    async with open_room("chat") as (room, pilot):
        await write(pilot, "\r".join(map(str, range(14))))
        await pilot.press("ctrl+z")
        await pilot.pause()
        assert composer(room).text == ""
        await pilot.press("ctrl+y", "x")
        assert composer(room).text.endswith("13x")


async def test_new_line_is_not_overtaken(open_room):
    async with open_room("chat") as (room, pilot):
        for key, character in (("a", "a"), ("ctrl+j", "\n"), ("b", "b"), ("shift+enter", None), ("c", "c")):
            pilot.app.post_message(events.Key(key, character))
        await pilot.pause()
        assert composer(room).text == "a\nb\nc"


@pytest.mark.parametrize("width", [1, 2, 4, 5, 24, 32, 33, 34, 40])
async def test_any_size(make_app, width):
    app = make_app("chat")
    async with app.run_test(size=(width, 3 if width < 9 else 24)) as pilot:
        await pilot.pause()
        await pilot.press("a", "ctrl+t", "ctrl+s")
        await pilot.pause()


async def test_prompt_is_only_for_the_room_that_was_launched(open_room, wait_until, say):
    say("yes", again=9)
    async with open_room("story", prompt="Once") as (_, pilot):
        await pilot.app.action_enter("chat")
        await wait_until(lambda: pilot.app.room.NAME == "chat" and pilot.app.room.model is not None)
        await pilot.pause(0.1)
        assert not pilot.app.room.conversation.turns


async def test_a_system_prompt_that_was_not_saved_is_there_again(open_room):
    async with open_room("chat", system="old") as (room, pilot):
        for _ in range(2):
            await pilot.press("ctrl+s", "x", "escape")
            await pilot.pause()
        assert room.conversation.system == "old"
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert pilot.app.screen.query_one(TextArea).text == "oldxx"
        await pilot.press("ctrl+s")
        await pilot.pause()
        assert room.conversation.system == "oldxx"


async def test_the_prompt_of_the_launch_is_asked_once(open_room, say, wait_until, tiny_model):
    say("yes", again=9)
    async with open_room("chat", prompt="hi") as (room, pilot):
        await wait_until(lambda: len(room.conversation.turns) == 2 and not room.busy)
        await pilot.press("ctrl+n")
        await pilot.pause()
        room.open(load_model(tiny_model, threads=1))
        await pilot.pause()
        assert not room.conversation.turns
        assert not room.busy


async def test_a_message_written_while_the_model_loads_does_not_replace_the_prompt(
    make_app, say, wait_until, monkeypatch
):
    say("yes")
    gate = threading.Event()
    load = Loading.__call__
    monkeypatch.setattr(Loading, "__call__", lambda self: gate.wait(60) and load(self))
    app = make_app("chat", prompt="hi")
    async with app.run_test() as pilot:
        await pilot.press("a", "enter")
        gate.set()
        await wait_until(lambda: app.room.conversation and len(app.room.conversation.turns) == 2)
        assert texts(app.room, Question) == ["hi\na"]


async def test_esc_right_behind_enter_stops_what_has_not_begun(open_room, say, wait_until):
    say("yes " * 9)
    async with open_room("chat") as (room, pilot):
        asking = asyncio.create_task(room.ask("hi"))
        await asyncio.sleep(0)
        assert room.busy
        assert room.run is None
        room.action_stop()
        await asking
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        assert composer(room).text == "hi"
        assert not room.conversation.turns
        say("no")
        await pilot.press("enter")
        await wait_until(lambda: len(room.conversation.turns) == 2 and not room.busy)


async def test_nothing_comes_between_an_answer_and_its_going_on(open_room, ask, say, wait_until):
    say("yes", again=9)
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        await ask(room, pilot, "ho")
        await room.action_undo()
        going_on = asyncio.create_task(room.action_resume())
        while not going_on.done():
            await asyncio.sleep(0)
            assert room.busy
        await wait_until(lambda: not room.busy)
        assert room.conversation.turns[1].content == "yesyes"


async def test_what_the_panel_says_holds_for_an_answer_that_has_to_wait(open_room, say, wait_until):
    block, gate = threading.Event(), threading.Semaphore(0)
    say("yes", gate=gate)
    async with open_room("chat") as (room, pilot):
        room.runner.submit(lambda: block.wait(60))
        await room.ask("hi")
        room.query_one(SamplingPanel).put("temperature", 0.5)
        await pilot.pause()
        block.set()
        await wait_until(lambda: room.run.generation is not None)
        settings = room.run.generation.sampler.settings
        gate.release(100)
        assert settings.temperature == 0.5
        await wait_until(lambda: not room.busy)
