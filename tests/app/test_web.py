"""The server of `llamatui web`: who may come in, what is passed on, and what becomes of the processes."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textual_serve")

from aiohttp import CookieJar, WSServerHandshakeError
from aiohttp.test_utils import TestClient, TestServer

from llamatui.app.web import MOST_TABS, application
from llamatui.app.web_doors import Doors, public_origin

# An app of Textual, seen from outside: it says what it was given, and ends when it is asked to.
APP = r"""
import json, os, sys, time
write = sys.stdout.buffer.write
def packet(kind, data):
    write(kind + len(data).to_bytes(4, "big") + data)
    sys.stdout.buffer.flush()
write(b"__GANGLION__\n")
packet(b"D", f"pid {os.getpid()} of {os.environ['COLUMNS']}".encode())
read = sys.stdin.buffer.read
while head := read(5):
    data = read(int.from_bytes(head[1:], "big"))
    if head[:1] == b"M" and b"quit" in data:
        if sys.argv[1:] == ["deaf"]:
            continue
        break
    packet(b"D", head[:1] + data)
    if data == b"print":
        write(b"Hello\0\0\0\1x" * 99)
        sys.stdout.buffer.flush()
    if data == b"die":
        sys.exit("boom")
packet(b"M", b'{"type": "exit"}')
"""


def address(host: str, public: str | None = None) -> tuple[Doors, str]:
    """Doors, and what they let in: `/?token=...`."""
    doors = Doors(host, 8000, public_origin(public) if public else None)
    return doors, doors.address.partition("8000" if public is None else public)[2]


class PatientServer(TestServer):
    """As `serve` runs it: a handler whose browser is gone is not cancelled."""

    async def _make_runner(self, **options: Any) -> Any:
        return await super()._make_runner(**{**options, "handler_cancellation": False})


@asynccontextmanager
async def browse(
    *args: str, public: str | None = None, token: bool = True, command: str = sys.executable
) -> AsyncIterator[Any]:
    """A client of a server that serves APP; one that has been let in, if it came with the token."""
    doors, path = address("127.0.0.1", public)
    app = application([command, "-c", APP, *args], doors)
    async with TestClient(PatientServer(app), cookie_jar=CookieJar(unsafe=True)) as client:
        if token:
            response = await client.get(path, allow_redirects=False)
            name, value = response.headers["Set-Cookie"].partition(";")[0].split("=")
            client.session.headers["Cookie"] = f"{name}={value}"  # whatever Host is said
        yield client


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


async def opened(client: Any, **headers: str) -> tuple[Any, int]:
    """(websocket, process id of its app)."""
    tab = await client.ws_connect("/ws?width=91&height=x", headers=headers)
    greeting = (await tab.receive_bytes()).decode()
    assert greeting.endswith(" of 91")
    return tab, int(greeting.split()[1])


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.01)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux's process table")


async def test_the_page_loads_nothing_from_elsewhere() -> None:
    async with browse() as client:
        response = await client.get("/")
        page = await response.text()
        assert "http" not in page.replace("http-equiv", "")
        assert f"ws://127.0.0.1:{client.port}/ws" in page
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert (await client.get("/focus.js")).content_type == "text/javascript"
        assert "/focus.js" in page  # so that keys arrive before the first click
        for name in ("js/textual.js", "css/xterm.css", "fonts/RobotoMono-VariableFont_wght.ttf"):
            assert f"/static/{name}" in page
            assert (await client.get(f"/static/{name}")).status == 200
        assert (await client.get("/static/")).status == 403
        assert (await client.get("/download/x")).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9"}, 200),
        ({"Host": "192.168.1.2:9"}, 200),
        ({"Host": "[::1]:9"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:9"}, 403),
        ({"Host": "[evil"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "user@localhost"}, 403),
        ({"Host": "127.0.0.1:1;script-src *"}, 403),
        ({"Host": "127.0.0.1:x"}, 403),
        ({"Host": "2130706433"}, 403),
        ({"Host": "\udcff"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Origin": "http://localhost:x"}, 403),
        ({"Origin": "\udcff"}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Host": "localhost:9", "Origin": "http://localhost:8"}, 403),
        ({"Host": "localhost:9", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:9", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost:80"}, 200),
        ({"Host": "LocalHost.:9", "Origin": "http://localhost:9"}, 200),
        ({"Host": "tales.example", "Origin": "https://tales.example"}, 200),
        ({"Host": "tales.example", "Origin": "https://tales.example:443"}, 200),
        ({"Host": "localhost:9", "Origin": "https://tales.example"}, 200),
    ],
)
async def test_only_pages_of_this_server_come_in(headers: dict[str, str], status: int) -> None:
    async with browse(public="https://tales.example") as client:
        for path in ("/", "/static/js/textual.js"):
            assert (await client.get(path, headers=headers)).status == status
        if status == 403:
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            assert (await client.get("/ws", headers={**headers, **upgrade, **key})).status == 403
        else:
            assert "wss://tales.example/ws" in await (await client.get("/", headers=headers)).text()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "[::1", "Origin": "http://[::1"}, 403),
        ({"Host": "localhost:9", "Origin": "http://[::1"}, 403),
    ],
)
async def test_without_a_public_name_only_this_machine_s_do(headers: dict[str, str], status: int) -> None:
    async with browse() as client:
        assert (await client.get("/", headers=headers)).status == status


@pytest.mark.parametrize(
    "path", ["/", "/?token=", "/?token=x", "/?token=%ff", "/ws", "/download/x", "/static/js/textual.js"]
)
async def test_without_the_token_nobody_gets_in(path: str) -> None:
    async with browse(token=False) as client:
        for cookie in (
            "",
            "llamatui-8000",
            "llamatui-8000=",
            "llamatui-8000=x",
            'a,b=c; "; llamatui-8000=\udcff',
        ):
            response = await client.get(path, headers={"Cookie": cookie}, allow_redirects=False)
            assert (response.status, "Set-Cookie" in response.headers) == (403, False)
            assert "the address that <b>llamatui web</b> printed" in (await response.text())


async def test_the_token_is_exchanged_for_a_cookie() -> None:
    doors, path = address("127.0.0.1")
    async with TestClient(TestServer(application(["x"], doors)), cookie_jar=CookieJar(unsafe=True)) as client:
        assert (await client.get(path.replace("/?", "/ws?"), allow_redirects=False)).status == 403
        response = await client.get(path, allow_redirects=False)
        assert (response.status, response.headers["Location"]) == (303, "/")
        assert "token" not in await response.text()
        cookie = response.headers["Set-Cookie"]
        assert cookie.startswith(f"llamatui-8000={path.partition('=')[2]};")
        assert {part.strip() for part in cookie.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=Strict"}
        page = await client.get("/")
        assert (page.status, page.headers["Referrer-Policy"]) == (200, "no-referrer")
        assert (await client.get(path)).url.query_string == ""


def test_every_server_has_a_token_of_its_own_in_its_address() -> None:
    """One that a browser can open, whatever addresses it listens on."""
    tokens = {address("127.0.0.1")[1] for _ in range(3)}
    assert len(tokens) == 3
    assert all(len(token) == 40 for token in tokens)
    for host, shown in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("hen", "hen")):
        assert address(host)[0].address.startswith(f"http://{shown}:8000/?token=")


async def test_behind_https_the_cookie_never_goes_another_way() -> None:
    doors, path = address("127.0.0.1", "https://tales.example")
    assert doors.address.startswith("https://tales.example/?token=")
    async with TestClient(TestServer(application(["x"], doors))) as client:
        response = await client.get(path, headers={"Host": "tales.example"}, allow_redirects=False)
        assert "; Secure" in response.headers["Set-Cookie"]


async def test_there_is_a_bound_on_tabs() -> None:
    async with browse() as client:
        tabs = [(await opened(client))[0] for _ in range(MOST_TABS)]
        response = await client.get("/")
        assert response.status == 503
        assert f"{MOST_TABS} tabs are open" in await response.text()
        assert (await client.get("/ws")).status == 503
        await tabs[0].close()
        tab, _ = await opened(client)
        assert not tab.closed


async def test_the_bound_holds_for_tabs_that_are_opened_at_once() -> None:
    async with browse() as client:
        tries = [client.ws_connect("/ws") for _ in range(2 * MOST_TABS)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        refused = [answer.status for answer in answers if isinstance(answer, WSServerHandshakeError)]
        assert refused == [503] * MOST_TABS
        for tab in answers:
            if not isinstance(tab, WSServerHandshakeError):
                assert (await tab.receive_bytes()).startswith(b"pid ")


@needs_proc
async def test_the_bound_holds_for_apps_that_are_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamatui.app.web.MOST_TABS", 1)
    monkeypatch.setattr("llamatui.app.web.PATIENCE", 1.0)
    async with browse("deaf") as client:
        tab, before = await opened(client)
        await tab.close()
        await opened(client)  # as when a page is loaded again
        assert not alive(before)


async def test_an_app_that_cannot_be_started_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with browse(command="/nowhere/python") as client:
        for _ in range(MOST_TABS + 1):
            tab = await client.ws_connect("/ws")
            assert (await tab.receive()).data in (1000, 1001, None)
    assert caplog.messages[0] == "llamatui web: a tab cannot have a process: No such file or directory"


async def test_what_is_no_packet_ends_the_tab(caplog: pytest.LogCaptureFixture) -> None:
    async with browse() as client:
        tab, _ = await opened(client)
        await tab.send_str('["stdin", "print"]')
        assert await tab.receive_bytes() == b"Dprint"
        assert (await tab.receive()).data in (1000, 1001, None)
    assert "wrote what is no packet" in caplog.text


async def test_keys_and_sizes_go_in_and_the_screen_comes_out() -> None:
    async with browse() as client:
        tab, _ = await opened(client)
        for hostile in ("[", "[[[", "5", '["stdin", 5]', '["resize", {"width": "x"}]', '["nonsense"]'):
            await tab.send_str(hostile)
        await tab.send_str('["stdin", "h\\ud800i"]')
        assert await tab.receive_bytes() == b"Dh?i"
        await tab.send_str('["resize", {"width": 100000, "height": -3}]')
        assert await tab.receive_bytes() == b'M{"type": "resize", "width": 1000, "height": 1}'
        await tab.send_str('["ping", Infinity]')
        await tab.send_str('["ping", "12"]')
        assert await tab.receive_json() == ["pong", "12"]


@needs_proc
async def test_a_closed_tab_ends_its_app_alone() -> None:
    async with browse() as client:
        (one, first), (_, second) = await opened(client), await opened(client)
        await one.close()
        await until(lambda: not alive(first))
        assert alive(second)
    assert not alive(second)  # nor with the server


@needs_proc
@pytest.mark.parametrize("patience", [0.1, 0])
async def test_an_app_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    async with browse("deaf") as client:
        monkeypatch.setattr("llamatui.app.web.PATIENCE", patience)
        tab, pid = await opened(client)
        await tab.close()
        await until(lambda: not alive(pid))


async def test_an_app_that_dies_closes_its_tab(capfd: pytest.CaptureFixture[str]) -> None:
    async with browse() as client:
        tab, _ = await opened(client)
        await tab.send_str('["stdin", "die"]')
        assert await tab.receive_bytes() == b"Ddie"
        assert (await tab.receive()).data in (1000, 1001, None)
        assert tab.closed
