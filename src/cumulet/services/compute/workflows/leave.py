"""What a server leaves on a host where it is not any more.

| server.leave | undefine, unplug, withdraw and delete its disks; a host that is down is skipped: see its inventory |
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import DeleteDisks, UnplugPorts, WithdrawDisks
from cumulet.db import Tx
from cumulet.saga.model import Call, HostCall, Run, Saga, Start, nothing_to_undo
from cumulet.services.compute import store
from cumulet.services.compute.rows import MigrationRow
from cumulet.services.compute.workflows.common import Workflow, undefined

FORWARD = nothing_to_undo("taking away only goes forward")


class LeaveParams(msgspec.Struct, kw_only=True):
    host: str


class LeaveWorkflow(Workflow):
    def __init__(self, parts: Any, specs: Any) -> None:
        super().__init__(parts, specs)
        self.leave = Saga(
            kind="server.leave",
            object_kind="server",
            params=LeaveParams,
            steps=(
                Call("undefine", self._leave_domain, FORWARD, if_host_down="skip"),
                Call("ports", self._leave_ports, FORWARD, if_host_down="skip"),
                Call("offer", self._leave_offer, FORWARD, if_host_down="skip"),
                Call("disks", self._leave_disks, FORWARD, if_host_down="skip"),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return (self.leave,)

    def leaving(self, tx: Tx, server_id: str, moves: Sequence[MigrationRow]) -> list[Start]:
        """Children that take the server's remains from the hosts of these moves where it is not."""
        server = store.server(tx, server_id)
        hosts = {host for move in moves for host in (move.source, move.dest) if host is not None}
        if server is not None:
            hosts.discard(server.host or "")
        return [Start(self.leave, server_id, LeaveParams(host=host)) for host in sorted(hosts)]

    def _leave_domain(self, tx: Tx, run: Run) -> HostCall:
        return undefined(self.server(tx, run), run.params.host)

    def _leave_ports(self, tx: Tx, run: Run) -> HostCall | None:
        ports = [row.port_id for row in store.interfaces(tx, run.object_id)]
        return (run.params.host, UnplugPorts(server_id=run.object_id, port_ids=ports)) if ports else None

    def _leave_offer(self, tx: Tx, run: Run) -> HostCall:
        return run.params.host, WithdrawDisks(server_id=run.object_id)

    def _leave_disks(self, tx: Tx, run: Run) -> HostCall:
        return run.params.host, DeleteDisks(server_id=run.object_id)
