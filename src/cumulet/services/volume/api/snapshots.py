"""Snapshots: create, list, show, update, delete, metadata, administrators' actions."""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route
from cumulet.kernel.errors import BadInput, NotFound, WrongState
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import state, store
from cumulet.services.volume.api.common import (
    Metadata,
    Text255,
    UuidText,
    boolean,
    clean,
    equals,
    has_metadata,
    listed,
    listing,
    load,
    moment,
)
from cumulet.services.volume.store import SnapshotRow
from cumulet.services.volume.tables import SNAPSHOTS
from cumulet.services.volume.workflows.snapshots import SnapshotParams

STATUSES = (
    "error", "available", "creating", "deleting", "deleted", "updating", "error_deleting", "unmanaging",
    "backing-up", "restoring",
)  # fmt: skip


class SnapshotCreate(msgspec.Struct, forbid_unknown_fields=True):
    volume_id: UuidText | None
    name: Text255 | None = None
    display_name: Text255 | None = None
    description: Text255 | None = None
    display_description: Text255 | None = None
    force: bool | msgspec.UnsetType = msgspec.UNSET
    metadata: Metadata | None = None


class SnapshotUpdate(msgspec.Struct, forbid_unknown_fields=True):
    name: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    description: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    display_name: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    display_description: Text255 | msgspec.UnsetType | None = msgspec.UNSET


class MetadataBody(msgspec.Struct):
    metadata: Metadata


class MetaBody(msgspec.Struct):
    meta: Metadata


class StatusBody(msgspec.Struct):
    status: str
    progress: Any = None


def view(call: Call, row: SnapshotRow, *, full: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": row.id,
        "created_at": moment(row.created_at),
        "updated_at": moment(row.updated_at),
        "name": row.name,
        "description": row.description,
        "volume_id": row.volume_id,
        "status": row.status,
        "size": row.size_gb,
        "metadata": row.metadata,
    }
    version = call.version or (3, 0)
    if full:
        found["os-extended-snapshot-attributes:progress"] = row.progress
        found["os-extended-snapshot-attributes:project_id"] = row.project_id
        if version >= (3, 14):
            found["group_snapshot_id"] = None
        if version >= (3, 41):
            found["user_id"] = row.user_id
        if version >= (3, 65):
            found["consumes_quota"] = True
    return found


def create(call: Call) -> dict[str, Any]:
    body: SnapshotCreate = call.body
    if body.volume_id is None:
        raise store.VOLUMES.missing("None")
    forced = body.force is True
    if (call.version or (3, 0)) >= (3, 66):
        if body.force is False:
            raise BadInput(
                "Invalid input: since 3.66 a snapshot of an attached volume needs no force, and force=false"
                " is not valid."
            )
        forced = True

    def work(tx: Tx) -> dict[str, Any]:
        volume = load(tx, call, store.VOLUMES, body.volume_id or "", "volume:create_snapshot")
        allowed = ("available", "in-use") if forced else ("available",)
        state.refuse_moving(volume)
        if volume.status not in allowed:
            raise WrongState(
                f"Invalid volume: Volume {volume.id} status must be {' or '.join(allowed)}, but current status is:"
                f" {volume.status}."
            )
        name = store.type_names(tx).get(volume.volume_type_id or "")
        call.service.quotas.claim(tx, volume.project_id, {"snapshots": 1, "gigabytes": volume.size_gb}, name)
        row = SnapshotRow(
            id=new_uuid(),
            volume_id=volume.id,
            project_id=volume.project_id,
            user_id=call.ctx.user_id,
            name=body.name if body.name is not None else body.display_name,
            description=body.description if body.description is not None else body.display_description,
            size_gb=volume.size_gb,
            status="creating",
            progress="0%",
            metadata=clean(body.metadata),
            created_at=tx.now,
            updated_at=tx.now,
        )
        store.SNAPSHOTS.insert(tx, row)
        workflows = call.service.snapshot_workflows
        call.service.sagas.start(tx, workflows.create, row.id, SnapshotParams(), call.ctx)
        return {"snapshot": view(call, row, full=False)}

    return call.service.db.write(work)


