"""Tokenizers of every format over small vocabularies."""

from pathlib import Path

import pytest
from hypothesis import settings

from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import load_tokenizer
from tests.tokenizers import vocabularies as v

settings.register_profile("tokenizers", deadline=None, derandomize=True, max_examples=150)
settings.load_profile("tokenizers")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One vocabulary like Llama 3's in three formats, one like Llama 2's in two, one like SmolLM2's."""
    folder = tmp_path_factory.mktemp("vocabularies")
    pieces = v.ranked_pieces()
    model = v.train_sentencepiece()
    (folder / "sentencepiece.model").write_bytes(model)
    return {
        "tiktoken": v.write_tiktoken(folder / "tiktoken.model", pieces),
        "llama3 json": v.write_json(folder / "llama3.json", v.llama3_document(pieces)),
        "llama3 bin": v.write_llama3_bin(folder / "llama3.bin", pieces),
        "sentencepiece": folder / "sentencepiece.model",
        "llama2 bin": v.sentencepiece_as_bin(folder / "llama2.bin", model),
        "smollm json": v.write_json(folder / "smollm.json", v.smollm_document()),
    }


@pytest.fixture(scope="session")
def tokenizers(files: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(path) for name, path in files.items()}


ALL = ["tiktoken", "llama3 json", "llama3 bin", "sentencepiece", "llama2 bin", "smollm json"]


@pytest.fixture(scope="session", params=ALL)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers[request.param]
