"""The registry of hosts: who is there, what they offer, who is alive.

A host is up when it was heard of within ``timeout_seconds`` and no operator forced it down. Clocks decide liveness and
nothing else: what a host that was thought dead may still do is bounded by epochs and generations.
`is_up` answers from memory; `refresh` keeps that memory and tells who came or went. Where a host is about to be taken
for dead, `is_up_in` asks the rows: each heartbeat is heard by one of the conductors only.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select, text, update

from cumulet.agent.contract import Heartbeat, HostResources
from cumulet.conductor.tables import HOSTS
from cumulet.db import Database, Tx, to_change, to_refer
from cumulet.kernel.clock import SECOND
from cumulet.kernel.errors import NotFound
from cumulet.kernel.ids import new_uuid

_log = logging.getLogger(__name__)


class HostRow(msgspec.Struct, kw_only=True, frozen=True):
    """One host. ``disabled``: role -> reason (None: no reason given)."""

    name: str
    uuid: str
    number: int
    roles: list[str]
    version: str
    ip: str
    tunnel_ip: str | None
    speed_factor: float
    mechanism: str
    virt_type: str
    bridge_mappings: dict[str, str]
    resources: HostResources
    warnings: list[dict[str, str]]
    started: int
    seen_at: int
    beats: int
    disabled_roles: dict[str, str | None]
    disabled_at: int | None
    forced_down: bool
    inventory_at: int | None
    created_at: int
    updated_at: int
    up: bool

    @property
    def disabled(self) -> bool:
        """As a compute host."""
        return "compute" in self.disabled_roles

    @property
    def disabled_reason(self) -> str | None:
        return self.disabled_roles.get("compute")


_COLUMNS = (
    "name", "uuid", "number", "roles", "version", "ip", "tunnel_ip", "speed_factor", "mechanism", "virt_type",
    "bridge_mappings", "resources", "warnings", "started", "seen_at", "beats", "disabled", "disabled_at",
    "forced_down", "inventory_at", "created_at", "updated_at",
)  # fmt: skip
_ALL = select(*[HOSTS.c[name] for name in _COLUMNS]).order_by(HOSTS.c.number)
_ONE = _ALL.where(HOSTS.c.name == bindparam("name"))
_ONE_TO_CHANGE = to_change(_ONE, unreferred=True)
_ONE_TO_REFER = to_refer(select(HOSTS.c.name).where(HOSTS.c.name == bindparam("name")))
_BY_UUID = _ALL.where(HOSTS.c.uuid == bindparam("uuid"))
_KNOWN = select(HOSTS.c.started, HOSTS.c.roles, HOSTS.c.resources, HOSTS.c.seen_at).where(
    HOSTS.c.name == bindparam("name")
)
_TOP = select(func.coalesce(func.max(HOSTS.c.number), 0))
_BEAT_FIELDS = (
    "roles", "version", "ip", "tunnel_ip", "speed_factor", "mechanism", "virt_type", "bridge_mappings", "resources",
    "warnings", "started",
)  # fmt: skip
_BEAT = (
    update(HOSTS)
    .where(HOSTS.c.name == bindparam("the_name"))
    .values(seen_at=bindparam("seen_at"), beats=HOSTS.c.beats + 1, **{name: bindparam(name) for name in _BEAT_FIELDS})
)
_SET_DISABLED = (
    update(HOSTS)
    .where(HOSTS.c.name == bindparam("the_name"))
    .values(disabled=bindparam("disabled"), disabled_at=bindparam("disabled_at"), updated_at=bindparam("updated_at"))
)
_SET_FORCED = (
    update(HOSTS)
    .where(HOSTS.c.name == bindparam("the_name"))
    .values(forced_down=bindparam("forced_down"), updated_at=bindparam("updated_at"))
)
_INVENTORIED = update(HOSTS).where(HOSTS.c.name == bindparam("the_name")).values(inventory_at=bindparam("now"))
_DELETE = delete(HOSTS).where(HOSTS.c.name == bindparam("name"))
_LIVENESS_OF = text("SELECT seen_at, forced_down FROM hosts WHERE name = :name")
_LIVENESS = text("SELECT name, seen_at, forced_down, speed_factor, started FROM hosts")

_TOUCH = update(HOSTS).where(HOSTS.c.name == bindparam("the_name")).values(updated_at=bindparam("updated_at"))
_STATE = select(func.count(), func.coalesce(func.max(HOSTS.c.updated_at), 0))
_FRESH = SECOND

HostListener = Callable[[Tx, HostRow], object]


class HostRegistry:
    def __init__(self, db: Database, *, timeout_seconds: float = 30.0) -> None:
        self._db = db
        self._timeout = int(timeout_seconds * SECOND)
        self._lock = threading.Lock()
        self._alive: dict[str, tuple[int, bool, float, int]] = {}  # seen_at, forced_down, speed_factor, started
        self._since = 0  # what was not heard while no conductor listened says nothing
        self._was_up: dict[str, tuple[bool, int]] = {}
        self._listeners: list[HostListener] = []
        self._snapshot: tuple[tuple[int, int], int, Sequence[HostRow]] | None = None  # state, when, hosts
        self.vouched_for: Callable[[], object] = lambda: None  # an operator says that a host is not down any more
        self.admits: Callable[[Tx, str], bool] = lambda tx, name: True  # may a host that is not known be heard?

    def on_change(self, listener: HostListener) -> None:
        """Called in the heartbeat's transaction when a host is new or what it offers has changed."""
        self._listeners.append(listener)

    # -- asking ---------------------------------------------------------------------------------------------------

    def list(self, tx: Tx, role: str | None = None) -> list[HostRow]:
        hosts = [self._row(tx, row) for row in tx.rows(_ALL)]
        return hosts if role is None else [host for host in hosts if role in host.roles]

    def snapshot(self, tx: Tx) -> Sequence[HostRow]:
        """As `list`, for decisions that are made all the time: what heartbeats say may be a second old; what operators
        say, and which hosts there are, is not."""
        state = tuple(tx.first(_STATE))
        kept = self._snapshot
        if kept is not None and kept[0] == state and abs(tx.now - kept[1]) < _FRESH:
            return kept[2]
        hosts = self.list(tx)
        if not tx.written:  # else it might be rolled back
            self._snapshot = (state, tx.now, hosts)
        return hosts

    def get(self, tx: Tx, name: str, *, change: bool = False) -> HostRow:
        """NotFound if there is no such host. ``change``: nothing else changes it, and nothing new refers to it by
        `keep`, until the end of the unit of work."""
        row = tx.first(_ONE_TO_CHANGE if change else _ONE, {"name": name})
        if row is None:
            raise NotFound(f"Host {name} could not be found.", type_name="HostNotFound")
        return self._row(tx, row)

    def keep(self, tx: Tx, name: str) -> bool:
        """Something is to be put on the host, which is not removed until the end of the unit of work; False: it was."""
        return tx.first(_ONE_TO_REFER, {"name": name}) is not None

    def by_uuid(self, tx: Tx, uuid: str) -> HostRow:
        row = tx.first(_BY_UUID, {"uuid": uuid})
        if row is None:
            raise NotFound(f"Host {uuid} could not be found.", type_name="HostNotFound")
        return self._row(tx, row)

    def _row(self, tx: Tx, row: Any) -> HostRow:
        values = dict(zip(_COLUMNS, row, strict=True))
        values["disabled_roles"] = values.pop("disabled")
        values["resources"] = msgspec.convert(values["resources"], HostResources)
        values["up"] = self._is_alive(values["seen_at"], values["forced_down"], tx.now)
        return HostRow(**values)

    def _is_alive(self, seen_at: int, forced_down: bool, now: int) -> bool:
        return not forced_down and now - seen_at <= self._timeout

    # -- operators ------------------------------------------------------------------------------------------------

    def set_disabled(
        self, tx: Tx, name: str, reason: str | None = None, *, disabled: bool = True, role: str = "compute"
    ) -> HostRow:
        """Take no new work of a role; ``disabled=False`` takes it again."""
        host = self.get(tx, name, change=True)
        roles = {key: value for key, value in host.disabled_roles.items() if key != role}
        if disabled:
            roles[role] = reason
        tx.run(
            _SET_DISABLED,
            {"the_name": name, "disabled": roles, "disabled_at": tx.now if roles else None, "updated_at": tx.now},
        )
        return self.get(tx, name)

    def set_forced_down(self, tx: Tx, name: str, forced_down: bool = True) -> HostRow:
        """An operator vouches that the host is really down (fenced), or not any more."""
        self.get(tx, name)
        tx.run(_SET_FORCED, {"the_name": name, "forced_down": forced_down, "updated_at": tx.now})
        tx.after_commit(self.refresh)
        if not forced_down:
            tx.after_commit(self.vouched_for)
        return self.get(tx, name)

    def remove(self, tx: Tx, name: str) -> None:
        """Forget a host. If it is alive it comes back with its next heartbeat."""
        tx.run(_DELETE, {"name": name})
        tx.after_commit(self.refresh)

    # -- heartbeats -----------------------------------------------------------------------------------------------

    def beat(self, tx: Tx, beat: Heartbeat) -> None:
        known = tx.first(_KNOWN, {"name": beat.host})
        if known is None and not self.admits(tx, beat.host):
            _log.warning("a heartbeat of host %s, which was removed: not heard", beat.host)
            return
        values = {name: msgspec.to_builtins(getattr(beat, name)) for name in _BEAT_FIELDS}
        if beat.sent_at:
            values["resources"]["clock_ahead_ms"] = (beat.sent_at - tx.now) / 1000
        if known is None:
            tx.lock("hosts", "")
            tx.insert(
                HOSTS,
                {
                    **values, "name": beat.host, "uuid": new_uuid(), "number": tx.scalar(_TOP) + 1, "seen_at": tx.now,
                    "beats": 1, "disabled": {}, "disabled_at": None, "forced_down": False, "inventory_at": None,
                    "created_at": tx.now, "updated_at": tx.now,
                },
            )  # fmt: skip
        else:
            tx.run(_BEAT, {**values, "the_name": beat.host, "seen_at": tx.now})
        if known is None or self._offers_differ(known, beat, tx.now):
            tx.run(_TOUCH, {"the_name": beat.host, "updated_at": tx.now})
            host = self.get(tx, beat.host)
            for listener in self._listeners:
                listener(tx, host)
        seen_at, factor, started = tx.now, beat.speed_factor, beat.started
        tx.after_commit(lambda: self._note(beat.host, seen_at, factor, started))

    def inventoried(self, tx: Tx, name: str) -> None:
        """All that is on the host was compared with the rows."""
        tx.run(_INVENTORIED, {"the_name": name, "now": tx.now})

    def _offers_differ(self, known: Any, beat: Heartbeat, now: int) -> bool:
        started, roles, resources, seen_at = known
        old = msgspec.convert(resources, HostResources)
        new = beat.resources
        return (
            started != beat.started
            or roles != beat.roles
            or (old.vcpus, old.memory_mb, old.local_gb) != (new.vcpus, new.memory_mb, new.local_gb)
            or not self._is_alive(seen_at, False, now)
        )

    def _note(self, name: str, seen_at: int, factor: float, started: int) -> None:
        with self._lock:
            known = self._alive.get(name)
            if known is None or seen_at >= known[0] or started != known[3]:
                self._alive[name] = (seen_at, known[1] if known is not None else False, factor, started)

    # -- from memory ----------------------------------------------------------------------------------------------

    def is_up(self, host: str) -> bool:
        with self._lock:
            found = self._alive.get(host)
        return found is not None and self._is_alive(max(found[0], self._since), found[1], self._db.clock.now())

    def is_up_in(self, tx: Tx, host: str) -> bool:
        if self.is_up(host):
            return True
        row = tx.first(_LIVENESS_OF, {"name": host})
        return row is not None and self._is_alive(max(row[0], self._since), bool(row[1]), tx.now)

    def heard(self, names: Iterable[str], at: int) -> None:
        """The emulator, when it moves time: these were heard of until ``at``."""
        with self._lock:
            for name in names:
                if name in self._alive:
                    self._alive[name] = (at, *self._alive[name][1:])

    def listening(self) -> None:
        """From now on silence means something: until a time-out from here, hosts are taken as they were."""
        self._since = self._db.clock.now()

    def speed_factor(self, host: str) -> float:
        with self._lock:
            found = self._alive.get(host)
        return 1.0 if found is None else found[2]

    def refresh(self) -> None:
        """Read liveness anew."""
        rows = self._db.read(lambda tx: tx.rows(_LIVENESS))
        with self._lock:
            self._alive = {row[0]: (row[1], bool(row[2]), row[3], row[4]) for row in rows}

    def changes(self) -> Sequence[str]:
        """Read liveness anew; the hosts that came, went or started again since the last time this was asked."""
        self.refresh()
        now = self._db.clock.now()
        with self._lock:
            up = {name: (self._is_alive(max(a[0], self._since), a[1], now), a[3]) for name, a in self._alive.items()}
            gone = self._was_up.keys() - up.keys()
            changed = [name for name, what in up.items() if self._was_up.get(name) != what]
            self._was_up = up
        return [*changed, *gone]
