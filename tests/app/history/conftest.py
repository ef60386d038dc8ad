"""Models for stories and chats, and what a room would do with them."""

from dataclasses import replace
from pathlib import Path

import pytest

from llamatui.app.conversation import Conversation
from llamatui.app.history import recorder as recorder_module
from llamatui.app.history.recorder import Recorder
from llamatui.app.history.snapshot import Document
from llamatui.app.model import LoadedModel, load_model
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story
from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.app.history.writing import Told
from tests.tiny import TINY, random_weights, write_tokenizer_bin


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny(tmp_path_factory.mktemp("first"), 300)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """One of another vocabulary: it knows fewer pieces."""
    return tiny(tmp_path_factory.mktemp("second"), 270)


def tiny(folder: Path, vocab_size: int) -> LoadedModel:
    config = replace(TINY, max_seq_len=512, vocab_size=vocab_size)
    write_checkpoint(folder / "tiny.bin", config, 0, random_weights(config, seed=1))
    write_tokenizer_bin(folder / "tokenizer.bin", vocab_size)
    return load_model(folder / "tiny.bin", backend="numpy", threads=1, chat_format="llama2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def story(model: LoadedModel) -> Document:
    return Document(Story(model, 64, "stop"), Sampling(seed=3, temperature=0.5))


@pytest.fixture
def chat(model: LoadedModel) -> Document:
    return Document(Conversation(model, "be kind"), Sampling(), "abc")


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def recorder(path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(recorder_module, "RETRY", 0.01)
    return Recorder(path, told.append, interval=0)
