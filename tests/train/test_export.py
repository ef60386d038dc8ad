"""What PyTorch trained says the same as a .bin: the same tokens and logits from all backends."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.base import Backend, KVCache  # noqa: E402
from llamatui.backends.checkpoint import Checkpoint  # noqa: E402
from llamatui.backends.registry import create_backend  # noqa: E402
from llamatui.export.llama2c_checkpoint import open_llama2c  # noqa: E402
from llamatui.export.to_bin import export_bin  # noqa: E402
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer  # noqa: E402
from llamatui.train.dataset import Dataset, Shard, Split, SplitInfo, write_info  # noqa: E402
from llamatui.train.events import Step  # noqa: E402
from llamatui.train.model import Llama  # noqa: E402
from llamatui.train.pretrained import load_trained  # noqa: E402
from llamatui.train.run import train  # noqa: E402
from llamatui.train.sample import sample_ids  # noqa: E402
from tests.tiny import write_tokenizer_bin  # noqa: E402
from tests.train import peers  # noqa: E402, F401

TEXT = "The cat ran in. She saw a red hat, and a big dog; the dog had an old bone? Tom can jump over it!"
PROMPT = TEXT[:40]
SETTINGS = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 64, "max_seq_len": 80,
    "dropout": 0.0,
    "batch_size": 1, "grad_accumulation": 1, "max_iters": 200, "learning_rate": 1e-2, "warmup_iters": 10,
    "eval_interval": 1000, "eval_iters": 1, "sample_tokens": 0, "device": "cpu", "dtype": "float32",
    "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned TEXT by heart, so that the likeliest token is so by far."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs") / "out"
    write_tokenizer_bin(data / "tokenizer.bin")
    document = [1, *load_tokenizer(data / "tokenizer.bin").encode(TEXT)]
    ids = np.array(document * 6, "<u2")
    splits: dict[Split, SplitInfo] = {}
    names: tuple[Split, ...] = ("train", "valid")
    for split in names:
        ids.tofile(data / f"{split}-0000.bin")
        splits[split] = SplitInfo((Shard(f"{split}-0000.bin", len(ids)),), 6, 6 * len(TEXT))
    write_info(Dataset(data, "tokenizer.bin", 300, "uint16", splits))
    steps = [event for event in train(data, out, SETTINGS) if isinstance(event, Step)]
    assert steps[-1].loss < 0.5
    return out


@pytest.fixture(scope="module")
def pytorch(out: Path) -> Llama:
    return load_trained(out)[0]


@pytest.fixture(scope="module", params=[0, 1, 2])
def exported(request: pytest.FixtureRequest, out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bin") / f"v{request.param}.bin"
    export_bin(open_llama2c(out / "best.pt"), path, version=request.param)
    return path


def greedy(backend: Backend, ids: Sequence[int], n: int) -> list[int]:
    cache, found, fresh = KVCache(backend.config), [], list(ids)
    for _ in range(n):
        found.append(int(backend.forward(fresh, cache).argmax()))
        fresh = found[-1:]
    return found


@pytest.mark.parametrize("backend", ["numpy", "numba", "q8_0"])
def test_all_backends_say_what_pytorch_says(exported: Path, pytorch: Llama, backend: str) -> None:
    if backend != "numpy":
        pytest.importorskip("numba")
    prompt = [1, *load_tokenizer(exported.with_name(f"{exported.stem}.tokenizer.bin")).encode(PROMPT)]
    expected = list(sample_ids(pytorch, prompt, 40, temperature=0))
    assert len(set(expected)) > 15
    engine = create_backend(backend, Checkpoint(exported), 1)
    assert greedy(engine, prompt, 40) == expected


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_logits_are_pytorchs_at_every_position(
    out: Path, tmp_path: Path, pytorch: Llama, backend: str
) -> None:
    if backend != "numpy":
        pytest.importorskip("numba")
    export_bin(open_llama2c(out / "best.pt"), tmp_path / "a.bin", version=1)
    engine = create_backend(backend, Checkpoint(tmp_path / "a.bin"), 1)
    tokens = np.random.default_rng(0).integers(0, 300, 80)  # the whole context
    logits = engine.forward(tokens, KVCache(engine.config), all_positions=True)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = pytorch(torch.from_numpy(tokens)[None])[0].numpy()
    assert np.ptp(expected) > 10
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_the_tokenizer_goes_along(out: Path, exported: Path) -> None:
    found = find_tokenizer(exported, 300)
    assert found is not None
    assert found.name.startswith(exported.stem)
    assert found.read_bytes() == (out / "tokenizer.bin").read_bytes()
