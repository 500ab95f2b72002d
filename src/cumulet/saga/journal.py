"""The journal's statements, and rows as structs. Every write of a running saga says ``WHERE epoch = mine``."""

from typing import Any, NamedTuple

import msgspec
from sqlalchemy import and_, bindparam, case, func, select, text, update

from cumulet.db import Tx
from cumulet.saga.tables import SAGA_OWNERS, SAGA_STEPS, SAGAS

ACTIVE = ("running", "unwinding")


class Stale(Exception):
    """Another conductor moved the saga, or someone asked it to stop: look at the row again."""


class SagaRow(msgspec.Struct, kw_only=False):
    """A row of ``sagas``; changed in memory by the stepper, then written whole."""

    id: str
    kind: str
    version: int
    object_kind: str
    object_id: str
    parent_id: str | None
    parent_position: int | None
    owns: bool
    request_id: str
    project_id: str | None
    user_id: str | None
    params: Any
    status: str
    position: int
    phase: str
    attempt: int
    op_host: str | None
    op_id: str | None
    step_started_at: int
    deadline_at: int | None
    patience: int
    wake_at: int | None
    lease_owner: str | None
    epoch: int
    cancel_requested: bool
    cancelled: bool
    error: str | None
    error_code: str | None
    error_details: dict[str, Any] | None
    created_at: int
    updated_at: int
    ended_at: int | None

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


class StepRow(msgspec.Struct):
    saga_id: str
    position: int
    name: str
    state: str
    host: str | None
    output: Any
    error: str | None
    started_at: int
    ended_at: int | None  # None in a history: it runs
    undone_at: int | None


_COLUMNS = [SAGAS.c[name] for name in SagaRow.__struct_fields__]


class LeftUndone(NamedTuple):
    """A saga that failed, and whose undo of some step did not happen on this host."""

    saga_id: str
    object_id: str
    host: str
    params: dict[str, Any]


