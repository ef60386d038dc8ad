"""A hub on loopback: enough of the Hugging Face hub's protocol to pull from, and ways to go wrong.

GET  /api/models/{repo}/revision/{revision}?blobs=true    what is in a repository
GET  /api/datasets/{repo}/revision/{revision}?blobs=true  the same of one whose name here is datasets/{repo}
GET  /{repo}/resolve/{revision}/{file}                    a file; large ones by way of a redirect
GET  /cdn/{repo}/{file}                                   where that redirect leads
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

STORIES = "karpathy/tinyllamas"
HF_REPO = "someone/Tiny-Chat"

LARGE_ENDS = (".bin", ".gguf", ".safetensors", ".model", "-train.txt", "-valid.txt")
"""Files in large file storage: their hash is a sha256, and they are served from elsewhere."""


@dataclass
class Request:
    path: str
    range: str
    authorization: str
    agent: str


@dataclass
class Hub:
    """What the server holds and how it behaves. Change it at any time."""

    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = "c0ffee" + "0" * 34
    requests: list[Request] = field(default_factory=list)

    cut_after: int | None = None
    """Bytes of a file after which the connection is closed..."""
    cuts: int = 1
    """...so many times."""
    go_on: threading.Event | None = None
    """Waited for after `cut_after` bytes."""
    ranges: bool = True
    """Whether a file may be asked for from a byte on."""
    sends: dict[str, bytes] = field(default_factory=dict)
    """Contents that are sent in place of a file's own."""
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    """HTTP status and X-Error-Code by the start of a path."""
    busy: int = 0
    """So many requests are answered with 503."""
    listing: bytes | None = None
    """What is answered in place of a listing."""
    hashes: dict[str, str] = field(default_factory=dict)
    """sha256 that is told in place of a file's own."""

    def fetched(self, file: str) -> list[Request]:
        """Requests for the bytes of a file."""
        return [r for r in self.requests if r.path.endswith(f"/{file}") and not r.path.startswith("/api")]

    def describe(self, repo: str) -> bytes:
        siblings = []
        for name, content in self.repos[repo].items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content)}
            if name.endswith(LARGE_ENDS):
                sha256 = self.hashes.get(name) or hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
                entry["blobId"] = "0" * 40
            else:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(entry)
        return json.dumps({"id": repo, "modelId": repo, "sha": self.commit, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        hub, headers = self.hub, self.headers
        path = unquote(urlsplit(self.path).path)
        request = Request(
            path, headers.get("Range", ""), headers.get("Authorization", ""), headers["User-Agent"]
        )
        hub.requests.append(request)
        if hub.busy:
            hub.busy -= 1
            return self.refuse(503, "")
        for start, (status, code) in hub.refuses.items():
            if path.startswith(start):
                return self.refuse(status, code)
        _, *parts = path.replace("/api/models/", "/api/").split("/")
        place = parts.pop(0) if parts[0] in ("api", "cdn") else ""
        n = 3 if parts[0] == "datasets" else 2
        repo, rest = "/".join(parts[:n]), parts[n:]
        if place == "api":
            return self.answer_listing(repo)
        if place == "cdn":
            return self.answer_file(repo, "/".join(rest))
        file = "/".join(rest[2:])
        if repo not in hub.repos:
            return self.refuse(401, "RepoNotFound")
        if file not in hub.repos[repo]:
            return self.refuse(404, "EntryNotFound")
        if not file.endswith(LARGE_ENDS):
            return self.answer_file(repo, file)
        self.send_response(302)
        self.send_header("Location", f"{hub.address}/cdn/{repo}/{file}")
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("X-Linked-Size", str(len(hub.repos[repo][file])))
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(hub.repos[repo][file]).hexdigest()}"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def answer_listing(self, repo: str) -> None:
        if repo not in self.hub.repos:
            # The hub does not tell strangers what does not exist from what is private.
            return self.refuse(401, "RepoNotFound")
        content = self.hub.describe(repo) if self.hub.listing is None else self.hub.listing
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def answer_file(self, repo: str, file: str) -> None:
        hub = self.hub
        content = hub.sends.get(file, hub.repos[repo][file])
        asked = self.headers.get("Range", "")
        offset = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and hub.ranges else 0
        if offset >= len(content) > 0:
            return self.refuse(416, "")
        self.send_response(206 if offset else 200)
        if offset:
            self.send_header("Content-Range", f"bytes {offset}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - offset))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if hub.cut_after is not None and hub.cuts and len(content) - offset > hub.cut_after:
            hub.cuts -= 1
            self.wfile.write(content[offset : offset + hub.cut_after])
            if hub.go_on:
                hub.go_on.wait(120)
            return None
        self.wfile.write(content[offset:])
        return None

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes `hub` the hub of this test, with nobody logged in. Gives the seconds that would be waited."""
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "no token is here")
    waits: list[float] = []
    monkeypatch.setattr("llamatui.export.hub.sleep", waits.append)
    return waits


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
