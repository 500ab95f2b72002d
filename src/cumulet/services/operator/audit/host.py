"""Hosts compared with the rows: every up host lists what exists on it, and says what differs from its documents.

What nobody knows is named and left alone: it may be another cloud's, or the only copy of something. An operator's
``--fix`` is the word that removes it, and even then what holds data is moved aside on its host. Nothing is mended but
by a saga (``host.mend``) that names each thing absent as of a generation and is journaled, after looking again.

An object that a saga owns is at work; a difference must be seen twice, half a second apart, to be told: between the
host's answer and the rows' something may have come or gone.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import bindparam, select

from cumulet.agent.contract import Answer, Audited, AuditHost, Drift, MendHost, MendItem, Query, Thing
from cumulet.conductor import HostRegistry
from cumulet.db import Database, Tx
from cumulet.kernel.context import system_context
from cumulet.kernel.errors import CloudError, Conflict, Unavailable
from cumulet.saga import SagaEngine, journal
from cumulet.saga.model import Call, HostCall, Run, Saga, nothing_to_undo
from cumulet.saga.tables import SAGA_OWNERS
from cumulet.services.compute import migrations
from cumulet.services.compute import tables as ct
from cumulet.services.network import tables as nt
from cumulet.services.operator.audit.model import Check, Finding, Severity
from cumulet.services.volume import tables as vt

_MEND_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_PREFIX = 11  # device names hold so much of a port's id
_S, _P, _V, _A, _B = ct.SERVERS, nt.PORTS, vt.VOLUMES, vt.ATTACHMENTS, vt.BACKUPS
_SERVERS = select(_S.c.id, _S.c.host, _S.c.goal, _S.c.image_id, _S.c.root_gb, _S.c.deleting, _S.c.launched_at).where(
    _S.c.deleted_at.is_(None)
)
_TOMBSTONES = select(_S.c.id).where(_S.c.deleted_at.is_not(None), _S.c.id.in_(bindparam("ids", expanding=True)))
_DISKS = select(ct.BLOCK_DEVICES.c.attachment_id, ct.BLOCK_DEVICES.c.id).where(
    ct.BLOCK_DEVICES.c.attachment_id.is_not(None)
)
_PORTS = select(_P.c.id, _P.c.host, _P.c.device_id, _P.c.device_owner)
_VOLUMES = select(_V.c.id, _V.c.host, _V.c.base, _V.c.deleted_at)
_ATTACHMENTS = select(_A.c.id, _A.c.volume_id, _A.c.status, _A.c.server_id, _A.c.connection)
_COPIES = select(vt.COPIES.c.volume_id, vt.COPIES.c.host)
_BACKUPS = select(_B.c.data_id, _B.c.host, _B.c.status).where(_B.c.deleted_at.is_(None))
_OWNED = select(SAGA_OWNERS.c.object_kind, SAGA_OWNERS.c.object_id).where(SAGA_OWNERS.c.saga_id.is_not(None))
_MOVES = select(ct.MIGRATIONS.c.server_id, ct.MIGRATIONS.c.source, ct.MIGRATIONS.c.dest).where(
    ct.MIGRATIONS.c.status.in_(migrations.OPEN)
)
RUNNING = "1"
_FIX = "cumulet doctor --fix"


class MendParams(msgspec.Struct, kw_only=True):
    host: str
    items: list[MendItem] = []
    attachment_id: str | None = None  # to be exported again
    server_id: str | None = None  # to be defined again


@dataclass
class _World:
    """The rows, as one view has them."""

    servers: dict[str, Any]  # those that live
    tombstones: set[str]  # deleted, of those that hosts have something of
    ports: dict[str, Any]
    volumes: dict[str, Any]
    attachments: dict[str, Any]
    backups: dict[str, Any]
    disks: dict[str, str]  # attachment -> the server's disk that it is
    owned: set[tuple[str, str]]
    between: set[tuple[str, str]]  # (server, host) of moves that are not over: both hosts may have its disks
    copies: set[tuple[str, str]]  # (volume, host): what a move left there goes with the host's next inventory
    hosts: set[str]  # all that the cloud knows, up or not
    prefixes: dict[str, str] = field(default_factory=dict)

    def port_of(self, tap: str) -> str | None:
        """A host may know of a port no more than what its tap's name holds."""
        return tap if tap in self.ports else self.prefixes.get(tap[:_PREFIX])

    def elsewhere(self, row_host: str | None, host: str) -> bool:
        """Does a row say for sure that its thing is not here? One that names no host, or one that the cloud does not
        know, says nothing: what is here may be the thing itself."""
        return row_host != host and row_host in self.hosts

    def busy(self, *objects: tuple[str, str]) -> bool:
        """Does a saga own one of them?"""
        return not self.owned.isdisjoint(objects)

    def attachment_busy(self, attachment_id: str, volume_id: str) -> bool:
        return self.busy(
            ("volume", volume_id), ("volume_attachment", attachment_id),
            ("block_device", self.disks.get(attachment_id, "")),
        )  # fmt: skip


