"""A fresh process's work: run kernels that were just compiled on tiny models, and compare with NumPy's
results.

Code that is wrong for this machine, or crashes, does so here, and not in the app. It is started by `build`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from llamatui.backends.base import Backend, FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint, ModelConfig, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.kernels.cache import Kernels
from llamatui.backends.numba_backend import NumbaBackend
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.backends.q8_0_backend import Q8Backend

# Groups of 64 in long rows, of 32 that leave half a vector over, and of 4, without kernels of their own.
# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len
CONFIGS = {
    64: ModelConfig(1024, 1088, 1, 16, 4, 130, 64, group_size=64),
    32: ModelConfig(288, 352, 2, 6, 3, 131, 64, group_size=32),
    4: ModelConfig(60, 92, 2, 5, 1, 131, 64, group_size=4),
}
TOLERANCE = {"fp32": (1e-4, 1e-5), "q8_0": (0.25, 0.03)}
"""Most that logits may differ by, at the worst and in the median, in their standard deviations: q8_0 rounds
activations as well."""


def main() -> int:
    kind, path = sys.argv[1:]
    kernels = Kernels(Path(path).read_bytes())
    for group_size, config in CONFIGS.items():
        # Windows cannot remove a file that is still mapped.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            differences = compare(kind, kernels, config, Path(folder) / "model.bin")
        found = differences.max(), np.median(differences)
        if not all(np.array(found) < TOLERANCE[kind]):
            print(
                f"groups of {group_size}: logits differ by {found[0]:.2g}, median {found[1]:.2g}",
                file=sys.stderr,
            )
            return 1
    return 0


def compare(kind: str, kernels: Kernels, config: ModelConfig, model: Path) -> FloatArray:
    """How far logits are from NumPy's, in standard deviations: (23, vocab_size)."""
    shapes = {spec.name: spec.shape for spec in tensor_layout(config, 2)}
    rng = np.random.default_rng(0)

    def weights(name: str, layer: int) -> FloatArray:
        w = rng.standard_normal(shapes[name], np.float32)
        w *= 0.1 if name.endswith("norm") else shapes[name][-1] ** -0.5
        return w + name.endswith("norm")

    write_checkpoint(model, config, 2, weights)
    checkpoint = Checkpoint(model)
    backend = (NumbaBackend if kind == "fp32" else Q8Backend)(checkpoint, 2, kernels)
    expected = logits(NumpyBackend(checkpoint, 1))
    differences: FloatArray = np.abs(logits(backend) - expected) / expected.std()
    return differences


def logits(backend: Backend) -> FloatArray:
    """Of 20 tokens at once, then of 3 one by one: (23, vocab_size)."""
    cache = KVCache(backend.config)
    tokens = [i * 37 % backend.config.vocab_size for i in range(23)]
    parts = [backend.forward(tokens[:20], cache, all_positions=True)]
    parts += [backend.forward([token], cache, all_positions=True) for token in tokens[20:]]
    joined: FloatArray = np.concatenate(parts)
    return joined
