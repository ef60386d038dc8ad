"""What is in the history as files: to read, or all of it as JSON. No model is needed.

A story's file of schema "llamatui.story/1" has model, tokenizer, memory, note, sampling, nodes and shown.
Every node is a token, with an id, its parent's id (null: it begins a story), the token's id in the
vocabulary, the text that it completes, its author ("writer" or "model"), and `begins` where it is the first
of what its author wrote at one time. `shown` are the ids of the path that was on the screen. Chats: see
`chat_export`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llamatui.app import chat_export, story_export
from llamatui.app.history.saved import Saved
from llamatui.app.text_file import name_from, named_path, write_text
from llamatui.errors import UsageError

if TYPE_CHECKING:
    from llamatui.app.conversation import Turn
    from llamatui.app.tree import Tree
    from llamatui.tokenizers.chat_formats import Message

SCHEMA = "llamatui.story/1"
ENDS = (".txt", ".md", ".json")


class SavedChat:
    """What of a chat is exported."""

    def __init__(self, saved: Saved) -> None:
        self.system = saved.system
        self.model = SimpleNamespace(name=saved.entry.model)
        self.format = SimpleNamespace(name=saved.chat_format)
        self.tree: Tree[Turn] = saved.tree()[0]
        saved.complete(self.tree)

    @property
    def turns(self) -> "list[Message]":
        return [turn.message for turn in self.tree.path]


def story_document(saved: Saved) -> dict[str, Any]:
    """The whole tree, for JSON."""
    nodes = []
    for number, (parent, token, text, author, _, begins) in saved.rows.items():  # type: ignore[misc]
        node = {"id": number, "parent": parent or None, "token": token, "text": text, "author": author}
        nodes.append(node | ({"begins": True} if begins else {}))
    return {
        "schema": SCHEMA,
        "model": saved.entry.model,
        "tokenizer": saved.tokenizer,
        "memory": saved.memory,
        "note": saved.note,
        "sampling": asdict(saved.sampling),
        "nodes": nodes,
        "shown": saved.shown,
    }


def as_json(saved: Saved) -> dict[str, Any]:
    if saved.entry.kind == "story":
        return story_document(saved)
    return chat_export.document(SavedChat(saved), saved.sampling)


def as_text(saved: Saved) -> str:
    if not saved.rows:
        return f"Typed: {saved.draft.typed}\n"
    return f"{saved.text}\n" if saved.entry.kind == "story" else chat_export.plain(SavedChat(saved))


def contents(saved: Saved, end: str) -> str:
    """What goes into a file whose name ends so: one of ENDS."""
    if end == ".json":
        return json.dumps(as_json(saved), ensure_ascii=False, indent=1) + "\n"
    if end == ".txt":
        return as_text(saved)
    if saved.entry.kind == "story":
        return story_export.markdown(saved.text) + "\n"
    return chat_export.markdown(SavedChat(saved))


def export(saved: Saved, name: str, *, overwrite: bool = False) -> Path:
    """Writes a document into a file; the end of its name says how.

    Raises:
        UsageError: The name ends in none of ENDS, or is taken.
        LlamatuiError: It cannot be written.
    """
    path = named_path(name)
    end = path.suffix.lower()
    if end not in ENDS:
        raise UsageError(
            f"expected a name that ends in .txt, .md or .json, found {path.name!r}", f"{path}.md"
        )
    try:
        return write_text(path, contents(saved, end), overwrite=overwrite)
    except FileExistsError:
        raise UsageError(f"{path} is there already", "choose another name, or add --force") from None


def suggested_name(saved: Saved) -> str:
    """A file name from the title, with the end that suits it."""
    end = ".txt" if saved.entry.kind == "story" else ".md"
    return name_from(saved.entry.title, saved.entry.uid[:8]) + end