_STEP_COLUMNS = [SAGA_STEPS.c[name] for name in StepRow.__struct_fields__]
_BY_ID = select(*_COLUMNS).where(SAGAS.c.id == bindparam("id"))
_STEPS = select(*_STEP_COLUMNS).where(SAGA_STEPS.c.saga_id == bindparam("id")).order_by(SAGA_STEPS.c.position)
_SAVED = (
    "status", "position", "phase", "attempt", "op_host", "op_id", "step_started_at", "deadline_at", "patience",
    "wake_at", "lease_owner", "cancelled", "error", "error_code", "error_details", "updated_at", "ended_at",
)  # fmt: skip
_SAVE = (
    update(SAGAS)
    .where(
        SAGAS.c.id == bindparam("the_id"),
        SAGAS.c.epoch == bindparam("the_epoch"),
        SAGAS.c.cancel_requested == bindparam("seen_cancel"),
    )
    .values(epoch=SAGAS.c.epoch + 1, **{name: bindparam(name) for name in _SAVED})
)
_SET_PARAMS = update(SAGAS).where(SAGAS.c.id == bindparam("the_id")).values(params=bindparam("params"))
_UNDONE = (
    update(SAGA_STEPS)
    .where(SAGA_STEPS.c.saga_id == bindparam("the_id"), SAGA_STEPS.c.position == bindparam("the_position"))
    .values(
        state=bindparam("state"),
        undone_at=bindparam("undone_at"),
        error=func.coalesce(bindparam("error"), SAGA_STEPS.c.error),
    )
)
_CLAIM = text(
    "INSERT INTO saga_owners (object_kind, object_id, saga_id, epoch) VALUES (:object_kind, :object_id, :saga_id, 0)"
    " ON CONFLICT (object_kind, object_id) DO UPDATE SET saga_id = excluded.saga_id"
    " WHERE saga_owners.saga_id IS NULL RETURNING epoch"
)
_OWNED = update(SAGA_OWNERS).where(
    SAGA_OWNERS.c.object_kind == bindparam("the_kind"),
    SAGA_OWNERS.c.object_id == bindparam("the_object"),
    SAGA_OWNERS.c.saga_id == bindparam("the_saga"),
)
_RELEASE = _OWNED.values(saga_id=SAGA_OWNERS.c.next_saga_id, next_saga_id=None, epoch=bindparam("the_epoch")).returning(
    SAGA_OWNERS.c.saga_id
)
_FREE_SLOT = _OWNED.values(saga_id=None)
_OWNER = select(SAGA_OWNERS.c.saga_id, SAGA_OWNERS.c.next_saga_id, SAGA_OWNERS.c.epoch).where(
    SAGA_OWNERS.c.object_kind == bindparam("object_kind"), SAGA_OWNERS.c.object_id == bindparam("object_id")
)
_SET_NEXT = (
    update(SAGA_OWNERS)
    .where(
        SAGA_OWNERS.c.object_kind == bindparam("the_kind"),
        SAGA_OWNERS.c.object_id == bindparam("the_object"),
        SAGA_OWNERS.c.saga_id == bindparam("the_owner"),
        SAGA_OWNERS.c.next_saga_id.is_(None),
    )
    .values(next_saga_id=bindparam("the_saga"))
)
_UNQUEUE = (
    update(SAGA_OWNERS)
    .where(
        SAGA_OWNERS.c.object_kind == bindparam("the_kind"),
        SAGA_OWNERS.c.object_id == bindparam("the_object"),
        SAGA_OWNERS.c.next_saga_id == bindparam("the_saga"),
    )
    .values(next_saga_id=None)
)
_NEVER_BEGAN = (
    update(SAGAS)
    .where(SAGAS.c.id == bindparam("the_id"), SAGAS.c.status == "queued")
    .values(
        status="failed",
        phase="ended",
        cancelled=True,
        error="Cancelled.",
        error_code="cancelled",
        updated_at=bindparam("the_time"),
        ended_at=bindparam("the_time"),
    )
)
_CANCEL = (
    update(SAGAS)
    .where(SAGAS.c.id == bindparam("the_id"), SAGAS.c.status.in_(ACTIVE))
    .values(cancel_requested=True, wake_at=bindparam("the_time"))
)
_CANCEL_CHILDREN = (
    update(SAGAS)
    .where(SAGAS.c.parent_id == bindparam("the_id"), SAGAS.c.status == "running", SAGAS.c.cancel_requested.is_(False))
    .values(cancel_requested=True, wake_at=bindparam("the_time"))
)
_ACTIVATE = (
    update(SAGAS)
    .where(SAGAS.c.id == bindparam("the_id"), SAGAS.c.status == "queued")
    .values(
        status="running",
        epoch=bindparam("the_epoch"),
        wake_at=bindparam("the_time"),
        step_started_at=bindparam("the_time"),
        updated_at=bindparam("the_time"),
    )
)
_CHILD_ENDED = (
    update(SAGAS)
    .where(SAGAS.c.id == bindparam("the_id"))
    .values(
        wake_at=bindparam("the_time"),
        epoch=case((SAGAS.c.epoch > bindparam("the_epoch"), SAGAS.c.epoch), else_=bindparam("the_epoch")) + 1,
    )
)
_CHILDREN = (
    select(SAGAS.c.id, SAGAS.c.status, SAGAS.c.error, SAGAS.c.error_code, SAGAS.c.error_details)
    .where(SAGAS.c.parent_id == bindparam("parent_id"), SAGAS.c.parent_position == bindparam("parent_position"))
    .order_by(SAGAS.c.created_at, SAGAS.c.id)
)
_DUE = (
    select(SAGAS.c.id, SAGAS.c.wake_at)
    .where(SAGAS.c.status.in_(ACTIVE), SAGAS.c.wake_at <= bindparam("until"))
    .order_by(SAGAS.c.wake_at)
    .limit(bindparam("limit"))
)
_MINE = (
    update(SAGAS)
    .where(SAGAS.c.lease_owner == bindparam("the_owner"), SAGAS.c.status.in_(ACTIVE), SAGAS.c.phase != "waiting")
    .values(wake_at=bindparam("the_time"))
)
_ACTIVE_ON = select(SAGAS.c.id).where(
    SAGAS.c.object_kind == bindparam("object_kind"),
    SAGAS.c.object_id == bindparam("object_id"),
    SAGAS.c.status.in_(ACTIVE),
)
_CALLED_ON_HOST = select(SAGAS.c.id).where(
    SAGAS.c.op_host == bindparam("host"), SAGAS.c.status.in_(ACTIVE), SAGAS.c.phase.in_(("called", "waiting"))
)
_OF_OBJECT = (
    select(*_COLUMNS)
    .where(SAGAS.c.object_kind == bindparam("object_kind"), SAGAS.c.object_id == bindparam("object_id"))
    .order_by(SAGAS.c.created_at.desc(), SAGAS.c.id)
)
# as in the index, word for word: else it is not used
_BADLY_UNDONE = text("saga_steps.state IN ('undo_skipped', 'undo_failed')")
_LEFT_UNDONE = (
    select(SAGA_STEPS.c.saga_id, SAGAS.c.object_id, SAGA_STEPS.c.host, SAGAS.c.params)
    .join(SAGAS, SAGAS.c.id == SAGA_STEPS.c.saga_id)
    .where(
        _BADLY_UNDONE,
        SAGA_STEPS.c.name == bindparam("step"),
        SAGA_STEPS.c.undone_at > bindparam("since"),
        SAGAS.c.kind == bindparam("kind"),
        SAGAS.c.status == "failed",
    )
    .order_by(SAGA_STEPS.c.undone_at)
    .limit(200)
)
_MADE_UP_FOR = (
    update(SAGA_STEPS).where(SAGA_STEPS.c.saga_id == bindparam("the_id"), _BADLY_UNDONE).values(state="undone")
)
_STEPS_OF_OBJECT = (
    select(*_STEP_COLUMNS)
    .join(SAGAS, SAGAS.c.id == SAGA_STEPS.c.saga_id)
    .where(SAGAS.c.object_kind == bindparam("object_kind"), SAGAS.c.object_id == bindparam("object_id"))
    .order_by(SAGA_STEPS.c.saga_id, SAGA_STEPS.c.position)
)
_OF_REQUEST = (
    select(*_COLUMNS).where(SAGAS.c.request_id == bindparam("request_id")).order_by(SAGAS.c.created_at, SAGAS.c.id)
)
_STEPS_OF_REQUEST = (
    select(*_STEP_COLUMNS)
    .join(SAGAS, SAGAS.c.id == SAGA_STEPS.c.saga_id)
    .where(SAGAS.c.request_id == bindparam("request_id"))
    .order_by(SAGA_STEPS.c.saga_id, SAGA_STEPS.c.position)
)
_BACKLOG = select(func.count()).where(and_(SAGAS.c.status.in_(ACTIVE), SAGAS.c.phase == "ready"))


