"""The whole cloud in one process under bad luck: a chaotic bus, lost hosts, a conductor that starts again."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from cumulet.bus import Chaos, LocalBus
from tests.support.cloud import Cloud, unique


class User:
    """demo with a flavor, an image and a network."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.api = cloud.api("demo")
        admin = cloud.api("admin")
        flavor = {"name": unique("tiny"), "vcpus": 1, "ram": 64, "disk": 1}
        self.flavor = admin.post("compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
        image = {"name": unique("image"), "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        self.image = admin.post("image", "/images", image)["id"]
        headers = {"content-type": "application/octet-stream"}
        assert admin.put("image", f"/images/{self.image}/file", data=b"x" * 4096, headers=headers).status == 204
        self.network = self.api.post("network", "/networks", {"network": {"name": unique("net")}})["network"]["id"]
        subnet = {"network_id": self.network, "cidr": "10.8.0.0/24", "ip_version": 4}
        self.subnet = self.api.post("network", "/subnets", {"subnet": subnet})["subnet"]["id"]

    def create(self) -> str:
        body = {
            "name": unique("server"),
            "imageRef": self.image,
            "flavorRef": self.flavor,
            "networks": [{"uuid": self.network}],
        }
        made = self.api.post("compute", "/servers", {"server": body}, version="2.90")
        assert made.status == 202, made.text
        return str(made["server"]["id"])

    def server(self, server_id: str) -> dict[str, Any] | None:
        answer = self.api.get("compute", f"/servers/{server_id}")
        return None if answer.status == 404 else answer["server"]

    def active(self, server_id: str, seconds: float = 30) -> dict[str, Any]:
        def holds() -> dict[str, Any] | None:
            server = self.server(server_id)
            assert server is not None
            assert server["status"] != "ERROR", server.get("fault")
            return server if server["status"] == "ACTIVE" else None

        found: dict[str, Any] = self.cloud.wait(holds, seconds)
        return found

    def delete(self, server_id: str, seconds: float = 30) -> None:
        assert self.api.delete("compute", f"/servers/{server_id}").status == 204
        self.cloud.wait(lambda: self.server(server_id) is None, seconds)

    def delete_network(self) -> None:
        assert self.api.delete("network", f"/networks/{self.network}").status == 204


def assert_empty(cloud: Cloud, seconds: float = 20) -> None:
    for host in cloud.hosts.values():
        cloud.wait(host.fake.empty, seconds)


def test_ready_quickly(new_cloud: Callable[..., Cloud]) -> None:
    started = time.monotonic()
    cloud = new_cloud(hosts=2)
    seconds = time.monotonic() - started
    print(f"a cloud is ready after {seconds:.2f} s")
    assert cloud.up_hosts() == ["fake-1", "fake-2"]
    assert cloud.openstack("demo", "token", "issue")["project_id"] == cloud.api("demo").project_id
    assert [one.name for one in cloud.connect("admin").identity.projects() if one.name == "other"] == ["other"]
    assert cloud.api("reader").post("network", "/networks", {"network": {}}).status == 403


@pytest.mark.parametrize("seed", [11, 12])
def test_servers_come_and_go_over_a_chaotic_bus(new_cloud: Callable[..., Cloud], seed: int) -> None:
    chaos = Chaos(seed=seed, drop=0.1, double=0.15, delay=0.3, delay_seconds=0.03, drop_seconds=0.05)
    cloud = new_cloud(bus=LocalBus(chaos), compare_seconds=1.0)
    user = User(cloud)
    servers = [user.create() for _ in range(4)]
    for server_id in servers:
        user.active(server_id, 60)
    for server_id in servers:
        assert user.api.delete("compute", f"/servers/{server_id}").status == 204
    for server_id in servers:
        cloud.wait(lambda server_id=server_id: user.server(server_id) is None, 60)  # type: ignore[misc]
    user.delete_network()
    assert_empty(cloud, 30)


def test_a_server_is_deleted_while_its_host_is_away(new_cloud: Callable[..., Cloud]) -> None:
    cloud = new_cloud(configure=_impatient)
    user = User(cloud)
    server_id = user.create()
    user.active(server_id)
    cloud.host.lose()
    cloud.wait(lambda: cloud.up_hosts() == [])
    user.delete(server_id)
    assert not cloud.host.fake.empty()
    user.delete_network()
    cloud.host.start()
    assert_empty(cloud)


def test_a_host_that_comes_back_goes_on_where_it_was(new_cloud: Callable[..., Cloud]) -> None:
    cloud = new_cloud()
    user = User(cloud)
    cloud.host.fake.faults.hang("DefineServer", times=1)
    server_id = user.create()
    assert cloud.host.fake.faults.hanging.acquire(timeout=60)
    cloud.host.restart()
    user.active(server_id)
    user.delete(server_id)
    user.delete_network()
    assert_empty(cloud)


def test_a_conductor_that_starts_again_goes_on_where_it_was(new_cloud: Callable[..., Cloud]) -> None:
    cloud = new_cloud()
    user = User(cloud)
    release = cloud.host.fake.faults.hang("PowerServer", times=1)
    server_id = user.create()
    assert cloud.host.fake.faults.hanging.acquire(timeout=60)
    cloud.restart_conductor()
    release.set()
    user.active(server_id)
    user.delete(server_id)
    user.delete_network()
    assert_empty(cloud)


def test_a_failing_step_leaves_nothing_on_the_host(new_cloud: Callable[..., Cloud]) -> None:
    cloud = new_cloud()
    user = User(cloud)
    cloud.host.fake.faults.fail("PowerServer", times=None, code="internal", message="no luck today")
    server_id = user.create()
    cloud.wait(lambda: (user.server(server_id) or {})["status"] == "ERROR")
    with cloud.host.fake.world.look() as state:
        assert (state.domains, state.disks, state.taps) == ({}, {}, {})
    user.delete(server_id)
    user.delete_network()
    assert_empty(cloud)


def _impatient(settings: Any) -> None:
    settings.conductor.host_timeout_seconds = 1.5
