"""The cursor on the page, the words that could stand there, and the heat map."""

import threading

import pytest
from textual.geometry import Offset

from llamatui.app.tui.alternatives import Alternatives
from llamatui.app.tui.bars import Status
from llamatui.app.tui.heat import Legend, heat, ramp
from llamatui.app.tui.openings import OPENINGS, Openings
from llamatui.app.tui.page import Page
from llamatui.app.tui.runner import Scoring
from tests.app.tui.conftest import PIECES


@pytest.fixture
def story_of(open_room, wait_until):
    """A room with the first opening, and some words of the model."""

    class Opened:
        def __init__(self, **options):
            self.opening = open_room("story", **options)

        async def __aenter__(self):
            room, pilot = await self.opening.__aenter__()
            await pilot.press("1")
            await wait_until(lambda: room.story.path and not room.busy, "the story")
            await pilot.pause()
            return room, pilot, room.query_one(Page), room.query_one(Alternatives)

        async def __aexit__(self, *error):
            await self.opening.__aexit__(*error)

    return Opened


def under_cursor(page: Page) -> str:
    return page.tokens[page.cursor].text


async def test_arrows_move_by_tokens_and_by_lines(story_of):
    async with story_of() as (room, pilot, page, _):
        assert page.cursor is None
        await pilot.press("left")
        assert page.cursor == len(room.story.path) - 1
        await pilot.press("left", "left")
        assert page.cursor == len(room.story.path) - 3
        await pilot.press("ctrl+home")
        first = page.cursor
        assert page.text.startswith(under_cursor(page))
        assert under_cursor(page)
        await pilot.press("left")
        assert page.cursor == first
        await pilot.press("down")
        assert page._place(page.cursor) == (1, 0)
        await pilot.press("end")
        assert page._place(page.cursor)[0] == 1
        await pilot.press("up")
        assert page._place(page.cursor)[0] == 0
        await pilot.press("home")
        assert page.cursor == first
        await pilot.press("ctrl+end", "right")
        assert page.cursor is None


async def test_esc_leaves_the_cursor(story_of, wait_until):
    async with story_of() as (_, pilot, page, popup):
        await pilot.press("left")
        await wait_until(lambda: popup.display)
        await pilot.press("escape")
        assert page.cursor is None
        await wait_until(lambda: not popup.display)


async def test_a_click_puts_the_cursor_on_the_token(story_of):
    async with story_of() as (_, pilot, page, _):
        await pilot.click(page, Offset(page._margin + 6, 1))
        start = page.start_of(page.cursor)
        assert start <= 6 < start + len(under_cursor(page))
        await pilot.click(page, Offset(1, 1))  # in the margin
        assert page.cursor is None


async def test_what_could_stand_there_is_told_and_a_digit_takes_it(story_of, wait_until):
    async with story_of() as (room, pilot, page, popup):
        before, end = room.story.text, room.story.tree.end
        await pilot.press("up", "up")
        index = page.cursor
        await wait_until(lambda: len(popup.choices) == 10, "the alternatives")
        assert sum(choice.probability for choice in popup.choices) <= 1.0001
        assert [c.probability for c in popup.choices] == sorted(
            (c.probability for c in popup.choices), reverse=True
        )
        number = next(i for i, c in enumerate(popup.choices) if c.id != room.story.path[index].id)
        taken = popup.choices[number].id
        cut = page.start_of(index)
        await pilot.press("1234567890"[number])
        await wait_until(lambda: room.run or len(room.story.path) > index + 1, "going on")
        await wait_until(lambda: not room.busy)
        assert room.story.path[index].id == taken
        assert room.story.text[:cut] == before[:cut]
        assert page.text == room.story.text != before
        assert page.cursor is None
        await pilot.press("u")
        assert room.story.tree.end is end
        assert page.text == before


async def test_the_cache_is_cut_where_the_branch_begins(story_of, wait_until):
    async with story_of() as (room, pilot, page, popup):
        await pilot.press("up", "up")
        index = page.cursor
        await wait_until(lambda: popup.choices)
        runs = []
        generate = room.generate
        room.generate = lambda *args: (generate(*args), runs.append(room.run))
        await pilot.press("2")
        await wait_until(lambda: runs and not room.busy)
        assert runs[0].generation.cached_tokens == index + 1  # with BOS in front


