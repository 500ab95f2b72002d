"""Live migration: the guest goes to another host while it runs.

| server.live_migrate | do | undo |
|---|---|---|
| claim | choose a host, claim it; the source's claim becomes the migration's | give back |
| volumes, exported | export each volume to the target, too, by an attachment of its own (children) | unexport |
| offer_images | of an image that was deleted: offer it to the target | withdraw |
| image | image into the target's cache, from the image service or the source | stays cached |
| bind | the ports are to be on both hosts | on the source alone |
| ports | plug at the target | unplug |
| receive | open the target's door | close it, discard what came |
| begin | the migration is running | - |
| handover | child `server.handover`: the source hands the guest over; the point of no return | - |
| arbiter | if it failed, wait until the target can be asked | - |
| shut | child `server.end_receive`: the target closes the door; a guest that runs there, is there | - |
| decide | the server is where the guest is; if that is the source, fail | - |
| leave | take what is left from the source: domain, taps, disks, exports (children) | - |
| conclude | give back the source's claim | - |

Who runs the guest after an outcome that nobody knows, says the target: a guest that does not run there when the door is
closed, never will. Past the point of no return nothing is undone, whatever fails; a delete takes what was left.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cumulet.agent.contract import (
    EndReceive,
    MigrateServer,
    PlugPorts,
    PrepareReceive,
    ServerSpec,
    SteerMigration,
    UnplugPorts,
)
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, Wait, nothing_to_undo
from cumulet.services.compute import migrations, store
from cumulet.services.compute.rows import BlockDeviceRow, MigrationRow
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.specs import attachment
from cumulet.services.compute.workflows.arrival import raise_first
from cumulet.services.compute.workflows.common import Workflow, record_fault, settle, settle_child
from cumulet.services.compute.workflows.leave import LeaveWorkflow
from cumulet.services.compute.workflows.volumes import ConnectParams, VolumeWorkflows

CLAIM, PREPARE, MOVE = "conductor_live_migrate_instance", "compute_pre_live_migration", "compute_live_migration"
ROLLBACK, AFTER = "compute_rollback_live_migration_at_destination", "compute_post_live_migration_at_destination"
TASK = "migrating"
_ARBITER_S = 3600


class LiveParams(msgspec.Struct, kw_only=True):
    """``host``: asked for; with ``force`` the scheduler's rules do not matter. ``copy_disks`` False: the caller wants
    no disk copied."""

    migration_id: str
    host: str | None = None
    force: bool = False
    copy_disks: bool = True


class HandoverParams(msgspec.Struct, kw_only=True):
    migration_id: str
    address: str


class EndParams(msgspec.Struct, kw_only=True):
    host: str
    discard: bool


class SteerParams(msgspec.Struct, kw_only=True):
    server_id: str
    action: Literal["abort", "force_complete"]


class LiveSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long a migration may take for each GiB of memory and disk (0: for ever), and what happens then."""

    seconds_per_gb: int = 800
    on_timeout: Literal["abort", "force_complete"] = "abort"


