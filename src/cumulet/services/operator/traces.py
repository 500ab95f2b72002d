"""The record of requests: kept in batches, read for drawing, forgotten after a while.

Nothing here is truth: the record may have gaps (a killed process, a full ring), the saga journal has none.
"""

from typing import Any

from sqlalchemy import bindparam, delete, func, select

from cumulet.bus import Delivery
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND
from cumulet.kernel.trace import Note, Tracer
from cumulet.services.operator.tables import REQUEST_TRACES as T

_OF = select(T.c.process, T.c.notes).where(T.c.request_id == bindparam("request_id")).order_by(T.c.id)
_LAST = (
    select(T.c.request_id, T.c.process, T.c.summary)
    .where(T.c.summary.is_not(None))
    .order_by(T.c.id.desc())
    .limit(bindparam("limit"))
)
_TOP = select(func.max(T.c.id))
_PRUNE = delete(T).where((T.c.id <= bindparam("up_to")) | (T.c.written_at < bindparam("before")))
_SUMMARY = ("method", "path", "status", "user", "user_id", "project_id")


def write(db: Database, process: str, notes: list[Note]) -> None:
    """Keep one batch: one statement, whatever its size."""
    rows: dict[str, dict[str, Any]] = {}
    for note in notes:
        row = rows.get(note.request_id)
        if row is None:
            row = rows[note.request_id] = {
                "request_id": note.request_id, "process": process, "written_at": 0, "summary": None, "notes": [],
            }  # fmt: skip
        row["notes"].append((note.at, note.kind, note.data))
        if note.kind == "request":
            row["summary"] = {
                "at": note.at, "ended_at": note.data["ended_at"], **{name: note.data[name] for name in _SUMMARY},
            }  # fmt: skip

    def work(tx: Tx) -> None:
        for row in rows.values():
            row["written_at"] = tx.now
        tx.insert(T, list(rows.values()))

    db.write(work)


def observe(tracer: Tracer, delivery: Delivery) -> None:
    """A message that the conductor handled for a request."""
    message = delivery.message
    if delivery.topic != "conductor" or message is None:
        return
    op_id = getattr(message, "op_id", None)
    data: dict[str, Any] = {
        "name": type(message).__name__, "sender": delivery.sender, "sent_at": delivery.sent_at,
        "ended_at": delivery.ended_at,
    }  # fmt: skip
    if op_id is not None:
        if message.state == "running":
            return
        data.update(
            op=op_id, host=message.host, state=message.state, error=message.error, accepted_at=message.accepted_at,
            started_at=message.started_at, worked_until=message.ended_at,
        )  # fmt: skip
    else:
        data["sagas"] = getattr(message, "saga_ids", [])
    tracer.note(delivery.request_id, "message", delivery.received_at, **data)


def notes_of(tx: Tx, request_id: str) -> list[tuple[str, int, str, dict[str, Any]]]:
    """(process, at, kind, data)"""
    return [(process, *note) for process, notes in tx.rows(_OF, {"request_id": request_id}) for note in notes]


def last(tx: Tx, limit: int) -> list[dict[str, Any]]:
    """The newest requests first."""
    return [
        {"request_id": request_id, "process": process, **summary}
        for request_id, process, summary in tx.rows(_LAST, {"limit": limit})
    ]


def prune(tx: Tx, *, keep_rows: int, keep_hours: float) -> int:
    top = tx.scalar(_TOP)
    if top is None:
        return 0
    return tx.run(_PRUNE, {"up_to": top - keep_rows, "before": tx.now - int(keep_hours * 3600 * SECOND)})
