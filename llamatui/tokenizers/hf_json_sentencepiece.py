"""SentencePiece's vocabularies in Hugging Face's `tokenizer.json`, there and back.

In JSON the merges are a list. A SentencePiece model has no merges: any two neighbours that form a piece may
merge, by the piece's score. Both are the same where the list has every way to make a piece, those of one
piece in a row; lists that were made from a SentencePiece model are like that.

Two differences remain, in which SentencePiece's way is taken: these models were trained with it. `Metaspace`
puts no ▁ in front of text that starts with a space, and `Prepend` puts one behind every added token.
"""

import json
import re
from collections.abc import Mapping, Sequence

from llamatui.errors import TokenizerError
from llamatui.tokenizers.bpe import END_TOKENS
from llamatui.tokenizers.hf_json import (
    Json,
    check_options,
    control_names,
    count_tokens,
    find_bos,
    merge_list,
    reported_damage,
    template_bos,
    token_text,
    unsupported,
)
from llamatui.tokenizers.hf_json_writer import added_token, starts_with
from llamatui.tokenizers.sentencepiece_proto import (
    SPACE,
    Piece,
    PieceType,
    build_model,
    is_control_name,
    unused_texts,
)

_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_MOST_WORK = 1 << 27  # characters to compare; Llama 2's vocabulary has less than a hundredth of it


def piece_of_added(text: str, *, special: bool) -> Piece:
    """The piece of a token that was added to a vocabulary: CONTROL if it is `special`, else its text."""
    if special:
        return text, 0.0, PieceType.CONTROL
    return text.replace(" ", SPACE), 0.0, PieceType.USER_DEFINED


def sentencepiece_from_hf_json(document: Json, config: Json | None = None) -> bytes:
    """The SentencePiece model of a document from `parse_hf_json`, for the `sentencepiece` library.

    Args:
        config: Its tokenizer_config.json, for BOS and EOS.

    Raises:
        TokenizerError: It is not SentencePiece's kind of vocabulary, or no SentencePiece model merges as it
            does.
    """
    with reported_damage():
        return _model(document, config or {})


def _model(document: Json, config: Json) -> bytes:
    model = document["model"]
    check_options(model)
    if model.get("ignore_merges"):
        raise unsupported("ignore_merges with byte_fallback", "a SentencePiece vocabulary")
    adds_space = _adds_space(document)

    named = control_names(config) | {template_bos(document.get("post_processor"))}
    pieces: dict[int, Piece] = {}
    special = {}
    for token in document.get("added_tokens") or []:
        i, text = token["id"], token["content"]
        is_control = bool(token.get("special")) or is_control_name(text, named)
        pieces[i] = piece_of_added(text, special=is_control)
        if is_control:
            special[text] = i
    normal = {}
    n_bytes = 0
    for text, i in model["vocab"].items():
        if i in pieces:
            if text != pieces[i][0] and pieces[i][2] is not PieceType.CONTROL:
                raise TokenizerError(f"expected one token at id {i}, found {text!r} and {pieces[i][0]!r}")
        elif _BYTE_PIECE.fullmatch(text):
            pieces[i] = (text, 0.0, PieceType.BYTE)
            n_bytes += 1
        elif is_control_name(text, named):
            pieces[i] = (text, 0.0, PieceType.CONTROL)
            special[text] = i
        else:
            normal[text] = i
            pieces[i] = (text, 0.0, PieceType.NORMAL)
    if n_bytes != 256:
        raise unsupported(f"{n_bytes} byte tokens", "256 tokens from <0x00> to <0xFF>")

    ranks = _ranks(merge_list(model), normal)
    for text, i in normal.items():
        pieces[i] = (text, -float(ranks.get(text, len(ranks))), PieceType.NORMAL)
    size = count_tokens(document)
    holes = [i for i in range(size) if i not in pieces]
    for i, text in zip(holes, unused_texts(len(holes), {piece[0] for piece in pieces.values()}), strict=True):
        pieces[i] = (text, 0.0, PieceType.CONTROL)

    unknown = model.get("unk_token") or "<unk>"
    unk_id = model["vocab"].get(unknown, special.get(unknown, -1))
    if unk_id == -1:
        raise unsupported("no unknown token", "a vocabulary with <unk>")
    pieces[unk_id] = (unknown, 0.0, PieceType.UNKNOWN)
    special.pop(unknown, None)
    ends = (token_text(config.get("eos_token")), "</s>", *END_TOKENS)
    return build_model(
        [pieces[i] for i in range(size)],
        bos_id=find_bos(document, config, special),
        eos_id=next((special[name] for name in ends if name in special), -1),
        unk_id=unk_id,
        add_dummy_prefix=adds_space,
    )