def _read(tx: Tx, there: set[str], hosts: set[str]) -> _World:
    """``there``: servers of which hosts have something. ``hosts``: the names of all."""
    servers = {row[0]: row for row in tx.rows(_SERVERS)}
    strange = sorted(there - servers.keys())
    world = _World(
        servers=servers,
        tombstones={row[0] for row in tx.rows(_TOMBSTONES, {"ids": strange})} if strange else set(),
        disks={row[0]: row[1] for row in tx.rows(_DISKS)},
        ports={row[0]: row for row in tx.rows(_PORTS)},
        volumes={row[0]: row for row in tx.rows(_VOLUMES)},
        attachments={row[0]: row for row in tx.rows(_ATTACHMENTS)},
        backups={row[0]: row for row in tx.rows(_BACKUPS)},
        between={(row[0], host) for row in tx.rows(_MOVES) for host in row[1:] if host is not None},
        copies={(row[0], row[1]) for row in tx.rows(_COPIES)},
        owned={(row[0], row[1]) for row in tx.rows(_OWNED)},
        hosts=hosts,
    )
    world.prefixes = {port[:_PREFIX]: port for port in world.ports}
    return world


# code -> (severity, what it looks at, how it is repaired; None: by people)
_PLUMBING = "the document is applied again; what no document asks for is removed"
CODES: dict[str, tuple[Severity, str, str | None]] = {
    "domain-without-row": ("error", "domains", "it is removed from the hypervisor; its disks stay"),
    "domain-of-gone-server": ("error", "domains", "it is removed from the hypervisor; its disks stay"),
    "server-without-domain": ("error", "domains", "the server is rebooted hard, which defines it again"),
    "stopped-server-without-domain": ("warning", "domains", "it is defined again, and stays off"),
    "disk-without-server": ("error", "disks of servers", "they are moved aside on their host"),
    "disk-kept-for-no-resize": ("warning", "disks of servers", "they are moved aside on their host"),
    "server-without-disk": ("error", "disks of servers", None),
    "server-file-missing": ("error", "disks of servers", None),
    "tap-without-port": ("error", "taps", "it is removed"),
    "port-without-tap": ("error", "taps", "its server is rebooted hard, which plugs its ports"),
    "volume-without-row": ("error", "volumes", "it is moved aside on its host"),
    "volume-data-missing": ("error", "volumes", None),
    "export-without-attachment": ("error", "exports", "it is removed"),
    "attachment-without-export": ("error", "exports", "the volume is exported again"),
    "backup-without-row": ("warning", "backups", "it is moved aside on its host"),
    "backup-data-missing": ("error", "backups", None),
    "quarantined": ("info", "what was moved aside", None),
    "host-not-audited": ("warning", "hosts' answers", None),
}
PLUMBING = (
    "namespace", "dnsmasq", "dhcp-host", "lease", "chain", "group", "filter-table", "translation", "radvd", "metadata",
    "forwarding", "tunnel", "flow", "switch", "switch-port", "device", "definition", "export",
)  # fmt: skip
_CURES = {
    "server-without-disk": "its data is gone: openstack server rebuild, or restore the disk where it was",
    "server-file-missing": "restore the file where it was; of an image: create another server of it there, which "
    "fetches it again; else openstack server rebuild",
    "volume-data-missing": "restore the file where it was, or delete the volume (cumulet explain shows its story)",
    "backup-data-missing": "delete the backup",
    "quarantined": "look at it on its host; delete it by hand when you are sure",
    "host-not-audited": "look at the agent's log on that host",
}


