"""Tokens from a PyTorch model: the likeliest, the k likeliest, or by their probabilities; and their text."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamatui.errors import UsageError  # noqa: E402
from llamatui.tokenizers.base import Tokenizer  # noqa: E402
from llamatui.train.model import Llama  # noqa: E402
from llamatui.train.sample import sample_ids, sample_text  # noqa: E402
from tests.tiny import TINY  # noqa: E402
from tests.train.peers import lively  # noqa: E402

LOGITS = [0.0, 1.0, 2.0, -1.0, 3.0, 1.5]


class Stub(torch.nn.Module):  # type: ignore[misc]
    """A model of a few ids whose next logits are `rule(ids so far)`; remembers what it was given."""

    def __init__(self, rule: Any, max_seq_len: int = 64) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"max_seq_len": max_seq_len})
        self.rule, self.seen = rule, []  # type: ignore[var-annotated]

    def forward(self, tokens: Any) -> Any:
        self.seen.append(tokens[0].tolist())
        return torch.tensor([[self.rule(tokens[0].tolist())]], dtype=torch.float32)


def ids_of(rule: Any, n: int, **options: Any) -> list[int]:
    return list(sample_ids(Stub(rule), [0], n, **options))


def test_it_is_what_a_loop_over_lists_gives() -> None:
    """Softmax and inverse transform are written out; only the uniform numbers are shared."""
    model = lively(Llama(TINY)).eval()
    prompt = list(range(50))
    for top_k in (0, 3):
        generator = torch.Generator().manual_seed(4)
        found = list(sample_ids(model, prompt, 20, temperature=0.7, top_k=top_k, generator=generator))
        generator.manual_seed(4)
        ids, expected = [*prompt], []
        for _ in range(20):
            with torch.no_grad():
                logits = model(torch.tensor([ids[-TINY.max_seq_len :]]))[0, -1].tolist()
            kept = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
            weights = [math.exp((x - max(logits)) / 0.7) if i in kept else 0 for i, x in enumerate(logits)]
            chances = torch.tensor([weight / sum(weights) for weight in weights])
            expected.append(int(torch.multinomial(chances, 1, generator=generator)))
            ids.append(expected[-1])
        assert found == expected
        assert len(set(found)) > 5


def test_temperature_0_takes_the_likeliest() -> None:
    model = lively(Llama(TINY)).eval()
    ids = list(range(50))
    for token in sample_ids(model, ids[:], 20, temperature=0):
        with torch.no_grad():
            logits = model(torch.tensor([ids[-TINY.max_seq_len :]]))[0, -1].tolist()
        assert token == max(range(len(logits)), key=logits.__getitem__)
        ids.append(token)
    assert len(ids) == 70


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 2, 6, 100])
def test_tokens_come_as_often_as_their_probability_says(temperature: float, top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 1000
    ids = ids_of(lambda ids: LOGITS, n, temperature=temperature, top_k=top_k, generator=generator)
    kept = sorted(LOGITS)[-(top_k or 6) :]
    weights = [math.exp(x / temperature) if x in kept else 0 for x in LOGITS]
    counts = Counter(ids)
    for token, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs(counts[token] / n - p) <= 4 * math.sqrt(p * (1 - p) / n), token


@pytest.mark.parametrize("options", [{"temperature": 1e-45}, {"temperature": 5.0, "top_k": 1}])
def test_at_the_ends_of_the_scale_it_is_the_likeliest(options: dict[str, Any]) -> None:
    assert ids_of(lambda ids: LOGITS, 20, **options) == [4] * 20


def test_the_seed_decides() -> None:
    def run(seed: int) -> list[int]:
        return ids_of(lambda ids: LOGITS, 50, generator=torch.Generator().manual_seed(seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_what_does_not_fit_the_context_is_forgotten() -> None:
    model = Stub(lambda ids: [float(i == (ids[-1] + 1) % 50) for i in range(50)], max_seq_len=4)
    assert list(sample_ids(model, [0, 1, 2], 5, temperature=0)) == [3, 4, 5, 6, 7]
    assert model.seen == [[0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]


def test_a_prompt_longer_than_the_context_counts_by_its_end() -> None:
    model = Stub(lambda ids: [0.0, 1.0], max_seq_len=3)
    assert list(sample_ids(model, range(10), 1)) in ([0], [1])
    assert model.seen == [[7, 8, 9]]


class Bytes(Tokenizer):
    """Ids are bytes; 256 begins a document, 257 ends one."""

    def __init__(self, bos_id: int = 256, eos_ids: Sequence[int] = (257,)) -> None:
        self.bos_id, self.eos_ids, self.adds_bos = bos_id, frozenset(eos_ids), bos_id >= 0
        self.vocab_size, self.special_tokens, self.format = 258, {}, "bytes"

    def encode_ordinary(self, text: str) -> list[int]:
        return list(text.encode())

    def decode_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


def says(
    answer: Sequence[int], prompt: str = "", n: int = 50, tokenizer: Tokenizer | None = None
) -> list[str]:
    """Pieces of `answer`, from a model that says it after the prompt."""
    tokenizer = tokenizer or Bytes()
    n_prompt = len(prompt.encode()) + 1
    model = Stub(lambda ids: [float(i == answer[len(ids) - n_prompt]) for i in range(258)])
    return list(sample_text(model, tokenizer, prompt, n, temperature=0))


@pytest.mark.parametrize("end", [256, 257])
def test_the_text_ends_where_the_document_does(end: int) -> None:
    assert "".join(says([*b"the end", end, *b"and more"], "this is ")) == "the end"


def test_the_text_ends_after_n_tokens() -> None:
    assert "".join(says(b"abcdef", n=3)) == "abc"


def test_half_a_character_is_held_back_until_it_is_whole() -> None:
    assert says([*"aé日".encode(), 257]) == ["a", "", "é", "", "", "日", ""]


def test_a_character_that_stays_half_is_shown_as_such() -> None:
    assert "".join(says("é".encode()[:1], n=1)) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("tokenizer", "first"), [(Bytes(), 256), (Bytes(bos_id=-1), 257), (Bytes(bos_id=-1, eos_ids=()), None)]
)
def test_a_text_begins_as_documents_did_in_training(tokenizer: Tokenizer, first: int | None) -> None:
    model = Stub(lambda ids: [1.0] + [0.0] * 257)
    list(sample_text(model, tokenizer, "ab", 3 if first is not None else 2, temperature=0))
    assert model.seen == [[*([] if first is None else [first]), *b"ab"]]


def test_nothing_to_begin_with_is_told() -> None:
    with pytest.raises(UsageError, match="nothing") as caught:
        list(sample_text(Stub(lambda ids: LOGITS), Bytes(bos_id=-1, eos_ids=()), "", 1))
    assert caught.value.hint


def test_text_of_the_same_seed_is_the_same() -> None:
    model = lively(Llama(TINY))

    def run(seed: int) -> str:
        return "".join(sample_text(model, Bytes(), "x", 20, seed=seed, top_k=50))

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_training_samples_without_dropout_and_goes_on_training(training: bool) -> None:
    plain, model = lively(Llama(TINY)).eval(), lively(Llama(TINY, dropout=0.5)).train(training)
    expected = list(sample_text(plain, Bytes(), "x", 5, temperature=0))
    assert list(sample_text(model, Bytes(), "x", 5, temperature=0)) == expected
    assert model.training == training
    pieces = sample_text(model, Bytes(), "x", 5)
    next(pieces)
    pieces.close()
    assert model.training == training
    assert torch.is_grad_enabled()


def test_sampling_leaves_the_random_numbers_of_training_alone() -> None:
    torch.manual_seed(9)
    expected = torch.rand(1)
    model = lively(Llama(TINY))
    torch.manual_seed(9)
    list(sample_text(model, Bytes(), "x", 5, seed=3))
    assert torch.equal(torch.rand(1), expected)
