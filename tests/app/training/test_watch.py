"""Plain lines, what is said at the end, and who of several processes says it."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llamatui.app.training import watch as module
from llamatui.app.training.lines import next_commands, summary
from llamatui.app.training.metrics import METRICS
from llamatui.app.training.watch import watch
from llamatui.errors import LlamatuiError
from llamatui.train.events import Finished
from tests.app.training.runs import evaluation, fake_run

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(module, "plot", lambda out: None)
    monkeypatch.delenv("RANK", raising=False)


def watch_fake(out, **options):
    return watch(lambda stop: fake_run(out, stop, **options), out, plain=True, theme="dark")


def test_plain_lines_tell_the_run(tmp_path, capsys):
    assert watch_fake(tmp_path, steps=2, eval_interval=2) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "1.23 M parameters; cpu float32, 2 threads, 50 GFLOP/s",
        "2,048 tokens per step, 40.0 steps per epoch, 2 steps",
        "step 0  train 7.5000  valid 7.6000  2.5000 bits per byte  best so far",
        "  | Once upon a time, there was a llama.",
        "  | It told stories, and [31mnobody[0m minded.",
        "step 1  loss 7.2741  lr 5.00e-04  norm 0.50  12,346 tok/s  MFU 31.5%  left 0:00:00",
        "step 2  loss 6.8587  lr 1.00e-03  norm 0.50  12,346 tok/s  MFU 31.5%  left 0:00:00",
        "step 2  train 6.8587  valid 6.9587  2.2862 bits per byte  best so far",
        "  | Once upon a time, there was a llama.",
        "  | It told stories, and [31mnobody[0m minded.",
        f"step 2  saved {tmp_path / 'last.pt'}",
        "finished 2 steps, 0:01:15",
        "best after step 2: train 6.8587  valid 6.9587  2.2862 bits per byte",
        str(tmp_path / "last.pt"),
    ]
    assert err.splitlines() == [
        f"  try: llamatui train sample {tmp_path}",
        f"  try: llamatui train export {tmp_path} story.bin",
        "  try: llamatui story story.bin",
    ]


def test_of_the_steps_every_log_interval_th_is_told(tmp_path, capsys):
    watch_fake(tmp_path, steps=10, log_interval=4)
    steps = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if "tok/s" in line]
    assert steps == ["step 4", "step 8"]


def test_a_resumed_run_says_so(tmp_path, capsys):
    watch_fake(tmp_path, first=50, steps=52)
    assert "52 steps, going on after step 50" in capsys.readouterr().out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_of_several_processes_shows_and_writes(tmp_path, capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(module, "_is_terminal", lambda: True)
    watch(lambda stop: fake_run(tmp_path, stop, steps=3), tmp_path, plain=False, theme="dark")
    out, err = capsys.readouterr()
    assert ("step 3" in out) is (rank == "0")
    assert bool(out + err) is (rank == "0")
    assert (tmp_path / METRICS).exists() is (rank == "0")


def test_an_error_of_the_run_is_what_it_was(tmp_path, capsys):
    with pytest.raises(LlamatuiError, match="diverged"):
        watch_fake(tmp_path, error_after=3, error=LlamatuiError("it has diverged"))
    assert "finished" not in capsys.readouterr().out


def test_the_summary_names_the_best_model_and_what_to_do_with_it(tmp_path):
    end = Finished(1200, 3725.0, 2.0, False)
    (tmp_path / "best.pt").write_bytes(b"")
    text = summary(end, evaluation(1000), tmp_path)
    assert text.startswith("finished 1,200 steps, 1:02:05\nbest after step 1000: ")
    assert all(len(line) < 80 for line in text.splitlines()[:2])
    assert text.endswith(str(tmp_path / "best.pt"))
    commands = next_commands(Finished(7, 1.0, 2.0, True), Path("my runs/1"))
    assert commands.splitlines()[0] == "  try: the same command with --resume"
    assert "llamatui train sample 'my runs/1'" in commands


SCRIPT = """
import sys, time
from pathlib import Path
from llamatui.app.cli.main import main
import llamatui.app.cli.train as command
import llamatui.train.dataset
from tests.app.training.runs import fake_run

