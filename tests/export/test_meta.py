"""Meta's folders: whole and sharded ones give the weights that were saved, and params what they mean."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling, tensor_layout  # noqa: E402
from llamatui.backends.q8_0 import FloatArray  # noqa: E402
from llamatui.errors import CheckpointError  # noqa: E402
from llamatui.export.meta import open_meta, original_name  # noqa: E402
from llamatui.export.source import Source  # noqa: E402
from llamatui.export.to_bin import export_bin  # noqa: E402
from tests.tiny import TINY, random_weights, write_tokenizer_bin  # noqa: E402

SMALL = replace(TINY, shared_classifier=False)
PARAMS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": -1}

State = dict[str, "torch.Tensor"]


def state_of(config: ModelConfig, dtype: str = "float32") -> State:
    """Random weights by Meta's names."""
    weights = random_weights(config)
    return {
        original_name(spec.name, layer): torch.from_numpy(weights(spec.name, layer)).to(getattr(torch, dtype))
        for spec in tensor_layout(config, 1)
        for layer in range(max(spec.n_layers, 1))
    }


def shards_of(state: State, n: int, embedding_axis: int = 1) -> list[State]:
    """As Meta cuts a model over `n` GPUs."""

    def cut(name: str, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        if tensor.dim() == 1:
            return [tensor] * n
        axis = 1 if ".wo." in name or ".w2." in name else 0
        axis = embedding_axis if name.startswith("tok_embeddings") else axis
        return [part.clone() for part in tensor.chunk(n, axis)]

    parts = {name: cut(name, tensor) for name, tensor in state.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(n)]


def write_folder(folder: Path, shards: list[State], params: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(PARAMS if params is None else params))
    for i, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{i:02}.pth")
    return folder


def whole(source: Source, name: str, layer: int) -> FloatArray:
    """A tensor, read in blocks of 7 rows, which meet no border of a shard."""
    rows = source.tensor(name, layer)
    blocks = [rows[slice(i, min(i + 7, rows.shape[0]))] for i in range(0, rows.shape[0], 7)]
    assert all(isinstance(block, np.ndarray) and block.dtype == np.float32 for block in blocks)
    return np.concatenate(blocks)


def assert_has(source: Source, state: State) -> None:
    assert source.config.shared_classifier is False
    for spec in tensor_layout(source.config, 1):
        for layer in range(max(spec.n_layers, 1)):
            saved = state[original_name(spec.name, layer)].float().numpy()
            np.testing.assert_array_equal(whole(source, spec.name, layer), saved, err_msg=spec.name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_what_was_saved(tmp_path: Path, dtype: str) -> None:
    state = state_of(SMALL, dtype)
    source = open_meta(write_folder(tmp_path / "m", [state]))
    assert source.config == replace(SMALL, max_seq_len=2048)
    assert_has(source, state)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["llama3", "llama2"])
@pytest.mark.parametrize("n_kv_heads", [4, 8])
def test_shards_make_the_whole(tmp_path: Path, n: int, embedding_axis: int, n_kv_heads: int) -> None:
    config = replace(SMALL, n_heads=8, n_kv_heads=n_kv_heads)
    state = state_of(config)
    params = {**PARAMS, "n_heads": 8, "n_kv_heads": n_kv_heads}
    source = open_meta(write_folder(tmp_path / "m", shards_of(state, n, embedding_axis), params))
    assert source.config == replace(config, max_seq_len=2048)
    assert_has(source, state)


def test_ten_shards_and_more_are_in_order(tmp_path: Path) -> None:
    config = ModelConfig(44, 22, 1, 11, 11, 22, 2048, shared_classifier=False)
    state = state_of(config)
    params: dict[str, object] = {"dim": 44, "n_layers": 1, "n_heads": 11}
    assert_has(open_meta(write_folder(tmp_path / "m", shards_of(state, 11), params)), state)


def test_shards_and_whole_give_the_same_file(tmp_path: Path) -> None:
    state = state_of(SMALL, "bfloat16")
    for n in (1, 2):
        folder = write_folder(tmp_path / str(n), shards_of(state, n))
        export_bin(open_meta(folder), tmp_path / f"{n}.bin", version=2, group_size=16)
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "2.bin").read_bytes()
    assert Checkpoint(tmp_path / "1.bin").config.group_size == 16


@pytest.mark.parametrize("n", [1, 2])
def test_a_classifier_equal_to_the_embedding_is_shared(tmp_path: Path, n: int) -> None:
    state = state_of(SMALL)
    state["output.weight"] = state["tok_embeddings.weight"].clone()
    assert open_meta(write_folder(tmp_path / "m", shards_of(state, n))).config.shared_classifier
    state["output.weight"][-1, -1] += 1
    assert not open_meta(write_folder(tmp_path / "m", shards_of(state, n))).config.shared_classifier


