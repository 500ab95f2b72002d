"""A storage host that is drained: its volumes go, a few at a time, and of those that stay it is said why."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.volume.conftest import Volumes
from tests.volume.test_moves import holders, host_of, new_id


class Places:
    def __init__(self, cloud: Any) -> None:
        self.cloud, self.volumes, self.admin = cloud, Volumes(cloud, "demo"), Volumes(cloud, "admin")
        self.machines = cloud.control.operator.machines

    def fill(self, host: str, count: int) -> list[str]:
        """So many volumes there."""
        others = [name for name in self.cloud.hosts if name != host]
        self._disable(others, disabled=True)
        made = [self.volumes.create(None) for _ in range(count)]
        for one in made:
            self.volumes.until(f"/volumes/{one}", "volume", "available")
        self._disable(others, disabled=False)
        assert {host_of(self.admin, one) for one in made} == {host}
        return made

    def _disable(self, hosts: list[str], *, disabled: bool) -> None:
        registry, db = self.cloud.control.hosts, self.cloud.control.db
        for name in hosts:
            db.write(lambda tx, name=name: registry.set_disabled(tx, name, disabled=disabled, role="storage"))

    def drain(self, host: str, *, undo: bool = False) -> dict[str, str]:
        """Of the volumes that are left, why."""
        return self._why(self.machines.undrain(host) if undo else self.machines.drain(host, None))

    def left(self, host: str) -> dict[str, str]:
        return self._why(self.machines.show(host))

    def _why(self, shown: dict[str, Any]) -> dict[str, str]:
        return {one["id"]: one["why"] for one in shown["left"] if one["kind"] == "volume"}


@pytest.fixture
def places(new_cloud: Callable[..., Any]) -> Places:
    return Places(new_cloud(hosts=2))


def test_volumes_go_and_what_stays_is_told_why(places: Places) -> None:
    volumes, cloud = places.volumes, places.cloud
    free, kept, used, joined = places.fill("fake-1", 4)
    assert set(places.left("fake-1").values()) == {"drain the host, and it moves"}
    snapshot = volumes.snapshot(kept)
    server = new_id()
    body = {"attachment": {"volume_uuid": used, "instance_uuid": server}}
    attachment = volumes.ok("POST", "/attachments", body)["attachment"]["id"]
    assert volumes.action(joined, "os-initialize_connection", {"connector": {"host": "client"}}).status == 200
    content = holders(cloud, free)
    places.drain("fake-1")
    cloud.wait(lambda: free not in places.left("fake-1"), 20)
    assert holders(cloud, free) == {"fake-2": content["fake-1"]}
    why = places.left("fake-1")
    assert "snapshots" in why[kept]
    assert f"attached to {server}: detach it" in why[used]
    assert "terminate its connection" in why[joined]
    assert places.machines.show("fake-1")["drain"] == "waiting"
    # each goes when nothing keeps it any more
    assert volumes.call("DELETE", f"/snapshots/{snapshot}").status == 202
    volumes.gone(f"/snapshots/{snapshot}")
    volumes.ok("DELETE", f"/attachments/{attachment}")
    assert volumes.action(joined, "os-terminate_connection", {"connector": {"host": "client"}}).status == 202
    volumes.until(f"/volumes/{joined}", "volume", "available")
    cloud.wait(lambda: not places.cloud.control.volume.go_on_draining() and not places.left("fake-1"), 20)
    assert places.machines.show("fake-1")["drain"] == "done"
    assert {host_of(places.admin, one) for one in (free, kept, used, joined)} == {"fake-2"}
    assert volumes.create() not in places.left("fake-1")


def test_what_fails_is_told_and_tried_again(places: Places) -> None:
    cloud = places.cloud
    [volume] = places.fill("fake-1", 1)
    faults = cloud.hosts["fake-2"].fake.faults
    faults.fail("FetchVolume", times=None, code="no-space", message="the disk is full")
    places.drain("fake-1")
    cloud.wait(lambda: "the disk is full" in places.left("fake-1")[volume], 20)
    tries = faults.count("FetchVolume")
    assert cloud.control.volume.go_on_draining() is None
    assert faults.count("FetchVolume") == tries, "a move that failed is not tried again by itself"
    faults.clear()
    places.drain("fake-1")
    cloud.wait(lambda: not places.left("fake-1"), 20)
    assert list(holders(cloud, volume)) == ["fake-2"]


def test_there_must_be_another_host(new_cloud: Callable[..., Any]) -> None:
    places = Places(new_cloud(hosts=1))
    [volume] = places.fill("fake-1", 1)
    assert "no other storage host can take it (where it is already: 1)" in places.drain("fake-1")[volume]
    places.cloud.hosts["fake-1"].lose()
    places.machines.set_down("fake-1", down=True)
    assert "host is down" in places.left("fake-1")[volume]


def test_a_few_at_a_time_and_those_under_way_end(places: Places) -> None:
    cloud = places.cloud
    volumes = places.fill("fake-1", 5)
    faults = cloud.hosts["fake-2"].fake.faults
    release = faults.hang("FetchVolume", times=None)
    places.drain("fake-1")
    cloud.wait(lambda: faults.hung == 2, 20)
    why = places.left("fake-1")
    assert sorted(why.values()) == [*["it is on its way to fake-2 (migrating)"] * 2, *["it waits for its turn"] * 3]
    assert cloud.control.volume.go_on_draining() is None
    arriving = places.left("fake-2")
    assert set(arriving.values()) == {"it is on its way here (migrating)"}
    # taken back: those under way end, and no other begins
    places.drain("fake-1", undo=True)
    release.set()
    cloud.wait(lambda: len(places.left("fake-1")) == 3, 20)
    cloud.settle()
    assert set(places.left("fake-1").values()) == {"drain the host, and it moves"}
    assert {host_of(places.admin, one) for one in arriving} == {"fake-2"}
    assert len(volumes) == 5
    # and a host that is given up for good
    places.drain("fake-1")
    cloud.wait(lambda: not places.left("fake-1"), 20)
