"""The story room: a page that two write on, the model and you."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input, Static

from llamatui.app.tui.bars import Status
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.flow import printable
from llamatui.app.tui.launch import Launch
from llamatui.app.tui.page import Page
from llamatui.app.tui.room import Room, swap_notice
from llamatui.app.tui.runner import Run, Runner
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:
    from llamatui.app.engine import Session
    from llamatui.app.model import LoadedModel
    from llamatui.app.tui.story import Story

OPENINGS = (
    "Once upon a time, there was a little dog named Max.",
    "Lily and Tom found a small box under the big tree.",
    "It was late at night. All the toys in the box woke up.",
)
CHOICES = frozenset(str(n) for n in range(1, len(OPENINGS) + 1))


class Opening(Horizontal):
    """One of the openings; a click takes it."""

    DEFAULT_CSS = """
    Opening {
        width: 72; max-width: 100%; height: auto; padding: 0 2; pointer: pointer;
        &:hover { background: $surface; }
        & .number { width: 3; color: $accent; text-style: bold; }
        & .text { width: 1fr; }
    }
    """

    @dataclass
    class Chosen(Message):
        text: str

    def __init__(self, number: int, text: str) -> None:
        super().__init__(Static(str(number), classes="number"), Static(text, classes="text"))
        self._text = text

    def on_click(self) -> None:
        self.post_message(self.Chosen(self._text))


class Openings(VerticalScroll):
    """The empty page: what one can do here."""

    DEFAULT_CSS = """
    Openings {
        align: center middle; height: 1fr; scrollbar-size-vertical: 1;
        & > Static { width: 72; max-width: 100%; height: auto; padding: 0 2; }
        & .title { text-style: bold; margin-bottom: 1; }
        & .hint { color: $text-muted; margin-top: 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static("A blank page. How does the story begin?", classes="title")
        for number, text in enumerate(OPENINGS, 1):
            yield Opening(number, text)
        yield Static("Press 1, 2 or 3, or write a beginning of your own below.", classes="hint")


class WritingLine(Input):
    """Where the writer's words come from."""

    DEFAULT_CSS = """
    WritingLine, WritingLine:focus {
        border: none; border-top: solid $border-blurred; background: $background; height: 2; padding: 0 2;
        background-tint: transparent;
    }
    WritingLine:focus { border-top: solid $accent; }
    """

    shortcuts: frozenset[str] = frozenset()
    """Keys that are not letters while the line is empty."""

    @dataclass
    class Shortcut(Message):
        key: str

    async def _on_key(self, event: events.Key) -> None:
        if event.key in self.shortcuts and not self.value:
            event.stop()
            event.prevent_default()
            self.post_message(self.Shortcut(event.key))

    def _on_paste(self, event: events.Paste) -> None:
        # An Input keeps only the first line.
        event.stop()
        event.prevent_default()
        super()._on_paste(events.Paste(" ".join(filter(None, event.text.splitlines()))))


class StoryRoom(Room):
    """Space goes on, r tries again, Enter writes along, Esc stops."""

    NAME = "story"
    AUTO_FOCUS = "WritingLine"
    HELP = """
You begin, the model goes on, and you may write along at any time.

- **space** goes on where the story stopped
- **r** takes the model's last words back and tries others
- **enter** lets you write what happens next, **esc** leaves the line
- **esc** stops the model; what it wrote stays
- **s** shows temperature, top-p and seed
"""
    REASONS: ClassVar[dict[str, str]] = {**Room.REASONS, "eos": "the end"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "continue", "continue"),
        Binding("r", "retry", "retry"),
        Binding("enter", "write", "write"),
        Binding("n", "new", "new"),
        Binding("s,ctrl+t", "toggle_sampling", "sampling"),
        Binding("question_mark", "toggle_help", "help"),
        Binding("q", "app.quit", "quit"),
        *(Binding(key, f"choose({key})", show=False) for key in sorted(CHOICES)),
    ]

    story: "Story | None" = None
    _writing: "Story | None" = None  # the one that the run belongs to
    _waiting: str | None = None  # a beginning that was chosen while the model was loading

    def __init__(self, options: Launch, runner: Runner) -> None:
        super().__init__(options, runner)
        self._marks: list[int] = []  # where on the page each passage begins ...
        self._began = 0  # ... and the one that is being written

    def compose_main(self) -> ComposeResult:
        yield Openings()
        page = Page()
        page.display = False
        yield page
        line = WritingLine(placeholder="Write the beginning")
        line.shortcuts = CHOICES
        yield line

    @property
    def session(self) -> "Session | None":
        return self.story.session if self.story else None

    def opened(self, model: "LoadedModel") -> None:
        from llamatui.app.tui.story import Story

        self.story = Story(model, self.options.context, self.options.overflow or "stop")
        if self._waiting is None and self.options.prompt:
            self._waiting = self.options.prompt
        if self._waiting is not None:
            self.call_later(self.write, self._waiting)
            self._waiting = None

    @property
    def home(self) -> Widget:
        return self.query_one(Page if self._begun else WritingLine)

    @property
    def _begun(self) -> bool:
        return bool(self.story and self.story.passages)

    def write(self, text: str) -> None:
        """Adds the writer's words to the page and lets the model go on."""
        if self.story is None:
            self._waiting = text
            self.announce("begins as soon as the model is open")
            return
        if self.busy:
            return
        try:
            shown = self.story.write(text)
        except LlamatuiError as error:
            self.notify(error.hint, title=error.message, severity="warning")
            return
        page = self.query_one(Page)
        self._show_page(True)
        self._marks.append(len(page.text))
        page.append(shown, "writer")
        self._go_on()

    def _go_on(self) -> None:
        self._writing = story = self.story
        page = self.query_one(Page)
        assert story is not None
        sampling = self.query_one(SamplingPanel).sampling
        self._began = len(page.text)
        page.writing = True
        page.focus()
        self.generate(lambda: story.start(sampling))

    async def receive(self, text: str) -> None:
        self.query_one(Page).append(text, "model")

    async def finished(self, run: Run) -> None:
        assert self._writing is not None
        page, pieces = self.query_one(Page), run.complete_pieces()
        self._writing.finish(pieces)
        if pieces:
            self._marks.append(self._began)
        if torn := "".join([printable(piece.text) for piece in run.pieces[len(pieces) :]]):
            page.truncate(len(page.text) - len(torn))  # they began a character that never came
        page.writing = False
        if notice := swap_notice(run.generation):
            self.notify(notice)
        if run.error is not None:
            message, hint = explain(run.error)
            self.notify(f"{message}\n{hint}", title="The model failed", severity="error", markup=False)

    def _show_page(self, begun: bool) -> None:
        self.query_one(Openings).display = not begun
        self.query_one(Page).display = begun
        line = self.query_one(WritingLine)
        line.placeholder = "Write what happens next" if begun else "Write the beginning"
        line.shortcuts = frozenset() if begun else CHOICES
        self.refresh_bindings()

    @on(Input.Submitted, "WritingLine")
    def _submitted(self, event: Input.Submitted) -> None:
        if self.busy:
            self.notify("Esc stops the model, then it is your turn.")
            return
        event.input.clear()
        if event.value or not self._begun:
            self.write(event.value)
        else:
            self.query_one(Page).focus()

    def on_writing_line_shortcut(self, event: WritingLine.Shortcut) -> None:
        self.action_choose(int(event.key))

    def on_opening_chosen(self, event: Opening.Chosen) -> None:
        self._choose(event.text)

    def action_choose(self, number: int) -> None:
        self._choose(OPENINGS[number - 1])

    def _choose(self, text: str) -> None:
        if not (self._begun or self.busy) and self._waiting is None:
            self.write(text)

    def action_write(self) -> None:
        self.query_one(WritingLine).focus()

    def action_continue(self) -> None:
        if self.busy or self.story is None or not self._begun:
            return
        if self.story.is_full:
            self.notify(
                "Its oldest words can be forgotten instead: --overflow shift", title="The context is full"
            )
        else:
            self._go_on()

    def action_retry(self) -> None:
        """Takes the model's last words back and asks for others."""
        if self.busy or self.story is None or not self._begun:
            return
        if self.story.passages[-1].author == "model":
            self.story.undo()
            self.query_one(Page).truncate(self._marks.pop())
        self._go_on()

    def action_new(self) -> None:
        if self.busy or self.story is None:
            return
        from llamatui.app.tui.story import Story

        self.story = Story(self.story.model, self.options.context, self.story.overflow)
        self._marks.clear()
        self.query_one(Page).truncate(0)
        self._show_page(False)
        self._show_context()
        self.query_one(Status).say("ready")
        self.home.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("continue", "retry", "new"):
            return self._begun and not self.busy
        if action == "write":
            return self._begun and not self.typing
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        """For the command palette."""
        if self._begun and not self.busy:
            yield SystemCommand("New story", "Begin with a blank page", self.action_new)
            yield SystemCommand("Copy the story", "All of it, to the clipboard", self.action_copy)

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self.query_one(Page).text)
        self.notify("The story is in the clipboard.")
