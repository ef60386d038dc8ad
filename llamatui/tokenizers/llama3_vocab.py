"""What Llama 3 vocabularies have in common: ranked byte pieces, one split pattern, 256 special tokens.

The special tokens follow the ranked ones. Their names are those of Llama 3.1 and later; Llama 3.0 called more
of them `reserved`, with other numbers, so of the old reserved names only 0 and 1 mean the same token.
Source: Meta's llama-models, `models/llama3/tokenizer.py`.
"""

import re
from collections.abc import Sequence

from llamatui.tokenizers.binary_vocab import BinaryVocab
from llamatui.tokenizers.bpe import BpeTokenizer, end_ids
from llamatui.tokenizers.splitters import LLAMA3_PATTERN, Splitter

_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
SPECIAL_TOKENS = _NAMED + tuple(f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(_NAMED)))

_SPECIAL_PIECE = re.compile(rb"<\|[ -~]+\|>")
_RESERVED = "<|reserved_special_token_"


def bpe_from_ranks(ranked: Sequence[bytes], names: Sequence[str] = SPECIAL_TOKENS) -> BpeTokenizer:
    """The tokenizer of byte pieces in order of rank, followed by special tokens."""
    special = {name: len(ranked) + i for i, name in enumerate(names)}
    return BpeTokenizer(
        [*ranked, *(name.encode() for name in names)],
        Splitter([LLAMA3_PATTERN]),
        special,
        bos_id=special.get("<|begin_of_text|>", -1),
        eos_ids=end_ids(special),
        adds_bos="<|begin_of_text|>" in special,
    )


def bpe_from_binary(vocab: BinaryVocab) -> BpeTokenizer:
    """The tokenizer in llama3.2.c's `tokenizer.bin`, whose trailing `<|...|>` pieces are special tokens.

    Its exporter writes the names of Llama 3.0 for every Llama 3 model. Names it calls reserved are replaced.
    """
    first = len(vocab.pieces)
    while first and _SPECIAL_PIECE.fullmatch(vocab.pieces[first - 1]):
        first -= 1
    names = [piece.decode() for piece in vocab.pieces[first:]]
    if len(names) == len(SPECIAL_TOKENS) and names[0] == SPECIAL_TOKENS[0]:
        names = [
            ours if theirs.startswith(_RESERVED) else theirs
            for ours, theirs in zip(SPECIAL_TOKENS, names, strict=True)
        ]
    return bpe_from_ranks(vocab.pieces[:first], names)
