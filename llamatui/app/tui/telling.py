"""The model writes on the page: starting it, taking in what it writes, and what is told when it ends."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.page import Page
from llamatui.app.tui.replaying import Replaying
from llamatui.app.tui.room import swap_notice
from llamatui.app.tui.runner import Piece, Run

if TYPE_CHECKING:
    from llamatui.app.engine import Generation
    from llamatui.app.sampling import Sampling
    from llamatui.app.story import Story, Token
    from llamatui.app.tree import Node
    from llamatui.app.tui.insight import Insight
    from llamatui.app.tui.story_room import StoryRoom


class Telling:
    """The story room's runs, one after another."""

    def __init__(self, room: "StoryRoom") -> None:
        self._room = room
        self.replaying = Replaying(room)
        self._taken = 0  # pieces of the run that the story has
        self._began = 0  # tokens that the story had when the run began
        self._retrying = False
        self._told_shift = False
        self._next: Callable[[], None] | None = None  # what waits for the model to stop

    @property
    def page(self) -> Page:
        return self._room.query_one(Page)

    @property
    def story(self) -> "Story":
        assert self._room.story is not None
        return self._room.story

    def when_idle(self, action: Callable[[], None]) -> None:
        """Does it at once, or as soon as the model has stopped."""
        if self._room.busy:
            self._next = action
            self._room.stop()
        else:
            action()

    def go_on(self, until: Callable[[str, str], bool] | None = None, *, retrying: bool = False) -> None:
        """Lets the model write behind the end of the page.

        Args:
            until: See `Room.generate`.
            retrying: Its last words were taken back, and come again if there are no others.
        """
        room, story, page = self._room, self.story, self.page
        room.insight.cancel()
        self._taken, self._began, self._told_shift = 0, len(story.path), False
        self._retrying = retrying
        room.show_page(True)
        page.move_to(None)
        page.writing = True
        page.anchor()
        page.focus()
        room.generate(lambda sampling: start(story, sampling, room.insight), until)

    def take_in(self, run: Run) -> None:
        """Gives the story and the page what the model has written since the last time."""
        self.page.append(self.collect(run))
        dropped = run.generation.dropped_tokens if run.generation else 0
        if dropped:
            self.page.forgotten = self.story.forgotten + dropped
        if dropped and not self._told_shift:
            self._told_shift = True
            self._room.notify(
                "Its oldest words are forgotten and stand there dimmed. Memory stays.",
                title="The context was full",
            )

    def collect(self, run: Run) -> "list[Token]":
        """What the story has got since the last time."""
        fresh = run.pieces[self._taken :]
        self._taken += len(fresh)
        return grown(self.story, fresh)

    def finish(self, run: Run) -> None:
        room, story, page = self._room, self.story, self.page
        self.take_in(run)
        wrote = bool(run.complete_pieces())
        story.finish(run.generation)
        if wrote and story.same_again():
            room.notify("The same words as before: the seed is kept, or the temperature is 0.")
        elif not wrote and self._retrying:
            story.tree.revert()
        if wrote:
            self.replaying.keep_told(story, self._began, run)
        page.writing = False
        self._tell_swap(run.generation)
        room.show_story()
        if not page.display and not room.typing:
            room.home.focus()
        if run.error is not None:
            message, hint = explain(run.error)
            room.notify(f"{message}\n{hint}", title="The model failed", severity="error", markup=False)
        if self._next is not None:
            room.call_later(self.when_idle, self._next)
            self._next = None
        else:
            room.call_later(room.insight.fill)

    def rewind(self, at: "Token", said: str) -> None:
        """Ends the story before `at`, unless that went when the model stopped."""
        if at in self.story.path:
            self.story.cut(self.story.path.index(at))
            self.page.move_to(None)
            self._room.show_change(said)

    def follow(self, node: "Node") -> None:
        """Goes to the branch on which that node is."""
        self.story.tree.mark()
        self.story.tree.follow(node)
        self.page.move_to(None)
        self._room.show_change("")

    def take(self, at: "Token", token: int) -> None:
        """Goes on from another token, or the same one, in the place of `at`; from none if that went."""
        if token in self.story.model.stop_ids:
            self.rewind(at, "the end")
        elif at in self.story.path:
            self.page.move_to(None)
            self.story.take(self.story.path.index(at), token)
            self._room.show_story()
            self.go_on()

    def accept(self, pieces: Sequence[Piece]) -> None:
        """Goes on with words that the model wrote elsewhere, from the cursor if there is one."""
        if self.page.cursor is not None:
            self.story.cut(self.page.cursor)
            self.page.move_to(None)
        self.story.tree.mark()
        self.story.begin()
        grown(self.story, pieces)
        self.story.finish(None)

    def _tell_swap(self, generation: "Generation | None") -> None:
        """Says that another backend took over, and marks where."""
        if generation is None or generation.swap is None:
            return
        at = self._began + generation.swap.at
        if at < len(self.story.path):
            self.page.mark(self.story.path[at], f"⇄ {generation.swap.new}")
        self._room.notify(swap_notice(generation))


def grown(story: "Story", pieces: Sequence[Piece]) -> "list[Token]":
    return [
        story.grow(
            piece.record.id, piece.text, pending=piece.pending,
            record=piece.record if piece.record.top else None,
        )
        for piece in pieces
    ]  # fmt: skip


def start(story: "Story", sampling: "Sampling", insight: "Insight") -> "Generation":
    from llamatui.app.sampler import Sampler

    return story.start(Sampler(sampling), insight.wanted)
