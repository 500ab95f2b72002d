"""Volumes: create, list, show, update, delete, metadata, summary."""

from typing import Annotated, Any

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, Since
from cumulet.kernel.errors import BadInput, NotFound, WrongState
from cumulet.services.volume import store
from cumulet.services.volume.api.common import (
    Metadata,
    Name,
    Size,
    Text255,
    UuidText,
    boolean,
    clean,
    equals,
    flag,
    has_metadata,
    links,
    listed,
    listing,
    load,
    moment,
    number,
    owned,
    time_range,
)
from cumulet.services.volume.creation import CreateVolumeRequest, create_volume
from cumulet.services.volume.placing import backend_name, frozen
from cumulet.services.volume.store import AttachmentRow, VolumeRow
from cumulet.services.volume.tables import VOLUMES

DELETABLE = ("available", "error", "error_restoring", "error_extending", "error_managing")


class VolumeCreate(msgspec.Struct, forbid_unknown_fields=True):
    size: Size | None = None
    name: Text255 | None = None
    description: Text255 | None = None
    display_name: Text255 | None = None
    display_description: Text255 | None = None
    volume_type: Text255 | None = None
    metadata: Metadata | None = None
    snapshot_id: UuidText | None = None
    source_volid: UuidText | None = None
    consistencygroup_id: UuidText | None = None
    availability_zone: Name | None = None
    multiattach: bool | None = None
    image_id: Text255 | None = None
    imageRef: Text255 | None = None
    group_id: Annotated[Text255 | None, Since("3.13")] = None
    backup_id: Annotated[UuidText | None, Since("3.47")] = None


class VolumeCreateBody(msgspec.Struct, forbid_unknown_fields=True):
    volume: VolumeCreate
    hints: dict[str, Any] | None = msgspec.field(default=None, name="OS-SCH-HNT:scheduler_hints")


class VolumeUpdate(msgspec.Struct, forbid_unknown_fields=True):
    name: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    description: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    display_name: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    display_description: Text255 | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType = msgspec.UNSET


class MetadataBody(msgspec.Struct, forbid_unknown_fields=True):
    metadata: Metadata


class MetaBody(msgspec.Struct, forbid_unknown_fields=True):
    meta: Metadata


# -- views -------------------------------------------------------------------------------------------------------


def attachment_view(call: Call, row: AttachmentRow) -> dict[str, Any]:
    shows_host = call.ctx.is_admin or "service" in call.ctx.roles
    return {
        "id": row.volume_id,
        "attachment_id": row.id,
        "volume_id": row.volume_id,
        "server_id": row.server_id,
        "host_name": row.host if shows_host else None,
        "device": row.device,
        "attached_at": moment(row.attached_at),
    }


def view(
    call: Call,
    row: VolumeRow,
    attachments: list[AttachmentRow],
    type_names: dict[str, str],
    *,
    extended: bool = True,
) -> dict[str, Any]:
    """``extended``: with what upstream adds by extensions, when a volume is shown or listed but not when it is made."""
    version = call.version or (3, 0)
    found: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "size": row.size_gb,
        "availability_zone": row.availability_zone,
        "created_at": moment(row.created_at),
        "updated_at": moment(row.updated_at),
        "name": row.name,
        "description": row.description,
        "volume_type": type_names.get(row.volume_type_id or "", row.volume_type_id),
        "snapshot_id": row.snapshot_id,
        "source_volid": row.source_volid,
        "metadata": row.metadata,
        "links": links(call, "volumes", row.id),
        "user_id": row.user_id,
        "bootable": str(row.bootable).lower(),
        "encrypted": False,
        "replication_status": None,
        "consistencygroup_id": None,
        "multiattach": row.multiattach,
        "attachments": [attachment_view(call, one) for one in attachments if one.status in ("attached", "detaching")],
    }
    if row.admin_metadata:
        found["metadata"] = {**row.metadata, **row.admin_metadata}
    if call.ctx.is_admin:
        found["migration_status"] = row.migration_status
    if extended:
        _extend_view(call, row, found)
    if version >= (3, 13):
        found["group_id"] = None
    if version >= (3, 21) and call.ctx.is_admin:
        found["provider_id"] = None
    if version >= (3, 48):
        found["shared_targets"] = False
        found["service_uuid"] = None
    if version >= (3, 61) and call.ctx.is_admin:
        found["cluster_name"] = None
    if version >= (3, 63):
        found["volume_type_id"] = row.volume_type_id
    if version >= (3, 65):
        found["consumes_quota"] = True
    return found


