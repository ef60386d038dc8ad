"""A story or a conversation as the history has it: read, checked, and made into what a room works with."""

import json
import sqlite3
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from llamatui.app.history.draft import Draft
from llamatui.app.history.rows import Kind, Row, TokenRow, TurnRow, read_rows, readable, text_of
from llamatui.app.sampling import Sampling
from llamatui.errors import HistoryError, LlamatuiError

if TYPE_CHECKING:
    from llamatui.app.conversation import Turn
    from llamatui.app.engine import OverflowPolicy
    from llamatui.app.history.snapshot import Document
    from llamatui.app.model import LoadedModel
    from llamatui.app.story import Token
    from llamatui.app.tree import Node, Tree


LATEST = 250_000_000_000.0  # a moment that Python still has a date for


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the list."""

    uid: str
    kind: Kind
    title: str
    pinned: bool
    created: float
    changed: float
    model: str
    words: int


COLUMNS = "uid, kind, title, pinned, created, changed, model, words"


def entry_from(row: Iterable[Any]) -> Entry:
    """Of COLUMNS. A damaged title shows as what it is: nothing depends on it."""
    uid, kind, title, pinned, created, changed, model, words = row
    return Entry(
        str(uid), kind, readable(title), bool(pinned), _number(created), _number(changed), readable(model),
        int(_number(words)),
    )  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < LATEST else 0.0


@dataclass(frozen=True, slots=True)
class Partial:
    """What was said of an answer that was still being given."""

    text: str
    ids: tuple[int, ...]
    grows: bool
    """It makes the last answer longer."""


@dataclass(frozen=True, slots=True)
class Saved:
    """All of a document. `restore` makes it one that is open.

    Attributes:
        rows: By number, in order.
        end: Number of the last node that is shown; 0: the root, as elsewhere here.
        chosen: (node, index of the child that was shown last).
        places, at: For undo and redo: (last node, what stands beside), and which of them was shown.
        forgotten: Tokens or turns at the front that did not fit the context.
        context: Most positions to hold; None: what the model has.
        overflow, memory, note: Of a story.
        system, chat_format, partial: Of a chat.
    """

    entry: Entry
    revision: int
    rows: dict[int, Row]
    model_path: str
    model_sha256: str
    tokenizer: str
    backend: str
    sampling: Sampling
    draft: Draft
    context: int | None
    overflow: "OverflowPolicy"
    memory: str
    note: str
    system: str
    chat_format: str
    end: int
    chosen: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, tuple[str, ...]], ...]
    at: int
    forgotten: int
    partial: Partial | None

    @property
    def text(self) -> str:
        """What a story says."""
        return "".join([str(self.rows[number][2]) for number in self.shown])

    @property
    def shown(self) -> list[int]:
        """Numbers of the nodes from the first to the end."""
        return _path(self.rows, self.end)

    def tree(self) -> "tuple[Tree[Any], dict[Node, int]]":
        """The tree, without the answer that was not finished, and the number of each node."""
        from llamatui.app.conversation import Turn
        from llamatui.app.story import Token
        from llamatui.app.tree import Node, Place, Tree
        from llamatui.tokenizers.chat_formats import Message

        tree: Tree[Any] = Tree()
        nodes: dict[int, Node] = {0: tree.root}
        node: Token | Turn
        for number, row in self.rows.items():
            if self.entry.kind == "story":
                parent, token, text, author, pending, begins = cast(TokenRow, row)
                node = Token(token, text, cast(Any, author), pending=pending, begins=begins)
            else:
                parent, role, content, ids, stopped = cast(TurnRow, row)
                known = None if ids is None else tuple(json.loads(ids))
                node = Turn(Message(cast(Any, role), content, known), stopped=stopped)
            node.parent = nodes[parent]
            node.parent.children.append(node)
            nodes[number] = node
        for number, index in self.chosen:
            nodes[number].chosen = index
        beside = (self.memory, self.note) if self.entry.kind == "story" else ()
        places = [Place(nodes[number], texts) for number, texts in self.places]
        tree.restore(Place(nodes[self.end], beside), places, self.at)
        return tree, {node: number for number, node in nodes.items()}

    def restore(self, model: "LoadedModel", sha256: str = "") -> "Document":
        """Opens it with a model, the one it was written with or another.

        Token ids are kept where it is the same model; else the words are encoded anew.

        Args:
            sha256: Of the model file; "" if nobody knows. The vocabulary is compared in any case.

        Raises:
            ModelError: A chat, and the model has no chat format.
        """
        from llamatui.app.conversation import Conversation, Turn
        from llamatui.app.history.snapshot import Document
        from llamatui.app.story import Story

        tree, numbers = self.tree()
        is_same = not (sha256 and self.model_sha256) or sha256 == self.model_sha256
        content: Story | Conversation
        if self.entry.kind == "story":
            content = Story(model, self.context, self.overflow)
            content.tree = tree
            is_same = is_same and speaks(model, tree)
            if not is_same:
                content = content.told_to(model)
        else:
            content = Conversation(model, self.system, context=self.context)
            content.tree = tree
            is_same = is_same and knows(model, tree)
            if not is_same:
                content = content.told_to(model)
                content.system = self.system
        document = Document(content, self.sampling, sha256)
        document.uid, document.created = self.entry.uid, self.entry.created
        document.draft = self.draft
        document.stored = self.revision, dict(self.rows)
        if is_same:
            content.forgotten = self.forgotten
            document.adopt(numbers)
        else:
            document.adopt_other()
        # What a process that was killed left half done; the next `save` writes it as it is then.
        if isinstance(content, Story):
            content.finish(None)
        elif self.partial is not None:
            says = is_same and decodes(model, self.partial.ids, self.partial.text)
            self.complete(content.tree, self.partial.ids if says else None)
        elif isinstance(content.tree.end, Turn) and content.tree.end.message.role == "user":
            content.tree.follow(content.tree.end)  # another answer did not come: the one before is there
        return document

    def complete(self, tree: "Tree[Turn]", ids: tuple[int, ...] | None = None) -> None:
        """Puts the answer that was not finished into the tree, as a turn that was stopped."""
        from llamatui.app.conversation import Turn
        from llamatui.tokenizers.chat_formats import Message

        if self.partial is None:
            return
        if not self.partial.grows:
            tree.add(Turn(Message("assistant", self.partial.text, ids), stopped=True))
            return
        turn = tree.path[-1]
        before = turn.message
        known = None if ids is None or before.ids is None else before.ids + ids
        turn.message, turn.stopped = Message("assistant", before.content + self.partial.text, known), True


def speaks(model: "LoadedModel", tree: "Tree[Token]") -> bool:
    """Whether all tokens of a story mean the same in the vocabulary of `model`."""
    tokenizer = model.tokenizer
    size = min(tokenizer.vocab_size, model.checkpoint.config.vocab_size)
    for token in tree.walk():
        if token.id >= size:
            return False
        if token.pending:
            continue
        data, before = tokenizer.decode_bytes(token.id), token.parent
        while isinstance(before, type(token)) and before.pending:  # it ends a character
            data = (tokenizer.decode_bytes(before.id) if before.id < size else b"") + data
            before = before.parent
        text = data.decode("utf-8", "replace")  # less a space where it began the story once
        if not (text.endswith(token.text) and (token.text or not text.strip(" "))):
            return False
    return True


def knows(model: "LoadedModel", tree: "Tree[Turn]") -> bool:
    """Whether the ids of all answers mean their words in the vocabulary of `model`."""
    return all(
        turn.message.ids is None or decodes(model, turn.message.ids, turn.message.content)
        for turn in tree.walk()
    )


def decodes(model: "LoadedModel", ids: tuple[int, ...], text: str) -> bool:
    size = min(model.tokenizer.vocab_size, model.checkpoint.config.vocab_size)
    if any(token >= size for token in ids):
        return False
    # The space that begins an answer is dropped or not, by what stands before it.
    return model.tokenizer.decode(ids).lstrip(" ") == text.lstrip(" ")


# Reading. A file is not to be trusted: what is not as it must be is a ValueError, KeyError or TypeError.


def read_saved(connection: sqlite3.Connection, uid: str) -> Saved:
    """
    Raises:
        HistoryError: It is not there, or damaged.
    """
    connection.execute("BEGIN")  # one moment, whoever writes
    try:
        row = connection.execute(
            f"""SELECT id, revision, model_path, model_sha256, tokenizer, settings, state, {COLUMNS}
            FROM documents WHERE uid = ?""",
            (uid,),
        ).fetchone()
        if row is None:
            raise HistoryError(f"{uid[:8]} is no longer in the history", "llamatui history list")
        entry = entry_from(row[7:])
        try:
            return _saved(entry, row, list(read_rows(connection, row[0], entry.kind)))
        except (ValueError, KeyError, TypeError, RecursionError, LlamatuiError) as error:
            raise HistoryError(
                f"“{entry.title}” ({uid[:8]}) is damaged in the history: {error!s:.99}",
                "the others can be opened",
            ) from error
    finally:
        connection.execute("COMMIT")


def _saved(entry: Entry, row: tuple[Any, ...], table: list[tuple[Any, ...]]) -> Saved:
    settings, state = json.loads(row[5]), json.loads(row[6])
    rows: dict[int, Row] = {}
    children: dict[int, int] = {0: 0}
    for number, *values in table:
        rows[_whole(number, range(1, 1 << 31))] = (
            _token(values) if entry.kind == "story" else _turn(values, rows)
        )
        children[rows[number][0]] += 1  # the parent is known: it has a smaller number
        children[number] = 0
    end = _whole(state["end"], children)
    width = 2 if entry.kind == "story" else 0
    beside = [tuple(map(text_of, texts)) for texts in state["beside"] if len(texts) == width]
    places = tuple(
        (_whole(number, children), beside[_whole(index, range(len(beside)))])
        for number, index in state["places"]
    )
    return Saved(
        entry=entry,
        revision=_whole(row[1]),
        rows=rows,
        model_path=text_of(row[2]),
        model_sha256=text_of(row[3]),
        tokenizer=text_of(row[4]),
        backend=text_of(settings["backend"]),
        sampling=_sampling(settings["sampling"]),
        draft=_draft(settings.get("draft", {})),
        context=None if settings["context"] is None else max(_whole(settings["context"]), 2),
        overflow=_overflow(settings.get("overflow", "stop")),
        memory=text_of(settings.get("memory", "")),
        note=text_of(settings.get("note", "")),
        system=text_of(settings.get("system", "")),
        chat_format=text_of(settings.get("chat_format", "")),
        end=end,
        chosen=tuple(
            (_whole(number, children), _whole(index, range(children[number])))
            for number, index in state["chosen"]
        ),
        places=places,
        at=_whole(state["at"], range(len(places))),
        # Older versions wrote more than there is, where a text was taken back behind a shift.
        forgotten=min(_whole(state["forgotten"]), len(_path(rows, end))),
        partial=_partial(state.get("partial"), rows.get(end)),
    )


def _path(rows: Mapping[int, Row], end: int) -> list[int]:
    """Numbers of the nodes from the first to `end`."""
    path = []
    while end:
        path.append(end)
        end = rows[end][0]
    return path[::-1]


def _whole(value: Any, among: Container[int] = range(1 << 31)) -> int:
    if type(value) is not int or value not in among:
        raise ValueError(f"the number {value!r:.20} is out of range")
    return value


def _token(values: list[Any]) -> TokenRow:
    parent, token, text, author, pending, begins = values
    if author not in ("writer", "model"):
        raise ValueError(f"unknown author {author!r:.20}")
    return _whole(parent), _whole(token), text_of(text), author, bool(pending), bool(begins)


def _turn(values: list[Any], rows: Mapping[int, Row]) -> TurnRow:
    parent, role, content, ids, stopped = values
    above = rows.get(_whole(parent))
    if role != ("user" if above is None or above[1] == "assistant" else "assistant"):
        raise ValueError(f"the role {role!r:.20} is not in turn")
    if ids is not None:
        _ids(json.loads(ids))
    return parent, role, text_of(content), ids, bool(stopped)


def _ids(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError("expected a list of ids")
    return tuple(_whole(value) for value in values)


def _partial(value: Any, end: Row | None) -> Partial | None:
    if value is None:
        return None
    partial = Partial(text_of(value["text"]), _ids(value["ids"]), bool(value["grows"]))
    if end is None or end[1] != ("assistant" if partial.grows else "user"):
        raise ValueError("an answer without a question")
    return partial


def _sampling(values: Any) -> Sampling:
    if not isinstance(values, dict):
        raise ValueError("expected an object of sampling settings")
    known: dict[str, Any] = {}
    for field in fields(Sampling):
        value = values.get(field.name, field.default)
        if type(value) is not type(field.default) and type(value) is not int:
            raise ValueError(f"{field.name} is {value!r:.20}")
        known[field.name] = value
    return Sampling(**known)


def _draft(values: Any) -> Draft:
    if not isinstance(values, dict):
        raise ValueError("expected an object of what was typed")
    known = {name: values[name] for name in ("typed", "page", "memory", "note", "system") if name in values}
    edits = tuple((_whole(index), text_of(text)) for index, text in values.get("edits", ()))
    return Draft(**{name: text_of(text) for name, text in known.items()}, edits=edits)


def _overflow(value: Any) -> "OverflowPolicy":
    if value not in ("stop", "shift", "error"):
        raise ValueError(f"unknown overflow policy {value!r:.20}")
    return cast("OverflowPolicy", value)
