"""Tokenizers of folders and of models, made to fit the model."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llamatui.backends.checkpoint import ModelConfig
from llamatui.errors import CheckpointError, TokenizerError
from llamatui.export.tokenizer_files import (
    MAX_PADDING,
    beside,
    for_hf,
    from_file,
    from_folder,
    with_token_ids,
)
from llamatui.tokenizers.hf_json import MAX_ELEMENTS
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.tokenizers.sentencepiece_proto import PieceType, read_pieces
from tests.export.small_tokenizers import (
    PIECES,
    RANKS_SIZE,
    SMOLLM_JSON,
    SMOLLM_SIZE,
    SPM,
    SPM_JSON,
    TEXT,
    loaded,
)
from tests.tokenizers import vocabularies as v
from tests.tokenizers.genuine_templates import SMOLLM2_INSTRUCT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "above" / "model"
    folder.mkdir(parents=True)
    return folder


def added_token(token: int, text: str, special: bool = True) -> dict[str, Any]:
    return {"id": token, "content": text, "special": special}


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    v.write_json(folder / "tokenizer_config.json", {"bos_token": "<s>"})
    assert from_folder(folder, 340) == {}


def test_an_added_token_that_is_no_text_is_left_out(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    half = '{"added_tokens_decoder": {"340": {"content": "a\\ud800b", "special": true}}}'
    (folder / "tokenizer_config.json").write_text(half)
    assert ".tokenizer.model" in from_folder(folder, 341)


def test_sentencepiece_as_it_is(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    assert from_folder(folder, 340) == {".tokenizer.model": SPM}
    v.write_json(folder / "tokenizer.json", SPM_JSON)  # says nothing new
    assert from_folder(folder, 340) == {".tokenizer.model": SPM}


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_sentencepiece_with_added_tokens(folder: Path, tmp_path: Path, where: str) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    names = {340: "<|im_end|>", 341: "<|im_start|>", 345: "<s>", 400: "<far>"}
    content = {
        "tokenizer.json": {"added_tokens": [added_token(i, text, False) for i, text in names.items()]},
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(i): {"content": text} for i, text in names.items()}
        },
        "added_tokens.json": {text: i for i, text in names.items()},
    }[where]
    v.write_json(folder / where, content)
    files = from_folder(folder, 350)
    tokenizer = loaded(files, tmp_path / "out", 350)
    assert tokenizer.special_tokens["<|im_end|>"] == 340
    assert tokenizer.special_tokens["<s>"] == 1
    assert tokenizer.eos_ids == {2, 340}
    assert "<|unused_0|>" in tokenizer.special_tokens
    assert "<far>" not in tokenizer.special_tokens
    assert tokenizer.encode(TEXT) == load_tokenizer(folder / "tokenizer.model").encode(TEXT)
    assert files.keys() - {".tokenizer_config.json"} == {".tokenizer.model"}


NEVER_TYPED: dict[str, dict[str, object]] = {
    "special": {
        "tokenizer_config.json": {"added_tokens_decoder": {"259": {"content": "[END]", "special": True}}}
    },
    "under another name": {
        "tokenizer_config.json": {"added_tokens_decoder": {"259": {"content": "[A]", "special": True}}}
    },
    "special in one file": {
        "tokenizer_config.json": {"added_tokens_decoder": {"259": {"content": "[END]", "special": True}}},
        "tokenizer.json": {"added_tokens": [{"id": "259", "content": "[END]", "special": False}]},
    },
    "special at another id": {
        "tokenizer_config.json": {"added_tokens_decoder": {"100": {"content": "[END]", "special": True}}}
    },
    "eos": {"tokenizer_config.json": {"eos_token": "[END]"}},
    "bos": {"tokenizer_config.json": {"bos_token": {"content": "[END]"}}},
    "in the map": {"special_tokens_map.json": {"additional_special_tokens": ["[END]"]}},
    "eos in the map": {"special_tokens_map.json": {"eos_token": {"content": "[END]"}}},
}


@pytest.mark.parametrize("case", NEVER_TYPED)
def test_pieces_of_the_model_that_nobody_may_type(folder: Path, tmp_path: Path, case: str) -> None:
    model = v.train_sentencepiece(user_defined_symbols=["[END]", "<|im_end|>", "<tool>"])
    token = [piece[0] for piece in read_pieces(model)].index("[END]")
    (folder / "tokenizer.model").write_bytes(model)
    before = loaded(from_folder(folder, 340), tmp_path / "before", 340)
    assert token in before.encode("a [END]")
    for name, content in NEVER_TYPED[case].items():
        text = json.dumps(content).replace('"id": "259"', f'"id": {token}').replace('"259"', f'"{token}"')
        (folder / name).write_text(text)
    tokenizer = loaded(from_folder(folder, 340), tmp_path / "out", 340)
    assert token not in tokenizer.encode("a [END]")
    assert tokenizer.special_tokens["[END]"] == token
    if "eos" in case:
        assert token in tokenizer.eos_ids
    assert tokenizer.special_tokens["<|im_end|>"] not in tokenizer.encode("<|im_end|>")
    assert "<tool>" not in tokenizer.special_tokens
    assert tokenizer.encode(TEXT) == before.encode(TEXT)


def test_added_tokens_that_a_newer_file_calls_text(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    v.write_json(folder / "added_tokens.json", {"<think>": 340})
    v.write_json(folder / "tokenizer.json", {"added_tokens": [added_token(340, "<think>", False)]})
    assert loaded(from_folder(folder, 341), tmp_path / "out", 341).encode("<think>")[-1] == 340


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_an_added_end_is_never_typed(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    v.write_json(folder / "tokenizer.json", {"added_tokens": [added_token(340, "[END]", False)]})
    v.write_json(folder / name, {"eos_token": "[END]"})
    tokenizer = loaded(from_folder(folder, 341), tmp_path / "out", 341)
    assert 340 not in tokenizer.encode("a [END]")
    assert tokenizer.eos_ids == {2, 340}


def test_what_a_file_beside_a_model_makes_of_control_tokens(tmp_path: Path) -> None:
    model = v.train_sentencepiece(user_defined_symbols=["<|im_end|>"])
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = loaded(from_file(tmp_path / "tokenizer.model", 340), tmp_path / "out", 340)
    assert tokenizer.special_tokens["<|im_end|>"] not in tokenizer.encode("<|im_end|>")
    made = for_hf({".tokenizer.model": model}, ModelConfig(32, 48, 2, 4, 2, 340, 64))
    kinds = {piece[0]: piece[2] for piece in read_pieces(made["tokenizer.model"])}
    assert kinds["<|im_end|>"] is PieceType.CONTROL
    tokens = {
        token["content"]: token["special"] for token in json.loads(made["tokenizer.json"])["added_tokens"]
    }
    assert tokens["<|im_end|>"]


def test_added_tokens_that_are_text(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    v.write_json(folder / "tokenizer.json", {"added_tokens": [added_token(340, "<think>", False)]})
    tokenizer = loaded(from_folder(folder, 341), tmp_path / "out", 341)
    assert tokenizer.encode("<think>")[-1] == 340
    assert tokenizer.decode_bytes(340) == b"<think>"


def test_tokens_that_a_json_calls_otherwise(folder: Path, tmp_path: Path) -> None:
    """Fine-tunes rename tokens: then the JSON is right."""
    (folder / "tokenizer.model").write_bytes(SPM)
    document = json.loads(json.dumps(SPM_JSON))
    del document["model"]["vocab"][SPM_PIECES[339]]
    document["model"]["merges"] = [
        pair for pair in document["model"]["merges"] if SPM_PIECES[339] not in (*pair, "".join(pair))
    ]
    document["added_tokens"].append(added_token(339, "<|im_end|>"))
    v.write_json(folder / "tokenizer.json", document)
    tokenizer = loaded(from_folder(folder, 340), tmp_path / "out", 340)
    assert tokenizer.special_tokens["<|im_end|>"] == 339


SPM_PIECES = [piece[0] for piece in read_pieces(SPM)]


@pytest.mark.parametrize("size", [340, 352])
def test_sentencepiece_in_json(folder: Path, tmp_path: Path, size: int) -> None:
    v.write_json(folder / "tokenizer.json", SPM_JSON)
    files = from_folder(folder, size)
    tokenizer = loaded(files, tmp_path / "out", size)
    assert tokenizer.format == "sentencepiece"
    assert (tokenizer.bos_id, tokenizer.adds_bos) == (1, True)
    assert tokenizer.encode(TEXT) == loaded({".tokenizer.model": SPM}, tmp_path / "as is", 340).encode(TEXT)


def test_a_sentencepiece_vocabulary_without_bos_in_front(folder: Path, tmp_path: Path) -> None:
    v.write_json(folder / "tokenizer.json", SPM_JSON | {"post_processor": None})
    assert not loaded(from_folder(folder, 340), tmp_path / "out", 340).adds_bos


def test_byte_level_json_as_it_is(folder: Path) -> None:
    path = v.write_json(folder / "tokenizer.json", v.smollm_document())
    assert from_folder(folder, SMOLLM_SIZE) == {".tokenizer.json": path.read_bytes()}
    v.write_json(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    files = from_folder(folder, SMOLLM_SIZE)
    assert json.loads(files[".tokenizer_config.json"]) == {"eos_token": "<|im_end|>"}


def test_byte_level_json_is_padded(folder: Path, tmp_path: Path) -> None:
    document = json.loads(json.dumps(SMOLLM_JSON))
    document["added_tokens"].append(
        document["added_tokens"][0] | {"id": SMOLLM_SIZE, "content": "<|unused_0|>"}
    )
    v.write_json(folder / "tokenizer.json", document)
    files = from_folder(folder, SMOLLM_SIZE + 3)
    tokenizer = loaded(files, tmp_path / "out", SMOLLM_SIZE + 3)
    assert [text for text in tokenizer.special_tokens if "unused" in text] == [
        "<|unused_0|>", "<|unused_1|>", "<|unused_2|>",
    ]  # fmt: skip
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(files[".tokenizer.json"].decode())
    assert library.get_vocab_size() == SMOLLM_SIZE + 3
    assert library.token_to_id("<|unused_2|>") == SMOLLM_SIZE + 2


def test_added_tokens_without_an_embedding_are_left_out(folder: Path, tmp_path: Path) -> None:
    document = v.smollm_document()
    document["added_tokens"] += [added_token(SMOLLM_SIZE + i, f"<pad{i}>") for i in range(2)]
    document["model"]["vocab"]["<pad1>"] = SMOLLM_SIZE + 1
    v.write_json(folder / "tokenizer.json", document)
    decoder = {str(token["id"]): token for token in document["added_tokens"]}
    v.write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    files = from_folder(folder, SMOLLM_SIZE)
    tokenizer = loaded(files, tmp_path / "out", SMOLLM_SIZE)
    assert "<pad0>" not in tokenizer.special_tokens
    config = json.loads(files[".tokenizer_config.json"])
    assert config["added_tokens_decoder"].keys() == {"0", "1", "2"}


def test_a_chat_template_in_a_file_of_its_own(folder: Path) -> None:
    v.write_json(folder / "tokenizer.json", v.smollm_document())
    (folder / "chat_template.jinja").write_text(SMOLLM2_INSTRUCT, "utf-8")
    config = json.loads(from_folder(folder, SMOLLM_SIZE)[".tokenizer_config.json"])
    assert config["chat_template"] == SMOLLM2_INSTRUCT
    v.write_json(folder / "tokenizer_config.json", {"chat_template": "an older one"})
    config = json.loads(from_folder(folder, SMOLLM_SIZE)[".tokenizer_config.json"])
    assert config["chat_template"] == SMOLLM2_INSTRUCT


@pytest.mark.parametrize("where", ["tokenizer.model", "original/tokenizer.model", "../tokenizer.model"])
def test_llama3(folder: Path, where: str) -> None:
    (folder / "original").mkdir()
    path = v.write_tiktoken(folder / where, PIECES)
    assert from_folder(folder, RANKS_SIZE) == {".tokenizer.model": path.read_bytes()}
    if where != "../tokenizer.model":  # which may be of anything
        with pytest.raises(TokenizerError, match=f"expected {RANKS_SIZE + 1} tokens.* found {RANKS_SIZE}"):
            from_folder(folder, RANKS_SIZE + 1)
    # A JSON beside it knows the names that a fine-tune gave to special tokens.
    document = v.llama3_document(PIECES)
    document["added_tokens"][5]["content"] = "<|im_end|>"
    v.write_json(folder / "tokenizer.json", document)
    assert from_folder(folder, RANKS_SIZE).keys() == {".tokenizer.json"}


def test_llama2_of_meta(folder: Path) -> None:
    (folder.parent / "tokenizer.model").write_bytes(SPM)
    assert from_folder(folder, 340) == {".tokenizer.model": SPM}
    assert from_folder(folder, 341) == {}


@pytest.mark.parametrize("size", [339, 340 + MAX_PADDING + 1, 1 << 24])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_another_size(folder: Path, name: str, size: int) -> None:
    if name == "tokenizer.model":
        (folder / name).write_bytes(SPM)
    else:
        v.write_json(folder / name, SPM_JSON)
    with pytest.raises(
        TokenizerError, match=f"expected {size} tokens, as the model has, found 340"
    ) as raised:
        from_folder(folder, size)
    assert raised.value.message.startswith(str(folder / name))
    assert raised.value.hint


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    # Who reads all pieces finds that the file is damaged behind them.
    "pieces": (
        {"tokenizer.model": SPM + b"\n\x00" * (MAX_PADDING + 1) + b"\x80" * 20},
        f"at most {MAX_PADDING + 340} pieces, found more",
    ),
    "tokens of the same id": (
        {"tokenizer.json": {"model": {"merges": [], "vocab": {f"{i}": i % 340 for i in range(341)}}}},
        "expected 340 tokens, as the model has, found 341",
    ),
    "added tokens": (
        {"tokenizer.json": {"added_tokens": [added_token(1, "a")] * 341, "model": {"vocab": {"a": 0}}}},
        "expected 340 tokens, as the model has, found 341",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_more_tokens_than_the_model_has_are_refused(folder: Path, case: str) -> None:
    """Before they are looked at: there may be millions."""
    files, problem = HOSTILE[case]
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    with pytest.raises(TokenizerError, match=problem) as raised:
        from_folder(folder, 340)
    assert raised.value.message.startswith(str(folder))
    assert raised.value.hint


@pytest.mark.parametrize(("n_others", "is_read"), [(1000, True), (MAX_ELEMENTS, False)])
def test_a_json_of_millions_of_values_beside_a_model_is_not_read(
    folder: Path, n_others: int, is_read: bool
) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    token = b'{"id":340,"content":"<a>","special":true}'
    others = b"[]," * (n_others // 2)
    (folder / "tokenizer.json").write_bytes(b'{"others":[%s[]],"added_tokens":[%s]}' % (others, token))
    *_, (added, _, _) = read_pieces(from_folder(folder, 341)[".tokenizer.model"])
    assert (added == "<a>") is is_read


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"])
def test_small_files_are_refused_if_they_are_large(folder: Path, name: str) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    with (folder / name).open("wb") as file:
        file.truncate(50 << 30)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="expected at most 4,194,304 bytes"):
        from_folder(folder, 340)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


DAMAGED = {
    "tokenizer.model": [b"", b"version https://git-lfs", SPM[:1000], b"\n\x05\n\x09abc"],
    "tokenizer.json": [
        b"", b"{}", b"[" * 100_000, b'{"model": {"vocab": {"a": 1180591620717411303424}}}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": 5}',
        b'{"model": {"vocab": {"a": 0}, "byte_fallback": true}, "added_tokens": [{"id": [], "content": 5}]}',
        b'{"model": {"vocab": {"a": NaN}}}',
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data"), [(name, data) for name, all_data in DAMAGED.items() for data in all_data]
)
def test_damaged_files(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(TokenizerError) as raised:
        from_folder(folder, 340)
    assert raised.value.message.startswith(str(folder / name))
    assert raised.value.hint


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"added_tokens_decoder": 5}', b'{"a": {"id": "x"}}'])
def test_damaged_files_beside_it_say_nothing(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (folder / name).write_bytes(data)
    assert from_folder(folder, 340)[".tokenizer.model"] == SPM


@pytest.mark.parametrize(
    "content", [{"added_tokens_decoder": 5}, {"added_tokens_decoder": {"0": 5}}, {"eos_token": 5}]
)
def test_odd_values_in_a_config_say_nothing(folder: Path, content: object) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    v.write_json(folder / "tokenizer_config.json", content)
    assert from_folder(folder, 340)[".tokenizer.model"] == SPM


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"version https://git-lfs"])
def test_a_damaged_config_is_told(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(SPM)
    (folder / "tokenizer_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: expected"):
        from_folder(folder, 340)


def test_beside_a_model(tmp_path: Path) -> None:
    model = tmp_path / "story.bin"
    model.write_bytes(b"")
    assert beside(model, 340) == {}
    binary = v.sentencepiece_as_bin(tmp_path / "tokenizer.bin", SPM)
    assert beside(model, 340) == {".tokenizer.bin": binary.read_bytes()}
    assert beside(model, 341) == {}
    v.write_json(tmp_path / "story.tokenizer.json", v.smollm_document())
    v.write_json(tmp_path / "story.tokenizer_config.json", {"eos_token": "x"})
    files = beside(model, SMOLLM_SIZE)
    assert files.keys() == {".tokenizer.json", ".tokenizer_config.json"}
    with pytest.raises(TokenizerError, match=f"expected 5 tokens.* found {SMOLLM_SIZE}"):
        from_file(tmp_path / "story.tokenizer.json", 5)


@pytest.mark.parametrize("name", ["vocabulary.model", "other.tokenizer.model"])
def test_a_file_with_no_telling_name_does_not_become_the_models_own(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SPM)
    assert beside(tmp_path / "story.bin", 340) == {}
    (tmp_path / "tok340.model").write_bytes(SPM)
    assert beside(tmp_path / "story.bin", 340) == {".tokenizer.model": SPM}


def test_ids_that_the_tokenizer_knows() -> None:
    config = ModelConfig(32, 48, 2, 4, 2, 340, 64)
    assert with_token_ids(config, {}) == config
    files = {".tokenizer.model": SPM}
    assert with_token_ids(config, files) == replace(config, bos_id=1, eos_ids=(2,))
    known = replace(config, bos_id=5, eos_ids=(7, 6))
    assert with_token_ids(known, files) == known
    assert with_token_ids(replace(known, bos_id=-1), files) == replace(known, bos_id=1)


def test_several_ends() -> None:
    document = v.llama3_document(PIECES)
    ends = sorted(document["added_tokens"][i]["id"] for i in (1, 8, 9))
    config = ModelConfig(32, 48, 2, 4, 2, RANKS_SIZE, 64)
    found = with_token_ids(config, {".tokenizer.json": json.dumps(document).encode()})
    assert (found.bos_id, found.eos_ids) == (len(PIECES), tuple(ends))
