"""llama2.c's `tokenizer.bin` for SentencePiece vocabularies, with the merges of run.c.

The file is int32 max_token_length, then for each id float32 score, int32 length, bytes. Spaces are plain,
bytes without a piece of their own are `<0x00>`..`<0xFF>` at ids 3..258, and ids 0, 1, 2 are unk, BOS, EOS.
Source: llama2.c `tokenizer.py` and `encode` in `run.c`.
"""

import heapq
import re
from collections.abc import Iterator
from functools import lru_cache

from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.binary_vocab import BinaryVocab

BYTE_PIECE = re.compile(rb"<0x([0-9A-F]{2})>")
FIRST_BYTE_ID = 3
CONTROL_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}


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
        self.vocab_size = len(vocab.pieces)
        self._pieces = vocab.pieces
        self._bytes = [_decoded(piece) for piece in vocab.pieces]
        # id and score by piece, of the pieces that text may become. A duplicate keeps its first id.
        self._ids: dict[bytes, int] = {}
        for i in range(FIRST_BYTE_ID, self.vocab_size):
            self._ids.setdefault(vocab.pieces[i], i)
        self._scores = vocab.scores
        # Bytes that stand next to each other in some piece: no merge crosses any other boundary.
        self._joins = {pair for piece in self._ids for pair in zip(piece, piece[1:], strict=False)}
        # Words recur; the cache is per tokenizer and bounded.
        self._merge_cached = lru_cache(maxsize=1 << 14)(self._merge)

    def encode_ordinary(self, text: str) -> list[int]:
        data = text_to_bytes(text)
        if not data:
            return []
        ids: list[int] = []
        for segment in self._segments(self._characters(b" " + data)):
            ids.extend(self._merge_cached(segment) if len(segment) > 1 else segment)
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
        ids = list(segment)
        n = len(ids)
        pieces, scores, known = self._pieces, self._scores, self._ids
        following = list(range(1, n + 1))  # linked list over positions; n ends it
        preceding = list(range(-1, n - 1))
        alive = [True] * n
        heap: list[tuple[float, int, int, int, int]] = []  # -score, position, left id, right id, merged id

        def offer(left: int, right: int) -> None:
            merged = known.get(pieces[ids[left]] + pieces[ids[right]])
            # run.c starts its search at -1e10, so a worse score is never merged.
            if merged is not None and scores[merged] > -1e10:
                heapq.heappush(heap, (-scores[merged], left, ids[left], ids[right], merged))

        for i in range(n - 1):
            offer(i, i + 1)
        while heap:
            _, left, left_id, right_id, merged = heapq.heappop(heap)
            right = following[left]
            if not alive[left] or right == n or (ids[left], ids[right]) != (left_id, right_id):
                continue  # one of the two has been merged since
            ids[left] = merged
            alive[right] = False
            following[left] = after = following[right]
            if after < n:
                preceding[after] = left
                offer(left, after)
            if preceding[left] >= 0:
                offer(preceding[left], left)
        return tuple([token for token, kept in zip(ids, alive, strict=True) if kept])

    def decode_bytes(self, token: int) -> bytes:
        return self._bytes[token] if token not in (0, 1, 2) else b""

    def strips_space_after(self, previous: int | None) -> bool:
        return previous is None or previous == self.bos_id


def _decoded(piece: bytes) -> bytes:
    match = BYTE_PIECE.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece
