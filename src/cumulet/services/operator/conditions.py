"""Conditions: what degrades the cloud, kept with first and last time seen, count and cure; each resolves itself.

Standing checks are looked at every few seconds; what an audit finds (hourly, and whenever `cumulet doctor` runs) stands
until the next one. What was found is compared with the open rows. Nothing is written when nothing changed, but for the
time last seen, once a minute. A resolved condition that comes back is the same row, its count one higher.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, update

from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, iso
from cumulet.services.operator.audit.model import ORDER, Check, Finding
from cumulet.services.operator.tables import CONDITIONS as C

_FRESH_US = 60 * SECOND
_KEPT_DAYS = 30


class ConditionRow(msgspec.Struct):
    id: str
    code: str
    severity: str
    object_kind: str
    object_id: str
    host: str | None
    message: str
    cure: str
    count: int
    first_seen: int
    last_seen: int
    resolved_at: int | None


_COLUMNS = [C.c[name] for name in ConditionRow.__struct_fields__]
_OPEN = select(*_COLUMNS).where(C.c.resolved_at.is_(None))
_EVERY = select(*_COLUMNS).order_by(C.c.last_seen.desc()).limit(1000)
_KNOWN = select(*_COLUMNS).where(C.c.id.in_(bindparam("ids", expanding=True)))
_SEEN = (
    update(C)
    .where(C.c.id == bindparam("the_id"))
    .values(
        severity=bindparam("severity"), message=bindparam("message"), cure=bindparam("cure"),
        count=bindparam("count"), first_seen=bindparam("first_seen"), last_seen=bindparam("last_seen"),
        resolved_at=None,
    )
)  # fmt: skip
_RESOLVED = update(C).where(C.c.id == bindparam("the_id")).values(resolved_at=bindparam("now"))
_FORGET = delete(C).where(C.c.resolved_at < bindparam("before"))


def find(tx: Tx, checks: Iterable[Check]) -> dict[str, Finding]:
    return {finding.id: finding for check in checks for finding in check.find(tx)}


def reconcile(db: Database, checks: Iterable[Check]) -> str | None:
    """What the standing checks say; what changed, in a few words."""
    every = list(checks)
    standing = [check for check in every if check.standing]
    audited = codes_of(check for check in every if not check.standing)
    return _record(db, lambda tx: find(tx, standing), lambda code: code not in audited)


def record(db: Database, checks: Iterable[Check], found: Iterable[Finding]) -> str | None:
    """What an audit found, which stands until the next one; what changed, in a few words."""
    audited = codes_of(check for check in checks if not check.standing)
    by_id = {one.id: one for one in found if one.code in audited}
    return _record(db, lambda tx: by_id, lambda code: code in audited)


def codes_of(checks: Iterable[Check]) -> set[str]:
    return {code for check in checks for code in (check.codes or (check.name,))}


def _record(db: Database, look: Callable[[Tx], dict[str, Finding]], mine: Callable[[str], bool]) -> str | None:
    """``mine``: of these codes what was not found is over."""

    def differ(tx: Tx) -> bool:
        return bool(_plan(tx, look(tx), mine))

    if not db.read(differ):
        return None

    def work(tx: Tx) -> tuple[int, int]:
        plan = _plan(tx, look(tx), mine)
        began = sum(_write(tx, one, finding) for one, finding in plan if finding is not None)
        ended = [one for one, finding in plan if finding is None and one is not None]
        for one in ended:
            tx.run(_RESOLVED, {"the_id": one.id, "now": tx.now})
        tx.run(_FORGET, {"before": tx.now - _KEPT_DAYS * 86_400 * SECOND})
        return began, len(ended)

    began, ended = db.write(work)
    return f"{began} began, {ended} resolved" if began or ended else None


def _plan(
    tx: Tx, found: dict[str, Finding], mine: Callable[[str], bool]
) -> list[tuple[ConditionRow | None, Finding | None]]:
    """(row, finding) of what is to be written: new, come back, changed or not said for a while; (row, None): over."""
    rows = [row for row in (ConditionRow(*row) for row in tx.rows(_OPEN)) if mine(row.code)]
    still = {row.id: row for row in rows}
    unknown = [one for one in found if one not in still]
    if unknown:
        still.update((row[0], ConditionRow(*row)) for row in tx.rows(_KNOWN, {"ids": unknown}))
    plan: list[tuple[ConditionRow | None, Finding | None]] = []
    for one, finding in found.items():
        row = still.get(one)
        if (
            row is None
            or row.resolved_at is not None
            or row.severity != finding.severity
            or tx.now - row.last_seen > _FRESH_US
        ):
            plan.append((row, finding))
    plan += [(row, None) for row in rows if row.id not in found]
    return plan


def _write(tx: Tx, row: ConditionRow | None, finding: Finding) -> int:
    """1 if it began now."""
    if row is None:
        new = ConditionRow(
            finding.id, finding.code, finding.severity, finding.object_kind, finding.object_id, finding.host,
            finding.message, finding.cure, 1, tx.now, tx.now, None,
        )  # fmt: skip
        tx.insert(C, msgspec.structs.asdict(new))
        return 1
    again = row.resolved_at is not None
    tx.run(
        _SEEN,
        {
            "the_id": row.id, "severity": finding.severity, "message": finding.message, "cure": finding.cure,
            "count": row.count + again, "first_seen": tx.now if again else row.first_seen, "last_seen": tx.now,
        },
    )  # fmt: skip
    return int(again)


def listing(tx: Tx, *, resolved: bool) -> list[dict[str, Any]]:
    """The worst first; with ``resolved`` also what is over, the newest first."""
    rows = [ConditionRow(*row) for row in tx.rows(_EVERY if resolved else _OPEN)]
    rows.sort(key=lambda row: (row.resolved_at is not None, ORDER.get(row.severity, 9), -row.last_seen, row.id))
    return [
        {
            **msgspec.structs.asdict(row),
            "first_seen": iso(row.first_seen),
            "last_seen": iso(row.last_seen),
            "resolved_at": iso(row.resolved_at),
        }
        for row in rows
    ]
