"""Floating IPs: an address outside, given to a fixed address inside, carried by the router between them."""

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from cumulet.db import Tx, to_change
from cumulet.kernel.ids import new_uuid
from cumulet.services.network import tables as t
from cumulet.services.network.attributes import UNSET
from cumulet.services.network.faults import bad, conflict, missing
from cumulet.services.network.intake import Given
from cumulet.services.network.noun import Noun, plain, rows_in
from cumulet.services.network.resources import FLOATING_IP

if TYPE_CHECKING:
    from cumulet.services.network.work import Work

OWNER = "network:floatingip"
_OF_PORTS = select(t.FLOATING_IPS).where(t.FLOATING_IPS.c.port_id.in_(bindparam("ids", expanding=True)))
_OF_PORTS_TO_CHANGE = to_change(_OF_PORTS.order_by(t.FLOATING_IPS.c.id))
_IDLE = to_change(
    select(t.FLOATING_IPS)
    .where(t.FLOATING_IPS.c.floating_network_id == bindparam("network_id"), t.FLOATING_IPS.c.port_id.is_(None))
    .order_by(t.FLOATING_IPS.c.id)
)
_ON_ADDRESS = select(t.FLOATING_IPS.c.id).where(
    t.FLOATING_IPS.c.port_id == bindparam("port_id"), t.FLOATING_IPS.c.fixed_ip_address == bindparam("address")
)
# routers with a leg in the subnet and their gateway on the external network, which keep both while a floating IP comes
_ROUTERS_BETWEEN = (
    select(t.ROUTERS.c.id, t.ADDRESSES.c.ip_address)
    .join(t.PORTS, t.PORTS.c.device_id == t.ROUTERS.c.id)
    .join(t.ADDRESSES, t.ADDRESSES.c.port_id == t.PORTS.c.id)
    .where(
        t.PORTS.c.device_owner == "network:router_interface",
        t.ADDRESSES.c.subnet_id == bindparam("subnet_id"),
        t.ROUTERS.c.gateway_network_id == bindparam("network_id"),
    )
    .order_by(t.ROUTERS.c.created_at, t.ROUTERS.c.id)
    .with_for_update(key_share=True, of=[t.ROUTERS, t.PORTS])
)


