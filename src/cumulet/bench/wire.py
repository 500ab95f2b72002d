"""A lean HTTP/1.1 client: raw sockets kept alive, requests prepared as bytes, many connections on one thread.

It shares the machine with the cloud it measures, so its own cost matters: about 20 µs a request. Nothing is decoded
unless the caller asks. Fails: `WireError` when nobody answers, or answers something that is not HTTP.
"""

import json
import selectors
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_END = b"\r\n\r\n"


class WireError(Exception):
    """No answer, or none that HTTP allows."""


@dataclass(frozen=True)
class Origin:
    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WireError(f"{url} is no address of a cloud")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Prepared:
    """A request as bytes, and where it goes."""

    origin: Origin
    data: bytes


@dataclass(slots=True)
class Answer:
    status: int
    head: bytes
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip().decode("latin-1")
        return None


def prepare(
    origin: Origin, method: str, target: str, headers: Mapping[str, str], body: Any = None, length: int | None = None
) -> Prepared:
    """``body``: JSON data or bytes. ``length``: of a body that is sent afterwards."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", f"Host: {origin.netloc}", "Accept: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None and not any(name.lower() == "content-type" for name in headers):
        lines.append("Content-Type: application/json")
    if content or length is not None or method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(content) if length is None else length}")
    return Prepared(origin, "\r\n".join(lines).encode("latin-1") + _END + content)


class _Parser:
    """The answer as far as it has come."""

    __slots__ = ("buffer", "head", "need", "status")

    def __init__(self) -> None:
        self.reset(bytearray())

    def reset(self, rest: bytearray) -> None:
        self.buffer = rest
        self.head = b""
        self.status = 0
        self.need: int | None = -1  # of the whole body; -1: the head is not whole; None: chunked

    def feed(self, data: bytes) -> bool:
        """Whether the answer is whole."""
        self.buffer += data
        if self.need == -1 and not self._take_head():
            return False
        if self.need is None:
            return self.buffer.endswith(b"0\r\n\r\n")
        return len(self.buffer) >= self.need

    def _take_head(self) -> bool:
        end = self.buffer.find(_END)
        if end < 0:
            return False
        self.head = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        if not self.head.startswith(b"HTTP/1."):
            raise WireError("the answer is not HTTP")
        self.status = int(self.head[9:12])
        if self.status == 100:
            self.need = -1
            return self._take_head()
        lower = self.head.lower()
        found = lower.find(b"\r\ncontent-length:")
        if found >= 0:
            self.need = int(lower[found + 17 :].partition(b"\r\n")[0])
        elif b"\r\ntransfer-encoding: chunked" in lower and self.status not in (204, 304):
            self.need = None
        else:
            self.need = 0
        return True

    def body(self) -> bytes:
        if self.need is not None:
            body = bytes(self.buffer[: self.need])
            self.reset(self.buffer[self.need :])
            return body
        whole, rest = bytearray(), bytes(self.buffer)
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size.partition(b";")[0], 16)
            if not length:
                break
            whole += rest[:length]
            rest = rest[length + 2 :]
        self.reset(bytearray())
        return bytes(whole)


class Connection:
    """One connection; a kept one that the server closed meanwhile is opened again."""

    def __init__(self, origin: Origin, *, context: ssl.SSLContext | None = None, timeout: float = 120) -> None:
        self.origin = origin
        self._context = context
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._parser = _Parser()

    def open(self) -> socket.socket:
        if self._socket is None:
            try:
                raw = socket.create_connection((self.origin.host, self.origin.port), timeout=self._timeout)
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self.origin.scheme == "https":
                    context = self._context or ssl.create_default_context()
                    raw = context.wrap_socket(raw, server_hostname=self.origin.host)
            except OSError as error:
                raise WireError(f"nothing answers at {self.origin.netloc}: {error}") from error
            self._socket = raw
            self._parser.reset(bytearray())
        return self._socket

    def exchange(self, request: Prepared, source: BinaryIO | Iterable[bytes] | None = None) -> Answer:
        """``source``: the body's blocks, when it was not prepared with the request."""
        for attempt in (1, 2):
            kept = self._socket is not None
            connection = self.open()
            began = time.perf_counter()
            try:
                connection.sendall(request.data)
                for block in source or ():
                    connection.sendall(block)
                self._receive(connection)
                break
            except (ConnectionError, EOFError) as error:
                self.close()
                if attempt == 2 or not kept or source is not None:
                    raise WireError(f"{self.origin.netloc} closed the connection without an answer") from error
            except OSError as error:
                self.close()
                raise WireError(f"no answer from {self.origin.netloc}: {error}") from error
        return self._answer(time.perf_counter() - began)

    def download(self, request: Prepared) -> tuple[int, int, float]:
        """Status, bytes and seconds of an answer whose body is thrown away."""
        connection = self.open()
        began = time.perf_counter()
        connection.sendall(request.data)
        head = bytearray()
        while _END not in head:
            head += self._some(connection)
        end = head.index(_END)
        status, total = int(head[9:12]), len(head) - end - 4
        lower = bytes(head[:end]).lower()
        found = lower.find(b"\r\ncontent-length:")
        buffer = bytearray(_CHUNK)
        if found >= 0:
            length = int(lower[found + 17 :].partition(b"\r\n")[0])
            while total < length:
                got = connection.recv_into(buffer)
                if not got:
                    raise WireError("the download ended early")
                total += got
        else:
            last = bytes(head[-5:])
            while not last.endswith(b"0" + _END):
                got = connection.recv_into(buffer)
                if not got:
                    raise WireError("the download ended early")
                total += got
                last = (last + bytes(buffer[max(0, got - 5) : got]))[-5:]
        return status, total, time.perf_counter() - began

    def _receive(self, connection: socket.socket) -> None:
        while not self._parser.feed(self._some(connection)):
            pass

    def _some(self, connection: socket.socket) -> bytes:
        data = connection.recv(262_144)
        if not data:
            raise EOFError
        return data

    def _answer(self, seconds: float) -> Answer:
        status, head = self._parser.status, self._parser.head
        answer = Answer(status, head, self._parser.body(), seconds)
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return answer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass
class Flood:
    """What many connections at once got: seconds of each answer, in the order of arrival, and the answers' statuses."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def succeeded(self) -> int:
        return sum(count for status, count in self.statuses.items() if status < 400)


class _Lane:
    __slots__ = ("began", "connection", "parser", "raw")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.raw = connection.open()
        self.parser = _Parser()
        self.began = 0.0


def flood(
    connect: Callable[[], Connection],
    requests: Callable[[], Prepared | None],
    *,
    connections: int,
    seconds: float | None = None,
    answered: Callable[[Answer], Prepared | None] | None = None,
) -> Flood:
    """Each connection sends its next request when its last was answered, until ``requests()`` is None or the time is
    over. ``answered`` may give a request to be sent in its stead (a repeated one)."""
    lanes = [_Lane(connect()) for _ in range(connections)]
    selector = selectors.DefaultSelector()
    found = Flood()
    clock = time.perf_counter
    began = clock()
    end = began + seconds if seconds is not None else float("inf")

    def send(lane: _Lane, request: Prepared | None, *, again: bool = False) -> int:
        """1 when the lane has no more to do. ``again``: the server closes after each answer."""
        if request is None or again:
            selector.unregister(lane.raw)
            if request is None:
                return 1
        lane.began = clock()
        if again:
            lane.connection.close()
            lane.raw = lane.connection.open()
            selector.register(lane.raw, selectors.EVENT_READ, lane)
        lane.raw.sendall(request.data)
        return 0

    try:
        for lane in lanes:
            selector.register(lane.raw, selectors.EVENT_READ, lane)
        open_lanes = len(lanes)
        for lane in lanes:
            open_lanes -= send(lane, requests())
        while open_lanes:
            ready = selector.select(60)
            if not ready:
                raise WireError("no answer within 60 s")
            for key, _ in ready:
                lane = key.data
                if not _whole(lane):
                    continue
                now = clock()
                taken = now - lane.began
                found.latencies.append(taken)
                status = lane.parser.status
                found.statuses[status] = found.statuses.get(status, 0) + 1
                head = lane.parser.head
                answer = Answer(status, head, lane.parser.body(), taken)
                repeated = answered(answer) if answered is not None else None
                closing = b"\r\nconnection: close" in head.lower()
                open_lanes -= send(lane, repeated or (requests() if now < end else None), again=closing)
    except OSError as error:
        raise WireError(f"a connection broke: {error}") from error
    finally:
        selector.close()
        for lane in lanes:
            lane.connection.close()
    found.seconds = clock() - began
    return found


def _whole(lane: _Lane) -> bool:
    """Take what has come; whether the answer is whole."""
    while True:
        data = lane.raw.recv(262_144)
        if not data:
            raise WireError("the cloud closed a connection without an answer")
        if lane.parser.feed(data):
            return True
        if not (isinstance(lane.raw, ssl.SSLSocket) and lane.raw.pending()):
            return False
