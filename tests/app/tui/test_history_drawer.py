"""The drawer with what was written before: finding, naming, pinning, deleting and opening it."""

import json
import threading
import time
from datetime import datetime, timedelta

import pytest
from textual import events
from textual.app import App
from textual.geometry import Offset
from textual.widgets import Input, Static

from llamatui.app.history.collection import Library
from llamatui.app.history.database import open_database, writing
from llamatui.app.history.saved import Entry
from llamatui.app.kv_store import KVStore
from llamatui.app.tui.help_screen import HelpScreen
from llamatui.app.tui.history_drawer import MOST_FOUND, PAGE, HistoryDrawer
from llamatui.app.tui.history_list import FOUND, HistoryList, about, ago, excerpt, heading_of
from llamatui.app.tui.themes import DARK, LIGHT
from llamatui.errors import HistoryError

LONG_AGO = datetime(2001, 3, 15, 12).timestamp()


def fill(path, *texts, kind="story", at=LONG_AGO):
    """Documents 0, 1, ..., each titled by its text; the first is the newest."""
    connection = open_database(path)
    with writing(connection):
        for i, text in enumerate(texts):
            number = connection.execute(
                """INSERT INTO documents (uid, kind, title, created, changed, model, model_path, model_sha256,
                tokenizer, settings, state, revision)
                VALUES (?, ?, ?, 0, ?, 'tiny', '', '', '', '{}', ?, 1)""",
                (f"{kind}{i}", kind, text[:60], at - i, json.dumps({"end": 1})),
            ).lastrowid
            connection.execute("INSERT INTO tokens VALUES (?, 1, 0, 5, ?, 'writer', 0, 1)", (number, text))
    connection.close()
    Library(path).search("all of it")  # counts the words, too


class Room(App):
    """Something to lie over."""

    def __init__(self, drawer, theme="dark"):
        super().__init__()
        for known in (DARK, LIGHT):
            self.register_theme(known)
        self.theme = theme
        self.drawer = drawer
        self.answers = []

    def compose(self):
        yield Static("Once upon a time, there was a little llama. " * 40)

    def on_mount(self):
        self.push_screen(self.drawer, self.answers.append)


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "history.db")
    yield library
    library.close()


@pytest.fixture
def open_drawer(library, wait_until):
    """async with open_drawer(current, size=...) as (drawer, pilot): it has read what there is."""
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def run(current=None, size=(80, 24)):
        app = Room(HistoryDrawer(library, "story", current))
        async with app.run_test(size=size) as pilot:
            await settled(app.drawer, pilot)
            yield app.drawer, pilot

    async def settled(drawer, pilot):
        await wait_until(lambda: drawer.is_mounted and not drawer._is_looking)
        await pilot.pause()

    run.settled = settled
    return run


@pytest.fixture
def press(open_drawer):
    """await press(pilot, keys...): and what follows is done."""

    async def press(pilot, *keys):
        await pilot.press(*keys)
        drawer = pilot.app.drawer
        if drawer.is_current:
            await drawer.workers.wait_for_complete(
                [worker for worker in drawer.workers if worker.group == "changes"]
            )
            await open_drawer.settled(drawer, pilot)

    return press


def titles(drawer):
    return [entry.title for entry in drawer.query_one(HistoryList).entries]


def note(drawer):
    widget = drawer.query_one(".note", Static)
    return str(widget.content) if widget.display else ""


def empty(drawer):
    widget = drawer.query_one(".empty", Static)
    return str(widget.content) if widget.display else ""


def lines(drawer, shown):
    return [line.rstrip() for line in shown(drawer.query_one(HistoryList)).split("\n")]


async def test_pinned_ones_stand_first_then_the_newest(library, open_drawer, shown):
    fill(library.path, "One hen", "Two hens", "Three hens")
    library.pin("story2")
    async with open_drawer("story1") as (drawer, _):
        pinned, title, second, blank, month, *rest = lines(drawer, shown)
        assert (pinned, blank, month) == ("  Pinned", "", "  March 2001")
        assert title.split() == ["Three", "hens", "★"]
        assert second == "  2 words · tiny · 15 Mar 2001"
        assert rest[0] == "  One hen"
        assert rest[2] == "● Two hens", "it is the one that is open"
        assert drawer.query_one(HistoryList).chosen.uid == "story1"


