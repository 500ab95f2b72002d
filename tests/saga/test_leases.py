"""Two conductors on one database, hosts that come and go, messages that are lost."""

import threading
import time
from typing import Any

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.saga import Saga, journal
from cumulet.saga.engine import SagaEngine
from cumulet.saga.stepper import Probe
from tests.saga import sagas
from tests.saga.test_engine import ended, run, status
from tests.saga.world import GET, Params, World
from tests.support.patience import SECONDS, eventually


class Pause(Probe):
    """Holds a conductor at a point until it is let go."""

    def __init__(self, point: str, position: int) -> None:
        self.where = (point, position)
        self.reached, self.go = threading.Event(), threading.Event()

    def at(self, point: str, row: Any, step: Any) -> None:
        if (point, row.position) == self.where and not self.reached.is_set():
            self.reached.set()
            self.go.wait(SECONDS)


@pytest.fixture
def quick(world: World) -> World:
    world.options["lease_seconds"] = 0.2
    world.engine = world.make_engine("first")
    world.engine.register(sagas.BUILD)
    return world


def second(world: World, *registered: Saga) -> SagaEngine:
    engine = world.make_engine("second")
    engine.register(sagas.BUILD, *registered)
    engine.run()
    return engine


@pytest.mark.parametrize("point", ["before-send", "after-commit"])
def test_a_paused_conductor_that_wakes_neither_writes_nor_sends(quick: World, point: str) -> None:
    pause = Pause(point, 1)
    quick.engine.stepper.probe = pause
    quick.engine.run()
    quick.add_thing("t")
    saga_id = quick.start(sagas.BUILD, "t")
    assert pause.reached.wait(30)
    first = quick.engine
    other = quick.engine = second(quick)
    row = ended(quick, saga_id)
    assert row.status == "finished"
    sent = list(quick.host.seen)
    epochs = dict(quick.host.epochs)
    pause.go.set()
    eventually(first.idle)
    time.sleep(0.05)
    assert status(quick, saga_id) == row
    assert [op for op in quick.host.seen if op.endswith("do:1")].count(f"{saga_id}:create:do:1") == 1
    assert quick.host.seen == sent
    assert quick.host.epochs == epochs
    first.stop()
    other.stop()


def test_a_paused_conductor_in_a_transaction_loses_it(quick: World) -> None:
    """It wakes inside its transaction after another took over: the journal refuses it and its effect rolls back."""
    saga = sagas.BUILD
    quick.add_thing("t")
    saga_id = quick.start(saga, "t")
    flight = quick.engine._flight(saga_id)
    assert flight is not None
    quick.engine.run()
    ended(quick, saga_id)
    with pytest.raises(journal.Stale):
        quick.engine._move(flight, lambda tx, f, hold: quick.engine.stepper.go_on(tx, f, hold=hold))
    assert quick.thing("t").size == 2


def test_a_dead_conductors_saga_is_taken_over_when_its_lease_ends(quick: World) -> None:
    quick.add_thing("t")
    saga_id = quick.start(sagas.BUILD, "t")  # its conductor never ran
    eventually(lambda: not quick.bus.busy())  # the hint to look at it, which would make another take it at once
    quick.engine = second(quick)
    row = ended(quick, saga_id)
    assert row.status == "finished"
    steps = quick.db.read(lambda tx: journal.load_steps(tx, saga_id))
    assert (steps[0].ended_at or 0) - row.created_at >= 200_000  # not before the lease was over


def test_the_same_conductor_started_again_goes_on_at_once(world: World) -> None:
    world.options["lease_seconds"] = 600
    world.engine = world.make_engine("conductor")
    world.host.hold.add("volume.create")
    saga_id = run(world, sagas.BUILD)
    eventually(lambda: world.host.seen)
    world.engine.abandon()
    world.host.outcomes[world.host.seen[0]] = c.Outcome(op_id=world.host.seen[0], host="h1", state="done")
    world.registered = [sagas.BUILD]
    began = time.monotonic()
    world.start_control_plane()
    assert ended(world, saga_id).status == "finished"
    assert time.monotonic() - began < 300, "it did not wait for the lease of ten minutes"
    assert [op.split(":", 1)[1] for op in world.host.seen] == ["create:do:1", "export:do:1"]  # asked, not repeated


def test_a_lost_operation_is_sent_again(quick: World) -> None:
    quick.add_thing("t")
    quick.engine.run()
    lost: list[str] = []
    handle = quick.host.handle

    def lossy(message: Any) -> Any:
        if isinstance(message, c.Execute) and not lost:
            lost.append(message.op_id)
            return c.Accepted(op_id=message.op_id)
        return handle(message)

    quick.host.service.stop()
    quick.host.service = quick.bus.serve("agent.h1", lossy)
    saga_id = quick.start(sagas.BUILD, "t")
    assert ended(quick, saga_id).status == "finished"
    assert lost[0] in quick.host.seen


