"""What a transport promises, and how calls fail.

A message may be lost, doubled, delayed and overtaken by a later one: every receiver copes, every sender that cares
repeats until answered. Handlers run on the transport's own bounded threads. A handler may itself call; each level
of such nesting has threads of its own, so that processes that call each other in circles cannot starve one another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import msgspec

from cumulet.kernel.errors import Unavailable

Handler = Callable[[Any], msgspec.Struct | None]
MAX_DEPTH = 3  # handler that calls a handler that calls a handler


class Unreachable(Unavailable):
    """Nobody serves the topic, or there is no broker: the message was not delivered."""


class BusTimeout(Unavailable):
    """No answer in time: the message may have been delivered, or may be yet."""


class Overloaded(Unavailable):
    """The receiver's queue is full: the message was not delivered."""


class RemoteFault(Exception):
    """The handler on the other side raised. It was logged there; ``kind`` is the class's name."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Delivery(NamedTuple):
    """A message that was handled here, for people who want to see it. ``sent_at`` is of the sender's clock."""

    topic: str
    message: Any  # None: it could not be decoded
    request_id: str | None  # of the work that sent it
    sender: str
    sent_at: int
    received_at: int  # taken from the queue
    ended_at: int


class Envelope(NamedTuple):
    """What travels beside a message's body."""

    request_id: str | None
    sender: str
    sent_at: int  # microseconds since the epoch


Observer = Callable[[Delivery], object]


class Traffic:
    """Messages sent and handled by this process since it started."""

    __slots__ = ("handled", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.handled = 0


_SPEAKER: ContextVar[str | None] = ContextVar("speaker", default=None)


def speaker() -> str | None:
    """The host from whose own account the message being handled came, as the broker vouches; None: from a process that
    uses the control plane's account."""
    return _SPEAKER.get()


@contextmanager
def spoken_by(host: str | None) -> Iterator[None]:
    token = _SPEAKER.set(host)
    try:
        yield
    finally:
        _SPEAKER.reset(token)


class Service(Protocol):
    """One served topic."""

    def stop(self) -> None:
        """Take no more messages; returns when those being handled are done (or after a few seconds)."""
        ...


class Bus(Protocol):
    """Topics: ``conductor`` (any one of the conductors) and ``agent.<host>``. ``name`` tells receivers who sends;
    ``observer`` is told of each message that was handled here."""

    name: str
    observer: Observer | None
    traffic: Traffic

    @property
    def in_process(self) -> bool:
        """Both ends are in this process and no message is harmed: a prompt call does not wait."""
        ...

    def call(self, topic: str, message: msgspec.Struct, timeout: float | None = None) -> Any:
        """Send and wait for the answer (None if the handler has none). ``timeout`` None: the message class's own.

        Raises Unreachable, Overloaded, BusTimeout, RemoteFault."""
        ...

    def cast(self, topic: str, message: msgspec.Struct) -> None:
        """Send a hint. Never raises: what cannot be delivered is lost."""
        ...

    def fanout(self, topic: str, message: msgspec.Struct) -> None:
        """Send a hint to every process that serves the topic."""
        ...

    def serve(self, topic: str, handler: Handler, *, threads: int = 8) -> Service: ...

    def waiting(self) -> dict[str, int]:
        """Topic -> messages that wait there, as far as this process sees (a broker tells of all its queues)."""
        ...

    def busy(self) -> int:
        """How many messages that reached this process wait here or are being handled."""
        ...

    def close(self) -> None: ...
