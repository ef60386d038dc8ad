"""Finds a model's tokenizer file and reads it, whatever its format."""

from pathlib import Path

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.binary_vocab import read_binary_vocab
from llamatui.tokenizers.llama2c import Llama2cTokenizer


def load_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer in `path`, recognised by its contents.

    Args:
        vocab_size: The model's; another size is an error.

    Raises:
        TokenizerError: Missing, damaged, of an unknown format, or of another size.
    """
    tokenizer = Llama2cTokenizer(read_binary_vocab(path, path.read_bytes()))
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise TokenizerError(f"{path}: expected {vocab_size} tokens, found {tokenizer.vocab_size}", "choose with -z")
    return tokenizer


def find_tokenizer(model: Path, vocab_size: int, *more: Path) -> Path | None:
    """The tokenizer that belongs to `model`."""
    return next((p for p in model.parent.glob("tok*.bin")), None)
