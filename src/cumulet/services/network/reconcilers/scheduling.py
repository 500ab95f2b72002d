"""Networks with DHCP that no host serves, and routers that no host runs, get one as soon as a host is up.

A host that is down keeps what it has: its namespaces go on without us, and two DHCP servers or routers with the same
addresses are worse than a silent one. A host that an operator removed loses everything.
"""

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, exists, select

from cumulet.db import Tx
from cumulet.services.network import tables as t

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_UNSERVED = (
    select(t.SUBNETS.c.network_id)
    .where(
        t.SUBNETS.c.enable_dhcp.is_(True),
        ~exists().where(t.DHCP_HOSTS.c.network_id == t.SUBNETS.c.network_id),
    )
    .distinct()
)
_LEGS = exists().where(t.PORTS.c.device_id == t.ROUTERS.c.id, t.PORTS.c.device_owner.startswith("network:router_"))
_UNHOSTED = select(t.ROUTERS.c.id).where(_LEGS, ~exists().where(t.ROUTER_HOSTS.c.router_id == t.ROUTERS.c.id))
_DHCP_ON = select(t.DHCP_HOSTS.c.network_id, t.DHCP_HOSTS.c.host)
_ROUTERS_ON = select(t.ROUTER_HOSTS.c.router_id, t.ROUTER_HOSTS.c.host)
_FORGET = delete(t.DHCP_HOSTS).where(
    t.DHCP_HOSTS.c.network_id == bindparam("_network"), t.DHCP_HOSTS.c.host == bindparam("_host")
)


def reconcile_scheduling(service: "NetworkService") -> str | None:
    """A summary when something was done. Each network and router in a transaction of its own."""
    db = service.db
    left = db.read(lambda tx: _on_lost_hosts(service, tx))
    for network_id, host in left[0]:
        db.write(lambda tx, n=network_id, h=host: _leave_network(service, tx, n, h))  # type: ignore[misc]
    for router_id in left[1]:
        db.write(lambda tx, r=router_id: _leave_router(service, tx, r))  # type: ignore[misc]
    networks = [row[0] for row in db.read(lambda tx: tx.rows(_UNSERVED))]
    routers = [row[0] for row in db.read(lambda tx: tx.rows(_UNHOSTED))]
    done = sum(db.write(lambda tx, n=n: _serve(service, tx, n)) for n in networks)  # type: ignore[misc]
    done += sum(db.write(lambda tx, r=r: _host(service, tx, r)) for r in routers)  # type: ignore[misc]
    waiting = len(networks) + len(routers) - done
    if not done and not waiting:
        return None
    return f"{done} networks and routers given a host, {waiting} wait for one"


def _on_lost_hosts(service: "NetworkService", tx: Tx) -> tuple[list[tuple[str, str]], list[str]]:
    known = {host.name for host in service.hosts.list(tx)}
    return (
        [(row[0], row[1]) for row in tx.rows(_DHCP_ON) if row[1] not in known],
        [row[0] for row in tx.rows(_ROUTERS_ON) if row[1] not in known],
    )


def _leave_network(service: "NetworkService", tx: Tx, network_id: str, host: str) -> None:
    work = service.work(tx)
    if tx.run(_FORGET, {"_network": network_id, "_host": host}):
        work.gone.add((host, "network", network_id))
        service.ports.sync_dhcp_ports(work, network_id)
        work.flush()


def _leave_router(service: "NetworkService", tx: Tx, router_id: str) -> None:
    if service.routers.find(tx, router_id) is None:
        return
    work = service.work(tx)
    service.agents.place_router(work, router_id, None)
    work.flush()


def _serve(service: "NetworkService", tx: Tx, network_id: str) -> int:
    if service.networks.find(tx, network_id) is None:
        return 0
    work = service.work(tx)
    service.ports.sync_dhcp_ports(work, network_id)
    work.flush()
    return 1 if service.ports.dhcp_hosts(tx, network_id) else 0


def _host(service: "NetworkService", tx: Tx, router_id: str) -> int:
    if service.routers.find(tx, router_id) is None:
        return 0
    work = service.work(tx)
    found = service.agents.schedule_router(work, router_id)
    work.flush()
    return 1 if found else 0
