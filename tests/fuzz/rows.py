"""Counts of the rows of every table, and when the cloud is at rest."""

import time
from typing import Any

from sqlalchemy import func, literal, select, union_all

from cumulet.db import METADATA
from cumulet.saga.tables import SAGAS

# These move without a request, or tell of one: liveness, what reconcilers remember, notes of what requests did.
MOVING = {
    *{"hosts", "reconcilers", "alembic_version", "network_dhcp_hosts", "router_hosts"},
    *{"request_traces", "processes", "conditions"},
}
# These are registered by hosts, anew after their service was deleted; only placement's own requests write them too.
OF_HOSTS = {"resource_providers", "inventories", "resource_provider_traits", "resource_provider_aggregates"}
_COUNTS = union_all(
    *(
        select(literal(table.name), func.count()).select_from(table)
        for table in METADATA.sorted_tables
        if table.name not in MOVING
    )
)
_BUSY = select(func.count()).select_from(SAGAS).where(SAGAS.c.status.in_(("queued", "running", "unwinding")))


def counts(db: Any) -> dict[str, int]:
    return dict(db.read(lambda tx: tx.rows(_COUNTS)))


def at_rest(db: Any, seconds: float = 5.0) -> dict[str, int]:
    """The counts once no saga runs and nothing changes for a moment (background work of a request that succeeded)."""
    end = time.monotonic() + seconds
    before = counts(db)
    while time.monotonic() < end:
        time.sleep(0.02)
        busy = db.read(lambda tx: tx.scalar(_BUSY))
        now = counts(db)
        if not busy and now == before:
            break
        before = now
    return before
