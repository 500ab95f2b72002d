"""Subnets: their range, gateway, allocation pools and DHCP settings."""

import ipaddress
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, or_, select

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import ipam
from cumulet.services.network import tables as t
from cumulet.services.network.faults import bad, conflict, invalid
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun, apply, plain, rows_in
from cumulet.services.network.query import Condition
from cumulet.services.network.resources import SUBNET

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

_OF_NETWORK = (
    select(t.SUBNETS)
    .where(t.SUBNETS.c.network_id.in_(bindparam("ids", expanding=True)))
    .order_by(t.SUBNETS.c.created_at, t.SUBNETS.c.id)
)
_USERS = (
    select(t.PORTS.c.id, t.PORTS.c.device_owner)
    .join(t.ADDRESSES, t.ADDRESSES.c.port_id == t.PORTS.c.id)
    .where(t.ADDRESSES.c.subnet_id == bindparam("subnet_id"))
)
_GATEWAY_PORT = (
    select(t.PORTS.c.id)
    .join(t.ADDRESSES, t.ADDRESSES.c.port_id == t.PORTS.c.id)
    .where(
        t.ADDRESSES.c.subnet_id == bindparam("subnet_id"),
        t.ADDRESSES.c.ip_address == bindparam("ip_address"),
        t.PORTS.c.device_owner == "network:router_interface",
    )
)
_DROP_ADDRESSES = delete(t.ADDRESSES).where(t.ADDRESSES.c.subnet_id == bindparam("subnet_id"))
_MAX_NAMESERVERS, _MAX_ROUTES = 5, 20
_AUTO_DELETED = {"network:dhcp", "network:distributed", "network:floatingip_agent_gateway"}


