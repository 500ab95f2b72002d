"""The storage driver: what each ``volume.*`` operation does on this host.

Every operation is idempotent: it first looks whether its outcome stands. A volume that is exported is changed through
the storage daemon, which has it open; any other by ``qemu-img``. Reading an exported volume (clone, upload, backup)
goes through a snapshot made for it and removed after it.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cumulet.agent import contract as c
from cumulet.agent.driver import Driver, Facts, Found, Hooks, OperationBody, Progress
from cumulet.agent.errors import DriverError, not_found
from cumulet.agent.image.cache import ImageCache
from cumulet.agent.volume.backups import BackupStore
from cumulet.agent.volume.daemon import StorageDaemon
from cumulet.agent.volume.exports import ExportRecord, Exports
from cumulet.agent.volume.fetch import fetch
from cumulet.agent.volume.files import GIB, FileVolumes, run_qemu_img
from cumulet.agent.volume.handin import hand_in, hashes

_QEMU_FORMATS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vdi": "vdi", "vhd": "vpc", "vhdx": "vhdx"}
_TRANSIENT = ("clone-", "upload-", "backup-")  # snapshots that one operation reads from
_SNAPSHOT = "blockdev-snapshot-internal-sync"
_DELETE_SNAPSHOT = "blockdev-snapshot-delete-internal-sync"


_SOON_SECONDS = 21 * 86_400
_PLAIN = {
    "code": "volumes-in-the-clear",
    "message": "volumes are served to other hosts without encryption, to whoever reaches this host",
    "cure": "cumulet host token on a control node, then cumulet join here",
}


class VolumeProvider(Protocol):
    """A way to keep volumes. One file-backed provider is built in; others register in ``PROVIDERS``."""

    def operations(self) -> dict[type[c.Operation], OperationBody]: ...

    def inventory(self) -> Found: ...

    def facts(self) -> Facts: ...

    def remove_absent(self, absent: c.Absent) -> None: ...

    def audit(self) -> c.Audited: ...

    def mend(self, item: c.MendItem) -> str | None: ...

    def cleanup_all(self) -> None: ...

    def start(self) -> None: ...


class FileProvider:
    def __init__(
        self,
        root: Path,
        run_dir: Path,
        cache: ImageCache,
        *,
        listen: str | None = None,
        advertise: str | None = None,
        group: str | None = None,
        tls: Path | None = None,
    ) -> None:
        """``root``: keeps volumes, records and backups. ``run_dir``: sockets. ``listen``: host:port of NBD over TCP
        for guests on other hosts (``advertise``: as they reach it); None: unix socket, readable by ``group``.
        ``tls``: the folder of this host's certificate; without one NBD over TCP is plain."""
        self.root = root
        self.cache = cache
        self.tls = tls
        self.volumes = FileVolumes(root / "volumes")
        self.daemon = StorageDaemon(run_dir, listen, group, tls)
        self.exports = Exports(root / "exports", self.volumes, self.daemon, advertise or listen)
        self.backups = BackupStore(root / "backups")
        self.scratch = root / "scratch"

    def start(self) -> None:
        self.volumes.start()
        self.backups.start()
        self.cache.start()
        self.scratch.mkdir(parents=True, exist_ok=True)
        for left in self.scratch.iterdir():
            left.unlink()
        self.exports.start()

    def operations(self) -> dict[type[c.Operation], OperationBody]:
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
            c.RestoreBackup: self._restore,
            c.DeleteBackup: self._delete_backup,
        }

    # -- volumes -------------------------------------------------------------------------------------------------

    def _create(self, op: c.CreateVolume, progress: Progress) -> None:
        size = op.size_gb * GIB
        with self.volumes.lock(op.volume_id):
            if self.volumes.path(op.volume_id).exists():
                return
            if op.image is not None:
                base = self.cache.get(op.image, progress)
                if base.virtual_size_bytes > size:
                    raise DriverError(
                        "image-too-large", f"image {op.image.image_id} does not fit into {op.size_gb} GiB"
                    )
                self.volumes.create_from_raw(op.volume_id, base.path, size, progress)
            elif op.source_snapshot_id is not None:
                source = self._home_of(op.source_snapshot_id, op.source_snapshot_volume_id)
                self.volumes.create_from_volume(op.volume_id, source, op.source_snapshot_id, size, progress)
            elif op.source_volume_id is not None:
                with self._still(op.source_volume_id, f"clone-{op.volume_id}") as snapshot:
                    self.volumes.create_from_volume(op.volume_id, op.source_volume_id, snapshot, size, progress)
            else:
                self.volumes.create_blank(op.volume_id, size)

    def _home_of(self, snapshot_id: str, volume_id: str | None) -> str:
        if volume_id is None or snapshot_id not in self.volumes.snapshots(volume_id):
            raise not_found(f"snapshot {snapshot_id}")
        return volume_id

    def _delete(self, op: c.DeleteVolume, progress: Progress) -> None:
        with self.volumes.lock(op.volume_id):
            if self.volumes.path(op.volume_id).exists():
                if self.exports.of(op.volume_id):
                    raise DriverError("busy", f"volume {op.volume_id} is exported")
                if any(not name.startswith(_TRANSIENT) for name in self.volumes.snapshots(op.volume_id)):
                    raise DriverError("busy", f"volume {op.volume_id} has snapshots")
                self.volumes.delete(op.volume_id)
            self.exports.forget(op.volume_id)

    def _fetch(self, op: c.FetchVolume, progress: Progress) -> None:
        with self.volumes.lock(op.volume_id):
            if self.volumes.moved_by(op.volume_id) == op.move_id:
                return
            if self.volumes.path(op.volume_id).exists():
                self._refuse_exported(op.volume_id)
                self.volumes.put_aside(op.volume_id)
            with self.volumes.making(op.volume_id, move_id=op.move_id) as part:
                fetch(op.connection, part, self.volumes.need_space, self.tls, progress)
                self.volumes.grow_file(part, op.size_gb * GIB)

    def _extend(self, op: c.ExtendVolume, progress: Progress) -> None:
        size = op.new_size_gb * GIB
        with self.volumes.lock(op.volume_id):
            self.volumes.existing(op.volume_id)
            if self.exports.is_open(op.volume_id):
                self.exports.resize(op.volume_id, size)
            else:
                self.volumes.grow(op.volume_id, size)

    def _revert(self, op: c.RevertVolume, progress: Progress) -> None:
        with self.volumes.lock(op.volume_id):
            self._home_of(op.snapshot_id, op.volume_id)
            self._refuse_exported(op.volume_id)
            size = self.volumes.size(op.volume_id)
            self.volumes.snapshot(op.volume_id, "-a", op.snapshot_id)
            self.volumes.grow(op.volume_id, size)

    def _refuse_exported(self, volume_id: str) -> None:
        if self.exports.of(volume_id):
            raise DriverError("busy", f"volume {volume_id} is exported")

    # -- snapshots -----------------------------------------------------------------------------------------------

    def _create_snapshot(self, op: c.CreateVolumeSnapshot, progress: Progress) -> None:
        self._take(op.volume_id, op.snapshot_id)

    def _delete_snapshot(self, op: c.DeleteVolumeSnapshot, progress: Progress) -> None:
        self._drop(op.volume_id, op.snapshot_id)

    def _take(self, volume_id: str, name: str) -> None:
        with self.volumes.lock(volume_id):
            if name in self.volumes.snapshots(volume_id):
                return
            if self.exports.is_open(volume_id):
                self.exports.snapshot(volume_id, _SNAPSHOT, name)
            else:
                self.volumes.snapshot(volume_id, "-c", name)

    def _drop(self, volume_id: str, name: str) -> None:
        with self.volumes.lock(volume_id):
            if not self.volumes.path(volume_id).exists() or name not in self.volumes.snapshots(volume_id):
                return
            if self.exports.is_open(volume_id):
                self.exports.snapshot(volume_id, _DELETE_SNAPSHOT, name)
            else:
                self.volumes.snapshot(volume_id, "-d", name)

    @contextmanager
    def _still(self, volume_id: str, name: str) -> Iterator[str]:
        """A snapshot to read from while the volume goes on being used, under its lock: nobody deletes it meanwhile."""
        with self.volumes.lock(volume_id):
            self.volumes.existing(volume_id)
            self._drop(volume_id, name)  # of an earlier try that was killed
            self._take(volume_id, name)
            try:
                yield name
            finally:
                self._drop(volume_id, name)

    # -- exports -------------------------------------------------------------------------------------------------

    def _export(self, op: c.ExportVolume, progress: Progress) -> c.ExportVolumeResult:
        record = ExportRecord(op.volume_id, op.attachment_id, op.attachment_generation, op.host)
        return c.ExportVolumeResult(connection=self.exports.add(record))

    def _unexport(self, op: c.UnexportVolume, progress: Progress) -> None:
        self.exports.remove(op.volume_id, op.attachment_id)

    # -- copies out and in -----------------------------------------------------------------------------------------

    def _upload(self, op: c.UploadVolume, progress: Progress) -> c.UploadVolumeResult:
        form = _QEMU_FORMATS.get(op.upload.disk_format)
        if form is None:
            raise DriverError("unsupported", f"volumes cannot be written as {op.upload.disk_format}")
        part = self.scratch / f"upload-{op.upload.image_id}"
        try:
            with self._still(op.volume_id, f"upload-{op.upload.image_id}") as snapshot:
                self.volumes.convert(op.volume_id, snapshot, part, form, progress)
                virtual = self.volumes.size(op.volume_id)
            md5, sha512 = hashes(part, progress)
            size = part.stat().st_size
            hand_in(part, op.upload, progress, self.cache.trust)
        finally:
            part.unlink(missing_ok=True)
        return c.UploadVolumeResult(size=size, sha512=sha512, md5=md5, virtual_size_bytes=virtual)

    def _backup(self, op: c.BackupVolume, progress: Progress) -> c.BackupVolumeResult:
        done = self.backups.manifest(op.backup_id)
        if done is None:
            part = self.scratch / f"backup-{op.backup_id}"
            try:
                if op.snapshot_id is not None:
                    with self.volumes.lock(op.volume_id):
                        self._home_of(op.snapshot_id, op.volume_id)
                        self.volumes.convert(op.volume_id, op.snapshot_id, part, "raw", progress)
                else:
                    with self._still(op.volume_id, f"backup-{op.backup_id}") as snapshot:
                        self.volumes.convert(op.volume_id, snapshot, part, "raw", progress)
                done = self.backups.write(op.backup_id, op.volume_id, part, op.parent_backup_id, progress)
            finally:
                part.unlink(missing_ok=True)
        return c.BackupVolumeResult(object_count=len(done.chunks), size_bytes=done.size)

    def _restore(self, op: c.RestoreBackup, progress: Progress) -> None:
        part = self.scratch / f"restore-{op.volume_id}"
        with self.volumes.lock(op.volume_id):
            target = self.volumes.existing(op.volume_id)
            self._refuse_exported(op.volume_id)
            try:
                size = self.backups.read_into(op.backup_id, part, progress)
                if size > self.volumes.size(op.volume_id):
                    self.volumes.grow(op.volume_id, size)
                # Into the file as it is: its snapshots stay.
                run_qemu_img(["convert", "-n", "-f", "raw", "-O", "qcow2", str(part), str(target)], progress)
            finally:
                part.unlink(missing_ok=True)

    def _delete_backup(self, op: c.DeleteBackup, progress: Progress) -> None:
        self.backups.delete(op.backup_id)

    # -- what exists -----------------------------------------------------------------------------------------------

    def inventory(self) -> Found:
        exports = [(record.volume_id, record.attachment_id) for record in self.exports.all()]
        return Found(volumes=self.volumes.ids(), exports=exports)

    def audit(self) -> c.Audited:
        things = [c.Thing(kind="volume", id=one) for one in self.volumes.ids()]
        things += [
            c.Thing(kind="export", id=f"{record.volume_id}/{record.attachment_id}", owner=record.volume_id)
            for record in self.exports.all()
        ]
        things += [c.Thing(kind="backup", id=one) for one in self.backups.ids()]
        things += [c.Thing(kind="quarantine", id=f"volume/{one}") for one in self.volumes.set_aside()]
        things += [c.Thing(kind="quarantine", id=f"backup/{one}") for one in self.backups.set_aside()]
        return c.Audited(kinds=["volume", "export", "backup"], things=things, drift=list(self.exports.astray()))

    def mend(self, item: c.MendItem) -> str | None:
        if item.kind == "export" and item.problem == "missing":
            self.exports.restore()
            return "what is recorded is exported again"
        if item.kind == "export" and "/" not in item.id:
            self.exports.cut_off(item.id)
            return "the storage daemon serves it no more"
        if item.kind == "export":
            volume_id, _, attachment_id = item.id.partition("/")
            self.exports.remove(volume_id, attachment_id)
            return "the export is removed"
        if item.kind == "volume":
            with self.volumes.lock(item.id):
                self._refuse_exported(item.id)
                return f"the volume is moved aside: {self.volumes.put_aside(item.id)}"
        if item.kind == "backup":
            return f"the backup is moved aside: {self.backups.put_aside(item.id)}"
        return None

    def remove_absent(self, absent: c.Absent) -> None:
        for volume_id, attachment_id in absent.exports:
            self.exports.remove(volume_id, attachment_id)
        for volume_id in absent.volumes:
            self._delete(c.DeleteVolume(volume_id=volume_id), lambda *fraction: None)

    def cleanup_all(self) -> None:
        """End the storage daemon and remove every volume, snapshot and backup."""
        self.daemon.stop()
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.rmtree(self.daemon.run_dir, ignore_errors=True)

    def facts(self) -> Facts:
        self.exports.tend()  # with every heartbeat
        total, free = self.volumes.space()
        warnings = [] if self.daemon.listen is None or self.daemon.speaks_tls() else [_PLAIN]
        if self.daemon.tls is not None and self.daemon.speaks_tls() and self.daemon.outdated():
            warnings += _old_certificate(self.daemon.shown)
        return Facts(resources={"volume_total_gb": total / GIB, "volume_free_gb": free / GIB}, warnings=warnings)