sys.modules["llamatui.train.run"] = module = type(sys)("llamatui.train.run")

def train(data, out, settings, *, resume, init_from, stop):
    return fake_run(Path(out), stop, steps=10**6, on_step=lambda step: time.sleep(0.02))

module.train = train
command.require_torch = lambda tell: None
llamatui.train.dataset.open_dataset = lambda path: None
main()
"""


def start(out, *args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE):
    command = [sys.executable, "-c", SCRIPT, "train", "run", "data", str(out), *args]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=REPOSITORY)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_plain_run_after_its_step_with_a_checkpoint(tmp_path, number):
    process = start(tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"step 3 "):
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"saved" in out
    assert b"stopped after" in out
    assert b"stopping: this step is finished and saved first" in err
    assert b"the same command with --resume" in err
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[-1])["stopped"] is True


def test_a_run_whose_output_cannot_be_written_is_saved_first(tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            if text.startswith("step 3"):
                raise OSError(28, "No space left on device")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Full())
    assert watch_fake(tmp_path, steps=10**6, eval_interval=10**6) != 0
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[-1])["stopped"] is True
    assert (tmp_path / "last.pt").exists()


def test_a_run_whose_reader_has_left_is_saved_first(tmp_path):
    """`llamatui train run ... | head -1`"""
    process = start(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == -signal.SIGPIPE  # 141, to a shell
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[-1])["stopped"] is True
    assert (tmp_path / "last.pt").exists()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("args", [[], ["--plain"]], ids=["live", "plain"])
def test_a_terminal_that_is_closed_stops_a_run_with_a_checkpoint(tmp_path, args):
    child, terminal = pty.fork()
    if not child:
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT, "train", "run", "data", str(tmp_path), *args])
    screen = b""
    while b"tok/s" not in screen:
        assert select.select([terminal], [], [], 60)[0], screen[-2000:]
        screen += os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert json.loads((tmp_path / METRICS).read_text().splitlines()[-1])["stopped"] is True
    assert (tmp_path / "last.pt").exists()


class Terminal:
    """A run in a terminal of its own."""

    def __init__(self, out, *args):
        self.screen = b""
        self._fd, child = pty.openpty()
        self.process = start(out, *args, stdin=child, stdout=child, stderr=child)
        os.close(child)

    def read_until(self, *texts):
        while not all(text in self.screen for text in texts):
            assert select.select([self._fd], [], [], 60)[0], f"waited for {texts}: {self.screen[-2000:]!r}"
            try:
                self.screen += os.read(self._fd, 1 << 16)
            except OSError:  # it has ended
                assert all(text in self.screen for text in texts), self.screen[-2000:]

    def press(self, keys):
        os.write(self._fd, keys)

    def close(self):
        """Reads to its end; returns what came after the live view."""
        while True:
            assert select.select([self._fd], [], [], 60)[0], f"waited for the end: {self.screen[-2000:]!r}"
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:
                break
            if not data:
                break
            self.screen += data
        os.close(self._fd)
        return self.screen.rpartition(b"\x1b[?1049l")[2]


@pytest.mark.parametrize("keys", [b"\x03", b"signal"])
def test_a_key_or_a_signal_stops_a_live_run_and_the_summary_follows_the_screen(tmp_path, keys):
    terminal = Terminal(tmp_path)
    terminal.read_until(b"\x1b[?1049h", b"tok/s")
    if keys == b"signal":
        terminal.process.send_signal(signal.SIGTERM)
    else:
        terminal.press(keys)
    after = terminal.close()
    assert terminal.process.wait(30) == (143 if keys == b"signal" else 130)
    assert b"stopped after" in after
    assert b"llamatui train sample" in after
    assert (tmp_path / "last.pt").exists()


def test_in_a_terminal_with_plain_there_are_lines(tmp_path):
    terminal = Terminal(tmp_path, "--plain")
    terminal.read_until(b"step 3  loss")
    terminal.process.send_signal(signal.SIGINT)
    terminal.close()
    assert terminal.process.wait(30) == 130
    assert b"\x1b" not in terminal.screen
