"""The tokenizer that goes beside a converted model, and the one in a Hugging Face folder.

A tokenizer stays in the format it has where `load_tokenizer` reads that: SentencePiece, tiktoken, llama2.c's
`.bin`, byte-level `tokenizer.json`. What is changed is what a model needs: tokens that other files add to it,
and as many tokens as the model has embeddings.
"""

import json
import tempfile
from pathlib import Path

from llamatui.backends.checkpoint import ModelConfig
from llamatui.errors import TokenizerError
from llamatui.export.source import TokenizerFiles
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.binary_vocab import BinaryVocab, read_binary_vocab
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, Control
from llamatui.tokenizers.chat_templates import template_for, template_text
from llamatui.tokenizers.hf_json import (
    Json,
    companion_config,
    count_tokens,
    parse_hf_json,
    reported_damage,
    starts_with_bos,
)
from llamatui.tokenizers.hf_json_sentencepiece import (
    SPACE,
    piece_of_added,
    sentencepiece_from_hf_json,
    sentencepiece_json,
)
from llamatui.tokenizers.hf_json_writer import added_token, bpe_json, byte_alphabet, merges_from_ranks
from llamatui.tokenizers.llama2c import BYTE_PIECE
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer, read_tokenizer_file, recognise
from llamatui.tokenizers.sentencepiece_proto import (
    Piece,
    PieceType,
    append_pieces,
    build_model,
    read_pieces,
    unused_texts,
)
from llamatui.tokenizers.splitters import LLAMA3_PATTERN
from llamatui.tokenizers.tiktoken_model import read_ranks

MODEL, JSON, BINARY = ".tokenizer.model", ".tokenizer.json", ".tokenizer.bin"
CONFIG = ".tokenizer_config.json"
_ENDINGS = {"sentencepiece": MODEL, "tiktoken": MODEL, "json": JSON, "binary": BINARY}

MAX_PADDING = 1 << 16
"""Models have some unused embeddings, to round their number; many more mean another tokenizer."""
_MAX_TEMPLATE = 1 << 20  # bytes

_HINT = "this tokenizer belongs to another model: get the folder again, or choose a tokenizer with -z"


def from_folder(folder: Path, vocab_size: int) -> TokenizerFiles:
    """The tokenizer of a Hugging Face or Meta folder, with `vocab_size` tokens; {} if there is none.

    In this order: SentencePiece's `tokenizer.model` with the tokens that other files add to it;
    `tokenizer.json`; Llama 3's `tokenizer.model`. The Hub has Meta's files in `original/`, and Meta has
    `tokenizer.model` in the folder above, where it counts if it has the model's size. Ids without a token get
    unused ones. Added tokens without an embedding are left out: no model can read them.

    Raises:
        TokenizerError: It is damaged, of an unknown kind, or has more tokens than the model.
    """
    config = _folder_config(folder)
    models = [
        path
        for path in (folder / "tokenizer.model", folder / "original" / "tokenizer.model")
        if path.is_file()
    ]
    kinds = {path: recognise(path, read_tokenizer_file(path)) for path in models}
    json_path = folder / "tokenizer.json"
    has_json = json_path.is_file()
    files: TokenizerFiles = {}
    for path, kind in kinds.items():
        if not files and kind == "sentencepiece":
            files = _from_sentencepiece(path, _added_tokens(folder), vocab_size, may_refuse=has_json)
    if not files and has_json:
        files = _from_json(json_path, config, vocab_size)
    for path, kind in kinds.items():
        if not files and kind != "sentencepiece":
            files = _checked({_ENDINGS[kind]: read_tokenizer_file(path)}, path, vocab_size)
    above = folder.parent / "tokenizer.model"
    if not files and above.is_file():
        files = _fitting(above, vocab_size)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {
            i: token for i, token in decoder.items() if i.isdecimal() and len(i) < 9 and int(i) < vocab_size
        }
    if files and config:
        files[CONFIG] = _dumped(config)
    return files


