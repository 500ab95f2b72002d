"""Sagas that take a volume to another storage host. Nobody writes to it meanwhile: whatever would is refused.

| volume.migrate | child volume.move (undo: volume.leave), then child volume.leave, whose failure changes nothing |
|---|---|

| volume.move | do | undo |
|---|---|---|
| prepare | look again; claim room at the target, note that a copy will be there | give back |
| export | the source exports the volume to the target alone | end it |
| fetch | the target makes its copy, and compares it with the source | delete the copy |
| unexport | end the export | undone with the export |
| switch | the volume is where the copy is; the copy is what the source still has | - (the last) |

| volume.leave | delete what the source has; a host that is down is skipped |
|---|---|

Up to the switch the volume is at its source, from then on at the target: one transaction says so. A copy that is not
the volume has a row until its host has let go of it: where a host was down, its next inventory has it removed.
"""

from typing import Any

import msgspec

from cumulet.agent import contract as c
from cumulet.db import Tx
from cumulet.kernel.errors import CloudError
from cumulet.saga.model import Call, Children, HostCall, Run, Saga, Start, Transact, nothing_to_undo
from cumulet.services.volume import attachments, placing, state, store

LOCKED = "maintenance"  # what a volume is that was locked for its move


class MigrateParams(msgspec.Struct, kw_only=True):
    host: str


class LeaveParams(msgspec.Struct, kw_only=True):
    host: str


class MoveWorkflows:
    def __init__(self, service: Any) -> None:
        self.service = service
        self.leave = Saga(
            kind="volume.leave",
            object_kind="volume",
            params=LeaveParams,
            steps=(
                Call(
                    "delete",
                    self._delete_left,
                    nothing_to_undo("taking away only goes forward"),
                    if_host_down="skip",
                ),
            ),
            finished=self._left,
        )
        self.move = Saga(
            kind="volume.move",
            object_kind="volume",
            params=MigrateParams,
            steps=(
                Transact("prepare", self._prepare, self._give_back),
                Call("export", self._export, self._unexport),
                Call("fetch", self._fetch, self._delete_fetched),
                Call(
                    "unexport", self._unexport, nothing_to_undo("the undo of the export does it"), if_host_down="skip"
                ),
                Transact("switch", self._switch, nothing_to_undo("it is the last step")),
            ),
        )
        self.migrate = Saga(
            kind="volume.migrate",
            object_kind="volume",
            params=MigrateParams,
            steps=(
                # a delete may have cut in when the volume had moved: what the source still has goes all the same
                Children("move", self._begin_move, undo=self._begin_leave),
                Children("leave", self._begin_leave, tolerate=True),
            ),
            finished=self._migrated,
            failed=self._failed,
        )

    def sagas(self) -> list[Saga]:
        return [self.migrate, self.move, self.leave]

    # -- the whole -----------------------------------------------------------------------------------------------------

    def _begin_move(self, tx: Tx, run: Run) -> list[Start]:
        return [Start(self.move, run.object_id, run.params)]

    def _begin_leave(self, tx: Tx, run: Run) -> list[Start]:
        return [Start(self.leave, run.object_id, LeaveParams(host=h)) for h in store.copies_of(tx, run.object_id)]

    def _migrated(self, tx: Tx, run: Run) -> None:
        self._over(tx, run, "success")

    def _failed(self, tx: Tx, run: Run) -> None:
        """A delete may have come in between when the volume had moved already."""
        volume = store.VOLUMES.find(tx, run.object_id)
        self._over(tx, run, "success" if volume is not None and volume.host == run.params.host else "error")

    def _over(self, tx: Tx, run: Run, outcome: str) -> None:
        volume = store.VOLUMES.find(tx, run.object_id)
        if volume is None:
            return
        state.change(tx, volume.id, migration_status=outcome, busy=None if volume.busy == LOCKED else volume.busy)
        tx.after_commit(self.service.moved)

    # -- the move ------------------------------------------------------------------------------------------------------

    def _prepare(self, tx: Tx, run: Run) -> dict[str, Any]:
        volume = store.VOLUMES.get(tx, run.object_id)
        why = placing.refuses(tx, self.service.hosts, volume, run.params.host)
        if why is None and not self.service.hosts.keep(tx, run.params.host):
            why = "it was removed"
        if volume.host is None or why is not None:
            raise CloudError(f"Host {run.params.host} cannot take the volume: {why or 'it is nowhere'}.")
        export = attachments.exported(tx, volume, run.params.host, {"host": run.params.host})
        store.note_copy(tx, volume.id, run.params.host)
        store.VOLUMES.change(tx, volume.id, migration_status="migrating")
        return {"from": volume.host, "to": run.params.host, "export": export.id}

    def _give_back(self, tx: Tx, run: Run) -> None:
        """The note of the copy stays where nobody knows whether it went."""
        prepared = run.outputs["prepare"]
        store.ATTACHMENTS.remove(tx, prepared["export"])
        kept = run.ends.get("fetch") in ("undo_skipped", "undo_failed")
        (store.note_copy if kept else store.forget_copy)(tx, run.object_id, prepared["to"])

    def _export(self, tx: Tx, run: Run) -> HostCall:
        prepared = run.outputs["prepare"]
        return prepared["from"], c.ExportVolume(
            volume_id=run.object_id, attachment_id=prepared["export"], attachment_generation=1, host=prepared["to"]
        )

    def _unexport(self, tx: Tx, run: Run) -> HostCall:
        prepared = run.outputs["prepare"]
        return prepared["from"], c.UnexportVolume(volume_id=run.object_id, attachment_id=prepared["export"])

    def _fetch(self, tx: Tx, run: Run) -> HostCall:
        prepared, volume = run.outputs["prepare"], store.VOLUMES.get(tx, run.object_id)
        return prepared["to"], c.FetchVolume(
            volume_id=volume.id,
            size_gb=volume.size_gb,
            move_id=run.saga_id,
            from_host=prepared["from"],
            connection=msgspec.convert(run.outputs["export"]["connection"], c.DiskConnection),
        )

    def _delete_fetched(self, tx: Tx, run: Run) -> HostCall:
        return run.outputs["prepare"]["to"], c.DeleteVolume(volume_id=run.object_id)

    def _switch(self, tx: Tx, run: Run) -> None:
        prepared = run.outputs["prepare"]
        if store.attachments_of(tx, run.object_id):
            raise CloudError("The volume was attached while it moved.")
        store.ATTACHMENTS.remove(tx, prepared["export"])
        store.forget_copy(tx, run.object_id, prepared["to"])
        store.note_copy(tx, run.object_id, prepared["from"])
        store.VOLUMES.change(tx, run.object_id, host=prepared["to"], migration_status="completing")

    # -- what is left --------------------------------------------------------------------------------------------------

    def _delete_left(self, tx: Tx, run: Run) -> HostCall | None:
        volume = store.VOLUMES.find(tx, run.object_id)
        if volume is None or volume.host == run.params.host:
            return None
        return run.params.host, c.DeleteVolume(volume_id=run.object_id)

    def _left(self, tx: Tx, run: Run) -> None:
        if run.ends.get("delete") == "done":
            store.forget_copy(tx, run.object_id, run.params.host)
