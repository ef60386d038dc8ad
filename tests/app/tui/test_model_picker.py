"""Opening another model in the same room: the list, what happens meanwhile, and what can go wrong."""

import os
import shutil
import threading

import pytest
from textual.content import Content
from textual.widgets import Input, OptionList, Static

from llamatui.app import catalogue, memory, pull, shelf, store
from llamatui.app import model as model_module
from llamatui.app.tui.bars import Header, Status
from llamatui.app.tui.errands import Loading
from llamatui.app.tui.error_screen import ErrorScreen
from llamatui.app.tui.model_picker import ModelPicker, count, short_size
from llamatui.app.tui.page import Page


@pytest.fixture
def folder(tiny_model, tmp_path, monkeypatch):
    """The current folder: a second model with its tokenizer, and a damaged one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_model, tmp_path / "other.bin")
    shutil.copy(tiny_model.parent / "tokenizer.bin", tmp_path / "tokenizer.bin")
    (tmp_path / "broken.bin").write_bytes(b"\0" * 300)
    return tmp_path


@pytest.fixture
def pick(wait_until):
    """await pick(pilot): the picker is open, and has read everything."""

    async def open_it(pilot):
        await pilot.press("ctrl+o")
        await wait_until(lambda: isinstance(pilot.app.screen, ModelPicker))
        picker = pilot.app.screen
        await wait_until(lambda: picker._done and picker.query_one(OptionList).option_count)
        await pilot.pause()
        return picker

    return open_it


def rows(picker):
    options = picker.query_one(OptionList)
    return [str(options.get_option_at_index(i).prompt) for i in range(options.option_count)]


def row_of(picker, name):
    return next(row for row in rows(picker) if row.split()[0] == name)


def about(picker):
    return str(picker.query_one(".about", Static).content)


def header(room):
    return room.query_one(Header).left.plain


async def test_the_list_says_what_there_is(open_room, pick, folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    async with open_room("story") as (_, pilot):
        picker = await pick(pilot)
        assert row_of(picker, "tiny").split()[-1] == "open"
        assert row_of(picker, "other").split()[2:4] == ["fp32", "v0"]
        assert row_of(picker, "other").endswith("fits    ")
        assert "Q8_0 v2" in row_of(picker, "stories")
        assert "dim must be in" in row_of(picker, "broken")
        assert row_of(picker, "SmolLM2-135M-Instruct").rstrip().endswith("to fetch")
        assert not [row for row in rows(picker) if row.startswith("tokenizer")]
        assert "tiny.bin" in about(picker), "the cursor is on what is open"
        assert "1.0 GB of memory are free" in about(picker)
        assert picker.query_one(".about").region.bottom <= 24


async def test_what_is_too_big_says_so(open_room, pick, folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 100)
    async with open_room("story") as (_, pilot):
        assert row_of(await pick(pilot), "other").rstrip().endswith("too big")


async def test_where_memory_is_unknown_nothing_is_said(open_room, pick, folder, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    async with open_room("story") as (_, pilot):
        picker = await pick(pilot)
        assert "fits" not in row_of(picker, "other")
        assert "free" not in about(picker)


async def test_typing_narrows_the_list_and_enter_opens(open_room, pick, folder, wait_until, say):
    say(" one two", again=9)
    async with open_room("story") as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        before = room.query_one(Page).text
        picker = await pick(pilot)
        await pilot.press(*"othe")
        await pilot.pause()
        assert [row.split()[0] for row in rows(picker)] == ["other"]
        await pilot.press("enter")
        await wait_until(lambda: header(room).startswith("story   other"))
        assert room.model.path == folder / "other.bin"
        assert room.query_one(Page).text == before
        assert room.query_one(Status).left.plain.startswith("other is open")
        say(" three", again=9)
        await pilot.press("space")
        await wait_until(lambda: room.query_one(Page).text.endswith("three") and not room.busy)


async def test_nothing_that_fits_opens_nothing(open_room, pick, folder):
    async with open_room("story") as (room, pilot):
        picker = await pick(pilot)
        await pilot.press(*"zzz", "enter")
        await pilot.pause()
        assert pilot.app.screen is picker
        assert "Nothing" in about(picker)
        await pilot.press("escape")
        await pilot.pause()
        assert pilot.app.screen is room


async def test_a_path_opens_what_is_in_no_list(open_room, pick, wait_until, write, tmp_path, tiny_model):
    away = tmp_path / "far away"
    away.mkdir()
    for path in tiny_model.parent.glob("*"):
        if path.is_file():
            shutil.copy(path, away / path.name.replace(tiny_model.stem, "away"))
    async with open_room("story") as (room, pilot):
        picker = await pick(pilot)
        await write(pilot, str(away / "away.bin"))
        assert about(picker) == "Enter opens that file."
        await pilot.press("enter")
        await wait_until(lambda: room.model.path == away / "away.bin")


async def test_a_click_opens_too(open_room, pick, folder, wait_until):
    async with open_room("story", size=(120, 36)) as (room, pilot):
        picker = await pick(pilot)
        at = [row.split()[0] for row in rows(picker)].index("other")
        await pilot.click(OptionList, offset=(3, at))
        await wait_until(lambda: header(room).startswith("story   other"))


async def test_what_is_damaged_cannot_be_chosen(open_room, pick, folder):
    async with open_room("story") as (_, pilot):
        picker = await pick(pilot)
        await pilot.press(*"broken", "enter")
        await pilot.pause()
        assert pilot.app.screen is picker
        assert "broken.bin" in about(picker)


async def test_the_old_model_writes_until_the_new_one_is_ready(
    open_room, folder, wait_until, say, monkeypatch
):
    ready, real = threading.Event(), model_module.load_model
    async with open_room("story") as (room, pilot):

        def slow(*args, progress, **options):
            progress("thinking about it")
            assert ready.wait(60)
            return real(*args, progress=progress, **options)

        monkeypatch.setattr(model_module, "load_model", slow)
        pilot.app.action_pick_model(str(folder / "other.bin"))
        await wait_until(lambda: "opening other: thinking about it" in header(room))
        say(" one two three four five six seven", gate=(gate := threading.Semaphore(12)))
        await pilot.press("1")
        await wait_until(lambda: "one" in room.query_one(Page).text)
        assert room.busy
        ready.set()
        await wait_until(lambda: room.run is None or room.run._cancelled.is_set())
        gate.release(100)
        await wait_until(lambda: header(room).startswith("story   other"))
        assert "one" in room.query_one(Page).text, "what it wrote stays"
        assert "opening" not in header(room)


async def test_a_failure_keeps_the_old_model_and_says_why(open_room, folder, wait_until):
    async with open_room("story") as (room, pilot):
        pilot.app.action_pick_model("./broken.bin")
        await wait_until(lambda: isinstance(pilot.app.screen, ErrorScreen))
        await pilot.pause()
        words = " ".join(str(widget.content) for widget in pilot.app.screen.query(Static))
        assert "broken.bin cannot be opened" in words
        assert "go on with tiny" in words
        await pilot.press("escape")
        await pilot.pause()
        assert pilot.app.screen is room
        assert header(room).startswith("story   tiny")
    assert not pilot.app.return_code


async def test_a_name_that_is_none_is_explained(open_room, wait_until):
    async with open_room("story") as (_, pilot):
        pilot.app.action_pick_model("stroies")
        await wait_until(lambda: isinstance(pilot.app.screen, ErrorScreen))
        await pilot.pause()
        assert "did you mean stories" in str(pilot.app.screen.query_one("#hint", Static).content)


async def test_the_name_of_what_could_be_fetched_asks_before(open_room, wait_until):
    async with open_room("story") as (_, pilot):
        pilot.app.action_pick_model("Llama-3.2-1B")
        await wait_until(lambda: isinstance(pilot.app.screen, ModelPicker))
        await pilot.pause()
        assert pilot.app.screen.query_one(Input).value == "Llama-3.2-1B"


async def test_a_model_of_the_catalogue_is_fetched_and_opened(
    open_room, pick, folder, wait_until, tiny_model, monkeypatch
):
    fetched = []

    def fake_pull(name, *, progress, step):
        step("downloading")
        progress(1, 2)
        fetched.append(name)
        store.models_folder().mkdir(parents=True)
        shutil.copy(tiny_model, store.models_folder() / f"{name}.bin")
        shutil.copy(tiny_model.parent / "tokenizer.bin", store.models_folder() / f"{name}.tokenizer.bin")

    monkeypatch.setattr(pull, "pull", fake_pull)
    async with open_room("story") as (room, pilot):
        picker = await pick(pilot)
        await pilot.press(*"stories260K")
        await pilot.pause()
        assert "Enter fetches 1.1 MB from huggingface.co" in about(picker)
        await pilot.press("enter")
        await wait_until(lambda: header(room).startswith("story   stories260K"))
    assert fetched == ["stories260K"]


async def test_a_missing_tokenizer_is_fetched_while_the_old_model_stays(
    open_room, folder, wait_until, tiny_model, monkeypatch, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(tiny_model, elsewhere / "lonely.bin")
    (folder / "tokenizer.bin").unlink()
    monkeypatch.setattr(catalogue, "tokenizer_for", lambda n: catalogue.find("llama2-tokenizer"))

    def fake_pull(name, *, progress, step):
        shutil.copy(tiny_model.parent / "tokenizer.bin", elsewhere / "tokenizer.bin")

    monkeypatch.setattr(pull, "pull", fake_pull)
    async with open_room("story") as (room, pilot):
        pilot.app.action_pick_model(str(elsewhere / "lonely.bin"))
        await wait_until(lambda: isinstance(pilot.app.screen, ErrorScreen))
        await pilot.pause()
        assert header(room).startswith("story   tiny")
        await pilot.press("f")
        await wait_until(lambda: header(room).startswith("story   lonely"))


async def test_to_choose_what_is_open_calls_the_other_off(open_room, folder, wait_until, monkeypatch):
    told = []
    async with open_room("story") as (room, pilot):

        def endless(*args, progress, **options):
            while True:
                progress("counting sheep")
                told.append(1)
                threading.Event().wait(0.01)

        monkeypatch.setattr(model_module, "load_model", endless)
        pilot.app.action_pick_model("other.bin")
        await wait_until(lambda: "counting sheep" in header(room))
        assert "Call it off" in [command.title for command in pilot.app.get_system_commands(room)]
        pilot.app.action_pick_model(str(room.model.path))
        await wait_until(lambda: "opening" not in header(room))
        assert header(room).startswith("story   tiny")


async def test_quitting_while_another_model_is_opened_leaves_no_thread(
    open_room, folder, wait_until, monkeypatch, threads_of_ours
):
    async with open_room("story") as (room, pilot):

        def endless(*args, progress, **options):
            while True:
                progress("counting sheep")
                threading.Event().wait(0.01)

        monkeypatch.setattr(model_module, "load_model", endless)
        pilot.app.action_pick_model("other.bin")
        await wait_until(lambda: "counting sheep" in header(room))
        assert "errands" in threads_of_ours()
        await pilot.press("ctrl+q")
    assert not threads_of_ours()
    assert not pilot.app.return_code


async def test_a_room_that_cannot_take_the_model_keeps_its_own(open_room, folder, wait_until, say):
    async with open_room("chat") as (room, pilot):
        pilot.app.action_pick_model("stories")  # the bundled one does not chat
        await wait_until(lambda: pilot.app._notifications)
        notice = next(iter(pilot.app._notifications))
        assert "stories is no model for this room" in notice.title
        assert header(room).startswith("chat   tiny")


async def test_the_other_room_goes_on_with_the_new_model(open_room, folder, wait_until):
    async with open_room("story") as (_, pilot):
        await pilot.app.action_enter("chat")
        await wait_until(lambda: pilot.app.room.NAME == "chat" and pilot.app.room.model is not None)
        pilot.app.action_pick_model("other.bin")
        await wait_until(lambda: header(pilot.app.room).startswith("chat   other"))
        await pilot.app.action_enter("story")
        await wait_until(lambda: header(pilot.app.room).startswith("story   other"))


async def test_a_file_that_was_deleted_runs_on(open_room, pick, folder, wait_until, say):
    say(" one", again=9)
    async with open_room("story", model=folder / "other.bin") as (room, pilot):
        (folder / "other.bin").unlink()
        await pilot.press("1")
        await wait_until(lambda: room._begun and not room.busy)
        assert room.query_one(Page).text.endswith("one")
        picker = await pick(pilot)
        assert "deleted; it stays open" in row_of(picker, "other")


async def test_the_first_model_that_fails_lets_one_choose_another(make_app, folder, wait_until, pick):
    app = make_app("story", model=folder / "broken.bin")
    async with app.run_test() as pilot:
        await wait_until(lambda: isinstance(app.screen, ErrorScreen))
        await pilot.pause()
        await pilot.press("o")
        await wait_until(lambda: isinstance(app.screen, ModelPicker))
        await wait_until(lambda: app.screen._done)
        await pilot.press(*"other")
        await pilot.pause()
        await pilot.press("enter")
        await wait_until(lambda: app.room.model is not None)
        assert app.screen is app.room
    assert not app.return_code


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, ""),
        (999, "999 B"),
        (43_000, "43 kB"),
        (3_013_120, "3.0 MB"),
        (60_816_028, "61 MB"),
        (6_435_000_000, "6.4 GB"),
    ],
)
def test_sizes_fit_their_column(n_bytes, text):
    assert short_size(n_bytes) == text
    assert len(text) <= 6


@pytest.mark.parametrize(
    ("number", "thousand", "text"),
    [
        (0, 1000, ""),
        (512, 1024, "512"),
        (131072, 1024, "128K"),
        (15191712, 1000, "15.2M"),
        (1_235_814_400, 1000, "1.24B"),
    ],
)
def test_counts_fit_their_column(number, thousand, text):
    assert count(number, thousand) == text


@pytest.fixture
def gone(tmp_path, monkeypatch):
    """The current folder has been deleted."""
    monkeypatch.chdir(tmp_path)

    def delete():
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()

    return delete


async def test_a_folder_that_is_gone_hides_no_other_model(open_room, pick, gone, wait_until):
    async with open_room("story") as (room, pilot):
        gone()
        assert row_of(await pick(pilot), room.model.name)
        await pilot.press("escape")


async def test_a_search_that_fails_is_told_and_the_next_one_works(open_room, pick, monkeypatch, wait_until):
    async with open_room("story") as (_, pilot):
        with monkeypatch.context() as broken:
            broken.setattr(shelf, "model_files", lambda *folders: 1 / 0)
            await pilot.press("ctrl+o")
            await wait_until(lambda: isinstance(pilot.app.screen, ModelPicker))
            picker = pilot.app.screen
            await wait_until(lambda: "Not all could be looked at. ZeroDivisionError" in about(picker))
            await pilot.press("escape")
        await pick(pilot)
        await pilot.press("escape")


async def test_a_job_that_fails_is_told_and_the_next_one_runs(open_room, wait_until):
    async with open_room("story") as (_, pilot):
        done = threading.Event()
        pilot.app.reader.submit(lambda: 1 / 0)
        pilot.app.reader.submit(done.set)
        await wait_until(done.is_set)
        await wait_until(lambda: "ZeroDivisionError" in [*pilot.app._notifications][-1].message)


async def test_a_name_is_no_markup_in_the_palette(open_room, wait_until, monkeypatch):
    gate = threading.Event()
    async with open_room("story") as (room, pilot):
        monkeypatch.setattr(Loading, "__call__", lambda self: gate.wait(60))
        pilot.app.action_pick_model("a[red]b.bin")
        found = {one.title: one.help for one in pilot.app.get_system_commands(room)}
        assert Content.from_markup(found["Call it off"]).plain == "Stop opening a[red]b; all stays as it is"
        gate.set()
