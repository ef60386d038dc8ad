"""`llamatui web`: the terminal app in a browser."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamatui.app import store
from llamatui.app.cli import loading, rooms
from llamatui.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from llamatui.app.tui import RoomName

ROOMS: "dict[RoomName, Callable[..., None]]" = {"story": rooms.story, "chat": rooms.chat}
LOCAL = ("127.0.0.1", "localhost", "::1")

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What this command does not know is the room's."""
USAGE = "[OPTIONS] [story | chat] [MODEL] [OPTIONS OF THAT ROOM]"


def web(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's are not encrypted.")
    ] = LOCAL[0],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    public_url: Annotated[
        str | None,
        typer.Option(help="What the browser calls it, where a proxy stands in front.", metavar="URL"),
    ] = None,
) -> None:
    """Write stories or chat in a browser.

    The same app as in a terminal, on this machine, a process for each tab: closing or reloading a tab ends
    it, and the history has its text. The address that is printed has a token, without which nobody gets in.
    Ctrl+C ends all.

    Example: llamatui web chat SmolLM2-135M-Instruct -t 0.7
    """
    room, args = room_and_arguments(context.args)
    check(room, args)
    if find_spec("textual_serve") is None:
        raise MissingExtraError("llamatui web", "web")
    from llamatui.app.web import serve
    from llamatui.app.web_doors import public_origin

    origin = public_origin(public_url) if public_url else None
    if host not in LOCAL:
        print(
            "warning: nothing is encrypted: whoever reads the address on its way can run this machine's "
            "models, read the history of chats and stories, and write files where you can",
            file=sys.stderr,
        )
    serve([sys.executable, "-m", "llamatui", room, *args], host, port, origin)


def room_and_arguments(args: list[str]) -> "tuple[RoomName, list[str]]":
    """The room, which is a story's unless the first argument names it, and what it gets."""
    if args[:1] == ["chat"]:
        return "chat", args[1:]
    return "story", args[1:] if args[:1] == ["story"] else args


def check(room: "RoomName", args: list[str]) -> None:
    """Tells what is wrong with the room's options here, not in a browser.

    Raises:
        UsageError: One is out of its range, or what is to be opened again is not in the history; an unknown
            one, or none of its type, is told by Typer.
        ModelError: A chat, and no instruct model is named.
    """
    given = parsed(room, args)
    if given.pop("json", False):
        raise UsageError("--json is for pipes, not for a browser", "leave it out")
    model, prompt, last, uid = (given.pop(name) for name in ("model", "prompt", "last", "uid"))
    _, model = rooms.reopened(room, last, uid, prompt, model, given)
    settings = loading.settings_from(model, store.refuse_chat if room == "chat" else store.bundled, **given)
    loading.sampling(settings)
    loading.overflow_policy(settings, "stop")


def parsed(room: "RoomName", args: list[str]) -> dict[str, Any]:
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(room)(ROOMS[room])
    return typer.main.get_command(alone).make_context(f"llamatui web {room}", list(args)).params
