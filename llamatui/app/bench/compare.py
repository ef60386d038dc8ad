"""Two backends on one prompt: where their greedy texts part, and how far their distributions are apart."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llamatui.app.bench.logprobs import block_length, log_softmax
from llamatui.backends.base import Backend, KVCache


@dataclass(frozen=True, slots=True)
class Greedy:
    """The likeliest tokens behind a prompt. Tokens that end a text do not end it here."""

    tokens: list[int]
    tps: float
    """Decoded tokens per second; the prompt's time is not in it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    a: Greedy
    b: Greedy
    kl: list[float]
    """KL(a || b) in nats of each next-token distribution along a's text; both run on a's tokens."""

    @property
    def divergence(self) -> int | None:
        """Index of the first token in which the greedy texts differ."""
        pairs = zip(self.a.tokens, self.b.tokens, strict=True)
        return next((i for i, (x, y) in enumerate(pairs) if x != y), None)


def compare(a: Backend, b: Backend, prompt: Sequence[int], n: int) -> Comparison:
    """Decodes `n` tokens with each, one backend after the other, then both along the text of `a`.

    `a` and `b` run the same model; prompt and `n` tokens fit its context.
    """
    text_a, text_b = greedy(a, prompt, n), greedy(b, prompt, n)
    return Comparison(text_a, text_b, kl_divergences(a, b, prompt, text_a.tokens))


def greedy(backend: Backend, prompt: Sequence[int], n: int) -> Greedy:
    cache = KVCache(backend.config)
    prefill(backend, prompt[:-1], cache)
    backend.forward(prompt[-1:], cache)  # untimed: what only a first call does
    cache.truncate(len(prompt) - 1)
    tokens = list(prompt[-1:])
    began = time.perf_counter()
    while len(tokens) <= n:
        tokens.append(int(backend.forward(tokens[-1:], cache).argmax()))
    return Greedy(tokens[1:], n / (time.perf_counter() - began))


def kl_divergences(a: Backend, b: Backend, prompt: Sequence[int], text: Sequence[int]) -> list[float]:
    """KL(a || b) of what follows the prompt, and each token of `text` but the last."""
    caches = KVCache(a.config), KVCache(b.config)
    for backend, cache in zip((a, b), caches, strict=True):
        prefill(backend, prompt[:-1], cache)
    tokens = [*prompt[-1:], *text[:-1]]
    length = min(block_length(a), block_length(b))
    found: list[float] = []
    for first, last in pairwise([*range(0, len(tokens), length), len(tokens)]):
        p, q = (
            log_softmax(backend.forward(tokens[first:last], cache, all_positions=True))  # (n, vocab_size)
            for backend, cache in zip((a, b), caches, strict=True)
        )
        kl = (np.exp(p) * (p - q)).sum(axis=1)  # (n,)
        found += [max(float(value), 0.0) for value in kl]  # rounding may end below 0
    return found


def prefill(backend: Backend, tokens: Sequence[int], cache: KVCache) -> None:
    for at in range(0, len(tokens), backend.prefill_chunk):
        backend.forward(tokens[at : at + backend.prefill_chunk], cache)
