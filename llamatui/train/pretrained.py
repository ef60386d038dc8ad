"""A trained model in PyTorch, with its tokenizer."""

from dataclasses import replace
from pathlib import Path

from llamatui.errors import TokenizerMissingError
from llamatui.export.llama2c_checkpoint import open_llama2c
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer
from llamatui.train.model import Llama
from llamatui.train.run_folder import checkpoint_path
from llamatui.train.weights import copy_weights


def load_trained(path: Path) -> tuple[Llama, Tokenizer]:
    """The model of a run's folder or of a checkpoint, low-rank additions merged, ready to be sampled from.

    Raises:
        CheckpointError: Missing, damaged, or not a checkpoint.
        TokenizerError: No tokenizer lies beside it, or it cannot be read.
    """
    path = checkpoint_path(path)
    source = open_llama2c(path)
    found = find_tokenizer(path, source.config.vocab_size)
    if found is None:
        raise TokenizerMissingError(
            f"{path}: expected a tokenizer of {source.config.vocab_size} tokens beside it, found none",
            "copy that of the training data there",
            "",
        )
    model = Llama(replace(source.config, group_size=0))
    copy_weights(source, model)
    return model.eval(), load_tokenizer(found, source.config.vocab_size)
