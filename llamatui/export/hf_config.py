"""A Hugging Face `config.json`, read as strictly as a model's numbers deserve.

What changes the arithmetic in a way that our backends do not compute is refused by name: it would run, and
write nonsense. Sources: `configuration_llama.py`, `configuration_mistral.py` and `modeling_rope_utils.py` in
transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
"""

import reprlib
from pathlib import Path

from llamatui.backends.checkpoint import MAX_DIMENSION, ModelConfig, RopeScaling, check_config
from llamatui.errors import CheckpointError
from llamatui.export.json_file import WRONG_VALUE, Fields, read_object

MODEL_TYPES = ("llama", "mistral")
OTHER_MODEL = "only models of these types can be exported: others compute something else than Llama does"


def read_config(folder: Path) -> tuple[ModelConfig, list[str]]:
    """The architecture in `config.json`, and what the user should know; `chat_format` is left empty.

    End ids come from `generation_config.json` too, where there is one.

    Raises:
        CheckpointError: It is missing, damaged, or of a model that is not computed as Llama is.
    """
    path = folder / "config.json"
    if not path.exists() and (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder}: expected a whole model, found an adapter (adapter_config.json)",
            "merge it into its base model first: merge_and_unload() in PEFT",
        )
    fields = Fields(str(path), read_object(path))
    _check_architecture(fields)
    is_mistral = fields.get("model_type") == "mistral"
    n_heads = fields.integer("num_attention_heads")
    max_positions = fields.integer("max_position_embeddings", 131072 if is_mistral else 2048)
    rope_theta, rope_scaling = _read_rope(fields, max_positions)
    notes = []
    max_seq_len = max_positions
    if is_mistral:
        max_seq_len = min(max_positions, fields.integer("sliding_window", _mistral_window(fields)))
        if max_seq_len < max_positions:
            notes.append(
                f"the context is cut from {max_positions:,} to {max_seq_len:,} tokens, "
                "as far as attention reaches back (sliding_window)"
            )
    config = ModelConfig(
        dim=fields.integer("hidden_size"),
        hidden_dim=fields.integer("intermediate_size"),
        n_layers=fields.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", 8 if is_mistral else n_heads),
        vocab_size=fields.integer("vocab_size"),
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        shared_classifier=fields.flag("tie_word_embeddings"),
        bos_id=fields.token_id("bos_token_id"),
        eos_ids=_read_eos(folder, fields),
    )
    try:
        check_config(config, str(path))
    except CheckpointError as error:
        raise CheckpointError(error.message, WRONG_VALUE) from None
    head_dim = fields.integer("head_dim", config.head_dim)
    if head_dim != config.head_dim:
        raise CheckpointError(
            f"{path}: expected head_dim {config.head_dim}, hidden_size / num_attention_heads, "
            f"found {head_dim}",
            "models with wider or narrower heads cannot be exported",
        )
    return config, notes


def _check_architecture(fields: Fields) -> None:
    if fields.get("model_type") not in MODEL_TYPES:
        raise fields.wrong("model_type", " or ".join(MODEL_TYPES), OTHER_MODEL)
    if quantization := fields.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise CheckpointError(
            f"{fields.where}: expected weights as float32, float16 or bfloat16, "
            f"found quantized ones: {reprlib.repr(method or quantization)}",
            "get the model that it was made from: its name has no GPTQ, AWQ, bnb or FP8 in it",
        )
    if fields.get("hidden_act") not in (None, "silu"):
        raise fields.wrong("hidden_act", "silu", OTHER_MODEL)
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key):
            raise fields.wrong(key, "false, as Llama's layers have no biases", OTHER_MODEL)


def _mistral_window(fields: Fields) -> int:
    """Where `sliding_window` has no number: none if it is null, 4096 if it is not there."""
    return MAX_DIMENSION if "sliding_window" in fields.values else 4096


def _read_rope(fields: Fields, max_positions: int) -> tuple[float, RopeScaling | None]:
    key = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    values = fields.get(key) or {}
    if not isinstance(values, dict):
        raise fields.wrong(key, "to be an object")
    rope = Fields(f"{fields.where}: {key}", values)
    if any(isinstance(value, dict) for value in values.values()):
        raise fields.wrong(key, "to be the same for all layers", OTHER_MODEL)
    for place in (fields, rope):
        if place.number("partial_rotary_factor", 1.0) != 1:
            raise place.wrong("partial_rotary_factor", "1", OTHER_MODEL)
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    name = "rope_type" if rope.get("rope_type") is not None else "type"  # the name before transformers 4.43
    if rope.get(name) in (None, "default"):
        return theta, None
    if rope.get(name) != "llama3":
        raise rope.wrong(name, "default or llama3", "models with this RoPE scaling cannot be exported")
    return theta, RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_seq_len=rope.integer("original_max_position_embeddings", max_positions),
    )


def _read_eos(folder: Path, fields: Fields) -> tuple[int, ...]:
    ids = fields.token_ids("eos_token_id")
    path = folder / "generation_config.json"
    if path.exists():
        ids = ids + Fields(str(path), read_object(path)).token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))
