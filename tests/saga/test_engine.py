"""Running, failing, preempting, waiting."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from cumulet.agent import contract as c
from cumulet.bus.chaos import Chaos
from cumulet.kernel.errors import Conflict, Unavailable
from cumulet.saga import Call, Saga, Transact, nothing_to_undo
from tests.saga import sagas
from tests.saga.world import CTX, Params, World
from tests.support.patience import SECONDS, eventually


def ended(world: World, saga_id: str, seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        row = status(world, saga_id)
        if row.ended_at is not None:
            return row
        time.sleep(0.002)
    raise AssertionError(f"still {row.status} in step {row.position} {row.phase}")


def status(world: World, saga_id: str) -> Any:
    from cumulet.saga import journal

    return world.db.read(lambda tx: journal.load(tx, saga_id))


def run(world: World, saga: Saga, thing: str = "t", params: Params | None = None) -> Any:
    if world.thing(thing) is None:
        world.add_thing(thing)
    world.engine.register(saga)
    if not world.engine._running:
        world.engine.run()
    return world.start(saga, thing, params)


def test_a_saga_runs_its_steps_and_keeps_its_history(world: World) -> None:
    row = ended(world, run(world, sagas.BUILD))
    assert row.status == "finished"
    assert tuple(world.thing("t")) == ("ready", 2)
    assert world.host.state == {"volume t", "export t"}
    (history,) = world.db.read(lambda tx: world.engine.history(tx, "thing", "t"))
    assert history.action == "build"
    assert [(s.name, s.state, s.host) for s in history.steps] == [
        ("grow", "done", None),
        ("create", "done", "h1"),
        ("export", "done", "h1"),
    ]
    assert history.steps[0].output == {"before": 1}
    assert all(s.started_at <= (s.ended_at or 0) for s in history.steps)


def test_a_failing_call_unwinds_itself_and_what_came_before(world: World) -> None:
    world.host.fail["volume.export"] = "no-space"
    row = ended(world, run(world, sagas.BUILD))
    assert (row.status, row.error_code) == ("failed", "no-space")
    assert tuple(world.thing("t")) == ("error", 1)
    assert world.host.state == set()
    assert [op.split(":", 1)[1] for op in world.host.seen] == [
        "create:do:1",
        "export:do:1",
        "export:undo:1",
        "create:undo:1",
    ]


def test_a_step_that_raises_is_rolled_back_and_its_error_kept(world: World) -> None:
    row = ended(world, run(world, sagas.REFUSED))
    assert (row.error_code, row.error_details) == ("not-today", {"host": "h9"})
    assert tuple(world.thing("t")) == ("not-today: Not today.", 1)
    assert world.host.state == set()


def test_a_defect_in_a_step_fails_the_saga(world: World) -> None:
    broken = Saga(
        "thing.broken", "thing", Params, (sagas.GROW_STEP, Call("x", lambda tx, run: 1 / 0, nothing_to_undo("x")))
    )  # type: ignore[arg-type,return-value]
    row = ended(world, run(world, broken))
    assert (row.status, row.error_code) == ("failed", "internal")
    assert world.thing("t").size == 1


def test_an_undo_that_fails_is_tried_again_and_then_passed_over(world: World) -> None:
    tries: list[int] = []

    def undo(tx: Any, run: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("not yet")

    saga = Saga(
        "thing.x",
        "thing",
        Params,
        (sagas.GROW_STEP, Transact("odd", lambda tx, run: None, undo), *sagas.REFUSED.steps[2:]),
    )
    row = ended(world, run(world, saga))
    assert row.status == "failed"
    assert len(tries) == 3
    assert world.thing("t").size == 1


def test_an_owned_object_is_refused_and_free_afterwards(world: World) -> None:
    world.host.hold.add("volume.export")
    run(world, sagas.BUILD)
    eventually(lambda: len(world.host.seen) == 2)
    with pytest.raises(Conflict):
        world.start(sagas.BUILD, "t")
    owner = world.db.read(lambda tx: world.engine.owner(tx, "thing", "t"))
    assert owner is not None
    assert owner.kind == "thing.build"


def test_a_delete_asks_the_owner_to_unwind_and_then_runs(world: World) -> None:
    saga = sagas.waiting(lambda tx, run: None)
    first = run(world, saga)
    eventually(lambda: status(world, first).phase == "waiting")
    second = run(world, sagas.REMOVE)
    assert status(world, second).status == "queued" or status(world, first).cancel_requested
    assert world.start(sagas.REMOVE, "t") == second
    assert ended(world, first).cancelled
    assert ended(world, second).status == "finished"
    assert world.thing("t").status == "deleted"
    assert world.host.state == set()
    assert world.db.read(lambda tx: world.engine.owner(tx, "thing", "t")) is None


def test_a_delete_comes_at_the_moment_when_the_owner_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side: the owner that was found has given the object up before the delete could queue behind it."""
    from cumulet.saga import journal

    queue_behind = journal.queue_behind

    def too_late(tx: Any, kind: str, thing: str, owner_id: str, saga_id: str) -> bool:
        monkeypatch.undo()
        journal.free_slot(tx, kind, thing, owner_id)
        return queue_behind(tx, kind, thing, owner_id, saga_id)

    world.add_thing("t")
    for saga in (sagas.BUILD, sagas.REMOVE):
        world.engine.register(saga)
    world.start(sagas.BUILD, "t")
    monkeypatch.setattr(journal, "queue_behind", too_late)
    removing = world.start(sagas.REMOVE, "t")
    assert status(world, removing).status == "running"


