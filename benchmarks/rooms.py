"""Speed in the rooms: tokens per second against the same engine without a screen, and how late the screen is.

    python benchmarks/rooms.py                                    # the story model that comes along
    python benchmarks/rooms.py model.bin -z tokenizer.model --chat-format chatml
    python benchmarks/rooms.py --shape 15M -z tokenizer.model --chat-format llama2

Each measurement is a process of its own, in a pseudo-terminal of 120x36 whose output is read and thrown
away (`pty`) or with Textual's headless driver (`none`). There the room writes a text; before and behind it
the engine writes the same one on the same thread while the screen stands still, which is what `generate`
does. So both take turns, as a machine's speed may change from minute to minute; the ratio is the median of
all texts. The heat map's has in it what it costs to measure each token. A `generate` of its own process runs
beside them. Lag is what a timer of 20 ms in the app's event loop comes late by while the model writes;
`screen` is the processor time of that loop for each token, which other programs disturb least.

Beside it: the time until `llamatui story` shows its blank page in a pseudo-terminal, by turns with the least
that Textual can show, and until a page-up in a chat of 500 messages is on the screen, one every 0.3 s.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from random_models import SHAPES, model_files, write_models

from llamatui.app.sampling import Sampling

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from llamatui.app.engine import Generation, Limits
    from llamatui.app.model import LoadedModel
    from llamatui.app.tui.app import LlamaApp

COLUMNS, ROWS = 120, 36
SAMPLING = Sampling(temperature=1.0, top_p=0.9, seed=42)
OPENING = "Once upon a time, there was a little dragon who could not fly."
QUESTION = "Tell me a long story about a little dragon who could not fly."
MESSAGES = 500
PAGES = 60
LOOK = 0.3  # seconds that a page is looked at
TICK = 0.02  # seconds

THREE_WORDS = """
from textual.app import App
from textual.widgets import Static

class Words(App):
    def compose(self):
        yield Static("A blank page")

