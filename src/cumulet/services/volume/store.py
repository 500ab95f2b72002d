"""SQL of the volume service. Each noun has a struct and a `Store` over its table; the few joins stand beside."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from sqlalchemy import (
    ColumnElement,
    Table,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from cumulet.db import Tx, to_change, to_refer
from cumulet.http.paging import Sort, ordered
from cumulet.kernel.errors import NotFound
from cumulet.services.volume import tables as t

R = TypeVar("R", bound=msgspec.Struct)
MOVES = ("starting", "migrating", "completing")  # migration statuses of a volume that is on its way


class VolumeRow(msgspec.Struct, frozen=True):
    id: str
    project_id: str
    user_id: str | None
    name: str | None
    description: str | None
    size_gb: int
    status: str
    base: str
    busy: str | None
    legacy: str | None
    override: str | None
    volume_type_id: str | None
    availability_zone: str
    host: str | None
    snapshot_id: str | None
    source_volid: str | None
    image_id: str | None
    server_id: str | None
    bootable: bool
    multiattach: bool
    metadata: dict[str, str]
    admin_metadata: dict[str, str]
    image_metadata: dict[str, str] | None
    migration_status: str | None
    transfer: bool
    created_at: int
    updated_at: int | None = None
    deleted_at: int | None = None


class SnapshotRow(msgspec.Struct, frozen=True):
    id: str
    volume_id: str
    project_id: str
    user_id: str | None
    name: str | None
    description: str | None
    size_gb: int
    status: str
    progress: str | None
    metadata: dict[str, str]
    created_at: int
    updated_at: int | None = None
    deleted_at: int | None = None


class AttachmentRow(msgspec.Struct, frozen=True):
    id: str
    volume_id: str
    project_id: str
    server_id: str | None
    status: str
    generation: int
    host: str | None
    device: str | None
    mode: str | None
    connector: dict[str, Any] | None
    connection: dict[str, Any] | None
    attached_at: int | None
    created_at: int


class TypeRow(msgspec.Struct, frozen=True):
    id: str
    name: str
    description: str | None
    is_public: bool
    extra_specs: dict[str, str]
    qos_specs_id: str | None
    encryption: dict[str, Any] | None
    created_at: int
    updated_at: int | None = None


class GroupTypeRow(msgspec.Struct, frozen=True):
    id: str
    name: str
    description: str | None
    is_public: bool
    group_specs: dict[str, str]
    created_at: int
    updated_at: int | None = None


class QosRow(msgspec.Struct, frozen=True):
    id: str
    name: str
    consumer: str
    specs: dict[str, str]
    created_at: int


class BackupRow(msgspec.Struct, frozen=True):
    id: str
    volume_id: str
    snapshot_id: str | None
    parent_id: str | None
    data_id: str
    project_id: str
    user_id: str | None
    name: str | None
    description: str | None
    container: str | None
    availability_zone: str | None
    host: str | None
    size_gb: int
    object_count: int
    status: str
    fail_reason: str | None
    metadata: dict[str, str]
    described: dict[str, Any]
    data_timestamp: int
    created_at: int
    updated_at: int | None = None
    deleted_at: int | None = None


class TransferRow(msgspec.Struct, frozen=True):
    id: str
    volume_id: str
    name: str | None
    project_id: str
    destination_project_id: str | None
    accepted: bool
    no_snapshots: bool
    salt: str
    auth_hash: str
    created_at: int
    deleted_at: int | None = None


class MessageRow(msgspec.Struct, frozen=True):
    id: str
    project_id: str
    request_id: str | None
    resource_type: str | None
    resource_uuid: str | None
    event_id: str
    message_level: str
    user_message: str
    created_at: int
    expires_at: int


class Store(Generic[R]):
    """Rows of one table by id. Tombstones (``deleted_at``) are not seen.

    ``found_to_change``: whoever finds one in a writing unit of work decides by it what to change; nobody else changes
    it until the end. Rows of several tables are found in the order transfer or backup, volume, snapshot."""

    def __init__(self, table: Table, row: type[R], what: str, *, found_to_change: bool = False) -> None:
        self.table = table
        self.row = row
        self.what = what
        self.soft = "deleted_at" in table.c
        self.live = [table.c.deleted_at.is_(None)] if self.soft else []
        self.found_to_change = found_to_change
        self._get = select(table).where(table.c.id == bindparam("id"), *self.live)
        self._get_to_change = to_change(self._get, unreferred=True)
        self._get_to_refer = to_refer(self._get)

    def find(self, tx: Tx, object_id: str, *, change: bool | None = None) -> R | None:
        change = self.found_to_change if change is None else change
        return self._found(tx, self._get_to_change if change and tx.writing else self._get, object_id)

    def find_to_refer(self, tx: Tx, object_id: str) -> R | None:
        """It is not deleted, nor found by one who is about to, until the end of a writing unit of work."""
        return self._found(tx, self._get_to_refer if tx.writing else self._get, object_id)

    def _found(self, tx: Tx, statement: Any, object_id: str) -> R | None:
        found = tx.first(statement, {"id": object_id})
        return self.row(*found) if found is not None else None

    def get(self, tx: Tx, object_id: str, *, change: bool | None = None) -> R:
        found = self.find(tx, object_id, change=change)
        if found is None:
            raise self.missing(object_id)
        return found

    def missing(self, object_id: str) -> NotFound:
        return NotFound(f"{self.what} {object_id} could not be found.")

    def insert(self, tx: Tx, row: R) -> R:
        tx.insert(self.table, msgspec.structs.asdict(row))
        return row

    def change(self, tx: Tx, object_id: str, **values: Any) -> bool:
        if "updated_at" in self.table.c:
            values.setdefault("updated_at", tx.now)
        return tx.run(update(self.table).where(self.table.c.id == object_id, *self.live).values(values)) == 1

    def remove(self, tx: Tx, object_id: str, **values: Any) -> None:
        if self.soft:
            self.change(tx, object_id, deleted_at=tx.now, **values)
        else:
            tx.run(delete(self.table).where(self.table.c.id == object_id))

    def where(self, tx: Tx, *clauses: ColumnElement[bool]) -> list[R]:
        statement = select(self.table).where(*self.live, *clauses).order_by(self.table.c.created_at)
        return [self.row(*found) for found in tx.rows(statement)]

    def page(
        self,
        tx: Tx,
        clauses: Sequence[ColumnElement[bool]],
        sort: Sort,
        marker: R | None,
        limit: int,
        offset: int = 0,
        columns: Mapping[str, ColumnElement[Any]] | None = None,
    ) -> list[R]:
        known: Mapping[str, Any] = columns or dict(self.table.c)
        values = None if marker is None else {key: getattr(marker, known[key].key or key) for key, _ in sort}
        statement = select(self.table).where(*self.live, *clauses).limit(limit).offset(offset)
        return [self.row(*found) for found in tx.rows(ordered(statement, known, sort, values))]

    def count(self, tx: Tx, clauses: Sequence[ColumnElement[bool]]) -> int:
        return int(tx.scalar(select(func.count()).select_from(self.table).where(*self.live, *clauses)))


VOLUMES = Store(t.VOLUMES, VolumeRow, "Volume", found_to_change=True)
SNAPSHOTS = Store(t.SNAPSHOTS, SnapshotRow, "Snapshot", found_to_change=True)
ATTACHMENTS = Store(
    t.ATTACHMENTS,
    AttachmentRow,
    "Volume attachment could not be found with filter: attachment_id =",
    found_to_change=True,
)
TYPES = Store(t.TYPES, TypeRow, "Volume type")
GROUP_TYPES = Store(t.GROUP_TYPES, GroupTypeRow, "Group type")
QOS = Store(t.QOS_SPECS, QosRow, "QoS spec")
BACKUPS = Store(t.BACKUPS, BackupRow, "Backup", found_to_change=True)
TRANSFERS = Store(t.TRANSFERS, TransferRow, "Transfer", found_to_change=True)
MESSAGES = Store(t.MESSAGES, MessageRow, "Message")

_BY_VOLUME = (
    select(t.ATTACHMENTS)
    .where(t.ATTACHMENTS.c.volume_id == bindparam("id"), t.ATTACHMENTS.c.status != t.EXPORTED)
    .order_by(t.ATTACHMENTS.c.created_at)
)
_EXPORTS = select(t.ATTACHMENTS).where(
    t.ATTACHMENTS.c.volume_id == bindparam("id"), t.ATTACHMENTS.c.status == t.EXPORTED
)
_BY_VOLUMES = select(t.ATTACHMENTS).where(
    t.ATTACHMENTS.c.volume_id.in_(bindparam("ids", expanding=True)), t.ATTACHMENTS.c.status != t.EXPORTED
)
_TYPE_NAMED = select(t.TYPES).where(t.TYPES.c.name == bindparam("name"))
_TYPE_NAMED_TO_REFER = to_refer(_TYPE_NAMED)
_ACCESS = select(t.TYPE_ACCESS.c.project_id).where(t.TYPE_ACCESS.c.volume_type_id == bindparam("id"))
_VOLUME_SUM = (
    select(t.VOLUMES.c.volume_type_id, func.count(), func.coalesce(func.sum(t.VOLUMES.c.size_gb), 0))
    .where(t.VOLUMES.c.project_id == bindparam("project"), t.VOLUMES.c.deleted_at.is_(None))
    .group_by(t.VOLUMES.c.volume_type_id)
)
_SNAPSHOT_SUM = (
    select(t.VOLUMES.c.volume_type_id, func.count(), func.coalesce(func.sum(t.SNAPSHOTS.c.size_gb), 0))
    .select_from(t.SNAPSHOTS.join(t.VOLUMES, t.VOLUMES.c.id == t.SNAPSHOTS.c.volume_id))
    .where(t.SNAPSHOTS.c.project_id == bindparam("project"), t.SNAPSHOTS.c.deleted_at.is_(None))
    .group_by(t.VOLUMES.c.volume_type_id)
)
_BACKUP_SUM = select(func.count(), func.coalesce(func.sum(t.BACKUPS.c.size_gb), 0)).where(
    t.BACKUPS.c.project_id == bindparam("project"), t.BACKUPS.c.deleted_at.is_(None)
)
_LIMITS = select(t.QUOTAS.c.resource, t.QUOTAS.c.hard_limit).where(t.QUOTAS.c.project_id == bindparam("project"))
_CLASS_LIMITS = select(t.QUOTA_CLASSES.c.resource, t.QUOTA_CLASSES.c.hard_limit).where(
    t.QUOTA_CLASSES.c.class_name == bindparam("class_name")
)
_STANDS = select(t.VOLUMES.c.host.label("host"), t.VOLUMES.c.size_gb.label("size_gb")).where(
    t.VOLUMES.c.deleted_at.is_(None), t.VOLUMES.c.host.is_not(None)
)
_COPIED = select(t.COPIES.c.host.label("host"), t.VOLUMES.c.size_gb.label("size_gb")).select_from(
    t.COPIES.join(t.VOLUMES, t.VOLUMES.c.id == t.COPIES.c.volume_id)
)
_THERE = union_all(_STANDS, _COPIED).subquery()
_PLACED = select(_THERE.c.host, func.coalesce(func.sum(_THERE.c.size_gb), 0), func.count()).group_by(_THERE.c.host)
_COPIES_OF = select(t.COPIES.c.host).where(t.COPIES.c.volume_id == bindparam("the_id"))
_COPIES_ON = (
    select(t.COPIES.c.volume_id, t.COPIES.c.noted_at)
    .where(t.COPIES.c.host == bindparam("the_host"))
    .order_by(t.COPIES.c.volume_id)
)
_FORGET_COPY = delete(t.COPIES).where(
    t.COPIES.c.volume_id == bindparam("the_id"), t.COPIES.c.host == bindparam("the_host")
)
_FORGET_COPIES_ON = delete(t.COPIES).where(t.COPIES.c.host == bindparam("the_host"))


def attachments_of(tx: Tx, volume_id: str) -> list[AttachmentRow]:
    return [AttachmentRow(*row) for row in tx.rows(_BY_VOLUME, {"id": volume_id})]


def exports_of(tx: Tx, volume_id: str) -> list[AttachmentRow]:
    """Connections that belong to no attachment."""
    return [AttachmentRow(*row) for row in tx.rows(_EXPORTS, {"id": volume_id})]


def attachments_of_all(tx: Tx, volume_ids: Iterable[str]) -> dict[str, list[AttachmentRow]]:
    found: dict[str, list[AttachmentRow]] = {}
    ids = list(volume_ids)
    for row in tx.rows(_BY_VOLUMES, {"ids": ids}) if ids else []:
        one = AttachmentRow(*row)
        found.setdefault(one.volume_id, []).append(one)
    return found


def snapshots_of(tx: Tx, volume_id: str) -> list[SnapshotRow]:
    return SNAPSHOTS.where(tx, t.SNAPSHOTS.c.volume_id == volume_id)


def copied_from(tx: Tx, volume_id: str) -> bool:
    """Is another volume being made of it?"""
    return _being_made(tx, t.VOLUMES.c.source_volid == volume_id)


def copied_from_snapshot(tx: Tx, snapshot_id: str) -> bool:
    """Is a volume being made of it?"""
    return _being_made(tx, t.VOLUMES.c.snapshot_id == snapshot_id)


def _being_made(tx: Tx, of_it: ColumnElement[bool]) -> bool:
    return bool(VOLUMES.count(tx, [of_it, t.VOLUMES.c.base == literal_column("'creating'")]))


def volumes_on(tx: Tx, host: str) -> list[VolumeRow]:
    """Those that are there, those on their way there, and those that are not quite gone."""
    moving = exists().where(
        t.COPIES.c.volume_id == t.VOLUMES.c.id, t.COPIES.c.host == host, t.VOLUMES.c.migration_status.in_(MOVES)
    )
    return VOLUMES.where(tx, or_(t.VOLUMES.c.host == host, moving))


def type_named(tx: Tx, name: str) -> TypeRow | None:
    row = tx.first(_TYPE_NAMED_TO_REFER if tx.writing else _TYPE_NAMED, {"name": name})
    return TypeRow(*row) if row is not None else None


def type_names(tx: Tx) -> dict[str, str]:
    return {row[0]: row[1] for row in tx.rows(select(t.TYPES.c.id, t.TYPES.c.name))}


def type_projects(tx: Tx, type_id: str) -> list[str]:
    return [row[0] for row in tx.rows(_ACCESS, {"id": type_id})]


def type_in_use(tx: Tx, type_id: str) -> bool:
    return bool(VOLUMES.count(tx, [t.VOLUMES.c.volume_type_id == type_id]))


Sums = dict[str | None, tuple[int, int]]


def sums(tx: Tx, project_id: str) -> tuple[Sums, Sums, tuple[int, int]]:
    """(count, GiB) of volumes by type, of snapshots by type, of backups."""
    volumes = {row[0]: (row[1], int(row[2])) for row in tx.rows(_VOLUME_SUM, {"project": project_id})}
    snapshots = {row[0]: (row[1], int(row[2])) for row in tx.rows(_SNAPSHOT_SUM, {"project": project_id})}
    count, size = tx.rows(_BACKUP_SUM, {"project": project_id})[0]
    return volumes, snapshots, (count, int(size))


def project_limits(tx: Tx, project_id: str) -> dict[str, int]:
    return {row[0]: row[1] for row in tx.rows(_LIMITS, {"project": project_id})}


def class_limits(tx: Tx, class_name: str) -> dict[str, int]:
    return {row[0]: row[1] for row in tx.rows(_CLASS_LIMITS, {"class_name": class_name})}


def set_limits(tx: Tx, table: Table, column: str, key: str, limits: dict[str, int]) -> None:
    for resource, limit in limits.items():
        tx.run(delete(table).where(table.c[column] == key, table.c.resource == resource))
        tx.insert(table, {column: key, "resource": resource, "hard_limit": limit})


def placed(tx: Tx) -> dict[str, tuple[int, int]]:
    """host -> (GiB, volumes) that stand on it or are going to, copies of others included."""
    return {row[0]: (int(row[1]), row[2]) for row in tx.rows(_PLACED)}


def copies_of(tx: Tx, volume_id: str) -> list[str]:
    """The hosts that may have a copy of it, besides its own."""
    return [row[0] for row in tx.rows(_COPIES_OF, {"the_id": volume_id})]


def copies_on(tx: Tx, host: str) -> list[tuple[str, int]]:
    """The volumes of which a host that is not theirs may have a copy, and when that was noted."""
    return [(row[0], row[1]) for row in tx.rows(_COPIES_ON, {"the_host": host})]


def note_copy(tx: Tx, volume_id: str, host: str) -> None:
    """There may be one from now on."""
    forget_copy(tx, volume_id, host)
    tx.insert(t.COPIES, {"volume_id": volume_id, "host": host, "noted_at": tx.now})


def forget_copy(tx: Tx, volume_id: str, host: str) -> None:
    tx.run(_FORGET_COPY, {"the_id": volume_id, "the_host": host})


def forget_copies_on(tx: Tx, host: str) -> None:
    tx.run(_FORGET_COPIES_ON, {"the_host": host})
