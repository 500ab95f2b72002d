"""Heartbeats, inventory, server reports, queries."""

import threading
import time
from typing import Any

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.runtime import agent as runtime
from tests.agent.conftest import Rig
from tests.agent.test_operations import SPEC
from tests.support.patience import eventually


def test_heartbeats_say_what_the_host_is(rig: Rig) -> None:
    beat = rig.conductor.wait(c.Heartbeat)
    assert beat.host == "h1"
    assert beat.roles == ["compute", "network", "storage"]
    assert beat.virt_type == "fake"
    assert beat.resources.vcpus > 0
    assert beat.resources.volume_total_gb > 0
    first = beat.started
    rig.restart()
    assert rig.conductor.wait(c.Heartbeat, lambda m: m.started != first).started > first


def test_inventory_at_start_and_leftovers_removed_only_when_named(rig: Rig) -> None:
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC)))
    named = rig.conductor.wait(c.Inventory, lambda m: [s.server_id for s in m.servers] == ["s1"])
    assert named.servers[0].power_state == 4
    time.sleep(0.5)
    assert not rig.host.empty()
    rig.conductor.absent = c.Absent(servers=["s1"])
    end = time.monotonic() + 5
    while not rig.host.empty():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_server_reports_rise_and_wait_for_a_conductor(rig: Rig) -> None:
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC)))
    power = {"server_id": "s1", "instance_name": "i"}
    rig.conductor.outcome(rig.execute(c.PowerServer(action="start", **power)))
    running = rig.conductor.wait(c.ServerReport, lambda m: m.power_state == 1)
    rig.conductor.stop()
    rig.host.compute.crash("s1", 6)
    time.sleep(0.1)
    rig.restart()
    rig.conductor.start()
    crashed = rig.conductor.wait(c.ServerReport, lambda m: m.power_state == 6)
    assert crashed.sequence > running.sequence
    rig.conductor.outcome(rig.execute(c.PowerServer(action="hard_reboot", **power)))
    again = rig.conductor.wait(c.ServerReport, lambda m: m.power_state == 1 and m.sequence > crashed.sequence)
    assert again.sequence > crashed.sequence


def test_queries_are_answered_directly(rig: Rig) -> None:
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC)))
    rig.conductor.outcome(rig.execute(c.PowerServer(server_id="s1", instance_name="i", action="start")))
    log = rig.bus.call("agent.h1", c.Ask(query=c.ConsoleLog(server_id="s1", length=1)))
    assert log == c.Answer(text="one login:\n")
    missing = rig.bus.call("agent.h1", c.Ask(query=c.ConsoleLog(server_id="nobody")))
    assert missing.error_code == "not-found"


def test_a_server_that_arrives_while_the_conductor_answers_is_no_leftover(rig: Rig) -> None:
    """The answer names what was here before: what came since is another's."""

    def arrive() -> c.Absent:
        rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC), object_id="s1"))
        return c.Absent(servers=["s1", "s2"])

    rig.conductor.outcome(rig.execute(c.DefineServer(server=msgspec.structs.replace(SPEC, server_id="s2"))))
    rig.conductor.before_absent = arrive
    deadline = time.monotonic() + 5
    while "s2" in rig.host.world.state.domains:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(rig.host.world.state.domains) == ["s1"]


def test_what_is_not_settled_is_soon_looked_at_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is worked on just then is not removed, and some things a conductor cannot say yet."""
    inventories = 0

    def answer() -> c.Absent:
        nonlocal inventories
        inventories += 1
        if inventories == 1:
            return c.Absent(again=True)
        if inventories == 2:
            rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC), object_id="s1"))
        return c.Absent(servers=["s1"])

    rig.agent.settings = msgspec.structs.replace(rig.agent.settings, inventory_seconds=3600)
    monkeypatch.setattr(runtime, "_STOCK_PAUSE_S", 0.1)
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC), object_id="s1"))
    rig.conductor.before_absent = answer
    eventually(lambda: rig.host.world.state.domains == {})
    assert inventories == 3


def test_a_server_goes_in_its_turn(rig: Rig) -> None:
    """What is asked for it after the answer comes after its removal, however long that takes."""
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC), object_id="s1"))
    rig.conductor.wait(c.Inventory, lambda m: [s.server_id for s in m.servers] == ["s1"])
    begun, go_on = threading.Event(), threading.Event()
    remove = rig.host.compute.remove_absent

    def slowly(absent: c.Absent) -> None:
        if absent.servers:
            begun.set()
            go_on.wait(30)
        remove(absent)

    rig.host.compute.remove_absent = slowly  # type: ignore[method-assign]
    rig.conductor.absent = c.Absent(servers=["s1"])
    assert begun.wait(30)
    rig.conductor.absent = c.Absent()
    define = rig.execute(c.DefineServer(server=SPEC), object_id="s1")
    time.sleep(0.1)
    assert not rig.conductor.heard(c.Outcome, lambda m: m.op_id == define and m.state == "done")
    go_on.set()
    rig.conductor.outcome(define)
    assert list(rig.host.world.state.domains) == ["s1"]


def test_what_is_reported_while_an_inventory_is_taken_is_newer(rig: Rig) -> None:
    rig.conductor.outcome(rig.execute(c.DefineServer(server=SPEC), object_id="s1"))
    look = rig.host.compute.inventory
    power = c.PowerServer(server_id="s1", instance_name="i", action="start")

    def and_start() -> Any:
        found = look()
        rig.host.compute.inventory = look  # type: ignore[method-assign]
        rig.conductor.outcome(rig.execute(power, object_id="s1"))
        return found

    rig.host.compute.inventory = and_start  # type: ignore[method-assign]
    running = rig.conductor.wait(c.ServerReport, lambda m: m.power_state == 1)
    rig.conductor.wait(c.Inventory, lambda m: [s.power_state for s in m.servers] == [1])
    before = rig.conductor.heard(c.Inventory, lambda m: [s.power_state for s in m.servers] == [4])
    assert max(said.servers[0].sequence for said in before) < running.sequence
