"""Operations: once, in order, journaled, acknowledged; refused when stale; run again after a kill."""

import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from cumulet.agent import contract as c
from cumulet.agent.fake import FakeHost
from cumulet.bus import Chaos
from cumulet.kernel.errors import Unavailable
from tests.agent.conftest import Rig

SPEC = c.ServerSpec(
    server_id="s1",
    name="one",
    instance_name="instance-00000001",
    generation=1,
    project_id="p",
    user_id="u",
    vcpus=1,
    memory_mb=64,
    root_gb=1,
)


def test_accepted_at_once_and_outcome_reported(rig: Rig) -> None:
    held = rig.host.faults.hang("DefineServer")
    op = rig.execute(c.DefineServer(server=SPEC))  # accepted while the host still works
    assert rig.host.faults.hanging.acquire(timeout=30)
    time.sleep(0.2)
    held.set()
    outcome = rig.conductor.outcome(op)
    assert outcome.state == "done"
    assert outcome.host == "h1"
    assert outcome.result is not None
    assert outcome.result["xml"].startswith("<domain")
    assert outcome.seconds > 0.19


def test_execute_to_outcome_is_quick(rig: Rig) -> None:
    """Our own share of one operation, in the role `all` without a broker."""
    seconds = []
    for _ in range(100):
        started = time.perf_counter()
        rig.conductor.outcome(rig.execute(c.DeleteDisks(server_id="s1")))
        seconds.append(time.perf_counter() - started)
    print(f"median {sorted(seconds)[50] * 1e3:.2f} ms")
    assert min(seconds) < 0.01, "nothing on the way is looked for now and then"


def test_a_failure_has_the_drivers_code(rig: Rig) -> None:
    rig.host.faults.fail("CreateDisks", code="no-space", message="The disk is full.")
    outcome = rig.conductor.outcome(rig.execute(c.CreateDisks(server=SPEC)))
    assert (outcome.state, outcome.error_code, outcome.error) == ("failed", "no-space", "The disk is full.")
    assert rig.host.empty()


def test_a_defect_in_a_driver_is_an_internal_failure(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cumulet.agent.fake.compute._domain_xml", lambda spec: 1 / 0)
    outcome = rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC)))
    assert (outcome.state, outcome.error_code) == ("failed", "internal")


def test_a_repeated_execute_runs_once_and_reports_again(rig: Rig) -> None:
    op = rig.execute(c.DefineServer(server=SPEC), op_id="op-x")
    first = rig.conductor.outcome(op)
    rig.execute(c.DefineServer(server=SPEC), op_id="op-x")
    deadline = time.monotonic() + 5
    while len(rig.conductor.heard(c.Outcome)) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert rig.conductor.heard(c.Outcome) == [first, first]
    assert rig.host.faults.count("DefineServer") == 1


def test_a_repeated_execute_of_a_running_operation_does_nothing(rig: Rig) -> None:
    release = rig.host.faults.hang("DefineServer")
    op = rig.execute(c.DefineServer(server=SPEC), op_id="op-x")
    assert rig.host.faults.hanging.acquire(timeout=30)
    rig.execute(c.DefineServer(server=SPEC), op_id="op-x")
    assert rig.bus.call("agent.h1", c.AskOutcome(op_id=op)).state == "running"
    release.set()
    rig.conductor.outcome(op)
    assert rig.host.faults.count("DefineServer") == 1


def test_what_became_of_it(rig: Rig) -> None:
    assert rig.bus.call("agent.h1", c.AskOutcome(op_id="never")).state == "unknown"
    op = rig.execute(c.DefineServer(server=SPEC))
    outcome = rig.conductor.outcome(op)
    assert rig.bus.call("agent.h1", c.AskOutcome(op_id=op)) == outcome


def test_an_older_epoch_is_refused_even_after_a_restart(rig: Rig) -> None:
    rig.conductor.outcome(rig.execute(c.DeleteDisks(server_id="s1"), epoch=5))
    stale = c.Execute(op_id="old", epoch=4, object_id="o1", request_id="r", body=c.DeleteDisks(server_id="s1"))
    assert isinstance(rig.bus.call("agent.h1", stale), c.Refused)
    rig.restart()
    assert isinstance(rig.bus.call("agent.h1", stale), c.Refused)
    assert rig.host.faults.count("DeleteDisks") == 1


def test_a_waiting_operation_of_an_old_epoch_does_not_run(rig: Rig) -> None:
    release = rig.host.faults.hang("DefineServer")
    rig.execute(c.DefineServer(server=SPEC), op_id="first", epoch=1)
    assert rig.host.faults.hanging.acquire(timeout=30)
    rig.execute(c.DeleteDisks(server_id="s1"), op_id="waits", epoch=1)
    rig.execute(c.UndefineServer(server_id="s1", instance_name="i"), op_id="newer", epoch=2)
    release.set()
    assert rig.conductor.outcome("waits").error_code == "stale-epoch"
    assert rig.conductor.outcome("newer").state == "done"
    assert rig.host.faults.count("DeleteDisks") == 0


