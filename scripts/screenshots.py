"""Pictures of the real app for the README: a short tour.

    python scripts/screenshots.py [docs] [--chat MODEL] [--theme dark|light]

The storyteller that comes along shows what else it could have said (tokens.svg), and goes on with its story
on two backends (compare.svg). With --chat, an instruct model answers (chat.svg).
"""

import os

# Textual reads them when it is imported.
os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", TEXTUAL_COLOR_SYSTEM="truecolor")

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from llamatui.app import store
from llamatui.app.sampling import Sampling
from llamatui.app.tui.app import LlamaApp
from llamatui.app.tui.compare_screen import CompareScreen
from llamatui.app.tui.launch import Launch, RoomName
from llamatui.backends.kernels.cache import Compilation, load_kernels

SIZE = (104, 30)
STORY = "Once upon a time, there was a little llama named Lily."
QUESTION = "Write a very short Python function that says hello to a llama."
SEED = 7

Scene = Callable[[Pilot[None]], Awaitable[None]]


async def written(pilot: Pilot[None]) -> None:
    """The model has finished."""
    app = pilot.app
    assert isinstance(app, LlamaApp)
    while not (app.room.session and app.room.session.tokens) or app.room.busy:
        await pilot.pause(0.1)
    await pilot.pause(0.5)


async def looked_at(pilot: Pilot[None]) -> None:
    """The heat map is on, and the cursor stands on a word that could have been another."""
    await written(pilot)
    await pilot.press("h", *["up"] * 7, *["right"] * 6)
    await pilot.pause(1)


async def compared(pilot: Pilot[None]) -> None:
    await written(pilot)
    await pilot.press(*["up"] * 9, "home", "backspace", "f2")
    while not isinstance(screen := pilot.app.screen, CompareScreen):
        await pilot.pause(0.1)
    while screen.busy or not screen.run:
        await pilot.pause(0.1)
    await pilot.pause(0.5)


async def picture(room: RoomName, model: Path, prompt: str, scene: Scene, theme: str, heat: float) -> str:
    launch = Launch(model, Sampling(heat, 0.9, seed=SEED), prompt=prompt, theme=theme)
    app = LlamaApp(room, launch)
    async with app.run_test(size=SIZE) as pilot:
        await scene(pilot)
        return app.export_screenshot(title="llamatui")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--chat", type=Path, metavar="MODEL")
    parser.add_argument("--theme", default="dark")
    arguments = parser.parse_args()
    story = store.BUNDLED.path
    scenes: list[tuple[str, RoomName, Path, str, Scene, float]] = [
        ("tokens", "story", story, STORY, looked_at, 0.6),
        ("compare", "story", story, STORY, compared, 0.6),
    ]
    if arguments.chat:
        scenes.append(("chat", "chat", arguments.chat, QUESTION, written, 0.0))
    # A backend that takes over in mid-text would tell another story.
    for compilation in [Compilation(kind) for kind in ("fp32", "q8_0") if load_kernels(kind) is None]:
        compilation.wait()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, room, model, prompt, scene, heat in scenes:
        path = arguments.folder / f"{name}.svg"
        path.write_text(asyncio.run(picture(room, model, prompt, scene, arguments.theme, heat)), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
