"""Routers: gateway, interfaces, extra routes, and the host that runs them."""

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, select

from cumulet.db import Tx, to_change
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import ipam
from cumulet.services.network import tables as t
from cumulet.services.network.attributes import UNSET
from cumulet.services.network.faults import bad, conflict, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun, apply, grouped, plain, rows_in
from cumulet.services.network.resources import ROUTER

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

INTERFACE, GATEWAY = "network:router_interface", "network:router_gateway"
_LEGS = (
    select(t.PORTS)
    .where(t.PORTS.c.device_id == bindparam("router_id"), t.PORTS.c.device_owner.in_([INTERFACE, GATEWAY]))
    .order_by(t.PORTS.c.created_at, t.PORTS.c.id)
)
_LEGS_TO_CHANGE = to_change(_LEGS)
_HOSTS_OF = select(t.ROUTER_HOSTS.c.router_id, t.ROUTER_HOSTS.c.host).where(
    t.ROUTER_HOSTS.c.router_id.in_(bindparam("ids", expanding=True))
)
_DROP_HOST = delete(t.ROUTER_HOSTS).where(t.ROUTER_HOSTS.c.router_id == bindparam("_router"))
_FLOATING_ON_ROUTER = select(t.FLOATING_IPS.c.id).where(
    t.FLOATING_IPS.c.router_id == bindparam("router_id"), t.FLOATING_IPS.c.port_id.isnot(None)
)
# floating IPs of ports in one subnet that go through one router
_FLOATING_IN_SUBNET = (
    select(t.FLOATING_IPS.c.id)
    .join(
        t.ADDRESSES,
        (t.ADDRESSES.c.port_id == t.FLOATING_IPS.c.port_id)
        & (t.ADDRESSES.c.ip_address == t.FLOATING_IPS.c.fixed_ip_address),
    )
    .where(
        t.FLOATING_IPS.c.router_id == bindparam("router_id"),
        t.ADDRESSES.c.subnet_id.in_(bindparam("ids", expanding=True)),
    )
)


