"""tokenizer.json: what is read, what is refused, what it says about BOS and EOS."""

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.hf_json import read_hf_json
from llamatui.tokenizers.loading import load_tokenizer
from tests.tokenizers import vocabularies as v
from tests.tokenizers.texts import CONTROL_TEXTS, byte_texts

PIECES = v.ranked_pieces()


def load(tmp_path: Path, document: object) -> Tokenizer:
    return load_tokenizer(v.write_json(tmp_path / "tokenizer.json", document))


@given(text=byte_texts)
def test_bytes_come_back(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers["smollm json"]
    assert b"".join(map(tokenizer.decode_bytes, tokenizer.encode(text))) == text_to_bytes(text)


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_text_never_becomes_a_control_token(tokenizers: dict[str, Tokenizer], text: str) -> None:
    assert min(tokenizers["smollm json"].encode_ordinary(text)) >= 3


def test_smollm(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["smollm json"]
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_ids) == (1, False, {0, 2})
    assert [tokenizer.decode_bytes(i) for i in tokenizer.encode_ordinary("the 123  the")] == [
        b"the", b" ", b"1", b"2", b"3", b" ", b" the",
    ]  # fmt: skip
    assert tokenizer.encode("a", eos=True)[-1] == 0


def test_merges_count_and_not_ranks(tmp_path: Path) -> None:
    """Of the pairs in "abc", the one first in the list merges, whatever the ids say."""
    pieces = [*PIECES[:256], b"ab", b"bc", b"abc"]
    document = v.hf_document(pieces, [], v.GPT2_PRE_TOKENIZER)
    document["model"]["merges"] = ["b c", "a b"]
    assert load(tmp_path, document).encode_ordinary("abc") == [ord("a"), 257]
    document["model"]["ignore_merges"] = True
    assert load(tmp_path, document).encode_ordinary("abc") == [258]


def test_merges_as_pairs(tmp_path: Path, files: dict[str, Path]) -> None:
    document = v.smollm_document()
    document["model"]["merges"] = [merge.split(" ") for merge in document["model"]["merges"]]
    text = "the hello there 123"
    assert load(tmp_path, document).encode(text) == load_tokenizer(files["smollm json"]).encode(text)


def test_bytes_without_a_token_are_dropped(tmp_path: Path) -> None:
    document = v.smollm_document()
    document["model"]["vocab"].pop(v.byte_alphabet(b"\xff"))
    tokenizer = load(tmp_path, document)
    assert tokenizer.encode_ordinary("the\udcff") == tokenizer.encode_ordinary("the")


def test_added_tokens_that_are_not_special_are_text_when_decoded(tmp_path: Path) -> None:
    document = v.smollm_document()
    size = len(document["model"]["vocab"]) + 3
    document["added_tokens"].append({"id": size, "content": "<tool>", "special": False})
    tokenizer = load(tmp_path, document)
    assert tokenizer.vocab_size == size + 1
    assert tokenizer.decode_bytes(size) == b"<tool>"
    assert size not in tokenizer.encode_ordinary("<tool>")
    assert tokenizer.encode("<tool>", special=True) == [size]


@pytest.mark.parametrize(
    ("special", "post_processor", "config", "bos", "adds_bos", "eos"),
    [
        (["<|begin_of_text|>", "<|eot_id|>"], v.starts_with("<|begin_of_text|>"), None, 0, True, {1}),
        (["<|begin_of_text|>", "<|eot_id|>"], None, None, 0, False, {1}),
        (["<|endoftext|>"], None, None, 0, False, {0}),
        (["<pad>"], None, None, -1, False, set()),
        (["<a>", "<b>"], None, {"bos_token": "<a>", "eos_token": "<b>", "add_bos_token": True}, 0, True, {1}),
        (
            ["<a>", "<b>"],
            None,
            {"bos_token": {"content": "<b>"}, "eos_token": {"content": "<a>"}},
            1,
            False,
            {0},
        ),
        (["<s>", "<a>"], v.starts_with("<s>"), {"add_bos_token": False, "eos_token": None}, 0, False, set()),
        (["<a>"], None, {"bos_token": "<absent>", "add_bos_token": True}, -1, False, set()),
        (["<s>"], None, ["not", "a", "config"], 0, False, set()),
    ],
)
def test_bos_and_eos(
    tmp_path: Path,
    special: list[str],
    post_processor: dict[str, Any] | None,
    config: object,
    bos: int,
    adds_bos: bool,
    eos: set[int],
) -> None:
    if config is not None:
        v.write_json(tmp_path / "tokenizer_config.json", config)
    document = v.hf_document(
        PIECES, special, v.GPT2_PRE_TOKENIZER, post_processor=post_processor, special_first=True
    )
    tokenizer = load(tmp_path, document)
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_ids) == (bos, adds_bos, eos)


