"""Going to the branch on which something was found."""

import re
import unicodedata
from collections.abc import Container
from typing import Any

from llamatui.app.conversation import Turn
from llamatui.app.history.fulltext import to_index
from llamatui.app.tree import Node, Tree

SHARED = 8  # tokens before the place where a branch begins, with which its first word may begin


def turn_to(tree: Tree[Any], sought: str) -> bool:
    """Shows the branch that has most of what `sought` has and the shown one has not; undo goes back.

    Returns:
        Whether there is one.
    """
    shown = spelled("".join([_text(node) for node in tree.path]))
    missing = [words for words in map(_beginning, sought.split()) if words not in shown]
    path = {tree.root, *tree.path}

    def found(end: Node) -> int:
        text = spelled(_behind(end, path))
        return sum(words in text for words in missing)

    ends = [node for node in tree.walk() if not node.children and node not in path]
    best = max(ends, key=found, default=None)
    if best is None or not found(best):
        return False
    tree.mark()
    tree.go(best)
    return True


def spelled(text: str) -> str:
    """The words of a text as the index compares them, without case and accents; then what stands there."""
    plain = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text.casefold()))
    words = re.sub(r"[\W_]+", " ", to_index(unicodedata.normalize("NFC", plain))).strip()
    return f" {words} {text}"


def _beginning(word: str) -> str:
    """Of words in a `spelled` text, one letter excepted; signs stand for themselves."""
    words = spelled(word).removesuffix(word).rstrip()
    return words + " " * (len(word) == 1) if words else word


def _behind(end: Node, path: Container[Node]) -> str:
    """What the branch says that ends here, from a little before it leaves the path."""
    texts: list[str] = []
    node, more = end, SHARED
    while node.parent is not None and more:
        more -= node in path
        texts.append(_text(node))
        node = node.parent
    return "".join(reversed(texts))


def _text(node: Any) -> str:
    return f"{node.message.content}\n" if isinstance(node, Turn) else str(node.text)
