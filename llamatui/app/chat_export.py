"""Chats as files: all branches as JSON, or what is shown, to read.

A file of schema "llamatui.chat/1" has model, chat_format, system, sampling, nodes and shown. Every node has
an id, its parent's id (null: it begins a chat), a role, a text, and `stopped` if it was cut off; it stands
behind its parent. `shown` are the ids of the path that was on the screen.
"""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llamatui.app.text_file import name_from, named_path, write_text
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.app.conversation import Turn
    from llamatui.app.sampling import Sampling
    from llamatui.app.tree import Tree
    from llamatui.tokenizers.chat_formats import Message

SCHEMA = "llamatui.chat/1"


class Named(Protocol):
    @property
    def name(self) -> str: ...


class Chat(Protocol):
    """A `Conversation`, or what the history has of one."""

    system: str
    tree: "Tree[Turn]"

    @property
    def model(self) -> Named: ...

    @property
    def format(self) -> Named: ...

    @property
    def turns(self) -> "list[Message]": ...


def document(conversation: Chat, sampling: "Sampling") -> dict[str, Any]:
    """The whole tree, for JSON."""
    tree = conversation.tree
    ids = {turn: number for number, turn in enumerate(tree.walk())}
    nodes = []
    for turn, number in ids.items():
        node: dict[str, Any] = {
            "id": number,
            "parent": None if turn.parent is tree.root else ids[turn.parent],  # type: ignore[index]
            "role": turn.message.role,
            "text": turn.message.content,
        }
        if turn.stopped:
            node["stopped"] = True
        nodes.append(node)
    return {
        "schema": SCHEMA,
        "model": conversation.model.name,
        "chat_format": conversation.format.name,
        "system": conversation.system,
        "sampling": asdict(sampling),
        "nodes": nodes,
        "shown": [ids[turn] for turn in tree.path],
    }


def markdown(conversation: Chat) -> str:
    """What is shown, with a heading over each message."""
    names = {"user": "You", "assistant": conversation.model.name}
    parts = [f"# A chat with {conversation.model.name}"]
    if conversation.system:
        parts.append(f"*System prompt:* {conversation.system}")
    for turn in conversation.turns:
        parts += [f"## {names[turn.role]}", closed(turn.content.strip())]
    return "\n\n".join(parts) + "\n"


def plain(conversation: Chat) -> str:
    """What is shown, a name before each message."""
    parts = [f"System: {conversation.system}"] if conversation.system else []
    names = {"user": "You", "assistant": conversation.model.name}
    parts += [f"{names[turn.role]}: {turn.content.strip()}" for turn in conversation.turns]
    return "\n\n".join(parts) + "\n"


def closed(text: str) -> str:
    """`text` with the end of a code block that was not finished: what follows is no code."""
    fence = ""
    for line in text.splitlines():
        if match := re.match(r" *(`{3,}|~{3,})(.*)", line):
            mark, rest = match.groups()
            if not fence:
                fence = "" if mark[0] == "`" and "`" in rest else mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and not rest.strip():
                fence = ""
    return f"{text}\n{fence}" if fence else text


def save(conversation: Chat, sampling: "Sampling", name: str) -> Path:
    """Writes the whole tree to a new file.

    Raises:
        UsageError: The name does not end in .json, or is taken.
        LlamatuiError: It cannot be written.
    """
    path = named_path(name)
    if path.suffix.lower() != ".json":
        raise UsageError(
            f"expected a name that ends in .json, found {name}", "/export writes .md, .txt and .replay"
        )
    text = json.dumps(document(conversation, sampling), ensure_ascii=False, indent=1)
    return _write_new(path, text + "\n")


def export(conversation: Chat, sampling: "Sampling", name: str) -> Path:
    """Writes what is shown to a new file.

    Raises:
        UsageError: The name ends in neither .md nor .txt, or is taken.
        LlamatuiError: It cannot be written.
    """
    path = named_path(name)
    end = path.suffix.lower()
    if end not in (".md", ".txt"):
        raise UsageError(
            f"expected a name that ends in .md, .txt or .replay, found {name}", "/save writes .json"
        )
    return _write_new(path, markdown(conversation) if end == ".md" else plain(conversation))


def _write_new(path: Path, text: str) -> Path:
    try:
        return write_text(path, text)
    except FileExistsError:
        raise UsageError(f"{path} is there already", "choose another name") from None


def free_name(conversation: Chat, end: str) -> str:
    """A file name in this folder that is not taken, from the first words of the chat."""
    words = conversation.turns[0].content if conversation.turns else ""
    name = first = name_from(words, "chat")
    number = 1
    while Path(f"{name}{end}").exists():
        number += 1
        name = f"{first}-{number}"
    return f"{name}{end}"
