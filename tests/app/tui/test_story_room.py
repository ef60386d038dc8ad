"""The story room on the real engine with a tiny model, and on a scripted backend where timing matters."""

import threading
from dataclasses import replace

import pytest
from textual import events
from textual.widgets import Input

from llamatui.app.tui.bars import Header, Status
from llamatui.app.tui.errands import Loading
from llamatui.app.tui.openings import OPENINGS, Opening, Openings, WritingLine
from llamatui.app.tui.page import Page
from llamatui.app.tui.sampling_panel import Lock, SamplingPanel


def status(room) -> str:
    """What happens or happened, without the numbers behind it."""
    return room.query_one(Status).left.plain.split(" · ")[0]


def page(room) -> str:
    return room.query_one(Page).text


async def begin(room, pilot, wait_until, key="1"):
    await pilot.press(key)
    await wait_until(lambda: room._begun and not room.busy, "the story")
    await pilot.pause()


async def test_empty_page_teaches_and_a_key_begins(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        assert room.query_one(Openings).display
        await begin(room, pilot, wait_until, "2")
        assert page(room).startswith(OPENINGS[1] + " ")
        assert len(page(room)) > len(OPENINGS[1]) + 50
        assert status(room) == "the context is full"
        assert not room.query_one(Openings).display
        assert "/96" in room.query_one(Status).right.plain


async def test_a_click_begins(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        await pilot.click(room.query(Opening).last())
        await wait_until(lambda: not room.busy and page(room))
        assert page(room).startswith(OPENINGS[2])


async def test_own_beginning_may_hold_digits_and_markup(open_room, wait_until, write, say):
    say(" fine [bold]x[/]")
    async with open_room("story") as (room, pilot):
        await write(pilot, "At 1")
        await pilot.press(*"[b]", "enter")
        await wait_until(lambda: page(room).endswith("x[/]") and not room.busy)
        assert page(room) == "At 1[b] fine [bold]x[/]"
        assert status(room) == "the end"
        assert room.query_one(WritingLine).value == ""


async def test_a_digit_in_a_burst_of_keys_is_a_digit(open_room, say):
    say()
    async with open_room("story") as (room, pilot):
        line = room.query_one(WritingLine)
        for key in "A1":
            pilot.app.post_message(events.Key(key, key))
        await pilot.pause()
        assert line.value == "A1"
        assert not room._begun


async def test_a_model_that_loads_slowly_begins_when_it_is_ready(make_app, wait_until, monkeypatch):
    loaded = threading.Event()
    from llamatui.app import model as module

    load = module.load_model

    def slow(*args, **options):
        assert loaded.wait(60)
        return load(*args, **options)

    monkeypatch.setattr(module, "load_model", slow)
    app = make_app("story")
    async with app.run_test() as pilot:
        await pilot.press("1")
        await wait_until(lambda: "as soon as" in status(app.room))
        loaded.set()
        await wait_until(lambda: page(app.room).startswith(OPENINGS[0]) and not app.room.busy)
        await pilot.press("n", "2")
        await wait_until(lambda: page(app.room).startswith(OPENINGS[1]))


async def test_prompt_given_at_the_start_is_told_at_once(open_room, wait_until):
    async with open_room("story", prompt="a llama") as (room, _):
        await wait_until(lambda: page(room).startswith("a llama ") and not room.busy)


async def test_esc_stops_and_keeps_the_text_and_space_goes_on(open_room, wait_until, say):
    gate = threading.Semaphore(4)
    say(" one two three", gate)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: page(room).endswith(" one"))
        assert room.query_one(Page).writing
        await pilot.press("escape")
        gate.release(1)
        await wait_until(lambda: not room.busy)
        assert status(room) == "stopped"
        kept = page(room)
        assert kept.startswith(OPENINGS[0] + " one")
        gate.release(100)
        await pilot.press("space")
        await wait_until(lambda: page(room).endswith("two three") and not room.busy)
        assert page(room).startswith(kept)
        assert pilot.app.is_running


async def test_retry_gives_other_words_unless_the_seed_is_locked(open_room, wait_until):
    async with open_room("story", temperature=1.0, size=(120, 36)) as (room, pilot):
        await begin(room, pilot, wait_until)
        texts = [page(room)]
        for _ in range(3):
            await pilot.press("r")
            await wait_until(lambda: not room.busy)
            texts.append(page(room))
        assert len(set(texts)) > 2
        assert all(text.startswith(OPENINGS[0]) for text in texts)
        assert room.story.text == texts[-1]

        await pilot.click(Lock)
        await pilot.press("escape", "r")
        await wait_until(lambda: not room.busy)
        assert page(room) == texts[-1]
        assert len(room.story.tree.siblings(room.story.path[-1])) == 1, "the same words are no other version"


async def test_seed_from_the_command_line_is_locked(open_room, wait_until):
    async with open_room("story", temperature=1.0, seed=7, size=(120, 36)) as (room, pilot):
        assert room.query_one(Lock).locked
        await begin(room, pilot, wait_until)
        first = page(room)
        await pilot.press("r")
        await wait_until(lambda: not room.busy)
        assert page(room) == first


async def test_sampling_holds_from_the_next_words_on(open_room, wait_until):
    async with open_room("story", temperature=0.0, size=(120, 36)) as (room, pilot):
        await begin(room, pilot, wait_until)
        greedy = page(room)
        await pilot.press("s")  # closes the panel that is open at this width
        assert not room.query_one("#side").display
        await pilot.press("s", "up", "up")
        assert room.query_one(SamplingPanel).sampling.temperature == 0.1
        room.query_one("#temperature", Input).value = "4"
        await pilot.press("tab")
        assert room.focused.id == "top_p"
        await pilot.press("escape", "r")
        await wait_until(lambda: not room.busy)
        assert page(room) != greedy


async def test_nonsense_in_the_panel_changes_nothing(open_room):
    async with open_room("story", size=(120, 36)) as (room, pilot):
        panel = room.query_one(SamplingPanel)
        before = panel.sampling
        for value in ("", "-", "101", "0.000001"):
            room.query_one("#temperature", Input).value = value
            await pilot.pause()
            assert panel.sampling == before
        room.query_one("#seed", Input).value = "12"
        await pilot.pause()
        assert panel.sampling == replace(before, seed=12)
        assert panel.query_one(Lock).locked
        room.query_one("#seed", Input).value = ""
        await pilot.pause()
        assert panel.sampling == before
        await pilot.click(Lock)  # nothing to keep: asks for a seed instead
        assert room.focused.id == "seed"
        assert panel.sampling == before


async def test_writing_along(open_room, wait_until, write, say):
    say(" ran home.", again=2)
    async with open_room("story") as (room, pilot):
        await begin(room, pilot, wait_until)
        await pilot.press("enter")
        assert room.typing
        await write(pilot, "The end")
        await pilot.press("enter")
        await wait_until(lambda: page(room).endswith("The end ran home.") and not room.busy)
        assert page(room) == f"{OPENINGS[0]} ran home. The end ran home."
        begun = [token.author for token in room.story.path if token.begins]
        assert begun == ["writer", "model"] * 2
        assert room.model.tokenizer.decode([token.id for token in room.story.path]) == page(room)


async def test_retry_after_nothing_more_came(open_room, wait_until, say):
    say(" ran home.")
    async with open_room("story") as (room, pilot):
        await begin(room, pilot, wait_until)
        await pilot.press("space")  # the script has ended: nothing comes
        await wait_until(lambda: not room.busy)
        say(" slept.", again=2)
        await pilot.press("r")
        await wait_until(lambda: not room.busy)
        assert page(room) == room.story.text == OPENINGS[0] + " slept."


async def test_new_story(open_room, wait_until, say):
    say(" hello", again=2)
    async with open_room("story") as (room, pilot):
        await begin(room, pilot, wait_until)
        await pilot.press("n")
        assert page(room) == ""
        assert room.query_one(Openings).display
        await begin(room, pilot, wait_until, "3")
        assert page(room) == OPENINGS[2] + " hello"


async def test_full_context_says_so_and_goes_no_further(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        await begin(room, pilot, wait_until)
        before = page(room)
        assert room.query_one(Status).right.plain.startswith("stops when full · context 96/96")
        await pilot.press("space")
        await pilot.pause()
        assert not room.busy
        assert page(room) == before


async def test_shifted_context_tells_what_was_forgotten(open_room, wait_until):
    async with open_room("story", overflow="shift") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: "forgotten" in room.query_one(Status).right.plain, "a shift")
        await pilot.press("escape")
        await wait_until(lambda: not room.busy)
        assert "forgotten" in room.query_one(Status).right.plain
        before = page(room)
        await pilot.press("space")
        await wait_until(lambda: len(page(room)) > len(before) + 100)
        await pilot.press("escape")
        await wait_until(lambda: not room.busy)
        assert page(room).startswith(before)


async def test_error_while_writing_is_shown_and_the_app_goes_on(open_room, wait_until, say):
    say(" once more", fail_after=4)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: "RuntimeError" in status(room))
        assert page(room) == OPENINGS[0] + " onc"
        say("e more")
        await pilot.press("space")
        await wait_until(lambda: page(room).endswith(" once more"))