def change(document: dict[str, Any], keys: str, value: object) -> None:
    *way, last = keys.split(".")
    for key in way:
        document = document[key]
    document[last] = value


SEQUENCE_OF_SPLIT = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Removed", "invert": False}


@pytest.mark.parametrize(
    ("keys", "value", "problem"),
    [
        ("model.type", "WordPiece", "found a model of the type 'WordPiece'"),
        ("model.vocab", [["a", 0.0]], "found a model of the type"),
        ("model", None, "without a vocabulary"),
        ("model.byte_fallback", True, "SentencePiece vocabulary"),
        ("model.dropout", 0.1, "dropout 0.1"),
        ("model.end_of_word_suffix", "</w>", "end_of_word_suffix '</w>'"),
        ("model.continuing_subword_prefix", "##", "continuing_subword_prefix '##'"),
        ("normalizer", {"type": "NFC"}, "the normalizer 'NFC'"),
        ("pre_tokenizer", None, "no pre-tokenizer"),
        ("pre_tokenizer", {"type": "Whitespace"}, "the pre-tokenizer"),
        ("pre_tokenizer", SEQUENCE_OF_SPLIT, "the pre-tokenizer"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "add_prefix_space"),
        (
            "pre_tokenizer",
            {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"},
            "split pattern",
        ),
        ("pre_tokenizer", {"kind": "ByteLevel"}, "damaged"),
        ("model.vocab", {"▁the": 3}, "the token '▁the'"),
        ("model.vocab", {"the dog": 3}, "the token 'the dog'"),
        ("model", {"vocab": {"a": 3}, "merges": []}, "found none for ' '"),
        ("model.vocab", {"a": -1}, "found -1"),
        ("model.vocab", {"a": 1 << 40}, "found 1099511627776"),
        ("model.vocab", {"a": "b"}, "found 'b'"),
        ("model.merges", ["a"], "damaged"),
        ("model.merges", ["a b c"], "damaged"),
        ("model.merges", ["a absent"], "damaged"),
        ("model.merges", 5, "damaged"),
        ("added_tokens", [{"content": "<s>"}], "damaged"),
        ("added_tokens", 5, "damaged"),
    ],
)
def test_what_is_refused(tmp_path: Path, keys: str, value: object, problem: str) -> None:
    document = copy.deepcopy(v.smollm_document())
    change(document, keys, value)
    with pytest.raises(TokenizerError, match=problem) as raised:
        read_hf_json(tmp_path / "tokenizer.json", v.write_json(tmp_path / "t.json", document).read_bytes())
    assert str(tmp_path / "tokenizer.json") in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize("data", [b"[" * 100_000, b"{", b"[]", b"5", b"\xff{}"])
def test_what_is_not_json(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TokenizerError):
        read_hf_json(tmp_path / "tokenizer.json", data)


@pytest.mark.parametrize(
    ("name", "config", "used"),
    [
        ("tokenizer.json", "tokenizer_config.json", True),
        ("m.tokenizer.json", "m.tokenizer_config.json", True),
        ("m.tokenizer.json", "tokenizer_config.json", False),
        ("other.json", "tokenizer_config.json", False),
    ],
)
def test_a_config_belongs_to_the_file_of_its_name(tmp_path: Path, name: str, config: str, used: bool) -> None:
    v.write_json(tmp_path / config, {"add_bos_token": True})
    path = v.write_json(tmp_path / name, v.smollm_document())
    assert load_tokenizer(path).adds_bos is used


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"[" * 100_000, b"\xff"])
def test_a_damaged_config_says_nothing(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(damage)
    assert not load(tmp_path, v.smollm_document()).adds_bos
