"""LoRA: at first the model itself; then only the additions change, and the export has them multiplied out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.base import KVCache  # noqa: E402
from llamatui.backends.checkpoint import Checkpoint  # noqa: E402
from llamatui.backends.checkpoint_writer import write_checkpoint  # noqa: E402
from llamatui.backends.numpy_backend import NumpyBackend  # noqa: E402
from llamatui.export.llama2c_checkpoint import open_llama2c  # noqa: E402
from llamatui.export.to_bin import export_bin  # noqa: E402
from llamatui.train.events import Started  # noqa: E402
from llamatui.train.lora import LoraLinear, add_lora  # noqa: E402
from llamatui.train.model import Llama  # noqa: E402
from llamatui.train.pretrained import load_trained  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from tests.tiny import TINY, random_weights  # noqa: E402
from tests.train.peers import lively  # noqa: E402
from tests.train.tiny_runs import SETTINGS, write_data  # noqa: E402

MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
TOKENS = torch.arange(3, 40)[None]
LORA = {
    name: value
    for name, value in SETTINGS.items()
    if name not in ("dim", "n_layers", "n_heads", "n_kv_heads", "dropout")
} | {"lora_rank": 3, "lora_alpha": 12.0, "learning_rate": 0.05}


def test_at_first_it_is_the_model_itself() -> None:
    model = lively(Llama(TINY))
    expected = model(TOKENS)
    add_lora(model, 4, 16.0)
    assert torch.equal(model(TOKENS), expected)


def test_only_the_additions_have_gradients() -> None:
    model = lively(Llama(TINY))
    add_lora(model, 4, 16.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("lora_b"):  # with zeros there, lora_a would have no gradient yet
                p.fill_(0.1)
    model(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    for name, p in model.named_parameters():
        is_lora = name.endswith(("lora_a", "lora_b"))
        assert p.requires_grad == is_lora, name
        assert (p.grad is not None and p.grad.abs().max() > 0) == is_lora, name


@pytest.mark.parametrize("rank", [1, 4])
def test_every_matrix_of_a_layer_gets_an_addition(rank: int) -> None:
    model = Llama(TINY)
    add_lora(model, rank, 16.0)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(MATRICES) * TINY.n_layers
    shapes = {name: (p.shape[0], p.shape[1]) for name, p in model.named_parameters() if p.dim() == 2}
    for name, shape in trained.items():
        rows, columns = shapes[name.rpartition(".")[0] + ".weight"]
        assert shape == ((rank, columns) if name.endswith("lora_a") else (rows, rank))


def test_the_sum_is_that_of_the_paper() -> None:
    linear = torch.nn.Linear(5, 7, bias=False)
    lora = LoraLinear(linear, 2, 0.5)
    with torch.no_grad():
        lora.lora_b.normal_()
    x = torch.randn(3, 4, 5)
    weight = linear.weight + 0.5 * lora.lora_b @ lora.lora_a
    torch.testing.assert_close(lora(x), x @ weight.T)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = replace(TINY, rope_theta=500.0, norm_eps=1e-6)
    write_checkpoint(tmp_path / "base.bin", config, 1, random_weights(config, std=None))
    return tmp_path / "base.bin"


def state_of(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True)["model"])


def test_a_run_changes_the_additions_alone_and_its_export_has_them(tmp_path: Path, base: Path) -> None:
    events = list(train(write_data(tmp_path / "data"), tmp_path / "out", LORA, init_from=base))
    started = next(event for event in events if isinstance(event, Started))
    # rank * (inputs + outputs): wq and wo 32, wk and wv 16, w1, w2 and w3 48 outputs or inputs.
    assert started.n_trained == 2 * 3 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert started.n_params == TINY.n_params + started.n_trained

    state, frozen = state_of(tmp_path / "out/last.pt"), Checkpoint(base)
    np.testing.assert_array_equal(state["tok_embeddings.weight"].numpy(), frozen.fp32("tok_embeddings"))
    np.testing.assert_array_equal(state["norm.weight"].numpy(), frozen.fp32("norm"))
    for layer in range(TINY.n_layers):
        for name in MATRICES:
            stem = f"layers.{layer}.{'attention' if name[1] in 'qkvo' else 'feed_forward'}.{name}"
            np.testing.assert_array_equal(state[f"{stem}.weight"].numpy(), frozen.fp32(name)[layer])
            assert state[f"{stem}.lora_b"].abs().max() > 0.01

    unmerged = Llama(frozen.config)
    add_lora(unmerged, 3, 12.0)
    unmerged.load_state_dict(state)
    expected = unmerged(TOKENS)[0].detach()
    plain = Llama(frozen.config)
    plain.load_state_dict({name: w for name, w in state.items() if "lora" not in name})
    assert (plain(TOKENS)[0] - expected).abs().max() > 0.1  # else the next lines would prove nothing

    merged, _ = load_trained(tmp_path / "out/last.pt")
    torch.testing.assert_close(merged(TOKENS)[0], expected, rtol=0, atol=1e-4)
    export_bin(open_llama2c(tmp_path / "out/last.pt"), tmp_path / "a.bin", version=1)
    checkpoint = Checkpoint(tmp_path / "a.bin")
    assert (checkpoint.config.rope_theta, checkpoint.config.norm_eps) == (500.0, 1e-6)
    logits = NumpyBackend(checkpoint, 1).forward(
        TOKENS[0].tolist(), KVCache(checkpoint.config), all_positions=True
    )
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-4)
