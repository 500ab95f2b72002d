"""Which addresses a port gets: those asked for, or one IPv4 and the IPv6 ones its network offers."""

import ipaddress
from collections.abc import Iterable
from typing import Any

from cumulet.db import Tx
from cumulet.services.network import ipam
from cumulet.services.network import tables as t
from cumulet.services.network.attributes import UNSET
from cumulet.services.network.faults import bad, conflict, invalid

MAX_FIXED_IPS = 5


class Allocation:
    """Addresses of one network for one unit of work, which holds the network's address lock."""

    def __init__(
        self, tx: Tx, network_id: str, subnets: list[t.SubnetRow], *, bulk: bool, frontiers: ipam.Frontiers
    ) -> None:
        self.network_id = network_id
        self.subnets = subnets
        self._free = {subnet.id: ipam.Free(tx, subnet, bulk=bulk, frontiers=frontiers) for subnet in subnets}

    def choose(self, requested: Any, mac: str, owner: str) -> list[dict[str, Any]]:
        """Values of address rows, without the port."""
        if requested is UNSET or requested is None:
            return self._default(mac, owner)
        if len(requested) > MAX_FIXED_IPS:
            raise invalid("A port may have 5 fixed IPs.")
        found = [self._requested(item, mac) for item in requested]
        if requested and not owner.startswith("network:router_"):
            have = {values["subnet_id"] for values in found}
            found.extend(
                self._free[s.id].auto(mac)
                for s in self.subnets
                if ipam.is_auto_address(s) and s.id not in have and not s.service_types
            )
        return found

    def _requested(self, item: dict[str, str], mac: str) -> dict[str, Any]:
        address, subnet_id = item.get("ip_address"), item.get("subnet_id")
        if subnet_id is not None:
            if subnet_id not in self._free:
                raise invalid(f"Failed to create port on network {self.network_id}: subnet {subnet_id} is not on it.")
            free = self._free[subnet_id]
            if address is not None:
                return free.take(address)
            if ipam.is_auto_address(free.subnet):
                return free.auto(mac)
            values = free.next()
            if values is None:
                raise exhausted(self.network_id)
            return values
        if address is None:
            raise invalid("A fixed IP needs a subnet_id or an ip_address.")
        parsed = ipaddress.ip_address(address)
        for free in self._free.values():
            if parsed.version == free.network.version and parsed in free.network:
                return free.take(address)
        raise bad(f"IP address {address} is not in any subnet of network {self.network_id}.", "InvalidIpForNetwork")

    def _for_owner(self, owner: str) -> list[t.SubnetRow]:
        """Subnets whose service types suit the owner; those without types are for everybody else."""
        typed = [s for s in self.subnets if any(owner.startswith(kind) for kind in s.service_types) and owner]
        return typed or [s for s in self.subnets if not s.service_types]

    def _default(self, mac: str, owner: str) -> list[dict[str, Any]]:
        usable = self._for_owner(owner)
        if not usable and self.subnets:
            raise conflict("IpAddressGenerationFailureNoMatchingSubnet", "No subnet of the network suits this port.")
        found = []
        router = owner.startswith("network:router_")
        auto = [s for s in usable if ipam.is_auto_address(s) and not router]
        for version in (4, 6):
            offered = [s for s in usable if s.ip_version == version and s not in auto]
            if not offered:
                continue
            values = self._first(offered)
            if values is None:
                raise exhausted(self.network_id)
            found.append(values)
        found.extend(self._free[s.id].auto(mac) for s in auto)
        return found

    def _first(self, subnets: Iterable[t.SubnetRow]) -> dict[str, Any] | None:
        for subnet in subnets:
            values = self._free[subnet.id].next()
            if values is not None:
                return values
        return None


def exhausted(network_id: str) -> Exception:
    return conflict("IpAddressGenerationFailure", f"No more IP addresses available on network {network_id}.")