def from_file(path: Path, vocab_size: int) -> TokenizerFiles:
    """A tokenizer file of any kind, with its tokenizer_config.json.

    Raises:
        TokenizerError: It is missing, damaged, of an unknown kind, or has not `vocab_size` tokens.
    """
    load_tokenizer(path, vocab_size)
    data = read_tokenizer_file(path)
    files = {_ENDINGS[recognise(path, data)]: data}
    if config := companion_config(path):
        files[CONFIG] = _dumped(config)
    return files


def beside(model: Path, vocab_size: int) -> TokenizerFiles:
    """The tokenizer that is found for a model file; {} if none fits it."""
    found = find_tokenizer(model, vocab_size)
    return {} if found is None else _fitting(found, vocab_size)


def for_hf(files: TokenizerFiles, config: ModelConfig) -> dict[str, bytes]:
    """Contents by name of the files that give Hugging Face's `transformers` the ids of our tokenizer.

    `tokenizer.json` is what it reads. SentencePiece's vocabularies also get their `tokenizer.model`, for
    other programs. `tokenizer_config.json` says what BOS, EOS and the chat template are.

    Raises:
        TokenizerError: A file is damaged, or a vocabulary has no counterpart there.
    """
    ending = next((ending for ending in (MODEL, JSON, BINARY) if ending in files), None)
    if ending is None:
        return {}
    data, path = files[ending], Path(ending)
    tokenizer = _loaded(files, path, config.vocab_size)
    told = _object(files.get(CONFIG, b""))
    kind = recognise(path, data)
    if kind == "json":
        made = {"tokenizer.json": data}
        document = parse_hf_json(data)
        if document["model"].get("byte_fallback"):
            made["tokenizer.model"] = sentencepiece_from_hf_json(document, told)
    elif kind == "sentencepiece":
        made = _sentencepiece_for_hf(data, tokenizer)
    elif kind == "tiktoken":
        made = {"tokenizer.json": _ranks_for_hf(read_ranks(path, data), tokenizer)}
    else:
        vocab = read_binary_vocab(path, data)
        made = (
            {"tokenizer.json": _ranks_for_hf(vocab.pieces, tokenizer)}
            if vocab.is_byte_level
            else _sentencepiece_for_hf(_sentencepiece_from_binary(vocab), tokenizer)
        )
    if "tokenizer.json" not in made:
        told["tokenizer_class"] = "LlamaTokenizer"
    elif kind != "json":
        # Not LlamaTokenizer: that one ignores how the JSON treats spaces at the start of a text.
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
    if not template_text(told.get("chat_template")):
        told.pop("chat_template", None)
    return made | {"tokenizer_config.json": _dumped(_hf_config(tokenizer, config) | told)}


def _hf_config(tokenizer: Tokenizer, config: ModelConfig) -> Json:
    texts = {i: text for text, i in tokenizer.special_tokens.items()}
    chat_format = CHAT_FORMATS.get(config.chat_format)
    turn_ends = (
        [part for part in chat_format.assistant[1] if isinstance(part, Control)] if chat_format else []
    )
    ends = [*turn_ends, *(texts[i] for i in sorted(tokenizer.eos_ids) if i in texts)]
    found: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.adds_bos,
        "add_eos_token": False,
        "bos_token": texts.get(tokenizer.bos_id),
        "eos_token": next((text for text in ends if text in tokenizer.special_tokens), None),
        "unk_token": "<unk>" if "<unk>" in tokenizer.special_tokens else None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_seq_len,
        "chat_template": template_for(
            config.chat_format, texts[tokenizer.bos_id] if tokenizer.adds_bos else ""
        ),
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