async def test_half_a_character_is_taken_back_when_it_is_stopped(open_room, wait_until, say):
    gate = threading.Semaphore(2)
    say("a🦙b", gate)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: len(room.run.generation.new_tokens) >= 2 if room.run.generation else False)
        await pilot.press("escape")
        gate.release()
        await wait_until(lambda: not room.busy)
        assert page(room) == OPENINGS[0] + "a"
        assert room.model.tokenizer.decode([token.id for token in room.story.path]) == page(room)


async def test_rate_and_model_stand_at_the_top(open_room, wait_until):
    async with open_room("story") as (room, pilot):
        name = room.session.backend.name
        assert room.query_one(Header).left.plain.startswith(f"story   tiny · {name} · ")
        await begin(room, pilot, wait_until)
        assert room.query_one(Header).right.plain.endswith("tok/s")


@pytest.mark.parametrize("size", [(60, 15), (200, 50), (24, 8)])
async def test_resizing_keeps_everything_readable(open_room, wait_until, shown, size):
    async with open_room("story") as (room, pilot):
        await begin(room, pilot, wait_until)
        await pilot.resize_terminal(*size)
        await pilot.pause()
        widget = room.query_one(Page)
        widget.scroll_home(animate=False)
        await pilot.pause()
        words = shown(widget).split()
        assert page(room).split()[: len(words)] == words
        assert room.query_one("#side").display == (size[0] >= 100)


