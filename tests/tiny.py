"""Tiny random models and vocabularies for tests."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from llamatui.backends.checkpoint import ModelConfig, tensor_layout
from llamatui.backends.q8_0 import FloatArray
from llamatui.tokenizers.hf_json_writer import bpe_json, byte_alphabet
from llamatui.tokenizers.splitters import GPT2_PATTERN

TINY = ModelConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, max_seq_len=64)


def random_weights(
    config: ModelConfig, seed: int = 0, std: float | None = 0.3
) -> Callable[[str, int], FloatArray]:
    """A tensor source for `write_checkpoint`: the same weights for the same seed, in any order of asking.

    Logits come out lively enough that sampling has something to choose from.

    Args:
        std: None makes it 1 / sqrt(inputs) of each matrix, about as in trained models: layers then keep small
            differences small.
    """
    shapes = {spec.name: spec.shape for spec in tensor_layout(config, 1)}

    def source(name: str, layer: int) -> FloatArray:
        rng = np.random.default_rng([seed, layer, *name.encode()])
        w = rng.standard_normal(shapes[name], dtype=np.float32)
        return 1 + 0.1 * w if name.endswith("norm") else w * np.float32(std or shapes[name][-1] ** -0.5)

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


CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TINY = replace(TINY, vocab_size=259, chat_format="chatml", bos_id=257, eos_ids=(258,), max_seq_len=512)


def byte_tokens() -> list[str]:
    """The 256 bytes in GPT-2's alphabet, and ChatML's control tokens."""
    alphabet = [byte_alphabet(bytes([byte])) for byte in range(256)]
    return [*alphabet, "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_chat_tokenizer(path: Path) -> None:
    """A tokenizer.json of bytes with ChatML's control tokens, and its configuration with a template."""
    tokens = byte_tokens()
    special = {text: i for i, text in enumerate(tokens) if i > 255}
    path.write_bytes(bpe_json(tokens, [], [GPT2_PATTERN], special, bos=None, ignore_merges=False))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML_TEMPLATE}
    path.with_name(f"{path.stem}_config.json").write_text(json.dumps(config))
