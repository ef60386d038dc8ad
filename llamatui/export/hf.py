"""Hugging Face folders as a source: `config.json` with safetensors or PyTorch weights, whole or in shards.

Names, shapes and dtypes of all tensors are checked when the folder is opened, before anything is written.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import Rows
from llamatui.backends.q8_0 import FloatArray, Q8Tensor
from llamatui.errors import CheckpointError
from llamatui.export.hf_config import read_config
from llamatui.export.json_file import read_object
from llamatui.export.safetensors_file import SafetensorsFile
from llamatui.export.source import (
    HF_LAYER_NAMES,
    HF_NAMES,
    LazyRows,
    Source,
    interleave,
)
from llamatui.export.tokenizer_files import folder_config, from_folder, with_token_ids
from llamatui.export.torch_files import TorchRows, open_torch, state_dict
from llamatui.tokenizers.chat_templates import UNKNOWN_FORMAT, format_of, template_text

WHOLE = "get the whole repository of the model"
ROTATED = ("wq", "wk")
"""Tensors whose rows are in another order at Hugging Face: see `interleave`."""
PLAIN_NAME = re.compile(r"\w[\w.-]{0,200}", re.ASCII)

Openers = dict[str, Callable[[], Rows]]
"""By the file's names. Each raises CheckpointError where the tensor's dtype is not one that is read."""


def open_hf(folder: Path) -> Source:
    """The model in a folder as `save_pretrained` writes it and Hugging Face's hub has it.

    Raises:
        CheckpointError: A file or tensor is missing or damaged, or the model is not computed as Llama is.
        TokenizerError: The tokenizer cannot be read.
    """
    try:
        return _open(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be read: {error.strerror or error}", "check the folder and its permissions"
        ) from None


def _open(folder: Path) -> Source:
    config, notes = read_config(folder)
    openers = _find_tensors(folder)
    tensors, left_out = _choose(openers, config, folder)
    if left_out:
        notes.append(
            f"{len(left_out)} tensors that Llama models do not have were left out: {', '.join(left_out[:3])}"
        )
    template = template_text(folder_config(folder).get("chat_template"))
    chat_format = format_of(template) or UNKNOWN_FORMAT if template else ""
    if chat_format == UNKNOWN_FORMAT:
        notes.append("the chat template is none that is known here: chats need --chat-format")
    tokenizer = from_folder(folder, config.vocab_size)
    if not tokenizer:
        notes.append("the folder has no tokenizer: choose one with -z when the model runs")

    def tensor(name: str, layer: int) -> Rows:
        rows = tensors[name, layer]
        return reorder_heads(rows, interleave(config.head_dim)) if name in ROTATED else rows

    config = with_token_ids(replace(config, chat_format=chat_format), tokenizer)
    return Source(folder, config, tensor, tokenizer, notes)


def reorder_heads(rows: Rows, order: npt.NDArray[np.int64]) -> Rows:
    """The same rows, those of each head in `order`, (head_dim,), which is that of one head."""
    n = len(order)

    def read(block: slice) -> FloatArray | Q8Tensor:
        start, stop, _ = block.indices(rows.shape[0])
        first = start // n * n
        heads = rows[first : -(-stop // n) * n]  # whole heads
        row = np.arange(start, stop)
        return heads[row // n * n + order[row % n] - first]

    return LazyRows(tuple(rows.shape), read)


def hf_name(name: str, layer: int) -> str:
    """Hugging Face's name of one of our tensors: ("wq", 3) -> "model.layers.3.self_attn.q_proj.weight"."""
    if name in HF_LAYER_NAMES:
        return f"model.layers.{layer}.{HF_LAYER_NAMES[name]}.weight"
    return f"{HF_NAMES[name]}.weight"


