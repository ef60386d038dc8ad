"""A long chat: few widgets, a true scrollbar, and nothing that jumps."""

import threading

import pytest

from llamatui.app.tui import transcript as tui_transcript
from llamatui.app.tui.chat_message import Answer, ChatMessage
from llamatui.app.tui.transcript import Transcript
from llamatui.tokenizers.chat_formats import Message

TURNS = 500


@pytest.fixture
def long_chat(open_room):
    def begin(room, turns=TURNS):
        for number in range(turns // 2):
            room.conversation._add(Message("user", f"question {number}"))
            room.conversation._add(Message("assistant", f"answer {number}\n\n" + "- point\n" * (number % 7)))

    return begin


def in_view(transcript):
    """Texts and places of the messages that can be seen."""
    return {
        child.item.text.split("\n")[0]: child.region.y - transcript.region.y
        for child in transcript.query(ChatMessage)
        if child.region.overlaps(transcript.region)
    }


def rows(transcript):
    return set(range(transcript.region.y, transcript.region.bottom))


def rows_covered(transcript):
    covered = set()
    for child in transcript.query(ChatMessage):
        covered |= set(range(child.region.y, child.region.bottom))
    return covered


async def test_a_long_chat_has_few_widgets_wherever_one_looks(open_room, long_chat, wait_until):
    async with open_room("chat") as (room, pilot):
        long_chat(room)
        await room.show()
        transcript = room.query_one(Transcript)

        async def settled():
            await wait_until(
                lambda: transcript.region.height and rows(transcript) <= rows_covered(transcript)
            )
            assert len(transcript.query(ChatMessage)) <= 40

        await settled()
        assert f"answer {TURNS // 2 - 1}" in in_view(transcript)
        await pilot.press("pageup")
        await settled()
        for _ in range(5):
            before = in_view(transcript)
            await pilot.press("pageup")
            await settled()
            assert in_view(transcript) != before
        await pilot.press("ctrl+home")
        await settled()
        assert in_view(transcript)["question 0"] == 0
        assert transcript.scroll_y == 0
        await pilot.press("pagedown")
        await settled()
        await pilot.press("ctrl+end")
        await settled()
        assert f"answer {TURNS // 2 - 1}" in in_view(transcript)
        assert transcript.scroll_y == transcript.max_scroll_y


async def test_the_order_holds_however_one_jumps_about(open_room, long_chat, wait_until, monkeypatch):
    async with open_room("chat") as (room, _pilot):
        long_chat(room, 200)
        await room.show()
        transcript = room.query_one(Transcript)
        await wait_until(lambda: transcript._complete and transcript.scroll_y)
        monkeypatch.setattr(tui_transcript, "BREATH", 1000)  # all but the first step waits
        for screens in (-5, 2.5):
            transcript.scroll_to(y=transcript.scroll_y + screens * transcript.size.height, immediate=True)
            await wait_until(lambda: transcript._covered(transcript.size.height, 0))
        while not transcript._complete:
            await transcript._mount_window()
        order = [child.item.index for child in transcript.query(ChatMessage)]
        assert order == sorted(order)


async def test_what_another_branch_showed_is_gone_at_once(open_room, long_chat, wait_until):
    async with open_room("chat") as (room, _pilot):
        long_chat(room, 60)
        await room.show()
        transcript = room.query_one(Transcript)
        await wait_until(lambda: transcript._complete and transcript.scroll_y)
        before = {child.item for child in transcript.query(ChatMessage)}
        transcript.scroll_home(immediate=True)
        room.conversation.tree.cut(0)
        long_chat(room, 4)
        await room.show()
        assert not before & {child.item for child in transcript.query(ChatMessage)}


async def test_what_is_read_stays_where_it_is_when_more_comes_above(open_room, long_chat, wait_until):
    async with open_room("chat") as (room, pilot):
        long_chat(room, 100)
        await room.show()
        transcript = room.query_one(Transcript)
        await pilot.pause()
        places = []
        for _ in range(40):
            before = in_view(transcript)
            transcript.scroll_up(animate=False, immediate=True)
            await pilot.pause()
            after = in_view(transcript)
            both = before.keys() & after.keys()
            assert both
            places.append({after[name] - before[name] for name in both})
        assert all(moved == {1} for moved in places), places


async def test_an_answer_streams_on_while_one_reads_above(open_room, long_chat, say, wait_until):
    gate = threading.Semaphore(0)
    async with open_room("chat", overflow="shift") as (room, pilot):
        say("first\n\nsecond", gate)
        long_chat(room, 100)
        await room.show()
        transcript = room.query_one(Transcript)
        await room.ask("more?")
        await pilot.press("ctrl+home")
        await wait_until(lambda: "question 0" in in_view(transcript))
        gate.release(100)
        await wait_until(lambda: not room.busy)
        assert in_view(transcript)["question 0"] == 0
        await pilot.press("ctrl+end")
        await wait_until(lambda: "first" in in_view(transcript))
        assert transcript.query(Answer).last().source == "first\n\nsecond"


async def test_a_flip_rebuilds_only_what_differs(open_room, long_chat):
    async with open_room("chat") as (room, pilot):
        long_chat(room, 8)
        conversation = room.conversation
        conversation.edit(5, "other words")
        await room.show()
        transcript = room.query_one(Transcript)
        before = {child.item.text: child for child in transcript.query(ChatMessage)}
        item = transcript.items[5]
        await room._flip(item, 1)
        await pilot.pause()
        after = {child.item.text: child for child in transcript.query(ChatMessage)}
        assert len(after) == 8
        for text in [turn.content for turn in conversation.turns[:5]]:
            assert after[text] is before[text]
