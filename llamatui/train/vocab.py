"""Trains a SentencePiece vocabulary with the settings of Llama 2's.

Source: Llama 2's `tokenizer.model`, whose trainer_spec says them, and `tinystories.py` of llama2.c: BPE,
digits on their own, bytes for what is not in the vocabulary, text as it is (no normalisation, spaces kept).
"""

import io
import re
from collections.abc import Iterable, Iterator

from llamatui.errors import LlamatuiError, UsageError
from llamatui.tokenizers.binary_vocab import MAX_TOKENS

SMALLEST = 3 + 256 + 1  # unknown, BOS and EOS, all bytes, and at least a space
LINE = 1 << 12  # characters; longer lines are cut, since the library holds at most 2^16 of a word
MAX_LINES = 4_000_000  # of more lines a random choice is used: the library holds them in memory

TOO_HIGH = re.compile(r"Please set it to a value <= (\d+)")
TOO_LOW = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def check_size(size: int) -> None:
    """Raises UsageError: `size` makes no sense, whatever the text."""
    if not SMALLEST <= size <= MAX_TOKENS:
        raise UsageError(
            f"--size: expected {SMALLEST} to {MAX_TOKENS}, found {size}",
            "3 control tokens and 256 bytes are always there",
        )


def train_vocab(documents: Iterable[str], size: int) -> bytes:
    """A `tokenizer.model` of `size` pieces, the same for the same text and size.

    Python looks at no signal until the library is done, which with gigabytes of text takes minutes.

    Raises:
        UsageError: `size` makes no sense, for any text or for this one.
        LlamatuiError: The library fails.
    """
    check_size(size)
    from sentencepiece import SentencePieceTrainer, set_random_generator_seed

    set_random_generator_seed(0)
    lines = _Lines(documents)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            self_test_sample_size=0,
            input_sentence_size=MAX_LINES,
            shuffle_input_sentence=True,
            max_sentence_length=4 * LINE,  # bytes
            character_coverage=0.99995,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_surface=" \N{DOUBLE QUESTION MARK} ",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise lines.error or _told(str(error), size) from error
    return model.getvalue()


class _Lines:
    """Lines of documents. What goes wrong in reading is kept: the library makes a text of it."""

    def __init__(self, documents: Iterable[str]) -> None:
        self._documents = documents
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for document in self._documents:
                for line in document.splitlines():
                    yield from (line[start : start + LINE] for start in range(0, len(line), LINE))
        except BaseException as error:
            self.error = error
            raise


def _told(problem: str, size: int) -> LlamatuiError:
    if most := TOO_HIGH.search(problem):
        return UsageError(
            f"--size: expected at most {most[1]}, all that this text has pieces for, found {size}",
            f"give more text, or --size {most[1]}" if int(most[1]) >= SMALLEST else "give more text",
        )
    if least := TOO_LOW.search(problem):
        return UsageError(
            f"--size: expected at least {least[1]}, for all characters of this text, found {size}",
            f"choose --size {least[1]}, or more to have room for words",
        )
    if "sentences_.empty()" in problem:
        return UsageError("expected text, found none", "give files that are not empty")
    return LlamatuiError(f"SentencePiece fails: {problem:.300}", "give other text, or another --size")
