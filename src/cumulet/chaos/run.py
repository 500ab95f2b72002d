"""One run: ground, clients and disturber, calm, reckoning, removal, second reckoning."""

import threading
import time
from typing import Any

import msgspec

from cumulet.chaos.client import Client
from cumulet.chaos.disturb import Disturber, Say
from cumulet.chaos.field import Field, moves, rows
from cumulet.chaos.ground import Ground
from cumulet.chaos.model import Record
from cumulet.chaos.reckoning import Reckoning, Violation

# what audits also tell: the past, processes that were killed, hosts that say so themselves
_NOT_NOW = ("undo-incomplete", "agent-warning", "process-silent")


class Result(msgspec.Struct):
    seed: int
    form: str
    seconds: float
    clients: int
    hosts: int
    requests: dict[str, int]
    operations: dict[str, int]
    refusals: dict[str, int]
    moves: dict[str, int]
    disturbances: dict[str, int]
    objects: int
    failed_deletes: int
    settle_seconds: float
    violations: list[dict[str, Any]]
    never: list[str]  # what was wanted and did not happen


class Wanted(msgspec.Struct, frozen=True):
    """What a run is to have seen before it ends, however slow the machine is."""

    requests: int = 0  # acknowledged
    names: tuple[str, ...] = ()  # of operations and of disturbances

    def missing(self, record: Record, disturber: Disturber) -> list[str]:
        seen = {*record.acknowledged, *disturber.counts}
        missing = [name for name in self.names if name not in seen]
        if record.replies["acknowledged"] < self.requests:
            missing.append(f"{self.requests} requests acknowledged")
        return missing


NOTHING = Wanted()


def run(
    field: Field,
    *,
    form: str,
    seed: int,
    seconds: float,
    clients: int,
    hosts: int,
    say: Say,
    wanted: Wanted = NOTHING,
) -> Result:
    """``wanted`` lengthens it, up to ten times."""
    began = time.monotonic()

    def tell(what: str) -> None:
        say(f"{time.monotonic() - began:7.2f} s  {what}")

    admin = field.admin()
    admin.must("GET", "network", "/security-groups")  # which makes the default one
    hosts_before, rows_before = field.leftovers(), rows(field.db)
    ground = Ground(field.url, admin, field.admin, field.habits)
    ground.make(clients)
    record, stop = Record(), threading.Event()
    crew = [
        Client(number, seed, ground, tenant, user, record, stop)
        for number, (tenant, user) in enumerate((tenant, user) for tenant in ground.tenants for user in tenant.users)
    ]
    disturber = Disturber(field.disturbances(), seed, tell, pause_s=field.pause_s)
    for client in crew:
        client.thread.start()
    try:
        disturber.run(
            seconds,
            lambda: all(client.error is None for client in crew),
            lambda: not wanted.missing(record, disturber),
        )
    finally:
        stop.set()
        disturber.mend()
        for client in crew:
            client.thread.join(120)
    tell("no more disturbances")
    never = wanted.missing(record, disturber)
    for name in never:
        tell(f"never happened: {name}")
    for client in crew:
        if client.error is not None:
            raise client.error

    reckoning = Reckoning(ground, record, admin)
    calm = time.monotonic()

    def settle(*, compared: bool = False) -> list[str]:
        left = field.settle(compared=compared)
        admin.close()  # a connection to a process that was killed
        return left

    for line in settle(compared=True):
        reckoning.violate("stuck", line.partition(" is ")[0], line)
    settled = time.monotonic() - calm
    tell(f"settled: {sum(record.counts.values())} requests, {len(record.things)} objects")
    reckoning.compare()
    reckoning.findings(ignore=_NOT_NOW)
    tell(f"compared: {len(reckoning.violations)} violations")
    reckoning.remove_all(settle)
    for line in ground.remove():
        reckoning.violate("undead", line.partition(":")[0], line)
    settle(compared=True)
    tell("removed")
    reckoning.findings(ignore=_NOT_NOW)
    _nothing_left(reckoning, field, hosts_before, rows_before)
    admin.close()
    return Result(
        seed=seed,
        form=form,
        seconds=round(time.monotonic() - began, 1),
        clients=clients,
        hosts=hosts,
        requests=record.replies,
        operations=dict(sorted(record.counts.items())),
        refusals=dict(sorted(record.refusals.items())),
        moves=moves(field.db),
        disturbances=dict(sorted(disturber.counts.items())),
        objects=len(record.things),
        failed_deletes=reckoning.failed_deletes,
        settle_seconds=round(settled, 1),
        violations=[violation.__dict__ for violation in reckoning.violations],
        never=never,
    )


def _nothing_left(
    reckoning: Reckoning, field: Field, hosts: dict[str, dict[str, list[str]]], counts: dict[str, int]
) -> None:
    for table, count in rows(field.db).items():
        if count != counts.get(table, 0):
            message = f"{counts.get(table, 0)} rows before, {count} after everything was removed"
            reckoning.violate("leaked-rows", table, message)
    for host, found in field.leftovers().items():
        for what, ids in found.items():
            for one in set(ids) - set(hosts.get(host, {}).get(what, ())):
                thing = reckoning.record.things.get(one.rpartition("/")[2])
                reckoning.violate(
                    "leaked-on-host", f"{what} {one} on {host}", "it is there and belongs to nothing", thing
                )


__all__ = ["NOTHING", "Result", "Violation", "Wanted", "run"]
