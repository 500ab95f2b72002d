"""SQL over moves of servers between hosts, and what their statuses mean."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, and_, bindparam, func, or_, select, update

from cumulet.db import Tx
from cumulet.kernel.ids import new_uuid
from cumulet.services.compute.rows import MigrationRow, ServerRow
from cumulet.services.compute.tables import MIGRATIONS as M
from cumulet.services.compute.tables import SERVERS as S

LIVE = "live-migration"
EVACUATION = "evacuation"
# A live migration that can be looked at and stopped.
IN_PROGRESS = ("queued", "preparing", "running", "post-migrating")
# It was undone.
UNDONE = ("error", "failed", "cancelled")
# Something of the server may be on both hosts.
OPEN = ("accepted", *IN_PROGRESS, "pre-migrating", "migrating", "finished", "confirming", "reverting")

_BY_ID = select(*M.c).where(M.c.id == bindparam("the_id"))
_OF_SERVER = select(*M.c).where(M.c.server_id == bindparam("the_server")).order_by(M.c.number)
_BY_NUMBER = _OF_SERVER.where(M.c.number == bindparam("the_number"))
_OPEN = _OF_SERVER.where(M.c.status.in_(OPEN))
_IN_PROGRESS = _OF_SERVER.where(M.c.status.in_(IN_PROGRESS), M.c.type == LIVE)
_RESIZED = _OF_SERVER.where(M.c.status == "finished")
_LEFT_BEHIND = _OF_SERVER.where(or_(M.c.status.in_(OPEN), and_(M.c.type == EVACUATION, M.c.status == "done")))
_OPEN_OF = select(*M.c).where(M.c.server_id.in_(bindparam("ids", expanding=True)), M.c.status.in_(OPEN))
_LAST_OF = select(*M.c).where(
    M.c.number.in_(
        select(func.max(M.c.number)).where(M.c.server_id.in_(bindparam("ids", expanding=True))).group_by(M.c.server_id)
    )
)
_UNCONFIRMED = select(*M.c).where(M.c.status == "finished", M.c.updated_at < bindparam("before")).order_by(M.c.number)
_ABANDONED = (
    select(*M.c)
    .join(S, S.c.id == M.c.server_id)
    .where(M.c.status == "finished", S.c.goal != "resized", S.c.deleted_at.is_(None))
    .order_by(M.c.number)
)
_TOUCHING = select(M.c.server_id).where(
    M.c.status.in_(OPEN), or_(M.c.source == bindparam("the_host"), M.c.dest == bindparam("the_host"))
)
_LEAVING = select(M.c.server_id).where(
    M.c.status.in_([status for status in OPEN if status != "finished"]), M.c.source == bindparam("the_host")
)
_DONE = select(*M.c).where(M.c.type == EVACUATION, M.c.status == "done").order_by(M.c.number)
_SET_STATUS = (
    update(M)
    .where(M.c.id == bindparam("the_id"), M.c.status != bindparam("new_status"))
    .values(status=bindparam("new_status"), updated_at=bindparam("now"))
)
_PLACE = (
    update(M)
    .where(M.c.id == bindparam("the_id"))
    .values(dest=bindparam("host"), status=bindparam("new_status"), updated_at=bindparam("now"))
)


def _rows(tx: Tx, statement: Select[Any], **values: Any) -> list[MigrationRow]:
    return [MigrationRow(*row) for row in tx.rows(statement, values)]


def begin(
    tx: Tx, server: ServerRow, kind: str, user_id: str | None, flavors: tuple[int | None, int | None], dest: str | None
) -> str:
    """A new one; its id. ``flavors``: numbers of the old and the new."""
    migration_id = new_uuid()
    tx.insert(
        M,
        {
            "id": migration_id,
            "server_id": server.id,
            "type": kind,
            "status": "accepted",
            "source": server.host,
            "dest": dest,
            "old_flavor": flavors[0],
            "new_flavor": flavors[1],
            "user_id": user_id,
            "project_id": server.project_id,
            "created_at": tx.now,
            "updated_at": tx.now,
        },
    )
    return migration_id


def get(tx: Tx, migration_id: str) -> MigrationRow:
    found = _rows(tx, _BY_ID, the_id=migration_id)
    assert found, f"migration {migration_id} has no row"
    return found[0]


def numbered(tx: Tx, server_id: str, number: int) -> MigrationRow | None:
    return next(iter(_rows(tx, _BY_NUMBER, the_server=server_id, the_number=number)), None)


def in_progress(tx: Tx, server_id: str) -> list[MigrationRow]:
    """Live migrations of the server that are under way."""
    return _rows(tx, _IN_PROGRESS, the_server=server_id)


def resized(tx: Tx, server_id: str) -> MigrationRow | None:
    """The move that waits to be confirmed or reverted."""
    return next(iter(reversed(_rows(tx, _RESIZED, the_server=server_id))), None)


def kept_at(tx: Tx, server_id: str) -> list[str]:
    """Hosts that have disks of the server from before a move that nobody confirmed."""
    return [move.source for move in _rows(tx, _RESIZED, the_server=server_id)]


def of_server(tx: Tx, server_id: str) -> list[MigrationRow]:
    """The oldest first."""
    return _rows(tx, _OF_SERVER, the_server=server_id)


def open_ones(tx: Tx, server_id: str) -> list[MigrationRow]:
    return _rows(tx, _OPEN, the_server=server_id)


def left_behind(tx: Tx, server_id: str) -> list[MigrationRow]:
    """Those by which something of the server may be on other hosts: open, or of a dead host that nobody cleaned yet."""
    return _rows(tx, _LEFT_BEHIND, the_server=server_id)


def open_of(tx: Tx, server_ids: Sequence[str]) -> list[MigrationRow]:
    return _rows(tx, _OPEN_OF, ids=list(server_ids)) if server_ids else []


def unconfirmed(tx: Tx, before: int) -> list[MigrationRow]:
    """Moves that have waited for their confirmation since before then."""
    return _rows(tx, _UNCONFIRMED, before=before)


def abandoned(tx: Tx) -> list[MigrationRow]:
    """Moves that nobody can confirm or revert any more: their servers were evacuated, rebuilt or reset meanwhile."""
    return _rows(tx, _ABANDONED)


def last_of(tx: Tx, server_ids: Sequence[str]) -> dict[str, MigrationRow]:
    """The newest of each server that ever moved."""
    return {row.server_id: row for row in _rows(tx, _LAST_OF, ids=list(server_ids))} if server_ids else {}


def touching(tx: Tx, host: str) -> list[str]:
    """Servers that may have something on this host by a move that is not over."""
    return [row[0] for row in tx.rows(_TOUCHING, {"the_host": host})]


def leaving(tx: Tx, host: str) -> set[str]:
    """Servers on their way from this host."""
    return {row[0] for row in tx.rows(_LEAVING, {"the_host": host})}


def done(tx: Tx) -> list[MigrationRow]:
    """Evacuations whose remains on the dead host nobody has removed yet."""
    return _rows(tx, _DONE)


def set_status(tx: Tx, migration_id: str, status: str) -> None:
    tx.run(_SET_STATUS, {"the_id": migration_id, "new_status": status, "now": tx.now})


def place(tx: Tx, migration_id: str, host: str, status: str) -> None:
    """It goes to this host."""
    tx.run(_PLACE, {"the_id": migration_id, "host": host, "new_status": status, "now": tx.now})


def listed(
    tx: Tx, filters: dict[str, Any], *, limit: int | None, marker: MigrationRow | None, newest_first: bool
) -> list[MigrationRow]:
    """``filters``: as of os-migrations, with times in microseconds."""
    wanted = select(*M.c)
    columns = {
        "status": M.c.status, "instance_uuid": M.c.server_id, "migration_type": M.c.type, "source_compute": M.c.source,
        "user_id": M.c.user_id, "project_id": M.c.project_id,
    }  # fmt: skip
    for name, value in filters.items():
        if name == "host":
            wanted = wanted.where(or_(M.c.source == value, M.c.dest == value))
        elif name == "changes-since":
            wanted = wanted.where(M.c.updated_at >= value)
        elif name == "changes-before":
            wanted = wanted.where(M.c.updated_at <= value)
        else:
            wanted = wanted.where(columns[name].in_(value) if isinstance(value, list) else columns[name] == value)
    if marker is not None:
        older = and_(M.c.created_at == marker.created_at, M.c.number < marker.number)
        wanted = wanted.where(or_(M.c.created_at < marker.created_at, older))
    order = (M.c.created_at.desc(), M.c.number.desc()) if newest_first else (M.c.number,)
    return _rows(tx, wanted.order_by(*order).limit(limit) if limit is not None else wanted.order_by(*order))


def find(tx: Tx, migration_id: str) -> MigrationRow | None:
    return next(iter(_rows(tx, _BY_ID, the_id=migration_id)), None)
