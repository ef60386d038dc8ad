"""The heat map's colours: how likely the model found each token.

One hue from the page's own background to its opposite, so that lightness alone says it, to every kind of eye.
Underlines mark the unlikely ones where colours are few or none.
"""

import math
from bisect import bisect_left
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

if TYPE_CHECKING:
    from llamatui.app.tui.page import Page

STEPS = (0.01, 0.05, 0.2, 0.5, 0.9)
"""A token is as hot as the number of steps that its probability does not reach."""

# (background, text), from likely to unlikely.
_DARK = (
    ("", ""), ("#1b2a3a", ""), ("#22405f", ""), ("#2b5a88", "#f0eee8"), ("#74acdf", "#101114"),
    ("#d8ebfc", "#101114"),
)  # fmt: skip
_LIGHT = (
    ("", ""), ("#e1ebf4", ""), ("#c2d8eb", ""), ("#9bc0e0", "#17181b"), ("#6f9fcd", "#0c0d0f"),
    ("#1c3d6b", "#ffffff"),
)  # fmt: skip
_FEW_DARK = (
    ("", ""), ("", ""), ("blue", "bright_white"), ("cyan", "black"), ("yellow", "black"),
    ("bright_white", "black"),
)  # fmt: skip
_FEW_LIGHT = (
    ("", ""), ("", ""), ("bright_cyan", "black"), ("cyan", "black"), ("blue", "bright_white"),
    ("black", "bright_white"),
)  # fmt: skip


def heat(probability: float) -> int:
    """0 for a likely token, up to 5 for the unlikeliest."""
    return len(STEPS) - bisect_left(STEPS, probability + 1e-9)


def ramp(*, dark: bool, few: bool) -> list[Style]:
    """A style for each heat. `few`: the terminal has 16 colours."""
    colours = (_FEW_DARK if dark else _FEW_LIGHT) if few else (_DARK if dark else _LIGHT)
    return [
        Style(color=text or None, bgcolor=background or None, underline=level >= 4 or None)
        for level, (background, text) in enumerate(colours)
    ]


def ramp_of(widget: Widget) -> list[Style]:
    """The styles that suit the theme and the terminal."""
    theme = widget.app.current_theme
    return ramp(dark=theme.dark, few=theme.ansi)


class Legend(Widget):
    """What the colours mean, on one line."""

    DEFAULT_CSS = """
    Legend { height: 1; width: 1fr; color: $text-muted; display: none; }
    """
    NAMES = (" > 90 % ", " > 50 % ", " > 20 % ", " > 5 % ", " > 1 % ", " rare ")
    SHORT = (" 90 % ", " 50 % ", " 20 % ", " 5 % ", " 1 % ", " rare ")

    def render_line(self, y: int) -> Strip:
        base = self.rich_style
        fits = len("likely ") + len("".join(self.NAMES)) <= self.size.width
        line = [Segment("likely ", base)] if fits else []
        names = self.NAMES if fits else self.SHORT
        line += [Segment(name, base + style) for name, style in zip(names, ramp_of(self), strict=True)]
        room = self.size.width - sum(len(segment.text) for segment in line)
        return Strip([Segment(" " * max(room // 2, 0), base), *line]).adjust_cell_length(
            self.size.width, base
        )


class Styles:
    """What each token of a page looks like, now. The same look is the same object."""

    def __init__(self, page: "Page") -> None:
        self._page = page
        self._of = page.get_component_rich_style
        self._ramp = ramp_of(page) if page.heat else []
        self._known: dict[tuple[str, int], Style] = {}

    def of(self, index: int) -> Style:
        token, page = self._page.tokens[index], self._page
        if index == page.cursor:
            return self._of("page--cursor")
        author = "forgotten" if index < page.forgotten else token.author
        level = 0
        if self._ramp and token.record is not None and token.record.logprob is not None:
            level = heat(math.exp(token.record.logprob))
        style = self._known.get((author, level))
        if style is None:
            style = self._of(f"page--{author}")
            if level:
                style += self._ramp[level]
            self._known[author, level] = style
        return style