async def test_only_one_kind_is_listed(library, open_drawer):
    fill(library.path, "A hen")
    fill(library.path, "A chat", kind="chat")
    async with open_drawer() as (drawer, _):
        assert titles(drawer) == ["A hen"]


async def test_an_empty_history_teaches(open_drawer):
    async with open_drawer() as (drawer, pilot):
        assert empty(drawer) == "Nothing here yet. What you write is kept as you write it."
        await pilot.press("down", "enter", "up")
        assert pilot.app.screen is drawer


async def test_typing_searches_and_shows_where(library, open_drawer, press, shown):
    fill(library.path, "A hen laid an egg", "The sea is wide", "The end. " + "Much later " * 30 + "hens sang")
    async with open_drawer() as (drawer, pilot):
        await press(pilot, *"hen")
        assert titles(drawer) == ["A hen laid an egg", "The end. " + ("Much later " * 30)[:51]]
        assert lines(drawer, shown)[3].endswith("hens sang")
        assert str(drawer.query_one(".count", Static).content) == "2 found"
        await press(pilot, "x")
        assert titles(drawer) == []
        assert empty(drawer) == "Nothing has “henx” in it."
        await press(pilot, *["backspace"] * 4)
        assert len(titles(drawer)) == 3
        assert not empty(drawer)


@pytest.mark.parametrize(
    ("width", "line"),
    [(80, "other branch: sea was wide"), (30, "sea was wide"), (22, "sea was wide"), (9, "")],
)
async def test_what_another_branch_says_is_found_and_told_to_be_there(
    width, line, library, open_drawer, press, shown
):
    fill(library.path, "A hen", "The sea")
    connection = open_database(library.path)
    connection.execute("INSERT INTO tokens VALUES (2, 2, 1, 5, ' was wide', 'model', 0, 0)")
    connection.execute("UPDATE documents SET revision = 2")
    connection.close()
    async with open_drawer(size=(width, 24)) as (drawer, pilot):
        await press(pilot, *"wide")
        assert titles(drawer) == ["The sea"]
        assert lines(drawer, shown)[1].strip() == line


async def test_enter_waits_for_what_is_looked_for(library, open_drawer, wait_until):
    fill(library.path, "A hen", "The sea")
    async with open_drawer() as (_, pilot):
        await pilot.press(*"sea", "enter")
        await wait_until(lambda: pilot.app.answers == ["story1"])


async def test_enter_waits_for_what_is_looked_for_last(library, open_drawer, wait_until, monkeypatch):
    fill(library.path, "A hen", "A hen by the sea")
    search, is_asked, goes_on = library.search, threading.Event(), threading.Event()

    def wait(text, *args):
        is_asked.set()
        goes_on.wait(60)
        return search(text, *args)

    async with open_drawer() as (drawer, pilot):
        monkeypatch.setattr(library, "search", wait)
        await pilot.press(*"hen")
        await wait_until(is_asked.is_set)
        drawer._field.value = "hen sea"
        await pilot.pause()
        await pilot.press("enter")
        goes_on.set()
        await wait_until(lambda: pilot.app.answers)
        assert pilot.app.answers == ["story1"]


async def test_a_search_that_another_replaces_at_once_leaves_no_warning(library, open_drawer, press):
    fill(library.path, "A hen", "The sea")
    async with open_drawer() as (drawer, pilot):
        for value in ("hen", "sea"):
            drawer._field.value = value
            drawer._look()
            drawer._look()
        await press(pilot, "end")
        assert titles(drawer) == ["The sea"]


