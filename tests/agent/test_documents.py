"""Documents: pulled on a hint and by comparison, applied with their generation, removed when named absent."""

import time
from collections.abc import Callable

import msgspec

from cumulet.agent import contract as c
from tests.agent.conftest import Rig
from tests.support.patience import eventually

METADATA = c.MetadataDoc(id="s1", generation=3, meta_data={"uuid": "s1"}, network_data={})


def applied(rig: Rig, generation: int, error: str | None = None) -> Callable[[c.Applied], bool]:
    return lambda m: ["metadata", "s1", generation, error] in [list(entry) for entry in m.entries]


def on_host(rig: Rig) -> dict[str, int]:
    with rig.host.world.look() as state:
        return {i: doc["generation"] for i, doc in state.documents.get("metadata", {}).items()}


def test_a_hint_brings_the_document(rig: Rig) -> None:
    assert rig.agent.documents.settled(5)
    rig.conductor.want(METADATA)
    rig.bus.cast("agent.h1", c.LookAgain(keys=[("metadata", "s1")]))
    rig.conductor.wait(c.Applied, applied(rig, 3))
    assert on_host(rig) == {"s1": 3}
    assert rig.agent.document("metadata", "s1") == METADATA


def test_a_question_under_way_is_work_to_wait_for(rig: Rig) -> None:
    """Between a hint taken and its document handed to a worker nothing else tells that something is to come."""
    assert rig.agent.documents.settled(5)
    seen: list[bool] = []

    def refuse(message: object) -> bool:
        if isinstance(message, c.Pull | c.Applied):
            seen.append(rig.agent.busy()[1] and not rig.agent.documents.settled(0.02))
        return False

    rig.conductor.refuse = refuse
    rig.conductor.want(METADATA)
    rig.bus.cast("agent.h1", c.LookAgain(keys=[("metadata", "s1")]))
    rig.conductor.wait(c.Applied, applied(rig, 3))
    assert len(seen) >= 2
    assert all(seen)


def test_a_lost_hint_is_made_good_by_comparison(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3))
    rig.conductor.want(msgspec.structs.replace(METADATA, generation=4))
    rig.conductor.wait(c.Applied, applied(rig, 4))
    assert on_host(rig) == {"s1": 4}


def test_an_older_generation_changes_nothing(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3))
    rig.conductor.want(msgspec.structs.replace(METADATA, generation=2))
    rig.bus.cast("agent.h1", c.LookAgain(keys=[("metadata", "s1")]))
    time.sleep(0.1)
    assert rig.agent.documents.settled(5)
    assert on_host(rig) == {"s1": 3}


def test_absent_documents_are_removed_and_newer_ones_kept(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3))
    rig.conductor.unwant(METADATA, generation=2)
    rig.bus.cast("agent.h1", c.LookAgain(keys=[("metadata", "s1")]))
    time.sleep(0.1)
    assert on_host(rig) == {"s1": 3}
    rig.conductor.unwant(METADATA, generation=4)
    rig.bus.cast("agent.h1", c.LookAgain(keys=[("metadata", "s1")]))
    rig.conductor.wait(c.Applied, applied(rig, 4))
    assert on_host(rig) == {}
    assert rig.agent.document("metadata", "s1") is None


def test_what_the_control_plane_does_not_know_is_asked_about_and_left_alone(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3))
    rig.conductor.wanted.clear()  # neither wanted nor named absent
    rig.conductor.wait(c.Pull, lambda m: ["metadata", "s1"] in [list(key) for key in m.keys] and rig.conductor.told[-1])
    time.sleep(0.5)
    assert on_host(rig) == {"s1": 3}


def test_without_a_conductor_the_last_documents_stand_after_a_restart(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3))
    rig.conductor.stop()
    with rig.host.world.change() as state:  # the host was rebooted: nothing stands
        state.documents["metadata"].clear()
    rig.restart()
    eventually(lambda: on_host(rig) == {"s1": 3})


def test_a_failing_document_is_reported_and_tried_again(rig: Rig) -> None:
    rig.host.faults.fail("metadata", code="internal", message="no luck")
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3, "no luck"))
    rig.conductor.wait(c.Applied, applied(rig, 3), seconds=60)
    assert on_host(rig) == {"s1": 3}


def test_reapply_applies_again(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.wait(c.Applied, applied(rig, 3))
    with rig.host.world.change() as state:
        state.documents["metadata"].clear()
    rig.agent.reapply("metadata")
    eventually(lambda: on_host(rig) == {"s1": 3})


def test_applied_reaches_a_conductor_that_was_away(rig: Rig) -> None:
    rig.conductor.want(METADATA)
    rig.conductor.refuse = lambda m: isinstance(m, c.Applied)
    eventually(lambda: on_host(rig) == {"s1": 3})
    rig.conductor.refuse = lambda m: False
    rig.conductor.wait(c.Applied, applied(rig, 3), seconds=60)