class HostAudit:
    """``ask(host, query, timeout)``. ``compute``, ``volume``: the services, by their public functions."""

    def __init__(
        self,
        db: Database,
        sagas: SagaEngine,
        hosts: HostRegistry,
        ask: Callable[[str, Query, float | None], Answer],
        *,
        compute: Any,
        volume: Any,
    ) -> None:
        self.db = db
        self.sagas = sagas
        self.hosts = hosts
        self.ask = ask
        self.compute = compute
        self.volume = volume
        self.second_look_seconds = 0.5
        self._found = threading.local()  # by the thread that prepared
        self.saga = Saga(
            kind="host.mend",
            object_kind="host",
            params=MendParams,
            steps=(
                Call("mend", self._operation, nothing_to_undo("the next audit says what is left"), if_host_down="fail"),
            ),
        )
        sagas.register(self.saga)

    def checks(self) -> list[Check]:
        made = [
            Check(
                name=code, looks_at=f"hosts: {what}", find=self._finder({code}), prepare=self.prepare,
                repair=self.repair if repaired_by else None, repaired_by=repaired_by or "",
            )
            for code, (_, what, repaired_by) in CODES.items()
        ]  # fmt: skip
        codes = tuple(
            f"{kind}-{problem}" for kind in PLUMBING for problem in ("missing", "different", "unknown", "expired")
        )
        made.append(
            Check(
                name="plumbing", looks_at="hosts: namespaces, DHCP, filters, forwarding, against their documents",
                find=self._finder(set(codes)), prepare=self.prepare, repair=self.repair, repaired_by=_PLUMBING,
                codes=codes,
            )
        )  # fmt: skip
        return made

    def _finder(self, codes: set[str]) -> Callable[[Tx], Iterable[Finding]]:
        return lambda tx: [one for one in getattr(self._found, "findings", ()) if one.code in codes]

    # -- looking ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Ask every host, on this thread's behalf; `Check.find` then tells. Never inside a unit of work."""
        names = [host.name for host in self.db.read(self.hosts.list) if host.up]
        self._found.findings = self.look(names)

    def look(self, names: list[str]) -> list[Finding]:
        found = self._once(names)
        if found:
            time.sleep(self.second_look_seconds)
            again = {one.id for one in self._once(sorted({one.host for one in found if one.host}))}
            found = [one for one in found if one.id in again]
        return found

    def _once(self, names: list[str]) -> list[Finding]:
        if not names:
            return []
        with ThreadPoolExecutor(min(len(names), 16), thread_name_prefix="audit") as pool:
            answers = dict(zip(names, pool.map(self._ask, names), strict=True))
        there = {
            thing.id
            for answer in answers.values() if isinstance(answer, Audited)
            for thing in answer.things if thing.kind in ("domain", "disk")
        }  # fmt: skip
        world = self.db.read(lambda tx: _read(tx, there, {row.name for row in self.hosts.snapshot(tx)}))
        found: list[Finding] = []
        for host, answer in answers.items():
            if isinstance(answer, str):
                message = f"{host} does not say what is on it: {answer}"
                found.append(_finding("host-not-audited", "host", host, host, message))
            else:
                found += _compare(host, answer, world)
        return found

    def _ask(self, host: str) -> Audited | str:
        try:
            answer = self.ask(host, AuditHost(), _ANSWER_SECONDS)
        except Unavailable as error:
            return error.message
        if answer.data is None:
            return answer.error or "no answer"
        return msgspec.convert(answer.data, Audited)

    # -- mending ----------------------------------------------------------------------------------------------------

    def repair(self, finding: Finding) -> str | None:
        assert finding.host is not None
        if finding.id not in {one.id for one in self._once([finding.host])}:
            return None
        if finding.code in ("server-without-domain", "port-without-tap"):
            return self._reboot(finding.details["server_id"])
        if finding.code == "stopped-server-without-domain":
            return self._mend(finding, MendParams(host=finding.host, server_id=finding.object_id))
        if finding.code == "attachment-without-export":
            return self._mend(finding, MendParams(host=finding.host, attachment_id=finding.object_id))
        item = msgspec.convert(finding.details["item"], MendItem)
        return self._mend(finding, MendParams(host=finding.host, items=[item]))

    def _reboot(self, server_id: str) -> str:
        def work(tx: Tx) -> None:
            server = self.compute.row(tx, server_id)
            ctx = msgspec.structs.replace(system_context("doctor"), project_id=server.project_id)
            self.compute.power_action(tx, ctx, server, "hard_reboot")

        self.db.write(work)
        return "a hard reboot is begun"

    def _mend(self, finding: Finding, params: MendParams) -> str:
        """Start the saga and wait for its end."""
        end = time.monotonic() + _MEND_SECONDS
        while True:
            try:
                saga_id = self.db.write(lambda tx: self._start(tx, params))
                break
            except Conflict:  # another mend of this host
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        pause = 0.005
        while time.monotonic() < end:
            row = self.db.read(lambda tx: journal.load(tx, saga_id))
            if row is not None and row.status == "finished":
                steps = self.db.read(lambda tx: journal.load_steps(tx, saga_id))
                done = steps[0].output.get("done") if isinstance(steps[0].output, dict) else None
                return done[0] if done else CODES[finding.code][2] or "mended"
            if row is None or row.status == "failed":
                raise CloudError(row.error or "It failed." if row else "Its saga is gone.")
            time.sleep(pause := min(2 * pause, 0.2))
        raise CloudError(f"The host is still at it (saga {saga_id}).")

    def _start(self, tx: Tx, params: MendParams) -> str:
        named = [msgspec.structs.replace(item, generation=tx.now) for item in params.items]
        return self.sagas.start(
            tx, self.saga, params.host, msgspec.structs.replace(params, items=named), system_context("doctor")
        )

    def _operation(self, tx: Tx, run: Run) -> HostCall | None:
        params: MendParams = run.params
        call: HostCall | None = (params.host, MendHost(items=params.items))
        if params.server_id is not None:
            call = self.compute.define_operation(tx, params.server_id)
        elif params.attachment_id is not None:
            attachment = self.volume.attachment(tx, params.attachment_id)
            call = self.volume.export_operation(tx, params.attachment_id, attachment.host)
        return call


