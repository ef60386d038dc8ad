"""What a story or a conversation is as rows, and what of it is new since the history last saw it.

While words only come in at the end of what is shown, a look costs what is new; after any other change of a
story (`Tree.edits`), the whole tree is gone through. What the model thought of its tokens is not kept: it can
be asked again.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

from llamatui.app.conversation import Conversation, Turn
from llamatui.app.history.draft import Draft
from llamatui.app.history.rows import Kind, Row
from llamatui.app.sampling import Sampling
from llamatui.app.story import Story, Token
from llamatui.app.tree import Node, Tree
from llamatui.tokenizers.chat_formats import Message

LONGEST_TITLE = 60

Said = bool | tuple[Message, bool]


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written.

    Attributes:
        rows: By number; None: that node is no more.
        whole: Whether these are all rows, and any others are of an older tree.
        columns: Of the document's own row.
        touches: Whether what one reads or writes has changed, and not only settings.
        is_blank: Whether nothing is left to be kept.
    """

    rows: dict[int, Row | None]
    whole: bool
    columns: dict[str, str]
    touches: bool
    is_blank: bool

    def then(self, later: "Change") -> "Change":
        """This change and a later one as one."""
        return replace(
            later,
            rows=later.rows if later.whole else self.rows | later.rows,
            whole=self.whole or later.whole,
            touches=self.touches or later.touches,
        )


