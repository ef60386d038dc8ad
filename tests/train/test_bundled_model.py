"""The model that comes with llamatui: PyTorch and our backends say the same with its weights."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from llamatui.app import store  # noqa: E402
from llamatui.app.bench.bits_per_byte import Score, read_stories, score_file, scored_bytes  # noqa: E402
from llamatui.app.model import load_model  # noqa: E402
from llamatui.backends.base import KVCache  # noqa: E402
from llamatui.backends.checkpoint import Checkpoint  # noqa: E402
from llamatui.backends.registry import create_backend  # noqa: E402
from llamatui.export.bin_file import open_bin  # noqa: E402
from llamatui.export.to_bin import export_bin  # noqa: E402
from llamatui.tokenizers.base import Tokenizer  # noqa: E402
from llamatui.tokenizers.loading import load_tokenizer  # noqa: E402
from llamatui.train.model import Llama  # noqa: E402
from llamatui.train.sample import sample_ids  # noqa: E402
from llamatui.train.weights import copy_weights  # noqa: E402

PROMPTS = ["Once upon a time", "Tom and his dog", "One day, Lily"]


@pytest.fixture(scope="module")
def pytorch() -> Llama:
    source = open_bin(store.bundled())
    model = Llama(replace(source.config, group_size=0)).eval()
    copy_weights(source, model)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(store.bundled().with_name("stories.tokenizer.model"))


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "stories.bin"
    export_bin(open_bin(store.bundled()), path, version=1)
    return path


@pytest.fixture(scope="module")
def expected(pytorch: Llama, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """What PyTorch says, by prompt."""
    starts = {prompt: tokenizer.encode(prompt, bos=True) for prompt in PROMPTS}
    return {prompt: list(sample_ids(pytorch, ids, 60, temperature=0)) for prompt, ids in starts.items()}


@pytest.mark.parametrize(
    ("backend", "prompt"),
    [("numpy", PROMPTS[0]), *((backend, prompt) for backend in ("numba", "q8_0") for prompt in PROMPTS)],
)
def test_greedy_text_is_pytorchs(
    expected: dict[str, list[int]], tokenizer: Tokenizer, fp32: Path, backend: str, prompt: str
) -> None:
    if backend != "numpy":
        pytest.importorskip("numba")
    ids = tokenizer.encode(prompt, bos=True)
    length = (
        20 if backend == "q8_0" else 60
    )  # int8 activations decide otherwise where two are nearly as likely
    engine = create_backend(backend, Checkpoint(fp32), threads=1)
    cache, found, fresh = KVCache(engine.config), [], ids
    for _ in range(length):
        found.append(int(engine.forward(fresh, cache).argmax()))
        fresh = found[-1:]
    assert tokenizer.decode(found) == tokenizer.decode(expected[prompt][:length])


@pytest.mark.real
def test_bits_per_byte_are_pytorchs(pytorch: Llama, tokenizer: Tokenizer, real_data: Path) -> None:
    path, n = real_data / "data" / "tinystories_valid.txt", 6
    score, nats, n_bytes = Score(), 0.0, 0
    score_file(load_model(backend="numpy"), path, n, score, lambda score: None)
    for _, text in zip(range(n), read_stories(path, 1 << 20), strict=False):
        ids = torch.tensor([tokenizer.encode(text, bos=True)[: pytorch.config.max_seq_len]])
        with torch.no_grad():
            nats += float(pytorch(ids[:, :-1], ids[:, 1:])) * (ids.shape[1] - 1)
        n_bytes += scored_bytes(tokenizer, ids[0].tolist())
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, abs=1e-5)
