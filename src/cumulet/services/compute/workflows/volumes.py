"""Volumes of a server. Each works on one attachment (object kind ``block_device``, id of the block device row), so
that several go on side by side; what a server's build or delete needs they start as children.

| server_volume.connect (build) | wait until the volume is made, export it to the host | unexport |
| server_volume.attach | export, add the disk to the running server | detach, unexport, free the volume |
| server_volume.detach | remove the disk, unexport, free the volume | - (only forward) |
| server_volume.disconnect (unwinding a build) | unexport | - |
| server_volume.extend | let the guest see what the volume has grown to | - (a disk never shrinks) |
| server_volume.prepare (live migration) | a second attachment, exported to the other host | unexport, drop it |
| server_volume.let_go (after it) | unexport and drop the second attachment | - |
| server_volume.release (delete) | unexport, free or delete the volume | - |
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import AttachVolume, DetachVolume, ResizeAttachedVolume
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, HostCall, Run, Saga, Transact, Wait, nothing_to_undo
from cumulet.services.compute import store
from cumulet.services.compute.rows import BlockDeviceRow, ServerRow
from cumulet.services.compute.specs import attachment
from cumulet.services.compute.workflows.common import Workflow

FORWARD = nothing_to_undo("taking away only goes forward")


class ConnectParams(msgspec.Struct, kw_only=True):
    server_id: str
    host: str | None = None


class ExtendParams(msgspec.Struct, kw_only=True):
    server_id: str
    size_gb: int


class VolumeWorkflows(Workflow):
    def __init__(self, parts: Any, specs: Any) -> None:
        super().__init__(parts, specs)
        attach, detach = "compute_attach_volume", "compute_detach_volume"
        made = Wait("made", self._made, deadline_seconds=600, event=attach)
        export = Call(
            "export", self._export, self._unexport, done=self._exported, undone=self._unexported, event=attach
        )
        unexport = Call("unexport", self._unexport, FORWARD, done=self._gone, if_host_down="skip", event=detach)
        self.connect = self._saga(
            "server_volume.connect",
            made,
            export,
            Transact("connected", self._connected, nothing_to_undo("the next connection replaces it")),
        )
        self.disconnect = self._saga("server_volume.disconnect", unexport, preempts=2)
        self.attach = self._saga(
            "server_volume.attach",
            export,
            Call("attach", self._attach, self._detach, event=attach),
            Transact("connected", self._connected, nothing_to_undo("freeing the attachment undoes it"), event=attach),
            failed=self._attach_failed,
            action="attach_volume",
        )
        self.detach = self._saga(
            "server_volume.detach",
            Call("detach", self._detach, FORWARD, if_host_down="skip", event=detach),
            unexport,
            Transact("free", self._free, FORWARD, event=detach),
            failed=self._detach_failed,
            action="detach_volume",
        )
        self.extend = self._saga(
            "server_volume.extend",
            Call(
                "grow",
                self._grow,
                nothing_to_undo("a disk never shrinks"),
                if_host_down="skip",
                event="compute_extend_volume",
            ),
            params=ExtendParams,
            action="extend_volume",
        )
        let_go = Call("let_go", self._unexport_move, FORWARD, if_host_down="skip")
        self.let_go = self._saga(
            "server_volume.let_go", let_go, Transact("drop", self._drop_move, FORWARD), failed=self._drop_move
        )
        self.prepare = self._saga(
            "server_volume.prepare",
            Transact("reserve", self._reserve_move, self._drop_move),
            Call("export", self._export_move, self._unexport_move, done=self._exported_move),
            Transact("connected", self._connected_move, nothing_to_undo("dropping the attachment undoes it")),
        )
        self.release = self._saga(
            "server_volume.release", let_go, unexport, Transact("free", self._free, FORWARD), preempts=2
        )

    def _saga(self, kind: str, *steps: Any, params: type[msgspec.Struct] = ConnectParams, **more: Any) -> Saga:
        return Saga(kind=kind, object_kind="block_device", params=params, steps=steps, **more)

    def sagas(self) -> Sequence[Saga]:
        return (
            self.connect,
            self.disconnect,
            self.attach,
            self.detach,
            self.extend,
            self.release,
            self.prepare,
            self.let_go,
        )

    def give_up_all(self, tx: Tx, server_id: str) -> None:
        """The server is no more, or never was (a build failed for good, its connections are undone): its volumes are
        free again."""
        for disk in store.disks(tx, [server_id]).get(server_id, []):
            self._let_go(tx, disk)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _disk(self, tx: Tx, run: Run) -> BlockDeviceRow | None:
        return store.disk(tx, run.object_id)

    def _owner(self, tx: Tx, run: Run) -> ServerRow | None:
        return store.server(tx, run.params.server_id)

    def _host(self, tx: Tx, run: Run) -> str | None:
        if run.params.host is not None:
            return str(run.params.host)
        server = self._owner(tx, run)
        return server.host if server is not None else None

    def _made(self, tx: Tx, run: Run) -> bool | None:
        disk = self._disk(tx, run)
        if disk is None:
            raise CloudError("The volume is not the server's any more.", code="volume-error")
        try:
            return True if self.parts.volumes.ready(tx, disk.attachment_id) else None
        except CloudError as error:
            raise CloudError(error.message, code="volume-error") from error

    def _export(self, tx: Tx, run: Run) -> HostCall | None:
        disk, host = self._disk(tx, run), self._host(tx, run)
        if disk is None or host is None:
            return None
        asked: HostCall = self.parts.volumes.export_operation(tx, disk.attachment_id, host)
        return asked

    def _exported(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        if result is not None:
            store.update_disk(tx, run.object_id, connection=result["connection"])

    def _unexport(self, tx: Tx, run: Run) -> HostCall | None:
        disk = self._disk(tx, run)
        if disk is None:
            return None
        asked: HostCall | None = self.parts.volumes.unexport_operation(tx, disk.attachment_id)
        return asked

    def _unexported(self, tx: Tx, run: Run) -> None:
        if self._disk(tx, run) is not None:
            store.update_disk(tx, run.object_id, connection=None)
            tx.after_commit(self.parts.unreached)

    def _gone(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        if self._disk(tx, run) is not None:
            store.update_disk(tx, run.object_id, connection=None)

    def _connected(self, tx: Tx, run: Run) -> None:
        disk, host = self._disk(tx, run), self._host(tx, run)
        if disk is not None:
            self.parts.volumes.attachment_connected(tx, disk.attachment_id, host, disk.device)

    def _attach(self, tx: Tx, run: Run) -> HostCall | None:
        disk, server = self._disk(tx, run), self._owner(tx, run)
        if disk is None or server is None or server.host is None:
            return None
        return server.host, AttachVolume(
            server_id=server.id, instance_name=server.instance_name, volume=attachment(disk)
        )

    def _detach(self, tx: Tx, run: Run) -> HostCall | None:
        disk, server = self._disk(tx, run), self._owner(tx, run)
        if disk is None or server is None or server.host is None:
            return None
        return server.host, DetachVolume(
            server_id=server.id, instance_name=server.instance_name, volume_id=disk.volume_id
        )

    def _grow(self, tx: Tx, run: Run) -> HostCall | None:
        disk, server = self._disk(tx, run), self._owner(tx, run)
        if disk is None or server is None or server.host is None:
            return None
        return server.host, ResizeAttachedVolume(
            server_id=server.id,
            instance_name=server.instance_name,
            volume_id=disk.volume_id,
            size_gb=run.params.size_gb,
        )

    def _free(self, tx: Tx, run: Run) -> None:
        disk = self._disk(tx, run)
        if disk is not None:
            self._let_go(tx, disk)
            server = self._owner(tx, run)
            if server is not None and server.host is not None and disk.tag:
                self.publish_metadata(tx, server)

    def _let_go(self, tx: Tx, disk: BlockDeviceRow) -> None:
        server = store.server(tx, disk.server_id)
        dying = server is None or server.deleting or server.failed or server.launched_at is None
        for attachment_id in (disk.attachment_id, (disk.move or {}).get("attachment_id")):
            if attachment_id is not None:
                self.parts.volumes.drop_attachment(tx, attachment_id)
        if disk.delete_on_termination and dying:
            self.parts.volumes.delete_on_termination(tx, disk.volume_id)
        store.delete_disk(tx, disk.id)

    # -- the other host of a live migration --------------------------------------------------------------------------

    def _reserve_move(self, tx: Tx, run: Run) -> None:
        disk = self._disk(tx, run)
        if disk is None or disk.attachment_id is None:
            raise CloudError("The volume is not the server's any more.", code="volume-error")
        if disk.move is None:
            attachment_id = self.parts.volumes.reserve_attachment(
                tx, self.actor(run), disk.volume_id, disk.server_id, disk.device
            )
            store.update_disk(tx, disk.id, move={"attachment_id": attachment_id, "connection": None})

    def _drop_move(self, tx: Tx, run: Run) -> None:
        disk = self._disk(tx, run)
        if disk is not None:
            self.drop_move(tx, disk)

    def drop_move(self, tx: Tx, disk: BlockDeviceRow) -> None:
        """No second attachment; what is exported for it is named in the answer to its host's next inventory."""
        if disk.move is not None:
            self.parts.volumes.drop_attachment(tx, disk.move["attachment_id"])
            store.update_disk(tx, disk.id, move=None)

    def _export_move(self, tx: Tx, run: Run) -> HostCall | None:
        disk = self._disk(tx, run)
        if disk is None or disk.move is None:
            return None
        asked: HostCall = self.parts.volumes.export_operation(tx, disk.move["attachment_id"], run.params.host)
        return asked

    def _exported_move(self, tx: Tx, run: Run, result: dict[str, Any] | None) -> None:
        disk = self._disk(tx, run)
        if disk is not None and disk.move is not None and result is not None:
            store.update_disk(tx, disk.id, move={**disk.move, "connection": result["connection"]})

    def _unexport_move(self, tx: Tx, run: Run) -> HostCall | None:
        disk = self._disk(tx, run)
        if disk is None or disk.move is None:
            return None
        asked: HostCall | None = self.parts.volumes.unexport_operation(tx, disk.move["attachment_id"])
        return asked

    def _connected_move(self, tx: Tx, run: Run) -> None:
        disk = self._disk(tx, run)
        if disk is not None and disk.move is not None:
            self.parts.volumes.attachment_connected(tx, disk.move["attachment_id"], run.params.host, disk.device)

    def _attach_failed(self, tx: Tx, run: Run) -> None:
        disk = self._disk(tx, run)
        if disk is not None:
            if disk.attachment_id is not None:
                self.parts.volumes.drop_attachment(tx, disk.attachment_id)
            store.delete_disk(tx, disk.id)

    def _detach_failed(self, tx: Tx, run: Run) -> None:
        """The guest did not let go: the volume is in use as before. If it did, the volume is free, and what its host
        would not let go of is named in the answer to its next inventory."""
        disk, host = self._disk(tx, run), self._host(tx, run)
        if "detach" in run.outputs:
            self._free(tx, run)
        elif disk is not None and disk.connection is not None:
            self.parts.volumes.attachment_connected(tx, disk.attachment_id, host, disk.device)
