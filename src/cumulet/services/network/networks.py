"""Networks: their segment, who may use them, and what stands in the way of deleting one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, or_, select

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import tables as t
from cumulet.services.network.faults import conflict, invalid
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun, apply, grouped, plain, rows_in
from cumulet.services.network.query import Condition
from cumulet.services.network.resources import NETWORK

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

_SUBNET_IDS = (
    select(t.SUBNETS.c.network_id, t.SUBNETS.c.id)
    .where(t.SUBNETS.c.network_id.in_(bindparam("ids", expanding=True)))
    .order_by(t.SUBNETS.c.created_at, t.SUBNETS.c.id)
)
_PORTS_IN_THE_WAY = (
    select(t.PORTS.c.id, t.PORTS.c.device_owner, t.PORTS.c.device_id)
    .where(t.PORTS.c.network_id == bindparam("network_id"), t.PORTS.c.device_owner != "network:dhcp")
    .order_by(t.PORTS.c.id)
    .limit(20)
)
_FOREIGN_USERS = (
    select(t.PORTS.c.id)
    .where(
        t.PORTS.c.network_id == bindparam("network_id"),
        t.PORTS.c.project_id != bindparam("project_id"),
        t.PORTS.c.project_id != "",
    )
    .limit(1)
)
_GATEWAY_USERS = select(t.ROUTERS.c.id).where(t.ROUTERS.c.gateway_network_id == bindparam("network_id")).limit(1)
_CLEAR_DEFAULT = select(t.NETWORKS.c.id).where(t.NETWORKS.c.is_default.is_(True))
_DHCP_OF = select(t.DHCP_HOSTS.c.network_id, t.DHCP_HOSTS.c.host).where(
    t.DHCP_HOSTS.c.network_id.in_(bindparam("ids", expanding=True))
)
_DELETE_DHCP_HOSTS = delete(t.DHCP_HOSTS).where(t.DHCP_HOSTS.c.network_id == bindparam("network_id"))
_PROVIDER = ("provider:network_type", "provider:physical_network", "provider:segmentation_id")


class Networks(Noun[t.NetworkRow]):
    resource = NETWORK
    row = t.NetworkRow

    def scope(self, tx: Tx, ctx: RequestContext) -> list[Condition]:
        n = t.NETWORKS.c
        return [or_(n.project_id == (ctx.project_id or ""), n.shared.is_(True), n.external.is_(True))]

    def views(self, tx: Tx, rows: Sequence[t.NetworkRow]) -> list[dict[str, Any]]:
        ids = [row.id for row in rows]
        subnets = grouped(rows_in(tx, _SUBNET_IDS, ids))
        served = grouped(rows_in(tx, _DHCP_OF, ids))
        tags = self.tags(tx, rows)
        zone = self.service.zone_of
        return [
            {
                **self.standard(row),
                "name": row.name,
                "admin_state_up": row.admin_state_up,
                "status": row.status,
                "subnets": [s[1] for s in subnets.get(row.id, ())],
                "shared": row.shared,
                "router:external": row.external,
                "is_default": row.is_default,
                "mtu": row.mtu,
                "port_security_enabled": row.port_security_enabled,
                "provider:network_type": row.network_type,
                "provider:physical_network": row.physical_network or None,
                "provider:segmentation_id": row.segmentation_id,
                "dns_domain": row.dns_domain,
                "availability_zone_hints": row.availability_zone_hints,
                "availability_zones": sorted({zone(s[1]) for s in served.get(row.id, ())}),
                "ipv4_address_scope": None,
                "ipv6_address_scope": None,
                "tags": tags.get(row.id, []),
            }
            for row in rows
        ]

    def hold(self, tx: Tx, items: Sequence[Given]) -> None:
        """What is asked for names networks: who may use them, and their addresses, are as they are found until the end
        of a writing unit of work. Quotas first: locks are taken in one order."""
        for project_id in sorted({given["project_id"] for given in items if given["project_id"]}):
            tx.lock("quota", project_id)
        for id in sorted({given["network_id"] for given in items}):
            tx.lock("subnet-addresses", id)

    def create(self, work: "Work", items: list[Given]) -> list[t.NetworkRow]:
        tx = work.tx
        self.service.quotas.reserve(tx, "network", [g["project_id"] for g in items])
        rows = [self._new(work, given) for given in items]
        for project in {row.project_id for row in rows}:
            self.service.groups.ensure_default(work, project)
        return rows

    def _new(self, work: "Work", given: Given) -> t.NetworkRow:
        tx, drivers = work.tx, self.service.drivers
        kind, place, number = (given[name] if given.has(name) else None for name in _PROVIDER)
        if any(value is not None for value in (kind, place, number)):
            segment = drivers.given(tx, kind, place, number)
        else:
            segment = drivers.for_project(tx)
        if given["is_default"]:
            self._claim_default(tx, None)
        row = t.NetworkRow(
            id=new_uuid(),
            status="ACTIVE",
            external=given["router:external"],
            mtu=drivers.check_mtu(segment.network_type, given["mtu"]),
            network_type=segment.network_type,
            physical_network=segment.physical_network,
            segmentation_id=segment.segmentation_id,
            **plain(given, "project_id", "name", "description", "admin_state_up", "shared", "is_default"),
            **plain(given, "port_security_enabled", "dns_domain", "availability_zone_hints"),
            **self.stamps(tx),
        )
        self.service.agents.check_zones(tx, row.availability_zone_hints)
        tx.insert(t.NETWORKS, row.values())
        return row

    def _claim_default(self, tx: Tx, id: str | None) -> None:
        tx.lock("default-network", "")
        other = tx.scalar(_CLEAR_DEFAULT)
        if other is not None and other != id:
            raise conflict("DefaultExternalNetworkExists", f"The default external network is {other} already.")

    def update(self, work: "Work", row: t.NetworkRow, given: Given) -> t.NetworkRow:
        tx = work.tx
        tx.lock("subnet-addresses", row.id)
        if any(n in given.explicit and given[n] != v for n, v in zip(_PROVIDER, _segment(row), strict=True)):
            raise invalid("The provider attributes of this network cannot be changed.")
        if "shared" in given and row.shared and not given["shared"]:
            values = {"network_id": row.id, "project_id": row.project_id}
            if tx.first(_FOREIGN_USERS, values) is not None:
                raise conflict("InvalidSharedSetting", f"Other projects have ports on network {row.name}.")
        if "router:external" in given and row.external and not given["router:external"]:
            if tx.first(_GATEWAY_USERS, {"network_id": row.id}) is not None:
                raise conflict("ExternalNetworkInUse", f"Network {row.id} is the gateway of routers.")
            row.external = False
        elif "router:external" in given:
            row.external = given["router:external"]
        if given.get("is_default"):
            self._claim_default(tx, row.id)
        if "mtu" in given:
            row.mtu = self.service.drivers.check_mtu(row.network_type, given["mtu"])
            work.peers.add(row.id)
        apply(row, given, "name", "description", "admin_state_up", "shared", "is_default")
        apply(row, given, "port_security_enabled", "dns_domain")
        self.save(tx, row)
        work.networks.add(row.id)
        return row

    def delete(self, work: "Work", row: t.NetworkRow) -> None:
        tx = work.tx
        tx.lock("subnet-addresses", row.id)
        self.service.floating_ips.delete_idle(work, row.id)
        users = tx.rows(_PORTS_IN_THE_WAY, {"network_id": row.id})
        if users:
            what = ", ".join(f"{u.id} ({u.device_owner or 'no owner'} {u.device_id})".rstrip() for u in users)
            raise conflict(
                "NetworkInUse",
                f"Network {row.id} is in use. There are one or more ports still in use on the network: {what}.",
                ports=[u.id for u in users],
            )
        work.drop_network(row.id)
        self.service.ports.delete_dhcp_ports(work, row.id)
        tx.run(_DELETE_DHCP_HOSTS, {"network_id": row.id})
        self.service.subnets.remove_all(work, row.id)
        self.remove(tx, [row.id])


def _segment(row: t.NetworkRow) -> tuple[Any, ...]:
    return row.network_type, row.physical_network or None, row.segmentation_id
