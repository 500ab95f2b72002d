"""The message bus between control plane and hosts: typed messages, a local and an AMQP transport."""

from cumulet.bus.catalogue import register
from cumulet.bus.local import Chaos, LocalBus
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
    """``local``, or ``amqp://`` or ``amqps://user:password@host:port/vhost`` (see `bus.amqp`)."""
    if url.startswith("local"):
        return LocalBus()
    from cumulet.bus.amqp import AmqpBus  # kombu is imported only where there is a broker

    return AmqpBus(url, tls)
