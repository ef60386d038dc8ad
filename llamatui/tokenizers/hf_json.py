"""Hugging Face `tokenizer.json`, as far as it is BPE: byte-level, or SentencePiece's vocabulary in JSON.

Byte-level vocabularies (Llama 3, SmolLM2, GPT-2 and their kin) are read here. Those of SentencePiece (Llama
2, TinyLlama, Mistral) are made into a SentencePiece model, by `hf_json_sentencepiece`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.binary_vocab import MAX_TOKENS
from llamatui.tokenizers.bpe import BpeTokenizer, end_ids
from llamatui.tokenizers.splitters import DIGITS, GPT2_PATTERN, ONE_DIGIT, Splitter

BOS_NAMES = ("<|begin_of_text|>", "<s>", "<|im_start|>", "<|endoftext|>")

MAX_CONFIG_BYTES = 16 << 20

MAX_ELEMENTS = 3 << 20
"""Of a file, as `load_json` counts them: a quarter more than the largest vocabulary in use has, Gemma's."""

Json = dict[str, Any]


def read_hf_json(path: Path, data: bytes) -> Tokenizer:
    """The tokenizer in the file's contents; BOS and EOS also from `companion_config`.

    Raises:
        TokenizerError: It is not JSON, or not a kind of tokenizer that is read here exactly.
    """
    try:
        document, config = parse_hf_json(data), companion_config(path)
        if not document["model"].get("byte_fallback"):
            with reported_damage():
                return _tokenizer(document, config)
        from llamatui.tokenizers.hf_json_sentencepiece import sentencepiece_from_hf_json
        from llamatui.tokenizers.sentencepiece_model import SentencePieceTokenizer

        model = sentencepiece_from_hf_json(document, config)
        return SentencePieceTokenizer(path, model, {"add_bos_token": starts_with_bos(document)} | config)
    except TokenizerError as error:
        where = "" if error.message.startswith(str(path)) else f"{path}: "
        raise TokenizerError(where + error.message, error.hint or "get it again") from None


