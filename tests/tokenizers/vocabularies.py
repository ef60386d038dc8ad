"""Small vocabularies in every file format, made on the spot."""

import base64
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamatui.tokenizers.hf_json import BYTE_CHARACTERS
from llamatui.tokenizers.llama3_vocab import SPECIAL_TOKENS

WORDS = (
    "  ", "    ", "\n\n", " \n", "\u00a0", "the", " the", " there", "ing", " and", " a", "hello", "Hello",
    "aba", "abab", "baba", "123", "12", "!!", "é", "è", "日本", "🙂", "'s", "'ll", "<|", "eot",
    "user", "system", "assistant",
)  # fmt: skip

STAND_INS = {chr(byte): stand_in for stand_in, byte in ((chr(k), ord(v)) for k, v in BYTE_CHARACTERS.items())}


def byte_alphabet(piece: bytes) -> str:
    """A piece in GPT-2's printable characters."""
    return "".join(STAND_INS.get(c, c) for c in piece.decode("latin-1"))


def ranked_pieces() -> list[bytes]:
    """All bytes, then every way to grow each of WORDS from the left and from the right, shortest first."""
    pieces = dict.fromkeys(bytes([byte]) for byte in range(256))
    data = [word.encode() for word in WORDS]
    for n in range(2, max(map(len, data)) + 1):
        for word in data:
            pieces.setdefault(word[:n])
            pieces.setdefault(word[-n:])
    return list(pieces)


def all_merges(pieces: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Every pair that makes a piece, in the order of the pieces: how rank vocabularies become merge lists."""
    known = set(pieces)
    return [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in known and piece[i:] in known
    ]


def write_tiktoken(path: Path, pieces: Sequence[bytes]) -> Path:
    lines = (b"%s %d\n" % (base64.b64encode(piece), rank) for rank, piece in enumerate(pieces))
    path.write_bytes(b"".join(lines))
    return path


def write_bin(path: Path, pieces: Sequence[bytes], scores: Sequence[float]) -> Path:
    records = (
        struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(pieces, scores, strict=True)
    )
    path.write_bytes(struct.pack("<i", max(map(len, pieces))) + b"".join(records))
    return path


def write_llama3_bin(path: Path, pieces: Sequence[bytes]) -> Path:
    everything = [*pieces, *(name.encode() for name in SPECIAL_TOKENS)]
    return write_bin(path, everything, range(len(everything)))


LLAMA3_SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
LLAMA3_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
SMOLLM_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
GPT2_PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def starts_with(token: str) -> dict[str, Any]:
    """A post-processor that puts a BOS in front."""
    parts = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "Sequence", "processors": [{"type": "TemplateProcessing", "single": parts}]}


def hf_document(
    pieces: Sequence[bytes],
    special: Sequence[str],
    pre_tokenizer: dict[str, Any],
    *,
    post_processor: dict[str, Any] | None = None,
    special_first: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A byte-level tokenizer.json."""
    first_piece, first_special = (len(special), 0) if special_first else (0, len(pieces))
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": first_special + i, "content": name, "special": True} for i, name in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "model": {
            "type": "BPE",
            "ignore_merges": ignore_merges,
            "vocab": {byte_alphabet(piece): first_piece + i for i, piece in enumerate(pieces)},
            "merges": [f"{byte_alphabet(a)} {byte_alphabet(b)}" for a, b in all_merges(pieces)],
        },
    }


def llama3_document(pieces: Sequence[bytes]) -> dict[str, Any]:
    return hf_document(
        pieces,
        SPECIAL_TOKENS,
        LLAMA3_PRE_TOKENIZER,
        post_processor=starts_with("<|begin_of_text|>"),
        ignore_merges=True,
    )


def smollm_document() -> dict[str, Any]:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return hf_document(ranked_pieces(), names, SMOLLM_PRE_TOKENIZER, special_first=True)


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), "utf-8")
    return path


def train_sentencepiece(**options: Any) -> bytes:
    """A model like Llama 2's: BPE with byte fallback, nothing normalized."""
    import sentencepiece

    corpus = [
        "the cat and the dog went there",
        "Hello, hello! the thing is 123 and 45",
        "a bee é in the sea 日",
    ]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus * 20),
        model_writer=model,
        **{
            "model_type": "bpe",
            "vocab_size": 340,
            "byte_fallback": True,
            "character_coverage": 1.0,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "num_threads": 1,
            "minloglevel": 2,
            **options,
        },
    )
    return model.getvalue()


def sentencepiece_as_bin(path: Path, model: bytes) -> Path:
    """The same vocabulary as llama2.c's tokenizer.bin."""
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [library.id_to_piece(i).replace("▁", " ") for i in range(library.vocab_size())]
    texts[1], texts[2] = "\n<s>\n", "\n</s>\n"
    return write_bin(
        path, [text.encode() for text in texts], [library.get_score(i) for i in range(len(texts))]
    )
