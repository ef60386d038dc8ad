"""Hugging Face folders as a source: what is read, and all that is refused before anything is written."""

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llamatui.backends import checkpoint_writer
from llamatui.backends.checkpoint import RopeScaling, tensor_layout
from llamatui.backends.checkpoint_writer import row_blocks
from llamatui.backends.q8_0 import FloatArray
from llamatui.errors import CheckpointError
from llamatui.export.hf import open_hf, reorder_heads
from llamatui.export.source import deinterleave, interleave
from llamatui.tokenizers.chat_templates import UNKNOWN_FORMAT
from llamatui.tokenizers.sentencepiece_proto import Piece, PieceType, build_model
from tests.export.hf_models import (
    HF_TINY,
    fp32,
    random_tensors,
    safetensors_bytes,
    write_folder,
    write_shards,
)

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
SCALING = RopeScaling(8.0, 1.0, 4.0, 32)


def write_tokenizer_model(path: Path) -> None:
    pieces: list[Piece] = [("<unk>", 0.0, PieceType.UNKNOWN)]
    pieces += [(text, 0.0, PieceType.CONTROL) for text in ("<s>", "</s>")]
    pieces += [(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)]
    pieces += [(chr(0x3041 + i), -1.0, PieceType.NORMAL) for i in range(300 - len(pieces))]
    path.write_bytes(build_model(pieces, bos_id=1, eos_id=2, unk_id=0))


def whole(folder: Path, name: str, layer: int = 0) -> FloatArray:
    rows = open_hf(folder).tensor(name, layer)
    return np.asarray(rows[slice(0, rows.shape[0])])


