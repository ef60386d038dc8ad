"""Fine-tuning: whatever the model to begin with is kept in, the first loss is that of its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.base import KVCache  # noqa: E402
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling, tensor_layout  # noqa: E402
from llamatui.backends.checkpoint_writer import write_checkpoint  # noqa: E402
from llamatui.backends.numpy_backend import NumpyBackend  # noqa: E402
from llamatui.errors import LlamatuiError, UsageError  # noqa: E402
from llamatui.export.llama2c_checkpoint import open_llama2c  # noqa: E402
from llamatui.export.meta import original_name  # noqa: E402
from llamatui.export.open import open_model  # noqa: E402
from llamatui.export.to_bin import export_bin  # noqa: E402
from llamatui.export.to_hf import export_hf  # noqa: E402
from llamatui.train.config import TrainConfig, config_of  # noqa: E402
from llamatui.train.dataset import Windows, open_dataset  # noqa: E402
from llamatui.train.pretrained import load_trained  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from tests.tiny import TINY, random_weights, write_tokenizer_bin  # noqa: E402
from tests.train import peers  # noqa: E402, F401
from tests.train.tiny_runs import SETTINGS, evaluations, write_data  # noqa: E402

ARCHITECTURE = ("dim", "n_layers", "n_heads", "n_kv_heads", "dropout")
SHORT = {name: value for name, value in SETTINGS.items() if name not in ARCHITECTURE} | {"max_iters": 1}
SCALED = replace(
    TINY, rope_theta=300.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 4), norm_eps=1e-3, shared_classifier=False
)
"""Of a context so short that RoPE's scaling shows in eight tokens."""


def write_source(folder: Path, kind: str, config: ModelConfig) -> Path:
    """A random model as `kind` says, with the tokenizer of the data beside it."""
    write_tokenizer_bin(folder / "tokenizer.bin", config.vocab_size)
    weights = random_weights(config, std=None)
    path = folder / "model.bin"
    version = {"v0": 0, "v2": 2}.get(kind, 1)
    write_checkpoint(path, config, version, weights, group_size=16)
    if kind == "ckpt.pt":  # with no more than llama2.c writes
        state = {
            original_name(spec.name, layer): torch.from_numpy(weights(spec.name, layer))
            for spec in tensor_layout(config, 1)
            for layer in range(max(spec.n_layers, 1))
        }
        args = {name: getattr(config, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads")}
        args |= {"vocab_size": 300, "multiple_of": 32, "max_seq_len": config.max_seq_len, "dropout": 0.0}
        path = folder / "ckpt.pt"
        state.setdefault("output.weight", state["tok_embeddings.weight"])
        torch.save({"model": state, "model_args": args, "iter_num": 3, "best_val_loss": torch.ones(())}, path)
    elif kind == "hf":
        path = folder / "hf"
        export_hf(open_model(folder / "model.bin"), path)
    elif kind == "gguf":
        pytest.importorskip("gguf")
        from tests.export.tiny_gguf import write_gguf

        path = write_gguf(folder / "model.gguf", config=config)
    return path


def loss_of(bin_path: Path, data: Path, *, n: int = 4, seq_len: int = 8) -> float:
    """Mean over the windows that the first evaluation reads, by the NumPy backend."""
    backend = NumpyBackend(Checkpoint(bin_path), 1)
    windows = Windows(open_dataset(data), "valid", seq_len, seed=None)
    losses = []
    for i in range(n):
        first = i // 2 * windows.n_windows // 2 + i % 2  # two batches of two, from all over the split
        tokens, targets = windows.batch(first, 1)
        logits = backend.forward(tokens[0].tolist(), KVCache(backend.config), all_positions=True)
        logits -= logits.max(-1, keepdims=True)  # (seq_len, vocab_size)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-logits[np.arange(seq_len), targets[0]].mean())
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("v0", TINY),
        ("v1", SCALED),
        ("v2", SCALED),
        ("ckpt.pt", TINY),
        ("ckpt.pt", replace(TINY, shared_classifier=False, n_kv_heads=4)),
        ("hf", SCALED),
        ("gguf", TINY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_loss_is_that_of_the_source(tmp_path: Path, kind: str, config: ModelConfig) -> None:
    data = write_data(tmp_path / "data")
    source = write_source(tmp_path, kind, config)
    export_bin(open_model(source), tmp_path / "peer.bin", version=2 if kind == "v2" else 1)
    events = list(train(data, tmp_path / "out", SHORT, init_from=source))
    assert evaluations(events)[0][1] == pytest.approx(loss_of(tmp_path / "peer.bin", data), abs=1e-5)


def test_what_decides_the_numbers_survives_training_and_export(tmp_path: Path) -> None:
    config = replace(SCALED, chat_format="zephyr", bos_id=5, eos_ids=(7, 9))
    source = write_source(tmp_path, "v1", config)
    out = tmp_path / "out"
    list(train(write_data(tmp_path / "data"), out, SHORT, init_from=source))
    list(train(tmp_path / "data", out, {"max_iters": 2}, resume=True))
    export_bin(open_llama2c(out / "last.pt"), tmp_path / "tuned.bin", version=1)
    # The context too, though windows were shorter.
    assert Checkpoint(tmp_path / "tuned.bin").config == config


def test_the_model_decides_the_architecture_and_the_settings_the_rest() -> None:
    wanted = TrainConfig(dim=999, max_seq_len=128, tied=True, rope_theta=1.0, learning_rate=0.5, dropout=0.1)
    found = config_of(replace(SCALED, max_seq_len=64), wanted)
    model = (found.dim, found.n_layers, found.n_heads, found.n_kv_heads, found.hidden_dim)
    assert model == (32, 2, 4, 2, 48)
    assert (found.rope_theta, found.tied, found.max_seq_len) == (300.0, False, 64)
    assert (found.learning_rate, found.dropout) == (0.5, 0.1)
    assert config_of(replace(SCALED, max_seq_len=4096), wanted).max_seq_len == 128


@pytest.mark.parametrize("size", [290, 300, 310])
def test_data_of_another_vocabulary_is_refused(tmp_path: Path, size: int) -> None:
    data = write_data(tmp_path / "data", vocab_size=size)
    source = write_source(tmp_path, "v1", TINY)
    tokenizer = data / "tokenizer.bin"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b" the", b"zzzz"))
    problem = "vocabulary of 300, found one of 310" if size == 310 else "token 267 is 'zzzz', not ' the'"
    with pytest.raises(UsageError, match=problem) as caught:
        list(train(data, tmp_path / "out", SHORT, init_from=source))
    assert "pretokenize" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_smaller_vocabulary_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path, "v1", TINY)
    (tmp_path / "tokenizer.bin").unlink()
    with pytest.raises(UsageError, match="vocabulary of 300, found one of 290"):
        list(train(write_data(tmp_path / "data", vocab_size=290), tmp_path / "out", SHORT, init_from=source))


