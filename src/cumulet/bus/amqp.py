"""The bus over RabbitMQ, by kombu with a small RPC of its own.

A topic is a durable quorum queue ``cumulet.<topic>`` shared by all who serve it, and a fan-out exchange of the same
name with one queue for each of them. Answers come back to one queue of the calling process. Messages expire with
their caller's patience. They are acknowledged on receipt: a process that dies with a message in hand loses it, which
the protocol above allows for (callers repeat).

A host that joined has an account of its own, which may do two things beside serving its own topic: call the conductors
(through one exchange that leads nowhere else) and answer (through another). The broker vouches for the account, so that
a conductor knows which host speaks (`bus.speaker`).

Each connection belongs to one thread, or to one lock; a broken one is made again every 0.2 seconds. A call whose
connections broke while it waited is sent once more, so that it survives a restart of the broker within its time-out.
"""

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from amqp.exceptions import AMQPError
from kombu import Connection
from kombu.exceptions import KombuError

from cumulet.bus import catalogue
from cumulet.bus.accounts import HOSTS, REPLIES, account_name
from cumulet.bus.chaos import Chaos
from cumulet.bus.local import envelop, run_handler
from cumulet.bus.model import (
    BusTimeout,
    Envelope,
    Handler,
    Observer,
    Overloaded,
    RemoteFault,
    Traffic,
    Unreachable,
    spoken_by,
)
from cumulet.bus.pool import Pool, current_depth
from cumulet.settings import Tls

_log = logging.getLogger(__name__)
_BROKEN = (OSError, AMQPError, KombuError)
_RETRY_SECONDS = 0.2
_HEARTBEAT_SECONDS = 6
_HINT_SECONDS = 60.0
_REPLY_QUEUE_EXPIRES_MS = 120_000
_IDLE_TIMEOUT = (socket.timeout, TimeoutError)


class Broker:
    """Where the broker is: one or several addresses of a cluster, tried in turn, the last good one first."""

    def __init__(self, url: str, tls: Tls | None) -> None:
        parts = urlsplit(url)
        user, _, addresses = parts.netloc.rpartition("@")
        self.account = unquote(user.partition(":")[0])
        self.password = unquote(user.partition(":")[2])
        self.vhost = unquote(parts.path.removeprefix("/")) or "/"
        port = 5671 if parts.scheme == "amqps" else 5672
        self.addresses = [address if ":" in address else f"{address}:{port}" for address in addresses.split(",")]
        self._tls = tls or Tls() if parts.scheme == "amqps" else None

    def connect(self) -> Connection:
        addresses = list(self.addresses)
        for address in addresses:
            try:
                connection = self._connect(address)
            except _BROKEN:
                if address == addresses[-1]:
                    raise
                continue
            if address != self.addresses[0]:
                self.addresses = [address, *(other for other in addresses if other != address)]
            return connection
        raise AssertionError("a broker has an address")

    def _connect(self, address: str) -> Connection:
        host, _, port = address.rpartition(":")
        ssl_options: Any = False
        if self._tls is not None:
            ssl_options = {
                "ca_certs": self._tls.ca or ssl.get_default_verify_paths().cafile,
                "certfile": self._tls.certificate,
                "keyfile": self._tls.key,
                "cert_reqs": ssl.CERT_REQUIRED,
                "server_hostname": host,
            }
        connection = Connection(
            transport="pyamqp",
            hostname=host,
            port=int(port),
            userid=self.account,
            password=self.password,
            virtual_host=self.vhost,
            ssl=ssl_options,
            heartbeat=_HEARTBEAT_SECONDS,
            connect_timeout=2,
            # kombu tries twice, by default two seconds apart
            transport_options={"interval_start": 0.05, "interval_step": 0.0, "interval_max": 0.05, "write_timeout": 5},
        )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


class _Consumer:
    """One thread with a connection of its own that consumes what ``declare`` names, for ever."""

    def __init__(
        self, broker: Broker, name: str, declare: Callable[[Any, Callable[[Any], None]], None], on_message: Any
    ) -> None:
        self._broker = broker
        self._name = name
        self._declare = declare
        self._on_message = on_message
        self.stopping = threading.Event()
        self.ready = threading.Event()
        self._away = False
        self.generation = 0  # rises with every new connection
        self.lost = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"amqp-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self.stopping.is_set():
            connection, broken = None, False
            try:
                connection = self._broker.connect()
                self._declare(connection.default_channel, self._on_message)
                with self.lost:
                    self.generation += 1
                    self.lost.notify_all()
                self.ready.set()
                if self._away:
                    self._away = False
                    _log.info("the message broker is back (%s)", self._name)
                self._drain(connection)
            except _BROKEN as error:
                broken = True
                if not self.stopping.is_set():
                    level = logging.DEBUG if self._away else logging.WARNING  # said once for each absence
                    self._away = True
                    _log.log(level, "the message broker is away (%s, %s): %s", self._name, type(error).__name__, error)
            finally:
                self.ready.clear()
                if connection is not None:
                    _close(connection, broken=broken)
            self.stopping.wait(_RETRY_SECONDS)

    def _drain(self, connection: Connection) -> None:
        """Until stopped or broken. Half a heartbeat's silence at most between two looks at the heart."""
        last_beat = time.monotonic()
        while not self.stopping.is_set():
            with suppress(*_IDLE_TIMEOUT):
                connection.drain_events(timeout=0.5)
            if time.monotonic() - last_beat >= 1.0:
                last_beat = time.monotonic()
                connection.heartbeat_check()

    def stop(self) -> None:
        self.stopping.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(3)


