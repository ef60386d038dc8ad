"""What can be done with a message: go on, ask again, edit, flip, copy, undo; with keys and with the mouse."""

import threading

from llamatui.app.tui import clipboard
from llamatui.app.tui.chat_message import Answer, ChatMessage, Marks, Note, Question
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.transcript import Transcript


def said(room):
    return [turn.content for turn in room.conversation.turns]


def answers(room):
    return [answer.source for answer in room.query(Answer)]


def marks(room):
    return [str(one.content) for one in room.query(Marks)]


async def test_a_stopped_answer_goes_on_where_it_ended(open_room, say, write, wait_until):
    gate = threading.Semaphore(4)
    say("one two", gate)
    async with open_room("chat") as (room, pilot):
        await write(pilot, "go")
        await pilot.press("enter")
        await wait_until(lambda: answers(room) == ["one "])
        await pilot.press("escape")
        gate.release()
        await wait_until(lambda: not room.busy)
        assert marks(room)[1] == "stopped"
        before = said(room)[1]
        assert before.startswith("one ")
        say(" and three")
        await pilot.press("up")
        await wait_until(lambda: isinstance(room.focused, Answer))
        await pilot.press("space")
        await wait_until(lambda: not room.busy and said(room)[1] != before)
        assert said(room) == ["go", before + " and three"]
        assert answers(room) == [before + " and three"]
        assert marks(room)[1] == ""
        turn = room.conversation.turns[1]
        assert room.model.tokenizer.decode(turn.ids).strip() == turn.content


async def test_stopping_in_a_code_block_harms_nothing_behind_it(open_room, ask, say):
    async with open_room("chat", context=512) as (room, pilot):
        say("```py\nx = 1")
        await ask(room, pilot, "a")
        say("*fine*")
        await ask(room, pilot, "b")
        assert len(room.query("Code")) == 1
        assert answers(room)[1] == "*fine*"


async def test_versions_of_an_answer_stand_side_by_side(open_room, ask, say, wait_until):
    async with open_room("chat", context=512) as (room, pilot):
        say("first")
        await ask(room, pilot, "hi")
        say("second")
        await pilot.press("ctrl+r")
        await wait_until(lambda: not room.busy and answers(room) == ["second"])
        assert marks(room)[1] == "‹ 2/2 ›"
        await pilot.press("up", "left")
        await wait_until(lambda: answers(room) == ["first"])
        await pilot.pause()
        assert marks(room)[1] == "‹ 1/2 ›"
        assert isinstance(room.focused, Answer)
        await pilot.press("right")
        await wait_until(lambda: answers(room) == ["second"])
        await pilot.pause()
        bar = room.query(Marks).last()
        await pilot.click(bar, offset=(0, 0))
        await wait_until(lambda: answers(room) == ["first"])


async def test_an_edited_question_is_asked_on_a_branch(open_room, ask, say, wait_until):
    async with open_room("chat", context=512) as (room, pilot):
        say("yes", again=2)
        await ask(room, pilot, "hi")
        await ask(room, pilot, "and?")
        composer = room.query_one(Composer)
        composer.text = "a draft"
        composer.move_cursor((0, 0))
        await pilot.press("up", "up", "up", "up")
        assert room.focused.item.text == "hi"
        await pilot.press("e")
        assert composer.text == "hi"
        await pilot.press("escape")
        assert composer.text == "a draft"
        composer.move_cursor((0, 0))
        await pilot.press("up", "up", "up", "up", "e", "!")
        say("no")
        await pilot.press("enter")
        await wait_until(lambda: not room.busy and said(room) == ["hi!", "no"])
        assert composer.text == "a draft"
        await pilot.pause()
        assert marks(room)[0] == "‹ 2/2 ›"
        await room.action_undo()
        assert said(room) == ["hi", "yes", "and?", "yes"]
        await room.action_redo()
        assert said(room) == ["hi!", "no"]


async def test_an_edited_answer_is_what_the_model_said(open_room, ask, say):
    async with open_room("chat", context=512) as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        await pilot.press("up", "e", *" sir", "enter")
        await pilot.pause()
        assert said(room) == ["hi", "yes sir"]
        assert not room.busy
        say("well")
        await ask(room, pilot, "so?")
        assert "yes sir" in room.model.tokenizer.decode(room.session.tokens)


async def test_an_older_answer_is_given_again(open_room, ask, say, wait_until):
    async with open_room("chat", context=512) as (room, pilot):
        say("yes", again=2)
        await ask(room, pilot, "hi")
        await ask(room, pilot, "and?")
        await pilot.press("up", "up", "up")
        assert room.focused.item.text == "yes"
        say("no")
        await pilot.press("r")
        await wait_until(lambda: not room.busy and said(room) == ["hi", "no"])
        await pilot.pause()
        assert [one.item.text for one in room.query(ChatMessage)] == ["hi", "no"]


async def test_copying(open_room, ask, say, monkeypatch):
    copied = []
    monkeypatch.setattr("llamatui.app.tui.chat_room.copy", lambda app, text: copied.append(text))
    async with open_room("chat", context=512) as (room, pilot):
        say("two:\n\n```\nls\n```\n\n~~~\ncat\n~~~\n")
        await ask(room, pilot, "hi")
        await pilot.press("up", "c", "y", "y", "y")
        await pilot.pause()
        assert copied == [said(room)[1], "ls\n", "cat\n", "ls\n"]


