"""`OperatorService`: answers ``cumulet status``, ``doctor``, ``explain`` and ``bench``.

Owns nothing; reads the journal, the host registry, the documents and the reconcilers' last words. Asking a host for
its XML may fail without failing the story.
"""

import os
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import bindparam, func, select

from cumulet import __version__
from cumulet.agent.contract import Answer, DomainXml, Query
from cumulet.conductor import Desired, HostRegistry
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, iso
from cumulet.kernel.errors import NotFound, Unavailable
from cumulet.kernel.process import cpu_seconds, pss_kib, started_at
from cumulet.reconcile import ReconcilerRow
from cumulet.saga import SagaEngine, SagaHistory
from cumulet.saga.tables import SAGAS
from cumulet.services.hosts.public import HostsService
from cumulet.services.operator import conditions, explain, top, traces
from cumulet.services.operator.audit import Check
from cumulet.services.operator.audit import run as audit
from cumulet.services.operator.sequence import sequence
from cumulet.services.operator.vitals import Vitals, others

_COUNTS = select(SAGAS.c.status, func.count()).where(SAGAS.c.ended_at.is_(None)).group_by(SAGAS.c.status)
_KEPT_ROWS, _KEPT_HOURS = 20_000, 72.0  # of the record of requests
_OVERDUE = (
    select(SAGAS.c.kind, SAGAS.c.object_id, SAGAS.c.position, SAGAS.c.deadline_at)
    .where(SAGAS.c.ended_at.is_(None), SAGAS.c.deadline_at < bindparam("now"))
    .limit(100)
)


