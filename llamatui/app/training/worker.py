"""The thread that trains, while the main thread, which gets the signals, draws.

PyTorch releases the interpreter while it computes. Events go through a deque that the screen drains ten times
a second: a call into the event loop per step would slow small models down.
"""

import ctypes
import threading
from collections import deque
from collections.abc import Iterator

from llamatui.app.cli.terminal import Interrupted
from llamatui.train.events import Event, Finished


class Worker:
    """
    Attributes:
        error: What ended the run, unless it ended well.
        end: Its last event, once it ended well.
    """

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._fresh: deque[Event] = deque()
        self._begun = threading.Event()
        # A daemon: one that hangs in a driver must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="training", daemon=True)
        self.error: BaseException | None = None
        self.end: Finished | None = None

    def start(self) -> None:
        """Begins, and waits for the first event or error."""
        self._thread.start()
        self._begun.wait()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def drain(self) -> tuple[list[Event], bool]:
        """The events since the last call, and whether these were all."""
        done = not self.running  # asked first: what comes until then is drained below
        events = []
        while self._fresh:
            events.append(self._fresh.popleft())
        return events, done

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)

    def interrupt(self) -> None:
        """Raises Interrupted in the thread, as Ctrl+C does in the main one: half-written files go."""
        ident = self._thread.ident
        assert ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(Interrupted))

    def _work(self) -> None:
        try:
            for event in self._events:
                if isinstance(event, Finished):
                    self.end = event
                self._fresh.append(event)
                self._begun.set()
        except BaseException as error:
            self.error = error
        finally:
            self._begun.set()
