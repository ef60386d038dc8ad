"""Fixtures for all rooms: tiny random models and vocabularies made on the spot, and a home of their own."""

import os
from pathlib import Path

import pytest

from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.tiny import TINY, random_weights, write_tokenizer_bin

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own files or settings."""
    home = tmp_path_factory.mktemp("home")
    for name in [
        name for name in os.environ if name.startswith("LLAMATUI_") and name != "LLAMATUI_TEST_DATA"
    ]:
        monkeypatch.delenv(name)
    for name, folder in {
        "HOME": "",
        "XDG_CONFIG_HOME": "c",
        "XDG_DATA_HOME": "d",
        "XDG_CACHE_HOME": "k",
    }.items():
        monkeypatch.setenv(name, str(home / folder))
    return home


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real models, tokenizers and vectors: LLAMATUI_TEST_DATA, or `shared` beside the repository."""
    folder = Path(os.environ.get("LLAMATUI_TEST_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "vectors").is_dir():
        pytest.skip("no real data: set LLAMATUI_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random version-0 model of 300 tokens, context 64, with a tokenizer.bin next to it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder / "tiny.bin", TINY, 0, random_weights(TINY, seed=1))
    write_tokenizer_bin(folder / "tokenizer.bin", TINY.vocab_size)
    return folder / "tiny.bin"
