"""The HTTP server in front of the application: what clients do to it below the level of requests."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cumulet.http import Call, HttpApp, NovaFaults, Reply, Route, ServiceApi, protocol
from cumulet.server import HttpServer


def slow_stream(call: Call) -> Reply:
    def chunks() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            STOPPED.append(True)

    return Reply(stream=chunks())


def take(call: Call) -> dict[str, int]:
    return {"size": sum(len(chunk) for chunk in call.stream)}


STOPPED: list[bool] = []
ROUTES = [
    Route(method="GET", path="/endless", handler=slow_stream, auth=False, stream="response"),
    Route(method="PUT", path="/upload", handler=take, auth=False, stream="request", media_types=()),
    Route(method="GET", path="/ok", handler=lambda call: {"ok": True}, auth=False),
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HttpServer]:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.3)
    api = ServiceApi(name="x", prefix="/x", service=None, routes=ROUTES, faults=NovaFaults())
    started = HttpServer(HttpApp([api], authenticate=lambda token, request_id: None), "127.0.0.1", 0)  # type: ignore
    started.start()
    yield started
    started.stop()


def connect(server: HttpServer) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    made.settimeout(30)
    return made


def drain(made: socket.socket) -> bytes:
    found = b""
    try:
        while chunk := made.recv(65536):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def test_headers_that_never_end(server: HttpServer) -> None:
    made = connect(server)
    made.sendall(b"GET /x/ok HTTP/1.1\r\n")
    try:
        for number in range(1000):
            made.sendall(b"x-%d: " % number + b"y" * 1000 + b"\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return
    assert b" 431 " in drain(made)


@pytest.mark.parametrize("first", [b"", b"GET /x/ok HT", b"GET /x/ok HTTP/1.1\r\nhost: x\r\n"])
def test_slow_clients_are_dropped(server: HttpServer, first: bytes) -> None:
    made = connect(server)
    made.sendall(first)
    assert drain(made) == b""


def test_a_quick_request_after_a_pause_is_served(server: HttpServer) -> None:
    made = connect(server)
    for _ in range(2):
        made.sendall(b"GET /x/ok HTTP/1.1\r\nhost: x\r\n\r\n")
        assert made.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)
    made.close()


def test_a_client_that_leaves_a_download_ends_it(server: HttpServer) -> None:
    made = connect(server)
    made.sendall(b"GET /x/endless HTTP/1.1\r\nhost: x\r\n\r\n")
    assert made.recv(1000).startswith(b"HTTP/1.1 200")
    STOPPED.clear()
    made.close()
    end = time.monotonic() + 5
    while not STOPPED and time.monotonic() < end:
        time.sleep(0.02)
    assert STOPPED


def test_half_an_upload_is_not_an_upload(server: HttpServer) -> None:
    made = connect(server)
    made.sendall(b"PUT /x/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + b"y" * 10)
    made.shutdown(socket.SHUT_WR)
    answer = drain(made)
    assert b"200 OK" not in answer


def test_a_chunked_upload(server: HttpServer) -> None:
    made = connect(server)
    made.sendall(b"PUT /x/upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")
    assert b"100 Continue" in made.recv(1000)
    made.sendall(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    answer: Any = made.recv(65536)
    assert b'{"size":7}' in answer
    made.close()