def test_config_and_tensors_are_read(tmp_path: Path) -> None:
    tensors = random_tensors()
    source = open_hf(write_folder(tmp_path, tensors))
    assert source.path == tmp_path
    assert source.config == HF_TINY
    np.testing.assert_array_equal(whole(tmp_path, "tok_embeddings"), tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(whole(tmp_path, "norm"), tensors["model.norm.weight"])
    np.testing.assert_array_equal(whole(tmp_path, "wcls"), tensors["lm_head.weight"])
    for layer in range(2):
        for ours, theirs in {"wv": "self_attn.v_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj"}.items():
            expected = tensors[f"model.layers.{layer}.{theirs}.weight"]
            np.testing.assert_array_equal(whole(tmp_path, ours, layer), expected)


@pytest.mark.parametrize(("ours", "theirs", "n_heads"), [("wq", "q_proj", 4), ("wk", "k_proj", 2)])
def test_rows_that_rope_rotates_together_become_neighbours(
    tmp_path: Path, ours: str, theirs: str, n_heads: int
) -> None:
    tensors = random_tensors()
    stored = tensors[f"model.layers.1.self_attn.{theirs}.weight"].reshape(n_heads, 2, 4, 32)
    read = whole(write_folder(tmp_path, tensors), ours, 1).reshape(n_heads, 4, 2, 32)
    for head in range(n_heads):
        for i in range(4):
            np.testing.assert_array_equal(read[head, i], stored[head, :, i])


@pytest.mark.parametrize("order", [interleave(8), deinterleave(8)])
def test_heads_are_reordered_in_any_blocks(order: np.ndarray) -> None:
    w = np.arange(24, dtype=np.float32).reshape(24, 1)
    expected = w.reshape(3, 8, 1)[:, order].reshape(24, 1)
    rows = reorder_heads(w, order)
    for start in range(24):
        for stop in range(start + 1, 25):
            np.testing.assert_array_equal(np.asarray(rows[slice(start, stop)]), expected[start:stop])
    np.testing.assert_array_equal(np.asarray(rows[slice(None)]), expected)


def test_a_tied_model_needs_no_classifier_and_ignores_a_copy(tmp_path: Path) -> None:
    tensors = random_tensors()
    source = open_hf(write_folder(tmp_path / "copy", tensors, tie_word_embeddings=True))
    assert source.config == replace(HF_TINY, shared_classifier=True)
    assert not any("left out" in note for note in source.notes)
    del tensors["lm_head.weight"]
    assert open_hf(write_folder(tmp_path / "none", tensors, tie_word_embeddings=True)).config == source.config


def test_a_base_model_has_no_prefix(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["lm_head.weight"]
    bare = {name.removeprefix("model."): w for name, w in tensors.items()}
    write_folder(tmp_path, bare, tie_word_embeddings=True)
    expected = tensors["model.layers.1.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(whole(tmp_path, "w1", 1), expected)


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    tensors = random_tensors()
    write_folder(tmp_path, tensors).joinpath("model.safetensors").unlink()
    write_shards(tmp_path, tensors)
    np.testing.assert_array_equal(whole(tmp_path, "norm"), tensors["model.norm.weight"])
    np.testing.assert_array_equal(whole(tmp_path, "wcls"), tensors["lm_head.weight"])


def test_a_single_file_of_another_name_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, name="pruned.safetensors")
    assert open_hf(tmp_path).config == HF_TINY


def test_tables_are_ignored_and_other_tensors_are_told(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert not any("left out" in note for note in open_hf(write_folder(tmp_path, tensors)).notes)
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.zeros(8, np.float32)
    notes = open_hf(write_folder(tmp_path, tensors)).notes
    assert any("q_norm" in note and "left out" in note for note in notes)


def test_reading_a_tensor_holds_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(HF_TINY, dim=1024, n_heads=8, n_kv_heads=8, n_layers=1, vocab_size=2)  # wq: 4 MB
    write_folder(
        tmp_path, random_tensors(config), hidden_size=1024, num_attention_heads=8, num_key_value_heads=8,
        num_hidden_layers=1, vocab_size=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    monkeypatch.setattr(checkpoint_writer, "BLOCK", 1 << 16)  # 256 KB
    rows = open_hf(tmp_path).tensor("wq", 0)
    tracemalloc.start()
    for block in row_blocks((1024, 1024)):
        rows[block]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": 500000, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}},
        {"rope_theta": 500000.0, "rope_scaling": None, "rope_parameters": LLAMA3},
    ],
)
def test_llama3_scaling_is_read_as_transformers_4_and_5_write_it(tmp_path: Path, changes: dict) -> None:
    config = open_hf(write_folder(tmp_path, **changes)).config
    assert (config.rope_theta, config.rope_scaling) == (500000.0, SCALING)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}},
    ],
)
def test_plain_rope_is_read_as_transformers_4_and_5_write_it(tmp_path: Path, changes: dict) -> None:
    config = open_hf(write_folder(tmp_path, **changes)).config
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


def test_what_is_not_said_is_what_transformers_assumes(tmp_path: Path) -> None:
    tensors = random_tensors(replace(HF_TINY, n_kv_heads=4))
    write_folder(
        tmp_path, tensors, num_key_value_heads=None, rms_norm_eps=None, tie_word_embeddings=None,
        hidden_act=None, max_position_embeddings=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    config = open_hf(tmp_path).config
    assert config == replace(
        HF_TINY, n_kv_heads=4, norm_eps=1e-6, max_seq_len=2048, rope_theta=10000.0, bos_id=-1, eos_ids=()
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sliding_window": 16}, 16),
        ({"sliding_window": 4096}, 64),
        ({"sliding_window": None}, 64),
        ({"max_position_embeddings": 32768}, 4096),  # what transformers assumes where there is no window
    ],
)
def test_mistrals_context_is_its_window(tmp_path: Path, changes: dict, expected: int) -> None:
    source = open_hf(write_folder(tmp_path, model_type="mistral", **changes))
    assert source.config.max_seq_len == expected
    assert any("sliding_window" in note for note in source.notes) == (expected in (16, 4096))


def test_a_llama_has_no_window(tmp_path: Path) -> None:
    assert open_hf(write_folder(tmp_path, sliding_window=16)).config.max_seq_len == 64


