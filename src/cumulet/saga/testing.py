"""Generic tests of sagas: a service names its sagas and how an object gets ready for each; these checks do the rest.

    def test_create_survives(harness):
        check_everything(harness, Case("server.create", prepare=new_server, ignore={"servers": {"status", …}}))

For each step they have it fail before and after its effect and compare database and hosts with what was before; have
each operation and each undo done twice; kill the control plane at every point of the journal, start another on the same
database and let it finish or roll back; and take away each undo in turn, which must be noticed.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
from sqlalchemy import select

from cumulet.agent.contract import Execute
from cumulet.db import METADATA, Database
from cumulet.kernel.context import RequestContext, system_context
from cumulet.kernel.errors import CloudError
from cumulet.saga import journal
from cumulet.saga.engine import SagaEngine
from cumulet.saga.journal import SagaRow
from cumulet.saga.model import Call, NothingToUndo, Saga, Step, Transact
from cumulet.saga.stepper import Abandoned, Probe, Stepper

# what tells of the work, not what the work is about
JOURNAL = {"sagas", "saga_steps", "saga_owners", "request_traces", "processes", "conditions"}
IGNORED_COLUMNS = {
    "generation", "applied_generation", "revision", "revision_number", "epoch", "beats", "last_sequence", "sequence",
    "warnings", "resources",
}  # fmt: skip
CRASH_POINTS = ("before-commit", "after-commit", "before-send", "after-send", "outcome")


class Harness(Protocol):
    """A control plane that can be killed and started again, and hosts that outlive it."""

    db: Database
    engine: SagaEngine

    def start_control_plane(self) -> None:
        """A new engine (new services, if any) on the same database and hosts; sets ``engine`` and runs it."""
        ...

    def stop_control_plane(self) -> None:
        """Take the present one away (it may have been abandoned)."""
        ...

    def host_state(self) -> Any:
        """What exists on the hosts, as plain data."""
        ...


@dataclass
class Case:
    """``prepare(harness)``: a new object, ready for the saga: (object id, params). ``ignore``: table -> columns that a
    failed saga changes on purpose (None: the whole table). ``unwinds`` False: what began is finished, never taken back
    (a delete): only crashes and repetitions are checked. ``forward_from``: the step past which nothing is taken back.
    ``seconds``: patience for one run; ``settle_seconds``: for
    what follows by itself after its end (hosts pull documents and report)."""

    kind: str
    prepare: Callable[[Any], tuple[str, msgspec.Struct]]
    ignore: Mapping[str, set[str] | None] = field(default_factory=dict)
    unwinds: bool = True
    forward_from: str | None = None
    redundant: Mapping[str, str] = field(default_factory=dict)  # step -> what takes its effect back besides its undo
    host_ignore: Callable[[Any], Any] = lambda state: state
    seconds: float = 10.0
    settle_seconds: float = 0.5
    ctx: RequestContext = field(default_factory=lambda: system_context("saga-test"))


class InjectedFailure(CloudError):
    pass


class SagaCheckFailed(AssertionError):
    pass


@dataclass
class _Act(Probe):
    """Fail, crash or sabotage: at ``point`` of step ``step`` (None: any) of sagas of ``kind``."""

    kind: str
    fail: tuple[str, int] | None = None
    crash: tuple[str, int, str] | None = None  # point, position, status of the saga
    drop: int | None = None
    met: bool = False
    crashed: bool = False

    def at(self, point: str, row: SagaRow, step: Step) -> None:
        if row.kind != self.kind:
            return
        if self.crash is not None and not self.crashed and (point, row.position, row.status) == self.crash:
            self.met = self.crashed = True
            raise Abandoned
        if self.fail is not None and (point, row.position) == self.fail and row.status == "running":
            self.met = True
            raise InjectedFailure(f"{point} of {step.name} fails", code="injected")

    def drops_undo(self, row: SagaRow, step: Step) -> bool:
        return row.kind == self.kind and self.drop == row.position


def declared(harness: Harness, kind: str) -> Saga:
    """The newest registered version."""
    found = [saga for (name, _), saga in harness.engine.sagas.items() if name == kind]
    assert found, f"no saga {kind} is registered"
    return max(found, key=lambda saga: saga.version)


# -- looking -------------------------------------------------------------------------------------------------------


def snapshot(harness: Harness, case: Case) -> tuple[dict[str, list[str]], Any]:
    """Every row but the journal's, without times, generations and what the case ignores; and the hosts' state."""

    def work(tx: Any) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for table in METADATA.sorted_tables:
            ignored = case.ignore.get(table.name, set())
            if table.name in JOURNAL or ignored is None:
                continue
            names = [
                c.name
                for c in table.columns
                if c.name not in ignored and c.name not in IGNORED_COLUMNS and not c.name.endswith("_at")
            ]
            statement = select(*[table.c[name] for name in names])
            if "absent" in table.c:
                statement = statement.where(table.c.absent.is_(False))
            if "deleted_at" in table.c:
                statement = statement.where(table.c.deleted_at.is_(None))
            rows = sorted(msgspec.json.encode(list(row)).decode() for row in tx.rows(statement)) if names else []
            if rows:
                found[table.name] = rows
        return found

    return harness.db.read(work), case.host_ignore(harness.host_state())


def difference(before: tuple[dict[str, list[str]], Any], after: tuple[dict[str, list[str]], Any]) -> str:
    """Empty if nothing differs."""
    parts = []
    for table in sorted(before[0].keys() | after[0].keys()):
        had, has = set(before[0].get(table, [])), set(after[0].get(table, []))
        if had != has:
            parts.append(f"{table}: lost {sorted(had - has)}, left {sorted(has - had)}")
    if before[1] != after[1]:
        parts.append(f"hosts: before {before[1]!r}, after {after[1]!r}")
    return "; ".join(parts)


def settled(harness: Harness, case: Case) -> tuple[dict[str, list[str]], Any]:
    """A snapshot that no longer changes."""
    end = time.monotonic() + case.settle_seconds
    last = snapshot(harness, case)
    while True:
        time.sleep(0.005)
        now = snapshot(harness, case)
        if not difference(last, now) or time.monotonic() > end:
            return now
        last = now


def left_behind(harness: Harness, case: Case, before: tuple[dict[str, list[str]], Any]) -> str:
    """What differs from before, when it has had time to settle."""
    end = time.monotonic() + case.settle_seconds
    while True:
        left = difference(before, snapshot(harness, case))
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)


def ended(harness: Harness, saga_id: str, seconds: float) -> SagaRow:
    """Wait for the end of a saga."""
    end = time.monotonic() + seconds
    while True:
        row = harness.db.read(lambda tx: journal.load(tx, saga_id))
        assert row is not None
        if row.ended_at is not None:
            return row
        if time.monotonic() > end:
            raise SagaCheckFailed(
                f"{row.kind} still is {row.status} ({row.phase}) in step {row.position} after {seconds:g} s"
            )
        time.sleep(0.002)


@contextmanager
def _acting(harness: Harness, act: _Act) -> Iterator[_Act]:
    harness.engine.stepper.probe = act
    try:
        yield act
    finally:
        harness.engine.stepper.probe = Probe()


def _start(harness: Harness, case: Case, object_id: str, params: msgspec.Struct) -> str:
    saga = declared(harness, case.kind)
    return harness.db.write(lambda tx: harness.engine.start(tx, saga, object_id, params, case.ctx))


# -- checks --------------------------------------------------------------------------------------------------------


def check_runs(harness: Harness, case: Case) -> None:
    object_id, params = case.prepare(harness)
    row = ended(harness, _start(harness, case, object_id, params), case.seconds)
    if row.status != "finished":
        raise SagaCheckFailed(f"{case.kind} failed without a fault: {row.error}")


def failing_points(saga: Saga, forward_from: str | None = None) -> list[tuple[str, int]]:
    """Where a saga can fail and be undone: at each step before its effect, after it, and at its very end."""
    points: list[tuple[str, int]] = []
    for position, step in enumerate(saga.steps):
        points.append(("do", position))
        if step.name == forward_from:
            return points
        if isinstance(step, Call | Transact):
            points.append(("effect", position))
    return [*points, ("finish", len(saga.steps) - 1)]


def check_unwinds(harness: Harness, case: Case, *, drop: int | None = None) -> int:
    """Fail at each point and unwind: database and hosts are as before. The number of points that were met."""
    met = 0
    for fail in failing_points(declared(harness, case.kind), case.forward_from):
        object_id, params = case.prepare(harness)
        before = settled(harness, case)
        with _acting(harness, _Act(case.kind, fail=fail, drop=drop)) as act:
            row = ended(harness, _start(harness, case, object_id, params), case.seconds)
        if not act.met:
            continue  # a step with nothing to do this time
        met += 1
        if row.status != "failed":
            raise SagaCheckFailed(f"{case.kind} went on although {fail} failed")
        left = left_behind(harness, case, before)
        if left:
            raise SagaCheckFailed(f"{case.kind} failed at {fail} and left something: {left}")
    return met


def check_undos_matter(harness: Harness, case: Case) -> list[str]:
    """Take each undo away in turn: `check_unwinds` must notice. The steps that were tried."""
    saga = declared(harness, case.kind)
    tried = []
    for position, step in enumerate(saga.steps):
        undo = getattr(step, "undo", None)
        last_transact = isinstance(step, Transact) and position == len(saga.steps) - 1
        if undo is None or isinstance(undo, NothingToUndo) or last_transact:
            continue  # a last Transact is rolled back, never undone
        if step.name in case.redundant:
            continue
        tried.append(step.name)
        try:
            check_unwinds(harness, case, drop=position)
        except SagaCheckFailed as noticed:
            if "left something" in str(noticed):
                continue
            raise
        raise SagaCheckFailed(f"{case.kind}: without the undo of {step.name} nothing is left behind, or nobody sees it")
    return tried


class _Twice:
    """A bus that has every operation of some sagas done twice, the second time under another id."""

    def __init__(self, bus: Any) -> None:
        self._bus = bus
        self.doubled: list[str] = []

    def call(self, topic: str, message: Any, timeout: float | None = None) -> Any:
        if isinstance(message, Execute) and not message.op_id.endswith("+"):
            first = msgspec.structs.replace(message, op_id=message.op_id + "+")
            self._bus.call(topic, first, timeout)
            self.doubled.append(message.op_id)
        return self._bus.call(topic, message, timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


@contextmanager
def _doubling(harness: Harness) -> Iterator[_Twice]:
    real = harness.engine.bus
    twice = _Twice(real)
    harness.engine.bus = twice
    try:
        yield twice
    finally:
        harness.engine.bus = real


def check_repeats(harness: Harness, case: Case) -> None:
    """Every operation done twice, forward and, if the saga unwinds, backward: as if done once."""
    with _doubling(harness):
        check_runs(harness, case)
        if case.unwinds:
            check_unwinds(harness, case)


def crash_points(saga: Saga, points: Collection[str] = CRASH_POINTS) -> list[tuple[str, int]]:
    return [
        (point, position)
        for position, step in enumerate(saga.steps)
        for point in CRASH_POINTS
        if point in points
        if isinstance(step, Call) or point in ("before-commit", "after-commit")
    ]


def _crash_and_resume(harness: Harness, case: Case, act: _Act, fail: tuple[str, int] | None) -> SagaRow | None:
    """Run into a crash, start another control plane, wait for the end. None if the crash did not come."""
    object_id, params = case.prepare(harness)
    harness.engine.stepper.probe = act
    saga_id = _start(harness, case, object_id, params)
    end = time.monotonic() + case.seconds
    over = False
    while not (act.crashed or over) and time.monotonic() < end:
        row = harness.db.read(lambda tx: journal.load(tx, saga_id))
        over = row is not None and row.ended_at is not None
        time.sleep(0.002)
    harness.stop_control_plane()  # its threads have ended: a crash after the last commit has come by now, or never
    Stepper.probe = _Act(case.kind, fail=fail)  # the next engine resumes the moment it starts
    try:
        harness.start_control_plane()
        return None if over and not act.crashed else ended(harness, saga_id, case.seconds)
    finally:
        Stepper.probe = Probe()


def check_crashes(harness: Harness, case: Case, points: Collection[str] = CRASH_POINTS) -> int:
    """Kill the control plane at each point of each step; another one finishes the saga. How many points were met."""
    met = 0
    for point, position in crash_points(declared(harness, case.kind), points):
        row = _crash_and_resume(harness, case, _Act(case.kind, crash=(point, position, "running")), None)
        if row is None:
            continue
        met += 1
        if row.status != "finished":
            raise SagaCheckFailed(f"{case.kind}, killed {point} of step {position}, failed: {row.error}")
    return met


def crash_child(harness: Harness, case: Case, kind: str, crash: tuple[str, int, str]) -> bool:
    """Kill the control plane at a point of a child's; another one finishes both. False: the point was not met."""
    row = _crash_and_resume(harness, case, _Act(kind, crash=crash), None)
    if row is not None and row.status != "finished":
        raise SagaCheckFailed(f"{case.kind}, killed {crash[0]} of step {crash[1]} of {kind}, failed: {row.error}")
    return row is not None


