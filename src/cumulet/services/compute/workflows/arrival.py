"""The steps with which a stopped server leaves a host and arrives at another, shared by cold moves and evacuations.

The saga's first step is called ``prepare`` and says ``from`` and ``to`` (host names; a resize may stay where it is),
``sizes`` (columns of the server that change) and ``goal`` (active or stopped; without it, what ``was_running`` says).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from cumulet.agent.contract import (
    DefineServer,
    DeleteDisks,
    PlugPorts,
    PowerServer,
    RevertDisks,
    ServerSpec,
    UnplugPorts,
)
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, Children, HostCall, Run, Start, Step, Transact, Wait, nothing_to_undo
from cumulet.services.compute import migrations, store
from cumulet.services.compute.rows import MigrationRow, ServerRow
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.state import Power
from cumulet.services.compute.workflows.common import Workflow, undefined
from cumulet.services.compute.workflows.leave import LeaveWorkflow
from cumulet.services.compute.workflows.volumes import ConnectParams, VolumeWorkflows


class Arrival(Workflow):
    def __init__(
        self, parts: Any, specs: Any, volumes: VolumeWorkflows, scheduling: Scheduling, leave: LeaveWorkflow
    ) -> None:
        super().__init__(parts, specs)
        self.volumes = volumes
        self.scheduling = scheduling
        self.leave = leave

    def _leaving(self, task: str, event: str) -> tuple[Step, ...]:
        return (
            Call("stop", self._stop, self._start_again, task_state=task, event=event),
            Call("undefine", self._undefine_source, self._define_again, task_state=task, event=event),
            Call(
                "unplug", self._unplug_source, self._plug_again, undone=self._plugged(0), task_state=task, event=event
            ),
        )

    def _arriving(self, task: str, event: str, *disks: Step, finish: Callable[[Tx, Run], None]) -> tuple[Step, ...]:
        bind = "resize_migrated" if task == "resize_finish" else task
        started = nothing_to_undo("undefining stops it")
        return (
            Transact("bind", self._bind, self._bind_back, bind, event),
            # tolerant, so that all go back when one fails
            Children("volumes", self._connect(1), tolerate=True, undo=self._connect(0), task_state=bind, event=event),
            Transact("exported", self._all_exported, nothing_to_undo("it only looks"), bind, event),
            Call(
                "ports", self._plug_target, self._unplug_target, done=self._plugged_target, task_state=task, event=event
            ),
            *disks,
            Call("define", self._define, self._undefine_target, task_state=task, event=event),
            Call("start", self._start, started, task_state=task, event=event),
            Wait("report", self._reported, deadline_seconds=300, task_state=task, event=event),
            Transact("finish", finish, nothing_to_undo("it is the last step"), task, event),
        )

    # -- where from and where to -----------------------------------------------------------------------------------

    def _way(self, run: Run) -> tuple[str, str]:
        found = run.outputs["prepare"]
        return found["from"], found["to"]

    def _elsewhere(self, run: Run) -> bool:
        here, there = self._way(run)
        return here != there

    def _arriving_server(self, tx: Tx, run: Run) -> ServerRow:
        """The server as it will be at the target."""
        server = self.server(tx, run)
        return msgspec.structs.replace(server, **run.outputs["prepare"]["sizes"])

    def _spec(self, tx: Tx, run: Run) -> ServerSpec:
        password = getattr(run.params, "admin_password", None)
        return self.specs.server(tx, self._arriving_server(tx, run), self._way(run)[1], admin_password=password)

    def _migration(self, tx: Tx, run: Run) -> MigrationRow:
        return migrations.get(tx, run.params.migration_id)

    def _give_back(self, tx: Tx, run: Run) -> None:
        self.scheduling.move_back(tx, run.object_id, run.params.migration_id)

    def _leave_others(self, tx: Tx, run: Run) -> list[Start]:
        return self.leave.leaving(tx, run.object_id, [self._migration(tx, run)])

    # -- leaving -----------------------------------------------------------------------------------------------------

    def _power(self, tx: Tx, run: Run, host: str, action: Literal["start", "stop"]) -> HostCall:
        server = self.server(tx, run)
        return host, PowerServer(server_id=server.id, instance_name=server.instance_name, action=action)

    def _stop(self, tx: Tx, run: Run) -> HostCall | None:
        return self._power(tx, run, self._way(run)[0], "stop") if run.params.was_running else None

    def _start_again(self, tx: Tx, run: Run) -> HostCall | None:
        return self._power(tx, run, self._way(run)[0], "start") if run.params.was_running else None

    def _undefine_source(self, tx: Tx, run: Run) -> HostCall:
        return undefined(self.server(tx, run), self._way(run)[0])

    def _define_again(self, tx: Tx, run: Run) -> HostCall:
        here, server = self._way(run)[0], self.server(tx, run)
        return here, DefineServer(server=self.specs.server(tx, server, here))

    def _unplug_source(self, tx: Tx, run: Run) -> HostCall | None:
        return self._unplug_at(tx, run, 0)

    def _plug_again(self, tx: Tx, run: Run) -> HostCall | None:
        return self._plug_at(tx, run, 0)

    # -- arriving ----------------------------------------------------------------------------------------------------

    def _bind(self, tx: Tx, run: Run) -> None:
        self._bind_to(tx, run, 1)

    def _bind_back(self, tx: Tx, run: Run) -> None:
        self._bind_to(tx, run, 0)

    def _bind_to(self, tx: Tx, run: Run, end: int) -> None:
        """``end``: of the way, 0 where it begins. Reports of the end that is left are forgotten."""
        if not self._elsewhere(run):
            return
        way = self._way(run)
        ports = [row.port_id for row in store.interfaces(tx, run.object_id)]
        if ports:
            self.parts.network.bind_ports(tx, ports, way[end], plugged_next=True)
        self.bring_metadata(tx, run.object_id, way[end], leaving=way[1 - end])
        store.forget_reports(tx, run.object_id, way[1 - end])

    def _connect(self, end: int) -> Callable[[Tx, Run], list[Start]]:
        def start(tx: Tx, run: Run) -> list[Start]:
            if not self._elsewhere(run):
                return []
            disks = store.disks(tx, [run.object_id]).get(run.object_id, [])
            params = ConnectParams(server_id=run.object_id, host=self._way(run)[end])
            return [Start(self.volumes.connect, disk.id, params) for disk in disks]

        return start

    def _all_exported(self, tx: Tx, run: Run) -> None:
        raise_first(run.outputs["volumes"])

    def _plug_target(self, tx: Tx, run: Run) -> HostCall | None:
        return self._plug_at(tx, run, 1)

    def _unplug_target(self, tx: Tx, run: Run) -> HostCall | None:
        return self._unplug_at(tx, run, 1)

    def _plug_at(self, tx: Tx, run: Run, end: int) -> HostCall | None:
        host = self._way(run)[end]
        ports = self.specs.ports(tx, run.object_id, host) if self._elsewhere(run) else []
        return (host, PlugPorts(server_id=run.object_id, ports=ports)) if ports else None

    def _unplug_at(self, tx: Tx, run: Run, end: int) -> HostCall | None:
        ports = [row.port_id for row in store.interfaces(tx, run.object_id)] if self._elsewhere(run) else []
        return (self._way(run)[end], UnplugPorts(server_id=run.object_id, port_ids=ports)) if ports else None

    def _plugged_target(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        self._plugged(1)(tx, run)

    def _plugged(self, end: int) -> Callable[[Tx, Run], None]:
        def wired(tx: Tx, run: Run) -> None:
            ports = [row.port_id for row in store.interfaces(tx, run.object_id)]
            if ports and self._elsewhere(run):
                self.parts.network.ports_wired(tx, self._way(run)[end], ports)

        return wired

    def _delete_fetched(self, tx: Tx, run: Run) -> HostCall:
        there, server_id = self._way(run)[1], run.object_id
        return there, DeleteDisks(server_id=server_id) if self._elsewhere(run) else RevertDisks(server_id=server_id)

    def _define(self, tx: Tx, run: Run) -> HostCall:
        return self._way(run)[1], DefineServer(server=self._spec(tx, run))

    def _undefine_target(self, tx: Tx, run: Run) -> HostCall:
        return undefined(self.server(tx, run), self._way(run)[1])

    def _to_run(self, run: Run) -> bool:
        goal = run.outputs["prepare"].get("goal")
        return bool(goal == "active" if goal is not None else run.params.was_running)

    def _start(self, tx: Tx, run: Run) -> HostCall | None:
        return self._power(tx, run, self._way(run)[1], "start") if self._to_run(run) else None

    def _reported(self, tx: Tx, run: Run) -> bool | None:
        if not self._to_run(run):
            return True
        power = store.reported(tx, run.object_id, self._way(run)[1])
        if power == Power.CRASHED:
            raise CloudError("The guest crashed while it was being started.", code="guest-crashed")
        return True if power == Power.RUNNING and self._ports_work(tx, run) else None

    def _ports_work(self, tx: Tx, run: Run) -> bool:
        return bool(self.parts.network.ports_active(tx, run.object_id))


def raise_first(children: Sequence[dict[str, Any]]) -> None:
    """The error of the first child that failed, if one did."""
    for child in children:
        if child["status"] == "failed":
            details = child["error_details"] or {}
            raise CloudError(child["error"] or "A child failed.", code=child["error_code"] or "failed", **details)
