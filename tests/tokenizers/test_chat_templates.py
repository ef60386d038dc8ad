"""Chat templates are recognised by their markers, and ours render what our formats do."""

from typing import Any

import pytest

from llamatui.tokenizers import chat_templates
from llamatui.tokenizers.base import Tokenizer
from llamatui.tokenizers.chat_formats import CHAT_FORMATS, Control, Message
from llamatui.tokenizers.chat_templates import default_system, format_of, template_for, template_text
from tests.tokenizers.genuine_templates import KNOWN, OTHERS, QWEN25_INSTRUCT, SMOLLM2_INSTRUCT

SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

SYSTEM = Message("system", "Be kind.")
TURNS = [Message("user", "Hello"), Message("assistant", "Hi!"), Message("user", " More? ")]
CONVERSATIONS = [TURNS[:1], TURNS, [SYSTEM, *TURNS]]


@pytest.mark.parametrize("model", KNOWN)
def test_the_format_of_a_known_template(model: str) -> None:
    name, template = KNOWN[model]
    assert format_of(template) == name
    # In a file they may be escaped once more, or once less.
    assert format_of(template.replace("\n", "\\n")) == name
    assert format_of(template.replace("\\n", "\n")) == name


@pytest.mark.parametrize("model", OTHERS)
def test_other_templates_are_not_taken_for_ours(model: str) -> None:
    assert format_of(OTHERS[model]) == ""


@pytest.mark.parametrize("model", KNOWN)
def test_a_template_that_lacks_or_adds_a_marker_is_another_format(model: str) -> None:
    name, template = KNOWN[model]
    marker = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "llama2": "<<SYS>>", "zephyr": "eos_token"}[
        name
    ]
    assert format_of(template.replace(marker, "")) == ""
    assert format_of(template + "{{ '<|end|>' }}") == ""


def test_default_system_messages() -> None:
    assert default_system(SMOLLM2_INSTRUCT) == SMOLLM
    assert default_system(SMOLLM2_INSTRUCT.replace("\n", "\\n")) == SMOLLM
    assert default_system(QWEN25_INSTRUCT) == QWEN
    assert default_system(SMOLLM2_INSTRUCT.replace("Hugging Face<", "\\'HF\\'\\nInc<")) == (
        "You are a helpful AI assistant named SmolLM, trained by 'HF'\nInc"
    )
    for _, template in KNOWN.values():
        if template not in (SMOLLM2_INSTRUCT, QWEN25_INSTRUCT):
            assert default_system(template) == ""


def test_a_system_message_for_other_conversations_is_no_default() -> None:
    template = SMOLLM2_INSTRUCT.replace("messages[0]['role'] != 'system'", "think")
    assert format_of(template) == "chatml"
    assert default_system(template) == ""
    assert default_system(SMOLLM2_INSTRUCT.replace("!= 'system'", "== 'system'")) == ""


def test_long_templates_are_unknown() -> None:
    assert format_of(SMOLLM2_INSTRUCT + " " * 70_000) == ""
    assert default_system(SMOLLM2_INSTRUCT + " " * 70_000) == ""


@pytest.mark.parametrize(
    "text",
    [
        "{% if a %}{% endif %}", "{% if a %}{% elif b %}", "{% if a %}'<|im_start|>system\na<|im_end|>'",
        "{% if a %}{% elif not system %}'<|im_start|>system\na<|im_end|>'", "{% elif b %}",
        "{% if ", "{% if a %}", "{%-", "<|im_start|>system\n'\\", "'<|im_start|>system\n", "\"'", "{{ '",
        "'<|im_start|>system\na<|im_end|>'", "<|user|>\n' + x", "<|im_end|> ", "\n ", "[INST] ", "<|a",
    ],
)  # fmt: skip
def test_no_text_takes_more_than_its_length(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that tries every end for every beginning takes many minutes for these."""
    monkeypatch.setattr(chat_templates, "MAX_TEMPLATE", 1 << 30)
    many = text * (400_000 // len(text))
    default_system(SMOLLM2_INSTRUCT + many)
    for before in (
        "<|im_end|>",
        "<|im_start|>",
        "'<|im_start|>system\n",
        "<|user|>\n' + ",
        "<|end_header_id|>",
    ):
        format_of(before + many)
        default_system(many + SMOLLM2_INSTRUCT + before)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "x"),
        (None, ""),
        (5, ""),
        ([], ""),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "tool_use", "template": "t"}], ""),
        ([5, {"name": "default"}], ""),
    ],
)
def test_the_template_in_a_config(value: object, text: str) -> None:
    assert template_text(value) == text


class Letters(Tokenizer):
    """Ids are characters, and control tokens beyond them: what a format renders, as text."""

    vocab_size = 0x120000
    eos_ids = frozenset()
    adds_bos = True

    def __init__(self, bos: str) -> None:
        texts = {part for f in CHAT_FORMATS.values() for part in f.control_tokens} | {bos}
        self.special_tokens = {text: 0x110000 + i for i, text in enumerate(sorted(texts))}
        self.bos_id = self.special_tokens[bos]

    def encode_ordinary(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode_bytes(self, token: int) -> bytes:
        names = {i: text for text, i in self.special_tokens.items()}
        return names[token].encode() if token in names else chr(token).encode()


def ours(name: str, bos: str, messages: list[Message]) -> str:
    tokenizer = Letters(bos)
    return tokenizer.decode(CHAT_FORMATS[name].render(tokenizer, messages))


def rendered(template: str, messages: list[Message], bos: str, eos: str) -> str:
    """As transformers renders it."""
    sandbox = pytest.importorskip("jinja2.sandbox")

    def fail(message: str) -> None:
        raise AssertionError(message)

    environment: Any = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = fail
    turns = [{"role": message.role, "content": message.content} for message in messages]
    compiled = environment.from_string(template)
    return str(compiled.render(messages=turns, add_generation_prompt=True, bos_token=bos, eos_token=eos))


DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
BOS = {"llama2": "<s>", "llama3": "<|begin_of_text|>", "chatml": "", "zephyr": ""}


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_genuine_templates_render_what_our_formats_do(model: str, messages: list[Message]) -> None:
    """But for what ours leave out: dates, BOS where the vocabulary has it, and default system messages."""
    name, template = KNOWN[model]
    found = rendered(template, messages, BOS[name], "</s>")
    if model in ("Llama 3.1 Instruct", "Llama 3.2 Instruct"):
        assert DATES in found
        if SYSTEM not in messages:  # theirs is there without one
            messages = [Message("system", ""), *messages]
        found = found.replace(DATES, "")
    if name == "chatml" and SYSTEM not in messages:
        messages = [Message("system", default_system(template)), *messages]
    expected = ours(name, BOS[name] or "<s>", messages)
    assert found == (expected if BOS[name] else expected.removeprefix("<s>"))


@pytest.mark.parametrize("name", CHAT_FORMATS)
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_our_templates_render_what_our_formats_do(name: str, messages: list[Message]) -> None:
    bos = BOS[name] or "<s>"
    template = template_for(name, bos)
    assert rendered(template, messages, "unused", "unused") == ours(name, bos, messages)


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_our_templates_are_recognised(name: str) -> None:
    assert format_of(template_for(name, "")) == format_of(template_for(name, "<s>")) == name
    assert default_system(template_for(name, "")) == ""
    for part in CHAT_FORMATS[name].control_tokens:
        assert isinstance(part, Control)
        assert part in template_for(name, "")


def test_an_unknown_format_has_no_template() -> None:
    assert template_for("", "<s>") == template_for("alpaca", "<s>") == ""
