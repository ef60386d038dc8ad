"""Models with random weights, of the shapes that the benchmark knows: speed depends on shapes, not on values.

The same weights as fp32 (version 0) and Q8_0 (version 2) for us, `run` and `runq`, and as GGUF for llama.cpp.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llamatui.backends.checkpoint import Checkpoint, ModelConfig, tensor_layout, with_default_theta
from llamatui.backends.checkpoint_writer import Rows, TensorSource, write_checkpoint
from llamatui.errors import MissingExtraError

SHAPES = {
    "15M": ModelConfig(288, 768, 6, 6, 6, 32000, 256),  # stories15M
    "110M": ModelConfig(768, 2048, 12, 12, 12, 32000, 1024),  # stories110M
    "1B": with_default_theta(ModelConfig(2048, 8192, 16, 32, 8, 128256, 2048)),  # Llama-3.2-1B
}

GGUF_NAMES = {
    "attention_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
    "ffn_norm": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
    "tok_embeddings": "token_embd", "norm": "output_norm",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFiles:
    """One model in one precision."""

    model: Path
    """`.bin` of the version that `run` (0) or `runq` (2) reads."""
    gguf: Path


def model_files(folder: Path, shape: str) -> dict[str, ModelFiles]:
    """Where a shape's files are, by precision."""
    return {
        "fp32": ModelFiles(folder / f"random-{shape}.bin", folder / f"random-{shape}.F32.gguf"),
        "Q8_0": ModelFiles(folder / f"random-{shape}.q8_0.bin", folder / f"random-{shape}.Q8_0.gguf"),
    }


def write_models(folder: Path, shape: str, *, gguf: bool) -> None:
    """Writes those of a shape's files that `folder` lacks: 5 bytes a weight, and as much again for GGUF.

    Raises:
        MissingExtraError: The gguf package is needed.
        LlamatuiError: The disk has no room.
    """
    files = model_files(folder, shape)
    fp32, q8_0 = files["fp32"].model, files["Q8_0"].model
    if not fp32.exists():
        notice(fp32)
        write_checkpoint(fp32, SHAPES[shape], 0, random_tensors(SHAPES[shape]))
    checkpoint = Checkpoint(fp32)
    if not q8_0.exists():
        notice(q8_0)
        write_checkpoint(q8_0, SHAPES[shape], 2, stored_tensors(checkpoint))
    for precision in files if gguf else ():
        if not files[precision].gguf.exists():
            notice(files[precision].gguf)
            write_gguf(files[precision].gguf, checkpoint, precision)


def notice(path: Path) -> None:
    print(f"writing {path}", file=sys.stderr)


def random_tensors(config: ModelConfig) -> TensorSource:
    shapes = {spec.name: spec.shape for spec in tensor_layout(config, 0)}
    rng = np.random.default_rng(0)

    def tensor(name: str, _layer: int) -> Rows:
        if name.endswith("norm"):
            return np.ones(shapes[name], np.float32)
        weights = rng.standard_normal(shapes[name], np.float32)
        weights *= np.float32(0.02)
        return weights

    return tensor


def stored_tensors(checkpoint: Checkpoint) -> TensorSource:
    layered = {spec.name for spec in tensor_layout(checkpoint.config, 0) if spec.n_layers}

    def tensor(name: str, layer: int) -> Rows:
        stored = checkpoint.tensors[name]
        return stored[layer] if name in layered else stored

    return tensor


def write_version_0(path: Path, source: Path) -> None:
    """A copy that `run` reads, without what version 0 has no field for: good for measuring speed only."""
    notice(path)
    checkpoint = Checkpoint(source)
    c = checkpoint.config
    config = ModelConfig(
        c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size, c.max_seq_len,
        shared_classifier=c.shared_classifier,
    )  # fmt: skip
    write_checkpoint(path, with_default_theta(config), 0, stored_tensors(checkpoint))


def write_gguf(path: Path, checkpoint: Checkpoint, precision: str) -> None:
    """GGUF (ggml/docs/gguf.md), with a vocabulary of made-up words."""
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
        from gguf.quants import quantize
    except ImportError as error:
        raise MissingExtraError("writing GGUF files for llama.cpp", "export") from error
    c = checkpoint.config
    part = path.with_name(f".{path.name}.part")  # an interrupted write leaves nothing at `path`
    writer = GGUFWriter(part, "llama")
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("llama")
    control, byte_tokens = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"w{i}" for i in range(c.vocab_size - 259)]
    writer.add_token_list([*control, *byte_tokens, *words])
    writer.add_token_scores([0.0] * c.vocab_size)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(words)])  # unknown, control, byte, normal
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    q8_0 = GGMLQuantizationType.Q8_0
    writer.add_file_type(7 if precision == "Q8_0" else 0)
    for name, gguf_name in GGUF_NAMES.items():
        tensor = checkpoint.fp32(name)  # (n_layers, ...) or (...)
        layered = name not in ("tok_embeddings", "norm")
        for layer in range(c.n_layers) if layered else (-1,):
            full_name = f"blk.{layer}.{gguf_name}.weight" if layered else f"{gguf_name}.weight"
            weights = tensor[layer] if layered else tensor
            if precision == "Q8_0" and weights.ndim == 2:
                writer.add_tensor(full_name, quantize(weights, q8_0), raw_dtype=q8_0)
            else:
                writer.add_tensor(full_name, weights)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
