"""The page's server against clients that mean no good."""

from __future__ import annotations

import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from mobileclip.benchmark.devices import web, web_server
from mobileclip.errors import DeviceError
from tests.devices.page import Call


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[web_server.Page, int]]:
    (tmp_path / "model").write_bytes(b"model" * 1000)
    page = web_server.Page(
        {"index.html": b"<p>", "page.mjs": b"1"}, {"files/0/image.onnx": tmp_path / "model", "files/0/gone": tmp_path / "gone"}
    )
    with web_server.serving(page) as port:
        yield page, port


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_what_belongs_to_the_page_is_served(served):
    page, port = served
    token = f"/{page.token}/"
    assert ask(port, "GET", token) == (200, b"<p>")
    assert ask(port, "GET", f"{token}files/0/image.onnx") == (200, b"model" * 1000)
    for path in (
        "/", "/index.html", "/x/index.html", f"/{page.token}", f"{token}files/0/", f"{token}files/1/image.onnx", f"{token}../web.py",
        f"{token}files/0/../../../../etc/passwd", f"{token}%2e%2e/etc/passwd", f"{token}files/0/gone",
    ):  # fmt: skip
        assert ask(port, "GET", path)[0] == 404, path
    assert ask(port, "GET", token, Host=f"evil.example:{port}")[0] == 404
    assert ask(port, "POST", f"{token}index.html", b"")[0] == 404
    assert [ask(port, m, token)[0] for m in ("PUT", "DELETE", "HEAD", "BREW")] == [405] * 4


def test_one_browser_has_the_page(served):
    page, port = served
    token = f"/{page.token}/"
    for name in ("answer", "alive", "leave"):
        assert ask(port, "POST", token + name, b"{}", X_Session="", X_Number="1")[0] == 403
    assert ask(port, "GET", f"{token}next", X_Session="guess", X_Number="0")[0] == 403
    status, session = ask(port, "POST", f"{token}take", b"")
    assert status == 200
    assert ask(port, "POST", f"{token}take", b"")[0] == 409
    assert ask(port, "POST", f"{token}alive", b"", X_Session=session.decode())[0] == 204
    for number in ("one", "-1", "", "9" * 30):
        assert ask(port, "POST", f"{token}answer", b"{}", X_Session=session.decode(), X_Number=number)[0] == 400
        assert ask(port, "GET", f"{token}next", X_Session=session.decode(), X_Number=number)[0] == 400
    assert page.lost == ""
    assert ask(port, "POST", f"{token}leave?{session.decode()}", b"")[0] == 204
    assert page.lost == "the page was closed"


def test_commands_go_out_and_answers_come_back(served):
    page, port = served
    token, session = f"/{page.token}/", ask(port, "POST", f"/{page.token}/take", b"")[1].decode()

    def get(after: int) -> dict[str, object]:
        return json.loads(ask(port, "GET", f"{token}next", X_Session=session, X_Number=str(after))[1])

    def answer(number: int, text: bytes) -> None:
        assert ask(port, "POST", f"{token}answer", text, X_Session=session, X_Number=str(number))[0] == 204

    def browser() -> None:
        assert get(0) == get(0) == {"number": 1, "measurement": 0, "command": {"do": "load"}}, "what was lost on the way comes again"
        answer(0, b"late")
        answer(1, b"{}")
        answer(1, b"twice")
        assert get(1)["number"] == 2
        answer(2, b'{"a": 1}')

    thread = threading.Thread(target=browser)
    thread.start()
    assert page.ask(0, {"do": "load"}, 20) == "{}"
    assert page.ask(None, {"do": "info"}, 20) == '{"a": 1}'
    thread.join()


def test_no_answer(monkeypatch):
    page = web_server.Page({}, {})
    page.take()
    for _ in range(2):  # it does one thing after the other
        with pytest.raises(DeviceError, match=r"no answer within 0\.3 s"):
            page.ask(0, {}, 0.3)
    page = web_server.Page({}, {})
    page.take()
    monkeypatch.setattr(web_server, "LOST_SECONDS", 0.4)
    with pytest.raises(DeviceError, match="has not been heard of"):
        page.ask(0, {}, 20)
    begin = time.monotonic()
    with pytest.raises(DeviceError, match="has not been heard of"):
        page.ask(0, {}, 20)
    assert time.monotonic() - begin < 1, "a page that is gone is not waited for again"


