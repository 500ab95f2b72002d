"""The one way from host to host for what belongs to a server: a TLS port that lets in whom a caller lets in, and its
other end.

A caller says in one line of JSON which server and which stream it wants; `Doorkeeper` answers it or refuses. Both ends
show their certificate of the cloud's authority and look at the name in the other's. A host without a certificate does
the same in the clear, and says so in its warnings: then the name is only what the caller claims.
Owns a thread with an event loop, the port while it is open, the sockets of tunnels. Fails with `DriverError`
(``refused`` and whatever the other side said, ``unreachable``).
"""

import asyncio
import contextlib
import json
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec

from cumulet.agent.errors import DriverError

T = TypeVar("T")
LOG = logging.getLogger(__name__)
BLOCK = 1 << 18
_LINE = 1 << 20  # of the opening words and the answer to them
_HANDSHAKE_SECONDS = 20.0
_OPENING_SECONDS = 20.0
_CONNECT_SECONDS = 15.0

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The opening words. ``host``: who it says it is; with certificates the name in its own is what counts."""

    server: str
    stream: str
    host: str
    name: str = ""
    size: int = 0
    run: bool = True


Serve = Callable[[Hello, Reader, Writer], Awaitable[None]]
"""Answers one caller whose name is certain: first `say`, then whatever the stream is. DriverError: told to it."""


class Loop:
    """An event loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._started()).result(seconds)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_exception_handler(_quietly)
                threading.Thread(target=self._loop.run_forever, name="doors", daemon=True).start()
            return self._loop

    def stop(self) -> None:
        with self._guard:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None


def _quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Whoever knocks without a certificate is not worth a traceback."""
    LOG.debug("at the door: %s %s", context.get("message"), context.get("exception"))


class Identity:
    """Who this host is to others. ``pki``: the folder with its certificate, as `cumulet join` lays it out."""

    def __init__(self, host: str, pki: Path | None) -> None:
        self.host, self.pki = host, pki

    def context(self, purpose: ssl.Purpose) -> ssl.SSLContext | None:
        """Made anew each time: a renewed certificate counts from the next connection on."""
        if self.pki is None:
            return None
        context = ssl.create_default_context(purpose, cafile=str(self.pki / "ca-cert.pem"))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self.pki / "server-cert.pem", self.pki / "server-key.pem")
        context.check_hostname = False  # hosts go by the name in the subject, as QEMU's list of them does
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def _name_of_peer(writer: Writer) -> str | None:
    """The common name in the other side's certificate; None on a connection in the clear."""
    secured = writer.get_extra_info("ssl_object")
    if secured is None:
        return None
    subject = dict(pair for part in secured.getpeercert().get("subject", ()) for pair in part)
    return subject.get("commonName", "")


class Door:
    """``address``: where it listens, HOST:PORT (port 0: any free one)."""

    def __init__(self, loop: Loop, identity: Identity, address: tuple[str, int], serve: Serve) -> None:
        self._loop, self._identity, self._address, self._serve = loop, identity, address, serve
        self._guard = threading.Lock()
        self._server: asyncio.Server | None = None

    def open(self) -> str:
        """Listen, unless it does; where it is reached."""
        with self._guard:
            if self._server is None:
                try:
                    self._server = self._loop.run(self._listen())
                except (OSError, ssl.SSLError) as error:
                    raise DriverError("internal", f"this host's door cannot be opened: {error}") from error
            host, port = self._server.sockets[0].getsockname()[:2]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        with self._guard:
            if self._server is not None:
                self._loop.run(self._end(self._server))
                self._server = None

    async def _listen(self) -> asyncio.Server:
        host, port = self._address
        context = self._identity.context(ssl.Purpose.CLIENT_AUTH)
        secured = {} if context is None else {"ssl_handshake_timeout": _HANDSHAKE_SECONDS}
        return await asyncio.start_server(self._caller, host, port, ssl=context, limit=_LINE, **secured)

    @staticmethod
    async def _end(server: asyncio.Server) -> None:
        server.close()

    async def _caller(self, reader: Reader, writer: Writer) -> None:
        try:
            async with asyncio.timeout(_OPENING_SECONDS):
                hello = msgspec.json.decode(await reader.readline(), type=Hello)
            name = _name_of_peer(writer)
            if name is not None:
                hello = msgspec.structs.replace(hello, host=name)
            await self._serve(hello, reader, writer)
        except DriverError as error:
            LOG.warning("a caller at the door was refused: %s", error.message)
            with contextlib.suppress(OSError):
                await say(writer, error=error.message, code=error.code)
        except (OSError, EOFError, TimeoutError, ValueError, msgspec.DecodeError) as error:
            LOG.info("a caller at the door was let go: %s", error)
        finally:
            writer.close()


