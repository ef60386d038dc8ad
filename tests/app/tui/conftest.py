"""A tiny model that writes words, a backend that says what a test wants, and a way to run the app on them."""

import asyncio
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual import events
from textual.notifications import Notification
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from llamatui.app.sampling import Sampling
from llamatui.app.tui.app import LlamaApp
from llamatui.app.tui.launch import Launch
from llamatui.app.tui.sampling_panel import Lock
from llamatui.backends import registry
from llamatui.backends.base import Backend
from llamatui.backends.checkpoint import ModelConfig
from llamatui.backends.checkpoint_writer import write_checkpoint
from tests.app.tui.settling import wait_for_handlers

WORDS = (  # noqa: SIM905 (readable)
    "the a little llama went up hill and saw red ball tree who said no yes to friend happy day it was big "
    "sun rain then she he found box with map of sea home again"
).split()
PIECES = [
    b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256)),
    *(chr(i).encode() for i in range(32, 127)), *(f" {word}".encode() for word in WORDS), b".\n",
]  # fmt: skip
FIRST_WORD = len(PIECES) - len(WORDS) - 1
CONTEXT = 96  # of the rooms; the model has more
PATIENCE = 60  # seconds until a test that waits for something has failed; a busy machine needs some
CONFIG = ModelConfig(
    dim=16, hidden_dim=32, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=len(PIECES), max_seq_len=512,
    shared_classifier=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def true_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same terminal everywhere."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture(autouse=True)
def handlers_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_handlers(monkeypatch)


@pytest.fixture(autouse=True)
def toasts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test may take longer to look at one than it is shown."""
    monkeypatch.setattr(Notification, "time_left", property(lambda self: 600.0))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, but a classifier that knows only words: it writes on until the context is full."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(1)

    def source(name: str, layer: int) -> np.ndarray:
        from llamatui.backends.checkpoint import tensor_layout

        shape = next(spec.shape for spec in tensor_layout(CONFIG, 0) if spec.name == name)
        if "norm" in name:
            return np.ones(shape, np.float32)
        w = rng.normal(size=shape).astype(np.float32) * (0.2 if name.startswith("w") else 1)
        if name == "tok_embeddings":
            w[:, 0] = 4  # every state points this way ...
        if name == "wcls":
            w = rng.normal(size=shape).astype(np.float32)
            w[:, 0] = 0
            w[:FIRST_WORD, 0] = -20  # ... where only words are likely
        return w

    write_checkpoint(folder / "tiny.bin", CONFIG, 0, source)
    records = [
        struct.pack("<fi", 0.0 if i < 259 else float(len(p)), len(p)) + p for i, p in enumerate(PIECES)
    ]
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", max(map(len, PIECES))) + b"".join(records))
    return folder / "tiny.bin"


class ScriptedBackend(Backend):
    """Says `script`, then ends the text. One script serves one generation after the other."""

    name = "scripted"
    description = "for tests"
    script: list[int]
    fail_after: int | None
    """Raises after that many tokens."""
    gate: threading.Semaphore | None
    """Each step waits for it, if there is one."""
    delay: float
    """Seconds that a step takes."""

    def _forward(self, tokens: Any, cache: Any, all_positions: bool) -> Any:
        cache.length += len(tokens)
        time.sleep(self.delay)
        if self.gate is not None:
            self.gate.acquire(timeout=PATIENCE)
        if self.fail_after is not None:
            if self.fail_after == 0:
                raise RuntimeError("the [bold]wires[/] burnt")
            ScriptedBackend.fail_after = self.fail_after - 1
        logits = np.zeros(self.config.vocab_size, np.float32)
        logits[self.script.pop(0) if self.script else 2] = 100
        return logits


Say = Callable[..., None]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """say("text", ...): from then on the model is scripted, and says this."""
    monkeypatch.setattr(registry, "default_backend", lambda checkpoint: ScriptedBackend.name)
    monkeypatch.setattr(registry, "backend_class", lambda name: ScriptedBackend)

    def prepare(
        text: str = "",
        gate: threading.Semaphore | None = None,
        fail_after: int | None = None,
        delay: float = 0,
        again: int = 1,
    ) -> None:
        ids = [PIECES.index(f"<0x{byte:02X}>".encode()) for byte in text.encode()]
        ScriptedBackend.script = [*ids, 2] * again
        ScriptedBackend.gate, ScriptedBackend.fail_after, ScriptedBackend.delay = gate, fail_after, delay

    prepare()
    return prepare


async def wait_until(condition: Callable[[], object], what: str = "", seconds: float = PATIENCE) -> None:
    """Lets the app run until `condition()` holds."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"waited {seconds} s for {what or condition}"
        await asyncio.sleep(0.01)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., Awaitable[None]]:
    return wait_until


