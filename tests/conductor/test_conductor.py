"""Hosts, documents, reports and inventories, with the real agent over fake drivers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.fake import FakeHost
from cumulet.agent.runtime.agent import Agent, AgentSettings
from cumulet.agent.runtime.store import AgentStore
from cumulet.bus import LocalBus
from cumulet.bus.model import spoken_by
from cumulet.conductor import Conductor, Desired, HostRegistry
from cumulet.conductor.conductor import FROM_HOSTS
from cumulet.db import Database, Tx
from cumulet.kernel.clock import SECOND, FakeClock
from cumulet.kernel.errors import NotFound, Unavailable
from cumulet.saga import SagaEngine, WakeSagas
from tests.support.patience import eventually


class Cloud:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.bus = LocalBus()
        self.sagas = SagaEngine(db, self.bus, scan_seconds=0.05)
        self.hosts = HostRegistry(db)
        self.desired = Desired(self.bus)
        self.desired.register("metadata", lambda tx, host, id, generation: self.docs.get((id, generation)))
        self.conductor = Conductor(db, self.bus, self.sagas, self.hosts, self.desired, watch_seconds=0.05)
        self.docs: Any = Docs()
        self.agents: list[Agent] = []

    def add_host(self, name: str = "h1") -> FakeHost:
        fake = FakeHost(name)
        settings = AgentSettings(host=name, heartbeat_seconds=0.1, compare_seconds=0.2)
        agent = Agent(settings, self.bus, AgentStore(None), fake.drivers)
        agent.start()
        self.agents.append(agent)
        eventually(lambda: self.hosts.is_up(name))
        return fake

    def close(self) -> None:
        for agent in self.agents:
            agent.stop(1)
            agent.close()
        self.conductor.stop()
        self.bus.close()


class Docs:
    """Builds a metadata document for every id but those that begin with ``gone``."""

    def get(self, key: tuple[str, int]) -> c.MetadataDoc | None:
        object_id, generation = key
        if object_id.startswith("gone"):
            return None
        return c.MetadataDoc(id=object_id, generation=generation, meta_data={"n": generation}, network_data={})


def applied_of(cloud: Cloud) -> Any:
    return cloud.db.read(lambda tx: cloud.desired.applied(tx, "h1", "metadata", "m1"))


@pytest.fixture
def cloud(db: Database) -> Iterator[Cloud]:
    made = Cloud(db)
    made.conductor.start()
    yield made
    made.close()


def beat(name: str = "h1", **changes: Any) -> c.Heartbeat:
    values: dict[str, Any] = {
        "host": name, "started": 1, "roles": ["compute"], "version": "1", "tunnel_ip": None, "ip": "10.0.0.1",
        "speed_factor": 3.0, "mechanism": "openvswitch", "virt_type": "fake", "bridge_mappings": {},
        "resources": c.HostResources(vcpus=4, memory_mb=1024, local_gb=10),
    }  # fmt: skip
    return c.Heartbeat(**{**values, **changes})


def test_a_heartbeat_makes_a_host_known(cloud: Cloud) -> None:
    cloud.bus.call("conductor", beat())
    host = cloud.db.read(lambda tx: cloud.hosts.get(tx, "h1"))
    assert (host.up, host.roles, host.resources.vcpus, host.number) == (True, ["compute"], 4, 1)
    assert cloud.hosts.speed_factor("h1") == 3.0
    uuid = host.uuid
    cloud.bus.call("conductor", beat(resources=c.HostResources(vcpus=8, memory_mb=1024, local_gb=10)))
    again = cloud.db.read(lambda tx: cloud.hosts.list(tx, role="compute"))
    assert [(h.uuid, h.resources.vcpus, h.beats) for h in again] == [(uuid, 8, 2)]
    assert cloud.db.read(lambda tx: cloud.hosts.list(tx, role="network")) == []
    with pytest.raises(NotFound):
        cloud.db.read(lambda tx: cloud.hosts.get(tx, "h2"))


def test_listeners_hear_of_new_and_changed_hosts_only(cloud: Cloud) -> None:
    heard: list[int] = []
    cloud.hosts.on_change(lambda tx, host: heard.append(host.resources.vcpus))
    for _ in range(3):
        cloud.bus.call("conductor", beat())
    cloud.bus.call("conductor", beat(resources=c.HostResources(vcpus=8, memory_mb=1024, local_gb=10)))
    assert heard == [4, 8]


def test_operators_disable_and_force_down(cloud: Cloud) -> None:
    cloud.bus.call("conductor", beat())
    host = cloud.db.write(lambda tx: cloud.hosts.set_disabled(tx, "h1", "broken fan"))
    assert (host.disabled, host.disabled_reason) == (True, "broken fan")
    host = cloud.db.write(lambda tx: cloud.hosts.set_disabled(tx, "h1", None, role="storage"))
    assert set(host.disabled_roles) == {"compute", "storage"}
    host = cloud.db.write(lambda tx: cloud.hosts.set_disabled(tx, "h1", disabled=False))
    assert not host.disabled
    assert not cloud.db.write(lambda tx: cloud.hosts.set_forced_down(tx, "h1")).up
    assert not cloud.hosts.is_up("h1")
    assert cloud.db.write(lambda tx: cloud.hosts.set_forced_down(tx, "h1", False)).up
    assert cloud.hosts.is_up("h1")


def test_what_an_operator_vouches_for_is_a_change(cloud: Cloud) -> None:
    """Sagas that ask something of the host, and what waits for it to come back, are told as of any other."""
    hosts = HostRegistry(cloud.db)
    cloud.db.write(lambda tx: hosts.beat(tx, beat()))
    assert hosts.changes() == ["h1"]
    for down in (True, False):
        cloud.db.write(lambda tx, down=down: hosts.set_forced_down(tx, "h1", down))  # type: ignore[misc]
        assert hosts.changes() == ["h1"]
        assert hosts.changes() == []


def test_silence_makes_a_host_down_but_not_the_conductors_own_absence(tmp_path: Path) -> None:
    clock = FakeClock()
    db = Database(f"sqlite:///{tmp_path / 'c.db'}", clock=clock, durable=False)
    db.create_all()
    hosts = HostRegistry(db, timeout_seconds=30)
    db.write(lambda tx: hosts.beat(tx, beat()))
    clock.advance(31)
    assert not db.read(lambda tx: hosts.get(tx, "h1")).up
    assert hosts.changes() == ["h1"]
    assert not hosts.is_up("h1")
    later = HostRegistry(db, timeout_seconds=30)  # a conductor that was away itself
    later.listening()
    later.changes()
    assert later.is_up("h1")
    clock.advance(31)
    assert later.changes() == ["h1"]
    assert not later.is_up("h1")
    db.close()


def test_a_host_that_another_conductor_heard_of_is_not_taken_for_dead(db: Database) -> None:
    here, there = HostRegistry(db), HostRegistry(db)
    there.refresh()
    db.write(lambda tx: here.beat(tx, beat()))
    assert not there.is_up("h1"), "it has not looked since"
    assert db.read(lambda tx: there.is_up_in(tx, "h1"))
    db.write(lambda tx: here.set_forced_down(tx, "h1"))
    assert not db.read(lambda tx: there.is_up_in(tx, "h1"))
    assert not db.read(lambda tx: there.is_up_in(tx, "nobody"))


def test_a_host_with_its_own_account_speaks_for_itself_alone(cloud: Cloud) -> None:
    with spoken_by("h2"):
        for message in (beat("h1"), c.Pull(host="h1", keys=[]), WakeSagas(saga_ids=["x"])):
            with pytest.raises(PermissionError, match="h2"):
                cloud.conductor.handle(message)
        cloud.conductor.handle(beat("h2"))
    assert [host.name for host in cloud.db.read(cloud.hosts.list)] == ["h2"]
    of_services = {c.PasswordPosted, c.RenewCertificate}
    assert set(cloud.conductor._handlers) | of_services > FROM_HOSTS


def test_documents_reach_the_host_and_are_removed_again(cloud: Cloud) -> None:
    fake = cloud.add_host()
    applied: list[tuple[str, int, str | None]] = []
    cloud.conductor.on_applied(lambda tx, host, kind, id, generation, error: applied.append((id, generation, error)))
    first = cloud.db.write(lambda tx: cloud.desired.touch(tx, "h1", "metadata", "m1"))
    eventually(lambda: applied_of(cloud) == (first, first, None))
    assert fake.world.state.documents["metadata"]["m1"]["meta_data"] == {"n": first}
    second = cloud.db.write(lambda tx: cloud.desired.touch(tx, "h1", "metadata", "m1"))
    assert second == first + 1
    eventually(lambda: ("m1", second, None) in applied)
    assert cloud.db.read(lambda tx: cloud.desired.holders(tx, "metadata", "m1")) == ["h1"]
    cloud.db.write(lambda tx: cloud.desired.remove(tx, "h1", "metadata", "m1"))
    eventually(lambda: not fake.world.state.documents.get("metadata"))
    eventually(lambda: cloud.db.read(lambda tx: cloud.desired.behind(tx)) == [])
    assert cloud.db.write(lambda tx: cloud.desired.purge(tx, older_seconds=-1)) == 1
    assert cloud.db.write(lambda tx: cloud.desired.touch(tx, "h1", "metadata", "m1")) > second + 1


def test_a_document_of_an_object_that_is_no_more_is_absent(cloud: Cloud) -> None:
    cloud.db.write(lambda tx: cloud.desired.touch(tx, "h1", "metadata", "gone-1"))
    answer = cloud.bus.call("conductor", c.Pull(host="h1", keys=[("metadata", "gone-1"), ("metadata", "unheard-of")]))
    assert answer.documents == []
    assert [(kind, id) for kind, id, _ in answer.absent] == [("metadata", "gone-1")]


def test_lost_hints_are_made_up_for(cloud: Cloud) -> None:
    fake = cloud.add_host()
    cloud.desired._send_hints = lambda hints: None  # type: ignore[method-assign]
    cloud.db.write(lambda tx: cloud.desired.touch(tx, "h1", "metadata", "m1"))
    eventually(lambda: "m1" in fake.world.state.documents.get("metadata", {}))
    cloud.db.write(lambda tx: cloud.desired.remove(tx, "h1", "metadata", "m1"))
    eventually(lambda: not fake.world.state.documents.get("metadata"))


def test_a_removal_of_what_the_host_never_had_is_applied_too(cloud: Cloud) -> None:
    cloud.desired._send_hints = lambda hints: None  # type: ignore[method-assign]

    def come_and_go(tx: Tx) -> None:
        cloud.desired.touch(tx, "h1", "metadata", "m1")
        cloud.desired.remove(tx, "h1", "metadata", "m1")

    cloud.db.write(come_and_go)
    assert cloud.db.read(lambda tx: cloud.desired.held_by(tx, "h1")) == []
    assert len(cloud.db.read(lambda tx: cloud.desired.behind(tx))) == 1
    cloud.add_host()
    eventually(lambda: cloud.db.read(lambda tx: cloud.desired.behind(tx)) == [])
    assert cloud.db.read(lambda tx: cloud.desired.index(tx, "h1")).entries == []


def test_what_was_removed_meanwhile_is_not_wanted_again_by_a_change_of_others(cloud: Cloud) -> None:
    gone, here = ("h9", "metadata", "m1"), ("h9", "metadata", "m2")
    cloud.db.write(lambda tx: cloud.desired.touch_many(tx, [gone, here]))
    before = cloud.db.read(lambda tx: cloud.desired.applied(tx, *here))
    cloud.db.write(lambda tx: cloud.desired.remove(tx, *gone))
    cloud.db.write(lambda tx: cloud.desired.touch_many(tx, [gone, here], of_others={gone, here}))
    assert cloud.db.read(lambda tx: cloud.desired.held_by(tx, "h9")) == [here[1:]]
    after = cloud.db.read(lambda tx: cloud.desired.applied(tx, *here))
    assert before is not None
    assert after is not None
    assert after[0] == before[0] + 1
    cloud.db.write(lambda tx: cloud.desired.touch_many(tx, [gone]))
    assert len(cloud.db.read(lambda tx: cloud.desired.held_by(tx, "h9"))) == 2


def test_an_error_of_a_document_is_kept(cloud: Cloud) -> None:
    fake = cloud.add_host()
    fake.faults.fail("metadata", times=None, message="no room")
    wanted = cloud.db.write(lambda tx: cloud.desired.touch(tx, "h1", "metadata", "m1"))
    eventually(lambda: applied_of(cloud) == (wanted, 0, "no room"))


def test_an_old_report_changes_nothing(cloud: Cloud) -> None:
    first = cloud.db.write(lambda tx: cloud.desired.touch(tx, "h9", "metadata", "m1"))
    second = cloud.db.write(lambda tx: cloud.desired.touch(tx, "h9", "metadata", "m1"))
    cloud.bus.call("conductor", c.Applied(host="h9", entries=[("metadata", "m1", second, None)]))
    cloud.bus.call("conductor", c.Applied(host="h9", entries=[("metadata", "m1", first, "late")]))
    assert cloud.db.read(lambda tx: cloud.desired.applied(tx, "h9", "metadata", "m1")) == (second, second, None)


def test_inventories_reach_listeners_and_leftovers_are_named(cloud: Cloud) -> None:
    seen: list[str] = []
    cloud.conductor.on_server_report(lambda tx, report: seen.append(report.server_id))
    cloud.conductor.on_inventory(lambda tx, inventory: c.Absent(servers=[s.server_id for s in inventory.servers]))
    cloud.conductor.on_inventory(lambda tx, inventory: c.Absent(ports=inventory.ports))
    cloud.conductor.on_inventory(lambda tx, inventory: None)
    report = c.ServerReport(host="h1", server_id="s1", sequence=1, power_state=1)
    answer = cloud.bus.call("conductor", c.Inventory(host="h1", servers=[report], ports=["p1"], volumes=[], exports=[]))
    assert answer == c.Absent(servers=["s1"], ports=["p1"])
    assert seen == ["s1"]


def test_a_host_is_asked_directly(cloud: Cloud) -> None:
    cloud.add_host()
    answer = cloud.conductor.ask("h1", c.ConsoleLog(server_id="none"))
    assert answer.error_code == "not-found"
    with pytest.raises(Unavailable):
        cloud.conductor.ask("nowhere", c.ConsoleLog(server_id="none"), timeout=0.2)


def test_a_message_that_is_not_for_conductors_is_refused(cloud: Cloud) -> None:
    with pytest.raises(TypeError):
        cloud.conductor.handle(c.LookAgain())


def test_every_struct_of_the_index_survives_the_wire(cloud: Cloud) -> None:
    cloud.db.write(lambda tx: cloud.desired.touch(tx, "h7", "metadata", "m1"))
    index = cloud.bus.call("conductor", c.PullIndex(host="h7"))
    assert msgspec.json.decode(msgspec.json.encode(index), type=c.Index) == index
    assert index.entries[0][2] > 1_600_000_000 * SECOND