def test_operations_of_one_object_run_in_order_and_of_others_beside_it(rig: Rig) -> None:
    release = rig.host.faults.hang("DefineServer")
    rig.execute(c.DefineServer(server=SPEC), op_id="first")
    assert rig.host.faults.hanging.acquire(timeout=30)
    rig.execute(c.UndefineServer(server_id="s1", instance_name="i"), op_id="second")
    rig.conductor.outcome(rig.execute(c.DeleteDisks(server_id="s2"), op_id="other", object_id="o2"))
    assert rig.host.faults.count("UndefineServer") == 0
    release.set()
    rig.conductor.outcome("second")
    assert rig.host.empty()


def test_no_such_operation_on_this_host_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.agent.stop(0)
    rig.host = FakeHost("h1", roles=("storage",))
    rig.agent = rig._make()
    rig.start()
    refused = rig.bus.call(
        "agent.h1", c.Execute(op_id="x", epoch=1, object_id="o", request_id="r", body=c.DefineServer(server=SPEC))
    )
    assert isinstance(refused, c.Refused)
    assert "compute.define" in refused.reason
    rig.close()


def test_outcomes_wait_for_a_conductor_across_a_restart_of_the_agent(rig: Rig) -> None:
    rig.conductor.stop()
    op = rig.execute(c.DefineServer(server=SPEC))
    while rig.bus.call("agent.h1", c.AskOutcome(op_id=op)).state != "done":
        time.sleep(0.005)
    rig.restart()
    assert rig.conductor.heard(c.Outcome) == []
    rig.conductor.start()
    assert rig.conductor.outcome(op).state == "done"
    assert rig.host.faults.count("DefineServer") == 1


def test_outcomes_are_repeated_until_the_conductor_takes_them(rig: Rig) -> None:
    refusals = 3

    def refuse(message: object) -> bool:
        nonlocal refusals
        if isinstance(message, c.Outcome) and refusals:
            refusals -= 1
            return True
        return False

    rig.conductor.refuse = refuse
    op = rig.execute(c.DefineServer(server=SPEC))
    assert rig.conductor.outcome(op, seconds=10).state == "done"
    assert refusals == 0


@pytest.mark.parametrize("after", [False, True], ids=["before the effect", "after the effect"])
def test_a_restart_in_the_middle_runs_the_operation_again(rig: Rig, after: bool) -> None:
    rig.host.faults.hang("CreateDisks", after=after, times=1)
    op = rig.execute(c.CreateDisks(server=SPEC))
    assert rig.host.faults.hanging.acquire(timeout=30)
    rig.restart()
    assert rig.conductor.outcome(op).state == "done"
    assert rig.host.faults.count("CreateDisks") == 2
    with rig.host.world.look() as state:
        assert list(state.disks) == ["s1"]


def test_secrets_leave_the_journal_with_the_operation(rig: Rig) -> None:
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC)))
    rig.conductor.outcome(rig.execute(c.PowerServer(server_id="s1", instance_name="i", action="start"), object_id="o1"))
    rig.conductor.outcome(
        rig.execute(c.SetAdminPassword(server_id="s1", instance_name="i", user="root", password="correct-horse"))
    )
    assert rig.path.stat().st_mode & 0o077 == 0
    bodies = sqlite3.connect(rig.path).execute("SELECT body, outcome FROM operations").fetchall()
    assert len(bodies) == 3
    assert "correct-horse" not in repr(bodies)


def test_progress_is_told(rig: Rig) -> None:
    rig.host.faults.delay("CreateDisks", 2.2, times=1)
    op = rig.execute(c.CreateDisks(server=SPEC))
    told = rig.conductor.wait(c.Outcome, lambda m: m.op_id == op and m.state == "running")
    assert told.progress is not None
    assert 0 < told.progress < 1
    rig.conductor.outcome(op)


def test_under_chaos_every_operation_ends_once(tmp_path: Path) -> None:
    chaos = Chaos(
        seed=random.randrange(1 << 16), drop=0.15, double=0.2, delay=0.3, delay_seconds=0.02, drop_seconds=0.05
    )
    rig = Rig(tmp_path, chaos).start()
    ops = [f"op-{n}" for n in range(30)]

    def drive(op_id: str) -> None:
        body = c.DeleteDisks(server_id=op_id)
        for _ in range(200):
            try:
                rig.execute(body, op_id=op_id, object_id=op_id)
                return
            except Unavailable:
                time.sleep(0.01)

    threads = [threading.Thread(target=drive, args=(op,), daemon=True) for op in ops]
    for thread in threads:
        thread.start()
    for op in ops:
        assert rig.conductor.outcome(op, seconds=20).state == "done"
    ran = [body.server_id for body in rig.host.faults.history]
    assert sorted(ran) == sorted(ops)
    rig.close()
