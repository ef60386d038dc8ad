"""What a command could become, above the composer, which keeps the focus."""

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from llamatui.app.tui.bars import one_line
from llamatui.app.tui.slash import Suggestion


class SlashMenu(OptionList, can_focus=False):
    BINDINGS: ClassVar[list[BindingType]] = []
    DEFAULT_CSS = """
    SlashMenu {
        display: none; height: auto; max-height: 9; padding: 0 1; background: $background;
        border: none; border-top: solid $border-blurred; scrollbar-size-vertical: 1;
        & > .option-list--option-highlighted { background: $surface; color: $foreground; text-style: bold; }
        & > .option-list--option-hover { background: $surface; }
        &:focus, &:blur { border: none; border-top: solid $border-blurred; }
    }
    """

    @dataclass
    class Chosen(Message):
        suggestion: Suggestion

    def __init__(self) -> None:
        super().__init__()
        self._offered: list[Suggestion] = []

    def offer(self, found: list[Suggestion]) -> None:
        """Shows `found`; nothing closes the menu."""
        if found == self._offered:
            return
        self._offered = found
        self.clear_options()
        labels = [one_line(one.label) for one in found]
        width = max(map(len, labels), default=0) + 3
        self.add_options(
            Option(Content.assemble(f" {label:<{width}}", (one.help, "dim")))
            for label, one in zip(labels, found, strict=True)
        )
        self.display = bool(found)
        self.highlighted = 0 if found else None

    @property
    def is_open(self) -> bool:
        return bool(self._offered)

    @property
    def choice(self) -> Suggestion | None:
        return self._offered[self.highlighted] if self._offered and self.highlighted is not None else None

    def move(self, step: int) -> None:
        if self.highlighted is not None:
            self.highlighted = (self.highlighted + step) % len(self._offered)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Chosen(self._offered[event.option_index]))
