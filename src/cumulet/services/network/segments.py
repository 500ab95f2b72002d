"""ML2 type drivers: which kinds of networks there are, their ids and MTU.

Owns: validation of provider attributes, choice of the type of a project's network, allocation of VLAN ids and VNIs
(lowest free one, under a lock; the unique constraint on networks is the last guard).
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select

from cumulet.db import Tx
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict
from cumulet.settings import Network as NetworkSettings

_TAKEN = select(t.NETWORKS.c.segmentation_id).where(
    t.NETWORKS.c.network_type == bindparam("network_type"),
    t.NETWORKS.c.physical_network == bindparam("physical_network"),
    t.NETWORKS.c.segmentation_id >= bindparam("low"),
    t.NETWORKS.c.segmentation_id <= bindparam("high"),
)
_FLAT = select(t.NETWORKS.c.id).where(
    t.NETWORKS.c.network_type == "flat", t.NETWORKS.c.physical_network == bindparam("physical_network")
)
# bytes an encapsulation adds to a packet over IPv4
_OVERHEAD = {"vxlan": 50, "gre": 42}
TYPES = ("local", "flat", "vlan", "vxlan", "gre")
TUNNELS = ("vxlan", "gre")


@dataclass(frozen=True)
class SegmentValues:
    network_type: str
    physical_network: str
    segmentation_id: int | None


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    return int(low), int(high or low)


class TypeDrivers:
    def __init__(self, settings: NetworkSettings) -> None:
        self.settings = settings

    def mtu(self, network_type: str) -> int:
        return self.settings.physical_mtu - _OVERHEAD.get(network_type, 0)

    def check_mtu(self, network_type: str, mtu: int) -> int:
        """0 asks for the largest possible."""
        largest = self.mtu(network_type)
        if mtu > largest:
            raise bad(f"The requested MTU {mtu} is more than the network can carry, {largest}.", "InvalidInput")
        if mtu and mtu < 68:
            raise bad(f"The requested MTU {mtu} is too small, at least 68.", "InvalidInput")
        return mtu or largest

    def _physical(self) -> set[str]:
        return {*self.settings.bridge_mappings, *self.settings.vlan_ranges}

    def for_project(self, tx: Tx) -> SegmentValues:
        """A segment for a network that names none: the first type of the list that has an id left."""
        for kind in self.settings.tenant_network_types:
            if kind == "local":
                return SegmentValues("local", "", None)
            places = list(self.settings.vlan_ranges) if kind == "vlan" else [""]
            for place in places:
                number = self._free(tx, kind, place)
                if number is not None:
                    return SegmentValues(kind, place, number)
        raise conflict("NoNetworkAvailable", "There is no segment left for a new network.")

    def given(self, tx: Tx, kind: Any, physical: str | None, number: int | None) -> SegmentValues:
        """Provider attributes an administrator gave, completed."""
        if kind is None:
            raise bad("network_type required", "InvalidInput")
        if kind not in TYPES:
            raise bad(f"network_type value {kind!r} not supported", "InvalidInput")
        if kind in ("local", *TUNNELS) and physical:
            raise bad(f"provider:physical_network is not for networks of type {kind}", "InvalidInput")
        if kind in ("local", "flat") and number is not None:
            raise bad(f"provider:segmentation_id is not for networks of type {kind}", "InvalidInput")
        if kind in ("flat", "vlan"):
            if not physical:
                if kind == "flat" or number is not None or not self.settings.vlan_ranges:
                    raise bad(f"provider:physical_network is required for networks of type {kind}", "InvalidInput")
                physical = next(iter(self.settings.vlan_ranges))
            elif physical not in self._physical():
                raise bad(f"physical_network {physical!r} is unknown", "InvalidInput")
        place = physical or ""
        if kind == "flat":
            tx.lock("segment", f"flat:{place}")
            if tx.first(_FLAT, {"physical_network": place}) is not None:
                raise conflict("FlatNetworkInUse", f"The physical network {place} has a flat network already.")
            return SegmentValues("flat", place, None)
        if kind == "local":
            return SegmentValues("local", "", None)
        if number is None:
            number = self._free(tx, kind, place)
            if number is None:
                raise conflict("NoNetworkAvailable", f"There is no {kind} id left.")
            return SegmentValues(kind, place, number)
        low, high = {"vlan": (1, 4094), "vxlan": (1, 2**24 - 1), "gre": (1, 2**31 - 1)}[kind]
        if not low <= number <= high:
            raise bad(f"provider:segmentation_id {number} is not between {low} and {high}", "InvalidInput")
        tx.lock("segment", f"{kind}:{place}")
        where = {"network_type": kind, "physical_network": place, "low": number, "high": number}
        if tx.first(_TAKEN, where) is not None:
            name = "VlanIdInUse" if kind == "vlan" else "TunnelIdInUse"
            raise conflict(name, f"The {kind} id {number} is in use.")
        return SegmentValues(kind, place, number)

    def _free(self, tx: Tx, kind: str, place: str) -> int | None:
        if kind == "vlan":
            spans = self.settings.vlan_ranges.get(place)
            if spans is None:
                return None
            low, high = _range(spans)
        else:
            low, high = _range(self.settings.vni_range)
        tx.lock("segment", f"{kind}:{place}")
        found = tx.rows(_TAKEN, {"network_type": kind, "physical_network": place, "low": low, "high": high})
        taken = {row[0] for row in found}
        number = low
        while number in taken:
            number += 1
        return number if number <= high else None