def load(tx: Tx, saga_id: str) -> SagaRow | None:
    row = tx.first(_BY_ID, {"id": saga_id})
    return None if row is None else SagaRow(*row)


def load_steps(tx: Tx, saga_id: str) -> list[StepRow]:
    return [StepRow(*row) for row in tx.rows(_STEPS, {"id": saga_id})]


def insert_saga(tx: Tx, row: SagaRow) -> None:
    tx.insert(SAGAS, {name: getattr(row, name) for name in SagaRow.__struct_fields__})


def insert_steps(tx: Tx, rows: list[StepRow]) -> None:
    tx.insert(SAGA_STEPS, [msgspec.structs.asdict(row) for row in rows])


def save(tx: Tx, row: SagaRow) -> None:
    """Write the row as it now stands and raise its epoch; Stale if it is not ours any more."""
    row.updated_at = tx.now
    values = {name: getattr(row, name) for name in _SAVED}
    values.update(the_id=row.id, the_epoch=row.epoch, seen_cancel=row.cancel_requested)
    if tx.run(_SAVE, values) != 1:
        raise Stale(row.id)
    row.epoch += 1


def wipe(tx: Tx, row: SagaRow, secrets: tuple[str, ...]) -> None:
    """Take secrets out of the params; in the transaction that ends the saga, so no crash leaves them behind."""
    if any(row.params.get(name) is not None for name in secrets):
        row.params = {name: value for name, value in row.params.items() if name not in secrets}
        tx.run(_SET_PARAMS, {"the_id": row.id, "params": row.params})


def mark_undone(tx: Tx, saga_id: str, position: int, state: str, error: str | None = None) -> bool:
    values = {"the_id": saga_id, "the_position": position, "state": state, "undone_at": tx.now, "error": error}
    return tx.run(_UNDONE, values) == 1


def left_undone(tx: Tx, kind: str, step: str, since: int) -> list[LeftUndone]:
    return [LeftUndone(*row) for row in tx.rows(_LEFT_UNDONE, {"kind": kind, "step": step, "since": since})]


def made_up_for(tx: Tx, saga_id: str) -> None:
    """What was left undone has been done since, or means nothing any more."""
    tx.run(_MADE_UP_FOR, {"the_id": saga_id})


def claim_owner(tx: Tx, object_kind: str, object_id: str, saga_id: str) -> int | None:
    """Take the object's slot; its last epoch, or None if it is taken."""
    found = tx.scalar(_CLAIM, {"object_kind": object_kind, "object_id": object_id, "saga_id": saga_id})
    return None if found is None else int(found)


def release_owner(tx: Tx, row: SagaRow) -> str | None:
    """Give the slot up; the saga that takes it over, if one waited."""
    values = {
        "the_kind": row.object_kind, "the_object": row.object_id, "the_saga": row.id, "the_epoch": row.epoch + 1,
    }  # fmt: skip
    successor: str | None = tx.scalar(_RELEASE, values)
    if successor is not None:
        tx.run(_ACTIVATE, {"the_id": successor, "the_epoch": row.epoch + 2, "the_time": tx.now})
    return successor


