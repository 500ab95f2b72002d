"""Network agents as operators know them, made from the hosts' roles; and which host serves which network or router.

Owns: the agents' ids (derived from host and binary), what operators set on them, scheduling of DHCP and routers,
what binding a port to a host gives.
"""

import uuid
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, select, update

from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.errors import NotFound
from cumulet.services.network import state
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict, missing

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService
    from cumulet.services.network.work import Work

_SPACE = uuid.UUID("6f4b1c3a-52a5-4f0e-9d9b-0d6a6b0f6a11")
_SETTINGS = select(t.AGENT_SETTINGS.c.id, t.AGENT_SETTINGS.c.admin_state_up, t.AGENT_SETTINGS.c.description)
_SET = (
    update(t.AGENT_SETTINGS)
    .where(t.AGENT_SETTINGS.c.id == bindparam("_id"))
    .values(admin_state_up=bindparam("_up"), description=bindparam("_description"))
)
_DHCP_LOAD = select(t.DHCP_HOSTS.c.host, func.count()).group_by(t.DHCP_HOSTS.c.host)
_ROUTER_LOAD = select(t.ROUTER_HOSTS.c.host, func.count()).group_by(t.ROUTER_HOSTS.c.host)
_DHCP_ON = select(t.DHCP_HOSTS.c.network_id).where(t.DHCP_HOSTS.c.host == bindparam("host"))
_ROUTERS_ON = select(t.ROUTER_HOSTS.c.router_id).where(t.ROUTER_HOSTS.c.host == bindparam("host"))
_NAMED_ROUTERS_ON = (
    select(t.ROUTERS.c.id, t.ROUTERS.c.name)
    .join(t.ROUTER_HOSTS, t.ROUTER_HOSTS.c.router_id == t.ROUTERS.c.id)
    .where(t.ROUTER_HOSTS.c.host == bindparam("host"))
    .order_by(t.ROUTERS.c.id)
)
_NAMED_DHCP_ON = (
    select(t.NETWORKS.c.id, t.NETWORKS.c.name)
    .join(t.DHCP_HOSTS, t.DHCP_HOSTS.c.network_id == t.NETWORKS.c.id)
    .where(t.DHCP_HOSTS.c.host == bindparam("host"))
    .order_by(t.NETWORKS.c.id)
)
_FORGET = delete(t.AGENT_SETTINGS).where(t.AGENT_SETTINGS.c.id == bindparam("_id"))
_ROUTER_HOST = select(t.ROUTER_HOSTS.c.host).where(t.ROUTER_HOSTS.c.router_id == bindparam("router_id"))
_PORTS_ON = select(t.PORTS.c.host, func.count()).where(t.PORTS.c.host != "").group_by(t.PORTS.c.host)
_DROP_DHCP = delete(t.DHCP_HOSTS).where(
    t.DHCP_HOSTS.c.network_id == bindparam("_network"), t.DHCP_HOSTS.c.host == bindparam("_host")
)
_DROP_ROUTER = delete(t.ROUTER_HOSTS).where(t.ROUTER_HOSTS.c.router_id == bindparam("_router"))

DHCP, L3, METADATA = "neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent"
_L2 = {
    "openvswitch": ("neutron-openvswitch-agent", "Open vSwitch agent", "ovs"),
    "linuxbridge": ("neutron-linuxbridge-agent", "Linux bridge agent", "bridge"),
}
_KINDS = {DHCP: ("DHCP agent", "dhcp_agent"), L3: ("L3 agent", "l3_agent"), METADATA: ("Metadata agent", "N/A")}


def agent_id(host: str, binary: str) -> str:
    return str(uuid.uuid5(_SPACE, f"{host}/{binary}"))


