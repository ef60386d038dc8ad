"""Branches, and going back and forth between them."""

from hypothesis import given
from hypothesis import strategies as st

from llamatui.app.tree import Node, Place, Tree


class Letter(Node):
    def __init__(self, letter: str) -> None:
        super().__init__()
        self.letter = letter


def tree_of(*words: str) -> Tree[Letter]:
    """A branch for each word, all from the root; the last is shown."""
    tree: Tree[Letter] = Tree()
    for word in words:
        tree.mark()
        tree.cut(0)
        for letter in word:
            tree.add(Letter(letter))
    return tree


def shown(tree: Tree[Letter]) -> str:
    return "".join([node.letter for node in tree.path])


def test_a_branch_is_cut_and_another_grows_beside_it() -> None:
    tree = tree_of("cat")
    tree.mark()
    tree.cut(2)
    tree.add(Letter("r"))
    assert shown(tree) == "car"
    assert [node.letter for node in tree.siblings(tree.path[2])] == ["t", "r"]


def test_flipping_goes_round_and_shows_what_was_behind_each() -> None:
    tree = tree_of("one", "two", "six")
    assert [tree.flip(tree.path[0], 1) and shown(tree) for _ in range(3)] == ["one", "two", "six"]
    assert tree.flip(tree.path[0], -1)
    assert shown(tree) == "two"
    assert not tree.flip(tree.path[1], 1)


def test_a_branch_is_left_as_it_was_last_shown() -> None:
    tree = tree_of("cat")
    tree.cut(2)
    tree.add(Letter("r"))  # cat, car
    tree.go(tree.siblings(tree.path[2])[0])  # cat is shown
    first = tree.path[0]
    tree.cut(0)
    tree.follow(first)
    assert shown(tree) == "cat"


def test_undo_and_redo_walk_through_the_changes() -> None:
    tree = tree_of("one", "two")
    assert tree.can_undo
    assert tree.undo()
    assert shown(tree) == "one"
    assert tree.undo()
    assert shown(tree) == ""
    assert not tree.can_undo
    assert not tree.undo()
    assert tree.redo()
    assert tree.redo()
    assert shown(tree) == "two"
    assert not tree.redo()


def test_a_change_ends_redo() -> None:
    tree = tree_of("one", "two")
    tree.undo()
    tree.mark()
    tree.add(Letter("s"))
    assert shown(tree) == "ones"
    assert not tree.can_redo


def test_a_change_that_came_to_nothing_is_none() -> None:
    tree = tree_of("one", "two")
    tree.undo()
    tree.mark()
    tree.cut(1)
    tree.revert()
    assert shown(tree) == "one"
    assert tree.redo()
    assert shown(tree) == "two"
    assert not tree.can_redo
    assert tree.undo()
    assert tree.undo()
    assert shown(tree) == ""
    assert not tree.can_undo


def test_what_stands_beside_the_path_is_undone_too() -> None:
    tree: Tree[Letter] = Tree(beside=("",))
    for step in ("a", "memory", "b"):
        tree.mark()
        if step == "memory":
            tree.beside = (step,)
        else:
            tree.add(Letter(step))
    seen = [(shown(tree), *tree.beside)]
    while tree.undo():
        seen.append((shown(tree), *tree.beside))
    assert seen == [("ab", "memory"), ("a", "memory"), ("a", ""), ("", "")]
    while tree.redo():
        assert (shown(tree), *tree.beside) in seen
    assert (shown(tree), *tree.beside) == seen[0]


def test_a_node_that_should_not_be_there_is_forgotten_by_undo_too() -> None:
    tree = tree_of("ab")
    tree.mark()
    tree.remove_end()
    assert shown(tree) == "a"
    assert tree.undo()
    assert shown(tree) == ""
    assert [node.letter for node in tree.walk()] == ["a"]


@given(st.lists(st.tuples(st.sampled_from(["add", "cut", "flip", "undo", "redo"]), st.integers(0, 5))))
def test_whatever_happens_the_path_is_one_from_the_root_and_nothing_is_lost(steps) -> None:
    tree: Tree[Letter] = Tree()
    added = 0
    for what, n in steps:
        if what == "add":
            tree.mark()
            tree.add(Letter(str(n)))
            added += 1
        elif what == "cut":
            tree.mark()
            tree.cut(min(n, len(tree.path)))
        elif what == "flip" and tree.path:
            tree.flip(tree.path[min(n, len(tree.path) - 1)], 1)
        elif what in ("undo", "redo"):
            before = shown(tree)
            if getattr(tree, what)():
                assert getattr(tree, "redo" if what == "undo" else "undo")()
                assert shown(tree) == before
        parent: Node = tree.root
        for node in tree.path:
            assert node.parent is parent
            assert node in parent.children
            parent = node
        assert sum(1 for _ in tree.walk()) == added


def test_a_tree_is_restored_with_its_undo_and_redo() -> None:
    tree = tree_of("one", "two", "six")
    tree.undo()
    other = tree_of("one", "two", "six")
    twins = dict(zip([tree.root, *tree.walk()], [other.root, *other.walk()], strict=True))
    places = [Place(twins[place.end], place.beside) for place in tree.places]
    other.restore(Place(twins[tree.end], tree.beside), places, tree.at)
    assert shown(other) == shown(tree) == "two"
    for step in ("undo", "undo", "redo", "redo", "redo", "redo"):
        assert getattr(tree, step)() == getattr(other, step)()
        assert shown(tree) == shown(other)


def test_all_but_growing_is_an_edit() -> None:
    tree = tree_of("cat")
    before = tree.edits
    tree.add(Letter("s"))
    assert tree.edits == before
    for change in (tree.mark, lambda: tree.cut(2), lambda: tree.go(tree.root), tree.undo):
        before = tree.edits
        change()
        assert tree.edits > before
    tree.add(Letter("x"))
    before = tree.edits
    tree.remove_end()
    assert tree.edits > before
