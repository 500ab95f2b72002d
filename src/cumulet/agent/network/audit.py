"""What of this host's networks is not as its documents say: looked at in the kernel, in files and in /proc.

`look` changes nothing. What a document asks for is mended by applying the document again (appliers converge); what no
document asks for is mended by `rid`, on an operator's word alone.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cumulet.agent.contract import Drift, GroupDoc, MendItem, NetworkDoc, PortDoc, RouterDoc
from cumulet.agent.errors import DriverError
from cumulet.agent.network import daemons, dhcp_files, links, names, rules, scratch
from cumulet.agent.network.dhcp import DhcpServers
from cumulet.agent.network.router import Routers
from cumulet.agent.network.shell import ip_batch
from cumulet.agent.network.wanted import all_ports, legs
from cumulet.agent.network.wiring import Wiring

_log = logging.getLogger(__name__)
Documents = Mapping[str, Mapping[str, Any]]
Plugged = tuple[PortDoc, tuple[str, str]]
_LEASE_GRACE_S = 600  # dnsmasq forgets an expired lease when it has something else to do


class NetworkAudit:
    def __init__(self, wiring: Wiring, networks: DhcpServers, routers: Routers) -> None:
        self._w = wiring
        self._networks = networks
        self._routers = routers
        self._dir = wiring.config.run_dir / "dhcp"

    # -- looking ------------------------------------------------------------------------------------------------------

    def look(self, documents: Documents) -> list[Drift]:
        networks: dict[str, NetworkDoc] = dict(documents.get("network", {}))
        ports: dict[str, PortDoc] = dict(documents.get("port", {}))
        routers: dict[str, RouterDoc] = dict(documents.get("router", {}))
        plugged = _plugged(networks, ports, routers)
        found: list[Drift] = []
        for part in (
            self._namespaces(networks, routers),
            self._dhcp(networks),
            self._routing(routers),
            self._filters(ports),
            self._forwarding(plugged),
            self._devices(plugged),
        ):
            with self._w.lock:  # nobody waits for all of it
                found += part
        return found

    def _namespaces(self, networks: dict[str, NetworkDoc], routers: dict[str, RouterDoc]) -> Iterator[Drift]:
        wanted = {
            names.dhcp_namespace(doc.id): ("network", doc.id)
            for doc in networks.values()
            if doc.dhcp_port is not None and doc.subnets
        }
        wanted |= {names.router_namespace(doc.id): ("router", doc.id) for doc in routers.values() if doc.admin_state_up}
        present = set(self._w.namespaces.ours(""))
        for name in sorted(wanted.keys() - present):
            yield _drift("namespace", name, "missing", f"namespace {name} is not there", wanted[name])
        for name in sorted(present - wanted.keys()):
            yield _drift("namespace", name, "unknown", f"namespace {name} is there and no document asks for it")
        for name in sorted(wanted.keys() & present):
            kind, id = wanted[name]
            words = self._networks.astray(networks[id]) if kind == "network" else self._routers.astray(routers[id])
            if words:
                yield _drift("namespace", name, "different", f"in {name}: {', '.join(words)}", wanted[name])
            if name not in self._w.metadata.serving():
                yield _drift("metadata", name, "missing", f"nobody serves metadata in {name}", wanted[name])

    def _dhcp(self, networks: dict[str, NetworkDoc]) -> Iterator[Drift]:
        for doc in networks.values():
            if doc.dhcp_port is None or not doc.subnets or not dhcp_files.served(doc):
                continue
            document = ("network", doc.id)
            directory = self._dir / doc.id
            if not daemons.runs("dnsmasq", directory / "pid"):
                yield _drift("dnsmasq", doc.id, "missing", f"dnsmasq of network {doc.id} does not run", document)
                continue
            if self._networks.otherwise_started(doc):
                message = (
                    f"dnsmasq of network {doc.id} was started with other words than its document says, or elsewhere"
                )
                yield _drift("dnsmasq", doc.id, "different", message, document)
            wrong = self._networks.files_that_differ(doc)
            if wrong:
                message = f"{', '.join(wrong)} of network {doc.id}'s dnsmasq is not as its document says"
                yield _drift("dhcp-host", doc.id, "different", message, document)
            yield from self._leases(doc, directory / "leases")
        for directory in sorted(self._dir.glob("*")) if self._dir.is_dir() else ():
            if directory.name not in networks and daemons.runs("dnsmasq", directory / "pid"):
                message = f"a dnsmasq of network {directory.name} runs and no document asks for it"
                yield _drift("dnsmasq", directory.name, "unknown", message)

    def _leases(self, doc: NetworkDoc, path: Path) -> Iterator[Drift]:
        reserved = dhcp_files.reservations(doc)
        now = time.time()
        for mac, address, expires in leases(path):
            owner = reserved.get(address, mac)
            over = expires and expires < now - _LEASE_GRACE_S
            if owner != mac or over:
                why = f"{address} is {owner}'s" if owner != mac else "it is over"
                message = f"network {doc.id}'s dnsmasq holds a lease of {address} for {mac}, and {why}"
                yield _drift("lease", f"{doc.id}/{mac}", "expired", message)

    def _routing(self, routers: dict[str, RouterDoc]) -> Iterator[Drift]:
        for doc in routers.values():
            if not doc.admin_state_up or not self._w.namespaces.ours(names.router_namespace(doc.id)):
                continue
            if words := self._routers.translation_astray(doc):
                message = f"router {doc.id} translates addresses otherwise than its document says: {words}"
                yield _drift("translation", doc.id, "different", message, ("router", doc.id))
            if not self._routers.advertises(doc):
                message = f"router {doc.id} does not advertise its IPv6 subnets as its document says"
                yield _drift("radvd", doc.id, "different", message, ("router", doc.id))

    def _filters(self, ports: dict[str, PortDoc]) -> Iterator[Drift]:
        firewall = self._w.firewall
        filtered = [p for p in ports.values() if rules.filtered(p) and links.exists(names.tap(p.id))]
        held = firewall.held()
        wanted = firewall.wanted(filtered, self._members) if filtered else scratch.Table()
        for port in filtered:
            if words := _port_differs(names.tap(port.id), wanted, held):
                problem = "missing" if not held.chains.get(f"o-{names.tap(port.id)}") else "different"
                yield _drift("chain", port.id, problem, f"filter of port {port.id}: {words}", ("port", port.id))
        groups = {rule.remote_group_id for port in filtered for rule in port.rules if rule.remote_group_id}
        for group_id in sorted(groups):
            own = [names.group_set(group_id, version) for version in (4, 6)]
            if any(wanted.sets.get(name, []) != held.sets.get(name, []) for name in own):
                message = f"members of security group {group_id} are not those its document says"
                yield _drift("group", group_id, "different", message, ("group", group_id))
        base = [name for name in wanted.chains if not _is_ports(name)]
        if any(wanted.chains[n] != held.chains.get(n) or wanted.hooks[n] != held.hooks.get(n) for n in base):
            message = f"chains of {names.FILTER_TABLE}, which lead to ports' filters, are not as they should be"
            yield _drift("filter-table", names.FILTER_TABLE, "different", message)
        known = {names.tap(port.id) for port in [*ports.values(), *self._w.store.all(PortDoc)]}
        for device in sorted({name[2:] for name in held.chains if _is_ports(name)} - known):
            yield _drift("chain", device, "unknown", f"there is a filter for {device}, which is no port's device")
        for name in sorted(held.chains.keys() - {"forward", "input", "output"}):
            if not _is_ports(name):
                yield _drift("chain", name, "unknown", f"{names.FILTER_TABLE} has a chain {name}, which nobody made")
        for name, words in firewall.around_astray().items():
            yield _drift("filter-table", name, "different", words)

    def _members(self, group_id: str) -> list[str]:
        held = self._w.store.get(GroupDoc, group_id)
        return [] if held is None else held.members

    def _forwarding(self, plugged: list[Plugged]) -> Iterator[Drift]:
        there = [port for port, _ in plugged if links.exists(names.tap(port.id))]
        whose = {port.id: document for port, document in plugged}
        try:
            for port, words in self._w.mechanism.astray(there):
                yield _drift("forwarding", port.id, "different", f"port {port.id}: {words}", whose[port.id])
            yield from self._w.mechanism.audit([port for port, _ in plugged])
        except DriverError as error:  # then documents fail too, which is told
            _log.info("the wiring cannot be looked at: %s", error.message)

    def _devices(self, plugged: list[Plugged]) -> Iterator[Drift]:
        """Devices of ours that belong to nothing, and strangers on bridges that are only ours. Guests' taps are told
        by who plugs them."""
        ports = [port for port, _ in plugged] + list(all_ports(self._w.store))
        known = {
            "port": {p.id for p in ports},
            "hybrid": {p.id for p in ports},
            "network": {p.network_id for p in ports},
        }
        ours = links.ours()
        for device, (noun, id) in ours.items():
            if id not in known.get(noun, {id}) and not links.is_tap(device):
                yield _drift("device", device, "unknown", f"{device} was made for {noun} {id}, which nobody asks for")
        may = set(self._w.config.bridge_mappings.values())
        for bridge, (noun, _) in ours.items():
            for member in links.members(bridge) if noun in ("network", "hybrid") else ():
                if member not in ours and member not in may:
                    yield _drift("device", member, "unknown", f"{member} is on {bridge}, and is nothing of ours")

    # -- being rid of what nobody is to have --------------------------------------------------------------------------

    def rid(self, item: MendItem) -> str | None:
        """What was done; None: not of this kind."""
        with self._w.lock:
            match item.kind:
                case "namespace" if item.id.startswith(names.DHCP_PREFIX):
                    self._networks.take_down(item.id.removeprefix(names.DHCP_PREFIX))
                    return f"namespace {item.id} is removed, with what ran in it"
                case "namespace" if item.id.startswith(names.ROUTER_PREFIX):
                    self._routers.take_down(item.id.removeprefix(names.ROUTER_PREFIX))
                    return f"namespace {item.id} is removed, with what ran in it"
                case "dnsmasq":
                    daemons.stop("dnsmasq", self._dir / item.id / "pid")
                    return "the daemon is ended"
                case "lease":
                    network_id, _, mac = item.id.partition("/")
                    self._networks.forget_lease(network_id, mac)
                    return "the lease is forgotten"
                case "chain" if item.id in self._w.firewall.filtered_devices():
                    self._w.firewall.remove(item.id)
                    return "the filter is removed"
                case "chain":
                    self._w.firewall.drop(item.id)
                    return "the chain is removed"
                case "filter-table":
                    self._w.firewall.set_right(self._w.mechanism.guarded())
                    return "what filters rest on is written again"
                case "device" if item.id in links.ours():
                    links.delete(item.id)
                    self._w.sync_guard()
                    return f"{item.id} is deleted"
                case "device":
                    ip_batch([f"link set dev {item.id} nomaster"] if links.master(item.id) else [])
                    return f"{item.id} is taken off its bridge"
            return self._w.mechanism.mend(item)

    def distrust(self, item: MendItem) -> None:
        """What is remembered of the item's document as done is not believed when that is applied next."""
        assert item.document is not None
        kind, id = item.document
        with self._w.lock:
            self._w.mechanism.distrust()
            match kind:
                case "port":
                    self._w.firewall.distrust(names.tap(id))
                case "group":
                    self._w.firewall.distrust_group(id)
                case "router":
                    self._routers.distrust(id)


