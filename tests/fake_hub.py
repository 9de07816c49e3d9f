"""A small Hub: the Hugging Face Hub's file protocol over real HTTP on 127.0.0.1, with faults to order.

`/OWNER/NAME/resolve/REVISION/FILE` answers with X-Repo-Commit and a checksum. Small files are sent at once with their
git blob sha1 as ETag; large ones (LFS) redirect to a second server on another port, as the Hub does to its CDN, and
carry X-Linked-Etag (sha256) and X-Linked-Size. Both servers know ranges. Every request for a file is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool = True

    @property
    def checksum(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


@dataclass(frozen=True)
class Request:
    server: str  # "hub" or "cdn"
    method: str
    path: str
    range: str | None
    authorization: str | None
    status: int


@dataclass
class FakeHub:
    """What is served, what goes wrong, and what was asked for."""

    files: dict[tuple[str, str], File] = field(default_factory=dict)  # (repo id, file name) -> file
    commit: str = "c0ffee" + "0" * 34
    headers: dict[str, str] = field(default_factory=dict)  # added to the answers of resolve
    withheld: set[str] = field(default_factory=set)  # headers that resolve leaves out
    status: tuple[int, str] | None = None  # resolve answers with this status and X-Error-Code
    body_status: int | None = None  # the CDN answers with this status
    mirror: bool = False  # /mirror/... redirects to the same path without /mirror
    hangs: bool = False  # accept, never answer
    cuts: int = 0  # so many bodies are cut
    cut_after: int = 0  # bytes of a body before the cut or the stall
    reset: bool = False  # cut with a TCP reset, not a regular close
    stalls: bool = False  # stop sending, keep the connection
    corrupt: bool = False  # flip one bit in the middle of each body
    short_by: int = 0  # bytes missing at the end, with a Content-Length that agrees with the body
    bytes_per_s: float = float("inf")
    log: list[Request] = field(default_factory=list)
    url: str = ""
    cdn_url: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def add(self, repo_id: str, name: str, data: bytes, *, lfs: bool = True) -> File:
        self.files[repo_id, name] = file = File(data, lfs)
        return file

    def bodies(self) -> list[Request]:
        return [r for r in self.log if r.method == "GET" and r.status in (200, 206)]

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeHub]:
        servers = []
        for name in ("hub", "cdn"):
            server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, name))
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            servers.append(server)
        self.url, self.cdn_url = (f"http://127.0.0.1:{s.server_port}" for s in servers)
        try:
            yield self
        finally:
            self.released.set()
            for server in servers:
                server.shutdown()
                server.server_close()


def _handler(hub: FakeHub, server_name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            if hub.hangs:
                hub.released.wait()
                return
            path = unquote(self.path)
            if path.startswith("/api/"):  # the client's own look-ups, not part of the file protocol
                return self.send_error(404)
            if hub.mirror and path.startswith("/mirror/"):
                return self._send(307, {"Location": self.path.removeprefix("/mirror")})
            if server_name == "cdn":
                return self._cdn(path)
            repo_id, _, rest = path.strip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            if hub.status is not None:
                return self._send(hub.status[0], {"X-Error-Code": hub.status[1]})
            if not any(repo == repo_id for repo, _ in hub.files):
                return self._send(404, {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", hub.commit):
                return self._send(404, {"X-Error-Code": "RevisionNotFound"})
            file = hub.files.get((repo_id, name))
            if file is None:
                return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
            headers = {"X-Repo-Commit": hub.commit, "ETag": f'"{file.checksum}"'} | hub.headers
            if file.lfs:
                headers |= {"X-Linked-Etag": f'"{file.checksum}"', "X-Linked-Size": str(len(file.data))}
                headers |= {"Location": f"{hub.cdn_url}/{file.checksum}?signature=abc"}
            headers = {k: v for k, v in headers.items() if k not in hub.withheld}
            return self._send(302, headers) if file.lfs else self._body(file.data, headers)

        def _cdn(self, path: str) -> None:
            if hub.body_status is not None:
                return self._send(hub.body_status, {})
            wanted = path.strip("/").partition("?")[0]
            data = next((f.data for f in hub.files.values() if f.checksum == wanted), None)
            return self._send(404, {}) if data is None else self._body(data, {"ETag": '"cdn-has-its-own"'})

        def _body(self, data: bytes, headers: dict[str, str]) -> None:
            data = data[: len(data) - hub.short_by]
            if hub.corrupt:
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            wanted, start = self.headers.get("Range"), 0
            if wanted is not None:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    return self._send(416, {"Content-Range": f"bytes */{len(data)}"})
                headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self._send(206 if wanted else 200, headers | {"Accept-Ranges": "bytes"}, data[start:])

        def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            hub.log.append(
                Request(
                    server_name,
                    self.command,
                    self.path,
                    self.headers.get("Range"),
                    self.headers.get("Authorization"),
                    status,
                )
            )
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "GET" or not body:
                return
            faulty = hub.stalls or hub.cuts > 0
            self._write(body[: hub.cut_after] if faulty else body)
            if hub.stalls:
                hub.released.wait()
            elif faulty:
                hub.cuts -= 1
                self._cut()

        def _write(self, body: bytes) -> None:
            step = 1 << 20
            with contextlib.suppress(ConnectionError):  # the client was killed, which is what the test wants
                for i in range(0, len(body), step):
                    self.wfile.write(body[i : i + step])
                    time.sleep(step / hub.bytes_per_s)

        def _cut(self) -> None:
            self.wfile.flush()
            if hub.reset:
                time.sleep(0.5)  # a reset throws away what the client has not read yet
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True

    return Handler
