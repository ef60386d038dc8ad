"""Beside the page: its length, its branches, and whether the model reads something that it does not show."""

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Label

if TYPE_CHECKING:
    from llamatui.app.story import Story


class StorySide(Vertical):
    DEFAULT_CSS = """
    StorySide {
        height: auto; padding-top: 1;
        & Label { padding: 0 2; width: 1fr; }
        & .title { text-style: bold; }
        & .quiet { color: $text-muted; }
        & #kept { margin-top: 1; display: none; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Label("story", classes="title")
        yield Label("a blank page", id="shape", classes="quiet", markup=False)
        yield Label("", id="kept", classes="quiet", markup=False)

    def show(self, story: "Story", words: str) -> None:
        """`words`: how many there are."""
        from llamatui.app.tui.branches import Branches

        self.query_one("#shape", Label).update(f"{words} · {len(story.path):,} tokens")
        if not self.query(Branches):
            self.mount(Branches(), before="#kept")
        self.query_one(Branches).show(story)
        kept = [name for name, text in (("memory", story.memory), ("note", story.note)) if text]
        label = self.query_one("#kept", Label)
        label.display = bool(kept)
        label.update(f"✎ {' and '.join(kept)} set (m)")
