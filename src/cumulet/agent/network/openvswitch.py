"""Networks on Open vSwitch, laid out as Neutron's agent lays them out.

``br-int`` holds every port with its network's local VLAN as tag; ``br-tun`` the tunnels; a bridge per physical network
(``br-ex``) hangs on by patch ports. Guests' taps are plugged hybrid: tap - ``qbr`` (Linux bridge, where nftables
filter) - ``qvb``/``qvo`` - br-int. So one filter driver serves both mechanisms, and a guest's default virtio offloads
work.

What is true is in OVSDB: a port's tag and ``external_ids:cumulet-network``. Flows are derived; a restart of
ovs-vswitchd loses them (the bridges are in secure mode: nothing leaks meanwhile) and `recover` puts them back.

With the datapath in user space (no kernel module): devices in namespaces compute their checksums, everything OVS reads
is kept from the host's own stack, and tunnels need their underlay NIC inside OVS: ``br-phy`` takes over
``tunnel_nic`` with its address, and `cleanup` gives it back.

Fails with DriverError ``openvswitch-not-running``, ``no-physical-network``, ``no-tunnel-address``.
"""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from cumulet.agent.contract import Drift, MendItem, PortDoc, Segment
from cumulet.agent.errors import DriverError
from cumulet.agent.network import links, names, ovs_flows
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.offload import offloads_off
from cumulet.agent.network.ovs_flows import INTEGRATION, PATCH_INT, PATCH_TUN, TUNNEL, LocalNetwork, tunnel_port
from cumulet.agent.network.shell import CommandError, ip_batch, ip_json, run
from cumulet.agent.network.store import DocumentStore
from cumulet.agent.network.wanted import all_ports, named, segments_of

_log = logging.getLogger(__name__)
UNDERLAY = "br-phy"
_NETWORK_KEY = "cumulet-network"
_LAST_TAG = 4094
_TUNNELS = ("vxlan", "gre")
_OFCTL = ("ovs-ofctl", "-O", "OpenFlow14")


