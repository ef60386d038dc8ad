"""The architecture in PyTorch: transformers' numbers and gradients, llama2.c's names and first weights."""

import math
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.checkpoint import ModelConfig, RopeScaling, tensor_layout  # noqa: E402
from llamatui.backends.rope import rope_table  # noqa: E402
from llamatui.export.meta import original_name  # noqa: E402
from llamatui.train.config import TrainConfig  # noqa: E402
from llamatui.train.model import Llama, rotate  # noqa: E402
from llamatui.train.optimizer import adamw  # noqa: E402
from tests.tiny import TINY  # noqa: E402
from tests.train.peers import lively, ours_by_hf_names, transformers_twin  # noqa: E402

SCALED = replace(TINY, rope_theta=50.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32))
SHAPES = {
    "grouped, tied": TINY,
    "grouped, untied": replace(TINY, shared_classifier=False),
    "multi-head": replace(TINY, n_kv_heads=4, norm_eps=1e-2),
    "multi-query": replace(TINY, n_kv_heads=1, shared_classifier=False),
    "theta": replace(TINY, rope_theta=100.0),
    "llama 3 rope": SCALED,
}


def batch_of(config: ModelConfig, n: int, rows: int = 2) -> tuple[Any, Any]:
    ids = torch.randint(0, config.vocab_size, (rows, n + 1), generator=torch.Generator().manual_seed(5))
    return ids[:, :-1], ids[:, 1:].clone()


@pytest.mark.parametrize("n", [2, TINY.max_seq_len])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_loss_and_gradients_are_those_of_transformers(config: ModelConfig, n: int) -> None:
    ours = lively(Llama(config))
    twin = transformers_twin(ours)
    tokens, targets = batch_of(config, n)
    expected = twin(tokens).logits  # (batch, n, vocab_size)
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)
    flat = expected.flatten(0, 1)
    expected_loss = torch.nn.functional.cross_entropy(flat, targets.flatten())
    loss = ours(tokens, targets)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-5)
    loss.backward()
    expected_loss.backward()
    gradients = ours_by_hf_names(config, {name: p.grad for name, p in ours.named_parameters()})
    assert gradients.keys() == dict(twin.named_parameters()).keys()
    for name, parameter in twin.named_parameters():
        assert gradients[name].abs().max() > 1e-4, name
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-5, msg=name)


def test_the_scaling_and_base_of_rope_matter_for_what_is_compared_above() -> None:
    tokens, _ = batch_of(TINY, TINY.max_seq_len)
    logits = [
        lively(Llama(config))(tokens)
        for config in (TINY, SCALED, replace(SCALED, rope_scaling=None), SHAPES["theta"])
    ]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(logits) for b in logits[:i])


def test_a_step_of_the_optimizer_is_that_of_transformers_and_adamw() -> None:
    config = TrainConfig(learning_rate=1e-2, weight_decay=0.3)
    ours = lively(Llama(TINY))
    twin = transformers_twin(ours)
    optimizer = adamw(ours.parameters(), config)
    norms = [p for name, p in twin.named_parameters() if "norm" in name]
    matrices = [p for name, p in twin.named_parameters() if "norm" not in name]
    peer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": norms, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95), fused=False, foreach=False,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    tokens, targets = batch_of(TINY, 16, rows=4)
    ours(tokens, targets).backward()
    torch.nn.functional.cross_entropy(twin(tokens).logits.flatten(0, 1), targets.flatten()).backward()
    optimizer.step()
    peer.step()
    stepped = ours_by_hf_names(TINY, dict(ours.named_parameters()))
    for name, parameter in twin.named_parameters():
        # AdamW divides by the gradient's size: where that is next to nothing, rounding decides.
        clear = parameter.grad.abs() > 1e-5
        assert clear.float().mean() > 0.8, name
        assert (parameter - before[name])[clear].abs().min() > 1e-3, name
        torch.testing.assert_close(stepped[name][clear], parameter[clear], rtol=0, atol=1e-5, msg=name)


