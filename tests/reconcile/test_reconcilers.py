"""Periods, signals, leases, and what is seen of them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cumulet.bus import LocalBus
from cumulet.db import Database
from cumulet.kernel.clock import FakeClock
from cumulet.kernel.errors import Unavailable
from cumulet.reconcile import Reconcilers
from tests.support.patience import eventually


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'r.db'}", clock=FakeClock(), durable=False)
    made.create_all()
    yield made
    made.close()


def engine(db: Database, runs: list[str], name: str = "c1", period: float = 10) -> Reconcilers:
    made = Reconcilers(db, LocalBus(), name=name)

    def run() -> str:
        runs.append(name)
        return f"run {len(runs)}"

    made.register("tidy", run, period_seconds=period)
    return made


def advance(db: Database, seconds: float) -> None:
    assert isinstance(db.clock, FakeClock)
    db.clock.advance(seconds)


def test_it_runs_at_start_by_period_and_by_signal(db: Database) -> None:
    runs: list[str] = []
    one = engine(db, runs)
    one.start()
    eventually(lambda: len(runs) == 1)
    time.sleep(0.05)
    assert len(runs) == 1
    advance(db, 11)
    eventually(lambda: len(runs) == 2)
    eventually(lambda: db.read(one.status)[0].status == "ok")
    one.signal("tidy")
    eventually(lambda: len(runs) == 3)
    eventually(lambda: db.read(one.status)[0].runs == 3)
    (row,) = db.read(one.status)
    assert (row.name, row.status, row.summary, row.failures) == ("tidy", "ok", "run 3", 0)
    one.stop()


@pytest.mark.parametrize(("error", "traced"), [(RuntimeError("no way"), True), (Unavailable("no way"), False)])
def test_an_error_is_seen_and_the_next_run_tries_again(
    db: Database, caplog: pytest.LogCaptureFixture, error: Exception, traced: bool
) -> None:
    """What is away for a while is a line in the log at each run, no trace."""
    made = Reconcilers(db, LocalBus())
    broken = [True]

    def run() -> None:
        if broken:
            raise error

    made.register("odd", run, period_seconds=1)
    made.start()
    eventually(lambda: db.read(made.status)[0].status == "error")
    (row,) = db.read(made.status)
    assert (row.error, row.failures) == (f"{type(error).__name__}: no way", 1)
    (record,) = [one for one in caplog.records if "reconciler odd failed" in one.getMessage()]
    assert (record.exc_info is not None) == traced
    broken.clear()
    advance(db, 2)
    eventually(lambda: db.read(made.status)[0].status == "ok")
    assert db.read(made.status)[0].error is None
    made.stop()


def test_what_failed_is_tried_again_sooner_than_by_period(db: Database) -> None:
    made = Reconcilers(db, LocalBus())
    runs: list[int] = []

    def run() -> None:
        runs.append(db.clock.now())
        if len(runs) <= 4:
            raise Unavailable("away")

    made.register("odd", run, period_seconds=30)
    made.start()
    for count, pause in enumerate((5, 10, 20, 30), 1):  # never longer than the period
        eventually(lambda count=count: db.read(made.status)[0].runs == count)  # type: ignore[misc]
        advance(db, pause - 1)
        time.sleep(0.05)
        assert len(runs) == count
        advance(db, 1.1)
    eventually(lambda: db.read(made.status)[0].status == "ok")
    row = db.read(made.status)[0]
    assert row.next_at - runs[-1] == pytest.approx(30_000_000, abs=1_000_000)
    made.stop()


def test_one_conductor_runs_it(db: Database) -> None:
    runs: list[str] = []
    first, second = engine(db, runs), engine(db, runs, "c2")
    first.start()
    eventually(lambda: db.read(first.status)[0].runs == 1)
    second.start()
    time.sleep(0.05)
    assert runs == ["c1"]
    assert not second.run_now("tidy")
    first.stop()
    advance(db, 11)
    eventually(lambda: runs == ["c1", "c2"])
    second.stop()


def test_a_dead_conductors_lease_ends(db: Database) -> None:
    runs: list[str] = []
    first, second = engine(db, runs), engine(db, runs, "c2")
    first._known["tidy"].run = lambda: (_ for _ in ()).throw(SystemExit)  # dies in the middle: nothing is written
    first.db.write(lambda tx: [tx.run(first_declare(), {"name": "tidy"})])
    with pytest.raises(SystemExit):
        first.run_now("tidy")
    assert not second.run_now("tidy")
    advance(db, 301)
    assert second.run_now("tidy")
    assert runs == ["c2"]


def first_declare() -> Any:
    from cumulet.reconcile import engine as module

    return module._DECLARE


def test_a_process_that_runs_none_passes_the_signal_on(db: Database) -> None:
    runs: list[str] = []
    bus = LocalBus()
    api = Reconcilers(db, bus)
    worker = engine(db, runs)
    service = bus.serve("conductor", lambda message: worker.on_signal(message))
    worker.start()
    eventually(lambda: len(runs) == 1)
    api.signal("tidy")
    eventually(lambda: len(runs) == 2)
    worker.stop()
    service.stop()


def test_the_period_begins_when_a_run_ends(db: Database) -> None:
    """A run that took a moment is no reason to miss the next by that moment, and wait another period."""
    made = Reconcilers(db, LocalBus())
    runs: list[int] = []

    def run() -> None:
        advance(db, 0.5)
        runs.append(1)

    made.register("slow", run, period_seconds=10)
    made.start()
    eventually(lambda: db.read(made.status)[0].runs == 1)
    advance(db, 9.7)  # 10.2 since it began, 9.7 since it ended
    time.sleep(0.1)
    assert len(runs) == 1
    advance(db, 0.4)
    eventually(lambda: len(runs) == 2)
    made.stop()


def test_another_conductor_takes_its_turn_when_the_period_is_over(db: Database) -> None:
    runs: list[str] = []
    first, second = engine(db, runs), engine(db, runs, "c2")
    first.start()
    eventually(lambda: db.read(first.status)[0].runs == 1)
    first.stop()
    advance(db, 6)
    second.start()
    time.sleep(0.1)
    assert runs == ["c1"]
    advance(db, 5)
    eventually(lambda: runs == ["c1", "c2"])
    second.stop()