def _sentencepiece_for_hf(model: bytes, tokenizer: Tokenizer) -> dict[str, bytes]:
    """The model, and a tokenizer.json if that gives the same ids: it has no counterpart to Unigram models."""
    made = {"tokenizer.model": model}
    pieces = read_pieces(model)
    kinds = [piece[2] for piece in pieces]
    if kinds.count(PieceType.BYTE) == 256 and PieceType.UNUSED not in kinds:
        texts = {i: text for text, i in tokenizer.special_tokens.items()}
        document = sentencepiece_json(
            pieces,
            unk_id=kinds.index(PieceType.UNKNOWN),
            bos=texts[tokenizer.bos_id] if tokenizer.adds_bos else None,
            add_dummy_prefix=tokenizer.strips_space_after(None),
        )
        back = _loaded({JSON: document}, Path("tokenizer.json"), len(pieces))
        every = "".join(text for text, _, kind in pieces if kind is PieceType.NORMAL).replace(SPACE, " ")
        if back.encode(every) == tokenizer.encode(every):
            made["tokenizer.json"] = document
    return made


def _sentencepiece_from_binary(vocab: BinaryVocab) -> bytes:
    """The model of a llama2.c tokenizer.bin. Texts that no piece can have there become unused names."""
    texts = [piece.decode("utf-8", "replace").replace(" ", SPACE) for piece in vocab.pieces]
    texts[:3] = ["<unk>", "<s>", "</s>"]
    names = iter(unused_texts(len(texts), set(texts)))
    pieces: list[Piece] = [
        ("<unk>", 0.0, PieceType.UNKNOWN), ("<s>", 0.0, PieceType.CONTROL), ("</s>", 0.0, PieceType.CONTROL)
    ]  # fmt: skip
    seen = {"<unk>", "<s>", "</s>"}
    for text, score in zip(texts[3:], vocab.scores[3:], strict=True):
        if not text or text in seen:
            pieces.append((next(names), 0.0, PieceType.CONTROL))
        else:
            is_byte = BYTE_PIECE.fullmatch(text.encode())
            pieces.append((text, score, PieceType.BYTE if is_byte else PieceType.NORMAL))
            seen.add(text)
    return build_model(pieces, bos_id=1, eos_id=2, unk_id=0)


def _ranks_for_hf(pieces: list[bytes], tokenizer: Tokenizer) -> bytes:
    """The tokenizer.json of byte pieces in order of rank; the special tokens follow them."""
    special = tokenizer.special_tokens
    ranked = pieces[: tokenizer.vocab_size - len(special)]
    texts = {i: text for text, i in special.items()}
    return bpe_json(
        [byte_alphabet(piece) for piece in ranked],
        merges_from_ranks(ranked),
        [LLAMA3_PATTERN],
        special,
        bos=texts[tokenizer.bos_id] if tokenizer.adds_bos else None,
        ignore_merges=True,
    )


def _from_sentencepiece(
    path: Path, added: dict[int, Piece], vocab_size: int, *, may_refuse: bool
) -> TokenizerFiles:
    """The model with added tokens and padding.

    {} if a file gives other names to tokens of the model, and `may_refuse`.
    """
    data = read_tokenizer_file(path)
    try:
        pieces = read_pieces(data)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", error.hint) from None
    n = len(pieces)
    _check_padding(path, n, vocab_size)
    if may_refuse and any(i < n and piece[0] != pieces[i][0] for i, piece in added.items()):
        return {}
    taken = {piece[0] for piece in pieces}
    new = {i: piece for i, piece in added.items() if n <= i < vocab_size and piece[0] not in taken}
    names = iter(unused_texts(vocab_size - n, taken | {piece[0] for piece in new.values()}))
    more = [new.get(i) or (next(names), 0.0, PieceType.CONTROL) for i in range(n, vocab_size)]
    return _checked({MODEL: append_pieces(data, more)}, path, vocab_size)


def _from_json(path: Path, config: Json, vocab_size: int) -> TokenizerFiles:
    """The tokenizer.json, or the SentencePiece model that it was made from. May complete `config`."""
    data = read_tokenizer_file(path)
    try:
        document = parse_hf_json(data)
        with reported_damage():
            changed = _fit(path, document, vocab_size)
        if not document["model"].get("byte_fallback"):
            return _checked({JSON: _dumped(document, indent=None) if changed else data}, path, vocab_size)
        config.setdefault("add_bos_token", starts_with_bos(document))
        return _checked({MODEL: sentencepiece_from_hf_json(document, config)}, path, vocab_size)
    except TokenizerError as error:
        where = "" if error.message.startswith(str(path)) else f"{path}: "
        raise TokenizerError(where + error.message, error.hint) from None


