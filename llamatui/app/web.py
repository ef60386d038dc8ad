"""The terminal app in a browser, by way of textual-serve: every tab gets a process of its own.

textual-serve pipes keys in and the screen out, and asks nobody who they are. So this is a server of our own
around its packets, downloads and script: `web_doors` says who may come in. The page loads nothing from
elsewhere, which a Content-Security-Policy holds.
"""

import asyncio
import errno
import html
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from aiohttp import WSMessage, web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager
from textual_serve.server import Server

from llamatui.app.tui import GRACE
from llamatui.app.web_doors import Doors, Origin
from llamatui.errors import LlamatuiError

log = logging.getLogger("llamatui.web")

PATIENCE = GRACE + 1
"""Seconds that the app has to end by itself: it may have something to save."""
LARGEST_SCREEN = 1000  # columns or lines
MOST_TABS = 8
"""Each loads a model of its own."""
LAST_WORDS = 1.0
"""Seconds until what an ended app wrote has been read."""
PRELUDE = b"__GANGLION__\n"
"""What an app of Textual writes before its first packet."""

POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self' {socket}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# textual.js fills the terminal, and marks the body when the first byte comes and when the socket closes.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>llamatui</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/css/xterm.css">
<style>
@font-face {{
  font-family: "Roboto Mono"; font-weight: 100 700;
  src: url("/static/fonts/RobotoMono-VariableFont_wght.ttf");
}}
@font-face {{
  font-family: "Roboto Mono"; font-weight: 100 700; font-style: italic;
  src: url("/static/fonts/RobotoMono-Italic-VariableFont_wght.ttf");
}}
html, body {{ height: 100%; margin: 0; background: #121212; color: #e0e0e0; }}
body {{ font: 16px "Roboto Mono", monospace; overflow: hidden; }}
.textual-terminal {{ position: absolute; inset: 0; }}
.xterm .xterm-viewport {{ overflow: hidden; background: none; }}
p {{ position: absolute; inset: 40% 0 auto; text-align: center; }}
a {{ color: inherit; }}
.ended, .-first-byte .opening, .-closed .opening, .-closed .textual-terminal {{ display: none; }}
.-closed .ended {{ display: block; }}
</style>
<script src="/static/js/textual.js"></script>
<script src="/focus.js" defer></script>
</head>
<body>
<div class="textual-terminal" data-session-websocket-url="{socket}" data-font-size="16"></div>
<p class="opening">Opening <b>llama</b><i>tui</i> ...</p>
<p class="ended">It has ended. <a href="/">Open it again</a>: its history has what was written.</p>
</body>
</html>
"""

# Else keys would go nowhere until somebody clicks.
FOCUS = """new MutationObserver((_, observer) => {
  if (document.body.classList.contains("-first-byte")) {
    observer.disconnect();
    document.querySelector(".xterm-helper-textarea").focus();
  }
}).observe(document.body, {attributes: true});
"""

NOTICE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>llamatui</title><link rel="icon" href="data:,"></head>
<body style="font: 16px monospace; margin: 4em auto; max-width: 40em">{text}</body>
</html>
"""
NO_TOKEN = (
    "<p>This browser has not been let in. Open the address that <b>llamatui web</b> printed where it was "
    "started: it ends in <b>/?token=</b> and a word that is new each time.</p>"
)
TOO_MANY = (
    f"<p>{MOST_TABS} tabs are open, and each holds a model in memory. Close one, then "
    '<a href="/">open it again</a>.</p>'
)


def notice(text: str, status: int) -> web.Response:
    return web.Response(text=NOTICE.format(text=text), status=status, content_type="text/html")


class App(AppService):  # type: ignore[misc]
    """The process of a tab.

    It is started, read and ended here, and textual-serve only knows what its packets mean: what it has of its
    own for that is private, takes a shell, and may wait for ever for an app that does not end.
    """

    def __init__(
        self, command: Sequence[str], tab: web.WebSocketResponse, downloads: DownloadManager
    ) -> None:
        super().__init__(
            "",
            write_bytes=tab.send_bytes,
            write_str=tab.send_str,
            close=tab.close,
            download_manager=downloads,
        )
        self._arguments = command
        self._downloads = downloads

    @property
    def stdin(self) -> asyncio.StreamWriter:
        assert self._child.stdin is not None
        return self._child.stdin

    async def start(self, width: int, height: int) -> None:
        """Raises OSError: there cannot be another process."""
        told = {
            "TEXTUAL_DRIVER": "textual.drivers.web_driver:WebDriver",
            "TEXTUAL_COLOR_SYSTEM": "truecolor",
            "TEXTUAL_FPS": "60",
            "TERM_PROGRAM": "textual",
            "COLUMNS": str(width),
            "ROWS": str(height),
        }
        # Errors go where the server's do.
        self._child = await asyncio.create_subprocess_exec(
            *self._arguments, stdin=PIPE, stdout=PIPE, env={**os.environ, **told}
        )
        self._reader = asyncio.create_task(self.run())

    async def run(self) -> None:
        """Passes on what the app writes. When it ends, so does its tab: no page waits for nothing."""
        stdout = self._child.stdout
        assert stdout is not None
        means = {b"D": self.on_data, b"M": self.on_meta, b"P": self.on_packed}
        try:
            await stdout.readuntil(PRELUDE)
            while True:
                pass_on = means[await stdout.readexactly(1)]
                payload = await stdout.readexactly(int.from_bytes(await stdout.readexactly(4), "big"))
                with suppress(ConnectionError):  # the browser is gone: a full pipe would hold the app
                    await pass_on(payload)
        except asyncio.IncompleteReadError:
            pass
        except (asyncio.LimitOverrunError, KeyError, ValueError) as error:
            log.error("llamatui web: a tab's app wrote what is no packet: %r", error)
        finally:
            await self.remote_close()

    async def stop(self) -> None:
        """Asks the app to quit, and ends it if it does not."""
        await self._downloads.cancel_app_downloads(app_service_id=self.app_service_id)
        asked = self.send_meta({"type": "quit"})
        ended = asyncio.gather(asked, self._reader, self._child.wait(), return_exceptions=True)
        try:
            await asyncio.wait([ended], timeout=PATIENCE)
        finally:
            if self._child.returncode is None:
                with suppress(ProcessLookupError):
                    self._child.kill()
            await asyncio.wait([ended], timeout=LAST_WORDS)
            ended.cancel()  # a process that it started may still hold the pipe


class Tabs:
    """The open websockets, and the process of each."""

    def __init__(self, command: Sequence[str], downloads: DownloadManager) -> None:
        self._command = command
        self._downloads = downloads
        self._open: set[web.WebSocketResponse] = set()
        self._processes = asyncio.Semaphore(MOST_TABS)  # those that are ending hold a model still

    @property
    def are_too_many(self) -> bool:
        return len(self._open) >= MOST_TABS

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.are_too_many:
            return notice(TOO_MANY, 503)
        tab = web.WebSocketResponse(heartbeat=15)
        self._open.add(tab)  # before anything is waited for: tabs may come at the same moment
        try:
            await tab.prepare(request)
            async with self._processes:
                await self._run(tab, request)
        finally:
            self._open.discard(tab)
        return tab

    async def _run(self, tab: web.WebSocketResponse, request: web.Request) -> None:
        app = App(self._command, tab, self._downloads)
        try:
            await app.start(_cells(request.query.get("width"), 80), _cells(request.query.get("height"), 24))
        except OSError as error:
            log.error("llamatui web: a tab cannot have a process: %s", error.strerror or error)
            await tab.close()
            return
        try:
            async for message in tab:
                await _pass_on(message, app)
        finally:
            self._open.discard(tab)  # its page may be loaded again, and waits for the process to end
            await app.stop()

    async def close(self, app: web.Application) -> None:
        await asyncio.gather(*[tab.close() for tab in self._open if tab.prepared])


async def _pass_on(message: WSMessage, app: App) -> None:
    """What textual.js sends; anything else is not for us."""
    try:
        content = message.json()
    except (ValueError, TypeError, RecursionError):
        return
    match content:
        case ["stdin", str(keys)]:
            await app.send_bytes(keys.encode("utf-8", "replace"))
        case ["resize", {"width": int(width), "height": int(height)}]:
            await app.set_terminal_size(_cells(width, 80), _cells(height, 24))
        case ["ping", str(sent)]:
            with suppress(ConnectionError):
                await app.remote_write_str(json.dumps(["pong", sent]))
        case ["blur", *_]:
            await app.blur()
        case ["focus", *_]:
            await app.focus()


def _cells(value: object, default: int) -> int:
    try:
        return min(max(int(str(value)), 1), LARGEST_SCREEN)
    except ValueError:
        return default


def application(command: Sequence[str], doors: Doors) -> web.Application:
    """What is served: `command` is an app of Textual."""
    server = Server("")  # for its files and downloads
    tabs = Tabs(command, server.download_manager)

    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if refusal := doors.refusal(request):
            return web.Response(text=f"llamatui web: {refusal}\n", status=403)
        if welcome := doors.welcome(request):
            return welcome
        if not doors.lets_in(request):
            return notice(NO_TOKEN, 403)
        return await handler(request)

    async def headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = POLICY.format(socket=doors.socket_url(request))
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"

    async def index(request: web.Request) -> web.Response:
        if tabs.are_too_many:
            return notice(TOO_MANY, 503)
        page = PAGE.format(socket=html.escape(doors.socket_url(request)))
        return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def focus(request: web.Request) -> web.Response:
        return web.Response(text=FOCUS, content_type="text/javascript")

    app = web.Application(middlewares=[web.middleware(guard)])
    app.add_routes(
        [
            web.get("/", index),
            web.get("/focus.js", focus),
            web.get("/ws", tabs.handle),
            web.get("/download/{key}", server.handle_download),
            web.static("/static", server.statics_path),
        ]
    )
    app.on_response_prepare.append(headers)
    app.on_shutdown.append(tabs.close)
    return app


def serve(command: Sequence[str], host: str, port: int, origin: Origin | None = None) -> None:
    """Serves until Ctrl+C or a signal, and ends every process that it started.

    Args:
        origin: What browsers call it, where that is another name.

    Raises:
        LlamatuiError: It cannot listen there.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    asyncio.run(_serve(command, Doors(host, port, origin), host, port))


async def _serve(command: Sequence[str], doors: Doors, host: str, port: int) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(NotImplementedError):  # Windows: Ctrl+C raises what main() says
                loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(
        application(command, doors), access_log=None, shutdown_timeout=PATIENCE + LAST_WORDS + 1
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LlamatuiError(
                    f"port {port} of {host} is taken", f"another one: --port {port + 1}"
                ) from None
            raise LlamatuiError(
                f"cannot listen on port {port} of {host}: {error.strerror}",
                "another --port, or another --host",
            ) from None
        print("llamatui web: open this address in a browser (Ctrl+C ends it)\n", file=sys.stderr)
        print(f"    {doors.address}\n", file=sys.stderr, flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