def _choose(
    openers: Openers, config: ModelConfig, folder: Path
) -> tuple[dict[tuple[str, int], Rows], list[str]]:
    """Our tensors by (name, layer), and the names of those that we have no use for.

    Raises:
        CheckpointError: One is missing, or has another shape or dtype than the config says.
    """
    is_base_model = "embed_tokens.weight" in openers  # `LlamaModel`, saved without the prefix
    biases = sorted(name for name in openers if name.endswith(".bias"))
    if biases:
        raise CheckpointError(
            f"{folder}: expected weights only, found a bias: {biases[0][:80]!r}",
            "models with biases compute something else than Llama does, and cannot be exported",
        )
    unused = set(openers)
    tensors: dict[tuple[str, int], Rows] = {}
    for spec in tensor_layout(config, 1):
        for layer in range(max(spec.n_layers, 1)):
            name = hf_name(spec.name, layer)
            name = name.removeprefix("model.") if is_base_model else name
            if name not in openers:
                raise _missing(folder, name, openers)
            rows = openers[name]()
            if tuple(rows.shape) != spec.shape:
                raise CheckpointError(
                    f"{folder}: {name}: expected shape {spec.shape}, as config.json says, "
                    f"found {tuple(rows.shape)}",
                    "config.json and the weights are of different models: get both again",
                )
            tensors[spec.name, layer] = rows
            unused.remove(name)
    unused -= {hf_name("wcls", 0)}  # a copy of a shared classifier
    return tensors, sorted(repr(name[:80]) for name in unused if not name.endswith("rotary_emb.inv_freq"))


def _missing(folder: Path, name: str, openers: Openers) -> CheckpointError:
    if name == hf_name("wcls", 0):
        hint = "a model without tie_word_embeddings needs it: get the one for generating text"
    elif any(other.endswith((".qweight", ".weight_scale", ".weight_packed", ".absmax")) for other in openers):
        hint = "the weights are quantized: get the model that it was made from"
    else:
        hint = f"the weights are of another model, or incomplete: {WHOLE}"
    return CheckpointError(f"{folder}: expected a tensor {name}, found none among {len(openers):,}", hint)


def _find_tensors(folder: Path) -> Openers:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not whole.exists() and not index.exists():
        others = sorted(folder.glob("*.safetensors"))
        if len(others) > 1:
            raise CheckpointError(
                f"{folder}: expected model.safetensors or model.safetensors.index.json, "
                f"found neither with {len(others)} other files ({others[0].name[:80]!r}, ...)",
                WHOLE,
            )
        whole = others[0] if others else whole
    if whole.exists():
        return _open_safetensors(whole)
    if index.exists():
        return _open_shards(index, _open_safetensors)
    whole, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if whole.exists():
        return _open_pytorch(whole)
    if index.exists():
        return _open_shards(index, _open_pytorch)
    raise CheckpointError(f"{folder}: expected weights in model.safetensors, found no such file", WHOLE)


def _open_shards(index: Path, open_file: Callable[[Path], Openers]) -> Openers:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: expected a weight_map, found none", WHOLE)
    names = set()
    for name in weight_map.values():
        # Nothing outside of the folder is ever opened.
        if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index}: expected names of files in this folder, found {str(name)[:80]!r}",
                "get the model from somebody you trust",
            )
        names.add(name)
    openers: Openers = {}
    shards = {name: _open_shard(index.parent / name, open_file) for name in sorted(names)}
    for tensor, name in weight_map.items():
        if tensor not in shards[name]:
            raise CheckpointError(f"{index.parent / name}: expected {tensor[:80]!r} in it, found none", WHOLE)
        openers[tensor] = shards[name][tensor]
    return openers


def _open_shard(path: Path, open_file: Callable[[Path], Openers]) -> Openers:
    if not path.exists():
        raise CheckpointError(f"{path.parent}: expected {path.name}, found no such file", WHOLE)
    return open_file(path)


def _open_safetensors(path: Path) -> Openers:
    file = SafetensorsFile(path)
    return {name: partial(file.open, name) for name in file.tensors}


def _open_pytorch(path: Path) -> Openers:
    def checked(rows: TorchRows) -> Rows:
        rows.check_float()
        return rows

    return {name: partial(checked, rows) for name, rows in state_dict(path, open_torch(path)).items()}