def test_a_delete_waits_for_the_call_under_way(world: World) -> None:
    world.host.hold.add("volume.create")
    first = run(world, sagas.BUILD)
    eventually(lambda: len(world.host.seen) == 1)
    second = run(world, sagas.REMOVE)
    time.sleep(0.05)
    assert status(world, second).status == "queued"
    op_id = world.host.seen[0]
    world.host.hold.clear()
    world.bus.call("conductor", sagas.c.Outcome(op_id=op_id, host="h1", state="done"))
    assert ended(world, first).cancelled
    assert ended(world, second).status == "finished"
    assert world.host.state == set()


def test_what_repeats_runs_once_more_after_the_first(world: World) -> None:
    world.host.hold.add("volume.delete")
    again = replace(sagas.REMOVE, kind="thing.again", preempts=1, repeats=True)
    first = run(world, again)
    eventually(lambda: len(world.host.seen) == 2)
    second = run(world, again)
    assert second != first
    assert world.start(again, "t") == second, "it has not begun: it will do what the third asks for"
    assert not status(world, first).cancel_requested
    assert status(world, second).status == "queued"
    world.host.hold.clear()
    world.bus.call("conductor", sagas.c.Outcome(op_id=world.host.seen[1], host="h1", state="done"))
    assert ended(world, first).status == ended(world, second).status == "finished"
    assert status(world, second).created_at < status(world, first).ended_at
    assert len(world.host.seen) == 4
    assert ended(world, run(world, again)).status == "finished", "the object is free again"


def test_a_delete_takes_the_place_of_what_would_run_once_more(world: World) -> None:
    world.host.hold.add("volume.delete")
    again = replace(sagas.REMOVE, kind="thing.again", preempts=1, repeats=True)
    first = run(world, again)
    eventually(lambda: len(world.host.seen) == 2)
    second, third = run(world, again), run(world, replace(sagas.REMOVE, preempts=2))
    assert ended(world, second).cancelled
    assert status(world, first).cancel_requested
    world.host.hold.clear()
    world.bus.call("conductor", sagas.c.Outcome(op_id=world.host.seen[1], host="h1", state="done"))
    assert ended(world, first).cancelled
    assert ended(world, third).status == "finished"


def test_epochs_rise_over_the_sagas_of_an_object(world: World) -> None:
    ended(world, run(world, sagas.BUILD))
    before = world.host.epochs["t"]
    row = ended(world, run(world, sagas.REMOVE))
    assert row.status == "finished"
    assert world.host.epochs["t"] > before


def test_a_wait_looks_again_when_woken(world: World) -> None:
    seen = threading.Event()
    saga = sagas.waiting(lambda tx, run: "now" if seen.is_set() else None, poll_seconds=60)
    saga_id = run(world, saga)
    eventually(lambda: status(world, saga_id).phase == "waiting")
    seen.set()
    began = time.monotonic()
    world.engine.wake("thing", "t")
    assert ended(world, saga_id).status == "finished"
    assert time.monotonic() - began < 30, "it was woken, and did not poll"


def test_a_wait_polls_and_its_deadline_fails_or_goes_on(world: World) -> None:
    failing = run(world, sagas.waiting(lambda tx, run: None, deadline_seconds=0.1, poll_seconds=0.02))
    assert ended(world, failing).error_code == "timeout"
    assert world.host.state == set()


def test_a_wait_may_go_on_at_its_deadline(world: World) -> None:
    saga = sagas.waiting(lambda tx, run: None, deadline_seconds=0.1, poll_seconds=0.02, on_deadline="continue")
    assert ended(world, run(world, saga)).status == "finished"


def test_children_run_and_their_parent_goes_on(world: World) -> None:
    for thing in ("t-1", "t-2"):
        world.add_thing(thing)
    world.engine.register(sagas.BUILD)
    assert ended(world, run(world, sagas.parent(tolerate=False))).status == "finished"
    assert world.thing("t-1").status == world.thing("t-2").status == "ready"