# -- comparing: pure ------------------------------------------------------------------------------------------


def _finding(code: str, kind: str, object_id: str, host: str, message: str, **details: Any) -> Finding:
    severity = CODES[code][0]
    cure = _CURES.get(code, _FIX)
    return Finding(
        code=code, severity=severity, object_kind=kind, object_id=object_id, host=host, message=message, cure=cure,
        details=details,
    )  # fmt: skip


def _absent(code: str, thing: Thing, host: str, message: str) -> Finding:
    item = MendItem(kind=thing.kind, id=thing.id, problem="unknown", generation=0)
    return _finding(code, thing.kind, thing.id, host, message, item=msgspec.to_builtins(item))


def _compare(host: str, audited: Audited, world: _World) -> Iterator[Finding]:
    things: dict[str, dict[str, Thing]] = {}
    for thing in audited.things:
        things.setdefault(thing.kind, {})[thing.id] = thing
    lists = set(audited.kinds)
    yield from _servers(host, things, lists, world)
    yield from _taps(host, things, lists, world)
    yield from _volumes(host, things, lists, world)
    for thing in things.get("quarantine", {}).values():
        yield _finding("quarantined", "quarantine", thing.id, host, f"{host} keeps {thing.id}, which was moved aside")
    for drift in audited.drift:
        if not _at_work(drift, world):
            yield _plumbing(host, drift)


