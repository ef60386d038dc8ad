"""A tokenizer.json of ours gives the same ids in our reader and in Hugging Face's `tokenizers`."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.hf_json import read_hf_json
from llamatui.tokenizers.hf_json_writer import bpe_json, byte_alphabet, merges_from_ranks
from llamatui.tokenizers.llama3_vocab import SPECIAL_TOKENS, bpe_from_ranks
from llamatui.tokenizers.splitters import LLAMA3_PATTERN, SPLIT_PATTERNS
from llamatui.tokenizers.tiktoken_model import read_ranks
from tests.tokenizers import vocabularies as v
from tests.tokenizers.texts import byte_texts, unicode_texts

PIECES = v.ranked_pieces()
SPECIAL = {name: len(PIECES) + i for i, name in enumerate(SPECIAL_TOKENS)}
LLAMA3 = bpe_json(
    [byte_alphabet(piece) for piece in PIECES],
    merges_from_ranks(PIECES),
    [LLAMA3_PATTERN],
    SPECIAL,
    bos="<|begin_of_text|>",
    ignore_merges=True,
)
# As in SmolLM2, special tokens come first: `tokenizers` gives new ones the next free id.
FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>"]
SMOLLM = bpe_json(
    [*FIRST, *map(byte_alphabet, PIECES)],
    merges_from_ranks(PIECES),
    SPLIT_PATTERNS["smollm"],
    {name: i for i, name in enumerate(FIRST)},
    bos=None,
    ignore_merges=False,
    plain=["<tool>"],
)


def ours(data: bytes) -> Tokenizer:
    return read_hf_json(Path("t.json"), data)


def theirs(data: bytes) -> Any:
    return pytest.importorskip("tokenizers").Tokenizer.from_str(data.decode())


@given(text=byte_texts)
def test_ranks_as_merges_give_the_ids_of_the_ranks(text: str) -> None:
    assert LLAMA3_OURS.encode(text, bos=True) == FROM_RANKS.encode(text, bos=True)


LLAMA3_OURS, SMOLLM_OURS = ours(LLAMA3), ours(SMOLLM)
FROM_RANKS = bpe_from_ranks(PIECES)


@pytest.mark.parametrize("data", [LLAMA3, SMOLLM], ids=["llama3", "smollm"])
def test_the_ids_of_the_tokenizers_library(data: bytes) -> None:
    library, tokenizer = theirs(data), ours(data)
    assert library.get_vocab_size() == tokenizer.vocab_size

    @given(text=unicode_texts)
    def same(text: str) -> None:
        bos = tokenizer.adds_bos
        # Theirs parses added tokens in text. Ours does when asked to.
        assert library.encode(text).ids == tokenizer.encode(text, bos=bos, special=True)

    same()
    ids = tokenizer.encode("the café 123  日本\n", bos=tokenizer.adds_bos)
    assert library.decode(ids) == tokenizer.decode(ids) == "the café 123  日本\n"


def test_what_is_read_back() -> None:
    assert (LLAMA3_OURS.bos_id, LLAMA3_OURS.adds_bos) == (SPECIAL["<|begin_of_text|>"], True)
    assert LLAMA3_OURS.special_tokens == SPECIAL
    assert LLAMA3_OURS.vocab_size == len(PIECES) + 256
    assert (SMOLLM_OURS.bos_id, SMOLLM_OURS.adds_bos) == (1, False)
    assert [SMOLLM_OURS.decode_bytes(i) for i in range(5)] == [b"", b"", b"", b"<tool>", b"\0"]


def test_merges_of_ranks() -> None:
    ranked = [bytes([byte]) for byte in range(256)] + [b"ab", b"bc", b"abc", b" ab"]
    assert merges_from_ranks(ranked) == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c"), ("Ġ", "ab")]
    # A piece that no two others make has none.
    assert merges_from_ranks([b"a", b"b", b"c", b"abc"]) == []


def test_tokens_that_occur_twice() -> None:
    texts = [byte_alphabet(bytes([byte])) for byte in range(256)]
    tokenizer = ours(bpe_json([*texts, "a", "b"], [], [LLAMA3_PATTERN], {}, bos=None, ignore_merges=False))
    assert tokenizer.encode("ab") == [ord("a"), ord("b")]


def test_bos_is_a_special_token() -> None:
    with pytest.raises(TokenizerError, match="BOS to be a special token, found '<s>'"):
        bpe_json(["a"], [], [], {}, bos="<s>", ignore_merges=False)


def test_half_a_surrogate_pair_can_be_read_again() -> None:
    data = bpe_json(["a"], [], [], {"\ud800": 1}, bos=None, ignore_merges=False)
    assert json.loads(data)["added_tokens"][0]["content"] == "\ud800"


@pytest.mark.real
def test_llama3_merges(real_data: Path) -> None:
    folder = real_data / "tokenizers"
    path = folder / "llama3_tokenizer.model"
    genuine = json.loads((folder / "llama3_hf_tokenizer.json").read_bytes())["model"]
    ranked = read_ranks(path, path.read_bytes())
    merges = merges_from_ranks(ranked)
    assert merges == [tuple(m.split(" ") if isinstance(m, str) else m) for m in genuine["merges"]]
    assert {byte_alphabet(piece): rank for rank, piece in enumerate(ranked)} == genuine["vocab"]
