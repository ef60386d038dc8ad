"""A story without a screen: a tree of tokens that two write, and what of it the model reads.

story.write("Once upon a time")                 the writer's words
generation = story.start(sampler)               the model's: each piece of them goes to `grow`,
story.grow(token, text, pending=..., record=...)
story.finish(generation)                        and this ends them

`cut`, `take`, `retry`, `edit` and `flip` change which branch is shown, as do undo and redo of the tree. What
was written is never deleted.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamatui.app.engine import Generation, Limits, OverflowPolicy, Session, TokenRecord
from llamatui.app.model import LoadedModel
from llamatui.app.sampler import Sampler
from llamatui.app.tree import Node, Tree
from llamatui.errors import UsageError
from llamatui.tokenizers.base import StreamDecoder, Tokenizer

Author = Literal["writer", "model"]

_SIGN = "\u3040-\u30ff\u3400-\u9fff"  # kana and Han
_WORD = re.compile(f"[{_SIGN}]|[^\\s{_SIGN}]*\\w[^\\s{_SIGN}]*")

NOTE_DEPTH = 64  # tokens of the story that stay behind the author's note: near enough to be obeyed
_BREAKS = (b".", b"!", b"?", b'"', b"\n")  # where it may stand

ENDS = (".", "!", "?", "…", "。", "！", "？")
ABBREVIATIONS = ("Mr.", "Mrs.", "Ms.", "Dr.", "St.")


class Token(Node):
    """One token of a story.

    Attributes:
        text: What it completes; "" inside a character.
        pending: Whether it ends inside a character.
        record: What the model thought of it; None until somebody asked.
        begins: Whether it is the first of what its author wrote at one time.
    """

    __slots__ = ("author", "begins", "id", "pending", "record", "text")

    def __init__(
        self,
        token: int,
        text: str,
        author: Author,
        *,
        pending: bool = False,
        record: TokenRecord | None = None,
        begins: bool = False,
    ) -> None:
        super().__init__()
        self.id = token
        self.text = text
        self.author: Author = author
        self.pending = pending
        self.record = record
        self.begins = begins


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads."""

    ids: list[int]
    keep: int
    """How many at the front a full context never forgets: BOS and memory."""
    forgotten: int
    """Tokens at the front of the story that are left out."""