class LiveWorkflows(Workflow):
    def __init__(
        self,
        parts: Any,
        specs: Any,
        volumes: VolumeWorkflows,
        scheduling: Scheduling,
        leave: LeaveWorkflow,
        settings: LiveSettings,
    ) -> None:
        super().__init__(parts, specs)
        self.volumes = volumes
        self.scheduling = scheduling
        self.leave = leave
        self.settings = settings
        stays = nothing_to_undo("what is handed over stays where it is")
        looks = nothing_to_undo("it only looks")
        self.handover = Saga(
            kind="server.handover",
            object_kind="server",
            params=HandoverParams,
            settle=settle_child,
            steps=(
                Call(
                    "migrate",
                    self._migrate,
                    stays,
                    done=self._migrated,
                    if_host_down="wait",
                    task_state=TASK,
                    event=MOVE,
                ),
            ),
        )
        self.end = Saga(
            kind="server.end_receive",
            object_kind="server",
            params=EndParams,
            steps=(Call("end", self._end, stays, if_host_down="wait"),),
        )
        self.migrate = Saga(
            kind="server.live_migrate",
            object_kind="server",
            params=LiveParams,
            settle=settle,
            failed=self._failed,
            action="live-migration",
            steps=(
                Transact("claim", self._claim, self._give_back, TASK, CLAIM),
                Children(
                    "volumes", self._prepare_volumes, tolerate=True, undo=self._let_go, task_state=TASK, event=PREPARE
                ),
                Transact("exported", self._all_exported, looks, TASK, PREPARE),
                Call("offer_images", self._offer_images, self._withdraw_images, task_state=TASK, event=PREPARE),
                Call("image", self._image, nothing_to_undo("the cache is shared"), task_state=TASK, event=PREPARE),
                Transact("bind", self._bind, self._unbind, TASK, PREPARE),
                Call("ports", self._plug, self._unplug, task_state=TASK, event=PREPARE),
                Call("receive", self._receive, self._discard, task_state=TASK, event=PREPARE),
                Transact("begin", self._begin, nothing_to_undo("the end says what it came to"), TASK, MOVE),
                Children("handover", self._hand_over, tolerate=True, undo=stays, task_state=TASK, event=MOVE),
                Wait(
                    "arbiter",
                    self._target_answers,
                    deadline_seconds=_ARBITER_S,
                    on_deadline="continue",
                    task_state=TASK,
                    event=MOVE,
                ),
                Children("shut", self._shut, tolerate=True, undo=stays, task_state=TASK, event=ROLLBACK),
                Transact("decide", self._decide, stays, TASK, AFTER),
                Children("leave", self._leave, tolerate=True, undo=stays, task_state=TASK, event=AFTER),
                Transact("conclude", self._conclude, nothing_to_undo("it is the last step"), TASK, AFTER),
            ),
        )
        self.steering = {
            "abort": self._steer("live_migration_cancel", "compute_live_migration_abort"),
            "force_complete": self._steer("live_migration_force_complete", "compute_live_migration_force_complete"),
        }

    def sagas(self) -> Sequence[Saga]:
        return self.handover, self.end, self.migrate, *self.steering.values()

    def _steer(self, action: str, event: str) -> Saga:
        return Saga(
            kind=f"migration.{action.removeprefix('live_migration_')}",
            object_kind="migration",
            params=SteerParams,
            action=action,
            steps=(Call("steer", self._steered, nothing_to_undo("a migration under way goes on"), event=event),),
        )

    # -- the migration -----------------------------------------------------------------------------------------------

    def _migration(self, tx: Tx, run: Run) -> MigrationRow:
        return migrations.get(tx, run.params.migration_id)

    def _open(self, tx: Tx, run: Run) -> MigrationRow | None:
        """The migration while it may be undone: None past the point of no return."""
        found = self._migration(tx, run)
        return None if found.status in ("post-migrating", "completed") else found

    def _disks(self, tx: Tx, server_id: str) -> list[BlockDeviceRow]:
        return store.disks(tx, [server_id]).get(server_id, [])

    def _ports(self, tx: Tx, server_id: str) -> list[str]:
        return [row.port_id for row in store.interfaces(tx, server_id)]

    def _spec(self, tx: Tx, server_id: str, target: str) -> ServerSpec:
        """The server as it will be at the target: its volumes by way of their second attachments."""
        server = store.server(tx, server_id)
        assert server is not None
        spec = self.specs.server(tx, server, target)
        there = [msgspec.structs.replace(disk, **disk.move) for disk in self._disks(tx, server_id) if disk.move]
        found: ServerSpec = msgspec.structs.replace(spec, volumes=[attachment(disk) for disk in there])
        return found

    # -- preparing ---------------------------------------------------------------------------------------------------

    def _claim(self, tx: Tx, run: Run) -> dict[str, Any]:
        server, params = self.server(tx, run), run.params
        assert server.host is not None
        source = self.parts.hosts.get(tx, server.host)
        if not source.up or source.forced_down:
            raise CloudError(f"Compute service of {server.host} is unavailable at this time.", code="host-down")
        if not params.copy_disks and not self.scheduling.volume_backed(tx, server):
            raise CloudError(
                f"{server.id} is not on shared storage: its disks are local, block_migration must copy them.",
                code="not-shared",
            )
        host = self.scheduling.move(
            tx,
            server,
            params.migration_id,
            "preparing",
            flavor=server.flavor,
            host=params.host,
            excluded=[server.host],
            force=params.force,
        )
        return {"from": server.host, "to": host}

    def _give_back(self, tx: Tx, run: Run) -> None:
        if self._open(tx, run):
            self.scheduling.move_back(tx, run.object_id, run.params.migration_id)

    def _children(self, tx: Tx, run: Run, saga: Saga, host: str | None = None) -> list[Start]:
        params = ConnectParams(server_id=run.object_id, host=host)
        return [Start(saga, disk.id, params) for disk in self._disks(tx, run.object_id)]

    def _prepare_volumes(self, tx: Tx, run: Run) -> list[Start]:
        return self._children(tx, run, self.volumes.prepare, run.outputs["claim"]["to"])

    def _let_go(self, tx: Tx, run: Run) -> list[Start]:
        return self._children(tx, run, self.volumes.let_go) if self._open(tx, run) else []

    def _all_exported(self, tx: Tx, run: Run) -> None:
        raise_first(run.outputs["volumes"])

    def _image(self, tx: Tx, run: Run) -> HostCall | None:
        return self.bring_images(tx, run, self.server(tx, run), *self._way(run))

    def _offer_images(self, tx: Tx, run: Run) -> HostCall | None:
        return self.offer_images(tx, self.server(tx, run), *self._way(run))

    def _withdraw_images(self, tx: Tx, run: Run) -> HostCall | None:
        return self.withdraw_images(tx, self.server(tx, run), *self._way(run)) if self._open(tx, run) else None

    def _way(self, run: Run) -> tuple[str, str]:
        return run.outputs["claim"]["from"], run.outputs["claim"]["to"]

    def _bind(self, tx: Tx, run: Run) -> None:
        self.on_both_hosts(tx, run.object_id, run.outputs["claim"]["to"])

    def _unbind(self, tx: Tx, run: Run) -> None:
        if self._open(tx, run):
            self.on_one_host(tx, run.object_id, leaving=run.outputs["claim"]["to"])

    def _plug(self, tx: Tx, run: Run) -> HostCall | None:
        target = run.outputs["claim"]["to"]
        ports = self.specs.ports(tx, run.object_id, target)
        return (target, PlugPorts(server_id=run.object_id, ports=ports)) if ports else None

    def _unplug(self, tx: Tx, run: Run) -> HostCall | None:
        ports = self._ports(tx, run.object_id)
        if not ports or not self._open(tx, run):
            return None
        return run.outputs["claim"]["to"], UnplugPorts(server_id=run.object_id, port_ids=ports)

    def _receive(self, tx: Tx, run: Run) -> HostCall:
        source, target = run.outputs["claim"]["from"], run.outputs["claim"]["to"]
        return target, PrepareReceive(server=self._spec(tx, run.object_id, target), from_host=source)

    def _discard(self, tx: Tx, run: Run) -> HostCall | None:
        return self._ending(tx, run, run.outputs["claim"]["to"], discard=True) if self._open(tx, run) else None

    # -- handing over --------------------------------------------------------------------------------------------------

    def _begin(self, tx: Tx, run: Run) -> None:
        migrations.set_status(tx, run.params.migration_id, "running")

    def _hand_over(self, tx: Tx, run: Run) -> list[Start]:
        params = HandoverParams(migration_id=run.params.migration_id, address=run.outputs["receive"]["address"])
        return [Start(self.handover, run.object_id, params)]

    def _migrate(self, tx: Tx, run: Run) -> HostCall:
        migration, server = self._migration(tx, run), self.server(tx, run)
        assert migration.dest is not None
        gigabytes = max(2, server.memory_mb // 1024 + server.root_gb + server.ephemeral_gb)
        return migration.source, MigrateServer(
            server=self._spec(tx, server.id, migration.dest),
            to_host=migration.dest,
            address=run.params.address,
            timeout_seconds=self.settings.seconds_per_gb * gigabytes,
            on_timeout=self.settings.on_timeout,
        )

    def _migrated(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        self._switch(tx, self._migration(tx, run))

    def _switch(self, tx: Tx, migration: MigrationRow) -> None:
        """The guest runs on the target: so does the server."""
        if migration.status in ("post-migrating", "completed"):
            return
        migrations.set_status(tx, migration.id, "post-migrating")
        store.update_server(tx, migration.server_id, host=migration.dest)
        for disk in self._disks(tx, migration.server_id):
            if disk.move is not None:
                before = {"attachment_id": disk.attachment_id, "connection": disk.connection}
                store.update_disk(tx, disk.id, **disk.move, move=before)
        ports = self._ports(tx, migration.server_id)
        if ports:
            self.parts.network.switch_move(tx, ports)

    def _target_answers(self, tx: Tx, run: Run) -> bool | None:
        migration = self._open(tx, run)
        if migration is None or migration.dest is None:
            return True
        host = self.parts.hosts.get(tx, migration.dest)
        return True if host.up and not host.forced_down else None

    def _shut(self, tx: Tx, run: Run) -> list[Start]:
        params = EndParams(host=run.outputs["claim"]["to"], discard=self._open(tx, run) is not None)
        return [Start(self.end, run.object_id, params)]

    def _end(self, tx: Tx, run: Run) -> HostCall:
        return self._ending(tx, run, run.params.host, discard=run.params.discard)

    def _ending(self, tx: Tx, run: Run, host: str, *, discard: bool) -> HostCall:
        server = self.server(tx, run)
        return host, EndReceive(server_id=server.id, instance_name=server.instance_name, discard=discard)

    def _decide(self, tx: Tx, run: Run) -> None:
        migration = self._open(tx, run)
        if migration is not None:
            [shut] = run.outputs["shut"]
            if shut["error_code"] != "guest-running":
                raise_first(run.outputs["handover"])
                raise_first([shut])
            self._switch(tx, migration)
        self.on_one_host(tx, run.object_id, leaving=run.outputs["claim"]["from"])

    # -- afterwards --------------------------------------------------------------------------------------------------

    def _leave(self, tx: Tx, run: Run) -> list[Start]:
        return [
            *self.leave.leaving(tx, run.object_id, [self._migration(tx, run)]),
            *self._children(tx, run, self.volumes.let_go),
        ]

    def _conclude(self, tx: Tx, run: Run) -> None:
        self.move_over(tx, run, "completed")
        self.parts.placement.release(tx, run.params.migration_id)
        tx.after_commit(self.parts.moved)

    def _failed(self, tx: Tx, run: Run) -> None:
        migration = self._open(tx, run)
        if migration is not None:
            stopped = run.cancelled or run.error_code == "aborted"
            status = "cancelled" if stopped else "error" if migration.status == "accepted" else "failed"
            self.move_over(tx, run, status)
        else:
            self._cut_short(tx, run)
        tx.after_commit(self.parts.moved)
        if not run.cancelled:
            record_fault(tx, run.object_id, run)

    def _cut_short(self, tx: Tx, run: Run) -> None:
        """A delete or an evacuation came when the guest had left. What is on the source is named in the answer to its
        next inventory; a delete frees the second attachments itself."""
        self.alone_with(tx, run)
        self.on_one_host(tx, run.object_id, leaving=run.outputs["claim"]["from"])
        if not self.server(tx, run).deleting:
            for disk in self._disks(tx, run.object_id):
                self.volumes.drop_move(tx, disk)
        self.parts.placement.release(tx, run.params.migration_id)
        self.move_over(tx, run, "completed")

    # -- steering ----------------------------------------------------------------------------------------------------

    def _steered(self, tx: Tx, run: Run) -> HostCall | None:
        server = store.server(tx, run.params.server_id)
        migration = migrations.get(tx, run.object_id)
        if server is None or migration.status != "running":
            return None
        return migration.source, SteerMigration(
            server_id=server.id, instance_name=server.instance_name, action=run.params.action
        )
