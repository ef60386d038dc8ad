"""The story room: a page that two write on, the model and you."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.widget import Widget

from llamatui.app.history.draft import Draft
from llamatui.app.tui.alternatives import Alternatives
from llamatui.app.tui.bars import Status
from llamatui.app.tui.clipboard import copy
from llamatui.app.tui.desk import Desk, shared, smallest_change
from llamatui.app.tui.flow import printable
from llamatui.app.tui.heat import Legend
from llamatui.app.tui.insight import Insight, Scored
from llamatui.app.tui.keeping import Keeping
from llamatui.app.tui.keys import key_of
from llamatui.app.tui.launch import Launch
from llamatui.app.tui.openings import CHOICES, OPENINGS, Opening, Openings, WritingLine
from llamatui.app.tui.page import Page
from llamatui.app.tui.room import Room
from llamatui.app.tui.runner import Piece, Run, Runner
from llamatui.app.tui.story_side import StorySide
from llamatui.app.tui.telling import Telling
from llamatui.errors import LlamatuiError

if TYPE_CHECKING:
    from pathlib import Path

    from llamatui.app.engine import Limits
    from llamatui.app.model import LoadedModel
    from llamatui.app.story import Story
    from llamatui.app.tui.branches import Branches


class StoryRoom(Room):
    """Space goes on, r tries again, Enter writes along, Esc stops."""

    NAME = "story"
    AUTO_FOCUS = "WritingLine"
    HELP = """
You begin, the model goes on, and you may write along at any time. Nothing is ever lost: what is taken back or
written anew stays on a branch of its own.

