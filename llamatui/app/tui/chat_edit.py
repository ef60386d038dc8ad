"""A message in the composer, to be changed."""

from typing import TYPE_CHECKING

from llamatui.app.history.draft import Draft
from llamatui.app.tui.composer import Composer
from llamatui.app.tui.flow import printable
from llamatui.app.tui.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamatui.app.conversation import Turn


class MessageEdit:
    """What stood in the composer comes back afterwards; what was changed and left, with the next edit of it.

    Attributes:
        turn: The message; None while there is none to be changed.
    """

    def __init__(self, composer: Composer) -> None:
        self.turn: Turn | None = None
        self._composer = composer
        self._draft = ""
        self._left: dict[Turn, str] = {}

    def draft(self, path: "Sequence[Turn]") -> Draft:
        """What was typed, and which turns of a path were changed, and not sent."""
        text, left = self._composer.text, self._left
        typed = "" if self._composer.is_command else text
        if self.turn is not None:
            typed, left = self._draft, left | {self.turn: text}
        changed = [(index, left[turn]) for index, turn in enumerate(path) if turn in left]
        return Draft(typed, edits=tuple((i, text) for i, text in changed if text not in ("", shown(path[i]))))

    def take(self, path: "Sequence[Turn]", draft: Draft) -> None:
        """Puts back what `draft` gave."""
        self._composer.put(draft.typed)
        self._left |= {path[index]: words for index, words in draft.edits if index < len(path)}

    def begin(self, turn: "Turn") -> None:
        """Another one is left for it."""
        self.leave()
        composer = self._composer
        self.turn, self._draft = turn, composer.text
        composer.put(self._left.pop(turn, shown(turn)))
        enter, escape = key_of(composer, "chat.send"), key_of(composer, "app.back")
        composer.border_title = (
            f" your message again: {enter} sends it, {escape} leaves it "
            if turn.message.role == "user"
            else f" the model's words: {enter} puts yours in their place, {escape} leaves them "
        )
        composer.focus()

    def leave(self) -> bool:
        """Whether there are changes that are kept."""
        if self.turn is None:
            return False
        turn, text = self.turn, self._composer.text
        self._end()
        changed = bool(text.strip()) and text != shown(turn)
        if changed:
            self._left[turn] = text
        return changed

    def sent(self) -> "Turn":
        """Its new words left the composer; what was typed since stands behind the draft."""
        assert self.turn is not None
        turn, since = self.turn, self._composer.text
        self._end()
        if since:
            self._composer.insert(since)
        return turn

    def _end(self) -> None:
        self.turn = None
        self._composer.border_title = None
        self._composer.put(self._draft)


def shown(turn: "Turn") -> str:
    """Its words, as the composer has them."""
    return printable(turn.message.content)
