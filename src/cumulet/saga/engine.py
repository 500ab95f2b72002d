"""The saga engine: starts sagas, drives them on a bounded pool of threads, resumes those of dead conductors.

Owns: the journal (`saga.journal`), object ownership, the sending of operations to hosts.
Safe because every journal write says ``WHERE epoch = mine`` and raises the epoch, and agents refuse older epochs: a
conductor that was paused can neither write nor have anything done. Live because a row says when anyone may look at it
again (``wake_at``): a saga of a dead conductor is taken over when its lease ends; the same conductor started again
takes it over at once. A parked saga holds no thread.

A ``Call`` costs one transaction: the one that records an outcome also begins the next step. Its operation is sent after
the commit; whoever finds such a row later asks the host what became of it before sending it again.

Fails: with Conflict when the object is owned, Unavailable when too many sagas wait for a thread.
"""

import heapq
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from sqlalchemy.exc import IntegrityError

from cumulet import logs
from cumulet.agent.contract import AskOutcome, Execute, Operation, Outcome, Refused
from cumulet.bus import Bus, RemoteFault, register
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, Signal
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import CloudError, Unavailable
from cumulet.kernel.trace import Tracer
from cumulet.saga import journal
from cumulet.saga.intake import Intake
from cumulet.saga.journal import LeftUndone, SagaRow, Stale, StepRow
from cumulet.saga.model import Call, Saga
from cumulet.saga.stepper import Abandoned, After, Flight, Hosts, StepFailed, Stepper

_log = logging.getLogger(__name__)
_CACHED = 4000
_ASK_SECONDS = 2.0
_RETRY_SECONDS = 0.5
_REFUSALS = 20
_NOT_UNDERSTOOD = {"ValidationError", "DecodeError"}  # msgspec's
_OLD_AGENT = "its agent does not know {}: it is of an older release."


class WakeSagas(msgspec.Struct, frozen=True, kw_only=True):
    """Hint to all conductors: these sagas, or those that wait on this object, or on this host, can go on."""

    saga_ids: list[str] = []
    object_kind: str | None = None
    object_id: str | None = None


register(WakeSagas)


class SagaHistory(msgspec.Struct):
    """One saga of an object, with the steps it went through; the last may still run (``ended_at`` None)."""

    saga: SagaRow
    action: str | None
    steps: list[StepRow]
    events: dict[str, str]  # step name -> event name


class SagaEngine:
    """``name`` identifies this conductor over restarts and must be its own."""

    def __init__(
        self,
        db: Database,
        bus: Bus,
        *,
        name: str = "conductor",
        hosts: Hosts | None = None,
        threads: int = 4,
        lease_seconds: float = 15.0,
        max_waiting: int = 2000,
        scan_seconds: float = 2.0,
        tracer: Tracer | None = None,
    ) -> None:
        self.db = db
        self.tracer = tracer or Tracer()
        self.bus = bus
        self.name = name
        self.sagas: dict[tuple[str, int], Saga] = {}
        self._intake = Intake(
            self.sagas,
            self.wake_saga,
            began=self._began,
            name=name,
            lease_us=int(lease_seconds * SECOND),
            max_waiting=max_waiting,
        )
        self.stepper = Stepper(hosts, lease_seconds, self._intake.start)
        self.stepper.name = name
        self._threads = threads
        self._scan_seconds = scan_seconds
        self._state = threading.Condition()
        self._queue: deque[str | Callable[[], None]] = deque()
        self._queued: dict[str, int] = {}  # since when
        self._waited: dict[str, int] = {}  # since when those that are busy had waited
        self._busy: set[str] = set()
        self._small = 0  # tasks being done that are no drive of a saga
        self._again: set[str] = set()  # woken while busy
        self._timers: list[tuple[int, str]] = []
        self._timer_signal = Signal()
        self._cache: OrderedDict[str, Flight] = OrderedDict()
        self._unknown: set[str] = set()  # of kinds that this release does not have; told once
        self._forced: set[str] = set()  # look at the host even if it is not time
        self._refusals: dict[str, int] = {}
        self._running: list[threading.Thread] = []
        self._stopping = False
        self._abandoned = False

    # -- declaring and starting ---------------------------------------------------------------------------------

    def register(self, *sagas: Saga) -> None:
        for saga in sagas:
            key = (saga.kind, saga.version)
            if self.sagas.get(key, saga) is not saga:
                raise ValueError(f"saga {saga.kind} version {saga.version} is registered twice")
            names = [step.name for step in saga.steps]
            if not names or len(set(names)) != len(names):
                raise ValueError(f"saga {saga.kind} needs steps with names of their own")
            self.sagas[key] = saga

    @property
    def hosts(self) -> Hosts | None:
        return self.stepper.hosts

    @hosts.setter
    def hosts(self, hosts: Hosts | None) -> None:
        self.stepper.hosts = hosts

    def start(
        self,
        tx: Tx,
        saga: Saga,
        object_id: str,
        params: msgspec.Struct,
        ctx: RequestContext,
        *,
        settled: bool = False,
    ) -> str:
        """Insert a saga and take the object's slot, in the caller's transaction. Conflict if another saga owns the
        object (a preempting one waits for it; started twice, it is the same one). ``settled``: the object was just
        inserted, with the visible state that the first step gives it."""
        self._intake.admit(tx)
        return self._intake.start(tx, saga, object_id, params, ctx=ctx, settled=settled)

    def cancel(self, tx: Tx, object_kind: str, object_id: str) -> None:
        """Ask whoever owns the object to unwind at its next step."""
        found = journal.owner(tx, object_kind, object_id)
        if found is not None and found[0]:
            owner_id = found[0]
            journal.request_cancel(tx, owner_id)
            tx.after_commit(lambda: self.wake_saga(owner_id))

    # -- asking ---------------------------------------------------------------------------------------------------

    def owner(self, tx: Tx, object_kind: str, object_id: str) -> SagaRow | None:
        """The saga that owns the object now."""
        found = journal.owner(tx, object_kind, object_id)
        return journal.load(tx, found[0]) if found and found[0] else None

    def history(self, tx: Tx, object_kind: str, object_id: str) -> list[SagaHistory]:
        """All sagas of the object, newest first, each with its steps."""
        return self._histories(journal.of_object(tx, object_kind, object_id))

    def left_undone(self, tx: Tx, saga: Saga, step: str, since: int) -> list[LeftUndone]:
        """Those that failed, and whose undo of this step was skipped or failed since."""
        return journal.left_undone(tx, saga.kind, step, since)

    def made_up_for(self, tx: Tx, saga_id: str) -> None:
        """What undoing this saga left has been done since, or means nothing any more."""
        journal.made_up_for(tx, saga_id)

    def of_request(self, tx: Tx, request_id: str) -> list[SagaHistory]:
        """All sagas that a request began, with the children of theirs; the oldest first."""
        return self._histories(journal.of_request(tx, request_id))

    def _histories(self, found: list[tuple[SagaRow, list[StepRow]]]) -> list[SagaHistory]:
        result = []
        for row, steps in found:
            saga = self.sagas.get((row.kind, row.version))
            if saga is not None and row.status == "running":
                name = saga.steps[row.position].name
                steps.append(
                    StepRow(
                        row.id, row.position, name, "running", row.op_host, None, None, row.step_started_at, 0, None
                    )
                )
            events = {s.name: s.event for s in saga.steps if s.event} if saga else {}
            result.append(SagaHistory(row, saga.action if saga else None, steps, events))
        return result

    # -- waking ---------------------------------------------------------------------------------------------------

    def wake(self, object_kind: str, object_id: str) -> None:
        """Something happened to the object: sagas that wait on it look again. Inside a unit of work say
        ``tx.after_commit(lambda: engine.wake(…))``."""
        if not self._running:
            self.bus.fanout("conductor", WakeSagas(object_kind=object_kind, object_id=object_id))
            return
        self._submit(lambda: self._wake_object(object_kind, object_id))

    def _wake_object(self, object_kind: str, object_id: str) -> None:
        for saga_id in self.db.read(lambda tx: journal.active_on(tx, object_kind, object_id)):
            self.wake_saga(saga_id)

    def wake_saga(self, saga_id: str) -> None:
        if not self._running:
            if not self._stopping:
                self.bus.cast("conductor", WakeSagas(saga_ids=[saga_id]))
            return
        with self._state:
            if saga_id in self._busy:
                self._again.add(saga_id)
            elif saga_id not in self._queued:
                self._queued[saga_id] = self.db.clock.now()
                self._queue.append(saga_id)
                self._state.notify()

    def on_wake(self, message: WakeSagas) -> None:
        if not self._running:
            return  # asking everybody again would only come back
        for saga_id in message.saga_ids:
            self.wake_saga(saga_id)
        if message.object_kind is not None and message.object_id is not None:
            self.wake(message.object_kind, message.object_id)

    def host_changed(self, host: str) -> None:
        """The host came, went or started anew: look what became of the operations it has."""
        if self._running:
            self._submit(lambda: self._wake_host(host))

    def _wake_host(self, host: str) -> None:
        for saga_id in self.db.read(lambda tx: journal.called_on_host(tx, host)):
            self._forced.add(saga_id)
            self.wake_saga(saga_id)

    def _submit(self, task: Callable[[], None]) -> None:
        with self._state:
            self._queue.append(task)
            self._state.notify()

    # -- life --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start driving sagas. What an earlier run under this name left is resumed at once."""
        assert not self._running
        if self._abandoned:
            self.forget()
            self._abandoned = False
        self._stopping = False
        self._running = [
            threading.Thread(target=self._work, name=f"saga-{n}", daemon=True) for n in range(self._threads)
        ]
        self._running.append(threading.Thread(target=self._watch, name="saga-timer", daemon=True))
        self.db.write(lambda tx: journal.reclaim(tx, self.name))
        for thread in self._running:
            thread.start()

    def stop(self, wait_seconds: float = 10.0) -> None:
        """Finish the transactions under way and stop; sagas go on elsewhere, or when started again."""
        with self._state:
            self._stopping = True
            self._state.notify_all()
        self._timer_signal.set()
        for thread in self._running:
            if thread is not threading.current_thread():
                thread.join(wait_seconds)
        self._running = []

    def waiting(self) -> int:
        """Sagas and small tasks that wait for a thread here."""
        return len(self._queue)

    def forget(self) -> None:
        """While stopped: the database was replaced by another state of itself, and what is remembered of it is void."""
        assert not self._running
        with self._state:
            for known in (self._queue, self._queued, self._busy, self._again, self._timers, self._cache):
                known.clear()
            self._forced.clear()
            self._refusals.clear()

    def idle(self) -> bool:
        """True when no saga is being driven (they may be parked)."""
        with self._state:
            return not self._queue and not self._busy and not self._small

    def _work(self) -> None:
        while True:
            with self._state:
                while not self._queue and not self._stopping:
                    self._state.wait()
                if self._stopping:
                    return
                task = self._queue.popleft()
                if isinstance(task, str):
                    queued_at = self._queued.pop(task, 0)
                    if task in self._busy:
                        self._again.add(task)
                        continue
                    self._busy.add(task)
                    self._waited[task] = queued_at
                else:
                    self._small += 1
            try:
                if isinstance(task, str):
                    self._drive(task)
                else:
                    task()
            except Abandoned:
                self.abandon()
                return
            except Exception:  # noqa: BLE001 - a runner outlives any saga; the row is looked at again when its lease ends
                _log.exception("driving a saga failed")
                if isinstance(task, str):
                    self._forget(task)
                    self._alarm(task, self.db.clock.now() + 5 * SECOND)
            finally:
                with self._state:
                    if not isinstance(task, str):
                        self._small -= 1
                    else:
                        self._busy.discard(task)
                        self._waited.pop(task, None)
                        again = task in self._again
                        self._again.discard(task)
                        if again and not self._stopping:
                            self.wake_saga(task)

    def _watch(self) -> None:
        """Wake what is due: sooner by this process's own timers, all by looking into the table now and then."""
        clock = self.db.clock
        next_scan = clock.monotonic()
        while not self._stopping:
            moment, now = clock.monotonic(), clock.now()  # in this order: a jump in between makes it look again
            with self._state:
                mine = []
                while self._timers and self._timers[0][0] <= now:
                    mine.append(heapq.heappop(self._timers)[1])
                soonest = (self._timers[0][0] - now) / SECOND if self._timers else self._scan_seconds
            for saga_id in mine:
                self.wake_saga(saga_id)
            if clock.monotonic() >= next_scan:
                next_scan = clock.monotonic() + self._scan_seconds
                self._scan()
            if clock.wait_until(self._timer_signal, max(min(next_scan, moment + soonest), moment + 0.001)):
                self._timer_signal.clear()

    def _scan(self) -> None:
        try:
            found = self.db.read(lambda tx: journal.due(tx, tx.now))
        except Exception:  # noqa: BLE001 - the database may be away; the next look will do
            _log.exception("looking for sagas that are due failed")
            return
        for saga_id, _ in found:
            self.wake_saga(saga_id)

    def _alarm(self, saga_id: str, at: int) -> None:
        if at > self.db.clock.now() + int(self._scan_seconds * SECOND):
            return  # the next look into the table will find it
        with self._state:
            sooner = not self._timers or at < self._timers[0][0]
            heapq.heappush(self._timers, (at, saga_id))
        if sooner:
            self._timer_signal.set()

    # -- driving -------------------------------------------------------------------------------------------------------

    def _flight(self, saga_id: str) -> Flight | None:
        with self._state:
            cached = self._cache.get(saga_id)
        if cached is not None:
            return cached

        def work(tx: Tx) -> Flight | None:
            row = journal.load(tx, saga_id)
            if row is None or not row.active:
                return None
            saga = self.sagas.get((row.kind, row.version))
            if saga is None:
                if row.id not in self._unknown:
                    self._unknown.add(row.id)
                    _log.error("no saga %s version %d is known here: %s waits", row.kind, row.version, row.id)
                return None
            steps = {step.position: step for step in journal.load_steps(tx, saga_id)}
            return Flight(saga, row, steps, msgspec.convert(row.params, saga.params))

        flight = self.db.read(work)
        if flight is not None:
            self._note_taken(flight.row)
        return flight

    def _note_taken(self, row: SagaRow) -> None:
        now = self.db.clock.now()
        queued_at = self._waited.get(row.id) or now
        self.tracer.note(row.request_id, "taken", now, saga=row.id, queued_at=queued_at, position=row.position)

    def _began(self, flight: Flight) -> None:
        if self._running:
            self._keep(flight)
        self.wake_saga(flight.row.id)

    def _keep(self, flight: Flight) -> None:
        row = flight.row
        with self._state:
            if row.active:
                kept = self._cache.get(row.id)
                if kept is not None and kept.row.epoch > row.epoch:
                    return  # whoever moved it on was quicker to say so
                self._cache[row.id] = flight
                self._cache.move_to_end(row.id)
                if len(self._cache) > _CACHED:
                    self._cache.popitem(last=False)
            else:
                self._cache.pop(row.id, None)

    def _forget(self, saga_id: str) -> None:
        with self._state:
            self._cache.pop(saga_id, None)

    def _drive(self, saga_id: str) -> None:
        """Go on until the saga parks or ends."""
        while not self._stopping:
            flight = self._flight(saga_id)
            if flight is None:
                return
            if flight.fresh:
                flight.fresh = False
                self._note_taken(flight.row)
            with logs.request(flight.row.request_id):
                try:
                    if flight.row.phase == "called":
                        moved = self._examine(flight)
                    elif flight.row.phase == "retrying" and self.db.clock.now() < (flight.row.wake_at or 0):
                        self._alarm(saga_id, flight.row.wake_at or 0)
                        return
                    else:
                        moved = self._move(flight, lambda tx, f, hold: self.stepper.go_on(tx, f, hold=hold))
                except Stale:
                    self._forget(saga_id)
                    continue
                if moved is None or not self._follow(*moved):
                    return

    def _move(self, flight: Flight, work: Callable[[Tx, Flight, bool], After | None]) -> tuple[Flight, After] | None:
        """One transaction on a copy of the flight; a step that raises is failed in a second one. May raise Stale."""

        def attempt(step: Callable[[Tx, Flight], After | None]) -> tuple[Flight, After] | None:
            def unit(tx: Tx) -> tuple[Flight, After] | None:
                copy = flight.copy()
                copy.saga.hold(tx, copy.row.object_id)
                after = step(tx, copy)
                self._probe("before-commit", copy)
                if self._abandoned:
                    raise Abandoned
                return None if after is None else (copy, after)

            try:
                return self.db.write(unit)
            except IntegrityError as error:  # tried again, and still: a defect of the step, or of the one it enters
                raise StepFailed(error, entering=True) from error

        unwinding = flight.row.status == "unwinding"
        try:
            try:
                moved = attempt(lambda tx, f: work(tx, f, False))
            except StepFailed as failed:
                if not failed.entering:
                    raise
                moved = attempt(lambda tx, f: work(tx, f, True))
        except StepFailed as failed:
            error, code, details = _describe(failed.cause)
            moved = attempt(lambda tx, f: self._failed(tx, f, error, code, details))
        except (Unavailable, Stale):
            raise
        except Exception as error:
            if not unwinding:
                raise
            _log.exception("undoing %s of %s failed", flight.step.name, flight.row.id)
            text = str(error)
            moved = attempt(lambda tx, f: self.stepper.undo_failed(tx, f, text))
        if moved is not None:
            row = moved[0].row  # `updated_at`: when the transaction began
            self.tracer.note(row.request_id, "moved", self.db.clock.now(), saga=row.id, began=row.updated_at)
            self._probe("after-commit", moved[0])
            self._keep(moved[0])
        return moved

    def _failed(self, tx: Tx, flight: Flight, error: str, code: str, details: dict[str, Any]) -> After:
        if flight.row.status == "unwinding":
            return self.stepper.undo_failed(tx, flight, error)
        return self.stepper.fail(tx, flight, error, code, details)

    def _follow(self, flight: Flight, after: After) -> bool:
        """Do what is to be done after a commit; True if the saga can go on."""
        for other in after.wake:
            with self._state:
                kept = self._cache.get(other)
                if kept is not None and not kept.fresh:  # what this transaction wrote to its row is news
                    del self._cache[other]
            self.wake_saga(other)
        if after.send is not None:
            self._send(flight, after.send)
        elif not after.again and not after.ended and flight.row.wake_at is not None:
            self._alarm(flight.row.id, flight.row.wake_at)
        if after.ended:
            self._refusals.pop(flight.row.id, None)
            with self._state:
                self._state.notify_all()
        return after.again

    # -- hosts ---------------------------------------------------------------------------------------------------------

    def _send(self, flight: Flight, operation: Operation) -> None:
        """Ask the host. If it cannot be reached now, look again soon."""
        row = flight.row
        now = self.db.clock.now()
        if self._stopping or row.wake_at is None or now > row.wake_at:
            return  # we were asleep: by now this saga may be someone else's
        self._probe("before-send", flight)
        assert row.op_id is not None
        body: Any = operation
        message = Execute(
            op_id=row.op_id, epoch=row.epoch, object_id=row.object_id, request_id=row.request_id, body=body
        )
        reply: Any = None
        sent_at = self.db.clock.now()
        try:
            reply = self.bus.call(f"agent.{row.op_host}", message, timeout=_ASK_SECONDS)
        except (Unavailable, RemoteFault) as error:
            if isinstance(error, RemoteFault) and error.kind in _NOT_UNDERSTOOD:
                self._refused(flight, Refused(op_id=row.op_id, reason=_OLD_AGENT.format(type(operation).__name__)))
                return
            _log.info("operation %s could not be given to %s: %s", row.op_id, row.op_host, error)
            self._soon(row)
            return
        finally:
            self.tracer.note(
                row.request_id, "call", sent_at, op=row.op_id, host=row.op_host, saga=row.id,
                what=type(operation).__name__, answered_at=self.db.clock.now(),
                answer=type(reply).__name__ if reply is not None else "none",
            )  # fmt: skip
        self._probe("after-send", flight)
        if isinstance(reply, Refused):
            self._refused(flight, reply)
        else:
            self._alarm(row.id, row.wake_at)

    def _soon(self, row: SagaRow) -> None:
        self._forced.add(row.id)
        self._alarm(row.id, self.db.clock.now() + int(_RETRY_SECONDS * SECOND))

    def _refused(self, flight: Flight, refused: Refused) -> None:
        row = flight.row
        count = self._refusals[row.id] = self._refusals.get(row.id, 0) + 1
        _log.warning("%s refused %s: %s", row.op_host, row.op_id, refused.reason)
        if count < _REFUSALS:
            self._soon(row)
            return
        self._refusals.pop(row.id)
        self._apply(row.id, lambda tx, f, hold: self._give_up(tx, f, row, refused.reason))

    def _give_up(self, tx: Tx, flight: Flight, seen: SagaRow, reason: str) -> After | None:
        if flight.row.op_id != seen.op_id or flight.row.phase != "called":
            return None
        message = f"Host {seen.op_host} refused: {reason}"
        return self._failed(tx, flight, message, "refused", {"host": seen.op_host})

    def _apply(self, saga_id: str, work: Callable[[Tx, Flight, bool], After | None]) -> None:
        """Move a saga from outside its drive; what is to follow goes to the runners."""
        while True:
            with self._state:  # taken out: a runner woken meanwhile must not go by what we are about to change
                cached = self._cache.pop(saga_id, None)
            flight = cached or self._flight(saga_id)
            if flight is None:
                return
            try:
                moved = self._move(flight, work)
            except Stale:
                continue
            if moved is None and cached is not None:
                continue  # ours may be old: look into the table
            break
        if moved is None:
            return
        if self.bus.in_process:  # the host accepts its next operation at once, on the thread that reports
            self._follow_on(*moved)
        else:
            self._submit(partial(self._follow_on, *moved))

    def _follow_on(self, flight: Flight, after: After) -> None:
        with logs.request(flight.row.request_id):
            if self._follow(flight, after):
                self.wake_saga(flight.row.id)

    def outcome(self, outcome: Outcome) -> None:
        """An agent reports. On return it is in the journal (or of no interest any more) and may be forgotten there."""
        if self._stopping:
            raise Unavailable("This conductor is stopping.")
        saga_id = outcome.op_id.partition(":")[0]
        flight = self._flight(saga_id)
        if flight is None:
            return
        try:
            if outcome.state != "running":
                self._probe("outcome", flight)
            self._apply(saga_id, lambda tx, f, hold: self.stepper.outcome(tx, f, outcome, hold=hold))
        except Abandoned:
            self.abandon()
            raise Unavailable("This conductor was killed.") from None

    def _examine(self, flight: Flight) -> tuple[Flight, After] | None:
        """An operation is under way and it is time to look: ask the host what became of it."""
        row, now = flight.row, self.db.clock.now()
        forced = row.id in self._forced
        self._forced.discard(row.id)
        if not forced and row.wake_at is not None and now < row.wake_at:
            self._alarm(row.id, row.wake_at)
            return None
        assert row.op_host is not None
        assert row.op_id is not None
        assert row.deadline_at is not None
        stepper = self.stepper
        if stepper.hosts is not None and not stepper.hosts.is_up(row.op_host):
            return self._move(flight, lambda tx, f, hold: stepper.host_down(tx, f))
        late = now >= row.deadline_at
        try:
            answer: Outcome = self.bus.call(f"agent.{row.op_host}", AskOutcome(op_id=row.op_id), timeout=_ASK_SECONDS)
        except (Unavailable, RemoteFault) as error:
            if late:
                return self._stalled(flight, f"Host {row.op_host} does not answer: {error}")
            self._soon(row)
            return None
        if answer.state in ("done", "failed"):
            return self._move(flight, lambda tx, f, hold: stepper.outcome(tx, f, answer, hold=hold))
        if late:
            return self._stalled(flight, f"{flight.step.name} made no progress on host {row.op_host}.")
        if answer.state == "unknown":
            return self._move(flight, lambda tx, f, hold: stepper.resend(tx, f))
        deadline = row.deadline_at
        return self._move(flight, lambda tx, f, hold: stepper.postpone(tx, f, deadline))

    def _stalled(self, flight: Flight, message: str) -> tuple[Flight, After] | None:
        details = {"host": flight.row.op_host}
        return self._move(flight, lambda tx, f, hold: self._failed(tx, f, message, "timeout", details))

    def _probe(self, point: str, flight: Flight) -> None:
        position = min(flight.row.position, len(flight.saga.steps) - 1)
        try:
            self.stepper.probe.at(point, flight.row, flight.saga.steps[position])
        except Abandoned:
            self.abandon()
            raise

    def abandon(self) -> None:
        """For tests and chaos: stop as if killed, without writing or sending anything more. After `stop`, `run` begins
        as a new process would: with nothing but the rows."""
        self._abandoned = True
        with self._state:
            self._stopping = True
            self._state.notify_all()
        self._timer_signal.set()


def _describe(cause: Exception) -> tuple[str, str, dict[str, Any]]:
    if isinstance(cause, CloudError):
        code = str(cause.details.get("code", cause.type_name))
        return cause.message, code, {k: v for k, v in cause.details.items() if k != "code"}
    _log.error("a saga step failed by a defect", exc_info=cause)
    return "An unexpected error occurred.", "internal", {"exception": type(cause).__name__}


__all__ = ["Call", "SagaEngine", "SagaHistory", "WakeSagas"]
