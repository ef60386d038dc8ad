"""GGUF files of the architecture `llama`: Llama 1 to 3.3, TinyLlama, SmolLM2, Mistral 7B and their kin.

    tok_embeddings  token_embd     attention_norm  blk.N.attn_norm    ffn_norm  blk.N.ffn_norm
    norm            output_norm    wq, wk, wv      blk.N.attn_q, ...  w1, w3    blk.N.ffn_gate, .ffn_up
    wcls            output         wo              blk.N.attn_output  w2        blk.N.ffn_down

The rows of wq and wk are in llama2.c's order already: `LlamaModel.permute` in llama.cpp's
`conversion/llama.py`. Rows of Q8_0 are given as they are, all other types as fp32. Metadata that would change
what a Llama computes, and that this engine does not know, is refused.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and `src/models/llama.cpp` of llama.cpp.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llamatui.backends.checkpoint import ModelConfig, RopeScaling, check_config, tensor_layout
from llamatui.backends.checkpoint_writer import Rows
from llamatui.backends.q8_0 import FloatArray, Q8Tensor, fit_group_size
from llamatui.errors import CheckpointError, TokenizerError
from llamatui.export.gguf_header import GgufHeader, GgufTensor, Metadata, read_gguf_header
from llamatui.export.gguf_vocab import special_ids, tokenizer_files
from llamatui.export.source import LazyRows, Source, drop_pages
from llamatui.tokenizers.chat_templates import UNKNOWN_FORMAT, format_of

LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "wq": "attn_q",
    "wk": "attn_k",
    "wv": "attn_v",
    "wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "w1": "ffn_gate",
    "w2": "ffn_down",
    "w3": "ffn_up",
}
"""Ours to GGUF's, in `blk.{layer}.{name}.weight`."""

NAMES = {"tok_embeddings": "token_embd", "norm": "output_norm", "wcls": "output"}
"""Ours to GGUF's, in `{name}.weight`."""

EMBEDDING, CLASSIFIER, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"

READ_TYPES = frozenset(
    ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
)
"""By their names in `gguf.GGMLQuantizationType`."""

Q8_0_BLOCK = np.dtype([("scale", "<f2"), ("q", "i1", 32)])
"""Source: `block_q8_0` in ggml's `src/ggml-common.h`."""

OTHER_FORM = "get the model in another form: Hugging Face's, or a GGUF file of an ordinary Llama"


def open_gguf(path: Path) -> Source:
    """The model in a file, with the tokenizer in its metadata.

    Raises:
        CheckpointError: Missing, damaged, or no Llama that is read here.
        TokenizerError: The vocabulary is damaged or of a kind that is not read here.
        MissingExtraError: The gguf library is not installed.
    """
    header = read_gguf_header(path)
    metadata = header.metadata
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{path}: expected the architecture llama, found {architecture!r}",
            "choose a model of the Llama family",
        )
    config = _config(path, header)
    _check_tensors(path, header, config)
    config = replace(config, rope_scaling=_rope_scaling(path, header, config))
    check_config(config, str(path))
    try:
        ids = special_ids(metadata, config.vocab_size)
        files = tokenizer_files(metadata, config.vocab_size)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", error.hint or OTHER_FORM) from None

    notes = []
    template = metadata.text("tokenizer.chat_template")
    chat_format = format_of(template) or (UNKNOWN_FORMAT if template else "")
    if chat_format == UNKNOWN_FORMAT:
        notes.append("its chat template is none that llamatui knows: chat will need --chat-format")
    if not files:
        notes.append("the file has no tokenizer")
    elif metadata.text("tokenizer.ggml.model") == "gpt2" and "tokenizer.ggml.pre" not in metadata:
        notes.append(
            "the file does not say how its tokenizer splits text: the ids may differ from the model's"
        )
    config = replace(config, chat_format=chat_format, bos_id=ids.bos, eos_ids=ids.ends)
    return Source(path, config, lambda name, layer: _rows(path, header, name, layer), files, notes)


