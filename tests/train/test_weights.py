"""Weights of any source in the PyTorch model: the same numbers, and for Q8_0 those that it stands for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.base import KVCache  # noqa: E402
from llamatui.backends.checkpoint import Checkpoint, RopeScaling, tensor_layout  # noqa: E402
from llamatui.backends.checkpoint_writer import write_checkpoint  # noqa: E402
from llamatui.backends.numpy_backend import NumpyBackend  # noqa: E402
from llamatui.backends.q8_0 import Q8Tensor  # noqa: E402
from llamatui.export.bin_file import open_bin  # noqa: E402
from llamatui.export.meta import original_name  # noqa: E402
from llamatui.train.model import Llama  # noqa: E402
from llamatui.train.weights import copy_weights  # noqa: E402
from tests.tiny import TINY, random_weights  # noqa: E402
from tests.train.peers import lively  # noqa: E402

SCALED = replace(TINY, rope_theta=500.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32), norm_eps=1e-6)
CONFIGS = {"tied": TINY, "untied": replace(TINY, shared_classifier=False), "llama 3 rope": SCALED}


@pytest.mark.parametrize(
    ("kind", "version"), [(k, v) for k in CONFIGS for v in (0, 1, 2) if (k, v) != ("llama 3 rope", 0)]
)
def test_a_bin_becomes_a_model_of_the_same_logits(tmp_path: Path, kind: str, version: int) -> None:
    config = CONFIGS[kind]
    path = tmp_path / "model.bin"
    write_checkpoint(path, config, version, random_weights(config), group_size=16)
    source = open_bin(path)
    model = lively(Llama(replace(source.config, group_size=0)), seed=9)
    copy_weights(source, model)
    parameters, checkpoint = dict(model.named_parameters()), Checkpoint(path)
    for spec in tensor_layout(config, 1):
        for layer in range(max(spec.n_layers, 1)):
            stored = checkpoint.tensors[spec.name]
            rows = stored[layer] if spec.n_layers else stored
            expected = rows.dequantize() if isinstance(rows, Q8Tensor) else rows
            found = parameters[original_name(spec.name, layer)].detach().numpy()
            np.testing.assert_array_equal(found, expected, err_msg=spec.name)
    tokens = list(range(3, 3 + config.max_seq_len))
    backend = NumpyBackend(checkpoint, 1)
    logits = backend.forward(tokens, KVCache(backend.config), all_positions=True)
    np.testing.assert_allclose(
        model(torch.tensor([tokens]))[0].detach().numpy(), logits, rtol=0, atol=1e-4 * np.abs(logits).max()
    )


def test_the_model_does_not_write_to_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.bin", TINY, 1, random_weights(TINY))
    before = (tmp_path / "model.bin").read_bytes()
    source = open_bin(tmp_path / "model.bin")
    model = Llama(source.config)
    copy_weights(source, model)
    lively(model)
    assert (tmp_path / "model.bin").read_bytes() == before
