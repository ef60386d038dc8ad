"""The models that one could open: found, read, and measured."""

import pytest

from llamatui.app import catalogue, shelf, store
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.tiny import TINY, random_weights


@pytest.fixture
def pulled():
    """A pulled model, with its tokenizer beside it."""
    folder = store.models_folder()
    folder.mkdir(parents=True)
    write_checkpoint(folder / "stories260K.bin", TINY, 2, random_weights(TINY))
    (folder / "stories260K.tokenizer.bin").write_bytes(b"x")
    return folder / "stories260K.bin"


def test_models_are_found_and_tokenizers_are_not(pulled, tmp_path):
    for name in ("b.bin", "a.gguf", "tokenizer.bin", "b.tokenizer.bin", ".c.bin", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = shelf.model_files(tmp_path, tmp_path, tmp_path / "gone")
    assert found == [pulled, store.BUNDLED.path, tmp_path / "a.gguf", tmp_path / "b.bin"]


def test_a_file_that_is_found_twice_is_there_once(pulled):
    assert shelf.model_files(pulled.parent).count(pulled) == 1


@pytest.mark.parametrize(("version", "kind"), [(0, "fp32 v0"), (1, "fp32 v1"), (2, "Q8_0 v2")])
def test_a_file_says_what_it_is(version, kind, tmp_path):
    path = tmp_path / "tiny.bin"
    write_checkpoint(path, TINY, version, random_weights(TINY))
    found = shelf.look(path)
    assert (found.name, found.format, found.problem) == ("tiny", kind, "")
    assert (found.parameters, found.context) == (TINY.n_params, TINY.max_seq_len)
    assert found.size == path.stat().st_size


def test_memory_is_that_of_the_file_and_of_a_full_context(tmp_path):
    path = tmp_path / "tiny.bin"
    write_checkpoint(path, TINY, 1, random_weights(TINY))
    per_token = Checkpoint(path).config.kv_bytes_per_token
    size = path.stat().st_size
    assert shelf.look(path).needs == size + TINY.max_seq_len * per_token
    assert shelf.look(path, context=10).needs == size + 10 * per_token
    assert shelf.look(path, context=10**9).needs == size + TINY.max_seq_len * per_token


def test_gguf_says_its_type_and_what_it_will_need(tmp_path):
    pytest.importorskip("gguf")
    from tests.export.tiny_gguf import write_gguf

    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    found = shelf.look(path)
    assert found.format == "F32 GGUF"
    assert found.needs > 0
    assert not found.problem


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("short.bin", b"abc", "expected a header of 28 or 256 bytes"),
        ("empty.bin", b"", "found an empty file"),
        ("cut.gguf", b"GGUF\x03", "expected a GGUF file"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(name, content, problem, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    found = shelf.look(path)
    assert problem in found.problem
    assert str(path) not in found.problem, "the path is shown already"


def test_a_file_that_went_away_meanwhile_is_told(tmp_path):
    assert "No such file" in shelf.look(tmp_path / "gone.bin").problem


def test_what_is_here_is_not_offered(pulled):
    names = [offer.name for offer in shelf.offers()]
    assert "stories260K" not in names
    assert len(names) == len(catalogue.MODELS) - 1
    assert all(offer.path is None and offer.size and offer.about for offer in shelf.offers())
