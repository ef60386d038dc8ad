"""Streaming decode: the same text as at once, whole characters only."""

from hypothesis import given
from hypothesis import strategies as st

from llamatui.tokenizers.base import StreamDecoder, Tokenizer
from tests.tokenizers.texts import unicode_texts


def streamed(tokenizer: Tokenizer, ids: list[int], after: int | None = None) -> list[str]:
    decoder = StreamDecoder(tokenizer, after)
    return [decoder.push(token) for token in ids] + [decoder.flush()]


@given(ids=st.lists(st.integers(0, 330), max_size=30))
def test_any_ids_decode_like_all_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)
    data = b"".join(map(tokenizer.decode_bytes, ids))
    if tokenizer.strips_space_after(None) and data[:1] == b" " and ids and tokenizer.decode_bytes(ids[0]):
        data = data[1:]
    if 1 not in ids:
        assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


@given(text=unicode_texts)
def test_valid_text_comes_in_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "").replace("▁", "").replace("<0x", "")
    ids = tokenizer.encode(text, bos=True)
    parts = streamed(tokenizer, ids)
    assert "".join(parts) == text
    assert parts[-1] == ""
    # Each part ends where a character ends, and as early as one does.
    open_bytes = b""
    pieces = [tokenizer.decode_bytes(token) for token in ids]
    if tokenizer.strips_space_after(None) and text:
        first = next(i for i, piece in enumerate(pieces) if piece)
        pieces[first] = pieces[first][1:]
    for piece, part in zip(pieces, parts, strict=False):
        open_bytes = (open_bytes + piece).removeprefix(part.encode())
        assert len(open_bytes) < 4


def test_the_space_in_front_is_dropped_only_at_the_start(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("sentencepiece", "llama2 bin"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode_ordinary("the")
        assert tokenizer.decode(ids) == tokenizer.decode(ids, after=tokenizer.bos_id) == "the"
        assert tokenizer.decode(ids, after=ids[-1]) == " the"
    bpe = tokenizers["tiktoken"]
    assert bpe.decode(bpe.encode_ordinary(" the")) == " the"


def test_an_unfinished_character_shows_at_the_end(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["llama2 bin"]
    first_byte_of_emoji = 3 + 0xF0
    assert streamed(tokenizer, [first_byte_of_emoji]) == ["", "\ufffd"]
    assert streamed(tokenizer, [first_byte_of_emoji, 3 + ord("a")]) == ["", "\ufffda", ""]