def _fit(path: Path, document: Json, vocab_size: int) -> bool:
    """Gives the document `vocab_size` tokens; whether anything had to be changed."""
    added = document.get("added_tokens") or []
    left_out = [token for token in added if token["id"] >= vocab_size]
    document["added_tokens"] = added = [token for token in added if token["id"] < vocab_size]
    for token in left_out:
        document["model"]["vocab"].pop(token["content"], None)
    n = count_tokens(document)
    _check_padding(path, n, vocab_size)
    taken = document["model"]["vocab"].keys() | {token["content"] for token in added}
    for i, text in enumerate(unused_texts(vocab_size - n, taken), n):
        added.append(added_token(text, i, special=True))
    return bool(left_out) or n < vocab_size


def _check_padding(path: Path, n: int, vocab_size: int) -> None:
    if not 0 <= vocab_size - n <= MAX_PADDING:
        raise TokenizerError(f"{path}: expected {vocab_size} tokens, as the model has, found {n}", _HINT)


def _added_tokens(folder: Path) -> dict[int, Piece]:
    """By id, the tokens that Hugging Face's files add to a tokenizer.model. Damaged files add nothing."""
    found: list[tuple[object, object, bool]] = []
    try:
        # Old files do not say which are special: nobody may type one.
        old = _object(_contents(folder / "added_tokens.json"))
        found += [(i, text, True) for text, i in old.items()]
        config = _object(_contents(folder / "tokenizer_config.json"))
        decoder = config.get("added_tokens_decoder") or {}
        found += [(int(i), token["content"], bool(token.get("special"))) for i, token in decoder.items()]
        tokens = _object(_contents(folder / "tokenizer.json")).get("added_tokens") or []
        found += [(token["id"], token["content"], bool(token.get("special"))) for token in tokens]
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return {
        i: piece_of_added(text, special=special)
        for i, text, special in found
        if type(i) is int and i >= 0 and isinstance(text, str) and text
    }


def _folder_config(folder: Path) -> Json:
    """tokenizer_config.json, with the chat template that newer folders have in a file of its own."""
    config = companion_config(folder / "tokenizer.json")
    template = folder / "chat_template.jinja"
    lacks_one = not template_text(config.get("chat_template"))
    if lacks_one and template.is_file() and template.stat().st_size <= _MAX_TEMPLATE:
        config["chat_template"] = template.read_bytes().decode("utf-8", "replace")
    return config


def _contents(path: Path) -> bytes:
    return read_tokenizer_file(path) if path.is_file() else b""


def _object(data: bytes) -> Json:
    """The JSON object in `data`, {} if there is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _dumped(document: Json, indent: int | None = 2) -> bytes:
    # Half of a surrogate pair, which JSON can hold, is written as JSON writes it.
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace")


def _fitting(path: Path, vocab_size: int) -> TokenizerFiles:
    """The file, {} if it is no tokenizer of that size."""
    try:
        return from_file(path, vocab_size)
    except TokenizerError:
        return {}


def _checked(files: TokenizerFiles, path: Path, vocab_size: int) -> TokenizerFiles:
    """`files`, once they are proven to be read. Errors name `path`."""
    _loaded(files, path, vocab_size)
    return files


def _loaded(files: TokenizerFiles, path: Path, vocab_size: int) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for ending, data in files.items():
            (Path(folder) / f"m{ending}").write_bytes(data)
        ending = next(ending for ending in files if ending != CONFIG)
        try:
            return load_tokenizer(Path(folder) / f"m{ending}", vocab_size)
        except TokenizerError as error:
            message = error.message.removeprefix(f"{Path(folder) / f'm{ending}'}: ")
            raise TokenizerError(f"{path}: {message}", error.hint) from None
