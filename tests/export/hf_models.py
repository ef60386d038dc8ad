"""Tiny Hugging Face folders, written by hand: nothing of what is tested writes them."""

import json
import struct
from pathlib import Path

import numpy as np

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.backends.q8_0 import FloatArray
from llamatui.export.source import HF_LAYER_NAMES, HF_NAMES

HF_TINY = ModelConfig(
    dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, max_seq_len=64,
    norm_eps=1e-6, shared_classifier=False, bos_id=1, eos_ids=(2,),
)  # fmt: skip

Stored = tuple[str, tuple[int, ...], bytes]
"""dtype, shape, little-endian bytes."""


def config_json(config: ModelConfig = HF_TINY, **changes: object) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.shared_classifier,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_ids[0],
    } | changes


def random_tensors(config: ModelConfig = HF_TINY, seed: int = 0) -> dict[str, FloatArray]:
    """By Hugging Face's names."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for spec in tensor_layout(config, 1):
        for layer in range(max(spec.n_layers, 1)):
            if spec.n_layers:
                name = f"model.layers.{layer}.{HF_LAYER_NAMES[spec.name]}.weight"
            else:
                name = f"{HF_NAMES[spec.name]}.weight"
            tensors[name] = rng.standard_normal(spec.shape, dtype=np.float32)
    return tensors


def fp32(tensors: dict[str, FloatArray]) -> dict[str, Stored]:
    return {name: ("F32", w.shape, w.astype("<f4").tobytes()) for name, w in tensors.items()}


def safetensors_file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def safetensors_bytes(tensors: dict[str, Stored]) -> bytes:
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    return safetensors_file(header, data)


def write_folder(
    folder: Path,
    tensors: dict[str, FloatArray] | None = None,
    *,
    name: str = "model.safetensors",
    **changes: object,
) -> Path:
    """A model of HF_TINY's shapes; `changes` to its config.json."""
    tensors = random_tensors() if tensors is None else tensors
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(**changes)))
    (folder / name).write_bytes(safetensors_bytes(fp32(tensors)))
    return folder


def write_shards(folder: Path, tensors: dict[str, FloatArray]) -> list[str]:
    """The tensors in two files and an index, which is returned: names of the files."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    items = sorted(tensors.items())
    parts = [dict(items[::2]), dict(items[1::2])]
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(safetensors_bytes(fp32(part)))
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names
