"""Vocabularies made here: Llama 2's settings, and any text comes back."""

import re
from pathlib import Path

import pytest
from hypothesis import given

from llamatui.errors import UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.tokenizers.sentencepiece_proto import PieceType, _fields, read_pieces
from llamatui.train import vocab
from llamatui.train.vocab import train_vocab
from tests.tokenizers.texts import unicode_texts

STORY = "Once upon a time, there was a little girl named Lily. She was 12, and loved to play.\n  The end!"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocab") / "tokenizer.model"
    path.write_bytes(train_vocab([STORY], 320))
    return load_tokenizer(path, 320)


@given(unicode_texts)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("▁", "")  # a space, to SentencePiece
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_it_is_like_llama_2s(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.adds_bos) == (1, {2}, True)
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert tokenizer.decode_bytes(3 + 0x0A) == b"\n"
    pieces = read_pieces(train_vocab([STORY], 320))
    assert [piece[2] for piece in pieces[3:259]] == [PieceType.BYTE] * 256
    texts = [piece[0] for piece in pieces]
    assert not any(len(text) > 1 and set("12") & set(text) for text in texts[259:])  # digits on their own
    assert "▁▁" in texts  # spaces are kept
    assert tokenizer.encode(" a") != tokenizer.encode("a")


@pytest.mark.real
def test_the_settings_are_llama_2s(real_data: Path) -> None:
    theirs = settings((real_data / "tokenizers" / "llama2_tokenizer.model").read_bytes())
    ours = settings(train_vocab([STORY], 320))
    of_size = {"4", "11", "18"}
    for number in ours.keys() - of_size:
        assert ours[number] == theirs[number], number
    assert {"3", "10", "25", "26", "35", "n1", "n4"} <= ours.keys()


def settings(model: bytes) -> dict[str, bytes]:
    """Fields of trainer_spec by number, and of normalizer_spec with an "n"."""
    specs = {number: value for number, value, _ in _fields(memoryview(model)) if number in (2, 3)}
    found = {}
    for prefix, spec in (("", specs[2]), ("n", specs[3])):
        assert isinstance(spec, memoryview)
        found |= {f"{prefix}{number}": bytes(raw) for number, _, raw in _fields(spec)}
    return found


def test_the_same_text_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where lines are chosen at random."""
    monkeypatch.setattr(vocab, "MAX_LINES", 101)  # the fewest that the library takes
    words = STORY.split() * 20
    lines = [f"{word} {other}" for word, other in zip(words, words[7:], strict=False)]
    assert train_vocab(lines, 300) == train_vocab(lines, 300)


@pytest.mark.parametrize(
    ("text", "size", "problem", "hint"),
    [
        (STORY, 259, "expected 260 to 524288, found 259", "always there"),
        (STORY, 1 << 20, "expected 260 to 524288, found 1048576", "always there"),
        ("hello world", 1000, "expected at most 2", "give more text, or --size 2"),
        ("".join(map(chr, range(0x4E00, 0x4E00 + 500))), 300, "expected at least 760", "--size 760"),
        ("", 300, "expected text, found none", "not empty"),
    ],
)
def test_a_size_that_does_not_fit_the_text(text: str, size: int, problem: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_vocab([text], size)
    assert problem in caught.value.message
    assert hint in caught.value.hint
    assert "src/" not in caught.value.message


@pytest.mark.parametrize(("text", "size"), [("hello world", 260), ("hello world", 1000)])
def test_the_size_of_the_hint_fits(text: str, size: int) -> None:
    with pytest.raises(UsageError) as caught:
        train_vocab([text], size)
    found = re.search(r"--size (\d+)", caught.value.hint)
    assert found
    assert train_vocab([text], int(found[1]))


def test_what_is_wrong_with_the_text_is_told_as_it_is() -> None:
    def documents():  # type: ignore[no-untyped-def]
        yield STORY
        raise UsageError("a.txt: expected UTF-8")

    with pytest.raises(UsageError, match=r"^a\.txt: expected UTF-8$"):
        train_vocab(documents(), 300)
