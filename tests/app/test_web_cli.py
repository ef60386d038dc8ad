"""`llamatui web`: who may come in, what is passed on, and what becomes of the processes."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamatui.app.cli import web as command
from llamatui.app.cli.main import run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """call(...): (exit code, stdout, stderr) of `llamatui web ...`."""

    def called(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llamatui", "web", *map(str, args)])
        code = run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def served(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ...]]:
    """served(...): what the command would serve: ((command, host, port, origin), stderr)."""
    web = pytest.importorskip("textual_serve") and __import__("llamatui.app.web", fromlist=["web"])

    def call_it(*args: object) -> tuple[Any, ...]:
        found: list[tuple[Any, ...]] = []
        monkeypatch.setattr(web, "serve", lambda *given: found.append(given))
        code, out, err = call(*args)
        assert (code, out) == (0, ""), err
        return found[0], err

    return call_it


def test_the_room_and_its_options_are_passed_on(served: Any, tiny_model: Path) -> None:
    (line, *where), err = served("story", tiny_model, "-t", "0.5", "-i", "a 'b' $(c); d", "--port", 9000)
    assert line == [
        sys.executable, "-m", "llamatui", "story", str(tiny_model), "-t", "0.5", "-i", "a 'b' $(c); d",
    ]  # fmt: skip
    assert where == ["127.0.0.1", 9000, None]
    assert err == ""
    (line, *_), _ = served()
    assert line[3:] == ["story"]
    (line, *_), _ = served("chat", "some-model", "--", "-y", "--port")
    assert line[3:] == ["chat", "some-model", "-y", "--port"]


def test_other_addresses_are_warned_about(served: Any) -> None:
    (_, host, *_), err = served("--host", "0.0.0.0")
    assert host == "0.0.0.0"
    assert "warning: whoever can reach 0.0.0.0:8000 can" in err


def test_what_the_browser_calls_it(served: Any, call: Call) -> None:
    (*_, origin), _ = served("--public-url", "https://Tales.example:444/")
    assert origin == "https://tales.example:444"
    for url in ("tales.example", "ftp://x", "https://x/path", "https://"):
        code, _, err = call("--public-url", url)
        assert (code, "expected http(s)://name[:port]" in err) == (2, True)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("story", "--nonsense"), 2, "No such option"),
        (("story", "-t", "warm"), 2, "'warm' is not a valid float"),
        (("story", "-t", "-1"), 2, "temperature must be in"),
        (("story", "a", "b"), 2, "unexpected extra argument"),
        (("story", "--overflow", "x"), 2, "--overflow must be"),
        (("chat",), 3, "chat needs an instruct model"),
        (("chat", "x", "--json"), 2, "--json is for pipes"),
        (("--port", "0"), 2, "0 is not in the range"),
    ],
)
def test_a_wrong_option_is_told_in_the_shell(
    args: tuple[str, ...], code: int, message: str, call: Call
) -> None:
    found, out, err = call(*args)
    assert (found, out) == (code, "")
    assert message in err


def test_without_its_extra(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    code, _, err = call()
    assert code == 1
    assert 'pip install "llamatui[web]"' in err


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
    if data == b"die":
        sys.exit("boom")
packet(b"M", b'{"type": "exit"}')
"""


def browse(*args: str, host: str = "127.0.0.1", origin: str | None = None) -> Any:
    """A client of a server that serves APP."""
    pytest.importorskip("textual_serve")
    from aiohttp.test_utils import TestClient, TestServer

    from llamatui.app.web import Doors, application

    app = application([sys.executable, "-c", APP, *args], Doors(host, origin))
    return TestClient(TestServer(app))


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
    async with asyncio.timeout(20):
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
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, 200),
        ({"Host": "localhost:9", "Origin": "http://localhost:8"}, 403),
        ({"Host": "localhost:9", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:9", "Origin": "null"}, 403),
        ({"Host": "tales.example", "Origin": "https://tales.example"}, 200),
        ({"Host": "localhost:9", "Origin": "https://tales.example"}, 200),
    ],
)
async def test_only_pages_of_this_server_come_in(headers: dict[str, str], status: int) -> None:
    async with browse(origin="https://tales.example") as client:
        for path in ("/", "/static/js/textual.js"):
            assert (await client.get(path, headers=headers)).status == status
        if status == 403:
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            key = {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
            assert (await client.get("/ws", headers={**headers, **upgrade, **key})).status == 403
        else:
            assert "wss://tales.example/ws" in await (await client.get("/", headers=headers)).text()


async def test_keys_and_sizes_go_in_and_the_screen_comes_out() -> None:
    async with browse() as client:
        tab, _ = await opened(client)
        for hostile in ("[", "[[[", "5", '["stdin", 5]', '["resize", {"width": "x"}]', '["nonsense"]'):
            await tab.send_str(hostile)
        await tab.send_str('["stdin", "h\\ud800i"]')
        assert await tab.receive_bytes() == b"Dh?i"
        await tab.send_str('["resize", {"width": 100000, "height": -3}]')
        assert await tab.receive_bytes() == b'M{"type": "resize", "width": 1000, "height": 1}'
        await tab.send_str('["ping", 12]')
        assert await tab.receive_json() == ["pong", 12]


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


def test_a_port_that_is_taken(call: Call, tiny_model: Path) -> None:
    pytest.importorskip("textual_serve")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = call("story", tiny_model, "--port", port)
    assert (code, out) == (1, "")
    assert f"port {port} of 127.0.0.1 is taken" in err
    assert f"--port {port + 1}" in err
    code, _, err = call("story", tiny_model, "--host", "192.0.2.77")
    assert (code, "cannot listen on port 8000 of 192.0.2.77" in err) == (1, True)
