"""Opening a model: what belongs to it, and the small public API."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

import llamatui
from llamatui.app.engine import Session
from llamatui.app.model import LoadedModel, load_model
from llamatui.app.store import tokenizers_folder
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.errors import ContextOverflowError, ModelError, TokenizerMissingError, UsageError
from tests.tiny import CHATML_TINY, TINY, random_weights, write_chat_tokenizer, write_tokenizer_bin


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


@pytest.fixture
def interim(tiny_model: Path) -> LoadedModel:
    """On numpy, as long as "numba" is being prepared; with more threads asked for than anything has."""
    model = load_model(tiny_model, backend="numpy", threads=8)
    model.backend.preparing, model.backend.note = "numba", "numba is being compiled"
    return model


def test_a_model_has_the_backend_that_is_ready_and_holds_no_other(interim: LoadedModel) -> None:
    old = weakref.ref(interim.backend)
    new = NumpyBackend(interim.checkpoint, 2)
    interim.backend.replacement = new
    assert Session(interim.backend).backend is new
    gc.collect()
    assert old() is None


def test_warnings_say_why_it_is_slow(interim: LoadedModel) -> None:
    assert interim.warnings == []
    interim.backend.preparing, interim.backend.note = "", "numba could not be compiled: boom"
    assert interim.warnings == ["numba could not be compiled: boom"]
    interim.backend.replacement = NumpyBackend(interim.checkpoint, 2)
    assert interim.warnings == ["8 threads asked for, 2 available"]


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    """One whose format only the tokenizer's chat template tells."""
    write_checkpoint(tmp_path / "m.bin", replace(CHATML_TINY, chat_format=""), 1, random_weights(CHATML_TINY))
    write_chat_tokenizer(tmp_path / "m.tokenizer.json")
    return tmp_path / "m.bin"


def test_a_model_chats(chat_model: Path) -> None:
    model = llamatui.load(chat_model, threads=1)
    chat = model.chat(temperature=0.0)
    assert chat.system == "You are tiny"
    answer = chat.send("hello")
    assert [(turn.role, turn.content) for turn in chat.turns] == [("user", "hello"), ("assistant", answer)]
    assert "".join(model.chat(temperature=0.0).stream("hello")) == answer
    assert model.chat("").system == ""


def test_an_answer_that_is_left_early_is_kept(chat_model: Path) -> None:
    chat = llamatui.load(chat_model, threads=1).chat(seed=1)
    pieces = chat.stream("hello")
    first = next(pieces)
    pieces.close()
    assert chat.turns[-1].content == first
    chat.send("go on")
    assert len(chat.turns) == 4


def test_a_model_generates_until_a_stop_sequence(tiny_model: Path) -> None:
    model = llamatui.load(tiny_model, threads=1)
    text = model.generate("the", seed=3, max_tokens=20)
    assert text == "".join(model.stream("the", seed=3, max_tokens=20))
    assert model.generate("the", seed=3, max_tokens=20, stop=[text[4]]) == text[: text.index(text[4])]


def test_one_stop_sequence_needs_no_list(tiny_model: Path) -> None:
    model = llamatui.load(tiny_model, threads=1)
    text = model.generate("the", seed=3, max_tokens=20)
    assert model.generate("the", seed=3, max_tokens=20, stop=text[4:6]) == text[: text.index(text[4:6])]


def test_a_prompt_beyond_the_context_is_told(tiny_model: Path) -> None:
    model = llamatui.load(tiny_model, threads=1)
    with pytest.raises(ContextOverflowError, match="the context only 64"):
        model.generate("the cat " * 100)


def test_a_chat_format_that_nobody_knows_is_told_at_once(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="nope"):
        llamatui.load(tiny_model, chat_format="nope")


def test_an_unknown_chat_template_beside_the_tokenizer_is_told(chat_model: Path) -> None:
    config = chat_model.with_name("m.tokenizer_config.json")
    config.write_text('{"chat_template": "<start_of_turn>{{ messages }}"}')
    with pytest.raises(ModelError, match="chat format") as caught:
        _ = load_model(chat_model).chat_format
    assert "--chat-format" in caught.value.hint
    assert load_model(chat_model, chat_format="chatml").chat_format.name == "chatml"


def test_a_missing_tokenizer_knows_which_would_do(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=32000)
    write_checkpoint(tmp_path / "m.bin", config, 0, random_weights(config))
    with pytest.raises(TokenizerMissingError) as caught:
        load_model(tmp_path / "m.bin")
    assert caught.value.pull == "llama2-tokenizer"
    write_checkpoint(tmp_path / "n.bin", TINY, 0, random_weights(TINY))
    with pytest.raises(TokenizerMissingError) as caught:
        load_model(tmp_path / "n.bin")
    assert caught.value.pull == ""
    assert "-z" in caught.value.hint
