"""Sagas of a volume.

| volume.create | place (choose the storage host) → create → restore (from a backup) | delete |
| volume.delete (preempts) | connections, snapshots (children) → readers (copies) → delete | - (only forward) |
| volume.extend | storage; then whoever has it is told | - (a disk never shrinks) |
| volume.upload | target → upload → activate | a failed end discards the image |
| volume.revert | revert | - |
| volume.reimage | delete → create | - |
"""

from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.db import Tx
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import NoValidHost
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, Wait, nothing_to_undo
from cumulet.services.volume import placing, state, store
from cumulet.services.volume.messages import record
from cumulet.services.volume.workflows.attachments import DisconnectParams
from cumulet.services.volume.workflows.backups import describe_again, restored_from
from cumulet.services.volume.workflows.snapshots import READ_S, SnapshotParams

FORWARD = nothing_to_undo("taking away only goes forward")


class CreateParams(msgspec.Struct, kw_only=True):
    backup_id: str | None = None


class DeleteParams(msgspec.Struct, kw_only=True):
    cascade: bool = False
    unwatched: bool = False  # nobody asked for it by name: what fails is tried again


class ExtendParams(msgspec.Struct, kw_only=True):
    size_gb: int
    old_size_gb: int


class UploadParams(msgspec.Struct, kw_only=True):
    image_id: str


class RevertParams(msgspec.Struct, kw_only=True):
    snapshot_id: str


class ReimageParams(msgspec.Struct, kw_only=True):
    image_id: str
    image_metadata: dict[str, str]


