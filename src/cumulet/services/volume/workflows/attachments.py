"""Sagas of an attachment that an external client connects itself (attachments API; servers have compute's own).

| attachment.connect | export to the client's host | unexport |
| attachment.disconnect (preempts) | unexport → drop | - |
"""

from typing import Any

import msgspec

from cumulet.db import Tx
from cumulet.saga.model import Call, HostCall, Run, Saga, Transact, nothing_to_undo
from cumulet.services.volume import attachments, store


class ConnectParams(msgspec.Struct, kw_only=True):
    host: str


class DisconnectParams(msgspec.Struct, kw_only=True):
    pass


class AttachmentWorkflows:
    def __init__(self, service: Any) -> None:
        self.service = service
        forward = nothing_to_undo("taking away only goes forward")
        self.connect = Saga(
            kind="attachment.connect",
            object_kind="volume_attachment",
            params=ConnectParams,
            steps=(Call("export", self._export, self._unexport, done=self._exported),),
        )
        self.disconnect = Saga(
            kind="attachment.disconnect",
            object_kind="volume_attachment",
            params=DisconnectParams,
            steps=(
                Call("unexport", self._unexport, forward, if_host_down="skip"),
                Transact("drop", self._drop, forward),
            ),
            preempts=True,
        )

    def sagas(self) -> list[Saga]:
        return [self.connect, self.disconnect]

    def _export(self, tx: Tx, run: Run) -> HostCall | None:
        if store.ATTACHMENTS.find(tx, run.object_id) is None:
            return None
        return attachments.export(tx, run.object_id, run.params.host)

    def _exported(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        if result is not None:
            store.ATTACHMENTS.change(tx, run.object_id, connection=result["connection"])

    def _unexport(self, tx: Tx, run: Run) -> HostCall | None:
        return attachments.unexport(tx, run.object_id)

    def _drop(self, tx: Tx, run: Run) -> None:
        attachments.drop(tx, run.object_id)
