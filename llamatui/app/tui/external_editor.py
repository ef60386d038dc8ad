"""Writes a text in the editor that a person is used to."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from textual.app import App, SuspendNotSupported

from llamatui.errors import LlamatuiError, UsageError


def edit_outside(app: App[Any], text: str) -> str:
    """What $VISUAL or $EDITOR makes of `text`. The app stands still meanwhile.

    Raises:
        UsageError: There is no editor.
        LlamatuiError: It failed.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    if not editor.strip():
        raise UsageError("no editor is set", "export EDITOR=nano, or another one, before llamatui")
    try:
        # Some editors leave a backup beside the file.
        with tempfile.TemporaryDirectory(prefix="llamatui-", ignore_cleanup_errors=True) as folder:
            path = Path(folder, "message.md")
            path.write_text(text, "utf-8", "replace", newline="\n")
            command = [*_words(editor), str(path)]
            with app.suspend():
                failed = _failed(command)
            if failed:
                raise LlamatuiError(*failed)
            return path.read_text("utf-8", "replace").removesuffix("\n")
    except OSError as error:
        raise LlamatuiError(f"no file for the editor: {error.strerror or error}") from error
    except SuspendNotSupported as error:
        raise LlamatuiError("this terminal cannot make room for an editor") from error


def _failed(command: list[str]) -> tuple[str, str] | None:
    """Runs it; says why it failed, and what to do. An exception would leave the app suspended for ever."""
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        return f"{command[0]}: {error.strerror or error}", "set EDITOR to a program that is there"
    return (f"{command[0]} ended with exit code {code}", "the text is as it was") if code else None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command, posix=os.name == "posix")
    except ValueError:  # a quote that is not closed
        return [command]
