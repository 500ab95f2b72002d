"""Interfaces of a server. Each works on one port (object kind ``interface``).

| server_interface.attach | plug the port and add the NIC | detach, free the port |
| server_interface.detach | remove the NIC, free the port | - (only forward) |
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import AttachPort, DetachPort
from cumulet.db import Tx
from cumulet.saga.model import Call, HostCall, Run, Saga, Transact, nothing_to_undo
from cumulet.services.compute import store
from cumulet.services.compute.rows import ServerRow
from cumulet.services.compute.workflows.common import Workflow

FORWARD = nothing_to_undo("taking away only goes forward")
ATTACH, DETACH = "compute_attach_interface", "compute_detach_interface"


class InterfaceParams(msgspec.Struct, kw_only=True):
    server_id: str
    mac_address: str = ""


class InterfaceWorkflows(Workflow):
    def __init__(self, parts: Any, specs: Any) -> None:
        super().__init__(parts, specs)
        self.attach = Saga(
            kind="server_interface.attach",
            object_kind="interface",
            params=InterfaceParams,
            failed=self._attach_failed,
            action="attach_interface",
            steps=(Call("attach", self._attach, self._detach, event=ATTACH),),
        )
        self.detach = Saga(
            kind="server_interface.detach",
            object_kind="interface",
            params=InterfaceParams,
            action="detach_interface",
            preempts=1,
            steps=(
                Call("detach", self._detach, FORWARD, if_host_down="skip", event=DETACH),
                Transact("free", self._free, FORWARD, event=DETACH),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return self.attach, self.detach

    def _owner(self, tx: Tx, run: Run) -> ServerRow | None:
        server = store.server(tx, run.params.server_id)
        return None if server is None or server.deleted_at is not None else server

    def _attach(self, tx: Tx, run: Run) -> HostCall | None:
        server = self._owner(tx, run)
        if server is None or server.host is None:
            return None
        docs = self.parts.network.port_docs(tx, server.host, [run.object_id])
        if not docs:
            return None
        return server.host, AttachPort(server_id=server.id, instance_name=server.instance_name, port=docs[0])

    def _detach(self, tx: Tx, run: Run) -> HostCall | None:
        server = self._owner(tx, run)
        if server is None or server.host is None:
            return None
        return server.host, DetachPort(
            server_id=server.id,
            instance_name=server.instance_name,
            port_id=run.object_id,
            mac_address=run.params.mac_address,
        )

    def _free(self, tx: Tx, run: Run) -> None:
        store.delete_interface(tx, run.object_id)
        self.parts.network.detach_interface(tx, run.params.server_id, run.object_id)
        server = self._owner(tx, run)
        if server is not None:
            self.publish_metadata(tx, server)

    def _attach_failed(self, tx: Tx, run: Run) -> None:
        self._free(tx, run)
