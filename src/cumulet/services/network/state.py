"""Visible status, computed from intent and what hosts reported. The only writer of ``status`` columns."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, bindparam, select, update

from cumulet.db import Tx, to_change
from cumulet.services.network import tables as t
from cumulet.services.network.noun import rows_in

UNBOUND, FAILED = "unbound", "binding_failed"

_SET_PORT = (
    update(t.PORTS)
    .where(t.PORTS.c.id == bindparam("_id"))
    .values(status=bindparam("_status"), revision=t.PORTS.c.revision + 1, updated_at=bindparam("_now"))
)
_SET_FLOATING = (
    update(t.FLOATING_IPS)
    .where(t.FLOATING_IPS.c.id == bindparam("_id"))
    .values(status=bindparam("_status"), revision=t.FLOATING_IPS.c.revision + 1, updated_at=bindparam("_now"))
)
_PORTS = select(t.PORTS).where(t.PORTS.c.id.in_(bindparam("ids", expanding=True)))
_WIRE = (
    update(t.PORTS)
    .where(
        t.PORTS.c.id.in_(bindparam("ids", expanding=True)),
        t.PORTS.c.host == bindparam("_host"),
        t.PORTS.c.wired.isnot(bindparam("_wired")),
    )
    .values(wired=bindparam("_wired"))
)
_POWER = (
    update(t.PORTS)
    .where(and_(t.PORTS.c.device_id == bindparam("_device"), t.PORTS.c.powered.isnot(bindparam("_powered"))))
    .values(powered=bindparam("_powered"))
)
_OF_DEVICE = select(t.PORTS.c.id).where(t.PORTS.c.device_id == bindparam("device_id"))
_DEVICE = select(t.PORTS.c.device_id, t.PORTS.c.device_owner).where(t.PORTS.c.id == bindparam("port_id"))
_FLOATING_OF_ROUTER = select(
    t.FLOATING_IPS.c.id, t.FLOATING_IPS.c.status, t.FLOATING_IPS.c.port_id, t.FLOATING_IPS.c.wanted_generation
).where(t.FLOATING_IPS.c.router_id == bindparam("router_id"))

# what a host's word of these documents may change, in the order in which others take them
_IN: Any = bindparam("ids", expanding=True)
_HELD_FLOATING = to_change(
    select(t.FLOATING_IPS.c.id).where(t.FLOATING_IPS.c.router_id.in_(_IN)).order_by(t.FLOATING_IPS.c.id)
)
_HELD_PORTS = {
    kind: to_change(select(t.PORTS.c.id).where(which).order_by(t.PORTS.c.id))
    for kind, which in {
        "port": t.PORTS.c.id.in_(_IN),
        "network": and_(t.PORTS.c.network_id.in_(_IN), t.PORTS.c.device_owner == "network:dhcp"),
        "router": and_(t.PORTS.c.device_id.in_(_IN), t.PORTS.c.device_owner.startswith("network:router_")),
    }.items()
}


def hold_applied(tx: Tx, host: str, entries: Iterable[tuple[str, str]]) -> None:
    """A host reports these documents: `wired` and `router_applied` follow."""
    ids: dict[str, list[str]] = {}
    for kind, object_id in entries:
        ids.setdefault(kind, []).append(object_id)
    if "router" in ids:
        tx.hold(_HELD_FLOATING, {"ids": ids["router"]})
    for kind, statement in _HELD_PORTS.items():
        if kind in ids:
            tx.hold(statement, {"ids": ids[kind]})


def port_status(row: t.PortRow) -> str:
    """DOWN until its host has made the port and while its server has no VMM or it is switched off."""
    if row.device_owner == "network:floatingip":
        return "N/A"
    if not row.host or row.vif_type in (UNBOUND, FAILED) or not row.admin_state_up or not row.powered:
        return "DOWN"
    return "ACTIVE" if row.wired else "BUILD"


def settle(tx: Tx, port_ids: list[str]) -> None:
    """Write the status of these ports where it changed."""
    for found in rows_in(tx, _PORTS, port_ids):
        row = t.PortRow(*found)
        status = port_status(row)
        if status != row.status:
            tx.run(_SET_PORT, {"_id": row.id, "_status": status, "_now": tx.now})


def wired(tx: Tx, host: str, port_ids: list[str], *, is_wired: bool = True) -> bool:
    """A host has made (or no longer has) these ports; False if that was known."""
    changed = bool(port_ids and tx.run(_WIRE, {"ids": port_ids, "_host": host, "_wired": is_wired}))
    if changed:
        settle(tx, port_ids)
    return changed


def server_of(tx: Tx, port_id: str) -> str | None:
    """The server that the port belongs to."""
    row = tx.first(_DEVICE, {"port_id": port_id})
    return row.device_id if row is not None and row.device_owner.startswith("compute:") else None


def powered(tx: Tx, server_id: str, running: bool) -> None:
    """A server's VMM has come or gone."""
    if tx.run(_POWER, {"_device": server_id, "_powered": running}):
        settle(tx, [row[0] for row in tx.rows(_OF_DEVICE, {"device_id": server_id})])


def router_applied(tx: Tx, router_id: str, generation: int) -> None:
    """The router's host carries what was wanted at this generation: its floating IPs work."""
    for row in tx.rows(_FLOATING_OF_ROUTER, {"router_id": router_id}):
        if row.status != "ACTIVE" and row.port_id is not None and row.wanted_generation <= generation:
            tx.run(_SET_FLOATING, {"_id": row.id, "_status": "ACTIVE", "_now": tx.now})
