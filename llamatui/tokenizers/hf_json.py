"""Hugging Face `tokenizer.json`, as far as it is byte-level BPE: Llama 3, SmolLM2, GPT-2 and their kin."""

import json
import re
from pathlib import Path
from typing import Any

from llamatui.errors import TokenizerError
from llamatui.tokenizers.binary_vocab import MAX_TOKENS
from llamatui.tokenizers.bpe import BpeTokenizer, end_ids
from llamatui.tokenizers.splitters import DIGITS, GPT2_PATTERN, ONE_DIGIT, Splitter

BOS_NAMES = ("<|begin_of_text|>", "<s>", "<|im_start|>", "<|endoftext|>")

Json = dict[str, Any]


def read_hf_json(path: Path, data: bytes) -> BpeTokenizer:
    """The tokenizer in the file's contents; BOS and EOS also from `tokenizer_config.json` beside it.

    Raises:
        TokenizerError: It is not JSON, or not a kind of tokenizer that is read here exactly.
    """
    try:
        document = parse_hf_json(data)
        return _tokenizer(document, _config(path))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", error.hint or "get it again") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TokenizerError(
            f"{path}: expected a Hugging Face tokenizer.json, found one that is damaged ({error!r})",
            "get it again",
        ) from None


def parse_hf_json(data: bytes) -> Json:
    """The document, checked to be a BPE tokenizer.

    Raises:
        TokenizerError: It is something else.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"expected JSON, found {error}", "the file is damaged: get it again") from None
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise TokenizerError(
            "expected a Hugging Face tokenizer.json, found JSON without a vocabulary",
            "choose with -z tokenizer.json",
        )
    kind = model.get("type", "BPE")
    if kind != "BPE" or not isinstance(model["vocab"], dict):
        raise _unsupported(f"a model of the type {kind!r}", "BPE")
    assert isinstance(document, dict)
    return document


def count_tokens(document: Json) -> int:
    """One more than the highest id.

    Raises:
        TokenizerError: An id is not a number that makes sense.
    """
    ids = [
        *document["model"]["vocab"].values(),
        *(token["id"] for token in document.get("added_tokens") or []),
    ]
    for token in ids:
        if type(token) is not int or not 0 <= token < MAX_TOKENS:
            raise TokenizerError(
                f"expected token ids from 0 to {MAX_TOKENS - 1}, found {token!r}", "get it again"
            )
    return max(ids, default=-1) + 1


def _unsupported(found: str, expected: str) -> TokenizerError:
    return TokenizerError(
        f"expected {expected}, found {found}",
        "use the model's tokenizer.model or tokenizer.bin if it has one: -z FILE",
    )


def _tokenizer(document: Json, config: Json) -> BpeTokenizer:
    model = document["model"]
    if model.get("byte_fallback"):
        raise _unsupported("a SentencePiece vocabulary (byte_fallback)", "byte-level BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _unsupported(f"{option} {model[option]!r}", f"BPE without {option}")
    normalizer = document.get("normalizer")
    if normalizer and normalizer != {"type": "Sequence", "normalizers": []}:
        raise _unsupported(f"the normalizer {normalizer.get('type')!r}", "no normalizer")

    added = document.get("added_tokens") or []
    pieces = [b""] * count_tokens(document)
    added_ids = {token["id"] for token in added}
    vocab: dict[str, int] = model["vocab"]
    for text, token in vocab.items():
        if token not in added_ids:
            pieces[token] = _bytes_of(text)
    # Text becomes none of the added tokens. Those that are not special still stand for their text.
    special = {}
    for token in added:
        special[token["content"]] = token["id"]
        pieces[token["id"]] = token["content"].encode("utf-8", "replace")

    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    merges = {(vocab[left], vocab[right]): rank for rank, (left, right) in enumerate(pairs)}
    bos_id, adds_bos = _bos(document, config, special)
    eos_id = special.get(_token_text(config.get("eos_token")), -1)
    return BpeTokenizer(
        pieces,
        Splitter(_split_patterns(document.get("pre_tokenizer"))),
        special,
        bos_id=bos_id,
        eos_ids=end_ids(special) | ({eos_id} - {-1}),
        adds_bos=adds_bos,
        merges=merges,
        ignore_merges=bool(model.get("ignore_merges")),
        plain_tokens=frozenset(token["id"] for token in added if not token.get("special")),
    )


def _byte_characters() -> dict[int, str]:
    """For `str.translate`: GPT-2's printable stand-ins for bytes, to U+0000..U+00FF of the bytes they mean.

    Printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order. Source: OpenAI's gpt-2,
    `src/encoder.py`.
    """
    themselves = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in themselves]
    table = {0x100 + i: chr(byte) for i, byte in enumerate(others)}
    # What stands for no byte must not pass for one.
    return table | dict.fromkeys(others, "\uffff")


_BYTE_CHARACTERS = _byte_characters()


def _bytes_of(text: str) -> bytes:
    try:
        return text.translate(_BYTE_CHARACTERS).encode("latin-1")
    except UnicodeEncodeError:
        raise _unsupported(f"the token {text!r}", "tokens in GPT-2's byte alphabet") from None


def _split_patterns(node: Json | None) -> list[str]:
    """Patterns in the order in which they cut. An empty list leaves text whole."""
    kind = node["type"] if node else None
    if node is None:
        raise _unsupported("no pre-tokenizer", "a byte-level pre-tokenizer")
    if kind == "Sequence":
        return [pattern for child in node["pretokenizers"] for pattern in _split_patterns(child)]
    if kind == "ByteLevel":
        if node.get("add_prefix_space"):
            raise _unsupported("ByteLevel with add_prefix_space", "ByteLevel without it")
        return [GPT2_PATTERN] if node.get("use_regex", True) else []
    if kind == "Digits":
        return [ONE_DIGIT if node.get("individual_digits") else DIGITS]
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node["pattern"]
        return [pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])]
    raise _unsupported(f"the pre-tokenizer {json.dumps(node)[:80]}", "ByteLevel, Digits or Split (Isolated)")


def _config(path: Path) -> Json:
    """`tokenizer_config.json` beside the file; empty where there is none that can be read."""
    try:
        config = json.loads((path.parent / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _token_text(token: object) -> str:
    """Of a token in tokenizer_config.json: a string or an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _bos(document: Json, config: Json, special: dict[str, int]) -> tuple[int, bool]:
    """BOS id (or -1), and whether a prompt starts with it."""
    template = _template_bos(document.get("post_processor"))
    names = [template, _token_text(config.get("bos_token")), *BOS_NAMES]
    bos_id = next((special[name] for name in names if name in special), -1)
    adds = config.get("add_bos_token")
    return bos_id, bos_id >= 0 and (adds if isinstance(adds, bool) else bool(template))


def _template_bos(node: Json | None) -> str:
    """Name of the special token that TemplateProcessing puts in front of a text, or ""."""
    if node and node["type"] == "Sequence":
        return next(filter(None, map(_template_bos, node["processors"])), "")
    if node and node["type"] == "TemplateProcessing" and node["single"]:
        return str(node["single"][0].get("SpecialToken", {}).get("id", ""))
    return ""
