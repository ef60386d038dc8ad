"""A fresh process's work: run kernels that were just compiled on a tiny model, and compare with NumPy's
results.

    python -m llamatui.backends.kernels.check fp32 OBJECT

Exits with 0 if they agree. Code that crashes does so here.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from llamatui.backends.base import Backend, KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.kernels.cache import Kernels
from llamatui.backends.numba_backend import NumbaBackend
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.backends.q8_0_backend import Q8Backend

# Heads and groups of more than one vector, and of the fewest numbers that there are kernels for.
CONFIG = ModelConfig(
    dim=192,
    hidden_dim=320,
    n_layers=2,
    n_heads=6,
    n_kv_heads=3,
    vocab_size=200,
    max_seq_len=64,
    group_size=64,
)
TOLERANCE = {"fp32": 1e-4, "q8_0": 0.1}
"""Most that a logit may differ, in standard deviations of logits: q8_0 rounds activations as well."""


def main() -> int:
    kind, path = sys.argv[1:]
    kernels = Kernels(Path(path).read_bytes())
    shapes = {spec.name: spec.shape for spec in tensor_layout(CONFIG, 2)}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.bin"
        write_checkpoint(
            model,
            CONFIG,
            2,
            lambda name, layer: rng.standard_normal(shapes[name], np.float32) * np.float32(0.1),
        )
        checkpoint = Checkpoint(model)
        cls = NumbaBackend if kind == "fp32" else Q8Backend
        expected, found = logits(NumpyBackend(checkpoint, 1)), logits(cls(checkpoint, 2, kernels))
    difference = float(np.abs(expected - found).max() / expected.std())
    if not difference < TOLERANCE[kind]:
        print(f"logits differ by {difference:.3g} standard deviations", file=sys.stderr)
        return 1
    return 0


def logits(backend: Backend) -> np.ndarray:
    """Of 20 tokens at once, then of 3 one by one: (23, vocab_size)."""
    cache = KVCache(CONFIG)
    tokens = [i * 37 % CONFIG.vocab_size for i in range(23)]
    parts = [backend.forward(tokens[:20], cache, all_positions=True)]
    parts += [backend.forward([token], cache, all_positions=True) for token in tokens[20:]]
    return np.concatenate(parts)


if __name__ == "__main__":
    sys.exit(main())
