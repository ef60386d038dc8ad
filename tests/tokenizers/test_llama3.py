"""Llama 3's vocabulary in three formats: they must agree on every string."""

import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.tokenizers.splitters import LLAMA3_PATTERN
from llamatui.tokenizers.tiktoken_model import read_ranks
from tests.tokenizers.texts import CONTROL_TEXTS, byte_texts, unicode_texts
from tests.tokenizers.vocabularies import ranked_pieces, write_bin, write_llama3_bin, write_tiktoken

FORMATS = ["tiktoken", "llama3 json", "llama3 bin"]
FIRST = len(ranked_pieces())  # id of the first special token


@given(text=byte_texts)
@example(text="ababababa baba")
@example(text=" \n" * 5001 + "x")  # as long as tiktoken is not trusted with
@example(text="\ud800 the\udcff\udc80 there")
def test_formats_agree(tokenizers: dict[str, Tokenizer], text: str) -> None:
    ids = [tokenizers[name].encode(text, bos=True, eos=True) for name in FORMATS]
    assert ids[0] == ids[1] == ids[2]
    tokenizer = tokenizers["llama3 bin"]
    assert b"".join(map(tokenizer.decode_bytes, ids[0])) == text_to_bytes(text)


@given(text=unicode_texts)
def test_our_bpe_equals_tiktoken(tokenizers: dict[str, Tokenizer], text: str) -> None:
    ranks = {piece: rank for rank, piece in enumerate(ranked_pieces())}
    reference = tiktoken.Encoding("tiny", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert tokenizers["llama3 bin"].encode_ordinary(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize("name", FORMATS)
def test_special_tokens(tokenizers: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    assert tokenizer.vocab_size == FIRST + 256
    numbers = {text: token - FIRST for text, token in tokenizer.special_tokens.items()}
    assert numbers["<|begin_of_text|>"] == tokenizer.bos_id - FIRST == 0
    assert {i - FIRST for i in tokenizer.eos_ids} == {1, 8, 9}
    assert [numbers[f"<|{n}|>"] for n in ("finetune_right_pad_id", "start_header_id", "end_header_id")] == [
        4,
        6,
        7,
    ]
    assert [numbers[f"<|{n}|>"] for n in ("eom_id", "eot_id", "python_tag")] == [8, 9, 10]
    assert [numbers[f"<|reserved_special_token_{n}|>"] for n in (0, 1, 2, 245)] == [2, 3, 12, 255]
    assert len(numbers) == 256
    assert tokenizer.adds_bos
    assert tokenizer.decode_bytes(FIRST) == b""
    assert tokenizer.encode("a<|eot_id|>b", special=True) == [ord("a"), FIRST + 9, ord("b")]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_text_never_becomes_a_control_token(tokenizers: dict[str, Tokenizer], name: str, text: str) -> None:
    ids = tokenizers[name].encode_ordinary(f"a {text}")
    assert max(ids) < FIRST
    assert tokenizers[name].decode(ids) == f"a {text}"


def test_old_names_in_a_binary_file_become_the_new_ones(tmp_path: Path) -> None:
    """llama3.2.c's exporter calls everything reserved that Llama 3.0 did."""
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    reserved = iter(range(256))
    old = [named[i] if i in named else f"reserved_special_token_{next(reserved)}" for i in range(256)]
    pieces = [*ranked_pieces(), *(f"<|{name}|>".encode() for name in old)]
    new = load_tokenizer(write_llama3_bin(tmp_path / "new.bin", ranked_pieces()))
    loaded = load_tokenizer(write_bin(tmp_path / "old.bin", pieces, range(len(pieces))))
    assert loaded.special_tokens == new.special_tokens
    assert loaded.eos_ids == new.eos_ids


def test_other_special_tokens_in_a_binary_file_keep_their_names(tmp_path: Path) -> None:
    pieces = [*ranked_pieces(), b"<|im_start|>", b"<|im_end|>"]
    tokenizer = load_tokenizer(write_bin(tmp_path / "t.bin", pieces, range(len(pieces))))
    assert tokenizer.special_tokens == {"<|im_start|>": FIRST, "<|im_end|>": FIRST + 1}
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_ids) == (-1, False, {FIRST + 1})


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (b"AA== 0\nhello\n", "line 2 to be 'hello'"),
        (b"AA== 0\nAA 1\n", "line 2 to be 'AA 1'"),
        (b"AA== 0\nAQ== 0\n", "rank 0 in line 2 of 2"),
        (b"AA== 5\n", "rank 5 in line 1 of 1"),
        (b"AA== 0\nAA== 1\n", "a piece twice"),
        (b"AA== 0\n", "none for the byte 0x01"),
    ],
)
def test_damaged_rank_files(lines: bytes, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        read_ranks(Path("t.model"), lines)


def test_ranks_in_any_order(tmp_path: Path) -> None:
    path = write_tiktoken(tmp_path / "t.model", ranked_pieces())
    backwards = b"\n".join(reversed(path.read_bytes().splitlines()))
    assert read_ranks(path, backwards) == ranked_pieces()


@pytest.fixture(scope="module")
def real(real_data: Path) -> list[Tokenizer]:
    names = ["llama3_tokenizer.model", "llama3_hf_tokenizer.json", "llama3_tokenizer.bin"]
    return [load_tokenizer(real_data / "tokenizers" / name, 128256) for name in names]


def interesting_characters() -> list[str]:
    """Every code point, but of those that are alike (unassigned, private, Han, Hangul) one in a hundred."""
    alike = {"Cn", "Co"}
    characters = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    return [
        c
        for i, c in enumerate(characters)
        if i % 100 == 0
        or not (unicodedata.category(c) in alike or "\u3400" <= c <= "\ud7ff" or c >= "\U00017000")
    ]


@pytest.mark.real
@pytest.mark.parametrize("context", ["{}", "a{}b", " {}", "{}{}", "{}\n", "1{}2", "  {}  "])
def test_real_formats_agree_on_every_character(real: list[Tokenizer], context: str) -> None:
    characters = interesting_characters()
    for start in range(0, len(characters), 1000):
        text = "ab".join(context.replace("{}", c) for c in characters[start : start + 1000])
        ids = [tokenizer.encode_ordinary(text) for tokenizer in real]
        assert ids[0] == ids[1] == ids[2], hex(ord(characters[start]))
        assert real[0].decode(ids[0]) == text


@pytest.mark.real
@given(text=byte_texts)
def test_real_formats_agree(real: list[Tokenizer], text: str) -> None:
    ids = [tokenizer.encode_ordinary(text) for tokenizer in real]
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.real
@pytest.mark.parametrize(
    "text", ["a" * 100_000, " " * 100_000, "abcdefgh" * 12_500, "!?" * 50_000, "日本" * 20_000]
)
def test_real_formats_agree_on_long_words(real: list[Tokenizer], text: str) -> None:
    ids = [tokenizer.encode_ordinary(text) for tokenizer in real]
    assert ids[0] == ids[1] == ids[2]
