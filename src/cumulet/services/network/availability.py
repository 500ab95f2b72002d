"""How many addresses networks have and use (network-ip-availability)."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, select

from cumulet.db import Tx
from cumulet.services.network import ipam
from cumulet.services.network import tables as t
from cumulet.services.network.noun import rows_in

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_NETWORKS = select(t.NETWORKS).order_by(t.NETWORKS.c.id)
_USED = (
    select(t.ADDRESSES.c.subnet_id, func.count())
    .where(t.ADDRESSES.c.network_id.in_(bindparam("ids", expanding=True)))
    .group_by(t.ADDRESSES.c.subnet_id)
)


def views(
    tx: Tx, service: "NetworkService", ip_version: str | None, network_id: str | None = None
) -> list[dict[str, Any]]:
    networks = [t.NetworkRow(*row) for row in tx.rows(_NETWORKS) if network_id in (None, row[0])]
    ids = [network.id for network in networks]
    used = {row[0]: row[1] for row in rows_in(tx, _USED, ids)}
    subnets: dict[str, list[t.SubnetRow]] = {}
    for subnet in service.subnets.of_networks(tx, ids):
        if ip_version is None or str(subnet.ip_version) == ip_version:
            subnets.setdefault(subnet.network_id, []).append(subnet)
    found = []
    for network in networks:
        parts = [
            {
                "subnet_id": subnet.id,
                "subnet_name": subnet.name,
                "cidr": subnet.cidr,
                "ip_version": subnet.ip_version,
                "used_ips": used.get(subnet.id, 0),
                "total_ips": ipam.pool_size(subnet),
            }
            for subnet in subnets.get(network.id, [])
        ]
        found.append(
            {
                "network_id": network.id,
                "network_name": network.name,
                "tenant_id": network.project_id,
                "project_id": network.project_id,
                "subnet_ip_availability": parts,
                "used_ips": sum(int(part["used_ips"]) for part in parts),
                "total_ips": sum(int(part["total_ips"]) for part in parts),
            }
        )
    return found
