"""The one connection to libvirt: event loop, calls with a watchdog, reconnection, events.

Owns: a thread that runs libvirt's event loop (registered before the first connection, as libvirt requires), the
connection, and a small pool in which calls run so that a daemon that hangs costs the caller its patience and no more.
Callbacks only put into a queue; one worker thread takes from it. When the connection breaks it is made anew at the
next call, or within seconds, and ``on_connected`` is told to list everything, since events were missed; ``prepare``
runs before each attempt and may start the daemon.
Fails with `DriverError`: ``not-found``, ``timeout``, ``hypervisor``.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import libvirt

from cumulet.agent.errors import DriverError, not_found

T = TypeVar("T")
LOG = logging.getLogger(__name__)
_LOST = {
    libvirt.VIR_ERR_NO_CONNECT,
    libvirt.VIR_ERR_INVALID_CONN,
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_RPC,
}
_MISSING = {
    libvirt.VIR_ERR_NO_DOMAIN: "server",
    libvirt.VIR_ERR_DEVICE_MISSING: "device",
    libvirt.VIR_ERR_NO_STORAGE_VOL: "volume",
}
_RETRY_SECONDS = 3.0

_loop_guard = threading.Lock()
_loop: threading.Thread | None = None


def ensure_event_loop() -> None:
    """Start libvirt's event loop, once in a process and before any connection."""
    global _loop
    with _loop_guard:
        if _loop is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        # libvirt prints each error on standard error; they reach us as exceptions
        libvirt.registerErrorHandler(lambda context, error: None, None)
        _loop = threading.Thread(target=_turn, name="libvirt-events", daemon=True)
        _loop.start()


def _turn() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except libvirt.libvirtError:
            LOG.exception("libvirt's event loop stumbled")
            time.sleep(0.1)


class Event:
    """A domain began, stopped, … (``what``: libvirt's event and detail, ``at`` by the monotonic clock) or (``kind``
    connected) the connection was made anew and events were missed."""

    __slots__ = ("at", "kind", "uuid", "what")

    def __init__(self, kind: str, uuid: str = "", what: tuple[int, int] = (-1, -1)) -> None:
        self.kind, self.uuid, self.what, self.at = kind, uuid, what, time.monotonic()


class Hypervisor:
    def __init__(
        self,
        uri: str,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        on_connected: Callable[[], None] = lambda: None,
        prepare: Callable[[], None] = lambda: None,
        workers: int = 12,
    ) -> None:
        self.uri = uri
        self._on_event, self._on_connected, self._prepare = on_event, on_connected, prepare
        self._guard = threading.Lock()
        self._connection: Any = None
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="libvirt-call")
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._stopping = threading.Event()
        self._broken = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        ensure_event_loop()
        for attempts_left in (4, 3, 2, 1, 0):
            try:
                self.call("connect", lambda connection: connection.getLibVersion(), seconds=120)
                break
            except DriverError as error:  # a daemon may be on its way down or up
                if not attempts_left:
                    raise
                LOG.info("libvirt at %s cannot be reached yet: %s", self.uri, error.message)
                time.sleep(1)
        for target, name in ((self._work, "libvirt-work"), (self._keep, "libvirt-keep")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stopping.set()
        self._broken.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)
        self._drop(self._connection)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- calls ------------------------------------------------------------------------------------------

    def call(self, what: str, work: Callable[[Any], T], seconds: float = 30) -> T:
        """Run ``work(connection)`` in the pool; `DriverError` ``timeout`` if libvirt is silent for so long."""
        if self._stopping.is_set():
            raise DriverError("hypervisor", "the driver is stopping")
        future = self._pool.submit(self._run, work)
        try:
            return future.result(seconds)
        except FutureTimeout:
            future.cancel()
            LOG.warning("libvirt did not answer within %.0f s: %s", seconds, what)
            raise DriverError("timeout", f"libvirt did not answer within {seconds:.0f} seconds: {what}") from None
        except libvirt.libvirtError as error:
            raise translated(what, error) from error

    def run(self, work: Callable[[Any], T]) -> T:
        """In the caller's own thread, as long as it takes; errors are libvirt's."""
        return self._run(work)

    def _run(self, work: Callable[[Any], T]) -> T:
        connection = self._open()
        try:
            return work(connection)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _LOST and not _alive(connection):
                self._drop(connection)
            raise

    def of(self, server_id: str, work: Callable[[Any], T], seconds: float = 30) -> T | None:
        """``work(domain)``; None if there is none, or it goes meanwhile."""
        try:
            return self.call("look", lambda connection: work(self.domain(connection, server_id)), seconds)
        except DriverError as error:
            if error.code == "not-found":
                return None
            raise

    def domain(self, connection: Any, server_id: str) -> Any:
        """The domain of a server; raises ``not-found``."""
        try:
            return connection.lookupByUUIDString(server_id)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise not_found(f"server {server_id}") from None
            raise

    # -- the connection ------------------------------------------------------------------------------------

    def _open(self) -> Any:
        with self._guard:
            if self._connection is not None:
                return self._connection
            if self._stopping.is_set():
                raise DriverError("hypervisor", "the driver is stopping")
            self._prepare()
            connection = libvirt.open(self.uri)
            # a daemon that is silent for 5 x 6 s is taken as gone, and calls that wait for it fail
            with contextlib.suppress(libvirt.libvirtError):  # not every driver has it
                connection.setKeepAlive(5, 6)
            connection.registerCloseCallback(self._closed, None)
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
            self._connection = connection
            self._broken.clear()
        self._queue.put(Event("connected"))
        return connection

    def _drop(self, connection: Any) -> None:
        with self._guard:
            if connection is None or connection is not self._connection:
                return
            self._connection = None
        self._broken.set()
        with contextlib.suppress(libvirt.libvirtError):  # it is broken already
            connection.close()

    def _keep(self) -> None:
        """Connects again after a break, so that events flow without anyone calling."""
        while not self._stopping.is_set():
            self._broken.wait()
            if self._stopping.is_set():
                return
            try:
                self._open()
            except (libvirt.libvirtError, DriverError) as error:
                LOG.warning("libvirt at %s cannot be reached: %s", self.uri, error)
                self._stopping.wait(_RETRY_SECONDS)

    # -- events: these run on libvirt's own thread and may only enqueue --------------------------------------

    def _closed(self, connection: Any, reason: int, opaque: Any) -> None:
        # closing is not allowed within the callback
        threading.Thread(target=self._drop, args=(connection,), daemon=True).start()

    def _lifecycle(self, connection: Any, domain: Any, event: int, detail: int, opaque: Any) -> None:
        self._queue.put(Event("lifecycle", domain.UUIDString(), (event, detail)))

    def _work(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                if event.kind == "connected":
                    self._on_connected()
                else:
                    self._on_event(event)
            except DriverError as error:
                if not self._stopping.is_set():  # what is missed now is listed at the next start
                    LOG.warning("an event of libvirt could not be reported: %s", error.message)
            except Exception:
                LOG.exception("an event of libvirt could not be handled")


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def translated(what: str, error: Any) -> DriverError:
    """libvirt's error as ours; the code says what to do, the text what libvirt said."""
    code = error.get_error_code()
    said = error.get_error_message() or str(error)
    if code in _MISSING:
        return not_found(f"{_MISSING[code]} ({what})")
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return DriverError("timeout", f"{what}: {said}")
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return DriverError("conflict", f"{what}: {said}")
    if code in (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_XML_ERROR):
        return DriverError("unsupported", f"{what}: {said}")
    return DriverError("hypervisor", f"{what}: {said}")