def test_end_ids_of_both_files_are_joined(tmp_path: Path) -> None:
    write_folder(tmp_path, eos_token_id=[2, 7])
    assert open_hf(tmp_path).config.eos_ids == (2, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert open_hf(tmp_path).config.eos_ids == (2, 7, 9)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert open_hf(tmp_path).config.eos_ids == (2, 7, 5)


CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("chat_template.jinja", CHATML, "chatml"),
        ("chat_template.jinja", "{{ messages }}", UNKNOWN_FORMAT),
        ("tokenizer_config.json", json.dumps({"chat_template": CHATML}), "chatml"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ messages }}"}), UNKNOWN_FORMAT),
        ("tokenizer_config.json", json.dumps({"bos_token": "<s>"}), ""),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "x"},
                        {"name": "default", "template": CHATML},
                    ]
                }
            ),
            "chatml",
        ),
    ],
)
def test_the_chat_template_tells_the_chat_format(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    write_folder(tmp_path)
    (tmp_path / name).write_text(content)
    source = open_hf(tmp_path)
    assert source.config.chat_format == expected
    assert any("--chat-format" in note for note in source.notes) == (expected == UNKNOWN_FORMAT)


def test_a_template_of_its_own_comes_first(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert open_hf(tmp_path).config.chat_format == "chatml"


def test_the_header_and_the_config_beside_it_tell_of_the_same_template(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    write_tokenizer_model(tmp_path / "tokenizer.model")
    source = open_hf(tmp_path)
    assert source.config.chat_format == "chatml"
    assert json.loads(source.tokenizer[".tokenizer_config.json"])["chat_template"] == CHATML


def test_a_template_that_is_too_long_is_unknown(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML + " " * (2 << 20))
    assert open_hf(tmp_path).config.chat_format == UNKNOWN_FORMAT


def test_a_template_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"jinja: .*Git LFS pointer"):
        open_hf(tmp_path)


def test_the_tokenizer_tells_ids_that_the_config_lacks(tmp_path: Path) -> None:
    write_folder(tmp_path, bos_token_id=None, eos_token_id=None)
    write_tokenizer_model(tmp_path / "tokenizer.model")
    config = open_hf(tmp_path).config
    assert (config.bos_id, config.eos_ids) == (1, (2,))


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    source = open_hf(write_folder(tmp_path))
    assert source.tokenizer == {}
    assert any("no tokenizer" in note for note in source.notes)


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "another model": ({"model_type": "qwen2"}, "expected model_type llama or mistral, found 'qwen2'"),
    "no model type": ({"model_type": None}, "expected model_type llama or mistral, found none"),
    "biases": ({"attention_bias": True}, "expected attention_bias false, .* found True"),
    "mlp biases": ({"mlp_bias": True}, "expected mlp_bias false"),
    "a flag that is a word": ({"mlp_bias": "no"}, "expected mlp_bias to be true or false, found 'no'"),
    "activation": ({"hidden_act": "gelu"}, "expected hidden_act silu, found 'gelu'"),
    "head_dim": ({"head_dim": 16}, "expected head_dim 8, .* found 16"),
    "partial RoPE": ({"partial_rotary_factor": 0.5}, "expected partial_rotary_factor 1, found 0.5"),
    "partial RoPE, version 5": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        "rope_parameters: expected partial_rotary_factor 1, found 0.25",
    ),
    "gptq": ({"quantization_config": {"quant_method": "gptq"}}, "found quantized ones: 'gptq'"),
    "quantized": ({"quantization_config": [1]}, "found quantized ones"),
    "RoPE by layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "expected rope_parameters to be the same for all layers",
    ),
    "RoPE as a list": ({"rope_scaling": [1, 2]}, "expected rope_scaling to be an object"),
    "RoPE without a factor": ({"rope_scaling": {"rope_type": "llama3"}}, "expected factor to be a number"),
    "RoPE that makes no sense": ({"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, "does not make sense"),
    "negative theta": ({"rope_theta": -1.0}, "rope_theta must be positive"),
    "NaN": ({"rope_theta": math.nan}, "expected rope_theta to be a number, found nan"),
    "infinity": ({"rms_norm_eps": math.inf}, "expected rms_norm_eps to be a number, found inf"),
    "theta is huge": ({"rope_theta": 10**400}, "expected rope_theta to be a number"),
    "theta is a word": ({"rope_theta": "10000"}, "expected rope_theta to be a number, found '10000'"),
    "theta is true": ({"rope_theta": True}, "expected rope_theta to be a number, found True"),
    "no dim": ({"hidden_size": None}, "expected hidden_size in 1..16777216, found none"),
    "dim is a float": ({"hidden_size": 32.0}, "expected hidden_size in 1..16777216, found 32.0"),
    "dim is true": ({"hidden_size": True}, "expected hidden_size in"),
    "dim is huge": ({"hidden_size": 1 << 60}, "expected hidden_size in"),
    "negative layers": ({"num_hidden_layers": -1}, "expected num_hidden_layers in"),
    "many layers": (
        {"num_hidden_layers": 1 << 24},
        "expected a tensor model.layers.2.input_layernorm.weight",
    ),
    "few layers": ({"num_hidden_layers": 0}, "expected num_hidden_layers in"),
    "heads do not divide": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "not divisible by n_heads"),
    "kv heads do not divide": ({"num_key_value_heads": 3}, "n_heads 4 is not divisible by n_kv_heads 3"),
    "another vocabulary": (
        {"vocab_size": 299},
        r"model.embed_tokens.weight: expected shape \(299, 32\), as config.json says, found \(300, 32\)",
    ),
    "another width": ({"intermediate_size": 64}, r"gate_proj.weight: expected shape \(64, 32\)"),
    "end id beyond the vocabulary": ({"eos_token_id": 300}, "token id 300 is outside the vocabulary of 300"),
    "negative end id": ({"eos_token_id": [2, -5]}, "token id -5 is outside"),
    "end id is a word": ({"eos_token_id": ["</s>"]}, "expected eos_token_id to be a token id"),
    "start id is a list": ({"bos_token_id": [1]}, "expected bos_token_id to be a token id, found \\[1\\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_config_that_is_not_computed_as_llama_is_refused(tmp_path: Path, kind: str) -> None:
    changes, message = REFUSED[kind]
    write_folder(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_hf(tmp_path)
    assert caught.value.message.startswith(str(tmp_path))
    assert caught.value.hint
    assert len(caught.value.message) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", 5])
def test_other_rope_scaling_is_refused_by_its_name(tmp_path: Path, key: str, kind: object) -> None:
    write_folder(tmp_path, rope_scaling={key: kind, "factor": 2.0})
    with pytest.raises(CheckpointError, match=f"expected {key} default or llama3, found {kind!r}"):
        open_hf(tmp_path)


BAD_JSON = {
    "nothing": (b"", "expected a JSON object"),
    "list": (b"[]", "expected a JSON object, found a list"),
    "deep": (b"[" * 100_000, "expected a JSON object, found maximum recursion"),
    "same name twice": (b'{"model_type": "llama", "model_type": "llama"}', "the name 'model_type' twice"),
    "too long": (b'{"a": "' + b" " * (5 << 20) + b'"}', "expected at most 4,194,304 bytes, found more"),
    "endless number": (b'{"hidden_size": ' + b"1" * 5000 + b"}", "expected a JSON object"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
}


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("kind", BAD_JSON)
def test_bad_json_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    content, message = BAD_JSON[kind]
    write_folder(tmp_path)
    if "index" in name:
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as caught:
        open_hf(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()
    assert caught.value.message.startswith(str(tmp_path / name))


def test_a_missing_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: expected a file, found no such file"):
        open_hf(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected a whole model, found an adapter"):
        open_hf(tmp_path)


def test_missing_weights_are_told(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected weights in model.safetensors, found no such file"):
        open_hf(tmp_path)


def test_files_without_an_index_are_told(tmp_path: Path) -> None:
    tensors = random_tensors()
    write_folder(tmp_path, tensors).joinpath("model.safetensors").unlink()
    write_shards(tmp_path, tensors)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"index.json, found neither with 2 other files"):
        open_hf(tmp_path)


def test_a_missing_shard_is_told_by_name(tmp_path: Path) -> None:
    tensors = random_tensors()
    write_folder(tmp_path, tensors).joinpath("model.safetensors").unlink()
    names = write_shards(tmp_path, tensors)
    (tmp_path / names[1]).unlink()
    with pytest.raises(
        CheckpointError, match=r"expected model-00002-of-00002.safetensors, found no such file"
    ) as caught:
        open_hf(tmp_path)
    assert "whole repository" in caught.value.hint


def test_a_tensor_that_is_not_in_its_shard_is_told(tmp_path: Path) -> None:
    tensors = random_tensors()
    write_folder(tmp_path, tensors).joinpath("model.safetensors").unlink()
    names = write_shards(tmp_path, tensors)
    (tmp_path / names[0]).write_bytes(safetensors_bytes({}))
    with pytest.raises(CheckpointError, match=rf"{names[0]}: expected 'lm_head.weight' in it, found none"):
        open_hf(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "c:x", "a\0b",
     "x" * 5000, 5, None, ["a"]],
)  # fmt: skip
def test_an_index_reaches_nothing_outside_of_the_folder(tmp_path: Path, name: object) -> None:
    write_folder(tmp_path / "secret", name="model.safetensors")
    write_folder(tmp_path / "model").joinpath("model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(random_tensors(), name)}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="expected names of files in this folder"):
        open_hf(tmp_path / "model")


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    write_folder(tmp_path).joinpath("model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="expected a weight_map, found none"):
        open_hf(tmp_path)


def test_missing_tensors_are_told_by_name(tmp_path: Path) -> None:
    for spec in tensor_layout(HF_TINY, 1):
        tensors = random_tensors()
        name = next(n for n in tensors if tensors[n].shape == spec.shape)
        del tensors[name]
        with pytest.raises(CheckpointError, match=f"expected a tensor {name}, found none among 20"):
            open_hf(write_folder(tmp_path, tensors))


def test_a_classifier_of_its_own_is_needed_unless_tied(tmp_path: Path) -> None:
    tensors = random_tensors()
    del tensors["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"expected a tensor lm_head.weight") as caught:
        open_hf(write_folder(tmp_path, tensors))
    assert "tie_word_embeddings" in caught.value.hint


def test_a_bias_tensor_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors() | {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)}
    with pytest.raises(CheckpointError, match=r"found a bias: 'model.layers.0.self_attn.q_proj.bias'"):
        open_hf(write_folder(tmp_path, tensors))


def test_quantized_tensors_are_refused_when_the_folder_is_opened(tmp_path: Path) -> None:
    write_folder(tmp_path)
    stored = fp32(random_tensors())
    stored["model.layers.1.mlp.up_proj.weight"] = ("F8_E4M3", (48, 32), bytes(48 * 32))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(stored))
    with pytest.raises(CheckpointError, match=r"up_proj.weight: expected F32, F16 or BF16, found F8_E4M3"):
        open_hf(tmp_path)


def test_gptq_tensors_are_recognised(tmp_path: Path) -> None:
    tensors = {name.replace("q_proj.weight", "q_proj.qweight"): w for name, w in random_tensors().items()}
    with pytest.raises(CheckpointError, match=r"q_proj.weight, found none") as caught:
        open_hf(write_folder(tmp_path, tensors))
    assert "quantized" in caught.value.hint


def test_an_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="found a Git LFS pointer to it") as caught:
        open_hf(tmp_path)
    assert "git lfs pull" in caught.value.hint
