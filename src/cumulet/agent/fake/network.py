"""The fake network driver: documents are remembered, nothing is wired."""

from typing import Any

import msgspec

from cumulet.agent.contract import DOCUMENTS, Absent
from cumulet.agent.driver import DocumentApplier, Facts, Found
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


class _Applier:
    def __init__(self, kind: str, driver: FakeNetwork) -> None:
        self._kind = kind
        self._driver = driver

    def apply(self, doc: Any) -> None:
        self._driver.faults.meet(doc, "before")
        with self._driver.world.change() as state:
            state.documents[self._kind][doc.id] = msgspec.to_builtins(doc)
        self._driver.faults.meet(doc, "after")

    def remove(self, object_id: str, generation: int) -> None:
        self._driver.faults.meet(DOCUMENTS[self._kind], "before")
        with self._driver.world.change() as state:
            state.documents[self._kind].pop(object_id, None)
            if self._kind == "port":  # a port that is not to be here has no tap here
                state.taps.pop(object_id, None)

    def list(self) -> list[str]:
        with self._driver.world.look() as state:
            return list(state.documents[self._kind])
