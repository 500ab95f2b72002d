"""Backups: create, list, show, update, delete, restore, records, administrators' actions."""

import base64
from typing import Annotated, Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, Since
from cumulet.kernel.errors import BadInput, WrongState
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import state, store
from cumulet.services.volume.api.common import (
    Metadata,
    Name,
    Text255,
    UuidText,
    clean,
    equals,
    has_metadata,
    links,
    listed,
    listing,
    load,
    moment,
)
from cumulet.services.volume.creation import CreateVolumeRequest, create_volume
from cumulet.services.volume.store import BackupRow
from cumulet.services.volume.tables import BACKUPS
from cumulet.services.volume.workflows.backups import BackupParams, RestoreParams

STATUSES = ("error", "error_deleting", "creating", "available", "deleting", "deleted", "restoring")
_SERVICE = "cinder.backup.drivers.cumulet.ChunkedBackupDriver"  # clients look for the prefix


class BackupCreate(msgspec.Struct, forbid_unknown_fields=True):
    volume_id: UuidText
    name: Text255 | None = None
    description: Text255 | None = None
    container: Text255 | None = None
    incremental: bool = False
    force: bool = False
    snapshot_id: UuidText | None = None
    metadata: Annotated[Metadata | None, Since("3.43")] = None
    availability_zone: Annotated[Name | None, Since("3.51")] = None


class BackupUpdate(msgspec.Struct, forbid_unknown_fields=True):
    name: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    description: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Annotated[Metadata | msgspec.UnsetType, Since("3.43")] = msgspec.UNSET


class Restore(msgspec.Struct, forbid_unknown_fields=True):
    name: Text255 | None = None
    volume_id: UuidText | None = None


class StatusBody(msgspec.Struct, forbid_unknown_fields=True):
    status: str


class Record(msgspec.Struct, forbid_unknown_fields=True):
    backup_service: Text255
    backup_url: Annotated[str, msgspec.Meta(min_length=1)]


def view(call: Call, row: BackupRow, dependents: bool) -> dict[str, Any]:
    version = call.version or (3, 0)
    found: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "size": row.size_gb,
        "object_count": row.object_count,
        "availability_zone": row.availability_zone,
        "container": row.container,
        "created_at": moment(row.created_at),
        "updated_at": moment(row.updated_at),
        "name": row.name,
        "description": row.description,
        "fail_reason": row.fail_reason,
        "volume_id": row.volume_id,
        "links": links(call, "backups", row.id),
        "is_incremental": row.parent_id is not None,
        "has_dependent_backups": dependents,
        "snapshot_id": row.snapshot_id,
        "data_timestamp": moment(row.data_timestamp),
    }
    if version >= (3, 18) and call.ctx.is_admin:
        found["os-backup-project-attr:project_id"] = row.project_id
    if version >= (3, 43):
        found["metadata"] = row.metadata
    if version >= (3, 56):
        found["user_id"] = row.user_id
    return found


def _children(tx: Tx, backup_id: str) -> list[BackupRow]:
    return store.BACKUPS.where(tx, BACKUPS.c.parent_id == backup_id)


def _parents(tx: Tx, rows: list[BackupRow]) -> set[str | None]:
    """Which of these have backups that build on them."""
    if not rows:
        return set()
    return {child.parent_id for child in store.BACKUPS.where(tx, BACKUPS.c.parent_id.in_([row.id for row in rows]))}


def _brief(call: Call, row: BackupRow) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "links": links(call, "backups", row.id)}