def _config(path: Path, header: GgufHeader) -> ModelConfig:
    """All but what the tokenizer and the RoPE factors say."""
    metadata = header.metadata
    if EMBEDDING not in header.tensors:
        raise CheckpointError(f"{path}: expected the tensor {EMBEDDING}, found none", OTHER_FORM)
    n_heads = metadata.integer("llama.attention.head_count")
    config = ModelConfig(
        dim=metadata.integer("llama.embedding_length"),
        hidden_dim=metadata.integer("llama.feed_forward_length"),
        n_layers=metadata.integer("llama.block_count"),
        n_heads=n_heads,
        n_kv_heads=metadata.integer("llama.attention.head_count_kv", n_heads),
        vocab_size=header.tensors[EMBEDDING].shape[0],
        max_seq_len=metadata.integer("llama.context_length"),
        rope_theta=_decimal(metadata.number("llama.rope.freq_base", 10000.0)),
        norm_eps=_decimal(metadata.number("llama.attention.layer_norm_rms_epsilon", 1e-5)),
        shared_classifier=CLASSIFIER not in header.tensors,
    )
    check_config(config, str(path))
    if (
        any(type_name(tensor) == "Q8_0" and len(tensor.shape) == 2 for tensor in header.tensors.values())
        and fit_group_size(32, config.dim, config.hidden_dim) == 32
    ):
        config = replace(config, group_size=32)
    _check_architecture(path, metadata, config)
    return config


def _decimal(x: float) -> float:
    """The number that was rounded to fp32: 1e-05 where the file has 9.999999747378752e-06."""
    with np.errstate(over="ignore"):  # infinite is for `check_config` to refuse
        return float(str(np.float32(x)))


def _check_architecture(path: Path, metadata: Metadata, config: ModelConfig) -> None:
    def refuse(expected: str, found: object) -> None:
        raise CheckpointError(f"{path}: expected {expected}, found {found}", OTHER_FORM)

    if n_experts := metadata.integer("llama.expert_count", 0):
        refuse("a model without experts", f"a mixture of {n_experts} (llama.expert_count)")
    for name in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        size = metadata.integer(f"llama.{name}", config.head_dim)
        if size != config.head_dim:
            refuse(f"llama.{name} to be {config.head_dim}, as dim / n_heads is", size)
    # An absent type means linear, and a factor of 0 none: `load_hparams` in llama.cpp's llama-model.cpp.
    kind = metadata.text("llama.rope.scaling.type", "linear")
    factor = metadata.number("llama.rope.scaling.factor", metadata.number("llama.rope.scale_linear", 0.0))
    if kind != "none" and factor not in (0, 1):
        refuse("RoPE without scaling, or Llama 3's", f"{kind} scaling by {factor:g} (llama.rope.scaling)")
    attention_factor = metadata.number("llama.rope.scaling.attn_factor", 1.0)
    if attention_factor != 1:
        refuse("llama.rope.scaling.attn_factor to be 1", f"{attention_factor:g}")


def _check_tensors(path: Path, header: GgufHeader, config: ModelConfig) -> None:
    """Checks names, shapes and types of all tensors.

    Raises:
        CheckpointError: One is missing, unknown, or not as it should be.
    """
    expected = {ROPE_FACTORS}
    for name, shape in _expected_tensors(config):
        tensor = header.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{path}: expected the tensor {name}, found none", OTHER_FORM)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{path}: expected {name} of shape {shape}, found {tensor.shape}", OTHER_FORM
            )
        expected.add(name)
    for tensor in header.tensors.values():
        if tensor.name.endswith(".bias"):
            raise CheckpointError(f"{path}: expected a model without biases, found {tensor.name}", OTHER_FORM)
        if tensor.name not in expected:
            raise CheckpointError(f"{path}: expected only a Llama's tensors, found {tensor.name}", OTHER_FORM)
        if type_name(tensor) not in READ_TYPES:
            raise CheckpointError(
                f"{path}: expected {tensor.name} of a type that is read here, found {type_name(tensor)}",
                "get the model as Q8_0, Q6_K, Q5_K_M, Q4_K_M or F16",
            )