class OperatorService:
    """``find_server(tx, id)`` answers a compute server row (deleted ones too) or None, ``history_of_server(tx, id)``
    the sagas that worked on it."""

    def __init__(
        self,
        *,
        db: Database,
        sagas: SagaEngine,
        hosts: HostRegistry,
        desired: Desired,
        find_server: Callable[[Tx, str], Any],
        history_of_server: Callable[[Tx, str], list[SagaHistory]],
        ask: Callable[[str, Query], Answer],
        reconcilers: Callable[[Tx], list[ReconcilerRow]],
        bus_kind: str,
        vitals: Vitals,
        checks: Sequence[Check],
        machines: HostsService,
    ) -> None:
        self.db = db
        self.sagas = sagas
        self.hosts = hosts
        self.desired = desired
        self.find_server = find_server
        self.history_of_server = history_of_server
        self.ask = ask
        self.reconcilers = reconcilers
        self.bus_kind = bus_kind
        self.vitals = vitals
        self.checks = list(checks)
        self._audited = conditions.codes_of(check for check in self.checks if not check.standing)
        self.tracer = vitals.tracer
        self.machines = machines

    def status(self) -> dict[str, Any]:
        return self.db.read(self._status)

    def _status(self, tx: Tx) -> dict[str, Any]:
        hosts = [
            {
                "name": host.name,
                "roles": host.roles,
                "up": host.up,
                "disabled": host.disabled,
                "last_seen": iso(host.seen_at),
                "virt_type": host.virt_type,
                "mechanism": host.mechanism,
                "servers": host.resources.running_vms,
                "memory_mb": host.resources.memory_mb,
                "memory_mb_used": host.resources.memory_mb_used,
                "warnings": host.warnings,
            }
            for host in self.hosts.list(tx)
        ]
        overdue = [
            {"kind": kind, "object_id": object_id, "step": position, "seconds": (tx.now - deadline) / SECOND}
            for kind, object_id, position, deadline in tx.rows(_OVERDUE, {"now": tx.now - 30 * SECOND})
        ]
        failing = [
            {"host": host, "kind": kind, "object_id": object_id, "error": error}
            for host, kind, object_id, _generation, _applied, error in self.desired.behind(tx)
            if error
        ]
        return {
            "version": __version__,
            "database": "postgresql" if self.db.is_postgres else "sqlite",
            "bus": self.bus_kind,
            "hosts": hosts,
            "sagas": {row[0]: row[1] for row in tx.rows(_COUNTS)},
            "reconcilers": [_reconciler(row) for row in self.reconcilers(tx)],
            "overdue": overdue,
            "failing_documents": failing,
            "conditions": conditions.listing(tx, resolved=False),
        }

    def process(self, *, memory: bool) -> dict[str, Any]:
        """The process that answers: others of the cloud speak for themselves. ``memory``: costs milliseconds."""
        pid = os.getpid()
        return {
            "pid": pid,
            "started_at": iso(int(started_at(pid) * SECOND)),
            "cpu_seconds": round(cpu_seconds(pid), 6),
            "pss_bytes": pss_kib(pid) * 1024 if memory else None,
            "threads": threading.active_count(),
            "statements": self.db.statements,
        }

    def top(self) -> dict[str, Any]:
        """The state of the moment."""
        me = self.vitals.look()
        queues = {f"messages for {topic}": count for topic, count in self.vitals.bus.waiting().items()}

        def look(tx: Tx) -> dict[str, Any]:
            kinds = top.sagas(tx)
            processes = [{**me, "age_seconds": 0.0}, *others(tx, me["process"])]
            queues["requests for a thread"] = sum(one["requests_waiting"] for one in processes)
            queues["sagas for a thread"] = sum(one["sagas_waiting"] for one in processes)
            queues["hosts' operations"] = sum(row.resources.operations for row in self.hosts.list(tx))
            errors = sorted((e for one in processes for e in one.pop("errors")), key=lambda e: -e["at"])
            return {
                "at": tx.now,
                "version": __version__,
                "database": "postgresql" if self.db.is_postgres else "sqlite",
                "bus": self.bus_kind,
                "processes": processes,
                "queues": queues,
                "sagas": kinds,
                "hosts": [top.host(row, tx.now) for row in self.hosts.list(tx)],
                "reconcilers": [top.reconciler(row, tx.now) for row in self.reconcilers(tx)],
                "errors": errors[:20],
            }

        return self.db.read(look)

    # -- conditions -----------------------------------------------------------------------------------------------

    def reconcile_conditions(self) -> str | None:
        return conditions.reconcile(self.db, self.checks)

    def conditions(self, *, resolved: bool) -> list[dict[str, Any]]:
        return self.db.read(lambda tx: conditions.listing(tx, resolved=resolved))

    # -- audit ----------------------------------------------------------------------------------------------------

    def describe_checks(self) -> list[dict[str, Any]]:
        return [
            {"name": check.name, "looks_at": check.looks_at, "standing": check.standing,
             "codes": list(check.codes or (check.name,)), "repaired_by": check.repaired_by or None}
            for check in self.checks
        ]  # fmt: skip

    def audit(self, *, fix: bool, only: Collection[str] | None = None) -> dict[str, Any]:
        """Run every check now. ``fix``: repair what can be; ``only``: of these findings, or of what has these codes."""
        found = audit.find(self.db, self.checks)
        entries = []
        for check, finding in found:
            entry = audit.told(check, finding)
            if fix and (only is None or finding.id in only or finding.code in only):
                audit.repair(check, finding, entry)
            entries.append(entry)
        left = [finding for (_, finding), entry in zip(found, entries, strict=True) if not entry["repaired"]]
        conditions.record(self.db, self.checks, left)
        return {"checks": len(self.checks), "findings": entries}

    def audit_now(self) -> str:
        """The reconciler's: what is found becomes conditions."""
        found = [one for one in self.audit(fix=False)["findings"] if one["code"] in self._audited]
        return f"{len(found)} found" if found else "nothing is wrong"

    # -- requests -------------------------------------------------------------------------------------------------

    def requests(self, limit: int) -> list[dict[str, Any]]:
        """The last that changed something or failed, the newest first."""
        self.tracer.flush()
        return self.db.read(lambda tx: traces.last(tx, limit))

    def explain_request(self, request_id: str) -> dict[str, Any]:
        """The course of a request. NotFound if nothing is known of it (it changed nothing, or was long ago)."""
        self.tracer.flush()
        told, history = self.db.read(
            lambda tx: (traces.notes_of(tx, request_id), self.sagas.of_request(tx, request_id))
        )
        if not told and not history:
            raise NotFound(f"Nothing is known of request {request_id}: it changed nothing, or was long ago.")
        return sequence(request_id, told, [(one.saga, one.steps) for one in history])

    def prune_traces(self) -> str:
        return f"{self.db.write(lambda tx: traces.prune(tx, keep_rows=_KEPT_ROWS, keep_hours=_KEPT_HOURS))} forgotten"

    # -- servers --------------------------------------------------------------------------------------------------

    def server(self, server_id: str) -> Any:
        """The row, deleted or not. NotFound."""
        row = self.db.read(lambda tx: self.find_server(tx, server_id))
        if row is None:
            raise NotFound(f"Instance {server_id} could not be found.")
        return row

    def explain_server(self, row: Any, *, hosts: bool, xml: bool) -> dict[str, Any]:
        """``hosts``: the caller may know hosts and XML."""
        history = self.db.read(lambda tx: self.history_of_server(tx, row.id))
        story: dict[str, Any] = {
            "server": {
                "id": row.id,
                "name": row.name,
                "status": row.status,
                "vm_state": row.vm_state,
                "task_state": row.task_state,
                "host": row.host if hosts else None,
                "instance_name": row.instance_name if hosts else None,
                "vcpus": row.vcpus,
                "memory_mb": row.memory_mb,
                "root_gb": row.root_gb,
                "project_id": row.project_id,
                "created_at": iso(row.created_at),
                "deleted_at": iso(row.deleted_at),
            },
            "operations": explain.operations(history, row, hosts=hosts),
            "xml": None,
            "xml_error": None,
        }
        if xml and hosts and row.host and not row.deleted_at:
            try:
                answer = self.ask(row.host, DomainXml(server_id=row.id, instance_name=row.instance_name))
                story["xml"], story["xml_error"] = answer.text, answer.error
            except Unavailable as error:
                story["xml_error"] = error.message
        return story


def _reconciler(row: ReconcilerRow) -> dict[str, Any]:
    took = None
    if row.started_at is not None and row.ended_at is not None and row.ended_at >= row.started_at:
        took = (row.ended_at - row.started_at) / SECOND
    return {
        "name": row.name,
        "last_run": iso(row.started_at),
        "seconds": took,
        "runs": row.runs,
        "failures": row.failures,
        "outcome": row.error or row.summary or row.status,
        "error": row.error if row.status != "ok" else None,
    }
