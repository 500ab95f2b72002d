"""Floating IPs in the form of nova's old network calls (compute API up to 2.35 and 2.43).

The compute API owns the routes and policy; here is what they do and how their objects look, in the caller's
transaction. Errors are turned into those that the compute API gives: what is in use or there already is a bad request.
"""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from cumulet.db import Tx, to_change
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, Conflict, NotFound, QuotaExceeded
from cumulet.services.network import tables as t
from cumulet.services.network.faults import missing
from cumulet.services.network.intake import Given, for_create
from cumulet.services.network.resources import FLOATING_IP

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService
    from cumulet.services.network.work import Work

_FLOATING = (
    select(t.FLOATING_IPS)
    .where(t.FLOATING_IPS.c.project_id == bindparam("project_id"))
    .order_by(t.FLOATING_IPS.c.created_at, t.FLOATING_IPS.c.id)
)
_BY_ADDRESS = to_change(_FLOATING.where(t.FLOATING_IPS.c.floating_ip_address == bindparam("address")))
_POOLS = select(t.NETWORKS).where(t.NETWORKS.c.external.is_(True)).order_by(t.NETWORKS.c.name, t.NETWORKS.c.id)
_SAME = {"ExternalGatewayForFloatingIPNotFound"}


@contextmanager
def nova_errors() -> Iterator[None]:
    try:
        yield
    except QuotaExceeded as error:
        raise QuotaExceeded(error.message, **error.details) from None
    except Conflict as error:
        raise BadInput(error.message) from None
    except NotFound as error:
        if error.type_name in _SAME:
            raise BadInput(error.message) from None
        raise


class Legacy:
    def __init__(self, service: "NetworkService") -> None:
        self.service = service

    @contextmanager
    def _change(self, tx: Tx, ctx: RequestContext) -> "Iterator[Work]":
        with nova_errors():
            work = self.service.work(tx, ctx)
            yield work
            work.flush()

    # -- floating IPs ------------------------------------------------------------------------------------------------

    def pools(self, tx: Tx) -> list[dict[str, str]]:
        return [{"name": t.NetworkRow(*row).name or row[0]} for row in tx.rows(_POOLS)]

    def floating_ips(self, tx: Tx, ctx: RequestContext) -> list[dict[str, Any]]:
        rows = tx.rows(_FLOATING, {"project_id": ctx.project_id or ""})
        return self._floating_views(tx, [t.FloatingIpRow(*row) for row in rows])

    def _floating(self, tx: Tx, ctx: RequestContext, id: str) -> t.FloatingIpRow:
        row = self.service.floating_ips.find(tx, id)
        if row is None or not (ctx.is_admin or row.project_id == ctx.project_id):
            raise missing("FloatingIPNotFound", "Floating IP", id)
        return row

    def floating_ip(self, tx: Tx, ctx: RequestContext, id: str) -> dict[str, Any]:
        return self._floating_views(tx, [self._floating(tx, ctx, id)])[0]

    def create_floating_ip(self, tx: Tx, ctx: RequestContext, pool: str | None) -> dict[str, Any]:
        found = [t.NetworkRow(*row) for row in tx.rows(_POOLS)]
        if pool:
            found = [row for row in found if pool in (row.name, row.id)]
        if len(found) != 1:
            raise NotFound(f"Floating IP pool {pool or ''} could not be found.", type_name="FloatingIpPoolNotFound")
        with self._change(tx, ctx) as work:
            given = for_create(FLOATING_IP, {"floating_network_id": found[0].id}, ctx, lambda: False)
            (row,) = self.service.floating_ips.create(work, [given])
        return self._floating_views(tx, [row])[0]

    def delete_floating_ip(self, tx: Tx, ctx: RequestContext, id: str) -> None:
        with self._change(tx, ctx) as work:
            self.service.floating_ips.delete(work, self._floating(tx, ctx, id))

    def _by_address(self, tx: Tx, ctx: RequestContext, address: str) -> t.FloatingIpRow:
        row = tx.first(_BY_ADDRESS, {"project_id": ctx.project_id or "", "address": address})
        if row is None:
            raise NotFound(f"Floating IP {address} could not be found.", type_name="FloatingIpNotFoundForAddress")
        return t.FloatingIpRow(*row)

    def associate(self, tx: Tx, ctx: RequestContext, server_id: str, address: str, fixed: str | None) -> None:
        floating = self._by_address(tx, ctx, address)
        ports = self.service.server_ports(tx, server_id)
        addresses = self.service.ports.addresses_of(tx, [port.id for port in ports])
        v4 = [
            (port.id, a.ip_address)
            for port in ports
            for a in addresses.get(port.id, [])
            if ipaddress.ip_address(a.ip_address).version == 4 and fixed in (None, a.ip_address)
        ]
        if not v4:
            raise BadInput("The server has no such fixed IPv4 address to give the floating IP to.")
        with self._change(tx, ctx) as work:
            given = Given(port_id=v4[0][0], fixed_ip_address=v4[0][1])
            given.explicit = frozenset(given)
            self.service.floating_ips.update(work, floating, given)

    def disassociate(self, tx: Tx, ctx: RequestContext, server_id: str, address: str) -> None:
        floating = self._by_address(tx, ctx, address)
        if floating.port_id not in {port.id for port in self.service.server_ports(tx, server_id)}:
            raise Conflict(f"Floating IP {address} is not associated with server {server_id}.")
        with self._change(tx, ctx) as work:
            given = Given(port_id=None)
            given.explicit = frozenset(given)
            self.service.floating_ips.update(work, floating, given)

    def _floating_views(self, tx: Tx, rows: list[t.FloatingIpRow]) -> list[dict[str, Any]]:
        networks = self.service.networks.many(tx, {row.floating_network_id for row in rows})
        ports = self.service.ports.many(tx, {row.port_id for row in rows if row.port_id})
        found = []
        for row in rows:
            port = ports.get(row.port_id or "")
            network = networks.get(row.floating_network_id)
            found.append(
                {
                    "id": row.id,
                    "ip": row.floating_ip_address,
                    "fixed_ip": row.fixed_ip_address,
                    "instance_id": (port.device_id or None) if port else None,
                    "pool": (network.name or network.id) if network else row.floating_network_id,
                }
            )
        return found
