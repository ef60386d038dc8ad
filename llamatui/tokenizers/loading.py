"""Finds a model's tokenizer file and reads it, whatever its format and name."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from llamatui.errors import TokenizerError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.binary_vocab import read_binary_vocab
from llamatui.tokenizers.file_names import BINARY, JSON, MODEL
from llamatui.tokenizers.hf_json import companion_config, count_tokens, parse_hf_json, read_hf_json
from llamatui.tokenizers.llama2c import Llama2cTokenizer
from llamatui.tokenizers.llama3_vocab import SPECIAL_TOKENS, bpe_from_binary
from llamatui.tokenizers.sentencepiece_model import SentencePieceTokenizer, open_library
from llamatui.tokenizers.tiktoken_model import RANK_LINE, TiktokenTokenizer, rank_lines

MAX_BYTES = 48 << 20  # half as many again as the largest vocabularies in use
HEAD = 4096  # bytes, in which a format shows itself

CHOOSE = "choose the tokenizer file with -z: tokenizer.model, tokenizer.json or tokenizer.bin"
EXPECTED = "expected a tokenizer (.model, .json or .bin)"

# What people pass by mistake, by how it starts.
_MISTAKES = {
    rb"GGUF": "a GGUF model",
    rb"24ka": "a model checkpoint",
    rb"PK\x03\x04": "a zip archive, or a PyTorch checkpoint",
    rb"\x80[\x02-\x05]": "a Python pickle, which is never opened",
    rb"\x1f\x8b": "a gzip archive",
    rb"\x89PNG": "a PNG picture",
    rb"version https://git-lfs": "a Git LFS pointer, not the file it points to",
    rb"<[!?A-Za-z]": "a web page",
    rb"[\t\n\r -~\x80-\xff]{4096}|[\t\n\r -~\x80-\xff]*\Z": "a text file",
}


def load_tokenizer(path: Path, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer in `path`, recognised by its contents.

    Args:
        vocab_size: The model's; another size is an error.

    Raises:
        TokenizerError: Missing, damaged, of an unknown format, or of another size.
    """
    data = read_tokenizer_file(path)
    kind = recognise(path, data)
    tokenizer: Tokenizer
    if kind == "json":
        tokenizer = read_hf_json(path, data)
    elif kind == "tiktoken":
        tokenizer = TiktokenTokenizer(path, data)
    elif kind == "sentencepiece":
        tokenizer = SentencePieceTokenizer(path, data, companion_config(path))
    else:
        vocab = read_binary_vocab(path, data)
        try:
            tokenizer = bpe_from_binary(vocab) if vocab.is_byte_level else Llama2cTokenizer(vocab)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error.message}", CHOOSE) from None
    if vocab_size is not None and tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"{path}: expected {vocab_size} tokens, as the model has, found {tokenizer.vocab_size}", CHOOSE
        )
    return tokenizer


def find_tokenizer(model: Path, vocab_size: int, *more: Path, own: Path | None = None) -> Path | None:
    """The tokenizer file that belongs to `model`, or None.

    In each folder the files named for the model (`<stem>.tokenizer.*`), then `tokenizer.*`, `tok*.*`, then
    any others, but only if the size is `vocab_size`. If none fits, a file that is named for the model
    although it does not: `load_tokenizer` says what is wrong with it.

    Args:
        model: The first folder is the model's. Others there may be tokenizers too, but .bin files are models.
        more: Folders that hold anything, where only the name says that a file is a tokenizer of this model.
        own: The folder of the user's own tokenizers, the last one. All files in it are tokenizers.
    """
    looked_at = {os.path.realpath(model)}
    for path in _candidates(model, more, own):
        if (real := os.path.realpath(path)) not in looked_at:
            looked_at.add(real)
            if _fits(path, vocab_size):
                return path
    return next(iter(_named(model, model.parent)), None)


