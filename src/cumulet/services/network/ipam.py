"""Addresses of subnets: which are free, and taking them.

Owns: allocation pools as ranges, the lowest free address, addresses made from a MAC (SLAAC). Callers hold
``tx.lock("subnet-addresses", network_id)``; the primary key (subnet, address) is the last guard.
"""

import heapq
import ipaddress
import threading
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from sqlalchemy import BigInteger, and_, bindparam, case, exists, select

from cumulet.db import Tx
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAX_POSITION = 2**63 - 1
_REMEMBERED = 10_000  # positions given back, of one subnet

_TAKEN = select(t.ADDRESSES.c.port_id).where(
    t.ADDRESSES.c.subnet_id == bindparam("subnet_id"), t.ADDRESSES.c.ip_address == bindparam("ip_address")
)
# the low end of the range if it is free, else what follows the first taken position behind which there is a free one
_at, _a, _b = (t.ADDRESSES.alias(name) for name in ("first", "a", "b"))
_LOWEST_FREE = select(
    case(
        (
            ~exists().where(_at.c.subnet_id == bindparam("subnet_id"), _at.c.position == bindparam("low")),
            bindparam("low", type_=BigInteger),
        ),
        else_=select(_a.c.position + 1)
        .where(
            _a.c.subnet_id == bindparam("subnet_id"),
            _a.c.position >= bindparam("low"),
            _a.c.position < bindparam("high"),
            ~exists().where(and_(_b.c.subnet_id == _a.c.subnet_id, _b.c.position == _a.c.position + 1)),
        )
        .order_by(_a.c.position)
        .limit(1)
        .scalar_subquery(),
    )
)
_POSITIONS = select(t.ADDRESSES.c.position).where(
    t.ADDRESSES.c.subnet_id == bindparam("subnet_id"),
    t.ADDRESSES.c.position >= bindparam("low"),
    t.ADDRESSES.c.position <= bindparam("high"),
)


def network_of(subnet: t.SubnetRow) -> Network:
    return ipaddress.ip_network(subnet.cidr)


def position_of(network: Network, address: str) -> int | None:
    found = int(ipaddress.ip_address(address)) - int(network.network_address)
    return found if found <= _MAX_POSITION else None


def is_auto_address(subnet: t.SubnetRow) -> bool:
    """Ports of such a subnet make their own address from the prefix and the MAC."""
    return subnet.ip_version == 6 and subnet.ipv6_address_mode in ("slaac", "dhcpv6-stateless")


def eui64(network: Network, mac: str) -> str:
    octets = bytes.fromhex(mac.replace(":", ""))
    tail = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:6]])
    return str(network.network_address + int.from_bytes(tail, "big"))


def ranges(subnet: t.SubnetRow, network: Network) -> Iterator[tuple[int, int]]:
    """The pools as positions, first and last included."""
    base = int(network.network_address)
    for first, last in subnet.allocation_pools:
        low = int(ipaddress.ip_address(first)) - base
        if low <= _MAX_POSITION:
            yield low, min(int(ipaddress.ip_address(last)) - base, _MAX_POSITION)


def pool_size(subnet: t.SubnetRow) -> int:
    return sum(int(ipaddress.ip_address(b)) - int(ipaddress.ip_address(a)) + 1 for a, b in subnet.allocation_pools)


