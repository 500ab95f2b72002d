"""How a check is declared. One registry (`OperatorService.checks`) serves conditions, `cumulet doctor`
and whoever else asks.

A check looks and never changes. ``standing`` checks are cheap enough to run every few seconds and become conditions
(warnings that resolve themselves); the others run when an operator asks. A finding names one object; the same object
found again by the same check is the same finding (`Finding.id`).

A repair is the operator's explicit word. It looks again before it acts, in its own unit of work, and answers what it
did in a few words; None: there was nothing to do any more. It may raise a `kernel.errors.CloudError`, which is told.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from cumulet.db import Tx

Severity = Literal["info", "warning", "error"]
ORDER = {"error": 0, "warning": 1, "info": 2}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """``code``: the check's name, or one of the names it says it finds."""

    code: str
    severity: Severity
    object_kind: str
    object_id: str
    message: str
    cure: str
    host: str | None = None
    details: dict[str, Any] = {}

    @property
    def id(self) -> str:
        digest = hashlib.blake2b(f"{self.object_kind}\0{self.object_id}\0{self.host or ''}".encode(), digest_size=6)
        return f"{self.code}-{digest.hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """``find(tx)``: what is wrong now, from the control plane's rows. ``repair(finding)``: see above; None: for people
    to repair, as the finding's cure says. ``codes``: what it finds, if not what its name says. ``prepare`` is called
    before, on the same thread and outside of any unit of work; once for all checks that have the same."""

    name: str
    looks_at: str
    find: Callable[[Tx], Iterable[Finding]]
    repair: Callable[[Finding], str | None] | None = None
    repaired_by: str = ""
    standing: bool = False
    prepare: Callable[[], object] | None = None
    codes: tuple[str, ...] = field(default=())


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda one: (ORDER[one.severity], one.code, one.object_id))