_FILTERS = {
    "name": equals(SNAPSHOTS.c.name),
    "display_name": equals(SNAPSHOTS.c.name),
    "status": equals(SNAPSHOTS.c.status),
    "volume_id": equals(SNAPSHOTS.c.volume_id),
    "metadata": has_metadata(SNAPSHOTS.c.metadata),
    "id": equals(SNAPSHOTS.c.id),
    "user_id": equals(SNAPSHOTS.c.user_id),
    "availability_zone": lambda text: SNAPSHOTS.c.id.is_not(None) if text == "nova" else SNAPSHOTS.c.id.is_(None),
    "consumes_quota": lambda text: SNAPSHOTS.c.id.is_not(None) if boolean(text) else SNAPSHOTS.c.id.is_(None),
}
_SORTS = {
    "id": "id", "status": "status", "created_at": "created_at", "updated_at": "updated_at", "name": "name",
    "display_name": "name", "size": "size_gb", "volume_id": "volume_id",
}  # fmt: skip


def _index(call: Call, full: bool) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, count, more = listing(call, tx, store.SNAPSHOTS, _FILTERS, sort_keys=_SORTS)
        path = "snapshots/detail" if full else "snapshots"
        return listed(call, "snapshots", path, [view(call, row, full=full) for row in rows], rows, count, more)

    return call.service.db.read(work)


def index(call: Call) -> dict[str, Any]:
    return _index(call, False)


def detail(call: Call) -> dict[str, Any]:
    return _index(call, True)


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.SNAPSHOTS, call.params["id"], "volume:get_snapshot")
        return {"snapshot": view(call, row, full=True)}

    return call.service.db.read(work)


def update(call: Call) -> dict[str, Any]:
    body: SnapshotUpdate = call.body
    values: dict[str, Any] = {}
    for column, fields in (("name", ("name", "display_name")), ("description", ("description", "display_description"))):
        for field in fields:
            if getattr(body, field) is not msgspec.UNSET:
                values[column] = getattr(body, field)
                break

    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.SNAPSHOTS, call.params["id"], "volume:update_snapshot")
        store.SNAPSHOTS.change(tx, row.id, **values)
        return {"snapshot": view(call, store.SNAPSHOTS.get(tx, row.id), full=False)}

    return call.service.db.write(work)


def _begin_delete(call: Call, rule: str, force: bool) -> Reply:
    def work(tx: Tx) -> None:
        row = load(tx, call, store.SNAPSHOTS, call.params["id"], rule)
        if not force and row.status not in ("available", "error"):
            raise WrongState(
                f"Invalid snapshot: Volume Snapshot status must be available or error, but current status is:"
                f" {row.status}"
            )
        store.SNAPSHOTS.change(tx, row.id, status="deleting")
        call.service.sagas.start(tx, call.service.snapshot_workflows.delete, row.id, SnapshotParams(), call.ctx)

    call.service.db.write(work)
    return Reply(status=202)


def delete(call: Call) -> Reply:
    return _begin_delete(call, "volume:delete_snapshot", False)


def force_delete(call: Call) -> Reply:
    return _begin_delete(call, "volume_extension:snapshot_admin_actions:force_delete", True)


def reset_status(call: Call) -> Reply:
    status = call.body.status.lower()
    if status not in STATUSES:
        raise BadInput(f"Invalid input for field 'status': {call.body.status!r} is not a snapshot status.")

    def work(tx: Tx) -> None:
        row = load(tx, call, store.SNAPSHOTS, call.params["id"], "volume_extension:snapshot_admin_actions:reset_status")
        store.SNAPSHOTS.change(tx, row.id, status=status)

    call.service.db.write(work)
    return Reply(status=202)


_MAY_BECOME = {
    "creating": ("creating", "available", "error"),
    "deleting": ("deleting", "error_deleting"),
}


def update_status(call: Call) -> Reply:
    body: StatusBody = call.body

    def work(tx: Tx) -> None:
        rule = "snapshot_extension:snapshot_actions:update_snapshot_status"
        row = load(tx, call, store.SNAPSHOTS, call.params["id"], rule)
        if row.status not in _MAY_BECOME:
            raise BadInput(f"Snapshot status {row.status} not allowed for update_snapshot_status")
        if body.status not in _MAY_BECOME[row.status]:
            raise BadInput(f"Provided snapshot status {body.status} not allowed for snapshot with status {row.status}.")
        values: dict[str, Any] = {"status": body.status}
        if body.progress is not None:
            text = str(body.progress)
            if not text.endswith("%") or not text[:-1].isdigit() or int(text[:-1]) > 100:
                raise BadInput("progress must be an integer percentage")
            values["progress"] = text
        store.SNAPSHOTS.change(tx, row.id, **values)

    call.service.db.write(work)
    return Reply(status=202)


