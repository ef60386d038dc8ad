"""The branches of a story, as a list that one can go through."""

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from llamatui.app.tui.flow import printable

if TYPE_CHECKING:
    from llamatui.app.story import Story, Token

LOOKED_AT = 400  # characters of a branch that are compared
DEEPEST = 6  # branches of branches are indented so far and no further


@dataclass(frozen=True, slots=True)
class Branch:
    node: "Token"
    """Where it begins."""
    depth: int
    words: str
    shown: bool
    """Whether the story goes through it."""
    ends: bool
    """Whether the story ends in it."""


def branches_of(story: "Story") -> list[Branch]:
    """What begins where the story does, or where several words were tried in one place."""
    path = set(story.path)
    found: list[Branch] = []
    last = -1  # the deepest that is shown
    waiting = _told_apart(story.tree.root.children, 0)
    while waiting:
        first, depth, words = waiting.pop()
        node = first
        while len(node.children) == 1:
            node = node.children[0]
        if first in path:
            last = len(found)
        found.append(Branch(first, depth, words, first in path, False))
        waiting += _told_apart(node.children, depth + 1)
    if last >= 0:
        found[last] = replace(found[last], ends=True)
    return found


def _told_apart(siblings: "list[Token]", depth: int) -> "list[tuple[Token, int, str]]":
    """(token, depth, first words) of each, without the words that all have in common; the last one first."""
    words = [_words(node) for node in siblings]
    same = 0
    if len(words) > 1 and len(set(words)) > 1:
        same = next(i for i, letters in enumerate(zip_longest(*words)) if len(set(letters)) > 1)
        same = words[0].rfind(" ", 0, same) + 1
    mark = "…" if same else ""
    return [
        (node, depth, mark + text[same:]) for node, text in reversed(list(zip(siblings, words, strict=True)))
    ]


def _words(node: "Token") -> str:
    """The first words of a branch, on one line."""
    text = node.text
    while len(text) < LOOKED_AT and len(node.children) == 1:
        node = node.children[0]
        text += node.text
    return " ".join(printable(text).split())


class Branches(OptionList):
    """Enter or a click goes there."""

    DEFAULT_CSS = """
    Branches, Branches:focus, Branches.-textual-compact {
        height: auto; max-height: 12; border: none; background: $background; padding: 0 1 0 2;
        scrollbar-size-vertical: 1; background-tint: transparent;
        text-wrap: nowrap; text-overflow: ellipsis;
        & > .option-list--option { padding: 0; }
        & > .option-list--option-highlighted {
            background: $background; color: $foreground; text-style: none;
        }
    }
    Branches:focus > .option-list--option-highlighted { text-style: reverse; }
    """

    @dataclass
    class Chosen(Message):
        node: "Token"

    def __init__(self) -> None:
        super().__init__(compact=True)
        self._branches: list[Branch] = []

    def show(self, story: "Story") -> None:
        branches = branches_of(story)
        if branches == self._branches:
            return
        self._branches = branches
        self.clear_options()
        self.add_options([Option(_line(branch)) for branch in branches])
        self.highlighted = next((i for i, branch in enumerate(branches) if branch.ends), None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Chosen(self._branches[event.option_index].node))


def _line(branch: Branch) -> Content:
    indent = "  " * min(branch.depth, DEEPEST)
    mark = ("● ", "$accent") if branch.ends else ("│ " if branch.shown else "○ ", "dim")
    return Content.assemble(indent, mark, (branch.words or "…", "" if branch.shown else "dim"))