async def test_reader_who_scrolled_up_is_left_alone(open_room, wait_until, say):
    gate = threading.Semaphore(0)
    say("a\n" * 20, gate)
    async with open_room("story", size=(60, 12)) as (room, pilot):
        widget = room.query_one(Page)
        await pilot.press("1")
        gate.release(30)
        await wait_until(lambda: page(room).count("\n") == 15)
        await wait_until(lambda: widget.scroll_offset.y == widget.max_scroll_y > 0)
        await pilot.press("pageup")
        await wait_until(lambda: widget.scroll_offset.y < widget.max_scroll_y)
        await pilot.pause(0.3)
        at = widget.scroll_offset.y
        gate.release(100)
        await wait_until(lambda: not room.busy)
        assert widget.scroll_offset.y == at


@pytest.mark.parametrize("temperature", [0.004, 0.12345678])
async def test_panel_does_not_round_what_was_given(open_room, temperature):
    async with open_room("story", temperature=temperature, size=(120, 36)) as (room, pilot):
        panel = room.query_one(SamplingPanel)
        await pilot.pause()
        assert panel.sampling.temperature == temperature
        field = panel.query_one("#temperature", Input)
        field.value, given = "0.5", field.value
        await pilot.pause()
        assert panel.sampling.temperature == 0.5
        field.value = given
        await pilot.pause()
        assert panel.sampling.temperature == temperature


