"""llama2.c's training checkpoints (`ckpt.pt`): a model, its `model_args`, and the state of the training.

Source: `train.py` and `model.py` of https://github.com/karpathy/llama2.c.
"""

from dataclasses import replace
from pathlib import Path

from llamatui.backends.checkpoint import ModelConfig
from llamatui.errors import CheckpointError
from llamatui.export.json_file import Fields
from llamatui.export.meta import OriginalTensors, part_shape, shares_classifier
from llamatui.export.source import Source
from llamatui.export.tokenizer_files import beside, with_token_ids
from llamatui.export.torch_files import TorchRows, open_torch, state_dict

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""


def open_llama2c(path: Path) -> Source:
    """The model of a checkpoint, with the tokenizer that lies beside it.

    Raises:
        CheckpointError: Missing, damaged, or not a checkpoint of llama2.c's `train.py`.
        TokenizerError: The tokenizer beside it cannot be read.
    """
    content = open_torch(path)
    args = content.get("model_args")
    if not isinstance(args, dict) or "model" not in content:
        raise CheckpointError(
            f"{path}: expected a checkpoint of llama2.c with model and model_args, "
            f"found {sorted(content)[:4]!r:.200}",
            "give the ckpt.pt that train.py wrote; of another model, give its folder",
        )
    shard = {_bare(name): rows for name, rows in state_dict(path, content["model"]).items()}
    config = _config(path, Fields(f"{path}: model_args", args), shard)
    tensors = OriginalTensors(path, [shard], config)
    config = replace(config, shared_classifier=shares_classifier(tensors))
    tokenizer = beside(path, config.vocab_size)
    return Source(path, with_token_ids(config, tokenizer), tensors, tokenizer)


def _bare(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _config(path: Path, args: Fields, shard: dict[str, TorchRows]) -> ModelConfig:
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
        norm_eps=args.number("norm_eps", 1e-5),
    )
