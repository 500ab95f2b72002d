"""What one transaction of a saga does: finish a step, begin the next, fail, unwind, end.

Pure functions of the database: no threads, no bus. Each takes the saga's ``Flight`` (its row and what its steps
returned), changes it, writes the journal and says in an ``After`` what is to be done once the transaction committed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import msgspec
from sqlalchemy.exc import IntegrityError, OperationalError

from cumulet.agent.contract import Operation, Outcome
from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.errors import Unavailable
from cumulet.saga import journal
from cumulet.saga.journal import SagaRow, Stale, StepRow
from cumulet.saga.model import Call, Children, NothingToUndo, Run, Saga, Start, Step, Transact, Wait

UNDO_ATTEMPTS = 6
_ENDED_WELL = ("done", "skipped")


class Hosts(Protocol):
    """What the engine asks about hosts; answered from memory where that is enough."""

    def is_up(self, host: str) -> bool: ...

    def is_up_in(self, tx: Tx, host: str) -> bool:
        """From memory if it says so; else as the rows have it: another conductor may have heard of the host."""
        ...

    def speed_factor(self, host: str) -> float: ...


class Abandoned(BaseException):
    """Raised by a test's probe: from here on this engine does nothing more, as if it had been killed."""


class Probe:
    """Lets tests fail, crash or sabotage a saga at chosen points. The product's does nothing."""

    def at(self, point: str, row: SagaRow, step: Step) -> None:
        """Points, in transactions: ``do`` (a step begins), ``effect`` (it has had its effect), ``finish``, ``undo``,
        ``before-commit``; outside: ``after-commit``, ``before-send``, ``after-send``, ``outcome`` (reported, not yet
        journaled)."""

    def drops_undo(self, row: SagaRow, step: Step) -> bool:
        return False


class StepFailed(Exception):
    """A do, done, until or start raised: the transaction rolls back, another one journals the failure."""

    def __init__(self, cause: Exception, *, entering: bool = False) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.entering = entering  # it is the step after the one that this transaction finished


@dataclass
class Flight:
    """A saga in memory: valid while its epoch is the database's."""

    saga: Saga
    row: SagaRow
    steps: dict[int, StepRow]
    params: Any
    unwritten: list[StepRow] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)  # shared by the copies
    fresh: bool = False  # taken in by this process, and not yet driven
    unsettled: tuple[Step | None] | None = None  # the object's visible state is to show this step

    def copy(self) -> "Flight":
        return replace(self, row=msgspec.structs.replace(self.row), steps=dict(self.steps), unwritten=[])

    def end_step(self, ended: StepRow) -> None:
        self.steps[self.row.position] = ended
        self.unwritten.append(ended)

    @property
    def step(self) -> Step:
        return self.saga.steps[self.row.position]

    def run(self) -> Run:
        row = self.row
        return Run(
            saga_id=row.id,
            object_id=row.object_id,
            request_id=row.request_id,
            params=self.params,
            outputs={s.name: s.output for s in self.steps.values() if s.state in _ENDED_WELL or s.undone_at},
            project_id=row.project_id,
            user_id=row.user_id,
            kind=row.kind,
            error=row.error,
            error_code=row.error_code,
            error_details=row.error_details or {},
            cancelled=row.cancelled,
            memo=self.memo,
            ends={s.name: s.state for s in self.steps.values()},
        )


@dataclass
class After:
    """What to do after the commit."""

    again: bool = False  # this saga can go on at once
    send: Operation | None = None  # send what the row says (op_id, op_host) with this body
    wake: list[str] = field(default_factory=list)  # other sagas that can go on
    ended: bool = False