@contextmanager
def reported_damage() -> Iterator[None]:
    """Turns what reading a document of the wrong shape raises into a TokenizerError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise TokenizerError(
            f"expected a Hugging Face tokenizer.json, found one that is damaged ({error!r})", "get it again"
        ) from None


def load_json(data: bytes) -> object:
    """`json.loads` of what came from elsewhere.

    Raises:
        ValueError: It is not JSON, or has so many values that reading them costs seconds and gigabytes.
        RecursionError: It is nested too deep.
    """
    # No value comes without one of these, and names take the most time. Those within texts hardly count.
    n = sum(map(data.count, (b",", b"[", b"{"))) + 2 * data.count(b":")
    if n > MAX_ELEMENTS:
        raise ValueError(f"about {n:,} values in it")
    return json.loads(data)


def parse_hf_json(data: bytes) -> Json:
    """The document, checked to be a BPE tokenizer.

    Raises:
        TokenizerError: It is something else.
    """
    try:
        document = load_json(data)
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
        raise unsupported(f"a model of the type {kind!r}", "BPE")
    assert isinstance(document, dict)
    return document


def count_tokens(document: Json) -> int:
    """One more than the highest id.

    Raises:
        TokenizerError: An id is not a number that makes sense.
    """
    vocab = document["model"]["vocab"]
    with reported_damage():
        added = document.get("added_tokens") or []
        if max(len(vocab), len(added)) > MAX_TOKENS:
            raise TokenizerError(f"expected at most {MAX_TOKENS} tokens, found more", "get it again")
        ids = [*vocab.values(), *(token["id"] for token in added)]
    for token in ids:
        if type(token) is not int or not 0 <= token < MAX_TOKENS:
            raise TokenizerError(
                f"expected token ids from 0 to {MAX_TOKENS - 1}, found {token!r}", "get it again"
            )
    return max(ids, default=-1) + 1


def unsupported(found: str, expected: str) -> TokenizerError:
    return TokenizerError(
        f"expected {expected}, found {found}",
        "use the model's tokenizer.model or tokenizer.bin if it has one: -z FILE",
    )


def _tokenizer(document: Json, config: Json) -> BpeTokenizer:
    model = document["model"]
    check_options(model)
    normalizer = document.get("normalizer")
    if normalizer and normalizer != {"type": "Sequence", "normalizers": []}:
        raise unsupported(f"the normalizer {normalizer.get('type')!r}", "no normalizer")

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

    merges = {(vocab[left], vocab[right]): rank for rank, (left, right) in enumerate(merge_list(model))}
    bos_id = find_bos(document, config, special)
    adds = config.get("add_bos_token")
    eos_id = special.get(token_text(config.get("eos_token")), -1)
    return BpeTokenizer(
        pieces,
        Splitter(_split_patterns(document.get("pre_tokenizer"))),
        special,
        bos_id=bos_id,
        eos_ids=end_ids(special) | ({eos_id} - {-1}),
        adds_bos=bos_id >= 0 and (adds if isinstance(adds, bool) else starts_with_bos(document)),
        merges=merges,
        ignore_merges=bool(model.get("ignore_merges")),
        plain_tokens=frozenset(token["id"] for token in added if not token.get("special")),
    )


def check_options(model: Json) -> None:
    """Raises TokenizerError: the model has an option that changes how text is merged."""
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise unsupported(f"{option} {model[option]!r}", f"BPE without {option}")


def merge_list(model: Json) -> list[tuple[str, str]]:
    """Pairs of tokens, the first merges first. They are written as "a b" or as ["a", "b"].

    Raises:
        ValueError: One is no pair.
    """
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(left, right) for left, right in pairs]


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


BYTE_CHARACTERS = _byte_characters()


def _bytes_of(text: str) -> bytes:
    try:
        return text.translate(BYTE_CHARACTERS).encode("latin-1")
    except UnicodeEncodeError:
        raise unsupported(f"the token {text!r}", "tokens in GPT-2's byte alphabet") from None


def _split_patterns(node: Json | None) -> list[str]:
    """Patterns in the order in which they cut. An empty list leaves text whole."""
    kind = node["type"] if node else None
    if node is None:
        raise unsupported("no pre-tokenizer", "a byte-level pre-tokenizer")
    if kind == "Sequence":
        return [pattern for child in node["pretokenizers"] for pattern in _split_patterns(child)]
    if kind == "ByteLevel":
        if node.get("add_prefix_space"):
            raise unsupported("ByteLevel with add_prefix_space", "ByteLevel without it")
        return [GPT2_PATTERN] if node.get("use_regex", True) else []
    if kind == "Digits":
        return [ONE_DIGIT if node.get("individual_digits") else DIGITS]
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        pattern = node["pattern"]
        return [pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])]
    raise unsupported(f"the pre-tokenizer {json.dumps(node)[:80]}", "ByteLevel, Digits or Split (Isolated)")


def companion_config(path: Path) -> Json:
    """`tokenizer_config.json` that belongs to a tokenizer file; empty where there is none that can be read.

    It has the file's name with `_config`: `m.tokenizer_config.json` beside `m.tokenizer.json`.
    """
    config = path.with_name(path.stem + "_config.json")
    try:
        if not config.is_file() or config.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        found = load_json(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def token_text(token: object) -> str:
    """Of a token in tokenizer_config.json: a string or an object with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def control_names(config: Mapping[str, object]) -> set[str]:
    """What tokenizer_config.json, or special_tokens_map.json, says is BOS, EOS or special."""
    more = config.get("additional_special_tokens")
    tokens = [config.get("bos_token"), config.get("eos_token"), *(more if isinstance(more, list) else ())]
    return set(map(token_text, tokens)) - {""}


def find_bos(document: Json, config: Json, special: dict[str, int]) -> int:
    """Id of BOS, or -1."""
    names = [template_bos(document.get("post_processor")), token_text(config.get("bos_token")), *BOS_NAMES]
    return next((special[name] for name in names if name in special), -1)


def starts_with_bos(document: Json) -> bool:
    """Whether the document itself puts a token in front of every prompt."""
    with reported_damage():
        return bool(template_bos(document.get("post_processor")))


def template_bos(node: Json | None) -> str:
    """Name of the special token that TemplateProcessing puts in front of a text, or ""."""
    if node and node["type"] == "Sequence":
        return next(filter(None, map(template_bos, node["processors"])), "")
    if node and node["type"] == "TemplateProcessing" and node["single"]:
        return str(node["single"][0].get("SpecialToken", {}).get("id", ""))
    return ""