def _expected_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    # One by one: the number of layers may be made up.
    for spec in tensor_layout(config, 1):
        for layer in range(max(spec.n_layers, 1)):
            yield _gguf_name(spec.name, layer), spec.shape


def _gguf_name(name: str, layer: int) -> str:
    return f"blk.{layer}.{LAYER_NAMES[name]}.weight" if name in LAYER_NAMES else f"{NAMES[name]}.weight"


def type_name(tensor: GgufTensor) -> str:
    from gguf import GGMLQuantizationType

    name: str = GGMLQuantizationType(tensor.type).name
    return name


def _rows(path: Path, header: GgufHeader, name: str, layer: int) -> Rows:
    tensor = header.tensors[_gguf_name(name, layer)]
    if len(tensor.shape) == 1:
        return _dequantized(tensor, _stored(header, tensor))

    def read(rows: slice) -> FloatArray | Q8Tensor:
        drop_pages(header.mapping)  # of the block before
        stored = _stored(header, tensor)[rows]
        if type_name(tensor) != "Q8_0":
            return _dequantized(tensor, stored)
        blocks = stored.view(Q8_0_BLOCK)  # (rows, groups)
        scale = blocks["scale"].astype(np.float32)  # (rows, groups)
        if not np.isfinite(scale).all():
            raise CheckpointError(
                f"{path}: expected numbers as scales of {tensor.name}, found infinite ones or NaN",
                "the file is damaged: get it again",
            )
        return Q8Tensor(blocks["q"].reshape(len(stored), -1), scale)  # (rows, cols), (rows, groups)

    return LazyRows(tensor.shape, read)


def _stored(header: GgufHeader, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
    """A view of the mapped bytes, (rows, bytes of a row) or (bytes,)."""
    data = np.frombuffer(header.mapping, np.uint8, tensor.n_bytes, tensor.offset)
    return data.reshape(*tensor.shape[:-1], -1)


def _dequantized(tensor: GgufTensor, stored: npt.NDArray[np.uint8]) -> FloatArray:
    """float32 values of stored rows, (rows, cols) or (cols,)."""
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # infinite scales of a damaged file: the writer looks for them
        values: FloatArray = dequantize(stored, GGMLQuantizationType(tensor.type))
    return values


def _rope_scaling(path: Path, header: GgufHeader, config: ModelConfig) -> RopeScaling | None:
    """Llama 3's scaling, from the tensor of what each frequency is divided by; None if there is none.

    llama.cpp's converter stores no parameters. All models so far have those below but for the factor, which
    is what long wavelengths are divided by, so the largest. Another set shows in the comparison.

    Raises:
        CheckpointError: The parameters do not give these factors.
    """
    tensor = header.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    if tensor.shape != (config.head_dim // 2,):
        raise CheckpointError(
            f"{path}: expected {ROPE_FACTORS} of shape {(config.head_dim // 2,)}, found {tensor.shape}",
            OTHER_FORM,
        )
    stored = _dequantized(tensor, _stored(header, tensor))  # (head_dim / 2,)
    if (stored == 1).all():
        return None
    original = header.metadata.integer("llama.rope.scaling.original_context_length", 8192)
    largest = float(stored.max())
    for factor in (8.0, 32.0, _decimal(largest)) if 1 < largest < math.inf else ():
        for max_seq_len in (8192, original):
            scaling = RopeScaling(factor, 1.0, 4.0, max_seq_len)
            if np.allclose(stored, _rope_factors(config, scaling), rtol=1e-4, atol=0):
                return scaling
    raise CheckpointError(
        f"{path}: expected Llama 3's RoPE scaling in {ROPE_FACTORS}, found other factors", OTHER_FORM
    )


def _rope_factors(config: ModelConfig, scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """What each frequency is divided by, (head_dim / 2,).

    Source: `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`.
    """
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    wavelengths = 2 * math.pi * config.rope_theta**exponents  # (head_dim / 2,)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((scaling.original_max_seq_len / wavelengths - low) / (high - low), 0, 1)
    factors: npt.NDArray[np.float64] = 1 / ((1 - kept) / scaling.factor + kept)
    return factors
