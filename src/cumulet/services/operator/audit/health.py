"""Standing checks: what degrades the running cloud. Each is a statement or two; together they run every few seconds."""

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from sqlalchemy import bindparam, func, select, text

from cumulet.conductor import Desired, HostRegistry, HostRow
from cumulet.db import Tx
from cumulet.kernel import pki
from cumulet.kernel.clock import SECOND, iso
from cumulet.reconcile import Reconcilers
from cumulet.saga.tables import SAGA_STEPS, SAGAS
from cumulet.services.hosts.tables import HOST_AUTHORITY, HOST_CERTIFICATES
from cumulet.services.operator.audit.model import Check, Finding, Severity
from cumulet.services.operator.tables import PROCESSES

_ACTIVE = ("running", "unwinding")
_OVERDUE = (
    select(SAGAS.c.id, SAGAS.c.kind, SAGAS.c.object_kind, SAGAS.c.object_id, SAGAS.c.deadline_at, SAGAS.c.request_id)
    .where(SAGAS.c.status.in_(_ACTIVE), SAGAS.c.deadline_at < bindparam("before"))
    .limit(100)
)
_UNDONE_BADLY = (
    select(
        SAGAS.c.kind, SAGAS.c.object_kind, SAGAS.c.object_id, SAGAS.c.request_id,
        SAGA_STEPS.c.saga_id, SAGA_STEPS.c.name, SAGA_STEPS.c.state, SAGA_STEPS.c.host, SAGA_STEPS.c.error,
        SAGA_STEPS.c.undone_at,
    )
    .join(SAGAS, SAGAS.c.id == SAGA_STEPS.c.saga_id)
    # as in the index, word for word: else it is not used
    .where(text("saga_steps.state IN ('undo_skipped', 'undo_failed')"), SAGA_STEPS.c.undone_at > bindparam("since"))
    .limit(200)
)  # fmt: skip
_CERTIFICATES = (  # the newest of each host that still may come
    select(HOST_CERTIFICATES.c.host, func.max(HOST_CERTIFICATES.c.issued_at), func.max(HOST_CERTIFICATES.c.expires_at))
    .where(HOST_CERTIFICATES.c.revoked_at.is_(None))
    .group_by(HOST_CERTIFICATES.c.host)
    .having(func.max(HOST_CERTIFICATES.c.expires_at) < bindparam("before"))
)
_AUTHORITY = select(HOST_AUTHORITY.c.created_at).where(HOST_AUTHORITY.c.created_at < bindparam("before"))
_WAITING = select(func.count()).where(SAGAS.c.status.in_(_ACTIVE), SAGAS.c.phase == "ready")
_SILENT = select(PROCESSES.c.name, PROCESSES.c.seen_at).where(PROCESSES.c.seen_at < bindparam("before"))
_LATE_SECONDS = 30
_DISK_WARNING, _DISK_ERROR = 0.90, 0.97
_CLOCK_MS = 2000
_CERTIFICATE_DAYS = 21
_AUTHORITY_DAYS = 2 * 365
_SILENT_SECONDS = 30
_RECONCILER_LATE_SECONDS = 600
_REMEMBERED_DAYS = 7
_NOT_APPLIED_SECONDS = 300


