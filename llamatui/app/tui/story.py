"""A story without a screen: passages by the writer and the model, and the ids they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamatui.app.engine import Generation, Limits, OverflowPolicy, Session
from llamatui.app.model import LoadedModel
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.tui.runner import Piece
from llamatui.tokenizers.base import Tokenizer

Author = Literal["writer", "model"]


@dataclass(frozen=True, slots=True)
class Passage:
    author: Author
    text: str
    before: tuple[int, ...]
    """What the model had read when the passage began."""
    pieces: tuple[Piece, ...] = ()
    """Of the model's: the tokens it is made of."""


class Story:
    """Passages in order. `ids` is what the model has read: all of it, until a full context was shifted."""

    def __init__(self, model: LoadedModel, context: int | None, overflow: OverflowPolicy) -> None:
        self.model = model
        self.session = Session(model.backend, context)
        self.overflow = overflow
        self.passages: list[Passage] = []
        self.ids: list[int] = []

    @property
    def text(self) -> str:
        return "".join([passage.text for passage in self.passages])

    def write(self, text: str) -> str:
        """Adds the writer's words; returns them as they read on the page, with a space in front if needed.

        Raises:
            UsageError: They are empty, and the vocabulary has no token that begins a text.
        """
        before = tuple(self.ids)
        if self.text:
            text = joined(self.text, text)
            self.ids += continuation(self.model.tokenizer, text)
        else:  # also behind an empty beginning, so that the first word is a first word
            self.ids = self.model.encode_prompt(text)
        self.passages.append(Passage("writer", text, before))
        return text

    def start(self, sampling: Sampling) -> Generation:
        """The generation that goes on from here."""
        limits = Limits(stop_ids=self.model.stop_ids, overflow=self.overflow)
        return self.session.start(self.ids, Sampler(sampling), limits)

    def finish(self, pieces: Sequence[Piece]) -> None:
        """Adds what the model wrote."""
        if pieces:
            text = "".join([piece.text for piece in pieces])
            self.passages.append(Passage("model", text, tuple(self.ids), tuple(pieces)))
            ids = [piece.record.id for piece in pieces]
            # A shifted session has forgotten the oldest ids; going on from all of them would run them again.
            shifted = len(self.session.tokens) < len(self.ids) + len(ids)
            self.ids = list(self.session.tokens) if shifted else self.ids + ids

    def undo(self) -> None:
        """Takes the last passage back."""
        self.ids = list(self.passages.pop().before)

    @property
    def is_full(self) -> bool:
        return self.overflow != "shift" and len(self.ids) >= self.session.context


def joined(story: str, text: str) -> str:
    """`text`, with a space in front where a writer who appends to `story` means one."""
    glued = not story or story[-1].isspace() or story[-1] in "\"'(“‘—-"
    return text if glued or not (text[:1].isalnum() or text[:1] in "\"'(“‘") else f" {text}"


def continuation(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` behind other text. SentencePiece puts a space in front, which is wanted only once."""
    if not tokenizer.strips_space_after(None):
        return tokenizer.encode(text)
    if text.startswith(" "):
        return tokenizer.encode(text[1:])
    # Nothing merges across a newline, so what follows its ids stands without the space.
    newline = tokenizer.encode("\n")
    ids = tokenizer.encode("\n" + text)
    return ids[len(newline) :] if ids[: len(newline)] == newline else tokenizer.encode(text)
