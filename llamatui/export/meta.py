"""Meta's original folders: `params.json` and `consolidated.00.pth` and on. Llama 1 to 3.3, Code Llama.

Large models are cut into shards, one file per GPU that they were trained on. A matrix is cut along its rows
or its columns, a norm is in every file. Sources: `llama/model.py` of https://github.com/meta-llama/llama, and
https://github.com/meta-llama/llama-models.

What params.json does not say is assumed as below and told in the notes of the source.

    RoPE scaling   use_scaled_rope is all it says. Llama 3.2 1B and 3B (dim 2048 and 3072) divide the
                   frequencies by 32; Llama 3.1, 3.2 and 3.3 of dim 4096 and more by 8. Source: issue 241 of
                   llama-models.
    context        131072 with scaled RoPE, 8192 for Llama 3, 16384 for Code Llama (rope_theta 1e6), 4096 for
                   Llama 2, 2048 for Llama 1. The last two differ in norm_eps, 1e-5 and 1e-6, except the
                   first issue of Llama 2 7B. Source: `Params.loadOriginalParamsJson` in llama.cpp's
                   `convert.py`, CONTEXT_LENGTH_FOR_VERSION in transformers' `convert_llama_weights_to_hf.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llamatui.backends.checkpoint import (
    LLAMA3_VOCAB_SIZE,
    ModelConfig,
    RopeScaling,
    check_config,
    tensor_layout,
)
from llamatui.backends.checkpoint_writer import row_blocks
from llamatui.backends.q8_0 import FloatArray
from llamatui.errors import CheckpointError
from llamatui.export.json_file import Fields, read_object
from llamatui.export.source import META_LAYER_NAMES, META_NAMES, Source
from llamatui.export.tokenizer_files import from_folder, with_token_ids
from llamatui.export.torch_files import TorchRows, open_torch, state_dict

NOT_WEIGHTS = re.compile(
    r"rope\.freqs|freqs_cos|freqs_sin|layers\.\d+\.attention\.(mask|inner_attention\.rope\.freqs)"
)
"""Tables that follow from the config. The last two are llama2.c's without flash attention, and Llama 1's."""

Shard = Mapping[str, TorchRows]
"""The tensors of one file, by Meta's names."""

OTHER_ARCHITECTURES = {
    "quantization_args": "a quantized model (QLoRA or SpinQuant)",
    "lora_args": "a model with LoRA adapters",
    "moe": "a mixture of experts",
    "moe_args": "a mixture of experts",
    "sliding_window": "a model with sliding-window attention",
    "vision_model": "a vision model",
}
"""What keys of params.json say that is not read here."""


def open_meta(folder: Path) -> Source:
    """The model in a folder as Meta gives it out, with its tokenizer.

    Raises:
        CheckpointError: A file is missing or damaged, or it is no Llama of text alone in full precision.
        TokenizerError: The tokenizer cannot be read.
    """
    where = folder / "params.json"
    params = Fields(str(where), read_object(where))
    for key, kind in OTHER_ARCHITECTURES.items():
        if params.get(key):
            raise _not_read(where, f"{kind} ({key})")
    shards = [state_dict(path, open_torch(path)) for path in _shard_paths(folder)]
    if any(name.startswith(("vision_model.", "text_model.")) for name in shards[0]):
        raise _not_read(folder, "a vision model")
    notes: list[str] = []
    config = _config(folder, params, shards, notes)
    tensors = OriginalTensors(folder, shards, config)
    config = replace(config, shared_classifier=shares_classifier(tensors))
    tokenizer = from_folder(folder, config.vocab_size)
    return Source(folder, with_token_ids(config, tokenizer), tensors, tokenizer, notes)


@dataclass(frozen=True, slots=True)
class ShardedRows:
    """A matrix that is cut over the shards, in order, along its rows or its columns."""

    parts: Sequence[TorchRows]
    shape: tuple[int, ...]
    """Of the whole matrix."""

    def __getitem__(self, rows: slice) -> FloatArray:
        start, stop, _ = rows.indices(self.shape[0])
        block = np.empty((stop - start, self.shape[1]), np.float32)  # (rows, cols)
        height, width = self.parts[0].shape
        for i, part in enumerate(self.parts):
            if width < self.shape[1]:
                block[:, i * width : (i + 1) * width] = part[start:stop]
                continue
            first, last = max(start, i * height), min(stop, (i + 1) * height)
            if first < last:
                block[first - start : last - start] = part[first - i * height : last - i * height]
        return block


class OriginalTensors:
    """A TensorSource of Meta's and llama2.c's tensor names, in one shard or several."""

    def __init__(self, where: Path, shards: Sequence[Shard], config: ModelConfig) -> None:
        """Checks names, shapes and dtypes of all tensors; reads none.

        Raises:
            CheckpointError: One is missing, or not what `config` says, or there is one more.
        """
        check_config(config, str(where))
        self._where, self._shards = where, shards
        self._shapes: dict[str, tuple[int, ...]] = {}
        expected = set()
        for spec in tensor_layout(replace(config, shared_classifier=False), 1):
            self._shapes[spec.name] = spec.shape
            for layer in range(max(spec.n_layers, 1)):
                expected.add(original_name(spec.name, layer))
                self._check(spec.name, layer, config)
        for name in sorted({name for shard in shards for name in shard} - expected):
            if not NOT_WEIGHTS.fullmatch(name):
                raise CheckpointError(
                    f"{where}: expected the tensors of a Llama, found also {name[:80]!r}",
                    "quantized models, adapters and other architectures are not read",
                )

    def __call__(self, name: str, layer: int) -> TorchRows | ShardedRows:
        parts = [shard[original_name(name, layer)] for shard in self._shards]
        full = self._shapes[name]
        if len(full) == 1 or len(parts) == 1:
            return parts[0]
        return ShardedRows(parts, full)

    def _check(self, name: str, layer: int, config: ModelConfig) -> None:
        shape, full = part_shape(self._where, self._shards, name, layer), self._shapes[name]
        for shard in self._shards:
            shard[original_name(name, layer)].check_float()
        n, where = len(self._shards), f"{self._where}: {original_name(name, layer)}"
        # Of the shapes that make up `full`: norms are repeated, matrices cut along their rows or columns.
        possible = [full] if len(full) == 1 or n == 1 else [(full[0] / n, full[1]), (full[0], full[1] / n)]
        if shape in possible:
            return
        if name in ("wk", "wv") and config.n_kv_heads < n:
            raise CheckpointError(
                f"{where}: expected each key-value head once, found {config.n_kv_heads} of them, "
                f"repeated over {n} shards",
                "get the release in fewer shards, or Hugging Face's",
            )
        of_shards = f" in {n} shards" if n > 1 else ""
        raise CheckpointError(
            f"{where}: expected shape {full}{of_shards}, found {shape}",
            "the file is damaged, a shard is missing, or params are those of another model",
        )


