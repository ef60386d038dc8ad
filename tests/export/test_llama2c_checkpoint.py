"""llama2.c's ckpt.pt: the weights that were trained, under the names that training leaves behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling, tensor_layout  # noqa: E402
from llamatui.errors import CheckpointError  # noqa: E402
from llamatui.export.llama2c_checkpoint import open_llama2c  # noqa: E402
from llamatui.export.meta import original_name  # noqa: E402
from llamatui.export.source import Source  # noqa: E402
from llamatui.export.to_bin import export_bin  # noqa: E402
from tests.tiny import TINY, random_weights, write_tokenizer_bin  # noqa: E402

State = dict[str, "torch.Tensor"]
ARGS = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 300,
    "multiple_of": 4,
    "max_seq_len": 64,
    "dropout": 0.0,
}


def state_of(config: ModelConfig) -> State:
    """Random weights by llama2.c's names; a shared classifier is the same tensor once more."""
    weights = random_weights(config)
    state = {
        original_name(spec.name, layer): torch.from_numpy(weights(spec.name, layer))
        for spec in tensor_layout(config, 1)
        for layer in range(max(spec.n_layers, 1))
    }
    state.setdefault("output.weight", state["tok_embeddings.weight"])
    return state


def write_checkpoint(
    path: Path, state: State, args: dict[str, object] | None = None, more: dict[str, object] | None = None
) -> Path:
    torch.save(
        {
            "model": state,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
            "model_args": ARGS if args is None else args,
            "iter_num": 10,
            "best_val_loss": torch.tensor(1.5),
            "config": {"out_dir": "out", "compile": True},
            **({"llamatui": more} if more else {}),
        },
        path,
    )
    return path


def assert_has(source: Source, state: State) -> None:
    for spec in tensor_layout(source.config, 1):
        for layer in range(max(spec.n_layers, 1)):
            saved = state[original_name(spec.name, layer)].numpy()
            rows = source.tensor(spec.name, layer)
            assert rows.shape == spec.shape
            np.testing.assert_array_equal(rows[0 : spec.shape[0]], saved, err_msg=spec.name)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4, None])
def test_weights_and_config_are_what_was_trained(
    tmp_path: Path, shared: bool, n_kv_heads: int | None
) -> None:
    config = replace(TINY, n_kv_heads=n_kv_heads or 4, shared_classifier=shared)
    state = state_of(config)
    source = open_llama2c(write_checkpoint(tmp_path / "ckpt.pt", state, {**ARGS, "n_kv_heads": n_kv_heads}))
    assert source.config == config
    assert_has(source, state)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_the_prefixes_of_wrappers_are_stripped(tmp_path: Path, prefix: str) -> None:
    state = state_of(TINY)
    path = write_checkpoint(tmp_path / "ckpt.pt", {prefix + name: w for name, w in state.items()})
    assert_has(open_llama2c(path), state)


def test_tables_that_follow_from_the_config_are_left_out(tmp_path: Path) -> None:
    state = state_of(TINY)
    tables = {name: torch.ones(64, 4) for name in ("freqs_cos", "freqs_sin", "layers.0.attention.mask")}
    assert_has(open_llama2c(write_checkpoint(tmp_path / "ckpt.pt", {**state, **tables})), state)


def test_equal_tensors_are_shared_even_if_saved_twice(tmp_path: Path) -> None:
    state = state_of(TINY)
    state["output.weight"] = state["output.weight"].clone()
    assert open_llama2c(write_checkpoint(tmp_path / "ckpt.pt", state)).config.shared_classifier


