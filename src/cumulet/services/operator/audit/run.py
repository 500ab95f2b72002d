"""Running checks when an operator asks, and repairing what they find, one by one.

A repair that fails is told and the others go on. What was repaired is looked for once more by the repair itself, in the
unit of work that repairs: a finding that is over by then is not touched.
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from cumulet.db import Database
from cumulet.kernel.errors import CloudError
from cumulet.services.operator.audit.model import Check, Finding, worst_first

_log = logging.getLogger(__name__)


def find(db: Database, checks: Sequence[Check]) -> list[tuple[Check, Finding]]:
    """Each check on a view of its own: a long audit holds up nobody."""
    for prepare in dict.fromkeys(check.prepare for check in checks if check.prepare is not None):
        prepare()
    found: dict[str, tuple[Check, Finding]] = {}
    for check in checks:
        for finding in db.read(lambda tx, c=check: list(c.find(tx))):  # type: ignore[misc]
            found.setdefault(finding.id, (check, finding))
    order = {one.id: number for number, one in enumerate(worst_first(finding for _, finding in found.values()))}
    return sorted(found.values(), key=lambda pair: order[pair[1].id])


def told(check: Check, finding: Finding) -> dict[str, Any]:
    return {
        "id": finding.id, **msgspec.structs.asdict(finding), "repairable": check.repair is not None,
        "repaired_by": check.repaired_by, "repaired": None, "repair_error": None,
    }  # fmt: skip


def repair(check: Check, finding: Finding, entry: dict[str, Any]) -> None:
    if check.repair is None:
        return
    try:
        entry["repaired"] = check.repair(finding) or "it was over by itself"
    except CloudError as error:
        entry["repair_error"] = error.message
    except Exception as error:  # noqa: BLE001 - told, logged, and the others are repaired all the same
        _log.exception("repairing %s failed", finding.id)
        entry["repair_error"] = f"{type(error).__name__}: {error}"
    else:
        _log.warning("an operator had %s repaired: %s: %s", finding.id, finding.message, entry["repaired"])