def _extend_view(call: Call, row: VolumeRow, found: dict[str, Any]) -> None:
    if call.ctx.is_admin:
        found["os-vol-mig-status-attr:migstat"] = row.migration_status
        found["os-vol-mig-status-attr:name_id"] = None
        found["os-vol-host-attr:host"] = backend_name(row.host) if row.host else None
    if call.allowed("volume_extension:volume_tenant_attribute", owned(row)):
        found["os-vol-tenant-attr:tenant_id"] = row.project_id
    if row.image_metadata:
        found["volume_image_metadata"] = row.image_metadata


def shown(call: Call, tx: Tx, row: VolumeRow, *, extended: bool = True) -> dict[str, Any]:
    return view(call, row, store.attachments_of(tx, row.id), store.type_names(tx), extended=extended)


# -- handlers ----------------------------------------------------------------------------------------------------


def create(call: Call) -> dict[str, Any]:
    body: VolumeCreate = call.body.volume
    asked = CreateVolumeRequest(
        size_gb=body.size,
        name=_stripped(body.name if body.name is not None else body.display_name),
        description=_stripped(body.description if body.description is not None else body.display_description),
        volume_type=body.volume_type or None,
        metadata=clean(body.metadata),
        availability_zone=body.availability_zone,
        snapshot_id=body.snapshot_id,
        source_volid=body.source_volid,
        image_id=body.imageRef or body.image_id or None,
        backup_id=body.backup_id,
        multiattach=bool(body.multiattach),
    )
    if body.group_id or body.consistencygroup_id:
        raise NotFound(f"Group {body.group_id or body.consistencygroup_id} could not be found.")

    def work(tx: Tx) -> dict[str, Any]:
        return {"volume": shown(call, tx, create_volume(call.service, tx, call.ctx, asked), extended=False)}

    return call.service.db.write(work)


def _stripped(text: str | None) -> str | None:
    return text.strip() if text is not None else None


_FILTERS = {
    "name": equals(VOLUMES.c.name),
    "display_name": equals(VOLUMES.c.name),
    "status": equals(VOLUMES.c.status),
    "bootable": flag(VOLUMES.c.bootable, "bootable"),
    "availability_zone": equals(VOLUMES.c.availability_zone),
    "migration_status": equals(VOLUMES.c.migration_status),
    "metadata": has_metadata(VOLUMES.c.metadata),
    "glance_metadata": has_metadata(VOLUMES.c.image_metadata),
    "size": number(VOLUMES.c.size_gb),
    "id": equals(VOLUMES.c.id),
    "snapshot_id": equals(VOLUMES.c.snapshot_id),
    "source_volid": equals(VOLUMES.c.source_volid),
    "created_at": time_range(VOLUMES.c.created_at, "created_at"),
    "updated_at": time_range(VOLUMES.c.updated_at, "updated_at"),
    "group_id": lambda text: VOLUMES.c.id.is_(None),
    "consumes_quota": lambda text: VOLUMES.c.id.is_not(None) if boolean(text) else VOLUMES.c.id.is_(None),
    "host": lambda text: VOLUMES.c.host == text.partition("@")[0],
    "multiattach": flag(VOLUMES.c.multiattach, "multiattach"),
    "user_id": equals(VOLUMES.c.user_id),
}
_SORTS = {
    "id": "id", "status": "status", "size": "size_gb", "availability_zone": "availability_zone", "name": "name",
    "display_name": "name", "bootable": "bootable", "created_at": "created_at", "updated_at": "updated_at",
    "host": "host",
}  # fmt: skip