def create(call: Call) -> dict[str, Any]:
    body: BackupCreate = call.body

    def work(tx: Tx) -> dict[str, Any]:
        volume = load(tx, call, store.VOLUMES, body.volume_id, "backup:create")
        state.refuse_moving(volume)
        snapshot = None
        if body.snapshot_id is not None:
            snapshot = load(tx, call, store.SNAPSHOTS, body.snapshot_id, None)
            if snapshot.volume_id != volume.id:
                raise BadInput(f"Invalid snapshot: Volume {volume.id} does not have snapshot {snapshot.id}.")
            if snapshot.status != "available":
                raise WrongState(
                    f"Invalid snapshot: Snapshot to be backed up must be available, but the current status is"
                    f' "{snapshot.status}".'
                )
        else:
            if volume.status not in ("available", "in-use"):
                raise WrongState(
                    f"Invalid volume: Volume to be backed up must be available or in-use, but the current status is"
                    f' "{volume.status}".'
                )
            if volume.status == "in-use" and not body.force:
                raise WrongState("Invalid volume: Backing up an in-use volume must use the force flag.")
        parent = None
        if body.incremental:
            made = [
                one for one in store.BACKUPS.where(tx, BACKUPS.c.volume_id == volume.id) if one.status == "available"
            ]
            if not made:
                raise BadInput(
                    "Invalid backup: No backups available to do an incremental backup. Do a full backup first."
                )
            parent = store.BACKUPS.get(tx, max(made, key=lambda one: one.data_timestamp).id)
            if parent.status != "available":  # its deletion was asked for at the same time
                raise WrongState(f"Invalid backup: The backup to build on, {parent.id}, is {parent.status}.")
        call.service.quotas.claim(tx, volume.project_id, {"backups": 1, "backup_gigabytes": volume.size_gb})
        backup_id = new_uuid()
        row = BackupRow(
            id=backup_id,
            data_id=backup_id,
            volume_id=volume.id,
            snapshot_id=body.snapshot_id,
            parent_id=parent.id if parent else None,
            project_id=volume.project_id,
            user_id=call.ctx.user_id,
            name=body.name,
            description=body.description,
            container=body.container,
            availability_zone=volume.availability_zone,
            host=volume.host,
            size_gb=volume.size_gb,
            object_count=0,
            status="creating",
            fail_reason=None,
            metadata=clean(body.metadata),
            described={
                "metadata": volume.metadata,
                "image_metadata": volume.image_metadata,
                "bootable": volume.bootable,
            },
            data_timestamp=snapshot.created_at if snapshot else tx.now,
            created_at=tx.now,
            updated_at=tx.now,
        )
        store.BACKUPS.insert(tx, row)
        if snapshot is not None:
            store.SNAPSHOTS.change(tx, snapshot.id, status="backing-up")
        else:
            state.change(tx, volume.id, busy="backing-up")
        call.service.sagas.start(tx, call.service.backup_workflows.create, row.id, BackupParams(), call.ctx)
        found = _brief(call, row)
        if (call.version or (3, 0)) >= (3, 43):
            found["metadata"] = row.metadata
        return {"backup": found}

    return call.service.db.write(work)


_FILTERS = {
    "name": equals(BACKUPS.c.name),
    "status": equals(BACKUPS.c.status),
    "volume_id": equals(BACKUPS.c.volume_id),
    "id": equals(BACKUPS.c.id),
    "metadata": has_metadata(BACKUPS.c.metadata),
}
_SORTS = {
    "id": "id", "status": "status", "size": "size_gb", "created_at": "created_at", "updated_at": "updated_at",
    "name": "name", "container": "container", "volume_id": "volume_id",
}  # fmt: skip


def _index(call: Call, full: bool) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, count, more = listing(call, tx, store.BACKUPS, _FILTERS, sort_keys=_SORTS)
        parents = _parents(tx, rows) if full else set()
        views = [view(call, row, row.id in parents) if full else _brief(call, row) for row in rows]
        return listed(call, "backups", "backups/detail" if full else "backups", views, rows, count, more)

    return call.service.db.read(work)


def index(call: Call) -> dict[str, Any]:
    return _index(call, False)


def detail(call: Call) -> dict[str, Any]:
    return _index(call, True)


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.BACKUPS, call.params["id"], "backup:get")
        return {"backup": view(call, row, bool(_children(tx, row.id)))}

    return call.service.db.read(work)


def update(call: Call) -> dict[str, Any]:
    values = {
        key: getattr(call.body, key)
        for key in ("name", "description", "metadata")
        if getattr(call.body, key) is not msgspec.UNSET
    }
    if not values:
        raise BadInput("The request body is empty.")

    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.BACKUPS, call.params["id"], "backup:update")
        store.BACKUPS.change(tx, row.id, **values)
        return {"backup": _brief(call, store.BACKUPS.get(tx, row.id))}

    return call.service.db.write(work)


def delete(call: Call) -> Reply:
    return _begin_delete(call, "backup:delete", False)


def force_delete(call: Call) -> Reply:
    return _begin_delete(call, "volume_extension:backup_admin_actions:force_delete", True)


def _begin_delete(call: Call, rule: str, force: bool) -> Reply:
    def work(tx: Tx) -> None:
        row = load(tx, call, store.BACKUPS, call.params["id"], rule)
        if not force and row.status not in ("available", "error"):
            raise WrongState("Invalid backup: Backup status must be available or error")
        if _children(tx, row.id):
            raise BadInput("Invalid backup: Incremental backups exist for this backup.")
        store.BACKUPS.change(tx, row.id, status="deleting")
        call.service.sagas.start(tx, call.service.backup_workflows.delete, row.id, BackupParams(), call.ctx)

    call.service.db.write(work)
    return Reply(status=202)