Words().run()
"""
ALONE = "generate"
ROOMS = {"story": "story", "story, heat map": "story", "chat": "chat"}

Result = dict[str, Any]


def main() -> int:
    args = arguments()
    if args.one:
        Path(args.out).write_text(json.dumps(measure(args)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        if args.shape:
            folder = args.models or args.folder
            folder.mkdir(parents=True, exist_ok=True)
            write_models(folder, args.shape, gguf=False)
            args.model = str(model_files(folder, args.shape)["fp32"].model)
        speed(args)
        print()
        paints = [(first_paint(args), first_paint()) for _ in range(3 * args.rounds + 1)][1:]
        room, words = (
            f"{statistics.median(s):.2f} s ({min(s):.2f} to {max(s):.2f})" for s in zip(*paints, strict=True)
        )
        print(f"first paint of the story room: {room}, of three words in Textual: {words} (pty)")
        if chats(args):
            pages = child(args, "scroll", "pty")["pages"]
            print(f"page-up in a chat of {MESSAGES} messages: {spread(pages)} (pty)")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="a .bin file; default: the story model that comes along")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    parser.add_argument("--models", type=Path, help="folder for those, kept for the next run")
    parser.add_argument("-z", "--tokenizer", help="its file")
    parser.add_argument("--chat-format", default="", help="needed where the model does not say")
    parser.add_argument("--backend", help="default: the app's")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3, help="texts in each measurement")
    parser.add_argument("--only", choices=[*ROOMS], action="append", help="rooms to measure, default: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--driver", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser.parse_args()


# The parent: one process per measurement.


def speed(args: argparse.Namespace) -> None:
    rooms = [name for name in args.only or ROOMS if ROOMS[name] == "story" or chats(args)]
    kinds = [(name, driver) for name in rooms for driver in ("pty", "none")]
    results: dict[tuple[str, str], list[Result]] = {kind: [] for kind in kinds}
    apart: list[Result] = []
    for _ in range(args.rounds):
        apart.append(child(args, ALONE, "none"))
        for name, driver in kinds:
            results[name, driver].append(child(args, name, driver))
    tok_s = statistics.median(result["tok_s"] for result in apart)
    print(f"{Path(args.model or 'the bundled model').name}, {apart[0]['backend']}:")
    print(f"  {ALONE:18}{'':6}{tok_s:9.1f} tok/s in a process of its own")
    for (name, driver), found in results.items():
        pairs = [pair for result in found for pair in result["pairs"]]
        lags = [lag for result in found for lag in result["lags"]]
        here, alone = (statistics.median(speeds) for speeds in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        print(
            f"  {name:18}{driver:6}{here:9.1f} tok/s, {alone:.1f} without the screen, "
            f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})  "
            f"screen {statistics.median(result['screen'] for result in found) * 1000:.2f} ms/token  "
            f"lag {spread(lags)}"
        )


def chats(args: argparse.Namespace) -> bool:
    from llamatui.app.model import load_model
    from llamatui.errors import LlamatuiError

    model = load_model(args.model, tokenizer=args.tokenizer, backend="numpy", chat_format=args.chat_format)
    try:
        return bool(model.chat_format)
    except LlamatuiError:
        return False


def child(args: argparse.Namespace, kind: str, driver: str) -> Result:
    """Measures one thing in a process of its own."""
    out = args.folder / "result.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", kind, "--driver", driver, "--out", str(out)]
    command += ["--repeat", str(args.repeat), *model_options(args), "--chat-format", args.chat_format]
    code = in_terminal(command)[0] if driver == "pty" else subprocess.run(command).returncode
    if code or not out.exists():
        raise SystemExit(f"{kind} ({driver}) ended with {code}")
    result: Result = json.loads(out.read_text())
    return result


def model_options(args: argparse.Namespace) -> list[str]:
    options = [args.model] if args.model else []
    for flag, value in (
        ("--tokenizer", args.tokenizer),
        ("--backend", args.backend),
        ("--threads", args.threads),
    ):
        options += [flag, str(value)] if value else []
    return options


def first_paint(args: argparse.Namespace | None = None) -> float:
    """Seconds from the start of a process until the story room, or else three words, can be seen."""
    command = ["-m", "llamatui", "story", *model_options(args)] if args else ["-c", THREE_WORDS]
    code, seconds = in_terminal([sys.executable, *command], b"A blank page")
    if code:
        raise SystemExit(f"the app ended with {code}")
    return seconds


def in_terminal(command: Sequence[str], awaited: bytes = b"") -> tuple[int, float]:
    """(exit status, seconds until it printed `awaited`); it is told to quit when it did."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled
    began, seen, printed = time.perf_counter(), 0.0, b""
    quit_ = threading.Timer(1, os.write, (master, b"\x11"))  # Ctrl+Q, once it listens
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        if awaited and not seen:
            printed += data
            if awaited in printed:
                seen = time.perf_counter() - began
                quit_.start()
    quit_.cancel()  # it may have ended by itself
    code = process.wait()
    os.close(master)
    return code, seen


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p99 = ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)]
    shown = zip(("p50", "p99", "max"), (statistics.median(ordered), p99, ordered[-1]), strict=True)
    return ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in shown)


# The child: one measurement.


def measure(args: argparse.Namespace) -> Result:
    return alone(args) if args.one == ALONE else in_room(args)


def alone(args: argparse.Namespace) -> Result:
    """What `llamatui generate` does, without a pipe to write into."""
    from llamatui.app.engine import Limits
    from llamatui.app.model import load_model
    from llamatui.backends.registry import default_backend
    from llamatui.backends.threads import limit_blas_threads

    limit_blas_threads(args.threads)
    model = load_model(args.model, tokenizer=args.tokenizer, backend="numpy")
    name = args.backend or default_backend(model.checkpoint)
    model = load_model(args.model, tokenizer=args.tokenizer, backend=name, threads=args.threads)
    prompt, limits = model.encode_prompt(OPENING), Limits(stop_ids=model.stop_ids)
    speeds = [generated(model, prompt, limits) for _ in range(args.repeat + 1)][1:]
    return {"tok_s": statistics.median(speeds), "backend": name}


def generated(model: "LoadedModel", prompt: Sequence[int], limits: "Limits") -> float:
    """Tokens per second of a text of which nothing is shown."""
    from llamatui.app.engine import Session
    from llamatui.app.sampler import Sampler
    from llamatui.app.text_stream import StopMatcher, stream_text

    generation = Session(model.backend.latest).start(prompt, Sampler(SAMPLING), limits)
    for _ in stream_text(generation, model.tokenizer, StopMatcher(())):
        pass
    return generation.timings.decode_tps