def _plugged(
    networks: dict[str, NetworkDoc], ports: dict[str, PortDoc], routers: dict[str, RouterDoc]
) -> list[Plugged]:
    """Every port of the host, with the document whose application plugs it."""
    found: dict[str, Plugged] = {
        port.id: (port, ("port", port.id)) for port in ports.values() if not port.device_owner.startswith("network:")
    }
    for network in networks.values():
        if network.dhcp_port is not None and network.subnets:
            found[network.dhcp_port.id] = (network.dhcp_port, ("network", network.id))
    for router in routers.values():
        for leg in legs(router) if router.admin_state_up else ():
            found[leg.port.id] = (leg.port, ("router", router.id))
    return list(found.values())


def _is_ports(chain: str) -> bool:
    return chain.startswith(("o-", "i-"))


def _port_differs(device: str, wanted: scratch.Table, held: scratch.Table) -> str | None:
    """How the filter of a device is not as wanted, in words."""
    words = []
    for chain in (f"o-{device}", f"i-{device}"):
        if chain not in held.chains:
            words.append(f"there is no chain {chain}")
        elif said := scratch.differs(wanted.chains[chain], held.chains[chain]):
            words.append(f"rules of {chain} are {said}")
    for name in ("from_port", "to_port"):
        own = {element for element in wanted.sets.get(name, []) if f'"{device}"' in element}
        if not own <= set(held.sets.get(name, [])):
            words.append(f"{name} does not lead to it")
    return ", ".join(words) or None


def leases(path: Path) -> Iterator[tuple[str, str, int]]:
    """(MAC, IPv4 address, end in seconds since the epoch; 0: never) of dnsmasq's file. IPv6 is passed over."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        fields = line.split()
        if len(fields) > 2 and fields[0].isdecimal() and fields[1].count(":") == 5 and "." in fields[2]:
            yield fields[1].lower(), fields[2], int(fields[0])


def _drift(kind: str, id: str, problem: Any, message: str, document: tuple[str, str] | None = None) -> Drift:
    return Drift(kind=kind, id=id, problem=problem, message=message, document=document)
