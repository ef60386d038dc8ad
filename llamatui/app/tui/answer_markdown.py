"""Markdown of a model: streams, shows all that was said, and looks the same however it arrived.

Three things differ from Textual's own. HTML is text, which would vanish else and take the paragraph before it
along. There are no link definitions, which a stream has forgotten by the time they are used. And a line that
so far could still become anything, as `-` could be a list, a rule or make a heading of the line above, waits
for its next character instead of flashing through all of that.
"""

import re
from functools import cache

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.geometry import Size
from textual.reactive import Reactive
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownTable, MarkdownTableContent
from textual.widgets.markdown import MarkdownBlock, MarkdownFence, MarkdownStream

from llamatui.app.tui.flow import printable

_UNDECIDED = re.compile(r"^[ \t]*(?:[-=*_+#>|`~: \t]+|\d+[.)]?)$")


class Code(MarkdownFence):
    """Long lines wrap: what needs scrolling sideways looks as if it were cut."""

    DEFAULT_CSS = """
    Code, Code:light {
        overflow: hidden hidden; margin: 0 0 1 0; background: $surface; color: $foreground;
        & > Label { width: 1fr; padding: 1 2; }
    }
    """

    @property
    def allow_horizontal_scroll(self) -> bool:
        return False


class TableCells(MarkdownTableContent):
    def compose(self) -> ComposeResult:
        for cell in super().compose():
            cell.tooltip = None  # it would be read as markup, which the model's words are not
            yield cell


class Table(MarkdownTable):
    def compose(self) -> ComposeResult:
        self._headers, self._rows = self._get_headers_and_rows()
        yield TableCells(self._headers, self._rows)


class VirtualSize(Reactive[Size]):
    """A widget that grew is laid out once: no scroll bar comes or goes, for which Textual does it twice."""

    def __init__(self) -> None:
        super().__init__(Size(0, 0), repaint=False)


OWN_BLOCKS: dict[str, type[MarkdownBlock]] = {"fence": Code, "code_block": Code, "table_open": Table}


def growing(block: type[MarkdownBlock]) -> type[MarkdownBlock]:
    return type(block.__name__, (block,), {"virtual_size": VirtualSize()})


class AnswerMarkdown(Markdown):
    BLOCKS = {name: growing(OWN_BLOCKS.get(name, block)) for name, block in Markdown.BLOCKS.items()}  # noqa: RUF012 (Textual's own type)
    virtual_size = VirtualSize()
    DEFAULT_CSS = """
    AnswerMarkdown {
        padding: 0;
        & > *:last-child { margin-bottom: 0; }
        & MarkdownHeader { margin: 0 0 1 0; content-align: left middle; color: $foreground; }
        & MarkdownH1, & MarkdownH2 { text-style: bold; color: $accent; background: transparent; }
        & MarkdownH3, & MarkdownH4, & MarkdownH5, & MarkdownH6 { text-style: bold; }
        & MarkdownBlockQuote { margin: 0 0 1 0; background: $background; border-left: outer $border-blurred; }
        & MarkdownBullet { color: $text-muted; }
        & MarkdownTable, & MarkdownTable:light { background: $background; }
        & MarkdownTableContent { keyline: thin $border-blurred; & > .header { color: $foreground; } }
        & MarkdownHorizontalRule { border-bottom: solid $border-blurred; }
    }
    """

    def __init__(self, text: str = "") -> None:
        # A model's links may lead anywhere.
        super().__init__(printable(text), parser_factory=parser, open_links=False)
        self._stream: MarkdownStream | None = None
        self._held = ""
        self._line = ""  # what was written of the last line

    async def write(self, text: str) -> None:
        """Adds to the text."""
        if self._stream is None:
            self._stream = Markdown.get_stream(self)
            self._line = self.source.rpartition("\n")[2]
        text = self._held + printable(text)
        begun = "" if "\n" in text else self._line
        last = text.rpartition("\n")[2]
        self._held, self._line = (last, begun) if _UNDECIDED.match(begun + last) else ("", begun + last)
        await self._stream.write(text[: len(text) - len(self._held)])

    async def finish(self) -> None:
        """There is no more, for now."""
        held, self._held = self._held, ""
        if self._stream is not None:
            await self._stream.write(held)
            stream, self._stream = self._stream, None
            await stream.stop()


@cache
def parser() -> MarkdownIt:
    # Nothing opens a link here, and "main.py" would look like one: .py is a country.
    return MarkdownIt("gfm-like", {"html": False, "linkify": False}).disable("reference")


def code_blocks(text: str) -> list[str]:
    """The code in a text, also what stands in lists, and what was not finished."""
    return [token.content for token in parser().parse(text) if token.type in ("fence", "code_block")]
