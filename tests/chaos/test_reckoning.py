"""The reckoning finds what was promised and is not so; a quiet cloud has nothing to find."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import update

from cumulet.chaos.client import Client
from cumulet.chaos.disturb import Disturbance, Disturber
from cumulet.chaos.field import EmulatedField, rows
from cumulet.chaos.ground import Ground
from cumulet.chaos.model import Event, Record, Thing
from cumulet.chaos.reckoning import Reckoning
from cumulet.chaos.victims import Victim, Victims
from cumulet.services.compute.tables import SERVERS


class Scene:
    def __init__(self) -> None:
        self.field = EmulatedField(1, 0)
        self.admin = self.field.admin()
        self.admin.must("GET", "network", "/security-groups")
        self.before = rows(self.field.db)
        self.ground = Ground(self.field.url, self.admin, self.field.admin)
        self.ground.make(1)
        self.record = Record()
        tenant = self.ground.tenants[0]
        self.client = Client(0, 7, self.ground, tenant, tenant.users[0], self.record, threading.Event())

    def make(self, kind: str, body: dict[str, Any]) -> Thing:
        made = self.client._create(kind, body)
        assert made is not None
        assert self.field.cloud.settle()
        return made

    def server(self) -> Thing:
        network = self.ground.tenants[0].network
        wanted = {
            "flavorRef": self.ground.flavors[0],
            "imageRef": self.ground.images[0],
            "networks": [{"uuid": network}],
        }
        return self.make("server", wanted)

    def reckon(self) -> set[tuple[str, str]]:
        reckoning = Reckoning(self.ground, self.record, self.admin)
        reckoning.compare()
        reckoning.findings()
        return {(found.what, found.about.split()[1]) for found in reckoning.violations}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.client.session.close()
    made.admin.close()
    made.field.stop()


def test_nothing_is_wrong_with_a_quiet_cloud_and_all_of_it_goes(scene: Scene) -> None:
    server, volume = scene.server(), scene.make("volume", {"size": 1})
    body = {"volumeAttachment": {"volumeId": volume.id}}
    assert scene.client._act(
        server, "attach", "POST", f"{server.path}/os-volume_attachments", body, other=volume
    ).acknowledged
    assert scene.field.cloud.settle()
    assert scene.reckon() == set()
    reckoning = Reckoning(scene.ground, scene.record, scene.admin)

    def settle() -> list[str]:
        assert scene.field.cloud.settle()
        return []

    reckoning.remove_all(settle)
    assert reckoning.violations == []
    found = scene.field.leftovers()["host-1"]
    assert set(found) == {"network documents", "router documents", "wires"}  # the ground's own
    scene.record.things.clear()


@pytest.mark.parametrize("wrong", ["lost", "undead", "stuck", "disagreement", "audit"])
def test_what_is_wrong_is_found(scene: Scene, wrong: str) -> None:
    thing = scene.server() if wrong != "lost" else scene.make("port", {"network_id": scene.ground.tenants[0].network})
    if wrong == "lost":
        scene.admin.must("DELETE", "network", thing.path)  # behind the client's back
    elif wrong == "undead":
        scene.client._act(thing, "delete", "DELETE", thing.path)
        assert scene.field.cloud.settle()
        scene.field.db.write(lambda tx: tx.run(update(SERVERS).where(SERVERS.c.id == thing.id).values(deleted_at=None)))
    elif wrong == "stuck":
        values = {"task_state": "powering-off"}
        scene.field.db.write(lambda tx: tx.run(update(SERVERS).where(SERVERS.c.id == thing.id).values(**values)))
    elif wrong == "disagreement":
        scene.client._act(thing, "stop", "POST", f"{thing.path}/action", {"os-stop": None})
        assert scene.field.cloud.settle()
        values = {"vm_state": "active", "status": "ACTIVE"}
        scene.field.db.write(lambda tx: tx.run(update(SERVERS).where(SERVERS.c.id == thing.id).values(**values)))
    else:
        with scene.field.cloud.host.fake.world.change() as world:
            world.disks.pop(thing.id)
    assert (wrong, thing.id) in scene.reckon()
    scene.record.things.clear()


def test_a_seed_gives_the_same_disturbances() -> None:
    def course(seed: int) -> list[str]:
        told: list[str] = []

        def act(name: str) -> Any:
            return lambda rng: (f"{name} {rng.random():.6f}", None)

        disturber = Disturber([Disturbance("a", 3, act("a")), Disturbance("b", 1, act("b"))], seed, told.append)
        for _ in range(20):
            disturber._disturb()
        return told

    assert course(1) == course(1) != course(2)


def test_what_was_disturbed_is_taken_back_at_the_end() -> None:
    told: list[str] = []
    undone: list[int] = []
    numbers = iter(range(1000))

    def act(rng: random.Random) -> Any:
        number = next(numbers)
        return f"do {number}", (3600.0, f"undo {number}", lambda: undone.append(number))

    disturber = Disturber([Disturbance("a", 1, act)], 1, told.append, pause_s=0.001)
    disturber.run(5, lambda: len(told) < 5)
    assert undone == []
    disturber.mend()
    assert sorted(undone) == list(range(next(numbers)))


def test_who_is_away_is_not_killed_again() -> None:
    done: list[str] = []
    victim = Victim("a", "agent", kill=lambda: done.append("kill"), start=lambda: done.append("start"), dead_s=(9.0,))
    (killed,) = Victims([victim]).disturbances()
    rng = random.Random(1)
    did = killed.act(rng)
    assert did is not None
    assert did[0] == "a killed"
    assert killed.act(rng) is None
    assert did[1] is not None
    did[1][2]()
    assert done == ["kill", "start"]
    assert killed.act(rng) is not None


def test_a_create_is_judged_by_its_server(scene: Scene) -> None:
    """Not by the volume that it boots from, which is made first: a port that a failed create gave up is not lost."""
    session = scene.client.session
    network = scene.ground.tenants[0].network
    port = session.must("POST", "network", "/ports", {"port": {"network_id": network}})["port"]
    for host in scene.field.cloud.hosts.values():
        host.fake.faults.fail("PowerServer", times=None)
    disk = {"boot_index": 0, "uuid": scene.ground.images[0], "source_type": "image", "destination_type": "volume",
            "volume_size": 1, "delete_on_termination": True}  # fmt: skip
    body = {"name": "one", "flavorRef": scene.ground.flavors[0], "networks": [{"port": port["id"]}],
            "block_device_mapping_v2": [disk]}  # fmt: skip
    reply = session.ask("POST", "compute", "/servers", {"server": body})
    assert reply.acknowledged, reply.message
    assert scene.field.cloud.settle()
    for host in scene.field.cloud.hosts.values():
        host.fake.faults.clear()
    reckoning = Reckoning(scene.ground, scene.record, scene.admin)
    operation = reckoning._of_request(Event("attach", 0.0, 1.0, reply))
    assert operation is not None
    assert (operation["kind"], operation["status"]) == ("server.create", "failed")
    session.must("DELETE", "compute", f"/servers/{reply.body['server']['id']}")
    assert scene.field.cloud.settle()
    session.must("DELETE", "network", f"/ports/{port['id']}")
