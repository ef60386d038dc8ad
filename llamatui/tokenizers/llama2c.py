"""llama2.c's `tokenizer.bin` for SentencePiece vocabularies, with the merges of run.c.

The file is int32 max_token_length, then for each id float32 score, int32 length, bytes. Spaces are plain,
bytes without a piece of their own are `<0x00>`..`<0xFF>` at ids 3..258, and ids 0, 1, 2 are unk, BOS, EOS.
Source: llama2.c `tokenizer.py` and `encode` in `run.c`.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.binary_vocab import BinaryVocab
from llamatui.tokenizers.merging import merge_pairs

BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
FIRST_BYTE_ID = 3
CONTROL_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}
LONGEST_CACHED = 64  # ids; longer segments hardly recur
LOWEST_SCORE = -1e10  # run.c starts its search here, so a worse score is never merged


class Llama2cTokenizer(Tokenizer):
    """The same ids as run.c for any text, in O(n log n) instead of O(n²).

    Like run.c: a space goes in front of any text that is not empty, characters without a piece become bytes,
    and the pair with the best score is merged first, the leftmost of equals. Unlike run.c: text can contain
    NUL, and can never merge into a control id.
    """

    format = "llama2.c"
    bos_id = 1
    eos_ids = frozenset({2})
    special_tokens = CONTROL_IDS
    adds_bos = True

    def __init__(self, vocab: BinaryVocab) -> None:
        """Raises TokenizerError: ids 3..258 are not the byte pieces."""
        expected = [b"<0x%02X>" % byte for byte in range(256)]
        found = vocab.pieces[FIRST_BYTE_ID : FIRST_BYTE_ID + 256]
        if found != expected:
            wrong = next(i for i in range(256) if found[i : i + 1] != expected[i : i + 1])
            raise TokenizerError(
                f"expected {expected[wrong].decode()} at id {FIRST_BYTE_ID + wrong}, "
                f"found {found[wrong].decode('utf-8', 'replace')!r}"
                if wrong < len(found)
                else f"expected at least {FIRST_BYTE_ID + 256} tokens, found {len(vocab.pieces)}",
            )
        self.vocab_size = len(vocab.pieces)
        self._pieces = vocab.pieces
        self._bytes = [_decoded(piece) for piece in vocab.pieces]
        # id and score by piece, of the pieces that text may become. A duplicate keeps its first id.
        self._ids: dict[bytes, int] = {}
        for i in range(FIRST_BYTE_ID, self.vocab_size):
            self._ids.setdefault(vocab.pieces[i], i)
        self._ranks = _ranks(vocab.scores)
        # Bytes that stand next to each other in some piece: no merge crosses any other boundary.
        self._joins = {pair for piece in self._ids for pair in pairwise(piece)}
        # Words and pairs recur; both caches are per tokenizer and bounded.
        self._merge_pair = lru_cache(maxsize=1 << 17)(self._pair)
        self._merge_short = lru_cache(maxsize=1 << 14)(self._merge)

    def encode_ordinary(self, text: str) -> list[int]:
        data = text_to_bytes(text)
        if not data:
            return []
        ids: list[int] = []
        for segment in self._segments(self._characters(b" ") + self._characters(data)):
            ids.extend(self._merge_short(segment) if len(segment) <= LONGEST_CACHED else self._merge(segment))
        return ids

    def _segments(self, ids: list[int]) -> Iterator[tuple[int, ...]]:
        """Cuts at boundaries that no merge can cross: words, more or less."""
        start = 0
        joins, pieces = self._joins, self._pieces
        for i in range(1, len(ids)):
            if (pieces[ids[i - 1]][-1], pieces[ids[i]][0]) not in joins:
                yield tuple(ids[start:i])
                start = i
        yield tuple(ids[start:])

    def _characters(self, data: bytes) -> list[int]:
        """One id per UTF-8 character that has a piece, else one per byte."""
        ids: list[int] = []
        # A character is a byte and up to three continuation bytes: run.c's rule, also for broken UTF-8.
        for match in re.finditer(rb"(?s).[\x80-\xbf]{0,3}", data):
            character = match.group()
            known = self._ids.get(character)
            ids.extend([known] if known is not None else [byte + FIRST_BYTE_ID for byte in character])
        return ids

    def _merge(self, segment: tuple[int, ...]) -> tuple[int, ...]:
        """Merges neighbours, best score first, then leftmost, until no pair is a piece."""
        return tuple(merge_pairs(segment, self._merge_pair))

    def _pair(self, left: int, right: int) -> tuple[int, int] | None:
        """Rank of the piece that two make, and its id."""
        merged = self._ids.get(self._pieces[left] + self._pieces[right])
        rank = None if merged is None else self._ranks[merged]
        return None if merged is None or rank is None else (rank, merged)

    def decode_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token not in (0, 1, 2) else b""

    def strips_space_after(self, previous: int | None) -> bool:
        return previous is None or previous == self.bos_id


def _ranks(scores: Sequence[float]) -> list[int | None]:
    """Place of each score, the best is 0 and equal scores are equal. None: never merged."""
    places = {score: place for place, score in enumerate(sorted(set(scores), reverse=True))}
    return [places[score] if score > LOWEST_SCORE else None for score in scores]


def _decoded(piece: bytes) -> bytes:
    match = BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece
