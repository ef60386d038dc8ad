"""Trains a SentencePiece vocabulary with the settings of Llama 2's.

Source: Llama 2's `tokenizer.model`, whose trainer_spec says them, and `tinystories.py` of llama2.c: BPE,
digits on their own, bytes for what is not in the vocabulary, text as it is (no normalisation, spaces kept).
"""

import io
from collections.abc import Iterable, Iterator

from llamatui.errors import UsageError
from llamatui.tokenizers.binary_vocab import MAX_TOKENS

SMALLEST = 3 + 256 + 1  # unknown, BOS and EOS, all bytes, and at least a space
LONGEST_LINE = 1 << 16  # bytes; the library leaves out longer ones


def train_vocab(documents: Iterable[str], size: int, *, threads: int, max_lines: int = 4_000_000) -> bytes:
    """A `tokenizer.model` of `size` pieces.

    Args:
        max_lines: Of more lines than this a random choice is used: the library holds them in memory.

    Raises:
        UsageError: The text is too small for that many pieces, or the number makes no sense.
    """
    if not SMALLEST <= size <= MAX_TOKENS:
        raise UsageError(
            f"--size: expected {SMALLEST} to {MAX_TOKENS}, found {size}",
            "3 control tokens and 256 bytes are always there",
        )
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            self_test_sample_size=0,
            input_sentence_size=max_lines,
            shuffle_input_sentence=True,
            max_sentence_length=LONGEST_LINE,
            character_coverage=0.99995,
            num_threads=threads,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_surface=" \N{DOUBLE QUESTION MARK} ",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].rpartition("] ")[2]
        raise UsageError(
            f"a vocabulary of {size} cannot be made of this text: {reason:.300}",
            "give more text, or another --size",
        ) from error
    return model.getvalue()


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        yield from filter(None, document.splitlines())
