"""llama2.c's tokenizer.bin: the ids of run.c."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.binary_vocab import BinaryVocab, read_binary_vocab
from llamatui.tokenizers.llama2c import Llama2cTokenizer
from tests.tokenizers.texts import byte_texts

BASE = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256)), b" "]


def as_run_c_does(pieces: list[bytes], scores: list[float], text: bytes) -> list[int]:
    """The quadratic `encode` of run.c, but that no text becomes a control token."""
    ids = {piece: i for i, piece in enumerate(pieces) if i > 2}
    tokens = [ids[b" "]] if text else []
    character = b""
    for i, byte in enumerate(text):
        character += bytes([byte])
        continues = i + 1 < len(text) and text[i + 1] & 0xC0 == 0x80
        if continues and len(character) < 4:
            continue
        tokens += [ids[character]] if character in ids else [b + 3 for b in character]
        character = b""
    while True:
        best, at = -1e10, -1
        for i in range(len(tokens) - 1):
            merged = ids.get(pieces[tokens[i]] + pieces[tokens[i + 1]])
            if merged is not None and scores[merged] > best:
                best, at = scores[merged], i
        if at < 0:
            return tokens
        tokens[at : at + 2] = [ids[pieces[tokens[at]] + pieces[tokens[at + 1]]]]


# Few letters and few scores, so that merges compete and tie.
small_pieces = st.lists(
    st.text(alphabet="ab é日<0x4>", min_size=1, max_size=5).map(str.encode)
    | st.sampled_from([b"\xc3", b"\xff\xfe", b"<0x61>b", b"<0xFF><0xFE>"]),
    max_size=25,
    unique=True,
)
small_scores = st.sampled_from([0.0, -1.0, -2.0, -2.5, 3.0, -1e10, -2e10])
small_texts = st.lists(
    st.sampled_from(
        [b"a", b"b", b" ", b"ab", "é".encode(), "日".encode(), b"\xc3", b"\x80", b"\xff", b"<0x41>"]
    ),
    max_size=25,
).map(b"".join)


@given(data=st.data(), text=small_texts | st.binary(max_size=20))
def test_equals_run_c(data: st.DataObject, text: bytes) -> None:
    pieces = BASE + [piece for piece in data.draw(small_pieces) if piece not in BASE]
    scores = [0.0] * len(BASE) + [data.draw(small_scores) for _ in pieces[len(BASE) :]]
    tokenizer = Llama2cTokenizer(BinaryVocab(pieces, scores))
    expected = as_run_c_does(pieces, scores, text)
    assert tokenizer.encode_ordinary(text.decode("utf-8", "surrogateescape")) == expected


@given(text=byte_texts)
def test_bytes_come_back(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers["llama2 bin"]
    ids = tokenizer.encode(text, bos=True)
    if "<0x" not in text:  # run.c and its like read the text "<0x41>" as a byte where merges allow it
        assert b"".join(map(tokenizer.decode_bytes, ids)) == (b" " if text else b"") + text_to_bytes(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a", [b" ", b"a"]),
        ("\0", [b" ", b"<0x00>"]),
        ("é\udcff", [b" ", b"<0xC3>", b"<0xA9>", b"<0xFF>"]),
        ("\ud800", [b" ", b"<0xEF>", b"<0xBF>", b"<0xBD>"]),
    ],
)
def test_small_texts(text: str, pieces: list[bytes]) -> None:
    vocab = [*BASE, b"a"]
    tokenizer = Llama2cTokenizer(BinaryVocab(vocab, [0.0] * len(vocab)))
    assert [vocab[i] for i in tokenizer.encode_ordinary(text)] == pieces


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        (BASE[:200], "259 tokens, found 200"),
        ([*BASE[:3], b"x", *BASE[4:]], "<0x00> at id 3, found 'x'"),
        ([*BASE[:258], b"<0xfe>", b"a"], "<0xFF> at id 258, found '<0xfe>'"),
    ],
)
def test_vocabularies_that_are_refused(pieces: list[bytes], problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        Llama2cTokenizer(BinaryVocab(pieces, [0.0] * len(pieces)))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "found 0 bytes"),
        (b"\0" * 8, "longest token of 0 bytes"),
        (struct.pack("<i", -1), "longest token of -1 bytes"),
        (struct.pack("<ifi", 5, 0.0, -1), "token 0 to be -1 bytes"),
        (struct.pack("<ifi", 5, 0.0, 9) + b"abc", "cut short at token 0"),
        (struct.pack("<if", 5, 0.0), "cut short at token 0"),
        (struct.pack("<ifi", 5, float("nan"), 1) + b"a", "token 0 without a score"),
    ],
)
def test_files_that_are_damaged(data: bytes, problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem):
        read_binary_vocab(Path("t.bin"), data)


@pytest.mark.real
@pytest.mark.parametrize("text", ["abcdefgh" * 12500, "a" * 100_000, "the cat " * 12500])
def test_long_texts_equal_sentencepiece(real_data: Path, text: str) -> None:
    import sentencepiece

    folder = real_data / "tokenizers"
    path = folder / "llama2_tokenizer.bin"
    ours = Llama2cTokenizer(read_binary_vocab(path, path.read_bytes()))
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder / "llama2_tokenizer.model"))
    assert ours.encode_ordinary(text) == library.encode(text)
