"""llama2.c's ckpt.pt: the weights that were trained, under the names that training leaves behind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.checkpoint import Checkpoint, ModelConfig, tensor_layout  # noqa: E402
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


def write_checkpoint(path: Path, state: State, args: dict[str, object] | None = None) -> Path:
    torch.save(
        {
            "model": state,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]},
            "model_args": ARGS if args is None else args,
            "iter_num": 10,
            "best_val_loss": torch.tensor(1.5),
            "config": {"out_dir": "out", "compile": True},
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
    ],
    ids=["nothing", "state dict", "no model", "list of args", "list for a model", "empty model"],
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
