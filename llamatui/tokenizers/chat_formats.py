"""Chat formats as data: how a conversation becomes token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llamatui.tokenizers.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str
    ids: tuple[int, ...] | None = None
    """Of an assistant's message: the ids it was generated as, used instead of encoding `content` again."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    name: str

    def render(self, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
        """Ids of the whole conversation, up to where the assistant's next words go."""
        ids = tokenizer.encode(f"[INST] {messages[-1].content} [/INST]", bos=True)
        return ids

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that end the assistant's turn."""
        return tokenizer.eos_ids


LLAMA2 = ChatFormat("llama2")
CHAT_FORMATS = {f.name: f for f in (LLAMA2,)}


def chat_format_for(tokenizer: Tokenizer, name: str = "") -> ChatFormat:
    """The format called `name`, or the one that the vocabulary's special tokens belong to."""
    return CHAT_FORMATS[name or "llama2"]
