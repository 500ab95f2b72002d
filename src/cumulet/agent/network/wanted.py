"""What the documents of this host say together, where one alone does not decide."""

from collections.abc import Iterator

from cumulet.agent.contract import NetworkDoc, PortDoc, RouterDoc, RouterPort, Segment
from cumulet.agent.network.store import DocumentStore


def segments_of(store: DocumentStore, network_id: str) -> Iterator[Segment]:
    """The segment of a network as each document that mentions it has it."""
    for port in all_ports(store):
        if port.network_id == network_id:
            yield port.segment
    network = store.get(NetworkDoc, network_id)
    if network:
        yield network.segment


def named(store: DocumentStore) -> set[str]:
    """The networks for which `segments_of` has any."""
    return {port.network_id for port in all_ports(store)} | {network.id for network in store.all(NetworkDoc)}


def all_ports(store: DocumentStore) -> Iterator[PortDoc]:
    """Guests' ports, DHCP servers' and routers'."""
    yield from store.all(PortDoc)
    for network in store.all(NetworkDoc):
        if network.dhcp_port:
            yield network.dhcp_port
    for router in store.all(RouterDoc):
        for leg in legs(router):
            yield leg.port


def legs(router: RouterDoc) -> list[RouterPort]:
    return [*router.interfaces, *([router.gateway] if router.gateway else [])]
