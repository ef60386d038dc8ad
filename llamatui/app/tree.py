"""What a story and a chat have in common: nothing that was written is lost, it only stands on another branch.

A tree of nodes, and the path through it that is shown. Taking words back, trying others and editing never
delete a node: they move the end of the path. So undo and redo are a list of places where the end was.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar


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


class Place(NamedTuple):
    """Where undo and redo lead to."""

    end: Node
    beside: tuple[str, ...]


class Tree(Generic[N]):
    """Attributes:
    root: Before everything; not a part of any path.
    path: The nodes that are shown, from the first to the end.
    beside: Texts that belong to no branch, which undo and redo bring back too.
    places: Before each change, and behind the last that was undone, oldest first.
    at: Which of them is shown, unless something changed since.
    edits: Goes up with every change but `add`: while it stands still, all that is new is the path's end.
    """

    def __init__(self, beside: tuple[str, ...] = ()) -> None:
        self.root = Node()
        self.path: list[N] = []
        self.beside = beside
        self.places = [self.here]
        self.at = 0
        self.edits = 0

    @property
    def end(self) -> Node:
        """Last node of the path, or the root."""
        return self.path[-1] if self.path else self.root

    @property
    def here(self) -> Place:
        return Place(self.end, self.beside)

    def mark(self) -> None:
        """What follows is one change, which `undo` takes back. If nothing follows, nothing is changed."""
        self.edits += 1
        if self.here != self.places[self.at]:
            self.places[self.at + 1 :] = [self.here]
            self.at += 1

    def revert(self) -> None:
        """All is as it was at the last `mark`, as if nothing had been begun there."""
        self._show(self.places[self.at])

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
        parent = node.parent
        assert parent is not None
        self.edits += 1
        parent.children.remove(node)
        parent.chosen = max(len(parent.children) - 1, 0)
        self.path.pop()
        self.at -= sum(place.end is node for place in self.places[: self.at + 1])
        self.places = [place for place in self.places if place.end is not node]

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
        return any(place != self.here for place in self.places[: self.at + 1])

    @property
    def can_redo(self) -> bool:
        here = self.here
        return here == self.places[self.at] and any(place != here for place in self.places[self.at + 1 :])

    def undo(self) -> bool:
        """Shows what was shown before the last change; False if there was none."""
        if not self.can_undo:
            return False
        self.mark()
        return self._step(-1)

    def redo(self) -> bool:
        """Takes the last `undo` back; False if there was none, or something changed since."""
        return self.can_redo and self._step(1)

    def _step(self, step: int) -> bool:
        here = self.here
        while self.places[self.at] == here:  # what was between may be gone
            self.at += step
        self._show(self.places[self.at])
        return True

    def _show(self, place: Place) -> None:
        self.go(place.end)
        self.beside = place.beside

    def take_over(self, other: "Tree[N]", twins: Mapping[Node, Node]) -> None:
        """Shows what `other` does, and undoes and redoes what it can.

        Args:
            twins: The node of this tree for each of `other`.
        """
        places = [Place(twins[place.end], place.beside) for place in other.places]
        self.restore(Place(twins[other.end], other.beside), places, other.at)

    def restore(self, here: Place, places: Sequence[Place], at: int) -> None:
        """Shows `here`, with `places` for undo and redo."""
        self.places, self.at = list(places), at
        self._show(here)

    def walk(self) -> Iterator[N]:
        """Every node, each before those behind it, older branches first."""
        waiting: list[Any] = list(reversed(self.root.children))
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))
