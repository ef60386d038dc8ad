"""What another program makes of a text, and what it leaves behind."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from llamatui.app.tui.external_editor import edit_outside
from llamatui.errors import LlamatuiError

RESUMED = []


@contextmanager
def suspend() -> Iterator[None]:
    """As Textual's: what is raised inside never lets the app go on."""
    RESUMED.clear()
    yield
    RESUMED.append(True)


APP = SimpleNamespace(suspend=suspend)


def test_an_editor_may_leave_a_backup(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = tmp_path / "editor.py"
    program.write_text(
        "import shutil, sys\n"
        "shutil.copy(sys.argv[1], sys.argv[1] + '~')\n"
        "open(sys.argv[1], 'a').write('!\\n')\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {program}")
    assert edit_outside(APP, "better") == "better!"


def test_half_a_surrogate_pair_gets_to_the_editor_as_a_sign(monkeypatch):
    monkeypatch.setenv("VISUAL", f"{sys.executable} -c pass")
    assert edit_outside(APP, "a\ud800b") == "a?b"


@pytest.mark.parametrize(
    ("editor", "error"),
    [
        ("", "no editor is set"),
        (f"{sys.executable} -c exit(3)", "ended with exit code 3"),
        ("no-such-editor --wait", "No such file"),
    ],
)
def test_an_editor_that_fails_is_told(monkeypatch, editor, error):
    monkeypatch.setenv("VISUAL", editor)
    monkeypatch.delenv("EDITOR", raising=False)
    RESUMED.append(True)
    with pytest.raises(LlamatuiError, match=error):
        edit_outside(APP, "text")
    assert RESUMED
