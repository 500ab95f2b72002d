"""Power actions: one saga each, made from the table below. A step asks the host, another waits for its report.

| server.define_again | plug and define a server at rest that its host does not have: undoing a move skipped it there |
| server.take_back | undefine, the disks from before a resize, plug, define, start: undoing that was skipped there |

A failed action leaves the server in the state it had (hard reboot: in ERROR), with a fault.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from cumulet.agent.contract import DefineServer, PowerServer, RevertDisks
from cumulet.db import Tx
from cumulet.saga.model import Call, HostCall, Run, Saga, Transact, Wait, nothing_to_undo
from cumulet.services.compute import state, store
from cumulet.services.compute.rows import ServerRow
from cumulet.services.compute.state import Power
from cumulet.services.compute.workflows.common import Workflow, record_fault, settle

Action = Literal["start", "stop", "soft_reboot", "hard_reboot", "pause", "unpause", "suspend", "resume"]


@dataclass(frozen=True)
class PowerAction:
    """``goal``: the vm_state it leads to. ``power``: what its host then reports. ``action``: instance action."""

    name: Action
    goal: str
    power: Power
    task_state: str
    action: str
    event: str
    redefine: bool = False  # plug and define first, as upstream does for start and hard reboot
    preempts: int = 0


ACTIONS = (
    PowerAction("start", "active", Power.RUNNING, "powering-on", "start", "compute_start_instance", redefine=True),
    PowerAction("stop", "stopped", Power.SHUTDOWN, "powering-off", "stop", "compute_stop_instance"),
    PowerAction("soft_reboot", "active", Power.RUNNING, "rebooting", "reboot", "compute_reboot_instance"),
    PowerAction(
        "hard_reboot",
        "active",
        Power.RUNNING,
        "rebooting_hard",
        "reboot",
        "compute_reboot_instance",
        redefine=True,
        preempts=1,
    ),
    PowerAction("pause", "paused", Power.PAUSED, "pausing", "pause", "compute_pause_instance"),
    PowerAction("unpause", "active", Power.RUNNING, "unpausing", "unpause", "compute_unpause_instance"),
    PowerAction("suspend", "suspended", Power.SHUTDOWN, "suspending", "suspend", "compute_suspend_instance"),
    PowerAction("resume", "active", Power.RUNNING, "resuming", "resume", "compute_resume_instance", redefine=False),
)


class PowerParams(msgspec.Struct, kw_only=True):
    pass


class TakeBackParams(msgspec.Struct, kw_only=True):
    resize: str  # the saga that failed
    run: bool  # it ran before that one


class PowerWorkflows(Workflow):
    def __init__(self, parts: Any, specs: Any) -> None:
        super().__init__(parts, specs)
        self.by_name: dict[str, Saga] = {action.name: self._saga(action) for action in ACTIONS}
        self.actions: dict[str, PowerAction] = {action.name: action for action in ACTIONS}
        again = nothing_to_undo("done again it is the same")
        self.define_again = Saga(
            kind="server.define_again",
            object_kind="server",
            params=PowerParams,
            steps=(Call("ports", self.plug, again, done=self.plugged), Call("define", self._define, again)),
        )
        self.take_back = Saga(
            kind="server.take_back",
            object_kind="server",
            params=TakeBackParams,
            steps=(
                Call("undefine", self.undefine, again),
                Call("disks", self._old_disks, again),
                Call("ports", self.plug, again, done=self.plugged),
                Call("define", self._define, again),
                Transact("conclude", self._taken_back, again),
                Call("start", self._run_again, again),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return *self.by_name.values(), self.define_again, self.take_back

    def _saga(self, action: PowerAction) -> Saga:
        task, event = action.task_state, action.event
        steps: list[Any] = []
        if action.redefine:
            again = nothing_to_undo("done again it is the same")
            steps.append(Call("ports", self.plug, again, done=self.plugged, task_state=task, event=event))
            steps.append(Call("define", self._define, again, task_state=task, event=event))
        undo = nothing_to_undo("the host's report says what became of it")
        steps.append(Call("power", self._power(action), undo, task_state=task, event=event))
        steps.append(
            Wait(
                "report",
                self._reported(action),
                deadline_seconds=10,
                on_deadline="continue",
                task_state=task,
                event=event,
            )
        )
        return Saga(
            kind=f"server.{action.name}",
            object_kind="server",
            params=PowerParams,
            steps=tuple(steps),
            settle=settle,
            finished=self._finished(action),
            failed=self._failed(action),
            preempts=action.preempts,
            repeats=bool(action.preempts),
            action=action.action,
        )

    def _define(self, tx: Tx, run: Run) -> HostCall | None:
        return self.define_operation(tx, self.server(tx, run))

    def _old_disks(self, tx: Tx, run: Run) -> HostCall | None:
        host = self.server(tx, run).host
        return (host, RevertDisks(server_id=run.object_id)) if host is not None else None

    def _taken_back(self, tx: Tx, run: Run) -> None:
        self.parts.sagas.made_up_for(tx, run.params.resize)
        store.update_server(tx, run.object_id, goal="active" if run.params.run else "stopped")
        state.settle(tx, run.object_id)

    def _run_again(self, tx: Tx, run: Run) -> HostCall | None:
        found: HostCall | None = self._power(self.actions["start"])(tx, run) if run.params.run else None
        return found

    def define_operation(self, tx: Tx, server: ServerRow) -> HostCall | None:
        """None: it is on no host."""
        if server.host is None:
            return None
        return server.host, DefineServer(server=self.specs.server(tx, server, server.host))

    def _power(self, action: PowerAction) -> Any:
        def ask(tx: Tx, run: Run) -> HostCall | None:
            server = self.server(tx, run)
            if server.host is None:
                return None
            return server.host, PowerServer(server_id=server.id, instance_name=server.instance_name, action=action.name)

        return ask

    def _reported(self, action: PowerAction) -> Any:
        def look(tx: Tx, run: Run) -> dict[str, Any] | None:
            power = store.reported(tx, run.object_id, self.server(tx, run).host)
            expected = {action.power}
            if action.name == "suspend":
                expected.add(Power.SUSPENDED)
            return {"power_state": power} if power in expected else None

        return look

    def _finished(self, action: PowerAction) -> Any:
        def finish(tx: Tx, run: Run) -> None:
            server = self.server(tx, run)
            launched = server.launched_at or tx.now
            store.update_server(tx, run.object_id, goal=action.goal, failed=False, launched_at=launched)

        return finish

    def _failed(self, action: PowerAction) -> Any:
        def fail(tx: Tx, run: Run) -> None:
            if run.cancelled:
                return
            if action.name == "hard_reboot":
                store.update_server(tx, run.object_id, failed=True)
            record_fault(tx, run.object_id, run)

        return fail
