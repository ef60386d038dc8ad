"""The rooms' replay files: what was generated on the screen is computed again from them, token for token."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input

from llamatui.app.model import load_model
from llamatui.app.replay import Replay
from llamatui.app.replay_check import verify
from llamatui.app.tui.page import Page
from llamatui.app.tui.story_dialogs import SaveDialog


def page(room: Any) -> str:
    return room.query_one(Page).text


def toasts(room: Any) -> list[str]:
    return [note.message for note in room.app._notifications]


@pytest.fixture
def save(wait_until: Any) -> Callable[..., Any]:
    """await save(room, pilot, path): the dialog was filled in, and Enter pressed."""

    async def saved(room: Any, pilot: Any, path: Path) -> SaveDialog:
        await pilot.press("x")
        await wait_until(lambda: isinstance(pilot.app.screen, SaveDialog))
        dialog = pilot.app.screen
        dialog.query_one(Input).value = str(path)
        await pilot.press("enter")
        await wait_until(lambda: pilot.app.screen is room or dialog.query_one(".error").display, "the file")
        return dialog

    return saved


@pytest.fixture
def story(open_room: Any) -> Callable[..., Any]:
    """async with story() as (room, pilot): a story room that writes by chance."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Any]:
        settings = {"temperature": 1.0, "backend": "numpy", "size": (100, 30), **options}
        async with open_room("story", **settings) as (room, pilot):
            yield room, pilot

    return opened


@pytest.fixture
def write_along(write: Any, wait_until: Any) -> Callable[..., Any]:
    """await write_along(room, pilot, words): the writer's, and the model has gone on behind them."""

    async def written(room: Any, pilot: Any, words: str) -> None:
        room.action_write()
        await pilot.pause()
        await write(pilot, words)
        await pilot.press("enter")
        await wait_until(lambda: words in page(room) and not room.busy, words)
        await pilot.pause()

    return written


async def sentence(room: Any, pilot: Any, wait_until: Any) -> None:
    """The model goes on for a few words, and is stopped from outside as after a sentence."""
    room._go_on(lambda before, piece: before.count(" ") > 5)
    await wait_until(lambda: not room.busy)
    await pilot.pause()


def played(path: Path) -> str:
    return "".join(step.shown + step.text for step in Replay.read(path).steps)


def assert_identical(path: Path, model: Any, tokens: int) -> None:
    verdict = verify(Replay.read(path), model if not isinstance(model, Path) else load_model(model))
    assert (verdict.identical, verdict.tokens, verdict.notes) == (True, tokens, [])


