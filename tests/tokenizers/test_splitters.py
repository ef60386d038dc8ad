"""The split patterns, against tiktoken's regex engine and by hand."""

import pcre2
import pytest
import tiktoken
from hypothesis import given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.splitters import SPLIT_PATTERNS, Splitter, in_pcre2
from tests.tokenizers.texts import unicode_texts

DISTINCT = list({patterns: name for name, patterns in SPLIT_PATTERNS.items()}.values())
"""One name for each way to split."""

# Above the first planes hardly anything is assigned: samples of those.
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x40000), *range(0x40000, 0x110000, 251)]))


def matched_by_tiktoken(pattern: str) -> set[str]:
    """Characters that a pattern matches in Rust's regex engine. What does not match is left out there."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(bytes(encoding.encode_ordinary(CHARACTERS)).decode())


@pytest.mark.parametrize(
    "pattern", [r"\p{L}", r"\p{N}", r"\s", r"\S", r"[^\s\p{L}\p{N}]", r"[^\r\n\p{L}\p{N}]", "(?i:[strevmld])"]
)
def test_classes_agree_on_all_characters(pattern: str) -> None:
    assert set(pcre2.compile(in_pcre2(pattern)).findall(CHARACTERS)) == matched_by_tiktoken(pattern)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\s\S", r"\p{White_Space}\P{White_Space}"),
        (r"[^\s]", r"[^\p{White_Space}]"),
        (r"\\s\d", r"\\s\d"),  # a backslash and the letter s
    ],
)
def test_white_space_is_translated(pattern: str, expected: str) -> None:
    assert in_pcre2(pattern) == expected


@pytest.mark.parametrize(
    ("name", "text", "pieces"),
    [
        ("llama3", "Hello  world, it's 12345!\n\n x", "Hello| | world|,| it|'s| |123|45|!\n\n| x"),
        ("llama3", "I'LL\r\n \n  a", "I|'LL|\r\n \n| | a"),
        ("llama3", "a\u180eb\u3000c", "a|\u180eb|\u3000c"),
        ("gpt-2", "Hello  world, it's 12345!\n\n x", "Hello| | world|,| it|'s| 12345|!|\n\n| x"),
        ("smollm", "in 2024  7 ", "in| |2|0|2|4|  |7| "),
        ("smollm", "½x", "½|x"),
        ("default", "a $b 12345 c's", "a| |$|b| |123|45| c|'|s"),
    ],
)
def test_pieces(name: str, text: str, pieces: str) -> None:
    assert Splitter(SPLIT_PATTERNS[name]).split(text) == pieces.split("|")


@pytest.mark.parametrize("name", DISTINCT)
@given(text=unicode_texts)
def test_nothing_is_lost(name: str, text: str) -> None:
    pieces = Splitter(SPLIT_PATTERNS[name]).split(text)
    assert "".join(pieces) == text
    assert "" not in pieces


def test_what_a_pattern_does_not_match_stays_whole() -> None:
    assert Splitter(["[0-9]+"]).split("ab 12 cd3") == ["ab ", "12", " cd", "3"]
    assert Splitter([]).split("a b") == ["a b"]


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("unit", ["a", " ", " \n", "!"])
def test_very_long_pieces_need_no_stack(name: str, unit: str) -> None:
    text = (
        unit * (60_000 // len(unit)) + "x"
    )  # 5,000 are enough to overflow the stack without possessive quantifiers
    assert "".join(Splitter(SPLIT_PATTERNS[name]).split(text)) == text


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(TokenizerError, match="split pattern"):
        Splitter(["(a"])


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(TokenizerError, match="matches nothing"):
        Splitter(["x*"]).split("axxb")


def test_a_pattern_that_never_ends() -> None:
    with pytest.raises(TokenizerError, match="limit"):
        Splitter(["(?:a+)+b"]).split("a" * 100)
