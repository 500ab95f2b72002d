"""Evacuation: the host of a server is dead, the server is made anew on another one, under the same identity.

| server.evacuate | child `server.flee`, then child `server.leave`, for a host that is not dead after all |
| server.flee | wait until no device changes; claim a host; then as a move arrives, with new disks of the image |
| server.leave_dead | `server.leave`, once the dead host is back |

A volume that is exported anew is fenced against the dead host. An evacuation that fails leaves the server where it was,
and with what it had there, should the host live; so does one whose image was deleted.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import CacheImage, CreateDisks
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, Wait, nothing_to_undo
from cumulet.services.compute import migrations, store
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.workflows.arrival import Arrival
from cumulet.services.compute.workflows.common import record_fault, settle, settle_child
from cumulet.services.compute.workflows.leave import LeaveWorkflow
from cumulet.services.compute.workflows.volumes import VolumeWorkflows


class FleeParams(msgspec.Struct, kw_only=True):
    """``goal``: the state to be in afterwards, active or stopped. ``shared``: the caller says that the disks are on
    shared storage."""

    migration_id: str
    host: str | None = None
    force: bool = False
    goal: str = "active"
    shared: bool = False
    admin_password: str | None = None


class LeaveDeadParams(msgspec.Struct, kw_only=True):
    migration_id: str


class EvacuateWorkflows(Arrival):
    def __init__(
        self, parts: Any, specs: Any, volumes: VolumeWorkflows, scheduling: Scheduling, leave: LeaveWorkflow
    ) -> None:
        super().__init__(parts, specs, volumes, scheduling, leave)
        task, event = "rebuild_spawning", "compute_rebuild_instance"
        self.flee = Saga(
            kind="server.flee",
            object_kind="server",
            params=FleeParams,
            secrets=("admin_password",),
            settle=settle_child,
            steps=(
                Wait("quiet", self._quiet, task_state="rebuilding", event="rebuild_server"),
                Transact("prepare", self._flee, self._give_back, "rebuilding", "rebuild_server"),
                Call("image", self._image, nothing_to_undo("the cache is shared"), task_state=task, event=event),
                *self._arriving(
                    task,
                    event,
                    Call("disks", self._new_disks, self._delete_fetched, task_state=task, event=event),
                    finish=self._fled,
                ),
            ),
        )
        self.evacuate = Saga(
            kind="server.evacuate",
            object_kind="server",
            params=FleeParams,
            secrets=("admin_password",),
            settle=settle,
            failed=self._evacuation_failed,
            action="evacuate",
            preempts=1,
            steps=(
                Children("flee", self._begin_flight, task_state="rebuilding", event="rebuild_server"),
                Children("leave", self._leave_others, tolerate=True, task_state=task, event=event),
            ),
        )
        self.leave_dead = Saga(
            kind="server.leave_dead",
            object_kind="server",
            params=LeaveDeadParams,
            steps=(
                Children("leave", self._leave_others, tolerate=True),
                Transact("completed", self._left_dead, nothing_to_undo("it is the last step")),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return self.flee, self.evacuate, self.leave_dead

    def _quiet(self, tx: Tx, run: Run) -> bool | None:
        """What was being attached on the dead host fails by itself, and would take away what arrives at the other."""
        return None if self.devices_change(tx, run.object_id) else True

    def _flee(self, tx: Tx, run: Run) -> dict[str, Any]:
        server, params = self.server(tx, run), run.params
        assert server.host is not None
        source = self.parts.hosts.get(tx, server.host)
        if source.up and not source.forced_down:
            raise CloudError(f"Compute service of {server.host} is still in use.", code="host-up")
        if params.shared:
            raise CloudError("Invalid state of instance files on shared storage", code="not-shared")
        host = self.scheduling.move(
            tx,
            server,
            params.migration_id,
            "pre-migrating",
            flavor=server.flavor,
            host=params.host,
            excluded=[server.host],
            force=params.force,
        )
        return {"from": server.host, "to": host, "sizes": {}, "goal": params.goal}

    def _image(self, tx: Tx, run: Run) -> HostCall | None:
        server, there = self.server(tx, run), self._way(run)[1]
        source = None if self.scheduling.volume_backed(tx, server) else self.specs.source(tx, server.image_id, there)
        return (there, CacheImage(image=source)) if source is not None else None

    def _new_disks(self, tx: Tx, run: Run) -> HostCall:
        return self._way(run)[1], CreateDisks(server=self._spec(tx, run))

    def _bind(self, tx: Tx, run: Run) -> None:
        """The ports are on both hosts until the server has arrived: a host that is vouched dead and lives would lose
        them for good, whether the evacuation succeeds or not."""
        self.on_both_hosts(tx, run.object_id, self._way(run)[1])

    def _bind_back(self, tx: Tx, run: Run) -> None:
        self.on_one_host(tx, run.object_id, leaving=self._way(run)[1])

    def _ports_work(self, tx: Tx, run: Run) -> bool:
        return True  # the target has plugged them, and they are not bound there yet

    def _fled(self, tx: Tx, run: Run) -> None:
        self.alone_with(tx, run)
        server, goal = self.server(tx, run), run.params.goal
        here, there = self._way(run)
        launched = server.launched_at or tx.now
        store.update_server(tx, server.id, host=there, goal=goal, failed=False, launched_at=launched)
        ports = [row.port_id for row in store.interfaces(tx, server.id)]
        if ports:
            self.parts.network.switch_move(tx, ports)
        self.on_one_host(tx, server.id, leaving=here)
        self.parts.placement.release(tx, run.params.migration_id)
        self.move_over(tx, run, "done")
        self.parts.network.server_power(tx, server.id, self._to_run(run))

    def _begin_flight(self, tx: Tx, run: Run) -> list[Start]:
        return [Start(self.flee, run.object_id, run.params)]

    def _evacuation_failed(self, tx: Tx, run: Run) -> None:
        if self._migration(tx, run).status != "done":
            self.move_over(tx, run, "failed")
        if not run.cancelled:
            record_fault(tx, run.object_id, run)

    def _left_dead(self, tx: Tx, run: Run) -> None:
        migration = self._migration(tx, run)
        host = self.parts.hosts.get(tx, migration.source)
        if not host.up or host.forced_down:
            raise CloudError(f"Host {migration.source} went down again.", code="host-down")
        migrations.set_status(tx, migration.id, "completed")
