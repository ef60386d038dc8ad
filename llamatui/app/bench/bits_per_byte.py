"""Bits per byte: how well a model predicts a text, comparable across vocabularies.

Texts are `<|endoftext|>`-separated stories, as TinyStories come. Each story is stripped, begins from a fresh
BOS, and is cut at the model's context, BOS included. The bytes are those of the tokens that were scored, so a
story that was not cut counts its UTF-8 bytes. Training files have gigabytes: a file is read as a stream.
"""

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llamatui.app.bench.logprobs import blocks
from llamatui.backends.base import Backend, KVCache
from llamatui.errors import UsageError
from llamatui.tokenizers.base import Tokenizer

if TYPE_CHECKING:
    from llamatui.app.model import LoadedModel

SEPARATOR = b"<|endoftext|>"
READ_BYTES = 1 << 20
BYTES_PER_POSITION = 64
"""What is looked at of a story's text: tokens of real text are far shorter on average."""


@dataclass
class Score:
    """Sums over all stories so far."""

    stories: int = 0
    tokens: int = 0
    """Those that were predicted: BOS is not."""
    bytes: int = 0
    nats: float = 0.0
    """Negative log-likelihood of the tokens."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    def as_json(self) -> dict[str, float | int]:
        return {
            "bits_per_byte": self.bits_per_byte,
            "nats_per_token": self.nats_per_token,
            "tokens": self.tokens,
            "bytes": self.bytes,
        }


def score_file(
    model: "LoadedModel", path: Path, max_stories: int | None, score: Score, progress: Callable[[Score], None]
) -> None:
    """Adds the stories of a file to `score`, one by one.

    Args:
        max_stories: Read no further than this many; None reads the whole file.

    Raises:
        UsageError: The file cannot be read, is not text, or holds no story.
    """
    tokenizer, backend = model.tokenizer, model.backend
    context = backend.config.max_seq_len
    cache = KVCache(backend.config)
    for text in read_stories(path, context * BYTES_PER_POSITION):
        tokens = tokenizer.encode(text, bos=True)[:context]
        if not text or len(tokens) < 2:  # nothing is there, or nothing comes before it
            continue
        cache.truncate(0)
        loss = nats(backend, tokens, cache)  # Ctrl+C comes here: the sums stay those of whole stories
        score.nats += loss
        score.tokens += len(tokens) - 1
        score.bytes += scored_bytes(tokenizer, tokens)
        score.stories += 1
        progress(score)
        if score.stories == max_stories:
            break
    if not score.bytes:
        raise UsageError(f"{path}: expected text to score, found none", "give a text file with stories in it")


def nats(backend: Backend, tokens: Sequence[int], cache: KVCache) -> float:
    """Negative log-likelihood of all tokens but the first."""
    total = 0.0
    targets = np.asarray(tokens[1:])  # (n,)
    for at, logprobs in blocks(backend, tokens[:-1], cache):
        n = len(logprobs)
        total -= float(logprobs[np.arange(n), targets[at : at + n]].sum())
    return total


def scored_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """Bytes of text that all tokens but the first stand for."""
    total = sum(len(tokenizer.decode_bytes(token)) for token in tokens[1:])
    # SentencePiece puts a space in front of a text, which is none of its bytes.
    if tokenizer.strips_space_after(tokens[0]) and tokenizer.decode_bytes(tokens[1])[:1] == b" ":
        total -= 1
    return total


def read_stories(path: Path, longest: int) -> Iterator[str]:
    """Texts between separators, stripped, without what is beyond `longest` bytes of each.

    Raises:
        UsageError: The file cannot be read, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            pending = b""
            while block := file.read(READ_BYTES):
                *whole, pending = (pending + block).split(SEPARATOR)
                for story in whole:
                    yield _text(path, story, longest)
                # Of what is too long, only a separator's beginning still matters, and a byte to tell.
                pending = pending[: longest + 1] + pending[longest + 1 :][1 - len(SEPARATOR) :]
            yield _text(path, pending, longest)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _text(path: Path, story: bytes, longest: int) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(story[:longest], final=len(story) <= longest)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: expected UTF-8 text, found the byte 0x{story[error.start]:02x}") from None
    if "\0" in text:
        raise UsageError(f"{path}: expected UTF-8 text, found the byte 0x00")
    return text.strip()
