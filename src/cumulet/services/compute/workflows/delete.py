"""Server delete. It preempts whatever owns the server, works in every state, and only goes forward.

| step | does | a host that is down |
|---|---|---|
| elsewhere | take what a move left on another host (children) | skipped |
| undefine | destroy and undefine the domain | skipped: its inventory is compared when it returns |
| ports | unplug | skipped |
| volumes | unexport, free or delete each volume (children) | skipped |
| disks | delete root, ephemeral, config drive | skipped |
| bury | ports, claim, metadata documents, tombstone | |
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import DeleteDisks
from cumulet.db import Tx
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, nothing_to_undo
from cumulet.services.compute import migrations, state, store
from cumulet.services.compute.workflows.common import Workflow, record_fault, settle
from cumulet.services.compute.workflows.leave import LeaveWorkflow
from cumulet.services.compute.workflows.volumes import ConnectParams, VolumeWorkflows

FORWARD = nothing_to_undo("a delete only goes forward; it may be asked again")
EVENT = "compute_terminate_instance"


class DeleteParams(msgspec.Struct, kw_only=True):
    pass


class DeleteWorkflow(Workflow):
    def __init__(self, parts: Any, specs: Any, volumes: VolumeWorkflows, leave: LeaveWorkflow) -> None:
        super().__init__(parts, specs)
        self.volumes = volumes
        self.leave = leave
        self.delete = Saga(
            kind="server.delete",
            object_kind="server",
            params=DeleteParams,
            settle=settle,
            failed=self._failed,
            preempts=2,
            action="delete",
            steps=(
                Children("elsewhere", self._elsewhere, tolerate=True, task_state="deleting", event=EVENT),
                Call("undefine", self.undefine, FORWARD, if_host_down="skip", task_state="deleting", event=EVENT),
                Call("ports", self.unplug, FORWARD, if_host_down="skip", task_state="deleting", event=EVENT),
                Children("volumes", self._release, tolerate=True, task_state="deleting", event=EVENT),
                Call("disks", self._disks, FORWARD, if_host_down="skip", task_state="deleting", event=EVENT),
                Transact("bury", self._bury, FORWARD, "deleting", EVENT),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return (self.delete,)

    def _elsewhere(self, tx: Tx, run: Run) -> list[Start]:
        return self.leave.leaving(tx, run.object_id, migrations.left_behind(tx, run.object_id))

    def _release(self, tx: Tx, run: Run) -> list[Start]:
        disks = store.disks(tx, [run.object_id]).get(run.object_id, [])
        params = ConnectParams(server_id=run.object_id)
        return [Start(self.volumes.release, disk.id, params) for disk in disks]

    def _disks(self, tx: Tx, run: Run) -> HostCall | None:
        server = self.server(tx, run)
        return (server.host, DeleteDisks(server_id=server.id)) if server.host is not None else None

    def _bury(self, tx: Tx, run: Run) -> None:
        server = self.server(tx, run)
        self.volumes.give_up_all(tx, server.id)  # what a host would not let go of: its next inventory removes exports
        self.parts.network.release_server_ports(tx, server.id)
        self.parts.placement.release(tx, server.id)
        for move in migrations.open_ones(tx, server.id):
            self.parts.placement.release(tx, move.id)
            migrations.set_status(tx, move.id, "confirmed" if move.status in ("finished", "confirming") else "error")
        self.withdraw_metadata(tx, server)
        store.bury(tx, server.id)

    def _failed(self, tx: Tx, run: Run) -> None:
        server = store.server(tx, run.object_id)
        if server is None or server.deleted_at is not None:
            return
        store.update_server(tx, server.id, deleting=False, failed=True)
        record_fault(tx, server.id, run)
        state.settle(tx, server.id, None)
