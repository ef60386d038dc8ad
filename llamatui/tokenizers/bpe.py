"""Byte-level BPE with regex splits, for vocabularies given as data: HF, llama3.2.c and GGUF files.

Text is cut by a `Splitter`, each piece becomes bytes, and neighbours merge: by the order of a merge list, or
where there is none, by the id of the token they form (as tiktoken does).
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.merging import merge_pairs
from llamatui.tokenizers.splitters import Splitter

END_TOKENS = ("<|end_of_text|>", "<|endoftext|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>", "</s>")

LONGEST_CACHED = 64  # bytes; longer pieces hardly recur
_RAW_BYTES = re.compile("([\udc80-\udcff]+)")
_SURROGATES = re.compile("[\ud800-\udfff]")


def end_ids(special_tokens: Mapping[str, int]) -> frozenset[int]:
    """Ids of the special tokens that end a document or a turn in any vocabulary we know."""
    return frozenset(special_tokens[name] for name in END_TOKENS if name in special_tokens)


class BpeTokenizer(Tokenizer):
    format = "bpe"

    def __init__(
        self,
        pieces: Sequence[bytes],
        splitter: Splitter,
        special_tokens: Mapping[str, int],
        *,
        bos_id: int,
        eos_ids: frozenset[int],
        adds_bos: bool,
        merges: Mapping[tuple[int, int], int] | None = None,
        ignore_merges: bool = True,
        plain_tokens: frozenset[int] = frozenset(),
    ) -> None:
        """Takes the vocabulary as it is.

        Args:
            pieces: Bytes of each id. Those of `special_tokens` are never produced by text.
            merges: Rank of each pair of ids, the lowest first. None: the rank is the id of what they form.
            ignore_merges: A whole split that is a token is taken as it is, whatever the merges say.
            plain_tokens: Ids among `special_tokens` that stand for their text when decoded.

        Raises:
            TokenizerError: A character of ASCII has no token of its own.
        """
        self.vocab_size = len(pieces)
        self.special_tokens = dict(special_tokens)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.adds_bos = adds_bos
        self._pieces = list(pieces)
        never_text = frozenset(self.special_tokens.values())
        self._silent = never_text - plain_tokens
        self._ids: dict[bytes, int] = {}
        for i, piece in enumerate(pieces):
            if i not in never_text:
                self._ids.setdefault(piece, i)
        # Some vocabularies (SmolLM2) lack bytes that their training text lacked. Like HF, these are dropped.
        self._byte_ids = {byte: self._ids[bytes([byte])] for byte in range(256) if bytes([byte]) in self._ids}
        for byte in range(ord(" "), ord("~") + 1):
            if byte not in self._byte_ids:
                raise TokenizerError(
                    f"expected a token for every character of ASCII, found none for {chr(byte)!r}"
                )
        self._splitter = splitter
        self._merges = merges
        self._ignore_merges = ignore_merges
        # Words and pairs recur; both caches are per tokenizer and bounded.
        self._merge_pair = lru_cache(maxsize=1 << 17)(self._by_id if merges is None else self._by_merges)
        self._encode_short = lru_cache(maxsize=1 << 15)(self._encode_piece)

    def encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        # Bytes that are not UTF-8 stand apart: no pattern says how to split them.
        for part in _RAW_BYTES.split(text):
            raw = "\udc80" <= part[:1] <= "\udcff"
            for piece in [part] if raw else self._splitter.split(_SURROGATES.sub("\ufffd", part)):
                data = text_to_bytes(piece)
                ids.extend(
                    self._encode_short(data) if len(data) <= LONGEST_CACHED else self._encode_piece(data)
                )
        return ids

    def _encode_piece(self, data: bytes) -> tuple[int, ...]:
        if self._ignore_merges and data in self._ids:
            return (self._ids[data],)
        known = self._byte_ids
        return tuple(merge_pairs([known[byte] for byte in data if byte in known], self._merge_pair))

    def _by_id(self, left: int, right: int) -> tuple[int, int] | None:
        merged = self._ids.get(self._pieces[left] + self._pieces[right])
        return None if merged is None else (merged, merged)

    def _by_merges(self, left: int, right: int) -> tuple[int, int] | None:
        assert self._merges is not None
        rank = self._merges.get((left, right))
        merged = self._ids.get(self._pieces[left] + self._pieces[right])
        return None if rank is None or merged is None else (rank, merged)

    def decode_bytes(self, token: int) -> bytes:
        return b"" if token in self._silent else self._pieces[token]
