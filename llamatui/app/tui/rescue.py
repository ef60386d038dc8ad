"""Where a text goes that the history could not take: into a file that anybody can read."""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from llamatui.app import chat_export, store
from llamatui.app.conversation import Conversation
from llamatui.app.history.snapshot import Document


def rescue(documents: Sequence[tuple[Document, str]]) -> Path | None:
    """Writes what is shown of each document into one new file.

    Args:
        documents: Each with what has been said of an answer that is not in it yet.

    Returns:
        The file; None if there is nothing to write, or nowhere to.
    """
    texts = [text for document, partial in documents if (text := readable(document, partial))]
    data = ("\n\n\n".join(texts) + "\n").encode("utf-8", "replace")
    for folder in (store.data_folder, Path.cwd, tempfile.gettempdir) if texts else ():
        with suppress(OSError):  # then the next one
            return _written(Path(folder()), data)
    return None


def _written(folder: Path, data: bytes) -> Path:
    """A new file, for nobody else's eyes."""
    folder.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(".txt", "llamatui-unsaved-", folder)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
    except OSError:  # a full disk
        Path(name).unlink()
        raise
    return Path(name)


def readable(document: Document, partial: str = "") -> str:
    """What is shown of it, and what was typed beside it."""
    content, draft = document.content, document.draft
    typed = [
        draft.typed,
        draft.page,
        draft.memory,
        draft.note,
        draft.system,
        *(text for _, text in draft.edits),
    ]
    if isinstance(content, Conversation):
        text = chat_export.plain(content).rstrip() if content.turns else ""
        if partial:
            text += partial if content.growing else f"\n\n{content.model.name}: {partial}"
    else:
        text = content.text
    return "\n\n".join(filter(None, (text, *(f"Typed: {words}" for words in typed if words))))
