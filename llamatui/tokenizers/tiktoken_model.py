"""Meta's Llama 3 `tokenizer.model`: lines of a base64 piece and its rank, through tiktoken."""

import base64
import binascii
import re
from functools import cached_property
from pathlib import Path

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.binary_vocab import MAX_TOKENS
from llamatui.tokenizers.bpe import BpeTokenizer, end_ids
from llamatui.tokenizers.llama3_vocab import SPECIAL_TOKENS, bpe_from_ranks
from llamatui.tokenizers.splitters import LLAMA3_PATTERN

RANK_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})")

# tiktoken takes only Unicode, and its regex engine overflows its stack on very long white space.
_TOO_MUCH_FOR_TIKTOKEN = re.compile(r"[\ud800-\udfff]|\s{10000}")


def rank_lines(path: Path, data: bytes) -> list[bytes]:
    """The lines of a file, one for each rank.

    Raises:
        TokenizerError: There are more than MAX_TOKENS.
    """
    if data.count(b"\n") > MAX_TOKENS or data.count(b"\r") > MAX_TOKENS:  # before a list is made of them
        raise TokenizerError(
            f"{path}: expected at most {MAX_TOKENS} lines of a base64 piece and its rank, found more",
            "get the tokenizer.model of Llama 3 again",
        )
    return data.splitlines()


def read_ranks(path: Path, data: bytes) -> list[bytes]:
    """Byte pieces in order of rank.

    Raises:
        TokenizerError: A line is not a piece and its rank, or ranks or bytes are missing.
    """

    def bad(problem: str) -> TokenizerError:
        return TokenizerError(
            f"{path}: expected lines of a base64 piece and its rank, {problem}",
            "get the tokenizer.model of Llama 3 again",
        )

    lines = rank_lines(path, data)
    pieces: list[bytes] = [b""] * len(lines)
    for number, line in enumerate(lines, 1):
        match = RANK_LINE.fullmatch(line)
        try:
            piece = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            piece = b""
        if not match or not piece:
            raise bad(f"found line {number} to be {line[:40].decode('utf-8', 'replace')!r}")
        rank = int(match[2])
        if rank >= len(lines) or pieces[rank]:
            raise bad(f"found rank {rank} in line {number} of {len(lines)}")
        pieces[rank] = piece
    known = set(pieces)
    if len(known) != len(pieces):
        raise bad("found a piece twice")
    missing = [byte for byte in range(256) if bytes([byte]) not in known]
    if missing:
        raise bad(f"found none for the byte 0x{missing[0]:02X}")
    return pieces


class TiktokenTokenizer(Tokenizer):
    """The ids of Meta's reference, except that it cuts runs of 25,000 characters and this does not."""

    format = "tiktoken"
    adds_bos = True

    def __init__(self, path: Path, data: bytes) -> None:
        """Raises TokenizerError: `data` is not a file of ranks."""
        import tiktoken

        self._ranked = read_ranks(path, data)
        first = len(self._ranked)
        self.special_tokens = {name: first + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = first + len(SPECIAL_TOKENS)
        self.bos_id = self.special_tokens["<|begin_of_text|>"]
        self.eos_ids = end_ids(self.special_tokens)
        self._encoding = tiktoken.Encoding(
            "llama3",
            pat_str=LLAMA3_PATTERN,
            mergeable_ranks={piece: rank for rank, piece in enumerate(self._ranked)},
            special_tokens=self.special_tokens,
        )

    def encode_ordinary(self, text: str) -> list[int]:
        if _TOO_MUCH_FOR_TIKTOKEN.search(text):
            return self._bpe.encode_ordinary(text)
        return self._encoding.encode_ordinary(text)

    @cached_property
    def _bpe(self) -> BpeTokenizer:
        """The same vocabulary in our own BPE: slower, same ids, takes any text."""
        return bpe_from_ranks(self._ranked)

    def decode_bytes(self, token: int) -> bytes:
        return self._ranked[token] if token < len(self._ranked) else b""