class OpenVSwitch:
    name = "openvswitch"
    bridge_patterns: tuple[str, ...] = ("qbr*",)

    def __init__(self, config: NetworkConfig, store: DocumentStore, datapath: str) -> None:
        self._config = config
        self._store = store
        self.ovs_datapath: str | None = datapath
        self._netdev = datapath == "netdev"
        self._seen: dict[str, Segment] = {}  # of networks whose documents are being applied
        self._tags: dict[str, int] | None = None  # network -> local VLAN; None: not read yet
        self._installed: dict[str, list[str]] = {}
        self._tunnels: dict[str, set[str]] = {kind: set() for kind in _TUNNELS}
        self._patched: set[str] = set()  # bridges of physical networks with patch ports
        self._nics: set[str] | None = None  # NICs in bridges that a user space datapath reads; None: not read yet
        self._daemon: tuple[int, str] | None = None  # the ovs-vswitchd whose flows are as documents say

    # -- Mechanism ---------------------------------------------------------------------------------------------------

    @property
    def whole_checksums(self) -> bool:
        return self._netdev

    def prepare(self, port: PortDoc) -> str:
        tags = self._ready()
        self._seen[port.network_id] = port.segment
        if port.network_id not in tags:
            tags[port.network_id] = self._free_tag()
        self._wire(port.segment)
        if not _hybrid(port):
            return INTEGRATION
        bridge, inner, _ = _hybrid_names(port.id)
        plan = links.Plan()
        self._join(plan, port)
        plan.run()
        if self._netdev:
            offloads_off(inner)
        return bridge

    @staticmethod
    def _join(plan: links.Plan, port: PortDoc) -> None:
        """What stands between a guest's tap and br-int."""
        bridge, inner, outer = _hybrid_names(port.id)
        plan.bridge(bridge, port.segment.mtu)
        plan.mark(bridge, "hybrid", port.id)
        plan.veth(inner, port.segment.mtu, outer, None, None)
        plan.mark(inner, "hybrid", port.id)
        plan.enslave(inner, bridge)
        plan.up(inner, port.segment.mtu)
        plan.up(outer, port.segment.mtu)

    @staticmethod
    def _plug(plan: links.Plan, port: PortDoc, device: str) -> None:
        if _hybrid(port):
            plan.tap(device)
            plan.enslave(device, names.hybrid_bridge(port.id))
        plan.mark(device, "port", port.id)
        plan.up(device, port.segment.mtu, up=port.admin_state_up)

    def plug(self, port: PortDoc, device: str) -> None:
        plan = links.Plan()
        self._plug(plan, port, device)
        plan.run()
        outer = _outer(port)
        tag = self._ready()[port.network_id]
        if self._tag_of(outer) != (tag, port.network_id):
            self._vsctl(
                ["--may-exist", "add-port", INTEGRATION, outer],
                ["set", "Port", outer, f"tag={tag}", f"external_ids:{_NETWORK_KEY}={port.network_id}"],
                ["set", "Interface", outer, f"external_ids:iface-id={port.id}",
                 f'external_ids:attached-mac="{port.mac_address}"', "external_ids:iface-status=active"],
            )  # fmt: skip
        self._sync(port)

    def unplug(self, port_id: str, device: str) -> None:
        bridge, inner, outer = _hybrid_names(port_id)
        if _daemon(self._config, "ovsdb-server") is not None:  # it keeps the port, whether or not ovs-vswitchd lives
            gone = [["--if-exists", "del-port", INTEGRATION, name] for name in (outer, device)]
            self._vsctl(*gone, wait=self._running())
        for link in (device, inner, bridge):
            links.delete(link)

    def refresh(self, network_ids: Iterable[str] = ()) -> None:
        """Whichever networks: documents that name one go in any order, and an earlier life may have ended between a
        port and its flows."""
        if not self._running() or (self._tags is None and INTEGRATION not in self._bridges()):
            return
        tags = self._ready()
        self._seen.clear()
        if undocumented := tags.keys() - named(self._store):
            for network_id in undocumented - {network for _, network in self._ports().values()}:
                del tags[network_id]
        self._sync(None)

    def guarded(self) -> list[str]:
        found = [b for b in links.names("qbr") if links.alias(b).startswith(f"{links.MARK}:hybrid:")]
        if self._netdev:
            found += links.names("qvo")
            # veths of DHCP servers and routers; a guest's tap is at home in its qbr
            found += [d for d in links.names("tap") if not links.is_tap(d) and not links.exists("qbr" + d[3:])]
            found += [n for n in sorted(self._read_nics()) if links.exists(n)]
        return found

    def _read_nics(self) -> set[str]:
        """At first those that an earlier life left in OVSDB: they stay guarded until the first port is wired again."""
        if self._nics is None:
            self._nics = set()
            if self._running():
                for bridge in {UNDERLAY, *self._config.bridge_mappings.values()} & set(self._bridges()):
                    self._nics |= self._nics_in(bridge)
        return self._nics

    def _nics_in(self, bridge: str) -> set[str]:
        members = run(["ovs-vsctl", "--no-wait", "list-ports", bridge]).split()
        return {member for member in members if links.exists(member) and not links.is_tap(member)}

    def is_private(self, bridge: str) -> bool:
        return bridge.startswith("qbr")

    def cleanup(self) -> None:
        for device, (noun, _) in links.ours().items():
            if noun in ("port", "hybrid"):
                links.delete(device)
        if self._running():
            home = self._bridge_ids(UNDERLAY)
            ours = [b for b in (INTEGRATION, TUNNEL, UNDERLAY) if self._bridge_ids(b).get("cumulet") == "made"]
            patches = [p for bridge in self._patched for p in ovs_flows.patch_names(bridge)]
            self._vsctl(
                *(["--if-exists", "del-port", p] for p in patches),
                *(["--if-exists", "del-br", b] for b in ours),
            )
            if home.get("cumulet-nic") and UNDERLAY in ours:
                ip_batch([f"addr replace {home['cumulet-address']} dev {home['cumulet-nic']}"])
        self.distrust()
        self._seen.clear()
        self._nics = set()

    # -- what an operator looks for -----------------------------------------------------------------------------------

    def astray(self, ports: Iterable[PortDoc]) -> Iterator[tuple[PortDoc, str]]:
        """Devices, and tags in br-int."""
        if self._tags is None:
            return  # nothing was wired yet
        held = self._ports()
        for port in ports:
            plan = links.Plan(look=True)
            if _hybrid(port):
                self._join(plan, port)
            self._plug(plan, port, names.tap(port.id))
            tag, outer = self._tags.get(port.network_id), _outer(port)
            found = held.get(outer)
            if words := plan.words():
                yield port, words
            elif found is None:
                yield port, f"{outer} is not in {INTEGRATION}"
            elif found != (tag, port.network_id):
                yield port, f"{outer} has tag {found[0]} of network {found[1]}, not {tag}"

    def audit(self, ports: Iterable[PortDoc]) -> Iterator[Drift]:
        """Bridges and what joins them, tunnels, strange ports, and every flow."""
        wanted = list(ports)
        tags = self._tags
        if tags is None:
            return  # nothing was wired yet
        present = self._rows("Bridge", "name", "fail_mode", "external_ids")
        standing = {row["name"]: row for row in present}
        interfaces = {row["name"]: row for row in self._rows("Interface", "name", "type", "options")}
        yield from self._standing(standing, interfaces)
        yield from self._tunnelling(tags, interfaces)
        outers = {_outer(port) for port in [*wanted, *all_ports(self._store)]}
        joints = {PATCH_TUN, *(ovs_flows.patch_names(bridge)[0] for bridge in self._patched)}
        inside = run(["ovs-vsctl", "list-ports", INTEGRATION]).split() if INTEGRATION in standing else []
        for name in sorted(set(inside) - outers - joints):
            message = f"{INTEGRATION} has port {name}, which no document asks for"
            yield Drift(kind="switch-port", id=name, problem="unknown", message=message)
        for bridge, lines in self._flows(self._networks(tags)).items():
            if bridge in standing:
                yield from self._flow_differences(bridge, lines)

    def _standing(self, bridges: dict[str, Any], interfaces: dict[str, Any]) -> Iterator[Drift]:
        joined = [(INTEGRATION, PATCH_TUN, PATCH_INT), (TUNNEL, PATCH_INT, PATCH_TUN)]
        for bridge in self._patched:
            inner, outer = ovs_flows.patch_names(bridge)
            joined += [(INTEGRATION, inner, outer), (bridge, outer, inner)]
        for bridge in dict.fromkeys(bridge for bridge, _, _ in joined):
            if bridge not in bridges:
                yield _switch(bridge, "missing", f"there is no bridge {bridge}")
            elif bridges[bridge]["fail_mode"] != "secure":
                yield _switch(bridge, "different", f"{bridge} forwards as it likes while it has no flows")
        for bridge, name, peer in joined:
            row = interfaces.get(name)
            if bridge in bridges and row is None:
                yield _switch(name, "missing", f"{bridge} has no port {name}, which joins it to others")
            elif row is not None and (row["type"], row["options"].get("peer")) != ("patch", peer):
                yield _switch(name, "different", f"{name} of {bridge} does not lead to {peer}")

    def _tunnelling(self, tags: dict[str, int], interfaces: dict[str, Any]) -> Iterator[Drift]:
        wanted = {
            tunnel_port(kind, peer): (kind, self._tunnel_options(kind, peer))
            for kind, peers in self._wanted_tunnels(self._networks(tags)).items()
            for peer in peers
        }
        present = {name: (row["type"], row["options"]) for name, row in interfaces.items() if row["type"] in _TUNNELS}
        inside = set(run(["ovs-vsctl", "list-ports", TUNNEL]).split()) if TUNNEL in self._bridges() else set()
        for name in sorted(wanted.keys() | (inside & present.keys())):
            if name not in inside:
                yield Drift(kind="tunnel", id=name, problem="missing", message=f"{TUNNEL} has no tunnel {name}")
            elif name not in wanted:
                message = f"{TUNNEL} has tunnel {name}, which no document asks for"
                yield Drift(kind="tunnel", id=name, problem="unknown", message=message)
            elif present.get(name) != wanted[name]:
                message = f"tunnel {name} of {TUNNEL} does not lead as its documents say"
                yield Drift(kind="tunnel", id=name, problem="different", message=message)

    def _flow_differences(self, bridge: str, lines: list[str]) -> Iterator[Drift]:
        with tempfile.NamedTemporaryFile("w", prefix="flows-") as wanted:
            wanted.write("\n".join(lines) + "\n")
            wanted.flush()
            try:
                printed = run([*_OFCTL, "--names", "diff-flows", bridge, wanted.name], ok=(0, 2))
            except CommandError as error:  # they name a port that is missing, which is told
                _log.info("flows of %s cannot be compared: %s", bridge, error.message)
                return
        for match, problem in ovs_flows.compared(printed).items():
            message = f"{bridge}: the flow for {match} is {problem}"
            yield Drift(kind="flow", id=f"{bridge} {match}", problem=problem, message=message)  # type: ignore[arg-type]

    def distrust(self) -> None:
        self._tags = None
        self._patched.clear()
        self._installed.clear()
        self._tunnels = {kind: set() for kind in _TUNNELS}

    def mend(self, item: MendItem) -> str | None:
        if item.kind not in ("flow", "switch", "tunnel", "switch-port"):
            return None
        if item.kind == "switch-port":
            self._vsctl(["--if-exists", "del-port", INTEGRATION, item.id])
            return f"{item.id} is taken off {INTEGRATION}"
        if item.kind == "tunnel" and item.problem != "missing":
            self._vsctl(["--if-exists", "del-port", TUNNEL, item.id])
        self.distrust()
        self._ready()
        for segment in {port.network_id: port.segment for port in all_ports(self._store)}.values():
            self._wire(segment)
        self._sync(None)
        return "bridges, tunnels and flows are as documents say"

    # -- a restart of ovs-vswitchd ------------------------------------------------------------------------------------

    def lost(self) -> bool:
        """True after ovs-vswitchd started anew, and in a new life of ours, until `recover` succeeded."""
        now = _vswitchd(self._config)
        return now is not None and now != self._daemon

    def recover(self) -> None:
        now = _vswitchd(self._config)
        self._installed.clear()
        self.refresh()
        self._daemon = now

    # -- bridges, patches, tunnels -----------------------------------------------------------------------------------

    def _ready(self) -> dict[str, int]:
        """Bridges stand, tags are read; once in the life of this process."""
        if self._tags is not None:
            return self._tags
        if not self._running():
            raise DriverError("openvswitch-not-running", "ovsdb-server does not answer: start Open vSwitch")
        kind = "netdev" if self._netdev else "system"
        commands: list[list[str]] = []
        for bridge in (INTEGRATION, TUNNEL):
            if bridge not in self._bridges():
                commands += [
                    ["add-br", bridge],
                    ["set", "Bridge", bridge, f"datapath_type={kind}", "external_ids:cumulet=made"],
                ]
            commands.append(["set", "Bridge", bridge, "fail_mode=secure"])
        commands += _patch(INTEGRATION, PATCH_TUN, PATCH_INT) + _patch(TUNNEL, PATCH_INT, PATCH_TUN)
        self._vsctl(*commands)
        self._tags = _tags(self._ports().values())
        for row in self._rows("Interface", "name", "type", "options"):
            if row["type"] in self._tunnels:
                self._tunnels[row["type"]].add(row["options"].get("remote_ip", ""))
        for physical, bridge in self._config.bridge_mappings.items():
            if bridge in self._bridges():
                self._connect(physical, bridge)
        return self._tags

    def _wire(self, segment: Segment) -> None:
        if segment.network_type in ("flat", "vlan"):
            bridge = self._config.bridge_mappings.get(segment.physical_network or "")
            if not bridge:
                raise DriverError(
                    "no-physical-network",
                    f"physical network {segment.physical_network!r} is not in this host's bridge_mappings",
                )
            if bridge not in self._patched:
                if bridge not in self._bridges():
                    raise DriverError(
                        "no-physical-network",
                        f"{bridge}, mapped to {segment.physical_network!r}, is not an Open vSwitch bridge of this host "
                        f"(ovs-vsctl add-br {bridge}; ovs-vsctl add-port {bridge} NIC)",
                    )
                self._connect(segment.physical_network or "", bridge)
        elif segment.network_type in ("vxlan", "gre"):
            if not self._config.tunnel_ip:
                raise DriverError(
                    "no-tunnel-address", f"this host has no tunnel_ip, which {segment.network_type} networks need"
                )
            if self._netdev:
                self._underlay(self._config.tunnel_ip)

    def _connect(self, physical: str, bridge: str) -> None:
        inner, outer = ovs_flows.patch_names(bridge)
        self._vsctl(
            ["set", "Bridge", bridge, "fail_mode=secure"],
            *_patch(INTEGRATION, inner, outer),
            *_patch(bridge, outer, inner),
        )
        if self._netdev:
            self._read_nics().update(self._nics_in(bridge))
        self._patched.add(bridge)

    def _underlay(self, tunnel_ip: str) -> None:
        """User space tunnels are routed by OVS itself: their address must be on a port it owns."""
        nic = self._config.tunnel_nic
        holder = _holder(tunnel_ip)
        if holder is not None and holder[0] in self._bridges():
            if nic:
                self._read_nics().add(nic)
            return
        if not nic or holder is None or holder[0] != nic:
            raise DriverError(
                "no-tunnel-address",
                f"tunnels in a user space datapath need {tunnel_ip} on the NIC named by tunnel_nic, "
                f"or on an Open vSwitch bridge; it is on {holder[0] if holder else 'no device'}",
            )
        self._vsctl(
            ["--may-exist", "add-br", UNDERLAY],
            ["set", "Bridge", UNDERLAY, "datapath_type=netdev", "fail_mode=standalone", "external_ids:cumulet=made",
             f'other_config:hwaddr="{links.address(nic)}"', f"external_ids:cumulet-nic={nic}",
             f'external_ids:cumulet-address="{holder[1]}"'],
            ["--may-exist", "add-port", UNDERLAY, nic],
        )  # fmt: skip
        ip_batch(
            [
                f"addr del {holder[1]} dev {nic}",
                f"addr add {holder[1]} dev {UNDERLAY}",
                f"link set dev {UNDERLAY} mtu {links.mtu(nic)}",
                f"link set dev {UNDERLAY} up",
            ]
        )
        self._read_nics().add(nic)

    def _sync(self, port: PortDoc | None) -> None:
        """Tunnels and flows to what ports and documents say."""
        networks = self._networks(self._ready(), port, self._seen)
        self._set_tunnels(self._wanted_tunnels(networks))
        for bridge, lines in self._flows(networks).items():
            before = self._installed.get(bridge)
            if before == lines:
                continue
            if before is None:
                script, verb = lines, "replace-flows"
            else:
                script, verb = ovs_flows.difference(before, lines), "add-flows"
            self._installed.pop(bridge, None)
            run([*_OFCTL, "--bundle", verb, bridge, "-"], script="\n".join(script) + "\n")
            self._installed[bridge] = lines

    def _networks(
        self, tags: dict[str, int], port: PortDoc | None = None, seen: Mapping[str, Segment] = MappingProxyType({})
    ) -> dict[str, LocalNetwork]:
        """Those that documents name, ``port`` is on, or were ``seen`` in documents that are not held yet."""
        networks: dict[str, LocalNetwork] = {}
        segments: dict[str, list[Segment]] = {}
        for doc in all_ports(self._store):
            segments.setdefault(doc.network_id, []).append(doc.segment)
        if port is not None:
            segments.setdefault(port.network_id, []).append(port.segment)
        for network_id, tag in tags.items():
            found = segments.get(network_id) or list(segments_of(self._store, network_id))
            if not found and network_id in seen:
                found = [seen[network_id]]
            if found:
                peers = {p for s in found for p in s.peers} - {self._config.tunnel_ip}
                networks[network_id] = LocalNetwork(tag, found[-1], frozenset(p for p in peers if p))
        return networks

    @staticmethod
    def _wanted_tunnels(networks: dict[str, LocalNetwork]) -> dict[str, set[str]]:
        wanted: dict[str, set[str]] = {kind: set() for kind in _TUNNELS}
        for network in networks.values():
            if network.segment.network_type in wanted:
                wanted[network.segment.network_type] |= network.peers
        return wanted

    def _flows(self, networks: dict[str, LocalNetwork]) -> dict[str, list[str]]:
        mappings = {p: b for p, b in self._config.bridge_mappings.items() if b in self._patched}
        return ovs_flows.flows(networks, mappings, self._tunnels)

    def _tunnel_options(self, kind: str, peer: str) -> dict[str, str]:
        options = {"remote_ip": peer, "local_ip": self._config.tunnel_ip or "", "key": "flow", "df_default": "true"}
        return options | ({"dst_port": str(self._config.vxlan_port)} if kind == "vxlan" else {})

    def _set_tunnels(self, wanted: dict[str, set[str]]) -> None:
        commands: list[list[str]] = []
        for kind, peers in wanted.items():
            for peer in sorted(peers - self._tunnels[kind]):
                name = tunnel_port(kind, peer)
                options = [f"options:{key}={value}" for key, value in self._tunnel_options(kind, peer).items()]
                commands += [
                    ["--may-exist", "add-port", TUNNEL, name],
                    ["set", "Interface", name, f"type={kind}", *options],
                ]
            commands += [
                ["--if-exists", "del-port", TUNNEL, tunnel_port(kind, peer)]
                for peer in sorted(self._tunnels[kind] - peers)
            ]
        if commands:
            self._vsctl(*commands)
            self._tunnels = wanted
            self._installed.pop(TUNNEL, None)  # port numbers may have been given anew

    # -- OVSDB -------------------------------------------------------------------------------------------------------

    def _running(self) -> bool:
        return Path(self._config.ovsdb_socket).exists() and _vswitchd(self._config) is not None

    def _vsctl(self, *commands: list[str], wait: bool = True) -> None:
        """One transaction; with ``wait`` it is applied by ovs-vswitchd when this returns."""
        words: list[str] = []
        for command in commands:
            words += ["--", *command]
        if words:
            run(["ovs-vsctl", "--timeout=20", *([] if wait else ["--no-wait"]), *words])

    def _rows(self, table: str, *columns: str, where: str | None = None) -> list[dict[str, Any]]:
        verb = ["find", table, where] if where else ["list", table]
        text = run(["ovs-vsctl", "--no-wait", "--format=json", f"--columns={','.join(columns)}", *verb])
        found = json.loads(text)
        return [{h: _plain(v) for h, v in zip(found["headings"], row, strict=True)} for row in found["data"]]

    def _bridges(self) -> list[str]:
        return run(["ovs-vsctl", "--no-wait", "list-br"]).split()

    def _bridge_ids(self, bridge: str) -> dict[str, str]:
        rows = self._rows("Bridge", "external_ids", where=f"name={bridge}")
        return rows[0]["external_ids"] if rows else {}

    def _ports(self) -> dict[str, tuple[int, str]]:
        """Port -> tag and network."""
        return {
            row["name"]: (row["tag"] or 0, row["external_ids"].get(_NETWORK_KEY, ""))
            for row in self._rows("Port", "name", "tag", "external_ids")
            if _NETWORK_KEY in row["external_ids"]
        }

    def _tag_of(self, port: str) -> tuple[int, str] | None:
        for row in self._rows("Port", "tag", "external_ids", where=f"name={port}"):
            return row["tag"] or 0, row["external_ids"].get(_NETWORK_KEY, "")
        return None

    def _free_tag(self) -> int:
        used = set((self._tags or {}).values())
        for tag in range(1, _LAST_TAG + 1):
            if tag not in used:
                return tag
        raise DriverError("no-space", "all local VLANs of this host are in use")