async def test_keys_go_from_the_field_into_the_list_and_back(library, open_drawer, press):
    fill(library.path, "One", "Two", "Three")
    async with open_drawer() as (drawer, pilot):
        rows = drawer.query_one(HistoryList)
        await pilot.press("down")
        assert drawer.focused is rows
        await pilot.press("down", "down", "down", "up")
        assert rows.chosen.title == "Two"
        await pilot.press("up", "up")
        assert drawer.focused.id == "search"
        await pilot.press("down", "end", "slash", "T", "w")
        await press(pilot, "down", "end", "home", "pagedown")
        await press(pilot, "home", "enter")
        assert pilot.app.answers == ["story1"]


async def test_escape_closes(library, open_drawer):
    fill(library.path, "One")
    async with open_drawer() as (_, pilot):
        await pilot.press("escape")
        assert pilot.app.answers == [None]


async def test_a_title_is_changed_in_its_place(library, open_drawer, press):
    fill(library.path, "One", "Two")
    async with open_drawer() as (drawer, pilot):
        await press(pilot, "down", "down", "r")
        name = drawer.query_one("#name", Input)
        rows = drawer.query_one(HistoryList)
        assert name.region.offset == rows.region.offset + rows.place
        await press(pilot, *"My", "enter")
        assert library.get("story1").title == "My"
        assert titles(drawer) == ["One", "My"]
        assert drawer.focused is rows
        assert rows.chosen.uid == "story1"
        await press(pilot, "f2", *"No", "escape")
        assert titles(drawer) == ["One", "My"]
        assert not name.display
        await press(pilot, "r", "backspace", "enter")
        assert library.get("story1").title == "Two", "it follows the text again"
        with library._open() as connection:
            assert not [*connection.execute("SELECT 1 FROM documents WHERE named")]


async def test_pinning_and_back(library, open_drawer, press):
    fill(library.path, "One", "Two")
    async with open_drawer() as (drawer, pilot):
        await press(pilot, "down", "down", "p")
        assert titles(drawer) == ["Two", "One"]
        assert drawer.query_one(HistoryList).chosen.title == "Two", "the cursor stays with it"
        await press(pilot, "p")
        assert titles(drawer) == ["One", "Two"]


async def test_deleting_asks_first(library, open_drawer, press):
    fill(library.path, "One", "Two", "Three")
    read = KVStore().folder / "text.kv"  # what a model has read
    read.parent.mkdir(parents=True)
    read.touch()
    async with open_drawer() as (drawer, pilot):
        for keys in (("escape",), ("down", "up"), ("p", "p"), ("slash", "down"), ("delete", "escape")):
            await press(pilot, "home", "down", "delete", *keys)
            assert note(drawer) == "", keys
            drawer.query_one(HistoryList).focus()
        assert library.count() == 3
        await press(pilot, "home", "down", "delete")
        assert note(drawer) == "Delete “Two” for good?\nEnter deletes, Esc keeps."
        assert library.count() == 3
        assert read.exists()
        await press(pilot, "enter")
        assert titles(drawer) == ["One", "Three"]
        assert drawer.query_one(HistoryList).chosen.title == "Three"
        assert library.count() == 2
        assert not read.exists()
        assert pilot.app.answers == []


async def test_what_is_open_is_not_deleted(library, open_drawer, press):
    fill(library.path, "One")
    async with open_drawer("story0") as (drawer, pilot):
        await press(pilot, "down", "delete")
        assert "It is open" in note(drawer)
        await press(pilot, "enter")
        assert library.count() == 1


async def test_a_long_list_is_read_as_it_is_gone_through(library, open_drawer, press, wait_until):
    fill(library.path, *(f"Tale {i}" for i in range(2 * PAGE + 50)))
    async with open_drawer() as (drawer, pilot):
        assert len(titles(drawer)) == PAGE
        assert str(drawer.query_one(".count", Static).content) == "250"
        await pilot.press("down")
        for pages in (2, 2.5):
            await pilot.press("end")
            await wait_until(lambda pages=pages: len(titles(drawer)) == pages * PAGE)
        assert titles(drawer)[-1] == "Tale 249"
        await press(pilot, "end", "p")
        assert len(titles(drawer)) == 250, "none is lost by reading again"
        assert titles(drawer)[0] == "Tale 249"


