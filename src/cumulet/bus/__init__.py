"""The message bus between control plane and hosts: typed messages, a local and an AMQP transport."""

from cumulet.bus.catalogue import register
from cumulet.bus.local import Chaos, LocalBus
from cumulet.bus.model import Bus, BusTimeout, Delivery, Overloaded, RemoteFault, Service, Unreachable

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
]


def open_bus(url: str) -> Bus:
    """``local`` or ``amqp://user:password@host:port/vhost``."""
    if url.startswith("local"):
        return LocalBus()
    from cumulet.bus.amqp import AmqpBus  # kombu is imported only where there is a broker

    return AmqpBus(url)