def kernel_datapath() -> bool:
    """Is there an Open vSwitch datapath in this kernel?"""
    try:
        run(["ovs-dpctl", "dump-dps"], timeout=10)
    except (CommandError, DriverError):
        return False
    return True


def _hybrid(port: PortDoc) -> bool:
    return not port.device_owner.startswith("network:")


def _outer(port: PortDoc) -> str:
    """The device in br-int."""
    return names.hybrid_outer(port.id) if _hybrid(port) else names.tap(port.id)


def _switch(id: str, problem: Literal["missing", "different"], message: str) -> Drift:
    return Drift(kind="switch", id=id, problem=problem, message=message)


def _tags(ports: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Network -> local VLAN, as ports have them. Where somebody changed tags, a network is what most of its ports say,
    and never what another network is."""
    votes: dict[str, Counter[int]] = {}
    for tag, network in ports:
        if network and tag:
            votes.setdefault(network, Counter())[tag] += 1
    found: dict[str, int] = {}
    for network, tags in sorted(votes.items(), key=lambda vote: -max(vote[1].values())):
        tag = tags.most_common(1)[0][0]
        if tag not in found.values():
            found[network] = tag
    return found


def _hybrid_names(port_id: str) -> tuple[str, str, str]:
    return names.hybrid_bridge(port_id), names.hybrid_inner(port_id), names.hybrid_outer(port_id)


def _patch(bridge: str, name: str, peer: str) -> list[list[str]]:
    return [
        ["--may-exist", "add-port", bridge, name],
        ["set", "Interface", name, "type=patch", f"options:peer={peer}"],
    ]


def _holder(address: str) -> tuple[str, str] | None:
    """The device that has this address, and the address with its length."""
    for link in ip_json("addr", "show"):
        for entry in link.get("addr_info", []):
            if entry.get("local") == address:
                return link["ifname"], f"{address}/{entry['prefixlen']}"
    return None


def _daemon(config: NetworkConfig, name: str) -> tuple[int, str] | None:
    """Process id and start time of a daemon of Open vSwitch, if it runs."""
    try:
        pid = int((Path(config.ovsdb_socket).parent / f"{name}.pid").read_text())
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, ValueError):
        return None
    return pid, fields[19]


def _vswitchd(config: NetworkConfig) -> tuple[int, str] | None:
    return _daemon(config, "ovs-vswitchd")


def _plain(value: Any) -> Any:
    """OVSDB's JSON of sets, maps and references as Python's."""
    if isinstance(value, list) and len(value) == 2:
        kind, body = value
        if kind == "map":
            return {k: _plain(v) for k, v in body}
        if kind == "set":
            return [_plain(v) for v in body] or None
        if kind == "uuid":
            return body
    return value