async def say(writer: Writer, **words: Any) -> None:
    writer.write(json.dumps(words).encode() + b"\n")
    await writer.drain()


class Caller:
    """Calls at another host's door. ``to_host``: whose certificate it must show."""

    def __init__(self, loop: Loop, identity: Identity, to_host: str, address: str, server_id: str) -> None:
        self.loop, self._identity, self.to_host, self._server_id = loop, identity, to_host, server_id
        host, _, port = address.rpartition(":")
        self._address = (host.strip("[]"), int(port))

    async def dial(self, stream: str, **more: Any) -> tuple[Reader, Writer, dict[str, Any]]:
        """A stream that was let in, with what was said of it."""
        context = self._identity.context(ssl.Purpose.SERVER_AUTH)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(*self._address, ssl=context, limit=_LINE)
        except (OSError, TimeoutError) as error:
            raise DriverError("unreachable", f"the door of host {self.to_host} cannot be reached: {error}") from error
        try:
            name = _name_of_peer(writer)
            if name is not None and name != self.to_host:
                raise DriverError("refused", f"at the door of host {self.to_host} host {name} answers")
            hello = Hello(server=self._server_id, stream=stream, host=self._identity.host, **more)
            writer.write(msgspec.json.encode(hello) + b"\n")
            return reader, writer, await self.heard(reader)
        except BaseException:
            writer.close()
            raise

    async def heard(self, reader: Reader) -> dict[str, Any]:
        """The other side's next words; DriverError if they are a refusal."""
        try:
            line = await reader.readline()
            words: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            raise DriverError("unreachable", f"host {self.to_host} broke off: {error}") from error
        if words.get("error"):
            raise DriverError(words.get("code", "refused"), f"host {self.to_host}: {words['error']}")
        return words

    def ask(self, stream: str, **more: Any) -> dict[str, Any]:
        """Ask something that is answered in one line."""

        async def once() -> dict[str, Any]:
            _, writer, words = await self.dial(stream, **more)
            writer.close()
            return words

        return self.loop.run(once())

    def put(self, name: str, data: bytes) -> None:
        """Give it a small file."""

        async def send() -> None:
            reader, writer, _ = await self.dial("put", name=name, size=len(data))
            try:
                writer.write(data)
                await writer.drain()
                await self.heard(reader)
            except OSError as error:
                raise DriverError("unreachable", f"host {self.to_host} broke off: {error}") from error
            finally:
                writer.close()

        self.loop.run(send())

    @contextlib.contextmanager
    def tunnel(self, stream: str, path: Path, *, admit: Callable[[Path], None]) -> Iterator[None]:
        """While this runs, each connection to the unix socket at ``path`` is one to the other host's ``stream``.
        ``admit``: gives the socket to those who are to use it."""
        path.unlink(missing_ok=True)
        ends: set[Writer] = set()

        async def connected(reader: Reader, writer: Writer) -> None:
            ends.add(writer)
            try:
                there_reader, there_writer, _ = await self.dial(stream)
                ends.add(there_writer)
                await relay(reader, writer, there_reader, there_writer)
                ends.discard(there_writer)
            except DriverError as error:
                LOG.warning("stream %s of server %s: %s", stream, self._server_id, error.message)
            finally:
                ends.discard(writer)
                writer.close()

        async def listen() -> asyncio.Server:
            return await asyncio.start_unix_server(connected, path, limit=BLOCK)

        async def end(server: asyncio.Server) -> None:
            server.close()
            for writer in list(ends):
                writer.transport.abort()

        server = self.loop.run(listen())
        try:
            path.chmod(0o600)
            admit(path)
            yield
        finally:
            self.loop.run(end(server))
            path.unlink(missing_ok=True)


async def relay(one: Reader, one_writer: Writer, other: Reader, other_writer: Writer) -> None:
    """Carry bytes both ways until either side ends; what was read by then is delivered."""
    ways = [asyncio.create_task(pump(one, other_writer)), asyncio.create_task(pump(other, one_writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        for writer in (one_writer, other_writer):
            writer.close()


async def pump(reader: Reader, writer: Writer) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(BLOCK):
            writer.write(block)
            await writer.drain()


async def connect_unix(path: Path, seconds: float = 10.0) -> tuple[Reader, Writer]:
    """To a socket of this host that may be about to appear."""
    end = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await asyncio.open_unix_connection(path, limit=BLOCK)
        except OSError as error:
            if asyncio.get_running_loop().time() > end:
                raise DriverError("internal", f"nobody listens at {path.name} on this host: {error}") from error
            await asyncio.sleep(0.05)
