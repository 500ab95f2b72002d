"""Runs reconcilers: functions without arguments that make true again what must be true, by period and by signal.

Each must be idempotent: it may run twice at once (a conductor whose lease ended while it ran) and may be killed
anywhere. A lease keeps conductors from all doing the same; it is an economy, not a lock. A run that raises is noted,
logged and tried again soon, then later and later up to the period: what was away for a moment is not wrong for long.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from sqlalchemy import bindparam, or_, select, text, update

from cumulet.bus import Bus, register
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, Signal
from cumulet.kernel.errors import CloudError
from cumulet.reconcile.tables import RECONCILERS as R

_log = logging.getLogger(__name__)


class SignalReconciler(msgspec.Struct, frozen=True):
    """Hint to all conductors: run this soon."""

    name: str


register(SignalReconciler)


class ReconcilerRow(msgspec.Struct):
    """What `cumulet status` shows."""

    name: str
    lease_owner: str | None
    lease_until: int
    next_at: int
    status: str
    summary: str | None
    error: str | None
    started_at: int | None
    ended_at: int | None
    runs: int
    failures: int


_ALL = select(*[R.c[name] for name in ReconcilerRow.__struct_fields__]).order_by(R.c.name)
_DECLARE = text(
    "INSERT INTO reconcilers (name, lease_until, next_at, status, runs, failures)"
    " VALUES (:name, 0, 0, 'new', 0, 0) ON CONFLICT (name) DO NOTHING"
)
_CLAIM = (
    update(R)
    .where(
        R.c.name == bindparam("the_name"),
        or_(R.c.lease_until <= bindparam("now"), R.c.lease_owner == bindparam("owner")),
        or_(R.c.next_at <= bindparam("now"), bindparam("signalled") == 1),
    )
    .values(
        lease_owner=bindparam("owner"), lease_until=bindparam("until"), status="running", started_at=bindparam("now")
    )
)
_WHEN = select(R.c.next_at, R.c.lease_until).where(R.c.name == bindparam("the_name"))
_DONE = (
    update(R)
    .where(R.c.name == bindparam("the_name"), R.c.lease_owner == bindparam("owner"))
    .values(
        lease_until=0,
        next_at=bindparam("next"),
        status=bindparam("status"),
        summary=bindparam("summary"),
        error=bindparam("error"),
        ended_at=bindparam("now"),
        runs=R.c.runs + 1,
        failures=R.c.failures + bindparam("failed"),
    )
)


_FIRST_RETRY_US = 5 * SECOND


@dataclass
class _Reconciler:
    name: str
    run: Callable[[], str | None]
    period_us: int
    due: int = 0
    at_once: bool = False  # signalled by someone, whatever the period
    failed: int = 0  # so many times on end

    def pause_us(self) -> int:
        """Until the next run."""
        if not self.failed:
            return self.period_us
        return min(self.period_us, _FIRST_RETRY_US << min(self.failed - 1, 20))


class Reconcilers:
    """``name`` is this conductor's. Functions answer a short summary for people, or None."""

    def __init__(self, db: Database, bus: Bus, *, name: str = "conductor", lease_seconds: float = 300) -> None:
        self.db = db
        self.bus = bus
        self.name = name
        self._lease_us = int(lease_seconds * SECOND)
        self._known: dict[str, _Reconciler] = {}
        self._signal = Signal()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._works = False

    def register(
        self, name: str, run: Callable[[], str | None], *, period_seconds: float, first_seconds: float = 0.0
    ) -> None:
        """``first_seconds``: after a start, not before that."""
        if name in self._known:
            raise ValueError(f"reconciler {name} is registered twice")
        first = int(first_seconds * SECOND)
        due = self.db.clock.now() + first if first else 0
        self._known[name] = _Reconciler(name, run, int(period_seconds * SECOND), due)

    def signal(self, name: str) -> None:
        """Run it soon, here or on another conductor. In a unit of work: ``tx.after_commit(lambda: …signal(…))``."""
        if self._thread is None:
            self.bus.cast("conductor", SignalReconciler(name))
        else:
            self.on_signal(SignalReconciler(name))

    def on_signal(self, message: SignalReconciler) -> None:
        found = self._known.get(message.name)
        if found is not None:
            found.at_once = True
            self._signal.set()

    def busy(self) -> bool:
        """Does one run, or is one to run now?"""
        now = self.db.clock.now()
        return self._works or any(one.at_once or one.due <= now for one in self._known.values())

    def status(self, tx: Tx) -> list[ReconcilerRow]:
        return [ReconcilerRow(*row) for row in tx.rows(_ALL)]

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._stopping.clear()
        now = self.db.clock.now()
        for one in self._known.values():
            one.due = min(one.due, now + one.period_us)  # a clock may have been set back

        def declare(tx: Tx) -> None:
            for name in self._known:
                tx.run(_DECLARE, {"name": name})

        self.db.write(declare)
        self._thread = threading.Thread(target=self._loop, name="reconcilers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._signal.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def _loop(self) -> None:
        clock = self.db.clock
        while not self._stopping.is_set():
            now = clock.now()
            for one in self._known.values():
                if not self._stopping.is_set() and (one.at_once or one.due <= now):
                    self._works = True
                    self.run_now(one.name)
            self._works = False
            moment, now = clock.monotonic(), clock.now()  # in this order: a jump in between makes it look again
            soonest = min((one.due for one in self._known.values()), default=now + 60 * SECOND)
            if clock.wait_until(self._signal, moment + max((soonest - now) / SECOND, 0.05)):
                self._signal.clear()

    def run_now(self, name: str) -> bool:
        """One run under the lease, on this thread; False if another conductor has it or it is not due."""
        one = self._known[name]
        signalled, one.at_once = one.at_once, False
        now = self.db.clock.now()
        one.due = now + one.period_us
        claim = {
            "the_name": name, "owner": self.name, "now": now, "until": now + self._lease_us,
            "signalled": int(signalled),
        }  # fmt: skip
        try:
            if self.db.write(lambda tx: tx.run(_CLAIM, claim)) != 1:
                one.due = min(one.due, self._when(name, now))
                return False
            self._run(one)
        except Exception:  # noqa: BLE001 - the database may be away; the next period will do
            _log.exception("reconciler %s could not run", name)
        return True

    def _when(self, name: str, now: int) -> int:
        """When it may be ours: at its time, or when the lease of another conductor that runs it has ended."""
        next_at, lease_until = self.db.read(lambda tx: tx.first(_WHEN, {"the_name": name})) or (now, now)
        return max(next_at, lease_until, now)

    def _run(self, one: _Reconciler) -> None:
        summary: str | None = None
        error: str | None = None
        try:
            summary = one.run()
        except CloudError as failure:  # something it needs is away, or says no
            _log.warning("reconciler %s failed: %s", one.name, failure)
            error = f"{type(failure).__name__}: {failure}"
        except Exception as failure:  # noqa: BLE001 - it is noted for people, and logged
            _log.exception("reconciler %s failed", one.name)
            error = f"{type(failure).__name__}: {failure}"
        one.failed = 0 if error is None else one.failed + 1
        now = self.db.clock.now()
        one.due = now + one.pause_us()
        values = {
            "the_name": one.name, "owner": self.name, "now": now, "next": one.due,
            "status": "ok" if error is None else "error", "summary": summary, "error": error,
            "failed": int(error is not None),
        }  # fmt: skip
        self.db.write(lambda tx: tx.run(_DONE, values))
