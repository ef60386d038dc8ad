"""Going to the branch on which something was found."""

import pytest

from llamatui.app.history.branch import turn_to
from llamatui.app.history.snapshot import Document
from llamatui.app.story import Story


@pytest.fixture
def branching(story: Document) -> Story:
    """A story that says "the hen sat", and said "the hen ran far" and "the hen ran home" before."""
    content = story.content
    assert isinstance(content, Story)
    content.write("the hen")
    begun = len(content.path)
    for words in ("ran far", "ran home", "Sät"):
        content.tree.mark()
        content.tree.cut(begun)
        content.write(words)
    return content


@pytest.mark.parametrize(
    ("sought", "text"),
    [
        ("far", "the hen ran far"),
        ("home ran", "the hen ran home"),
        ("HOM", "the hen ran home"),
        ("hen fär zebra", "the hen ran far"),
        ('"ran home"', "the hen ran home"),
        ("(home)?", "the hen ran home"),
        ("he ome fa", "the hen ran far"),  # words begin so
    ],
)
def test_the_branch_with_most_of_the_words_is_shown_and_undo_goes_back(
    sought: str, text: str, branching: Story
) -> None:
    assert turn_to(branching.tree, sought)
    assert branching.text == text
    assert branching.tree.undo()
    assert branching.text == "the hen Sät"


@pytest.mark.parametrize("sought", ["hen", "sat", "zebra", "", "ome", "n"])
def test_where_no_branch_has_more_nothing_changes(sought: str, branching: Story) -> None:
    before = branching.tree.here, len(branching.tree.places)
    assert not turn_to(branching.tree, sought)
    assert (branching.tree.here, len(branching.tree.places)) == before


def test_signs_of_a_script_without_spaces_and_signs_alone(branching: Story) -> None:
    for words, sought in (("大小狗x", "小狗"), ("큰강아지", "강아지"), ("so?!", "?!"), ("🐉", "🐉")):
        before = len(branching.path)
        branching.tree.mark()
        branching.write(words)
        branching.tree.mark()
        branching.tree.cut(before)
        assert turn_to(branching.tree, sought)
        assert branching.text.endswith(words)
        branching.tree.undo()


def test_an_empty_tree_stays_so(story: Document) -> None:
    assert not turn_to(story.content.tree, "hen")