class Routers(Noun[t.RouterRow]):
    resource = ROUTER
    row = t.RouterRow
    found_to_change = True

    def views(self, tx: Tx, rows: Sequence[t.RouterRow]) -> list[dict[str, Any]]:
        tags = self.tags(tx, rows)
        hosts = grouped(rows_in(tx, _HOSTS_OF, (row.id for row in rows)))
        outside = self.service.ports.addresses_of(tx, [row.gateway_port_id for row in rows if row.gateway_port_id])
        return [
            {
                **self.standard(row),
                "name": row.name,
                "admin_state_up": row.admin_state_up,
                "status": row.status,
                "external_gateway_info": self._gateway_view(row, outside),
                "routes": row.routes,
                "availability_zone_hints": row.availability_zone_hints,
                "availability_zones": sorted({self.service.zone_of(h[1]) for h in hosts.get(row.id, ())}),
                "tags": tags.get(row.id, []),
            }
            for row in rows
        ]

    def _gateway_view(self, row: t.RouterRow, outside: dict[str, list[t.AddressRow]]) -> dict[str, Any] | None:
        if row.gateway_port_id is None:
            return None
        return {
            "network_id": row.gateway_network_id,
            "external_fixed_ips": [
                {"subnet_id": a.subnet_id, "ip_address": a.ip_address} for a in outside.get(row.gateway_port_id, [])
            ],
            "enable_snat": row.enable_snat,
        }

    def legs(self, tx: Tx, router_id: str) -> list[t.PortRow]:
        return [t.PortRow(*row) for row in tx.rows(_LEGS_TO_CHANGE if tx.writing else _LEGS, {"router_id": router_id})]

    # -- create, update, delete ------------------------------------------------------------------------------------

    def create(self, work: "Work", items: list[Given]) -> list[t.RouterRow]:
        tx = work.tx
        self.service.quotas.reserve(tx, "router", [g["project_id"] for g in items])
        rows = []
        for given in items:
            self.service.agents.check_zones(tx, given["availability_zone_hints"])
            row = t.RouterRow(
                id=new_uuid(),
                status="ACTIVE",
                gateway_port_id=None,
                gateway_network_id=None,
                enable_snat=True,
                routes=[],
                **plain(given, "project_id", "name", "description", "admin_state_up", "availability_zone_hints"),
                **self.stamps(tx),
            )
            tx.insert(t.ROUTERS, row.values())
            info = given["external_gateway_info"]
            if info is not None:
                self._set_gateway(work, row, info)
                self.save(tx, row, bump=False)
            rows.append(row)
        return rows

    def update(self, work: "Work", row: t.RouterRow, given: Given) -> t.RouterRow:
        tx = work.tx
        if "external_gateway_info" in given:
            info = given["external_gateway_info"]
            if info is None:
                self._clear_gateway(work, row)
            else:
                self._set_gateway(work, row, info)
        if given.has("routes"):
            self.set_routes(tx, row, given["routes"])
        elif "external_gateway_info" in given and row.routes:
            self._check_routes(tx, row, row.routes)
        apply(row, given, "name", "description", "admin_state_up")
        self.save(tx, row)
        work.routers.add(row.id)
        return row

    def delete(self, work: "Work", row: t.RouterRow) -> None:
        tx = work.tx
        legs = self.legs(tx, row.id)
        inside = [leg for leg in legs if leg.device_owner == INTERFACE]
        if inside:
            ports = ", ".join(leg.id for leg in inside)
            raise conflict("RouterInUse", f"Router {row.id} still has interfaces: {ports}.", ports=ports)
        self._clear_gateway(work, row)
        host = self.service.agents.router_host(tx, row.id)
        if host is not None:
            work.gone.add((host, "router", row.id))
            tx.run(_DROP_HOST, {"_router": row.id})
        work.routers.discard(row.id)
        self.remove(tx, [row.id])

    # -- gateway -----------------------------------------------------------------------------------------------------

    def _set_gateway(self, work: "Work", row: t.RouterRow, info: dict[str, Any]) -> None:
        tx = work.tx
        tx.lock("subnet-addresses", info["network_id"])
        network = self.service.networks.find(tx, info["network_id"])
        if network is None or not (work.sees_all or network.external or network.project_id == work.ctx.project_id):
            raise missing("NetworkNotFound", "Network", info["network_id"])
        if not network.external:
            raise bad(f"Network {network.id} is not an external network", "BadRequest")
        row.enable_snat = info.get("enable_snat", row.enable_snat if row.gateway_port_id else True)
        wanted = info.get("external_fixed_ips")
        if row.gateway_port_id is not None and row.gateway_network_id == network.id:
            if wanted is not None:
                self._move_gateway(work, row, wanted)
            return
        if row.gateway_port_id is not None:
            self._clear_gateway(work, row)
        self._check_overlap_with_legs(tx, row, self.service.subnets.of_networks(tx, [network.id]))
        host = self.service.agents.schedule_router(work, row.id) or ""
        port = self.service.ports.add_infrastructure(
            work, network, GATEWAY, row.id, "", wanted if wanted is not None else UNSET, host
        )
        row.gateway_port_id, row.gateway_network_id = port.id, network.id
        work.routers.add(row.id)

    def _move_gateway(self, work: "Work", row: t.RouterRow, wanted: list[dict[str, str]]) -> None:
        assert row.gateway_port_id is not None
        port = self.service.ports.get(work.tx, row.gateway_port_id)
        given = Given(fixed_ips=wanted)
        given.explicit = frozenset(["fixed_ips"])
        self.service.ports.update(work, port, given)

    def _clear_gateway(self, work: "Work", row: t.RouterRow) -> None:
        if row.gateway_port_id is None:
            return
        used = work.tx.first(_FLOATING_ON_ROUTER, {"router_id": row.id})
        if used is not None:
            raise conflict(
                "RouterExternalGatewayInUseByFloatingIp",
                f"The gateway of router {row.id} is used by floating IPs, {used[0]} for one.",
            )
        port = self.service.ports.get(work.tx, row.gateway_port_id)
        row.gateway_port_id = row.gateway_network_id = None
        row.enable_snat = True
        self.save(work.tx, row, bump=False)  # the port may go only when nothing refers to it
        self.service.ports.delete_rows(work, [port])
        work.routers.add(row.id)

    # -- interfaces --------------------------------------------------------------------------------------------------

    def add_interface(self, work: "Work", row: t.RouterRow, body: Any) -> dict[str, Any]:
        port_id, subnet_id = interface_of(body)
        if port_id is not None and subnet_id is not None:
            raise bad("subnet_id and port_id cannot both be given.", "BadRequest")
        if port_id is not None:
            port = self._adopt(work, row, port_id)
        else:
            assert subnet_id is not None
            port = self._new_leg(work, row, subnet_id)
        host = self.service.agents.schedule_router(work, row.id)
        if host is not None and port.host != host:
            self.service.ports.set_host(work, port, host)
            self.service.ports.save(work.tx, port, bump=False)
        work.port_changed(port)
        work.routers.add(row.id)
        self.save(work.tx, row)
        return self._interface_view(work.tx, row, port)

    def _interface_view(self, tx: Tx, row: t.RouterRow, port: t.PortRow, subnets: Any = None) -> dict[str, Any]:
        found = [a.subnet_id for a in self.service.ports.addresses_of(tx, [port.id]).get(port.id, [])]
        ids = found or list(subnets or [])
        return {
            "id": row.id,
            "tenant_id": row.project_id,
            "project_id": row.project_id,
            "port_id": port.id,
            "network_id": port.network_id,
            "subnet_id": ids[0] if ids else None,
            "subnet_ids": ids,
            "tags": [],
        }

    def _adopt(self, work: "Work", row: t.RouterRow, port_id: str) -> t.PortRow:
        tx = work.tx
        port = self.service.ports.find(tx, port_id)
        if port is None or not (work.sees_all or port.project_id == work.ctx.project_id):
            raise missing("PortNotFound", "Port", port_id)
        if port.device_id and not (port.device_id == row.id and port.device_owner == INTERFACE):
            raise conflict("PortInUse", f"Port {port_id} is in use by device {port.device_id}.")
        if port.device_id == row.id:
            return port
        addresses = self.service.ports.addresses_of(tx, [port_id]).get(port_id, [])
        if not addresses:
            raise bad("A port needs an address to become a router interface.", "BadRequest")
        subnets = self.service.subnets.many(tx, (a.subnet_id for a in addresses))
        self._check_overlap_with_legs(tx, row, list(subnets.values()))
        port.device_id, port.device_owner, port.name = row.id, INTERFACE, port.name
        self.service.ports.set_groups(tx, port_id, [])
        self.service.ports.save(tx, port)
        return port

    def _new_leg(self, work: "Work", row: t.RouterRow, subnet_id: str) -> t.PortRow:
        tx = work.tx
        subnet = self.service.subnets.find(tx, subnet_id, change=True)  # it keeps its gateway address
        network = self.service.networks.get(tx, subnet.network_id) if subnet else None
        if (
            subnet is None
            or network is None
            or not (work.sees_all or network.shared or work.ctx.project_id in (subnet.project_id, network.project_id))
        ):
            raise missing("SubnetNotFound", "Subnet", subnet_id)
        if subnet.gateway_ip is None:
            raise bad("The subnet of a router interface needs a gateway_ip.", "BadRequest")
        if network.external and not work.sees_all and network.project_id != work.ctx.project_id:
            raise bad("External network subnets cannot be router interfaces of this project.", "BadRequest")
        self._check_overlap_with_legs(tx, row, [subnet])
        tx.lock("subnet-addresses", network.id)
        wanted = [{"subnet_id": subnet.id, "ip_address": subnet.gateway_ip}]
        return self.service.ports.add_infrastructure(work, network, INTERFACE, row.id, row.project_id, wanted, "")

    def _check_overlap_with_legs(self, tx: Tx, row: t.RouterRow, new: Sequence[t.SubnetRow]) -> None:
        legs = self.legs(tx, row.id)
        addresses = self.service.ports.addresses_of(tx, (leg.id for leg in legs))
        subnets = self.service.subnets.many(tx, {a.subnet_id for found in addresses.values() for a in found})
        for other in subnets.values():
            for subnet in new:
                if other.id == subnet.id:
                    raise bad(f"Router already has a port on subnet {subnet.id}", "BadRequest")
                if ipam.network_of(other).overlaps(ipam.network_of(subnet)):
                    raise bad(
                        f"Subnet {subnet.id} ({subnet.cidr}) overlaps with {other.id} ({other.cidr}) of the router",
                        "BadRequest",
                    )

    def remove_interface(self, work: "Work", row: t.RouterRow, body: Any) -> dict[str, Any]:
        tx = work.tx
        port_id, subnet_id = interface_of(body)
        legs = [leg for leg in self.legs(tx, row.id) if leg.device_owner == INTERFACE]
        addresses = self.service.ports.addresses_of(tx, (leg.id for leg in legs))
        if port_id is not None:
            port = next((leg for leg in legs if leg.id == port_id), None)
            if port is None:
                raise missing("RouterInterfaceNotFound", f"Interface of router {row.id}", port_id)
            on = [a.subnet_id for a in addresses.get(port.id, [])]
            if subnet_id is not None and subnet_id not in on:
                raise conflict("SubnetMismatchForPort", f"Subnet {subnet_id} is not on port {port_id}.")
        else:
            if self.service.subnets.find(tx, subnet_id or "") is None:
                raise missing("SubnetNotFound", "Subnet", subnet_id or "")
            port = next((leg for leg in legs if any(a.subnet_id == subnet_id for a in addresses.get(leg.id, []))), None)
            if port is None:
                raise missing("RouterInterfaceNotFoundForSubnet", f"Interface of router {row.id}", subnet_id or "")
        ids = [a.subnet_id for a in addresses.get(port.id, [])]
        used = rows_in_with(tx, _FLOATING_IN_SUBNET, ids, router_id=row.id)
        if used:
            raise conflict(
                "RouterInterfaceInUseByFloatingIP",
                f"Router {row.id} needs the interface on subnet {ids[0]} for floating IPs, {used[0][0]} for one.",
            )
        self._refuse_route_users(tx, row, ids)
        view = self._interface_view(tx, row, port)
        if subnet_id is not None:
            view["subnet_id"] = subnet_id
        self.service.ports.delete_rows(work, [port])
        self.save(tx, row)
        work.routers.add(row.id)
        return view

    def _refuse_route_users(self, tx: Tx, row: t.RouterRow, subnet_ids: list[str]) -> None:
        for subnet in self.service.subnets.many(tx, subnet_ids).values():
            network = ipam.network_of(subnet)
            for route in row.routes:
                if ipaddress.ip_address(route["nexthop"]) in network:
                    raise conflict(
                        "RouterInterfaceInUseByRoute",
                        f"Router {row.id} needs the interface on subnet {subnet.id} for a route.",
                    )

    def move_ports(self, work: "Work", router_id: str, host: str) -> None:
        """The router goes to another host, with its legs."""
        for leg in self.legs(work.tx, router_id):
            self.service.ports.set_host(work, leg, host)
            self.service.ports.settle_row(work.tx, leg)
            work.port_changed(leg)

    # -- routes ------------------------------------------------------------------------------------------------------

    def set_routes(self, tx: Tx, row: t.RouterRow, routes: list[dict[str, str]]) -> None:
        limit = self.service.quotas.defaults()["router_route"]
        if len(routes) > limit:
            raise bad(f"Router {row.id} may have {limit} routes.", "RoutesExhausted")
        self._check_routes(tx, row, routes)
        row.routes = routes

    def _check_routes(self, tx: Tx, row: t.RouterRow, routes: list[dict[str, str]]) -> None:
        legs = self.legs(tx, row.id)
        addresses = [a for found in self.service.ports.addresses_of(tx, (p.id for p in legs)).values() for a in found]
        ranges = [ipam.network_of(s) for s in self.service.subnets.many(tx, {a.subnet_id for a in addresses}).values()]
        own = {a.ip_address for a in addresses}
        for route in routes:
            hop = ipaddress.ip_address(route["nexthop"])
            if not any(hop.version == n.version and hop in n for n in ranges):
                raise bad(
                    f"Invalid format for routes: the nexthop {hop} is not connected with router {row.id}.",
                    "InvalidRoutes",
                )
            if str(hop) in own:
                raise bad(f"Invalid format for routes: the nexthop {hop} is the router's own.", "InvalidRoutes")

    def change_routes(self, work: "Work", row: t.RouterRow, body: Any, *, add: bool) -> t.RouterRow:
        from cumulet.services.network.attributes import host_routes

        inner = body.get("router") if isinstance(body, dict) else None
        if not isinstance(inner, dict) or set(inner) != {"routes"}:
            raise bad("The body must hold the routes of a router.")
        changes = host_routes("routes", inner["routes"])
        kept = [route for route in row.routes if route not in changes]
        self.set_routes(work.tx, row, kept + changes if add else kept)
        self.save(work.tx, row)
        work.routers.add(row.id)
        return row


def rows_in_with(tx: Tx, statement: Any, ids: list[str], **values: Any) -> Sequence[Any]:
    return tx.rows(statement, {"ids": ids, **values}) if ids else []


def interface_of(body: Any) -> tuple[str | None, str | None]:
    """(port id, subnet id) of the body of add/remove_router_interface."""
    if not isinstance(body, dict) or not (body.get("port_id") or body.get("subnet_id")):
        raise bad("subnet_id or port_id is needed.", "BadRequest")
    from cumulet.services.network.attributes import uuid_or_none

    return uuid_or_none("port_id", body.get("port_id")), uuid_or_none("subnet_id", body.get("subnet_id"))