def _servers(host: str, things: dict[str, dict[str, Thing]], lists: set[str], world: _World) -> Iterator[Finding]:
    domains, disks = things.get("domain", {}), things.get("disk", {})
    for thing in (*domains.values(), *disks.values()):
        row = world.servers.get(thing.id)
        if world.busy(("server", thing.id)) or (row is not None and not world.elsewhere(row.host, host)):
            continue
        if thing.kind == "disk" and (thing.id, host) in world.between:
            continue
        known = row is not None or thing.id in world.tombstones
        whose = f"which is on {row.host}" if row is not None else "which is deleted" if known else "which nobody knows"
        if thing.kind == "domain":
            code = "domain-of-gone-server" if known else "domain-without-row"
            yield _absent(code, thing, host, f"{host} has a domain of server {thing.id}, {whose}; it is left alone")
        else:
            message = f"{host} has disks of server {thing.id}, {whose}; they are left alone"
            yield _absent("disk-without-server", thing, host, message)
    for thing in things.get("disk-aside", {}).values():
        if not world.busy(("server", thing.id)) and (thing.id, host) not in world.between:
            message = f"{host} keeps disks of server {thing.id} from before a resize that is over; they are left alone"
            yield _absent("disk-kept-for-no-resize", thing, host, message)
    for row in world.servers.values():
        if row.host != host or row.deleting or row.launched_at is None or world.busy(("server", row.id)):
            continue
        there = row.id in disks or row.image_id is None or not row.root_gb or "disk" not in lists
        if not there:
            message = f"the root disk of server {row.id} is not on {host}"
            yield _finding("server-without-disk", "server", row.id, host, message)
        if row.id not in domains and "domain" in lists:
            message = f"server {row.id} is to be on {host}, which has no domain of it"
            if row.goal not in ("active", "paused"):
                yield _finding("stopped-server-without-domain", "server", row.id, host, message)
            elif there:
                yield _finding("server-without-domain", "server", row.id, host, message, server_id=row.id)


def _taps(host: str, things: dict[str, dict[str, Thing]], lists: set[str], world: _World) -> Iterator[Finding]:
    domains = things.get("domain", {})
    seen = set()
    for thing in things.get("tap", {}).values():
        port_id = world.port_of(thing.id)
        row = world.ports.get(port_id or "")
        if row is not None:
            seen.add(row.id)
            if row.host == host or row.device_owner.startswith("network:") or world.busy(("server", row.device_id)):
                continue
        elif world.busy(("server", thing.owner)):
            continue
        whose = "no port of this cloud" if row is None else f"port {row.id}, which is bound to '{row.host}'"
        yield _absent("tap-without-port", thing, host, f"{host} has a tap of {whose} ({thing.id})")
    for row in world.ports.values() if "tap" in lists else ():
        domain = domains.get(row.device_id)
        if row.host != host or not row.device_owner.startswith("compute:") or row.id in seen:
            continue
        if domain is None or domain.state != RUNNING or world.busy(("server", row.device_id), ("interface", row.id)):
            continue
        yield _finding(
            "port-without-tap", "port", row.id, host,
            f"port {row.id} of server {row.device_id}, which runs on {host}, has no tap there",
            server_id=row.device_id,
        )  # fmt: skip


