"""SentencePiece models written by hand: the library reads them, and gives the ids of the original."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.sentencepiece_proto import (
    Piece,
    PieceType,
    build_model,
    is_control_name,
    never_typed,
    read_pieces,
    replace_pieces,
    unused_texts,
)
from tests.tokenizers.texts import unicode_texts
from tests.tokenizers.vocabularies import train_sentencepiece

ORIGINAL = train_sentencepiece(user_defined_symbols=["<tool>"], control_symbols=["<ctl>"])


def library(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def rebuilt(model: bytes) -> bytes:
    return build_model(read_pieces(model), bos_id=1, eos_id=2, unk_id=0)


BOTH = library(ORIGINAL), library(rebuilt(ORIGINAL))


@given(text=unicode_texts)
def test_a_rebuilt_model_gives_the_same_ids(text: str) -> None:
    original, ours = BOTH
    assert ours.encode(text) == original.encode(text)
    assert ours.decode(ours.encode(text)) == original.decode(original.encode(text))


def test_what_a_rebuilt_model_says_of_itself() -> None:
    for model in BOTH:
        assert (model.vocab_size(), model.unk_id(), model.bos_id(), model.eos_id(), model.pad_id()) == (
            340, 0, 1, 2, -1,
        )  # fmt: skip
    original, ours = BOTH
    for i in range(340):
        assert ours.id_to_piece(i) == original.id_to_piece(i)
        assert ours.get_score(i) == original.get_score(i)
        assert ours.is_control(i) == original.is_control(i)
        assert ours.is_byte(i) == original.is_byte(i)


def test_pieces_come_back() -> None:
    pieces = read_pieces(ORIGINAL)
    assert pieces[:3] == [
        ("<unk>", 0.0, PieceType.UNKNOWN), ("<s>", 0.0, PieceType.CONTROL), ("</s>", 0.0, PieceType.CONTROL)
    ]  # fmt: skip
    assert ("<tool>", 0.0, PieceType.USER_DEFINED) in pieces
    assert ("<ctl>", 0.0, PieceType.CONTROL) in pieces
    assert ("<0x41>", 0.0, PieceType.BYTE) in pieces
    assert read_pieces(rebuilt(ORIGINAL)) == pieces


SMALL: list[Piece] = [
    ("<unk>", 0.0, PieceType.UNKNOWN),
    ("<s>", 0.0, PieceType.CONTROL),
    ("</s>", 0.0, PieceType.CONTROL),
    ("ab", -1.0, PieceType.NORMAL),
    ("▁", -2.0, PieceType.NORMAL),
    ("a", -3.0, PieceType.NORMAL),
    ("b", -4.0, PieceType.NORMAL),
]


def test_options() -> None:
    plain = library(build_model(SMALL, bos_id=-1, eos_id=-1, unk_id=0, add_dummy_prefix=False))
    assert (plain.bos_id(), plain.eos_id()) == (-1, -1)
    assert plain.encode("ab  b") == [3, 4, 4, 6]
    assert plain.encode("c") == [0]  # no byte pieces: unknown
    assert library(build_model(SMALL, bos_id=2, eos_id=1, unk_id=0)).encode("ab") == [4, 3]
    swapped = library(build_model(SMALL, bos_id=2, eos_id=1, unk_id=0))
    assert (swapped.bos_id(), swapped.eos_id()) == (2, 1)


def test_long_pieces() -> None:
    text = "ab" * 500
    model = library(build_model([*SMALL, (text, 0.0, PieceType.USER_DEFINED)], bos_id=1, eos_id=2, unk_id=0))
    assert model.encode("a" + text) == [4, 5, 7]


def test_replaced_pieces() -> None:
    more: list[Piece] = [("<|x|>", 0.0, PieceType.CONTROL), ("<t>", 0.0, PieceType.USER_DEFINED)]
    model = replace_pieces(ORIGINAL, [*read_pieces(ORIGINAL), *more])
    assert read_pieces(model) == [*read_pieces(ORIGINAL), *more]
    longer = library(model)
    assert longer.vocab_size() == 342
    assert longer.encode("the cat there") == BOTH[0].encode("the cat there")
    assert 341 in longer.encode("the <t>")
    assert 340 not in longer.encode("the <|x|>")


def test_what_is_not_a_piece_stays() -> None:
    """Not the least, how text is normalized: this model turns full-width letters into plain ones."""
    model = train_sentencepiece(normalization_rule_name="nfkc", vocab_size=330)
    pieces = read_pieces(model)
    retyped = replace_pieces(model, [*pieces[:-1], ("<|x|>", 0.0, PieceType.CONTROL)])
    assert library(model).encode("ｔｈｅ") == library(model).encode("the")
    assert library(retyped).encode("ｔｈｅ") == library(model).encode("the")


@pytest.mark.parametrize("text", ["<|im_end|>", "<|a b|>", "<｜User｜>", "<|/x|>"])
def test_what_looks_like_a_control_token(text: str) -> None:
    assert is_control_name(text)
    for other in (text[:-1], text[1:], text + " ", " " + text):
        assert not is_control_name(other)


@pytest.mark.parametrize("text", ["", "<|", "<|>", "<||>", "<|-|>", "<|_|>", "<user>", "a<|b|>"])
def test_what_does_not(text: str) -> None:
    assert not is_control_name(text)


def test_pieces_that_nobody_may_type() -> None:
    kinds = (PieceType.USER_DEFINED, PieceType.NORMAL, PieceType.UNUSED)
    pieces = [*SMALL, *((f"<|{kind}|>", 1.0, kind) for kind in kinds), ("x▁y", 0.0, PieceType.USER_DEFINED)]
    changed = never_typed(pieces, {"x y"})
    assert changed[:7] == SMALL
    assert [piece[2] for piece in changed[7:]] == [PieceType.CONTROL] * 4
    assert [piece[0] for piece in changed] == [piece[0] for piece in pieces]
    assert never_typed(pieces, ())[-1] == pieces[-1]
    odd = [("<|u|>", 0.0, PieceType.UNKNOWN), ("<0x41>", 0.0, PieceType.BYTE)]
    assert never_typed(odd, {"<0x41>"}) == odd


@pytest.mark.parametrize(
    ("pieces", "ids", "problem"),
    [
        ([*SMALL, SMALL[3]], (1, 2, 0), "found 'ab' at id 7 and id 3"),
        ([*SMALL, ("", 0.0, PieceType.NORMAL)], (1, 2, 0), "found '' at id 7"),
        (SMALL[1:], (0, 1, 0), r"one unknown piece at id 0, found them at \[\]"),
        (SMALL, (1, 2, 1), r"one unknown piece at id 1, found them at \[0\]"),
        (SMALL, (3, 2, 0), "BOS to be a control piece, found id 3"),
        (SMALL, (1, 7, 0), "EOS to be a control piece, found id 7"),
        (SMALL, (-2, 2, 0), "BOS to be a control piece, found id -2"),
    ],
)
def test_what_the_library_would_not_load(
    pieces: list[Piece], ids: tuple[int, int, int], problem: str
) -> None:
    with pytest.raises(TokenizerError, match=problem):
        build_model(pieces, bos_id=ids[0], eos_id=ids[1], unk_id=ids[2])


def test_damaged_models() -> None:
    whole = read_pieces(ORIGINAL)
    for end in range(1, len(ORIGINAL), 97):
        with suppress(TokenizerError):  # or it ends between two fields
            pieces = read_pieces(ORIGINAL[:end])
            assert pieces == whole[: len(pieces)]
    for data in (b"\x0a", b"\x0b", b"\x08", b"\x0a\xff\xff\xff\xff\x7f", b"\x80" * 20, b"\x0a\x02\x18\x63",
                 b"\x0a\x03\x0a\x01\xff", b"\x08\x05"):  # fmt: skip
        with pytest.raises(TokenizerError, match="expected a SentencePiece model"):
            read_pieces(data)


def test_no_more_pieces_are_read_than_there_may_be() -> None:
    damage = b"\x80" * 20  # who reads on finds this
    with pytest.raises(TokenizerError, match="expected at most 340 pieces, found more"):
        read_pieces(ORIGINAL + b"\n\x00" * 2 + damage, 340)
    assert len(read_pieces(ORIGINAL, 340)) == 340


def test_unused_names_collide_with_nothing() -> None:
    assert unused_texts(3, {"<|unused_1|>", "a"}) == ["<|unused_0|>", "<|unused_2|>", "<|unused_3|>"]
    assert unused_texts(0, ()) == []


@pytest.mark.real
def test_llama2_rebuilt(real_data: Path) -> None:
    data = (real_data / "tokenizers" / "llama2_tokenizer.model").read_bytes()
    original, ours = library(data), library(rebuilt(data))
    text = (real_data / "data" / "tinystories_valid.txt").read_text("utf-8")[:100_000]
    odd = "".join(chr(c) for c in range(0x20, 0x30000, 7) if not 0xD800 <= c < 0xE000)
    for sample in (text, odd, "  a \n\n b\t\r\n", "<s></s><unk><0x41>"):
        assert ours.encode(sample) == original.encode(sample)