def test_an_operation_without_progress_is_asked_about_and_then_undone(quick: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(c.ExportVolume, "stall_seconds", 0.3)
    quick.host.hold.add("volume.export")
    quick.engine.run()
    quick.add_thing("t")
    row = ended(quick, quick.start(sagas.BUILD, "t"))
    assert (row.status, row.error_code) == ("failed", "timeout")
    assert quick.host.state == set()


def test_progress_puts_the_deadline_off(quick: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(c.ExportVolume, "stall_seconds", 0.4)
    quick.host.hold.add("volume.export")
    quick.engine.run()
    quick.add_thing("t")
    saga_id = quick.start(sagas.BUILD, "t")
    eventually(lambda: len(quick.host.seen) == 2)
    op_id = quick.host.seen[1]
    for n in range(8):
        time.sleep(0.1)
        quick.bus.call("conductor", c.Outcome(op_id=op_id, host="h1", state="running", progress=n / 8))
    assert status(quick, saga_id).status == "running"
    quick.bus.call("conductor", c.Outcome(op_id=op_id, host="h1", state="done"))
    assert ended(quick, saga_id).status == "finished"


def test_a_host_that_goes_down_fails_its_calls_and_undos_are_passed_over(world: World) -> None:
    world.host.hold.add("volume.export")
    saga_id = run(world, sagas.BUILD)
    eventually(lambda: len(world.host.seen) == 2)
    world.host.up = False
    world.engine.host_changed("h1")
    row = ended(world, saga_id)
    assert (row.status, row.error_code) == ("failed", "host-down")
    steps = {step.name: step.state for step in world.db.read(lambda tx: journal.load_steps(tx, saga_id))}
    assert steps == {"grow": "undone", "create": "undo_skipped", "export": "undo_skipped"}


def test_a_delete_passes_over_a_host_that_is_down(world: World) -> None:
    ended(world, run(world, sagas.BUILD))
    world.host.up = False
    saga_id = run(world, sagas.REMOVE)
    assert ended(world, saga_id).status == "finished"
    steps = {step.name: step.state for step in world.db.read(lambda tx: journal.load_steps(tx, saga_id))}
    assert steps == {"unexport": "skipped", "delete": "skipped", "remove": "done"}


def test_a_call_may_wait_for_its_host(world: World) -> None:
    from dataclasses import replace

    patient = replace(sagas.BUILD, steps=(replace(sagas.CREATE_STEP, if_host_down="wait"),))
    world.host.up = False
    saga_id = run(world, patient)
    eventually(lambda: status(world, saga_id).phase == "waiting")
    world.host.up = True
    world.engine.host_changed("h1")
    assert ended(world, saga_id).status == "finished"


def test_a_host_that_refuses_is_given_up(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr("cumulet.saga.engine._REFUSALS", 2)
    monkeypatch.setattr("cumulet.saga.engine._RETRY_SECONDS", 0.02)
    world.host.service.stop()

    def refuse(message: Any) -> Any:
        if isinstance(message, c.AskOutcome):
            return c.Outcome(op_id=message.op_id, host="h1", state="unknown")
        return c.Refused(op_id=message.op_id, reason="not my role")

    world.host.service = world.bus.serve("agent.h1", refuse)
    monkeypatch.setattr("cumulet.saga.stepper.UNDO_ATTEMPTS", 1)
    row = ended(world, run(world, sagas.BUILD))
    assert (row.status, row.error_code) == ("failed", "refused")


def test_an_agent_that_does_not_know_an_operation_is_named(world: World, monkeypatch: Any) -> None:
    """One of an older release cannot decode it: that is no reason to ask until the deadline."""
    monkeypatch.setattr("cumulet.saga.engine._REFUSALS", 2)
    monkeypatch.setattr("cumulet.saga.engine._RETRY_SECONDS", 0.02)
    monkeypatch.setattr("cumulet.saga.stepper.UNDO_ATTEMPTS", 1)
    world.host.service.stop()

    def old(message: Any) -> Any:
        if isinstance(message, c.AskOutcome):
            return c.Outcome(op_id=message.op_id, host="h1", state="unknown")
        return msgspec.json.decode(b'{"op": "compute.not_invented_yet"}', type=c.OperationBody)

    world.host.service = world.bus.serve("agent.h1", old)
    row = ended(world, run(world, sagas.BUILD))
    assert (row.status, row.error_code) == ("failed", "refused")
    assert "CreateVolume" in (row.error or "")
    assert "older release" in (row.error or "")


def test_outcomes_may_come_twice_and_late(world: World) -> None:
    saga_id = run(world, sagas.BUILD)
    row = ended(world, saga_id)
    for op_id in (f"{saga_id}:create:do:1", f"{saga_id}:export:do:1", "unheard-of:x:do:1"):
        for state in ("done", "failed", "running"):
            world.bus.call("conductor", c.Outcome(op_id=op_id, host="h1", state=state, error="late"))  # type: ignore[arg-type]
    assert status(world, saga_id) == row


def test_many_sagas_at_once(world: World) -> None:
    world.engine.register(sagas.BUILD)
    world.engine.run()
    ids = []
    for n in range(60):
        world.add_thing(f"m{n}")
        ids.append(world.start(sagas.BUILD, f"m{n}", Params(size=n)))
    assert {ended(world, saga_id, 20).status for saga_id in ids} == {"finished"}
    sizes = world.db.read(lambda tx: [tx.first(GET, {"id": f"m{n}"}).size for n in range(60)])  # type: ignore[union-attr]
    assert sizes == [n + 1 for n in range(60)]
