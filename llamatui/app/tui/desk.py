"""Where the page lies while it is edited, and what of the story that changes."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from textual.containers import Center
from textual.message import Message

from llamatui.app.tui.flow import printable
from llamatui.app.tui.keys import key_of

if TYPE_CHECKING:
    from llamatui.app.tui.page_editor import PageEditor


class Desk(Center):
    """Where the page lies to be edited. Ctrl+S puts it back with the changes, Esc as it was.

    Changes that were left come back when the same page is edited again.
    """

    DEFAULT_CSS = """
    Desk { height: 1fr; display: none; }
    """

    @dataclass
    class Cleared(Message):
        """`text` is None where the page stays as it was."""

        text: str | None
        said: str

    def __init__(self) -> None:
        super().__init__()
        self._page = ""
        self._left: dict[str, str] = {}  # what pages were changed to, and not saved

    @property
    def editor(self) -> "PageEditor":
        """Made when it is needed first: the room is there sooner without it."""
        from llamatui.app.tui.page_editor import PageEditor

        for editor in self.query(PageEditor):
            return editor
        editor = PageEditor(highlight_cursor_line=False)
        self.mount(editor)
        return editor

    def begin(self, page: str, at: int) -> str:
        """Shows the page with the cursor at its character `at`; returns what there is to say about it."""
        self._page = page
        again = self._left.pop(page, None)
        text = page if again is None else again
        self.display = True
        self.editor.load_text(text)
        before = text[:at]
        self.editor.move_cursor((before.count("\n"), len(before) - (before.rfind("\n") + 1)))
        self.editor.focus()
        self.call_after_refresh(self.editor.scroll_cursor_visible)
        return "editing" if again is None else "editing what you left"

    def draft(self, page: str) -> str:
        """What that page was changed to, and not saved; "" if it was not."""
        text = self.editor.text if self.display else self._left.get(page, "")
        return "" if text == page else text

    def keep(self, page: str, text: str) -> None:
        """Takes `text` for what that page was changed to."""
        self._left[page] = text

    def on_page_editor_done(self, event: "PageEditor.Done") -> None:
        event.stop()
        self.display = False
        if event.text == self._page:
            self.post_message(self.Cleared(None, "nothing changed"))
        elif event.saved:
            self.post_message(self.Cleared(event.text, "edited"))
        else:
            self._left[self._page] = event.text
            self.post_message(
                self.Cleared(None, f"as it was; {key_of(self, 'story.edit')} brings your changes back")
            )


def smallest_change(story: str, edited: str) -> tuple[int, int, str]:
    """(start, end, text): characters start..end of `story` become `text`, so that it reads as `edited`.

    `edited` was made from `printable(story)`; where it is the same, `story` stays as it is.
    """
    shown = printable(story)
    same = shared(shown, edited)
    behind = shared(shown[same:][::-1], edited[same:][::-1])
    # Where each character of the story is shown: a tab is four, a carriage return none.
    places = list(accumulate((len(printable(c)) for c in story), initial=0))
    start = bisect_right(places, same) - 1
    end = max(bisect_left(places, len(shown) - behind), start)
    return start, end, edited[places[start] : len(edited) - (len(shown) - places[end])]


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many at the front are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