def test_tables_that_follow_from_the_config_are_left_out(tmp_path: Path) -> None:
    state = state_of(SMALL)
    for name in ("rope.freqs", "layers.1.attention.inner_attention.rope.freqs"):
        state[name] = torch.ones(4)
    open_meta(write_folder(tmp_path / "m", [state]))


def config_of(tmp_path: Path, rows: int = 300, **params: object) -> Source:
    """From a small model with an embedding of `rows`; `params` go over a few common ones."""
    dim = params.get("dim", 32)
    assert isinstance(dim, int)
    config = ModelConfig(dim, 4, 1, 4, 4, rows, 1, shared_classifier=False)
    state = {
        original_name(spec.name, 0): torch.zeros(spec.shape, dtype=torch.bfloat16)
        for spec in tensor_layout(config, 1)
    }
    common = {"dim": dim, "n_layers": 1, "n_heads": 4}
    return open_meta(write_folder(tmp_path / "m", [state], {**common, **params}))


@pytest.mark.parametrize(
    ("params", "rows", "context", "family"),
    [
        ({"norm_eps": 1e-6, "vocab_size": -1}, 32000, 2048, "Llama 1"),
        ({"norm_eps": 1e-5, "vocab_size": -1}, 32000, 4096, "Llama 2"),
        ({"norm_eps": 1e-5, "rope_theta": 1000000}, 32016, 16384, "Code Llama"),
        ({"norm_eps": 1e-5, "rope_theta": 500000.0, "vocab_size": 128256}, 128256, 8192, "Llama 3"),
        ({"norm_eps": 1e-5}, 300, 2048, "Llama 1"),
    ],
)
def test_the_context_is_that_of_the_family_and_told(
    tmp_path: Path, params: dict[str, object], rows: int, context: int, family: str
) -> None:
    source = config_of(tmp_path, rows, **params)
    assert source.config.vocab_size == rows
    assert source.config.max_seq_len == context
    assert source.config.norm_eps == params["norm_eps"]
    assert source.config.rope_theta == params.get("rope_theta", 10000.0)
    assert source.config.rope_scaling is None
    assert source.notes == [
        f"params.json does not say the context length: {context} is assumed, as {family}'s"
    ]


@pytest.mark.parametrize(
    ("params", "factor", "high", "n_notes"),
    [
        ({}, 32, 4, 2),  # Llama 3.2 1B and 3B, by dim
        ({"dim": 4096, "n_heads": 32}, 8, 4, 2),  # Llama 3.1
        ({"rope_scaling_factor": 16, "rope_high_freq_factor": 2}, 16, 2, 1),
        ({"use_scaled_rope": False}, None, None, 1),
    ],
)
def test_rope_scaling_is_that_of_the_size_unless_params_say(
    tmp_path: Path, params: dict[str, object], factor: float | None, high: float, n_notes: int
) -> None:
    wide = params.get("dim") == 4096
    source = config_of(tmp_path, 2 if wide else 300, **{"use_scaled_rope": True, "rope_theta": 5e5, **params})
    scaling = None if factor is None else RopeScaling(factor, 1, high, 8192)
    assert source.config.rope_scaling == scaling
    assert source.config.max_seq_len == (131072 if scaling else 2048)
    assert len(source.notes) == n_notes


def test_what_params_do_not_say_is_left_to_the_tokenizer(tmp_path: Path) -> None:
    config = config_of(tmp_path).config
    assert (config.chat_format, config.bos_id, config.eos_ids) == ("", -1, ())
    assert config.n_kv_heads == config.n_heads == 4
    assert config.norm_eps == 1e-5


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", shards_of(state_of(SMALL), 2))
    (folder / "consolidated.00.pth").rename(tmp_path / "00.pth")
    with pytest.raises(CheckpointError, match=r"found no consolidated\.00\.pth"):
        open_meta(folder)
    (tmp_path / "00.pth").rename(folder / "consolidated.00.pth")
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match="expected shape") as caught:
        open_meta(folder)
    assert "a shard is missing" in caught.value.hint


def test_a_folder_without_weights_or_params_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"params\.json"):
        open_meta(tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth"):
        open_meta(tmp_path)


def test_repeated_key_value_heads_are_refused(tmp_path: Path) -> None:
    config = replace(SMALL, n_kv_heads=1)
    state = state_of(config)
    shards = shards_of(state, 2)
    for shard in shards:
        for name in ("wk", "wv"):
            for layer in range(2):
                shard[original_name(name, layer)] = state[original_name(name, layer)]
    folder = write_folder(tmp_path / "m", shards, {**PARAMS, "n_kv_heads": 1})
    with pytest.raises(CheckpointError, match="expected each key-value head once, found 1 of them, repeated"):
        open_meta(folder)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"quantization_args": {"scheme": "int4_weight_int8_dynamic_activation"}}, "a quantized model"),
        ({"lora_args": {"rank": 16, "scale": 2.0}}, "LoRA"),
        ({"moe_args": {"num_experts": 16}}, "a mixture of experts"),
        ({"sliding_window": 4096}, "sliding-window attention"),
        ({"vision_model": {"cross_attention_adapter": {"num_layers": 8}}}, "a vision model"),
    ],
)
def test_other_architectures_are_named_in_params(
    tmp_path: Path, params: dict[str, object], kind: str
) -> None:
    folder = write_folder(tmp_path / "m", [state_of(SMALL)], {**PARAMS, **params})
    with pytest.raises(CheckpointError, match=f"expected a Llama text model, found .*{kind}"):
        open_meta(folder)


