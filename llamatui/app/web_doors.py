"""Who may come in to the web app: browsers that got in with the token, on pages of this server.

Other users of this machine reach 127.0.0.1 too, and the app writes files. So the address that is printed has
a random token. The first visit exchanges it for a cookie, which scripts cannot read and other sites cannot
make a browser send, and every request needs that.

Host and Origin are a second line, against a page of another site that is open in the same browser: it could
name our address (browsers let websockets cross sites), or a name of its own that it points here (DNS
rebinding). Host must be an address or a name of this machine, and Origin, if there is one, the same.
"""

import ipaddress
import re
import secrets
import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from llamatui.errors import UsageError

PORTS = {"http": 80, "https": 443}
NAME = re.compile(r"[a-z0-9._-]+")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
"""Hosts that mean all addresses of this machine, and the one of them to show."""


class Origin(NamedTuple):
    """A server, as a browser's Origin names it."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + (f":{self.port}" if self.port != PORTS[self.scheme] else "")

    @property
    def socket(self) -> str:
        return f"ws{str(self).removeprefix('http')}/ws"


def parse(url: str) -> Origin | None:
    """Where `url` is the root of a server; None for anything else: nobody's input is trusted here."""
    try:
        parts = urlsplit(url)
        name, port = (parts.hostname or "").removesuffix("."), parts.port
        is_address = "[" in parts.netloc
        name = str(ipaddress.IPv6Address(name)) if is_address else name.encode("idna").decode()
    except ValueError:
        return None
    if parts.scheme not in PORTS or "@" in parts.netloc or not (is_address or NAME.fullmatch(name)):
        return None
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        return None
    return Origin(parts.scheme, name, PORTS[parts.scheme] if port is None else port)


def public_origin(url: str) -> Origin:
    """What a browser sends as Origin for pages under `url`.

    Raises:
        UsageError: It is no http or https address, or has a path: the script knows only a server's root.
    """
    if origin := parse(url):
        return origin
    raise UsageError(f"--public-url: expected http(s)://name[:port], found {url!r}", "https://example.org")


class Doors:
    def __init__(self, host: str, port: int, public: Origin | None = None) -> None:
        """`public`: what browsers call it, where that is another name."""
        self._origin = public or Origin("http", EVERYWHERE.get(host, host), port)
        self._public = public
        self._names = {"localhost", host.lower(), socket.gethostname().lower(), self._origin.host}
        self._token = secrets.token_urlsafe(24)
        # Cookies do not tell ports apart: two servers of one machine must not overwrite each other's.
        self._cookie = f"llamatui-{port}"

    @property
    def address(self) -> str:
        """Where to get in."""
        return f"{self._origin}/?token={self._token}"

    def refusal(self, request: web.BaseRequest) -> str:
        """Why `request` is not answered, whoever sent it; "" if it is."""
        here = self._here(request)
        if here is None:
            return f"{request.host!r} is no name of this server; another one is told by --public-url"
        origin = request.headers.get("Origin")
        if origin is not None and (parse(origin) or origin) not in (here, self._public):
            return f"{origin!r} is another site"
        return ""

    def lets_in(self, request: web.BaseRequest) -> bool:
        """Whether it has the cookie."""
        # Not `request.cookies`: one odd cookie of another server here would make that fail.
        cookies = request.headers.get("Cookie", "").split(";")
        return any(
            name == self._cookie and self._is_token(value)
            for name, _, value in (cookie.strip().partition("=") for cookie in cookies)
        )

    def welcome(self, request: web.BaseRequest) -> web.Response | None:
        """What one gets who comes with the token; None for all others."""
        if request.path != "/" or not self._is_token(request.query.get("token", "")):
            return None
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            self._cookie,
            self._token,
            httponly=True,
            samesite="Strict",
            secure=self._origin.scheme == "https",
        )
        return response

    def socket_url(self, request: web.BaseRequest) -> str:
        """Of the websocket; "" for a request that is refused."""
        origin = self._public or self._here(request)
        return origin.socket if origin else ""

    def _is_token(self, said: str) -> bool:
        return secrets.compare_digest(said.encode("utf-8", "replace"), self._token.encode())

    def _here(self, request: web.BaseRequest) -> Origin | None:
        """What `request` calls this server; None if it is no name of it."""
        found = parse(f"http://{request.host}")
        if found is None or found.host in self._names:
            return found
        try:
            ipaddress.ip_address(found.host)  # only a name can be pointed here by others
        except ValueError:
            return None
        return found
