"""Beside the page: its length, its branches, and whether the model reads something that it does not show."""

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Label

from llamatui.app.tui.keys import key_of

if TYPE_CHECKING:
    from llamatui.app.story import Story


BLANK = "a blank page"


def headed(text: str) -> Content:
    """How long the story is, under its heading."""
    return Content.assemble(("story", "bold $foreground"), "\n", text)


class StorySide(Vertical):
    DEFAULT_CSS = """
    StorySide {
        height: auto; padding-top: 1; color: $text-muted;
        & Label { padding: 0 2; width: 1fr; }
        & #kept { margin-top: 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Label(headed(BLANK), id="shape")

    def show(self, story: "Story", words: str) -> None:
        """`words`: how many there are."""
        from llamatui.app.tui.branches import Branches

        shape = f"{words} · {len(story.path):,} tokens" if story.path else BLANK
        self.query_one("#shape", Label).update(headed(shape))
        if not self.query(Branches):  # nothing to be seen of them before: the first paint need not wait
            self.mount(Branches(), Label(id="kept", markup=False))
        self.query_one(Branches).show(story)
        kept = [name for name, text in (("memory", story.memory), ("note", story.note)) if text]
        label = self.query_one("#kept", Label)
        label.display = bool(kept)
        label.update(f"✎ {' and '.join(kept)} set ({key_of(self, 'story.memory')})")