async def test_enter_steps_inside_where_arrows_choose(story_of, wait_until):
    async with story_of() as (room, pilot, page, popup):
        await pilot.press("up")
        index = page.cursor
        await wait_until(lambda: popup.choices)
        await pilot.press("enter")
        assert popup.has_focus
        at = popup.chosen
        await pilot.press("down", "tab")
        assert popup.chosen == (at + 2) % 10
        await pilot.press("escape")
        assert page.has_focus
        assert page.cursor == index
        await pilot.press("enter", "down")
        taken = popup.choices[popup.chosen].id
        await pilot.press("enter")
        await wait_until(lambda: room.story.path[index].id == taken and not room.busy)
        assert not popup.display


async def test_a_click_takes_a_word(story_of, wait_until):
    async with story_of() as (room, pilot, page, popup):
        await pilot.press("ctrl+home", "right", "right")
        index = page.cursor
        await wait_until(lambda: popup.choices)
        await pilot.pause()
        await pilot.click(popup, Offset(5, 3))
        await wait_until(lambda: len(room.story.path) > index + 1 and not room.busy)
        assert room.story.path[index].id == room.story.path[index].record.top[2].id


async def test_the_end_of_the_text_can_be_taken_too(story_of, wait_until):
    async with story_of() as (room, pilot, page, popup):
        await pilot.press("up")
        await wait_until(lambda: popup.choices)
        index = page.cursor
        popup.post_message(Alternatives.Taken(2))
        await wait_until(lambda: len(room.story.path) == index)
        assert room.query_one(Status).left.plain.startswith("the end")


async def test_a_rewind_ends_the_story_before_the_cursor(story_of):
    async with story_of() as (room, pilot, page, _):
        before = room.story.text
        await pilot.press("ctrl+home", "right", "right", "backspace")
        assert page.text == room.story.text == OPENINGS[0][:2]
        assert page.cursor is None
        await pilot.press("backspace")  # without a cursor: the last token
        assert page.text == OPENINGS[0][:1]
        await pilot.press("backspace")
        assert room.story.path == []
        assert room.query_one(Openings).display
        await pilot.press("ctrl+z", "u", "u")
        assert page.text == before


async def test_a_word_is_taken_while_the_model_writes(open_room, wait_until, say):
    gate = threading.Semaphore(2)
    say("abcdefghijklmn", gate)
    async with open_room("story") as (room, pilot):
        page, popup = room.query_one(Page), room.query_one(Alternatives)
        await pilot.press("1")
        await wait_until(lambda: page.has_focus and page.text.endswith("ab"))
        await pilot.press("h")
        gate.release(6)
        await wait_until(lambda: page.text.endswith("abcdefgh"))
        await pilot.press("left")
        await wait_until(lambda: popup.choices)
        index = page.cursor
        await pilot.press("h")
        assert room.run.generation.limits.alternatives is None
        before = room.run
        await pilot.press("2")
        gate.release(1)
        await wait_until(lambda: room.run not in (None, before), "going on")
        say("xyz")
        gate.release(1)
        await wait_until(lambda: page.text.endswith("xyz") and not room.busy)
        assert len(room.story.path) == index + 4


async def test_the_heat_map_scores_what_is_there_and_records_what_comes(story_of, wait_until):
    async with story_of(context=64, overflow="shift") as (room, pilot, page, _):
        room.story.cut(20)
        room.show_story()
        assert not room.query_one(Legend).display
        await pilot.press("h")
        assert room.query_one(Legend).display
        await wait_until(lambda: all(token.record for token in room.story.path), "the records")
        assert len(room.story.path) == 20
        await pilot.press("space")
        await wait_until(lambda: len(room.story.path) > 24 and not room.busy)
        assert all(token.record and token.record.top for token in room.story.path)
        await pilot.press("h")
        assert not page.heat
        assert not room.query_one(Legend).display