async def test_a_story_is_computed_again_with_the_writers_words_between(
    story: Any, save: Any, write: Any, wait_until: Any, write_along: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        await write_along(room, pilot, "But she")
        await save(room, pilot, path)
        assert pilot.app.screen is room
        replay = Replay.read(path)
        assert [step.backend for step in replay.steps] == ["numpy"] * 2
        assert [step.finish_reason for step in replay.steps] == ["stop", "context"]
        assert [step.shown for step in replay.steps] == ["Once", " But she"]
        assert played(path) == page(room)
        model = sum(token.author == "model" for token in room.story.path)
        assert_identical(path, room.model, model)
        assert toasts(room) == [f"Saved as {path}"]


async def test_a_changed_token_of_an_exported_file_is_found(
    story: Any, save: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        await save(room, pilot, path)
        replay = Replay.read(path)
        ids = list(replay.steps[0].output_ids)
        ids[2] += -1 if ids[2] else 1  # one of the vocabulary, whatever it was
        wrong = replace(replay, steps=(replace(replay.steps[0], output_ids=tuple(ids)),))
        difference = verify(wrong, room.model).difference
        assert difference is not None
        assert (difference.index, difference.recorded) == (2, ids[2])


async def test_no_file_names_weights_that_are_another_models_by_now(
    story: Any, save: Any, wait_until: Any, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "tiny.bin"
    for name in ("tiny.bin", "tokenizer.bin"):
        (tmp_path / name).write_bytes((tiny_model.parent / name).read_bytes())
    async with story(model=model) as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        (tmp_path / "new.bin").write_bytes(tiny_model.read_bytes())
        (tmp_path / "new.bin").replace(model)
        dialog = await save(room, pilot, tmp_path / "a.replay")
        assert "has changed since it was opened" in str(dialog.query_one(".error").content)
        assert not (tmp_path / "a.replay").exists()


async def test_other_versions_and_words_taken_back_are_not_in_it(
    story: Any, save: Any, wait_until: Any, write_along: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        first = page(room)
        await pilot.press("r")  # fills the context
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        assert page(room) != first
        room.story.cut(10)
        room.show_story()
        await write_along(room, pilot, "no yes")
        await save(room, pilot, path)
        steps = Replay.read(path).steps
        assert len(steps) == 2
        assert steps[0].finish_reason == "stop"
        assert played(path) == page(room)
        assert_identical(path, room.model, sum(len(step.output_ids) for step in steps))


async def test_what_was_in_the_cache_is_not_read_together_with_the_rest_of_the_prompt(
    story: Any, save: Any, wait_until: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        room.story.retry()  # of what it read, only the last token is run again
        await sentence(room, pilot, wait_until)
        await save(room, pilot, path)
        replay, model = Replay.read(path), room.model
    (step,) = replay.steps
    assert step.cached_tokens == len(step.prompt_ids) - 1
    lengths = []
    forward = type(model.backend).forward

    def counted(self: Any, tokens: Any, *rest: Any, **options: Any) -> Any:
        lengths.append(len(tokens))
        return forward(self, tokens, *rest, **options)

    monkeypatch.setattr(type(model.backend), "forward", counted)
    assert verify(replay, model).identical
    assert lengths == [step.cached_tokens, *[1] * len(step.output_ids)]


async def test_sampling_changed_in_mid_text_is_changed_again(
    story: Any, save: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):

        def cooled(before: str, piece: str) -> bool:
            if before.count(" ") == 4:
                room.run.sample(replace(room.sampling, temperature=0.0))
            return before.count(" ") > 9

        room.story.write("Once")
        room._go_on(cooled)
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        await save(room, pilot, path)
        (step,) = Replay.read(path).steps
        assert [change.sampling.temperature for change in step.changes if change.sampling] == [0.0]
        assert_identical(path, room.model, len(step.output_ids))


async def test_an_unfinished_character_at_the_end_is_not_in_it(
    story: Any, save: Any, say: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    say("x")
    from tests.app.tui.conftest import PIECES, ScriptedBackend

    ScriptedBackend.script[1:1] = [PIECES.index(b"<0xC3>")]
    async with story(backend=None) as (room, pilot):
        await pilot.press("1")
        await wait_until(lambda: page(room).endswith("x") and not room.busy)
        await pilot.pause()
        await save(room, pilot, path)
        (step,) = Replay.read(path).steps
        assert (step.text, len(step.output_ids), step.finish_reason) == ("x", 1, "stop")


async def test_without_anything_generated_the_dialog_says_that_nothing_can_be_replayed(
    story: Any, save: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):
        room.story.write("Once")
        room.show_story()
        room.query_one(Page).focus()
        dialog = await save(room, pilot, path)
        assert "nothing here can be replayed" in str(dialog.query_one(".error").content)
        assert not path.exists()


async def test_a_file_that_is_there_is_written_over_after_a_second_enter(
    story: Any, save: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    path.write_text("precious")
    async with story() as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        await save(room, pilot, path)
        assert path.read_text() == "precious"
        await pilot.press("enter")
        await wait_until(lambda: pilot.app.screen is room)
        assert len(Replay.read(path).steps) == 1


async def test_words_of_before_it_was_opened_are_shown_and_the_writer_is_told(
    story: Any, save: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with story() as (room, pilot):
        room.story.write("Once")
        await sentence(room, pilot, wait_until)
        await room.put(room.story.told_to(room.model))  # as if it came out of the history
        dialog = await save(room, pilot, path)
        assert "nothing here can be replayed" in str(dialog.query_one(".error").content)
        await pilot.press("escape")
        before = page(room)
        await sentence(room, pilot, wait_until)
        await save(room, pilot, path)
        (step,) = Replay.read(path).steps
        assert step.shown == before
        assert played(path) == page(room)
        assert_identical(path, room.model, len(step.output_ids))
        assert any("not computed again" in told for told in toasts(room))


async def test_a_passage_whose_authors_note_moved_is_only_shown(
    story: Any, save: Any, wait_until: Any, tmp_path: Path
) -> None:
    async with story(overflow="shift") as (room, pilot):
        room.story.write("Once")
        room.story.remember("", "sad")
        room._go_on(lambda before, piece: before.count(" ") > 120)
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        dialog = await save(room, pilot, tmp_path / "a.replay")
        assert "nothing here can be replayed" in str(dialog.query_one(".error").content)


@pytest.fixture
def chat(open_room: Any) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        async with open_room("chat", temperature=1.0, backend="numpy", context=300, size=(100, 30)) as both:
            yield both

    return opened


async def export(pilot: Any, room: Any, wait_until: Any, path: Path) -> None:
    before = len(toasts(room))
    await room._commands.execute(f"/export {path}")
    await wait_until(lambda: len(toasts(room)) > before)


async def test_a_chat_is_computed_again_regenerated_and_continued(
    chat: Any, ask: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with chat() as (room, pilot):
        generate = room.generate
        room.generate = lambda start, until=None: generate(start, lambda so_far, piece: len(so_far) > 40)
        await ask(room, pilot, "Hi")
        await ask(room, pilot, "Who?")
        await pilot.press("ctrl+r")
        await wait_until(lambda: len(room.conversation.turns) == 4 and not room.busy)
        await pilot.pause()
        await room.action_resume()
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        await export(pilot, room, wait_until, path)
        steps = Replay.read(path).steps
        assert [step.shown for step in steps] == ["You: Hi\n\ntiny: ", "\n\nYou: Who?\n\ntiny: ", ""]
        said = [turn.content for turn in room.conversation.turns if turn.role == "assistant"]
        assert [steps[0].text, steps[1].text + steps[2].text] == said
        assert_identical(path, room.model, sum(len(step.output_ids) for step in steps))
        assert toasts(room)[-1] == f"Written to {path}"

        await export(pilot, room, wait_until, path)
        assert "is there already" in toasts(room)[-1]


async def test_an_answer_that_goes_on_in_a_copy_keeps_its_beginning(
    chat: Any, ask: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with chat() as (room, pilot):
        generate = room.generate
        room.generate = lambda start, until=None: generate(start, lambda so_far, piece: len(so_far) > 40)
        await ask(room, pilot, "Hi")
        await ask(room, pilot, "Who?")
        room.conversation.tree.cut(2)  # the answer has a question behind it
        await room.action_resume()
        await wait_until(lambda: not room.busy)
        await pilot.pause()
        await export(pilot, room, wait_until, path)
        steps = Replay.read(path).steps
        assert len(steps) == 2
        assert "".join(step.text for step in steps) == room.conversation.turns[-1].content
        assert_identical(path, room.model, sum(len(step.output_ids) for step in steps))


async def test_a_chat_out_of_the_history_says_what_cannot_be_replayed(
    chat: Any, ask: Any, wait_until: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.replay"
    async with chat() as (room, pilot):
        generate = room.generate
        room.generate = lambda start, until=None: generate(start, lambda so_far, piece: len(so_far) > 40)
        await ask(room, pilot, "Hi")
        await room.put(room.conversation.told_to(room.model))
        await export(pilot, room, wait_until, path)
        assert "nothing here can be replayed" in toasts(room)[-1]
        assert not path.exists()
        await ask(room, pilot, "Who?")
        await export(pilot, room, wait_until, path)
        (step,) = Replay.read(path).steps
        assert step.shown.startswith("You: Hi\n\ntiny: ")
        assert step.shown.endswith("\n\nYou: Who?\n\ntiny: ")
        assert any("not computed again" in told for told in toasts(room))
