"""Reads llama2.c's and llama3.2.c's `tokenizer.bin`: one file layout, two kinds of vocabulary."""

import struct
from dataclasses import dataclass
from pathlib import Path

from llamatui.errors import TokenizerError

MAX_TOKENS = 1 << 19  # twice the largest vocabulary of Llama's kin, and read in a second
MAX_PIECE = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class BinaryVocab:
    pieces: list[bytes]
    scores: list[float]

    @property
    def is_byte_level(self) -> bool:
        """llama3.2.c's kind: raw bytes and ranks, where llama2.c's has `<0x00>` pieces and scores."""
        return b"<0x00>" not in self.pieces[:259]


def read_binary_vocab(path: Path, data: bytes) -> BinaryVocab:
    """All (score, piece) records of the file's contents.

    Raises:
        TokenizerError: It is cut short, or a length in it makes no sense.
    """

    def bad(problem: str) -> TokenizerError:
        return TokenizerError(
            f"{path}: expected a llama2.c tokenizer.bin, {problem}",
            "the file is damaged or something else: get it again",
        )

    if len(data) < 4:
        raise bad(f"found {len(data)} bytes")
    (longest,) = struct.unpack_from("<i", data)
    if not 0 < longest <= MAX_PIECE:
        raise bad(f"found a longest token of {longest} bytes")
    record = struct.Struct("<fi")
    pieces: list[bytes] = []
    scores: list[float] = []
    offset = 4
    while offset < len(data):
        if offset + record.size > len(data):
            raise bad(f"found it cut short at token {len(pieces)}")
        score, length = record.unpack_from(data, offset)
        offset += record.size
        # Some exporters understate the longest token, so only the file's end bounds it.
        if 0 <= length <= MAX_PIECE and length > len(data) - offset:
            raise bad(f"found it cut short at token {len(pieces)}")
        if not 0 <= length <= MAX_PIECE or len(pieces) >= MAX_TOKENS:
            raise bad(f"found token {len(pieces)} to be {length} bytes long")
        if score != score:  # NaN
            raise bad(f"found token {len(pieces)} without a score")
        pieces.append(data[offset : offset + length])
        scores.append(score)
        offset += length
    return BinaryVocab(pieces, scores)
