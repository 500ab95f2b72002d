"""One unit of change: it collects what hosts must hear of and tells `conductor.Desired` once, at the end.

Nouns note *what changed* (a port, a network's subnets, a group's rules); which documents of which hosts that concerns
is decided here, in `flush`, with a handful of statements whatever the number of changes.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, bindparam, func, select, update

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.services.network import state
from cumulet.services.network import tables as t
from cumulet.services.network.noun import rows_in
from cumulet.services.network.segments import TUNNELS

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_DHCP_ON = select(t.DHCP_HOSTS.c.host, t.DHCP_HOSTS.c.network_id).where(
    t.DHCP_HOSTS.c.network_id.in_(bindparam("ids", expanding=True))
)
_ROUTERS_WITH_LEG = (
    select(t.PORTS.c.device_id)
    .distinct()
    .where(
        t.PORTS.c.network_id.in_(bindparam("ids", expanding=True)), t.PORTS.c.device_owner == "network:router_interface"
    )
)
_ROUTERS_OUT = select(t.ROUTERS.c.id).where(t.ROUTERS.c.gateway_network_id.in_(bindparam("ids", expanding=True)))
_ROUTERS_ON = select(t.ROUTER_HOSTS.c.host, t.ROUTER_HOSTS.c.router_id).where(
    t.ROUTER_HOSTS.c.router_id.in_(bindparam("ids", expanding=True))
)
_MADE = (
    t.PORTS.c.host != "",
    t.PORTS.c.vif_type.not_in([state.UNBOUND, state.FAILED]),
    ~t.PORTS.c.device_owner.startswith("network:"),
)
# of each: its host, its id, and the other host while its server moves
_PORTS_OF_NETWORKS = select(t.PORTS.c.host, t.PORTS.c.id, t.PORTS.c.moving).where(
    t.PORTS.c.network_id.in_(bindparam("ids", expanding=True)), *_MADE
)
_PORTS_OF_GROUPS = (
    select(t.PORTS.c.host, t.PORTS.c.id, t.PORTS.c.moving)
    .join(t.PORT_GROUPS, t.PORT_GROUPS.c.port_id == t.PORTS.c.id)
    .where(t.PORT_GROUPS.c.security_group_id.in_(bindparam("ids", expanding=True)), *_MADE)
)
REMOTE_GROUPS = (
    select(t.PORTS.c.host, t.SECURITY_GROUP_RULES.c.remote_group_id, t.PORTS.c.moving)
    .distinct()
    .join(t.PORT_GROUPS, t.PORT_GROUPS.c.port_id == t.PORTS.c.id)
    .join(t.SECURITY_GROUP_RULES, t.SECURITY_GROUP_RULES.c.security_group_id == t.PORT_GROUPS.c.security_group_id)
    .where(t.SECURITY_GROUP_RULES.c.remote_group_id.isnot(None), *_MADE)
)
_REMOTE_OF_PORTS = REMOTE_GROUPS.where(t.PORTS.c.id.in_(bindparam("ids", expanding=True)))
_REMOTE_OF_GROUPS = REMOTE_GROUPS.where(t.PORT_GROUPS.c.security_group_id.in_(bindparam("ids", expanding=True)))
_OTHERS_THERE = select(func.count()).where(
    t.PORTS.c.network_id == bindparam("network_id"),
    t.PORTS.c.host == bindparam("host"),
    t.PORTS.c.id.not_in(bindparam("mine", expanding=True)),
)
_TYPES = select(t.NETWORKS.c.id, t.NETWORKS.c.network_type).where(t.NETWORKS.c.id.in_(bindparam("ids", expanding=True)))
_WAIT = (
    update(t.FLOATING_IPS)
    .where(
        t.FLOATING_IPS.c.router_id == bindparam("_router"), t.FLOATING_IPS.c.id.in_(bindparam("_ids", expanding=True))
    )
    .values(wanted_generation=bindparam("_generation"))
)
_SERVERS_OF_PORTS = (
    select(t.PORTS.c.device_id)
    .distinct()
    .where(t.PORTS.c.id.in_(bindparam("ids", expanding=True)), t.PORTS.c.device_owner.startswith("compute:"))
)
_SERVERS_ON = (
    select(t.PORTS.c.device_id)
    .distinct()
    .where(t.PORTS.c.network_id == bindparam("network_id"), t.PORTS.c.device_owner.startswith("compute:"))
    .where(t.PORTS.c.host != "", t.PORTS.c.device_id != "")
)
_WITH_SUBNETS = (
    select(t.NETWORKS, t.SUBNETS)
    .outerjoin(t.SUBNETS, t.SUBNETS.c.network_id == t.NETWORKS.c.id)
    .where(t.NETWORKS.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(t.SUBNETS.c.created_at, t.SUBNETS.c.id)
)
_WIDTH = len(t.NETWORKS.c)
Key = tuple[str, str, str]  # host, kind, object id


def on_hosts(kind: str, found: Sequence[Any]) -> list[Key]:
    """Documents for the host of ``found`` (host, id, other host or "") and for the other."""
    return [(host, kind, found[1]) for host in (found[0], found[2]) if host]


def _answers(row: t.PortRow) -> bool:
    """Metadata requests come in here."""
    return row.device_owner == "network:dhcp" or row.device_owner.startswith("network:router_interface")


class Work:
    def __init__(self, service: "NetworkService", tx: Tx, ctx: RequestContext, *, sees_all: bool | None = None) -> None:
        self.service = service
        self.tx = tx
        self.ctx = ctx
        self.sees_all = ctx.is_admin if sees_all is None else sees_all
        self.networks: set[str] = set()  # addresses, DHCP hosts or names on it changed
        self.ranges: set[str] = set()  # its subnets changed
        self.peers: set[str] = set()  # all its documents change: hosts, DHCP servers, MTU
        self.routers: set[str] = set()
        self.groups: set[str] = set()  # rules changed
        self.members: set[str] = set()  # addresses behind the group changed
        self.floating: dict[str, set[str]] = {}  # router -> floating IPs that wait for it
        self.inside: set[str] = set()  # ports that a floating IP came to or left
        self._servers: set[str] = set()  # what their metadata says of ports changed
        self.gone: set[Key] = set()
        self.carried = False  # documents of ports come to their hosts with an operation
        self.default_groups: dict[str, str] = {}
        self._ports: dict[str, t.PortRow] = {}
        self._bindings: dict[tuple[str, str], set[str]] = {}
        self.usable_groups: set[tuple[str, str]] = set()  # (group, project)
        self.ports_reserved = 0  # so many more of the context's project are within its quota
        self._networks: dict[str, tuple[t.NetworkRow, list[t.SubnetRow]]] = {}
        self._hosts: dict[str, Any] | None = None

    # -- small services ----------------------------------------------------------------------------------------

    def hosts(self) -> dict[str, Any]:
        if self._hosts is None:
            self._hosts = {host.name: host for host in self.service.hosts.snapshot(self.tx)}
        return self._hosts

    def check_groups(self, groups: Iterable[str], project_id: str) -> None:
        new = [group for group in groups if (group, project_id) not in self.usable_groups]
        if new:
            self.service.groups.check_usable(self, new, project_id)
            self.usable_groups.update((group, project_id) for group in new)

    def networks_with_subnets(self, ids: Iterable[str]) -> dict[str, tuple[t.NetworkRow, list[t.SubnetRow]]]:
        """Those that exist, read once, under the locks of their addresses."""
        wanted = sorted(set(ids) - self._networks.keys())
        if self.tx.writing:
            for id in wanted:
                self.tx.lock("subnet-addresses", id)
        for row in rows_in(self.tx, _WITH_SUBNETS, wanted):
            _, subnets = self._networks.setdefault(row[0], (t.NetworkRow(*row[:_WIDTH]), []))
            if row[_WIDTH] is not None:
                subnets.append(t.SubnetRow(*row[_WIDTH:]))
        return self._networks

    def touch_revision(self, table: Table, ids: Iterable[str]) -> None:
        wanted = list(ids)
        if wanted:
            self.tx.run(
                update(table)
                .where(table.c.id.in_(wanted))
                .values(revision=table.c.revision + 1, updated_at=self.tx.now)
            )

    # -- notes ---------------------------------------------------------------------------------------------------

    def port_changed(self, row: t.PortRow) -> None:
        self._ports[row.id] = row
        if row.device_owner == "network:floatingip":
            return
        if row.host:  # nobody asks for the address of a port that is nowhere
            self.networks.add(row.network_id)
            self._bindings.setdefault((row.network_id, row.host), set()).add(row.id)
            self._tell_server(row)
        if row.device_owner.startswith("network:router_"):
            self.routers.add(row.device_id)

    def _tell_server(self, row: t.PortRow) -> None:
        if row.device_owner.startswith("compute:"):
            self._servers.add(row.device_id)

    def port_leaves(self, row: t.PortRow) -> None:
        """The port goes from its host (with its present ``host``), or altogether."""
        self._ports.pop(row.id, None)
        if row.device_owner == "network:floatingip":
            return
        if row.host:
            self.networks.add(row.network_id)
            self._bindings.setdefault((row.network_id, row.host), set()).add(row.id)
            self._tell_server(row)
            if not row.device_owner.startswith("network:"):
                self.gone.update(on_hosts("port", (row.host, row.id, row.moving)))
        if row.device_owner.startswith("network:router_"):
            self.routers.add(row.device_id)

    def comes_or_goes(self, row: t.PortRow, host: str) -> None:
        """The port is to be on another host as well, or no more."""
        self._bindings.setdefault((row.network_id, host), set()).add(row.id)

    def drop_network(self, network_id: str) -> None:
        """The network goes: its DHCP hosts are to forget it."""
        for host in self.service.ports.dhcp_hosts(self.tx, network_id):
            self.gone.add((host, "network", network_id))

    # -- telling ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        tx, desired = self.tx, self.service.desired
        wanted = self._documents()
        router_keys = self._router_keys()
        for key in sorted(self.gone - wanted):
            desired.remove(tx, *key)
        carried = {key for key in wanted if key[1] == "port" and key[2] in self._ports} if self.carried else set()
        of_others = {key for key in wanted if key[1] == "port" and key[2] not in self._ports}
        desired.touch_many(tx, sorted(carried), hint=False)
        desired.touch_many(tx, sorted(wanted - carried), of_others=of_others)
        self._servers.update(row[0] for row in rows_in(tx, _SERVERS_OF_PORTS, self.inside))
        for server_id in sorted(self._servers):
            desired.touch_holders(tx, "metadata", server_id)
        for host, router_id in sorted(router_keys):
            if (host, "router", router_id) in self.gone:
                continue
            generation = desired.touch(tx, host, "router", router_id)
            waiting = self.floating.get(router_id)
            if waiting:
                tx.run(_WAIT, {"_router": router_id, "_ids": sorted(waiting), "_generation": generation})

    def _documents(self) -> set[Key]:
        tx = self.tx
        self.peers |= self._networks_with_new_hosts()
        self.networks |= self.peers | self.ranges
        found: set[Key] = set()
        for row in self._ports.values():
            made = row.host and row.vif_type not in (state.UNBOUND, state.FAILED)
            if made and not row.device_owner.startswith("network:"):
                found.update(on_hosts("port", (row.host, row.id, row.moving)))
        for one in rows_in(tx, _REMOTE_OF_PORTS, {id for _, kind, id in found if kind == "port"}):
            found.update(on_hosts("group", one))
        for one in rows_in(tx, _REMOTE_OF_GROUPS, self.groups):
            found.update(on_hosts("group", one))
        if self.members:
            found |= self.service.desired.held(tx, "group", self.members)
        for one in rows_in(tx, _PORTS_OF_NETWORKS, self.peers | self.ranges):
            found.update(on_hosts("port", one))
        for one in rows_in(tx, _PORTS_OF_GROUPS, self.groups):
            found.update(on_hosts("port", one))
        for host, id in rows_in(tx, _DHCP_ON, self.networks):
            found.add((host, "network", id))
        served = {(row.host, row.network_id) for row in self._ports.values() if row.host and _answers(row)}
        for host, network_id in served:  # it is to know the servers that may ask there
            for row in tx.rows(_SERVERS_ON, {"network_id": network_id}):
                found.add((host, "metadata", row[0]))
        self.routers.update(row[0] for row in rows_in(tx, _ROUTERS_WITH_LEG, self.networks))
        self.routers.update(row[0] for row in rows_in(tx, _ROUTERS_OUT, self.peers | self.ranges))
        return found

    def _router_keys(self) -> set[tuple[str, str]]:
        return {(row[0], row[1]) for row in rows_in(self.tx, _ROUTERS_ON, self.routers)}

    def _networks_with_new_hosts(self) -> set[str]:
        """Tunnelled networks that came to a host or left it: the others must learn the peer."""
        ids = {network_id for network_id, _ in self._bindings} - self.peers
        kinds = {row[0]: row[1] for row in rows_in(self.tx, _TYPES, ids)}
        found = set()
        for (network_id, host), mine in self._bindings.items():
            if network_id in found or kinds.get(network_id) not in TUNNELS:
                continue
            values = {"network_id": network_id, "host": host, "mine": sorted(mine)}
            if self.tx.scalar(_OTHERS_THERE, values) == 0:
                found.add(network_id)
        return found
