"""SentencePiece vocabularies in tokenizer.json: read with the library's ids, written with the same."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.hf_json import parse_hf_json, read_hf_json
from llamatui.tokenizers.hf_json_sentencepiece import sentencepiece_from_hf_json, sentencepiece_json
from llamatui.tokenizers.hf_json_writer import starts_with
from llamatui.tokenizers.loading import load_tokenizer, vocabulary_size
from llamatui.tokenizers.sentencepiece_model import SentencePieceTokenizer
from llamatui.tokenizers.sentencepiece_proto import PieceType, read_pieces
from tests.tokenizers.texts import byte_texts, unicode_texts
from tests.tokenizers.vocabularies import train_sentencepiece, write_json

MODEL = train_sentencepiece()
ORIGINAL = SentencePieceTokenizer(Path("t.model"), MODEL)


def written(model: bytes = MODEL, **options: Any) -> dict[str, Any]:
    options = {"unk_id": 0, "bos": "<s>", **options}
    return dict(json.loads(sentencepiece_json(read_pieces(model), **options)))


DOCUMENT = written()
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def load(document: object) -> Tokenizer:
    return read_hf_json(Path("tokenizer.json"), json.dumps(document).encode())


READ = load(DOCUMENT)


@given(text=byte_texts)
def test_there_and_back(text: str) -> None:
    assert READ.encode(text, bos=True) == ORIGINAL.encode(text, bos=True)


def test_what_is_read_back() -> None:
    assert (READ.format, READ.vocab_size, READ.bos_id, READ.adds_bos, READ.eos_ids) == (
        "sentencepiece", 340, 1, True, {2},
    )  # fmt: skip
    assert READ.special_tokens == ORIGINAL.special_tokens
    assert [READ.decode_bytes(i) for i in range(340)] == [ORIGINAL.decode_bytes(i) for i in range(340)]


def test_the_ids_of_the_tokenizers_library() -> None:
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(DOCUMENT))
    spaced = pytest.importorskip("tokenizers").Tokenizer.from_str(
        json.dumps(DOCUMENT | {"normalizer": None, "pre_tokenizer": METASPACE})
    )

    @given(text=unicode_texts)
    def same(text: str) -> None:
        # Theirs parses control tokens in text and puts a ▁ behind each, as ours does when asked to parse.
        ids = READ.encode(text, bos=True, special=True)
        assert library.encode(text).ids == ids
        assert library.decode(ids) == READ.decode(ids)
        # Metaspace has no ▁ in front of a space, nor behind a control token.
        if text[:1] not in (" ", "▁") and not any(name in text for name in READ.special_tokens):
            assert spaced.encode(text).ids == ids

    same()


@pytest.mark.parametrize(
    ("changes", "adds_space"),
    [
        ({"normalizer": None, "pre_tokenizer": METASPACE}, True),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "always"}}, True),
        ({"normalizer": None, "pre_tokenizer": METASPACE | {"prepend_scheme": "never"}}, False),
        ({"normalizer": DOCUMENT["normalizer"]["normalizers"][1]}, False),
    ],
)
def test_the_space_in_front(changes: dict[str, Any], adds_space: bool) -> None:
    tokenizer = load(DOCUMENT | changes)
    assert tokenizer.strips_space_after(None) is adds_space
    assert (tokenizer.encode("the cat") == ORIGINAL.encode("the cat")) is adds_space


def test_merges_as_text() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["model"]["merges"] = [" ".join(merge) for merge in DOCUMENT["model"]["merges"]]
    assert load(document).encode("the cat went there") == ORIGINAL.encode("the cat went there")


def test_loading_and_size(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.tokenizer.json", DOCUMENT)
    write_json(tmp_path / "m.tokenizer_config.json", {"add_bos_token": False, "eos_token": "<s>"})
    tokenizer = load_tokenizer(path, 340)
    assert vocabulary_size(path) == 340
    assert (tokenizer.bos_id, tokenizer.adds_bos, tokenizer.eos_ids) == (1, False, {1, 2})


def test_no_bos_without_a_post_processor() -> None:
    tokenizer = load(DOCUMENT | {"post_processor": None})
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (1, False)


def added(*tokens: tuple[int, str, bool]) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document["added_tokens"] += [
        {"id": i, "content": text, "special": special} for i, text, special in tokens
    ]
    return document


def test_added_tokens() -> None:
    """Special ones and those that look it are never typed; others are; holes are filled."""
    document = added((340, "<pad>", True), (341, "<|im_end|>", False), (343, "my tool", False))
    tokenizer = load(document)
    assert tokenizer.vocab_size == 344
    assert tokenizer.special_tokens.keys() == {
        "<unk>", "<s>", "</s>", "<pad>", "<|im_end|>", "<|unused_0|>",
    }  # fmt: skip
    assert tokenizer.eos_ids == {2, 341}
    ids = tokenizer.encode_ordinary("the <pad><|im_end|> my tool")
    assert not {340, 341, 342} & set(ids)
    assert ids[-1] == 343
    assert tokenizer.decode_bytes(343) == b"my tool"
    assert tokenizer.decode_bytes(341) == b""


@pytest.mark.parametrize("config", [{"eos_token": "[END]"}, {"bos_token": {"content": "[END]"}}])
def test_what_is_named_an_end_or_begin_is_never_typed(config: dict[str, Any], tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.tokenizer.json", added((340, "[END]", False)))
    assert load_tokenizer(path).encode("a [END]")[-1] == 340  # nobody says so
    write_json(tmp_path / "m.tokenizer_config.json", config)
    tokenizer = load_tokenizer(path)
    assert 340 not in tokenizer.encode("a [END]")
    assert tokenizer.special_tokens["[END]"] == 340
    assert (340 in tokenizer.eos_ids) == ("eos_token" in config)


def test_a_bos_that_the_document_names_is_never_typed() -> None:
    document = added((340, "[BOS]", False))
    document["post_processor"] = starts_with("[BOS]", 340)
    tokenizer = load(document)
    assert 340 not in tokenizer.encode("a [BOS]")
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (340, True)


def test_what_looks_like_a_control_token_in_the_vocabulary_is_never_typed() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["model"]["vocab"] |= {"<|": 340, "<|x": 341, "|>": 342, "|": 343, "x": 344, "<": 345, ">": 346}
    document["model"]["vocab"]["<|x|>"] = 347
    document["model"]["merges"] += [["<", "|"], ["<|", "x"], ["|", ">"], ["<|x", "|>"]]
    tokenizer = load(document)
    assert 347 not in tokenizer.encode("<|x|>")
    assert tokenizer.special_tokens["<|x|>"] == 347


def test_many_renamed_tokens_are_not_searched_one_by_one() -> None:
    n = 200_000  # which takes minutes
    document = added(*((340 + i, f"<|{i}|>", True) for i in range(n)))
    document["model"]["vocab"] = {f"x{i}": 340 + i for i in range(n)}
    with pytest.raises(TokenizerError, match="found 0 byte tokens"):
        sentencepiece_from_hf_json(document)


def test_another_unknown_token() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["model"]["unk_token"] = None
    assert load(document).encode("the") == ORIGINAL.encode("the")
    document["model"]["unk_token"] = "<s>"
    document["post_processor"] = None
    kinds = [piece[2] for piece in read_pieces(sentencepiece_from_hf_json(document))]
    assert kinds[:3] == [PieceType.CONTROL, PieceType.UNKNOWN, PieceType.CONTROL]


def with_merges(merges: object) -> dict[str, Any]:
    return DOCUMENT | {"model": DOCUMENT["model"] | {"merges": merges}}


MERGES = DOCUMENT["model"]["merges"]
TWO_WAYS = next(i for i in range(len(MERGES)) if "".join(MERGES[i]) == "".join(MERGES[i + 1]))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (with_merges(MERGES[1:]), "found no merge of"),
        (with_merges([*MERGES[:TWO_WAYS], *MERGES[TWO_WAYS + 1 :], MERGES[TWO_WAYS]]), "in two places"),
        (with_merges([["a"]]), "damaged"),
        (with_merges(5), "damaged"),
        (DOCUMENT | {"normalizer": None}, "leaves spaces alone"),
        (DOCUMENT | {"normalizer": {"type": "NFKC"}}, "the normalizer"),
        (DOCUMENT | {"pre_tokenizer": METASPACE | {"split": True}}, "Metaspace"),
        (DOCUMENT | {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}}, "Metaspace"),
        (DOCUMENT | {"pre_tokenizer": {"type": "ByteLevel"}}, "ByteLevel"),
        (DOCUMENT | {"pre_tokenizer": {}}, "damaged"),
        (DOCUMENT | {"model": DOCUMENT["model"] | {"ignore_merges": True}}, "ignore_merges"),
        (DOCUMENT | {"model": DOCUMENT["model"] | {"dropout": 0.5}}, "dropout"),
        (DOCUMENT | {"model": DOCUMENT["model"] | {"vocab": {"<unk>": 0}}}, "0 byte tokens"),
        (added((340, "▁the", True)), "all different"),
        (added((339, "other", False)), "one token at id 339"),
        (added((1 << 60, "a", True)), "token ids"),
        (added((-1, "a", True)), "token ids"),
        (DOCUMENT | {"added_tokens": 5}, "damaged"),
        (DOCUMENT | {"added_tokens": [{"id": 340}]}, "damaged"),
    ],
)
def test_what_is_refused(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(TokenizerError, match=problem) as raised:
        load(document)
    assert raised.value.message.startswith("tokenizer.json: expected")
    assert raised.value.hint


def test_huge_tokens_are_refused() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["model"]["vocab"]["a" * 1_000_000] = 340
    with pytest.raises(TokenizerError, match="tokens of up to 1000000 characters"):
        load(document)


@pytest.mark.real
def test_llama2(real_data: Path) -> None:
    path = real_data / "tokenizers" / "llama2_tokenizer.model"
    original = load_tokenizer(path, 32000)
    data = sentencepiece_json(read_pieces(path.read_bytes()), unk_id=0, bos="<s>")
    back = SentencePieceTokenizer(path, sentencepiece_from_hf_json(parse_hf_json(data)))
    text = (real_data / "data" / "tinystories_valid.txt").read_text("utf-8")[:50_000]
    odd = "".join(chr(c) for c in range(0x20, 0x30000, 7) if not 0xD800 <= c < 0xE000)
    for sample in (text, odd, "  a \n\n b\t\r\n", " "):
        assert back.encode(sample) == original.encode(sample)
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(data.decode())
    assert library.encode(text).ids == original.encode(text, bos=True)