def test_a_vision_model_is_named_by_its_tensors(tmp_path: Path) -> None:
    state = {f"text_model.{name}": tensor for name, tensor in state_of(SMALL).items()}
    with pytest.raises(CheckpointError, match="found a vision model"):
        open_meta(write_folder(tmp_path / "m", [state]))


def spoil(state: State, name: str, tensor: "torch.Tensor | None") -> State:
    state.pop(name, None)
    return state if tensor is None else {**state, name: tensor}


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("layers.1.ffn_norm.weight", None, r"found no layers\.1\.ffn_norm\.weight"),
        ("output.weight", None, r"found no output\.weight"),
        ("tok_embeddings.weight", None, r"found no tok_embeddings\.weight"),
        ("layers.2.ffn_norm.weight", torch.ones(32), r"found also 'layers\.2\.ffn_norm\.weight'"),
        ("layers.0.attention.wq.bias", torch.ones(32), r"found also 'layers\.0\.attention\.wq\.bias'"),
        ("layers.0.attention.wq.scales", torch.ones(32), "found also"),
        ("layers.0.attention.wq.weight", torch.ones(32, 32, dtype=torch.int8), "found int8"),
        ("layers.0.attention.wk.weight", torch.ones(32, 32), r"expected shape \(16, 32\), found \(32, 32\)"),
        ("norm.weight", torch.ones(32, 1), r"expected 1 dimensions, found shape \(32, 1\)"),
        ("norm.weight", torch.ones(31), r"expected shape \(32,\), found \(31,\)"),
        ("tok_embeddings.weight", torch.ones(32), r"expected 2 dimensions, found shape \(32,\)"),
        ("output.weight", torch.ones(299, 32), r"expected shape \(300, 32\), found \(299, 32\)"),
        ("a\x1b[2Jb", torch.ones(1), r"found also 'a\\x1b\[2Jb'"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, name: str, tensor: "torch.Tensor | None", problem: str
) -> None:
    folder = write_folder(tmp_path / "m", [spoil(state_of(SMALL), name, tensor)])
    with pytest.raises(CheckpointError, match=problem) as caught:
        open_meta(folder)
    assert caught.value.message.startswith(str(folder))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "tensor", "problem"),
    [
        ("layers.1.ffn_norm.weight", None, "in shard 01"),
        ("layers.0.attention.wq.weight", torch.ones(32, 16), "the same shape in all shards"),
        ("layers.0.ffn_norm.weight", torch.ones(16), "the same shape in all shards"),
        ("extra", torch.ones(1), "found also 'extra'"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(
    tmp_path: Path, name: str, tensor: "torch.Tensor | None", problem: str
) -> None:
    shards = shards_of(state_of(SMALL), 2)
    folder = write_folder(tmp_path / "m", [shards[0], spoil(shards[1], name, tensor)])
    with pytest.raises(CheckpointError, match=problem):
        open_meta(folder)


@pytest.mark.parametrize(
    "params",
    [
        {"dim": 0},
        {"dim": -32},
        {"dim": 1 << 60},
        {"dim": 32.0},
        {"dim": "32"},
        {"dim": True},
        {"dim": None},
        {"dim": [[]]},
        {"n_heads": 5},
        {"n_heads": 0},
        {"n_kv_heads": 3},
        {"n_layers": 3},
        {"n_layers": 1},
        {"n_layers": 1 << 24},
        {"norm_eps": "1e-5"},
        {"norm_eps": float("nan")},
        {"norm_eps": 2},
        {"rope_theta": 0},
        {"rope_theta": float("inf")},
        {"rope_theta": 10**400},
        {"use_scaled_rope": True, "rope_scaling_factor": 0},
        {"use_scaled_rope": True, "rope_high_freq_factor": 0.5},
    ],
    ids=str,
)
def test_params_that_make_no_sense_are_refused(tmp_path: Path, params: dict[str, object]) -> None:
    folder = write_folder(tmp_path / "m", [state_of(SMALL)], {**PARAMS, **params})
    with pytest.raises(CheckpointError) as caught:
        open_meta(folder)
    assert caught.value.message.startswith(str(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"dim": 1, "dim": 2}', "[" * 100_000])
def test_params_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"params\.json: expected"):
        open_meta(tmp_path)


def test_the_tokenizer_tells_bos_and_eos(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", [state_of(SMALL)])
    write_tokenizer_bin(folder / "tokenizer.model", SMALL.vocab_size)  # the contents tell the kind
    config = open_meta(folder).config
    assert (config.bos_id, config.eos_ids) == (1, (2,))