def index(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, count, more = listing(call, tx, store.VOLUMES, _FILTERS, sort_keys=_SORTS)
        views = [{"id": r.id, "name": r.name, "links": links(call, "volumes", r.id)} for r in rows]
        return listed(call, "volumes", "volumes", views, rows, count, more)

    return call.service.db.read(work)


def detail(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        rows, count, more = listing(call, tx, store.VOLUMES, _FILTERS, sort_keys=_SORTS)
        attachments = store.attachments_of_all(tx, [row.id for row in rows])
        names = store.type_names(tx)
        views = [view(call, row, attachments.get(row.id, []), names) for row in rows]
        return listed(call, "volumes", "volumes/detail", views, rows, count, more)

    return call.service.db.read(work)


def summary(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        clauses = []
        if not (call.ctx.is_admin and boolean(call.query.get("all_tenants") or "0")):
            clauses.append(VOLUMES.c.project_id == call.ctx.project_id)
        rows = store.VOLUMES.where(tx, *clauses)
        found: dict[str, Any] = {"total_count": len(rows), "total_size": sum(row.size_gb for row in rows)}
        if (call.version or (3, 0)) >= (3, 36):
            metadata: dict[str, list[str]] = {}
            for row in rows:
                for key, value in row.metadata.items():
                    values = metadata.setdefault(key, [])
                    if value not in values:
                        values.append(value)
            found["metadata"] = metadata
        return {"volume-summary": found}

    return call.service.db.read(work)


def show(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.VOLUMES, call.params["id"], "volume:get")
        return {"volume": shown(call, tx, row)}

    return call.service.db.read(work)


def update(call: Call) -> dict[str, Any]:
    body: VolumeUpdate = call.body
    values: dict[str, Any] = {}
    for column, fields in (("name", ("name", "display_name")), ("description", ("description", "display_description"))):
        for field in fields:
            given = getattr(body, field)
            if given is not msgspec.UNSET:
                values[column] = _stripped(given)
                break
    if body.metadata is not msgspec.UNSET:
        values["metadata"] = clean(body.metadata)
    if not values and not call.raw.strip():
        raise BadInput("The request body is empty.")

    def work(tx: Tx) -> dict[str, Any]:
        row = load(tx, call, store.VOLUMES, call.params["id"], "volume:update")
        if row.status == "maintenance":
            raise WrongState("The volume cannot be updated during maintenance.")
        store.VOLUMES.change(tx, row.id, **values)
        return {"volume": shown(call, tx, store.VOLUMES.get(tx, row.id), extended=False)}

    return call.service.db.write(work)


def delete(call: Call) -> Reply:
    cascade = boolean(call.query.get("cascade") or "false", "cascade")
    force = (call.version or (3, 0)) >= (3, 23) and boolean(call.query.get("force") or "false", "force")

    def work(tx: Tx) -> None:
        row = load(tx, call, store.VOLUMES, call.params["id"], "volume:delete")
        if force:
            call.authorize("volume:force_delete", owned(row))
        begin_delete(call, tx, row, cascade=cascade, force=force)

    call.service.db.write(work)
    return Reply(status=202)


def begin_delete(call: Call, tx: Tx, row: VolumeRow, *, cascade: bool = False, force: bool = False) -> None:
    if frozen(tx, call.service.hosts, row.host):
        raise BadInput("Invalid input received: The volume's host is frozen.")
    snapshots = store.snapshots_of(tx, row.id)
    attached = bool(store.attachments_of(tx, row.id) or store.exports_of(tx, row.id))
    good = (force or row.status in DELETABLE) and row.migration_status not in store.MOVES
    if cascade:
        good = good and (force or all(one.status in ("available", "error", "deleting") for one in snapshots))
    else:
        good = good and not snapshots
    if (
        not good
        or (attached and not force)
        or any(one.status in ("attached", "detaching") for one in store.attachments_of(tx, row.id))
    ):
        raise WrongState(
            f"Invalid volume: Volume {row.id} status must be {' or '.join(DELETABLE)} and must not be migrating,"
            " attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots"
            " after volume transfer."
        )
    for snapshot in snapshots:
        store.SNAPSHOTS.change(tx, snapshot.id, status="deleting")
    call.service.begin_delete(tx, call.ctx, row, cascade=cascade)


# -- metadata ------------------------------------------------------------------------------------------------------


def _metadata(call: Call, rule: str, change: Any = None) -> dict[str, str]:
    def work(tx: Tx) -> dict[str, str]:
        row = load(tx, call, store.VOLUMES, call.params["id"], rule)
        if change is None:
            return dict(row.metadata)
        if row.status == "uploading":
            raise WrongState("Updating volume metadata is not allowed for volumes in uploading status.")
        changed: dict[str, str] = change(dict(row.metadata))
        store.VOLUMES.change(tx, row.id, metadata=changed)
        return changed

    return call.service.db.read(work) if change is None else call.service.db.write(work)


def show_metadata(call: Call) -> dict[str, Any]:
    return {"metadata": _metadata(call, "volume:get_volume_metadata")}


def add_metadata(call: Call) -> dict[str, Any]:
    given = clean(call.body.metadata)
    return {"metadata": _metadata(call, "volume:create_volume_metadata", lambda old: {**old, **given})}


def replace_metadata(call: Call) -> dict[str, Any]:
    given = clean(call.body.metadata)
    return {"metadata": _metadata(call, "volume:update_volume_metadata", lambda old: given)}


def show_metadata_item(call: Call) -> dict[str, Any]:
    found = _metadata(call, "volume:get_volume_metadata")
    key = call.params["key"]
    if key not in found:
        raise NotFound(f"Volume {call.params['id']} has no metadata with key {key}.")
    return {"meta": {key: found[key]}}


def set_metadata_item(call: Call) -> dict[str, Any]:
    given = clean(call.body.meta)
    key = call.params["key"]
    if key not in given:
        raise BadInput("Request body and URI mismatch")
    if len(given) > 1:
        raise BadInput("Request body contains too many items")
    _metadata(call, "volume:update_volume_metadata", lambda old: {**old, **given})
    return {"meta": given}


def delete_metadata_item(call: Call) -> Reply:
    key = call.params["key"]

    def without(old: dict[str, str]) -> dict[str, str]:
        if key not in old:
            raise NotFound(f"Volume {call.params['id']} has no metadata with key {key}.")
        return {k: v for k, v in old.items() if k != key}

    _metadata(call, "volume:delete_volume_metadata", without)
    return Reply(status=200)


def no_encryption(call: Call) -> dict[str, Any]:
    def work(tx: Tx) -> None:
        load(tx, call, store.VOLUMES, call.params["id"], "volume_extension:volume_encryption_metadata")

    call.service.db.read(work)
    found: dict[str, Any] = {"encryption_key_id": None}
    key = call.params.get("key")
    return found if key is None else {key: found.get(key)}


_ONE = "/volumes/{id}"
ROUTES = [
    Route(method="GET", path="/volumes", handler=index, policy="volume:get_all"),
    Route(
        method="POST",
        path="/volumes",
        handler=create,
        policy="volume:create",
        body=VolumeCreateBody,
        strict=False,
        success=202,
    ),
    Route(method="GET", path="/volumes/detail", handler=detail, policy="volume:get_all"),
    Route(method="GET", path="/volumes/summary", handler=summary, policy="volume:get_all", min_version="3.12"),
    Route(method="GET", path=_ONE, handler=show),
    Route(method="PUT", path=_ONE, handler=update, body=VolumeUpdate, body_key="volume"),
    Route(method="DELETE", path=_ONE, handler=delete, success=202),
    Route(method="GET", path=_ONE + "/metadata", handler=show_metadata),
    Route(method="POST", path=_ONE + "/metadata", handler=add_metadata, body=MetadataBody),
    Route(method="PUT", path=_ONE + "/metadata", handler=replace_metadata, body=MetadataBody),
    Route(method="GET", path=_ONE + "/metadata/{key}", handler=show_metadata_item),
    Route(method="PUT", path=_ONE + "/metadata/{key}", handler=set_metadata_item, body=MetaBody),
    Route(method="DELETE", path=_ONE + "/metadata/{key}", handler=delete_metadata_item),
    Route(method="GET", path=_ONE + "/encryption", handler=no_encryption),
    Route(method="GET", path=_ONE + "/encryption/{key}", handler=no_encryption),
]
