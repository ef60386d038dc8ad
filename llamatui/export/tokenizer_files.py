"""The tokenizer that goes beside a converted model, and the one in a Hugging Face folder.

A tokenizer stays in the format it has where `load_tokenizer` reads that: SentencePiece, tiktoken, llama2.c's
`.bin`, byte-level `tokenizer.json`. What is changed is what a model needs: tokens that other files add to it,
and as many tokens as the model has embeddings.
"""

import json
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from llamatui.backends.checkpoint import MAX_EOS_IDS, ModelConfig
from llamatui.errors import TokenizerError
from llamatui.export.json_file import read_object, read_small
from llamatui.export.source import TokenizerFiles
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.binary_vocab import BinaryVocab, read_binary_vocab
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, Control
from llamatui.tokenizers.chat_templates import template_for, template_text
from llamatui.tokenizers.file_names import BINARY, CONFIG, JSON, MODEL
from llamatui.tokenizers.hf_json import (
    Json,
    companion_config,
    control_names,
    count_tokens,
    load_json,
    parse_hf_json,
    reported_damage,
    starts_with_bos,
)
from llamatui.tokenizers.hf_json_sentencepiece import (
    piece_of_added,
    sentencepiece_from_hf_json,
    sentencepiece_json,
)
from llamatui.tokenizers.hf_json_writer import added_token, bpe_json, byte_alphabet, merges_from_ranks
from llamatui.tokenizers.llama2c import BYTE_PIECE
from llamatui.tokenizers.loading import find_tokenizer, load_tokenizer, read_tokenizer_file, recognise
from llamatui.tokenizers.sentencepiece_proto import (
    SPACE,
    Piece,
    PieceType,
    build_model,
    is_control_name,
    never_typed,
    read_pieces,
    replace_pieces,
    unused_texts,
)
from llamatui.tokenizers.splitters import LLAMA3_PATTERN
from llamatui.tokenizers.tiktoken_model import read_ranks

_ENDINGS = {"sentencepiece": MODEL, "tiktoken": MODEL, "json": JSON, "binary": BINARY}

MAX_PADDING = 1 << 16
"""Models have some unused embeddings, to round their number; many more mean another tokenizer."""

_HINT = "this tokenizer belongs to another model: get the folder again, or choose a tokenizer with -z"


def from_folder(folder: Path, vocab_size: int) -> TokenizerFiles:
    """The tokenizer of a Hugging Face or Meta folder, with `vocab_size` tokens; {} if there is none.

    In this order: SentencePiece's `tokenizer.model` with the tokens that other files add to it;
    `tokenizer.json`; Llama 3's `tokenizer.model`. The Hub has Meta's files in `original/`, and Meta has
    `tokenizer.model` in the folder above, where it counts if it has the model's size. Ids without a token get
    unused ones. Added tokens without an embedding are left out: no model can read them.

    Raises:
        TokenizerError: It is damaged, of an unknown kind, or has more tokens than the model.
        CheckpointError: Its configuration is damaged.
    """
    config = folder_config(folder)
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
            added = _added_tokens(folder, config, vocab_size)
            files = _from_sentencepiece(path, added, control_names(config), vocab_size, has_json)
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
    kind = recognise(path, data)
    config = companion_config(path)
    if kind == "sentencepiece":
        data = _never_typed(data, config)
    files = {_ENDINGS[kind]: data}
    if config:
        files[CONFIG] = _dumped(config)
    return files


def beside(model: Path, vocab_size: int) -> TokenizerFiles:
    """The tokenizer that lies beside a model file; {} if none fits it.

    Its name has to tell that it is a tokenizer, and none of another model: what is found here by its size
    becomes the model's own.
    """
    found = find_tokenizer(model, vocab_size)
    if found is None or not found.name.startswith((f"{model.stem}.tok", "tok")):
        return {}
    return _fitting(found, vocab_size)


def with_token_ids(config: ModelConfig, files: TokenizerFiles) -> ModelConfig:
    """`config`, with BOS and EOS of the model's tokenizer where it does not know them."""
    if not files or (config.bos_id >= 0 and config.eos_ids):
        return config
    tokenizer = load_files(files, Path("tokenizer"), config.vocab_size)
    return replace(
        config,
        bos_id=config.bos_id if config.bos_id >= 0 else tokenizer.bos_id,
        eos_ids=config.eos_ids or tuple(sorted(tokenizer.eos_ids)[:MAX_EOS_IDS]),
    )


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
    tokenizer = load_files(files, path, config.vocab_size)
    told = _object(files.get(CONFIG, b""))
    kind = recognise(path, data)
    if kind == "json":
        made = {"tokenizer.json": data}
        document = parse_hf_json(data)
        if document["model"].get("byte_fallback"):
            made["tokenizer.model"] = sentencepiece_from_hf_json(document, told)
    elif kind == "sentencepiece":
        made = _sentencepiece_for_hf(_never_typed(data, told), tokenizer)
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
        back = load_files({JSON: document}, Path("tokenizer.json"), len(pieces))
        every = "".join(text for text, _, kind in pieces if kind is PieceType.NORMAL).replace(SPACE, " ")
        every += "  \ufb01 \u2460 \uff21 e\u0301 \u200b  "  # what a normalizing model would change
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
    path: Path, added: dict[int, Piece], named: Collection[str], vocab_size: int, has_json: bool
) -> TokenizerFiles:
    """The model with added tokens and padding, and without pieces that text must not become but does.

    {} if a file gives other names to tokens of the model, and `has_json`, which then is right.

    Args:
        named: What the configuration says is BOS, EOS or special.
    """
    data = read_tokenizer_file(path)
    try:
        pieces = read_pieces(data, vocab_size + MAX_PADDING)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error.message}", error.hint) from None
    n = len(pieces)
    _check_padding(path, n, vocab_size)
    if has_json and any(i < n and piece[0] != pieces[i][0] for i, piece in added.items()):
        return {}
    special = {i: piece[0] for i, piece in added.items() if piece[2] is PieceType.CONTROL}
    taken = {piece[0] for piece in pieces}
    new = {i: piece for i, piece in added.items() if n <= i < vocab_size and piece[0] not in taken}
    names = iter(unused_texts(vocab_size - n, taken | {piece[0] for piece in new.values()}))
    more = [new.get(i) or (next(names), 0.0, PieceType.CONTROL) for i in range(n, vocab_size)]
    own_names = (pieces[i][0] for i in special if i < n)  # of tokens that are called otherwise elsewhere
    changed = never_typed([*pieces, *more], {*named, *special.values(), *own_names})
    return _checked({MODEL: _with_pieces(data, pieces, changed)}, path, vocab_size)


