"""The tokenizer in a GGUF file's metadata, as the files that other programs know.

    tokenizer.ggml.model  "llama"  SentencePiece: tokens, scores, token_type  ->  tokenizer.model
                          "gpt2"   byte-level BPE: tokens, merges, token_type  ->  tokenizer.json

Text is split as `tokenizer.ggml.pre` says, one of the names in `SPLIT_PATTERNS`. What is not in the metadata
is as llama.cpp has it: `llama_vocab::impl::load` in its `src/llama-vocab.cpp`.
"""

import json
from dataclasses import dataclass

import numpy as np

from llamatui.errors import TokenizerError
from llamatui.export.gguf_header import DAMAGED, Metadata
from llamatui.export.source import TokenizerFiles
from llamatui.tokenizers.hf_json_writer import bpe_json, byte_alphabet
from llamatui.tokenizers.sentencepiece_proto import PieceType, build_model, is_control_name
from llamatui.tokenizers.splitters import SPLIT_PATTERNS

SENTENCEPIECE, BPE = "llama", "gpt2"

LLAMA3_LIKE = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"))
"""Pre-tokenizers that go with ignore_merges, and with BOS in front of a prompt if the file does not say."""

_KEY = "tokenizer.ggml."
_BYTE_ALPHABET = frozenset(byte_alphabet(bytes(range(256))))


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of tokens that the metadata names; -1 where it names none."""

    bos: int
    eos: int
    unk: int
    ends: tuple[int, ...]
    """What ends a document, a turn or a message; each once."""


def special_ids(metadata: Metadata, vocab_size: int) -> SpecialIds:
    """Raises TokenizerError: an id is not in the vocabulary."""
    # What every SentencePiece vocabulary of a Llama has, files that do not say so included.
    bos, eos, unk = (1, 2, 0) if metadata.text(_KEY + "model") == SENTENCEPIECE else (-1, -1, -1)

    def named(name: str, default: int) -> int:
        token = metadata.integer(f"{_KEY}{name}_token_id", default)
        if not -1 <= token < vocab_size:
            raise TokenizerError(
                f"expected {name}_token_id to be one of {vocab_size} tokens, found {token}", DAMAGED
            )
        return token

    eos = named("eos", eos)
    ends = dict.fromkeys((eos, named("eot", -1), named("eom", -1)))
    return SpecialIds(named("bos", bos), eos, named("unknown", unk), tuple(i for i in ends if i >= 0))


def tokenizer_files(metadata: Metadata, vocab_size: int) -> TokenizerFiles:
    """Files by what follows the model's stem; none where the metadata has no tokenizer.

    Args:
        vocab_size: The embedding's. As many tokens must be there.

    Raises:
        CheckpointError: A value is of another type than the format says.
        TokenizerError: The vocabulary is damaged, or of a kind that is not read here.
    """
    kind = metadata.text(_KEY + "model")
    if not kind:
        return {}
    if kind not in (SENTENCEPIECE, BPE):
        raise TokenizerError(
            f"expected a SentencePiece ('llama') or BPE ('gpt2') vocabulary, found {kind!r}",
            "get the model in Hugging Face's form, with its tokenizer.json",
        )
    vocab = _vocab(metadata, vocab_size)
    if kind == SENTENCEPIECE:
        adds_bos = metadata.flag(_KEY + "add_bos_token", True)
        files = {".tokenizer.model": _sentencepiece(metadata, vocab)}
    else:
        pre = metadata.text(_KEY + "pre", "default")
        adds_bos = metadata.flag(_KEY + "add_bos_token", pre in LLAMA3_LIKE)
        files = {".tokenizer.json": _bpe(metadata, vocab, pre, adds_bos)}
    files[".tokenizer_config.json"] = _config(metadata, vocab, adds_bos)
    return files


@dataclass(frozen=True, slots=True)
class _Vocab:
    tokens: list[str]
    types: list[PieceType]
    ids: SpecialIds


def _vocab(metadata: Metadata, vocab_size: int) -> _Vocab:
    stored = metadata.strings(_KEY + "tokens")
    if len(stored) != vocab_size:
        raise TokenizerError(f"expected {vocab_size} tokens, as the model has, found {len(stored)}", DAMAGED)
    tokens = _decoded(stored, "token")
    numbers = metadata.numbers(_KEY + "token_type")
    if len(numbers) < vocab_size:
        raise TokenizerError(f"expected types of {vocab_size} tokens, found {len(numbers)}", DAMAGED)
    known = {int(kind): kind for kind in PieceType}
    if unknown := set(numbers[:vocab_size].tolist()) - known.keys():
        raise TokenizerError(f"expected token types from 1 to 6, found {min(unknown)}", DAMAGED)
    types = [known[number] for number in numbers[:vocab_size].tolist()]
    ids = special_ids(metadata, vocab_size)
    # Converters did not always know that a token they added is a control token. llama.cpp corrects it, too.
    for i in (ids.bos, *ids.ends):
        if i >= 0 and types[i] in (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED):
            types[i] = PieceType.CONTROL
    for i, text in enumerate(tokens):
        if types[i] is not PieceType.BYTE and is_control_name(text):
            types[i] = PieceType.CONTROL
    return _Vocab(tokens, types, ids)


def _decoded(stored: list[bytes], what: str) -> list[str]:
    try:
        return [text.decode() for text in stored]
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"expected every {what} in UTF-8, found {error.object[:40]!r}", DAMAGED
        ) from None


def _sentencepiece(metadata: Metadata, vocab: _Vocab) -> bytes:
    scores = metadata.numbers(_KEY + "scores")[: len(vocab.tokens)].astype(np.float64)
    if len(scores) < len(vocab.tokens) or not np.isfinite(scores).all():
        raise TokenizerError(
            f"expected a score of each of {len(vocab.tokens)} tokens, found {int(np.isfinite(scores).sum())}",
            DAMAGED,
        )
    # Some files call the unknown piece a control token, or added tokens unknown. A model has just the one.
    types: list[PieceType] = [PieceType.UNUSED if kind is PieceType.UNKNOWN else kind for kind in vocab.types]
    if vocab.ids.unk >= 0:
        types[vocab.ids.unk] = PieceType.UNKNOWN
    return build_model(
        list(zip(vocab.tokens, scores.tolist(), types, strict=True)),
        bos_id=vocab.ids.bos,
        eos_id=vocab.ids.eos,
        unk_id=vocab.ids.unk,
        add_dummy_prefix=metadata.flag(_KEY + "add_space_prefix", True),
    )


def _bpe(metadata: Metadata, vocab: _Vocab, pre: str, adds_bos: bool) -> bytes:
    if pre not in SPLIT_PATTERNS:
        raise TokenizerError(
            f"expected a known way to split text in {_KEY}pre, found {pre!r}",
            "get the model in Hugging Face's form, with its tokenizer.json",
        )
    special: dict[str, int] = {}
    plain = set()
    for i, (text, kind) in enumerate(zip(vocab.tokens, vocab.types, strict=True)):
        # No text becomes what is not in the byte alphabet, whatever its type.
        if kind in (PieceType.NORMAL, PieceType.UNUSED, PieceType.BYTE) and _BYTE_ALPHABET.issuperset(text):
            continue
        if not text or text in special:
            raise TokenizerError(
                f"expected added tokens that are all different, found {text!r} again", DAMAGED
            )
        special[text] = i
        if kind is not PieceType.CONTROL:
            plain.add(text)
    if adds_bos and vocab.ids.bos < 0:
        raise TokenizerError("expected the id of BOS, which prompts start with, found none", DAMAGED)
    return bpe_json(
        vocab.tokens,
        _merges(metadata, set(vocab.tokens)),
        SPLIT_PATTERNS[pre],
        special,
        bos=vocab.tokens[vocab.ids.bos] if adds_bos else None,
        ignore_merges=pre in LLAMA3_LIKE,
        plain=plain,
    )


def _merges(metadata: Metadata, tokens: set[str]) -> list[tuple[str, str]]:
    merges = []
    for merge in _decoded(metadata.strings(_KEY + "merges"), "merge"):
        left, _, right = merge.partition(" ")
        if left not in tokens or right not in tokens:
            raise TokenizerError(f"expected merges of two tokens, found {merge[:80]!r}", DAMAGED)
        merges.append((left, right))
    if not merges:
        raise TokenizerError(f"expected merges in {_KEY}merges, found none", DAMAGED)
    return merges


def _config(metadata: Metadata, vocab: _Vocab, adds_bos: bool) -> bytes:
    """tokenizer_config.json: what the vocabulary itself has no place for."""
    config: dict[str, str | bool] = {"add_bos_token": adds_bos}
    for name, i in (("bos_token", vocab.ids.bos), ("eos_token", vocab.ids.eos)):
        if i >= 0:
            config[name] = vocab.tokens[i]
    if template := metadata.text("tokenizer.chat_template"):
        config["chat_template"] = template
    return json.dumps(config, ensure_ascii=False, indent=1).encode()
