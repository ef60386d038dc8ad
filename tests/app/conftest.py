"""A hub on loopback with three repositories."""

import json
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from llamatui.backends.checkpoint import tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.export.source import HF_LAYER_NAMES, HF_NAMES
from tests.app.hub_server import HF_REPO, STORIES, Hub, serve, use
from tests.tiny import TINY, random_weights, write_tokenizer_bin


@pytest.fixture(scope="session")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Repositories by name: a .bin with its tokenizer in a folder, one without, and a Hugging Face model."""
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "tiny.bin", TINY, 0, random_weights(TINY))
    write_tokenizer_bin(folder / "tok.bin", TINY.vocab_size)
    model, tokenizer = (folder / "tiny.bin").read_bytes(), (folder / "tok.bin").read_bytes()
    return {
        STORIES: {
            "README.md": b"# stories",
            "stories260K/stories260K.bin": model,
            "stories260K/tok512.bin": tokenizer,
            "lonely.bin": model,
        },
        HF_REPO: {"config.json": hf_config(), "model.safetensors": safetensors(), "README.md": b"# tiny"},
    }


def hf_config() -> bytes:
    c = TINY
    return json.dumps(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": c.dim,
            "intermediate_size": c.hidden_dim,
            "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads,
            "vocab_size": c.vocab_size,
            "max_position_embeddings": c.max_seq_len,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        }
    ).encode()


def safetensors() -> bytes:
    """A file of TINY's tensors, all 0.5."""
    header: dict[str, object] = {}
    end = 0
    for spec in tensor_layout(TINY, 1):
        for layer in range(max(spec.n_layers, 1)):
            name = (
                f"model.layers.{layer}.{HF_LAYER_NAMES[spec.name]}.weight"
                if spec.n_layers
                else f"{HF_NAMES[spec.name]}.weight"
            )
            start, end = end, end + 4 * int(np.prod(spec.shape))
            header[name] = {"dtype": "F32", "shape": spec.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + np.full(end // 4, 0.5, "<f4").tobytes()


@pytest.fixture
def server(contents: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    with serve() as running:
        running.repos = {repo: dict(files) for repo, files in contents.items()}
        use(running, monkeypatch)
        yield running
