"""Guests' ports: `PortPlugger` for the compute driver of this host, and the appliers of ``port`` and ``group``
documents.

A port's filter stands before its device goes up, and goes after it. A document older than the one held changes
nothing; plugging with an old one gives the newer. The tap carries the port's id as its alias, so what is plugged is
read from the kernel, not from memory.
"""

from collections.abc import Sequence

from cumulet.agent.contract import GroupDoc, PortDoc
from cumulet.agent.network import links, names, rules
from cumulet.agent.network.wiring import Wiring


class Ports:
    """Implements `agent.compute.ports.PortPlugger` and `agent.driver.DocumentApplier`."""

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring

    # -- PortPlugger --------------------------------------------------------------------------------------------------

    def plug(self, port: PortDoc) -> None:
        with self._w.lock:
            held = self._w.store.get(PortDoc, port.id)
            if held is not None and held.generation > port.generation:
                port = held
            device = names.tap(port.id)
            bridge = self._w.mechanism.prepare(port)
            if rules.filtered(port):
                self._w.firewall.track(bridge, self._w.mechanism.is_private(bridge))
            self._w.sync_guard()
            self._w.firewall.apply(port, device, bridge, held, self._members)
            self._w.sync_guard()  # again: tables found missing are known to be so now
            self._w.store.put(port)
            self._w.mechanism.plug(port, device)
            if held is not None and held.rules != port.rules:
                self._sweep()

    def unplug(self, port_id: str) -> None:
        with self._w.lock:
            device = names.tap(port_id)
            held = self._w.store.get(PortDoc, port_id)
            bridge = links.master(device)
            if links.exists(device) or held is not None:
                self._w.mechanism.unplug(port_id, device)
                self._w.store.drop(PortDoc, port_id)
                self._w.mechanism.refresh([held.network_id] if held is not None else [])
            if self._w.firewall.remove(device) and held is not None:
                self._w.firewall.forget(held, bridge or "")
                self._sweep()
            self._w.sync_guard()

    def plugged(self) -> list[str]:
        """From the aliases of taps; DHCP servers' and routers' own ports hang in namespaces and are not told here."""
        held = {doc.id for doc in self._w.store.all(PortDoc)}
        return sorted(
            id
            for device, (noun, id) in links.ours().items()
            if noun == "port" and device == names.tap(id) and (id in held or links.is_tap(device))
        )

    # -- documents --------------------------------------------------------------------------------------------------

    def apply(self, doc: PortDoc) -> None:
        if not doc.device_owner.startswith("network:"):  # those come with their network's or router's document
            self.plug(doc)

    def remove(self, object_id: str, generation: int) -> None:
        with self._w.lock:
            held = self._w.store.get(PortDoc, object_id)
            if held is None or held.generation <= generation:
                self.unplug(object_id)

    def list(self) -> list[str]:
        return self.plugged()

    def _members(self, group_id: str) -> Sequence[str]:
        held = self._w.store.get(GroupDoc, group_id)
        return [] if held is None else held.members

    def _sweep(self) -> None:
        used = {name for port in self._w.store.all(PortDoc) if rules.filtered(port) for name in rules.group_names(port)}
        self._w.firewall.sweep_groups(used)


class Groups:
    """Members of the security groups that rules on this host refer to. Implements `agent.driver.DocumentApplier`."""

    def __init__(self, wiring: Wiring) -> None:
        self._w = wiring

    def apply(self, doc: GroupDoc) -> None:
        with self._w.lock:
            held = self._w.store.get(GroupDoc, doc.id)
            if held is not None and held.generation > doc.generation:
                return
            self._tell(doc.id, doc.members)
            self._w.store.put(doc)

    def remove(self, object_id: str, generation: int) -> None:
        with self._w.lock:
            held = self._w.store.get(GroupDoc, object_id)
            if held is None or held.generation <= generation:
                self._tell(object_id, [])
                self._w.store.drop(GroupDoc, object_id)

    def list(self) -> list[str]:
        return sorted(doc.id for doc in self._w.store.all(GroupDoc))

    def _tell(self, group_id: str, members: Sequence[str]) -> None:
        held = self._w.store.get(GroupDoc, group_id)
        left = set(held.members if held else ()) - set(members)
        self._w.firewall.apply_group(group_id, members, sorted(left), self._w.store.all(PortDoc))