async def test_what_moves_up_meanwhile_is_not_listed_twice(library, open_drawer, wait_until):
    fill(library.path, *(f"Tale {i}" for i in range(PAGE + 10)))
    async with open_drawer() as (drawer, pilot):
        library.pin(f"story{PAGE + 5}")
        await pilot.press("down", "end")
        await wait_until(lambda: drawer._has_all)
        assert len(titles(drawer)) == len(set(titles(drawer))) == PAGE + 9


async def test_too_much_found_says_so(library, open_drawer, press):
    fill(library.path, *(f"Tale {i}" for i in range(MOST_FOUND + 1)))
    async with open_drawer() as (drawer, pilot):
        await press(pilot, *"tale")
        assert len(titles(drawer)) == MOST_FOUND
        assert "Another word would narrow it" in note(drawer)


async def test_errors_are_shown_and_the_next_try_works(library, open_drawer, press, monkeypatch):
    fill(library.path, "One")

    def fail(*args):
        raise HistoryError("the history is [b]locked", "end that program")

    with monkeypatch.context() as broken:
        broken.setattr(library, "list", fail)
        broken.setattr(library, "search", lambda *args: 1 / 0)
        async with open_drawer() as (drawer, pilot):
            assert note(drawer) == "the history is [b]locked\nend that program"
            await press(pilot, "O")
            assert "ZeroDivisionError" in note(drawer)
            broken.undo()
            await press(pilot, "n")
            assert titles(drawer) == ["One"]
            assert note(drawer) == ""
            broken.setattr(library, "pin", fail)
            await press(pilot, "down", "p")
            assert "locked" in note(drawer)


async def test_what_was_deleted_elsewhere_goes_from_the_list(library, open_drawer, press, wait_until):
    fill(library.path, "One", "Two")
    async with open_drawer() as (drawer, pilot):
        Library(library.path).remove("story0")
        await press(pilot, "down", "p")
        await wait_until(lambda: titles(drawer) == ["Two"])
        assert "deleted elsewhere" in [notice.message for notice in pilot.app._notifications][-1]


async def test_nothing_that_is_shown_drives_the_terminal(library, open_drawer, press, shown):
    fill(library.path, "A [red]hen[/]\x1b[31m\u202e and\nmore")
    async with open_drawer() as (drawer, pilot):
        assert lines(drawer, shown)[1] == "  A [red]hen[/]␛[31m and more"
        await press(pilot, *"more")
        assert "\x1b" not in "".join(lines(drawer, shown))
        assert "[red]hen[/]" in lines(drawer, shown)[1]


async def test_a_click_opens_and_one_beside_closes(library, open_drawer, wait_until):
    fill(library.path, "One", "Two")
    async with open_drawer() as (_, pilot):
        await pilot.click(HistoryList, offset=(5, 0))  # a heading
        assert pilot.app.answers == []
        await pilot.click(HistoryList, offset=(5, 4))
        await wait_until(lambda: pilot.app.answers == ["story1"])
    async with open_drawer() as (_, pilot):
        await pilot.click(offset=(70, 5))
        await wait_until(lambda: pilot.app.answers == [None])


async def test_two_clicks_on_a_row_open_it_once(library, open_drawer, wait_until):
    fill(library.path, "One", "Two")
    async with open_drawer() as (drawer, pilot):
        x, y = drawer.query_one(HistoryList).region.offset + Offset(5, 4)
        for kind in (events.MouseDown, events.MouseUp) * 2:
            pilot.app.post_message(kind(None, x, y, 0, 0, 1, False, False, False, x, y))
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert pilot.app.answers == ["story1"]


@pytest.mark.parametrize("others", [["enter"], ["r"], ["p"], ["delete", "enter"], ["slash", "x"], ["end"]])
async def test_enter_opens_what_the_cursor_was_on(library, open_drawer, burst, wait_until, others):
    fill(library.path, "One", "Two")
    async with open_drawer() as (_, pilot):
        await pilot.press("down")
        await burst(pilot, "enter", *others)
        await wait_until(lambda: pilot.app.answers)
        await pilot.pause()
        assert pilot.app.answers == ["story0"]
    assert [entry.pinned for entry in library.list("story")] == [False, False]


