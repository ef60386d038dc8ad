"""llama2.c's training checkpoints (`ckpt.pt`): a model, its `model_args`, and the state of the training.

Source: `train.py` and `model.py` of https://github.com/karpathy/llama2.c.
"""

from dataclasses import replace
from pathlib import Path

from llamatui.backends.checkpoint import ModelConfig
from llamatui.errors import CheckpointError
from llamatui.export.meta import OriginalTensors, number, positive, shard_tensors, shares_classifier
from llamatui.export.source import Source
from llamatui.export.tokenizer_files import beside
from llamatui.export.torch_files import TorchRows, open_torch, state_dict

WRAPPERS = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name."""


def open_llama2c(path: Path) -> Source:
    """The model of a checkpoint, with the tokenizer that lies beside it.

    Raises:
        CheckpointError: Missing, damaged, or not a checkpoint of llama2.c's `train.py`.
        MissingExtraError: PyTorch is not installed.
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
    config = _config(path, args, shard)
    tensors = OriginalTensors(path, [shard], config)
    config = replace(config, shared_classifier=shares_classifier(tensors))
    return Source(path, config, tensors, beside(path, config.vocab_size))


def _bare(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _config(path: Path, args: dict[str, object], shard: dict[str, TorchRows]) -> ModelConfig:
    """All but `shared_classifier`. `vocab_size` is checked against the embedding with all other shapes."""
    n_heads = positive(path, args, "n_heads")
    return ModelConfig(
        dim=positive(path, args, "dim"),
        hidden_dim=shard_tensors(path, [shard], "w1")[0].shape[0],
        n_layers=positive(path, args, "n_layers"),
        n_heads=n_heads,
        n_kv_heads=positive(path, args, "n_kv_heads", n_heads),
        vocab_size=positive(path, args, "vocab_size"),
        max_seq_len=positive(path, args, "max_seq_len"),
        norm_eps=number(path, args, "norm_eps", 1e-5),
    )
