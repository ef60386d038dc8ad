"""The turns of a chat: the user's are quiet and right, the model's full-width Markdown that streams."""

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widget import Widget
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from llamatui.app.tui.flow import printable


class Question(Static):
    """What the user said."""

    DEFAULT_CSS = """
    Question {
        height: auto; margin-top: 1; padding: 0 2; border-top: solid $border-blurred;
        color: $text-muted; text-align: right;
    }
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text), markup=False)


class Answer(Markdown):
    """What the model says, as it says it."""

    DEFAULT_CSS = """
    Answer { padding: 0 2; margin: 1 0 0 0; }
    """

    def __init__(self) -> None:
        super().__init__(open_links=False)  # a model's links may lead anywhere
        self._stream: MarkdownStream | None = None

    async def write(self, text: str) -> None:
        if self._stream is None:
            self._stream = Markdown.get_stream(self)
        await self._stream.write(printable(text))

    async def finish(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.stop()


class Note(Static):
    """Something that happened to the conversation."""

    DEFAULT_CSS = """
    Note { height: auto; padding: 0 2; margin-top: 1; color: $text-muted; text-style: italic; }
    Note.-warning { color: $text-warning; }
    Note.-error { color: $text-error; }
    """

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(printable(text), markup=False, classes=f"-{kind}" if kind else None)


class Welcome(Vertical):
    """The empty chat: what one can do here."""

    DEFAULT_CSS = """
    Welcome {
        align: center middle; height: 1fr;
        & Static { width: 72; max-width: 100%; height: auto; padding: 0 2; }
        & .title { text-style: bold; margin-bottom: 1; }
        & .hint { color: $text-muted; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static("What would you like to talk about?", classes="title")
        yield Static("Enter sends, Ctrl+J makes a new line, Esc stops an answer.", classes="hint")
        yield Static("Ctrl+S says who the model shall be.", classes="hint")


class Transcript(VerticalScroll, can_focus=True):
    """Follows its end, unless the reader scrolled up."""

    DEFAULT_CSS = """
    Transcript {
        height: 1fr; scrollbar-size-vertical: 1;
        /* An anchored container pulls what is shorter than itself down to its end. */
        & #turns { height: auto; min-height: 100%; padding-bottom: 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Vertical(id="turns")

    @property
    def _turns(self) -> Vertical:
        return self.query_one("#turns", Vertical)

    async def ask(self, text: str) -> Question:
        """Adds a question, and shows the end again."""
        question = Question(text)
        await self._turns.mount(question)
        self.anchor()
        return question

    async def answer(self) -> Answer:
        answer = Answer()
        await self._turns.mount(answer)
        return answer

    async def note(self, text: str, kind: str = "") -> None:
        await self._turns.mount(Note(text, kind))

    def hide_answer(self) -> tuple[Question, list[Widget]]:
        """Hides the last answer and the notes behind it; returns its question, and what is hidden."""
        question = self.query(Question).last()
        turns = self._turns.children
        hidden = list(turns[turns.index(question) + 1 :])
        for widget in hidden:
            widget.display = False
        return question, hidden

    async def clear(self) -> None:
        await self._turns.remove_children()
