"""Tokenizers out of GGUF metadata: the files load, and give the ids that the vocabulary means."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamatui.errors import LlamatuiError, TokenizerError
from llamatui.export.gguf_header import Metadata, Value
from llamatui.export.gguf_vocab import special_ids, tokenizer_files
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import chat_format_for
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.tokenizers.splitters import SPLIT_PATTERNS, Splitter
from tests.export.tiny_gguf import bpe_metadata, sentencepiece_metadata

SIZE = 300


def metadata_of(values: dict[str, Any]) -> Metadata:
    """As the header gives it: texts in arrays are bytes, numbers NumPy's. None takes an entry away."""

    def stored(value: Any) -> Value:
        if not isinstance(value, list):
            return value  # type: ignore[no-any-return]
        if value and isinstance(value[0], str | bytes):
            return [item.encode() if isinstance(item, str) else item for item in value]
        return np.array(value)

    return Metadata("x.gguf", {key: stored(value) for key, value in values.items() if value is not None})


def loaded(folder: Path, values: dict[str, Any]) -> Tokenizer:
    files = tokenizer_files(metadata_of(values), SIZE)
    for end, data in files.items():
        (folder / f"m{end}").write_bytes(data)
    (main,) = (end for end in files if end != ".tokenizer_config.json")
    return load_tokenizer(folder / f"m{main}", SIZE)


def ids_of(values: dict[str, Any], *texts: str) -> list[int]:
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    return [tokens.index(text) for text in texts]


def test_sentencepiece(tmp_path: Path) -> None:
    values = sentencepiece_metadata()
    tokenizer = loaded(tmp_path, values)
    assert tokenizer.format == "sentencepiece"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (1, {2}, True)
    assert tokenizer.encode("the hat") == ids_of(values, "▁the", "▁", "h", "a", "t")
    assert tokenizer.encode("the \n") == ids_of(values, "▁the", "▁", "<0x0A>")
    assert tokenizer.decode(tokenizer.encode("the hat, 日本!")) == "the hat, 日本!"


def test_sentencepiece_without_a_space_in_front(tmp_path: Path) -> None:
    values = sentencepiece_metadata() | {"tokenizer.ggml.add_space_prefix": False}
    assert loaded(tmp_path, values).encode("the") == ids_of(values, "th", "e")


def test_sentencepiece_that_names_no_ids(tmp_path: Path) -> None:
    values = {k: v for k, v in sentencepiece_metadata().items() if not k.endswith("_token_id")}
    assert special_ids(metadata_of(values), SIZE).ends == (2,)
    assert loaded(tmp_path, values).bos_id == 1


def test_tokens_of_a_wrong_type_are_put_right(tmp_path: Path) -> None:
    values = sentencepiece_metadata()
    # Phi-3's files: the unknown piece is a control token, added ones are unknown, EOS is the user's.
    values["tokenizer.ggml.token_type"] = [3, 3, 4, *values["tokenizer.ggml.token_type"][3:-1], 2]
    tokenizer = loaded(tmp_path, values)
    assert {"<unk>", "<s>", "</s>"} <= tokenizer.special_tokens.keys()
    assert tokenizer.encode("a</s>")[-1] != 2


@pytest.mark.parametrize("kind", [1, 2, 4, 5])
def test_what_looks_like_a_control_token_is_never_typed(tmp_path: Path, kind: int) -> None:
    values = sentencepiece_metadata()
    values["tokenizer.ggml.tokens"][-2:] = ["<|im_start|>", "<|im_end|>"]
    values["tokenizer.ggml.token_type"][-2:] = [kind, kind]
    tokenizer = loaded(tmp_path, values)
    assert not {SIZE - 2, SIZE - 1} & set(tokenizer.encode("<|im_start|>a<|im_end|>"))
    assert tokenizer.special_tokens["<|im_start|>"] == SIZE - 2
    assert tokenizer.eos_ids == {2, SIZE - 1}
    assert chat_format_for(tokenizer, "chatml").name == "chatml"


def test_nor_in_bpe(tmp_path: Path) -> None:
    values = bpe_metadata()
    values["tokenizer.ggml.token_type"][-2:] = [1, 4]
    tokenizer = loaded(tmp_path, values)
    assert tokenizer.special_tokens["<|im_start|>"] == SIZE - 2
    assert tokenizer.decode_bytes(SIZE - 1) == b""


def test_bpe(tmp_path: Path) -> None:
    values = bpe_metadata()
    tokenizer = loaded(tmp_path, values)
    assert tokenizer.format == "bpe"
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (SIZE - 3, True)
    assert SIZE - 1 in tokenizer.eos_ids
    assert tokenizer.encode("the the thing") == ids_of(values, "the", "Ġthe", "Ġ", "th", "ing")
    assert tokenizer.decode(tokenizer.encode("Käse, 日本\n")) == "Käse, 日本\n"


def test_control_tokens_never_come_from_text(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path, bpe_metadata())
    for name in ("<user>", "<|im_start|>", "<|im_end|>"):
        assert tokenizer.special_tokens[name] not in tokenizer.encode(name)
        assert tokenizer.encode(name, special=True) == [tokenizer.special_tokens[name]]
    assert tokenizer.decode_bytes(tokenizer.special_tokens["<user>"]) == b"<user>"
    assert tokenizer.decode_bytes(tokenizer.special_tokens["<|im_end|>"]) == b""


