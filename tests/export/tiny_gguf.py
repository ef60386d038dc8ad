"""Tiny GGUF files, made on the spot: by the gguf library, or byte by byte where the library would refuse."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.export.gguf_file import LAYER_NAMES, NAMES
from llamatui.tokenizers.hf_json_writer import byte_alphabet
from tests.tiny import random_weights, tiny_pieces

F32 = gguf.GGMLQuantizationType.F32
U8, U32, I32, F32_VALUE, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10

CONFIG = ModelConfig(64, 96, 2, 4, 2, 300, 128, bos_id=1, eos_ids=(2,))
"""Rows of all matrices are whole blocks of 32."""

Array = npt.NDArray[Any]


def gguf_name(name: str, layer: int) -> str:
    return f"blk.{layer}.{LAYER_NAMES[name]}.weight" if name in LAYER_NAMES else f"{NAMES[name]}.weight"


def sentencepiece_metadata(vocab_size: int = 300) -> dict[str, Any]:
    pieces = tiny_pieces(vocab_size)
    texts = ["<unk>", "<s>", "</s>", *(piece.decode().replace(" ", "▁") for piece, _ in pieces[3:])]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [score for _, score in pieces],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (vocab_size - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def bpe_metadata(vocab_size: int = 300, pre: str = "llama-bpe") -> dict[str, Any]:
    """Bytes, six merges, fillers, and at the end one token of the user's and three control tokens."""
    merges = ["t h", "th e", "Ġ the", "Ġ t", "i n", "in g"]
    tokens = [byte_alphabet(bytes([byte])) for byte in range(256)]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab_size - 4)]
    n_fillers = vocab_size - 4 - 262
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "<user>", "<|begin_of_text|>", "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * 262 + [5] * n_fillers + [4, 3, 3, 3],
        "tokenizer.ggml.bos_token_id": vocab_size - 3,
        "tokenizer.ggml.eos_token_id": vocab_size - 1,
    }


def model_metadata(config: ModelConfig = CONFIG) -> dict[str, Any]:
    return {
        "llama.embedding_length": config.dim,
        "llama.block_count": config.n_layers,
        "llama.feed_forward_length": config.hidden_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.context_length": config.max_seq_len,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
    }


def model_tensors(config: ModelConfig = CONFIG) -> dict[str, Array]:
    """float32 weights by their names in the file."""
    source = random_weights(config)
    return {
        gguf_name(spec.name, layer): source(spec.name, layer)
        for spec in tensor_layout(config, 1)
        for layer in range(max(spec.n_layers, 1))
    }


def write_gguf(
    path: Path,
    *,
    config: ModelConfig = CONFIG,
    kind: gguf.GGMLQuantizationType = F32,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array | None] | None = None,
    architecture: str = "llama",
) -> Path:
    """A model of random weights, its matrices of the type `kind`.

    `metadata` and `tensors` go over what is there; None takes an entry away. A tensor of bytes is stored as
    it is, as one of the type `kind`, and of others only float32 is converted.
    """
    writer = gguf.GGUFWriter(path, architecture)
    values = model_metadata(config) | sentencepiece_metadata(config.vocab_size) | dict(metadata or {})
    for key, value in values.items():
        add_value(writer, key, value)
    for name, w in (model_tensors(config) | dict(tensors or {})).items():
        if w is None:
            continue
        if w.dtype == np.uint8:
            writer.add_tensor(name, w, raw_dtype=kind)
        elif w.ndim == 2 and w.dtype == np.float32 and kind != F32:
            writer.add_tensor(name, gguf.quantize(w, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata entry, its value as in the file."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + elements


def tensor_info(name: str, dims: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def raw_gguf(
    entries: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; counts that are not those of the lists are lies."""
    header = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    head = header + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
