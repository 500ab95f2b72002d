"""Sagas the tests run."""

from typing import Any

from cumulet.agent import contract as c
from cumulet.db import Tx
from cumulet.kernel.errors import Conflict
from cumulet.saga import Call, Children, Run, Saga, Start, Transact, Wait, nothing_to_undo
from tests.saga.world import GET, GROW, SET, THINGS, Params


def _set(tx: Tx, run: Run, status: str) -> None:
    tx.run(SET, {"the_id": run.object_id, "status": status})


def _settle(tx: Tx, run: Run, step: Any) -> None:
    if step is not None:
        _set(tx, run, ("undoing " if run.error else "") + step.name)


def _grow(tx: Tx, run: Run) -> dict[str, int]:
    before = tx.scalar(GET.with_only_columns(THINGS.c.size), {"id": run.object_id})
    tx.run(GROW, {"the_id": run.object_id, "size": run.params.size + 1})
    return {"before": before}


def _shrink(tx: Tx, run: Run) -> None:
    tx.run(GROW, {"the_id": run.object_id, "size": run.outputs["grow"]["before"]})


def _create(tx: Tx, run: Run) -> tuple[str, c.Operation]:
    return run.params.host, c.CreateVolume(volume_id=run.object_id, size_gb=1)


def _delete(tx: Tx, run: Run) -> tuple[str, c.Operation]:
    return run.params.host, c.DeleteVolume(volume_id=run.object_id)


def _export(tx: Tx, run: Run) -> tuple[str, c.Operation]:
    return run.params.host, c.ExportVolume(
        volume_id=run.object_id, attachment_id="a", attachment_generation=1, host=run.params.host
    )


def _unexport(tx: Tx, run: Run) -> tuple[str, c.Operation]:
    return run.params.host, c.UnexportVolume(volume_id=run.object_id, attachment_id="a")


GROW_STEP = Transact("grow", do=_grow, undo=_shrink)
CREATE_STEP = Call("create", do=_create, undo=_delete)
EXPORT_STEP = Call("export", do=_export, undo=_unexport)

BUILD = Saga(
    kind="thing.build",
    object_kind="thing",
    params=Params,
    steps=(GROW_STEP, CREATE_STEP, EXPORT_STEP),
    settle=_settle,
    finished=lambda tx, run: _set(tx, run, "ready"),
    failed=lambda tx, run: _set(tx, run, "error"),
    action="build",
)


def waiting(until: Any, **options: Any) -> Saga:
    return Saga(
        kind="thing.wait",
        object_kind="thing",
        params=Params,
        steps=(GROW_STEP, CREATE_STEP, Wait("wait", until=until, **options)),
        settle=_settle,
        finished=lambda tx, run: _set(tx, run, "ready"),
        failed=lambda tx, run: _set(tx, run, "error"),
    )


def _remove(tx: Tx, run: Run) -> None:
    _set(tx, run, "deleted")


REMOVE = Saga(
    kind="thing.remove",
    object_kind="thing",
    params=Params,
    steps=(
        Call("unexport", do=_unexport, undo=nothing_to_undo("deleting goes on"), if_host_down="skip"),
        Call("delete", do=_delete, undo=nothing_to_undo("deleting goes on"), if_host_down="skip"),
        Transact("remove", do=_remove, undo=nothing_to_undo("last")),
    ),
    preempts=True,
)


def _refuse(tx: Tx, run: Run) -> None:
    _set(tx, run, "never seen")
    raise Conflict("Not today.", code="not-today", host="h9")


REFUSED = Saga(
    kind="thing.refused",
    object_kind="thing",
    params=Params,
    steps=(GROW_STEP, CREATE_STEP, Transact("refuse", do=_refuse, undo=nothing_to_undo("it always fails"))),
    failed=lambda tx, run: _set(tx, run, f"{run.error_code}: {run.error}"),
)


def _two(tx: Tx, run: Run) -> list[Start]:
    return [Start(BUILD, run.object_id + "-1", Params()), Start(BUILD, run.object_id + "-2", run.params)]


def parent(tolerate: bool) -> Saga:
    return Saga(
        kind="thing.parent",
        object_kind="thing",
        params=Params,
        steps=(GROW_STEP, Children("two", start=_two, tolerate=tolerate)),
        finished=lambda tx, run: _set(tx, run, "ready"),
        failed=lambda tx, run: _set(tx, run, f"error {run.error_code}"),
    )


def undone_parent(second: Saga) -> Saga:
    """Its first child is taken back by removing what it made."""
    return Saga(
        kind="thing.undone",
        object_kind="thing",
        params=Params,
        steps=(
            Children(
                "two",
                start=lambda tx, run: [
                    Start(BUILD, run.object_id + "-1", Params()),
                    Start(second, run.object_id + "-2", Params()),
                ],
                undo=lambda tx, run: [Start(REMOVE, run.object_id + "-1", Params())],
            ),
        ),
    )


RETRY = Saga(
    kind="thing.retry",
    object_kind="thing",
    params=Params,
    steps=(Children("try", start=lambda tx, run: [Start(BUILD, run.object_id, run.params)]), GROW_STEP),
    finished=lambda tx, run: _set(tx, run, "retried"),
)
