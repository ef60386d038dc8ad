"""The chat room: questions and answers."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.widget import Widget

from llamatui.app.tui.bars import Status
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.room import Room, swap_notice
from llamatui.app.tui.runner import Run
from llamatui.app.tui.sampling_panel import SamplingPanel
from llamatui.app.tui.system_dialog import SystemDialog
from llamatui.app.tui.transcript import Answer, Question, Transcript, Welcome

if TYPE_CHECKING:
    from llamatui.app.conversation import Conversation
    from llamatui.app.engine import Generation, Limits, OverflowPolicy, Session
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling
    from llamatui.tokenizers.chat_formats import Message


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
    _answering: "Conversation | None" = None  # the one that the run belongs to
    _replaced: "tuple[Message, list[Widget]] | None" = None  # what Ctrl+R took away, until there is a new one
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
        if self.busy:
            self._draft(text)
            return
        self._turning = True
        try:
            self.conversation.ask(text)
            self._show_transcript(True)
            self._question = await self.query_one(Transcript).ask(text)
            await self._let_answer()
        finally:
            self._turning = False

    async def _let_answer(self) -> None:
        from llamatui.app.engine import Limits

        self._answering = conversation = self.conversation
        assert conversation is not None
        sampling, limits = self.query_one(SamplingPanel).sampling, Limits(overflow=self.overflow)
        self._answer = await self.query_one(Transcript).answer()
        self.generate(lambda: start(conversation, sampling, limits))

    async def receive(self, text: str) -> None:
        assert self._answer is not None
        await self._answer.write(text)

    async def finished(self, run: Run) -> None:
        conversation, question, answer = self._answering, self._question, self._answer
        assert conversation is not None
        assert question is not None
        assert answer is not None
        replaced, self._replaced = self._replaced, None
        pieces = run.complete_pieces()
        gone: list[Widget] = []
        if pieces:
            conversation.finish(
                [piece.record.id for piece in pieces], "".join([piece.text for piece in pieces])
            )
            if replaced:
                gone = replaced[1]
        elif replaced:  # nothing new: what it had answered before stays
            conversation.turns.append(replaced[0])
            for widget in replaced[1]:
                widget.display = True
            gone = [answer]
        else:  # gives the question back, to be asked again or in other words
            self._draft(conversation.withdraw())
            gone = [answer, question]
        await answer.finish()
        for widget in gone:
            await widget.remove()
        await self._explain_end(run)

    def _draft(self, text: str) -> None:
        """Puts `text` where it can be edited, in front of what stands there."""
        composer = self.query_one(Composer)
        composer.text = f"{text}\n{composer.text}" if composer.text else text
        composer.move_cursor(composer.document.end)

    async def _explain_end(self, run: Run) -> None:
        """Says in the transcript what a reader would wonder about."""
        transcript, generation = self.query_one(Transcript), run.generation
        if run.error is not None:
            message, hint = explain(run.error)
            await transcript.note(f"{message}. {hint}" if hint else message, "error")
        if generation is None or self.session is None:
            return
        if notice := swap_notice(generation):
            await transcript.note(notice)
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
        elif generation.finish_reason == "eos" and not run.complete_pieces():
            await transcript.note("The model said nothing.")
        elif generation.finish_reason == "cancelled":
            await transcript.note("stopped")

    async def on_composer_submitted(self, event: Composer.Submitted) -> None:
        if self.busy:
            self.notify("Esc stops the answer, then it is your turn.")
        elif event.text.strip():
            self.query_one(Composer).clear()
            await self.ask(event.text)

    async def action_regenerate(self) -> None:
        if self.busy or self.conversation is None or not self.conversation.turns:
            return
        self._turning = True
        try:
            old = self.conversation.turns[-1]
            self.conversation.regenerate()
            self._question, widgets = self.query_one(Transcript).hide_answer()
            self._replaced = old, widgets
            await self._let_answer()
        finally:
            self._turning = False

    def action_system(self) -> None:
        if self.busy or self.conversation is None:
            return

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
        if self.busy or old is None:
            return
        self._turning = True
        try:
            self.conversation = Conversation(old.model, old.system, context=self.options.context)
            await self.query_one(Transcript).clear()
        finally:
            self._turning = False
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
        if self.busy or self.conversation is None or not self.conversation.turns:
            return
        self.app.copy_to_clipboard(self.conversation.turns[-1].content)
        self.notify("The answer is in the clipboard.")


def start(conversation: "Conversation", sampling: "Sampling", limits: "Limits") -> "Generation":
    from llamatui.app.sampler import Sampler

    return conversation.start(Sampler(sampling), limits)
