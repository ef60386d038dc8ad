"""A chat without a screen: messages, the ids they are, and the session that answers.

chat.send("Who are you?")                        the answer

chat.ask("Who are you?")                         the same by hand, to see every token and to stop it
generation = chat.start(Sampler(Sampling()))
for record in generation: ...
chat.finish(generation.new_tokens, text)
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llamatui.app.engine import Generation, Limits, Session
from llamatui.app.model import LoadedModel
from llamatui.app.sampler import Sampler
from llamatui.app.sampling import Sampling
from llamatui.app.text_stream import StopMatcher, stream_text
from llamatui.errors import UsageError
from llamatui.tokenizers.chat_formats import Message


class Conversation:
    """Turns of a user and a model, each user's turn answered before the next.

    Attributes:
        system: The system prompt, "" for none. A new one holds from the next answer on.
        turns: User's and assistant's messages by turns, without the system prompt.
        session: Holds what it can of the conversation in its cache, so an answer costs only what is new.
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
        self.session = Session(model.backend, context)
        self.system = model.default_system if system is None else system
        self.turns: list[Message] = []
        self._told = 0  # turns before this one no longer fit the context
        self._sampler = Sampler(sampling or Sampling())

    @property
    def messages(self) -> list[Message]:
        """The system prompt, if there is one, and all turns."""
        return [*self._system_messages, *self.turns]

    def _ids(self) -> list[int]:
        """Of the system prompt and the turns that still fit, up to where the answer goes."""
        told = [*self._system_messages, *self.turns[self._told :]]
        return self.format.render(self.model.tokenizer, told)

    def send(self, text: str) -> str:
        """The answer to `text`. A full context forgets the oldest turns."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """Pieces of the answer as they come. One that is left early is kept as far as it went."""
        self.ask(text)
        generation = self.start(self._sampler, Limits(overflow="shift"))
        answer = ""
        try:
            for _, piece in stream_text(generation, self.model.tokenizer, StopMatcher(())):
                answer += piece
                yield piece
        finally:
            self.finish(generation.new_tokens, answer)

    def ask(self, text: str) -> None:
        """Adds a user's turn."""
        if self.turns and self.turns[-1].role == "user":
            raise UsageError("the last question has no answer yet")
        self.turns.append(Message("user", text))

    def start(self, sampler: Sampler, limits: Limits | None = None) -> Generation:
        """The generation of an answer to the last question. `limits`: its stop ids and `keep` are set here.

        Raises:
            UsageError: There is no question to answer.
            ContextOverflowError: See `Session.start`.
        """
        if not self.turns or self.turns[-1].role != "user":
            raise UsageError("there is no question to answer")
        limits = limits or Limits()
        whole = len(self._ids())
        if limits.overflow == "shift" and whole > self.session.context:
            # Whole turns, and to the half: what is left grows again with its cache, instead of being cut
            # at another place with every question.
            while len(self._ids()) > self.session.context // 2 and self._told + 1 < len(self.turns):
                self._told += 2
        ids = self._ids()
        limits = replace(
            limits,
            stop_ids=self.model.stop_ids | self.format.stop_ids(self.model.tokenizer),
            keep=max(1, self.format.system_length(self.model.tokenizer, self.messages)),
        )
        generation = self.session.start(ids, sampler, limits)
        generation.dropped_tokens += whole - len(ids)
        return generation

    def finish(self, ids: Sequence[int], text: str) -> None:
        """Records the answer as it is, also a partial or an empty one: turns must alternate."""
        self.turns.append(Message("assistant", text, tuple(ids)))

    def regenerate(self) -> None:
        """Takes the last answer back, so that `start` gives another one.

        Raises:
            UsageError: There is none.
        """
        if not self.turns or self.turns[-1].role != "assistant":
            raise UsageError("there is no answer to take back")
        self.turns.pop()

    def withdraw(self) -> str:
        """Takes the unanswered question back, and returns its text.

        Raises:
            UsageError: There is none.
        """
        if not self.turns or self.turns[-1].role != "user":
            raise UsageError("there is no question to take back")
        return self.turns.pop().content

    @property
    def _system_messages(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []
