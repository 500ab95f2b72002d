"""Operations: taken once, journaled, run in order per object, their outcome repeated until acknowledged.

Refuses: operations of an epoch lower than the highest seen for the object, of a role this host does not have, and
everything while stopping. Fails: with ``Outcome(state="failed")`` and the driver's code; an exception that is no
DriverError is a defect, logged, and reported as ``internal``.

After a kill, what was taken and not ended is run again: bodies are idempotent.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from cumulet import logs
from cumulet.agent.contract import Accepted, AskOutcome, Execute, Operation, Outcome, Refused
from cumulet.agent.driver import OperationBody
from cumulet.agent.errors import DriverError
from cumulet.agent.runtime.keyed import KeyedExecutor
from cumulet.agent.runtime.link import Link
from cumulet.agent.runtime.store import AgentStore
from cumulet.kernel.clock import Clock

_log = logging.getLogger(__name__)
_OUTCOME_SECONDS = 3.0
T = TypeVar("T", bound=Operation)
_PROGRESS_SECONDS = 1.0


_working = threading.local()


def working_on() -> str | None:
    """The object of the operation that this thread runs."""
    return getattr(_working, "on", None)


class _Live:
    """An operation that is waiting or running."""

    __slots__ = ("accepted_at", "execute", "progress", "running", "said", "started", "started_at")

    def __init__(self, execute: Execute, accepted_at: int | None) -> None:
        self.execute = execute
        self.accepted_at = accepted_at  # None: in a former life
        self.started_at: int | None = None
        self.running = False
        self.progress: float | None = None
        self.said = float("-inf")  # when progress was last reported
        self.started = 0.0


class Operations:
    def __init__(
        self,
        host: str,
        store: AgentStore,
        link: Link,
        clock: Clock,
        bodies: dict[type[Operation], OperationBody],
        *,
        threads: int = 16,
        report: Callable[[], None],
        expect: Callable[[Sequence[Any]], None] = lambda documents: None,
        carried: Callable[[Sequence[Any]], None] = lambda documents: None,
        before_outcome: Callable[[str], None] = lambda object_id: None,
    ) -> None:
        """``report``: wakes the outbox. ``expect``: is told of the documents that come with an operation, before it
        is done; ``carried`` takes them afterwards.
        ``before_outcome``: tells what the operation made of the object, before it tells that it is done."""
        self._host = host
        self._store = store
        self._link = link
        self._clock = clock
        self._bodies = bodies
        self._wake_outbox = report
        self._expect = expect
        self._carried = carried
        self._before_outcome = before_outcome
        self._lock = threading.Lock()
        self._live: dict[str, _Live] = {}
        self._touched: set[str] = set()  # objects of operations since `watch`
        self._epochs = store.epochs()
        self._workers = KeyedExecutor("operation", threads)
        self._stopping = False

    def resume(self) -> None:
        """Run again what a former life of the agent took and did not end."""
        for execute in self._store.unfinished():
            _log.info("running %s again: the agent stopped during it", execute.op_id)
            with self._lock:
                self._live[execute.op_id] = _Live(execute, None)
            self._workers.submit(execute.object_id, lambda op_id=execute.op_id: self._run(op_id))  # type: ignore[misc]

    def busy(self) -> int:
        return self._workers.busy()

    def stop(self, seconds: float) -> None:
        """Take no more, and wait a little for what runs; what does not end is run again after the next start."""
        with self._lock:
            self._stopping = True
        if not self._workers.close(seconds):
            _log.warning("stopping with operations under way: %s", ", ".join(self._live))

    def in_flight(self) -> int:
        with self._lock:
            return len(self._live)

    def under_way(self, kind: type[T]) -> list[T]:
        """Operations of one kind that were taken and are not ended."""
        with self._lock:
            bodies = [live.execute.body for live in self._live.values()]
        return [body for body in bodies if isinstance(body, kind)]

    # -- what is asked for meanwhile ------------------------------------------------------------

    def watch(self) -> None:
        """Note from now on which objects operations are for; those that are not ended count."""
        with self._lock:
            self._touched = {live.execute.object_id for live in self._live.values()}

    def unless_touched(self, object_id: str, task: Callable[[], None]) -> bool:
        """Run this in the object's turn, unless there was an operation for it since `watch`. Whatever is asked for it
        from now on comes afterwards. False: there was one."""
        with self._lock:
            if object_id in self._touched:
                return False
            self._workers.submit(object_id, task)
            return True

    # -- messages ------------------------------------------------------------

    def execute(self, message: Execute) -> Accepted | Refused:
        if type(message.body) not in self._bodies:
            return Refused(
                op_id=message.op_id, reason=f"This host does not offer {type(message.body).__struct_config__.tag}."
            )
        with self._lock:
            if self._stopping:
                return Refused(op_id=message.op_id, reason="The agent is stopping.")
            seen = self._epochs.get(message.object_id, 0)
            if message.epoch < seen:
                return Refused(
                    op_id=message.op_id, reason=f"Epoch {message.epoch} is over; {seen} was seen for this object."
                )
            self._epochs[message.object_id] = message.epoch
            live = self._live.get(message.op_id)
            if live is not None:
                if message.epoch > live.execute.epoch:
                    live.execute = msgspec.structs.replace(live.execute, epoch=message.epoch)
                    self._store.set_epoch(message.object_id, message.epoch, self._clock.now())
                return Accepted(op_id=message.op_id)
            finished = self._store.outcome(message.op_id)
            if finished is None:
                now = self._clock.now()
                self._store.accept(message, now)
                self._live[message.op_id] = _Live(message, now)
                self._touched.add(message.object_id)
                # inside the lock: operations of one object queue up in the order in which they were taken
                self._workers.submit(message.object_id, lambda: self._run(message.op_id))
                return Accepted(op_id=message.op_id)
        # done before: say so again, after this answer
        self._workers.submit(("again", message.op_id), lambda: self._deliver_again(finished))
        return Accepted(op_id=message.op_id)

    def ask(self, message: AskOutcome) -> Outcome:
        with self._lock:
            live = self._live.get(message.op_id)
            if live is not None:
                return self._running(message.op_id, live)
            finished = self._store.outcome(message.op_id)
        return finished or Outcome(op_id=message.op_id, host=self._host, state="unknown")

    def deliver_waiting(self) -> tuple[int, int]:
        """Send what no conductor acknowledged yet, up to the first that is not taken: how many were, and how many
        still wait."""
        waiting = self._store.unacknowledged()
        sent = next((n for n, outcome in enumerate(waiting) if not self._deliver(outcome)), len(waiting))
        return sent, len(waiting) - sent

    # -- running ------------------------------------------------------------

    def _run(self, op_id: str) -> None:
        with self._lock:
            live = self._live[op_id]
            live.running, live.started, live.started_at = True, self._clock.monotonic(), self._clock.now()
            execute = live.execute
            stale = execute.epoch < self._epochs.get(execute.object_id, 0)
        with logs.request(execute.request_id):
            _working.on = execute.object_id
            if stale:
                outcome = self._failed(execute, "stale-epoch", "Another conductor took over this object.", live)
            else:
                outcome = self._body(execute, live)
            _working.on = None
            with self._lock:
                self._store.finish(outcome, self._clock.now())
                del self._live[op_id]
            self._before_outcome(execute.object_id)
            if not self._deliver(outcome, only_if_up=True):
                self._wake_outbox()

    def _body(self, execute: Execute, live: _Live) -> Outcome:
        def progress(fraction: float | None = None) -> None:
            live.progress = fraction
            now = self._clock.monotonic()
            if now - live.said >= _PROGRESS_SECONDS:
                live.said = now
                self._link.hint(self._running(execute.op_id, live))

        try:
            self._expect(execute.body.carried())
            result = self._bodies[type(execute.body)](execute.body, progress)
            self._carried(execute.body.carried())
        except DriverError as error:
            _log.warning("%s failed: %s: %s", execute.op_id, error.code, error.message)
            return self._failed(execute, error.code, error.message, live)
        except Exception as error:  # noqa: BLE001 - it is the outcome, and logged
            _log.exception("%s failed", execute.op_id)
            return self._failed(execute, "internal", f"{type(error).__name__}: {error}", live)
        data: dict[str, Any] | None = None if result is None else msgspec.to_builtins(result)
        return Outcome(
            op_id=execute.op_id,
            host=self._host,
            state="done",
            result=data,
            **self._times(live),
        )

    def _failed(self, execute: Execute, code: str, message: str, live: _Live) -> Outcome:
        return Outcome(
            op_id=execute.op_id,
            host=self._host,
            state="failed",
            error=message,
            error_code=code,
            **self._times(live),
        )

    def _times(self, live: _Live) -> dict[str, Any]:
        return {
            "seconds": round(self._clock.monotonic() - live.started, 6),
            "accepted_at": live.accepted_at,
            "started_at": live.started_at,
            "ended_at": self._clock.now(),
        }

    def _running(self, op_id: str, live: _Live) -> Outcome:
        seconds = round(self._clock.monotonic() - live.started, 6) if live.running else 0.0
        return Outcome(op_id=op_id, host=self._host, state="running", progress=live.progress, seconds=seconds)

    def _deliver_again(self, outcome: Outcome) -> None:
        if not self._deliver(outcome):
            _log.info("%s was asked for again and could not be reported yet", outcome.op_id)

    def _deliver(self, outcome: Outcome, *, only_if_up: bool = False) -> bool:
        if not self._link.send(outcome, _OUTCOME_SECONDS, only_if_up=only_if_up):
            return False
        self._store.acknowledge(outcome.op_id, self._clock.now())
        return True
