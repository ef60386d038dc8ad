"""Conversations to ids, against the templates' own texts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.errors import ModelError, UsageError
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, ChatFormat, Message, chat_format_for
from llamatui.tokenizers.loading import load_tokenizer
from tests.tokenizers.texts import CONTROL_TEXTS, unicode_texts
from tests.tokenizers.vocabularies import smollm_document, starts_with, write_json

VOCABULARY = {"llama3": "llama3 json", "chatml": "smollm json", "llama2": "sentencepiece"}

SYSTEM = Message("system", " Be kind.\n")
ASK = Message("user", " Hello there ")
ANSWER = Message("assistant", " Hi!\n")
MORE = Message("user", "More?")


@pytest.fixture(params=VOCABULARY)
def chat(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> tuple[ChatFormat, Tokenizer]:
    return CHAT_FORMATS[request.param], tokenizers[VOCABULARY[request.param]]


def llama3(*turns: tuple[str, str]) -> str:
    return "<|begin_of_text|>" + "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}" for role, content in turns
    )


END = "<|eot_id|>"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([ASK], llama3(("user", "Hello there" + END), ("assistant", ""))),
        (
            [SYSTEM, ASK, ANSWER, MORE],
            llama3(
                ("system", "Be kind." + END),
                ("user", "Hello there" + END),
                ("assistant", "Hi!" + END),
                ("user", "More?" + END),
                ("assistant", ""),
            ),
        ),
        ([ASK, ANSWER], llama3(("user", "Hello there" + END), ("assistant", "Hi!\n"))),
        ([], llama3(("assistant", ""))),
    ],
)
@pytest.mark.parametrize("vocabulary", ["llama3 json", "llama3 bin", "tiktoken"])
def test_llama3(
    tokenizers: dict[str, Tokenizer], vocabulary: str, messages: list[Message], text: str
) -> None:
    tokenizer = tokenizers[vocabulary]
    ids = CHAT_FORMATS["llama3"].render(tokenizer, messages)
    assert ids == tokenizer.encode(text, special=True)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([ASK], "<|im_start|>user\n Hello there <|im_end|>\n<|im_start|>assistant\n"),
        (
            [SYSTEM, ASK, ANSWER, MORE],
            "<|im_start|>system\n Be kind.\n<|im_end|>\n<|im_start|>user\n Hello there <|im_end|>\n"
            "<|im_start|>assistant\n Hi!\n<|im_end|>\n<|im_start|>user\nMore?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ([ASK, ANSWER], "<|im_start|>user\n Hello there <|im_end|>\n<|im_start|>assistant\n Hi!\n"),
    ],
)
def test_chatml(tokenizers: dict[str, Tokenizer], messages: list[Message], text: str) -> None:
    tokenizer = tokenizers["smollm json"]
    assert CHAT_FORMATS["chatml"].render(tokenizer, messages) == tokenizer.encode(text, special=True)


def test_chatml_starts_with_bos_where_prompts_do(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    document = smollm_document() | {"post_processor": starts_with("<|endoftext|>")}
    tokenizer = load_tokenizer(write_json(tmp_path / "tokenizer.json", document))
    without = CHAT_FORMATS["chatml"].render(tokenizers["smollm json"], [ASK])
    assert CHAT_FORMATS["chatml"].render(tokenizer, [ASK]) == [0, *without]


@pytest.mark.parametrize(
    ("messages", "pairs", "last"),
    [
        ([ASK], [], "[INST] Hello there [/INST]"),
        ([SYSTEM, ASK], [], "[INST] <<SYS>>\n Be kind.\n\n<</SYS>>\n\n Hello there [/INST]"),
        (
            [SYSTEM, ASK, ANSWER, MORE],
            ["[INST] <<SYS>>\n Be kind.\n\n<</SYS>>\n\n Hello there [/INST] Hi! "],
            "[INST] More? [/INST]",
        ),
        ([ASK, ANSWER], [], "[INST] Hello there [/INST] Hi!\n"),
        ([ASK, Message("assistant", "")], [], "[INST] Hello there [/INST]"),
        ([SYSTEM], [], "[INST] <<SYS>>\n Be kind.\n\n<</SYS>> [/INST]"),
    ],
)
@pytest.mark.parametrize("vocabulary", ["sentencepiece", "llama2 bin"])
def test_llama2(
    tokenizers: dict[str, Tokenizer], vocabulary: str, messages: list[Message], pairs: list[str], last: str
) -> None:
    """Meta encodes each question and answer as one string between BOS and EOS, the last question alone."""
    tokenizer = tokenizers[vocabulary]
    expected = [token for pair in pairs for token in tokenizer.encode(pair, bos=True, eos=True)]
    expected += tokenizer.encode(last, bos=True)
    assert CHAT_FORMATS["llama2"].render(tokenizer, messages) == expected


def control_ids(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    known = set(tokenizer.special_tokens.values())
    return [token for token in ids if token in known]


@pytest.mark.parametrize("typed", [*CONTROL_TEXTS, *map("a {} b".format, CONTROL_TEXTS)])
def test_typed_control_texts_are_plain_text(chat: tuple[ChatFormat, Tokenizer], typed: str) -> None:
    chat_format, tokenizer = chat
    harmless = chat_format.render(tokenizer, [SYSTEM, ASK, ANSWER, MORE])
    smuggled = chat_format.render(tokenizer, [Message(m.role, typed) for m in (SYSTEM, ASK, ANSWER, MORE)])
    assert control_ids(tokenizer, smuggled) == control_ids(tokenizer, harmless)


@given(contents=st.tuples(unicode_texts, unicode_texts, unicode_texts, unicode_texts))
def test_no_text_changes_the_control_tokens(
    tokenizers: dict[str, Tokenizer], contents: tuple[str, str, str, str]
) -> None:
    for name, vocabulary in VOCABULARY.items():
        chat_format, tokenizer = CHAT_FORMATS[name], tokenizers[vocabulary]
        plain = chat_format.render(tokenizer, [SYSTEM, ASK, ANSWER, MORE])
        messages = [Message(m.role, c) for m, c in zip((SYSTEM, ASK, ANSWER, MORE), contents, strict=True)]
        ids = chat_format.render(tokenizer, messages)
        assert control_ids(tokenizer, ids) == control_ids(tokenizer, plain)


def test_ids_of_an_answer_are_used_as_they_are(chat: tuple[ChatFormat, Tokenizer]) -> None:
    chat_format, tokenizer = chat
    prompt = chat_format.render(tokenizer, [ASK])
    ids = tuple(tokenizer.encode_ordinary("h") + tokenizer.encode_ordinary("e"))  # not how "he" is encoded
    answer = Message("assistant", "ignored", ids)
    assert chat_format.render(tokenizer, [ASK, answer]) == [*prompt, *ids]
    conversation = chat_format.render(tokenizer, [ASK, answer, MORE])
    assert conversation[: len(prompt) + len(ids)] == [*prompt, *ids]
    assert conversation[len(prompt) + len(ids)] in chat_format.stop_ids(tokenizer)
    # The end-of-turn token may be among the ids: it is not there twice.
    ended = Message("assistant", "ignored", (*ids, conversation[len(prompt) + len(ids)]))
    assert chat_format.render(tokenizer, [ASK, ended, MORE]) == conversation


def test_an_open_answer_goes_on(chat: tuple[ChatFormat, Tokenizer]) -> None:
    chat_format, tokenizer = chat
    closed = chat_format.render(tokenizer, [ASK, Message("assistant", "hello"), MORE])
    opened = chat_format.render(tokenizer, [ASK, Message("assistant", "hello")])
    assert closed[: len(opened)] == opened
    assert control_ids(tokenizer, opened) == control_ids(tokenizer, chat_format.render(tokenizer, [ASK]))


def test_system_length(chat: tuple[ChatFormat, Tokenizer]) -> None:
    chat_format, tokenizer = chat
    conversation = [SYSTEM, ASK, ANSWER, MORE]
    ids = chat_format.render(tokenizer, conversation)
    length = chat_format.system_length(tokenizer, conversation)
    kept, rest = tokenizer.decode(ids[:length]), tokenizer.decode(ids[length:], after=ids[length - 1])
    assert "Be kind." in kept
    assert "Hello" not in kept
    assert "Hello there" in rest
    # It does not depend on what is said later, which is what a context shift drops.
    assert chat_format.system_length(tokenizer, [SYSTEM, MORE]) in (length - 1, length, length + 1)


def test_system_length_without_a_system_message(chat: tuple[ChatFormat, Tokenizer]) -> None:
    chat_format, tokenizer = chat
    expected = 0 if chat_format.name == "chatml" else 1  # BOS
    assert chat_format.system_length(tokenizer, [ASK, ANSWER, MORE]) == expected


@pytest.mark.parametrize(("name", "vocabulary"), VOCABULARY.items())
def test_the_vocabulary_tells_the_format(
    tokenizers: dict[str, Tokenizer], name: str, vocabulary: str
) -> None:
    tokenizer = tokenizers[vocabulary]
    assert chat_format_for(tokenizer).name == name
    assert chat_format_for(tokenizer, name).name == name
    assert chat_format_for(tokenizer).stop_ids(tokenizer) >= tokenizer.eos_ids


def test_an_unknown_name(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(UsageError, match="'alpaca'") as raised:
        chat_format_for(tokenizers["tiktoken"], "alpaca")
    assert raised.value.hint == "--chat-format llama3 | chatml | llama2 | zephyr"


def test_a_format_that_the_vocabulary_lacks(tokenizers: dict[str, Tokenizer]) -> None:
    with pytest.raises(ModelError, match=r"llama2 needs the tokens </s> <s>") as raised:
        chat_format_for(tokenizers["smollm json"], "llama2")
    assert raised.value.hint == "these would work: --chat-format chatml"


def test_a_vocabulary_without_any_format(tokenizers: dict[str, Tokenizer]) -> None:
    class Bare(type(tokenizers["tiktoken"])):  # type: ignore[misc]
        def __init__(self) -> None:
            self.special_tokens = {"<|endoftext|>": 0}

    for name in ("", "chatml"):
        with pytest.raises(ModelError) as raised:
            chat_format_for(Bare(), name)
        assert "--chat-format" in raised.value.hint


ZEPHYR = CHAT_FORMATS["zephyr"]


@pytest.mark.parametrize(
    ("messages", "segments"),
    [
        ([ASK], ["<|user|>\n Hello there ", "\n<|assistant|>\n"]),
        (
            [SYSTEM, ASK, ANSWER, MORE],
            [
                "<|system|>\n Be kind.\n",
                "\n<|user|>\n Hello there ",
                "\n<|assistant|>\n Hi!\n",
                "\n<|user|>\nMore?",
                "\n<|assistant|>\n",
            ],
        ),
        ([ASK, ANSWER], ["<|user|>\n Hello there ", "\n<|assistant|>\n Hi!\n"]),
    ],
)
@pytest.mark.parametrize("vocabulary", ["sentencepiece", "llama2 bin"])
def test_zephyr(
    tokenizers: dict[str, Tokenizer], vocabulary: str, messages: list[Message], segments: list[str]
) -> None:
    """Only `</s>` is a control token. What follows it is encoded like a text of its own."""
    tokenizer = tokenizers[vocabulary]
    expected = [tokenizer.bos_id]
    for segment in segments:
        expected += tokenizer.encode(segment, eos=segment is not segments[-1])
    assert ZEPHYR.render(tokenizer, messages) == expected
    assert ZEPHYR.stop_ids(tokenizer) == {2}


@pytest.mark.parametrize("typed", CONTROL_TEXTS)
def test_zephyr_ends_no_turn_that_the_user_types(tokenizers: dict[str, Tokenizer], typed: str) -> None:
    tokenizer = tokenizers["sentencepiece"]
    ids = ZEPHYR.render(tokenizer, [Message("user", typed)])
    assert control_ids(tokenizer, ids) == [1, 2]


def test_zephyr_is_never_chosen_by_the_vocabulary(tokenizers: dict[str, Tokenizer]) -> None:
    assert chat_format_for(tokenizers["sentencepiece"]).name == "llama2"
    assert chat_format_for(tokenizers["sentencepiece"], "zephyr") is ZEPHYR

    class OnlyEos(type(tokenizers["tiktoken"])):  # type: ignore[misc]
        def __init__(self) -> None:
            self.special_tokens = {"</s>": 2}

    with pytest.raises(ModelError, match="found one without"):
        chat_format_for(OnlyEos())
    assert chat_format_for(OnlyEos(), "zephyr") is ZEPHYR