def check_crashes_unwinding(harness: Harness, case: Case, points: Collection[str] = CRASH_POINTS) -> int:
    """Let the saga fail at its end, and kill the control plane at each point of each undo: nothing is left behind."""
    met = 0
    saga = declared(harness, case.kind)
    fail = failing_points(saga, case.forward_from)[-1]
    for point, position in crash_points(saga, points):
        act = _Act(case.kind, fail=fail, crash=(point, position, "unwinding"))
        prepared: list[tuple[dict[str, list[str]], Any]] = []

        def prepare(h: Any, prepared: Any = prepared) -> tuple[str, msgspec.Struct]:
            made = case.prepare(h)
            prepared.append(settled(h, case))
            return made

        watched = replace(case, prepare=prepare)
        row = _crash_and_resume(harness, watched, act, fail)
        if row is None:
            continue
        met += 1
        if row.status != "failed":
            raise SagaCheckFailed(f"{case.kind}, killed {point} of undoing step {position}, is {row.status}")
        left = left_behind(harness, case, prepared[0])
        if left:
            raise SagaCheckFailed(f"{case.kind}, killed {point} of undoing step {position}, left something: {left}")
    return met


def check_everything(harness: Harness, case: Case) -> None:
    check_runs(harness, case)
    check_repeats(harness, case)
    check_crashes(harness, case)
    if case.unwinds:
        check_unwinds(harness, case)
        check_undos_matter(harness, case)
        check_crashes_unwinding(harness, case)


__all__ = [
    "Case",
    "Harness",
    "InjectedFailure",
    "SagaCheckFailed",
    "check_crashes",
    "check_crashes_unwinding",
    "check_everything",
    "check_repeats",
    "check_runs",
    "check_undos_matter",
    "check_unwinds",
    "crash_points",
    "declared",
    "difference",
    "ended",
    "failing_points",
    "snapshot",
]