def test_a_normal_token_that_is_no_bytes_stands_for_its_text(tmp_path: Path) -> None:
    values = bpe_metadata()
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    tokens[270] = "日本"
    tokenizer = loaded(tmp_path, values)
    assert 270 not in tokenizer.encode("日本")
    assert tokenizer.decode_bytes(270) == "日本".encode()


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", ["Ġthe"]), ("gpt-2", ["Ġt", "h", "e"])])
def test_a_whole_split_is_a_token_for_some(tmp_path: Path, pre: str, expected: list[str]) -> None:
    values = bpe_metadata(pre=pre) | {"tokenizer.ggml.merges": ["Ġ t", "t h", "th e", "Ġ the"]}
    assert loaded(tmp_path, values).encode(" the") == ids_of(values, *expected)


@pytest.mark.parametrize(
    ("pre", "given", "adds"),
    [("llama-bpe", None, True), ("tekken", None, True), ("smollm", None, False), ("gpt-2", True, True),
     ("llama-bpe", False, False)],
)  # fmt: skip
def test_whether_prompts_start_with_bos(tmp_path: Path, pre: str, given: bool | None, adds: bool) -> None:
    values = bpe_metadata(pre=pre) | {"tokenizer.ggml.add_bos_token": given}
    tokenizer = loaded(tmp_path, values)
    assert tokenizer.adds_bos is adds
    assert tokenizer.bos_id == SIZE - 3
    config = json.loads((tmp_path / "m.tokenizer_config.json").read_bytes())
    assert config["add_bos_token"] is adds


@pytest.mark.parametrize("values", [sentencepiece_metadata(), bpe_metadata()], ids=["llama", "gpt2"])
def test_the_config_beside_it(values: dict[str, Any]) -> None:
    values = values | {"tokenizer.chat_template": "{{ 'Käse' }}"}
    config = json.loads(tokenizer_files(metadata_of(values), SIZE)[".tokenizer_config.json"])
    tokens = values["tokenizer.ggml.tokens"]
    assert config == {
        "add_bos_token": True,
        "bos_token": tokens[values["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[values["tokenizer.ggml.eos_token_id"]],
        "chat_template": "{{ 'Käse' }}",
    }


def test_no_tokenizer_at_all() -> None:
    assert tokenizer_files(metadata_of({}), SIZE) == {}


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("qwen2", "a 12 I'LL", "a| |1|2| I|'LL"),
        ("tekken", "HelloWorld 12/\n", "Hello|World| |1|2|/\n"),
        ("seed-coder", "a!\n12", "a|!|\n|1|2"),
        ("deepseek-llm", "Hello, wor1234\n  日本  ", "Hello|,| wor|1234|\n|  |日本|  "),
        ("deepseek-coder", "Hello, w12\nx", "Hello|,| w|1|2|\n|x"),
        ("starcoder", "a 12", "a| |1|2"),
    ],
)
def test_names_of_splits(name: str, text: str, pieces: str) -> None:
    assert Splitter(SPLIT_PATTERNS[name]).split(text) == pieces.split("|")


KEY = "tokenizer.ggml."
SPM = sentencepiece_metadata()
BPE = bpe_metadata()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (SPM | {KEY + "model": "bert"}, "found 'bert'"),
        (SPM | {KEY + "model": "t5"}, "found 't5'"),
        (SPM | {KEY + "model": "none"}, "found 'none'"),
        (SPM | {KEY + "model": 3}, "a text in tokenizer.ggml.model"),
        (SPM | {KEY + "tokens": None}, "300 tokens, as the model has, found 0"),
        (SPM | {KEY + "tokens": ["a"] * 299}, "300 tokens, as the model has, found 299"),
        (SPM | {KEY + "tokens": [b"\xff"] * 300}, "every token in UTF-8"),
        (SPM | {KEY + "tokens": ["a"] * 300}, "all different"),
        (SPM | {KEY + "scores": None}, "a score of each of 300 tokens, found 0"),
        (SPM | {KEY + "scores": [0.0] * 299}, "a score of each of 300 tokens, found 299"),
        (SPM | {KEY + "scores": [0.0] * 299 + [float("nan")]}, "a score of each"),
        (SPM | {KEY + "scores": "0"}, "an array of numbers"),
        (SPM | {KEY + "token_type": None}, "types of 300 tokens, found 0"),
        (SPM | {KEY + "token_type": [1] * 299}, "types of 300 tokens, found 299"),
        (SPM | {KEY + "token_type": [1] * 299 + [7]}, "types from 1 to 6, found 7"),
        (SPM | {KEY + "bos_token_id": 300}, "bos_token_id to be one of 300 tokens, found 300"),
        (SPM | {KEY + "eos_token_id": -2}, "eos_token_id"),
        (SPM | {KEY + "unknown_token_id": 1 << 60}, "unknown_token_id"),
        (BPE | {KEY + "pre": "jina-v9"}, "tokenizer.ggml.pre, found 'jina-v9'"),
        (BPE | {KEY + "merges": None}, "expected merges"),
        (BPE | {KEY + "merges": ["t h", "zz q"]}, "merges of two tokens, found 'zz q'"),
        (BPE | {KEY + "merges": ["th"]}, "merges of two tokens, found 'th'"),
        (BPE | {KEY + "merges": [b"\xff a"]}, "every merge in UTF-8"),
        (BPE | {KEY + "bos_token_id": None}, "the id of BOS"),
        (BPE | {KEY + "tokens": [*BPE[KEY + "tokens"][:-1], "<user>"]}, "all different, found '<user>'"),
        (BPE | {KEY + "add_bos_token": 1}, "true or false"),
    ],
)
def test_vocabularies_that_are_damaged_or_of_another_kind(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LlamatuiError, match=message) as caught:
        tokenizer_files(metadata_of(values), SIZE)
    assert caught.value.exit_code == 3
    assert isinstance(caught.value, TokenizerError) or caught.value.message.startswith("x.gguf")
