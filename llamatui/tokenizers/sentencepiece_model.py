"""SentencePiece `.model` files (Llama 2, TinyLlama, Mistral), through the `sentencepiece` library."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer, text_to_bytes
from llamatui.tokenizers.binary_vocab import MAX_TOKENS
from llamatui.tokenizers.bpe import end_ids
from llamatui.tokenizers.hf_json import control_names, token_text
from llamatui.tokenizers.sentencepiece_proto import (
    SPACE,
    is_control_name,
    never_typed,
    read_pieces,
    replace_pieces,
)

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_RAW_BYTES = re.compile("[\udc80-\udcff]")
_OTHER_SURROGATES = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def open_library(path: Path, data: bytes) -> "SentencePieceProcessor":
    """The library's view of a model.

    Raises:
        TokenizerError: `data` is not a SentencePiece model, or has more than MAX_TOKENS pieces.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        # Each piece begins with this byte, and its text does again: fewer than half are something else.
        if data.count(b"\n") <= 4 * MAX_TOKENS:
            library = SentencePieceProcessor(model_proto=data or b"\0")  # it takes b"" for "load nothing"
            if library.vocab_size() <= MAX_TOKENS:
                return library
    except RuntimeError:
        raise _damaged(path, data) from None
    raise TokenizerError(
        f"{path}: expected at most {MAX_TOKENS} pieces, found more", "get the model's tokenizer again"
    )


def _damaged(path: Path, data: bytes) -> TokenizerError:
    return TokenizerError(
        f"{path}: expected a SentencePiece model, found {len(data)} bytes that do not parse as one",
        "the file is damaged or something else: get it again",
    )


class SentencePieceTokenizer(Tokenizer):
    """The ids of the library, also for bytes that are not UTF-8 where the vocabulary has byte pieces."""

    format = "sentencepiece"

    def __init__(self, path: Path, data: bytes, config: Mapping[str, object] | None = None) -> None:
        """Takes BOS and EOS from the model, and what Hugging Face adds to it from its tokenizer_config.json.

        Pieces that these or their looks say are control tokens are some, whatever their type: see
        `never_typed`.

        Args:
            path: For error messages.
            data: The file's contents.
            config: `add_bos_token` says whether prompts start with BOS (Yi's do not); None: they do.
                `eos_token` is one more end.

        Raises:
            TokenizerError: `data` is not a SentencePiece model.
        """
        config = config or {}
        library = open_library(path, data)
        size = library.vocab_size()
        try:
            texts = [library.id_to_piece(i) for i in range(size)]
            values = {i: bytes([int(texts[i][3:5], 16)]) for i in range(size) if library.is_byte(i)}
        except (RuntimeError, ValueError):  # a piece is not UTF-8, a byte piece no byte
            raise _damaged(path, data) from None
        control = {i for i in range(size) if library.is_control(i) or library.is_unknown(i)}
        names = control_names(config)
        if any(is_control_name(text, names) for i, text in enumerate(texts) if i not in control):
            library = open_library(path, replace_pieces(data, never_typed(read_pieces(data), names)))
            control = {i for i in range(size) if library.is_control(i) or library.is_unknown(i)}
        self._library = library
        self.vocab_size = size
        self.bos_id = library.bos_id()
        self.adds_bos = self.bos_id >= 0 and config.get("add_bos_token") is not False
        self.special_tokens = {texts[i]: i for i in sorted(control)}
        more = self.special_tokens.get(token_text(config.get("eos_token")), -1)
        self.eos_ids = end_ids(self.special_tokens) | ({library.eos_id(), more} - {-1})
        self._bytes = [
            b"" if i in control else values.get(i, text.replace(SPACE, " ").encode())
            for i, text in enumerate(texts)
        ]
        self._byte_ids = {value: i for i, value in values.items()}
        self._known = set(texts)
        self._adds_space = "".join(library.encode("a", out_type=str)).startswith(SPACE)

    def encode_ordinary(self, text: str) -> list[int]:
        text = _OTHER_SURROGATES.sub("\ufffd", text)
        if _RAW_BYTES.search(text):
            return self._encode_raw(text)
        return list(self._library.encode(text))

    def _encode_raw(self, text: str) -> list[int]:
        """Ids of text with surrogate-escaped bytes.

        The library takes only Unicode, so a character that occurs nowhere stands for each such byte. It comes
        back as its own four byte pieces, never merged with anything, and these become the byte's piece.
        """
        if len(self._byte_ids) < 256:
            return list(self._library.encode(_RAW_BYTES.sub("\ufffd", text)))
        mark = next(c for c in map(chr, range(0x10FFFD, 0, -1)) if c not in text and c not in self._known)
        marker = [self._byte_ids[bytes([byte])] for byte in mark.encode()]
        raw = (self._byte_ids[text_to_bytes(c)] for c in _RAW_BYTES.findall(text))
        ids: list[int] = []
        for token in self._library.encode(_RAW_BYTES.sub(mark, text)):
            ids.append(token)
            if ids[-len(marker) :] == marker:
                ids[-len(marker) :] = [next(raw)]
        return ids

    def decode_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def strips_space_after(self, previous: int | None) -> bool:
        return self._adds_space and (previous is None or previous == self.bos_id)
