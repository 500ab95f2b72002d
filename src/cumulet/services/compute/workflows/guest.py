"""What is done to a running or stopped guest without changing where or what it is.

| server.snapshot | the host writes the root disk as an image, the image becomes active | a failed end drops it |
| server.password | set the administrator's password inside the guest | - |
| server.rebuild | fetch the (new) image, stop and remove, new disks from it, start | - (ERROR; may be rebuilt again) |

Version 1 of a rebuild, which may still be under way at an upgrade, fetched the image when the old disks were gone.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import (
    CacheImage,
    CreateDisks,
    DefineServer,
    DeleteDisks,
    PowerServer,
    SetAdminPassword,
    SnapshotServer,
)
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, HostCall, Run, Saga, Step, Transact, Wait, nothing_to_undo
from cumulet.services.compute import store
from cumulet.services.compute.state import Power
from cumulet.services.compute.workflows.common import Workflow, record_fault, settle

REBUILD = "compute_rebuild_instance"


class SnapshotParams(msgspec.Struct, kw_only=True):
    image_id: str


class PasswordParams(msgspec.Struct, kw_only=True):
    password: str = ""


class RebuildParams(msgspec.Struct, kw_only=True):
    admin_password: str | None = None
    was_stopped: bool = False


class GuestWorkflows(Workflow):
    def __init__(self, parts: Any, specs: Any) -> None:
        super().__init__(parts, specs)
        again = nothing_to_undo("rebuilding again replaces it")
        dropped = nothing_to_undo("POST made the image; the end of a failed snapshot drops it")
        self.snapshot = Saga(
            kind="server.snapshot",
            object_kind="server",
            params=SnapshotParams,
            settle=settle,
            failed=self._snapshot_failed,
            action="createImage",
            steps=(
                Transact("target", self._target, dropped, "image_snapshot", "api_snapshot_instance"),
                Call(
                    "snapshot",
                    self._snapshot,
                    dropped,
                    task_state="image_uploading",
                    event="compute_snapshot_instance",
                ),
                Transact(
                    "activate",
                    self._activate,
                    dropped,
                    "image_uploading",
                    "compute_snapshot_instance",
                ),
            ),
        )
        self.password = Saga(
            kind="server.password",
            object_kind="server",
            params=PasswordParams,
            secrets=("password",),
            settle=settle,
            failed=self._fault,
            action="changePassword",
            steps=(
                Call(
                    "set",
                    self._set_password,
                    nothing_to_undo("the old password is not known"),
                    task_state="updating_password",
                    event="compute_set_admin_password",
                ),
            ),
        )
        image = Call("image", self._image, again, task_state="rebuilding", event=REBUILD)
        remove = (
            Call("undefine", self.undefine, again, task_state="rebuilding", event=REBUILD),
            Call("old_disks", self._delete_disks, again, task_state="rebuilding", event=REBUILD),
        )
        self.rebuild_v1 = self._rebuild(1, *remove, image)
        self.rebuild = self._rebuild(2, image, *remove)

    def _rebuild(self, version: int, *first: Step) -> Saga:
        again = nothing_to_undo("rebuilding again replaces it")
        return Saga(
            kind="server.rebuild",
            version=version,
            object_kind="server",
            params=RebuildParams,
            secrets=("admin_password",),
            settle=settle,
            finished=self._rebuilt,
            failed=self._rebuild_failed,
            action="rebuild",
            steps=(
                *first,
                Call("ports", self.plug, again, done=self.plugged, task_state="rebuild_spawning", event=REBUILD),
                Call("disks", self._disks, again, task_state="rebuild_spawning", event=REBUILD),
                Call("define", self._define, again, task_state="rebuild_spawning", event=REBUILD),
                Call("start", self._start, again, task_state="rebuild_spawning", event=REBUILD),
                Wait("report", self._running, deadline_seconds=120, task_state="rebuild_spawning", event=REBUILD),
                Call("stop", self._stop, again, task_state="powering-off", event=REBUILD),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return self.snapshot, self.password, self.rebuild_v1, self.rebuild

    def _fault(self, tx: Tx, run: Run) -> None:
        if not run.cancelled:
            record_fault(tx, run.object_id, run)

    def _host(self, tx: Tx, run: Run) -> str:
        host = self.server(tx, run).host
        if host is None:
            raise CloudError("The server is on no host.", code="no-host")
        return host

    # -- snapshot ------------------------------------------------------------------------------------------------

    def _target(self, tx: Tx, run: Run) -> dict[str, Any]:
        target = self.parts.images.upload_target(tx, run.params.image_id, self._host(tx, run))
        return {"target": msgspec.to_builtins(target)}

    def _snapshot_failed(self, tx: Tx, run: Run) -> None:
        self.parts.images.discard(tx, run.params.image_id)
        self._fault(tx, run)

    def _snapshot(self, tx: Tx, run: Run) -> HostCall:
        server = self.server(tx, run)
        host = self._host(tx, run)
        upload = self.parts.images.upload_target(tx, run.params.image_id, host)
        return host, SnapshotServer(server_id=server.id, instance_name=server.instance_name, upload=upload)

    def _activate(self, tx: Tx, run: Run) -> None:
        self.parts.images.activate(tx, run.params.image_id, run.outputs["snapshot"])

    # -- password ------------------------------------------------------------------------------------------------

    def _set_password(self, tx: Tx, run: Run) -> HostCall:
        server = self.server(tx, run)
        user = str(server.image_properties.get("os_admin_user") or "root")
        return self._host(tx, run), SetAdminPassword(
            server_id=server.id, instance_name=server.instance_name, user=user, password=run.params.password
        )

    # -- rebuild -------------------------------------------------------------------------------------------------

    def _delete_disks(self, tx: Tx, run: Run) -> HostCall:
        return self._host(tx, run), DeleteDisks(server_id=run.object_id)

    def _image(self, tx: Tx, run: Run) -> HostCall | None:
        server, host = self.server(tx, run), self._host(tx, run)
        source = self.specs.source(tx, server.image_id, host)
        return (host, CacheImage(image=source)) if source is not None else None

    def _spec(self, tx: Tx, run: Run) -> Any:
        return self.specs.server(
            tx, self.server(tx, run), self._host(tx, run), admin_password=run.params.admin_password
        )

    def _disks(self, tx: Tx, run: Run) -> HostCall:
        return self._host(tx, run), CreateDisks(server=self._spec(tx, run))

    def _define(self, tx: Tx, run: Run) -> HostCall:
        return self._host(tx, run), DefineServer(server=self._spec(tx, run))

    def _start(self, tx: Tx, run: Run) -> HostCall:
        server = self.server(tx, run)
        return self._host(tx, run), PowerServer(server_id=server.id, instance_name=server.instance_name, action="start")

    def _running(self, tx: Tx, run: Run) -> bool | None:
        return True if store.reported(tx, run.object_id, self.server(tx, run).host) == Power.RUNNING else None

    def _stop(self, tx: Tx, run: Run) -> HostCall | None:
        if not run.params.was_stopped:
            return None
        server = self.server(tx, run)
        return self._host(tx, run), PowerServer(server_id=server.id, instance_name=server.instance_name, action="stop")

    def _rebuilt(self, tx: Tx, run: Run) -> None:
        server = self.server(tx, run)
        goal = "stopped" if run.params.was_stopped else "active"
        launched = server.launched_at or tx.now
        store.update_server(tx, server.id, goal=goal, failed=False, launched_at=launched)
        self.publish_metadata(tx, server)

    def _rebuild_failed(self, tx: Tx, run: Run) -> None:
        if not run.cancelled:
            store.update_server(tx, run.object_id, failed=True)
            record_fault(tx, run.object_id, run)