class Health:
    """``max_waiting``: how many sagas may wait before requests are refused."""

    def __init__(self, *, hosts: HostRegistry, desired: Desired, reconcilers: Reconcilers, max_waiting: int) -> None:
        self.hosts = hosts
        self.desired = desired
        self.reconcilers = reconcilers
        self.max_waiting = max_waiting
        self._read: WeakKeyDictionary[Tx, list[HostRow]] = WeakKeyDictionary()

    def checks(self) -> list[Check]:
        def check(name: str, looks_at: str, find: object, *codes: str) -> Check:
            return Check(name=name, looks_at=looks_at, find=find, standing=True, codes=codes)  # type: ignore[arg-type]

        return [
            check("host-down", "heartbeats", self.host_down, "host-down", "host-forced-down"),
            check("agent-warning", "what agents say of their hosts", self.agent_warnings),
            check("disk-nearly-full", "disks of hosts", self.disks),
            check("clock-skew", "clocks of hosts", self.clocks),
            check("certificate-near-expiry", "certificates of hosts", self.certificates, "certificate-near-expiry",
                  "certificate-expired"),
            check("authority-near-expiry", "the authority of hosts", self.authority),
            check("saga-overdue", "sagas past their deadline", self.overdue),
            check("undo-incomplete", "steps whose undo was skipped or failed", self.undone_badly),
            check("backlog-full", "sagas that wait for a thread", self.backlog),
            check("reconciler-failing", "reconcilers", self.failing, "reconciler-failing", "reconciler-late"),
            check("document-failing", "documents hosts are to have", self.documents, "document-failing",
                  "document-late"),
            check("process-silent", "processes of the control plane", self.silent),
        ]  # fmt: skip

    def _hosts(self, tx: Tx) -> list[HostRow]:
        """Read once in a unit of work, whatever the number of checks."""
        found = self._read.get(tx)
        if found is None:
            found = self._read[tx] = self.hosts.list(tx)
        return found

    # -- hosts ----------------------------------------------------------------------------------------------------

    def host_down(self, tx: Tx) -> Iterator[Finding]:
        for host in self._hosts(tx):
            if host.up:
                continue
            if host.forced_down:
                yield self._of_host(
                    host, "host-forced-down", "info", f"Host {host.name} was forced down by an operator.",
                    "once it is sound again: openstack compute service set --up HOST nova-compute",
                )  # fmt: skip
            else:
                yield self._of_host(
                    host, "host-down", "error",
                    f"Host {host.name} was last heard of at {iso(host.seen_at)}. Its servers may run on.",
                    f"look at {host.name}: is it running, does it reach the message queue; cumulet up starts its agent",
                )  # fmt: skip

    def agent_warnings(self, tx: Tx) -> Iterator[Finding]:
        for host in self._hosts(tx):
            if not host.up:
                continue  # what it said may be long past
            for warning in host.warnings:
                code = warning.get("code", "agent-warning")
                severity: Severity = "info" if code == "no-kvm" else "warning"
                yield self._of_host(
                    host, code, severity, f"{host.name}: {warning.get('message', '')}", warning.get("cure", "")
                )

    def disks(self, tx: Tx) -> Iterator[Finding]:
        for host in self._hosts(tx):
            if not host.up:
                continue
            have = host.resources
            used = {"servers": have.local_gb_used / have.local_gb if have.local_gb else 0.0}
            if have.volume_total_gb:
                used["volumes"] = 1 - have.volume_free_gb / have.volume_total_gb
            for what, share in used.items():
                if share >= _DISK_WARNING:
                    yield Finding(
                        code="disk-nearly-full",
                        severity="error" if share >= _DISK_ERROR else "warning",
                        object_kind="disk",
                        object_id=what,
                        host=host.name,
                        message=f"The disk of {what} on {host.name} is {share * 100:.0f} % full.",
                        cure="delete what is not needed, make the disk larger, or disable the host for new servers",
                    )

    def clocks(self, tx: Tx) -> Iterator[Finding]:
        for host in self._hosts(tx):
            ahead = host.resources.clock_ahead_ms
            if host.up and abs(ahead) > _CLOCK_MS:
                way = "ahead of" if ahead > 0 else "behind"
                yield self._of_host(
                    host, "clock-skew", "warning",
                    f"The clock of {host.name} is {abs(ahead) / 1000:.1f} s {way} the conductor's.",
                    "run chrony or another NTP client on every machine of the cloud",
                )  # fmt: skip

    def certificates(self, tx: Tx) -> Iterator[Finding]:
        known = {host.name: host for host in self._hosts(tx)}
        soon = tx.now + _CERTIFICATE_DAYS * 86_400 * SECOND
        for name, issued_at, expires_at in tx.rows(_CERTIFICATES, {"before": soon}):
            # where they are short-lived, a third of the life is less than that
            if name in known and expires_at - tx.now < (expires_at - issued_at) / 6:
                over = expires_at <= tx.now
                yield self._of_host(
                    known[name],
                    "certificate-expired" if over else "certificate-near-expiry",
                    "error" if over else "warning",
                    f"The certificate of {name} {'has ended' if over else 'ends'} at {iso(expires_at)}, and its agent"
                    " did not renew it.",
                    f"the agent's log on {name} says why; or cumulet host token --host {name}, then cumulet join again",
                )

    def authority(self, tx: Tx) -> Iterator[Finding]:
        life = pki.AUTHORITY_DAYS * 86_400 * SECOND
        for (created_at,) in tx.rows(_AUTHORITY, {"before": tx.now - life + _AUTHORITY_DAYS * 86_400 * SECOND}):
            yield Finding(
                code="authority-near-expiry", severity="warning", object_kind="authority", object_id="hosts",
                message=f"The authority that signs the certificates of hosts ends at {iso(created_at + life)}.",
                cure="plan for it: a new authority means that every host joins again",
            )  # fmt: skip

    def _of_host(self, host: HostRow, code: str, severity: Severity, message: str, cure: str) -> Finding:
        return Finding(
            code=code, severity=severity, object_kind="host", object_id=host.name, host=host.name, message=message,
            cure=cure,
        )  # fmt: skip

    # -- work -----------------------------------------------------------------------------------------------------

    def overdue(self, tx: Tx) -> Iterator[Finding]:
        rows = tx.rows(_OVERDUE, {"before": tx.now - _LATE_SECONDS * SECOND})
        for saga_id, kind, object_kind, object_id, deadline, request_id in rows:
            late = (tx.now - deadline) // SECOND
            yield Finding(
                code="saga-overdue", severity="error", object_kind="saga", object_id=saga_id,
                message=f"{kind} of {object_kind} {object_id} is {late} s past its deadline.",
                cure=f"cumulet explain request {request_id}; is a conductor running?",
            )  # fmt: skip

    def undone_badly(self, tx: Tx) -> Iterator[Finding]:
        """Until the host's inventory, which is compared with the rows, was taken after it: that names what is left."""
        hosts = {host.name: host for host in self._hosts(tx)}
        since = tx.now - _REMEMBERED_DAYS * 86_400 * SECOND
        for row in tx.rows(_UNDONE_BADLY, {"since": since}):
            kind, object_kind, object_id, request_id, saga_id, step, state, host_name, error, undone_at = row
            host = hosts.get(host_name or "")
            if host is None or (host.inventory_at or 0) > undone_at:
                continue
            what = "was skipped" if state == "undo_skipped" else "failed"
            yield Finding(
                code="undo-incomplete", severity="warning", object_kind="step", object_id=f"{saga_id}:{step}",
                host=host_name,
                message=f"The undo of {step} of {kind} ({object_kind} {object_id}) {what} on {host_name}: {error}",
                cure=f"cumulet explain request {request_id}; cumulet doctor, when the host is up, names what it left",
            )  # fmt: skip

    def backlog(self, tx: Tx) -> Iterator[Finding]:
        waiting = int(tx.scalar(_WAITING))
        if waiting >= self.max_waiting * 9 // 10:
            yield Finding(
                code="backlog-full", severity="error" if waiting >= self.max_waiting else "warning",
                object_kind="queue", object_id="sagas",
                message=f"{waiting} sagas wait for a thread; at {self.max_waiting} requests are refused.",
                cure="more conductors, or conductor.threads; cumulet top shows what they do",
            )  # fmt: skip

    def failing(self, tx: Tx) -> Iterator[Finding]:
        for row in self.reconcilers.status(tx):
            if row.status == "error":
                yield Finding(
                    code="reconciler-failing", severity="error", object_kind="reconciler", object_id=row.name,
                    message=f"Reconciler {row.name} fails: {row.error}",
                    cure="see the conductor's log",
                )  # fmt: skip
            elif row.next_at and tx.now - max(row.next_at, row.lease_until) > _RECONCILER_LATE_SECONDS * SECOND:
                yield Finding(
                    code="reconciler-late", severity="warning", object_kind="reconciler", object_id=row.name,
                    message=f"Reconciler {row.name} should have run at {iso(row.next_at)}.",
                    cure="is a conductor running? see its log",
                )  # fmt: skip

    def documents(self, tx: Tx) -> Iterator[Finding]:
        up = {host.name for host in self._hosts(tx) if host.up}
        for host, kind, object_id, generation, applied, error, updated_at in self.desired.late(tx):
            if host not in up:
                continue  # it is down: that is said
            if error:
                code, severity, what = "document-failing", "error", f"cannot apply {kind} {object_id}: {error}"
            elif tx.now - updated_at > _NOT_APPLIED_SECONDS * SECOND:
                code, severity = "document-late", "warning"
                what = f"has not applied {kind} {object_id} for {(tx.now - updated_at) // SECOND} s"
            else:
                continue
            yield Finding(
                code=code, severity=severity, object_kind=kind, object_id=object_id, host=host,  # type: ignore[arg-type]
                message=f"{host} {what}", cure=f"see the agent's log on {host}; it tries again by itself",
                details={"generation": generation, "applied": applied},
            )  # fmt: skip

    def silent(self, tx: Tx) -> Iterator[Finding]:
        """One that stops in order takes its row with it."""
        for name, seen_at in tx.rows(_SILENT, {"before": tx.now - _SILENT_SECONDS * SECOND}):
            yield Finding(
                code="process-silent", severity="warning", object_kind="process", object_id=name,
                message=f"Process {name} was last heard of at {iso(seen_at)}.",
                cure="start it again; for an hour it is remembered",
            )  # fmt: skip