With the cursor on a word (arrows, or a click) you see what else could stand there; a digit or a click takes
one, and the story goes on from it.
"""
    REASONS: ClassVar[dict[str, str]] = {**Room.REASONS, "eos": "the end", "stop": "a sentence"}
    BINDING_GROUP_TITLE = "the story"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "continue", "continue", tooltip="go on to the end", id="story.continue"),
        Binding("full_stop", "sentence", "sentence", tooltip="one more sentence", key_display=".",
                id="story.sentence"),
        Binding("r", "retry", "retry", tooltip="other words for the model's last", id="story.retry"),
        Binding("left_square_bracket", "flip(-1)", "version before", show=False, id="story.before"),
        Binding("right_square_bracket", "flip(1)", "version behind", show=False, id="story.next"),
        Binding("u,ctrl+z", "undo", "undo", id="story.undo"),
        Binding("U,ctrl+y", "redo", "redo", show=False, id="story.redo"),
        Binding("enter,w", "write", "write", tooltip="write what happens next", id="story.write"),
        Binding("e", "edit", "edit", tooltip="edit the page itself", id="story.edit"),
        Binding("h", "heat", "heat", tooltip="colour each word by how likely it was", id="story.heat"),
        Binding("m", "memory", "memory, and the author's note", show=False, id="story.memory"),
        Binding("x,ctrl+s", "save", "save it as a file", show=False, id="story.save"),
        Binding("y", "copy", "copy it", show=False, id="story.copy"),
        Binding("n", "new", "begin another story", show=False, id="story.new"),
        Binding("s,ctrl+t", "toggle_sampling", "branches and sampling", show=False, id="story.side"),
        Binding("question_mark", "app.help", "help", id="story.help"),
        *(Binding(key, f"choose({key})", show=False, id=f"story.choose-{key}") for key in "1234567890"),
    ]  # fmt: skip

    story: "Story | None" = None
    _waiting: str | None  # a beginning that was chosen while the model was loading
    _unsaved_memory: tuple[str, str] | None = None  # memory and note, typed but not saved

    def __init__(self, options: Launch, runner: Runner, keeping: Keeping) -> None:
        super().__init__(options, runner, keeping)
        self.insight = Insight(self)
        self.telling = Telling(self)
        self._waiting = options.prompt or None

    def compose_main(self) -> ComposeResult:
        yield Openings()
        page = Page()
        page.display = False
        yield page
        yield Alternatives()
        yield Desk()
        yield Legend()
        line = WritingLine(placeholder="Write the beginning")
        line.shortcuts = CHOICES
        yield line

    def compose_side(self) -> ComposeResult:
        yield StorySide()
        yield from super().compose_side()

    @property
    def content(self) -> "Story | None":
        return self.story

    async def put(self, content: "Story") -> None:
        self.insight.cancel()
        self.story = content
        self.query_one(Page).move_to(None)
        self.show_change("")

    def draft(self) -> Draft:
        page = self.query_one(Desk).draft(self.query_one(Page).text)
        return Draft(self.query_one(WritingLine).words, page, *(self._unsaved_memory or ()))

    def take_draft(self, draft: Draft) -> None:
        self.query_one(WritingLine).put(draft.typed)
        self._unsaved_memory = (draft.memory, draft.note) if draft.memory or draft.note else None
        if draft.page:
            self.query_one(Desk).keep(self.query_one(Page).text, draft.page)
            self.query_one(Status).say(f"{key_of(self, 'story.edit')} brings your changes back")

    def collect(self, run: Run) -> None:
        self.telling.collect(run)

    def question(self) -> "tuple[list[int], Limits] | None":
        if self.story is None or self.editing or not self.story.path:
            return None
        prompt = self.story.prompt(self.query_one(Page).cursor)  # from there on, if it is anywhere
        return prompt.ids, self.story.limits(prompt)

    async def accept(self, pieces: list[Piece]) -> None:
        self.telling.accept(pieces)
        self.show_change("taken from the split view")

    def opened(self, model: "LoadedModel") -> None:
        from llamatui.app.story import Story

        if self.story is not None:
            self.insight.cancel()
            self.story = self.story.told_to(model)
            self.query_one(Page).move_to(None)
            self.show_story()
            return
        self.story = Story(model, self.options.context, self.options.overflow or "stop")
        if self._waiting is not None:
            self.call_later(self.write, self._waiting)
            self._waiting = None

    @property
    def home(self) -> Widget:
        if self.editing:
            return self.query_one(Desk).editor
        return self.query_one(Page if self._begun else WritingLine)

    @property
    def editing(self) -> bool:
        return self.query_one(Desk).display

    @property
    def _begun(self) -> bool:
        return bool(self.story and (self.story.path or self.run))

    # Writing.

    def write(self, text: str) -> None:
        """Adds the writer's words to the page and lets the model go on."""
        line = self.query_one(WritingLine)
        if self.story is None:
            self._waiting = " ".join(filter(None, (self._waiting, text)))
            line.placeholder = self._waiting
            self.announce("begins as soon as the model is open")
            return
        if self.busy:
            self.tell_to_wait("then it is your turn")
            line.give_back(text)
            return
        try:
            self.story.write(text)
        except LlamatuiError as error:
            self.notify(error.hint, title=error.message, severity="warning")
            line.give_back(text)
            return
        self.story.tree.mark()
        self.show_story()
        self.telling.go_on()

    async def receive(self, text: str) -> None:
        assert self.run is not None
        self.telling.take_in(self.run)

    async def finished(self, run: Run) -> None:
        self.telling.finish(run)

    # What is on the screen.

    def show_story(self) -> None:
        """Shows the story as it is after a change."""
        story, page = self.story, self.query_one(Page)
        assert story is not None
        page.forgotten = story.prompt().forgotten
        page.show(story.path)
        self.show_page(self._begun)
        self._show_context()
        self._show_numbers()
        self.save()

    def _show_numbers(self) -> None:
        story = self.story
        assert story is not None
        self.query_one(StorySide).show(story, self._show_words())

    def _show_words(self) -> str:
        """Tells how many there are, and which version this is; returns the first."""
        from llamatui.app.story import count_words

        story = self.story
        assert story is not None
        words = count_words(story.text)
        shape = f"{words:,} word{'s' if words != 1 else ''}"
        versions = story.versions(self.query_one(Page).cursor)
        version = f"[ ] version {versions[0]} of {versions[1]}" if versions else ""
        self.query_one(Status).detail(" · ".join(filter(None, (shape if story.path else "", version))))
        return shape

    def show_page(self, begun: bool) -> None:
        assert self.story is not None
        openings = self.query_one(Openings)
        openings.display = not begun and not self.editing
        openings.show_way_back(bool(self.story.tree.root.children) or self.keeping.can_turn(self, -1))
        self.query_one(Page).display = begun and not self.editing
        line = self.query_one(WritingLine)
        line.display = not self.editing
        line.placeholder = "Write what happens next" if begun else "Write the beginning"
        line.shortcuts = frozenset() if begun else CHOICES
        self.refresh_bindings()

    def _show_context(self, dropped: int = 0) -> None:
        story = self.story
        if story is None:
            return
        if self.run is not None:
            self._show_words()
            used, dropped = len(story.session.tokens), story.forgotten + dropped
        else:
            prompt = story.prompt()
            used, dropped = len(prompt.ids), prompt.forgotten
        self.query_one(Status).show_context(used, story.session.context, dropped, story.overflow)

    # The writer's line and the openings.

    def on_writing_line_written(self, event: WritingLine.Written) -> None:
        if event.text or not self._begun:
            self.write(event.text)
        else:
            self.query_one(Page).focus()

    def on_writing_line_shortcut(self, event: WritingLine.Shortcut) -> None:
        self.action_choose(int(event.key))

    def on_opening_chosen(self, event: Opening.Chosen) -> None:
        self._choose(event.text)

    def _choose(self, text: str) -> None:
        if not (self._begun or self.busy) and self._waiting is None:
            self.write(text)

    def action_choose(self, number: int) -> None:
        """A digit: an opening on the empty page, else another word for the cursor."""
        if self.query_one(Page).cursor is not None:
            self.query_one(Alternatives).take((number - 1) % 10)
        elif not self._begun and 1 <= number <= len(OPENINGS):
            self._choose(OPENINGS[number - 1])

    def action_write(self) -> None:
        self.query_one(WritingLine).focus()

    def action_to_page(self) -> None:
        if self._begun:
            self.query_one(Page).focus()

    # Going on, and back and forth.

    def action_continue(self) -> None:
        self._go_on()

    def action_sentence(self) -> None:
        from llamatui.app.story import sentence_ended

        self._go_on(sentence_ended)

    def _go_on(self, until: Callable[[str, str], bool] | None = None) -> None:
        if self.busy or self.story is None or not self._begun:
            return
        if self.story.is_full:
            self.notify(
                "Take words back, or let it forget its oldest words: "
                f"{key_of(self, 'app.palette')}, When the context is full.",
                title="The context is full",
            )
            return
        self.story.tree.mark()
        self.telling.go_on(until)

    def action_retry(self) -> None:
        """Takes the model's last words back and asks for others."""
        if self.busy or self.story is None or not self._begun:
            return
        self.story.retry()
        self.show_story()
        self.telling.go_on(retrying=True)

    def action_flip(self, step: int) -> None:
        if not self.busy and self.story is not None and self.story.flip(step, self.query_one(Page).cursor):
            self.show_change("")

    async def action_undo(self) -> None:
        await self._travel("undone", -1)

    async def action_redo(self) -> None:
        await self._travel("done again", 1)

    async def _travel(self, said: str, step: int) -> None:
        if self.busy or self.story is None:
            return
        typing = self._begun and self.typing  # then the next letters must not be commands
        tree, beside = self.story.tree, self.story.tree.beside
        if tree.undo() if step < 0 else tree.redo():
            self.show_change(said if tree.beside == beside else f"{said}: memory and note", home=not typing)
        elif await self.keeping.turn(self, step):
            self.query_one(Status).say(said)

    async def action_new(self) -> None:
        if self.busy or self.story is None:
            return
        await self.keeping.begin(self, self.story.blank())
        self.query_one(Status).say("a new story")

    def show_change(self, said: str, *, home: bool = True) -> None:
        """Shows what another branch, or another end of it, looks like."""
        self.query_one(Status).say(said)
        self.show_story()
        self.insight.cancel()  # that was about what stood there before
        self.insight.fill()
        if home:
            self.home.focus()

    def on_branches_chosen(self, event: "Branches.Chosen") -> None:
        if not self.editing:
            self.telling.when_idle(lambda: self.telling.follow(event.node))

    # The token under the cursor, and what else could stand there.

    def on_page_cursor_moved(self) -> None:
        self.insight.follow_cursor()
        self._show_numbers()
        self.refresh_bindings()

    def on_page_choose(self) -> None:
        shown = self.query_one(Alternatives)
        if shown.display and shown.choices:
            shown.focus()

    def on_alternatives_left(self) -> None:
        self.query_one(Page).focus()

    def on_alternatives_taken(self, event: Alternatives.Taken) -> None:
        index = self.query_one(Page).cursor
        if index is not None:
            at = self.query_one(Page).tokens[index]
            self.telling.when_idle(lambda: self.telling.take(at, event.id))

    def on_page_rewind(self, event: Page.Rewind) -> None:
        tokens = self.query_one(Page).tokens
        if at := event.token or (tokens[-1] if tokens else None):
            self.telling.when_idle(lambda: self.telling.rewind(at, "taken back"))

    def action_heat(self) -> None:
        self.insight.toggle_heat()

    def on_scored(self, event: Scored) -> None:
        self.insight.take_in(event)

    def action_stop(self) -> None:
        if self.busy:
            self.stop()
        else:
            self.insight.stop()

    # Editing.

    def action_edit(self) -> None:
        self.telling.when_idle(self._edit)

    def _edit(self) -> None:
        page, desk = self.query_one(Page), self.query_one(Desk)
        at = len(page.text) if page.cursor is None else page.start_of(page.cursor)
        page.move_to(None)
        self.insight.cancel()
        said = desk.begin(page.text, at)
        self.show_page(True)
        self.query_one(Status).say(said)

    def on_desk_cleared(self, event: Desk.Cleared) -> None:
        assert self.story is not None
        before = list(self.story.path)
        if event.text is not None:
            self.story.edit(*smallest_change(self.story.text, event.text))
        self.show_change(event.said)
        self.query_one(Page).look_at(shared(before, self.story.path))

    # Memory, files and the clipboard.

    def action_memory(self) -> None:
        from llamatui.app.tui.story_dialogs import MemoryDialog

        assert self.story is not None

        def typed(words: tuple[str, str] | None) -> None:
            self._unsaved_memory = words
            self.save()

        saved = self.story.memory, self.story.note
        self.app.push_screen(MemoryDialog(saved, self._unsaved_memory or saved, self._remember, typed))

    def _remember(self, memory: str, note: str) -> None:
        assert self.story is not None
        self.story.remember(memory, note)
        self.query_one(Status).say("holds from the next words on")
        self.show_story()

    def action_save(self) -> None:
        from llamatui.app.tui.story_dialogs import SaveDialog

        def saved(path: "Path | None") -> None:
            if path is not None:
                self.notify(f"Saved as {printable(str(path))}", markup=False)

        if self._begun:
            self.app.push_screen(SaveDialog(self.query_one(Page).text, self.telling.replaying), saved)

    def action_copy(self) -> None:
        copy(self.app, self.query_one(Page).text)
        self.notify("The story is in the clipboard.")

    def action_overflow(self) -> None:
        """Changes what happens when the context is full."""
        story = self.story
        assert story is not None
        story.overflow = "stop" if story.overflow == "shift" else "shift"
        self.show_story()
        self.notify(
            "A full context now forgets its oldest words; memory stays."
            if story.overflow == "shift"
            else "A full context now stops the model."
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "stop":
                return self.busy or self.insight.filling
            case "continue" | "sentence" | "retry":
                return self._begun and not self.busy and not self.editing
            case "undo" | "redo" | "flip":
                if self.story is None or self.busy or self.editing:
                    return False
                if action == "flip":
                    return self.story.branching(self.query_one(Page).cursor) is not None
                if action == "undo":
                    return self.story.tree.can_undo or self.keeping.can_turn(self, -1)
                return self.story.tree.can_redo or self.keeping.can_turn(self, 1)
            case "new" | "edit" | "heat" | "save" | "copy":
                return self._begun and not self.editing and not (action == "new" and self.busy)
            case "memory":
                return self.story is not None and not self.busy and not self.editing
            case "write":
                return not self.typing
            case "home":
                return super().check_action(action, parameters) and not self.editing
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        """For the command palette."""
        offered = (
            ("new", "New story", "Begin with a blank page; undo brings this one back", self.action_new),
            ("edit", "Edit the page", "Change any word of it", self.action_edit),
            ("heat", "Heat map", "Colour each token by how likely the model found it", self.action_heat),
            ("memory", "Memory and author's note", "Read beside the page, and not shown", self.action_memory),
            ("save", "Save the story", "As a .txt, .md or .replay file", self.action_save),
            ("copy", "Copy the story", "All of it, to the clipboard", self.action_copy),
        )
        for action, title, about, run in offered:
            if self.check_action(action, ()):
                yield SystemCommand(title, about, run)
        if self.story is not None and not self.busy:
            shift = self.story.overflow == "shift"
            yield SystemCommand(
                f"When the context is full: {'stop' if shift else 'forget the oldest words'}",
                f"Now it {'forgets the oldest words' if shift else 'stops'}",
                self.action_overflow,
            )
