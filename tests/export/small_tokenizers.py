"""Vocabularies of every kind, small, and as they are read beside a model."""

import json
from pathlib import Path
from typing import Any

from llamatui.export.source import TokenizerFiles
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.hf_json_sentencepiece import sentencepiece_json
from llamatui.tokenizers.hf_json_writer import bpe_json, byte_alphabet, merges_from_ranks
from llamatui.tokenizers.llama3_vocab import SPECIAL_TOKENS
from llamatui.tokenizers.loading import load_tokenizer
from llamatui.tokenizers.sentencepiece_proto import read_pieces
from llamatui.tokenizers.splitters import SPLIT_PATTERNS
from tests.tokenizers import vocabularies as v

PIECES = v.ranked_pieces()
SPM = v.train_sentencepiece()
SPM_JSON: dict[str, Any] = json.loads(sentencepiece_json(read_pieces(SPM), unk_id=0, bos="<s>"))
TEXTS_OF_PIECES = [byte_alphabet(piece) for piece in PIECES]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# With every field that Hugging Face's library wants.
LLAMA3_JSON: dict[str, Any] = json.loads(
    bpe_json(
        TEXTS_OF_PIECES,
        merges_from_ranks(PIECES),
        SPLIT_PATTERNS["llama3"],
        {name: len(PIECES) + i for i, name in enumerate(SPECIAL_TOKENS)},
        bos="<|begin_of_text|>",
        ignore_merges=True,
    )
)
SMOLLM_JSON: dict[str, Any] = json.loads(
    bpe_json(
        [*CHATML, *TEXTS_OF_PIECES],
        merges_from_ranks(PIECES),
        SPLIT_PATTERNS["smollm"],
        {name: i for i, name in enumerate(CHATML)},
        bos=None,
        ignore_merges=False,
    )
)
RANKS_SIZE = len(PIECES) + 256
SMOLLM_SIZE = len(PIECES) + 3
TEXT = "the cat went there, 123  é🙂\n\tHello"


def loaded(files: TokenizerFiles, folder: Path, vocab_size: int) -> Tokenizer:
    """As it is read beside a model."""
    folder.mkdir()
    for ending, data in files.items():
        (folder / f"story{ending}").write_bytes(data)
    ending = next(ending for ending in files if "config" not in ending)
    return load_tokenizer(folder / f"story{ending}", vocab_size)
