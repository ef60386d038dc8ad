"""SentencePiece models from a list of pieces, and back: the bytes of a ModelProto, without protobuf.

A model is a protobuf message: `pieces` (field 1, repeated), `trainer_spec` (2), `normalizer_spec` (3). Only
the fields that an encoder needs are written, and only the pieces are read. Sources: google/sentencepiece,
`src/sentencepiece_model.proto`; Protocol Buffers, "Encoding".
"""

import re
import struct
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from itertools import count, islice

from llamatui.errors import TokenizerError
from llamatui.tokenizers.binary_vocab import MAX_TOKENS

SPACE = "▁"


class PieceType(IntEnum):
    """`ModelProto.SentencePiece.Type`; GGUF's `tokenizer.ggml.token_type` has the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


Piece = tuple[str, float, PieceType]
"""Text (with ▁ for a space), score, type."""

_BPE = 2  # TrainerSpec.ModelType
_CONTROL = re.compile(r"<[|｜][\W_]*[^\W_].*[|｜]>", re.DOTALL)


def is_control_name(text: str, named: Container[str] = ()) -> bool:
    """Whether text must never become a token that is called so.

    It must not if the token is `named`, by files that say it is special, BOS or EOS, or looks like
    `<|im_end|>`. Models have such tokens as USER_DEFINED or NORMAL, and a user could type the end of a turn.
    """
    return text in named or text.replace(SPACE, " ") in named or _CONTROL.fullmatch(text) is not None


def never_typed(pieces: Sequence[Piece], named: Container[str]) -> list[Piece]:
    """The pieces, those of them CONTROL that text must never become."""
    fixed = (PieceType.UNKNOWN, PieceType.BYTE)
    return [
        (text, score, PieceType.CONTROL if kind not in fixed and is_control_name(text, named) else kind)
        for text, score, kind in pieces
    ]


def build_model(
    pieces: Sequence[Piece], *, bos_id: int, eos_id: int, unk_id: int, add_dummy_prefix: bool = True
) -> bytes:
    """A BPE model: pairs merge by the score of what they form, the highest first, and nothing is normalized.

    Args:
        pieces: By id.
        bos_id: Id of a CONTROL piece, or -1 for none. The same for `eos_id`.
        unk_id: Id of the one UNKNOWN piece.
        add_dummy_prefix: Whether a space goes in front of every text.

    Raises:
        TokenizerError: The library would not load such a model.
    """
    seen: dict[str, int] = {}
    for i, (text, _, _) in enumerate(pieces):
        if not text or text in seen:
            raise TokenizerError(
                f"expected pieces that are all different, found {text!r} at id {i}"
                + (f" and id {seen[text]}" if text else "")
            )
        seen[text] = i
    unknown = [i for i, piece in enumerate(pieces) if piece[2] is PieceType.UNKNOWN]
    if unknown != [unk_id]:
        raise TokenizerError(f"expected one unknown piece at id {unk_id}, found them at {unknown}")
    for name, i in (("BOS", bos_id), ("EOS", eos_id)):
        if i != -1 and not (0 <= i < len(pieces) and pieces[i][2] is PieceType.CONTROL):
            raise TokenizerError(f"expected {name} to be a control piece, found id {i}")

    # The library finds BOS and EOS by text, and takes a piece that is no control piece for none at all.
    unk_text, bos_text, eos_text = (pieces[i if i >= 0 else unk_id][0] for i in (unk_id, bos_id, eos_id))
    trainer = b"".join(
        (
            _integer(3, _BPE),
            _integer(4, len(pieces)),
            _integer(35, any(piece[2] is PieceType.BYTE for piece in pieces)),  # byte_fallback
            *(_integer(field, i) for field, i in ((40, unk_id), (41, bos_id), (42, eos_id), (43, -1))),
            *(
                _string(field, text.encode())
                for field, text in ((45, unk_text), (46, bos_text), (47, eos_text))
            ),
        )
    )
    normalizer = b"".join(
        (
            _string(1, b"identity"),
            _integer(3, add_dummy_prefix),
            _integer(4, False),  # remove_extra_whitespaces
            _integer(5, True),  # escape_whitespaces: a space is ▁
        )
    )
    return replace_pieces(_string(2, trainer) + _string(3, normalizer), pieces)


def replace_pieces(model: bytes, pieces: Sequence[Piece]) -> bytes:
    """`model` with these pieces instead of its own. All else that it says stays.

    Raises:
        TokenizerError: It is not a model.
    """
    with _reported_damage(model):
        others = b"".join(raw for number, _, raw in _fields(memoryview(model)) if number != 1)
    return b"".join(_string(1, _piece(*piece)) for piece in pieces) + others


def read_pieces(model: bytes, most: int = MAX_TOKENS) -> list[Piece]:
    """The pieces of a model, by id.

    Raises:
        TokenizerError: It is not a model, or has more than `most` pieces.
    """
    pieces: list[Piece] = []
    with _reported_damage(model):
        for field, value, _ in _fields(memoryview(model)):
            if field == 1 and len(pieces) == most:
                raise TokenizerError(
                    f"expected at most {most} pieces, found more", "get the tokenizer of this model"
                )
            if field == 1:
                pieces.append(_read_piece(value))
    return pieces


@contextmanager
def _reported_damage(model: bytes) -> Iterator[None]:
    """Turns what reading bytes that are no model raises into a TokenizerError."""
    try:
        yield
    except (IndexError, ValueError, struct.error) as error:
        raise TokenizerError(
            f"expected a SentencePiece model, found {len(model)} bytes that do not parse as one: {error}",
            "the file is damaged or something else: get it again",
        ) from None


def _read_piece(message: int | memoryview) -> Piece:
    """Raises ValueError, struct.error: it is none."""
    if isinstance(message, int):
        raise ValueError("a number where a piece belongs")
    text, score, kind = "", 0.0, PieceType.NORMAL
    for field, value, _ in _fields(message):
        if field == 3 and isinstance(value, int):
            kind = PieceType(value)
        elif field == 1 and not isinstance(value, int):
            text = bytes(value).decode()
        elif field == 2 and not isinstance(value, int):
            (score,) = struct.unpack("<f", value)
    return text, score, kind


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Number, value and bytes of each field. A value is an integer, or that of a string, message or float.

    Raises:
        IndexError, ValueError: The message ends early, or has a type of field that is not in use.
    """
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        if key & 7 == 0:
            value, at = _read_varint(message, at)
            yield key >> 3, value, message[start:at]
            continue
        if key & 7 == 2:
            length, at = _read_varint(message, at)
        elif key & 7 in (1, 5):
            length = 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"wire type {key & 7}")
        if length > len(message) - at:
            raise ValueError("it is cut short")
        yield key >> 3, message[at : at + length], message[start : at + length]
        at += length


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def unused_texts(n: int, taken: Container[str]) -> list[str]:
    """Names of tokens for ids that a model has and its vocabulary lacks: none is in `taken`."""
    names = (f"<|unused_{i}|>" for i in count())
    return list(islice((name for name in names if name not in taken), n))


def _piece(text: str, score: float, kind: PieceType) -> bytes:
    score_field = _key(2, 5) + struct.pack("<f", score)
    return _string(1, text.encode()) + score_field + _integer(3, kind)


def _integer(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _string(field: int, value: bytes) -> bytes:
    """Also for messages, which are encoded the same."""
    return _key(field, 2) + _varint(len(value)) + value


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers as 64-bit two's complement."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