async def test_shown_seed_leaves_alone_who_types(open_room):
    async with open_room("story", size=(120, 36)) as (room, pilot):
        panel, field = room.query_one(SamplingPanel), room.query_one("#seed", Input)
        panel.show_seed(5)
        assert field.value == "5"
        field.focus()
        await pilot.pause()
        await pilot.press("backspace")
        panel.show_seed(6)
        assert field.value == ""
        await pilot.press("7")
        room.query_one(Page).focus()
        await pilot.pause()
        panel.show_seed(8)
        assert field.value == "7"
        assert panel.sampling.seed == 7


async def test_paste_of_many_lines_is_kept(open_room, write, say, wait_until):
    async with open_room("story") as (room, pilot):
        await write(pilot, "one\r\n\r\ntwo\rthree\n")
        await pilot.press("ctrl+j", "x")
        assert room.query_one(WritingLine).value == "one⏎⏎two⏎three⏎x"
        say()
        await pilot.press("enter")
        await wait_until(lambda: room.story.path and not room.busy)
        assert page(room) == "one\n\ntwo\nthree\nx"


async def test_two_clicks_begin_one_story(open_room, wait_until, say):
    say(" x", delay=0.02)
    async with open_room("story") as (room, _):
        for text in OPENINGS[:2]:
            room.post_message(Opening.Chosen(text))
        await wait_until(lambda: page(room) and not room.busy)
        assert page(room) == OPENINGS[0] + " x"
        assert len(room.story.tree.root.children) == 1


async def test_words_after_an_empty_beginning_are_the_first(open_room, wait_until, say, write):
    say()
    async with open_room("story") as (room, pilot):
        await pilot.press("enter")
        await wait_until(lambda: status(room) == "the end")
        assert room.query_one(Openings).display
        await write(pilot, "Once upon")
        await pilot.press("enter")
        await wait_until(lambda: page(room) and not room.busy)
        assert room.story.prompt().ids == room.model.encode_prompt("Once upon")


def test_half_a_character_is_found_behind_text():
    from llamatui.app.tui.runner import Piece, Run

    run = Run(None, None, None)
    run.pieces = [Piece(None, "a"), Piece(None, ""), Piece(None, " ", True), Piece(None, "", True)]
    assert run.complete_pieces() == run.pieces[:2]


async def test_beginnings_written_while_the_model_loads_are_kept(make_app, say, wait_until, monkeypatch):
    say(" he said.")
    gate = threading.Event()
    load = Loading.__call__
    monkeypatch.setattr(Loading, "__call__", lambda self: gate.wait(60) and load(self))
    app = make_app()
    async with app.run_test() as pilot:
        await pilot.press(*"Go", "enter", "enter", *"on", "enter")
        line = app.room.query_one(WritingLine)
        assert (line.value, line.placeholder) == ("", "Go on")
        gate.set()
        await wait_until(lambda: app.room.story and not app.room.busy and len(app.room.story.path) > 6)
        assert app.room.story.text == "Go on he said."


async def test_words_come_back_that_cannot_be_written_now(open_room, say, wait_until):
    gate = threading.Semaphore(0)
    say(" he said.", gate=gate)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room.busy)
        line = room.query_one(WritingLine)
        line.focus()
        await pilot.press("a", "enter")
        await wait_until(lambda: line.value == "a")
        gate.release(20)


async def test_words_typed_while_the_model_loads_follow_the_prompt_of_the_launch(
    make_app, say, wait_until, monkeypatch
):
    say(" he said.")
    gate = threading.Event()
    load = Loading.__call__
    monkeypatch.setattr(Loading, "__call__", lambda self: gate.wait(60) and load(self))
    app = make_app(prompt="Go")
    async with app.run_test() as pilot:
        await pilot.press(*"on", "enter")
        gate.set()
        await wait_until(lambda: app.room.story and not app.room.busy and len(app.room.story.path) > 6)
        assert app.room.story.text == "Go on he said."