async def test_the_last_answer_is_copied_also_behind_a_question(open_room, ask, say, monkeypatch):
    copied = []
    monkeypatch.setattr("llamatui.app.tui.chat_room.copy", lambda app, text: copied.append(text))
    async with open_room("chat", context=512) as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        room.conversation.ask("and?")  # as a process that was killed leaves it
        await room.show()
        room.action_copy()
        assert copied == ["yes"]


async def test_two_quick_clicks_go_two_versions_back(open_room, ask, say, wait_until):
    async with open_room("chat", context=512) as (room, pilot):
        say("one")
        await ask(room, pilot, "hi")
        for answer in ("two", "three"):
            say(answer)
            await pilot.press("ctrl+r")
            await wait_until(lambda text=answer: not room.busy and said(room)[-1] == text)
        await pilot.pause()
        mark = next(one for one in room.query(Marks) if one.item.version == (3, 3))
        for _ in range(2):
            room.post_message(Marks.Flipped(mark.item, -1))
        await wait_until(lambda: said(room)[-1] == "one")


async def test_typing_and_escape_go_back_to_the_composer(open_room, ask, say):
    async with open_room("chat") as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        composer = room.query_one(Composer)
        await pilot.press("up", "up")
        assert isinstance(room.focused, Question)
        await pilot.press("w", "x")
        await pilot.pause()
        assert room.focused is composer
        assert composer.text == "wx"
        await pilot.press("up", "escape")
        assert room.focused is composer
        await pilot.press("up", "down")
        assert room.focused is composer


async def test_a_new_chat_can_be_undone(open_room, ask, say):
    async with open_room("chat") as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert not said(room)
        await room.action_undo()
        assert said(room) == ["hi", "yes"]
        assert room.query_one(Transcript).display


async def test_another_model_goes_on(open_room, ask, say, tiny_model):
    from llamatui.app.model import load_model

    async with open_room("chat", context=512) as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        other = load_model(tiny_model)
        room.open(other)
        await pilot.pause()
        assert room.conversation.model is other
        assert said(room) == ["hi", "yes"]
        assert "goes on from here" in room.query_one(Note).item.text
        say("more")
        await ask(room, pilot, "so?")
        assert "yes" in room.model.tokenizer.decode(room.session.tokens)
        prompt, limits = room.question()
        assert room.model.tokenizer.decode(prompt).rstrip().endswith("[/INST]")
        assert limits.stop_ids


def test_tools_of_the_system(monkeypatch):
    monkeypatch.setattr(clipboard.shutil, "which", lambda name: f"/bin/{name}" if name == "xclip" else None)
    for name in ("SSH_CONNECTION", "SSH_TTY", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert clipboard.tool() is None
    monkeypatch.setenv("DISPLAY", ":0")
    assert clipboard.tool() == ["/bin/xclip", "-selection", "clipboard"]
    monkeypatch.setenv("SSH_TTY", "/dev/pts/0")
    assert clipboard.tool() is None


def test_a_failing_tool_is_no_error(tmp_path):
    clipboard._run([str(tmp_path / "none")], "text")
    clipboard._run(["false"], "text \udcff")


async def test_an_edit_that_was_left_comes_back(open_room, ask, say):
    async with open_room("chat") as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        await pilot.press("up", "e", *"!?")
        assert room.composer.text == "yes!?"
        await pilot.press("escape")
        assert room.composer.text == ""
        assert "changes are kept" in [*pilot.app._notifications][-1].message
        await pilot.press("up", "e")
        assert room.composer.text == "yes!?"
        await pilot.press("enter")
        await pilot.pause()
        assert said(room) == ["hi", "yes!?"]


async def test_an_edit_of_a_message_that_goes_is_kept(open_room, ask, say, wait_until):
    async with open_room("chat", context=512) as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        await pilot.press("up", "e", *"!?", "home", "up")
        assert isinstance(room.focused, Answer)
        say("no")
        await pilot.press("r")
        await wait_until(lambda: not room.busy and said(room) == ["hi", "no"])
        assert room.composer.text == ""
        await pilot.press("up", "left")
        await wait_until(lambda: said(room) == ["hi", "yes"])
        await pilot.press("e")
        assert room.composer.text == "yes!?"


async def test_a_draft_outlives_a_command_in_mid_edit(open_room, ask, say):
    async with open_room("chat") as (room, pilot):
        say("yes")
        await ask(room, pilot, "hi")
        room.composer.text = "my draft"
        room.edit(room.conversation.tree.path[0])
        room.composer.put("/undo", command=True)
        await pilot.press("enter")
        await pilot.pause()
        assert room.composer.text == "my draft"
        assert not said(room)


async def test_a_message_to_edit_is_safe_for_the_terminal(open_room, ask, say):
    async with open_room("chat") as (room, pilot):
        say("a\x1b[31mb")
        await ask(room, pilot, "hi")
        await pilot.press("up", "e")
        assert room.composer.text == "a␛[31mb"
        await pilot.press("enter")
        await pilot.pause()
        assert said(room)[1] == "a\x1b[31mb"


async def test_a_changed_message_is_kept_though_it_begins_with_a_slash(open_room, ask, say):
    say("yes")
    async with open_room("chat") as (room, pilot):
        await ask(room, pilot, "hi")
        room.edit(room.conversation.tree.path[0])
        room.composer.put("")
        await pilot.press(*"/usr is full")
        assert room.draft().edits == ((0, "/usr is full"),)
