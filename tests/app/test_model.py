"""Opening a model: what belongs to it, and the small public API."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import llamatui
from llamatui.app import model as model_module
from llamatui.app.model import file_sha256, load_model, user_tokenizers
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.errors import ModelError
from tests.tiny import TINY, random_weights, write_tokenizer_bin


def test_the_public_api(tiny_model: Path) -> None:
    model = llamatui.load(str(tiny_model), threads=1)
    text = llamatui.generate(model, "the", seed=3, max_tokens=10)
    assert text
    assert text == llamatui.generate(model, "the", seed=3, max_tokens=10)
    assert llamatui.__version__.startswith("0.")
    with pytest.raises(AttributeError):
        llamatui.nothing  # noqa: B018


def test_the_user_s_own_tokenizers_are_found_by_size(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m.bin", TINY, 0, random_weights(TINY))
    with pytest.raises(ModelError, match="no tokenizer of 300 tokens") as caught:
        load_model(tmp_path / "m.bin")
    assert "-z" in caught.value.hint
    user_tokenizers().mkdir(parents=True)
    write_tokenizer_bin(user_tokenizers() / "small.bin", 290)
    write_tokenizer_bin(user_tokenizers() / "mine.bin", 300)
    assert load_model(tmp_path / "m.bin").tokenizer_path.name == "mine.bin"


def test_stop_ids_are_those_of_file_and_vocabulary(tmp_path: Path) -> None:
    config = replace(TINY, eos_ids=(7,))
    write_checkpoint(tmp_path / "m.bin", config, 1, random_weights(config))
    write_tokenizer_bin(tmp_path / "tokenizer.bin", 300)
    model = load_model(tmp_path / "m.bin")
    assert model.stop_ids == {1, 2, 7}
    assert model.encode_prompt("") == [1]


def test_progress_is_told(tiny_model: Path) -> None:
    steps: list[str] = []
    load_model(tiny_model, progress=steps.append)
    assert len(steps) == 3


def test_hashes_are_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    assert file_sha256(path) == sha256(b"one").hexdigest()
    monkeypatch.setattr(model_module, "file_digest", lambda *a: pytest.fail("hashed again"))
    assert file_sha256(path) == sha256(b"one").hexdigest()
    monkeypatch.undo()
    path.write_bytes(b"other")
    assert file_sha256(path) == sha256(b"other").hexdigest()


@pytest.mark.parametrize("content", ["", "[]", "{", json.dumps({"x": 1})])
def test_a_damaged_or_unwritable_cache_costs_nothing_but_time(
    content: str, tmp_path: Path, home: Path
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"one")
    store = model_module.user_cache_path("llamatui", appauthor=False) / "sha256.json"
    store.parent.mkdir(parents=True)
    store.write_text(content)
    assert file_sha256(path) == sha256(b"one").hexdigest()
    store.unlink()
    store.mkdir()
    assert file_sha256(path) == sha256(b"one").hexdigest()
