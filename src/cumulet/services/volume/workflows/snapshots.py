"""Sagas of a snapshot: snapshot.create (create; undo: delete), snapshot.delete (readers, delete; preempts; only
forward). ``readers`` waits for the volumes that are being made of it: no more of them can begin."""

from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.db import Tx
from cumulet.saga.model import Call, HostCall, Run, Saga, Wait, nothing_to_undo
from cumulet.services.volume import store
from cumulet.services.volume.messages import record

READ_S = 4 * 3600.0  # for copying a large one


class SnapshotParams(msgspec.Struct, kw_only=True):
    pass


class SnapshotWorkflows:
    def __init__(self, service: Any) -> None:
        self.service = service
        self.create = Saga(
            kind="snapshot.create",
            object_kind="snapshot",
            params=SnapshotParams,
            steps=(Call("create", self._create, self._remove),),
            finished=self._created,
            failed=self._create_failed,
        )
        self.delete = Saga(
            kind="snapshot.delete",
            object_kind="snapshot",
            params=SnapshotParams,
            steps=(
                Wait("readers", self._unread, deadline_seconds=READ_S, poll_seconds=1),
                Call("delete", self._remove, nothing_to_undo("taking away only goes forward")),
            ),
            finished=self._deleted,
            failed=self._delete_failed,
            preempts=True,
        )

    def sagas(self) -> list[Saga]:
        return [self.create, self.delete]

    def _home(self, tx: Tx, run: Run) -> tuple[str, str] | None:
        snapshot = store.SNAPSHOTS.find(tx, run.object_id)
        volume = store.VOLUMES.find(tx, snapshot.volume_id, change=False) if snapshot is not None else None
        return (volume.host, volume.id) if volume is not None and volume.host is not None else None

    def _create(self, tx: Tx, run: Run) -> HostCall | None:
        home = self._home(tx, run)
        if home is None:
            return None
        return home[0], c.CreateVolumeSnapshot(snapshot_id=run.object_id, volume_id=home[1])

    def _unread(self, tx: Tx, run: Run) -> bool | None:
        return None if store.copied_from_snapshot(tx, run.object_id) else True

    def _remove(self, tx: Tx, run: Run) -> HostCall | None:
        home = self._home(tx, run)
        if home is None:
            return None
        return home[0], c.DeleteVolumeSnapshot(snapshot_id=run.object_id, volume_id=home[1])

    def _created(self, tx: Tx, run: Run) -> None:
        store.SNAPSHOTS.change(tx, run.object_id, status="available", progress="100%")

    def _create_failed(self, tx: Tx, run: Run) -> None:
        if not run.cancelled:
            store.SNAPSHOTS.change(tx, run.object_id, status="error")
            self._message(tx, run, "VOLUME_VOLUME_SNAPSHOT_007_001", "create snapshot")

    def _deleted(self, tx: Tx, run: Run) -> None:
        store.SNAPSHOTS.remove(tx, run.object_id, status="deleted")

    def _delete_failed(self, tx: Tx, run: Run) -> None:
        store.SNAPSHOTS.change(tx, run.object_id, status="error_deleting")
        self._message(tx, run, "VOLUME_VOLUME_SNAPSHOT_008_001", "delete snapshot")

    def _message(self, tx: Tx, run: Run, event: str, action: str) -> None:
        record(tx, run.project_id, run.request_id, "VOLUME_SNAPSHOT", run.object_id, event, f"{action}: {run.error}")
