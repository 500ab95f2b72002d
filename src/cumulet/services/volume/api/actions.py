"""Actions on a volume: extend, upload, administrators' resets, and the small ones (attaching: `connections`)."""

from typing import Annotated, Any, Literal

import msgspec

from cumulet.db import Tx
from cumulet.http import Call, Reply, Route, Since
from cumulet.kernel.errors import BadInput, NotFound, WrongState
from cumulet.services.volume import placing, state, store, types
from cumulet.services.volume.api.common import Metadata, Name, Size, Text255, UuidText, load, moment, owned
from cumulet.services.volume.api.volumes import begin_delete
from cumulet.services.volume.creation import described
from cumulet.services.volume.store import VolumeRow
from cumulet.services.volume.workflows.volumes import ExtendParams, ReimageParams, RevertParams, UploadParams

VOLUME_STATUSES = (
    "creating", "available", "deleting", "error", "error_deleting", "error_managing", "managing", "attaching",
    "in-use", "detaching", "maintenance", "restoring-backup", "error_restoring", "reserved", "awaiting-transfer",
    "backing-up", "error_backing-up", "error_extending", "downloading", "uploading", "retyping", "extending",
)  # fmt: skip


class Extend(msgspec.Struct, forbid_unknown_fields=True):
    new_size: Size


class UploadImage(msgspec.Struct, forbid_unknown_fields=True):
    image_name: Name
    force: bool = False
    disk_format: Literal["raw", "vmdk", "vdi", "qcow2", "vhd", "vhdx", "ploop"] = "raw"
    container_format: Text255 | None = "bare"
    visibility: Annotated[Literal["community", "public", "private", "shared"], Since("3.1")] = "private"
    protected: Annotated[bool, Since("3.1")] = False


class ResetStatus(msgspec.Struct, forbid_unknown_fields=True):
    status: str | None = None
    attach_status: str | None = None
    migration_status: str | None = None


class Bootable(msgspec.Struct, forbid_unknown_fields=True):
    bootable: bool


class ReadOnly(msgspec.Struct, forbid_unknown_fields=True):
    readonly: bool


class ImageMetadata(msgspec.Struct, forbid_unknown_fields=True):
    metadata: Metadata


class UnsetImageMetadata(msgspec.Struct, forbid_unknown_fields=True):
    key: Name


class Retype(msgspec.Struct, forbid_unknown_fields=True):
    new_type: str
    migration_policy: Literal["on-demand", "never"] | None = None


class Revert(msgspec.Struct, forbid_unknown_fields=True):
    snapshot_id: str | None = None


class Migrate(msgspec.Struct, forbid_unknown_fields=True):
    host: Text255 | None = None
    cluster: Annotated[Text255 | None, Since("3.16")] = None
    force_host_copy: bool = False
    lock_volume: bool = False


class Reimage(msgspec.Struct, forbid_unknown_fields=True):
    image_id: UuidText
    reimage_reserved: bool = False


def act(call: Call, rule: str, work: Any, status: int = 202) -> Reply:
    """Load the volume under the rule, do the work in one transaction."""

    def unit(tx: Tx) -> Any:
        return work(tx, load(tx, call, store.VOLUMES, call.params["id"], rule))

    return Reply(call.service.db.write(unit), status=status)


def must_be(row: VolumeRow, *statuses: str, verb: str) -> None:
    state.refuse_moving(row)
    if row.status not in statuses:
        raise WrongState(
            f"Invalid volume: Volume {row.id} status must be {' or '.join(statuses)} to {verb}, but the current status"
            f" is {row.status}."
        )


def _not_exported(tx: Tx, row: VolumeRow) -> None:
    if store.exports_of(tx, row.id):
        raise WrongState(f"Invalid volume: Volume {row.id} is exported; terminate its connections first.")


# -- size --------------------------------------------------------------------------------------------------------


def extend(call: Call) -> Reply:
    new_size = call.body.new_size
    live = (call.version or (3, 0)) >= (3, 42)

    def work(tx: Tx, row: VolumeRow) -> None:
        if row.status == "in-use" and live:
            call.authorize("volume:extend_attached_volume", owned(row))
            if not call.allowed("volume:extend_attached_volume", owned(row)):
                raise WrongState("The volume is attached.")
        else:
            must_be(row, "available", verb="extend")
        if new_size <= row.size_gb:
            raise BadInput(
                f"Invalid input received: New size for extend must be greater than current size. (current: "
                f"{row.size_gb}, extended: {new_size})."
            )
        call.service.quotas.check_size(tx, row.project_id, new_size)
        name = store.type_names(tx).get(row.volume_type_id or "")
        call.service.quotas.claim(tx, row.project_id, {"gigabytes": new_size - row.size_gb}, name)
        state.change(tx, row.id, busy="extending", size_gb=new_size)
        params = ExtendParams(size_gb=new_size, old_size_gb=row.size_gb)
        call.service.sagas.start(tx, call.service.volume_workflows.extend, row.id, params, call.ctx)

    return act(call, "volume:extend", work)


