"""What ends the app from outside: SIGTERM, and a terminal that is closed."""

import os
import pty
import select
import signal
import sys

import pytest

ROOM_IN_A_TERMINAL = """
import sys
from llamatui.app.cli.main import main
sys.argv = ["llamatui", "story", sys.argv[1], "-i", "the llama", "--backend", "numpy", "--overflow", "shift"]
main()
"""


@pytest.fixture
def writing_room(tiny_model):
    """(process id, its terminal) of a story room in which the model writes on and on."""
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", ROOM_IN_A_TERMINAL, str(tiny_model)])
    screen = b""
    while b"tok/s" not in screen:  # shown while it writes, and behind
        assert select.select([terminal], [], [], 60)[0], screen[-2000:]
        screen += os.read(terminal, 1 << 16)
    return child, terminal


def test_a_closed_terminal_ends_the_app(writing_room):
    child, terminal = writing_room
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP


def test_sigterm_leaves_the_terminal_as_it_was(writing_room):
    child, terminal = writing_room
    os.kill(child, signal.SIGTERM)
    screen = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # it has ended
            break
        screen += data
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGTERM
    assert b"\x1b[?1049l" in screen  # the screen that was there before
    assert b"Traceback" not in screen
