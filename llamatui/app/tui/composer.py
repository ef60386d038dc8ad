"""Where a message is written: grows with its text, Enter sends, a paste never does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import TextArea

from llamatui.app.tui.flow import visible
from llamatui.app.tui.slash import Suggestion, is_command, message
from llamatui.app.tui.slash_menu import SlashMenu


class Editor(TextArea):
    """Survives what Textual 8.2's own does not."""

    def get_line(self, line_index: int) -> Text:
        # What is pasted, or comes from a file, is shown as safely as a model's words, and stays as it is.
        return Text(visible(self.document.get_line(line_index)), end="", no_wrap=True)

    def render_line(self, y: int) -> Strip:
        # A placeholder cannot be wrapped to no columns at all.
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(self.size.width)

    def scroll_cursor_visible(self, center: bool = False, animate: bool = False) -> Offset:
        # Undo takes the scrollbar away while the cursor still stands on a line that is gone.
        if self.cursor_location[0] >= self.wrapped_document.document.line_count:
            return Offset(0, 0)
        return super().scroll_cursor_visible(center, animate)


def pass_on(widget: Widget, event: events.Key) -> None:
    """Lets the composer have a letter that is no key of this widget."""
    if event.is_printable and event.character and event.key not in widget.screen.active_bindings:
        event.stop()
        widget.post_message(Composer.Typed(event.character))


class Composer(Editor):
    """Ctrl+J is a newline in every terminal; Shift+Enter where the terminal tells it from Enter.

    A slash begins a command only if it was typed, as the first character: what is pasted, or put here to be
    edited, is a message whatever it looks like.
    """

    BINDING_GROUP_TITLE = "where you write"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "send", id="chat.send"),
        Binding("ctrl+j,shift+enter", "new_line", "new line", show=False, id="chat.new-line"),
        Binding("tab", "complete", "complete the command", show=False, id="chat.complete"),
        Binding("escape", "close_menu", "close the commands", show=False, id="chat.close-commands"),
        Binding(
            "up",
            "leave_or_up",
            "messages",
            tooltip="to the messages; Esc or typing comes back",
            id="chat.messages",
        ),
        Binding("ctrl+g", "screen.edit_outside", "editor", tooltip="write in $EDITOR", id="chat.editor"),
        Binding("pageup", "screen.scroll_transcript('page_up')", "scroll up", show=False, id="chat.page-up"),
        Binding(
            "pagedown",
            "screen.scroll_transcript('page_down')",
            "scroll down",
            show=False,
            id="chat.page-down",
        ),
        Binding(
            "ctrl+home",
            "screen.scroll_transcript('scroll_home')",
            "first message",
            show=False,
            id="chat.first",
        ),
        Binding(
            "ctrl+end", "screen.scroll_transcript('scroll_end')", "last message", show=False, id="chat.last"
        ),
    ]
    DEFAULT_CSS = """
    Composer, Composer:focus {
        height: auto; min-height: 2; max-height: 9; padding: 0 2; background: $background;
        border: none; border-top: solid $border-blurred; scrollbar-size-vertical: 1;
        border-title-color: $accent; border-title-background: $background;
        & .text-area--cursor-line { background: transparent; }
    }
    Composer:focus { border-top: solid $accent; }
    """

    @dataclass
    class Submitted(Message):
        """It left the composer; who cannot use it gives it back."""

        text: str
        command: bool
        """Whether it is one, and no message."""

    class Left(Message):
        """The cursor went up from the first line."""

    @dataclass
    class Typed(Message):
        """A letter that is no key where it was typed: it belongs here."""

        character: str

    def __init__(
        self, placeholder: str, menu: SlashMenu, suggestions: Callable[[str], list[Suggestion]]
    ) -> None:
        """`suggestions`: of what a command could become."""
        super().__init__(placeholder=placeholder, highlight_cursor_line=False)
        self._menu = menu
        self._suggestions = suggestions
        self._slash_typed = False
        self._closed_at: str | None = None  # the text with which Esc closed the menu

    @property
    def is_command(self) -> bool:
        return self._slash_typed and is_command(self.text)

    def put(self, text: str, *, command: bool = False) -> None:
        """Replaces the text, with the cursor behind it."""
        self._slash_typed = command
        self.text = text
        self.move_cursor(self.document.end)
        self._offer()

    def give_back(self, text: str, *, command: bool = False) -> None:
        """Puts `text` in front of what was typed since."""
        since = self.text
        self.put(f"{text}\n{since}" if since else text, command=command and not since)

    def action_submit(self) -> None:
        self._offer()
        choice = self._menu.choice
        if choice is not None and choice.text.strip() != self.text.strip():
            self.put(choice.text, command=True)
            if not choice.complete:
                return
        text, command = self.text, self.is_command
        if self._slash_typed and not command:
            text = message(text)
        self.post_message(self.Submitted(text, command))  # first: it is a turn before it is no draft any more
        self.put("")  # at once: what is typed while the room is busy with it is no part of it

    def type_in(self, character: str) -> None:
        """As if it had been typed here."""
        self.focus()
        self._slash_typed = self._slash_typed or (character == "/" and min(self.selection) == (0, 0))
        self.insert(character)

    def choose(self, choice: Suggestion) -> None:
        """Takes one from the menu."""
        self.put(choice.text, command=True)
        if choice.complete:
            self.action_submit()

    def _offer(self) -> None:
        if not self.text.startswith("/"):
            self._slash_typed = False
        if self.text != self._closed_at:
            self._closed_at = None
        shown = self.is_command and self._closed_at is None
        self._menu.offer(self._suggestions(self.text) if shown else [])

    def on_text_area_changed(self) -> None:
        self._offer()

    async def _on_key(self, event: events.Key) -> None:
        if event.character == "/" and min(self.selection) == (0, 0):
            self._slash_typed = True
        elif not event.is_printable:
            # At once: else the bindings would come after keys that are still in the queue.
            active = self.screen.active_bindings.get(event.key)
            if active is not None and active.node is self and active.enabled:
                event.stop()
                event.prevent_default()
                await self.run_action(active.binding.action)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._menu.is_open if action in ("complete", "close_menu") else True

    def action_new_line(self) -> None:
        self.replace("\n", *self.selection, maintain_selection_offset=False)
        self.scroll_cursor_visible()

    def action_complete(self) -> None:
        if self._menu.choice:
            self.put(self._menu.choice.text, command=True)

    def action_close_menu(self) -> None:
        self._closed_at = self.text
        self._menu.offer([])

    def action_cursor_down(self, select: bool = False) -> None:
        if self._menu.is_open:
            self._menu.move(1)
        else:
            super().action_cursor_down(select)

    def action_leave_or_up(self) -> None:
        if self._menu.is_open:
            self._menu.move(-1)
        elif self.wrapped_document.location_to_offset(self.cursor_location).y == 0:
            self.post_message(self.Left())
        else:
            self.action_cursor_up()

    async def _on_paste(self, event: events.Paste) -> None:
        if min(self.selection) == (0, 0):
            self._slash_typed = False
        # Terminals send a paste's line ends as carriage returns.
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        await super()._on_paste(events.Paste(text))
        event.prevent_default()
        event.stop()
