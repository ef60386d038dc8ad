"""Tiny random models and vocabularies for tests."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.backends.q8_0 import FloatArray

TINY = ModelConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, max_seq_len=64)


def random_weights(config: ModelConfig, seed: int = 0) -> Callable[[str, int], FloatArray]:
    """A tensor source for `write_checkpoint`: the same weights for the same seed, in any order of asking.

    Logits come out lively enough that sampling has something to choose from.
    """
    shapes = {spec.name: spec.shape for spec in tensor_layout(config, 1)}

    def source(name: str, layer: int) -> FloatArray:
        rng = np.random.default_rng([seed, layer, *name.encode()])
        w = rng.standard_normal(shapes[name], dtype=np.float32)
        return 1 + 0.1 * w if name.endswith("norm") else w * np.float32(0.3)

    return source


def tiny_pieces(vocab_size: int = 300) -> list[tuple[bytes, float]]:
    """(piece, score) of a vocabulary like llama2.c's: control tokens, bytes, characters, some merges."""
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(b"<0x%02X>" % byte, 0.0) for byte in range(256)]
    merges = ["th", "he", " t", " a", "in", "er", "an", " th", " the", "re", "on", "nd", " and"]
    characters = list(" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?é日")
    words = [*merges, *characters][: vocab_size - len(pieces)]
    return pieces + [(word.encode(), -float(rank)) for rank, word in enumerate(words)]


def write_tokenizer_bin(path: Path, vocab_size: int = 300) -> None:
    pieces = tiny_pieces(vocab_size)
    records = [struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces]
    path.write_bytes(struct.pack("<i", max(len(piece) for piece, _ in pieces)) + b"".join(records))
