"""The index of documents says of every host exactly what follows from the rows: missing entries are added, entries
without a reason are removed. The hosts compare the index with what they have."""

from typing import TYPE_CHECKING

from sqlalchemy import select

from cumulet.db import Tx
from cumulet.services.network import state
from cumulet.services.network import tables as t
from cumulet.services.network.work import REMOTE_GROUPS, on_hosts

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_PORTS = select(t.PORTS.c.host, t.PORTS.c.id, t.PORTS.c.moving).where(
    t.PORTS.c.host != "",
    t.PORTS.c.vif_type.not_in([state.UNBOUND, state.FAILED]),
    ~t.PORTS.c.device_owner.startswith("network:"),
)
_NETWORKS = select(t.DHCP_HOSTS.c.host, t.DHCP_HOSTS.c.network_id)
_ROUTERS = select(t.ROUTER_HOSTS.c.host, t.ROUTER_HOSTS.c.router_id)
Keys = set[tuple[str, str, str]]  # host, kind, id
_KINDS = ("port", "group", "network", "router")


def reconcile_documents(service: "NetworkService") -> str | None:
    if not any(service.db.read(lambda tx: document_differences(service, tx))):
        return None

    def work(tx: Tx) -> tuple[int, int]:
        missing, extra = document_differences(service, tx)
        service.desired.touch_many(tx, sorted(missing))
        for key in sorted(extra):
            service.desired.remove(tx, *key)
        return len(missing), len(extra)

    added, removed = service.db.write(work)
    return f"{added} documents added, {removed} removed"


def document_differences(
    service: "NetworkService", tx: Tx
) -> tuple[set[tuple[str, str, str]], set[tuple[str, str, str]]]:
    wanted = {key for row in tx.rows(_PORTS) for key in on_hosts("port", row)}
    wanted |= {key for row in tx.rows(REMOTE_GROUPS) for key in on_hosts("group", row)}
    wanted |= {(row[0], "network", row[1]) for row in tx.rows(_NETWORKS)}
    wanted |= {(row[0], "router", row[1]) for row in tx.rows(_ROUTERS)}
    hosts = {host.name for host in service.hosts.list(tx)} | {key[0] for key in wanted}
    told = {(host, kind, id) for host in hosts for kind, id in service.desired.held_by(tx, host) if kind in _KINDS}
    return wanted - told, told - wanted
