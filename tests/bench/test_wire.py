"""The benchmark's HTTP client against servers of every manner: kept and closed connections, chunks, nobody."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cumulet.bench.wire import Connection, Origin, WireError, flood, prepare

Serve = Callable[..., Origin]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(answers, per_connection=n)``: a server that gives these answers in turn and closes after n."""
    listeners = []

    def start(*answers: bytes, per_connection: int = 1000) -> Origin:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        left = list(answers)
        lock = threading.Lock()

        def talk(connection: socket.socket) -> None:
            with connection:
                for _ in range(per_connection):
                    data = b""
                    while b"\r\n\r\n" not in data:
                        got = connection.recv(65536)
                        if not got:
                            return
                        data += got
                    with lock:
                        answer = left.pop(0) if len(left) > 1 else left[0]
                    middle = len(answer) // 2  # in two pieces
                    connection.sendall(answer[:middle])
                    connection.sendall(answer[middle:])

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return Origin("http", "127.0.0.1", listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Subject-Token: abc\r\n\r\n{"a": 1}\n'
CHUNKED = b'HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n5;x=y\r\n: 2}\n\r\n0\r\n\r\n'
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"


def test_answers_of_every_form(serve: Serve) -> None:
    origin = serve(PLAIN, CHUNKED, EMPTY, PLAIN)
    connection = Connection(origin)
    request = prepare(origin, "POST", "/", {"X-Auth-Token": "t"}, {"b": 2})
    assert request.data.endswith(b'Content-Length: 8\r\n\r\n{"b": 2}')
    first = connection.exchange(request)
    assert (first.status, first.json, first.header("x-subject-token")) == (200, {"a": 1}, "abc")
    second = connection.exchange(request)
    assert (second.status, second.json) == (201, {"a": 2})
    assert connection.exchange(request).status == 204
    assert connection.exchange(request).json == {"a": 1}


def test_a_kept_connection_that_was_closed_is_opened_again(serve: Serve) -> None:
    origin = serve(PLAIN, per_connection=1)
    connection = Connection(origin)
    request = prepare(origin, "GET", "/", {})
    assert [connection.exchange(request).status for _ in range(3)] == [200, 200, 200]


def test_nobody_and_nonsense(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = Origin("http", "127.0.0.1", listener.getsockname()[1])
    with pytest.raises(WireError, match="nothing answers"):
        Connection(nobody).exchange(prepare(nobody, "GET", "/", {}))
    origin = serve(b"SSH-2.0-OpenSSH\r\n\r\n")
    with pytest.raises(WireError, match="not HTTP"):
        Connection(origin).exchange(prepare(origin, "GET", "/", {}))
    for url in ("ftp://host/", "host:80"):
        with pytest.raises(WireError, match="no address"):
            Origin.of(url)


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, CLOSING])
def test_many_clients(serve: Serve, answer: bytes) -> None:
    origin = serve(answer, per_connection=1 if answer is CLOSING else 1000)
    left = 50

    def following() -> object:
        nonlocal left
        left -= 1
        return prepare(origin, "GET", "/", {}) if left >= 0 else None

    found = flood(lambda: Connection(origin), following, connections=4)  # type: ignore[arg-type]
    assert len(found.latencies) == found.succeeded == 50
    assert found.rate > 0


def test_an_answer_may_ask_for_a_repetition(serve: Serve) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    origin = serve(busy, busy, PLAIN)
    request = prepare(origin, "GET", "/", {})
    requests = iter([request])
    found = flood(
        lambda: Connection(origin),
        lambda: next(requests, None),
        connections=1,
        answered=lambda answer: request if answer.status == 503 else None,
    )
    assert found.statuses == {503: 2, 200: 1}


def test_downloads_are_counted(serve: Serve) -> None:
    body = b"x" * 300_000
    plain = b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + body
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n493e0\r\n" + body + b"\r\n0\r\n\r\n"
    origin = serve(plain, chunked, per_connection=1)
    request = prepare(origin, "GET", "/", {})
    status, total, _ = Connection(origin).download(request)
    assert (status, total) == (200, 300_000)
    status, total, _ = Connection(origin).download(request)
    assert (status, total) == (200, len(chunked) - chunked.index(b"\r\n\r\n") - 4)
