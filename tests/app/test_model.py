"""Opening a model: what belongs to it, and the small public API."""

from dataclasses import replace
from pathlib import Path

import pytest

import llamatui
from llamatui.app.library import tokenizers_folder
from llamatui.app.model import load_model
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
    tokenizers_folder().mkdir(parents=True)
    write_tokenizer_bin(tokenizers_folder() / "small.bin", 290)
    write_tokenizer_bin(tokenizers_folder() / "mine.bin", 300)
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