class VolumeWorkflows:
    def __init__(self, service: Any, delete_snapshot: Saga, disconnect: Saga) -> None:
        self.service = service
        self.delete_snapshot = delete_snapshot
        self.disconnect = disconnect
        self.create = self._saga(
            "volume.create",
            CreateParams,
            Transact("place", self._place, nothing_to_undo("the volume keeps its host: delete needs it")),
            Call("create", self._create, self._remove, done=self._created),
            Call("restore", self._restore, nothing_to_undo("the volume goes")),
            finished=self._create_finished,
            failed=self._create_failed,
        )
        self.delete = self._saga(
            "volume.delete",
            DeleteParams,
            Children("connections", self._disconnect, undo=FORWARD),
            Children("snapshots", self._delete_snapshots, undo=FORWARD),
            Wait("readers", self._unread, deadline_seconds=READ_S, poll_seconds=1),
            Call("delete", self._remove, FORWARD),
            finished=self._deleted,
            failed=self._delete_failed,
            preempts=True,
        )
        self.extend = self._saga(
            "volume.extend",
            ExtendParams,
            Call("storage", self._extend, nothing_to_undo("a disk never shrinks")),
            finished=self._extend_finished,
            failed=self._extend_failed,
        )
        discarded = nothing_to_undo("POST made the image; the end of a failed upload discards it")
        self.upload = self._saga(
            "volume.upload",
            UploadParams,
            Transact("target", self._target, discarded),
            Call("upload", self._upload, discarded, done=self._uploaded),
            finished=self._finished,
            failed=self._upload_failed,
        )
        self.revert = self._saga(
            "volume.revert",
            RevertParams,
            Call("revert", self._revert, nothing_to_undo("what was written since is gone")),
            finished=self._finished,
            failed=self._broken,
        )
        self.reimage = self._saga(
            "volume.reimage",
            ReimageParams,
            Call("delete", self._remove, nothing_to_undo("the old content is gone")),
            Call("create", self._create, nothing_to_undo("the old content is gone"), done=self._created),
            finished=self._reimaged,
            failed=self._broken,
        )

    def _saga(self, kind: str, params: type[msgspec.Struct], *steps: Any, **more: Any) -> Saga:
        return Saga(kind=kind, object_kind="volume", params=params, steps=steps, **more)

    def sagas(self) -> list[Saga]:
        return [self.create, self.delete, self.extend, self.upload, self.revert, self.reimage]

    # -- create ------------------------------------------------------------------------------------------------

    def _place(self, tx: Tx, run: Run) -> dict[str, Any]:
        volume = store.VOLUMES.get(tx, run.object_id)
        host = volume.host or placing.choose(tx, self.service.hosts, volume, run.params.backup_id)
        state.change(tx, volume.id, host=host)
        return {"host": host}

    def _create(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.find(tx, run.object_id)
        if volume is None or volume.host is None:
            return None
        image = None
        image_id = getattr(run.params, "image_id", None) or volume.image_id
        if image_id is not None:
            row = self.service.image.get(tx, system_context("volume"), image_id)
            image = self.service.image.source(row, volume.host)
        snapshot = None
        if volume.snapshot_id is not None and image is None:
            snapshot = store.SNAPSHOTS.get(tx, volume.snapshot_id, change=False)
        return volume.host, c.CreateVolume(
            volume_id=volume.id,
            size_gb=volume.size_gb,
            image=image,
            source_snapshot_id=snapshot.id if snapshot else None,
            source_snapshot_volume_id=snapshot.volume_id if snapshot else None,
            source_volume_id=volume.source_volid if image is None and snapshot is None else None,
        )

    def _created(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        return None

    def _restore(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.find(tx, run.object_id)
        if run.params.backup_id is None or volume is None or volume.host is None:
            return None
        backup = store.BACKUPS.get(tx, run.params.backup_id, change=False)
        return volume.host, c.RestoreBackup(volume_id=volume.id, backup_id=backup.data_id)

    def _finished(self, tx: Tx, run: Run) -> None:
        state.change(tx, run.object_id, base="ready", busy=None)
        self.service.changed(tx, run.object_id)

    def _create_finished(self, tx: Tx, run: Run) -> None:
        if run.params.backup_id is not None:
            describe_again(tx, run.object_id, run.params.backup_id)
            restored_from(tx, run.params.backup_id)
        self._finished(tx, run)

    def _create_failed(self, tx: Tx, run: Run) -> None:
        if run.params.backup_id is not None:
            restored_from(tx, run.params.backup_id)
        if run.cancelled:
            return
        state.change(tx, run.object_id, base="error", busy=None)
        if run.error_code == "NoValidHost":
            self._message(tx, run, "VOLUME_VOLUME_001_002", "schedule allocate volume", run.error)
        else:
            self._message(tx, run, "VOLUME_VOLUME_001_001", "create volume", run.error)
        self.service.changed(tx, run.object_id)

    def _message(self, tx: Tx, run: Run, event: str, action: str, error: str | None) -> None:
        record(tx, run.project_id, run.request_id, "VOLUME", run.object_id, event, f"{action}: {error}")

    # -- delete ------------------------------------------------------------------------------------------------

    def _disconnect(self, tx: Tx, run: Run) -> list[Start]:
        """What a forced delete takes it from."""
        rows = (*store.attachments_of(tx, run.object_id), *store.exports_of(tx, run.object_id))
        return [Start(self.disconnect, one.id, DisconnectParams()) for one in rows]

    def _delete_snapshots(self, tx: Tx, run: Run) -> list[Start]:
        if not run.params.cascade:
            return []
        return [Start(self.delete_snapshot, one.id, SnapshotParams()) for one in store.snapshots_of(tx, run.object_id)]

    def _unread(self, tx: Tx, run: Run) -> bool | None:
        """No more volumes can begin to be made of it."""
        return None if store.copied_from(tx, run.object_id) else True

    def _remove(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.find(tx, run.object_id)
        if volume is None or volume.host is None:
            return None
        return volume.host, c.DeleteVolume(volume_id=volume.id)

    def _deleted(self, tx: Tx, run: Run) -> None:
        store.VOLUMES.remove(tx, run.object_id, status="deleted", busy=None)
        self.service.changed(tx, run.object_id)

    def _delete_failed(self, tx: Tx, run: Run) -> None:
        state.change(tx, run.object_id, base="error_deleting", busy=None)
        self._message(tx, run, "VOLUME_VOLUME_004_001", "delete volume", run.error)

    # -- extend ------------------------------------------------------------------------------------------------

    def _extend(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.get(tx, run.object_id)
        if volume.host is None:
            raise NoValidHost("The volume stands on no host.")
        return volume.host, c.ExtendVolume(volume_id=volume.id, new_size_gb=run.params.size_gb)

    def _extend_finished(self, tx: Tx, run: Run) -> None:
        self._finished(tx, run)
        actor = RequestContext(request_id=run.request_id, user_id=run.user_id, project_id=run.project_id)
        self.service.grown(tx, run.object_id, run.params.size_gb, actor)

    def _extend_failed(self, tx: Tx, run: Run) -> None:
        # The room was claimed at the start; the disk may have grown or not, never beyond the claim.
        state.change(tx, run.object_id, base="error_extending", busy=None, size_gb=run.params.old_size_gb)
        self._message(tx, run, "VOLUME_VOLUME_006_001", "extend volume", run.error)

    # -- upload ------------------------------------------------------------------------------------------------

    def _target(self, tx: Tx, run: Run) -> dict[str, Any]:
        volume = store.VOLUMES.get(tx, run.object_id)
        upload = self.service.image.upload_target(tx, run.params.image_id, volume.host)
        return {"upload": msgspec.to_builtins(upload)}

    def _upload(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.get(tx, run.object_id)
        assert volume.host is not None
        upload = msgspec.convert(run.outputs["target"]["upload"], c.Upload)
        return volume.host, c.UploadVolume(volume_id=volume.id, upload=upload)

    def _uploaded(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        self.service.image.activate(tx, run.params.image_id, result)

    def _upload_failed(self, tx: Tx, run: Run) -> None:
        self.service.image.discard(tx, run.params.image_id)
        state.change(tx, run.object_id, busy=None)
        self._message(tx, run, "VOLUME_VOLUME_003_001", "copy volume to image", run.error)

    # -- revert, reimage ---------------------------------------------------------------------------------------

    def _revert(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.get(tx, run.object_id)
        assert volume.host is not None
        return volume.host, c.RevertVolume(volume_id=volume.id, snapshot_id=run.params.snapshot_id)

    def _reimaged(self, tx: Tx, run: Run) -> None:
        """The volume boots the new image, and tells of it instead of the old one."""
        store.VOLUMES.change(tx, run.object_id, bootable=True, image_metadata=run.params.image_metadata)
        self._finished(tx, run)

    def _broken(self, tx: Tx, run: Run) -> None:
        state.change(tx, run.object_id, base="error", busy=None)
        self._message(tx, run, "VOLUME_VOLUME_010_001", run.kind, run.error)
