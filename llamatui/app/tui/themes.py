"""Our two themes: warm paper by day, and the same page at night. One accent colour."""

from textual.theme import Theme


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