def _moment(us: int | None) -> str | None:
    from datetime import UTC, datetime

    return None if us is None else datetime.fromtimestamp(us // SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")


class Agents:
    def __init__(self, service: "NetworkService") -> None:
        self.service = service

    # -- hosts ---------------------------------------------------------------------------------------------------

    def hosts(self, tx: Tx) -> list[Any]:
        return list(self.service.hosts.list(tx))

    def vif(self, work: "Work", host: str) -> tuple[str, dict[str, Any]]:
        """vif_type and vif_details of a port bound to the host; a host without an L2 agent fails the binding."""
        found = work.hosts().get(host)
        if found is None or found.mechanism not in _L2:
            return state.FAILED, {}
        details: dict[str, Any] = {"connectivity": "l2", "port_filter": True}
        if found.mechanism == "openvswitch":
            details |= {"ovs_hybrid_plug": True, "datapath_type": "system", "bridge_name": "br-int"}
        return _L2[found.mechanism][2], details

    # -- the list ------------------------------------------------------------------------------------------------

    def views(self, tx: Tx) -> list[dict[str, Any]]:
        settings = {row.id: row for row in tx.rows(_SETTINGS)}
        ports = {row[0]: row[1] for row in tx.rows(_PORTS_ON)}
        networks = {row[0]: row[1] for row in tx.rows(_DHCP_LOAD)}
        routers = {row[0]: row[1] for row in tx.rows(_ROUTER_LOAD)}
        found = []
        for host in self.hosts(tx):
            for binary, kind, topic, configurations in self._agents_of(host):
                if binary == DHCP:
                    configurations |= {"networks": networks.get(host.name, 0), "ports": ports.get(host.name, 0)}
                if binary == L3:
                    configurations |= {"routers": routers.get(host.name, 0)}
                id = agent_id(host.name, binary)
                known = settings.get(id)
                found.append(
                    {
                        "id": id,
                        "agent_type": kind,
                        "binary": binary,
                        "topic": topic,
                        "host": host.name,
                        "admin_state_up": known.admin_state_up if known else True,
                        "description": known.description if known else None,
                        "alive": bool(host.up),
                        "availability_zone": self.service.zone_of(host.name) if binary in (DHCP, L3) else None,
                        "configurations": configurations,
                        "created_at": _moment(getattr(host, "created_at", None)),
                        "started_at": _moment(getattr(host, "started", None)),
                        "heartbeat_timestamp": _moment(getattr(host, "seen_at", None)),
                        "resources_synced": None,
                    }
                )
        return found

    def _agents_of(self, host: Any) -> Iterable[tuple[str, str, str, dict[str, Any]]]:
        roles = set(host.roles)
        if roles & {"compute", "network"} and host.mechanism in _L2:
            binary, kind, _ = _L2[host.mechanism]
            mappings = dict(getattr(host, "bridge_mappings", None) or {})
            yield (
                binary,
                kind,
                "N/A",
                {
                    "bridge_mappings": mappings,
                    "tunnel_types": ["vxlan"],
                    "tunneling_ip": host.tunnel_ip,
                },
            )
        if "network" in roles:
            for binary in (DHCP, L3, METADATA):
                kind, topic = _KINDS[binary]
                yield binary, kind, topic, {}

    def get(self, tx: Tx, id: str) -> dict[str, Any]:
        for view in self.views(tx):
            if view["id"] == id:
                return view
        raise missing("AgentNotFound", "Agent", id)

    def set(self, tx: Tx, id: str, changes: dict[str, Any]) -> dict[str, Any]:
        tx.lock("network-agent", id)
        view = self.get(tx, id)
        up = changes.get("admin_state_up", view["admin_state_up"])
        description = changes.get("description", view["description"])
        if not tx.run(_SET, {"_id": id, "_up": up, "_description": description}):
            tx.insert(t.AGENT_SETTINGS, {"id": id, "admin_state_up": up, "description": description})
        return self.get(tx, id)

    def zones(self, tx: Tx) -> list[dict[str, str]]:
        names = sorted({self.service.zone_of(h.name) for h in self.hosts(tx) if "network" in h.roles})
        return [
            {"name": name, "resource": kind, "state": "available"} for name in names for kind in ("network", "router")
        ]

    def check_zones(self, tx: Tx, hints: list[str]) -> None:
        if not hints:
            return
        known = {zone["name"] for zone in self.zones(tx)}
        for hint in hints:
            if hint not in known:
                raise NotFound(f"Availability zone {hint} could not be found.", type_name="AvailabilityZoneNotFound")

    # -- scheduling --------------------------------------------------------------------------------------------------

    def _candidates(self, tx: Tx, binary: str) -> list[str]:
        off = {row.id for row in tx.rows(_SETTINGS) if not row.admin_state_up}
        return [h.name for h in self.hosts(tx) if h.up and "network" in h.roles and agent_id(h.name, binary) not in off]

    def schedule_network(self, work: "Work", network_id: str) -> str | None:
        """Give a network a host that serves its DHCP: the one with the fewest networks. None: no host is up; the
        reconciler does it later."""
        tx = work.tx
        load = {row[0]: row[1] for row in tx.rows(_DHCP_LOAD)}
        names = self._candidates(tx, DHCP)
        if not names:
            return None
        host = min(names, key=lambda name: (load.get(name, 0), name))
        tx.insert(t.DHCP_HOSTS, {"network_id": network_id, "host": host})
        work.peers.add(network_id)
        return host

    def router_host(self, tx: Tx, router_id: str) -> str | None:
        found: str | None = tx.scalar(_ROUTER_HOST, {"router_id": router_id})
        return found

    def schedule_router(self, work: "Work", router_id: str) -> str | None:
        """Give a router a host, if it has none and needs one."""
        tx = work.tx
        have = self.router_host(tx, router_id)
        if have is not None:
            return have
        load = {row[0]: row[1] for row in tx.rows(_ROUTER_LOAD)}
        names = self._candidates(tx, L3)
        if not names:
            return None
        host = min(names, key=lambda name: (load.get(name, 0), name))
        self.place_router(work, router_id, host)
        return host

    def place_router(self, work: "Work", router_id: str, host: str | None) -> None:
        """Move a router to a host, or off any."""
        tx = work.tx
        before = self.router_host(tx, router_id)
        if before == host:
            return
        if before is not None:
            tx.run(_DROP_ROUTER, {"_router": router_id})
            work.gone.add((before, "router", router_id))
        if host is not None:
            tx.insert(t.ROUTER_HOSTS, {"router_id": router_id, "host": host})
        self.service.routers.move_ports(work, router_id, host or "")
        work.routers.add(router_id)

    # -- a host as a whole -------------------------------------------------------------------------------------------

    def on_host(self, tx: Tx, host: str) -> list[tuple[str, str, str]]:
        return [
            *(("router", row[0], row[1] or "") for row in tx.rows(_NAMED_ROUTERS_ON, {"host": host})),
            *(("network", row[0], row[1] or "") for row in tx.rows(_NAMED_DHCP_ON, {"host": host})),
        ]

    def allow(self, tx: Tx, host: str, *, allowed: bool) -> None:
        """Whether new routers and DHCP servers may come to a host."""
        if "network" in self.service.hosts.get(tx, host).roles:
            for binary in (DHCP, L3):
                self.set(tx, agent_id(host, binary), {"admin_state_up": allowed})

    def leave(self, work: "Work", host: str) -> None:
        """What another host can take goes there; the last network host keeps what it has."""
        tx = work.tx
        self.allow(tx, host, allowed=False)
        names = self._candidates(tx, L3)
        load = Counter({row[0]: row[1] for row in tx.rows(_ROUTER_LOAD)})
        for router_id, _ in tx.rows(_NAMED_ROUTERS_ON, {"host": host}) if names else ():
            to = min(names, key=lambda name: (load[name], name))
            load[to] += 1
            self.service.routers.find(tx, router_id)  # its legs stay as they are while they move
            self.place_router(work, router_id, to)
        for network_id, _ in tx.rows(_NAMED_DHCP_ON, {"host": host}) if self._candidates(tx, DHCP) else ():
            self._drop_network(work, host, network_id)
            self.service.ports.sync_dhcp_ports(work, network_id)  # it chooses another host where none is left

    def forget(self, tx: Tx, host: str) -> None:
        for binary in (*(kind[0] for kind in _L2.values()), *_KINDS):
            tx.run(_FORGET, {"_id": agent_id(host, binary)})

    # -- what operators schedule by hand ------------------------------------------------------------------------

    def _of_kind(self, tx: Tx, id: str, binary: str) -> str:
        view = self.get(tx, id)
        if view["binary"] != binary:
            name = "InvalidDHCPAgent" if binary == DHCP else "InvalidL3Agent"
            raise bad(f"Agent {id} is not a {_KINDS[binary][0]}.", name)
        return str(view["host"])

    def networks_on(self, tx: Tx, id: str) -> list[str]:
        host = self._of_kind(tx, id, DHCP)
        return [row[0] for row in tx.rows(_DHCP_ON, {"host": host})]

    def routers_on(self, tx: Tx, id: str) -> list[str]:
        host = self._of_kind(tx, id, L3)
        return [row[0] for row in tx.rows(_ROUTERS_ON, {"host": host})]

    def add_network(self, work: "Work", id: str, network_id: str) -> None:
        host = self._of_kind(work.tx, id, DHCP)
        self.service.networks.get(work.tx, network_id)
        if host in self.service.ports.dhcp_hosts(work.tx, network_id):
            raise conflict(
                "NetworkHostedByDHCPAgent", f"The network {network_id} is hosted by DHCP agent {id} already."
            )
        work.tx.insert(t.DHCP_HOSTS, {"network_id": network_id, "host": host})
        work.peers.add(network_id)
        self.service.ports.sync_dhcp_ports(work, network_id)

    def remove_network(self, work: "Work", id: str, network_id: str) -> None:
        host = self._of_kind(work.tx, id, DHCP)
        if not self._drop_network(work, host, network_id):
            raise conflict("NetworkNotHostedByDhcpAgent", f"The network {network_id} is not hosted by DHCP agent {id}.")

    def _drop_network(self, work: "Work", host: str, network_id: str) -> bool:
        if not work.tx.run(_DROP_DHCP, {"_network": network_id, "_host": host}):
            return False
        ports = [p for p in self.service.ports.dhcp_ports(work.tx, network_id) if p.host == host]
        self.service.ports.delete_rows(work, ports)
        work.gone.add((host, "network", network_id))
        work.peers.add(network_id)
        return True

    def add_router(self, work: "Work", id: str, router_id: str) -> None:
        host = self._of_kind(work.tx, id, L3)
        self.service.routers.get(work.tx, router_id)
        have = self.router_host(work.tx, router_id)
        if have is not None and have != host:
            raise conflict("RouterHostedByL3Agent", f"The router {router_id} is hosted by another L3 agent already.")
        self.place_router(work, router_id, host)

    def remove_router(self, work: "Work", id: str, router_id: str) -> None:
        host = self._of_kind(work.tx, id, L3)
        if self.router_host(work.tx, router_id) != host:
            raise conflict("RouterNotHostedByL3Agent", f"The router {router_id} is not hosted by L3 agent {id}.")
        self.place_router(work, router_id, None)

    def on_hosts(self, tx: Tx, hosts: Iterable[str], binary: str) -> list[dict[str, Any]]:
        wanted = set(hosts)
        return [v for v in self.views(tx) if v["binary"] == binary and v["host"] in wanted]
