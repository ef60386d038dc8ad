"""Pictures of the real app for the README.

    python scripts/screenshots.py MODEL [docs] [--room story|chat] [--seed N] [--theme dark|light]

Writes story.svg or chat.svg, or both: each from one generation of MODEL, in a terminal of 100 x 30.
"""

import argparse
import asyncio
from pathlib import Path

from textual.pilot import Pilot

from llamatui.app.sampling import Sampling
from llamatui.app.tui.app import LlamaApp
from llamatui.app.tui.launch import Launch, RoomName

SIZE = (100, 30)
BEGINNINGS: dict[RoomName, str] = {
    "story": "Once upon a time, there was a little llama named Lily.",
    "chat": "Give me three short tips for telling a bedtime story, as a list.",
}


async def picture(room: RoomName, model: Path, seed: int, theme: str) -> str:
    """The room as SVG once the model has finished."""
    sampling = Sampling(0.6 if seed else 0.0, 0.9, seed=seed)
    app = LlamaApp(room, Launch(model, sampling, prompt=BEGINNINGS[room], theme=theme))

    def finished(pilot: Pilot[None]) -> bool:
        session = app.room.session
        return session is not None and bool(session.tokens) and not app.room.busy

    async with app.run_test(size=SIZE) as pilot:
        while not finished(pilot):
            await pilot.pause(0.1)
        await pilot.pause(0.2)
        return app.export_screenshot(title="llamatui")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--room", choices=["story", "chat"])
    parser.add_argument("--seed", type=int, default=0, help="0 takes the likeliest tokens")
    parser.add_argument("--theme", default="dark")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rooms: list[RoomName] = [arguments.room] if arguments.room else ["story", "chat"]
    for room in rooms:
        path = arguments.folder / f"{room}.svg"
        path.write_text(asyncio.run(picture(room, arguments.model, arguments.seed, arguments.theme)), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
