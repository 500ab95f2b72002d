"""The metadata service of every network and router of this host: one thread, one event loop, many namespaces.

A listening socket belongs for life to the namespace it was made in, so ``169.254.169.254:80`` is opened inside each
``qdhcp-`` and ``qrouter-`` namespace and served from here. The listener says which network a request came from, the
peer's address which server; what it is told stands in documents on this host, so it answers while the control plane is
away. A listener keeps its namespace alive: `stop` before deleting one.

Unknown servers get 404, malformed requests 400, other methods than GET and HEAD 405; but POST to ``…/password`` takes
the password that a guest made, once, and needs the control plane.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from cumulet.agent.contract import MetadataDoc, NetworkDoc, PasswordTaken, RouterDoc
from cumulet.agent.network import metadata_tree, names
from cumulet.agent.network.shell import NETNS_DIR, in_namespace, namespaces
from cumulet.agent.network.store import DocumentStore

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 30
_MAX_HEAD = 16384
_MAX_CONNECTIONS = 256  # of one network or router
_IP_FREEBIND = 15
_MAX_PASSWORD = 1020  # bytes, upstream's limit
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    503: "Service Unavailable",
}
_OUTCOMES = {"kept": 200, "conflict": 409, "gone": 400, "unavailable": 503}

Resolve = Callable[[str], str | None]  # peer address -> server id
KeepPassword = Callable[[str, str], PasswordTaken]  # server id, password; may take seconds


class MetadataServer:
    def __init__(self, store: DocumentStore, port: int = 80) -> None:
        self._store = store
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._serving: dict[
            str, tuple[int, asyncio.Server, set[asyncio.StreamWriter]]
        ] = {}  # namespace -> its inode, …
        self._resolve: dict[str, Resolve] = {}
        self._keep_password: KeepPassword | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, keep_password: KeepPassword) -> None:
        """Run the loop and listen again wherever the documents of the last run say."""
        self._keep_password = keep_password
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="metadata", daemon=True).start()
        present = namespaces()
        for network in self._store.all(NetworkDoc):
            if names.dhcp_namespace(network.id) in present:
                self.serve_network(network)
        for router in self._store.all(RouterDoc):
            if names.router_namespace(router.id) in present:
                self.serve_router(router)

    def close(self) -> None:
        for namespace in list(self._serving):
            self.stop(namespace)
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)

    # -- namespaces --------------------------------------------------------------------------------------------------

    def serve_network(self, doc: NetworkDoc) -> None:
        if doc.dhcp_port is None or not doc.subnets:
            return
        table = dict(doc.metadata)
        self._serve(names.dhcp_namespace(doc.id), table.get)

    def serve_router(self, doc: RouterDoc) -> None:
        if not doc.admin_state_up:
            return
        inside = [
            (ipaddress.ip_network(subnet.cidr), leg.port.network_id) for leg in doc.interfaces for subnet in leg.subnets
        ]
        table = dict(doc.metadata)

        def resolve(peer: str) -> str | None:
            address = ipaddress.ip_address(peer)
            for network, network_id in inside:
                if address in network and (server := table.get(f"{network_id}/{peer}")):
                    return server
            return None

        self._serve(names.router_namespace(doc.id), resolve)

    def stop(self, namespace: str) -> None:
        """Close the listener and its connections; returns when the sockets are closed."""
        self._resolve.pop(namespace, None)
        with self._lock:
            entry = self._serving.pop(namespace, None)
        if entry is not None:
            self._wait(self._close(*entry[1:]))

    def serving(self) -> list[str]:
        return sorted(self._serving)

    def _serve(self, namespace: str, resolve: Resolve) -> None:
        self._resolve[namespace] = resolve
        if self._loop is None:  # not started yet: start() listens
            return
        inode = _inode(namespace)
        entry = self._serving.get(namespace)
        if entry is not None and entry[0] == inode:
            return
        if entry is not None:  # the namespace was made anew
            self.stop(namespace)
            self._resolve[namespace] = resolve
        listener = in_namespace(namespace, self._listen)
        writers: set[asyncio.StreamWriter] = set()
        server = self._wait(self._start(listener, namespace, writers))
        with self._lock:
            self._serving[namespace] = (inode, server, writers)

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            listener.bind((names.METADATA_IP, self._port))
            listener.listen(128)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    async def _start(
        self, listener: socket.socket, namespace: str, writers: set[asyncio.StreamWriter]
    ) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(writers) >= _MAX_CONNECTIONS:  # one network's guests must not use up the agent's descriptors
                writer.transport.abort()
                return
            writers.add(writer)
            try:
                await self._talk(namespace, reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
                pass  # the guest went away or dawdled
            except asyncio.CancelledError:
                raise
            except Exception:  # noqa: BLE001  logged; one request must not end the others
                _log.exception("metadata request in %s", namespace)
            finally:
                writers.discard(writer)
                writer.close()

        return await asyncio.start_server(connected, sock=listener, limit=_MAX_HEAD)

    @staticmethod
    async def _close(server: asyncio.Server, writers: set[asyncio.StreamWriter]) -> None:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        await asyncio.sleep(0)  # the transports close their sockets in the next turn of the loop

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._loop is None:
            work.close()
            raise RuntimeError("the metadata service is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _talk(self, namespace: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        while True:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _IDLE_SECONDS)
            request, *fields = head.decode("latin-1").split("\r\n")
            words = request.split(" ")
            headers = {k.strip().lower(): v.strip() for k, _, v in (f.partition(":") for f in fields if f)}
            keep = headers.get("connection", "").lower() != "close" and words[-1:] == ["HTTP/1.1"]
            if len(words) != 3:
                status, kind, body, keep = 400, "text/plain", b"", False
            else:
                sent = b""
                if headers.get("content-length", "0").isdecimal():
                    size = min(int(headers.get("content-length", "0")), 65536)
                    sent = await asyncio.wait_for(reader.readexactly(size), 10)
                if words[0] == "POST" and metadata_tree.is_password(words[1]):
                    status, kind, body = await self._password(namespace, peer, sent), "text/plain", b""
                else:
                    status, kind, body = self._answer(namespace, peer, words[0], words[1])
            writer.write(
                f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode()
            )
            if words[0] != "HEAD":
                writer.write(body)
            await writer.drain()
            if not keep:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return

    def _answer(self, namespace: str, peer: str, method: str, path: str) -> tuple[int, str, bytes]:
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b""
        doc = self._document(namespace, peer)
        found = metadata_tree.answer(doc, path) if doc is not None else None
        if found is None:
            return 404, "text/html", b"<html><body><h1>404 Not Found</h1></body></html>"
        return 200, *found

    def _document(self, namespace: str, peer: str) -> MetadataDoc | None:
        resolve = self._resolve.get(namespace)
        server_id = resolve(peer) if resolve else None
        return self._store.get(MetadataDoc, server_id) if server_id else None

    async def _password(self, namespace: str, peer: str, sent: bytes) -> int:
        doc = self._document(namespace, peer)
        if doc is None or self._keep_password is None:
            return 404
        if len(sent) > _MAX_PASSWORD:
            return 400
        try:
            password = sent.decode()
        except UnicodeDecodeError:
            return 400
        taken = await asyncio.to_thread(self._keep_password, doc.id, password)
        return _OUTCOMES[taken.outcome]


class MetadataDocs:
    """Applier of ``metadata`` documents."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = store

    def apply(self, doc: MetadataDoc) -> None:
        held = self._store.get(MetadataDoc, doc.id)
        if held is None or held.generation <= doc.generation:
            self._store.put(doc)

    def remove(self, object_id: str, generation: int) -> None:
        held = self._store.get(MetadataDoc, object_id)
        if held is None or held.generation <= generation:
            self._store.drop(MetadataDoc, object_id)

    def list(self) -> list[str]:
        return sorted(doc.id for doc in self._store.all(MetadataDoc))


def _inode(namespace: str) -> int:
    return (NETNS_DIR / namespace).stat().st_ino
