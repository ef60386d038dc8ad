"""A chat without a screen: a tree of turns, the ids they are, and the session that answers.

chat.send("Who are you?")                        the answer

chat.ask("Who are you?")                         the same by hand, to see every token and to stop it
generation = chat.start(Sampler(Sampling()))
for record in generation: ...
chat.finish(generation.new_tokens, text)

Asking for another answer, editing a message and a new chat begin a branch beside the old one: see
`llamatui.app.tree`. So nothing that was said is ever lost.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llamatui.app.engine import Generation, Limits, Session
from llamatui.app.model import LoadedModel
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.tree import Node, Tree
from llamatui.errors import UsageError
from llamatui.tokenizers.base import StreamDecoder
from llamatui.tokenizers.chat_formats import Message


class Turn(Node):
    """A message in the tree.

    Attributes:
        stopped: Its end was cut off by the user, or by an error.
    """

    __slots__ = ("message", "stopped")

    def __init__(self, message: Message, *, stopped: bool = False) -> None:
        super().__init__()
        self.message = message
        self.stopped = stopped


class Conversation:
    """Turns of a user and a model, each user's turn answered before the next.

    Attributes:
        system: The system prompt, "" for none. A new one holds from the next answer on.
        tree: All branches; `tree.path` are the turns as they are shown, user's and assistant's in turn.
        session: Holds what it can of the conversation in its cache, so an answer costs only what is new.
        forgotten: Turns at the front of the path that no longer fit the context.
        growing: Whether what is being said makes the last answer longer: see `resume`.
    """

    def __init__(
        self,
        model: LoadedModel,
        system: str | None = None,
        *,
        context: int | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        """
        Args:
            system: None takes what the model's own chat template begins with, "" none.
            sampling: For `send` and `stream`.

        Raises:
            ModelError: The model has no chat format.
        """
        self.model = model
        self.format = model.chat_format
        self.context = context
        self.session = Session(model.backend, context)
        self.system = model.default_system if system is None else system
        self.tree: Tree[Turn] = Tree()
        self.forgotten = 0
        self.growing = False
        self._copied = False  # the answer that grows is a copy of what it was
        self._sampler = Sampler(sampling or Sampling())

    @property
    def turns(self) -> list[Message]:
        """The messages of the branch that is shown, without the system prompt."""
        return [turn.message for turn in self.tree.path]

    @property
    def messages(self) -> list[Message]:
        """The system prompt, if there is one, and all turns."""
        return [*self._system_messages, *self.turns]

    def ids(self) -> list[int]:
        """Of the system prompt and the turns that still fit, up to where the answer goes."""
        told = [*self._system_messages, *self.turns[self.forgotten :]]
        return self.format.render(self.model.tokenizer, told)

    def send(self, text: str) -> str:
        """The answer to `text`. A full context forgets the oldest turns."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Pieces of the answer as they come. One that is left early keeps all whole characters."""
        self.ask(text)
        generation = self.start(self._sampler, Limits(overflow="shift"))
        decoder = StreamDecoder(self.model.tokenizer, after=generation.prompt[-1])
        answer, whole = "", (0, "")  # tokens and text up to the last whole character
        try:
            for record in generation:
                answer += (piece := decoder.push(record.id))
                if not decoder.pending:
                    whole = len(generation.new_tokens), answer
                yield piece
            rest = decoder.flush()
            whole = len(generation.new_tokens), answer + rest
            if rest:
                yield rest
        finally:
            kept, text = whole
            self.finish(generation.new_tokens[:kept], text)

    def ask(self, text: str) -> None:
        """Adds a user's turn."""
        if self._last == "user":
            raise UsageError("the last question has no answer yet", "let it be answered again, or edit it")
        self.tree.mark()
        self._add(Message("user", text))

    def resume(self) -> None:
        """Lets the last answer go on: `start` continues it, and `finish` makes it longer.

        One that was already talked about stays as it is, and goes on in a copy beside it. A last question
        without an answer gets its first one.

        Raises:
            UsageError: There is nothing to continue.
        """
        if self._last == "user":
            return
        if not self.tree.path:
            raise UsageError("there is no answer to continue")
        old = self.tree.path[-1]
        self.growing, self._copied = True, bool(old.children)
        if self._copied:
            self.tree.mark()
            self.tree.cut(len(self.tree.path) - 1)
            self._add(old.message, stopped=old.stopped)

    def start(self, sampler: Sampler, limits: Limits | None = None) -> Generation:
        """The generation of an answer to the last question. `limits`: its stop ids and `keep` are set here.

        Raises:
            UsageError: There is no question to answer.
            ContextOverflowError: See `Session.start`.
        """
        if self._last != "user" and not self.growing:
            raise UsageError("there is no question to answer")
        limits = limits or Limits()
        told, self.forgotten = self.forgotten, 0
        told_before = len(ids := self.ids())
        if limits.overflow == "shift" and told_before > self.session.context:
            self.forgotten = told if told < len(self.tree.path) else 0
            told_before = len(ids := self.ids())
            if told_before > self.session.context:  # still, or again
                # Whole turns, and to the half: what is left grows again with its cache, instead of being
                # cut at another place with every question.
                while len(ids) > self.session.context // 2 and self.forgotten + 2 < len(self.tree.path):
                    self.forgotten += 2
                    ids = self.ids()
        generation = self.session.start(ids, sampler, self._completed(limits))
        generation.dropped_tokens += told_before - len(ids)
        return generation

    def finish(self, ids: Sequence[int], text: str, *, stopped: bool = False) -> None:
        """Records the answer as it is, also a partial or an empty one: turns must alternate."""
        if not self.growing:
            self._add(Message("assistant", text, tuple(ids)), stopped=stopped)
            return
        self.growing = False
        turn = self.tree.path[-1]
        old = turn.message
        known = None if old.ids is None else (*old.ids, *ids)
        turn.message = Message("assistant", old.content + text, known)
        turn.stopped = stopped

    def give_up(self) -> str:
        """What was asked, edited or taken back gets no answer: all is as it was before.

        Returns:
            The text of a question that nobody answered; "" where it was another answer that did not come.
        """
        if self.growing:
            self.growing = False
            if self._copied:
                self.tree.remove_end()
                self.tree.revert()
            return ""
        text = "" if self.tree.path[-1].children else self.withdraw()
        self.tree.revert()
        return text

    def regenerate(self, index: int | None = None) -> None:
        """Takes back an answer (turn `index`; None: the last) and all behind it: `start` gives another one.

        A last question without an answer gets its first one.

        Raises:
            UsageError: There is none.
        """
        if self._last == "user" and index in (None, len(self.tree.path)):
            return
        at = len(self.tree.path) - 1 if index is None else index
        if at < 0 or self.tree.path[at].message.role != "assistant":
            raise UsageError("there is no answer to take back")
        self.tree.mark()
        self.tree.cut(at)

    def edit(self, index: int, text: str) -> None:
        """Puts other words in the place of turn `index`, on a branch that ends there."""
        old = self.tree.path[index].message
        self.tree.mark()
        self.tree.cut(index)
        self._add(Message(old.role, text))

    def blank(self) -> "Conversation":
        """Another one, with the same system prompt."""
        return Conversation(self.model, self.system, context=self.context)

    def question(self, limits: Limits) -> tuple[list[int], Limits] | None:
        """(prompt, limits) of an answer to the last question, whether it has one already or not.

        `limits`: see `start`.
        """
        asked = len(self.tree.path) - (self._last == "assistant")
        if asked == 0:
            return None
        told = self.turns[self.forgotten if self.forgotten < asked else 0 : asked]
        ids = self.format.render(self.model.tokenizer, [*self._system_messages, *told])
        return ids, self._completed(limits)

    def flip(self, index: int, step: int) -> bool:
        """Shows what was tried in the place of turn `index`, `step` further; False where there is nothing."""
        return self.tree.flip(self.tree.path[index], step)

    def versions(self, index: int) -> tuple[int, int]:
        """(which, of how many) turn `index` is of those tried in its place."""
        siblings = self.tree.siblings(self.tree.path[index])
        return siblings.index(self.tree.path[index]) + 1, len(siblings)

    def withdraw(self) -> str:
        """Takes the unanswered question out again, and returns its text.

        Raises:
            UsageError: There is none.
        """
        if self._last != "user":
            raise UsageError("there is no question to take back")
        text = self.turns[-1].content
        self.tree.remove_end()
        return text

    def told_to(self, model: LoadedModel) -> "Conversation":
        """The same tree of words for another model, whose ids are others. This conversation ends with it.

        Raises:
            ModelError: That model has no chat format.
        """
        other = Conversation(model, self.system, context=self.context)
        other.tree = self.tree
        for turn in self.tree.walk():
            turn.message = replace(turn.message, ids=None)
        return other

    def _add(self, message: Message, *, stopped: bool = False) -> None:
        self.tree.add(Turn(message, stopped=stopped))

    def _completed(self, limits: Limits) -> Limits:
        return replace(
            limits,
            stop_ids=self.model.stop_ids | self.format.stop_ids(self.model.tokenizer),
            keep=max(1, self.format.system_length(self.model.tokenizer, self.messages)),
        )

    @property
    def _last(self) -> str:
        """Who spoke last."""
        return self.tree.path[-1].message.role if self.tree.path else ""

    @property
    def _system_messages(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []
