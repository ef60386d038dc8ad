"""Replay files of what is on the screen: each generation is remembered as a step, beside where it stands.

A step belongs to the text that was open when it was generated. The same text for another model, or taken out
of the history, begins without steps: nobody knows any longer how its words were chosen. They go into the file
as words that stood there, and the writer is told so.

What was generated and is not shown is not in the file, but may have left its mark in the KV cache: the last
token of a prompt rounds differently when it is run again alone. In fp32 that is too little to matter; with
q8_0 it may, rarely, make `verify` choose another token.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from llamatui.app.text_file import named_path
from llamatui.app.tree import Node
from llamatui.app.tui.keeping import Content
from llamatui.app.tui.runner import Run
from llamatui.errors import LlamatuiError, UsageError

if TYPE_CHECKING:
    from llamatui.app.conversation import Conversation
    from llamatui.app.replay import Step
    from llamatui.app.story import Story
    from llamatui.app.tui.room import Room

SUFFIX = ".replay"


class Passage(NamedTuple):
    """A step, and where in the text of its node it begins: an answer may have gone on."""

    at: int
    step: "Step"


Passages = dict[Node, tuple[Passage, ...]]
"""By the first node of what was generated, in order."""


@dataclass
class Shown:
    """What a file will hold.

    Attributes:
        words: Those behind the last step.
        unknown: Whether the model wrote words of which no step is known.
    """

    steps: "list[Step]"
    words: str = ""
    unknown: bool = False

    def add(self, step: "Step") -> None:
        self.steps.append(replace(step, shown=self.words))
        self.words = ""


class Replaying:
    """Remembers the steps of a room's texts, and writes those on the path that is shown."""

    def __init__(self, room: "Room") -> None:
        self._room = room
        self._known: WeakKeyDictionary[Content, Passages] = WeakKeyDictionary()

    def keep_told(self, story: "Story", first: int, run: Run) -> None:
        """`run` ended, and token `first` of the path is the first that it made."""
        if step := step_of(run):
            passages = self._known.setdefault(story, {})
            # The same words may have been there before; then the longer of the two holds more of them.
            old = passages.get(story.path[first])
            if old is None or len(old[0].step.output_ids) < len(step.output_ids):
                passages[story.path[first]] = (Passage(0, step),)

    def keep_said(self, chat: "Conversation", run: Run) -> None:
        """`run` ended, and its words are the end of the last answer."""
        if step := step_of(run):
            passages, turn = self._known.setdefault(chat, {}), chat.tree.path[-1]
            said = turn.message.content
            at = len(said) - len(step.text)
            before = passages.get(turn, ())
            if at and not before:  # it goes on in a copy of an older one
                before = next(
                    (
                        passages[other]
                        for other in chat.tree.siblings(turn)
                        if other in passages and other.message.content == said[:at]
                    ),
                    (),
                )
            passages[turn] = (*before, Passage(at, step))

    async def write(self, name: str, *, overwrite: bool = False) -> Path:
        """Writes the steps on the path that is shown; tells the writer what is not among them.

        Raises:
            UsageError: There is none, or the model is still writing; or the name is of no use.
            FileExistsError: There is such a file, and it may not be overwritten.
            LlamatuiError: It cannot be written.
        """
        content = self._room.content
        assert content is not None
        if self._room.busy:
            raise UsageError("the model is still writing", "wait for its end, or stop it")
        shown = self._shown(content)
        if not shown.steps:
            raise UsageError(
                "nothing here can be replayed",
                "only what this model writes from now on can be: how older words were chosen is not known",
            )
        path = named_path(name).absolute()
        if path.is_file() and not overwrite:
            raise FileExistsError(path)
        # The hash of a large model, if nobody has asked for it yet, takes seconds.
        await asyncio.to_thread(_write, content, shown.steps, path)
        if told := "\n".join(_missing(shown)):
            self._room.notify(told, title="The replay is not the whole text", severity="warning", timeout=10)
        return path

    def _shown(self, content: Content) -> Shown:
        from llamatui.app.story import Story

        passages = self._known.get(content, {})
        if isinstance(content, Story):
            return of_story(content, passages)
        return of_chat(content, passages)


def step_of(run: Run) -> "Step | None":
    """What the run made, as far as a room keeps it; None where nothing is, or it cannot be computed again."""
    pieces, generation = run.complete_pieces(), run.generation
    if not pieces or generation is None or run.recorder is None:
        return None
    if generation.limits.shorten is not None and generation.dropped_tokens:
        return None  # an author's note moved along, of which a step knows nothing
    text = "".join([piece.text for piece in pieces])
    return beginning(run.recorder.step(text), len(pieces), text)


def beginning(step: "Step", count: int, text: str) -> "Step":
    """The first `count` tokens of it, which are `text`: as if it had been stopped there."""
    if count == len(step.output_ids):
        return step
    return replace(
        step,
        output_ids=step.output_ids[:count],
        logprobs=step.logprobs[:count],
        changes=tuple(change for change in step.changes if change.at <= count),
        text=text,
        finish_reason="stop",
    )


def of_story(story: "Story", passages: Passages) -> Shown:
    shown, path, at = Shown([]), story.path, 0
    while at < len(path):
        token = path[at]
        if token in passages:
            step = passages[token][0].step
            rest = path[at : at + len(step.output_ids)]
            count = _shared([token.id for token in rest], step.output_ids)
            shown.add(beginning(step, count, "".join([token.text for token in rest[:count]])))
            at += count
            continue
        shown.words += token.text
        # A token alone in its passage was chosen by the writer, in the place of another one.
        chosen = token.begins and (at + 1 == len(path) or path[at + 1].begins)
        shown.unknown |= token.author == "model" and not chosen
        at += 1
    return shown


def of_chat(chat: "Conversation", passages: Passages) -> Shown:
    """A name before each message, as in an exported text."""
    shown = Shown([], f"System: {chat.system}\n\n" if chat.system else "")
    names = {"user": "You", "assistant": chat.model.name}
    for number, turn in enumerate(chat.tree.path):
        said, at = turn.message.content, 0
        shown.words += ("\n\n" if number else "") + f"{names[turn.message.role]}: "
        for passage in passages.get(turn, ()):
            shown.words += said[at : passage.at]
            shown.unknown |= at < passage.at
            shown.add(passage.step)
            at = passage.at + len(passage.step.text)
        shown.words += said[at:]
        shown.unknown |= turn.message.role == "assistant" and at < len(said)
    return shown


def _shared(left: Iterable[int], right: Iterable[int]) -> int:
    """How many they begin with in common."""
    count = 0
    for mine, theirs in zip(left, right, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _missing(shown: Shown) -> Iterable[str]:
    if shown.unknown:
        yield (
            "Words that were not generated since this was opened, by this model, are not computed again, "
            "but only read; behind them q8_0 may choose others than here. "
            "The same holds for words behind an author's note that moved when the context was full."
        )
    if shown.words:
        yield "What stands behind the last of those generated is left out."


def _write(content: Content, steps: "list[Step]", path: Path) -> None:
    from llamatui.app.replay import Replay

    try:
        Replay.of(content.model, steps).write(path, force=True)
    except OSError as error:  # of the files whose hashes it has
        raise LlamatuiError(
            f"the model cannot be read: {error.strerror or error}", "a replay names it by its hash"
        ) from error
