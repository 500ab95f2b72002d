"""The fake volume backend."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import msgspec

from cumulet.agent import contract as c
from cumulet.agent.driver import Facts, Found, Progress
from cumulet.agent.errors import DriverError, not_found
from cumulet.agent.fake.base import FakeDriver
from cumulet.agent.fake.bytes import check_image, write_upload
from cumulet.agent.fake.faults import Faults
from cumulet.agent.fake.world import State, Volume, World


class FakeStorage(FakeDriver):
    role = "storage"

    def __init__(self, world: World, faults: Faults, host: str, *, volume_gb: int) -> None:
        super().__init__(world, faults)
        self._host = host
        self.volume_gb = volume_gb

    def bodies(self) -> dict[type[c.Operation], Callable[[Any, Progress], c.Result | None]]:
        return {
            c.CreateVolume: self._create,
            c.DeleteVolume: self._delete,
            c.FetchVolume: self._fetch,
            c.ExtendVolume: self._extend,
            c.CreateVolumeSnapshot: self._create_snapshot,
            c.DeleteVolumeSnapshot: self._delete_snapshot,
            c.ExportVolume: self._export,
            c.UnexportVolume: self._unexport,
            c.UploadVolume: self._upload,
            c.RevertVolume: self._revert,
            c.BackupVolume: self._backup,
            c.RestoreBackup: self._restore_backup,
            c.DeleteBackup: self._delete_backup,
        }

    def _create(self, op: c.CreateVolume, progress: Progress) -> None:
        if op.image is not None and check_image(op.image).virtual_size_bytes > op.size_gb << 30:
            raise DriverError("image-too-large", f"The image does not fit into {op.size_gb} GiB.")
        with self.world.change() as state:
            if op.volume_id in state.volumes:
                return
            if op.source_volume_id is not None:
                _volume(state, op.source_volume_id)
            if op.source_snapshot_id is not None and not any(
                op.source_snapshot_id in volume.snapshots for volume in state.volumes.values()
            ):
                raise not_found(f"snapshot {op.source_snapshot_id}")
            if sum(volume.size_gb for volume in state.volumes.values()) + op.size_gb > self.volume_gb:
                raise DriverError("no-space", "There is no room for this volume.")
            state.volumes[op.volume_id] = Volume(
                size_gb=op.size_gb,
                image_id=op.image.image_id if op.image else None,
                source=op.source_volume_id or op.source_snapshot_id,
                content=f"written on {self._host}",
            )

    def _delete(self, op: c.DeleteVolume, progress: Progress) -> None:
        with self.world.change() as state:
            volume = state.volumes.get(op.volume_id)
            if volume is None:
                return
            if volume.exports:
                raise DriverError("busy", "The volume is exported.")
            if volume.snapshots:
                raise DriverError("busy", "The volume has snapshots.")
            del state.volumes[op.volume_id]

    def _fetch(self, op: c.FetchVolume, progress: Progress) -> None:
        asked = parse_qs(urlsplit(op.connection.uri or "").query)
        if asked.get("to") != [self._host]:
            raise DriverError("refused", "The volume is exported to another host.")
        progress(0.5)
        with self.world.change() as state:
            here = state.volumes.get(op.volume_id)
            if here is not None and here.moved_by == op.move_id:
                return
            if here is not None:
                state.quarantine[f"volume/{op.volume_id}"] = msgspec.to_builtins(state.volumes.pop(op.volume_id))
            if sum(volume.size_gb for volume in state.volumes.values()) + op.size_gb > self.volume_gb:
                raise DriverError("no-space", "There is no room for this volume.")
            state.volumes[op.volume_id] = Volume(
                size_gb=op.size_gb, content=asked.get("holds", [""])[0], moved_by=op.move_id
            )

    def _extend(self, op: c.ExtendVolume, progress: Progress) -> None:
        with self.world.change() as state:
            volume = _volume(state, op.volume_id)
            volume.size_gb = max(volume.size_gb, op.new_size_gb)

    def _create_snapshot(self, op: c.CreateVolumeSnapshot, progress: Progress) -> None:
        with self.world.change() as state:
            volume = _volume(state, op.volume_id)
            if op.snapshot_id not in volume.snapshots:
                volume.snapshots.append(op.snapshot_id)

    def _delete_snapshot(self, op: c.DeleteVolumeSnapshot, progress: Progress) -> None:
        with self.world.change() as state:
            volume = state.volumes.get(op.volume_id)
            if volume is not None and op.snapshot_id in volume.snapshots:
                volume.snapshots.remove(op.snapshot_id)

    def _export(self, op: c.ExportVolume, progress: Progress) -> c.ExportVolumeResult:
        with self.world.change() as state:
            volume = _volume(state, op.volume_id)
            if op.attachment_generation < volume.fence.get(op.attachment_id, 0):
                raise DriverError("fenced", "A newer export of this attachment was made.")
            volume.exports[op.attachment_id] = volume.fence[op.attachment_id] = op.attachment_generation
        if op.host == self._host:
            uri = f"nbd+unix:///{op.volume_id}?socket=/fake/{op.attachment_id}.sock"
        else:
            holds = urlencode({"to": op.host, "holds": volume.content})  # who reads it gets this
            uri = f"nbd://{self._host}:10809/{op.volume_id}?{holds}"
        return c.ExportVolumeResult(connection=c.DiskConnection(driver="nbd", uri=uri))

    def _unexport(self, op: c.UnexportVolume, progress: Progress) -> None:
        with self.world.change() as state:
            volume = state.volumes.get(op.volume_id)
            if volume is not None:
                volume.exports.pop(op.attachment_id, None)

    def _upload(self, op: c.UploadVolume, progress: Progress) -> c.UploadVolumeResult:
        with self.world.look() as state:
            size_gb = _volume(state, op.volume_id).size_gb
        done = write_upload(op.upload, f"volume {op.volume_id}", size_gb)
        return c.UploadVolumeResult(
            size=done.size, sha512=done.sha512, md5=done.md5, virtual_size_bytes=done.virtual_size_bytes
        )

    def _revert(self, op: c.RevertVolume, progress: Progress) -> None:
        with self.world.look() as state:
            volume = _volume(state, op.volume_id)
            if op.snapshot_id not in volume.snapshots:
                raise not_found(f"snapshot {op.snapshot_id}")
            if volume.exports:
                raise DriverError("busy", "The volume is exported.")

    def _backup(self, op: c.BackupVolume, progress: Progress) -> c.BackupVolumeResult:
        with self.world.change() as state:
            volume = _volume(state, op.volume_id)
            if op.snapshot_id is not None and op.snapshot_id not in volume.snapshots:
                raise not_found(f"snapshot {op.snapshot_id}")
            if op.parent_backup_id is not None and op.parent_backup_id not in state.backups:
                raise not_found(f"backup {op.parent_backup_id}")
            state.backups[op.backup_id] = volume.size_gb
            return c.BackupVolumeResult(object_count=1, size_bytes=volume.size_gb << 30)

    def _restore_backup(self, op: c.RestoreBackup, progress: Progress) -> None:
        with self.world.change() as state:
            volume = _volume(state, op.volume_id)
            if op.backup_id not in state.backups:
                raise not_found(f"backup {op.backup_id}")
            if volume.exports:
                raise DriverError("busy", "The volume is exported.")
            volume.source = op.backup_id

    def _delete_backup(self, op: c.DeleteBackup, progress: Progress) -> None:
        with self.world.change() as state:
            state.backups.pop(op.backup_id, None)

    def inventory(self) -> Found:
        with self.world.look() as state:
            exports = [(volume_id, one) for volume_id, volume in state.volumes.items() for one in volume.exports]
            return Found(volumes=list(state.volumes), exports=exports)

    def remove_absent(self, absent: c.Absent) -> None:
        with self.world.change() as state:
            for volume_id, attachment_id in absent.exports:
                volume = state.volumes.get(volume_id)
                if volume is not None:
                    volume.exports.pop(attachment_id, None)
            for volume_id in absent.volumes:
                volume = state.volumes.get(volume_id)
                if volume is not None and not volume.exports and not volume.snapshots:
                    del state.volumes[volume_id]

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> c.Audited:
        with self.world.look() as state:
            things = [c.Thing(kind="volume", id=one) for one in state.volumes]
            things += [
                c.Thing(kind="export", id=f"{volume_id}/{one}", owner=volume_id)
                for volume_id, volume in state.volumes.items()
                for one in volume.exports
            ]
            things += [c.Thing(kind="backup", id=one) for one in state.backups]
            things += [c.Thing(kind="quarantine", id=key) for key in state.quarantine if not key.startswith("disk/")]
            return c.Audited(kinds=["volume", "export", "backup"], things=things)

    def mend(self, item: c.MendItem) -> str | None:
        with self.world.change() as state:
            if item.kind == "export":
                volume_id, _, attachment_id = item.id.partition("/")
                volume = state.volumes.get(volume_id)
                if volume is not None:
                    volume.exports.pop(attachment_id, None)
                return "the export is removed"
            if item.kind == "volume":
                if item.id in state.volumes:
                    state.quarantine[f"volume/{item.id}"] = msgspec.to_builtins(state.volumes.pop(item.id))
                return f"the volume is moved aside: volume/{item.id}"
            if item.kind == "backup":
                if item.id in state.backups:
                    state.quarantine[f"backup/{item.id}"] = {"size_gb": state.backups.pop(item.id)}
                return f"the backup is moved aside: backup/{item.id}"
        return None

    def facts(self) -> Facts:
        with self.world.look() as state:
            used = sum(volume.size_gb for volume in state.volumes.values())
        return Facts(
            resources={"volume_total_gb": float(self.volume_gb), "volume_free_gb": float(self.volume_gb - used)}
        )


def _volume(state: State, volume_id: str) -> Volume:
    volume = state.volumes.get(volume_id)
    if volume is None:
        raise not_found(f"volume {volume_id}")
    return volume
