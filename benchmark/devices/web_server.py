"""The page's server: everything is below a secret path, and the first browser that opens it has the page for itself.

The page asks for commands by long polling. Nothing is served but what a `Page` has.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from mobileclip.errors import DeviceError

TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".mjs": "text/javascript", ".wasm": "application/wasm"}
"""Of what is served as it is, by the ends of the names."""

POLL_SECONDS = 10.0
"""How long a request for a command waits for one."""
LOST_SECONDS = 30.0
"""Without a sign of life the page is gone."""
SLOW_SECONDS = 20.0
"""How long a client may take for each part of a request."""
MAX_BODY_BYTES = 64 << 20
MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE = 64, 16
"""At the same time, of all addresses but the page's own, and of one: nobody keeps the others out. A browser has six."""
REQUESTS_PER_SECOND = 100
"""Of an address, for what is not below the secret path."""

_HEADERS = {
    # with these two a page is cross-origin isolated: threads and a fine clock
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Page:
    """What the page and this process say to each other: one command at a time, and its answer.

    Args:
        content: Name to content of what is served as it is.
        paths: Name to path of what is read when it is asked for.
    """

    def __init__(self, content: Mapping[str, bytes], paths: Mapping[str, Path]) -> None:
        self.token = secrets.token_urlsafe(16)
        self.content, self.paths = content, paths
        self.opened = threading.Event()
        self.lost = ""
        """Why it will not answer any more."""
        self._session, self._seen_s = "", 0.0
        self._changed = threading.Condition()
        self._number, self._command, self._answer = 0, b"", ""

    def take(self) -> str | None:
        """Give the page to the browser that asks first; its session, None for all others."""
        with self._changed:
            if self._session:
                return None
            self._session = secrets.token_urlsafe(16)
            self._seen_s = time.monotonic()
        self.opened.set()
        return self._session

    def belongs_to(self, session: str) -> bool:
        """Whether that session has the page; a sign of life if so."""
        if not self._session or not secrets.compare_digest(session.encode(), self._session.encode()):
            return False
        self._seen_s = time.monotonic()
        return True

    def next_command(self, after: int) -> bytes | None:
        """The command with a higher number than the last that the browser has got; None if none comes within `POLL_SECONDS`.

        One that was lost on the way is so given again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.lost or (self._command and self._number > after), POLL_SECONDS)
            return self._command if self._command and self._number > after else None

    def answered(self, number: int, answer: str) -> None:
        """Take an answer of the browser; one to an older command came too late."""
        with self._changed:
            if number == self._number and self._command:
                self._command, self._answer = b"", answer
                self._changed.notify_all()

    def leave(self, why: str) -> None:
        """Nothing more will be answered."""
        with self._changed:
            self.lost = self.lost or why
            self._changed.notify_all()

    @property
    def busy(self) -> bool:
        """Whether a command is not answered yet."""
        return bool(self._command)

    def ask(self, measurement: int | None, command: Mapping[str, Any], timeout_s: float) -> str:
        """Send a command to a measurement, or to the page itself, and wait for the answer.

        Raises:
            DeviceError: The page is gone, or does not answer in time.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            self._number += 1
            asked = {"number": self._number, "measurement": measurement, "command": command}
            self._command = json.dumps(asked).encode()
            self._changed.notify_all()
            while not self._changed.wait_for(lambda: self.lost or not self._command, 0.5):
                if time.monotonic() > until:  # it does one thing after the other: no other command would be answered
                    self.lost = f"no answer within {timeout_s:g} s; keep the page open and in front"
                elif time.monotonic() - self._seen_s > LOST_SECONDS:
                    self.lost = f"the page has not been heard of for {LOST_SECONDS:g} s; keep it open and in front"
            if self._command:
                raise DeviceError(self.lost)
            return self._answer


class _Refused(Exception):
    """The answer is an error."""

    def __init__(self, code: int) -> None:
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = SLOW_SECONDS
    disable_nagle_algorithm = True  # else a body waits some 50 ms for the acknowledgement of its headers
    server_version, sys_version = "mobileclip", ""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses: an unknown method or version is the client's mistake, too."""
        self._send({501: 405, 505: 400}.get(code, code))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._try(self._get)

    def do_POST(self) -> None:
        self._try(self._post)

    def _try(self, answer: Callable[[str], None]) -> None:
        try:
            answer(self._name())
        except _Refused as e:
            self._send(e.code)

    def _get(self, name: str) -> None:
        page = self.server.page
        if name == "next":
            self._check_session()
            body = page.next_command(self._number())
            self._send(200 if body else 204, body or b"", "application/json")
        elif name in page.content:
            self._send(200, page.content[name], TYPES.get(Path(name).suffix, "application/octet-stream"))
        else:
            self._send_file(page.paths.get(name))

    def _post(self, name: str) -> None:
        page = self.server.page
        if name == "take":
            self._body(0)
            session = page.take()
            if session is None:
                raise _Refused(409)
            self.server.owner = self.client_address[0]
            return self._send(200, session.encode(), "text/plain")
        if name not in ("answer", "alive", "leave"):
            raise _Refused(404)
        self._check_session()
        if name == "answer":
            number, body = self._number(), self._body(MAX_BODY_BYTES)
            page.answered(number, body.decode(errors="replace"))
            return self._send(204)
        self._body(0)
        if name == "leave":
            page.leave("the page was closed")
        return self._send(204)

    def _name(self) -> str:
        """What is asked for below the secret path."""
        path = self.path.partition("?")[0].encode("latin-1", "replace")
        before = f"/{self.server.page.token}/".encode()
        # another host name is a foreign page that has its name point here
        if self.headers.get("Host", "") not in self.server.hosts or not secrets.compare_digest(path[: len(before)], before):
            raise _Refused(404 if self.server.may_ask(self.client_address[0]) else 429)
        return unquote_to_bytes(path[len(before) :]).decode(errors="replace") or "index.html"

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length):
            raise _Refused(411)
        if int(length) > most:
            raise _Refused(413)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _Refused(400)
        return body

    def _number(self) -> int:
        """Of the command that the browser has got, or has answered."""
        number = self.headers.get("X-Number", "")
        if not re.fullmatch(r"\d{1,9}", number):
            raise _Refused(400)
        return int(number)

    def _check_session(self) -> None:
        session = self.headers.get("X-Session", "") or self.path.partition("?")[2]  # a beacon has no headers of its own
        if not self.server.page.belongs_to(session):
            raise _Refused(403)

    def _send(self, code: int, body: bytes = b"", kind: str = "text/plain") -> None:
        if code >= 400:
            self.close_connection = True  # the rest of a refused request would be read as the next one
        self._begin(code, len(body), kind)
        shutil.copyfileobj(io.BytesIO(body), self.wfile, 1 << 20)  # in parts, each with its own time limit

    def _send_file(self, path: Path | None) -> None:
        try:
            file = path.open("rb") if path else None
        except OSError:  # the bundle was removed meanwhile
            file = None
        if file is None:
            raise _Refused(404)
        with file:
            self._begin(200, os.fstat(file.fileno()).st_size, "application/octet-stream")
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def _begin(self, code: int, size: int, kind: str) -> None:
        self.send_response(code)
        for name, value in (*_HEADERS.items(), ("Content-Type", kind), ("Content-Length", str(size))):
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, address: str, page: Page) -> None:
        super().__init__((address, 0), _Handler)
        self.page = page
        own_port = self.server_address[1]
        names = ("127.0.0.1", "localhost", *((lan_address(),) if address != "127.0.0.1" else ()))
        self.hosts = {f"{name}:{own_port}" for name in names}
        self._asked: dict[str, tuple[int, int]] = {}
        self._connected: Counter[str] = Counter()
        self.owner = ""
        """Address of the browser that has the page."""
        self._lock = threading.Lock()

    def may_ask(self, address: str) -> bool:
        """Whether an address has requests left in this second."""
        now = int(time.monotonic())
        with self._lock:
            if len(self._asked) > 1000:
                self._asked.clear()
            second, count = self._asked.get(address, (now, 0))
            self._asked[address] = (now, count + 1 if second == now else 1)
            return self._asked[address][1] <= REQUESTS_PER_SECOND

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            others = self._connected.total() - self._connected[self.owner]
            full = client_address[0] != self.owner and others >= MAX_CONNECTIONS
            full = full or self._connected[client_address[0]] >= MAX_CONNECTIONS_OF_ONE
            if not full:
                self._connected[client_address[0]] += 1
        if full:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connected[client_address[0]] -= 1
                self._connected += Counter()  # without those that are gone

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or was too slow is no news."""


@contextlib.contextmanager
def serving(page: Page, address: str = "127.0.0.1") -> Iterator[int]:
    """Serve a page at a free port, which is given, of `127.0.0.1` or `0.0.0.0` (the network)."""
    server = _Server(address, page)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        page.leave("the benchmark is over")
        server.shutdown()
        server.server_close()
        thread.join()


def lan_address() -> str:
    """This machine's address in its network.

    Raises:
        DeviceError: It is in none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: this only asks which address would be used
        except OSError:
            raise DeviceError("this machine is in no network; join one, or open the page here without --lan") from None
        return cast(str, probe.getsockname()[0])