def in_room(args: argparse.Namespace) -> Result:
    from llamatui.app import store
    from llamatui.app.tui.app import LlamaApp
    from llamatui.app.tui.launch import Launch

    result: Result = {}
    name: Any = ROOMS.get(args.one, "chat")
    launch = Launch(
        model=args.model or str(store.bundled()), sampling=SAMPLING, tokenizer=args.tokenizer,
        backend=args.backend, threads=args.threads, chat_format=args.chat_format, overflow="stop",
    )  # fmt: skip
    gc.disable()  # as run_app does, until the engine is there
    app = LlamaApp(name, launch)

    async def drive(pilot: "Pilot[object]") -> None:
        try:
            await until(lambda: app.room.model is not None and not app.room.model.backend.preparing)
            if args.one == "scroll":
                result["pages"] = await scrolled(app)
            else:
                result.update(await written(app, args.repeat, heat="heat" in args.one))
        finally:
            app.exit()

    app.run(headless=args.driver == "none", size=(COLUMNS, ROWS), auto_pilot=drive)
    return result


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(TICK)


async def written(app: "LlamaApp", repeat: int, *, heat: bool) -> Result:
    """Tokens per second, here and without the screen, and lags of `repeat` texts, after one that warms up."""
    room: Any = app.room
    begin, argument = (room.write, OPENING) if room.NAME == "story" else (room.ask, QUESTION)
    again = room.action_retry if room.NAME == "story" else room.action_regenerate
    pairs: list[tuple[float, float]] = []
    apart: list[float] = []
    lags: list[float] = []
    screen: list[float] = []
    for number in range(repeat + 1):
        if number == 0:
            room.call_later(begin, argument)
        else:
            room.call_later(again)
        await until(lambda: room.run is not None and room.run.generation is not None)
        generation, spent = room.run.generation, time.thread_time()
        found = await lags_until(lambda: not room.busy)
        spent = time.thread_time() - spent
        await asyncio.sleep(TICK * 10)  # what is shown at the end
        apart.append(without_screen(room, generation))
        if number:
            pairs.append((generation.timings.decode_tps, sum(apart[-2:]) / 2))
            lags += found
            screen.append(spent / generation.timings.decode_tokens)
        elif heat:
            room.call_later(room.action_heat)
            await asyncio.sleep(2)  # what is there is measured first
    return {"pairs": pairs, "lags": lags, "screen": statistics.median(screen)}


def without_screen(room: Any, generation: "Generation") -> float:
    """Tokens per second of the same text again, on the inference thread, while the event loop waits."""
    limits = replace(generation.limits, alternatives=None, max_new_tokens=generation.timings.decode_tokens)
    done, speeds = threading.Event(), []

    def again() -> None:
        try:
            speeds.append(generated(room.model, generation.prompt, limits))
        finally:
            done.set()

    room.runner.submit(again)
    done.wait()
    return speeds[0]


async def lags_until(condition: Callable[[], object]) -> list[float]:
    found = []
    while not condition():
        began = time.perf_counter()
        await asyncio.sleep(TICK)
        found.append(time.perf_counter() - began - TICK)
    return found


async def scrolled(app: "LlamaApp") -> list[float]:
    """Seconds until each page-up was on the screen."""
    from llamatui.app.conversation import Turn
    from llamatui.tokenizers.chat_formats import Message

    room: Any = app.room
    answer = (
        "It *might* be so. For example:\n\n- one\n- two\n\n```python\nfor i in range(3):\n    print(i)\n```\n"
    )
    for number in range(MESSAGES):
        text = f"Question {number}: why?" if number % 2 == 0 else f"{answer}\n{'And so on. ' * 30}"
        room.conversation.tree.add(Turn(Message("assistant" if number % 2 else "user", text)))
    await painted(room, room.show)
    await asyncio.sleep(1)
    seconds = []
    for _ in range(PAGES):
        began = time.perf_counter()
        await painted(room, lambda: room.action_scroll_transcript("page_up"))
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(LOOK)
    return seconds


async def painted(room: Any, action: Callable[[], Awaitable[None] | None]) -> None:
    """Lets the room do it, and waits until it is on the screen."""
    done = asyncio.Event()

    async def act() -> None:
        if (result := action()) is not None:
            await result
        room.call_after_refresh(done.set)

    room.call_later(act)
    await done.wait()


if __name__ == "__main__":
    sys.exit(main())
