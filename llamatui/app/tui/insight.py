"""What the model thinks of the words on the page: the heat map, and what else could stand at the cursor.

Tokens that were written while nobody wanted to know have no record. They are scored behind the reader's back,
on the inference thread; of such jobs only the newest is wanted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from textual.message import Message

from llamatui.app.tui.alternatives import Alternatives, choices_of, token_label
from llamatui.app.tui.bars import Status
from llamatui.app.tui.error_screen import explain
from llamatui.app.tui.heat import Legend
from llamatui.app.tui.page import Page
from llamatui.app.tui.runner import Scoring

if TYPE_CHECKING:
    from llamatui.app.engine import TokenRecord
    from llamatui.app.story import Token
    from llamatui.app.tui.story_room import StoryRoom

ALTERNATIVES = 10  # kept with each token


@dataclass
class Asked:
    """One job's tokens, in the order in which their records come."""

    job: Scoring
    tokens: "Iterator[Token]"
    count: int
    whole_page: bool
    told: int = 0


@dataclass
class Scored(Message):
    """Some tokens have their records."""

    asked: Asked
    records: "list[TokenRecord]"
    done: bool
    error: Exception | None


class Insight:
    def __init__(self, room: "StoryRoom") -> None:
        self._room = room
        self._asked: Asked | None = None
        self.wanted: int | None = None
        """Alternatives to record while the model writes; read by the inference thread too."""

    @property
    def page(self) -> Page:
        return self._room.query_one(Page)

    @property
    def filling(self) -> bool:
        """Whether the heat map is being filled."""
        return self._asked is not None and self._asked.whole_page

    # The heat map.

    def toggle_heat(self) -> None:
        page, run = self.page, self._room.run
        page.heat = not page.heat
        self.wanted = ALTERNATIVES if page.heat else None
        self._room.query_one(Legend).display = page.heat
        if run is not None and run.generation is not None:
            run.generation.limits = replace(run.generation.limits, alternatives=self.wanted)
        elif page.heat:
            self.fill()
        elif self.filling:
            self.stop()

    def fill(self) -> None:
        """Asks about all tokens that the heat map lacks, unless something else is being asked."""
        story = self._room.story
        if story is None or self._room.busy or self._asked is not None or not self.page.heat:
            return
        ids, first, tokens = story.unscored()
        if tokens:
            self._ask(ids, first, tokens, whole_page=True)

    def stop(self) -> None:
        """Leaves the rest of the heat map as it is."""
        self.cancel()
        self._room.query_one(Status).say("")
        self._room.refresh_bindings()

    def cancel(self) -> None:
        if self._asked is not None:
            self._asked.job.cancel()
        self._asked = None

    def _ask(self, ids: list[int], first: int, tokens: "list[Token]", *, whole_page: bool) -> None:
        self.cancel()
        room = self._room
        assert room.story is not None
        session = room.story.session

        def tell(records: "list[TokenRecord]", done: bool, error: Exception | None) -> None:
            room.post_message(Scored(asked, records, done, error))

        job = Scoring(lambda: session.score(ids, first, ALTERNATIVES), tell)
        self._asked = asked = Asked(job, iter(tokens), len(tokens), whole_page)
        room.runner.submit(job)
        room.refresh_bindings()

    def take_in(self, event: Scored) -> None:
        """Gives the tokens their records, also those of a job that is not wanted any longer."""
        asked = event.asked
        for record in event.records:
            next(asked.tokens).record = record
        asked.told += len(event.records)
        current = asked is self._asked
        if current and event.done:
            self._asked = None
        if self.page.heat:
            self.page.redraw()
        if self.page.cursor is not None:
            self.show(ask=False)
        if event.error is not None:
            message, hint = explain(event.error)
            self._room.notify(f"{message}\n{hint}", title="The model failed", severity="error", markup=False)
        elif current and asked.whole_page:
            said = f"reading {asked.told}/{asked.count} for the heat map"
            if event.done:
                whole = self.page.tokens[-1].record is not None
                said = "" if whole else "the heat map ends where the context does"
            self._room.query_one(Status).say(said)
        elif current and event.done:
            self.fill()
        self._room.refresh_bindings()

    # The token at the cursor.

    def follow_cursor(self) -> None:
        if self.page.cursor is not None and self.page.display:
            self.show(ask=True)
        else:
            self.hide()

    def show(self, *, ask: bool) -> None:
        """Shows what else could stand at the cursor. `ask`: the model, if it was not asked about that yet."""
        story, page, popup = self._room.story, self.page, self._room.query_one(Alternatives)
        region = page.cursor_region()
        if story is None or page.cursor is None or region is None:
            self.hide()
            return
        token = story.path[page.cursor]
        tokenizer, stop_ids = story.model.tokenizer, story.model.stop_ids
        label = token_label(tokenizer, token.id, stop_ids)
        if token.record is not None:
            tried = {other.id for other in story.tree.siblings(token)} - {token.id}
            popup.tell(label, token.record, choices_of(token.record, tokenizer, stop_ids, tried))
        elif self._room.busy:
            popup.ask(label, "… as soon as the model has stopped")
        elif ask:
            ids, first = story.question(page.cursor)
            if first > story.session.context:
                popup.ask(label, "The context ends before it.")
            elif first:
                popup.ask(label, "…")
                self._ask(ids, first, [token], whole_page=False)
            else:
                popup.ask(label, "Nothing stands before it, so nothing can be said.")
        popup.place(region, page.region)

    def hide(self) -> None:
        popup = self._room.query_one(Alternatives)
        if popup.has_focus:
            self.page.focus()
        popup.display = False
        if not self.filling:
            self.cancel()
            self.fill()
