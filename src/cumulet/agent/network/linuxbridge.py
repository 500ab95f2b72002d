"""Networks as Linux bridges, named as Neutron's linuxbridge agent names them.

``brq<network>`` holds the taps of a network. A vxlan network that has peers adds ``vxlan-<vni>``, where they are
unicast forwarding entries; without peers no UDP port is opened, and with them the underlay must be trusted, as VXLAN
itself checks nothing. Flat and vlan networks use the host's bridge mapping: mapped to a bridge (``br-ex``), the ports
of a flat network join that bridge itself; mapped to a NIC, the NIC (or its VLAN) joins ``brq``. A NIC that carries
addresses is refused: taking it into a bridge would cut the host off.

Fails with DriverError ``no-physical-network``, ``physical-network-in-use``, ``no-tunnel-address``,
``unsupported-network-type``.
"""

import json
from collections.abc import Iterable, Iterator

from cumulet.agent.contract import Drift, MendItem, PortDoc, Segment
from cumulet.agent.errors import DriverError
from cumulet.agent.network import links, names
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.shell import CommandError, ip_json, run
from cumulet.agent.network.store import DocumentStore
from cumulet.agent.network.wanted import segments_of

_ANY_MAC = "00:00:00:00:00:00"


class LinuxBridge:
    name = "linuxbridge"
    ovs_datapath: str | None = None
    bridge_patterns: tuple[str, ...] = ("brq*",)

    def __init__(self, config: NetworkConfig, store: DocumentStore) -> None:
        self._config = config
        self._store = store
        self._peers: dict[str, frozenset[str]] = {}  # vxlan device -> peers known to be set

    # -- one port ------------------------------------------------------------------------------------------------

    def prepare(self, port: PortDoc) -> str:
        plan = links.Plan()
        bridge = self._wire(plan, port.network_id, port.segment)
        plan.run()
        if port.segment.network_type == "vxlan":
            self._set_peers(port.network_id, port.segment, bridge)
        return bridge

    def plug(self, port: PortDoc, device: str) -> None:
        plan = links.Plan()
        self._plug(plan, port, device, self._bridge_of(port.network_id, port.segment))
        plan.run()

    @staticmethod
    def _plug(plan: links.Plan, port: PortDoc, device: str, bridge: str) -> None:
        plan.tap(device)
        plan.mark(device, "port", port.id)
        plan.enslave(device, bridge)
        plan.up(device, port.segment.mtu, up=port.admin_state_up)

    def unplug(self, port_id: str, device: str) -> None:
        bridge = links.master(device)
        links.delete(device)
        if bridge:
            self._release(bridge)

    def refresh(self, network_ids: Iterable[str] = ()) -> None:
        for network_id in network_ids:
            bridge = names.bridge(network_id)
            if links.exists(bridge) and not self._release(bridge):
                for segment in segments_of(self._store, network_id):
                    if segment.network_type == "vxlan":
                        self._set_peers(network_id, segment, bridge)
                        break

    whole_checksums = False

    def guarded(self) -> list[str]:
        return [b for b in links.names("brq") if links.alias(b).startswith(f"{links.MARK}:network:")]

    def is_private(self, bridge: str) -> bool:
        return bridge.startswith("brq")

    def astray(self, ports: Iterable[PortDoc]) -> Iterator[tuple[PortDoc, str]]:
        for port in ports:
            plan = links.Plan(look=True)
            try:
                bridge = self._wire(plan, port.network_id, port.segment)
            except DriverError as error:
                yield port, error.message
                continue
            self._plug(plan, port, names.tap(port.id), bridge)
            if words := plan.words():
                yield port, words

    def audit(self, ports: Iterable[PortDoc]) -> Iterator[Drift]:
        """Of each network that spans hosts: its tunnel, and to whom that forwards."""
        of = {port.network_id: port for port in ports if port.segment.network_type == "vxlan"}
        for network_id, port in sorted(of.items()):
            device = names.vxlan(port.segment.segmentation_id or 0)
            wanted = {(_ANY_MAC, peer) for peer in self._wanted_peers(network_id, port.segment)}
            if wanted and not links.exists(device):
                yield Drift(kind="tunnel", id=device, problem="missing", message=f"{device} is not there")
                continue
            plan = links.Plan(look=True)
            if wanted:
                self._tunnel(plan, network_id, port.segment, names.bridge(network_id))
            if words := plan.words():
                yield Drift(kind="tunnel", id=device, problem="different", message=words)
            present = _entries(device) if links.exists(device) else set()
            for entries, problem in ((wanted - present, "missing"), (present - wanted, "unknown")):
                for mac, peer in sorted(entries):
                    message = f"{device}: the entry that sends {_whom(mac)} to {peer} is {problem}"
                    yield Drift(kind="forwarding", id=f"{device} {mac} {peer}", problem=problem, message=message)  # type: ignore[arg-type]

    def distrust(self) -> None:
        self._peers.clear()

    def mend(self, item: MendItem) -> str | None:
        device = item.id.partition(" ")[0]
        if item.kind not in ("forwarding", "tunnel") or not device.startswith("vxlan-"):
            return None
        self.distrust()
        for bridge, (noun, network_id) in links.ours().items():
            if noun == "network" and links.is_bridge(bridge):
                for segment in segments_of(self._store, network_id):
                    if segment.network_type == "vxlan" and names.vxlan(segment.segmentation_id or 0) == device:
                        self._set_peers(network_id, segment, bridge)
                        return f"{device} is as documents say"
        return "it was over"

    def lost(self) -> bool:
        return False  # the kernel forgets only with a reboot

    def recover(self) -> None:
        """Nothing can be lost."""

    def cleanup(self) -> None:
        plan = links.Plan()
        found = links.ours()
        for device, (noun, _) in found.items():
            if noun == "network" and links.is_bridge(device):
                for member in links.members(device):
                    if member not in found:
                        plan.add(f"link set dev {member} nomaster")
        for device, (noun, _) in found.items():
            if noun in ("network", "port", "hybrid"):
                plan.delete(device)
        plan.run()
        for device, (noun, _) in links.ours().items():  # the other end of a pair may have been first
            if noun in ("network", "port", "hybrid"):
                links.delete(device)
        self._peers.clear()

    # -- networks ----------------------------------------------------------------------------------------------------

    def _physical(self, segment: Segment) -> str:
        device = self._config.bridge_mappings.get(segment.physical_network or "")
        if not device:
            raise DriverError(
                "no-physical-network",
                f"physical network {segment.physical_network!r} is not in this host's bridge_mappings",
            )
        if not links.exists(device):
            raise DriverError(
                "no-physical-network",
                f"{device}, mapped to physical network {segment.physical_network!r}, is not a device of this host",
            )
        return device

    def _bridge_of(self, network_id: str, segment: Segment) -> str:
        if segment.network_type == "flat":
            device = self._physical(segment)
            if links.is_bridge(device):
                return device
        return names.bridge(network_id)

    def _wire(self, plan: links.Plan, network_id: str, segment: Segment) -> str:
        bridge = self._bridge_of(network_id, segment)
        if bridge != names.bridge(network_id):
            return bridge
        if segment.network_type == "gre":
            raise DriverError("unsupported-network-type", "gre networks need the openvswitch mechanism")
        plan.bridge(bridge, segment.mtu)
        plan.mark(bridge, "network", network_id)
        if segment.network_type == "flat":
            self._take(plan, self._physical(segment), bridge)
        elif segment.network_type == "vlan":
            self._vlan(plan, network_id, self._physical(segment), segment, bridge)
        return bridge

    def _take(self, plan: links.Plan, nic: str, bridge: str) -> None:
        owner = links.master(nic)
        if owner == bridge:
            return
        addresses = [
            a["local"]
            for link in ip_json("addr", "show", "dev", nic)
            for a in link.get("addr_info", [])
            if a.get("scope") == "global"
        ]
        if owner or addresses:
            why = f"belongs to {owner}" if owner else f"has the address {addresses[0]}"
            raise DriverError("physical-network-in-use", f"{nic} {why}; map the physical network to a bridge instead")
        plan.add(f"link set dev {nic} master {bridge}")
        plan.up(nic)

    def _vlan(self, plan: links.Plan, network_id: str, parent: str, segment: Segment, bridge: str) -> None:
        device = f"{parent[:10]}.{segment.segmentation_id}"
        if plan.look and not links.exists(device):
            plan.add(f"link add link {parent} name {device} type vlan id {segment.segmentation_id}")
        elif not links.exists(device):
            made = links.Plan()
            made.add(f"link add link {parent} name {device} type vlan id {segment.segmentation_id}")
            made.add(f"link set dev {device} alias {links.MARK}:network:{network_id}")
            try:
                made.run()
            except CommandError as error:
                raise DriverError(
                    "unsupported-network-type",
                    f"no VLAN device on {parent}: does this kernel have 8021q? ({error.said.strip()})",
                ) from error
        plan.enslave(device, bridge)
        plan.up(parent)
        plan.up(device)

    def _set_peers(self, network_id: str, segment: Segment, bridge: str) -> None:
        """Peers named by any document of the network: one that is behind must not cut a tunnel others use."""
        device = names.vxlan(segment.segmentation_id or 0)
        wanted = self._wanted_peers(network_id, segment)
        plan = links.Plan()
        if wanted:
            self._tunnel(plan, network_id, segment, bridge)
        else:
            plan.delete(device)
        if plan.run() or not wanted:
            self._peers.pop(device, None)
        if not wanted or self._peers.get(device) == wanted:
            return
        present, entries = _entries(device), {(_ANY_MAC, peer) for peer in wanted}
        script = [f"fdb append {mac} dev {device} dst {peer}" for mac, peer in sorted(entries - present)]
        script += [f"fdb del {mac} dev {device} dst {peer}" for mac, peer in sorted(present - entries)]
        if script:
            run(["bridge", "-batch", "-"], script="\n".join(script) + "\n")
        self._peers[device] = frozenset(wanted)

    def _wanted_peers(self, network_id: str, segment: Segment) -> set[str]:
        wanted = set(segment.peers)
        for other in segments_of(self._store, network_id):
            wanted.update(other.peers)
        wanted.discard(self._config.tunnel_ip or "")
        return wanted

    def _tunnel(self, plan: links.Plan, network_id: str, segment: Segment, bridge: str) -> None:
        if not self._config.tunnel_ip:
            raise DriverError("no-tunnel-address", "this host has no tunnel_ip, which vxlan networks need")
        vni = segment.segmentation_id or 0
        device = names.vxlan(vni)
        plan.vxlan(device, vni, self._config.tunnel_ip, self._config.vxlan_port, segment.mtu)
        plan.mark(device, "network", network_id)
        plan.enslave(device, bridge)

    def _release(self, bridge: str) -> bool:
        """Take a bridge of ours away if no port is left on it; True if it was."""
        marks = links.ours()
        if marks.get(bridge, ("", ""))[0] != "network":
            return False
        inside = links.members(bridge)
        if any(marks.get(device, ("network", ""))[0] == "port" for device in inside):
            return False
        plan = links.Plan()
        for device in inside:
            if marks.get(device, ("", ""))[0] == "network":
                plan.delete(device)
                self._peers.pop(device, None)
            else:
                plan.add(f"link set dev {device} nomaster")
        plan.delete(bridge)
        plan.run()
        return True


def _entries(device: str) -> set[tuple[str, str]]:
    """MAC and peer of what somebody wrote into a tunnel's forwarding table; what packets taught it is left out."""
    entries = json.loads(run(["bridge", "-j", "fdb", "show", "dev", device]) or "[]")
    return {
        (e["mac"], e["dst"]) for e in entries if "dst" in e and (e["mac"] == _ANY_MAC or e.get("state") == "permanent")
    }


def _whom(mac: str) -> str:
    return "all that it knows no better way for" if mac == _ANY_MAC else mac