def test_no_position_sees_a_later_one_nor_another_row() -> None:
    model = lively(Llama(TINY))
    tokens, _ = batch_of(TINY, 10)
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % TINY.vocab_size
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[0, :6], before[0, :6], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-5)
    assert ((after - before)[0, 6:].abs().amax(-1) > 1e-3).all()


def test_more_than_the_context_is_refused() -> None:
    with pytest.raises(RuntimeError):
        Llama(TINY)(torch.zeros(1, TINY.max_seq_len + 1, dtype=torch.int64))


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_have_llama2c_names_and_shapes(tied: bool) -> None:
    config = replace(TINY, shared_classifier=tied)
    model = Llama(config)
    layout = {
        original_name(spec.name, layer): spec.shape
        for spec in tensor_layout(config, 1)
        for layer in range(max(spec.n_layers, 1))
    }
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == layout
    # llama2.c saves the classifier also where it is the embedding, and no tables.
    assert model.state_dict().keys() == layout.keys() | {"output.weight"}
    assert (model.output.weight is model.tok_embeddings.weight) == tied
    assert sum(p.numel() for p in model.parameters()) == config.n_params


def test_first_weights_are_normal_and_smaller_where_a_branch_ends() -> None:
    config = replace(TINY, dim=64, hidden_dim=160, n_layers=8, shared_classifier=False)
    torch.manual_seed(0)
    for name, p in Llama(config).named_parameters():
        if p.dim() == 1:
            assert (p == 1).all(), name
            continue
        expected = 0.02 / math.sqrt(16) if name.endswith(("w2.weight", "wo.weight")) else 0.02
        assert p.std().item() == pytest.approx(expected, rel=0.1), name
        assert abs(p.mean().item()) < 4 * expected / math.sqrt(p.numel()), name


def test_the_first_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    tokens, targets = batch_of(TINY, 64, rows=8)
    assert Llama(TINY)(tokens, targets).item() == pytest.approx(math.log(TINY.vocab_size), abs=0.05)


def test_the_seed_decides_the_weights() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(Llama(TINY).state_dict())
    a, b, c = models
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["layers.0.attention.wq.weight"], c["layers.0.attention.wq.weight"])


def test_dropout_is_for_training_alone() -> None:
    model, without = lively(Llama(TINY, dropout=0.5)), lively(Llama(TINY))
    tokens, _ = batch_of(TINY, 12)
    torch.testing.assert_close(model.eval()(tokens), without(tokens), rtol=0, atol=0)
    model.train()
    torch.manual_seed(3)
    first, second = model(tokens), model(tokens)
    torch.manual_seed(3)
    again = model(tokens)
    assert (first - second).abs().max() > 0.1
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_bfloat16_products_stay_near_float32() -> None:
    model = lively(Llama(SCALED))
    tokens, targets = batch_of(SCALED, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(model(tokens, targets).item(), rel=0.01)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_operations_of_a_token_are_counted_as_palm_does() -> None:
    # 6 for each parameter, and 12 for each layer, width and position.
    assert Llama(TINY).flops_per_token(16) == 6 * TINY.n_params + 12 * 2 * 32 * 16


def test_what_is_only_looked_up_or_frozen_costs_less() -> None:
    untied = replace(TINY, shared_classifier=False)
    assert Llama(untied).flops_per_token(16) == Llama(TINY).flops_per_token(16)
    frozen = Llama(TINY).requires_grad_(False)
    assert frozen.flops_per_token(16) == 4 * TINY.n_params + 12 * 2 * 32 * 16


def test_both_forms_of_rope_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complex numbers where Python calls each operation, real ones where a compiler joins them."""
    x, (cos, sin) = torch.randn(2, 5, 3, 8), map(torch.from_numpy, rope_table(TINY, 5))
    turned = rotate(x, cos, sin)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, cos, sin), turned)
