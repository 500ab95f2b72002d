"""What the API shows of a volume, computed from what is known of it."""

from collections.abc import Sequence

import msgspec

from cumulet.db import Tx
from cumulet.kernel.errors import WrongState
from cumulet.services.volume import store
from cumulet.services.volume.store import AttachmentRow, VolumeRow

# While a saga does this, it is what the volume is; other things can be said of a volume that only "ready" lacks.
_DONE = "ready"


def status_of(volume: VolumeRow, attachments: Sequence[AttachmentRow]) -> str:
    """Pure. An administrator's word stands until something happens; then work in progress, errors, ownership moves,
    and attachments, in that order."""
    if volume.override is not None:
        return volume.override
    if volume.busy is not None:
        return volume.busy
    if volume.base != _DONE:
        return volume.base
    if volume.transfer:
        return "awaiting-transfer"
    if volume.legacy is not None:
        return volume.legacy
    # a server that moves has one more for the host it goes to
    users = {attachment.server_id for attachment in attachments if attachment.status == "attached"} - {None}
    states = {a.status for a in attachments if a.status != "reserved" or a.server_id not in users}
    for state, status in (
        ("detaching", "detaching"),
        ("reserved", "reserved"),
        ("attaching", "attaching"),
        ("attached", "in-use"),
    ):
        if state in states:
            return status
    return "available"


def refuse_moving(volume: VolumeRow) -> None:
    """What reads, writes, attaches or removes a volume waits until its move is over."""
    if volume.migration_status in store.MOVES:
        raise WrongState(f"Invalid volume: Volume {volume.id} is being migrated ({volume.migration_status}).")


def settle(tx: Tx, volume_id: str, *, event: bool = True) -> None:
    """Write the status. ``event``: something happened to the volume, so an override ends."""
    volume = store.VOLUMES.find(tx, volume_id)
    if volume is None:
        return
    values: dict[str, object] = {}
    if event and volume.override is not None:
        values["override"] = None
        volume = msgspec.structs.replace(volume, override=None)
    status = status_of(volume, store.attachments_of(tx, volume_id))
    if status != volume.status or values:
        store.VOLUMES.change(tx, volume_id, status=status, **values)


def change(tx: Tx, volume_id: str, **values: object) -> None:
    """Change inputs of the status, and settle it."""
    store.VOLUMES.change(tx, volume_id, **values)
    settle(tx, volume_id)