# -- metadata ------------------------------------------------------------------------------------------------------


def _metadata(call: Call, rule: str, change: Any = None) -> dict[str, str]:
    def work(tx: Tx) -> dict[str, str]:
        row = load(tx, call, store.SNAPSHOTS, call.params["id"], rule)
        if change is None:
            return dict(row.metadata)
        changed: dict[str, str] = change(dict(row.metadata))
        store.SNAPSHOTS.change(tx, row.id, metadata=changed)
        return changed

    return call.service.db.read(work) if change is None else call.service.db.write(work)


def show_metadata(call: Call) -> dict[str, Any]:
    return {"metadata": _metadata(call, "volume:get_snapshot_metadata")}


def add_metadata(call: Call) -> dict[str, Any]:
    given = clean(call.body.metadata)
    return {"metadata": _metadata(call, "volume:update_snapshot_metadata", lambda old: {**old, **given})}


def replace_metadata(call: Call) -> dict[str, Any]:
    given = clean(call.body.metadata)
    return {"metadata": _metadata(call, "volume:update_snapshot_metadata", lambda old: given)}


def show_metadata_item(call: Call) -> dict[str, Any]:
    found = _metadata(call, "volume:get_snapshot_metadata")
    key = call.params["key"]
    if key not in found:
        raise NotFound(f"Snapshot {call.params['id']} has no metadata with key {key}.")
    return {"meta": {key: found[key]}}


def set_metadata_item(call: Call) -> dict[str, Any]:
    given = clean(call.body.meta)
    if call.params["key"] not in given:
        raise BadInput("Request body and URI mismatch")
    if len(given) > 1:
        raise BadInput("Request body contains too many items")
    _metadata(call, "volume:update_snapshot_metadata", lambda old: {**old, **given})
    return {"meta": given}


def delete_metadata_item(call: Call) -> Reply:
    key = call.params["key"]

    def without(old: dict[str, str]) -> dict[str, str]:
        if key not in old:
            raise NotFound(f"Snapshot {call.params['id']} has no metadata with key {key}.")
        return {k: v for k, v in old.items() if k != key}

    _metadata(call, "volume:delete_snapshot_metadata", without)
    return Reply(status=200)


_ONE = "/snapshots/{id}"
_ACTION = _ONE + "/action"
ROUTES = [
    Route(method="GET", path="/snapshots", handler=index, policy="volume:get_all_snapshots"),
    Route(
        method="POST",
        path="/snapshots",
        handler=create,
        body=SnapshotCreate,
        body_key="snapshot",
        strict=False,
        success=202,
    ),
    Route(method="GET", path="/snapshots/detail", handler=detail, policy="volume:get_all_snapshots"),
    Route(method="GET", path=_ONE, handler=show),
    Route(method="PUT", path=_ONE, handler=update, body=SnapshotUpdate, body_key="snapshot"),
    Route(method="DELETE", path=_ONE, handler=delete, success=202),
    Route(method="POST", path=_ACTION, action="os-force_delete", handler=force_delete, success=202),
    Route(method="POST", path=_ACTION, action="os-reset_status", handler=reset_status, body=StatusBody, success=202),
    Route(
        method="POST",
        path=_ACTION,
        action="os-update_snapshot_status",
        handler=update_status,
        body=StatusBody,
        success=202,
    ),
    Route(method="GET", path=_ONE + "/metadata", handler=show_metadata),
    Route(method="POST", path=_ONE + "/metadata", handler=add_metadata, body=MetadataBody),
    Route(method="PUT", path=_ONE + "/metadata", handler=replace_metadata, body=MetadataBody),
    Route(method="GET", path=_ONE + "/metadata/{key}", handler=show_metadata_item),
    Route(method="PUT", path=_ONE + "/metadata/{key}", handler=set_metadata_item, body=MetaBody),
    Route(method="DELETE", path=_ONE + "/metadata/{key}", handler=delete_metadata_item),
]