def original_name(name: str, layer: int) -> str:
    """Meta's and llama2.c's name of a tensor: ("wq", 3) -> "layers.3.attention.wq.weight"."""
    if name in META_LAYER_NAMES:
        return f"layers.{layer}.{META_LAYER_NAMES[name]}.weight"
    return f"{META_NAMES[name]}.weight"


def part_shape(where: Path, shards: Sequence[Shard], name: str, layer: int = 0) -> tuple[int, ...]:
    """The shape of a tensor's part in each shard.

    Raises:
        CheckpointError: A shard lacks it, it has another rank, or its shape is not the same in all shards.
    """
    key, rank = original_name(name, layer), 1 if name.endswith("norm") else 2
    for i, shard in enumerate(shards):
        if key not in shard:
            in_shard = f" in shard {i:02}" if len(shards) > 1 else ""
            raise CheckpointError(
                f"{where}: expected the tensors of a Llama, found no {key}{in_shard}",
                "the file is damaged, or of another architecture",
            )
        if len(shard[key].shape) != rank:
            raise CheckpointError(
                f"{where}: {key}: expected {rank} dimensions, found shape {shard[key].shape}",
                "the file is damaged, or of another architecture",
            )
        if shard[key].shape != shards[0][key].shape:
            raise CheckpointError(
                f"{where}: {key}: expected the same shape in all shards, "
                f"found {shards[0][key].shape} and {shard[key].shape}",
                "the shards are of different models",
            )
    return shards[0][key].shape


def shares_classifier(tensors: OriginalTensors) -> bool:
    """Whether the classifier is the embedding; reads a block at a time, up to the first that differs."""
    a, b = tensors("tok_embeddings", 0), tensors("wcls", 0)
    return all(np.array_equal(a[block], b[block]) for block in row_blocks(a.shape))


def _not_read(where: Path, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: expected a Llama text model, found {kind}", "give the folder of a text model in bfloat16"
    )


def _shard_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("consolidated.*.pth"))
    expected = [folder / f"consolidated.{i:02}.pth" for i in range(len(paths))]
    if not paths:
        raise CheckpointError(
            f"{folder}: expected consolidated.00.pth, found no such file", "get the whole folder of the model"
        )
    if paths != expected:
        missing = next(path for path in expected if path not in paths)
        raise CheckpointError(
            f"{folder}: expected shards 00 to {len(paths) - 1:02}, found no {missing.name}",
            "get the whole folder of the model",
        )
    return paths


def _config(folder: Path, params: Fields, shards: Sequence[Shard], notes: list[str]) -> ModelConfig:
    """All but `shared_classifier`; what is assumed goes into `notes`."""
    dim = params.integer("dim")
    n_heads = params.integer("n_heads")
    # params.json may say -1. Llama 2 cuts the embedding along dim, Llama 3 along the vocabulary.
    rows, cols = part_shape(folder, shards, "tok_embeddings")
    hidden_dim = part_shape(folder, shards, "w1")[0] * len(shards)
    config = ModelConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=params.integer("n_layers"),
        n_heads=n_heads,
        n_kv_heads=params.integer("n_kv_heads", n_heads),
        vocab_size=rows * len(shards) if cols == dim else rows,
        max_seq_len=0,
        rope_theta=params.number("rope_theta", 10000.0),
        norm_eps=params.number("norm_eps", 1e-5),
    )
    if params.get("use_scaled_rope"):
        factor = params.number("rope_scaling_factor", 32.0 if dim < 4096 else 8.0)
        if params.get("rope_scaling_factor") is None:
            notes.append(f"params.json does not say the factor of RoPE scaling: {factor:g} is assumed")
        high = params.number("rope_high_freq_factor", 4.0)
        config = replace(config, rope_scaling=RopeScaling(factor, 1.0, high, 8192))
    max_seq_len, family = _context(config)
    notes.append(f"params.json does not say the context length: {max_seq_len} is assumed, as {family}'s")
    return replace(config, max_seq_len=max_seq_len)


def _context(config: ModelConfig) -> tuple[int, str]:
    """(max_seq_len, family) by the module's table."""
    if config.rope_scaling:
        return 131072, "Llama 3.1"
    if config.vocab_size == LLAMA3_VOCAB_SIZE:
        return 8192, "Llama 3"
    if config.rope_theta == 1e6:
        return 16384, "Code Llama"
    if config.vocab_size == 32000 and config.norm_eps == 1e-5:
        return 4096, "Llama 2"
    return 2048, "Llama 1"
