"""`VolumeService`: the volume service's parts put together, and what other services may ask of it (``tx`` first)."""

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from cumulet.agent.contract import Absent, ExportVolume, Inventory, UnexportVolume
from cumulet.conductor import drains
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, Clock
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import BadInput, Conflict, NotFound, WrongState
from cumulet.services.volume import attachments, placing, state, store, types
from cumulet.services.volume.creation import CreateVolumeRequest, create_volume
from cumulet.services.volume.drains import Drains
from cumulet.services.volume.quotas import Quotas
from cumulet.services.volume.store import AttachmentRow, VolumeRow
from cumulet.services.volume.workflows.attachments import AttachmentWorkflows
from cumulet.services.volume.workflows.backups import BackupWorkflows
from cumulet.services.volume.workflows.moves import LOCKED, MigrateParams, MoveWorkflows
from cumulet.services.volume.workflows.snapshots import SnapshotWorkflows
from cumulet.services.volume.workflows.volumes import DeleteParams, VolumeWorkflows

_MAX_PAUSE_MINUTES = 60


class VolumeSettings(msgspec.Struct, frozen=True, kw_only=True):
    availability_zone: str = "nova"
    page_max: int = 1000
    quotas: dict[str, int] = {}  # default limits of a project


class VolumeService:
    def __init__(
        self,
        *,
        db: Database,
        clock: Clock,
        sagas: Any,
        hosts: Any,
        image: Any,
        settings: VolumeSettings | None = None,
    ) -> None:
        self.db = db
        self.clock = clock
        self.sagas = sagas
        self.hosts = hosts
        self.image = image
        self.settings = settings or VolumeSettings()
        self.quotas = Quotas(self.settings.quotas)
        self.snapshot_workflows = SnapshotWorkflows(self)
        self.attachment_workflows = AttachmentWorkflows(self)
        self.volume_workflows = VolumeWorkflows(
            self, self.snapshot_workflows.delete, self.attachment_workflows.disconnect
        )
        self.move_workflows = MoveWorkflows(self)
        self.backup_workflows = BackupWorkflows(self)
        self.drains = Drains(self)
        # Set by the composition root: who is told that a volume in use has grown; whether a server uses an attachment
        # (then only compute ends it); and who wants to know that a volume became ready, failed or is gone.
        self.grown: Callable[[Tx, str, int, RequestContext], object] = lambda tx, volume_id, size_gb, ctx: None
        self.server_uses: Callable[[Tx, str, str], bool] = lambda tx, volume_id, attachment_id: False
        self.listeners: list[Callable[[Tx, str], object]] = []
        self.moved: Callable[[], object] = lambda: None  # called when the move of a volume is over
        sagas.register(
            *self.volume_workflows.sagas(),
            *self.move_workflows.sagas(),
            *self.snapshot_workflows.sagas(),
            *self.backup_workflows.sagas(),
            *self.attachment_workflows.sagas(),
        )

    def start(self) -> None:
        """Once the tables exist: the default volume type."""
        if self.db.read(lambda tx: store.type_named(tx, types.DEFAULT_NAME)) is None:
            self.db.write(types.ensure_default)

    # -- for other services --------------------------------------------------------------------------------------

    def get(self, tx: Tx, ctx: RequestContext, volume_id: str) -> VolumeRow:
        """The volume if it is the caller's (or the caller is an administrator), else NotFound."""
        row = store.VOLUMES.find(tx, volume_id)
        if row is None or not (ctx.is_admin or row.project_id == ctx.project_id):
            raise store.VOLUMES.missing(volume_id)
        return row

    def reserve_attachment(
        self, tx: Tx, ctx: RequestContext, volume_id: str, server_id: str, device: str | None
    ) -> str:
        return attachments.reserve(tx, ctx, self.get(tx, ctx, volume_id), server_id, device).id

    def ready(self, tx: Tx, attachment_id: str) -> bool:
        """Is the volume made? Raises Conflict if it never will be (for a wait before `export_operation`)."""
        attachment = store.ATTACHMENTS.get(tx, attachment_id)
        volume = store.VOLUMES.get(tx, attachment.volume_id)
        if volume.base == "error":
            raise BadInput(f"Volume {volume.id} did not finish being created: its status is {volume.status}.")
        return volume.base == "ready"

    def can_be_exported_again(self, tx: Tx, attachment_id: str) -> bool:
        """Does a server have it, and does the volume's host answer?"""
        attachment = store.ATTACHMENTS.find(tx, attachment_id)
        if attachment is None or attachment.status != "attached":
            return False
        volume = store.VOLUMES.get(tx, attachment.volume_id)
        return volume.host is not None and volume.base == "ready" and self.hosts.is_up_in(tx, volume.host)

    def export_operation(self, tx: Tx, attachment_id: str, host: str) -> tuple[str, ExportVolume]:
        return attachments.export(tx, attachment_id, host)

    def unexport_operation(self, tx: Tx, attachment_id: str) -> tuple[str, UnexportVolume] | None:
        return attachments.unexport(tx, attachment_id)

    def attachment_connected(self, tx: Tx, attachment_id: str, host: str | None, device: str | None) -> None:
        attachments.connected(tx, attachment_id, host, device)

    def begin_detaching(self, tx: Tx, attachment_id: str) -> None:
        attachments.begin_detaching(tx, attachment_id)

    def drop_attachment(self, tx: Tx, attachment_id: str) -> None:
        attachments.drop(tx, attachment_id)

    def create_for_server(
        self,
        tx: Tx,
        ctx: RequestContext,
        *,
        size_gb: int | None,
        source: str,
        source_id: str | None,
        server_id: str,
        volume_type: str | None = None,
        name: str | None = None,
    ) -> str:
        """A volume for a server that is being made. ``source``: image, snapshot, volume or blank."""
        request = CreateVolumeRequest(
            size_gb=size_gb,
            name=name,
            volume_type=volume_type,
            image_id=source_id if source == "image" else None,
            snapshot_id=source_id if source == "snapshot" else None,
            source_volid=source_id if source == "volume" else None,
            server_id=server_id,
        )
        return create_volume(self, tx, ctx, request).id

    def delete_on_termination(self, tx: Tx, volume_id: str) -> None:
        """Its server is gone and wanted it to go too. Doing it twice is no error; snapshots keep it."""
        row = store.VOLUMES.find(tx, volume_id)
        if row is None or row.busy == "deleting" or store.snapshots_of(tx, volume_id):
            return
        exported = row.migration_status not in store.MOVES and store.exports_of(tx, volume_id)  # its move's own goes
        if store.attachments_of(tx, volume_id) or exported:
            return
        ctx = msgspec.structs.replace(system_context("volume"), project_id=row.project_id, user_id=row.user_id)
        self.begin_delete(tx, ctx, row, cascade=False, unwatched=True)

    def delete_again(self) -> str | None:
        """Volumes that were to go with their server and that their hosts would not let go of. The more often it failed,
        the later."""
        if not self.db.read(self._undeleted):
            return None
        count = self.db.write(lambda tx: sum(self._delete_again(tx, row) for row in self._undeleted(tx)))
        return f"{count} begun" if count else None

    def _undeleted(self, tx: Tx) -> list[VolumeRow]:
        return store.VOLUMES.where(tx, store.t.VOLUMES.c.status == "error_deleting")

    def _delete_again(self, tx: Tx, row: VolumeRow) -> bool:
        tries = [one.saga for one in self.sagas.history(tx, "volume", row.id) if one.saga.kind == "volume.delete"]
        if not tries or not tries[0].params.get("unwatched") or not self.hosts.is_up_in(tx, row.host):
            return False
        pause = min(2 ** (len(tries) - 1) - 1, _MAX_PAUSE_MINUTES) * 60 * SECOND
        if tx.now < tries[0].ended_at + pause:
            return False
        self.delete_on_termination(tx, row.id)
        return True

    def on_inventory(self, tx: Tx, inventory: Inventory) -> Absent:
        """Exports of volumes we know whose attachment is gone (it went while the host was down) are to be removed; so
        are copies of volumes that are elsewhere, or deleted since, once no move is at work on them."""
        copied = {volume_id for volume_id, _ in store.copies_on(tx, inventory.host)}
        gone = [
            (volume_id, attachment_id)
            for volume_id, attachment_id in inventory.exports
            if (volume_id in copied or store.VOLUMES.find(tx, volume_id, change=False) is not None)
            and store.ATTACHMENTS.find(tx, attachment_id, change=False) is None
        ]
        return Absent(exports=gone, volumes=self._left_behind(tx, inventory))

    def _left_behind(self, tx: Tx, inventory: Inventory) -> list[str]:
        found = []
        there = set(inventory.volumes)
        for volume_id, noted_at in store.copies_on(tx, inventory.host):
            volume = store.VOLUMES.find(tx, volume_id)
            if self.sagas.owner(tx, "volume", volume_id) is not None:
                continue
            if volume_id not in there:
                if inventory.sequence > noted_at:  # else it may have come since
                    store.forget_copy(tx, volume_id, inventory.host)
            elif volume is None or volume.host != inventory.host:
                found.append(volume_id)
        return found

    # -- hosts ------------------------------------------------------------------------------------------------------

    def on_host(self, tx: Tx, host: str) -> list[tuple[str, str, str]]:
        volumes = store.volumes_on(tx, host)
        backups = store.BACKUPS.where(tx, store.t.BACKUPS.c.host == host)
        return [
            *(("volume", row.id, row.name or "") for row in volumes),
            *(("backup", row.id, row.name or "") for row in backups),
        ]

    def leave_host(self, tx: Tx, host: str) -> None:
        """Volumes move away in their turn (`go_on_draining`)."""

    def return_to_host(self, tx: Tx, host: str) -> None:
        """Moves that are under way go on."""

    def why_left(self, tx: Tx, host: str, volume_ids: list[str]) -> dict[str, str]:
        """Why volumes are on a host that is to be empty."""
        return self.drains.why(tx, host, volume_ids)

    def go_on_draining(self) -> str | None:
        """Begin the next moves from the hosts that are to be empty."""
        begun = 0
        for host, asked_at in self.db.read(drains.hosts):
            begun += self.db.write(lambda tx, host=host, at=asked_at: self.drains.go_on(tx, host, at))  # type: ignore[misc]
        return f"{begun} moves begun" if begun else None

    def forget_host(self, tx: Tx, host: Any) -> None:
        """What copies of volumes that are elsewhere it still had, it has taken along."""
        store.forget_copies_on(tx, host.name)

    def attachment(self, tx: Tx, attachment_id: str) -> AttachmentRow:
        return store.ATTACHMENTS.get(tx, attachment_id)

    def unstick(self, tx: Tx, volume_id: str) -> None:
        """Nobody is at what the volume says is being done to it: it shows what it is without that."""
        row = store.VOLUMES.find(tx, volume_id)
        if row is not None and (row.busy is not None or row.migration_status in store.MOVES):
            values: dict[str, Any] = {"busy": None}
            if row.migration_status in store.MOVES:
                values["migration_status"] = "error"
            if row.base == "creating":
                values["base"] = "error"
            state.change(tx, volume_id, **values)

    def unstick_copy(self, tx: Tx, kind: Literal["snapshot", "backup"], object_id: str) -> None:
        """Nobody is at what is being done to it: what was read of it is as it was, what was made or deleted is not."""
        copies = store.SNAPSHOTS if kind == "snapshot" else store.BACKUPS
        row = copies.find(tx, object_id)
        if row is not None and row.status in ("creating", "deleting"):
            copies.change(tx, object_id, status="error")
        elif row is not None and row.status in ("restoring", "backing-up"):
            copies.change(tx, object_id, status="available")

    # -- inside the service ----------------------------------------------------------------------------------------

    def begin_delete(
        self, tx: Tx, ctx: RequestContext, row: VolumeRow, *, cascade: bool, unwatched: bool = False
    ) -> None:
        state.change(tx, row.id, busy="deleting")
        params = DeleteParams(cascade=cascade, unwatched=unwatched)
        self.sagas.start(tx, self.volume_workflows.delete, row.id, params, ctx)

    def begin_move(self, tx: Tx, ctx: RequestContext, row: VolumeRow, host: str, *, lock: bool = False) -> None:
        """Raises WrongState or BadInput. ``lock``: it shows as in maintenance meanwhile."""
        if row.status != "available":
            hint = ": one that is in use does not move; detach it" if row.status == "in-use" else ""
            raise WrongState(f"Invalid volume: Volume {row.id} is {row.status}, and must be available to move{hint}.")
        state.refuse_moving(row)
        if store.snapshots_of(tx, row.id):
            raise WrongState(f"Invalid volume: Volume {row.id} has snapshots, which do not move.")
        if store.exports_of(tx, row.id):
            raise WrongState(f"Invalid volume: Volume {row.id} is exported; terminate its connections first.")
        if store.copied_from(tx, row.id):
            raise WrongState(f"Invalid volume: Another volume is being made of volume {row.id}.")
        why = placing.refuses(tx, self.hosts, row, host)
        if why is not None:
            raise BadInput(f"Invalid host: Host {host} cannot take volume {row.id}: {why}.")
        self.sagas.start(tx, self.move_workflows.migrate, row.id, MigrateParams(host=host), ctx)
        state.change(tx, row.id, migration_status="starting", busy=LOCKED if lock else row.busy)

    def changed(self, tx: Tx, volume_id: str) -> None:
        for listener in self.listeners:
            listener(tx, volume_id)

    def refuse_used(self, tx: Tx, *rows: AttachmentRow) -> None:
        """A server's disk is taken away through the compute API alone."""
        for row in rows:
            if self.server_uses(tx, row.volume_id, row.id):
                raise Conflict(f"Detach volume from instance {row.server_id} using the Compute API")

    def host_named(self, tx: Tx, name: str) -> Any:
        for host in self.hosts.list(tx, "storage"):
            if host.name == name:
                return host
        raise NotFound(f"Service {name} could not be found.")
