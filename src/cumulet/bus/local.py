"""The bus inside one process. Messages are encoded and, but for calls whose handlers are prompt (`catalogue.PROMPT`),
handled on other threads, exactly as over a broker, so that code which works here works there.

With a ``Chaos`` (tests), messages are delayed, doubled, dropped and overtaken, repeatably from its seed.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import msgspec

from cumulet import logs
from cumulet.bus import catalogue
from cumulet.bus.chaos import Chaos
from cumulet.bus.model import (
    Bus,
    BusTimeout,
    Delivery,
    Envelope,
    Handler,
    Observer,
    Overloaded,
    RemoteFault,
    Traffic,
    Unreachable,
)
from cumulet.bus.pool import Pool, current_depth

_log = logging.getLogger(__name__)
_STOP_SECONDS = 5.0


class _Pending:
    __slots__ = ("body", "event", "name")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.name = ""
        self.body = b""


class LocalService:
    def __init__(self, bus: "LocalBus", topic: str, handler: Handler, threads: int) -> None:
        self.bus = bus
        self.topic = topic
        self.handler = handler
        self.pool = Pool(topic, threads)
        self._inline = 0  # messages that callers handle on threads of their own
        self._state = threading.Condition()

    def stop(self) -> None:
        self.bus.forget(self)
        self.pool.close()
        with self._state:
            self._state.wait_for(lambda: not self._inline, 0 if current_depth() else _STOP_SECONDS)

    @contextmanager
    def handling(self) -> Iterator[None]:
        with self._state:
            self._inline += 1
        try:
            yield
        finally:
            with self._state:
                self._inline -= 1
                if not self._inline:
                    self._state.notify_all()


class LocalBus:
    def __init__(self, chaos: Chaos | None = None) -> None:
        self._services: dict[str, list[LocalService]] = {}
        self._lock = threading.Lock()
        self._turn = count()
        self.chaos = chaos
        self.name = ""
        self.observer: Observer | None = None
        self.traffic = Traffic()

    @property
    def in_process(self) -> bool:
        return self.chaos is None

    def call(self, topic: str, message: msgspec.Struct, timeout: float | None = None) -> Any:
        name, body = catalogue.encode(message)
        seconds = catalogue.timeout_of(message, timeout)
        service = self._pick(topic)
        if service is None:
            raise Unreachable(f"Nobody serves {topic}.")
        chaos = self.chaos
        if chaos is None and type(message) in catalogue.PROMPT:
            with service.handling():
                return _reply(*run_handler(self, service.handler, topic, name, body, envelop(self)))
        pending = _Pending()

        def answer(reply_name: str, reply_body: bytes) -> None:
            def arrive() -> None:
                if not pending.event.is_set():
                    pending.name, pending.body = reply_name, reply_body
                    pending.event.set()

            if not self._travel(arrive):
                time.sleep(chaos.drop_seconds if chaos else 0)
                pending.event.set()  # the caller's patience ends

        if not self._send(service, name, body, answer):
            seconds = min(seconds, chaos.drop_seconds) if chaos else seconds
        if not pending.event.wait(seconds) or not pending.name:
            raise BusTimeout(f"{topic} did not answer {name} within {seconds:g} seconds.")
        return _reply(pending.name, pending.body)

    def cast(self, topic: str, message: msgspec.Struct) -> None:
        name, body = catalogue.encode(message)
        service = self._pick(topic)
        if service is not None:
            self._hint(service, name, body)

    def fanout(self, topic: str, message: msgspec.Struct) -> None:
        name, body = catalogue.encode(message)
        with self._lock:
            services = list(self._services.get(topic, ()))
        for service in services:
            self._hint(service, name, body)

    def serve(self, topic: str, handler: Handler, *, threads: int = 8) -> LocalService:
        service = LocalService(self, topic, handler, threads)
        with self._lock:
            self._services.setdefault(topic, []).append(service)
        return service

    def forget(self, service: LocalService) -> None:
        with self._lock:
            services = self._services.get(service.topic, [])
            if service in services:
                services.remove(service)

    def waiting(self) -> dict[str, int]:
        with self._lock:
            return {topic: sum(s.pool.waiting() for s in some) for topic, some in self._services.items()}

    def busy(self) -> int:
        with self._lock:
            services = [service for some in self._services.values() for service in some]
        return sum(service.pool.busy() for service in services)

    def close(self) -> None:
        with self._lock:
            services = [service for some in self._services.values() for service in some]
        for service in services:
            service.stop()

    # -- delivery -----------------------------------------------------------------------------------------

    def _pick(self, topic: str) -> LocalService | None:
        with self._lock:
            services = self._services.get(topic)
            return services[next(self._turn) % len(services)] if services else None

    def _hint(self, service: LocalService, name: str, body: bytes) -> None:
        try:
            self._send(service, name, body, None)
        except Overloaded:
            _log.warning("a hint to %s is lost: its queue is full", service.topic)

    def _send(self, service: LocalService, name: str, body: bytes, answer: Callable[[str, bytes], None] | None) -> bool:
        depth = current_depth()
        envelope = envelop(self)

        def handle() -> None:
            reply = run_handler(self, service.handler, service.topic, name, body, envelope)
            if answer is not None:
                answer(*reply)

        return self._travel(lambda: service.pool.submit(depth, handle))

    def _travel(self, deliver: Callable[[], None]) -> bool:
        """Deliver as the chaos wants it; False if the message is lost."""
        chaos = self.chaos  # it may come and go
        if chaos is None:
            deliver()
            return True
        copies = chaos.copies()
        for seconds in copies:
            if seconds:
                threading.Thread(target=_later, args=(seconds, deliver), daemon=True).start()
            else:
                deliver()
        return bool(copies)


def _reply(name: str, body: bytes) -> Any:
    reply = catalogue.decode(name, body)
    if isinstance(reply, catalogue.Fault):
        raise RemoteFault(reply.kind, reply.message)
    return None if isinstance(reply, catalogue.Nothing) else reply


def _later(seconds: float, deliver: Callable[[], None]) -> None:
    time.sleep(seconds)
    try:
        deliver()
    except Overloaded:
        _log.warning("a delayed message is lost: the queue is full or closed")


def envelop(bus: Bus) -> Envelope:
    bus.traffic.sent += 1
    return Envelope(logs.current_request(), bus.name, time.time_ns() // 1000)


def run_handler(
    bus: Bus, handler: Handler, topic: str, name: str, body: bytes | memoryview | str, envelope: Envelope
) -> tuple[str, bytes]:
    """Decode, handle under the sender's request id, encode the answer. What the handler raises becomes a ``Fault``."""
    received = time.time_ns() // 1000
    bus.traffic.handled += 1
    message = None
    try:
        with logs.request(envelope.request_id):
            message = catalogue.decode(name, body)
            reply = handler(message)
        return catalogue.encode(catalogue.Nothing() if reply is None else reply)
    except Exception as error:  # noqa: BLE001 - it is answered to the caller, and logged
        _log.exception("%s on %s failed", name, topic)
        return catalogue.encode(catalogue.Fault(type(error).__name__, str(error)))
    finally:
        if bus.observer is not None and envelope.request_id is not None:
            bus.observer(Delivery(topic, message, *envelope, received, time.time_ns() // 1000))
