"""What bench measures: cases that fit, rounds that are interleaved, scores, and how backends differ."""

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.app.bench import bits_per_byte, compare, logprobs, plan, report, speed
from llamatui.app.bench.peer import LlamaCppRunner, bytes_per_token
from llamatui.app.model import LoadedModel, load_model
from llamatui.backends import registry
from llamatui.backends.base import FloatArray, KVCache
from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.numpy_backend import NumpyBackend
from llamatui.errors import BackendError, CheckpointError, ModelError, UsageError
from tests.tiny import TINY, random_weights, write_tokenizer_bin

STORIES = ["The cat sat on the mat.", "日本, and the dog ran", "x"]


@pytest.fixture
def model(tiny_model: Path) -> LoadedModel:
    return load_model(tiny_model, backend="numpy", threads=1)


@pytest.fixture
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory of 1 GB/s a thread."""
    module = ModuleType("llamatui.backends.bandwidth")
    module.read_bandwidth = lambda threads: 1e9 * threads  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def planned(context: int, *lengths: Sequence[int]) -> tuple[list[tuple[str, int, int]], list[str]]:
    notes: list[str] = []
    cases = plan.plan_cases(context, *lengths, notes.append)
    return [(case.kind, case.n_tokens, case.depth) for case in cases], notes


def test_defaults_are_cut_to_the_context_and_that_is_told() -> None:
    assert planned(4096, [], [], []) == (
        [("prefill", 128, 0), ("prefill", 512, 0), ("decode", 128, 0)], [],
    )  # fmt: skip
    cases, notes = planned(256, [], [], [])
    assert cases == [("prefill", 128, 0), ("prefill", 256, 0), ("decode", 128, 0)]
    assert notes == ["-p 128,256: 512 does not fit the context of 256"]
    cases, notes = planned(256, [], [], [200])
    assert cases == [("prefill", 56, 200), ("decode", 56, 200)]
    assert len(notes) == 2


def test_every_length_at_every_depth_and_0_leaves_a_kind_out() -> None:
    assert planned(64, [8, 16], [0], [0, 48])[0] == [
        ("prefill", 8, 0), ("prefill", 16, 0), ("prefill", 8, 48), ("prefill", 16, 48),
    ]  # fmt: skip
    assert planned(64, [0], [16], [48])[0] == [("decode", 16, 48)]


@pytest.mark.parametrize(
    ("lengths", "problem", "hint"),
    [
        (([65], [], []), "-p 65 does not fit the context of 64", "-p 64 or less"),
        (([], [9], [0, 56]), "-n 9 does not fit the context of 64 behind -d 56", "-n 8 or less"),
        (([], [], [64]), "-d 64 leaves no room", "-d 63 or less"),
        (([0], [0], []), "nothing to measure", ""),
    ],
)
def test_what_was_asked_for_and_does_not_fit_is_an_error(
    lengths: tuple[list[int], list[int], list[int]], problem: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        planned(64, *lengths)
    assert hint in caught.value.hint


class Spy:
    """A runner that writes down its cases; each takes a second more than the one before."""

    model, bytes_per_token = "spy", 10**9

    def __init__(self, name: str, threads: int, log: list[tuple[str, str]]) -> None:
        self.name, self.threads, self.log = name, threads, log

    def seconds(self, case: speed.Case) -> float:
        self.log.append((self.name, case.kind))
        return float(len(self.log))


CASES = [speed.Case("prefill", 8, 0), speed.Case("decode", 4, 2)]


@pytest.mark.usefixtures("bandwidth")
def test_rounds_are_interleaved_and_the_first_does_not_count() -> None:
    log: list[tuple[str, str]] = []
    bench = speed.Bench.of([Spy("a", 1, log), Spy("b", 2, log)], CASES)
    bench.run(2, lambda text: None)
    one_round = [("a", "prefill"), ("b", "prefill"), ("a", "decode"), ("b", "decode")]
    assert log == one_round * 3
    assert [series.tps for series in bench.series] == [
        [8 / 5, 8 / 9], [8 / 6, 8 / 10], [4 / 7, 4 / 11], [4 / 8, 4 / 12],
    ]  # fmt: skip


@pytest.mark.usefixtures("bandwidth")
def test_rows_have_medians_and_the_fraction_of_the_bandwidth() -> None:
    bench = speed.Bench.of([Spy("a", 2, [])], CASES)
    assert report.rows_of(bench) == []
    bench.run(3, lambda text: None)
    prefill, decode = report.rows_of(bench)
    assert (prefill.tps_min, prefill.tps_median, prefill.tps_max) == (8 / 7, 8 / 5, 8 / 3)
    assert prefill.bandwidth_fraction is None
    assert decode.tps_median == 4 / 6
    assert decode.bandwidth_fraction == pytest.approx(4 / 6 * 1e9 / 2e9)
    assert report.legend(bench) == "spy; median of 3 rounds; memory is read at 2.0 GB/s by 2 threads"


@pytest.mark.usefixtures("bandwidth")
def test_a_broken_off_run_keeps_the_rounds_that_are_done() -> None:
    class Broken(Spy):
        def seconds(self, case: speed.Case) -> float:
            if len(self.log) == 5:
                raise KeyboardInterrupt
            return super().seconds(case)

    bench = speed.Bench.of([Broken("a", 1, [])], CASES)
    with pytest.raises(KeyboardInterrupt):
        bench.run(5, lambda text: None)
    prefill, decode = report.rows_of(bench)
    assert (prefill.tps_median, decode.tps_median) == (pytest.approx((8 / 3 + 8 / 5) / 2), 1)


def test_markdown_is_aligned_and_whole() -> None:
    row = report.Row("m", "numpy", 2, "decode", 128, 0, 12345.6, 1.25, 9e5, 438_381_568, 0.634)
    lines = report.markdown([row]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "backend", "threads", "test", "depth", "tok/s", "min", "max", "MB/token", "bandwidth",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "numpy", "2", "decode 128", "0", "12,346", "1.2", "900,000", "438.4", "63%",
    ]  # fmt: skip
    assert lines[1].split("|")[1:3] == ["-" * 9, "-" * 8 + ":"]


class Recorder(NumpyBackend):
    """Writes down how many tokens came at which position."""

    bytes_per_token = 1000

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        super().__init__(checkpoint, threads)
        self.calls: list[tuple[int, int]] = []

    def _forward(self, tokens: Any, cache: KVCache, all_positions: bool) -> FloatArray:
        self.calls.append((cache.length, tokens.size))
        return super()._forward(tokens, cache, all_positions)


def test_a_case_begins_at_its_depth_and_is_cut_like_the_backend_wants(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "prefill_chunk", 16)
    backend = Recorder(Checkpoint(tiny_model), 1)
    cache = speed.random_cache(TINY, 64)
    runner = speed.BackendRunner(backend, cache)
    backend.calls.clear()
    assert runner.seconds(speed.Case("prefill", 40, 20)) > 0
    assert backend.calls == [(20, 1), (20, 16), (36, 16), (52, 8)]  # one token wakes it
    backend.calls.clear()
    runner.seconds(speed.Case("decode", 3, 61))
    assert backend.calls == [(61, 1), (61, 1), (62, 1), (63, 1)]
    assert (runner.model, runner.name, runner.threads) == ("tiny", "numpy", 1)


def test_the_cache_is_filled_with_numbers_of_a_sane_scale() -> None:
    cache = speed.random_cache(TINY, 64)
    for part in (cache.keys, cache.values):
        assert part.shape == (2, 2, 64, 8)
        assert 0.9 < part.std() < 1.1


class Fussy(NumpyBackend):
    bytes_per_token = 1000

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        raise BackendError("this file is not for me")


class Modest(NumpyBackend):
    name = "modest"
    bytes_per_token = 1000

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        super().__init__(checkpoint, min(threads, 2))


@pytest.fixture
def three_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = {
        "modest": f"{__name__}:Modest", "fussy": f"{__name__}:Fussy", "numpy": f"{__name__}:Recorder",
    }  # fmt: skip
    for module in (registry, plan):
        monkeypatch.setattr(module, "BUILTIN", builtin)
    monkeypatch.setattr(plan, "default_backend", lambda checkpoint: "modest")


def loaded(path: Path, backends: str, threads: Sequence[int]) -> tuple[list[tuple[str, int]], list[str]]:
    notes: list[str] = []
    runners = plan.load_runners(Checkpoint(path), backends, threads, 8, None, notes.append, lambda text: None)
    return [(runner.name, runner.threads) for runner in runners], notes


@pytest.mark.usefixtures("three_backends")
def test_backends_are_the_default_those_named_or_all_that_run_the_file(tiny_model: Path) -> None:
    assert loaded(tiny_model, "", [1, 2]) == ([("modest", 1), ("modest", 2)], [])
    assert loaded(tiny_model, "numpy, modest", [1])[0] == [("numpy", 1), ("modest", 1)]
    runners, notes = loaded(tiny_model, "all", [1])
    assert runners == [("modest", 1), ("numpy", 1)]
    assert notes == ["fussy: left out: this file is not for me"]
    with pytest.raises(BackendError, match="not for me"):
        loaded(tiny_model, "fussy", [1])
    with pytest.raises(UsageError, match="no backend is called 'fast'"):
        loaded(tiny_model, "modest,fast", [1])


@pytest.mark.usefixtures("three_backends")
def test_threads_that_a_backend_does_not_take_are_told(tiny_model: Path) -> None:
    runners, notes = loaded(tiny_model, "modest", [2, 4])
    assert runners == [("modest", 2)]
    assert notes == ["modest: 2 threads instead of 4"]
    runners, notes = loaded(tiny_model, "numpy", [1, 4])
    assert runners == [("numpy", 4)]
    assert "only with 4 threads" in notes[0]


def score(model: LoadedModel, path: Path, stories: int | None = None) -> bits_per_byte.Score:
    total = bits_per_byte.Score()
    bits_per_byte.score_file(model, path, stories, total, lambda score: None)
    return total


def reference(model: LoadedModel, stories: Sequence[str]) -> tuple[float, int]:
    """(nats, tokens), a token at a time."""
    nats, n = 0.0, 0
    for story in stories:
        tokens = model.tokenizer.encode(story, bos=True)[:64]
        cache = KVCache(TINY)
        for token, target in pairwise(tokens):
            x = model.backend.forward([token], cache).astype(np.float64)
            nats -= float(x[target] - np.log(np.exp(x).sum()))
            n += 1
    return nats, n


def test_bits_per_byte_are_those_of_tokens_one_by_one(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stories.txt"
    path.write_text(f"\n{STORIES[0]}\n<|endoftext|>\n<|endoftext|> {STORIES[1]}<|endoftext|>{STORIES[2]}\n")
    found = score(model, path)
    nats, n = reference(model, STORIES)
    assert (found.stories, found.tokens) == (3, n)
    assert found.bytes == sum(len(story.encode()) for story in STORIES)
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-6)
    assert list(found.as_json()) == ["bits_per_byte", "nats_per_token", "tokens", "bytes"]
    monkeypatch.setattr(logprobs, "LOGPROB_BYTES", 3 * 8 * TINY.vocab_size)  # in blocks of 3
    assert score(model, path).nats == pytest.approx(nats, rel=1e-6)


def test_a_story_is_cut_at_the_context(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("dog ran " * 3000)
    found = score(model, path)
    nats, n = reference(model, ["dog ran " * 100])
    assert (found.tokens, n) == (63, 63)
    assert found.nats == pytest.approx(nats, rel=1e-6)
    text = model.tokenizer.decode(model.tokenizer.encode("dog ran " * 100)[:63])
    assert found.bytes == len(text)


def test_reading_stops_after_so_many_stories(model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_bytes(b"<|endoftext|>".join(story.encode() for story in STORIES) + b"<|endoftext|>\xff\xff")
    assert score(model, path, 3).stories == 3
    with pytest.raises(UsageError, match="expected UTF-8 text, found the byte 0xff"):
        score(model, path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        (b"", "expected text to score, found none"),
        (b" \n<|endoftext|>\n", "expected text to score, found none"),
        (b"\0" * 100, "found the byte 0x00"),
        (b"ab\x80", "found the byte 0x80"),
    ],
)
def test_a_file_that_is_no_text(
    model: LoadedModel, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        score(model, path)


@given(
    stories=st.lists(st.text("aé日 \n<|endoftx>", max_size=30), min_size=1),
    block=st.integers(1, 40),
)
def test_stories_are_the_same_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, stories: list[str], block: int
) -> None:
    whole = "<|endoftext|>".join(stories)
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_bytes(whole.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_per_byte, "READ_BYTES", block)
        found = list(bits_per_byte.read_stories(path, 10_000))
    assert found == [story.strip() for story in whole.split("<|endoftext|>")]


@given(length=st.integers(0, 200), block=st.integers(1, 50))
def test_a_story_that_is_too_long_is_not_kept_whole(
    tmp_path_factory: pytest.TempPathFactory, length: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_bytes(("é" * length + "<|endoftext|>next").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_per_byte, "READ_BYTES", block)
        found = list(bits_per_byte.read_stories(path, 21))
    assert found == ["é" * min(length, 10), "next"]  # 21 bytes are ten and a half characters


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Weights a little off those of `tiny_model`."""
    folder = tmp_path_factory.mktemp("other")
    one, two = random_weights(TINY, seed=1), random_weights(TINY, seed=2)
    write_checkpoint(
        folder / "other.bin", TINY, 0, lambda name, layer: one(name, layer) + 0.02 * two(name, layer)
    )
    write_tokenizer_bin(folder / "tokenizer.bin", TINY.vocab_size)
    return load_model(folder / "other.bin", backend="numpy", threads=1)


