from pathlib import Path

import pytest
from hypothesis import given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.tokenizers.sentencepiece_model import SentencePieceTokenizer
from tests.tokenizers.texts import CONTROL_TEXTS, byte_texts, unicode_texts
from tests.tokenizers.vocabularies import train_sentencepiece


def test_what_it_says_of_itself(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (
        340,
        1,
        {2},
        True,
    )
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert [tokenizer.decode_bytes(i) for i in (0, 1, 2, 3, 258)] == [b"", b"", b"", b"\0", b"\xff"]


@given(text=unicode_texts)
def test_equals_the_binary_file(tokenizers: dict[str, Tokenizer], text: str) -> None:
    # Only SentencePiece reads a typed ▁ as a space, and only run.c can merge text to a byte piece.
    text = text.replace("▁", "").replace("<0x", "")
    expected = tokenizers["llama2 bin"].encode(text, bos=True)
    assert tokenizers["sentencepiece"].encode(text, bos=True) == expected


@given(text=byte_texts)
def test_bytes_come_back(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers["sentencepiece"]
    back = b"".join(map(tokenizer.decode_bytes, tokenizer.encode(text, bos=True)))
    assert back == (b" " if text else b"") + text_to_bytes(text).replace("▁".encode(), b" ")


def test_bytes_without_byte_pieces_become_unknown() -> None:
    model = train_sentencepiece(byte_fallback=False, vocab_size=80)
    tokenizer = SentencePieceTokenizer(Path("t.model"), model)
    assert tokenizer.encode_ordinary("a\udcff") == tokenizer.encode_ordinary("a\ufffd")


@pytest.mark.parametrize("text", CONTROL_TEXTS)
def test_text_never_becomes_a_control_token(tokenizers: dict[str, Tokenizer], text: str) -> None:
    tokenizer = tokenizers["sentencepiece"]
    assert not set(tokenizer.encode_ordinary(text)) & set(tokenizer.special_tokens.values())
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


def test_pieces_of_users_that_are_control_tokens() -> None:
    """Some models have `<|im_end|>` as a piece that text becomes."""
    model = train_sentencepiece(user_defined_symbols=["<|im_end|>", "[END]", "<tool>"])
    config = {"eos_token": "[END]"}
    tokenizer = SentencePieceTokenizer(Path("t.model"), model, config)
    ids = set(tokenizer.encode_ordinary("a<|im_end|>[END]<tool>"))
    names = tokenizer.special_tokens
    assert not ids & set(names.values())
    assert names.keys() >= {"<|im_end|>", "[END]"}
    assert tokenizer.eos_ids == {2, names["<|im_end|>"], names["[END]"]}
    assert "<tool>" not in names
    assert tokenizer.decode([i for i in ids if tokenizer.decode_bytes(i) == b"<tool>"]) == "<tool>"


def test_special_texts_are_parsed_on_request(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["sentencepiece"]
    ids = tokenizer.encode("<s>the</s>", special=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert ids[1:-1] == tokenizer.encode_ordinary("the")


def test_a_vocabulary_without_bos() -> None:
    tokenizer = SentencePieceTokenizer(Path("t.model"), train_sentencepiece(bos_id=-1, eos_id=-1))
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (-1, frozenset(), False)
    assert tokenizer.encode("the", bos=True, eos=True) == tokenizer.encode_ordinary("the")
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


def test_a_vocabulary_without_a_space_in_front() -> None:
    tokenizer = SentencePieceTokenizer(Path("t.model"), train_sentencepiece(add_dummy_prefix=False))
    for text in ("the", " the", "  "):
        assert tokenizer.decode(tokenizer.encode(text, bos=True)) == text


def test_what_huggingface_says_of_it(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.tokenizer.model"
    path.write_bytes(files["sentencepiece"].read_bytes())
    config = tmp_path / "m.tokenizer_config.json"
    config.write_text('{"add_bos_token": false, "eos_token": {"content": "<unk>"}}', "utf-8")
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_ids) == (1, False, {0, 2})
    config.write_text('{"add_bos_token": true, "eos_token": "the"}', "utf-8")
    assert (load_tokenizer(path).adds_bos, load_tokenizer(path).eos_ids) == (True, {2})
    config.rename(tmp_path / "tokenizer_config.json")  # of another file
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}', "utf-8")
    assert load_tokenizer(path).adds_bos


@pytest.mark.parametrize("damage", ["empty", "cut", "no pieces", "noise"])
def test_damaged_files(
    files: dict[str, Path], tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = files["sentencepiece"].read_bytes()
    damaged = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "no pieces": b"\n\x00",
        "noise": b"\n\x05\n\x09abc",
    }[damage]
    with pytest.raises(TokenizerError, match="expected a SentencePiece model, found"):
        SentencePieceTokenizer(tmp_path / "t.model", damaged)
    assert capfd.readouterr() == ("", "")


@pytest.mark.real
def test_real_vocabulary_equals_the_binary_file(real_data: Path) -> None:
    folder = real_data / "tokenizers"
    model = load_tokenizer(folder / "llama2_tokenizer.model", 32000)
    binary = load_tokenizer(folder / "llama2_tokenizer.bin", 32000)
    text = (real_data / "data" / "tinystories_valid.txt").read_text("utf-8")[:50_000]
    assert model.encode(text, bos=True) == binary.encode(text, bos=True)
    for start in range(0, 0x110000, 0x1000):
        characters = [
            c for c in map(chr, range(start, start + 0x200)) if c != "▁" and not "\ud800" <= c <= "\udfff"
        ]
        text = " ".join(c * 2 for c in characters)
        assert model.encode(text) == binary.encode(text), hex(start)