def _close(connection: Connection, *, broken: bool = False) -> None:
    """A broken one is let go without a word: its goodbye would wait for ever where a network drops packets."""
    try:
        if broken:
            connection.collect()
        else:
            connection.release()
    except _BROKEN as error:
        _log.debug("closing a broken connection: %s", error)


class _Publisher:
    """One connection under a lock. Anyone may call; a broken connection is replaced by the next call."""

    def __init__(self, broker: Broker, *, declares: bool) -> None:
        self._broker = broker
        self._declares = declares
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._exchanges: set[str] = set()

    def publish(
        self, exchange: str, key: str, body: bytes, seconds: float, headers: Any = None, **properties: Any
    ) -> None:
        """Raises Unreachable when there is no broker within ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            try:
                with self._lock:
                    self._send(exchange, key, body, headers, properties, max(int((end - time.monotonic()) * 1000), 1))
                return
            except _BROKEN as error:
                if time.monotonic() + _RETRY_SECONDS >= end:
                    raise Unreachable("The message broker cannot be reached.") from error
                time.sleep(_RETRY_SECONDS)

    def _send(
        self, exchange: str, key: str, body: bytes, headers: Any, properties: dict[str, Any], expires_ms: int
    ) -> None:
        connection = self._connection
        if connection is not None and _is_dead(connection):
            self._drop()
            connection = None
        if connection is None:
            connection = self._connection = self._broker.connect()
            self._exchanges.clear()
        channel = connection.default_channel
        if (
            self._declares and exchange and exchange not in self._exchanges
        ):  # publishing to a missing one would close the channel
            channel.exchange_declare(exchange, "fanout", durable=True, auto_delete=False)
            self._exchanges.add(exchange)
        message = channel.prepare_message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers,
            properties={**properties, "expiration": str(expires_ms), "delivery_mode": 1},
        )
        try:
            channel.basic_publish(message, exchange=exchange, routing_key=key)
        except _BROKEN:
            self._drop()
            raise

    def beat(self) -> None:
        with self._lock:
            if self._connection is not None:
                try:
                    self._connection.heartbeat_check()
                except _BROKEN:
                    self._drop()

    def _drop(self, *, broken: bool = True) -> None:
        if self._connection is not None:
            _close(self._connection, broken=broken)
            self._connection = None

    def close(self) -> None:
        with self._lock:
            self._drop(broken=False)


def _is_dead(connection: Connection) -> bool:
    """A publisher never reads, so a broker that said goodbye is noticed by what waits in the socket."""
    try:
        connection.drain_events(timeout=0.000001)
    except _IDLE_TIMEOUT:
        return False
    except _BROKEN:
        return True
    return False


class _Pending:
    __slots__ = ("body", "event", "name")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.name = ""
        self.body: bytes | memoryview | str = b""


class AmqpService:
    def __init__(self, bus: "AmqpBus", topic: str, handler: Handler, threads: int) -> None:
        self._bus = bus
        self.topic = self._topic = topic
        self._handler = handler
        self._pool = Pool(topic, threads)
        self._own_queue = f"{bus.queue(topic)}.each.{os.urandom(8).hex()}"
        self._consumer = _Consumer(bus.broker, topic, self._declare, self._on_message)

    def wait_ready(self, seconds: float) -> bool:
        return self._consumer.ready.wait(seconds)

    def _declare(self, channel: Any, on_message: Callable[[Any], None]) -> None:
        queue = self._bus.queue(self._topic)
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        channel.exchange_declare(queue, "fanout", durable=True, auto_delete=False)
        channel.queue_declare(
            self._own_queue, durable=True, auto_delete=False, arguments={"x-expires": _REPLY_QUEUE_EXPIRES_MS}
        )
        channel.queue_bind(self._own_queue, queue)
        if self._bus.host is None and not self._topic.startswith("agent."):
            hosts = self._bus.queue(HOSTS)
            channel.exchange_declare(hosts, "direct", durable=True, auto_delete=False)
            channel.queue_bind(queue, hosts, self._topic)
        for name in (queue, self._own_queue):
            channel.basic_consume(name, no_ack=True, callback=on_message)

    def _on_message(self, message: Any) -> None:
        properties = message.properties
        headers = properties.get("application_headers") or {}
        name, body, reply_to = properties.get("type", ""), message.body, properties.get("reply_to")
        correlation_id = properties.get("correlation_id")
        envelope = Envelope(headers.get("request"), headers.get("sender", ""), int(headers.get("sent", 0)))

        host = None
        if message.delivery_info.get("exchange") == self._bus.queue(HOSTS):
            host = str(properties.get("user_id") or "").removeprefix(account_name(self._bus.prefix, ""))
            if not host:  # the broker checks a name that is given, and lets one be left out
                _log.warning("a %s on %s names no account: dropped", name, self._topic)
                return

        def handle() -> None:
            with spoken_by(host):
                answer()

        def answer() -> None:
            reply_name, reply_body = run_handler(self._bus, self._handler, self._topic, name, body, envelope)
            if reply_to:
                self._bus.reply(reply_to, correlation_id, reply_name, reply_body)

        try:
            self._pool.submit(int(headers.get("depth", 0)), handle)
        except Overloaded as error:
            _log.warning("%s is overloaded: a %s is refused", self._topic, name)
            if reply_to:
                fault = catalogue.encode(catalogue.Fault("Overloaded", error.message))
                self._bus.reply(reply_to, correlation_id, *fault)

    def waiting(self) -> int:
        return self._pool.waiting()

    def busy(self) -> int:
        return self._pool.busy()

    def stop_consuming(self) -> None:
        self._consumer.stopping.set()

    def stop(self) -> None:
        self._consumer.stop()
        self._pool.close()
        self._bus.forget(self)


class AmqpBus:
    """``url``: ``amqp://user:password@host:port/vhost``, over TLS with ``amqps``; several ``host:port`` of one cluster
    are separated by commas. ``?prefix=name`` keeps clouds that share a broker apart; ``as=HOST`` says that the account
    is that host's own."""

    def __init__(self, url: str, tls: Tls | None = None) -> None:
        self.prefix = self.prefix_of(url)
        self.host = dict(parse_qsl(urlsplit(url).query)).get("as")
        self.broker = Broker(url, tls)
        self.name = ""
        self.observer: Observer | None = None
        self.in_process = False
        self.chaos: Chaos | None = None
        self.traffic = Traffic()
        self._publisher = _Publisher(self.broker, declares=self.host is None)
        self._waiting: dict[str, _Pending] = {}
        own = f"{self.host}." if self.host else ""
        self._reply_queue = self.queue(f"reply.{own}{os.urandom(8).hex()}")
        self._replies: _Consumer | None = None
        self._services: list[AmqpService] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="amqp-heartbeat", daemon=True).start()

    @staticmethod
    def prefix_of(url: str) -> str:
        return dict(parse_qsl(urlsplit(url).query)).get("prefix", "cumulet")

    def call(self, topic: str, message: msgspec.Struct, timeout: float | None = None) -> Any:
        name, body = catalogue.encode(message)
        seconds = catalogue.timeout_of(message, timeout)
        end = time.monotonic() + seconds
        replies = self._reply_consumer()
        if not replies.ready.wait(seconds):
            raise Unreachable("The message broker cannot be reached.")
        correlation_id = os.urandom(12).hex()
        pending = self._waiting[correlation_id] = _Pending()
        try:
            while not pending.event.is_set():
                generation = replies.generation
                self._publish(
                    *self._way_to(topic),
                    body,
                    end - time.monotonic(),
                    type=name,
                    correlation_id=correlation_id,
                    reply_to=self._reply_queue,
                    headers=self._headers(),
                    **self._account,
                )
                while not pending.event.wait(min(0.25, max(end - time.monotonic(), 0.001))):
                    if time.monotonic() >= end:
                        raise BusTimeout(f"{topic} did not answer {name} within {seconds:g} seconds.")
                    if replies.generation != generation:
                        break  # the broker went away and came back: what was under way may be lost
        finally:
            self._waiting.pop(correlation_id, None)
        reply = catalogue.decode(pending.name, pending.body)
        if isinstance(reply, catalogue.Fault):
            if reply.kind == "Overloaded":
                raise Overloaded(reply.message)
            raise RemoteFault(reply.kind, reply.message)
        return None if isinstance(reply, catalogue.Nothing) else reply

    def cast(self, topic: str, message: msgspec.Struct) -> None:
        self._hint(*self._way_to(topic), message)

    def fanout(self, topic: str, message: msgspec.Struct) -> None:
        self._hint(self.queue(topic), "", message)

    def serve(self, topic: str, handler: Handler, *, threads: int = 8) -> AmqpService:
        """Returns when the queue is consumed, or after a second (a broker that is away is waited for in the
        background)."""
        service = AmqpService(self, topic, handler, threads)
        with self._lock:
            self._services.append(service)
        service.wait_ready(1.0)
        return service

    def queue(self, topic: str) -> str:
        return f"{self.prefix}.{topic}"

    def reply(self, queue: str, correlation_id: str | None, name: str, body: bytes) -> None:
        try:
            exchange = self.queue(REPLIES) if self.host else ""
            self._publish(exchange, queue, body, 2.0, type=name, correlation_id=correlation_id)
        except Unreachable:
            _log.warning("an answer (%s) is lost: no broker", name)

    def forget(self, service: AmqpService) -> None:
        with self._lock:
            if service in self._services:
                self._services.remove(service)

    def waiting(self) -> dict[str, int]:
        """What waits for this process's threads, and at the broker for any conductor."""
        with self._lock:
            found = {service.topic: service.waiting() for service in self._services}
        try:
            connection = self.broker.connect()
        except _BROKEN:
            return {**found, "broker (away)": 0}
        try:
            answer = connection.default_channel.queue_declare(self.queue("conductor"), passive=True)
            found["conductor (broker)"] = answer.message_count
        except _BROKEN as error:
            _log.debug("the broker has no queue of conductors: %s", error)
        finally:
            _close(connection)
        return found

    def busy(self) -> int:
        with self._lock:
            services = list(self._services)
        return sum(service.busy() for service in services)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            services = list(self._services)
            replies, self._replies = self._replies, None
        for service in services:
            service.stop_consuming()
        if replies is not None:
            replies.stopping.set()
        for service in services:
            service.stop()
        if replies is not None:
            replies.stop()
        self._publisher.close()

    def _way_to(self, topic: str) -> tuple[str, str]:
        """Exchange and routing key."""
        return (self.queue(HOSTS), topic) if self.host else ("", self.queue(topic))

    @property
    def _account(self) -> dict[str, str]:
        return {"user_id": self.broker.account} if self.host else {}

    # -- parts --------------------------------------------------------------------------------------------

    def _publish(self, *message: Any, **properties: Any) -> None:
        """As the chaos wants it; a copy that is late is lost if there is no broker by then."""
        if (chaos := self.chaos) is None:
            self._publisher.publish(*message, **properties)
            return
        for seconds in chaos.copies():
            if seconds:
                late = threading.Timer(seconds, self._publish_late, (message, properties))
                late.daemon = True
                late.start()
            else:
                self._publisher.publish(*message, **properties)

    def _publish_late(self, message: Any, properties: dict[str, Any]) -> None:
        with suppress(Unreachable):
            self._publisher.publish(*message, **properties)

    def _hint(self, exchange: str, key: str, message: msgspec.Struct) -> None:
        name, body = catalogue.encode(message)
        try:
            self._publish(exchange, key, body, 0.5, type=name, headers=self._headers(), **self._account)
        except Unreachable:
            _log.warning("a hint (%s) is lost: no broker", name)

    def _headers(self) -> dict[str, Any]:
        envelope = envelop(self)
        headers: dict[str, Any] = {"depth": current_depth(), "sent": envelope.sent_at}
        if envelope.request_id is not None:
            headers.update(request=envelope.request_id, sender=envelope.sender)
        return headers

    def _reply_consumer(self) -> _Consumer:
        with self._lock:
            if self._replies is None:
                self._replies = _Consumer(self.broker, "replies", self._declare_replies, self._on_reply)
            return self._replies

    def _declare_replies(self, channel: Any, on_message: Callable[[Any], None]) -> None:
        channel.queue_declare(
            self._reply_queue, durable=True, auto_delete=False, arguments={"x-expires": _REPLY_QUEUE_EXPIRES_MS}
        )
        if self.host is None:
            replies = self.queue(REPLIES)
            channel.exchange_declare(replies, "direct", durable=True, auto_delete=False)
            channel.queue_bind(self._reply_queue, replies, self._reply_queue)
        channel.basic_consume(self._reply_queue, no_ack=True, callback=on_message)

    def _on_reply(self, message: Any) -> None:
        pending = self._waiting.get(message.properties.get("correlation_id", ""))
        if pending is not None and not pending.event.is_set():
            pending.name, pending.body = message.properties.get("type", ""), message.body
            pending.event.set()

    def _beat(self) -> None:
        while not self._closed.wait(1.0):
            self._publisher.beat()
