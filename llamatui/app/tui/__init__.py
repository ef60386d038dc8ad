"""The terminal app: a story room and a chat room on Textual.

    launch.py     what the command line hands over
    app.py        the app: opens models, switches backends and rooms, shows errors
    runner.py     the inference thread
    errands.py    what takes long beside it: opening a model, making another backend
    keys.py       every binding by its id, and what config.toml makes of it
    keeping.py    what the rooms keep: their documents, in the history
    caches.py     KV caches on disk, and the hashes of the models that computed them
    rescue.py     a file for what the history could not take
    room.py       what both rooms share: bars, sampling panel, stopping, draining the thread
    story_room.py, chat_room.py
    page.py, flow.py, ...   widgets, and what they draw

Only this package and `app/training/live.py` import Textual. Modules that are imported before the first paint
import nothing that imports NumPy: the engine is loaded on the errands thread, while the room is already on
the screen.
"""

import gc
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

from llamatui.app.tui.launch import LEAVING, Launch, RoomName

if TYPE_CHECKING:
    from llamatui.app.tui.app import LlamaApp

GRACE = LEAVING + 3.0  # seconds from a signal until the process ends in any case

__all__ = ["Launch", "RoomName", "run_app"]


def run_app(room: RoomName, options: Launch) -> int:
    """Runs the terminal app until the user leaves it; returns the exit code."""
    # Until the engine is there nothing becomes garbage: collecting costs a tenth of the time until then.
    gc.disable()
    from llamatui.app.tui.app import LlamaApp

    app = LlamaApp(room, options)
    codes = leave_on_signal(app)
    app.run()
    if app.keeping.unsaved:
        where = f"they are in {app.keeping.rescued}" if app.keeping.rescued else "they are lost"
        print(f"llamatui: the last words could not be saved in the history; {where}", file=sys.stderr)
        return 1
    return codes[0] if codes else app.return_code or 0


def leave_on_signal(app: "LlamaApp") -> list[int]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end the app as its own key does.

    Returns:
        A list that then gets the exit code.
    """
    codes: list[int] = []

    def leave(code: int) -> None:
        app.call_later(app.exit, return_code=code)
        time.sleep(GRACE)
        os._exit(code)

    def handle(signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGTERM:
            # Textual would wait for ever to write its last words into a terminal that is gone.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
        codes.append(128 + signum)
        threading.Thread(target=leave, args=codes[:1], daemon=True).start()

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, handle)
    return codes
