"""The state of the moment, for `cumulet top`: rows counted, memory looked at, nothing changed."""

from typing import Any

from sqlalchemy import bindparam, case, func, select

from cumulet.conductor import HostRow
from cumulet.db import Tx
from cumulet.kernel.clock import SECOND
from cumulet.reconcile import ReconcilerRow
from cumulet.saga.tables import SAGAS

_ALIVE = ("queued", "running", "unwinding")
_BY_KIND = (
    select(
        SAGAS.c.kind,
        SAGAS.c.status,
        SAGAS.c.phase,
        func.count(),
        func.min(SAGAS.c.created_at),
        func.min(SAGAS.c.deadline_at),
        func.sum(case((SAGAS.c.deadline_at < bindparam("now"), 1), else_=0)),
    )
    .where(SAGAS.c.status.in_(_ALIVE))
    .group_by(SAGAS.c.kind, SAGAS.c.status, SAGAS.c.phase)
    .order_by(SAGAS.c.kind)
)
_STATES = {"waiting": "parked", "called": "called", "ready": "ready", "retrying": "retrying"}


def sagas(tx: Tx) -> list[dict[str, Any]]:
    """One entry per kind: how many run (``ready``: wait for a thread or have one; ``called``: for a host; ``parked``:
    for something to come true; ``unwinding``; ``queued``: behind the owner), the oldest, the nearest deadline."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind, status, phase, count, oldest, deadline, overdue in tx.rows(_BY_KIND, {"now": tx.now}):
        one = kinds.setdefault(
            kind,
            {"kind": kind, "total": 0, "ready": 0, "called": 0, "parked": 0, "retrying": 0, "unwinding": 0, "queued": 0,
             "oldest_seconds": 0.0, "deadline_in_seconds": None, "overdue": 0},
        )  # fmt: skip
        one["total"] += count
        one[status if status != "running" else _STATES.get(phase, "ready")] += count
        one["oldest_seconds"] = max(one["oldest_seconds"], (tx.now - oldest) / SECOND)
        if deadline is not None:
            nearest = (deadline - tx.now) / SECOND
            one["deadline_in_seconds"] = min(nearest, one["deadline_in_seconds"] or nearest)
        one["overdue"] += int(overdue or 0)
    return sorted(kinds.values(), key=lambda one: (-one["overdue"], -one["total"], one["kind"]))


def host(row: HostRow, now: int) -> dict[str, Any]:
    resources = row.resources
    return {
        "name": row.name,
        "up": row.up,
        "roles": row.roles,
        "beat_age_seconds": (now - row.seen_at) / SECOND,
        "operations": resources.operations,
        "servers": resources.running_vms,
        "memory_mb": resources.memory_mb,
        "memory_mb_used": resources.memory_mb_used,
        "local_gb": resources.local_gb,
        "local_gb_used": resources.local_gb_used,
        "clock_ahead_ms": resources.clock_ahead_ms,
        "agent": {"pid": resources.pid, "cpu_seconds": resources.cpu_seconds, "rss_mb": resources.rss_mb},
        "warnings": len(row.warnings),
    }


def reconciler(row: ReconcilerRow, now: int) -> dict[str, Any]:
    took = None
    if row.started_at is not None and row.ended_at is not None and row.ended_at >= row.started_at:
        took = (row.ended_at - row.started_at) / SECOND
    return {
        "name": row.name,
        "status": row.status,
        "ago_seconds": None if row.started_at is None else (now - row.started_at) / SECOND,
        "seconds": took,
        "next_in_seconds": (row.next_at - now) / SECOND if row.next_at else None,
        "runs": row.runs,
        "failures": row.failures,
        "outcome": row.error or row.summary or row.status,
    }
