"""Attachments: who uses a volume where. The compute service's seams and the attachments API stand on these."""

from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.db import Tx
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import NotFound, WrongState
from cumulet.kernel.ids import new_uuid
from cumulet.services.volume import state, store
from cumulet.services.volume.store import AttachmentRow, VolumeRow
from cumulet.services.volume.tables import EXPORTED


def reserve(
    tx: Tx,
    ctx: RequestContext,
    volume: VolumeRow,
    server_id: str | None,
    device: str | None = None,
    mode: str | None = None,
) -> AttachmentRow:
    """A new attachment in ``reserved``. A volume may be attached twice only with multiattach, or to move its server."""
    current = store.VOLUMES.get(tx, volume.id)
    state.refuse_moving(current)
    if "error" in current.status:
        raise WrongState(
            "Volume attachments can not be created if the volume is in an error state. The Volume"
            f" {volume.id} currently has a status of: {current.status} "
        )
    allowed = ("available", "downloading", "in-use") if current.multiattach else ("available", "downloading")
    made_for = current.status == "creating" and server_id is not None and current.server_id == server_id
    if current.status not in allowed and not made_for:
        others = store.attachments_of(tx, volume.id)
        moving = current.status in ("in-use", "reserved") and any(
            server_id is not None and other.server_id == server_id for other in others
        )
        if not moving:
            raise WrongState(
                f"Volume {volume.id} status must be {' or '.join(allowed)} to reserve, but the current status is"
                f" {current.status}."
            )
    read_only = current.admin_metadata.get("readonly") == "True"
    row = AttachmentRow(
        id=new_uuid(),
        volume_id=volume.id,
        project_id=current.project_id,
        server_id=server_id,
        status="reserved",
        generation=1,
        host=None,
        device=device,
        mode="ro" if read_only else mode,
        connector=None,
        connection=None,
        attached_at=None,
        created_at=tx.now,
    )
    store.ATTACHMENTS.insert(tx, row)
    state.settle(tx, volume.id)
    return row


def exported(tx: Tx, volume: VolumeRow, host: str, connector: dict[str, Any]) -> AttachmentRow:
    """A connection that belongs to no attachment (os-initialize_connection)."""
    row = AttachmentRow(
        id=new_uuid(),
        volume_id=volume.id,
        project_id=volume.project_id,
        server_id=None,
        status=EXPORTED,
        generation=1,
        host=host,
        device=None,
        mode="ro" if volume.admin_metadata.get("readonly") == "True" else None,
        connector=connector,
        connection=None,
        attached_at=None,
        created_at=tx.now,
    )
    return store.ATTACHMENTS.insert(tx, row)


def export(tx: Tx, attachment_id: str, host: str) -> tuple[str, c.ExportVolume]:
    """What to ask of the storage host so that ``host`` reaches the volume. Each new host raises the generation, which
    fences the one before. Raises WrongState while the volume is not made."""
    attachment = store.ATTACHMENTS.get(tx, attachment_id)
    volume = store.VOLUMES.get(tx, attachment.volume_id)
    if volume.host is None or volume.base == "error":
        raise WrongState(f"Volume {volume.id} is {volume.status}.")
    generation = attachment.generation
    if attachment.host is not None and attachment.host != host:
        generation += 1
    if tx.writing and (attachment.host, attachment.generation) != (host, generation):
        store.ATTACHMENTS.change(tx, attachment_id, host=host, generation=generation)
    return volume.host, c.ExportVolume(
        volume_id=volume.id, attachment_id=attachment_id, attachment_generation=generation, host=host
    )


def unexport(tx: Tx, attachment_id: str) -> tuple[str, c.UnexportVolume] | None:
    attachment = store.ATTACHMENTS.find(tx, attachment_id)
    volume = store.VOLUMES.find(tx, attachment.volume_id) if attachment is not None else None
    if attachment is None or volume is None or volume.host is None:
        return None
    return volume.host, c.UnexportVolume(volume_id=volume.id, attachment_id=attachment_id)


def connected(tx: Tx, attachment_id: str, host: str | None, device: str | None) -> None:
    """The guest has it."""
    attachment = store.ATTACHMENTS.get(tx, attachment_id)
    values: dict[str, Any] = {"status": "attached", "host": host, "device": device or attachment.device}
    values["attached_at"] = attachment.attached_at or tx.now
    store.ATTACHMENTS.change(tx, attachment_id, **values)
    state.settle(tx, attachment.volume_id)


def begin_detaching(tx: Tx, attachment_id: str) -> None:
    attachment = store.ATTACHMENTS.get(tx, attachment_id)
    store.ATTACHMENTS.change(tx, attachment_id, status="detaching")
    state.settle(tx, attachment.volume_id)


def drop(tx: Tx, attachment_id: str) -> None:
    """No more; not there is no error."""
    attachment = store.ATTACHMENTS.find(tx, attachment_id)
    if attachment is None:
        return
    store.ATTACHMENTS.remove(tx, attachment_id)
    volume = store.VOLUMES.find(tx, attachment.volume_id)
    if volume is not None and volume.legacy is not None:
        state.change(tx, volume.id, legacy=None)
    state.settle(tx, attachment.volume_id)


def of_volume(tx: Tx, volume_id: str, attachment_id: str | None) -> AttachmentRow | None:
    """The attachment meant by a legacy call: the one named, or the only one."""
    found = store.attachments_of(tx, volume_id)
    if attachment_id is not None:
        for one in found:
            if one.id == attachment_id:
                return one
        raise NotFound(f"Volume attachment could not be found with filter: attachment_id = {attachment_id}.")
    if len(found) > 1:
        raise WrongState("Detach volume failed: More than one attachment, but no attachment_id provided.")
    return found[0] if found else None


def connection_info(volume: VolumeRow, attachment: AttachmentRow) -> dict[str, Any]:
    """What an external client is told (cinder's form)."""
    if attachment.connection is None:
        return {}
    found = msgspec.convert(attachment.connection, c.DiskConnection)
    return {
        "driver_volume_type": found.driver,
        "attachment_id": attachment.id,
        "volume_id": volume.id,
        "encrypted": False,
        "qos_specs": None,
        "access_mode": attachment.mode if attachment.mode in ("ro", "rw") else "rw",
        "cacheable": False,
        "export": found.uri or found.path,
        "format": found.format,
    }
