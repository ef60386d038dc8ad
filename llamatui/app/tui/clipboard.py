"""Copies to the clipboard in two ways at once, as neither works everywhere.

OSC 52 asks the terminal, also through SSH, but some terminals ignore it. A tool of the system reaches its
clipboard in any terminal, but from another machine it would reach the wrong one.
"""

import os
import shutil
import subprocess
import threading
from contextlib import suppress
from typing import Any

from textual.app import App

TOOLS = (
    ("pbcopy",),
    ("wl-copy",),
    ("xclip", "-selection", "clipboard"),
    ("xsel", "--clipboard", "--input"),
    ("clip.exe",),
)
NEEDS = {"wl-copy": "WAYLAND_DISPLAY", "xclip": "DISPLAY", "xsel": "DISPLAY"}


def copy(app: App[Any], text: str) -> None:
    app.copy_to_clipboard(text)
    if command := tool():
        threading.Thread(target=_run, args=(command, text), name="clipboard", daemon=True).start()


def tool() -> list[str] | None:
    """The command of this system that reads what to copy; None where there is none, or over SSH."""
    if os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_TTY"):
        return None
    for name, *options in TOOLS:
        if (name not in NEEDS or os.environ.get(NEEDS[name])) and (path := shutil.which(name)):
            return [path, *options]
    return None


def _run(command: list[str], text: str) -> None:
    # clip.exe takes UTF-16 for what it is, and UTF-8 for something else.
    encoding = "utf-16" if command[0].endswith("clip.exe") else "utf-8"
    # If it fails, there was also the terminal's way.
    with suppress(OSError, subprocess.SubprocessError):
        # xclip and wl-copy stay behind to serve the clipboard: they get no pipe of ours to keep open.
        subprocess.run(
            command, input=text.encode(encoding, "replace"), timeout=5, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
