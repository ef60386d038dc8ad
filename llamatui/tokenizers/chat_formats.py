"""Chat formats as data: how a conversation becomes token ids.

What people write is always encoded as plain text: typing `<|eot_id|>` or `</s>` gives the characters, never
the control token. Only the texts of a `ChatFormat` itself produce control tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from llamatui.errors import ModelError, UsageError
from llamatui.tokenizers.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str
    ids: tuple[int, ...] | None = None
    """Of an assistant's message: the ids it was generated as, used instead of encoding `content` again."""


class Control(str):
    """The text of a control token, as opposed to plain text."""

    __slots__ = ()


Parts = tuple[str, ...]
"""Plain text and `Control` tokens, in order. Plain text that meets is encoded as one."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    name: str
    system: tuple[Parts, Parts]
    """What stands before and after the content of such a message."""
    user: tuple[Parts, Parts]
    assistant: tuple[Parts, Parts]
    """Before: also what asks the assistant to speak."""
    answer: tuple[str, str] = ("", "")
    """Plain text around an assistant's `content`, but not around its `ids`, which carry their own."""
    start: Parts | None = None
    """In front of the conversation. None: BOS, if prompts start with it in this vocabulary."""
    system_in_user: bool = False
    """The system message is part of the content of the user message that follows it."""
    by_name_only: bool = False
    """Never chosen for a vocabulary that has its control tokens: they tell too little."""
    strips: bool = True
    """Drop white space around contents, as the reference does."""

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts of the control tokens that a vocabulary must have."""
        parts = (self.start or (), *self.system, *self.user, *self.assistant)
        return frozenset(part for side in parts for part in side if isinstance(part, Control))

    def render(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Ids of the whole conversation, up to where the assistant's next words go.

        If the last message is the assistant's, it stays open, to be continued: nothing stands behind its
        content or ids. Else the assistant's turn is opened after it.
        """
        parts = self._start(tokenizer)
        folded = ""  # a system message that waits for its user message
        for i, message in enumerate(messages):
            is_last = i == len(messages) - 1
            before, after = {"system": self.system, "user": self.user, "assistant": self.assistant}[
                message.role
            ]
            content = message.content
            if message.role == "system" and self.system_in_user:
                folded += "".join((*before, content, *after))
                if is_last:
                    parts += [*self.user[0], folded.strip(), *self.user[1]]
            elif message.role == "assistant":
                parts += [
                    *before,
                    *self._answer(tokenizer, message, is_open=is_last),
                    *(() if is_last else after),
                ]
            else:
                parts += [*before, self._stripped(folded + content), *after]
                folded = ""
        if not messages or messages[-1].role != "assistant":
            parts += self.assistant[0]
        return _encode(tokenizer, parts)

    def system_length(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
        """How many leading ids of `render` hold BOS and the system messages, for a context shift to keep."""
        parts = self._start(tokenizer)
        leading = list(takewhile(lambda message: message.role == "system", messages))
        if self.system_in_user:
            parts += self.user[0] if leading else [part for part in self.user[0] if isinstance(part, Control)]
        for message in leading:
            before, after = self.system
            parts += [
                *before,
                message.content if self.system_in_user else self._stripped(message.content),
                *after,
            ]
        # Where text meets, the last ids may differ from those of the whole conversation.
        pairs = zip(_encode(tokenizer, parts), self.render(tokenizer, messages), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that end the assistant's turn."""
        ends = {
            tokenizer.special_tokens.get(part, -1) for part in self.assistant[1] if isinstance(part, Control)
        }
        return tokenizer.eos_ids | (ends - {-1})

    def _start(self, tokenizer: Tokenizer) -> list[str | int]:
        if self.start is None:
            return [tokenizer.bos_id] if tokenizer.adds_bos else []
        return list(self.start)

    def _answer(self, tokenizer: Tokenizer, message: Message, *, is_open: bool) -> Iterable[str | int]:
        if message.ids is not None:
            ids = message.ids
            return ids[:-1] if ids and ids[-1] in self.stop_ids(tokenizer) else ids
        if not is_open:
            return [self.answer[0] + self._stripped(message.content) + self.answer[1]]
        # White space at the end of an open answer is the writer's choice; an empty one is not begun.
        content = message.content.lstrip() if self.strips else message.content
        return [self.answer[0] + content] if content else []

    def _stripped(self, content: str) -> str:
        return content.strip() if self.strips else content


def _encode(tokenizer: Tokenizer, parts: Iterable[str | int]) -> list[int]:
    ids: list[int] = []
    text = ""
    for part in parts:
        if isinstance(part, str) and not isinstance(part, Control):
            text += part
            continue
        ids += tokenizer.encode_ordinary(text)
        text = ""
        ids.append(part if isinstance(part, int) else tokenizer.special_tokens[part])
    return ids + tokenizer.encode_ordinary(text)


def _headers(role: str) -> tuple[Parts, Parts]:
    start = (Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), "\n\n")
    return start, (Control("<|eot_id|>"),)


def _chatml(role: str) -> tuple[Parts, Parts]:
    return (Control("<|im_start|>"), f"{role}\n"), (Control("<|im_end|>"), "\n")


LLAMA2 = ChatFormat(
    "llama2",
    system=(("<<SYS>>\n",), ("\n<</SYS>>\n\n",)),
    user=((Control("<s>"), "[INST] "), (" [/INST]",)),
    assistant=((), (Control("</s>"),)),
    answer=(" ", " "),
    start=(),  # each user message has its own
    system_in_user=True,
)
"""Source: Meta's llama, `chat_completion` in `llama/generation.py`."""

LLAMA3 = ChatFormat(
    "llama3",
    system=_headers("system"),
    user=_headers("user"),
    assistant=_headers("assistant"),
    start=(Control("<|begin_of_text|>"),),
)
"""Source: Meta's llama-models, `encode_dialog_prompt` in `models/llama3/chat_format.py`."""

CHATML = ChatFormat(
    "chatml", system=_chatml("system"), user=_chatml("user"), assistant=_chatml("assistant"), strips=False
)
"""Source: the chat template of SmolLM2, without the system message that it adds of its own."""


def _zephyr(role: str) -> tuple[Parts, Parts]:
    return (f"<|{role}|>\n",), (Control("</s>"), "\n")


ZEPHYR = ChatFormat(
    "zephyr",
    system=_zephyr("system"),
    user=_zephyr("user"),
    assistant=_zephyr("assistant"),
    by_name_only=True,
    strips=False,
)
"""Source: the chat template of TinyLlama-1.1B-Chat and Zephyr, where only `</s>` is a control token.

The template has no BOS. Both models' cards give what it renders to a pipeline that puts BOS in front, so BOS
is there where prompts start with it. Like Hugging Face's Llama tokenizers of that time, SentencePiece puts a
space in front of what follows `</s>`.
"""

CHAT_FORMATS = {chat_format.name: chat_format for chat_format in (LLAMA3, CHATML, LLAMA2, ZEPHYR)}


def chat_format_named(name: str) -> ChatFormat:
    """Raises UsageError: no format is called so."""
    if name not in CHAT_FORMATS:
        raise UsageError(
            f"expected a chat format, found {name!r}", f"--chat-format {' | '.join(CHAT_FORMATS)}"
        )
    return CHAT_FORMATS[name]


def chat_format_for(tokenizer: Tokenizer, name: str = "") -> ChatFormat:
    """The format called `name`, or the first one whose control tokens the vocabulary has.

    Raises:
        UsageError: No format is called so.
        ModelError: The vocabulary lacks control tokens of the format, or has those of none.
    """
    working = [f for f in CHAT_FORMATS.values() if f.control_tokens <= tokenizer.special_tokens.keys()]
    choices = ", ".join(f.name for f in working)
    if not name:
        for chat_format in working:
            if not chat_format.by_name_only:
                return chat_format
        raise ModelError(
            "expected a vocabulary with the control tokens of a chat format, found one without",
            "this model continues text: llamatui story, or llamatui generate. "
            "No --chat-format is told by its vocabulary",
        )
    chosen = chat_format_named(name)
    missing = sorted(chosen.control_tokens - tokenizer.special_tokens.keys())
    if missing:
        raise ModelError(
            f"the chat format {name} needs the tokens {' '.join(missing)}, which this vocabulary lacks",
            f"these would work: --chat-format {choices}"
            if working
            else "no --chat-format fits this vocabulary",
        )
    return chosen