class Frontiers:
    """Where to look for the lowest free address of a subnet: below its frontier all are taken, but for those that were
    given back since. A hint of this process: what is chosen is looked up in the database, and when a hint leads nowhere
    the whole subnet is searched. Without it each port of a large network would pass all the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, list[int]]] = {}  # subnet -> (frontier, heap of positions given back)

    def of(self, subnet_id: str) -> tuple[int, int | None]:
        """The frontier, and the lowest position that was given back."""
        with self._lock:
            frontier, given_back = self._known.get(subnet_id, (0, []))
            return frontier, given_back[0] if given_back else None

    def not_free(self, subnet_id: str, position: int) -> None:
        """Somebody has what was given back: it is no hint any more."""
        with self._lock:
            _, given_back = self._known.get(subnet_id, (0, []))
            if given_back and given_back[0] == position:
                heapq.heappop(given_back)

    def taken(self, subnet_id: str, position: int, *, searched: bool) -> None:
        """``searched``: it was found to be the lowest at or above the frontier, or of all."""
        with self._lock:
            frontier, given_back = self._known.get(subnet_id, (0, []))
            while given_back and given_back[0] <= position and not searched:
                heapq.heappop(given_back)
            self._known[subnet_id] = (position + 1 if searched else frontier, given_back)

    def given_back(self, places: Iterable[tuple[str, int | None]]) -> None:
        with self._lock:
            for subnet_id, position in places:
                frontier, heap = self._known.get(subnet_id, (0, []))
                if position is not None and position < frontier and len(heap) < _REMEMBERED:
                    heapq.heappush(heap, position)

    def forget(self, subnet_id: str) -> None:
        """Its pools are others now."""
        with self._lock:
            self._known.pop(subnet_id, None)


class Free:
    """Free addresses of one subnet, lowest first, for one unit of work. For many at once (``bulk``) the taken ones are
    read once; else the database is asked for the gap, from ``frontiers`` on."""

    def __init__(self, tx: Tx, subnet: t.SubnetRow, *, bulk: bool = False, frontiers: Frontiers | None = None) -> None:
        self.tx = tx
        self._frontiers = frontiers
        self.subnet = subnet
        self.network = network_of(subnet)
        self._bulk = self._walk() if bulk else None
        self._mine: set[int] = set()  # chosen in this unit of work
        self._from = 0  # below, all is taken

    def _walk(self) -> Iterator[int]:
        for low, high in ranges(self.subnet, self.network):
            found = self.tx.rows(_POSITIONS, {"subnet_id": self.subnet.id, "low": low, "high": high})
            taken = {row[0] for row in found}
            for position in range(low, high + 1):
                if position not in taken and position not in self._mine:
                    yield position

    def _gap(self) -> int | None:
        if self._frontiers is None:
            return self._search(self._from)
        frontier, given_back = self._frontiers.of(self.subnet.id)
        while given_back is not None and given_back >= self._from:
            if self._is_free(given_back):
                self._note(given_back, searched=False)
                return given_back
            self._frontiers.not_free(self.subnet.id, given_back)
            frontier, given_back = self._frontiers.of(self.subnet.id)
        found = self._search(max(frontier, self._from))
        if found is None and frontier > self._from:
            found = self._search(self._from)
        if found is not None:
            self._note(found, searched=True)
        return found

    def _is_free(self, position: int) -> bool:
        if not any(low <= position <= high for low, high in ranges(self.subnet, self.network)):
            return False
        address = str(self.network.network_address + position)
        return self.tx.first(_TAKEN, {"subnet_id": self.subnet.id, "ip_address": address}) is None

    def _note(self, position: int, *, searched: bool) -> None:
        frontiers, subnet_id = self._frontiers, self.subnet.id
        assert frontiers is not None
        self.tx.after_commit(lambda: frontiers.taken(subnet_id, position, searched=searched))

    def _search(self, start: int) -> int | None:
        for first, high in ranges(self.subnet, self.network):
            low = max(first, start)
            if low > high:
                continue
            found = self.tx.scalar(_LOWEST_FREE, {"subnet_id": self.subnet.id, "low": low, "high": high})
            if found is not None:
                return int(found)
        return None

    def next(self) -> dict[str, Any] | None:
        """The lowest free address as values of a row (without its port), or None: all are taken."""
        position = next(self._bulk, None) if self._bulk is not None else self._gap()
        while position is not None and position in self._mine:
            self._from = position + 1
            position = next(self._bulk, None) if self._bulk is not None else self._gap()
        if position is None:
            return None
        self._from = position + 1
        self._mine.add(position)
        return self._values(str(self.network.network_address + position))

    def _values(self, address: str) -> dict[str, Any]:
        return {
            "subnet_id": self.subnet.id,
            "ip_address": address,
            "network_id": self.subnet.network_id,
            "position": position_of(self.network, address),
        }

    def take(self, address: str) -> dict[str, Any]:
        """A given address; refuses one outside the subnet, or taken."""
        parsed = ipaddress.ip_address(address)
        if parsed.version != self.subnet.ip_version or parsed not in self.network:
            raise bad(f"IP address {address} is not valid in subnet {self.subnet.cidr}.", "InvalidIpForSubnet")
        reserved = parsed == self.network.network_address or (
            parsed.version == 4 and parsed == self.network.broadcast_address
        )
        if reserved and self.network.num_addresses > 2:
            raise bad(f"IP address {address} is not valid in subnet {self.subnet.cidr}.", "InvalidIpForSubnet")
        values = self._values(str(parsed))
        taken = self.tx.first(_TAKEN, {"subnet_id": self.subnet.id, "ip_address": values["ip_address"]})
        if taken is not None or (values["position"] is not None and values["position"] in self._mine):
            raise in_use(self.subnet.network_id, address)
        if values["position"] is not None:
            self._mine.add(values["position"])
        return values

    def auto(self, mac: str) -> dict[str, Any]:
        return self._values(eui64(self.network, mac))


def in_use(network_id: str, address: str) -> Exception:
    return conflict("IpAddressAlreadyAllocated", f"IP address {address} of network {network_id} is in use.")


# -- pools of a new or changed subnet ----------------------------------------------------------------------------


def default_pools(network: Network, gateway: str | None) -> list[list[str]]:
    """Everything but the network's and broadcast address and the gateway."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.version == 4:
        if network.prefixlen < 31:
            first, last = first + 1, last - 1
    elif network.prefixlen < 127:
        first += 1
    spans = [(first, last)]
    if gateway is not None:
        at = int(ipaddress.ip_address(gateway))
        if first <= at <= last:
            spans = [(first, at - 1), (at + 1, last)]
    kind = ipaddress.IPv4Address if network.version == 4 else ipaddress.IPv6Address
    return [[str(kind(low)), str(kind(high))] for low, high in spans if low <= high]