class Stepper:
    probe = Probe()  # of all, until a test gives one its own

    def __init__(self, hosts: Hosts | None, lease_seconds: float, start: Callable[..., str]) -> None:
        self.hosts = hosts
        self.lease_us = int(lease_seconds * SECOND)
        self.name = ""
        self._start = start

    # -- forward ----------------------------------------------------------------------------------------------

    def go_on(self, tx: Tx, flight: Flight, *, hold: bool = False) -> After:
        """Do what can be done now. ``hold``: finish the step, but leave beginning the next one to the next time."""
        row = flight.row
        if row.status == "unwinding":
            return self._unwind(tx, flight)
        step = flight.step
        if row.cancel_requested:
            return self._cancel(tx, flight)
        if row.phase == "waiting":
            if isinstance(step, Wait):
                return self._look(tx, flight, step, hold)
            if isinstance(step, Children):
                return self._gather(tx, flight, step, hold)
            if tx.now >= (row.deadline_at or 0) and isinstance(step, Call):
                return self.fail(tx, flight, f"Host {row.op_host} is down.", "host-down", {})
        return self._enter(tx, flight, hold=hold)

    def _fault(self, point: str, flight: Flight, *, entering: bool = False) -> None:
        self._guard(lambda: self.probe.at(point, flight.row, flight.step), entering=entering)

    def _guard(self, work: Callable[[], Any], *, entering: bool = False) -> Any:
        """Run a workflow's function; what it raises fails the step, unless the database is what failed, or another unit
        of work was quicker: then this one is tried again."""
        try:
            return work()
        except (Unavailable, OperationalError, IntegrityError, Stale, StepFailed):
            raise
        except Exception as error:
            raise StepFailed(error, entering=entering) from error

    def _complete(
        self, tx: Tx, flight: Flight, output: Any, state: str, *, hold: bool = False, error: str | None = None
    ) -> After:
        row = flight.row
        ended = StepRow(
            row.id, row.position, flight.step.name, state, row.op_host, msgspec.to_builtins(output), error,
            row.step_started_at, tx.now, None,
        )  # fmt: skip
        flight.end_step(ended)
        if row.position + 1 == len(flight.saga.steps):
            return self._end(tx, flight, "finished")
        row.position += 1
        self._begin_step(tx, flight)
        if hold or row.cancel_requested:
            return self._save(tx, flight, After(again=True))
        return self._enter(tx, flight, entering=True)

    def _begin_step(self, tx: Tx, flight: Flight) -> None:
        row = flight.row
        row.phase, row.attempt, row.step_started_at = "ready", 1, tx.now
        row.op_host = row.op_id = row.deadline_at = None
        self._lease(tx, row)
        flight.unsettled = (flight.step,)

    def _lease(self, tx: Tx, row: SagaRow) -> None:
        row.lease_owner, row.wake_at = self.name, tx.now + self.lease_us

    def _enter(self, tx: Tx, flight: Flight, *, hold: bool = False, entering: bool = False) -> After:
        """Do a Transact, or begin a Call, Wait or Children. ``entering``: in the transaction that finished the step
        before."""
        row, step = flight.row, flight.step
        self._fault("do", flight, entering=entering)
        if isinstance(step, Transact):
            output = self._guard(lambda: step.do(tx, flight.run()), entering=entering)
            self._fault("effect", flight, entering=entering)
            return self._complete(tx, flight, output, "done", hold=hold)
        if isinstance(step, Call):
            asked = self._guard(lambda: step.do(tx, flight.run()), entering=entering)
            if asked is None:
                return self._done(tx, flight, step, None, "done", hold=hold, entering=entering)
            host, operation = asked
            if not self._up(tx, host):
                if step.if_host_down == "skip":
                    row.op_host = host
                    return self._done(tx, flight, step, None, "skipped", hold=hold, entering=entering)
                if step.if_host_down == "fail":
                    return self.fail(tx, flight, f"Host {host} is down.", "host-down", {"host": host})
                row.op_host, row.phase, row.wake_at = host, "waiting", tx.now + 2 * SECOND
                row.deadline_at = row.deadline_at or tx.now + self._patience(host, operation)
                return self._save(tx, flight, After())
            return self._call(tx, flight, host, operation, "do")
        if isinstance(step, Wait):
            row.deadline_at = tx.now + int(step.deadline_seconds * SECOND)
            return self._look(tx, flight, step, hold, entering=entering)
        assert isinstance(step, Children)
        starts = self._guard(lambda: step.start(tx, flight.run()), entering=entering)
        if not starts:
            return self._complete(tx, flight, [], "done", hold=hold)
        return self._start_children(tx, flight, starts, entering=entering)

    def _up(self, tx: Tx, host: str) -> bool:
        return self.hosts is None or self.hosts.is_up_in(tx, host)

    def _patience(self, host: str, operation: Operation) -> int:
        factor = 1.0 if self.hosts is None else max(self.hosts.speed_factor(host), 1.0)
        return int(operation.stall_seconds * factor * SECOND)

    def _call(self, tx: Tx, flight: Flight, host: str, operation: Operation, way: str) -> After:
        row = flight.row
        row.phase, row.op_host = "called", host
        row.op_id = f"{row.id}:{flight.step.name}:{way}:{row.attempt}"
        row.patience = self._patience(host, operation)
        row.deadline_at = tx.now + row.patience
        self._lease(tx, row)
        return self._save(tx, flight, After(send=operation))

    def resend(self, tx: Tx, flight: Flight) -> After:
        """The host does not know the operation: send it again, under the same id and a higher epoch."""
        row, step = flight.row, flight.step
        assert isinstance(step, Call)
        ask = step.do if row.status == "running" else step.undo
        assert not isinstance(ask, NothingToUndo)
        asked = self._guard(lambda: ask(tx, flight.run()))
        if asked is None or asked[0] != row.op_host:  # the world changed since; what was asked for never began
            row.phase, row.op_host, row.op_id, row.deadline_at = "ready", None, None, None
            self._lease(tx, row)
            return self._save(tx, flight, After(again=True))
        self._lease(tx, row)
        return self._save(tx, flight, After(send=asked[1]))

    def postpone(self, tx: Tx, flight: Flight, wake_at: int) -> After:
        flight.row.wake_at = wake_at
        return self._save(tx, flight, After())

    def host_down(self, tx: Tx, flight: Flight) -> After:
        """The host of the operation under way is down, its outcome unknown."""
        row, step = flight.row, flight.step
        assert isinstance(step, Call)
        if self._up(tx, row.op_host or ""):  # another conductor heard of it
            return self.postpone(tx, flight, tx.now + SECOND)
        if row.status == "unwinding":
            return self._undone(tx, flight, step, "undo_skipped", f"Host {row.op_host} was down.")
        if step.if_host_down == "skip":
            return self._done(tx, flight, step, None, "skipped", hold=True)
        if step.if_host_down == "wait" and tx.now < (row.deadline_at or 0):
            return self.postpone(tx, flight, tx.now + 2 * SECOND)
        details = {"host": row.op_host}
        return self.fail(tx, flight, f"Host {row.op_host} went down.", "host-down", details)

    def _look(self, tx: Tx, flight: Flight, step: Wait, hold: bool, *, entering: bool = False) -> After:
        row = flight.row
        found = self._guard(lambda: step.until(tx, flight.run()), entering=entering)
        if found is not None:
            return self._complete(tx, flight, found, "done", hold=hold)
        assert row.deadline_at is not None
        if tx.now >= row.deadline_at:
            if step.on_deadline == "continue":
                return self._complete(tx, flight, None, "done", hold=hold)
            seconds = f"{step.deadline_seconds:g}"
            return self.fail(tx, flight, f"{step.name} did not come true within {seconds} seconds.", "timeout", {})
        row.phase, row.lease_owner = "waiting", None
        row.wake_at = min(row.deadline_at, tx.now + int(step.poll_seconds * SECOND))
        return self._save(tx, flight, After())

    # -- children ---------------------------------------------------------------------------------------------

    def _start_children(self, tx: Tx, flight: Flight, starts: Any, *, entering: bool = False) -> After:
        row, after = flight.row, After()
        for start in starts:
            after.wake.append(self._guard(partial(self._child, tx, start, row), entering=entering))
        row.phase, row.lease_owner, row.wake_at = "waiting", None, tx.now + 30 * SECOND
        if not starts:
            row.wake_at, after.again = tx.now, True
        return self._save(tx, flight, after)

    def _child(self, tx: Tx, start: Start, parent: SagaRow) -> str:
        return self._start(tx, start.saga, start.object_id, start.params, parent=parent)

    def _gather(self, tx: Tx, flight: Flight, step: Children, hold: bool) -> After:
        row = flight.row
        found = journal.children(tx, row.id, row.position)
        if any(c.status not in ("finished", "failed") for c in found):
            if row.wake_at is not None and row.wake_at - tx.now > 10 * SECOND:
                if journal.is_cancelled(tx, row.id):
                    raise Stale  # what is remembered of it is of before
                return After()  # woken for the sake of another: nothing to write
            row.wake_at = tx.now + 30 * SECOND
            return self._save(tx, flight, After())
        failed = [c for c in found if c.status == "failed"]
        if failed and not step.tolerate:
            first = failed[0]
            return self.fail(tx, flight, first.error or "A child failed.", first.error_code, first.error_details or {})
        return self._complete(tx, flight, found, "done", hold=hold)

    # -- outcomes ----------------------------------------------------------------------------------------------

    def outcome(self, tx: Tx, flight: Flight, outcome: Outcome, *, hold: bool = False) -> After | None:
        """Take what an agent reports about the operation under way; None if it is about another one."""
        row = flight.row
        if row.phase != "called" or row.op_id != outcome.op_id or not row.active:
            return None
        step = flight.step
        assert isinstance(step, Call)
        if outcome.state == "running":
            return self._progress(tx, flight)
        if outcome.state == "unknown":
            return None
        if row.status == "unwinding":
            if outcome.state == "failed":
                return self.undo_failed(tx, flight, outcome.error or "The host failed.")
            return self._undone(tx, flight, step)
        if outcome.state == "failed":
            details = {"host": outcome.host, "operation": outcome.op_id}
            message = outcome.error or "The host failed."
            return self.fail(tx, flight, message, outcome.error_code or "failed", details)
        return self._done(tx, flight, step, outcome.result, "done", hold=hold)

    def _progress(self, tx: Tx, flight: Flight) -> After | None:
        """Put the deadline off; not for every word of the host, as each costs a write."""
        row = flight.row
        if row.deadline_at is not None and tx.now + row.patience - row.deadline_at < row.patience // 10:
            return None
        row.deadline_at = tx.now + row.patience
        row.wake_at = row.deadline_at
        return self._save(tx, flight, After())

    def _done(
        self, tx: Tx, flight: Flight, step: Call, result: dict[str, Any] | None, state: str, *,
        hold: bool = False, entering: bool = False,
    ) -> After:  # fmt: skip
        output: Any = result
        self._fault("effect", flight, entering=entering)
        if step.done is not None:
            done = step.done
            output = self._guard(lambda: done(tx, flight.run(), result), entering=entering)
            if output is None:
                output = result
        return self._complete(tx, flight, output, state, hold=hold)

    # -- failing and unwinding -----------------------------------------------------------------------------------

    def fail(self, tx: Tx, flight: Flight, error: str, code: str | None, details: dict[str, Any]) -> After:
        """The step failed; begin to unwind. Of a Call that was sent, the effect may be there."""
        row = flight.row
        host = row.op_host if row.phase == "called" else None
        failed = StepRow(
            row.id, row.position, flight.step.name, "failed", host, None, error,
            row.step_started_at, tx.now, None,
        )  # fmt: skip
        flight.end_step(failed)
        row.error, row.error_code, row.error_details = error, code, details
        return self._begin_unwinding(tx, flight)

    def _cancel(self, tx: Tx, flight: Flight) -> After:
        row = flight.row
        if row.phase == "waiting" and isinstance(flight.step, Children):
            found = journal.children(tx, row.id, row.position)
            if any(c.status not in ("finished", "failed") for c in found):
                journal.cancel_children(tx, row.id)
                row.wake_at = tx.now + 30 * SECOND
                return self._save(tx, flight, After(wake=[c.id for c in found]))
            ended = StepRow(
                row.id, row.position, flight.step.name, "done", None, msgspec.to_builtins(found), None,
                row.step_started_at, tx.now, None,
            )  # fmt: skip
            flight.end_step(ended)  # some may have finished first: the step is undone
        row.cancelled, row.error, row.error_code, row.error_details = True, "Cancelled.", "cancelled", {}
        return self._begin_unwinding(tx, flight)

    def _begin_unwinding(self, tx: Tx, flight: Flight) -> After:
        row = flight.row
        row.status, row.phase, row.attempt = "unwinding", "ready", 1
        row.op_host = row.op_id = row.deadline_at = None
        self._lease(tx, row)
        flight.unsettled = (flight.step,)
        return self._save(tx, flight, After(again=True))

    def _unwind(self, tx: Tx, flight: Flight) -> After:
        """Undo the step at the row's position, passing over those with nothing to undo."""
        row = flight.row
        while row.position >= 0:
            step, ended = flight.step, flight.steps.get(row.position)
            undo = getattr(step, "undo", None)
            needed = (
                undo is not None
                and not isinstance(undo, NothingToUndo)
                and ended is not None
                and (ended.state == "done" or (ended.state == "failed" and _left_something(step, ended)))
            )
            if not needed or self.probe.drops_undo(row, step):
                self._down(flight)
                continue
            self.probe.at("undo", row, step)
            if isinstance(step, Transact):
                assert undo is not None
                undo(tx, flight.run())
                return self._undone(tx, flight, step)
            if isinstance(step, Children):
                return self._undo_children(tx, flight, step)
            assert isinstance(step, Call)
            assert not isinstance(step.undo, NothingToUndo)
            asked = step.undo(tx, flight.run())
            if asked is None:
                return self._undone(tx, flight, step)
            host, operation = asked
            if not self._up(tx, host):
                row.op_host = host
                return self._undone(tx, flight, step, "undo_skipped", f"Host {host} was down.")
            return self._call(tx, flight, host, operation, "undo")
        return self._end(tx, flight, "failed")

    def _undo_children(self, tx: Tx, flight: Flight, step: Children) -> After:
        row = flight.row
        if row.phase != "waiting":
            assert not isinstance(step.undo, NothingToUndo)
            return self._start_children(tx, flight, step.undo(tx, flight.run()))
        found = journal.children(tx, row.id, row.position)
        if any(c.status not in ("finished", "failed") for c in found):
            row.wake_at = tx.now + 30 * SECOND
            return self._save(tx, flight, After())
        return self._undone(tx, flight, step)

    def _down(self, flight: Flight) -> None:
        row = flight.row
        row.position -= 1
        row.phase, row.attempt = "ready", 1
        row.op_host = row.op_id = row.deadline_at = None

    def _undone(self, tx: Tx, flight: Flight, step: Step, state: str = "undone", error: str | None = None) -> After:
        row = flight.row
        if isinstance(step, Call) and step.undone is not None and state != "undo_failed":
            step.undone(tx, flight.run())
        journal.mark_undone(tx, row.id, row.position, state, error)
        flight.steps[row.position] = msgspec.structs.replace(flight.steps[row.position], state=state, undone_at=tx.now)
        self._down(flight)
        self._lease(tx, row)
        if row.position >= 0:
            flight.unsettled = (flight.step,)
        return self._save(tx, flight, After(again=True))

    def undo_failed(self, tx: Tx, flight: Flight, error: str) -> After:
        """Try again later, in the end note it and go on with the others."""
        row = flight.row
        if row.attempt >= UNDO_ATTEMPTS:
            return self._undone(tx, flight, flight.step, "undo_failed", error)
        row.wake_at = tx.now + int(min(0.25 * 4 ** (row.attempt - 1), 30) * SECOND)
        row.attempt += 1
        row.phase, row.op_id, row.op_host = "retrying", None, None
        return self._save(tx, flight, After())

    # -- the end ------------------------------------------------------------------------------------------------

    def _end(self, tx: Tx, flight: Flight, status: str) -> After:
        row, saga = flight.row, flight.saga
        run = flight.run()
        hook = saga.finished if status == "finished" else saga.failed
        row.position = max(row.position, 0)
        entering = len(flight.unwritten) > 1  # earlier steps were finished in this transaction too
        if status == "finished":
            self._fault("finish", flight, entering=entering)
        if hook is not None:
            self._guard(lambda: hook(tx, run), entering=entering)
        flight.unsettled = (None,)
        row.status, row.phase, row.ended_at = status, "ended", tx.now
        row.wake_at = row.lease_owner = row.deadline_at = row.op_host = row.op_id = None
        after = self._save(tx, flight, After(ended=True))
        if saga.secrets:
            journal.wipe(tx, row, saga.secrets)
        if row.owns:
            successor = journal.release_owner(tx, row)
            if successor is not None:
                after.wake.append(successor)
        if row.parent_id is not None:
            journal.child_ended(tx, row)
            after.wake.append(row.parent_id)
        return after

    def _save(self, tx: Tx, flight: Flight, after: After) -> After:
        if flight.unsettled is not None:  # once, however many steps went by in this transaction
            if flight.saga.settle is not None:
                flight.saga.settle(tx, flight.run(), flight.unsettled[0])
            flight.unsettled = None
        journal.save(tx, flight.row)  # first: it finds out whether the flight is still ours
        if flight.unwritten:
            journal.insert_steps(tx, flight.unwritten)
            flight.unwritten = []
        return after


def _left_something(step: Step, failed: StepRow) -> bool:
    """A Call that was sent may have had its effect; of several children some may have finished."""
    return failed.host is not None or isinstance(step, Children)
