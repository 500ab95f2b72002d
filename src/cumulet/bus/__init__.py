"""The message bus between control plane and hosts: typed messages, a local and an AMQP transport."""

from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from cumulet.bus.catalogue import register
from cumulet.bus.chaos import Chaos, follow
from cumulet.bus.local import LocalBus
from cumulet.bus.model import Bus, BusTimeout, Delivery, Overloaded, RemoteFault, Service, Unreachable, speaker
from cumulet.settings import Tls

__all__ = [
    "Bus",
    "BusTimeout",
    "Chaos",
    "Delivery",
    "LocalBus",
    "Overloaded",
    "RemoteFault",
    "Service",
    "Unreachable",
    "open_bus",
    "register",
    "speaker",
]


def open_bus(url: str, tls: Tls | None = None) -> Bus:
    """``local``, or ``amqp://`` or ``amqps://user:password@host:port/vhost`` (see `bus.amqp`). With ``?chaos=FILE``
    messages are harmed as that file says (tests and `cumulet chaos`)."""
    if url.startswith("local"):
        bus: Bus = LocalBus()
    else:
        from cumulet.bus.amqp import AmqpBus  # kombu is imported only where there is a broker

        bus = AmqpBus(url, tls)
    if file := dict(parse_qsl(urlsplit(url).query)).get("chaos"):
        follow(bus, Path(file))
    return bus
