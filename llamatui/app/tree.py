"""What a story and a chat have in common: nothing that was written is lost, it only stands on another branch.

A tree of nodes, and the path through it that is shown. Taking words back, trying others and editing never
delete a node: they move the end of the path. So undo and redo are a list of places where the end was.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar


class Node:
    """One step of a path; a story's is a token, a chat's a message.

    Attributes:
        parent: None for the root and for a node that is in no tree yet.
        children: What was tried behind it, in the order it was tried.
        chosen: Index of the child that was shown last.
    """

    __slots__ = ("children", "chosen", "parent")

    def __init__(self) -> None:
        self.parent: Node | None = None
        self.children: list[Any] = []
        self.chosen = 0


N = TypeVar("N", bound=Node)


class Tree(Generic[N]):
    """Attributes:
    root: Before everything; not a part of any path.
    path: The nodes that are shown, from the first to the end.
    edits: Goes up with every change but `add`: while it stands still, all that is new is the path's end.
    """

    def __init__(self) -> None:
        self.root = Node()
        self.path: list[N] = []
        self.edits = 0
        self._past: list[Node] = []  # where the path ended before each change
        self._future: list[Node] = []

    @property
    def end(self) -> Node:
        """Last node of the path, or the root."""
        return self.path[-1] if self.path else self.root

    def mark(self) -> None:
        """What follows is one change, which `undo` takes back."""
        self.edits += 1
        if not self._past or self._past[-1] is not self.end:
            self._past.append(self.end)
        self._future.clear()

    def revert(self) -> None:
        """Ends the path where it ended at the last `mark`, as if nothing had been begun there."""
        if self._past:
            self.go(self._past.pop())

    def add(self, node: N) -> None:
        """Puts `node` behind the end of the path, beside what stood there before."""
        end = self.end
        node.parent = end
        end.chosen = len(end.children)
        end.children.append(node)
        self.path.append(node)

    def remove_end(self) -> None:
        """Takes the last node out of the tree: it should never have been there.

        Raises:
            ValueError: Something stands behind it.
        """
        node = self.path[-1]
        if node.children:
            raise ValueError("something stands behind this node")
        self.edits += 1
        parent = node.parent
        assert parent is not None
        parent.children.remove(node)
        parent.chosen = max(len(parent.children) - 1, 0)
        self.path.pop()
        self._past = [place for place in self._past if place is not node]
        self._future = [place for place in self._future if place is not node]

    def cut(self, length: int) -> None:
        """Ends the path after its first `length` nodes."""
        self.edits += 1
        del self.path[length:]

    def go(self, node: Node) -> None:
        """Shows the path that ends at `node`."""
        self.edits += 1
        path: list[Any] = []
        while node.parent is not None:
            path.append(node)
            node.parent.chosen = node.parent.children.index(node)
            node = node.parent
        self.path = path[::-1]

    def follow(self, node: Node) -> None:
        """Shows the path through `node`, on to the end that was shown last behind it."""
        while node.children:
            node = node.children[node.chosen]
        self.go(node)

    def siblings(self, node: N) -> list[N]:
        """`node` and what was tried in its place."""
        assert node.parent is not None
        return node.parent.children

    def flip(self, node: N, step: int) -> bool:
        """Shows the sibling `step` further, in a circle; False where there is none."""
        all_ = self.siblings(node)
        if len(all_) < 2:
            return False
        self.mark()
        self.follow(all_[(all_.index(node) + step) % len(all_)])
        return True

    @property
    def can_undo(self) -> bool:
        return any(place is not self.end for place in self._past)

    @property
    def can_redo(self) -> bool:
        return bool(self._future)

    def undo(self) -> bool:
        """Ends the path where it ended before the last change; False if there was none."""
        return self._step(self._past, self._future)

    def redo(self) -> bool:
        """Takes the last `undo` back; False if there was none, or something changed since."""
        return self._step(self._future, self._past)

    def _step(self, places: list[Node], others: list[Node]) -> bool:
        here = self.end
        while places:
            place = places.pop()
            if place is not here:
                others.append(here)
                self.go(place)
                return True
        return False

    def places(self) -> tuple[list[Node], list[Node]]:
        """Where the path ended before each change: what `undo` goes back to, and what `redo` does."""
        return list(self._past), list(self._future)

    def restore(self, end: Node, past: Iterable[Node], future: Iterable[Node]) -> None:
        """Shows the path to `end`, with `places` as they were."""
        self.go(end)
        self._past, self._future = list(past), list(future)

    def walk(self) -> Iterator[N]:
        """Every node, each before those behind it, older branches first."""
        waiting: list[Any] = list(reversed(self.root.children))
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))