def _adds_space(document: Json) -> bool:
    """Whether a text gets a ▁ in front. Nothing else may happen to it but that spaces become ▁."""
    normalizer, pre_tokenizer = document.get("normalizer"), document.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    adds = replaces = False
    for step in steps:
        if step == {"type": "Prepend", "prepend": SPACE}:
            adds = True
        elif step == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
            replaces = True
        else:
            raise unsupported(f"the normalizer {json.dumps(step)[:80]}", "one that only turns spaces to ▁")
    if pre_tokenizer is not None:
        # What Metaspace does with `split`, which is its default, no SentencePiece model can do.
        if (
            pre_tokenizer["type"] != "Metaspace"
            or pre_tokenizer["replacement"] != SPACE
            or pre_tokenizer.get("split", True)
        ):
            raise unsupported(
                f"the pre-tokenizer {json.dumps(pre_tokenizer)[:80]} of a SentencePiece vocabulary",
                "Metaspace without split",
            )
        replaces = True
        adds |= pre_tokenizer.get("prepend_scheme", "always") != "never"
    if not replaces:
        raise unsupported("a SentencePiece vocabulary that leaves spaces alone", "one that turns them to ▁")
    return adds


def _ranks(merges: Sequence[tuple[str, str]], normal: Mapping[str, int]) -> dict[str, int]:
    """Of each piece that merges make: its place in the order of merging.

    Raises:
        TokenizerError: The order is not one of pieces, or a way to make one is missing.
    """
    if sum(len(text) ** 2 for text in normal) > _MOST_WORK:
        raise unsupported(f"tokens of up to {max(map(len, normal))} characters", "a SentencePiece vocabulary")
    ranks: dict[str, int] = {}
    listed: set[tuple[str, str]] = set()
    previous = None
    for left, right in merges:
        piece = left + right
        if left not in normal or right not in normal or piece not in normal:
            continue  # of byte or control tokens, which text never becomes
        if piece != previous and piece in ranks:
            raise unsupported(
                f"merges to {piece!r} in two places", "merges in the order of the pieces that they make"
            )
        ranks.setdefault(piece, len(ranks))
        listed.add((left, right))
        previous = piece
    for text in normal:
        for cut in range(1, len(text)):
            pair = text[:cut], text[cut:]
            if pair[0] in normal and pair[1] in normal and pair not in listed:
                raise unsupported(
                    f"no merge of {pair[0]!r} and {pair[1]!r}, which make {text!r}",
                    "merges of all pairs that make a token",
                )
    return ranks


def sentencepiece_json(
    pieces: Sequence[Piece], *, unk_id: int, bos: str | None, add_dummy_prefix: bool = True
) -> bytes:
    """The contents of a tokenizer.json with the ids of a SentencePiece BPE model with byte fallback.

    Args:
        pieces: By id.
        bos: The control piece in front of every prompt, None for none.
    """
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    normal = {text: score for text, score, kind in pieces if kind is PieceType.NORMAL}

    def cuts(text: str) -> list[list[str]]:
        pairs = ([text[:cut], text[cut:]] for cut in range(1, len(text)))
        return [pair for pair in pairs if pair[0] in normal and pair[1] in normal]

    best_first = sorted(normal, key=lambda text: -normal[text])
    prepend = [{"type": "Prepend", "prepend": SPACE}] if add_dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_dummy_prefix else []
    added = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED)
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(text, i, special=kind is not PieceType.USER_DEFINED)
            for i, (text, _, kind) in enumerate(pieces)
            if kind in added
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prepend, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        "pre_tokenizer": None,
        "post_processor": None if bos is None else starts_with(bos, ids[bos]),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[unk_id][0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [pair for text in best_first for pair in cuts(text)],
        },
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
