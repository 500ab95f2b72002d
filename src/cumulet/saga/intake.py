"""Taking a saga in: its row, its object's slot, and the limit of what may wait.

Everything here runs in the caller's transaction.
"""

from collections.abc import Callable

import msgspec

from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import Conflict, Unavailable
from cumulet.kernel.ids import new_uuid
from cumulet.saga import journal
from cumulet.saga.journal import SagaRow
from cumulet.saga.model import Saga
from cumulet.saga.stepper import Flight


class _Moved(Exception):
    """Who owns the object is not who was found a moment ago."""


class Intake:
    """``wake``: called after the commit with the id of a saga that can go on; ``began``: with one that was taken in."""

    def __init__(
        self,
        sagas: dict[tuple[str, int], Saga],
        wake: Callable[[str], None],
        *,
        began: Callable[[Flight], None],
        name: str,
        lease_us: int,
        max_waiting: int,
    ) -> None:
        self._sagas = sagas
        self._wake = wake
        self._began = began
        self._name = name
        self._lease_us = lease_us
        self._max_waiting = max_waiting
        self._waiting_seen = (0, 0)  # when counted, how many

    def start(
        self,
        tx: Tx,
        saga: Saga,
        object_id: str,
        params: msgspec.Struct,
        *,
        ctx: RequestContext | None = None,
        parent: SagaRow | None = None,
        settled: bool = False,
    ) -> str:
        if self._sagas.get((saga.kind, saga.version)) is not saga:
            raise ValueError(f"saga {saga.kind} is not registered")
        saga.hold(tx, object_id)
        saga_id = new_uuid()
        owns, status = True, "running"
        epoch = journal.claim_owner(tx, saga.object_kind, object_id, saga_id)
        if epoch is None:
            if parent is not None and self._is_ancestor(tx, saga.object_kind, object_id, parent):
                owns, epoch = False, parent.epoch + 1
            elif saga.preempts:
                try:
                    existing = self._preempt(tx, saga, object_id, saga_id)
                except _Moved:  # another unit of work ended the owner, or came first: look again
                    return self.start(tx, saga, object_id, params, ctx=ctx, parent=parent, settled=settled)
                if existing is not None:
                    return existing
                status, epoch = "queued", 0
            else:
                raise Conflict(f"Another operation is under way on {saga.object_kind} {object_id}.", code="owned")
        row = SagaRow(
            id=saga_id, kind=saga.kind, version=saga.version, object_kind=saga.object_kind, object_id=object_id,
            parent_id=parent.id if parent else None, parent_position=parent.position if parent else None, owns=owns,
            request_id=ctx.request_id if ctx else (parent.request_id if parent else ""),
            project_id=ctx.project_id if ctx else (parent.project_id if parent else None),
            user_id=ctx.user_id if ctx else (parent.user_id if parent else None),
            params=msgspec.to_builtins(params), status=status, position=0, phase="ready", attempt=1, op_host=None,
            op_id=None, step_started_at=tx.now, deadline_at=None, patience=0,
            wake_at=tx.now + self._lease_us if status == "running" else None,
            lease_owner=self._name, epoch=epoch + 1, cancel_requested=False, cancelled=False, error=None,
            error_code=None, error_details=None, created_at=tx.now, updated_at=tx.now, ended_at=None,
        )  # fmt: skip
        journal.insert_saga(tx, row)
        flight = Flight(saga, row, {}, params)
        if saga.settle is not None and not settled:
            saga.settle(tx, flight.run(), saga.steps[0])
        if status == "running":
            flight.fresh = True
            tx.after_commit(lambda: self._began(flight))
        return saga_id

    def _is_ancestor(self, tx: Tx, object_kind: str, object_id: str, parent: SagaRow) -> bool:
        found = journal.owner(tx, object_kind, object_id)
        owner_id = found[0] if found else None
        ancestor: SagaRow | None = parent
        while ancestor is not None:
            if ancestor.id == owner_id:
                return True
            ancestor = journal.load(tx, ancestor.parent_id) if ancestor.parent_id else None
        return False

    def _preempt(self, tx: Tx, saga: Saga, object_id: str, saga_id: str) -> str | None:
        """Queue behind the owner and ask it to unwind, unless it is the same saga that `repeats`; the id of the one
        that is there already and does what is asked for."""
        found = journal.owner(tx, saga.object_kind, object_id)
        assert found is not None
        owner_id, next_id, _ = found
        once_more = False
        for other in (next_id, owner_id):
            row = journal.load(tx, other) if other else None
            if row is None:
                continue
            if row.kind == saga.kind:
                if not saga.repeats or row.id == next_id:
                    return row.id
                once_more = True
                continue
            decl = self._sagas.get((row.kind, row.version))
            if decl is not None and decl.preempts >= saga.preempts:
                raise Conflict(f"{saga.object_kind} {object_id} is being deleted.", code="owned")
            if row.id == next_id:
                journal.drop_queued(tx, saga.object_kind, object_id, row.id)
        if owner_id is None:
            raise _Moved
        if not once_more:
            journal.request_cancel(tx, owner_id)
        if not journal.queue_behind(tx, saga.object_kind, object_id, owner_id, saga_id):
            raise _Moved
        tx.after_commit(lambda: self._wake(owner_id))
        return None

    def admit(self, tx: Tx) -> None:
        seen_at, waiting = self._waiting_seen
        if abs(tx.now - seen_at) > SECOND:
            waiting = journal.backlog(tx)
            seen_at = tx.now
        if waiting >= self._max_waiting:
            self._waiting_seen = (seen_at, waiting)
            raise Unavailable("Too many operations are waiting. Try again later.", headers={"Retry-After": "5"})
        self._waiting_seen = (seen_at, waiting + 1)