def test_a_backend_does_not_differ_from_itself(model: LoadedModel) -> None:
    result = compare.compare(model.backend, model.backend, [1, 5, 9], 20)
    assert result.divergence is None
    assert len(result.a.tokens) == 20
    assert result.kl == [0.0] * 20
    assert result.a.tps > 0


def test_two_backends_differ_where_their_greedy_texts_do(
    model: LoadedModel, other_model: LoadedModel
) -> None:
    a, b, prompt = model.backend, other_model.backend, [1, 5, 9]
    result = compare.compare(a, b, prompt, 40)
    at = result.divergence
    assert at is not None
    assert result.a.tokens[:at] == result.b.tokens[:at]
    assert result.a.tokens[at] != result.b.tokens[at]
    caches = KVCache(TINY), KVCache(TINY)
    expected = []
    tokens = [*prompt, *result.a.tokens]
    for i, token in enumerate(tokens[:-1]):
        p, q = (
            logprobs.log_softmax(x.forward([token], cache)[None])[0]
            for x, cache in zip((a, b), caches, strict=True)
        )
        if i >= len(prompt) - 1:
            expected.append(float((np.exp(p) * (p - q)).sum()))
            assert int(p.argmax()) == result.a.tokens[i - len(prompt) + 1]
    assert result.kl == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert max(result.kl) > 0.001


