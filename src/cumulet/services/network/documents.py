"""Builders of the documents hosts pull: ports, members of groups, networks (DHCP and metadata) and routers.

Everything is read in a fixed number of statements, however many ports are asked for.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from cumulet.agent.contract import (
    DhcpHost,
    FirewallRule,
    FixedIp,
    FloatingIpDoc,
    GroupDoc,
    NetworkDoc,
    PortDoc,
    Route,
    RouterDoc,
    RouterPort,
    Segment,
    SubnetDoc,
)
from cumulet.db import Tx
from cumulet.services.network import dhcp
from cumulet.services.network import tables as t
from cumulet.services.network.noun import grouped, rows_in
from cumulet.services.network.portrules import host_name
from cumulet.services.network.segments import TUNNELS

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_RULES = select(t.SECURITY_GROUP_RULES).where(
    t.SECURITY_GROUP_RULES.c.security_group_id.in_(bindparam("ids", expanding=True))
)
_MEMBERS = (
    select(t.ADDRESSES.c.ip_address)
    .join(t.PORT_GROUPS, t.ADDRESSES.c.port_id == t.PORT_GROUPS.c.port_id)
    .where(t.PORT_GROUPS.c.security_group_id == bindparam("group_id"))
)
_MEMBER_PAIRS = (
    select(t.PORTS.c.allowed_address_pairs)
    .join(t.PORT_GROUPS, t.PORTS.c.id == t.PORT_GROUPS.c.port_id)
    .where(t.PORT_GROUPS.c.security_group_id == bindparam("group_id"), t.PORTS.c.allowed_address_pairs != [])
)
_HOSTS_OF = (
    select(t.PORTS.c.network_id, t.PORTS.c.host, t.PORTS.c.moving)
    .where(t.PORTS.c.network_id.in_(bindparam("ids", expanding=True)), t.PORTS.c.host != "")
    .distinct()
)
_SERVERS_OF_DHCP = (
    select(t.ADDRESSES.c.network_id, t.ADDRESSES.c.ip_address)
    .join(t.PORTS, t.PORTS.c.id == t.ADDRESSES.c.port_id)
    .where(t.PORTS.c.network_id.in_(bindparam("ids", expanding=True)), t.PORTS.c.device_owner == dhcp.OWNER)
    .order_by(t.ADDRESSES.c.ip_address)
)
_CLIENTS = (
    select(
        t.PORTS.c.id,
        t.PORTS.c.mac_address,
        t.PORTS.c.dns_name,
        t.PORTS.c.extra_dhcp_opts,
        t.ADDRESSES.c.subnet_id,
        t.ADDRESSES.c.ip_address,
    )
    .join(t.ADDRESSES, t.ADDRESSES.c.port_id == t.PORTS.c.id)
    .where(
        t.PORTS.c.network_id == bindparam("network_id"),
        t.PORTS.c.device_owner != dhcp.OWNER,
        t.PORTS.c.host != "",  # nobody asks for the address of a port that is nowhere
    )
    .order_by(t.PORTS.c.created_at, t.PORTS.c.id)
)
_METADATA = (
    select(t.ADDRESSES.c.network_id, t.ADDRESSES.c.ip_address, t.PORTS.c.device_id)
    .join(t.PORTS, t.PORTS.c.id == t.ADDRESSES.c.port_id)
    .where(
        t.ADDRESSES.c.network_id.in_(bindparam("ids", expanding=True)),
        t.PORTS.c.device_owner.startswith("compute:"),
        t.PORTS.c.device_id != "",
    )
)
_LEGS = (
    select(t.PORTS)
    .where(t.PORTS.c.device_id == bindparam("router_id"), t.PORTS.c.device_owner.startswith("network:router_"))
    .order_by(t.PORTS.c.created_at, t.PORTS.c.id)
)
_FLOATING = (
    select(t.FLOATING_IPS.c.id, t.FLOATING_IPS.c.floating_ip_address, t.FLOATING_IPS.c.fixed_ip_address)
    .where(t.FLOATING_IPS.c.router_id == bindparam("router_id"), t.FLOATING_IPS.c.port_id.isnot(None))
    .order_by(t.FLOATING_IPS.c.id)
)


class Documents:
    def __init__(self, service: "NetworkService") -> None:
        self.service = service

    def register(self, desired: Any) -> None:
        desired.register("port", self.port)
        desired.register("group", self.group)
        desired.register("network", self.network)
        desired.register("router", self.router)

    # -- ports -----------------------------------------------------------------------------------------------------

    def port(self, tx: Tx, host: str, object_id: str, generation: int) -> PortDoc | None:
        found = self.ports(tx, host, [object_id], generation=generation)
        return found[0] if found else None

    def ports(self, tx: Tx, host: str, port_ids: Sequence[str], *, generation: int | None = None) -> list[PortDoc]:
        """Of those that are bound to this host, or moving to or from it, in the order asked for."""
        rows = self.service.ports.many(tx, port_ids)
        here = [rows[id] for id in port_ids if id in rows and host in (rows[id].host, rows[id].moving)]
        return self._docs(tx, host, here, generation)

    def _docs(
        self,
        tx: Tx,
        host: str,
        rows: Sequence[t.PortRow],
        generation: int | None,
        segments: dict[str, Segment] | None = None,
    ) -> list[PortDoc]:
        """``segments`` of their networks, when they are at hand."""
        if not rows:
            return []
        ids = [row.id for row in rows]
        addresses = self.service.ports.addresses_of(tx, ids)
        groups = self.service.ports.groups_of(tx, ids)
        if segments is None:
            segments = self.segments(tx, host, {row.network_id for row in rows})
        servers = grouped(rows_in(tx, _SERVERS_OF_DHCP, {row.network_id for row in rows}))
        rules = self._rules(tx, {group for found in groups.values() for group in found})
        docs = []
        for row in rows:
            mine = [rule for group in groups.get(row.id, ()) for rule in rules.get(group, ())]
            docs.append(
                PortDoc(
                    id=row.id,
                    generation=self._generation(tx, host, row.id) if generation is None else generation,
                    network_id=row.network_id,
                    segment=segments[row.network_id],
                    mac_address=row.mac_address,
                    fixed_ips=[
                        FixedIp(subnet_id=a.subnet_id, ip_address=a.ip_address) for a in addresses.get(row.id, ())
                    ],
                    device_id=row.device_id,
                    device_owner=row.device_owner,
                    admin_state_up=row.admin_state_up,
                    port_security_enabled=row.port_security_enabled,
                    allowed_address_pairs=row.allowed_address_pairs,
                    rules=mine,
                    dhcp_servers=[server[1] for server in servers.get(row.network_id, ())],
                )
            )
        return docs

    def _generation(self, tx: Tx, host: str, port_id: str) -> int:
        known = self.service.desired.applied(tx, host, "port", port_id)
        return known[0] if known else tx.now

    def _rules(self, tx: Tx, group_ids: Iterable[str]) -> dict[str, list[FirewallRule]]:
        rules: dict[str, list[FirewallRule]] = {}
        for found in rows_in(tx, _RULES, group_ids):
            row = t.SecurityGroupRuleRow(*found)
            rules.setdefault(row.security_group_id, []).append(
                FirewallRule(
                    direction=row.direction,  # type: ignore[arg-type]
                    ethertype=row.ethertype,  # type: ignore[arg-type]
                    protocol=row.protocol,
                    port_range_min=row.port_range_min,
                    port_range_max=row.port_range_max,
                    remote_ip_prefix=row.remote_ip_prefix,
                    remote_group_id=row.remote_group_id,
                )
            )
        return rules

    def group(self, tx: Tx, host: str, object_id: str, generation: int) -> GroupDoc | None:
        if self.service.groups.find(tx, object_id) is None:
            return None
        members = {row[0] for row in tx.rows(_MEMBERS, {"group_id": object_id})}
        for (pairs,) in tx.rows(_MEMBER_PAIRS, {"group_id": object_id}):
            members.update(pair["ip_address"] for pair in pairs)
        return GroupDoc(id=object_id, generation=generation, members=sorted(members))

    def segments(self, tx: Tx, host: str, network_ids: Iterable[str]) -> dict[str, Segment]:
        networks = self.service.networks.many(tx, network_ids)
        tunnelled = [id for id, network in networks.items() if network.network_type in TUNNELS]
        where = grouped(rows_in(tx, _HOSTS_OF, tunnelled))
        ips = {h.name: h.tunnel_ip or h.ip for h in self.service.hosts.snapshot(tx)} if tunnelled else {}
        return {
            id: Segment(
                network_type=network.network_type,  # type: ignore[arg-type]
                physical_network=network.physical_network or None,
                segmentation_id=network.segmentation_id,
                mtu=network.mtu,
                peers=sorted(
                    {ips[name] for row in where.get(id, ()) for name in row[1:] if name != host and ips.get(name)}
                ),
            )
            for id, network in networks.items()
        }

    # -- networks ----------------------------------------------------------------------------------------------------

    def network(self, tx: Tx, host: str, object_id: str, generation: int) -> NetworkDoc | None:
        network = self.service.networks.find(tx, object_id)
        if network is None or host not in self.service.ports.dhcp_hosts(tx, object_id):
            return None
        subnets = self.service.subnets.of_networks(tx, [object_id])
        port = next((p for p in self.service.ports.dhcp_ports(tx, object_id) if p.host == host), None)
        segments = self.segments(tx, host, [object_id])
        docs = []
        if port is not None and network.admin_state_up:
            docs = self._docs(tx, host, [port], generation, segments)
        mine = {ip.subnet_id: ip.ip_address for doc in docs for ip in doc.fixed_ips}
        return NetworkDoc(
            id=network.id,
            generation=generation,
            segment=segments[object_id],
            subnets=[self._subnet(subnet, mine.get(subnet.id)) for subnet in subnets],
            dhcp_port=docs[0] if docs else None,
            hosts=self._dhcp_hosts(tx, object_id, {s.id for s in subnets if s.enable_dhcp}),
            dns_domain=(network.dns_domain or self.service.dns_domain).rstrip("."),
            metadata={row[1]: row[2] for row in rows_in(tx, _METADATA, [object_id])},
        )

    def _dhcp_hosts(self, tx: Tx, network_id: str, served: set[str]) -> list[DhcpHost]:
        found: dict[str, DhcpHost] = {}
        for port_id, mac, name, options, subnet_id, address in tx.rows(_CLIENTS, {"network_id": network_id}):
            if subnet_id not in served:
                continue
            fixed = FixedIp(subnet_id=subnet_id, ip_address=address)
            if port_id in found:
                found[port_id].fixed_ips.append(fixed)
                continue
            found[port_id] = DhcpHost(
                port_id=port_id,
                mac_address=mac,
                hostname=host_name(name, address),
                fixed_ips=[fixed],
                extra_dhcp_opts=[{k: str(v) for k, v in o.items()} for o in options],
            )
        return list(found.values())

    def _subnet(self, subnet: t.SubnetRow, dhcp_ip: str | None) -> SubnetDoc:
        return SubnetDoc(
            id=subnet.id,
            cidr=subnet.cidr,
            ip_version=subnet.ip_version,
            gateway_ip=subnet.gateway_ip,
            enable_dhcp=subnet.enable_dhcp,
            dns_nameservers=subnet.dns_nameservers or list(self.service.settings.dns_servers),
            host_routes=[Route(**route) for route in subnet.host_routes],
            ipv6_address_mode=subnet.ipv6_address_mode,
            ipv6_ra_mode=subnet.ipv6_ra_mode,
            dhcp_ip=dhcp_ip,
        )

    # -- routers -----------------------------------------------------------------------------------------------------

    def router(self, tx: Tx, host: str, object_id: str, generation: int) -> RouterDoc | None:
        router = self.service.routers.find(tx, object_id)
        if router is None or self.service.agents.router_host(tx, object_id) != host:
            return None
        rows = [t.PortRow(*row) for row in tx.rows(_LEGS, {"router_id": object_id})]
        docs = self._docs(tx, host, [row for row in rows if row.host == host], generation)
        subnets = {s.id: s for s in self.service.subnets.of_networks(tx, sorted({d.network_id for d in docs}))}
        legs = [
            RouterPort(
                port=doc,
                subnets=[self._subnet(subnets[ip.subnet_id], None) for ip in doc.fixed_ips if ip.subnet_id in subnets],
            )
            for doc in docs
        ]
        inside = [leg for leg in legs if leg.port.device_owner == "network:router_interface"]
        outside = [leg for leg in legs if leg.port.device_owner == "network:router_gateway"]
        networks = sorted({leg.port.network_id for leg in inside})
        return RouterDoc(
            id=router.id,
            generation=generation,
            admin_state_up=router.admin_state_up,
            gateway=outside[0] if outside else None,
            enable_snat=router.enable_snat,
            interfaces=inside,
            routes=[Route(**route) for route in router.routes],
            floating_ips=[
                FloatingIpDoc(id=row[0], floating_ip_address=row[1], fixed_ip_address=row[2])
                for row in tx.rows(_FLOATING, {"router_id": object_id})
            ],
            metadata={f"{row[0]}/{row[1]}": row[2] for row in rows_in(tx, _METADATA, networks)},
        )
