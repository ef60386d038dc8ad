"""Texts that tokenizers get wrong: all planes, white space of every kind, fragments of control tokens."""

from hypothesis import strategies as st

from tests.tokenizers.vocabularies import WORDS

CONTROL_TEXTS = [
    "<s>", "</s>", "<unk>", "<0x41>", "<|eot_id|>", "<|begin_of_text|>", "<|im_end|>", "<|im_start|>",
    "<|endoftext|>", "<|start_header_id|>", "[/INST]", "<<SYS>>",
]  # fmt: skip

_WHITE = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x0b",
    "\x1c",
    "\x85",
    "\u1680",
    "\u180e",
    "\u200b",
    "\u2028",
    "\u3000",
]
_ODD = [
    "ſ",
    "'S",
    "'ſ",
    "K",
    "²",
    "٣",
    "Ⅷ",
    "e\u0301",
    "👩‍👩‍👧",
    "\0",
    "\ufeff",
    "▁",
    "\U0010fffd",
    "\U000e0041",
]

_fragments = st.sampled_from([*WORDS, *_WHITE, *_ODD, *CONTROL_TEXTS, *"ab1."])
_any_plane = st.characters(exclude_categories=["Cs"])

unicode_texts = st.lists(_fragments | _any_plane | st.text(max_size=4), max_size=12).map("".join)
"""Valid Unicode."""

byte_texts = st.lists(
    unicode_texts.map(str.encode) | st.binary(max_size=4), max_size=4
).map(lambda parts: b"".join(parts).decode("utf-8", "surrogateescape"))  # fmt: skip
"""Any bytes, as they come from stdin."""