class Document:
    """A story or a chat that is open in a room.

    Attributes:
        content: Told to another model, another object takes its place.
        sampling: What the room's panel says.
        sha256: Of the model file; "" as long as nobody knows.
        draft: What was typed beside it.
        uid: Its name in the history; a new one where another process wrote to the same document.
        opened: When it began to be open here, by the monotonic clock.
        stored: What the history held when this was opened from it: revision and rows.
    """

    def __init__(self, content: Story | Conversation, sampling: Sampling, sha256: str = "") -> None:
        self.content = content
        self.sampling = sampling
        self.sha256 = sha256
        self.draft = Draft()
        self.uid = uuid.uuid4().hex
        self.created = time.time()
        self.opened = time.monotonic()
        self.stored: tuple[int, dict[int, Row]] = (0, {})
        self._tree: Tree[Any] | None = None  # the one that was seen last
        self._edits = -1
        self._numbers: dict[Node, int] = {}
        self._next = 1
        self._said: dict[Node, Said] = {}
        self._chosen: dict[int, int] = {}  # child that is shown, of nodes with several
        self._places: dict[str, Any] = {}
        self._seen: tuple[dict[str, Any], dict[str, Any]] = ({}, {})  # settings and state
        self._is_other = False  # what is in the history is another tree of the same words

    @property
    def kind(self) -> Kind:
        return "story" if isinstance(self.content, Story) else "chat"

    def adopt(self, numbers: dict[Node, int]) -> None:
        """Takes the content, as it is, for what the history has. `numbers`: of the root and all nodes."""
        self._tree = self.content.tree
        self._numbers = numbers
        self._next = max(numbers.values()) + 1
        self._said = {node: _said(node) for node in numbers}
        self.look()

    def adopt_other(self) -> None:
        """The same, where the history has other tokens: its rows stay until something changes."""
        self.look()
        self._is_other = True

    def look(self, partial: str = "", ids: Sequence[int] = ()) -> Change | None:
        """What has changed since the last look; None: nothing, or nothing was ever written or typed.

        Args:
            partial: Of a chat: what has been said of an answer that is still being given ...
            ids: ... and its ids.
        """
        tree = self.content.tree
        whole = tree is not self._tree
        has_begun = bool(tree.root.children)
        is_blank = not (has_begun or self.draft.as_json())
        if whole:
            if is_blank and self._tree is None:
                return None
            self._tree, self._edits, self._next = tree, -1, 1
            self._numbers, self._said, self._chosen = {tree.root: 0}, {}, {}
        rows = self._rows(tree)
        settings, state = self._settings(), self._state(partial, ids)
        seen = (settings, state)
        if not (rows or whole) and seen == self._seen:
            return None
        touches = bool(rows) or whole or state != self._seen[1] or not has_begun
        self._seen = seen
        if self._is_other:
            self._is_other = False
            whole = True
            numbers = self._numbers
            rows = {number: _row(node, numbers) for node, number in numbers.items() if number}
        return Change(rows, whole, self._columns(settings, state), touches, is_blank)

    def _rows(self, tree: Tree[Any]) -> dict[int, Row | None]:
        """Of the nodes that are new, changed or gone."""
        numbers, rows = self._numbers, dict[int, Row | None]()
        nodes: list[Node]
        if tree.edits == self._edits and self.kind == "story":
            nodes = list(takewhile(lambda node: node not in numbers, reversed(tree.path)))[::-1]
        else:
            nodes = list(tree.walk())
            alive = {tree.root, *nodes}
            for node in [node for node in numbers if node not in alive]:
                rows[numbers.pop(node)] = None
                del self._said[node]
            self._chosen.clear()
        for node in nodes:
            said = _said(node)
            if node not in numbers:
                numbers[node] = self._next
                self._next += 1
            elif self._said[node] == said:
                continue
            self._said[node] = said
            rows[numbers[node]] = _row(node, numbers)
        for parent in [node.parent for node in nodes if node.parent is not None]:
            if len(parent.children) > 1:
                self._chosen[numbers[parent]] = parent.chosen
        if tree.edits != self._edits:
            beside = list(dict.fromkeys(place.beside for place in tree.places))
            places = [[numbers[place.end], beside.index(place.beside)] for place in tree.places]
            self._places = {"places": places, "beside": beside, "at": tree.at}
        self._edits = tree.edits
        return rows

    def _settings(self) -> dict[str, Any]:
        content = self.content
        settings: dict[str, Any] = {"sampling": asdict(self.sampling), "context": content.context}
        if draft := self.draft.as_json():
            settings["draft"] = draft
        if isinstance(content, Story):
            return settings | {"overflow": content.overflow, "memory": content.memory, "note": content.note}
        return settings | {"system": content.system, "chat_format": content.format.name}

    def _state(self, partial: str, ids: Sequence[int]) -> dict[str, Any]:
        """Where in the tree one is."""
        content = self.content
        state: dict[str, Any] = {
            "end": self._numbers[content.tree.end],
            "chosen": sorted(self._chosen.items()),
            **self._places,
            "forgotten": min(content.forgotten, len(content.tree.path)),  # which undo makes shorter
        }
        if partial and isinstance(content, Conversation):
            state["partial"] = {"text": partial, "ids": list(ids), "grows": content.growing}
        return state

    def _columns(self, settings: dict[str, Any], state: dict[str, Any]) -> dict[str, str]:
        model = self.content.model
        return {
            "title": self._title(),
            "model": model.name,
            "model_path": str(model.path.absolute()),
            "model_sha256": self.sha256,
            "tokenizer": str(model.tokenizer_path.absolute()),
            # The backend changes by itself, so it is no reason to write.
            "settings": json.dumps({**settings, "backend": model.backend.name}),
            "state": json.dumps(state),
        }

    def _title(self) -> str:
        """From the first words that are shown, or were shown last; of a chat, from the first message.

        Where there are none, from what was typed.
        """
        tree = self.content.tree
        text = ""
        for node in tree.path or _shown_last(tree):
            if isinstance(node, Turn):
                return title_from(node.message.content)
            text += node.text
            if len(text) > 2 * LONGEST_TITLE:
                break
        return title_from(text or self.draft.typed)


def _shown_last(tree: Tree[Any]) -> Iterator[Any]:
    """The path that would follow if one had not taken everything back."""
    node = tree.root
    while node.children:
        yield (node := node.children[node.chosen])


def _said(node: Node) -> Said:
    """What of a node may change."""
    return (node.message, node.stopped) if isinstance(node, Turn) else isinstance(node, Token) and node.begins


def _row(node: Node, numbers: dict[Node, int]) -> Row:
    assert node.parent is not None
    parent = numbers[node.parent]
    if isinstance(node, Token):
        return parent, node.id, node.text, node.author, node.pending, node.begins
    assert isinstance(node, Turn)
    message = node.message
    ids = None if message.ids is None else json.dumps(message.ids)
    return parent, message.role, message.content, ids, node.stopped


def title_from(text: str) -> str:
    """The first words of a text, on one line."""
    line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    if len(line) <= LONGEST_TITLE:
        return line or "untitled"
    return (line[: LONGEST_TITLE + 1].rpartition(" ")[0] or line[:LONGEST_TITLE]).rstrip(",;:-") + "…"