def test_distributions_sum_to_1_and_survive_large_logits() -> None:
    found = logprobs.log_softmax(np.array([[1000.0, 999.0], [-1000.0, 0.0]], np.float32))
    assert found.dtype == np.float64
    assert np.exp(found).sum(axis=1) == pytest.approx([1, 1])
    assert found[0] == pytest.approx([-math.log1p(math.exp(-1)), -1 - math.log1p(math.exp(-1))])


def test_damaged_weights_are_told() -> None:
    with pytest.raises(ModelError, match="not numbers"):
        logprobs.log_softmax(np.array([[0.0, np.nan]], np.float32))


class FakeLlama:
    """llama-cpp-python, as far as it is used: a cache that insists on its own length."""

    def __init__(self) -> None:
        self.decoded: list[tuple[int, int]] = []
        self.options: dict[str, Any] = {}
        self.length = 0
        self.code = 0
        self.module = SimpleNamespace(
            Llama=self.load, llama_token=Tokens(), llama_batch_get_one=lambda tokens, n: tokens[:n],
            llama_decode=self.decode, llama_synchronize=lambda ctx: None,
            llama_get_memory=lambda ctx: "memory", llama_memory_seq_rm=self.remove,
        )  # fmt: skip

    def load(self, path: str, **options: Any) -> Any:
        if "bad" in path:
            raise ValueError("Failed to load model from file")
        self.options = options
        return SimpleNamespace(n_vocab=lambda: 300, ctx="context")

    def decode(self, ctx: str, batch: Sequence[int]) -> int:
        assert all(0 <= token < 300 for token in batch)
        self.decoded.append((self.length, len(batch)))
        self.length += len(batch)
        assert self.length <= self.options["n_ctx"]
        return self.code

    def remove(self, memory: str, sequence: int, start: int, end: int) -> None:
        assert (memory, sequence, end) == ("memory", 0, -1)
        self.length = min(self.length, start)


