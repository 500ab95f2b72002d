"""Ports that were made for a server go when there is no such server; ports lent to one are let go."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sqlalchemy import select

from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.services.network import tables as t

if TYPE_CHECKING:
    from cumulet.services.network.public import NetworkService

_OWNERS = (
    select(t.PORTS.c.device_id)
    .where(t.PORTS.c.device_owner.startswith("compute:"), t.PORTS.c.made_for_server.is_(True))
    .distinct()
)
_GRACE_SECONDS = 60

Living = Callable[[Tx, Iterable[str]], set[str]]


def reconcile_ports(service: "NetworkService", living: Living) -> str | None:
    """``living(tx, ids)``: those of the ids that are servers which still exist."""

    def orphans(tx: Tx) -> list[str]:
        before = tx.now - _GRACE_SECONDS * SECOND
        owners = [row[0] for row in tx.rows(_OWNERS.where(t.PORTS.c.created_at < before))]
        alive = living(tx, owners)
        return sorted(set(owners) - alive)

    gone = service.db.read(orphans)
    for server_id in gone:

        def release(tx: Tx, server_id: str = server_id) -> None:
            if server_id not in living(tx, [server_id]):
                service.release_server_ports(tx, server_id)

        service.db.write(release)
    return f"ports of {len(gone)} vanished servers released" if gone else None
