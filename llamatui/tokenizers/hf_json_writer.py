"""Writes byte-level BPE vocabularies as Hugging Face's `tokenizer.json`, and ranks as merges.

What is written here is read by our `hf_json` and by Hugging Face's `tokenizers`, with the same ids.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from llamatui.errors import TokenizerError
from llamatui.tokenizers.hf_json import BYTE_CHARACTERS, Json

_STAND_INS = {ord(byte): chr(stand_in) for stand_in, byte in BYTE_CHARACTERS.items() if byte <= "\xff"}


def bpe_json(
    tokens: Sequence[str],
    merges: Sequence[tuple[str, str]],
    split_patterns: Sequence[str],
    special: Mapping[str, int],
    *,
    bos: str | None,
    ignore_merges: bool,
    plain: Collection[str] = (),
) -> bytes:
    """The contents of a tokenizer.json.

    Args:
        tokens: By id, in GPT-2's printable byte alphabet (`byte_alphabet`). What stands at an id of `special`
            does not matter.
        merges: Pairs of tokens, the first merges first.
        split_patterns: As `Splitter` takes them.
        special: Ids of the added tokens by their text.
        bos: The one in front of every prompt, None for none.
        ignore_merges: A whole split that is a token is taken as it is.
        plain: Texts in `special` that are not special but stand for their text.

    Raises:
        TokenizerError: `bos` is not among `special`.
    """
    if bos is not None and bos not in special:
        raise TokenizerError(f"expected BOS to be a special token, found {bos!r}")
    # Added tokens are also in the vocabulary: `tokenizers` gives those that are not ids of its own choice.
    texts = dict(enumerate(tokens)) | {i: text for text, i in special.items()}
    vocab = dict(special)
    for i in sorted(texts):
        vocab.setdefault(texts[i], i)  # of equals the first
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(text, i, special=text not in plain)
            for text, i in sorted(special.items(), key=lambda item: item[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *(
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
                    for pattern in split_patterns
                ),
                _byte_level(),
            ],
        },
        "post_processor": None if bos is None else starts_with(bos, special[bos]),
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
            "merges": [list(merge) for merge in merges],
        },
    }
    # Half of a surrogate pair, which JSON can hold, is written as JSON writes it.
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def byte_alphabet(piece: bytes) -> str:
    """A piece in GPT-2's printable characters, one for each byte."""
    return piece.decode("latin-1").translate(_STAND_INS)


def merges_from_ranks(ranked: Sequence[bytes]) -> list[tuple[str, str]]:
    """Merges in `byte_alphabet` that do what tiktoken does with pieces in order of rank.

    tiktoken merges any two neighbours that form a piece, the one of the lowest rank first. So every way to
    cut a piece in two is a merge, in the order of what they form. Those of one piece are ordered by their
    parts' ranks, as in the files that Hugging Face's converter writes (transformers,
    `TikTokenConverter.extract_vocab_merges_from_model`).
    """
    ranks: dict[bytes, int] = {}
    for rank, piece in enumerate(ranked):
        ranks.setdefault(piece, rank)

    def cuts(piece: bytes) -> Iterable[tuple[int, int]]:
        for i in range(1, len(piece)):
            left, right = ranks.get(piece[:i]), ranks.get(piece[i:])
            if left is not None and right is not None:
                yield left, right

    texts = [byte_alphabet(piece) for piece in ranked]
    return [(texts[left], texts[right]) for piece in ranked for left, right in sorted(cuts(piece))]


def _byte_level() -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def added_token(text: str, token: int, *, special: bool) -> Json:
    """An element of `added_tokens`."""
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **options, "special": special}


def starts_with(bos: str, bos_id: int) -> Json:
    """The post-processor that puts BOS in front of every prompt."""

    def start(type_id: int) -> Json:
        return {"SpecialToken": {"id": bos, "type_id": type_id}}

    def text(name: str, type_id: int) -> Json:
        return {"Sequence": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [start(0), text("A", 0)],
        "pair": [start(0), text("A", 0), start(1), text("B", 1)],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
