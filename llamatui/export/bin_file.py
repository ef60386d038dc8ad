"""llama2.c `.bin` files as a source: from one version to another, or to Hugging Face."""

from pathlib import Path

from llamatui.backends.checkpoint import Checkpoint
from llamatui.backends.checkpoint_writer import Rows
from llamatui.export.source import META_LAYER_NAMES, Source, drop_pages
from llamatui.export.tokenizer_files import beside, with_token_ids


def open_bin(path: Path) -> Source:
    """The model as its file says, with the tokenizer that lies beside it. Q8_0 rows stay what they are.

    Raises:
        CheckpointError: Missing, or not a checkpoint.
        TokenizerError: The tokenizer beside it cannot be read.
    """
    checkpoint = Checkpoint(path)
    config = checkpoint.config

    def tensor(name: str, layer: int) -> Rows:
        drop_pages(checkpoint.mapping)
        stored = checkpoint.tensors[name]
        return stored[layer] if name in META_LAYER_NAMES else stored

    tokenizer = beside(path, config.vocab_size)
    return Source(path, with_token_ids(config, tokenizer), tensor, tokenizer)
