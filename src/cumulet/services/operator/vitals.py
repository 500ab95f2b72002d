"""How this process is doing, and how the others said they were: counters and rates.

A process with the database to itself (the in-process bus) is asked directly and writes nothing. Where there are
several, each writes one row every few seconds (`Pulse`), which the API that is asked reads.
"""

import logging
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import bindparam, delete, select, text

from cumulet.bus import Bus
from cumulet.db import Database, Tx
from cumulet.http import HttpApp
from cumulet.kernel.clock import SECOND
from cumulet.kernel.process import usage
from cumulet.kernel.trace import Tracer
from cumulet.saga import SagaEngine
from cumulet.services.operator.tables import PROCESSES as P

_log = logging.getLogger(__name__)
_SHORTEST_US = SECOND * 9 // 10  # rates over less would jump
SEEN_SECONDS = 15
_WRITE = text(
    "INSERT INTO processes (name, seen_at, vitals) VALUES (:name, :seen_at, :vitals)"
    " ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at, vitals = excluded.vitals"
).bindparams(bindparam("vitals", type_=P.c.vitals.type))
_OTHERS = (
    select(P.c.name, P.c.seen_at, P.c.vitals)
    .where(P.c.name != bindparam("me"), P.c.seen_at > bindparam("since"))
    .order_by(P.c.name)
)
_GONE = delete(P).where(P.c.name == bindparam("name"))
_FORGET = delete(P).where(P.c.seen_at < bindparam("before"))


class Vitals:
    """Of one process. ``started`` is now."""

    def __init__(
        self, *, tracer: Tracer, bus: Bus, sagas: SagaEngine, clock: Callable[[], int], http: HttpApp | None = None
    ) -> None:
        self.tracer = tracer
        self.bus = bus
        self.sagas = sagas
        self.http = http
        self._clock = clock
        self._lock = threading.Lock()
        self._before: dict[str, float] = {"at": clock(), "cpu": usage().cpu_seconds, "requests": 0, "in": 0, "out": 0}
        self._rates: dict[str, float] = {}

    def look(self) -> dict[str, Any]:
        used, now = usage(), self._clock()
        requests = self.http.traffic.requests if self.http else 0
        counters = {
            "at": now, "cpu": used.cpu_seconds, "requests": requests,
            "in": self.bus.traffic.handled, "out": self.bus.traffic.sent,
        }  # fmt: skip
        with self._lock:
            passed = now - self._before["at"]
            if passed >= _SHORTEST_US:
                self._rates = {k: max(v - self._before[k], 0) * SECOND / passed for k, v in counters.items()}
                self._before = counters
            rates = self._rates
        return {
            "process": self.tracer.process,
            "pid": used.pid,
            "cpu_percent": round(rates.get("cpu", 0.0) * 100, 1),
            "cpu_seconds": round(used.cpu_seconds, 2),
            "rss_mb": round(used.rss_mb, 1),
            "threads": used.threads,
            "requests": requests,
            "requests_per_second": round(rates.get("requests", 0.0), 1),
            "requests_in_flight": self.http.in_flight if self.http else 0,
            "requests_waiting": self.http.waiting() if self.http else 0,
            "messages_in_per_second": round(rates.get("in", 0.0), 1),
            "messages_out_per_second": round(rates.get("out", 0.0), 1),
            "sagas_waiting": self.sagas.waiting(),
            "notes_dropped": self.tracer.dropped,
            "errors": [
                {"at": at, "status": status, "method": method, "path": path, "request_id": request_id}
                for at, status, method, path, request_id in (self.http.traffic.errors if self.http else ())
            ],
        }


class Pulse:
    """Writes this process's vitals every few seconds."""

    def __init__(self, db: Database, vitals: Vitals, *, period_seconds: float = 5.0) -> None:
        self._db = db
        self._vitals = vitals
        self._period = period_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)
        try:
            self._db.write(lambda tx: tx.run(_GONE, {"name": self._vitals.tracer.process}))
        except Exception as error:  # noqa: BLE001 - then it is taken for one that was killed
            _log.warning("this process could not take its leave: %s", error)

    def beat(self) -> None:
        vitals = self._vitals.look()
        self._db.write(lambda tx: _write(tx, vitals))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.beat()
            except Exception as error:  # noqa: BLE001 - the database may be away; the next beat will do
                _log.warning("how this process is doing could not be written: %s", error)
            self._stopping.wait(self._period)


def _write(tx: Tx, vitals: dict[str, Any]) -> None:
    tx.run(_WRITE, {"name": vitals["process"], "seen_at": tx.now, "vitals": vitals})
    tx.run(_FORGET, {"before": tx.now - 3600 * SECOND})


def others(tx: Tx, me: str) -> list[dict[str, Any]]:
    """What the other processes last wrote, if it was lately."""
    rows = tx.rows(_OTHERS, {"me": me, "since": tx.now - SEEN_SECONDS * SECOND})
    return [{**vitals, "age_seconds": (tx.now - seen_at) / SECOND} for _, seen_at, vitals in rows]