def _candidates(model: Path, more: tuple[Path, ...], own: Path | None) -> Iterator[Path]:
    """The likeliest first; some twice."""
    others = ("*.model", "*.json")
    places = [(model.parent, others), *((folder, ()) for folder in more)]
    if own:
        places.append((own, ("*.bin", *others)))
    for folder, patterns in places:
        yield from _named(model, folder)
        yield from _matching(folder, ("tok*.bin", "tok*.model", "tok*.json"))
        yield from _matching(folder, patterns)


def _named(model: Path, folder: Path) -> list[Path]:
    ends = (MODEL, JSON, BINARY)
    names = [*(model.stem + end for end in ends), *(end.removeprefix(".") for end in ends)]
    return [path for name in names if (path := folder / name).is_file()]


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _fits(path: Path, vocab_size: int) -> bool:
    try:
        return _is_likely(path) and vocabulary_size(path) == vocab_size
    except TokenizerError:
        return False  # nobody asked for this file


def _is_likely(path: Path) -> bool:
    """Whether a file begins like a tokenizer, so that it is worth reading.

    Raises:
        TokenizerError: It cannot be read, or begins like something else.
    """
    head = read_tokenizer_file(path, HEAD)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        # What a tokenizer.json begins with. Configurations and data have none of these.
        return any(b'"%s"' % name in head for name in (b"truncation", b"added_tokens", b"model", b"vocab"))
    return bool(recognise(path, head))


def vocabulary_size(path: Path) -> int:
    """Number of tokens in a file, without building its tokenizer.

    Raises:
        TokenizerError: Missing, damaged or of an unknown format.
    """
    data = read_tokenizer_file(path)
    kind = recognise(path, data)
    if kind == "json":
        try:
            return count_tokens(parse_hf_json(data))
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error.message}", error.hint) from None
    if kind == "tiktoken":
        return len(rank_lines(path, data)) + len(SPECIAL_TOKENS)
    if kind == "sentencepiece":
        return open_library(path, data).vocab_size()
    return len(read_binary_vocab(path, data).pieces)


def read_tokenizer_file(path: Path, most: int = -1) -> bytes:
    """Contents of a file that may be a tokenizer, or its first `most` bytes.

    Raises:
        TokenizerError: Missing, no regular file, or larger than any tokenizer.
    """
    try:
        if path.is_dir():
            raise TokenizerError(f"{path}: {EXPECTED}, found a folder", CHOOSE)
        if not path.exists():
            raise TokenizerError(f"{path}: {EXPECTED}, found no such file", CHOOSE)
        if not path.is_file():
            raise TokenizerError(f"{path}: {EXPECTED}, found a device or a pipe", CHOOSE)
        if path.stat().st_size > MAX_BYTES:
            raise TokenizerError(
                f"{path}: {EXPECTED} of at most {MAX_BYTES >> 20} MiB, found {path.stat().st_size >> 20} MiB",
                CHOOSE,
            )
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise TokenizerError(f"{path}: {EXPECTED}, could not read it: {error.strerror}", CHOOSE) from None


def recognise(path: Path, data: bytes) -> str:
    """The format: "json", "tiktoken", "sentencepiece" or "binary".

    Raises:
        TokenizerError: None of them.
    """
    head = data[:HEAD]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        found = "an empty file"
    elif head[2:4] == b"\0\0":  # int32 length of the longest token: nothing else starts like that
        return "binary"
    elif head[:1] == b"\n" and head[2:3] in (b"\n", b"\x01"):  # protobuf: the first piece and its text
        return "sentencepiece"
    elif RANK_LINE.fullmatch(head.split(b"\n", 1)[0].rstrip(b"\r")):
        return "tiktoken"
    elif text.startswith(b"{"):
        # Other JSON files (and text that only looks like it) are not worth parsing.
        if b'"model"' in data and b'"vocab"' in data:
            return "json"
        found = "JSON that is not a tokenizer.json"
    else:
        found = next(
            (name for start, name in _MISTAKES.items() if re.match(start, head)), "an unknown binary file"
        )
    raise TokenizerError(f"{path}: {EXPECTED}, found {found}", CHOOSE)
