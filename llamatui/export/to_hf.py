"""Writes a source as a Hugging Face folder, which transformers and all that builds on it opens.

Weights are float32, so that Hugging Face -> `.bin` -> Hugging Face gives back the same numbers.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import Progress, Rows, check_room
from llamatui.errors import LlamatuiError, UsageError
from llamatui.export.hf import ROTATED, hf_name, reorder_heads
from llamatui.export.json_file import JsonObject
from llamatui.export.safetensors_file import NewTensor, write_safetensors
from llamatui.export.source import HF_LAYER_NAMES, Source, deinterleave
from llamatui.export.tokenizer_files import for_hf

SHARD_SIZE = 5 * 10**9
"""Bytes of tensors per file; `save_pretrained` of transformers 4 has the same."""


def export_hf(source: Source, folder: Path, *, progress: Progress | None = None) -> None:
    """Writes config, weights and tokenizer to `folder`, which is made if need be; its parent has to be there.

    All files are written to a hidden folder within it first, and moved when they are complete, config.json
    last: without it nothing looks like a model. An interruption or error before the moves leaves nothing.

    Raises:
        UsageError: The folder has a model in it.
        CheckpointError: The source is damaged.
        LlamatuiError: The folder cannot be written to, or the disk has no room.
    """
    tensors = list(_tensors(source))
    files = _text_files(source)
    try:
        is_new = not folder.exists()
        _check_target(folder, files)
        needed = sum(tensor.n_bytes for tensor in tensors) + sum(map(len, files.values()))
        check_room(folder.parent if is_new else folder, needed)
        folder.mkdir(exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder, prefix=".part-"))
        try:
            write_safetensors(staging, tensors, SHARD_SIZE, progress)
            for name, content in files.items():
                (staging / name).write_bytes(content)
            for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # not empty: it succeeded
                    folder.rmdir()
    except OSError as error:
        raise LlamatuiError(
            f"{folder}: cannot be written: {error.strerror or error}", "choose another place for the folder"
        ) from error


def _check_target(folder: Path, files: dict[str, bytes]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder, found a file", "choose a new folder")
    found = [path.name for path in folder.glob("*.safetensors*")] + [
        name for name in files if (folder / name).exists()
    ]
    if found:
        raise UsageError(
            f"{folder}: expected a new or empty folder, found one with {min(found)} in it",
            "choose a new folder: no model is overwritten",
        )


def _tensors(source: Source) -> Iterator[NewTensor]:
    """In the order in which a model uses them, so that a shard holds whole layers."""
    config = source.config
    shapes = {spec.name: spec.shape for spec in tensor_layout(config, 1)}
    names = [("tok_embeddings", 0)]
    names += [(name, layer) for layer in range(config.n_layers) for name in HF_LAYER_NAMES]
    names += [("norm", 0)] if config.shared_classifier else [("norm", 0), ("wcls", 0)]
    for name, layer in names:
        yield NewTensor(hf_name(name, layer), shapes[name], partial(_open, source, name, layer))


def _open(source: Source, name: str, layer: int) -> Rows:
    rows = source.tensor(name, layer)
    head_dim = source.config.head_dim
    return reorder_heads(rows, deinterleave(head_dim)) if name in ROTATED else rows


def _text_files(source: Source) -> dict[str, bytes]:
    files = dict(for_hf(source.tokenizer, source.config))
    files["config.json"] = _json(_config(source.config))
    if tokens := {key: value for key, value in _token_ids(source.config).items() if value is not None}:
        files["generation_config.json"] = _json(tokens)
    return files


def _config(config: ModelConfig) -> JsonObject:
    """config.json as transformers 4 writes it, which transformers 5 reads too."""
    s = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if s is None
        else {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_seq_len,
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.shared_classifier,
        "torch_dtype": "float32",
        **_token_ids(config),  # null where unknown: transformers would assume 1 and 2 if they were not there
    }


def _token_ids(config: ModelConfig) -> JsonObject:
    eos = config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids) or None
    return {"bos_token_id": config.bos_id if config.bos_id >= 0 else None, "eos_token_id": eos}


def _json(document: JsonObject) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