def _never_typed(data: bytes, config: Json) -> bytes:
    pieces = read_pieces(data)
    return _with_pieces(data, pieces, never_typed(pieces, control_names(config)))


def _with_pieces(data: bytes, pieces: list[Piece], changed: list[Piece]) -> bytes:
    """The model `data`, whose pieces are `pieces`, byte for byte as it is where nothing is changed."""
    return data if changed == pieces else replace_pieces(data, changed)


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
    vocab = document["model"]["vocab"]
    for token in left_out:
        vocab.pop(token["content"], None)
    # More tokens than ids would take their time, too.
    n = max(len(vocab), len(added), count_tokens(document))
    _check_padding(path, n, vocab_size)
    taken = vocab.keys() | {token["content"] for token in added}
    for i, text in enumerate(unused_texts(vocab_size - n, taken), n):
        added.append(added_token(text, i, special=True))
    return bool(left_out) or n < vocab_size


def _check_padding(path: Path, n: int, vocab_size: int) -> None:
    if not 0 <= vocab_size - n <= MAX_PADDING:
        raise TokenizerError(f"{path}: expected {vocab_size} tokens, as the model has, found {n}", _HINT)


def folder_config(folder: Path) -> Json:
    """What a folder's tokenizer_config.json says, and newer or older files in its stead; {} if there is none.

    A template in chat_template.jinja goes before the one in the configuration, as in `transformers`. BOS, EOS
    and special tokens are also in special_tokens_map.json.

    Raises:
        CheckpointError: It is damaged.
    """
    path = folder / "tokenizer_config.json"
    config: Json = read_object(path) if path.exists() else {}
    template = folder / "chat_template.jinja"
    if template.exists():
        config["chat_template"] = read_small(template).decode("utf-8", "replace")
    older = _small_object(folder / "special_tokens_map.json")
    for key in ("bos_token", "eos_token", "additional_special_tokens"):
        if key in older:
            config.setdefault(key, older[key])
    return config


def _added_tokens(folder: Path, config: Json, vocab_size: int) -> dict[int, Piece]:
    """By id, the tokens that Hugging Face's files add to a tokenizer.model. Damaged files add nothing."""
    named = control_names(config)
    added: dict[int, Piece] = {}
    try:
        for i, text, is_special in _tokens_of_files(folder, config):
            if type(i) is int and 0 <= i < vocab_size and isinstance(text, str) and _is_text(text):
                added[i] = piece_of_added(text, special=is_special or is_control_name(text, named))
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    return added


def _is_text(text: str) -> bool:
    """Whether there is something in it that UTF-8 can say: JSON can hold half a surrogate pair."""
    return bool(text) and not any("\ud800" <= c <= "\udfff" for c in text)


def _tokens_of_files(folder: Path, config: Json) -> Iterator[tuple[object, object, bool]]:
    """Id, text and whether it is special: the newest kind of file last."""
    special = set()
    for text, i in _small_object(folder / "added_tokens.json").items():
        yield i, text, True  # such a file does not say which are special: nobody may type one
    for i, token in (config.get("added_tokens_decoder") or {}).items():
        if token.get("special"):
            special.add(token["content"])
        yield int(i), token["content"], token["content"] in special
    path = folder / "tokenizer.json"
    document = _object(read_tokenizer_file(path)) if path.is_file() else {}
    for token in document.get("added_tokens") or []:
        yield token["id"], token["content"], bool(token.get("special")) or token["content"] in special


def _small_object(path: Path) -> Json:
    """The JSON object in a file that may be missing; {} if it has none."""
    return _object(read_small(path)) if path.is_file() else {}


def _object(data: bytes) -> Json:
    """The JSON object in `data`, {} if there is none."""
    try:
        found = load_json(data)
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
    load_files(files, path, vocab_size)
    return files


def load_files(files: TokenizerFiles, path: Path, vocab_size: int) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for ending, data in files.items():
            (Path(folder) / f"m{ending}").write_bytes(data)
        ending = next(ending for ending in files if ending != CONFIG)
        try:
            return load_tokenizer(Path(folder) / f"m{ending}", vocab_size)
        except TokenizerError as error:
            message = error.message.removeprefix(f"{Path(folder) / f'm{ending}'}: ")
            raise TokenizerError(f"{path}: {message}", error.hint) from None