def test_norm_eps_comes_along(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", state_of(TINY), {**ARGS, "norm_eps": 1e-6})
    assert open_llama2c(path).config.norm_eps == 1e-6


def test_the_export_has_a_tokenizer_and_the_weights(tmp_path: Path) -> None:
    state = state_of(TINY)
    write_tokenizer_bin(tmp_path / "tokenizer.bin", TINY.vocab_size)
    export_bin(open_llama2c(write_checkpoint(tmp_path / "ckpt.pt", state)), tmp_path / "a.bin", version=0)
    checkpoint = Checkpoint(tmp_path / "a.bin")
    assert checkpoint.config == TINY
    np.testing.assert_array_equal(checkpoint.fp32("w2")[1], state["layers.1.feed_forward.w2.weight"].numpy())
    assert list(tmp_path.glob("a.tokenizer.*"))


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("layers.1.ffn_norm.weight", None, "found no layers"),
        ("tok_embeddings.weight", torch.ones(299, 32), r"expected shape \(300, 32\), found \(299, 32\)"),
        ("layers.2.ffn_norm.weight", torch.ones(32), "found also"),
        ("norm.weight", torch.ones(32, dtype=torch.int64), "found int64"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, name: str, tensor: "torch.Tensor | None", problem: str
) -> None:
    state = state_of(TINY)
    state.pop(name, None)
    path = write_checkpoint(tmp_path / "ckpt.pt", state if tensor is None else {**state, name: tensor})
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_llama2c(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "args",
    [
        {"dim": None},
        {"dim": 1 << 60},
        {"n_layers": 0},
        {"n_heads": "4"},
        {"n_heads": nested(100)},
        {"n_kv_heads": 3},
        {"max_seq_len": -1},
        {"max_seq_len": 1 << 40},
        {"vocab_size": 1},
        {"vocab_size": float("nan")},
        {"norm_eps": float("nan")},
    ],
    ids=lambda args: str(args)[:30],
)
def test_model_args_that_make_no_sense_are_refused(tmp_path: Path, args: dict[str, object]) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", state_of(TINY), {**ARGS, **args})
    with pytest.raises(CheckpointError) as caught:
        open_llama2c(path)
    assert len(caught.value.message) < len(str(path)) + 200


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"w": torch.ones(2)},
        {"model_args": ARGS},
        {"model": {"w": torch.ones(2)}, "model_args": [1]},
        {"model": [1], "model_args": ARGS},
        {"model": {}, "model_args": ARGS},
        {"model": {}, "model_args": ARGS, "llamatui": [1]},
    ],
    ids=[
        "nothing",
        "state dict",
        "no model",
        "list of args",
        "list for a model",
        "empty model",
        "list of ours",
    ],
)
def test_other_pytorch_files_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=r"ckpt\.pt: expected"):
        open_llama2c(tmp_path / "ckpt.pt")


def test_the_tokenizer_beside_it_tells_bos_and_eos(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", state_of(TINY))
    write_tokenizer_bin(tmp_path / "tokenizer.bin", TINY.vocab_size)
    config = open_llama2c(path).config
    assert (config.bos_id, config.eos_ids) == (1, (2,))


SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_seq_len": 32,
}
OURS: dict[str, object] = {
    **ARGS,
    "rope_theta": 500.0,
    "rope_scaling": SCALING,
    "norm_eps": 1e-6,
    "lora_scale": 0.5,
    "chat_format": "chatml",
    "bos_id": 3,
    "eos_ids": [4, 5],
}


@pytest.mark.parametrize(("args", "more"), [(OURS, {}), (ARGS, OURS)], ids=["our first ones", "ours"])
def test_what_llama2c_takes_for_granted_comes_along(
    tmp_path: Path, args: dict[str, object], more: dict[str, object]
) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", state_of(TINY), args, more)
    assert open_llama2c(path).config == replace(
        TINY,
        rope_theta=500.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32),
        norm_eps=1e-6,
        chat_format="chatml",
        bos_id=3,
        eos_ids=(4, 5),
    )


@pytest.mark.parametrize(
    "args",
    [
        {"rope_theta": "10000"},
        {"rope_theta": 0},
        {"rope_theta": float("inf")},
        {"rope_scaling": 8.0},
        {"rope_scaling": [8.0, 1.0, 4.0, 32]},
        {"rope_scaling": {}},
        {"rope_scaling": {**SCALING, "factor": "8"}},
        {"rope_scaling": {**SCALING, "factor": 0.0}},
        {"rope_scaling": {**SCALING, "low_freq_factor": 4.0}},
        {"rope_scaling": {**SCALING, "high_freq_factor": float("nan")}},
        {"rope_scaling": {**SCALING, "original_max_seq_len": 32.0}},
        {"rope_scaling": {**SCALING, "original_max_seq_len": 1 << 40}},
        {"chat_format": 1},
        {"chat_format": ["chatml"]},
        {"bos_id": "1"},
        {"bos_id": 300},
        {"eos_ids": [2, 300]},
        {"eos_ids": [2, "3"]},
        {"eos_ids": "2"},
    ],
    ids=lambda args: str(args)[:70],
)
def test_our_own_model_args_are_checked_too(tmp_path: Path, args: dict[str, object]) -> None:
    path = write_checkpoint(tmp_path / "ckpt.pt", state_of(TINY), {**OURS, **args})
    with pytest.raises(CheckpointError) as caught:
        open_llama2c(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint
    assert len(caught.value.message) < len(str(path)) + 250


STEMS = [f"layers.{layer}.{part}" for layer in (0, 1) for part in ("attention.wq", "feed_forward.w2")]


def additions(rank: int = 3) -> State:
    """Halves for some of the matrices, and none for the others."""
    generator = torch.Generator().manual_seed(2)
    state = state_of(TINY)
    halves = {}
    for stem in STEMS:
        rows, columns = state[f"{stem}.weight"].shape
        halves[f"{stem}.lora_a"] = torch.randn(rank, columns, generator=generator)
        halves[f"{stem}.lora_b"] = torch.randn(rows, rank, generator=generator)
    return halves


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_low_rank_additions_are_added(tmp_path: Path, prefix: str) -> None:
    state, halves = state_of(TINY), additions()
    saved = {prefix + name: w for name, w in {**state, **halves}.items()}
    source = open_llama2c(write_checkpoint(tmp_path / "ckpt.pt", saved, OURS))
    for spec in tensor_layout(source.config, 1):
        for layer in range(max(spec.n_layers, 1)):
            name = original_name(spec.name, layer)
            expected, stem = state[name], name.removesuffix(".weight")
            if stem in STEMS:
                expected = expected + 0.5 * halves[f"{stem}.lora_b"] @ halves[f"{stem}.lora_a"]
                assert (expected - state[name]).abs().max() > 0.1
            rows = source.tensor(spec.name, layer)
            assert rows.shape == spec.shape
            blocks = [np.asarray(rows[i : i + 7]) for i in range(0, spec.shape[0], 7)]
            found = np.concatenate(blocks)
            np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5, err_msg=name)


