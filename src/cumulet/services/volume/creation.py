"""What is checked and written when a volume is asked for, before anything happens on a host."""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, NotFound, WrongState
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import state, store, types
from cumulet.services.volume.store import VolumeRow
from cumulet.services.volume.workflows.volumes import CreateParams

_GIB = 1 << 30


class CreateVolumeRequest(msgspec.Struct, kw_only=True):
    size_gb: int | None = None
    name: str | None = None
    description: str | None = None
    volume_type: str | None = None
    metadata: dict[str, str] = {}
    availability_zone: str | None = None
    snapshot_id: str | None = None
    source_volid: str | None = None
    image_id: str | None = None
    backup_id: str | None = None
    multiattach: bool = False
    server_id: str | None = None


class _Source(msgspec.Struct):
    size_gb: int | None = None  # at least so large
    type_id: str | None = None
    bootable: bool = False
    image_metadata: dict[str, str] | None = None


def create_volume(service: "object", tx: Tx, ctx: RequestContext, asked: CreateVolumeRequest) -> VolumeRow:
    """Insert the volume and its saga. Errors are those the API gives before its 202."""
    from cumulet.services.volume.public import VolumeService

    assert isinstance(service, VolumeService)
    assert ctx.project_id is not None
    sources = [asked.snapshot_id, asked.source_volid, asked.image_id, asked.backup_id]
    if sum(one is not None for one in sources) > 1:
        raise BadInput("Invalid input received: only one of snapshot, source volume, image and backup may be given.")
    source = _source(service, tx, ctx, asked)
    size = asked.size_gb if asked.size_gb is not None or asked.image_id is not None else source.size_gb
    if size is None or size < 1:
        raise BadInput(f"Invalid input received: Volume size '{asked.size_gb}' must be an integer and greater than 0")
    if source.size_gb is not None and size < source.size_gb:
        raise BadInput(
            f"Invalid input received: Volume size '{size}'GB cannot be smaller than the source's size"
            f" {source.size_gb}GB. They must be >= original size."
        )
    if asked.availability_zone not in (None, service.settings.availability_zone):
        raise BadInput(f"Invalid input received: Availability zone '{asked.availability_zone}' is invalid.")
    volume_type = _type(tx, ctx, asked, source)
    types.refuse_encrypted(volume_type)
    service.quotas.check_size(tx, ctx.project_id, size)
    service.quotas.claim(tx, ctx.project_id, {"volumes": 1, "gigabytes": size}, volume_type.name)
    row = VolumeRow(
        id=new_uuid(),
        project_id=ctx.project_id,
        user_id=ctx.user_id,
        name=asked.name,
        description=asked.description,
        size_gb=size,
        status="creating",
        base="creating",
        busy=None,
        legacy=None,
        override=None,
        volume_type_id=volume_type.id,
        availability_zone=service.settings.availability_zone,
        host=None,
        snapshot_id=asked.snapshot_id,
        source_volid=asked.source_volid,
        image_id=asked.image_id,
        server_id=asked.server_id,
        bootable=source.bootable,
        multiattach=types.multiattach(volume_type) or asked.multiattach,
        metadata=asked.metadata,
        admin_metadata={},
        image_metadata=source.image_metadata,
        migration_status=None,
        transfer=False,
        created_at=tx.now,
        updated_at=tx.now,
    )
    store.VOLUMES.insert(tx, row)
    if asked.backup_id is not None:
        store.BACKUPS.change(tx, asked.backup_id, status="restoring")  # and cannot be deleted meanwhile
    service.sagas.start(tx, service.volume_workflows.create, row.id, CreateParams(backup_id=asked.backup_id), ctx)
    return row


def _type(tx: Tx, ctx: RequestContext, asked: CreateVolumeRequest, source: _Source) -> store.TypeRow:
    if asked.volume_type:
        return types.find(tx, ctx, asked.volume_type)
    if source.type_id is not None:
        found = store.TYPES.find_to_refer(tx, source.type_id)
        if found is not None:
            return found
    return types.default_for(tx, ctx.project_id)


def _source(service: "object", tx: Tx, ctx: RequestContext, asked: CreateVolumeRequest) -> _Source:
    if asked.snapshot_id is not None:
        snapshot = store.SNAPSHOTS.find(tx, asked.snapshot_id)
        if snapshot is None or not (ctx.is_admin or snapshot.project_id == ctx.project_id):
            raise store.SNAPSHOTS.missing(asked.snapshot_id)
        if snapshot.status not in ("available", "backing-up"):
            raise WrongState(
                "Invalid snapshot: Originating snapshot status must be one of 'available' values, not"
                f" {snapshot.status}"
            )
        origin = store.VOLUMES.find(tx, snapshot.volume_id, change=False)
        return _like(snapshot.size_gb, origin)
    if asked.source_volid is not None:
        source = store.VOLUMES.find(tx, asked.source_volid)
        if source is None or not (ctx.is_admin or source.project_id == ctx.project_id):
            raise store.VOLUMES.missing(asked.source_volid)
        state.refuse_moving(source)
        if source.status not in ("available", "in-use"):
            raise WrongState(
                "Invalid volume: Originating volume status must be one of 'available, in-use' values, not"
                f" {source.status}"
            )
        return _like(source.size_gb, source)
    if asked.backup_id is not None:
        backup = store.BACKUPS.find(tx, asked.backup_id)
        if backup is None or not (ctx.is_admin or backup.project_id == ctx.project_id):
            raise store.BACKUPS.missing(asked.backup_id)
        if backup.status != "available":
            raise WrongState(f"Invalid backup: Originating backup status must be 'available', not {backup.status}")
        return _like(backup.size_gb, store.VOLUMES.find(tx, backup.volume_id, change=False))
    if asked.image_id is not None:
        return _image(service, tx, ctx, asked.image_id)
    return _Source()


def _like(size_gb: int, origin: VolumeRow | None) -> _Source:
    if origin is None:
        return _Source(size_gb)
    return _Source(size_gb, origin.volume_type_id, origin.bootable, origin.image_metadata)


def _image(service: "object", tx: Tx, ctx: RequestContext, image_id: str) -> _Source:
    try:
        image = service.image.get(tx, ctx, image_id)  # type: ignore[attr-defined]
    except NotFound:
        raise BadInput("Invalid image identifier or unable to access requested image.") from None
    if image.status != "active":
        raise BadInput(f"Invalid input received: Image {image_id} is not active.")
    needed = max(image.min_disk, -(-max(image.size or 0, image.virtual_size or 0) // _GIB), 1)
    return _Source(needed, None, True, described(image))


def described(image: Any) -> dict[str, str]:
    """What a volume that holds an image remembers of it."""
    return {
        "image_id": image.id,
        "image_name": image.name or "",
        "checksum": image.checksum or "",
        "container_format": image.container_format or "",
        "disk_format": image.disk_format or "",
        "min_disk": str(image.min_disk),
        "min_ram": str(image.min_ram),
        "size": str(image.size or 0),
        **{key: value for key, value in image.properties.items() if not key.startswith("os_glance")},
    }