async def test_filling_the_heat_map_can_be_called_off(story_of, wait_until, monkeypatch):
    stuck = threading.Event()
    score = Scoring.__call__

    def slowly(self):
        stuck.wait(60)
        score(self)

    monkeypatch.setattr(Scoring, "__call__", slowly)
    async with story_of() as (room, pilot, page, _):
        await pilot.press("h")
        assert room.insight.filling
        await pilot.press("escape")
        assert not room.insight.filling
        stuck.set()
        await pilot.pause()
        assert not any(token.record for token in room.story.path)
        assert page.heat


async def test_nothing_is_asked_about_what_the_context_does_not_hold(story_of, wait_until):
    async with story_of() as (room, pilot, _, popup):
        room.story.write("the llama " * 100)
        room.show_story()
        await pilot.press("h")
        await wait_until(lambda: "ends where the context does" in room.query_one(Status).left.plain)
        held = room.story.session.context - 1
        assert [bool(token.record) for token in room.story.path] == [
            i < held for i in range(len(room.story.path))
        ]
        await pilot.press("ctrl+end")
        assert popup.note == "The context ends before it."
        assert not pilot.app._notifications


async def test_the_cursor_is_as_wide_as_what_it_stands_on(open_room, say, wait_until):
    say("日")
    async with open_room("story") as (room, pilot):
        page = room.query_one(Page)
        await pilot.press("1")
        await wait_until(lambda: page.text.endswith("日") and not room.busy)
        await pilot.press("ctrl+end")
        assert page.cursor_region().width == 2


async def test_what_the_model_cannot_tell_is_said(story_of, wait_until, monkeypatch):
    async with story_of() as (room, pilot, page, popup):
        monkeypatch.setattr(room.story.session, "score", lambda *args: 1 / 0)
        await pilot.press("left")
        await wait_until(lambda: any("ZeroDivision" in n.message for n in pilot.app._notifications))
        assert page.cursor is not None
        assert not popup.choices


async def test_taking_back_inside_a_character_that_is_being_written(open_room, say, wait_until):
    gate = threading.Semaphore(0)
    async with open_room("story") as (room, pilot):
        say("x🦙 and on", gate=gate)
        await pilot.press("1")
        gate.release(3)
        await wait_until(lambda: room.run and len(room.run.pieces) >= 3)
        room.query_one(Page).focus()
        await pilot.press("backspace")
        gate.release()
        await wait_until(lambda: not room.busy)
        assert room.story.text == OPENINGS[0] + "x"


async def test_a_word_is_taken_from_a_passage_that_goes(open_room, say, wait_until):
    gate = threading.Semaphore(0)
    async with open_room("story") as (room, pilot):
        say(" abcdef")
        await pilot.press("1")
        await wait_until(lambda: room.story.text.endswith("f") and not room.busy)
        say(" abcdef", gate=gate)
        await pilot.press("r", "h")
        gate.release(5)
        await wait_until(lambda: room.run and len(room.run.pieces) >= 4)
        await pilot.press("left", "left")
        room.query_one(Page).post_message(Alternatives.Taken(PIECES.index(b"z")))
        await pilot.pause()
        gate.release(50)
        await wait_until(lambda: not room.busy)


def test_heat_has_six_steps_and_names_the_unlikely():
    assert [heat(p) for p in (1, 0.9, 0.6, 0.3, 0.1, 0.02, 0.001)] == [0, 0, 1, 2, 3, 4, 5]


def luminance(colour) -> float:
    parts = [part / 255 for part in colour.get_truecolor()]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize(
    ("dark", "page", "text"), [(True, "#17181b", "#dcd8d0"), (False, "#faf8f3", "#2a2825")]
)
def test_lightness_alone_tells_the_heat_and_text_stays_readable(dark, page, text):
    from rich.color import Color

    styles = ramp(dark=dark, few=False)
    behind = [luminance(style.bgcolor or Color.parse(page)) for style in styles]
    assert behind == sorted(behind, reverse=not dark)
    for style, ground in zip(styles, behind, strict=True):
        front = luminance(style.color or Color.parse(text))
        low, high = sorted((ground, front))
        assert (high + 0.05) / (low + 0.05) >= 4.5, style
    assert [bool(style.underline) for style in styles] == [False] * 4 + [True] * 2


def test_sixteen_colours_underline_too():
    for dark in (True, False):
        assert [bool(style.underline) for style in ramp(dark=dark, few=True)] == [False] * 4 + [True] * 2
