"""The generic saga checks over the volume service's sagas, on a whole control plane and fake hosts."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cumulet.compose import build_control_plane
from cumulet.emulator.cloud import QUICK_HASHES
from cumulet.kernel.context import RequestContext
from cumulet.kernel.ids import new_uuid
from cumulet.saga import testing
from cumulet.saga.testing import Case
from cumulet.services.volume import attachments, state, store
from cumulet.services.volume.creation import CreateVolumeRequest, create_volume
from cumulet.services.volume.store import BackupRow, SnapshotRow
from cumulet.services.volume.tables import QUOTA_CLASSES
from cumulet.services.volume.workflows.attachments import ConnectParams, DisconnectParams
from cumulet.services.volume.workflows.backups import BackupParams, RestoreParams
from cumulet.services.volume.workflows.moves import LeaveParams, MigrateParams
from cumulet.services.volume.workflows.snapshots import SnapshotParams
from cumulet.services.volume.workflows.volumes import (
    CreateParams,
    DeleteParams,
    ExtendParams,
    RevertParams,
    UploadParams,
)
from tests.support import cloud as support

Prepared = tuple[str, msgspec.Struct]


class Recorder:
    """Stands where the engine stands while a volume is taken in: nothing starts."""

    def start(self, tx: Any, saga: Any, object_id: str, params: msgspec.Struct, ctx: Any) -> str:
        return "none"


class VolumeHarness:
    """A cloud whose control plane is killed and started anew; hosts and database stay."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        api = cloud.api("demo")
        self.ctx = RequestContext(
            request_id="req-saga",
            project_id=api.project_id,
            user_id=api.user_id,
            roles=frozenset({"member", "reader"}),
        )
        unlimited = dict.fromkeys(("volumes", "gigabytes", "snapshots", "backups", "backup_gigabytes"), -1)
        self.db.write(lambda tx: store.set_limits(tx, QUOTA_CLASSES, "class_name", "default", unlimited))

    @property
    def db(self) -> Any:
        return self.cloud.control.db

    @property
    def engine(self) -> Any:
        return self.cloud.control.sagas

    @property
    def service(self) -> Any:
        return self.cloud.control.volume

    def stop_control_plane(self) -> None:
        self.cloud.control.reconcilers.stop()  # they would outlive it, and the cloud
        self.cloud.control.conductor.stop()

    def start_control_plane(self) -> None:
        self.cloud.control = build_control_plane(
            self.cloud.settings, bus=self.cloud.bus, passwords=QUICK_HASHES, name="test-conductor"
        )
        self.cloud.control.image.start()
        self.cloud.control.conductor.start()

    def host_state(self) -> Any:
        found = {}
        for name, host in self.cloud.hosts.items():
            left = host.fake.world.leftovers()
            found[name] = {kind: sorted(map(str, ids)) for kind, ids in left.items() if "documents" not in kind}
        return found

    # -- what sagas work on --

    def taken_in(self) -> str:
        """A volume whose create has not begun."""

        def work(tx: Any) -> str:
            real, self.service.sagas = self.service.sagas, Recorder()
            try:
                return create_volume(self.service, tx, self.ctx, CreateVolumeRequest(size_gb=1, name="v")).id
            finally:
                self.service.sagas = real

        return self.db.write(work)

    def finish(self, saga: Any, object_id: str, params: msgspec.Struct) -> None:
        saga_id = self.db.write(lambda tx: self.engine.start(tx, saga, object_id, params, self.ctx))
        assert testing.ended(self, saga_id, 20).status == "finished"

    def volume(self, **values: Any) -> str:
        volume_id = self.taken_in()
        self.finish(self.service.volume_workflows.create, volume_id, CreateParams())
        if values:
            self.db.write(lambda tx: state.change(tx, volume_id, **values))
        return volume_id

    def snapshot_row(self, volume_id: str) -> str:
        def work(tx: Any) -> str:
            row = SnapshotRow(
                new_uuid(), volume_id, self.ctx.project_id, None, "s", None, 1, "creating", "0%", {}, tx.now, tx.now
            )
            return store.SNAPSHOTS.insert(tx, row).id

        return self.db.write(work)

    def snapshot(self, volume_id: str) -> str:
        snapshot_id = self.snapshot_row(volume_id)
        self.finish(self.service.snapshot_workflows.create, snapshot_id, SnapshotParams())
        return snapshot_id

    def backup_row(self, volume_id: str) -> str:
        def work(tx: Any) -> str:
            volume = store.VOLUMES.get(tx, volume_id)
            state.change(tx, volume_id, busy="backing-up")
            backup_id = new_uuid()
            row = BackupRow(
                id=backup_id,
                data_id=backup_id,
                volume_id=volume_id,
                snapshot_id=None,
                parent_id=None,
                project_id=volume.project_id,
                user_id=None,
                name="b",
                description=None,
                container=None,
                availability_zone=None,
                host=volume.host,
                size_gb=1,
                object_count=0,
                status="creating",
                fail_reason=None,
                metadata={},
                described={},
                data_timestamp=tx.now,
                created_at=tx.now,
            )
            return store.BACKUPS.insert(tx, row).id

        return self.db.write(work)

    def backup(self, volume_id: str) -> str:
        backup_id = self.backup_row(volume_id)
        self.finish(self.service.backup_workflows.create, backup_id, BackupParams())
        return backup_id

    def host(self, volume_id: str) -> str:
        host = self.db.read(lambda tx: store.VOLUMES.get(tx, volume_id)).host
        assert host is not None
        return host

    def elsewhere(self, volume_id: str) -> str:
        [other] = set(self.cloud.hosts) - {self.host(volume_id)}
        return other

    def copies(self, volume_id: str) -> set[str]:
        return set(self.db.read(lambda tx: store.copies_of(tx, volume_id)))

    def attachment(self, volume_id: str) -> str:
        def work(tx: Any) -> str:
            return attachments.reserve(tx, self.ctx, store.VOLUMES.get(tx, volume_id), new_uuid()).id

        return self.db.write(work)

    def queued_image(self) -> str:
        return self.db.write(lambda tx: self.cloud.control.image.create_snapshot_image(tx, self.ctx, "i", {}))


