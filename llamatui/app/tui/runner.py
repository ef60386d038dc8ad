"""The inference thread, and what a screen sees of it.

One thread generates: a session belongs to one thread at a time, and OpenMP keeps a pool of workers per
calling thread. Other runners, beside it, open models and read headers. The thread appends to a deque that the
screen drains now and then; a call into the event loop per token would cost 95 % of the speed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llamatui.app.engine import Generation, TokenRecord
    from llamatui.app.replay import Recorder
    from llamatui.app.sampling import Sampling
    from llamatui.tokenizers.base import Tokenizer

LONGEST_CHARACTER = 4  # bytes, in UTF-8
BATCHES_PER_SECOND = 30


class Piece(NamedTuple):
    """One token and the text that it completed: "" inside a character."""

    record: "TokenRecord"
    text: str
    pending: bool = False
    """Whether it ends inside a character."""


class Run:
    """One generation: made by a screen, called on the inference thread, drained by the screen.

    Attributes:
        generation: None until the thread got to it, or if it could not start.
        recorder: Of the tokens in `pieces`, and those that come; None as long as `generation` is.
        pieces: All that were drained so far.
        error: What ended it, unless it ended well.
    """

    def __init__(
        self,
        start: "Callable[[Sampling], Generation]",
        sampling: "Sampling",
        tokenizer: "Tokenizer",
        until: "Callable[[str, str], bool] | None" = None,
    ) -> None:
        """`until(text so far, piece)`: whether to stop before that piece."""
        self._start = start
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._until = until
        self._fresh: deque[Piece] = deque()
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self.generation: Generation | None = None
        self.recorder: Recorder | None = None
        self.pieces: list[Piece] = []
        self.error: Exception | None = None

    def __call__(self) -> None:
        from llamatui.app.replay import Recorder
        from llamatui.tokenizers.base import StreamDecoder

        try:
            self.generation = generation = self._start(self._sampling)
            generation.sampler.settings = self._sampling  # it may have changed meanwhile
            self.recorder = recorder = Recorder(generation)
            if self._cancelled.is_set():  # before there was a generation to cancel
                generation.cancel()
            decoder = StreamDecoder(self._tokenizer)
            for token in generation.prompt[-LONGEST_CHARACTER:]:
                decoder.push(token)  # a character may have begun there
            so_far = ""
            for record in generation:
                text = decoder.push(record.id)
                if self._until is not None:
                    if self._until(so_far, text):
                        generation.stop()
                        continue
                    so_far += text
                recorder.add(record)
                self._fresh.append(Piece(record, text, decoder.pending))
        except Exception as error:  # shown in the transcript; the app goes on
            self.error = error
        finally:
            self._done.set()

    def cancel(self) -> None:
        self._cancelled.set()
        if self.generation is not None:
            self.generation.cancel()

    def sample(self, sampling: "Sampling") -> None:
        """Lets `sampling` hold from the next token on; its seed was chosen already."""
        self._sampling = sampling
        if self.generation is not None:
            self.generation.sampler.settings = sampling

    def drain(self) -> tuple[str, bool]:
        """The text since the last call, and whether that was all."""
        done = self._done.is_set()  # asked first: what is appended until then is drained below
        text = []
        while self._fresh:
            piece = self._fresh.popleft()
            self.pieces.append(piece)
            text.append(piece.text)
        return "".join(text), done

    def complete_pieces(self) -> list[Piece]:
        """`pieces` without an unfinished character at the end, so that going on cannot tear it."""
        end = len(self.pieces)
        while end and self.pieces[end - 1].pending:
            end -= 1
        return self.pieces[:end]

    @property
    def waits(self) -> bool:
        """Whether words wait to be drained."""
        return bool(self._fresh)

    @property
    def begins(self) -> bool:
        """Whether the first ones do."""
        return self.waits and not self.pieces

    @property
    def done(self) -> bool:
        return self._done.is_set()


class Scoring:
    """What the model thinks of words that are there: asked by a screen, answered on the inference thread.

    Attributes:
        cancelled: Whether nobody wants to know any longer.
    """

    def __init__(
        self,
        score: "Callable[[], Iterator[TokenRecord]]",
        tell: "Callable[[list[TokenRecord], bool, Exception | None], object]",
    ) -> None:
        """`tell(records since the last call, whether that was all, error)` runs on the inference thread."""
        self._score = score
        self._tell = tell
        self.cancelled = False
        self.done = False

    def __call__(self) -> None:
        fresh: list[TokenRecord] = []
        told = time.monotonic()
        failed = None
        try:
            if self.cancelled:
                return
            for record in self._score():
                if self.cancelled:
                    return
                fresh.append(record)
                if time.monotonic() - told > 1 / BATCHES_PER_SECOND:
                    self._tell(fresh, False, None)
                    fresh, told = [], time.monotonic()
        except Exception as error:  # shown by the screen; the app goes on
            failed = error
        finally:
            self.done = True
            if not self.cancelled:
                self._tell(fresh, True, failed)

    def cancel(self) -> None:
        self.cancelled = True


class Closing(Exception):  # noqa: N818 (no error)
    """Raised inside a job to leave it, because the app is closing."""


class Runner:
    """Runs jobs one after another on a thread of its own, which starts with the first job."""

    def __init__(self, name: str, failed: Callable[[Exception], object]) -> None:
        """`failed` is called on that thread with what a job raised; the next job follows."""
        self._name = name
        self._failed = failed
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._open: list[Run | Scoring] = []  # what may have to be cancelled

    def submit(self, job: Callable[[], None]) -> None:
        """`job` may leave by raising `Closing`."""
        if self._closing.is_set():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name)
            self._thread.start()
        self._open = [other for other in self._open if not other.done]
        if isinstance(job, Run | Scoring):
            self._open.append(job)
        self._jobs.put(job)

    def check(self) -> None:
        """Called by long jobs now and then: raises `Closing` once the app is."""
        if self._closing.is_set():
            raise Closing

    def close(self) -> None:
        """Cancels what is under way and waits for the thread to end."""
        self._closing.set()
        for job in self._open:
            job.cancel()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._closing.is_set():
                continue
            try:
                job()
            except Closing:
                pass
            except Exception as error:
                self._failed(error)
            del job  # it may hold on to a model that is there no more
