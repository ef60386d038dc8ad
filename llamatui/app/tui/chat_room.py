"""The chat room: questions and answers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.widget import Widget

from llamatui.app.tui.bars import Status
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.room import Room
from llamatui.app.tui.runner import Run
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.app.tui.system_dialog import SystemDialog
from llamatui.app.tui.transcript import Answer, Question, Transcript, Welcome

if TYPE_CHECKING:
    from llamatui.app.conversation import Conversation
    from llamatui.app.engine import Generation, Limits, OverflowPolicy, Session
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling


class ChatRoom(Room):
    """Enter sends, Esc stops, Ctrl+R asks for another answer."""

    NAME = "chat"
    AUTO_FOCUS = "Composer"
    HELP = """
- **enter** sends, **ctrl+j** makes a new line; a paste is never sent
- **esc** stops an answer; what was said stays
- **ctrl+r** takes the last answer back and asks for another
- **ctrl+s** says who the model shall be
- **ctrl+t** shows temperature, top-p and seed
"""
    REASONS: ClassVar[dict[str, str]] = {**Room.REASONS, "eos": "ready"}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "regenerate", "again"),
        Binding("ctrl+n", "new", "new"),
        Binding("ctrl+s", "system", "system"),
        Binding("ctrl+t", "toggle_sampling", "sampling"),
    ]

    conversation: "Conversation | None" = None
    _question: Question | None = None
    _answer: Answer | None = None
    _waiting = ""  # a question that was asked while the model was loading

    def compose_main(self) -> ComposeResult:
        yield Welcome()
        transcript = Transcript()
        transcript.display = False
        yield transcript
        yield Composer("Say something  (Ctrl+J: new line)")

    @property
    def session(self) -> "Session | None":
        return self.conversation.session if self.conversation else None

    @property
    def overflow(self) -> "OverflowPolicy":
        return self.options.overflow or "shift"

    def opened(self, model: "LoadedModel") -> None:
        from llamatui.app.conversation import Conversation

        self.conversation = Conversation(model, self.options.system, context=self.options.context)
        if first := self._waiting or self.options.prompt:
            self._waiting = ""
            self.call_later(self.ask, first)

    @property
    def home(self) -> Widget:
        return self.query_one(Composer)

    async def ask(self, text: str) -> None:
        """Adds the user's turn and lets the model answer."""
        if self.conversation is None:
            self._waiting = text
            self.announce("asked as soon as the model is open")
            return
        self.conversation.ask(text)
        self._show_transcript(True)
        self._question = await self.query_one(Transcript).ask(text)
        await self._let_answer()

    async def _let_answer(self) -> None:
        from llamatui.app.engine import Limits

        conversation = self.conversation
        assert conversation is not None
        sampling, limits = self.query_one(SamplingPanel).sampling, Limits(overflow=self.overflow)
        self._answer = await self.query_one(Transcript).answer()
        self.generate(lambda: start(conversation, sampling, limits))

    async def receive(self, text: str) -> None:
        assert self._answer is not None
        await self._answer.write(text)

    async def finished(self, run: Run) -> None:
        conversation, answer = self.conversation, self._answer
        assert conversation is not None
        assert answer is not None
        await answer.finish()
        pieces = run.complete_pieces()
        if pieces:
            conversation.finish(
                [piece.record.id for piece in pieces], "".join([piece.text for piece in pieces])
            )
        else:
            await self._withdraw()
        await self._explain_end(run)

    async def _withdraw(self) -> None:
        """Nothing was answered: gives the question back, to be asked again or in other words."""
        assert self.conversation is not None
        text = self.conversation.withdraw()
        for widget in (self._answer, self._question):
            if widget is not None:
                await widget.remove()
        composer = self.query_one(Composer)
        if not composer.text:
            composer.text = text
            composer.move_cursor(composer.document.end)

    async def _explain_end(self, run: Run) -> None:
        """Says in the transcript what a reader would wonder about."""
        transcript, generation = self.query_one(Transcript), run.generation
        if run.error is not None:
            message, hint = explain(run.error)
            await transcript.note(f"{message}. {hint}" if hint else message, "error")
        if generation is None or self.session is None:
            return
        if dropped := generation.dropped_tokens:
            await transcript.note(
                f"The context of {self.session.context} tokens was full: the oldest {dropped} are forgotten.",
                "warning",
            )
        if generation.finish_reason == "context":
            await transcript.note(
                f"The context of {self.session.context} tokens is full. Ctrl+N begins a new chat; "
                "--overflow shift forgets the oldest words instead.",
                "warning",
            )
        elif generation.finish_reason == "cancelled":
            await transcript.note("stopped")

    async def on_composer_submitted(self, event: Composer.Submitted) -> None:
        if self.busy:
            self.notify("Esc stops the answer, then it is your turn.")
        elif event.text.strip():
            self.query_one(Composer).clear()
            await self.ask(event.text)

    async def action_regenerate(self) -> None:
        assert self.conversation is not None
        self.conversation.regenerate()
        self._question = await self.query_one(Transcript).take_back_answer()
        await self._let_answer()

    def action_system(self) -> None:
        assert self.conversation is not None

        async def saved(text: str | None) -> None:
            assert self.conversation is not None
            if text is None or text == self.conversation.system:
                return
            self.conversation.system = text
            said = (
                "The system prompt holds from the next message on."
                if text
                else "There is no system prompt now."
            )
            self.notify(said)

        self.app.push_screen(SystemDialog(self.conversation.system), saved)

    async def action_new(self) -> None:
        from llamatui.app.conversation import Conversation

        old = self.conversation
        assert old is not None
        self.conversation = Conversation(old.model, old.system, context=self.options.context)
        await self.query_one(Transcript).clear()
        self._show_transcript(False)
        self._show_context()
        self.query_one(Status).say("ready")
        self.home.focus()

    def _show_transcript(self, begun: bool) -> None:
        self.query_one(Welcome).display = not begun
        self.query_one(Transcript).display = begun

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("regenerate", "new"):
            return bool(self.conversation and self.conversation.turns) and not self.busy
        if action == "system":
            return self.conversation is not None and not self.busy
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        if self.conversation is None or self.busy:
            return
        yield SystemCommand("System prompt", "Say who the model shall be", self.action_system)
        if self.conversation.turns:
            yield SystemCommand("New chat", "Forget this one", self.action_new)
            yield SystemCommand("Copy the last answer", "To the clipboard, as Markdown", self.action_copy)

    def action_copy(self) -> None:
        assert self.conversation is not None
        self.app.copy_to_clipboard(self.conversation.turns[-1].content)
        self.notify("The answer is in the clipboard.")


def start(conversation: "Conversation", sampling: "Sampling", limits: "Limits") -> "Generation":
    from llamatui.app.sampler import Sampler

    return conversation.start(Sampler(sampling), limits)
