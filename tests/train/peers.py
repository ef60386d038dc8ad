"""A model with weights large enough that every part of the arithmetic shows, and its twin in transformers."""

from typing import Any

import pytest
import torch

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.export.meta import original_name
from llamatui.export.source import HF_LAYER_NAMES, HF_NAMES, deinterleave
from llamatui.train.model import Llama

torch.set_num_threads(1)  # more only wait for each other on models as small as these


def lively(model: Llama, seed: int = 0, std: float = 0.2) -> Llama:
    """The same model with random weights that depend on the seed and the shapes alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.1 * noise if p.dim() == 1 else std * noise)
    return model


def ours_by_hf_names(config: ModelConfig, tensors: dict[str, Any]) -> dict[str, Any]:
    """Weights or gradients by transformers' names, the rows of wq and wk in its order."""
    named = {}
    for spec in tensor_layout(config, 1):
        for layer in range(max(spec.n_layers, 1)):
            tensor = tensors[original_name(spec.name, layer)]
            if spec.name in ("wq", "wk"):
                heads = tensor.unflatten(0, (-1, config.head_dim))  # (heads, head_dim, dim)
                tensor = heads[:, torch.from_numpy(deinterleave(config.head_dim))].flatten(0, 1)
            if spec.name in HF_LAYER_NAMES:
                named[f"model.layers.{layer}.{HF_LAYER_NAMES[spec.name]}.weight"] = tensor
            else:
                named[f"{HF_NAMES[spec.name]}.weight"] = tensor
    return named


def transformers_twin(model: Llama) -> Any:
    """transformers' LlamaForCausalLM with the same weights; skips the test where it is not installed."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling:
        rope |= {
            "rope_type": "llama3",
            "factor": c.rope_scaling.factor,
            "low_freq_factor": c.rope_scaling.low_freq_factor,
            "high_freq_factor": c.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": c.rope_scaling.original_max_seq_len,
        }
    config = transformers.LlamaConfig(
        hidden_size=c.dim,
        intermediate_size=c.hidden_dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        vocab_size=c.vocab_size,
        max_position_embeddings=c.max_seq_len,
        rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.shared_classifier,
        rope_parameters=rope,
    )
    twin = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        tensors = ours_by_hf_names(c, dict(model.named_parameters()))
        for name, parameter in twin.named_parameters():
            parameter.copy_(tensors[name])
    return twin