def check_pools(network: Network, pools: list[list[str]], gateway: str | None) -> list[list[str]]:
    """Pools that the user gave: inside the subnet, well formed, disjoint, without the gateway."""
    spans = []
    for first, last in pools:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last)
        if low.version != network.version or high.version != network.version or int(high) < int(low):
            raise bad(f"The allocation pool {first}-{last} is not valid.", "InvalidAllocationPool")
        if low not in network or high not in network:
            raise bad(
                f"The allocation pool {first}-{last} spans beyond the subnet cidr {network}.",
                "OutOfBoundsAllocationPool",
            )
        edges = {network.network_address, network.broadcast_address} if network.version == 4 else set()
        if network.num_addresses > 2 and edges & {low, high}:
            raise bad(
                f"The allocation pool {first}-{last} spans beyond the subnet cidr {network}.",
                "OutOfBoundsAllocationPool",
            )
        spans.append((int(low), int(high), first, last))
    spans.sort()
    for one, other in pairwise(spans):
        if other[0] <= one[1]:
            raise conflict("OverlappingAllocationPools", f"The allocation pools {one[2:]} and {other[2:]} overlap.")
    if gateway is not None:
        check_gateway_outside(pools, gateway)
    return [[first, last] for _, _, first, last in spans]


def check_gateway_outside(pools: list[list[str]], gateway: str) -> None:
    at = ipaddress.ip_address(gateway)
    for first, last in pools:
        if at.version == ipaddress.ip_address(first).version and (
            int(ipaddress.ip_address(first)) <= int(at) <= int(ipaddress.ip_address(last))
        ):
            raise conflict(
                "GatewayConflictWithAllocationPools",
                f"Gateway ip {gateway} conflicts with allocation pool {first}-{last}.",
            )
