"""Our three themes: warm paper by day, the same page at night, and one of high contrast. One accent colour.

Each has a second form in the terminal's own colours: where there are only 16 of them, or where NO_COLOR asks
for none, colours of ours would be rounded to whatever is near.
"""

import os

from textual.theme import Theme

NAMES = ("dark", "light", "contrast")


def _quiet(background: str, line: str, handle: str) -> dict[str, str]:
    """Rules and scrollbars that nobody notices until they look for them."""
    return {
        "border-blurred": line,
        "footer-background": background,
        "scrollbar": line,
        "scrollbar-hover": handle,
        "scrollbar-background": background,
        "scrollbar-background-hover": background,
        "scrollbar-background-active": background,
    }


DARK = Theme(
    name="dark",
    primary="#e0a458",
    secondary="#8fa3ad",
    accent="#e0a458",
    warning="#e5c07b",
    error="#e0787c",
    success="#8fb573",
    foreground="#dcd8d0",
    background="#17181b",
    surface="#1e1f23",
    panel="#1e1f23",
    dark=True,
    variables=_quiet("#17181b", "#34363c", "#55585f"),
)

LIGHT = Theme(
    name="light",
    primary="#9a4f12",
    secondary="#4a6472",
    accent="#9a4f12",
    warning="#8a6100",
    error="#b3262e",
    success="#3f6f2a",
    foreground="#2a2825",
    background="#faf8f3",
    surface="#f2efe8",
    panel="#f2efe8",
    dark=False,
    variables=_quiet("#faf8f3", "#d5d0c5", "#a8a294"),
)

CONTRAST = Theme(
    name="contrast",
    primary="#ffd400",
    secondary="#7fdbff",
    accent="#ffd400",
    warning="#ffb000",
    error="#ff8080",
    success="#80ff80",
    foreground="#ffffff",
    background="#000000",
    surface="#1a1a1a",
    panel="#1a1a1a",
    dark=True,
    text_alpha=1.0,
    variables={
        **_quiet("#000000", "#a0a0a0", "#ffffff"),
        # Quieter than the text, but never grey on grey: at least 7 to 1.
        "text-muted": "#d0d0d0",
        "text-disabled": "#b8b8b8",
        "foreground-muted": "#d0d0d0",
        "foreground-disabled": "#b8b8b8",
    },
)


def _in_terminal_colours(name: str, accent: str, quiet: str, *, dark: bool) -> Theme:
    """The theme `name` in the terminal's own colours, on its own background, which may be light or dark."""
    own = "ansi_default"
    return Theme(
        name=name,
        ansi=True,
        primary=accent,
        secondary=accent,
        accent=accent,
        warning=accent,
        error="ansi_red",
        success=accent,
        foreground=own,
        background=own,
        surface=own,
        panel=own,
        boost=own,
        dark=dark,
        variables={
            **_quiet(own, quiet, accent),
            "ansi-background": own,
            "ansi-foreground": own,
            "border": accent,
            "footer-key-foreground": accent,
            "scrollbar-active": accent,
            # No background of 16 goes with every colour in a line, and NO_COLOR takes it away.
            "block-cursor-background": own,
            "block-cursor-foreground": own,
            "block-cursor-text-style": "bold underline",
            "block-cursor-blurred-background": own,
            "block-cursor-blurred-foreground": own,
            "block-cursor-blurred-text-style": "bold underline",
            # Dim where that is quiet enough; the theme of high contrast has nothing quiet.
            **(
                {}
                if quiet != own
                else dict.fromkeys(("text-muted", "text-disabled", "foreground-muted"), own)
            ),
        },
    )


PLAIN = (
    _in_terminal_colours("dark", "ansi_yellow", "ansi_bright_black", dark=True),
    _in_terminal_colours("light", "ansi_blue", "ansi_bright_black", dark=False),
    _in_terminal_colours("contrast", "ansi_default", "ansi_default", dark=True),
)


def few_colours() -> bool:
    """Whether the terminal has 16 colours or fewer, or shall show none."""
    from rich.console import Console
    from textual.constants import COLOR_SYSTEM

    if "NO_COLOR" in os.environ:
        return True
    console = Console(color_system=COLOR_SYSTEM, force_terminal=True)  # type: ignore[arg-type]
    return console.color_system in (None, "standard", "windows")
