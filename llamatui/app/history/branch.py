"""Going to the branch on which something was found."""

import unicodedata
from typing import Any

from llamatui.app.conversation import Turn
from llamatui.app.tree import Node, Tree

TURNED = "Another branch is shown: it has what was looked for. Undo goes back."


def turn_to(tree: Tree[Any], sought: str) -> bool:
    """Shows the branch that has most of the words, or signs, of `sought`; undo goes back.

    Returns:
        Whether that is another branch than was shown before.
    """
    words = {plain(word) for word in sought.split()}

    def found(end: Node) -> int:
        text = plain(text_until(end))
        return sum(word in text for word in words)

    ends = [node for node in tree.walk() if not node.children]
    best = max(ends, key=found, default=tree.end)
    if found(best) <= found(tree.end):
        return False
    tree.mark()
    tree.go(best)
    return True


def plain(text: str) -> str:
    """As the index compares words: without case and accents."""
    signs = unicodedata.normalize("NFKD", text.casefold())
    return "".join([sign for sign in signs if not unicodedata.combining(sign)])


def text_until(end: Any) -> str:
    """What the branch says that ends in this token or turn."""
    texts: list[str] = []
    while end.parent is not None:
        texts.append(end.message.content if isinstance(end, Turn) else end.text)
        end = end.parent
    return "".join(reversed(texts))
