"""The chat room: questions and answers."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.widget import Widget

from llamatui.app.history.draft import Draft
from llamatui.app.tui.answer_markdown import code_blocks
from llamatui.app.tui.bars import Status
from llamatui.app.tui.chat_commands import COMMANDS, ChatCommands
from llamatui.app.tui.chat_edit import MessageEdit, shown
from llamatui.app.tui.chat_message import ChatMessage, Item, Marks
from llamatui.app.tui.chat_notes import notes_on
from llamatui.app.tui.chat_welcome import Welcome
from llamatui.app.tui.clipboard import copy
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.keeping import Keeping
from llamatui.app.tui.launch import Launch
from llamatui.app.tui.replaying import Replaying
from llamatui.app.tui.room import Room
from llamatui.app.tui.runner import Piece, Run, Runner
from llamatui.app.tui.slash_menu import SlashMenu
from llamatui.app.tui.system_dialog import SystemDialog
from llamatui.app.tui.transcript import Transcript
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:
    from llamatui.app.conversation import Conversation, Turn
    from llamatui.app.engine import Generation, Limits, OverflowPolicy
    from llamatui.app.model import LoadedModel
    from llamatui.app.sampling import Sampling

CHANGES = {
    "regenerate", "retry_message", "edit_message", "resume", "flip", "undo", "redo", "new", "system",
}  # fmt: skip
"""Actions that wait until an answer has ended."""


class ChatRoom(Room):
    """Enter sends, Esc stops, Ctrl+R asks for another answer; ↑ goes to the messages, which have keys too."""

    NAME = "chat"
    AUTO_FOCUS = "Composer"
    HELP = """
A paste is never sent, and never a command. An answer that was stopped stays as it is. What you edit or ask
again begins a branch beside the old one.

A slash begins a command, two are just a slash:

""" + "\n".join(f"- **{f'/{one.name} {one.argument}'.rstrip()}** {one.help}" for one in COMMANDS.values())
    REASONS: ClassVar[dict[str, str]] = {**Room.REASONS, "eos": "ready"}
    BINDING_GROUP_TITLE = "the chat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "regenerate", "again", tooltip="another answer; the old one stays beside it",
                id="chat.retry"),
        Binding("ctrl+n", "new", "new", tooltip="another chat; this one stays on a branch", id="chat.new"),
        Binding("ctrl+s", "system", "system", tooltip="who the model shall be", id="chat.system"),
        Binding("ctrl+t", "toggle_sampling", "sampling", tooltip="temperature, top-p, seed",
                id="chat.sampling"),
    ]  # fmt: skip

    conversation: "Conversation | None" = None
    _growing: Item | None = None  # the answer that is being given
    _copied: tuple[Item, int] | None = None  # the code block that was copied last
    _unsaved_system = ""  # typed, but not saved

    def __init__(self, options: Launch, runner: Runner, keeping: Keeping) -> None:
        super().__init__(options, runner, keeping)
        self.replaying = Replaying(self)
        self._waiting = options.prompt  # what is asked as soon as there is a model

    def compose_main(self) -> ComposeResult:
        self._commands = ChatCommands(self)
        yield Welcome()
        transcript = Transcript()
        transcript.display = False
        yield transcript
        menu = SlashMenu()
        yield menu
        composer = Composer("Say something   / for commands", menu, self._commands.suggestions)
        self._edit = MessageEdit(composer)
        yield composer

    @property
    def content(self) -> "Conversation | None":
        return self.conversation

    async def put(self, content: "Conversation") -> None:
        self.conversation = content
        await self._show_end()

    def draft(self) -> Draft:
        assert self.conversation is not None
        return replace(self._edit.draft(self.conversation.tree.path), system=self._unsaved_system)

    def take_draft(self, draft: Draft) -> None:
        assert self.conversation is not None
        self._unsaved_system = draft.system
        self._edit.take(self.conversation.tree.path, draft)

    def partial(self) -> tuple[str, list[int]]:
        pieces = self.run.complete_pieces() if self.run else []
        return "".join([piece.text for piece in pieces]), [piece.record.id for piece in pieces]

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def home(self) -> Widget:
        return self.composer

    @property
    def overflow(self) -> "OverflowPolicy":
        return self.options.overflow or "shift"

    def opened(self, model: "LoadedModel") -> None:
        from llamatui.app.conversation import Conversation

        if self.conversation is None:
            self.conversation = Conversation(model, self.options.system, context=self.options.context)
        elif model is not self.conversation.model:
            self.conversation = self.conversation.told_to(model)
            if self.conversation.turns:
                tree = self.conversation.tree
                self.transcript.note(
                    tree.end, f"{model.name} goes on from here. It has to read the chat first."
                )
                self.call_later(self.show)
        if self._waiting:
            self.call_later(self.ask, self._waiting)
            self._waiting = ""

    def question(self) -> "tuple[list[int], Limits] | None":
        from llamatui.app.engine import Limits

        return self.conversation.question(Limits(overflow=self.overflow)) if self.conversation else None

    async def accept(self, pieces: list[Piece]) -> None:
        conversation = self.conversation
        assert conversation is not None
        if conversation.turns[-1].role == "assistant":
            conversation.regenerate()
        conversation.finish([piece.record.id for piece in pieces], "".join([piece.text for piece in pieces]))
        await self.show()

    # Asking and answering.

    async def ask(self, text: str) -> None:
        """Adds the user's turn and lets the model answer."""
        if self.conversation is None:
            self._waiting = "\n".join(filter(None, (self._waiting, text)))
            self.announce("asked as soon as the model is open")
            return
        if self.busy or not await self._answer(lambda it: it.ask(text)):
            self.composer.give_back(text)

    async def _answer(self, change: "Callable[[Conversation], object]") -> bool:
        """Lets the model speak after a change: a new answer, or more of the last one; False if it cannot."""
        from llamatui.app.engine import Limits

        conversation = self.conversation
        assert conversation is not None
        try:
            change(conversation)
        except LlamatuiError as error:
            self.tell(error)
            return False
        self.save()
        with self.changing():
            self._growing = None if conversation.growing else Item("assistant", "")
            self.transcript.following = True
            await self.show()
            self._growing = self._growing or self.transcript.last_turn()
            limits = Limits(overflow=self.overflow)
            self.generate(lambda sampling: start(conversation, sampling, limits))
        return True

    async def show(self) -> None:
        """Brings the screen to where the conversation is."""
        assert self.conversation is not None
        tree, growing = self.conversation.tree, self._growing
        if self._edit.turn is not None and self._edit.turn not in tree.path:
            self.stop_editing()
        await self.transcript.show(tree, growing if growing and growing.turn is None else None)
        self.query_one(Welcome).display = not self.transcript.items
        self.transcript.display = bool(self.transcript.items)
        self.refresh_bindings()
        self.save()

    async def receive(self, text: str) -> None:
        assert self._growing is not None
        await self.transcript.write(self._growing, text)

    async def finished(self, run: Run) -> None:
        conversation, item = self.conversation, self._growing
        assert conversation is not None
        assert item is not None
        self._growing = None
        pieces, generation, more = run.complete_pieces(), run.generation, item.turn is not None
        cancelled = generation is not None and generation.finish_reason == "cancelled"
        if pieces:
            conversation.finish(
                [piece.record.id for piece in pieces],
                "".join([piece.text for piece in pieces]),
                stopped=cancelled or run.error is not None,
            )
            self.replaying.keep_said(conversation, run)
            self.transcript.keep(item, conversation.tree.path[-1])
        elif text := conversation.give_up():  # the question comes back, to be asked again or in other words
            self.composer.give_back(text)
        for text, kind in notes_on(run, more=more):
            self.note(text, kind)
        await self.transcript.finish(item)
        await self.show()

    def _show_context(self, dropped: int = 0) -> None:
        if self.conversation is not None:
            session = self.conversation.session
            used = len(session.tokens or self.conversation.ids())  # nothing is read yet of a chat of old
            self.query_one(Status).show_context(used, session.context, dropped, self.overflow)

    def note(self, text: str, kind: str = "note") -> None:
        assert self.conversation is not None
        self.transcript.note(self.conversation.tree.end, text, kind)

    # The composer.

    async def on_composer_submitted(self, event: Composer.Submitted) -> None:
        composer = self.composer
        if event.command:
            if not await self._commands.execute(event.text):
                composer.give_back(event.text, command=True)
        elif self.busy:
            self.tell_to_wait("then it is your turn")
            composer.give_back(event.text)
        elif event.text.strip():
            if self._edit.turn is not None:
                await self._edited(event.text)
            else:
                await self.ask(event.text)

    async def on_composer_left(self) -> None:
        if self.query_one(Welcome).display:
            self.query_one(Welcome).enter()
        else:
            await self.action_step(-1)

    async def on_welcome_chosen(self, event: Welcome.Chosen) -> None:
        if not self.busy:
            self.composer.focus()
            await self.ask(event.text)

    def on_slash_menu_chosen(self, event: SlashMenu.Chosen) -> None:
        self.composer.focus()
        self.composer.choose(event.suggestion)

    def on_composer_typed(self, event: Composer.Typed) -> None:
        self.composer.type_in(event.character)

    def action_edit_outside(self) -> None:
        from llamatui.app.tui.external_editor import edit_outside

        try:
            text = edit_outside(self.app, self.composer.text)
        except LlamatuiError as error:
            self.tell(error)
        else:
            if text != self.composer.text:
                self.composer.put(text)

    def tell(self, error: LlamatuiError) -> None:
        """Shows what went wrong, and what to do."""
        self.notify("\n".join(explain(error)).rstrip(), severity="error", timeout=8, markup=False)

    # Going about in the messages.

    @property
    def message(self) -> Item | None:
        """The one that has the focus."""
        return self.focused.item if isinstance(self.focused, ChatMessage) else None

    async def action_step(self, step: int) -> None:
        """To the message before or after; from the composer, to the last one in view."""
        transcript, at = self.transcript, self.message
        if at is None:
            index = transcript.last_in_view()
        elif transcript.scroll_on(at, step):
            return
        else:
            index = at.index + step
        while 0 <= index < len(transcript.items) and transcript.items[index].turn is None:
            index += step
        if index >= len(transcript.items):
            self.home.focus()
        elif index >= 0:
            await transcript.reveal(index)
        self.refresh_bindings()

    async def action_scroll_transcript(self, where: str) -> None:
        await self.transcript.run_action(where)

    def action_edit_message(self) -> None:
        """Brings the message into the composer."""
        item = self.message
        if item and item.turn:
            self.edit(item.turn)

    def edit(self, turn: "Turn") -> None:
        self._edit.begin(turn)
        self.refresh_bindings()

    def stop_editing(self) -> None:
        if self._edit.leave():
            self.notify("Your changes are kept: they come back when you edit that message again.")
        self.refresh_bindings()

    async def _edited(self, text: str) -> None:
        assert self.conversation is not None
        turn = self._edit.sent()
        self.refresh_bindings()
        if shown(turn) == text:
            self.notify("It is as it was.")
            return
        index = self.conversation.tree.path.index(turn)
        if turn.message.role == "user":
            await self._answer(lambda it: it.edit(index, text))
        else:
            self.conversation.edit(index, text)
            await self.show()

    async def action_retry_message(self) -> None:
        """Another answer in the place of this one, or to this question."""
        item = self.message
        if item and item.turn and self.conversation and item.turn in (path := self.conversation.tree.path):
            index = path.index(item.turn) + (item.kind == "user")
            self.home.focus()
            await self._answer(lambda it: it.regenerate(index))

    async def action_regenerate(self) -> None:
        if not self.busy and self.conversation is not None:
            await self._answer(lambda it: it.regenerate())

    async def action_resume(self) -> None:
        """The last answer goes on."""
        if not self.busy and self.conversation is not None:
            await self._answer(lambda it: it.resume())

    async def action_flip(self, step: int) -> None:
        if self.message is not None:
            await self._flip(self.message, step)

    async def on_marks_flipped(self, event: Marks.Flipped) -> None:
        if not self.busy:
            await self._flip(event.item, event.step)

    async def _flip(self, item: Item, step: int) -> None:
        assert self.conversation is not None
        assert item.turn is not None
        tree = self.conversation.tree
        # Where two clicks come at once, the second one finds another version there.
        shown = [turn for turn in tree.siblings(item.turn) if turn in tree.path]
        if shown and self.conversation.flip(tree.path.index(shown[0]), step):
            await self.show()
            await self.transcript.reveal(item.index)
            self.refresh_bindings()

    async def action_undo(self) -> None:
        await self._go("undo", -1)

    async def action_redo(self) -> None:
        await self._go("redo", 1)

    async def _go(self, way: str, step: int) -> None:
        if self.busy or self.conversation is None:
            return
        tree = self.conversation.tree
        if tree.undo() if way == "undo" else tree.redo():
            await self._show_end()
        elif not await self.keeping.turn(self, step):
            self.notify(f"There is nothing to {way}.")

    async def _show_end(self) -> None:
        self.transcript.following = True
        await self.show()
        self._show_context()
        self.home.focus()

    # Copying.

    def copy(self, text: str, what: str) -> None:
        copy(self.app, text)
        self.notify(f"{what} is in the clipboard.")

    def action_copy_message(self) -> None:
        if self.message:
            self.copy(self.message.text, "The message")

    def action_copy_code(self) -> None:
        """The first code block of the message; again, the next one."""
        if self.message:
            self.copy_code(self.message)

    def copy_code(self, item: Item) -> None:
        blocks = code_blocks(item.text)
        if not blocks:
            self.notify("There is no code in this message.")
            return
        before = self._copied[1] if self._copied and self._copied[0] is item else -1
        which = (before + 1) % len(blocks)
        self._copied = item, which
        number = f"Code block {which + 1} of {len(blocks)}" if len(blocks) > 1 else "The code"
        self.copy(blocks[which], number)

    # The rest.

    def action_system(self) -> None:
        if self.busy or self.conversation is None:
            return

        def typed(text: str) -> None:
            self._unsaved_system = text
            self.save()

        saved = self.conversation.system
        self.app.push_screen(SystemDialog(saved, self._unsaved_system or saved, self.set_system, typed))

    def set_system(self, text: str) -> None:
        assert self.conversation is not None
        if text != self.conversation.system:
            self.conversation.system = text
            self.save()
            self.notify(
                "The system prompt holds from the next message on."
                if text
                else "There is no system prompt now."
            )

    async def action_new(self) -> None:
        if self.busy or self.conversation is None or not self.conversation.turns:
            return
        await self.keeping.begin(self, self.conversation.blank())
        self.query_one(Status).say("ready · /undo brings the chat back")

    def action_home(self) -> None:
        if self._edit.turn is not None and self.focused is self.home:
            self.stop_editing()
        super().action_home()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "home" and self._edit.turn is not None and not self.busy:
            return True
        if action in CHANGES and (self.busy or self.conversation is None):
            return False
        if action in ("regenerate", "new"):
            return bool(self.conversation and self.conversation.turns)
        if action == "flip":
            return bool(self.message and self.message.version[1] > 1)
        if action == "resume":
            return self.message is not None and self.message is self.transcript.last_turn("assistant")
        if action == "copy_code":
            return self.message is not None and self.message.may_hold_code
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        if self.conversation is None or self.busy:
            return
        yield SystemCommand("System prompt", "Say who the model shall be", self.action_system)
        tree = self.conversation.tree
        if tree.can_undo or self.keeping.can_turn(self, -1):
            yield SystemCommand("Undo", "Back to the branch before", self.action_undo)
        if tree.can_redo or self.keeping.can_turn(self, 1):
            yield SystemCommand("Redo", "Undo the undo", self.action_redo)
        if self.conversation.turns:
            yield SystemCommand("New chat", "Undo brings this one back", self.action_new)
            yield SystemCommand("Continue", "Let the last answer go on", self.action_resume)
            yield SystemCommand("Copy the last answer", "To the clipboard, as Markdown", self.action_copy)

    def action_copy(self) -> None:
        turns = self.conversation.turns if self.conversation else []
        if answers := [turn.content for turn in turns if turn.role == "assistant"]:
            self.copy(answers[-1], "The answer")


def start(conversation: "Conversation", sampling: "Sampling", limits: "Limits") -> "Generation":
    from llamatui.app.sampler import Sampler

    return conversation.start(Sampler(sampling), limits)