def _old_certificate(shown: Path) -> list[dict[str, str]]:
    from cumulet.kernel import pki

    ends = pki.life(shown.read_text())[1]
    if ends - time.time() > _SOON_SECONDS:
        return []
    day = time.strftime("%Y-%m-%d", time.gmtime(ends))
    return [
        {
            "code": "volumes-old-certificate",
            "message": f"volumes are served with a certificate that ends on {day}: then nobody can connect anew",
            "cure": "detach the volumes of this host for a moment: the next attached is served with the renewed one",
        }
    ]


PROVIDERS: dict[str, Callable[..., VolumeProvider]] = {"file": FileProvider}


class StorageDriver(Driver):
    role = "storage"

    def __init__(self, provider: VolumeProvider) -> None:
        self.provider = provider

    def start(self, hooks: Hooks) -> None:
        self.provider.start()

    def operations(self) -> dict[type[c.Operation], OperationBody]:
        return self.provider.operations()

    def inventory(self) -> Found:
        return self.provider.inventory()

    def facts(self) -> Facts:
        return self.provider.facts()

    def audit(self, documents: Mapping[str, Mapping[str, Any]]) -> c.Audited:
        return self.provider.audit()

    def mend(self, item: c.MendItem) -> str | None:
        return self.provider.mend(item)

    def remove_absent(self, absent: c.Absent) -> None:
        self.provider.remove_absent(absent)

    def cleanup_all(self) -> None:
        self.provider.cleanup_all()


def build(name: str, **settings: Any) -> StorageDriver:
    """The driver for a provider named in the host's settings."""
    if name not in PROVIDERS:
        raise DriverError("unsupported", f"there is no volume provider {name!r}; known: {', '.join(sorted(PROVIDERS))}")
    return StorageDriver(PROVIDERS[name](**settings))
