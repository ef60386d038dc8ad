"""The same numbers as transformers: its folders through ours to our backend, and ours to it.

All that needs transformers is here, as its import takes seconds.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends.base import KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.backends.q8_0 import FloatArray
from llamatui.errors import CheckpointError
from llamatui.export import to_hf
from llamatui.export.hf import open_hf
from llamatui.export.source import HF_LAYER_NAMES, Source
from llamatui.export.to_hf import export_hf
from tests.export.hf_models import HF_TINY
from tests.tiny import random_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = [1, 5, 2, 6, 250, 3, 0, 4, 1, 2, 5, 6, 299, 7, 8, 9]
SCALING = RopeScaling(8.0, 1.0, 4.0, 32)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def logits_of(model: "transformers.PreTrainedModel") -> FloatArray:
    with torch.no_grad():
        logits: FloatArray = model.eval()(torch.tensor([TOKENS])).logits[0].float().numpy()  # (tokens, vocab)
    return logits


def our_logits(path: Path) -> FloatArray:
    backend = NumpyBackend(Checkpoint(path), threads=1)
    return backend.forward(TOKENS, KVCache(backend.config), all_positions=True)


def random_model(config: "transformers.PreTrainedConfig") -> "transformers.PreTrainedModel":
    """With weights so large that every part of the arithmetic shows in the logits."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, w in model.named_parameters():
            w.copy_(1 + 0.1 * torch.randn_like(w) if "norm" in name else 0.2 * torch.randn_like(w))
    return model


def tiny_config(kind: str = "Llama", **changes: object) -> "transformers.PreTrainedConfig":
    options = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }  # fmt: skip
    return getattr(transformers, f"{kind}Config")(**options | changes)


@pytest.mark.parametrize(
    ("config", "save"),
    [
        (tiny_config(), {}),
        (tiny_config(tie_word_embeddings=True), {}),
        (tiny_config(num_key_value_heads=4, rms_norm_eps=1e-5), {}),
        (tiny_config(num_key_value_heads=1), {"max_shard_size": "20KB"}),
        (tiny_config(rope_parameters=LLAMA3), {}),
        (tiny_config(rope_parameters={"rope_type": "default", "rope_theta": 700.0}), {}),
        (tiny_config("Mistral", sliding_window=40), {}),
    ],
    ids=["untied", "tied", "multi-head", "multi-query, sharded", "llama 3 rope", "theta", "mistral"],
)
def test_a_folder_of_transformers_gives_its_logits(
    tmp_path: Path, config: "transformers.PreTrainedConfig", save: dict[str, str]
) -> None:
    model = random_model(config)
    model.save_pretrained(tmp_path / "hf", **save)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == bool(save)
    source = open_hf(tmp_path / "hf")
    write_checkpoint(tmp_path / "model.bin", source.config, 1, source.tensor)
    np.testing.assert_allclose(our_logits(tmp_path / "model.bin"), logits_of(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly(tmp_path: Path, dtype: str) -> None:
    random_model(tiny_config()).to(getattr(torch, dtype)).save_pretrained(tmp_path / "hf")
    source = open_hf(tmp_path / "hf")
    write_checkpoint(tmp_path / "model.bin", source.config, 1, source.tensor)
    # Not of the model above: `to` has rounded its RoPE frequencies too.
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    np.testing.assert_allclose(our_logits(tmp_path / "model.bin"), logits_of(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_files_are_read_as_safetensors_are(tmp_path: Path, shards: int) -> None:
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path)
    safetensors = open_hf(tmp_path)
    expected = {name: np.asarray(safetensors.tensor(name, 0)[slice(None)]) for name in ("wq", "norm", "wcls")}
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    if shards == 1:
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        names = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(state)}
        for file in set(names.values()):
            torch.save({name: state[name].clone() for name in state if names[name] == file}, tmp_path / file)
        index = json.dumps({"metadata": {}, "weight_map": names})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    source = open_hf(tmp_path)
    for name, w in expected.items():
        np.testing.assert_array_equal(np.asarray(source.tensor(name, 0)[slice(None)]), w)


def test_quantized_pytorch_tensors_are_refused_when_the_folder_is_opened(tmp_path: Path) -> None:
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = model.state_dict()
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].to(torch.int8)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"up_proj.weight: .*found int8"):
        open_hf(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        HF_TINY,
        replace(HF_TINY, shared_classifier=True, norm_eps=1e-5, rope_theta=700.0, bos_id=-1, eos_ids=()),
        replace(HF_TINY, n_kv_heads=1, rope_theta=50.0, rope_scaling=SCALING, eos_ids=(2, 7)),
    ],
    ids=["untied", "tied", "llama 3 rope"],
)
def test_transformers_opens_what_is_exported(
    tmp_path: Path, config: ModelConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights(config)
    write_checkpoint(tmp_path / "model.bin", config, 1, weights)
    export_hf(Source(tmp_path / "model.bin", config, weights), tmp_path / "hf")
    monkeypatch.setattr(transformers.utils.logging.get_logger("transformers"), "propagate", True)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert caplog.text == ""
    assert not any(report.values())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert model.config.bos_token_id == (None if config.bos_id < 0 else config.bos_id)
    eos = model.generation_config.eos_token_id
    assert eos == (list(config.eos_ids) if len(config.eos_ids) > 1 else next(iter(config.eos_ids), None))
    np.testing.assert_allclose(logits_of(model), our_logits(tmp_path / "model.bin"), rtol=0, atol=1e-4)


def test_transformers_opens_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_hf, "SHARD_SIZE", 50_000)
    weights = random_weights(HF_TINY)
    write_checkpoint(tmp_path / "model.bin", HF_TINY, 1, weights)
    export_hf(Source(tmp_path / "model.bin", HF_TINY, weights), tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    np.testing.assert_allclose(logits_of(model), our_logits(tmp_path / "model.bin"), rtol=0, atol=1e-4)


def test_there_and_back_gives_the_same_bytes(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    random_model(tiny_config(rope_parameters=LLAMA3)).save_pretrained(tmp_path / "hf")
    source = open_hf(tmp_path / "hf")
    write_checkpoint(tmp_path / "model.bin", source.config, 1, source.tensor)
    checkpoint = Checkpoint(tmp_path / "model.bin")

    def tensor(name: str, layer: int) -> FloatArray:
        stored = checkpoint.fp32(name)
        return stored[layer] if name in HF_LAYER_NAMES else stored

    export_hf(Source(tmp_path / "model.bin", checkpoint.config, tensor), tmp_path / "back")
    there = library.load_file(tmp_path / "hf" / "model.safetensors")
    back = library.load_file(tmp_path / "back" / "model.safetensors")
    assert set(there) == set(back)
    assert all(there[name].tobytes() == back[name].tobytes() for name in there)