def revert(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        must_be(row, "available", verb="revert")
        _not_exported(tx, row)
        newest = sorted(store.snapshots_of(tx, row.id), key=lambda one: one.created_at)
        if not newest or newest[-1].id != call.body.snapshot_id:
            raise BadInput(
                f"Invalid input received: Specified snapshot_id {call.body.snapshot_id} is None or not the"
                f" latest one of volume {row.id}."
            )
        if newest[-1].size_gb != row.size_gb:
            raise BadInput(f"Invalid volume: Can't revert volume {row.id} to its latest snapshot: sizes differ.")
        state.change(tx, row.id, busy="reverting")
        params = RevertParams(snapshot_id=newest[-1].id)
        call.service.sagas.start(tx, call.service.volume_workflows.revert, row.id, params, call.ctx)

    return act(call, "volume:revert_to_snapshot", work)


def reimage(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        allowed = ("available", "error") + (("reserved",) if call.body.reimage_reserved else ())
        must_be(row, *allowed, verb="be re-imaged")
        _not_exported(tx, row)
        image = call.service.image.get(tx, call.ctx, call.body.image_id)
        size = max(image.size or 0, image.virtual_size or 0, image.min_disk << 30)
        if image.status != "active" or size > row.size_gb << 30:
            raise BadInput("Invalid image: it is not active or does not fit the volume.")
        if store.snapshots_of(tx, row.id):
            raise WrongState("Invalid volume: it has snapshots.")
        state.change(tx, row.id, busy="downloading", image_id=image.id)
        params = ReimageParams(image_id=image.id, image_metadata=described(image))
        call.service.sagas.start(tx, call.service.volume_workflows.reimage, row.id, params, call.ctx)

    return act(call, "volume:reimage", work)


# -- images ------------------------------------------------------------------------------------------------------


def upload_image(call: Call) -> Reply:
    body: UploadImage = call.body

    def work(tx: Tx, row: VolumeRow) -> dict[str, Any]:
        if body.visibility in ("public", "community"):
            call.authorize("volume_extension:volume_actions:upload_public", owned(row))
        must_be(row, *(("available", "in-use") if body.force else ("available",)), verb="upload")
        if body.container_format not in (None, "bare"):
            raise BadInput("Invalid input received: volumes are uploaded in the container format bare.")
        if body.disk_format == "ploop":
            raise BadInput("Invalid input received: volumes cannot be written as ploop.")
        kept = {k: v for k, v in (row.image_metadata or {}).items() if k.startswith(("os_", "hw_", "architecture"))}
        image_id = call.service.image.create_snapshot_image(
            tx,
            call.ctx,
            body.image_name,
            kept,
            disk_format=body.disk_format,
            container_format="bare",
            visibility=body.visibility,
            protected=body.protected,
        )
        state.change(tx, row.id, busy="uploading")
        params = UploadParams(image_id=image_id)
        call.service.sagas.start(tx, call.service.volume_workflows.upload, row.id, params, call.ctx)
        kind = store.TYPES.find(tx, row.volume_type_id) if row.volume_type_id else None
        answer: dict[str, Any] = {
            "id": row.id,
            "updated_at": moment(row.updated_at),
            "status": "uploading",
            "display_description": row.description,
            "size": row.size_gb,
            "volume_type": {"id": kind.id, "name": kind.name} if kind else None,
            "image_id": image_id,
            "container_format": "bare",
            "disk_format": body.disk_format,
            "image_name": body.image_name,
        }
        if (call.version or (3, 0)) >= (3, 1):
            answer.update(visibility=body.visibility, protected=body.protected)
        return {"os-volume_upload_image": answer}

    return act(call, "volume_extension:volume_actions:upload_image", work)


def set_image_metadata(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> dict[str, Any]:
        changed = {**(row.image_metadata or {}), **call.body.metadata}
        store.VOLUMES.change(tx, row.id, image_metadata=changed)
        return {"metadata": changed}

    return act(call, "volume_extension:volume_image_metadata:set", work, 200)


def unset_image_metadata(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        old = dict(row.image_metadata or {})
        if call.body.key not in old:
            raise NotFound("Metadata item was not found.")
        del old[call.body.key]
        store.VOLUMES.change(tx, row.id, image_metadata=old or None)

    return act(call, "volume_extension:volume_image_metadata:remove", work, 200)


def show_image_metadata(call: Call) -> Reply:
    return act(
        call, "volume_extension:volume_image_metadata:show", lambda tx, row: {"metadata": row.image_metadata or {}}, 200
    )


# -- flags and administrators -----------------------------------------------------------------------------------------


def set_bootable(call: Call) -> Reply:
    return act(
        call,
        "volume:update",
        lambda tx, row: store.VOLUMES.change(tx, row.id, bootable=call.body.bootable) and None,
        200,
    )


def set_readonly(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        must_be(row, "available", verb="update readonly flag")
        changed = {**row.admin_metadata, "readonly": str(call.body.readonly)}
        store.VOLUMES.change(tx, row.id, admin_metadata=changed)

    return act(call, "volume:update_readonly_flag", work)


def reset_status(call: Call) -> Reply:
    body: ResetStatus = call.body
    if body.status is None and body.attach_status is None and body.migration_status is None:
        raise BadInput("Must specify 'status', 'attach_status' or 'migration_status' for update.")
    if body.status is not None and body.status.lower() not in VOLUME_STATUSES:
        raise BadInput(f"Invalid input for field 'status': {body.status!r} is not a volume status.")
    if body.attach_status is not None and body.attach_status.lower() not in ("attached", "detached"):
        raise BadInput(f"Invalid input for field 'attach_status': {body.attach_status!r}.")
    if body.migration_status is not None and body.migration_status.lower() not in (
        "migrating", "error", "success", "completing", "none", "starting"
    ):  # fmt: skip
        raise BadInput(f"Invalid input for field 'migration_status': {body.migration_status!r}.")

    def work(tx: Tx, row: VolumeRow) -> None:
        if body.migration_status is not None:
            if row.migration_status in store.MOVES and call.service.sagas.owner(tx, "volume", row.id) is not None:
                raise WrongState(f"Invalid volume: Volume {row.id} is being migrated; wait until that is over.")
            wanted = body.migration_status.lower()
            store.VOLUMES.change(tx, row.id, migration_status=None if wanted == "none" else wanted)
        if body.attach_status is not None and body.attach_status.lower() == "detached":
            for one in store.attachments_of(tx, row.id):
                store.ATTACHMENTS.remove(tx, one.id)
        if body.status is not None:
            store.VOLUMES.change(tx, row.id, override=body.status.lower())
        state.settle(tx, row.id, event=False)

    return act(call, "volume_extension:volume_admin_actions:reset_status", work)


def force_delete(call: Call) -> Reply:
    return act(
        call,
        "volume_extension:volume_admin_actions:force_delete",
        lambda tx, row: begin_delete(call, tx, row, force=True),
    )


def retype(call: Call) -> Reply:
    def work(tx: Tx, row: VolumeRow) -> None:
        try:
            new = types.find(tx, call.ctx, call.body.new_type)
        except NotFound as error:
            raise BadInput(f"Invalid input received: Invalid volume_type passed: {call.body.new_type}.") from error
        if row.volume_type_id == new.id:
            raise BadInput("Invalid input received: New volume type same as original.")
        types.refuse_encrypted(new)
        must_be(row, "available", "in-use", verb="retype")
        names = store.type_names(tx)
        call.service.quotas.claim(tx, row.project_id, {}, None)
        if new.name in names.values():
            wanted = {f"volumes_{new.name}": 1, f"gigabytes_{new.name}": row.size_gb}
            call.service.quotas.claim(tx, row.project_id, wanted)
        store.VOLUMES.change(tx, row.id, volume_type_id=new.id, multiattach=types.multiattach(new))

    return act(call, "volume:retype", work)


def migrate(call: Call) -> Reply:
    body: Migrate = call.body
    if bool(body.host) == bool(body.cluster):
        raise BadInput("Invalid input received: One and only one of cluster and host must be set.")

    def work(tx: Tx, row: VolumeRow) -> None:
        names = {host.name: host for host in placing.storage_hosts(tx, call.service.hosts)}
        host = names.get(placing.named(body.host or "") or "")  # there are no clusters
        if host is None or not host.up or "storage" in host.disabled_roles:
            raise BadInput(f"Invalid host: No available service named '{body.cluster or body.host}'")
        if host.name == row.host:
            raise WrongState(f"Invalid volume: Volume {row.id} is on host {host.name} already.")
        call.service.begin_move(tx, call.ctx, row, host.name, lock=body.lock_volume)

    return act(call, "volume_extension:volume_admin_actions:migrate_volume", work)


_PATH = "/volumes/{id}/action"


def action(name: str, handler: Any, body: Any = None, **more: Any) -> Route:
    return Route(
        method="POST", path=_PATH, action=name, handler=handler, body=body, strict=False,
        success=more.pop("success", 202), **more,
    )  # fmt: skip


ROUTES = [
    action("os-extend", extend, Extend),
    action("revert", revert, Revert, min_version="3.40"),
    action("os-reimage", reimage, Reimage, min_version="3.68"),
    action("os-volume_upload_image", upload_image, UploadImage),
    action("os-set_image_metadata", set_image_metadata, ImageMetadata, success=200),
    action("os-unset_image_metadata", unset_image_metadata, UnsetImageMetadata, success=200),
    action("os-show_image_metadata", show_image_metadata, success=200),
    action("os-set_bootable", set_bootable, Bootable, success=200),
    action("os-update_readonly_flag", set_readonly, ReadOnly),
    action("os-reset_status", reset_status, ResetStatus),
    action("os-force_delete", force_delete),
    action("os-retype", retype, Retype),
    action("os-migrate_volume", migrate, Migrate),
]