class Story:
    """
    Attributes:
        tree: All branches; `tree.path` is the story as it is shown.
        context: Most positions to hold; None: what the model has.
        forgotten: Tokens at the front of the path that the generation left out when it began; memory stays.
    """

    def __init__(self, model: LoadedModel, context: int | None, overflow: OverflowPolicy) -> None:
        self.model = model
        self.context = context
        self.session = Session(model.backend, context)
        self.overflow = overflow
        self.tree: Tree[Token] = Tree(beside=("", ""))
        self.forgotten = 0
        self._begins = False  # whether the next token is the first of a generation

    @property
    def path(self) -> list[Token]:
        return self.tree.path

    @property
    def text(self) -> str:
        return "".join([token.text for token in self.path])

    @property
    def memory(self) -> str:
        """Read before everything, and never forgotten; not shown."""
        return self.tree.beside[0]

    @property
    def note(self) -> str:
        """The author's note, read a little before the end; not shown."""
        return self.tree.beside[1]

    def remember(self, memory: str, note: str) -> None:
        """Sets memory and the author's note.

        Raises:
            UsageError: One takes more than a quarter of the context: the story needs room, and a shift keeps
                no longer front than that.
        """
        self.tree.mark()
        self.tree.beside = memory, note
        most = self.session.context // 4
        for name, ids in (("memory", self._front()), ("note", self._note_ids())):
            if len(ids) > most:
                self.tree.revert()
                raise UsageError(
                    f"the {name} has {len(ids)} tokens; at most {most} leave room for the story", "shorten it"
                )

    # Writing.

    def write(self, text: str) -> list[Token]:
        """Adds the writer's words, with a space in front if one is needed; returns their tokens.

        Raises:
            UsageError: They are empty, and the vocabulary has no token that begins a text.
        """
        if not (text or self.path):
            self.model.encode_prompt("")  # may the model begin from nothing?
        self.tree.mark()
        return self._add(joined(self.text, text), "writer")

    def _add(self, text: str, author: Author) -> list[Token]:
        tokenizer = self.model.tokenizer
        ids = continuation(tokenizer, text) if self.path else tokenizer.encode(text)
        previous = self.path[-1].id if self.path else self._bos
        tokens = [
            Token(token, piece, author, pending=pending, begins=i == 0)
            for i, (token, piece, pending) in enumerate(decoded(tokenizer, ids, previous))
        ]
        for token in tokens:
            self.tree.add(token)
        return tokens

    # Generating.

    def prompt(self, length: int | None = None) -> Prompt:
        """What the model reads to go on behind the first `length` tokens of the path; None: behind all.

        The note stands before the sentence that begins at least NOTE_DEPTH tokens before the end.
        """
        path = self.path if length is None else self.path[:length]
        front, note = self._front(), self._note_ids()
        forgotten = self._window(len(path), self.session.context - len(front) - len(note))
        ids = with_note([token.id for token in path[forgotten:]], note, self.model.tokenizer)
        return Prompt(front + ids, max(len(front), 1), forgotten)

    def _window(self, length: int, room: int) -> int:
        """How many tokens at the front of a path of `length` are left out, where `room` is what fits."""
        if length <= room or self.overflow != "shift":
            return 0
        if 0 < length - self.forgotten < room:
            return self.forgotten
        # To the half: what is left grows again with its cache, instead of being cut anew each time.
        return length - max(room // 2, 1)

    def _front(self) -> list[int]:
        """Ids in front of the story: BOS, unless the vocabulary begins without, and memory."""
        if self.memory:
            return self.model.encode_prompt(f"{self.memory}\n")
        if self.model.tokenizer.adds_bos or not self.path or self.path[0].author == "model":
            return self.model.encode_prompt("")
        return []

    def _note_ids(self) -> list[int]:
        if not self.note:
            return []
        return continuation(self.model.tokenizer, f"\n[Author's note: {self.note}]\n")

    @property
    def _bos(self) -> int | None:
        bos = self.model.tokenizer.bos_id
        return bos if bos >= 0 else None

    def start(
        self, sampler: Sampler, alternatives: int | None = None, max_new: int | None = None
    ) -> Generation:
        """The generation that goes on from here.

        Args:
            alternatives: Likeliest tokens to record with each one.
            max_new: Most tokens; None: until the text ends, or the context does.
        """
        prompt = self.prompt()
        self.forgotten = prompt.forgotten
        self.begin()
        return self.session.start(prompt.ids, sampler, self.limits(prompt, alternatives, max_new))

    def limits(self, prompt: Prompt, alternatives: int | None = None, max_new: int | None = None) -> Limits:
        """Of a generation from `prompt`."""
        shorten = self._shortener(prompt.forgotten)
        return Limits(max_new, self.model.stop_ids, self.overflow, prompt.keep, alternatives, shorten)

    def _shortener(self, forgotten: int) -> Callable[[Sequence[int]], list[int]] | None:
        """For `Limits.shorten`: the note moves along with the story. None where there is none."""
        front, note, tokenizer = self._front(), self._note_ids(), self.model.tokenizer
        room = self.session.context - len(front) - len(note)
        if not note or room < self.session.context // 2:  # too long: they were meant for another model
            return None
        told = [token.id for token in self.path[forgotten:]]
        return lambda new: front + with_note([*told, *new][-(room // 2) :], note, tokenizer)

    def _spare(self) -> int:
        """Tokens of memory and note that a shift forgets: too long, they were meant for another model."""
        if self._shortener(0) is not None:
            return 0
        return max(len(self._front()) - self.session.context // 4, 0) + len(self._note_ids())

    def begin(self) -> None:
        """What `grow` adds from here on is a passage of its own."""
        self._begins = True

    def grow(
        self, token: int, text: str, *, pending: bool = False, record: TokenRecord | None = None
    ) -> Token:
        """Adds a token that the model wrote."""
        grown = Token(token, text, "model", pending=pending, record=record, begins=self._begins)
        self._begins = False
        self.tree.add(grown)
        return grown

    def finish(self, generation: Generation | None) -> list[Token]:
        """Ends what the model wrote: an unfinished character at the end goes: going on would tear it.

        Returns:
            What was taken away.
        """
        self._begins = False
        if generation is not None and generation.dropped_tokens and self.overflow == "shift":
            self.forgotten += max(generation.dropped_tokens - self._spare(), 0)
        torn: list[Token] = []
        while self.path and self.path[-1].pending:
            torn.append(self.path[-1])
            if self.path[-1].children:  # it was finished before, on another branch
                self.tree.cut(len(self.path) - 1)
            else:
                self.tree.remove_end()
        return torn[::-1]

    def question(self, index: int) -> tuple[list[int], int]:
        """(ids, first) for `Session.score`, which tells what could stand in the place of token `index`."""
        ids = self.prompt(index).ids
        return [*ids, self.path[index].id], len(ids)

    def unscored(self) -> tuple[list[int], int, list[Token]]:
        """(ids, first, tokens) for `Session.score`: from the first without a record on, as far as they fit.

        The author's note is left out, which moves along as the story grows.
        """
        front = self._front()
        forgotten = self._window(len(self.path), self.session.context - len(front))
        told = self.path[forgotten : forgotten + self.session.context - len(front)]
        at = next((i for i, token in enumerate(told) if token.record is None), len(told))
        at = max(at, 1 - len(front))  # nothing stands before the very first token
        return front + [token.id for token in told], len(front) + at, told[at:]

    @property
    def is_full(self) -> bool:
        return self.overflow != "shift" and len(self.prompt().ids) >= self.session.context

    # Branches.

    def passage(self, index: int | None = None) -> int:
        """Where what was written at one time begins: the passage that holds token `index`, or the last."""
        i = len(self.path) - 1 if index is None else index
        while i > 0 and not self.path[i].begins:
            i -= 1
        return max(i, 0)

    def cut(self, length: int) -> None:
        """Takes back all but the first `length` tokens, and what nobody could see at their end.

        That is a torn character, or the lone space in front of a first word.
        """
        self.tree.mark()
        while length and self.path[length - 1].pending:
            length -= 1
        if not any(token.text for token in self.path[:length]):
            length = 0
        self.tree.cut(length)

    def retry(self) -> None:
        """Takes the model's last words back, to try others beside them."""
        self.tree.mark()
        if self.path and self.path[-1].author == "model":
            self.tree.cut(self.passage())

    def same_again(self) -> bool:
        """Whether the last passage has been there before, and no longer.

        If it has, the older one takes its place, as far as this one goes.
        """
        at = self.passage()
        if not self.path or self.path[-1].children:
            return False
        new = [token.id for token in self.path[at:]]
        for sibling in self.tree.siblings(self.path[at])[:-1]:
            ids, node = [sibling.id], sibling
            while len(ids) < len(new) and node.children:
                node = next((child for child in node.children if child.id == new[len(ids)]), node.children[0])
                ids.append(node.id)
            if ids == new:
                for _ in new:
                    self.tree.remove_end()
                self.tree.go(node)
                sibling.begins = True
                return all(child.begins for child in node.children)
        return False

    def take(self, index: int, token: int) -> Token:
        """Puts another token in the place of token `index`, and ends the story there, to go on from it."""
        self.tree.mark()
        record = instead(self.path[index].record, token)
        for sibling in self.tree.siblings(self.path[index]):
            if sibling.id == token and sibling.author == "model":
                self.tree.cut(index)
                self.tree.go(sibling)
                return sibling
        self.tree.cut(index)
        begun = index
        while begun and self.path[begun - 1].pending:  # it may complete a character
            begun -= 1
        ids = [part.id for part in self.path[begun:]]
        before = self.path[begun - 1].id if begun else self._bos
        *_, (_, text, pending) = decoded(self.model.tokenizer, [*ids, token], before)
        taken = Token(token, text, "model", pending=pending, record=record, begins=True)
        self.tree.add(taken)
        return taken

    def edit(self, start: int, end: int, text: str) -> None:
        """Puts the writer's `text` in the place of characters `start` to `end` of the story.

        What stands behind them stays, as its author wrote it, on a branch of its own.
        """
        whole = self.text
        if whole[start:end] == text:
            return
        self.tree.mark()
        kept, at = 0, 0
        while kept < len(self.path) and at + len(self.path[kept].text) <= start:
            at += len(self.path[kept].text)
            kept += 1
        while kept and self.path[kept - 1].pending:  # not inside a character
            kept -= 1
            at -= len(self.path[kept].text)
        if not at:
            kept = 0  # a lone space in front of the first word, which nobody could see
        # Behind the change, from the first token that begins there: its words keep their author.
        old, behind, index = self.path[kept:], at, 0
        while index < len(old) and (behind < end or (index and old[index - 1].pending)):
            behind += len(old[index].text)
            index += 1
        changed = whole[at:start] + text + whole[end:behind]
        was_first, is_first = kept + index == 0, not (kept or changed)
        if was_first != is_first and self.model.tokenizer.strips_space_after(self._bos):
            # The space of the first word is not shown: here and there it is another token.
            word = ""
            while index < len(old) and (not word or old[index - 1].pending):
                word += old[index].text
                index += 1
            changed += word
        rest = old[index:]
        self.tree.cut(kept)
        if changed:
            self._add(changed, "writer")
        for token in rest:
            begins = token.begins or token is rest[0]
            self.tree.add(Token(token.id, token.text, token.author, pending=token.pending, begins=begins))

    def versions(self, index: int | None = None) -> tuple[int, int] | None:
        """(which, of how many) branches is shown at the last place that has several, at or before `index`."""
        at = self.branching(index)
        if at is None:
            return None
        siblings = self.tree.siblings(self.path[at])
        return siblings.index(self.path[at]) + 1, len(siblings)

    def branching(self, index: int | None = None) -> int | None:
        """Index of the last token, at or before `index`, in whose place others were tried too."""
        last = len(self.path) - 1 if index is None else index
        return next((i for i in range(last, -1, -1) if len(self.tree.siblings(self.path[i])) > 1), None)

    def flip(self, step: int, index: int | None = None) -> bool:
        """Shows the next branch, or with -1 the one before; False where there is none."""
        at = self.branching(index)
        return at is not None and self.tree.flip(self.path[at], step)

    def blank(self) -> "Story":
        """Another one, with the same settings, memory and note."""
        story = Story(self.model, self.context, self.overflow)
        story.tree = Tree(beside=self.tree.beside)
        return story

    def told_to(self, model: LoadedModel) -> "Story":
        """The same story, all branches, for another model: its tokens may be others."""
        story = Story(model, self.context, self.overflow)
        twins: dict[Node, Node] = {self.tree.root: story.tree.root}
        ends = {place.end for place in [*self.tree.places, self.tree.here]}
        shown_last: list[Token] = []
        for token in self.tree.walk():
            if token in twins:
                continue
            run = [token]  # until it branches, somebody goes on, or a change led there
            while len(run[-1].children) == 1 and not run[-1].children[0].begins and run[-1] not in ends:
                run.append(run[-1].children[0])
            before = token.parent
            assert before is not None
            story.tree.go(twins[before])
            if text := "".join([part.text for part in run]):
                first, *_ = story._add(text, token.author)
                first.begins = token.begins
                if before.children[before.chosen] is token:
                    shown_last.append(first)
            twins.update(dict.fromkeys(run, story.tree.end))
        for first in shown_last:
            assert first.parent is not None
            first.parent.chosen = first.parent.children.index(first)
        story.tree.take_over(self.tree, twins)
        return story


def instead(record: TokenRecord | None, token: int) -> TokenRecord | None:
    """What `record` says of another token in the place of its own; None where that is not known."""
    if record is not None:
        for rank, other in enumerate(record.top):
            if other.id == token:
                return replace(record, id=token, logprob=other.logprob, rank=rank)
    return None


def with_note(ids: list[int], note: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """`ids` with the author's note: before a sentence, NOTE_DEPTH tokens before the end or a bit earlier."""
    last = at = max(len(ids) - NOTE_DEPTH, 0)
    while at > max(last - NOTE_DEPTH, 0):
        if tokenizer.decode_bytes(ids[at - 1]).rstrip(b" ").endswith(_BREAKS):
            return [*ids[:at], *note, *ids[at:]]
        at -= 1
    return [*ids[:last], *note, *ids[last:]]


def count_words(text: str) -> int:
    """Words, and signs of scripts that put no spaces between words."""
    return sum(1 for _ in _WORD.finditer(text))


def sentence_ended(before: str, piece: str) -> bool:
    """Whether a sentence is over at the end of `before`, now that `piece` comes next."""
    if before.endswith("\n"):
        return bool(before.strip()) and not piece.startswith("\n")
    words = before.rstrip("\"'”’)]»")
    return words.endswith(ENDS) and not words.endswith(ABBREVIATIONS) and piece[:1].isspace()


def decoded(tokenizer: Tokenizer, ids: Iterable[int], after: int | None) -> Iterable[tuple[int, str, bool]]:
    """(id, text that it completes, whether it ends inside a character) of each id, behind `after`."""
    decoder = StreamDecoder(tokenizer, after=after)
    for token in ids:
        text = decoder.push(token)
        yield token, text, decoder.pending


def joined(story: str, text: str) -> str:
    """`text`, with a space in front where a writer who appends to `story` means one."""
    glued = not story or story[-1].isspace() or story[-1] in "\"'(“‘—-"
    return text if glued or not (text[:1].isalnum() or text[:1] in "\"'(“‘") else f" {text}"


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` behind other text. SentencePiece puts a space in front, which is wanted only once."""
    if not tokenizer.strips_space_after(None):
        return tokenizer.encode(text)
    if text.startswith(" ") and len(text) > 1:
        return tokenizer.encode(text[1:])
    # Nothing merges across a newline, so what follows its ids stands without the space.
    newline = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else tokenizer.encode(text)
