"""What of this host's networks is not as its documents say: looked at in the kernel, in files and in /proc.

`look` changes nothing. What a document asks for is mended by applying the document again (appliers converge); what no
document asks for is mended by `rid`, on an operator's word alone.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cumulet.agent.contract import Drift, MendItem, NetworkDoc, PortDoc, RouterDoc
from cumulet.agent.errors import DriverError
from cumulet.agent.network import daemons, dhcp_files, links, names, rules
from cumulet.agent.network.dhcp import DhcpServers
from cumulet.agent.network.router import Routers
from cumulet.agent.network.wiring import Wiring

_log = logging.getLogger(__name__)
Documents = Mapping[str, Mapping[str, Any]]
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
        with self._w.lock:
            return [
                *self._namespaces(networks, routers),
                *self._dhcp(networks),
                *self._filters(ports),
                *self._forwarding(ports),
            ]

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

    def _dhcp(self, networks: dict[str, NetworkDoc]) -> Iterator[Drift]:
        for doc in networks.values():
            if doc.dhcp_port is None or not doc.subnets or not dhcp_files.served(doc):
                continue
            document = ("network", doc.id)
            directory = self._dir / doc.id
            if not daemons.runs("dnsmasq", directory / "pid"):
                yield _drift("dnsmasq", doc.id, "missing", f"dnsmasq of network {doc.id} does not run", document)
                continue
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

    def _filters(self, ports: dict[str, PortDoc]) -> Iterator[Drift]:
        wanted = set()
        for port in ports.values():
            device = names.tap(port.id)
            if not rules.filtered(port) or not links.exists(device):
                continue
            wanted.add(device)
            held = self._w.firewall.held_digest(device)
            if held == rules.port_digest(port, device):
                continue
            problem = "missing" if held is None else "different"
            message = f"port {port.id} has {'no filter' if held is None else 'another filter than its document says'}"
            yield _drift("chain", port.id, problem, message, ("port", port.id))
        for device in self._w.firewall.filtered_devices():
            if device not in wanted and not links.exists(device):
                yield _drift("chain", device, "unknown", f"there is a filter for {device}, which is not there")

    def _forwarding(self, ports: dict[str, PortDoc]) -> Iterator[Drift]:
        for port in ports.values():
            if port.device_owner.startswith("network:") or not links.exists(names.tap(port.id)):
                continue
            try:
                words = self._w.mechanism.astray(port)
            except DriverError as error:  # then its document fails too, which is told
                _log.info("the wire of port %s cannot be looked at: %s", port.id, error.message)
                continue
            if words is not None:
                yield _drift("forwarding", port.id, "different", f"port {port.id}: {words}", ("port", port.id))

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
                case "chain":
                    self._w.firewall.remove(item.id)
                    return "the filter is removed"
        return None


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
