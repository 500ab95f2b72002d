"""Security groups and fixed addresses as compute's old API (before microversions 2.36 and 2.44) handles them."""

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, select

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.services.network import tables as t
from cumulet.services.network.intake import Given, for_create
from cumulet.services.network.legacy import nova_errors
from cumulet.services.network.resources import SECURITY_GROUP, SECURITY_GROUP_RULE

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_ALL = select(t.SECURITY_GROUPS).order_by(t.SECURITY_GROUPS.c.created_at, t.SECURITY_GROUPS.c.id)
_OF_PROJECT = _ALL.where(t.SECURITY_GROUPS.c.project_id == bindparam("project_id"))


class ForCompute:
    def __init__(self, service: "NetworkService") -> None:
        self._service = service

    # -- security groups -----------------------------------------------------------------------------------------

    def groups(self, tx: Tx, ctx: RequestContext, *, everyone: bool = False) -> list[dict[str, Any]]:
        found = tx.rows(_ALL) if everyone else tx.rows(_OF_PROJECT, {"project_id": ctx.project_id})
        rows = [t.SecurityGroupRow(*row) for row in found]
        return self._service.groups.views(tx, rows)

    def group(self, tx: Tx, ctx: RequestContext, group_id: str) -> dict[str, Any]:
        return self._service.groups.views(tx, [self._row(tx, ctx, group_id)])[0]

    def _row(self, tx: Tx, ctx: RequestContext, group_id: str) -> t.SecurityGroupRow:
        row = self._service.groups.find(tx, group_id, change=True)
        if row is None or not (ctx.is_admin or row.project_id == ctx.project_id):
            raise NotFound(f"Security group {group_id} not found.")
        return row

    @nova_errors()
    def create_group(self, tx: Tx, ctx: RequestContext, name: str, description: str) -> dict[str, Any]:
        _check_name(name)
        given = for_create(SECURITY_GROUP, {"name": name, "description": description}, ctx, lambda: False)
        work = self._service.work(tx, ctx)
        made = self._service.groups.create(work, [given])
        work.flush()
        return self._service.groups.views(tx, made)[0]

    @nova_errors()
    def update_group(self, tx: Tx, ctx: RequestContext, group_id: str, name: str, description: str) -> dict[str, Any]:
        work = self._service.work(tx, ctx)
        _check_name(name)
        given = Given({"name": name, "description": description})
        given.explicit = frozenset(given)
        row = self._service.groups.update(work, self._row(tx, ctx, group_id), given)
        work.flush()
        return self._service.groups.views(tx, [row])[0]

    @nova_errors()
    def delete_group(self, tx: Tx, ctx: RequestContext, group_id: str) -> None:
        work = self._service.work(tx, ctx)
        row = self._row(tx, ctx, group_id)
        if row.default_for is not None:
            raise BadInput("The default security group cannot be removed.")
        self._service.groups.delete(work, row)
        work.flush()

    @nova_errors()
    def create_rule(self, tx: Tx, ctx: RequestContext, values: dict[str, Any]) -> dict[str, Any]:
        """``values`` as the network API takes them."""
        self._row(tx, ctx, values["security_group_id"])
        work = self._service.work(tx, ctx)
        made = self._service.rules.create(work, [for_create(SECURITY_GROUP_RULE, values, ctx, lambda: False)])
        work.flush()
        return self._service.rules.views(tx, made)[0]

    def delete_rule(self, tx: Tx, ctx: RequestContext, rule_id: str) -> None:
        row = self._service.rules.find(tx, rule_id)
        if row is None or not (ctx.is_admin or row.project_id == ctx.project_id):
            raise NotFound(f"Security group rule {rule_id} not found.")
        work = self._service.work(tx, ctx)
        self._service.rules.delete(work, row)
        work.flush()

    # -- addresses -----------------------------------------------------------------------------------------------

    def add_fixed_ip(self, tx: Tx, ctx: RequestContext, server_id: str, network_id: str) -> None:
        """One more address for the server's port on this network."""
        for port in self._service.server_ports(tx, server_id, change=True):
            if port.network_id != network_id:
                continue
            have = self._addresses(tx, port)
            if have:
                self._change(tx, ctx, port, [*have, {"subnet_id": have[0]["subnet_id"]}])
                return
        raise NotFound(f"Network {network_id} is not attached to instance {server_id}.")

    def remove_fixed_ip(self, tx: Tx, ctx: RequestContext, server_id: str, address: str) -> None:
        for port in self._service.server_ports(tx, server_id, change=True):
            have = self._addresses(tx, port)
            left = [one for one in have if one["ip_address"] != address]
            if len(left) < len(have):
                self._change(tx, ctx, port, left)
                return
        raise BadInput(f"Fixed IP {address} is not attached to instance {server_id}.")

    def _addresses(self, tx: Tx, port: t.PortRow) -> list[dict[str, Any]]:
        found = self._service.ports.addresses_of(tx, [port.id]).get(port.id, [])
        return [{"subnet_id": one.subnet_id, "ip_address": one.ip_address} for one in found]

    def _change(self, tx: Tx, ctx: RequestContext, port: t.PortRow, addresses: list[dict[str, Any]]) -> None:
        work = self._service.work(tx, ctx)
        given = Given({"fixed_ips": addresses})
        given.explicit = frozenset(given)
        self._service.ports.update(work, port, given)
        work.flush()


def _check_name(name: str) -> None:
    if not name.strip():
        raise BadInput("A security group needs a name.")