def owner(tx: Tx, object_kind: str, object_id: str) -> tuple[str | None, str | None, int] | None:
    """(owner, the one that waits, last epoch)"""
    row = tx.first(_OWNER, {"object_kind": object_kind, "object_id": object_id})
    return None if row is None else (row[0], row[1], row[2])


def queue_behind(tx: Tx, object_kind: str, object_id: str, owner_id: str, saga_id: str) -> bool:
    values = {"the_kind": object_kind, "the_object": object_id, "the_owner": owner_id, "the_saga": saga_id}
    return tx.run(_SET_NEXT, values) == 1


def free_slot(tx: Tx, object_kind: str, object_id: str, saga_id: str) -> None:
    """Of an object whose owner runs no more and did not say so (an operator's repair)."""
    tx.run(_FREE_SLOT, {"the_kind": object_kind, "the_object": object_id, "the_saga": saga_id})


def unqueue(tx: Tx, object_kind: str, object_id: str, saga_id: str) -> None:
    """This saga comes next no more."""
    tx.run(_UNQUEUE, {"the_kind": object_kind, "the_object": object_id, "the_saga": saga_id})


def drop_queued(tx: Tx, object_kind: str, object_id: str, saga_id: str) -> None:
    """A saga that waits for the owner to unwind gives its place to one that preempts more; it never began."""
    unqueue(tx, object_kind, object_id, saga_id)
    tx.run(_NEVER_BEGAN, {"the_id": saga_id, "the_time": tx.now})


def request_cancel(tx: Tx, saga_id: str) -> None:
    tx.run(_CANCEL, {"the_id": saga_id, "the_time": tx.now})


_IS_CANCELLED = select(SAGAS.c.cancel_requested).where(SAGAS.c.id == bindparam("the_id"))


def is_cancelled(tx: Tx, saga_id: str) -> bool:
    return bool(tx.scalar(_IS_CANCELLED, {"the_id": saga_id}))


def cancel_children(tx: Tx, saga_id: str) -> None:
    tx.run(_CANCEL_CHILDREN, {"the_id": saga_id, "the_time": tx.now})


def child_ended(tx: Tx, child: SagaRow) -> None:
    tx.run(_CHILD_ENDED, {"the_id": child.parent_id, "the_time": tx.now, "the_epoch": child.epoch})


class Child(msgspec.Struct):
    id: str
    status: str
    error: str | None
    error_code: str | None
    error_details: dict[str, Any] | None


def children(tx: Tx, saga_id: str, position: int) -> list[Child]:
    rows = tx.rows(_CHILDREN, {"parent_id": saga_id, "parent_position": position})
    return [Child(*row) for row in rows]


def due(tx: Tx, until: int, limit: int = 500) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in tx.rows(_DUE, {"until": until, "limit": limit})]


def reclaim(tx: Tx, owner_name: str) -> int:
    """What an earlier run of this conductor was about is due now."""
    return tx.run(_MINE, {"the_owner": owner_name, "the_time": tx.now})


def active_on(tx: Tx, object_kind: str, object_id: str) -> list[str]:
    return [row[0] for row in tx.rows(_ACTIVE_ON, {"object_kind": object_kind, "object_id": object_id})]


def called_on_host(tx: Tx, host: str) -> list[str]:
    return [row[0] for row in tx.rows(_CALLED_ON_HOST, {"host": host})]


def of_object(tx: Tx, object_kind: str, object_id: str) -> list[tuple[SagaRow, list[StepRow]]]:
    """Newest first."""
    return _with_steps(tx, _OF_OBJECT, _STEPS_OF_OBJECT, {"object_kind": object_kind, "object_id": object_id})


def of_request(tx: Tx, request_id: str) -> list[tuple[SagaRow, list[StepRow]]]:
    """Oldest first, child sagas included."""
    return _with_steps(tx, _OF_REQUEST, _STEPS_OF_REQUEST, {"request_id": request_id})


def _with_steps(tx: Tx, sagas: Any, steps: Any, key: dict[str, str]) -> list[tuple[SagaRow, list[StepRow]]]:
    found: dict[str, list[StepRow]] = {}
    for row in tx.rows(steps, key):
        found.setdefault(row[0], []).append(StepRow(*row))
    return [(saga := SagaRow(*row), found.get(saga.id, [])) for row in tx.rows(sagas, key)]


def backlog(tx: Tx) -> int:
    return int(tx.scalar(_BACKLOG))
