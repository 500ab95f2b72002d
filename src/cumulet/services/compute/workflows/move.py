"""Cold moves: resize and migrate, confirmed or reverted. A resize may stay on its host.

| server.resize, server.migrate | do | undo |
|---|---|---|
| prepare | choose a host, claim it; the source's claim becomes the migration's | give back |
| offer_images * | of an image that was deleted: offer it to the target | withdraw |
| image * | image into the target's cache, from the image service or the source | stays cached |
| stop | stop the guest | start it |
| undefine | undefine at the source | define |
| unplug * | unplug at the source | plug |
| offer * | offer the disks to the target | withdraw |
| bind * | bind the ports to the target | bind back |
| volumes, exported * | export each volume to the target, which fences the source (children) | export to the source |
| ports * | plug at the target | unplug |
| disks | fetch them; on the same host grow them, keeping what was aside | delete; revert |
| withdraw * | withdraw the offers | undone with the offers |
| define | define at the target, with the new flavor | undefine |
| start | run it, if it ran | by undefine |
| report | wait until the host says so | - |
| finish | the server is on the target, to be confirmed | - |

* only to another host.

| others | |
|---|---|
| server.relocate | child `server.migrate` that waits for nobody, then child `server.leave` |
| server.confirm_resize | delete the disks at the source (those kept aside), give back its claim; only forward |
| server.revert_resize | children `server.move_back` (the same steps back, without disks), then `server.leave` |

A move fails whole: the server is where and what it was. What the target has is deleted only once the server is back.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.agent.contract import (
    DeleteDisks,
    DiskOffer,
    DropDisksAside,
    FetchDisks,
    OfferDisks,
    ResizeDisks,
    RevertDisks,
    WithdrawDisks,
)
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, nothing_to_undo
from cumulet.services.compute import migrations, store
from cumulet.services.compute.rows import MigrationRow, ServerRow
from cumulet.services.compute.scheduling import Scheduling
from cumulet.services.compute.state import Power
from cumulet.services.compute.workflows.arrival import Arrival
from cumulet.services.compute.workflows.common import record_fault, settle, settle_child
from cumulet.services.compute.workflows.leave import LeaveWorkflow
from cumulet.services.compute.workflows.volumes import VolumeWorkflows

FORWARD = nothing_to_undo("it only goes forward; it may be asked again")
SIZES = ("flavor_id", "flavor", "vcpus", "memory_mb", "root_gb", "ephemeral_gb")


class MoveParams(msgspec.Struct, kw_only=True):
    """``host``: asked for; ``sizes``: columns of the server with its new flavor, none for a migration."""

    migration_id: str
    host: str | None = None
    sizes: dict[str, Any] = {}
    disk_config: str = "MANUAL"
    was_running: bool = True
    same_host_allowed: bool = False
    confirmed: bool = False  # nobody is to be asked: it ends where it arrives


class BackParams(msgspec.Struct, kw_only=True):
    migration_id: str
    was_running: bool = True  # at the host it leaves


class MoveWorkflows(Arrival):
    def __init__(
        self, parts: Any, specs: Any, volumes: VolumeWorkflows, scheduling: Scheduling, leave: LeaveWorkflow
    ) -> None:
        super().__init__(parts, specs, volumes, scheduling, leave)
        self.resize = self._move("server.resize", "resize")
        self.migrate = self._move("server.migrate", "migrate")
        self.relocate = Saga(
            kind="server.relocate",
            object_kind="server",
            params=MoveParams,
            settle=settle,
            finished=self._relocated,
            failed=self._told,
            action="migrate",
            steps=(
                Children("move", self._begin_move, task_state="resize_prep", event="cold_migrate"),
                Children(
                    "leave",
                    self._leave_others,
                    tolerate=True,
                    task_state="resize_finish",
                    event="compute_confirm_resize",
                ),
            ),
        )
        event = "compute_confirm_resize"
        self.confirm = Saga(
            kind="server.confirm_resize",
            object_kind="server",
            params=BackParams,
            settle=settle,
            failed=self._confirm_failed,
            action="confirmResize",
            steps=(
                Call("disks", self._drop_old_disks, FORWARD, event=event),
                Transact("conclude", self._confirmed, FORWARD, event=event),
            ),
        )
        event = "compute_revert_resize"
        reverted = nothing_to_undo("the disks kept aside are the server's again: a revert that failed may be repeated")
        self.back = Saga(
            kind="server.move_back",
            object_kind="server",
            params=BackParams,
            settle=settle_child,
            steps=(
                Transact("prepare", self._turn_back, self._turn_again, "resize_reverting", event),
                *self._leaving("resize_reverting", event),
                *self._arriving(
                    "resize_reverting",
                    "compute_finish_revert_resize",
                    Call("disks", self._revert_disks, reverted, task_state="resize_reverting", event=event),
                    finish=self._reverted,
                ),
            ),
        )
        self.revert = Saga(
            kind="server.revert_resize",
            object_kind="server",
            params=BackParams,
            settle=settle,
            finished=self._left,
            failed=self._revert_failed,
            action="revertResize",
            steps=(
                Children("back", self._begin_back, task_state="resize_reverting", event=event),
                Children("leave", self._leave_others, tolerate=True, task_state="resize_reverting", event=event),
            ),
        )

    def sagas(self) -> Sequence[Saga]:
        return self.resize, self.migrate, self.relocate, self.confirm, self.back, self.revert

    def _move(self, kind: str, action: str) -> Saga:
        task, event, last = "resize_migrating", "compute_resize_instance", "compute_finish_resize"
        prepared, cached = "compute_prep_resize", nothing_to_undo("the cache is shared")
        as_offer = nothing_to_undo("the undo of the offer does the same")
        return Saga(
            kind=kind,
            object_kind="server",
            params=MoveParams,
            settle=lambda tx, run, step: (settle_child if run.params.confirmed else settle)(tx, run, step),
            failed=self._move_failed,
            action=action,
            steps=(
                Transact("prepare", self._prepare, self._give_back, "resize_prep", "cold_migrate"),
                Call(
                    "offer_images", self._offer_images, self._withdraw_images, task_state="resize_prep", event=prepared
                ),
                Call("image", self._image, cached, task_state="resize_prep", event=prepared),
                *self._leaving(task, event),
                Call("offer", self._offer, self._withdraw, task_state=task, event=event),
                *self._arriving(
                    "resize_finish",
                    last,
                    Call("disks", self._fetch, self._delete_fetched, task_state="resize_finish", event=last),
                    Call("withdraw", self._withdraw, as_offer, task_state="resize_finish", event=last),
                    finish=self._arrived,
                ),
            ),
        )

    def _prepare(self, tx: Tx, run: Run) -> dict[str, Any]:
        server, params = self.server(tx, run), run.params
        assert server.host is not None
        sizes = params.sizes or {name: getattr(server, name) for name in SIZES}
        if not self.scheduling.volume_backed(tx, server) and sizes["root_gb"] < server.root_gb:
            raise CloudError("Resize error: Unable to resize disk down.", code="resize-down")
        if sizes["ephemeral_gb"] < server.ephemeral_gb:
            raise CloudError("Resize error: Unable to resize disk down.", code="resize-down")
        host = self.scheduling.move(
            tx,
            server,
            params.migration_id,
            "migrating",
            flavor=sizes["flavor"],
            host=params.host,
            excluded=[] if params.same_host_allowed else [server.host],
        )
        return {"from": server.host, "to": host, "sizes": sizes}

    def _offer_images(self, tx: Tx, run: Run) -> HostCall | None:
        return self.offer_images(tx, self.server(tx, run), *self._way(run)) if self._elsewhere(run) else None

    def _withdraw_images(self, tx: Tx, run: Run) -> HostCall | None:
        return self.withdraw_images(tx, self.server(tx, run), *self._way(run)) if self._elsewhere(run) else None

    def _image(self, tx: Tx, run: Run) -> HostCall | None:
        return self.bring_images(tx, run, self.server(tx, run), *self._way(run)) if self._elsewhere(run) else None

    def _offer(self, tx: Tx, run: Run) -> HostCall | None:
        here, there = self._way(run)
        return (here, OfferDisks(server_id=run.object_id, to_host=there)) if here != there else None

    def _withdraw(self, tx: Tx, run: Run) -> HostCall | None:
        here = self._way(run)[0]
        return (here, WithdrawDisks(server_id=run.object_id)) if self._elsewhere(run) else None

    def _fetch(self, tx: Tx, run: Run) -> HostCall:
        here, there = self._way(run)
        if here == there:
            return here, ResizeDisks(server=self._spec(tx, run))
        offered = msgspec.convert(run.outputs["offer"]["disks"], list[DiskOffer])
        return there, FetchDisks(server=self._spec(tx, run), from_host=here, disks=offered)

    def _arrived(self, tx: Tx, run: Run) -> None:
        self.alone_with(tx, run)
        server, sizes = self.server(tx, run), run.outputs["prepare"]["sizes"]
        self.parts.network.server_power(tx, server.id, self._to_run(run))
        if run.params.confirmed:
            store.update_server(tx, server.id, host=self._way(run)[1])
            store.forget_reports_elsewhere(tx, server.id)
            self.parts.placement.release(tx, run.params.migration_id)
            migrations.set_status(tx, run.params.migration_id, "confirming")
            return
        before = {name: getattr(server, name) for name in SIZES}
        store.update_server(
            tx,
            server.id,
            host=self._way(run)[1],
            goal="resized",
            resize={**before, "goal": "active" if server.goal == "active" else "stopped"},
            disk_config=run.params.disk_config,
            **sizes,
        )
        self.move_over(tx, run, "finished")

    def _move_failed(self, tx: Tx, run: Run) -> None:
        self.move_over(tx, run, "error")
        if not run.cancelled:
            record_fault(tx, run.object_id, run)

    # -- without asking ------------------------------------------------------------------------------------------------

    def _begin_move(self, tx: Tx, run: Run) -> list[Start]:
        return [Start(self.migrate, run.object_id, run.params)]

    def _relocated(self, tx: Tx, run: Run) -> None:
        self.move_over(tx, run, "confirmed")
        self._told(tx, run)

    def _told(self, tx: Tx, run: Run) -> None:
        tx.after_commit(self.parts.moved)

    # -- confirming --------------------------------------------------------------------------------------------------

    def left_dead(self, tx: Tx, server: ServerRow, migration: MigrationRow) -> bool:
        """An operator vouches that the source is dead: nobody waits for it. What it has goes with its inventory, should
        it come back."""
        return self.parts.hosts.get(tx, migration.source).forced_down and server.host != migration.source

    def _drop_old_disks(self, tx: Tx, run: Run) -> HostCall | None:
        migration = self._migration(tx, run)
        if self.left_dead(tx, self.server(tx, run), migration):
            return None
        if migration.source == migration.dest:
            return migration.source, DropDisksAside(server_id=run.object_id)
        return migration.source, DeleteDisks(server_id=run.object_id)

    def _confirmed(self, tx: Tx, run: Run) -> None:
        self.alone_with(tx, run)
        server = self.server(tx, run)
        goal = server.goal
        if goal == "resized":
            power = store.reported(tx, server.id, server.host)
            goal = "active" if power in (Power.RUNNING, Power.PAUSED) else "stopped"
        store.update_server(tx, server.id, goal=goal, resize=None)
        self.parts.placement.release(tx, run.params.migration_id)
        self.move_over(tx, run, "confirmed")

    def _confirm_failed(self, tx: Tx, run: Run) -> None:
        self.move_over(tx, run, "finished")
        if not run.cancelled:
            record_fault(tx, run.object_id, run)

    # -- reverting ---------------------------------------------------------------------------------------------------

    def _begin_back(self, tx: Tx, run: Run) -> list[Start]:
        return [Start(self.back, run.object_id, run.params)]

    def _turn_back(self, tx: Tx, run: Run) -> dict[str, Any]:
        server, migration = self.server(tx, run), self._migration(tx, run)
        assert server.resize is not None
        migrations.set_status(tx, migration.id, "reverting")
        return {
            "from": migration.dest,
            "to": migration.source,
            "sizes": {name: server.resize[name] for name in SIZES},
            "goal": server.resize["goal"],
        }

    def _turn_again(self, tx: Tx, run: Run) -> None:
        self.move_over(tx, run, "finished")

    def _revert_disks(self, tx: Tx, run: Run) -> HostCall | None:
        return None if self._elsewhere(run) else (self._way(run)[1], RevertDisks(server_id=run.object_id))

    def _reverted(self, tx: Tx, run: Run) -> None:
        server, found = self.server(tx, run), run.outputs["prepare"]
        store.update_server(tx, server.id, host=found["to"], goal=found["goal"], resize=None, **found["sizes"])
        self.scheduling.move_back(tx, server.id, run.params.migration_id)
        self.parts.network.server_power(tx, server.id, self._to_run(run))

    def _left(self, tx: Tx, run: Run) -> None:
        self.move_over(tx, run, "reverted")

    def _revert_failed(self, tx: Tx, run: Run) -> None:
        if not run.cancelled:
            record_fault(tx, run.object_id, run)
