"""What a tokenizer is: text to token ids and back, and a decoder that never emits half a character.

Text may carry bytes that are not UTF-8: they travel through `str` by Python's `surrogateescape`
convention, and `text_to_bytes` brings them back. Any other lone surrogate becomes U+FFFD.
"""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def text_to_bytes(text: str) -> bytes:
    """UTF-8 bytes of `text`; surrogate-escaped bytes come back as they were."""
    return _LONE_SURROGATE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


class Tokenizer(ABC):
    """Token ids for one vocabulary.

    `encode` treats the text as plain text: it never yields a control token unless `special=True`.
    """

    format: str
    """How the file was read, for `inspect`: "sentencepiece", "llama2.c", "tiktoken", "bpe"."""

    vocab_size: int
    bos_id: int
    """Id that starts a sequence, or -1 where the vocabulary has none."""
    eos_ids: frozenset[int]
    """Ids that end a document or a turn."""
    special_tokens: dict[str, int]
    """Control tokens by their text. Only `encode(..., special=True)` and chat formats produce them."""
    adds_bos: bool
    """Whether a prompt starts with BOS by default."""

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of plain text. Anything that looks like a special token is ordinary text."""

    @abstractmethod
    def decode_bytes(self, token: int) -> bytes:
        """Bytes that one token stands for; b"" for control tokens."""

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            bos: Put `bos_id` in front (if the vocabulary has one).
            eos: Put the end-of-document id behind.
            special: Parse the texts of `special_tokens` as control tokens.
        """
        ids = [self.bos_id] if bos and self.bos_id >= 0 else []
        if special and self.special_tokens:
            for part in self._special_pattern.split(text):
                if part in self.special_tokens:
                    ids.append(self.special_tokens[part])
                elif part:
                    ids.extend(self.encode_ordinary(part))
        else:
            ids.extend(self.encode_ordinary(text))
        if eos and self.eos_ids:
            ids.append(min(self.eos_ids))
        return ids

    def decode(self, ids: Iterable[int], *, after: int | None = None) -> str:
        """Text of a whole sequence. Bytes that are not UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self, after=after)
        return "".join([decoder.push(token) for token in ids]) + decoder.flush()

    def strips_space_after(self, previous: int | None) -> bool:
        """Whether a token's leading space is dropped when it follows `previous` (None: at the start)."""
        return False

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        # Longest first, so that no control token hides another that starts with it.
        texts: Sequence[str] = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, texts)) + ")")


class StreamDecoder:
    """Turns token ids into text one by one, holding back incomplete UTF-8 characters."""

    def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
        """`after`: the id in front of the first one pushed, None at the start of a text."""
        self._tokenizer = tokenizer
        self._previous = after
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that is complete once `token` is known; "" while a character is still open."""
        piece = self._tokenizer.decode_bytes(token)
        if piece[:1] == b" " and self._tokenizer.strips_space_after(self._previous):
            piece = piece[1:]
        self._previous = token
        return self._utf8.decode(piece)

    @property
    def pending(self) -> bool:
        """Whether a character is still open."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else ""."""
        return self._utf8.decode(b"", final=True)
