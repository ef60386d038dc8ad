"""llama2.c's training checkpoints (`ckpt.pt`) and ours: a model, its `model_args`, and the training's state.

Source: `train.py` and `model.py` of https://github.com/karpathy/llama2.c. Ours (`llamatui.train.checkpoints`)
say under `llamatui` what llama2.c takes for granted, the first ones in `model_args`. They may hold a low-rank
addition beside a matrix: it is added here.
"""

from dataclasses import replace
from pathlib import Path

from llamatui.backends.checkpoint import ModelConfig, RopeScaling
from llamatui.backends.checkpoint_writer import Rows
from llamatui.backends.q8_0 import FloatArray
from llamatui.errors import CheckpointError
from llamatui.export.json_file import Fields
from llamatui.export.meta import OriginalTensors, original_name, part_shape, shares_classifier
from llamatui.export.source import LazyRows, Source
from llamatui.export.tokenizer_files import beside, with_token_ids
from llamatui.export.torch_files import TorchRows, open_torch, state_dict

Shard = dict[str, TorchRows]

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""


def open_llama2c(path: Path) -> Source:
    """The model of a checkpoint, with the tokenizer that lies beside it.

    Raises:
        CheckpointError: Missing, damaged, or not a checkpoint of llama2.c's `train.py`.
        TokenizerError: The tokenizer beside it cannot be read.
    """
    content = open_torch(path)
    args, more = content.get("model_args"), content.get("llamatui", {})
    if not isinstance(args, dict) or not isinstance(more, dict) or "model" not in content:
        raise CheckpointError(
            f"{path}: expected a checkpoint of llama2.c with model and model_args, "
            f"found {sorted(content)[:4]!r:.200}",
            "give the ckpt.pt that train.py wrote; of another model, give its folder",
        )
    tensors = {_bare(name): rows for name, rows in state_dict(path, content["model"]).items()}
    lora = {name: tensors.pop(name) for name in list(tensors) if name.endswith((".lora_a", ".lora_b"))}
    fields = Fields(f"{path}: model_args", {**args, **more})
    config = _config(path, fields, tensors)
    weights = OriginalTensors(path, [tensors], config)
    config = replace(config, shared_classifier=shares_classifier(weights))
    source = _Merged(path, weights, tensors, lora, fields.number("lora_scale")) if lora else weights
    tokenizer = beside(path, config.vocab_size)
    return Source(path, with_token_ids(config, tokenizer), source, tokenizer)


def _bare(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _config(path: Path, args: Fields, shard: Shard) -> ModelConfig:
    """All but `shared_classifier`. `vocab_size` is checked against the embedding with all other shapes."""
    n_heads = args.integer("n_heads")
    return ModelConfig(
        dim=args.integer("dim"),
        hidden_dim=part_shape(path, [shard], "w1")[0],
        n_layers=args.integer("n_layers"),
        n_heads=n_heads,
        n_kv_heads=args.integer("n_kv_heads", n_heads),
        vocab_size=args.integer("vocab_size"),
        max_seq_len=args.integer("max_seq_len"),
        rope_theta=args.number("rope_theta", 10000.0),
        rope_scaling=_rope_scaling(args),
        norm_eps=args.number("norm_eps", 1e-5),
        chat_format=_chat_format(args),
        bos_id=args.token_id("bos_id"),
        eos_ids=tuple(args.token_ids("eos_ids")),
    )


def _chat_format(args: Fields) -> str:
    name = args.get("chat_format")
    if not isinstance(name, str | None):
        raise args.wrong("chat_format", "to be a name")
    return name or ""


def _rope_scaling(args: Fields) -> RopeScaling | None:
    scaling = args.get("rope_scaling")
    if scaling is None:
        return None
    if not isinstance(scaling, dict):
        raise args.wrong("rope_scaling", "a table or None")
    fields = Fields(f"{args.where}: rope_scaling", scaling)
    return RopeScaling(
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
        original_max_seq_len=fields.integer("original_max_seq_len"),
    )


class _Merged:
    """A TensorSource of weights + scale * lora_b lora_a. Source: LoRA, arXiv:2106.09685."""

    def __init__(
        self, path: Path, weights: OriginalTensors, tensors: Shard, lora: Shard, scale: float
    ) -> None:
        """Checks that both halves of each addition are there and fit; multiplies nothing yet.

        Raises:
            CheckpointError: They do not.
        """
        self._weights, self._lora, self._scale = weights, lora, scale
        for stem in sorted({name.rpartition(".")[0] for name in lora}):
            halves = [lora.get(f"{stem}.lora_{half}") for half in "ab"]
            matrix = tensors.get(f"{stem}.weight")
            shapes = [rows.shape if rows else None for rows in (*halves, matrix)]
            for rows in filter(None, halves):
                rows.check_float()
            match shapes:
                case [(rank_a, d_in), (d_out, rank_b), (n_rows, n_columns)] if (
                    rank_a == rank_b and d_in == n_columns and d_out == n_rows
                ):
                    continue
            raise CheckpointError(
                f"{path}: {stem}: expected lora_a (rank, in), lora_b (out, rank) and weight (out, in), "
                f"found {', '.join(map(str, shapes))}",
                "the file is damaged: train again",
            )

    def __call__(self, name: str, layer: int) -> Rows:
        weight = self._weights(name, layer)  # (out, in)
        stem = original_name(name, layer).removesuffix(".weight")
        if f"{stem}.lora_a" not in self._lora:
            return weight
        a, b = self._lora[f"{stem}.lora_a"], self._lora[f"{stem}.lora_b"]  # (rank, in), (out, rank)

        def read(block: slice) -> FloatArray:
            merged: FloatArray = weight[block] + self._scale * (b[block] @ a[0 : a.shape[0]])  # (block, in)
            return merged

        return LazyRows(tuple(weight.shape), read)