@pytest.mark.parametrize("tolerate", [False, True])
def test_a_failed_child(world: World, tolerate: bool) -> None:
    for thing in ("t-1", "t-2"):
        world.add_thing(thing)
    world.engine.register(sagas.BUILD)
    world.host.fail["volume.create"] = "no-space"
    row = ended(world, run(world, sagas.parent(tolerate)))
    assert row.status == ("finished" if tolerate else "failed")
    assert world.thing("t").status == ("ready" if tolerate else "error no-space")
    assert world.thing("t").size == (2 if tolerate else 1)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_child_that_finished_is_taken_back_when_another_does_not(world: World, cancelled: bool) -> None:
    for thing in ("t-1", "t-2"):
        world.add_thing(thing)
    second = sagas.waiting(lambda tx, run: None) if cancelled else sagas.REFUSED
    for saga in (sagas.BUILD, sagas.REMOVE, second):
        world.engine.register(saga)
    row = run(world, sagas.undone_parent(second))
    eventually(lambda: world.thing("t-1").status == "ready" or status(world, row).status != "running")
    if cancelled:
        world.db.write(lambda tx: world.engine.cancel(tx, "thing", "t"))
    assert ended(world, row).status == "failed"
    assert ended(world, row).cancelled is cancelled
    assert world.thing("t-1").status == "deleted"
    assert world.host.state == set()


def test_a_child_may_have_the_object_of_its_parent(world: World) -> None:
    world.engine.register(sagas.BUILD)
    assert ended(world, run(world, sagas.RETRY)).status == "finished"
    assert world.thing("t").status == "retried"
    assert ended(world, run(world, sagas.REMOVE)).status == "finished"


def test_a_full_backlog_refuses(world: World) -> None:
    world.engine.register(sagas.BUILD)
    world.engine._intake._max_waiting = 3
    for n in range(3):
        world.add_thing(f"t{n}")
        world.start(sagas.BUILD, f"t{n}")
    world.add_thing("t9")
    with pytest.raises(Unavailable):
        world.start(sagas.BUILD, "t9")


def test_starting_rolls_back_with_its_transaction(world: World) -> None:
    world.engine.register(sagas.BUILD)
    world.add_thing("t")

    def work(tx: Any) -> None:
        world.engine.start(tx, sagas.BUILD, "t", Params(), CTX)
        raise KeyError("rolled back")

    with pytest.raises(KeyError):
        world.db.write(work)
    assert world.db.read(lambda tx: world.engine.owner(tx, "thing", "t")) is None


def test_a_call_step_is_one_transaction_of_two_statements(world: World) -> None:
    """So that a create of seven steps costs a few milliseconds, whatever the machine does besides."""
    done = threading.Event()
    counts: list[int] = []
    several = [replace(sagas.EXPORT_STEP, name=f"export-{n}") for n in range(8)]
    world.engine._scan_seconds = 60
    for number in (2, 8):
        saga = Saga(
            f"thing.calls-{number}",
            "thing",
            Params,
            tuple(several[:number]),
            finished=lambda tx, run: tx.after_commit(done.set),
        )
        world.engine.register(saga)
        world.add_thing(f"t{number}")
        if not world.engine._running:
            world.engine.run()
            eventually(lambda: world.engine.idle())
            time.sleep(0.1)
        done.clear()
        before = world.db.statements
        world.start(saga, f"t{number}")
        assert done.wait(10)
        counts.append(world.db.statements - before)
    assert counts[1] - counts[0] <= 6 * 2, counts
    assert counts[0] <= 14, counts


def test_it_is_not_idle_while_it_hands_a_step_to_a_host(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a broker the step after an outcome is handed over by a runner, while no saga is being driven."""
    call, handing, go_on = world.bus.call, threading.Event(), threading.Event()

    def slow(topic: str, message: Any, timeout: float | None = None) -> Any:
        if isinstance(message, c.Execute) and message.op_id.endswith(":export:do:1"):
            handing.set()
            assert go_on.wait(SECONDS)
        return call(topic, message, timeout)

    world.bus.chaos = Chaos(seed=0)  # harms nothing, but `in_process` is false
    monkeypatch.setattr(world.bus, "call", slow)
    world.engine.register(sagas.BUILD)
    world.engine.run()
    world.add_thing("t")
    world.start(sagas.BUILD, "t")
    assert handing.wait(SECONDS)
    assert not world.engine.idle()
    go_on.set()
    eventually(lambda: world.db.read(lambda tx: world.engine.history(tx, "thing", "t"))[0].saga.status == "finished")
    eventually(world.engine.idle)


def test_latency_is_milliseconds(world: World) -> None:
    """Printed; the bound is loose, for machines that do much besides."""
    world.engine.register(sagas.BUILD)
    world.engine.run()
    times = []
    for n in range(20):
        world.add_thing(f"q{n}")
        row = ended(world, world.start(sagas.BUILD, f"q{n}"))
        assert row.status == "finished"
        times.append((row.ended_at - row.created_at) / 1000)
    print(f"three steps, two of them calls: median {sorted(times)[10]:.2f} ms, best {min(times):.2f} ms")
    assert min(times) < 60


def test_a_saga_of_another_release_waits_and_is_told_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.engine.register(sagas.BUILD)
    world.add_thing("t")
    saga_id = world.start(sagas.BUILD, "t")
    other = world.engine = world.make_engine("other")  # knows no saga
    other.run()
    for _ in range(3):
        other.wake_saga(saga_id)
        eventually(other.idle)
    assert status(world, saga_id).status == "running"
    assert sum("no saga thing.build" in record.message for record in caplog.records) == 1
