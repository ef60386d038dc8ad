"""The terminal app in a browser, by way of textual-serve: every tab gets a process of its own.

textual-serve pipes keys in and the screen out, and asks nobody where they come from. A page of any site that
is open in the same browser could connect, and drive an app that writes files: by naming our address (browsers
let websockets cross sites), or by a name of its own that it points here (DNS rebinding). So this is a server
of our own around textual-serve's processes, downloads and script. It answers a request only where Host is an
address or a name of this machine, and Origin, if there is one, the same. The page loads nothing from
elsewhere, which a Content-Security-Policy holds. Other users of this machine can come in, who reach
127.0.0.1 too.
"""

import asyncio
import errno
import html
import ipaddress
import logging
import shlex
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Sequence
from contextlib import redirect_stdout, suppress
from urllib.parse import urlsplit

from aiohttp import WSMessage, web
from textual_serve.app_service import AppService
from textual_serve.server import Server

from llamatui.errors import LlamatuiError, UsageError

PATIENCE = 5.0
"""Seconds that the app has to end by itself."""
LARGEST_SCREEN = 1000  # columns or lines

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
</head>
<body>
<div class="textual-terminal" data-session-websocket-url="{socket}" data-font-size="16"></div>
<p class="opening">Opening <b>llama</b><i>tui</i> ...</p>
<p class="ended">It has ended. <a href="/">Open it again</a></p>
</body>
</html>
"""


def public_origin(url: str) -> str:
    """What a browser sends as Origin for pages under `url`.

    Raises:
        UsageError: It is no http or https address, or has a path: the script knows only a server's root.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise UsageError(
            f"--public-url: expected http(s)://name[:port], found {url!r}", "https://example.org"
        )
    return f"{parts.scheme}://{parts.netloc}".lower()


class Doors:
    """Who may come in."""

    def __init__(self, host: str, origin: str | None) -> None:
        """`origin`: of the address that browsers use, where it is another."""
        self._origin = origin
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}
        if origin:
            self._names.add(urlsplit(origin).hostname or "")

    def refusal(self, request: web.BaseRequest) -> str:
        """Why `request` is not answered; "" if it is."""
        if not self._is_ours(request.host):
            return f"{request.host} is no name of this server"
        origin = request.headers.get("Origin")
        if origin is None or origin.lower() == self._origin:
            return ""
        return "" if urlsplit(origin).netloc.lower() == request.host.lower() else f"{origin} is another site"

    def _is_ours(self, host: str) -> bool:
        """Names are told apart from addresses: only a name can be pointed here by others."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def socket_url(self, request: web.BaseRequest) -> str:
        origin = urlsplit(self._origin or f"http://{request.host}")
        return f"{'wss' if origin.scheme == 'https' else 'ws'}://{origin.netloc}/ws"


class Tabs:
    """The open websockets, and the process of each."""

    def __init__(self, command: str, server: Server) -> None:
        self._command = command
        self._downloads = server.download_manager
        self._open: set[web.WebSocketResponse] = set()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        tab = web.WebSocketResponse(heartbeat=15)
        await tab.prepare(request)
        service = AppService(
            self._command,
            write_bytes=tab.send_bytes,
            write_str=tab.send_str,
            close=tab.close,
            download_manager=self._downloads,
        )
        self._open.add(tab)
        await service.start(_cells(request.query.get("width"), 80), _cells(request.query.get("height"), 24))
        process = service._process
        assert process is not None
        watch = asyncio.create_task(_close_after(process, tab))
        try:
            async for message in tab:
                await _pass_on(message, service)
        finally:
            self._open.discard(tab)
            await _end(service, process)
            await watch
        return tab

    async def close(self, app: web.Application) -> None:
        await asyncio.gather(*[tab.close() for tab in self._open])


async def _close_after(process: Process, tab: web.WebSocketResponse) -> None:
    """An app that ended, or did not begin, leaves no page that waits for it."""
    await process.wait()
    await tab.close()


async def _pass_on(message: WSMessage, service: AppService) -> None:
    """What textual.js sends; anything else is not for us."""
    try:
        content = message.json()
    except (ValueError, TypeError, RecursionError):
        return
    match content:
        case ["stdin", str(keys)]:
            await service.send_bytes(keys.encode("utf-8", "replace"))
        case ["resize", {"width": int(width), "height": int(height)}]:
            await service.set_terminal_size(_cells(width, 80), _cells(height, 24))
        case ["ping", sent]:
            await service.remote_write_str(f'["pong", {int(sent) if isinstance(sent, int | float) else 0}]')
        case ["blur", *_]:
            await service.blur()
        case ["focus", *_]:
            await service.focus()


async def _end(service: AppService, process: Process) -> None:
    """Asks the app to quit, and ends it if it does not."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    reader = service._task
    assert reader is not None
    try:
        # Two of them: what `stop` waits for may swallow a cancellation.
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout_at(deadline):
                await service.stop()
        reader.cancel()  # too late for `stop` to wait for it: two cannot read from one pipe
        await asyncio.wait([reader])
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout_at(deadline):
                await process.communicate()  # what it still writes: a full pipe would hold it
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _cells(value: object, default: int) -> int:
    try:
        return min(max(int(str(value)), 1), LARGEST_SCREEN)
    except ValueError:
        return default


def application(command: Sequence[str], doors: Doors) -> web.Application:
    """What is served: `command` is an app of Textual."""
    # `exec`: the shell that textual-serve starts becomes the app, and a signal reaches that.
    line = subprocess.list2cmdline(command) if sys.platform == "win32" else f"exec {shlex.join(command)}"
    server = Server(line)
    tabs = Tabs(line, server)

    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if refusal := doors.refusal(request):
            raise web.HTTPForbidden(text=f"llamatui web: {refusal}\n")
        return await handler(request)

    async def headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = POLICY.format(socket=doors.socket_url(request))
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"

    async def index(request: web.Request) -> web.Response:
        page = PAGE.format(socket=html.escape(doors.socket_url(request)))
        return web.Response(text=page, content_type="text/html")

    app = web.Application(middlewares=[web.middleware(guard)])
    app.add_routes(
        [
            web.get("/", index),
            web.get("/ws", tabs.handle),
            web.get("/download/{key}", server.handle_download),
            web.static("/static", server.statics_path),
        ]
    )
    app.on_response_prepare.append(headers)
    app.on_shutdown.append(tabs.close)
    return app


def serve(command: Sequence[str], host: str, port: int, origin: str | None = None) -> None:
    """Serves until Ctrl+C or a signal, and ends every process that it started.

    Raises:
        LlamatuiError: It cannot listen there.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # textual-serve writes to stdout what the app wrote to stderr.
    with redirect_stdout(sys.stderr):
        asyncio.run(_serve(application(command, Doors(host, origin)), host, port, origin))


async def _serve(app: web.Application, host: str, port: int, origin: str | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(NotImplementedError):  # Windows: Ctrl+C raises what main() says
                loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=PATIENCE + 2)
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
        shown = f"[{host}]" if ":" in host else host
        print(f"llamatui is at {origin or f'http://{shown}:{port}'}/ (Ctrl+C ends it)", flush=True)
        await stopped.wait()
    finally:
        await runner.cleanup()
