"""The clouds that chaos may be brought upon: its own. `Field` is what a run needs of one; `EmulatedField` is one in
this process, whose clock is moved to the deadlines instead of waiting for them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import func, inspect, select

from cumulet.chaos.disturb import Disturbance, EmulatedDisturbances
from cumulet.chaos.session import Session
from cumulet.db import METADATA, Database, Tx
from cumulet.emulator import Account, Emulator
from cumulet.kernel.clock import SECOND
from cumulet.saga.journal import ACTIVE
from cumulet.saga.tables import SAGA_OWNERS, SAGAS
from cumulet.services.compute.migrations import EVACUATION
from cumulet.services.compute.tables import MIGRATIONS
from cumulet.settings import Settings

_UNDER_WAY = (
    select(SAGAS.c.id, SAGAS.c.kind, SAGAS.c.object_kind, SAGAS.c.object_id, SAGAS.c.status, SAGAS.c.phase,
           SAGAS.c.position, SAGAS.c.deadline_at, SAGAS.c.error)
    .where(SAGAS.c.status.in_(ACTIVE)).order_by(SAGAS.c.id).limit(100)
)  # fmt: skip
_EVACUATED = select(MIGRATIONS.c.server_id, MIGRATIONS.c.source).where(
    MIGRATIONS.c.type == EVACUATION, MIGRATIONS.c.status == "done"
)
_MOVES = select(MIGRATIONS.c.type, MIGRATIONS.c.status, func.count()).group_by(MIGRATIONS.c.type, MIGRATIONS.c.status)
_LAST_DEADLINE = select(func.max(SAGAS.c.deadline_at)).where(SAGAS.c.status.in_(ACTIVE))
_MOST_S, _LATE_S = 600.0, 45.0  # that a settling may take whatever the deadlines say, and after them
_COMPARE_S = 0.5
# what is kept of what is over, and what comes and goes without any user's doing
HISTORY = frozenset({
    "sagas", "saga_steps", "server_actions", "server_migrations", "request_traces", "processes", "conditions",
    "reconcilers",
    "identity_revocations", "identity_epochs", "identity_keys", "consumers", "hosts", "server_faults",
    "volume_messages",
})  # fmt: skip


@dataclass(frozen=True)
class Habits:
    """What a cloud can stand of its clients, and what is there for them."""

    think_s: float = 0.25  # on average between two requests of a client
    most: Mapping[str, int] = field(default_factory=dict)  # kind -> how many a client keeps, where not as usual
    memory_mb: tuple[int, ...] = (64, 128)  # of the flavors
    images: tuple[bytes, ...] = ()  # qcow2, each boots; empty: any bytes do
    outer: str = ""  # id of a network with floating IPs; empty: one is made
    ca: str | None = None  # file of the authority that vouches for the API


class Field(Protocol):
    url: str
    db: Database
    habits: Habits
    pause_s: float  # between disturbances

    def admin(self) -> Session: ...

    def disturbances(self) -> list[Disturbance]: ...

    def settle(self, *, compared: bool) -> list[str]:
        """Nothing is disturbed any more: wait until all that was begun has ended, as far as its deadlines allow.
        ``compared``: and until hosts were compared with the rows. What is still under way, in words."""
        ...

    def leftovers(self) -> dict[str, dict[str, list[str]]]:
        """By host: what exists there that a deleted object must not leave."""
        ...

    def stop(self) -> None: ...


def under_way(db: Database) -> list[str]:
    def told(row: Any, now: int) -> str:
        _, kind, object_kind, object_id, status, phase, position, deadline, error = row
        late = "" if deadline is None else f", deadline {(deadline - now) / SECOND:+.0f} s"
        why = f": {error}" if error else ""
        return f"{kind} of {object_kind} {object_id} is {status} at step {position} ({phase}{late}){why}"

    def all_of_it(tx: Tx) -> list[str]:
        return [
            *(told(row, tx.now) for row in tx.rows(_UNDER_WAY)),
            *(f"server {row[0]} is evacuated and still on {row[1]}" for row in tx.rows(_EVACUATED)),
        ]

    return db.read(all_of_it)


def moves(db: Database) -> dict[str, int]:
    """How many moves of servers of each type came to which end."""
    return db.read(lambda tx: {f"{row[0]} {row[1]}": row[2] for row in sorted(tx.rows(_MOVES))})


def wait_for_sagas(db: Database, look: Callable[[], object]) -> list[str]:
    """By real time, as long as deadlines allow; ``look()`` is called meanwhile. What is still under way, in words."""
    last = db.read(lambda tx: (tx.scalar(_LAST_DEADLINE) or tx.now) - tx.now)
    end = time.monotonic() + min(_MOST_S, max(float(last) / SECOND, 0.0) + _LATE_S)
    while (left := under_way(db)) and time.monotonic() < end:
        look()
        time.sleep(0.2)
    return left


def rows(db: Database) -> dict[str, int]:
    """How many living rows each table has."""
    there = set(inspect(db.engine).get_table_names())

    def count(tx: Tx) -> dict[str, int]:
        found = {}
        for name, table in METADATA.tables.items():
            if name in HISTORY or name not in there:
                continue
            counted = select(func.count()).select_from(table)
            if "deleted_at" in table.c:
                counted = counted.where(table.c.deleted_at.is_(None))
            if name == "desired_docs":
                counted = counted.where(~table.c.absent, table.c.kind != "group")  # those go some minutes later
            if table is SAGA_OWNERS:
                counted = counted.where(table.c.saga_id.is_not(None))
            found[name] = int(tx.scalar(counted))
        return found

    return db.read(count)


class EmulatedField:
    _DEADLINE_S = 2 * 3600  # of the cloud's clock: no saga may take longer than this once nothing disturbs it
    _COMPARED_S = 700  # and by then hosts were compared with the rows and reconcilers ran

    def __init__(self, hosts: int, seed: int) -> None:
        def configure(settings: Settings) -> None:
            settings.quota.instances = settings.quota.volumes = settings.quota.security_groups = 100
            settings.quota.cores = 100
            settings.conductor.lease_seconds = 3

        account = Account("admin", "admin", "admin")
        self.cloud = Emulator(
            hosts=hosts,
            seed=False,
            accounts=[account],
            configure=configure,
            inventory_seconds=60,
            compare_seconds=_COMPARE_S,
        )
        self.cloud.start()
        self.habits = Habits()
        self.url, self.db = self.cloud.url, self.cloud.db
        self.pause_s = 0.5
        self._seed = seed

    def admin(self) -> Session:
        return Session(self.url, "admin", "admin", self.cloud.accounts["admin"].password)

    def disturbances(self) -> list[Disturbance]:
        return EmulatedDisturbances(self.cloud, self._seed).list()

    def settle(self, *, compared: bool) -> list[str]:
        waited, left = 0.0, ["nothing was looked at yet"]
        self.cloud.settle(5)
        while waited < self._DEADLINE_S and (left := under_way(self.db)):
            self.cloud.clock.advance(20)
            self.cloud.settle(5)
            waited += 20
        if compared and not left:
            self.cloud.clock.advance(self._COMPARED_S)
            for _ in range(3):  # documents are compared by real time
                time.sleep(_COMPARE_S)
                self.cloud.settle(5)
            self.cloud.clock.advance(30)
            self.cloud.settle(5)
            left = under_way(self.db)
        return left

    def leftovers(self) -> dict[str, dict[str, list[str]]]:
        return {name: found for name, host in self.cloud.hosts.items() if (found := host.fake.world.leftovers())}

    def stop(self) -> None:
        self.cloud.stop()
