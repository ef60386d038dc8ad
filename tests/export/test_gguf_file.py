"""GGUF models: weights to the bit, the config out of the metadata, and what is no Llama is refused."""

import random
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from llamatui.backends.checkpoint import Checkpoint, ModelConfig, RopeScaling, tensor_layout
from llamatui.backends.checkpoint_writer import write_checkpoint
from llamatui.backends.q8_0 import FloatArray, Q8Tensor
from llamatui.backends.rope import rope_frequencies
from llamatui.errors import CheckpointError, LlamatuiError, TokenizerError
from llamatui.export.gguf_file import open_gguf
from llamatui.export.source import Source
from llamatui.tokenizers.chat_templates import UNKNOWN_FORMAT
from tests.export.tiny_gguf import (
    CONFIG,
    Array,
    bpe_metadata,
    gguf_name,
    model_tensors,
    write_gguf,
)
from tests.tiny import random_weights

Kind = gguf.GGMLQuantizationType
PLAIN = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
K_QUANTS = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]
WIDE = ModelConfig(256, 512, 1, 4, 2, 300, 128)
"""K-quants have blocks of 256."""

CHATML = "{% for m in messages %}{{'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'}}{% endfor %}"


def whole(source: Source, name: str, layer: int = 0) -> FloatArray:
    rows = source.tensor(name, layer)
    w = rows[0 : rows.shape[0]]
    return w.dequantize() if isinstance(w, Q8Tensor) else w


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_weights_are_what_the_library_makes_of_them(tmp_path: Path, kind: Kind) -> None:
    source = open_gguf(write_gguf(tmp_path / "model.gguf", kind=kind))
    weights = random_weights(CONFIG)
    for spec in tensor_layout(source.config, 1):
        for layer in range(max(spec.n_layers, 1)):
            expected = weights(spec.name, layer)
            if len(spec.shape) == 2:
                expected = gguf.dequantize(gguf.quantize(expected, kind), kind)
            found = whole(source, spec.name, layer)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected, err_msg=f"{spec.name}.{layer}")


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_k_quants_in_blocks_of_rows(tmp_path: Path, kind: Kind) -> None:
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    # Without the highest bit of the exponent no two bytes are an infinite half.
    stored = {
        name: rng.integers(0, 256, (w.shape[0], w.shape[1] // block * n_bytes), np.uint8) & 0xBF
        for name, w in model_tensors(WIDE).items()
        if w.ndim == 2
    }
    source = open_gguf(write_gguf(tmp_path / "model.gguf", config=WIDE, kind=kind, tensors=stored))
    for name in ("tok_embeddings", "wk", "w2"):
        expected = gguf.dequantize(stored[gguf_name(name, 0)], kind)
        assert np.isfinite(expected).all()
        rows = source.tensor(name, 0)
        assert rows.shape == expected.shape
        for some in (slice(0, 1), slice(3, 20), slice(20, rows.shape[0])):
            np.testing.assert_array_equal(rows[some], expected[some])


def test_q8_0_reaches_version_2_bit_for_bit(tmp_path: Path) -> None:
    source = open_gguf(write_gguf(tmp_path / "model.gguf", kind=Kind.Q8_0))
    assert source.config.group_size == 32
    report = write_checkpoint(tmp_path / "model.bin", source.config, 2, source.tensor, group_size=32)
    assert report.max_error == 0
    checkpoint = Checkpoint(tmp_path / "model.bin")
    for name, w in model_tensors().items():
        if w.ndim == 2:
            blocks = gguf.quantize(w, Kind.Q8_0).reshape(w.shape[0], -1, 34)  # (rows, groups, bytes)
            ours, layer = next(
                (spec.name, layer)
                for spec in tensor_layout(CONFIG, 1)
                for layer in range(max(spec.n_layers, 1))
                if gguf_name(spec.name, layer) == name
            )
            stored = checkpoint.tensors[ours]
            assert isinstance(stored, Q8Tensor)
            stored = stored[layer] if name.startswith("blk.") else stored
            np.testing.assert_array_equal(stored.q, blocks[..., 2:].view(np.int8).reshape(w.shape))
            scale = blocks[..., :2].copy().view(np.float16)[..., 0]
            np.testing.assert_array_equal(stored.scale, scale.astype(np.float32))


def test_fp32_reaches_version_1(tmp_path: Path) -> None:
    source = open_gguf(write_gguf(tmp_path / "model.gguf"))
    write_checkpoint(tmp_path / "model.bin", source.config, 1, source.tensor)
    write_checkpoint(tmp_path / "expected.bin", CONFIG, 1, random_weights(CONFIG))
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()


def test_the_config(tmp_path: Path) -> None:
    source = open_gguf(write_gguf(tmp_path / "model.gguf"))
    assert source.config == CONFIG
    assert source.notes == []
    assert set(source.tokenizer) == {".tokenizer.model", ".tokenizer_config.json"}


def test_numbers_are_the_decimals_that_were_meant(tmp_path: Path) -> None:
    changes = {"llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.rope.freq_base": 500000.0}
    config = open_gguf(write_gguf(tmp_path / "model.gguf", metadata=changes)).config
    assert (config.norm_eps, config.rope_theta) == (1e-6, 500000.0)


def test_a_classifier_of_its_own(tmp_path: Path) -> None:
    w = random_weights(CONFIG, seed=5)("tok_embeddings", 0)
    source = open_gguf(write_gguf(tmp_path / "model.gguf", tensors={"output.weight": w}))
    assert not source.config.shared_classifier
    np.testing.assert_array_equal(whole(source, "wcls"), w)


def test_numbers_of_heads_for_each_layer(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [96, 96]}
    assert open_gguf(write_gguf(tmp_path / "same.gguf", metadata=changes)).config == CONFIG
    changes["llama.attention.head_count_kv"] = [2, 1]
    with pytest.raises(CheckpointError, match="the same number in every layer"):
        open_gguf(write_gguf(tmp_path / "other.gguf", metadata=changes))


def test_no_q8_0_groups_where_they_would_straddle_rows(tmp_path: Path) -> None:
    """llama.cpp's quantizer stores rows that are not whole blocks as F16."""
    config = ModelConfig(64, 112, 2, 4, 2, 300, 128)
    halves = {name: w.astype(np.float16) for name, w in model_tensors(config).items() if w.ndim == 2}
    halves["token_embd.weight"] = gguf.quantize(halves["token_embd.weight"], Kind.Q8_0)
    path = write_gguf(tmp_path / "model.gguf", config=config, kind=Kind.Q8_0, tensors=halves)
    source = open_gguf(path)
    assert source.config.group_size == 0
    assert isinstance(source.tensor("tok_embeddings", 0)[0:2], Q8Tensor)
    write_checkpoint(tmp_path / "model.bin", source.config, 2, source.tensor)
    assert Checkpoint(tmp_path / "model.bin").config.group_size == 16


def llama3_factors(config: ModelConfig, scaling: RopeScaling) -> FloatArray:
    """As our backends scale: what each frequency is divided by."""
    scaled = rope_frequencies(replace(config, rope_scaling=scaling))
    return rope_frequencies(replace(config, rope_scaling=None)) / scaled


@pytest.mark.parametrize("factor", [8.0, 32.0, 16.0])
@pytest.mark.parametrize("original", [8192, 4096])
def test_llama_3_scaling_out_of_its_factors(tmp_path: Path, factor: float, original: int) -> None:
    theta = 500000.0
    config = ModelConfig(256, 96, 1, 2, 2, 300, 1 << 17, rope_theta=theta)
    scaling = RopeScaling(factor, 1.0, 4.0, original)
    factors = llama3_factors(config, scaling)
    assert len(set(factors.tolist())) > 5  # some lie in between
    metadata = {"llama.rope.scaling.original_context_length": original} if original != 8192 else {}
    path = write_gguf(
        tmp_path / "model.gguf", config=config, metadata=metadata, tensors={"rope_freqs.weight": factors}
    )
    assert open_gguf(path).config.rope_scaling == scaling


def test_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    factors = np.ones(CONFIG.head_dim // 2, np.float32)
    path = write_gguf(tmp_path / "model.gguf", tensors={"rope_freqs.weight": factors})
    assert open_gguf(path).config.rope_scaling is None


@pytest.mark.parametrize(
    "factors",
    [[1, 1, 2, 2, 3, 3, 4, 4], [8] * 8, [0] * 8, [-1] * 8, [float("nan")] * 8, [float("inf")] * 8, [1] * 7],
)
def test_other_rope_factors_are_refused(tmp_path: Path, factors: list[float]) -> None:
    tensors: dict[str, Array] = {"rope_freqs.weight": np.array(factors, np.float32)}
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        open_gguf(write_gguf(tmp_path / "model.gguf", tensors=tensors))


def test_an_original_context_of_nothing(tmp_path: Path) -> None:
    tensors: dict[str, Array] = {"rope_freqs.weight": np.full(8, 8, np.float32)}
    metadata = {"llama.rope.scaling.original_context_length": 0}
    with pytest.raises(CheckpointError, match="RoPE scaling does not make sense"):
        open_gguf(write_gguf(tmp_path / "model.gguf", tensors=tensors, metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.expert_count": 8}, "mixture of 8"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, "linear scaling by 2"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "yarn scaling by 4"),
        ({"llama.rope.scaling.factor": 4.0}, "linear scaling by 4"),
        ({"llama.rope.scale_linear": 4.0}, "linear scaling by 4"),
        ({"llama.rope.scaling.attn_factor": 2.0}, "attn_factor to be 1, found 2"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count to be 16.*found 8"),
        ({"llama.attention.key_length": 32}, "key_length to be 16.*found 32"),
        ({"llama.attention.value_length": 32}, "value_length to be 16"),
        ({"llama.attention.head_count": 0}, "n_heads must be"),
        ({"llama.attention.head_count": 3}, "not divisible"),
        ({"llama.block_count": 3}, r"the tensor blk\.2\.attn_norm\.weight, found none"),
        ({"llama.block_count": 1 << 24}, r"the tensor blk\.2\."),
        ({"llama.block_count": 1}, r"only a Llama's tensors, found blk\.1\."),
        ({"llama.block_count": (1 << 32) - 1}, "n_layers must be"),
        (
            {"llama.embedding_length": 128, "llama.rope.dimension_count": None},
            r"of shape \(128,\), found \(64,\)",
        ),
        ({"llama.embedding_length": "64"}, "a whole number in llama.embedding_length, found '64'"),
        ({"llama.context_length": 0}, "max_seq_len must be"),
        ({"llama.rope.freq_base": float("nan")}, "a number in llama.rope.freq_base"),
        ({"llama.rope.freq_base": -1.0}, "rope_theta must be"),
    ],
)
def test_what_is_no_llama_is_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_gguf(path)
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.type": "yarn"},
        {"llama.expert_count": 0},
        {"llama.attention.key_length": 16, "llama.attention.value_length": 16},
    ],
)
def test_what_changes_nothing_is_read(tmp_path: Path, metadata: dict[str, Any]) -> None:
    assert open_gguf(write_gguf(tmp_path / "model.gguf", metadata=metadata)).config == CONFIG


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"token_embd.weight": None}, r"the tensor token_embd\.weight, found none"),
        ({"blk.1.ffn_up.weight": None}, r"the tensor blk\.1\.ffn_up\.weight, found none"),
        ({"blk.0.attn_q.bias": np.zeros(64, np.float32)}, r"without biases, found blk\.0\.attn_q\.bias"),
        ({"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}, "only a Llama's tensors"),
        ({"output_norm.weight": np.ones(32, np.float32)}, r"shape \(64,\), found \(32,\)"),
        ({"blk.0.attn_k.weight": np.ones((64, 32), np.float32)}, r"shape \(32, 64\), found \(64, 32\)"),
        ({"blk.0.attn_k.weight": np.ones((32, 64), np.int32)}, r"attn_k\.weight of a type .* found I32"),
    ],
)
def test_tensors_that_are_not_as_they_should_be(
    tmp_path: Path, tensors: dict[str, Array | None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_gguf(write_gguf(tmp_path / "model.gguf", tensors=tensors))


def test_a_type_that_is_not_read(tmp_path: Path) -> None:
    stored = np.zeros((32, 64 // 32 * 18), np.uint8)
    path = write_gguf(tmp_path / "model.gguf", tensors={"blk.0.attn_k.weight": stored}, kind=Kind.F32)
    data = path.read_bytes()
    name = b"blk.0.attn_k.weight"
    at = data.index(name) + len(name)
    # The writer has no IQ4_NL: dims (64, 32), then the type.
    path.write_bytes(
        data[: at + 4]
        + np.array([64, 32], "<u8").tobytes()
        + np.array([20], "<u4").tobytes()
        + data[at + 24 :]
    )
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_k\.weight of a type .* found IQ4_NL") as caught:
        open_gguf(path)
    assert "Q8_0" in caught.value.hint


def test_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the architecture llama, found 'qwen2'"):
        open_gguf(write_gguf(tmp_path / "model.gguf", architecture="qwen2"))


def test_infinite_scales(tmp_path: Path) -> None:
    stored = gguf.quantize(model_tensors()["blk.0.attn_q.weight"], Kind.Q8_0)
    stored[5, 34:36] = 0, 0x7C
    path = write_gguf(tmp_path / "model.gguf", kind=Kind.Q8_0, tensors={"blk.0.attn_q.weight": stored})
    rows = open_gguf(path).tensor("wq", 0)
    assert isinstance(rows[0:5], Q8Tensor)
    with pytest.raises(CheckpointError, match=r"scales of blk\.0\.attn_q\.weight"):
        rows[5:6]


@pytest.mark.parametrize(
    ("template", "name", "n_notes"),
    [(CHATML, "chatml", 0), ("{{ messages }}", UNKNOWN_FORMAT, 1), (None, "", 0)],
)
def test_the_chat_format(tmp_path: Path, template: str | None, name: str, n_notes: int) -> None:
    path = write_gguf(tmp_path / "model.gguf", metadata={"tokenizer.chat_template": template})
    source = open_gguf(path)
    assert source.config.chat_format == name
    assert len(source.notes) == n_notes
    assert all("--chat-format" in note for note in source.notes)


def test_ids_that_end_a_turn(tmp_path: Path) -> None:
    ids = {"tokenizer.ggml.eot_token_id": 299, "tokenizer.ggml.eom_token_id": 2}
    config = open_gguf(write_gguf(tmp_path / "model.gguf", metadata=ids)).config
    assert (config.bos_id, config.eos_ids) == (1, (2, 299))
    with pytest.raises(TokenizerError, match="eot_token_id to be one of 300 tokens, found 300") as caught:
        open_gguf(write_gguf(tmp_path / "bad.gguf", metadata={"tokenizer.ggml.eot_token_id": 300}))
    assert caught.value.message.startswith(str(tmp_path / "bad.gguf"))


def test_a_tokenizer_that_does_not_say_how_it_splits(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", metadata=bpe_metadata() | {"tokenizer.ggml.pre": None})
    source = open_gguf(path)
    assert ".tokenizer.json" in source.tokenizer
    assert "ids may differ" in source.notes[0]


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    source = open_gguf(write_gguf(tmp_path / "model.gguf", metadata={"tokenizer.ggml.model": None}))
    assert source.tokenizer == {}
    assert source.notes == ["the file has no tokenizer"]


def test_only_the_rows_that_are_asked_for_are_held(tmp_path: Path) -> None:
    config = ModelConfig(256, 256, 1, 2, 2, 1 << 15, 128)
    metadata = {"tokenizer.ggml.model": None}
    path = write_gguf(tmp_path / "model.gguf", config=config, kind=Kind.F16, metadata=metadata)
    tracemalloc.start()
    rows = open_gguf(path).tensor("tok_embeddings", 0)
    for start in range(0, rows.shape[0], 512):
        rows[start : start + 512]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < rows.shape[0] * rows.shape[1] * 4 / 8


@pytest.mark.parametrize("tokenizer", ["sentencepiece", "bpe"])
def test_damaged_files_give_nothing_but_our_errors(tmp_path: Path, tokenizer: str) -> None:
    metadata = bpe_metadata() if tokenizer == "bpe" else {}
    whole_file = write_gguf(tmp_path / "whole.gguf", metadata=metadata, kind=Kind.Q8_0)
    data = whole_file.read_bytes()
    n_header = data.index(b"blk.1.ffn_up.weight") + 100
    rng = random.Random(7)
    n_refused = 0
    for _ in range(250):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            damaged[rng.randrange(n_header)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            source = open_gguf(path)
            whole(source, "wq"), whole(source, "norm")
        except LlamatuiError:
            n_refused += 1
    assert n_refused > 50