# -- a fresh object for each saga -------------------------------------------------------------------------------------


def deletable(h: VolumeHarness) -> Prepared:
    volume = h.volume()
    h.snapshot(volume)
    h.db.write(lambda tx: state.change(tx, volume, busy="deleting"))
    return volume, DeleteParams(cascade=True)


def restorable(h: VolumeHarness) -> Prepared:
    volume = h.volume()
    backup = h.backup(volume)
    h.db.write(lambda tx: state.change(tx, volume, busy="restoring-backup"))
    return backup, RestoreParams(volume_id=volume)


def revertible(h: VolumeHarness) -> Prepared:
    volume = h.volume()
    return volume, RevertParams(snapshot_id=h.snapshot(volume))


def connected(h: VolumeHarness) -> Prepared:
    attachment = h.attachment(h.volume())
    h.finish(h.service.attachment_workflows.connect, attachment, ConnectParams(host="client"))
    return attachment, DisconnectParams()


def movable(h: VolumeHarness) -> Prepared:
    volume = h.volume(migration_status="starting", busy="maintenance")
    return volume, MigrateParams(host=h.elsewhere(volume))


def left_behind(h: VolumeHarness) -> Prepared:
    """What a move that was killed before its last child leaves."""
    volume = h.volume()
    source = h.host(volume)
    h.finish(h.service.move_workflows.move, volume, MigrateParams(host=h.elsewhere(volume)))
    assert h.copies(volume) == {source}
    return volume, LeaveParams(host=source)


PREPARE: dict[str, Callable[[VolumeHarness], Prepared]] = {
    "volume.create": lambda h: (h.taken_in(), CreateParams()),
    "volume.delete": deletable,
    "volume.extend": lambda h: (h.volume(busy="extending", size_gb=2), ExtendParams(size_gb=2, old_size_gb=1)),
    "volume.upload": lambda h: (h.volume(busy="uploading"), UploadParams(image_id=h.queued_image())),
    "volume.revert": revertible,
    "volume.migrate": movable,
    "volume.move": movable,
    "volume.leave": left_behind,
    "snapshot.create": lambda h: (h.snapshot_row(h.volume()), SnapshotParams()),
    "snapshot.delete": lambda h: (h.snapshot(h.volume()), SnapshotParams()),
    "backup.create": lambda h: (h.backup_row(h.volume()), BackupParams()),
    "backup.delete": lambda h: (h.backup(h.volume()), BackupParams()),
    "backup.restore": restorable,
    "attachment.connect": lambda h: (h.attachment(h.volume()), ConnectParams(host="client")),
    "attachment.disconnect": connected,
}
ONLY_FORWARD = ("volume.leave", "volume.delete", "snapshot.delete", "backup.delete", "attachment.disconnect")
CHANGES = {
    "volumes": {"status", "base", "busy", "host", "size_gb", "migration_status"},
    "volume_snapshots": {"status", "progress"},
    "volume_backups": {"status", "fail_reason"},
    "volume_attachments": {"host", "generation"},
    "volume_messages": None,
    "images": None,  # a failed upload takes its image away
    "hosts": None,
    "desired_docs": None,
    "reconcilers": None,
}


@pytest.fixture(scope="module")
def harness(cloud_backends: Any) -> Iterator[VolumeHarness]:
    directory = Path(tempfile.mkdtemp(prefix="cumulet-sagas-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    started = support.Cloud(directory, hosts=2, **cloud_backends()).start()
    yield VolumeHarness(started)
    started.stop()
    shutil.rmtree(directory, ignore_errors=True)


def case(harness: VolumeHarness, kind: str) -> Case:
    forward = {"volume.migrate": "move"}  # once it has moved nothing brings it back
    # and a move that failed has undone itself: see test_moves for one that a delete met when it had ended
    redundant = {"volume.migrate": {"move": "the child's own undo"}}
    return Case(
        kind,
        PREPARE[kind],
        CHANGES,
        unwinds=kind not in ONLY_FORWARD,
        forward_from=forward.get(kind),
        redundant=redundant.get(kind, {}),
        ctx=harness.ctx,
    )


def test_every_saga_is_checked(harness: VolumeHarness) -> None:
    declared = {
        saga.kind for saga in harness.engine.sagas.values()
        if saga.object_kind in ("volume", "snapshot", "backup", "volume_attachment")
    }  # fmt: skip
    assert declared - {"volume.reimage"} == set(PREPARE)


@pytest.mark.parametrize("kind", PREPARE)
def test_it_runs_twice_over(harness: VolumeHarness, kind: str) -> None:
    testing.check_repeats(harness, case(harness, kind))


@pytest.mark.parametrize("kind", [kind for kind in PREPARE if kind not in ONLY_FORWARD])
def test_it_unwinds(harness: VolumeHarness, kind: str) -> None:
    assert testing.check_unwinds(harness, case(harness, kind)) >= 1
    if kind != "volume.upload":  # its undo takes away an image that was there before: see test_volumes
        testing.check_undos_matter(harness, case(harness, kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", tuple(PREPARE))
def test_it_survives_kills(harness: VolumeHarness, kind: str) -> None:
    assert testing.check_crashes(harness, case(harness, kind)) >= 1
    if kind not in ONLY_FORWARD:
        testing.check_crashes_unwinding(harness, case(harness, kind))
