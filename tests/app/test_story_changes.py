"""Whatever is done to a story, in whatever order: nothing is lost, and the model reads what is shown."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llamatui.app.model import LoadedModel, load_model
from llamatui.app.story import Story, Token, decoded
from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.tiny import TINY, random_weights, write_tokenizer_bin

# Few, so that the same comes again, and much of it at the front.
TEXTS = st.sampled_from(["the hen", "a", " and", "A. ", '"', "\n", "é日", "🦙"])
TOKENS = [260, 262, 267, 272, 243, 162]  # "he", " a", " the", " ", and bytes that begin or go on with "🦙"
IDS = st.lists(st.sampled_from(TOKENS), max_size=4)
PLACES = st.sampled_from([0, 0, 1, 3, 4, 9])


def tiny_model() -> LoadedModel:
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "tiny.bin", TINY, 0, random_weights(TINY, seed=1))
        write_tokenizer_bin(folder / "tokenizer.bin", TINY.vocab_size)
        return load_model(folder / "tiny.bin", backend="numpy", threads=1)


def leaves(story: Story) -> set[str]:
    """The text of each branch, to its end; one without a visible character is none."""
    return {text(token) for token in story.tree.walk() if not token.children} - {""}


def text(token: Token) -> str:
    parts = []
    while token.parent is not None:
        parts.append(token.text)
        token = token.parent  # type: ignore[assignment]
    return "".join(reversed(parts))


class Changes(RuleBasedStateMachine):
    model: LoadedModel | None = None

    @initialize()
    def begin(self) -> None:
        Changes.model = Changes.model or tiny_model()
        self.story = Story(Changes.model, None, "stop")
        self.written: set[Token] = set()

    @property
    def shown(self) -> tuple[list[Token], str]:
        return list(self.story.path), self.story.memory

    @rule(words=TEXTS)
    def write(self, words: str) -> None:
        self.story.write(words)

    @rule(ids=IDS)
    def go_on(self, ids: list[int]) -> None:
        self.story.tree.mark()
        self.grow(ids)

    @rule(ids=IDS, same=st.integers(0, 3))
    def retry(self, ids: list[int], same: int) -> None:
        before, could = self.shown, self.story.tree.can_redo
        self.story.retry()
        ids = [token.id for token in before[0][len(self.story.path) :][:same]] or ids
        wrote = len(self.story.path)
        self.grow(ids)
        if len(self.story.path) <= wrote:
            self.story.tree.revert()
            assert self.shown == before
            assert self.story.tree.can_redo == could

    def grow(self, ids: list[int]) -> None:
        story, start = self.story, len(self.story.path)
        story.begin()
        begun = start
        while begun and story.path[begun - 1].pending:
            begun -= 1
        old = [token.id for token in story.path[begun:]]
        previous = story.path[begun - 1].id if begun else story.model.tokenizer.bos_id
        new = list(decoded(story.model.tokenizer, old + ids, previous))[len(old) :]
        for token, piece, pending in new:
            story.grow(token, piece, pending=pending)
        story.finish(None)
        if came := [token.id for token in story.path[start:]]:
            story.same_again()
            assert [token.id for token in story.path[start:]] == came == ids[: len(came)]

    @rule(length=PLACES)
    def cut(self, length: int) -> None:
        self.story.cut(min(length, len(self.story.path)))

    @precondition(lambda self: self.story.path)
    @rule(index=PLACES, token=st.sampled_from(TOKENS))
    def take(self, index: int, token: int) -> None:
        self.story.take(min(index, len(self.story.path) - 1), token)
        self.written -= set(self.story.finish(None))

    @rule(one=PLACES, other=PLACES, words=st.just("") | TEXTS)
    def edit(self, one: int, other: int, words: str) -> None:
        before = self.story.text
        start, end = sorted((min(one, len(before)), min(other, len(before))))
        self.story.edit(start, end, words)
        assert self.story.text == before[:start] + words + before[end:]

    @rule(step=st.sampled_from([-1, 1]), index=PLACES)
    def flip(self, step: int, index: int) -> None:
        self.story.flip(step, min(index, len(self.story.path) - 1))

    @rule(memory=st.sampled_from(["", "he", "an"]))
    def remember(self, memory: str) -> None:
        self.story.remember(memory, "")

    @rule()
    def undo(self) -> None:
        before, could = self.shown, self.story.tree.can_undo
        assert self.story.tree.undo() == could
        after = self.shown
        assert (after != before) == could
        if could:
            assert self.story.tree.redo()
            assert self.shown == before
            assert self.story.tree.undo()
            assert self.shown == after

    @rule()
    def redo(self) -> None:
        before, could = self.shown, self.story.tree.can_redo
        assert self.story.tree.redo() == could
        assert (self.shown != before) == could

    @rule()
    def open_model(self) -> None:
        other = self.story.told_to(self.story.model)
        assert (other.text, other.memory) == (self.story.text, self.story.memory)
        assert leaves(other) == leaves(self.story)
        self.story, self.written = other, set()

    @invariant()
    def nothing_is_lost(self) -> None:
        nodes = set(self.story.tree.walk())
        assert self.written <= nodes
        self.written = nodes
        assert {place.end for place in self.story.tree.places} <= nodes | {self.story.tree.root}
        assert set(self.story.path) <= nodes

    @invariant()
    def the_model_reads_what_is_shown(self) -> None:
        tokenizer = self.story.model.tokenizer
        ids = [token.id for token in self.story.path]
        assert tokenizer.decode(ids, after=tokenizer.bos_id) == self.story.text


Changes.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
test_whatever_is_changed = Changes.TestCase
