"""Writing Hugging Face folders: complete or not at all, and the numbers that were read."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends import checkpoint_writer
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling
from llamatui.backends.checkpoint_writer import Rows, write_checkpoint
from llamatui.backends.q8_0 import Q8Tensor
from llamatui.errors import CheckpointError, LlamatuiError, UsageError
from llamatui.export import to_hf
from llamatui.export.hf import open_hf
from llamatui.export.safetensors_file import SafetensorsFile
from llamatui.export.source import Source
from llamatui.export.to_hf import export_hf
from tests.export.hf_models import HF_TINY, random_tensors, write_folder
from tests.tiny import random_weights


def source_of(config: ModelConfig = HF_TINY) -> Source:
    return Source(Path("tiny.bin"), config, random_weights(config))


def read_all(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor in the folder's safetensors files."""
    files = [SafetensorsFile(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: np.asarray(file.open(name)[slice(None)]) for file in files for name in file.tensors}


def bin_source(path: Path) -> Source:
    checkpoint = Checkpoint(path)

    def tensor(name: str, layer: int) -> Rows:
        stored = checkpoint.tensors[name]
        return stored if name in ("tok_embeddings", "norm", "wcls") else stored[layer]

    return Source(path, checkpoint.config, tensor)


@pytest.mark.parametrize("shared", [False, True])
def test_there_and_back_gives_the_same_bits(tmp_path: Path, shared: bool) -> None:
    tensors = random_tensors()
    if shared:
        del tensors["lm_head.weight"]
    source = open_hf(write_folder(tmp_path / "hf", tensors, tie_word_embeddings=shared))
    write_checkpoint(tmp_path / "model.bin", source.config, 1, source.tensor)
    back = bin_source(tmp_path / "model.bin")
    export_hf(back, tmp_path / "back")
    read = read_all(tmp_path / "back")
    assert set(read) == set(tensors)
    for name, w in tensors.items():
        assert read[name].tobytes() == w.tobytes(), name
    again = open_hf(tmp_path / "back")
    assert again.config == replace(source.config, chat_format="")


def test_config_json_says_what_the_model_is(tmp_path: Path) -> None:
    scaling = RopeScaling(8.0, 1.0, 4.0, 32)
    config = replace(HF_TINY, rope_theta=500000.0, rope_scaling=scaling, bos_id=5, eos_ids=(7, 9))
    export_hf(source_of(config), tmp_path / "hf")
    assert open_hf(tmp_path / "hf").config == config
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["architectures"] == ["LlamaForCausalLM"]
    assert written["rope_scaling"]["rope_type"] == "llama3"
    assert written["torch_dtype"] == "float32"
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 5, "eos_token_id": [7, 9]}


def test_unknown_token_ids_stay_unknown(tmp_path: Path) -> None:
    """Where config.json has none, transformers takes 1 and 2."""
    config = replace(HF_TINY, bos_id=-1, eos_ids=())
    export_hf(source_of(config), tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (None, None)
    assert not (tmp_path / "hf" / "generation_config.json").exists()
    assert open_hf(tmp_path / "hf").config == config


def test_q8_weights_are_written_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    config = replace(HF_TINY, hidden_dim=64)
    write_checkpoint(tmp_path / "q8.bin", config, 2, random_weights(config), group_size=32)
    source = bin_source(tmp_path / "q8.bin")
    export_hf(source, tmp_path / "hf")
    back = open_hf(tmp_path / "hf")
    for name in ("wq", "wk", "wv"):
        stored = source.tensor(name, 1)[slice(None)]
        assert isinstance(stored, Q8Tensor)
        np.testing.assert_array_equal(np.asarray(back.tensor(name, 1)[slice(None)]), stored.dequantize())


def test_large_models_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_hf, "SHARD_SIZE", 50_000)
    export_hf(source_of(), tmp_path / "many")
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 2
    monkeypatch.undo()
    export_hf(source_of(), tmp_path / "one")
    one, many = read_all(tmp_path / "one"), read_all(tmp_path / "many")
    assert set(one) == set(many)
    for name, w in one.items():
        np.testing.assert_array_equal(w, many[name])
    assert open_hf(tmp_path / "many").config == HF_TINY


def test_progress_reaches_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "BLOCK", 1000)
    seen: list[tuple[int, int]] = []
    export_hf(source_of(), tmp_path / "hf", progress=lambda *n: seen.append(n))
    written = [n for n, _ in seen]
    assert written == sorted(written)
    assert len(written) > 2 * len(random_tensors())  # blocks, not whole tensors
    assert seen[-1][0] == seen[-1][1] == 4 * sum(w.size for w in random_tensors().values())


def test_an_empty_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "README.md").write_text("mine")
    monkeypatch.chdir(tmp_path / "hf")
    export_hf(source_of(), Path())
    assert open_hf(tmp_path / "hf").config == HF_TINY
    assert sorted(path.name for path in Path().iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "old.safetensors", "model.safetensors.index.json"]
)
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"found one with {name} in it") as caught:
        export_hf(source_of(), tmp_path)
    assert "choose a new folder" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("mine")
    with pytest.raises(UsageError, match="expected a folder, found a file"):
        export_hf(source_of(), tmp_path / "hf")


def test_a_folder_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LlamatuiError, match="cannot be written: No such file") as caught:
        export_hf(source_of(), tmp_path / "no" / "where")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (CheckpointError("damaged"), CheckpointError),
        (OSError(28, "No space left"), LlamatuiError),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, error: BaseException, told: type[BaseException], exists: bool
) -> None:
    weights = random_weights(HF_TINY)

    def failing(name: str, layer: int) -> Rows:
        if (name, layer) == ("w2", 1):
            raise error
        return weights(name, layer)

    if exists:
        (tmp_path / "hf").mkdir()
    with pytest.raises(told):
        export_hf(Source(Path("tiny.bin"), HF_TINY, failing), tmp_path / "hf")
    assert [path.name for path in tmp_path.rglob("*")] == (["hf"] if exists else [])


def test_config_json_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace_file = Path.replace

    def replace_and_tell(self: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace_file(self, target)

    monkeypatch.setattr(Path, "replace", replace_and_tell)
    export_hf(source_of(), tmp_path / "hf")
    assert moved[-1] == "config.json"
    assert set(moved) == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage())
    with pytest.raises(LlamatuiError, match=r"0\.00 MB are free") as caught:
        export_hf(source_of(), tmp_path / "hf")
    assert caught.value.hint == "make room or choose another disk"
    assert list(tmp_path.iterdir()) == []


def test_files_may_be_read_by_others(tmp_path: Path) -> None:
    export_hf(source_of(), tmp_path / "hf")
    (tmp_path / "plain").write_text("")
    mode = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "hf").iterdir()} == {mode}


def test_tokenizer_files_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_hf, "for_hf", lambda files, config: {"tokenizer.json": files[".tokenizer.json"]})
    source = replace(source_of(), tokenizer={".tokenizer.json": b"{}"})
    export_hf(source, tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == b"{}"


def test_rows_are_asked_for_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive = 0

    class Counted:
        shape: tuple[int, ...]

        def __init__(self, rows: Rows) -> None:
            nonlocal alive
            alive += 1
            assert alive <= 2
            self.rows, self.shape = rows, rows.shape

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

        def __getitem__(self, rows: slice) -> object:
            return self.rows[rows]

    weights = random_weights(HF_TINY)
    export_hf(Source(Path("x"), HF_TINY, lambda *key: Counted(weights(*key))), tmp_path / "hf")