def restore(call: Call) -> dict[str, Any]:
    """Into the volume named, or a new one."""
    body: Restore = call.body or Restore()

    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.BACKUPS, call.params["id"], "backup:restore")
        if row.status != "available":
            raise WrongState("Invalid backup: Backup status must be available")
        service = call.service
        if body.volume_id is None:
            name = body.name or f"restore_backup_{row.id}"
            asked = CreateVolumeRequest(size_gb=row.size_gb, name=name, backup_id=row.id, description=row.description)
            volume = create_volume(service, tx, call.ctx, asked)
        else:
            volume = load(tx, call, store.VOLUMES, body.volume_id, None)
            state.refuse_moving(volume)
            if volume.status != "available":
                raise WrongState("Invalid volume: Volume to be restored to must be available")
            if volume.size_gb < row.size_gb:
                raise BadInput(
                    f"Invalid volume: volume size {volume.size_gb} is too small to restore backup of size"
                    f" {row.size_gb}."
                )
            state.change(tx, volume.id, busy="restoring-backup")
            store.BACKUPS.change(tx, row.id, status="restoring")
            params = RestoreParams(volume_id=volume.id)
            service.sagas.start(tx, service.backup_workflows.restore, row.id, params, call.ctx)
        return {"restore": {"backup_id": row.id, "volume_id": volume.id, "volume_name": volume.name}}

    return call.service.db.write(work)


def reset_status(call: Call) -> Reply:
    status = call.body.status.lower()
    if status not in STATUSES:
        raise BadInput(f"Invalid input for field 'status': {call.body.status!r} is not a backup status.")

    def work(tx: Tx) -> None:
        row = load(tx, call, store.BACKUPS, call.params["id"], "volume_extension:backup_admin_actions:reset_status")
        store.BACKUPS.change(tx, row.id, status=status)

    call.service.db.write(work)
    return Reply(status=202)


# -- records -----------------------------------------------------------------------------------------------------


def export_record(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> BackupRow:
        row = load(tx, call, store.BACKUPS, call.params["id"], "backup:export-import")
        if row.status != "available":
            raise WrongState(f"Invalid backup: Backup status must be available and not {row.status}.")
        return row

    row = call.service.db.read(work)
    url = base64.b64encode(msgspec.json.encode(row)).decode()
    return {"backup-record": {"backup_service": _SERVICE, "backup_url": url}}


def import_record(call: Call) -> dict[str, Any]:
    body: Record = call.body
    try:
        record = msgspec.json.decode(base64.b64decode(body.backup_url, validate=True), type=BackupRow)
    except (ValueError, msgspec.DecodeError):
        raise BadInput("Invalid input received: Can't parse backup record.") from None
    if body.backup_service != _SERVICE:
        raise BadInput(f"Invalid input received: there is no backup service {body.backup_service!r}.")

    def work(tx: Tx) -> dict[str, Any]:
        assert call.ctx.project_id is not None
        tx.lock("backup-record", record.id)
        if store.BACKUPS.find(tx, record.id) is not None:
            raise BadInput("Invalid backup: Backup already exists in database.")
        call.service.quotas.claim(tx, call.ctx.project_id, {"backups": 1, "backup_gigabytes": record.size_gb})
        store.BACKUPS.remove(tx, record.id)
        made = msgspec.structs.replace(
            record,
            project_id=call.ctx.project_id,
            user_id=call.ctx.user_id,
            status="available",
            deleted_at=None,
            created_at=tx.now,
            updated_at=tx.now,
        )
        _revive(tx, made)
        return {"backup": _brief(call, made)}

    return call.service.db.write(work)


def _revive(tx: Tx, row: BackupRow) -> None:
    """A deleted backup's row stays; an imported one takes its place."""
    from sqlalchemy import delete as sql_delete

    tx.run(sql_delete(BACKUPS).where(BACKUPS.c.id == row.id))
    store.BACKUPS.insert(tx, row)


_ONE = "/backups/{id}"
ROUTES = [
    Route(method="GET", path="/backups", handler=index, policy="backup:get_all"),
    Route(
        method="POST",
        path="/backups",
        handler=create,
        body=BackupCreate,
        body_key="backup",
        strict=False,
        success=202,
    ),
    Route(method="GET", path="/backups/detail", handler=detail, policy="backup:get_all"),
    Route(
        method="POST",
        path="/backups/import_record",
        handler=import_record,
        body=Record,
        body_key="backup-record",
        success=201,
        policy="backup:backup-import",
    ),
    Route(method="GET", path=_ONE, handler=show),
    Route(method="PUT", path=_ONE, handler=update, body=BackupUpdate, body_key="backup", min_version="3.9"),
    Route(method="DELETE", path=_ONE, handler=delete, success=202),
    Route(method="POST", path=_ONE + "/restore", handler=restore, body=Restore | None, body_key="restore", success=202),
    Route(method="GET", path=_ONE + "/export_record", handler=export_record),
    Route(method="POST", path=_ONE + "/action", action="os-force_delete", handler=force_delete, success=202),
    Route(
        method="POST",
        path=_ONE + "/action",
        action="os-reset_status",
        handler=reset_status,
        body=StatusBody,
        success=202,
    ),
]