class FloatingIps(Noun[t.FloatingIpRow]):
    resource = FLOATING_IP
    row = t.FloatingIpRow
    found_to_change = True

    def views(self, tx: Tx, rows: Sequence[t.FloatingIpRow]) -> list[dict[str, Any]]:
        tags = self.tags(tx, rows)
        ports = self.service.ports.many(tx, (row.port_id for row in rows if row.port_id))
        return [
            {
                **self.standard(row),
                "floating_network_id": row.floating_network_id,
                "floating_ip_address": row.floating_ip_address,
                "port_id": row.port_id,
                "fixed_ip_address": row.fixed_ip_address,
                "router_id": row.router_id,
                "status": row.status,
                "port_details": _details(ports.get(row.port_id or "")),
                "dns_name": row.dns_name,
                "dns_domain": row.dns_domain,
                "tags": tags.get(row.id, []),
            }
            for row in rows
        ]

    # -- create, update, delete ------------------------------------------------------------------------------------

    def create(self, work: "Work", items: list[Given]) -> list[t.FloatingIpRow]:
        self.service.quotas.reserve(work.tx, "floatingip", [g["project_id"] for g in items])
        return [self._new(work, given) for given in items]

    def _new(self, work: "Work", given: Given) -> t.FloatingIpRow:
        tx = work.tx
        tx.lock("subnet-addresses", given["floating_network_id"])
        network = self.service.networks.find(tx, given["floating_network_id"])
        if network is None or not (
            work.sees_all or network.external or network.shared or network.project_id == work.ctx.project_id
        ):
            raise missing("NetworkNotFound", "Network", given["floating_network_id"])
        if not network.external:
            raise bad(f"Network {network.id} is not a valid external network", "BadRequest")
        id = new_uuid()
        port = self.service.ports.add_infrastructure(work, network, OWNER, id, "", self._wanted(tx, given), "")
        addresses = self.service.ports.addresses_of(tx, [port.id]).get(port.id, [])
        outside = next((a.ip_address for a in addresses if ipaddress.ip_address(a.ip_address).version == 4), None)
        if outside is None:
            raise bad(f"External network {network.id} does not contain any IPv4 subnet", "ExternalIpAddressExhausted")
        row = t.FloatingIpRow(
            id=id,
            status="DOWN",
            floating_network_id=network.id,
            floating_ip_address=outside,
            floating_port_id=port.id,
            port_id=None,
            fixed_ip_address=None,
            router_id=None,
            wanted_generation=0,
            **plain(given, "project_id", "description", "dns_name", "dns_domain"),
            **self.stamps(tx),
        )
        if given["port_id"] is not None:
            self._associate(work, row, given["port_id"], given["fixed_ip_address"])
        elif given["fixed_ip_address"] is not None:
            raise bad("fixed_ip_address cannot be specified without a port_id", "BadRequest")
        tx.insert(t.FLOATING_IPS, row.values())
        return row

    def _wanted(self, tx: Tx, given: Given) -> Any:
        subnet_id, address = given["subnet_id"], given["floating_ip_address"]
        if subnet_id is not None:
            subnet = self.service.subnets.find(tx, subnet_id)
            if subnet is None or subnet.network_id != given["floating_network_id"]:
                raise bad(f"Subnet {subnet_id} is not on the external network.", "BadRequest")
        one = {"subnet_id": subnet_id, "ip_address": address}
        wanted = {name: value for name, value in one.items() if value is not None}
        if wanted:
            return [wanted]
        v4 = [s for s in self.service.subnets.of_networks(tx, [given["floating_network_id"]]) if s.ip_version == 4]
        return UNSET if v4 else []

    def update(self, work: "Work", row: t.FloatingIpRow, given: Given) -> t.FloatingIpRow:
        if "description" in given.explicit:
            row.description = given["description"]
        if "port_id" in given.explicit:
            if given["port_id"] is None:
                if given.get("fixed_ip_address") is not None:
                    raise bad("fixed_ip_address cannot be specified without a port_id", "BadRequest")
                self._disassociate(work, row)
            else:
                self._associate(work, row, given["port_id"], given.get("fixed_ip_address"))
        elif "fixed_ip_address" in given.explicit:
            if row.port_id is None:
                raise bad("fixed_ip_address cannot be specified without a port_id", "BadRequest")
            self._associate(work, row, row.port_id, given["fixed_ip_address"])
        elif set(given.explicit) <= {"fixed_ip_address"}:
            self._disassociate(work, row)  # a body without attributes takes it away, as old clients expect
        self.save(work.tx, row)
        return row

    def delete(self, work: "Work", row: t.FloatingIpRow) -> None:
        self._disassociate(work, row)
        self.remove(work.tx, [row.id])
        port = self.service.ports.find(work.tx, row.floating_port_id)
        if port is not None:
            self.service.ports.delete_rows(work, [port])

    def delete_idle(self, work: "Work", network_id: str) -> None:
        """Floating IPs of an external network that goes are no reason to keep it, unless somebody uses them."""
        for found in work.tx.rows(_IDLE, {"network_id": network_id}):
            self.delete(work, t.FloatingIpRow(*found))

    # -- association -----------------------------------------------------------------------------------------------

    def _disassociate(self, work: "Work", row: t.FloatingIpRow) -> None:
        if row.router_id is not None:
            work.routers.add(row.router_id)
        if row.port_id is not None:
            work.inside.add(row.port_id)
        row.port_id = row.fixed_ip_address = row.router_id = None
        row.status = "DOWN"

    def _associate(self, work: "Work", row: t.FloatingIpRow, port_id: str, fixed: str | None) -> None:
        tx = work.tx
        port = self.service.ports.find(tx, port_id)
        if port is None or not (work.sees_all or port.project_id in (work.ctx.project_id, row.project_id)):
            raise missing("PortNotFound", "Port", port_id)
        if port.project_id != row.project_id and not work.sees_all:
            raise bad(f"Port {port_id} belongs to another project than the floating IP.", "BadRequest")
        v4 = [
            a
            for a in self.service.ports.addresses_of(tx, [port_id]).get(port_id, [])
            if ipaddress.ip_address(a.ip_address).version == 4
        ]
        if fixed is not None:
            address = next((a for a in v4 if a.ip_address == fixed), None)
            if address is None:
                raise bad(f"Port {port_id} does not have fixed ip {fixed}", "BadRequest")
        elif not v4:
            raise bad(f"Port {port_id} does not have an IPv4 address to give the floating IP to.", "BadRequest")
        elif len(v4) > 1:
            raise bad(f"Port {port_id} has several fixed IPv4 addresses: name one of them.", "BadRequest")
        else:
            address = v4[0]
        other = tx.scalar(_ON_ADDRESS, {"port_id": port_id, "address": address.ip_address})
        if other is not None and other != row.id:
            raise conflict(
                "FloatingIPPortAlreadyAssociated",
                f"Fixed IP {address.ip_address} of port {port_id} already has the floating IP {other}.",
            )
        router_id = self._router_between(tx, address.subnet_id, row.floating_network_id)
        if router_id is None:
            raise missing_router(row.floating_network_id, address.subnet_id, port_id)
        if row.router_id is not None and row.router_id != router_id:
            work.routers.add(row.router_id)
        unchanged = (row.port_id, row.fixed_ip_address, row.router_id) == (port_id, address.ip_address, router_id)
        work.inside.update({port_id, row.port_id or port_id})
        row.port_id, row.fixed_ip_address, row.router_id = port_id, address.ip_address, router_id
        if not unchanged:
            row.status = "DOWN"
            row.wanted_generation = 2**62  # until the flush knows the generation
            work.routers.add(router_id)
            work.floating.setdefault(router_id, set()).add(row.id)

    def _router_between(self, tx: Tx, subnet_id: str, network_id: str) -> str | None:
        found = tx.rows(_ROUTERS_BETWEEN, {"subnet_id": subnet_id, "network_id": network_id})
        if not found:
            return None
        subnet = self.service.subnets.get(tx, subnet_id)
        gateway = [row[0] for row in found if row[1] == subnet.gateway_ip]
        return str((gateway or [found[0][0]])[0])

    def let_go(self, work: "Work", floating_ip_id: str) -> None:
        row = self.find(work.tx, floating_ip_id)
        if row is not None:
            self._disassociate(work, row)
            self.save(work.tx, row)

    # -- when ports change ------------------------------------------------------------------------------------------

    def of_ports(self, tx: Tx, port_ids: Sequence[str]) -> list[t.FloatingIpRow]:
        statement = _OF_PORTS_TO_CHANGE if tx.writing else _OF_PORTS
        return [t.FloatingIpRow(*row) for row in rows_in(tx, statement, port_ids)]

    def ports_gone(self, work: "Work", port_ids: Sequence[str]) -> None:
        for row in self.of_ports(work.tx, port_ids):
            self._disassociate(work, row)
            self.save(work.tx, row)

    def addresses_gone(self, work: "Work", port_id: str, addresses: Sequence[str]) -> None:
        for row in self.of_ports(work.tx, [port_id]):
            if row.fixed_ip_address in addresses:
                self._disassociate(work, row)
                self.save(work.tx, row)


def missing_router(network_id: str, subnet_id: str, port_id: str) -> Exception:
    return missing(
        "ExternalGatewayForFloatingIPNotFound",
        f"A router from subnet {subnet_id} to external network",
        f"{network_id} (for port {port_id})",
    )


def _details(port: t.PortRow | None) -> dict[str, Any] | None:
    if port is None:
        return None
    return {
        "name": port.name,
        "network_id": port.network_id,
        "mac_address": port.mac_address,
        "admin_state_up": port.admin_state_up,
        "status": port.status,
        "device_id": port.device_id,
        "device_owner": port.device_owner,
    }
