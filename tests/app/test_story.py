"""The story without a screen: what the model reads of it, and that nothing that was written is lost."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.app.engine import Generation, TokenRecord
from llamatui.app.model import LoadedModel, load_model
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story, continuation, count_words, decoded, sentence_ended
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import UsageError
from llamatui.tokenizers.base import StreamDecoder
from tests.tiny import TINY, random_weights, write_tokenizer_bin

TEXTS = st.text('abct he,.\n"é日🦙', max_size=12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("story")
    write_checkpoint(folder / "tiny.bin", replace(TINY, max_seq_len=512), 0, random_weights(TINY, seed=1))
    write_tokenizer_bin(folder / "tokenizer.bin", TINY.vocab_size)
    return load_model(folder / "tiny.bin", backend="numpy", threads=1)


@pytest.fixture
def story(model: LoadedModel) -> Story:
    return Story(model, 64, "stop")


def go_on(story: Story, count: int = 6, seed: int = 1, alternatives: int | None = None) -> Generation:
    """What the room does: the model writes `count` tokens."""
    story.tree.mark()
    generation = story.start(Sampler(Sampling(seed=seed)), alternatives, count)
    decoder = StreamDecoder(story.model.tokenizer, after=generation.prompt[-1])
    for record in generation:
        story.grow(record.id, decoder.push(record.id), pending=decoder.pending, record=record)
    story.finish(generation)
    return generation


def says(story: Story, text: str) -> None:
    """The model writes this."""
    story.tree.mark()
    story.begin()
    tokenizer = story.model.tokenizer
    for token, piece, pending in decoded(tokenizer, continuation(tokenizer, text), story.path[-1].id):
        story.grow(token, piece, pending=pending)
    story.finish(None)


def ids(story: Story) -> list[int]:
    return [token.id for token in story.path]


def read(story: Story) -> str:
    """What the model reads of the path: `story.text`, or the page does not show what it goes on from."""
    tokenizer = story.model.tokenizer
    return tokenizer.decode(ids(story), after=tokenizer.bos_id)


def test_writers_and_models_words_stand_in_turn(story: Story) -> None:
    story.write("the hen")
    go_on(story)
    story.write("and then")
    assert story.text.startswith("the hen")
    assert story.text.endswith("and then")
    assert [token.author for token in story.path if token.begins] == ["writer", "model", "writer"]
    assert story.prompt().ids == [1, *ids(story)]


def test_going_on_runs_only_what_is_new(story: Story) -> None:
    story.write("the hen")
    go_on(story)
    generation = go_on(story)
    assert generation.cached_tokens == len(generation.prompt) - 1


def test_a_branch_keeps_the_cache_up_to_where_it_begins(story: Story) -> None:
    story.write("the hen and the an")
    go_on(story, 8)
    story.cut(len(story.path) - 4)
    generation = go_on(story, 4, seed=5)
    assert generation.cached_tokens == len(generation.prompt) - 1


def test_retry_keeps_the_other_version_and_flip_shows_it(story: Story) -> None:
    story.write("the hen")
    go_on(story, seed=1)
    first = story.text
    story.retry()
    assert story.text == "the hen"
    go_on(story, seed=2)
    second = story.text
    assert story.versions() == (2, 2)
    assert story.flip(-1)
    assert (story.text, story.versions()) == (first, (1, 2))
    assert story.flip(-1)
    assert story.text == second


def test_the_same_words_again_are_no_other_version(story: Story) -> None:
    story.write("the hen")
    go_on(story, seed=3)
    before = story.text
    story.retry()
    go_on(story, seed=3)
    assert story.same_again()
    assert story.text == before
    assert story.versions() is None
    assert not story.same_again()


def test_the_same_words_again_go_no_further_than_they_came(story: Story) -> None:
    story.write("the hen")
    says(story, " ran and ate")
    before = list(story.path)
    story.retry()
    says(story, " ran")
    assert not story.same_again(), "there were more of them before"
    assert story.text == "the hen ran"
    assert story.path == before[: len(story.path)]
    assert story.versions() is None

    says(story, " and sat")
    story.cut(story.branching() or 0)
    assert story.text == "the hen ran"
    says(story, " and")
    assert not story.same_again()
    assert story.path == before[: len(story.path)]
    story.retry()
    assert story.text == "the hen ran", "only what was said the last time"


def test_the_same_words_are_the_same_though_others_followed(story: Story) -> None:
    story.write("the hen")
    length = len(story.path)
    says(story, " ran")
    says(story, " and ate")
    story.cut(length)
    says(story, " ran")
    assert story.same_again()
    assert story.text == "the hen ran"


def test_taking_another_token_begins_a_branch_there(story: Story) -> None:
    story.write("the hen")
    go_on(story, 6, alternatives=3)
    before, index = ids(story), len(story.path) - 4
    record = story.path[index].record
    assert record is not None
    other = next(choice.id for choice in record.top if choice.id != story.path[index].id)
    taken = story.take(index, other)
    assert ids(story) == [*before[:index], other]
    assert taken.record is not None
    assert (taken.record.id, taken.record.logprob) in [(choice.id, choice.logprob) for choice in record.top]
    generation = go_on(story, 2)
    assert generation.cached_tokens == index + 1
    story.tree.undo()
    story.tree.undo()
    assert ids(story) == before
    assert story.take(index, other) is taken, "it was taken before"


def test_a_character_that_is_cut_goes_whole(story: Story) -> None:
    story.write("a🦙")
    assert [token.pending for token in story.path] == [False, True, True, True, False]
    story.cut(3)
    assert story.text == "a"


def test_a_taken_byte_completes_the_character_that_was_begun(story: Story) -> None:
    story.write("a🦙")
    last = story.path[-1].id
    taken = story.take(4, last + 1)
    assert (taken.text, taken.pending) == (chr(ord("🦙") + 1), False)


def test_an_unfinished_character_at_the_end_goes(story: Story) -> None:
    story.write("a")
    generation = story.start(Sampler(Sampling()), None, 1)
    byte = story.model.tokenizer.encode("🦙")[0]
    story.grow(byte, "", pending=True)
    assert [token.id for token in story.finish(generation)] == [byte]
    assert story.text == "a"
    assert story.path[-1].children == []


@given(st.lists(TEXTS, max_size=4), st.integers(0, 40), st.integers(0, 40), TEXTS)
def test_an_edit_gives_the_text_that_was_meant(
    model: LoadedModel, passages: list[str], one: int, other: int, text: str
) -> None:
    story = Story(model, None, "stop")
    for passage in passages:
        if passage:
            story.write(passage)
    before, old = story.text, ids(story)
    start, end = sorted((min(one, len(before)), min(other, len(before))))
    meant = before[:start] + text + before[end:]
    story.edit(start, end, text)
    assert story.text == read(story) == meant
    if meant != before:
        assert story.tree.undo()
    assert ids(story) == old


def test_words_behind_an_edit_keep_their_author(story: Story) -> None:
    story.write("the hen")
    go_on(story)
    tail = story.path[-3:]
    story.edit(0, 3, "a")
    assert story.text.startswith("a hen")
    assert [(token.id, token.author) for token in story.path[-3:]] == [(t.id, "model") for t in tail]


@pytest.mark.parametrize("change", [(0, 0, "a"), (0, 0, "A. "), (0, 3, ""), (0, 4, ""), (0, 8, "an")])
def test_an_edit_at_the_front_is_read_as_it_is_shown(story: Story, change: tuple[int, int, str]) -> None:
    story.write("the hen and")
    start, end, text = change
    story.edit(start, end, text)
    assert story.text == read(story) == text + "the hen and"[end:]


def test_passages_behind_an_edit_stay_apart(story: Story) -> None:
    story.write("the hen")
    go_on(story)
    story.write("and then")
    begin = len(story.text)
    go_on(story)
    shown = story.text
    story.edit(0, 3, "a")
    story.retry()
    assert story.text == "a" + shown[3:begin]


def test_memory_and_note_are_undone_like_words(model: LoadedModel) -> None:
    story = Story(model, 96, "stop")
    story.write("the hen")
    story.remember("red", "sad")
    story.remember("", "")
    with pytest.raises(UsageError):
        story.remember("hen " * 40, "")
    assert story.tree.undo()
    assert (story.text, story.memory, story.note) == ("the hen", "red", "sad")
    assert story.tree.undo()
    assert (story.text, story.memory, story.note) == ("the hen", "", "")
    assert story.tree.undo()
    assert story.text == ""


def test_memory_stands_in_front_and_survives_a_shift(model: LoadedModel) -> None:
    story = Story(model, 96, "shift")
    story.remember("he is red", "")
    front = model.encode_prompt("he is red\n")
    story.write("the hen and " * 15)
    generation = story.start(Sampler(Sampling(seed=2)), None, 80)
    assert list(generation.prompt[: len(front)]) == front
    for record in generation:
        story.grow(record.id, "x", record=record)
    assert generation.dropped_tokens
    assert story.session.tokens[: len(front)] == front
    story.finish(generation)
    prompt = story.prompt()
    assert prompt.ids[: len(front)] == front
    assert 0 < prompt.forgotten < len(story.path)
    assert prompt.ids[len(front) :] == ids(story)[prompt.forgotten :]


def test_the_note_moves_along_through_a_shift(model: LoadedModel) -> None:
    story = Story(model, 96, "shift")
    story.remember("he is red", "sad")
    front, note = model.encode_prompt("he is red\n"), model.tokenizer.encode("\n[Author's note: sad]\n")[1:]
    story.write("the hen ran. and " * 15)
    before = story.prompt().forgotten
    generation = go_on(story, 120)
    assert generation.dropped_tokens > 60, "more than one shift"
    held = story.session.tokens
    assert held[: len(front)] == front
    at = next(i for i in range(len(held)) if held[i : i + len(note)] == note)
    assert at >= len(front)
    told = held[len(front) : at] + held[at + len(note) :]
    assert told == ids(story)[-len(told) :]
    assert story.forgotten == before + generation.dropped_tokens == len(story.path) - len(told)


def test_the_note_stands_before_a_sentence_near_the_end(model: LoadedModel) -> None:
    story = Story(model, None, "stop")
    story.remember("", "sad")
    story.write("a hen ran. then it")
    note = model.tokenizer.encode("sad")[-1]
    assert note in story.prompt().ids
    assert story.text == "a hen ran. then it", "the page does not show it"
    assert len(story.prompt(3).ids) < len(story.prompt().ids)


def test_only_the_story_is_counted_where_memory_and_note_are_too_long(
    model: LoadedModel, tmp_path: Path
) -> None:
    config = replace(TINY, max_seq_len=32)
    write_checkpoint(tmp_path / "small.bin", config, 0, random_weights(config, seed=1))
    write_tokenizer_bin(tmp_path / "tokenizer.bin", TINY.vocab_size)
    small = load_model(tmp_path / "small.bin", backend="numpy", threads=1)
    long = Story(model, None, "shift")
    long.write("it was a dark night")
    for memory, note in (("m" * 60, "n" * 40), ("m" * 20, ""), ("", "n" * 10)):
        long.remember(memory, note)
        story = long.told_to(small)
        assert go_on(story, 40).dropped_tokens > 30
        read = ids(story)[story.forgotten :]
        kept = min(len(story._front()), 8)
        assert story.session.tokens[kept:][: len(read)] == read != []


def test_memory_that_leaves_no_room_is_refused(story: Story) -> None:
    story.remember("hen", "")
    with pytest.raises(UsageError, match="memory has"):
        story.remember("hen " * 40, "")
    with pytest.raises(UsageError, match="note has"):
        story.remember("", "hen " * 40)
    assert (story.memory, story.note) == ("hen", "")


def test_a_full_context_is_full_and_a_shifted_one_never(story: Story) -> None:
    story.write("the hen")
    go_on(story, 100)
    assert story.is_full
    story.overflow = "shift"
    assert not story.is_full
    assert len(story.prompt().ids) <= 64


def test_what_was_forgotten_comes_back_when_there_is_room(model: LoadedModel) -> None:
    story = Story(model, 64, "shift")
    story.write("the hen and " * 20)
    assert story.prompt().forgotten
    story.cut(20)
    assert story.prompt().forgotten == 0


def test_a_question_about_a_token_asks_what_the_generation_knew(story: Story) -> None:
    story.write("the hen")
    go_on(story, 5, alternatives=4)
    for index in range(len(story.path) - 5, len(story.path)):
        (scored,) = story.session.score(*story.question(index), alternatives=4)
        record = story.path[index].record
        assert record is not None
        assert (scored.id, scored.rank) == (record.id, record.rank)
        assert scored.logprob == pytest.approx(record.logprob, abs=1e-4)


def test_unscored_tokens_are_those_from_the_first_without_a_record(story: Story) -> None:
    story.write("the hen")
    written = len(story.path)
    go_on(story, 3, alternatives=2)
    prompt, first, tokens = story.unscored()
    assert tokens == story.path
    assert [record.id for record in story.session.score(prompt, first, 2)] == ids(story)
    for token in story.path[:written]:
        token.record = story.path[-1].record
    assert story.unscored()[2] == []


def test_no_more_is_asked_about_than_the_context_holds(story: Story) -> None:
    story.write("the hen and " * 40)
    prompt, first, tokens = story.unscored()
    assert len(prompt) == story.session.context
    assert len(list(story.session.score(prompt, first, 2))) == len(tokens)
    for token in tokens:
        token.record = TokenRecord(token.id)
    assert story.unscored()[2] == []


def test_a_story_goes_on_with_another_model_on_all_its_branches(story: Story, model: LoadedModel) -> None:
    story.write("the hen")
    go_on(story, seed=1)
    first = story.text
    story.retry()
    go_on(story, seed=2)
    story.remember("red", "")
    other = story.told_to(model)
    assert other.text == story.text
    assert (other.memory, other.note) == ("red", "")
    assert [token.author for token in other.path if token.begins] == ["writer", "model"]
    assert other.versions() == (2, 2)
    other.flip(1)
    assert other.text == first


def test_another_model_undoes_and_shows_what_this_one_would(story: Story, model: LoadedModel) -> None:
    story.write("the hen")
    go_on(story, 6)
    story.cut(len(story.path) - 2)
    story.remember("red", "")
    go_on(story, 2, seed=5)
    story.retry()
    story.tree.flip(story.path[-1], 1)
    story.cut(0)
    story.write("a dog")
    story.tree.undo()
    other = story.told_to(model)
    for step in ("redo", "undo", "undo", "redo", "undo", "undo", "undo", "undo", "undo", "redo", "redo"):
        assert getattr(other.tree, step)() == getattr(story.tree, step)()
        assert (other.text, other.memory) == (story.text, story.memory)
    story.cut(0)
    other.cut(0)
    story.tree.follow(story.tree.root.children[0])
    other.tree.follow(other.tree.root.children[0])
    assert other.text == story.text
    story.retry()
    other.retry()
    assert other.text == story.text


@pytest.mark.parametrize(
    ("before", "piece", "ended"),
    [
        ("He ran.", " Then", True),
        ("He ran.", '"', False),
        ('"Run!"', " she", True),
        ("Mr.", " Fox", False),
        ("3.", "5", False),
        ("He ran", " on", False),
        ("the end\n", "Then", True),
        ("the end\n", "\n", False),
        ("\n", "Then", False),
        ("", " Then", False),
    ],
)
def test_where_a_sentence_ends(before: str, piece: str, ended: bool) -> None:
    assert sentence_ended(before, piece) is ended


def test_words_are_counted() -> None:
    assert count_words("It's a — well-known — llama.\n\n") == 4
    assert count_words("東京 is big") == 4
    assert count_words("") == 0