class Subnets(Noun[t.SubnetRow]):
    resource = SUBNET
    row = t.SubnetRow

    def of_networks(self, tx: Tx, network_ids: Sequence[str]) -> list[t.SubnetRow]:
        return [t.SubnetRow(*row) for row in rows_in(tx, _OF_NETWORK, network_ids)]

    def scope(self, tx: Tx, ctx: RequestContext) -> list[Condition]:
        n = t.NETWORKS.c
        open_to_all = select(n.id).where(
            or_(n.shared.is_(True), n.external.is_(True), n.project_id == (ctx.project_id or ""))
        )
        return [or_(t.SUBNETS.c.project_id == (ctx.project_id or ""), t.SUBNETS.c.network_id.in_(open_to_all))]

    def special_filter(self, tx: Tx, name: str, values: list[str]) -> Condition | None:
        if name in ("shared", "router:external"):
            from cumulet.services.network.query import _boolean

            column = t.NETWORKS.c.shared if name == "shared" else t.NETWORKS.c.external
            wanted = [_boolean(name, value) for value in values]
            return t.SUBNETS.c.network_id.in_(select(t.NETWORKS.c.id).where(column.in_(wanted)))
        return None

    def views(self, tx: Tx, rows: Sequence[t.SubnetRow]) -> list[dict[str, Any]]:
        tags = self.tags(tx, rows)
        networks = self.service.networks.many(tx, (row.network_id for row in rows))
        return [
            {
                **self.standard(row),
                "name": row.name,
                "network_id": row.network_id,
                "ip_version": row.ip_version,
                "cidr": row.cidr,
                "subnetpool_id": row.subnetpool_id,
                "gateway_ip": row.gateway_ip,
                "enable_dhcp": row.enable_dhcp,
                "allocation_pools": [{"start": a, "end": b} for a, b in row.allocation_pools],
                "dns_nameservers": row.dns_nameservers,
                "host_routes": row.host_routes,
                "ipv6_address_mode": row.ipv6_address_mode,
                "ipv6_ra_mode": row.ipv6_ra_mode,
                "service_types": row.service_types,
                "router:external": networks[row.network_id].external,
                "tags": tags.get(row.id, []),
            }
            for row in rows
        ]

    def targets(self, tx: Tx, views: Sequence[dict[str, Any]]) -> Sequence[Mapping[str, Any]]:
        networks = self.service.networks.many(tx, (view["network_id"] for view in views))
        return [{**view, **_parent(networks[view["network_id"]])} for view in views]

    def create_targets(self, tx: Tx, items: Sequence[Given]) -> Sequence[Mapping[str, Any]]:
        self.service.networks.hold(tx, items)
        found = {id: self.service.networks.get(tx, id) for id in {given["network_id"] for given in items}}
        return [ChainMap(given, _parent(found[given["network_id"]])) for given in items]

    # -- create ------------------------------------------------------------------------------------------------

    def create(self, work: "Work", items: list[Given]) -> list[t.SubnetRow]:
        self.service.quotas.reserve(work.tx, "subnet", [g["project_id"] for g in items])
        return [self._new(work, given) for given in items]

    def _new(self, work: "Work", given: Given) -> t.SubnetRow:
        tx = work.tx
        tx.lock("subnet-addresses", given["network_id"])
        pool_id = self.service.subnetpools.pool_for(tx, given)
        if pool_id is not None:
            network = self.service.subnetpools.allocate(work, pool_id, given)
        else:
            if given.has("prefixlen"):
                raise bad("prefixlen needs a subnet pool.", "BadRequest")
            if not given.has("cidr") or given["cidr"] is None:
                raise bad("A subnet needs a cidr or a subnet pool.", "BadRequest")
            network = ipaddress.ip_network(given["cidr"])
        self._check(given, network)
        for other in self.of_networks(tx, [given["network_id"]]):
            if ipam.network_of(other).overlaps(network):
                raise invalid(
                    f"The cidr {network} overlaps with another subnet: {other.id} ({other.cidr}) of the same network."
                )
        gateway = self._gateway(network, given)
        if given.has("allocation_pools"):
            pools = ipam.check_pools(network, given["allocation_pools"], gateway)
        else:
            pools = ipam.default_pools(network, gateway)
        row = t.SubnetRow(
            id=new_uuid(),
            cidr=str(network),
            gateway_ip=gateway,
            allocation_pools=pools,
            dns_nameservers=given["dns_nameservers"] if given.has("dns_nameservers") else [],
            host_routes=given["host_routes"] if given.has("host_routes") else [],
            ipv6_address_mode=given["ipv6_address_mode"] if given.has("ipv6_address_mode") else None,
            ipv6_ra_mode=given["ipv6_ra_mode"] if given.has("ipv6_ra_mode") else None,
            subnetpool_id=pool_id,
            service_types=given["service_types"] if given.has("service_types") else [],
            **plain(given, "project_id", "name", "description", "network_id", "ip_version", "enable_dhcp"),
            **self.stamps(tx),
        )
        tx.insert(t.SUBNETS, row.values())
        self.service.ports.subnet_added(work, row)
        work.ranges.add(row.network_id)
        return row

    def _check(self, given: Given, network: ipam.Network) -> None:
        version = given["ip_version"]
        if network.version != version:
            raise invalid(f"The cidr {network} is not of ip_version {version}.")
        if network.is_multicast or network.is_loopback:
            raise invalid(f"The cidr {network} is a multicast or loopback range.")
        if network.prefixlen == 0:
            raise invalid("A subnet cannot be the whole address space.")
        if given["enable_dhcp"] and network.version == 4 and network.prefixlen > 30:
            raise invalid(f"The cidr {network} is too small for DHCP.")
        modes = [given[n] for n in ("ipv6_address_mode", "ipv6_ra_mode") if given.has(n) and given[n] is not None]
        if modes:
            if version == 4:
                raise invalid("ipv6_address_mode and ipv6_ra_mode are for IPv6 subnets.")
            if not given["enable_dhcp"]:
                raise invalid("ipv6_address_mode and ipv6_ra_mode need enable_dhcp.")
            if len(set(modes)) > 1:
                raise invalid("ipv6_ra_mode and ipv6_address_mode differ.")
            if modes[0] in ("slaac", "dhcpv6-stateless") and network.prefixlen != 64:
                raise invalid(f"The cidr {network} must be a /64 for {modes[0]}.")
        self._check_lists(given, version)

    def _check_lists(self, given: Given, version: int) -> None:
        if given.has("dns_nameservers") and len(given["dns_nameservers"]) > _MAX_NAMESERVERS:
            raise bad(f"A subnet may have {_MAX_NAMESERVERS} DNS servers.", "DNSNameServersExhausted")
        if given.has("host_routes"):
            if len(given["host_routes"]) > _MAX_ROUTES:
                raise bad(f"A subnet may have {_MAX_ROUTES} host routes.", "HostRoutesExhausted")
            for route in given["host_routes"]:
                versions = {
                    ipaddress.ip_network(route["destination"]).version,
                    ipaddress.ip_address(route["nexthop"]).version,
                }
                if versions != {version}:
                    raise invalid(f"The host route {route} is not of ip_version {version}.")

    def _gateway(self, network: ipam.Network, given: Given) -> str | None:
        if not given.has("gateway_ip"):
            if network.num_addresses < 4 and network.version == 4:
                return str(network.network_address) if network.prefixlen == 31 else None
            return str(network.network_address + 1)
        gateway: str | None = given["gateway_ip"]
        if gateway is not None:
            self._check_gateway(network, gateway)
        return gateway

    def _check_gateway(self, network: ipam.Network, gateway: str) -> None:
        address = ipaddress.ip_address(gateway)
        if address.version != network.version:
            raise invalid(f"The gateway_ip {gateway} is not of ip_version {network.version}.")
        edges = {network.network_address, network.broadcast_address} if network.num_addresses > 2 else set()
        if network.version == 6:
            edges = set()
            if address.is_link_local:
                return
        if address not in network or address in edges:
            raise bad(f"Gateway is not valid on subnet: {gateway} is not in {network}.", "InvalidInput")

    # -- update and delete -----------------------------------------------------------------------------------

    def update(self, work: "Work", row: t.SubnetRow, given: Given) -> t.SubnetRow:
        tx = work.tx
        network = ipam.network_of(row)
        tx.lock("subnet-addresses", row.network_id)
        self._check_lists(given, row.ip_version)
        if "gateway_ip" in given and given["gateway_ip"] != row.gateway_ip:
            if row.gateway_ip is not None:
                used = tx.scalar(_GATEWAY_PORT, {"subnet_id": row.id, "ip_address": row.gateway_ip})
                if used is not None:
                    raise conflict(
                        "GatewayIpInUse", f"Current gateway ip {row.gateway_ip} is in use by port {used}, no change."
                    )
            if given["gateway_ip"] is not None:
                self._check_gateway(network, given["gateway_ip"])
                pools = given["allocation_pools"] if given.has("allocation_pools") else row.allocation_pools
                ipam.check_gateway_outside(pools, given["gateway_ip"])
            row.gateway_ip = given["gateway_ip"]
        if "allocation_pools" in given:
            row.allocation_pools = ipam.check_pools(network, given["allocation_pools"], row.gateway_ip)
            tx.after_commit(lambda: self.service.frontiers.forget(row.id))
        if given.get("enable_dhcp") is False and (row.ipv6_address_mode or row.ipv6_ra_mode):
            raise invalid("ipv6_address_mode and ipv6_ra_mode need enable_dhcp.")
        if given.get("enable_dhcp") and network.version == 4 and network.prefixlen > 30:
            raise invalid(f"The cidr {network} is too small for DHCP.")
        apply(row, given, "name", "description", "enable_dhcp", "dns_nameservers", "host_routes", "service_types")
        self.save(tx, row)
        if "enable_dhcp" in given:
            self.service.ports.sync_dhcp_ports(work, row.network_id)
        work.ranges.add(row.network_id)
        return row

    def delete(self, work: "Work", row: t.SubnetRow) -> None:
        tx = work.tx
        tx.lock("subnet-addresses", row.network_id)
        users = tx.rows(_USERS, {"subnet_id": row.id})
        in_the_way = [u for u in users if not self._releases(row, u.device_owner)]
        if in_the_way:
            what = ", ".join(f"{u.id} ({u.device_owner or 'no owner'})" for u in in_the_way[:20])
            raise conflict(
                "SubnetInUse",
                f"Unable to complete operation on subnet {row.id}: ports have addresses of it: {what}.",
                ports=[u.id for u in in_the_way],
            )
        tx.run(_DROP_ADDRESSES, {"subnet_id": row.id})
        self.remove(tx, [row.id])
        self.service.ports.subnet_gone(work, row, [u.id for u in users])
        work.ranges.add(row.network_id)

    def _releases(self, row: t.SubnetRow, owner: str) -> bool:
        if owner in _AUTO_DELETED:
            return True
        return ipam.is_auto_address(row) and not owner.startswith("network:router_")

    def remove_all(self, work: "Work", network_id: str) -> None:
        """The subnets of a network that is going; it has no ports any more."""
        rows = self.of_networks(work.tx, [network_id])
        self.remove(work.tx, [row.id for row in rows])


def _parent(network: t.NetworkRow) -> dict[str, Any]:
    return {
        "network:project_id": network.project_id,
        "network:tenant_id": network.project_id,
        "shared": network.shared,
        "router:external": network.external,
    }