@pytest.fixture
def make_app(tiny_model: Path) -> Callable[..., LlamaApp]:
    """make_app("story", temperature=..., seed=..., **Launch fields)"""

    def make(room: Any = "story", *, temperature: float = 0.0, seed: int = 0, **options: Any) -> LlamaApp:
        options = {"model": tiny_model, "context": CONTEXT, **options}
        return LlamaApp(room, Launch(sampling=Sampling(temperature, 0.9, seed=seed), **options))

    return make


def threads_of_ours() -> list[str]:
    """Names of threads that the app started and that still run."""
    ours = {"inference", "errands", "headers", "hashing", "history"}
    return [thread.name for thread in threading.enumerate() if thread.name in ours]


@pytest.fixture(name="threads_of_ours")
def threads_of_ours_fixture() -> Callable[[], list[str]]:
    return threads_of_ours


OpenRoom = Callable[..., AbstractAsyncContextManager[tuple[Any, Pilot[None]]]]


@pytest.fixture
def open_room(make_app: Callable[..., LlamaApp]) -> OpenRoom:
    """async with open_room("story", size=..., ...) as (room, pilot): the model is loaded."""

    @asynccontextmanager
    async def run(
        room: str, size: tuple[int, int] = (80, 24), **options: Any
    ) -> AsyncIterator[tuple[Any, Pilot[None]]]:
        app = make_app(room, **options)
        async with app.run_test(size=size) as pilot:
            await wait_until(lambda: app.room.model is not None, "the model")
            await wait_until(lambda: app.room.query(Lock), "the sampling fields")
            await pilot.pause()
            yield app.room, pilot
        assert not threads_of_ours()

    return run


@pytest.fixture
def kept(open_room: OpenRoom) -> OpenRoom:
    """`open_room` with a history."""

    def run(room: str, **options: Any) -> AbstractAsyncContextManager[tuple[Any, Pilot[None]]]:
        return open_room(room, history=True, kv_cache_mb=50, **options)

    return run


@pytest.fixture
def burst() -> Callable[..., Awaitable[None]]:
    """await burst(pilot, "enter", "tab"): keys that come as one read of the terminal.

    Each is handled before what the one before it has set going; `pilot.press` would wait between them.
    """

    async def type_at_once(pilot: Pilot[None], *keys: str) -> None:
        for key in keys:
            pilot.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await pilot.pause()

    return type_at_once


@pytest.fixture
def write() -> Callable[[Pilot[None], str], Awaitable[None]]:
    """Puts a text where the cursor is, faster than key by key."""

    async def paste(pilot: Pilot[None], text: str) -> None:
        screen = pilot.app.screen
        await wait_until(lambda: isinstance(screen.focused, Input | TextArea), "a line to write in")
        screen.focused.post_message(events.Paste(text))
        await pilot.pause()

    return paste


@pytest.fixture
def ask(write: Callable[[Pilot[None], str], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """await ask(room, pilot, "text"): the chat's answer is there."""

    async def ask(room: Any, pilot: Pilot[None], text: str) -> None:
        before = len(room.conversation.turns)
        await write(pilot, text)
        await pilot.press("enter")
        await wait_until(lambda: len(room.conversation.turns) == before + 2 and not room.busy, "an answer")
        await pilot.pause()

    return ask


def shown(widget: Any) -> str:
    """The text of a widget's lines on the screen."""
    return "\n".join(strip.text for strip in widget.render_lines(widget.size.region))


@pytest.fixture(name="shown")
def shown_fixture() -> Callable[[Any], str]:
    return shown