def test_half_precision_additions_are_added_in_float32(tmp_path: Path) -> None:
    state, halves = state_of(TINY), {name: w.bfloat16() for name, w in additions().items()}
    source = open_llama2c(write_checkpoint(tmp_path / "ckpt.pt", {**state, **halves}, OURS))
    stem = STEMS[0]
    expected = (
        state[f"{stem}.weight"] + 0.5 * halves[f"{stem}.lora_b"].float() @ halves[f"{stem}.lora_a"].float()
    )
    np.testing.assert_allclose(source.tensor("wq", 0)[0:32], expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("layers.0.attention.wq.lora_a", None, "found None, "),
        ("layers.0.attention.wq.lora_b", None, "None, "),
        ("layers.0.attention.wq.weight", None, "found no layers.0.attention.wq.weight"),
        ("layers.0.attention.wq.lora_a", torch.ones(3, 31), r"\(3, 31\)"),
        ("layers.0.attention.wq.lora_a", torch.ones(2, 32), r"\(2, 32\)"),
        ("layers.0.attention.wq.lora_b", torch.ones(33, 3), r"\(33, 3\)"),
        ("layers.0.attention.wq.lora_b", torch.ones(3, 32), r"\(3, 32\)"),
        ("layers.0.attention.wq.lora_b", torch.ones(32), r"\(32,\)"),
        ("layers.0.attention.wq.lora_a", torch.ones(()), r"\(\)"),
        ("layers.0.attention.wq.lora_a", torch.ones(3, 32, dtype=torch.int64), "found int64"),
        ("layers.0.attention.wq.lora_b", torch.ones(32, 3, dtype=torch.float64), "found float64"),
        ("layers.0.attention.lora_a", torch.ones(3, 32), "expected lora_a"),
        ("tok_embeddings.lora_a", torch.ones(3, 32), "expected lora_a"),
        (".lora_a", torch.ones(3, 32), "expected lora_a"),
        ("layers.9.attention.wq.lora_a", torch.ones(3, 32), "expected lora_a"),
    ],
)
def test_an_addition_that_does_not_fit_is_named(
    tmp_path: Path, name: str, tensor: "torch.Tensor | None", problem: str
) -> None:
    state = {**state_of(TINY), **additions()}
    state.pop(name, None)
    path = write_checkpoint(tmp_path / "ckpt.pt", state if tensor is None else {**state, name: tensor}, OURS)
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_llama2c(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


@pytest.mark.parametrize("scale", [None, "2", True, float("nan"), float("inf"), [1.0]], ids=str)
def test_additions_need_their_scale(tmp_path: Path, scale: object) -> None:
    args = {**OURS, "lora_scale": scale}
    path = write_checkpoint(tmp_path / "ckpt.pt", {**state_of(TINY), **additions()}, args)
    with pytest.raises(CheckpointError, match="lora_scale to be a number"):
        open_llama2c(path)


def test_additions_to_what_is_no_matrix_are_refused(tmp_path: Path) -> None:
    """Such as would be read as a matrix that the model has not, or a norm."""
    halves = {"norm.lora_a": torch.ones(1, 32), "norm.lora_b": torch.ones(32, 1)}
    path = write_checkpoint(tmp_path / "ckpt.pt", {**state_of(TINY), **halves}, OURS)
    with pytest.raises(CheckpointError, match="norm: expected lora_a"):
        open_llama2c(path)
