"""Sagas of a backup.

| backup.create | backup | delete |
| backup.delete (preempts) | delete | - |
| backup.restore | restore, into a volume that exists | - (the volume is in error_restoring) |
"""

from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.db import Tx
from cumulet.saga.model import Call, HostCall, Run, Saga, nothing_to_undo
from cumulet.services.volume import state, store
from cumulet.services.volume.messages import record
from cumulet.services.volume.tables import BACKUPS


class BackupParams(msgspec.Struct, kw_only=True):
    pass


class RestoreParams(msgspec.Struct, kw_only=True):
    volume_id: str


class BackupWorkflows:
    def __init__(self, service: Any) -> None:
        self.service = service
        self.create = Saga(
            kind="backup.create",
            object_kind="backup",
            params=BackupParams,
            steps=(Call("backup", self._backup, self._remove, done=self._backed_up),),
            finished=self._finished,
            failed=self._create_failed,
        )
        self.delete = Saga(
            kind="backup.delete",
            object_kind="backup",
            params=BackupParams,
            steps=(Call("delete", self._remove, nothing_to_undo("taking away only goes forward")),),
            finished=self._deleted,
            failed=self._delete_failed,
            preempts=True,
        )
        self.restore = Saga(
            kind="backup.restore",
            object_kind="backup",
            params=RestoreParams,
            steps=(Call("restore", self._restore, nothing_to_undo("what the volume held is gone")),),
            finished=self._restored,
            failed=self._restore_failed,
        )

    def sagas(self) -> list[Saga]:
        return [self.create, self.delete, self.restore]

    def _backup(self, tx: Tx, run: Run) -> HostCall | None:
        backup = store.BACKUPS.find(tx, run.object_id)
        if backup is None or backup.host is None:
            return None
        parent = store.BACKUPS.find(tx, backup.parent_id) if backup.parent_id is not None else None
        return backup.host, c.BackupVolume(
            volume_id=backup.volume_id,
            backup_id=backup.data_id,
            snapshot_id=backup.snapshot_id,
            parent_backup_id=parent.data_id if parent is not None else None,
        )

    def _remove(self, tx: Tx, run: Run) -> HostCall | None:
        backup = store.BACKUPS.find(tx, run.object_id)
        if backup is None or backup.host is None:
            return None
        if len(store.BACKUPS.where(tx, BACKUPS.c.data_id == backup.data_id)) > 1:
            return None  # another record names the same data
        return backup.host, c.DeleteBackup(backup_id=backup.data_id)

    def _backed_up(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        if result is not None:
            store.BACKUPS.change(tx, run.object_id, object_count=result["object_count"])

    def _finished(self, tx: Tx, run: Run) -> None:
        store.BACKUPS.change(tx, run.object_id, status="available")
        self._release(tx, run.object_id)

    def _create_failed(self, tx: Tx, run: Run) -> None:
        if not run.cancelled:
            store.BACKUPS.change(tx, run.object_id, status="error", fail_reason=run.error)
            record(
                tx,
                run.project_id,
                run.request_id,
                "VOLUME_BACKUP",
                run.object_id,
                "VOLUME_VOLUME_BACKUP_013_001",
                f"create backup: {run.error}",
            )
        self._release(tx, run.object_id)

    def _release(self, tx: Tx, backup_id: str) -> None:
        """The source is what it was before."""
        backup = store.BACKUPS.find(tx, backup_id)
        if backup is None:
            return
        if backup.snapshot_id is not None:
            snapshot = store.SNAPSHOTS.find(tx, backup.snapshot_id)
            if snapshot is not None and snapshot.status == "backing-up":
                store.SNAPSHOTS.change(tx, snapshot.id, status="available")
        else:
            volume = store.VOLUMES.find(tx, backup.volume_id)
            if volume is not None and volume.busy == "backing-up":
                state.change(tx, volume.id, busy=None)

    def _deleted(self, tx: Tx, run: Run) -> None:
        self._release(tx, run.object_id)
        store.BACKUPS.remove(tx, run.object_id, status="deleted")

    def _delete_failed(self, tx: Tx, run: Run) -> None:
        store.BACKUPS.change(tx, run.object_id, status="error_deleting", fail_reason=run.error)

    def _restore(self, tx: Tx, run: Run) -> HostCall | None:
        backup = store.BACKUPS.find(tx, run.object_id)
        volume = store.VOLUMES.find(tx, run.params.volume_id)
        if backup is None or volume is None or volume.host is None:
            return None
        return volume.host, c.RestoreBackup(volume_id=volume.id, backup_id=backup.data_id)

    def _restored(self, tx: Tx, run: Run) -> None:
        restored_from(tx, run.object_id)
        describe_again(tx, run.params.volume_id, run.object_id)
        state.change(tx, run.params.volume_id, base="ready", busy=None)

    def _restore_failed(self, tx: Tx, run: Run) -> None:
        restored_from(tx, run.object_id)
        state.change(tx, run.params.volume_id, base="error_restoring", busy=None)


def restored_from(tx: Tx, backup_id: str) -> None:
    """Nothing is read of it any more; a status that an administrator set meanwhile stays."""
    backup = store.BACKUPS.find(tx, backup_id)
    if backup is not None and backup.status == "restoring":
        store.BACKUPS.change(tx, backup_id, status="available")


def describe_again(tx: Tx, volume_id: str, backup_id: str) -> None:
    """What was said of the volume is restored with its data."""
    volume, backup = store.VOLUMES.find(tx, volume_id), store.BACKUPS.find(tx, backup_id, change=False)
    if volume is None or backup is None:
        return
    store.VOLUMES.change(
        tx,
        volume_id,
        metadata={**volume.metadata, **(backup.described.get("metadata") or {})},
        image_metadata=backup.described.get("image_metadata"),
        bootable=bool(backup.described.get("bootable")),
    )
