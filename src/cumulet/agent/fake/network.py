"""The fake network driver: documents are remembered, nothing is wired."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from cumulet.agent.contract import DOCUMENTS, Absent, Audited, MendItem
from cumulet.agent.driver import DocumentApplier, Facts, Found
from cumulet.agent.fake import wires
from cumulet.agent.fake.base import FakeDriver
from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.world import World


class FakeNetwork(FakeDriver):
    def __init__(
        self,
        world: World,
        faults: Faults,
        bridge_mappings: dict[str, str],
        *,
        kinds: tuple[str, ...] = tuple(DOCUMENTS),
        role: str = "network",
    ) -> None:
        super().__init__(world, faults)
        self.role = role
        self._kinds = kinds
        self._bridge_mappings = bridge_mappings

    def documents(self) -> dict[str, DocumentApplier]:
        return {kind: _Applier(kind, self) for kind in self._kinds}

    def facts(self) -> Facts:
        return Facts(mechanism="openvswitch", bridge_mappings=self._bridge_mappings)

    def inventory(self) -> Found:
        return Found()

    def remove_absent(self, absent: Absent) -> None:
        """Taps are the compute driver's here, as the plugging of ports is."""

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> Audited:
        with self.world.look() as state:
            return Audited(drift=wires.drift(documents, state.wires, state.leases, time.time(), self._kinds))

    def mend(self, item: MendItem) -> str | None:
        key = f"{item.kind}/{item.id}"
        with self.world.change() as state:
            if item.kind == "lease":
                state.leases.pop(item.id, None)
                return "the lease is forgotten"
            for owner in [owner for owner, standing in state.wires.items() if key in standing]:
                state.wires[owner].pop(key)
                if not state.wires[owner]:
                    del state.wires[owner]
                return f"the {item.kind} is removed"
        return f"the {item.kind} is gone" if item.kind in _WIRES else None


_WIRES = ("chain", "forwarding", "namespace", "dnsmasq", "dhcp-host")


class _Applier:
    def __init__(self, kind: str, driver: FakeNetwork) -> None:
        self._kind = kind
        self._driver = driver

    def apply(self, doc: Any) -> None:
        self._driver.faults.meet(doc, "before")
        with self._driver.world.change() as state:
            state.documents[self._kind][doc.id] = msgspec.to_builtins(doc)
            wires.stand(state.wires, doc)
        self._driver.faults.meet(doc, "after")

    def remove(self, object_id: str, generation: int) -> None:
        self._driver.faults.meet(DOCUMENTS[self._kind], "before")
        with self._driver.world.change() as state:
            state.documents[self._kind].pop(object_id, None)
            state.wires.pop(f"{self._kind}/{object_id}", None)
            for key in [key for key in state.leases if self._kind == "network" and key.startswith(object_id)]:
                state.leases.pop(key)
            if self._kind == "port":  # a port that is not to be here has no tap here
                state.taps.pop(object_id, None)

    def list(self) -> list[str]:
        with self._driver.world.look() as state:
            return list(state.documents[self._kind])
