"""AdamW by hand, what decays, and the learning rate's way up and down."""

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from llamatui.train.config import TrainConfig  # noqa: E402
from llamatui.train.model import Llama  # noqa: E402
from llamatui.train.optimizer import adamw, learning_rate  # noqa: E402
from tests.tiny import TINY  # noqa: E402
from tests.train.peers import lively  # noqa: E402

CONFIG = TrainConfig(learning_rate=0.01, weight_decay=0.5, beta1=0.8, beta2=0.9)


def test_matrices_decay_and_norms_do_not() -> None:
    model = lively(Llama(TINY))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    adamw(model.parameters(), CONFIG).step()
    for name, p in model.named_parameters():
        kept = 1.0 if "norm" in name else 1 - 0.01 * 0.5
        torch.testing.assert_close(p, before[name] * kept, msg=name)


def test_two_steps_are_those_of_the_paper() -> None:
    p = torch.nn.Parameter(torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    optimizer = adamw([p], CONFIG)
    w, m, v = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate(([0.5, -3.0], [0.25, 1.0]), 1):
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.9 * v[i] + 0.1 * g * g
            m_hat, v_hat = m[i] / (1 - 0.8**step), v[i] / (1 - 0.9**step)
            w[i] -= 0.01 * (m_hat / (math.sqrt(v_hat) + 1e-8) + 0.5 * w[i])
        assert p[0].tolist() == pytest.approx(w, rel=1e-9)


def test_what_is_frozen_is_left_alone() -> None:
    model = Llama(TINY)
    model.requires_grad_(False)
    model.norm.weight.requires_grad_(True)
    (group,) = adamw(model.parameters(), CONFIG).param_groups
    assert group["params"] == [model.norm.weight]
    assert group["weight_decay"] == 0


def test_a_shared_classifier_is_one_parameter() -> None:
    model = Llama(TINY)
    groups = adamw(model.parameters(), CONFIG).param_groups
    assert sum(p.numel() for group in groups for p in group["params"]) == TINY.n_params


SCHEDULE = TrainConfig(learning_rate=1e-3, min_lr=1e-4, warmup_iters=100, max_iters=1100)


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 1e-5),
        (49, 5e-4),
        (99, 1e-3),
        (100, 1e-3),
        (350, 1e-4 + 9e-4 * (0.5 + math.sqrt(0.125))),
        (600, 5.5e-4),
        (1100, 1e-4),
        (5000, 1e-4),
    ],
)
def test_the_rate_rises_on_a_line_and_falls_on_a_cosine(iteration: int, expected: float) -> None:
    assert learning_rate(SCHEDULE, iteration) == pytest.approx(expected)


def test_no_step_is_wasted_at_a_rate_of_zero() -> None:
    """llama2.c's first step has a rate of 0, and changes nothing."""
    assert learning_rate(TrainConfig(), 0) == pytest.approx(2e-3 / 100)


@given(st.integers(1, 5000), st.integers(0, 6000), st.sampled_from([0.0, 1e-4, 1e-3]))
def test_the_rate_is_never_0_nor_above_the_highest(max_iters: int, warmup: int, lowest: float) -> None:
    config = replace(SCHEDULE, max_iters=max_iters, warmup_iters=warmup, min_lr=lowest)
    rates = [learning_rate(config, i) for i in range(0, max_iters, max(max_iters // 50, 1))]
    assert all(0 < rate <= 1e-3 for rate in rates)
    rising = [
        rate
        for i, rate in zip(range(0, max_iters, max(max_iters // 50, 1)), rates, strict=True)
        if i < warmup
    ]
    falling = rates[len(rising) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