def raw(port: int, data: bytes) -> bytes:
    """Send bytes and nothing else; what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        try:
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
            got = b""
            while more := link.recv(65536):
                got += more
        except ConnectionError:
            return b""
    return got


def test_a_thousand_odd_requests_never_break_it(served, monkeypatch):
    page, port = served
    monkeypatch.setattr(web_server, "REQUESTS_PER_SECOND", 10**6)
    monkeypatch.setattr(web_server, "POLL_SECONDS", 0.05)
    session = page.take()
    rng = random.Random(0)
    head = f"POST /{page.token}/answer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Session: {session}"
    whole = f"{head}\r\nX-Number: 1\r\nContent-Length: 2\r\n\r\n{{}}"
    codes = set()
    for _ in range(1000):
        data = bytearray(rng.choice((whole, whole.replace("POST", "GET").replace("answer", "next"))).encode())
        for _ in range(rng.randrange(1, 8)):
            at = rng.randrange(len(data))
            choice = rng.randrange(4)
            if choice == 0:
                data[at] = rng.randrange(256)
            elif choice == 1:
                del data[at : at + rng.randrange(1, 20)]
            elif choice == 2:
                data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
            else:
                data[at:at] = data[: rng.randrange(len(data))]
        page.lost = ""
        for line in raw(port, bytes(data)).split(b"\r\n"):
            if line.startswith(b"HTTP/1."):
                codes.add(int(line.split()[1]))
    assert {200, 204} & codes, "some get through"
    assert max(codes) < 500, sorted(codes)
    assert ask(port, "GET", f"/{page.token}/") == (200, b"<p>")


def test_bodies_that_are_too_large_are_not_read(served):
    page, port = served
    session = page.take()
    post = f"POST /{page.token}/%s HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Session: %s\r\nX-Number: 1\r\n%s\r\n"
    for length, code in ((str(web_server.MAX_BODY_BYTES + 1), b"413"), ("9" * 30, b"411"), ("-1", b"411"), ("x", b"411")):
        assert raw(port, (post % ("answer", session, f"Content-Length: {length}\r\n")).encode()).split()[1] == code, length
    assert raw(port, (post % ("answer", session, "")).encode()).split()[1] == b"411"
    # without the session, or where nothing is to be said, not a byte of it
    assert raw(port, (post % ("answer", "guess", "Content-Length: 9\r\n")).encode()).split()[1] == b"403"
    assert raw(port, (post % ("alive", session, "Content-Length: 9\r\n")).encode()).split()[1] == b"413"


def test_slow_clients_and_many_of_them_do_not_block_it(served, monkeypatch):
    page, port = served
    monkeypatch.setattr(web_server._Handler, "timeout", 0.5)
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(web_server.MAX_CONNECTIONS_OF_ONE + 8)]
    for link in slow:
        link.sendall(b"GET / HT")
    elsewhere = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=("127.0.0.2", 0))
    elsewhere.request("GET", f"/{page.token}/")
    assert elsewhere.getresponse().read() == b"<p>", "other addresses have room meanwhile"
    elsewhere.close()
    time.sleep(1.5)
    assert ask(port, "GET", f"/{page.token}/") == (200, b"<p>")
    for link in slow:
        link.close()


def test_too_many_requests(served, monkeypatch):
    page, port = served
    monkeypatch.setattr(web_server, "REQUESTS_PER_SECOND", 5)
    codes = [ask(port, "GET", "/")[0] for _ in range(30)]
    assert {404, 429} == set(codes)
    assert ask(port, "GET", f"/{page.token}/")[0] == 200, "the page itself is not held up"


def test_in_a_network_it_is_reached_by_its_address_alone(runtime, bundle, monkeypatch):
    monkeypatch.setattr(web, "OPEN_SECONDS", 3)
    monkeypatch.setattr(web_server, "lan_address", lambda: "127.0.0.3")
    device = web.Web()
    device.lan = True
    call = Call(bundle, device)
    place = urlsplit(call.address())
    assert place.hostname == "127.0.0.3"
    assert len(place.path.strip("/")) >= 20, "nobody guesses it"

    def get(path: str, host: str = place.netloc) -> int:
        connection = http.client.HTTPConnection("127.0.0.3", place.port, timeout=30)
        connection.request("GET", path, headers={"Host": host})
        status = connection.getresponse().status
        connection.close()
        return status

    assert get(place.path) == 200
    assert get("/") == get("/index.html") == get(place.path, "evil.example") == 404
    call.join(60)
    assert "no browser opened the page" in str(call.error)


def test_without_a_network_there_is_none_to_serve(monkeypatch):
    def no_route(self: socket.socket, address: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", no_route)
    with pytest.raises(DeviceError, match="this machine is in no network; join one, or open the page here without --lan"):
        web_server.lan_address()


def test_it_listens_to_this_machine_alone(runtime, bundle, monkeypatch):
    monkeypatch.setattr(web, "OPEN_SECONDS", 3)
    call = Call(bundle)
    place = urlsplit(call.address())
    assert place.hostname == "localhost"
    other = web_server.lan_address()
    if other != "127.0.0.1":
        with pytest.raises(OSError):
            socket.create_connection((other, place.port), timeout=2)
    call.join(60)