class Tokens:
    """`(llama_token * n)(*ids)`, as ctypes has it."""

    def __mul__(self, n: int) -> Any:
        return lambda *ids: list(ids)


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> FakeLlama:
    fake = FakeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", fake.module)
    return fake


def write_gguf(path: Path, *names: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name in names:
        writer.add_tensor(name, np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_peer_runs_the_same_cases(llama: FakeLlama, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.F32.gguf", "token_embd.weight", "output.weight", "blk.0.attn_q.weight")
    runner = LlamaCppRunner(path, 2, 1200)
    assert (runner.model, runner.name, runner.threads) == ("m.F32", "llama.cpp", 2)
    assert runner.bytes_per_token == 2 * 4 * 8 * 4
    assert llama.options["n_threads"] == llama.options["n_threads_batch"] == 2
    assert runner.seconds(speed.Case("decode", 2, 600)) > 0
    # The depth is computed once, then only cut.
    assert llama.decoded == [(0, 512), (512, 88), (600, 1), (600, 1), (601, 1)]
    llama.decoded.clear()
    runner.seconds(speed.Case("prefill", 520, 600))
    assert llama.decoded == [(600, 1), (600, 512), (1112, 8)]
    llama.decoded.clear()
    runner.seconds(speed.Case("decode", 1, 0))
    assert llama.decoded == [(0, 1), (0, 1)]


@pytest.mark.usefixtures("bandwidth", "three_backends")
def test_a_peer_comes_last_in_the_same_rounds(llama: FakeLlama, tiny_model: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.F32.gguf", "token_embd.weight")
    runners = plan.load_runners(Checkpoint(tiny_model), "", [1, 2], 16, path, print, lambda text: None)
    assert [(runner.name, runner.threads) for runner in runners] == [
        ("modest", 1), ("modest", 2), ("llama.cpp", 1), ("llama.cpp", 2),
    ]  # fmt: skip
    bench = speed.Bench.of(runners, [speed.Case("prefill", 8, 0)])
    bench.run(1, lambda text: None)
    assert [(row.model, row.backend) for row in report.rows_of(bench)] == [
        ("tiny", "modest"), ("tiny", "modest"), ("m.F32", "llama.cpp"), ("m.F32", "llama.cpp"),
    ]  # fmt: skip
    assert report.legend(bench) == "tiny, llama.cpp runs m.F32; median of 1 round"


def test_the_embedding_is_read_where_it_is_the_classifier_too(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tied.gguf", "token_embd.weight", "blk.0.attn_q.weight")
    assert bytes_per_token(path) == 2 * 4 * 8 * 4


def test_a_peer_that_fails_is_an_error_of_ours(
    llama: FakeLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match=r"llama\.cpp cannot load it"):
        LlamaCppRunner(write_gguf(tmp_path / "bad.gguf", "token_embd.weight"), 1, 64)
    path = write_gguf(tmp_path / "m.gguf", "token_embd.weight")
    runner = LlamaCppRunner(path, 1, 64)
    llama.code = 1
    with pytest.raises(BackendError, match="failed with code 1"):
        runner.seconds(speed.Case("decode", 1, 0))
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(CheckpointError):
        LlamaCppRunner(tmp_path / "text.gguf", 1, 64)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(BackendError, match="needs llama-cpp-python") as caught:
        LlamaCppRunner(path, 1, 64)
    assert caught.value.hint == "pip install llama-cpp-python"


@pytest.mark.real
def test_stories260k_predicts_tinystories(real_data: Path) -> None:
    model = load_model(
        real_data / "models/stories260K.bin", tokenizer=real_data / "models/tok512.bin", backend="numpy"
    )
    found = score(model, real_data / "data/tinystories_valid.txt", 5)
    assert found.stories == 5
    assert 0.7 < found.bits_per_byte < 1.1