def _volumes(host: str, things: dict[str, dict[str, Thing]], lists: set[str], world: _World) -> Iterator[Finding]:
    volumes, exports, backups = (things.get(kind, {}) for kind in ("volume", "export", "backup"))
    for thing in volumes.values():
        row = world.volumes.get(thing.id)
        if world.busy(("volume", thing.id)) or (thing.id, host) in world.copies:
            continue
        if row is not None and row.deleted_at is None and not world.elsewhere(row.host, host):
            continue
        whose = "which nobody knows" if row is None else "which is deleted or elsewhere"
        yield _absent("volume-without-row", thing, host, f"{host} has volume {thing.id}, {whose}; it is left alone")
    for thing in exports.values():
        volume_id, _, attachment_id = thing.id.partition("/")
        if attachment_id not in world.attachments and not world.attachment_busy(attachment_id, volume_id):
            message = f"{host} exports volume {volume_id} for attachment {attachment_id}, which is gone"
            yield _absent("export-without-attachment", thing, host, message)
    for thing in backups.values():
        if thing.id not in world.backups and not world.busy(("backup", thing.id)):
            yield _absent("backup-without-row", thing, host, f"{host} has backup {thing.id}, which no record is of")
    for row in world.volumes.values() if "volume" in lists else ():
        ready = row.host == host and row.deleted_at is None and row.base == "ready"
        if ready and row.id not in volumes and not world.busy(("volume", row.id)):
            yield _finding("volume-data-missing", "volume", row.id, host, f"{host} does not have volume {row.id}")
    for row in world.attachments.values() if "export" in lists else ():
        volume = world.volumes.get(row.volume_id)
        if row.status != "attached" or volume is None or volume.host != host or f"{volume.id}/{row.id}" in exports:
            continue
        if row.id not in world.disks and row.connection is None:
            continue  # os-attach says so and exports nothing
        server = world.servers.get(row.server_id)
        if server is not None and server.launched_at is None:
            continue  # making it was undone, and its delete, which is to free the volume, failed
        if not world.attachment_busy(row.id, volume.id):
            user = f"server {row.server_id}" if row.server_id is not None else "a client"
            message = f"{host} does not export volume {volume.id} for attachment {row.id}, which {user} uses"
            yield _finding("attachment-without-export", "attachment", row.id, host, message)
    for row in world.backups.values() if "backup" in lists else ():
        if row.host == host and row.status == "available" and row.data_id not in backups:
            message = f"{host} does not have the data of backup {row.data_id}"
            yield _finding("backup-data-missing", "backup", row.data_id, host, message)


def _at_work(drift: Drift, world: _World) -> bool:
    """Does a saga own whose it is?"""
    match drift.kind:
        case "definition" | "server-file":
            return world.busy(("server", drift.id.partition("/")[0]))
        case "chain" | "forwarding" if drift.id in world.ports:
            return world.busy(("server", world.ports[drift.id].device_id), ("interface", drift.id))
        case "export":
            row = world.attachments.get(drift.id.partition(".")[0])
            return row is not None and world.attachment_busy(row.id, row.volume_id)
    return False


def _plumbing(host: str, drift: Drift) -> Finding:
    item = MendItem(kind=drift.kind, id=drift.id, problem=drift.problem, generation=0, document=drift.document)
    wrong = drift.problem in ("missing", "different")
    return Finding(
        code=f"{drift.kind}-{drift.problem}",
        severity="error" if wrong else "warning",
        object_kind=drift.kind,
        object_id=drift.id,
        host=host,
        message=f"{host}: {drift.message}" + ("" if wrong or drift.problem == "expired" else "; it is left alone"),
        cure=_CURES.get(f"{drift.kind}-{drift.problem}", _FIX),
        details={"item": msgspec.to_builtins(item)},
    )


__all__ = ["CODES", "PLUMBING", "HostAudit", "MendParams"]
