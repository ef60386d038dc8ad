"""Tokenizers written for Hugging Face."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from llamatui.backends.checkpoint import ModelConfig
from llamatui.export.tokenizer_files import (
    for_hf,
    from_file,
    from_folder,
)
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, Message
from llamatui.tokenizers.chat_templates import format_of
from llamatui.tokenizers.loading import load_tokenizer
from tests.export.small_tokenizers import (
    LLAMA3_JSON,
    PIECES,
    SMOLLM_JSON,
    SMOLLM_SIZE,
    SPM,
    SPM_JSON,
    TEXT,
    loaded,
)
from tests.tokenizers import vocabularies as v
from tests.tokenizers.genuine_templates import SMOLLM2_INSTRUCT

KINDS = {
    "sentencepiece": "llama2",
    "sentencepiece json": "zephyr",
    "llama2 bin": "zephyr",
    "tiktoken": "llama3",
    "llama3 bin": "llama3",
    "llama3 json": "llama3",
    "smollm json": "chatml",
}
"""Of tokenizer, and a chat format that goes with it."""


def tokenizer_file(kind: str, folder: Path) -> Path:
    if kind == "sentencepiece":
        (folder / "t.model").write_bytes(SPM)
        return folder / "t.model"
    if kind == "llama2 bin":
        return v.sentencepiece_as_bin(folder / "t.bin", SPM)
    if kind == "tiktoken":
        return v.write_tiktoken(folder / "t.model", PIECES)
    if kind == "llama3 bin":
        return v.write_llama3_bin(folder / "t.bin", PIECES)
    documents = {"sentencepiece json": SPM_JSON, "llama3 json": LLAMA3_JSON, "smollm json": SMOLLM_JSON}
    return v.write_json(folder / "t.json", documents[kind])


def hf_folder(kind: str, folder: Path) -> tuple[Tokenizer, Path]:
    """Our tokenizer, and a folder for Hugging Face made of its file."""
    path = tokenizer_file(kind, folder)
    tokenizer = load_tokenizer(path)
    size = tokenizer.vocab_size
    config = ModelConfig(32, 48, 2, 4, 2, size, 64, chat_format=KINDS[kind])
    out = folder / "hf"
    out.mkdir()
    for name, data in for_hf(from_file(path, size), config).items():
        (out / name).write_bytes(data)
    v.write_json(out / "config.json", {"model_type": "llama", "vocab_size": size})
    return tokenizer, out


@pytest.mark.parametrize("kind", KINDS)
def test_for_huggingface(tmp_path: Path, kind: str) -> None:
    tokenizer, out = hf_folder(kind, tmp_path)
    is_spm = "sentencepiece" in kind or kind == "llama2 bin"
    names = {"tokenizer.json", "tokenizer_config.json", "config.json"}
    assert {path.name for path in out.iterdir()} == names | ({"tokenizer.model"} if is_spm else set())
    config = json.loads((out / "tokenizer_config.json").read_bytes())
    assert format_of(config["chat_template"]) == KINDS[kind]
    assert config["model_max_length"] == 64
    assert config["add_bos_token"] is tokenizer.adds_bos
    assert tokenizer.special_tokens[config["bos_token"]] == tokenizer.bos_id
    end = {"llama2": "</s>", "zephyr": "</s>", "llama3": "<|eot_id|>", "chatml": "<|im_end|>"}[KINDS[kind]]
    assert config["eos_token"] == end
    # Each file by itself, and what is made of the folder, give our ids.
    for path in (out / "tokenizer.json", out / "tokenizer.model"):
        if path.exists():
            back = load_tokenizer(path, tokenizer.vocab_size)
            assert back.encode(TEXT, bos=True) == tokenizer.encode(TEXT, bos=True)
    back = loaded(from_folder(out, tokenizer.vocab_size), tmp_path / "back", tokenizer.vocab_size)
    assert back.encode(TEXT, bos=True) == tokenizer.encode(TEXT, bos=True)
    assert (back.bos_id, back.adds_bos) == (tokenizer.bos_id, tokenizer.adds_bos)
    assert back.eos_ids >= {tokenizer.special_tokens[end]}


def test_what_the_source_says_is_kept() -> None:
    config = ModelConfig(32, 48, 2, 4, 2, SMOLLM_SIZE, 64, chat_format="chatml")
    told = {
        "eos_token": "<|endoftext|>",
        "chat_template": SMOLLM2_INSTRUCT,
        "tokenizer_class": "GPT2Tokenizer",
    }
    document = json.dumps(v.smollm_document()).encode()
    made = for_hf({".tokenizer.json": document, ".tokenizer_config.json": json.dumps(told).encode()}, config)
    assert made["tokenizer.json"] == document
    assert json.loads(made["tokenizer_config.json"]).items() >= told.items()


def test_a_template_that_is_null_is_none() -> None:
    files = {
        ".tokenizer.json": json.dumps(SMOLLM_JSON).encode(),
        ".tokenizer_config.json": b'{"chat_template": null}',
    }
    config = ModelConfig(32, 48, 2, 4, 2, SMOLLM_SIZE, 64, chat_format="chatml")
    assert format_of(json.loads(for_hf(files, config)["tokenizer_config.json"])["chat_template"]) == "chatml"


def test_nothing_for_huggingface() -> None:
    assert for_hf({}, ModelConfig(32, 48, 2, 4, 2, 340, 64)) == {}


def test_a_unigram_model_has_no_json() -> None:
    model = v.train_sentencepiece(model_type="unigram", vocab_size=292)
    made = for_hf({".tokenizer.model": model}, ModelConfig(32, 48, 2, 4, 2, 292, 64))
    assert made.keys() == {"tokenizer.model", "tokenizer_config.json"}
    assert made["tokenizer.model"] == model
    assert "chat_template" not in json.loads(made["tokenizer_config.json"])


TEXTS = [TEXT, "  two  spaces", " ", "", "\n\n x", "日本 a\0b", "the cat " * 50]
CONVERSATION = [
    Message("system", "Be kind."),
    Message("user", "Hello"),
    Message("assistant", "Hi!"),
    Message("user", "More?"),
]


@pytest.fixture(scope="module")
def transformers() -> Iterable[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_our_ids(tmp_path: Path, transformers: Any, kind: str) -> None:
    tokenizer, out = hf_folder(kind, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert len(theirs) == tokenizer.vocab_size
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.encode(text) == tokenizer.encode(text, bos=tokenizer.adds_bos)
    turns = [{"role": message.role, "content": message.content} for message in CONVERSATION]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert ids == CHAT_FORMATS[KINDS[kind]].render(tokenizer, CONVERSATION)


@pytest.mark.real
@pytest.mark.parametrize("name", ["llama2_tokenizer.model", "llama2_tokenizer.bin", "llama3_tokenizer.model"])
def test_real_tokenizers_for_huggingface(real_data: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(real_data / "tokenizers" / name, tmp_path)
    tokenizer = load_tokenizer(tmp_path / name)
    config = ModelConfig(32, 48, 2, 4, 2, tokenizer.vocab_size, 64)
    data = for_hf(from_file(tmp_path / name, tokenizer.vocab_size), config)["tokenizer.json"]
    text = (real_data / "data" / "tinystories_valid.txt").read_text("utf-8")[:20_000]
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(data.decode())
    assert library.encode(text).ids == tokenizer.encode(text, bos=True)
