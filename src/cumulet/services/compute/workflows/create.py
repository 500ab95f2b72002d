"""Server create. `server.create` tries up to three hosts, each in a child `server.build` that unwinds itself.

| server.create | do | undo |
|---|---|---|
| schedule | the host claimed by POST, or why there was none | the end of a failed create releases it |
| build_1..3 | child `server.build` on a host, if none has succeeded | the child undoes itself |
| conclude | fail with the last error if none succeeded | - |

| server.build | do | undo |
|---|---|---|
| networking | bind the ports to the host | unbind |
| volumes | export each volume to the host (children) | unexport |
| image | image into the host's cache | stays cached |
| ports | plug taps, filters | unplug |
| disks | root, ephemeral, swap, config drive | delete |
| define | domain XML | undefine (stops it) |
| start | run it | by undefine |
| first_report | wait until the host reports it running and its ports up | - |
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import CacheImage, CreateDisks, DefineServer, DeleteDisks, PowerServer, ServerSpec
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError, NoValidHost
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, Wait, nothing_to_undo
from cumulet.services.compute import state, store
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.workflows.common import Workflow, record_fault, settle
from cumulet.services.compute.workflows.volumes import ConnectParams, VolumeWorkflows

RELEASED = nothing_to_undo("POST made the claim; the end of a failed create releases it")
EVENT = "compute__do_build_and_run_instance"
# Another host would say the same.
FINAL_CODES = {"image-gone", "image-invalid", "image-too-large", "cancelled", "volume-error"}


class CreateParams(msgspec.Struct, kw_only=True):
    """``host`` None: nothing could take it, ``reasons`` says why."""

    host: str | None = None
    reason: str | None = None
    reasons: dict[str, Any] = {}
    request: dict[str, Any] = {}  # for scheduling again
    admin_password: str | None = None


class BuildParams(msgspec.Struct, kw_only=True):
    host: str
    admin_password: str | None = None


class CreateWorkflows(Workflow):
    def __init__(self, parts: Any, specs: Any, volumes: VolumeWorkflows, scheduling: Scheduling) -> None:
        super().__init__(parts, specs)
        self.volumes = volumes
        self.scheduling = scheduling
        self.build = Saga(
            kind="server.build",
            object_kind="server",
            params=BuildParams,
            secrets=("admin_password",),
            settle=settle,
            steps=(
                Transact("networking", self._bind, self._unbind, "networking", EVENT),
                Children(
                    "volumes", self._connect, undo=self._disconnect, task_state="block_device_mapping", event=EVENT
                ),
                Call("image", self._image, nothing_to_undo("the cache is shared"), task_state="spawning", event=EVENT),
                Call("ports", self.plug, self.unplug, done=self.plugged, task_state="spawning", event=EVENT),
                Call("disks", self._disks, self._delete_disks, task_state="spawning", event=EVENT),
                Call("define", self._define, self.undefine, task_state="spawning", event=EVENT),
                Call("start", self._start, nothing_to_undo("undefine stops it"), task_state="spawning", event=EVENT),
                Wait("first_report", self._reported, deadline_seconds=300, task_state="spawning", event=EVENT),
            ),
        )
        self.create = Saga(
            kind="server.create",
            object_kind="server",
            params=CreateParams,
            secrets=("admin_password",),
            settle=settle,
            finished=self._finished,
            failed=self._failed,
            action="create",
            steps=(
                Transact("schedule", self._schedule, RELEASED, "scheduling", "conductor_schedule"),
                Children("build_1", self._build(1), tolerate=True, task_state="scheduling"),
                Children("build_2", self._build(2), tolerate=True, task_state="scheduling"),
                Children("build_3", self._build(3), tolerate=True, task_state="scheduling"),
                Transact("conclude", self._conclude, nothing_to_undo("it only looks"), "spawning"),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return self.build, self.create

    # -- server.create -------------------------------------------------------------------------------------------

    def _schedule(self, tx: Tx, run: Run) -> dict[str, Any]:
        if run.params.host is None:
            raise NoValidHost(
                run.params.reason or "No valid host was found.", code="no-valid-host", **run.params.reasons
            )
        return {"host": run.params.host}

    def _build(self, attempt: int) -> Any:
        def start(tx: Tx, run: Run) -> list[Start]:
            tried = [run.outputs.get(f"build_{n}") or [] for n in range(1, attempt)]
            ended = [child for children in tried for child in children]
            if any(child["status"] == "finished" for child in ended):
                return []
            if attempt > self.parts.max_attempts:
                return []
            host = run.params.host
            if ended:
                if ended[-1]["error_code"] in FINAL_CODES:
                    return []
                host = self._elsewhere(tx, run, attempt)
                if host is None:
                    return []
            params = BuildParams(host=host, admin_password=run.params.admin_password)
            return [Start(self.build, run.object_id, params)]

        return start

    def _elsewhere(self, tx: Tx, run: Run, attempt: int) -> str | None:
        """Claim another host; None when there is none."""
        server = self.server(tx, run)
        tried = {host for host in (run.params.host, server.host) if host}
        previous = [run.outputs.get(f"build_{n}") or [] for n in range(1, attempt)]
        for children in previous:
            for child in children:
                host = (child.get("error_details") or {}).get("host")
                if host:
                    tried.add(host)
        self.parts.placement.release(tx, server.id)
        try:
            host = self.scheduling.place(
                tx, [server.id], server.flavor, server.project_id, server.user_id, run.params.request, excluded=tried
            )[0]
        except NoValidHost:
            return None
        store.update_server(tx, server.id, host=host)
        return host

    def _conclude(self, tx: Tx, run: Run) -> None:
        ended = [child for n in (1, 2, 3) for child in run.outputs.get(f"build_{n}") or []]
        if any(child["status"] == "finished" for child in ended):
            return
        last: dict[str, Any] = (
            ended[-1] if ended else {"error": "No host could be tried.", "error_code": None, "error_details": None}
        )
        details = {**(last["error_details"] or {}), "code": last["error_code"] or "build-failed"}
        if len(ended) > 1 and details["code"] not in FINAL_CODES:
            message = f"Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for instance {run.object_id}."  # noqa: E501
            raise CloudError(message, last=last["error"], **details)
        raise CloudError(f"Build of instance {run.object_id} aborted: {last['error']}", **details)

    def _finished(self, tx: Tx, run: Run) -> None:
        store.update_server(tx, run.object_id, launched_at=tx.now, goal="active", failed=False)

    def _failed(self, tx: Tx, run: Run) -> None:
        """Nothing is left but the row in ERROR with its fault (or what a waiting delete removes)."""
        server = store.server(tx, run.object_id)
        if server is None:
            return
        self.parts.placement.release(tx, server.id)
        if run.cancelled:
            return
        self.parts.network.release_server_ports(tx, server.id)
        store.delete_interfaces(tx, server.id)
        self.volumes.give_up_all(tx, server.id)
        self.withdraw_metadata(tx, server)
        store.update_server(tx, server.id, host=None, failed=True)
        record_fault(tx, server.id, run)

    # -- server.build --------------------------------------------------------------------------------------------

    def _bind(self, tx: Tx, run: Run) -> dict[str, Any]:
        server = self.server(tx, run)
        host = run.params.host
        if server.host != host:
            store.update_server(tx, server.id, host=host)
        ports = [row.port_id for row in store.interfaces(tx, server.id)]
        if ports:
            self.parts.network.bind_ports(tx, ports, host, plugged_next=True)
        self.publish_metadata(tx, self.server(tx, run))
        return {"host": host, "ports": ports}

    def _unbind(self, tx: Tx, run: Run) -> None:
        server = self.server(tx, run)
        self.withdraw_metadata(tx, server)
        ports = [row.port_id for row in store.interfaces(tx, server.id)]
        if ports:
            self.parts.network.unbind_ports(tx, ports)
        if server.host is not None:
            store.forget_reports(tx, server.id, server.host)

    def _connect(self, tx: Tx, run: Run) -> list[Start]:
        disks = store.disks(tx, [run.object_id]).get(run.object_id, [])
        return [
            Start(self.volumes.connect, disk.id, ConnectParams(server_id=run.object_id, host=run.params.host))
            for disk in disks
        ]

    def _disconnect(self, tx: Tx, run: Run) -> list[Start]:
        disks = store.disks(tx, [run.object_id]).get(run.object_id, [])
        return [
            Start(self.volumes.disconnect, disk.id, ConnectParams(server_id=run.object_id, host=run.params.host))
            for disk in disks
        ]

    def _image(self, tx: Tx, run: Run) -> HostCall | None:
        server = self.server(tx, run)
        disks = store.disks(tx, [server.id]).get(server.id, [])
        if any(disk.boot_index == 0 for disk in disks):
            return None
        source = self.specs.source(tx, server.image_id, run.params.host)
        return (run.params.host, CacheImage(image=source)) if source is not None else None

    def _spec(self, tx: Tx, run: Run) -> ServerSpec:
        host = run.params.host
        found = run.memo.get(("spec", host))
        if found is None:
            ports = run.memo.get(("ports", host))
            password = run.params.admin_password
            found = self.specs.server(tx, self.server(tx, run), host, admin_password=password, ports=ports)
            run.memo["spec", host] = found
        spec: ServerSpec = found
        return spec

    def _disks(self, tx: Tx, run: Run) -> HostCall:
        return run.params.host, CreateDisks(server=self._spec(tx, run))

    def _delete_disks(self, tx: Tx, run: Run) -> HostCall:
        return run.params.host, DeleteDisks(server_id=run.object_id)

    def _define(self, tx: Tx, run: Run) -> HostCall:
        return run.params.host, DefineServer(server=self._spec(tx, run))

    def _start(self, tx: Tx, run: Run) -> HostCall:
        server = self.server(tx, run)
        return run.params.host, PowerServer(server_id=server.id, instance_name=server.instance_name, action="start")

    def _reported(self, tx: Tx, run: Run) -> dict[str, Any] | None:
        power = store.reported(tx, run.object_id, run.params.host)
        if power == state.Power.CRASHED:
            raise CloudError("The guest crashed while it was being started.", code="guest-crashed")
        if power not in (state.Power.RUNNING, state.Power.PAUSED) or not self.parts.network.ports_active(
            tx, run.object_id
        ):
            return None
        return {"power_state": power}