async def test_it_leaves_room_beside_it_where_there_is_some(library, open_drawer):
    fill(library.path, "One")
    for width, cells in ((120, 44), (60, 44), (59, 59), (20, 20)):
        async with open_drawer(size=(width, 24)) as (drawer, _):
            assert drawer.children[0].region.width == cells
            assert drawer.children[0].region.height == 24


async def test_help_lists_its_keys(open_room, library, wait_until):
    async with open_room("story", size=(100, 60)) as (_, pilot):
        await pilot.app.push_screen(HistoryDrawer(library, "story"))
        await pilot.press("f1")
        await wait_until(lambda: isinstance(pilot.app.screen, HelpScreen))
        await pilot.pause()
        keys = "\n".join(str(widget.content) for widget in pilot.app.screen.query(".keys").results(Static))
        for what in ("rename", "pin", "delete", "close"):
            assert what in keys


def entry(changed, **fields):
    known = {
        "uid": "",
        "kind": "chat",
        "title": "",
        "pinned": False,
        "created": 0,
        "model": "tiny",
        "words": 3,
    }
    return Entry(**known | {"changed": changed} | fields)


@pytest.mark.parametrize(
    ("before", "heading", "age"),
    [
        (timedelta(hours=-30), "Today", "just now"),  # a clock that was put back
        (timedelta(seconds=59), "Today", "just now"),
        (timedelta(minutes=59), "Today", "59 min ago"),
        (timedelta(hours=11), "Today", "11 h ago"),
        (timedelta(hours=13), "Yesterday", "yesterday"),
        (timedelta(days=6), "Last 7 days", "Friday"),
        (timedelta(days=7), "June", "13 Jun"),
        (timedelta(days=200), "December 2023", "3 Dec 2023"),
    ],
)
def test_days_have_their_names(before, heading, age):
    now = datetime(2024, 6, 20, 12).astimezone()
    moment = (now - before).timestamp()
    assert heading_of(entry(moment), now) == heading
    assert ago(moment, now) == age
    assert heading_of(entry(moment, pinned=True), now) == "Pinned"


def test_the_age_stays_where_the_name_of_the_model_is_long():
    now = datetime.now().astimezone()
    at = time.time()
    assert about(entry(at), now, 36) == "3 words · tiny · just now"
    assert about(entry(at, model="m" * 50), now, 36) == "3 words · mmmmmmm…mmmmmmm · just now"
    assert about(entry(at, words=0), now, 36) == "tiny · just now"
    assert about(entry(at, model="m" * 50), now, 10) == "3 words · just now"


def test_what_was_found_is_in_sight_however_long_the_text_before_it():
    shown = excerpt((("word " * 40, False), ("hen", True), (" and more", False)), 40)
    assert shown.plain == "…word word word word word hen and more"
    assert [shown.plain[span.start : span.end] for span in shown.spans if span.style == FOUND] == ["hen"]
    shown = excerpt((("竜" * 40, False), ("山", True)), 36)
    assert shown.plain.endswith("竜山")
    assert shown.cell_length <= 36


@pytest.mark.parametrize(("theme", "sought"), [("dark", ""), ("light", "llama")])
def test_how_it_looks(library, snap_compare, monkeypatch, wait_until, theme, sought):
    monkeypatch.setattr(Input, "cursor_blink", False)
    fill(library.path, "Lily and the llama that nobody had seen", "昔々 llama", "The hill", "🐉 The dragon")
    library.pin("story2")
    app = Room(HistoryDrawer(library, "story", "story1"), theme)

    async def run(pilot):
        await wait_until(lambda: app.drawer.is_mounted and titles(app.drawer))
        await pilot.press(*sought)
        await wait_until(lambda: app.drawer.query_one(HistoryList).sought == sought)
        await pilot.press("down", "down")
        await pilot.pause(0.1)

    assert snap_compare(app, terminal_size=(80, 24), run_before=run)
