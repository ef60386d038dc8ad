"""The terminal app: a story room and a chat room on Textual.

    launch.py     what the command line hands over
    app.py        the app: opens models, switches backends and rooms, shows errors
    runner.py     the inference thread
    errands.py    what takes long beside it: opening a model, making another backend
    keys.py       every binding by its id, and what config.toml makes of it
    room.py       what both rooms share: bars, sampling panel, stopping, draining the thread
    story_room.py, chat_room.py
    page.py, flow.py, ...   widgets, and what they draw

Only this package and `app/training/live.py` import Textual. Modules that are imported before the first paint
import nothing that imports NumPy: the engine is loaded on the errands thread, while the room is already on
the screen.
"""

import gc

from llamatui.app.tui.launch import Launch, RoomName

__all__ = ["Launch", "RoomName", "run_app"]


def run_app(room: RoomName, options: Launch) -> int:
    """Runs the terminal app until the user leaves it; returns the exit code."""
    # Until the first paint nothing becomes garbage: collecting costs a tenth of the time until then.
    gc.disable()
    from llamatui.app.tui.app import LlamaApp

    app = LlamaApp(room, options)
    app.run()
    return app.return_code or 0