def test_a_model_may_have_unused_tokens_at_the_end(tmp_path: Path) -> None:
    """The run goes on with the model's own tokenizer, with which it is sampled from, resumed and exported."""
    data = write_data(tmp_path / "data", vocab_size=290)
    source, out = write_source(tmp_path, "v1", TINY), tmp_path / "out"
    list(train(data, out, {**SHORT, "sample_tokens": 5}, init_from=source))
    assert (out / "tokenizer.bin").read_bytes() == (tmp_path / "tokenizer.bin").read_bytes()
    list(train(data, out, {"max_iters": 2}, resume=True))
    model, tokenizer = load_trained(out)
    assert model.config.vocab_size == tokenizer.vocab_size == 300
    other = write_data(tmp_path / "other", vocab_size=290)
    content = (other / "tokenizer.bin").read_bytes()
    (other / "tokenizer.bin").write_bytes(content.replace(b" the", b"zzzz"))
    with pytest.raises(UsageError, match="token 267"):
        list(train(other, out, {"max_iters": 3}, resume=True))


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 100], ids=["missing", "empty", "nonsense"])
@pytest.mark.parametrize("name", ["model.bin", "ckpt.pt", "model.gguf"])
def test_what_is_no_model_is_refused_before_the_folder_is_made(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LlamatuiError) as caught:
        list(train(write_data(tmp_path / "data"), tmp_path / "out", SHORT, init_from=tmp_path / name))
    assert caught.value.exit_code == 3
    assert str(tmp_path / name) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_model_of_numbers_that_are_none_is_told(tmp_path: Path) -> None:
    weights = random_weights(TINY)

    def broken(name: str, layer: int) -> Any:
        return weights(name, layer) * np.float32("nan" if name == "norm" else 1)

    write_checkpoint(tmp_path / "model.bin", TINY, 1, broken)
    with pytest.raises(LlamatuiError, match="evaluation after step 0: loss nan") as caught:
        list(train(write_data(tmp_path / "data"), tmp_path / "out", SHORT, init_from=tmp_path / "model.bin"))
    assert "damaged" in caught.value.hint
    assert not list((tmp_path / "out").glob("*.pt"))
