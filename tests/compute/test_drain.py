"""A host that is drained: its servers go, and of those that stay it is said why."""

from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.compute.places import Places


@pytest.fixture
def two(new_cloud: Any) -> Places:
    return Places(Nova(new_cloud(hosts=2)))


def drain(places: Places, host: str, *, undo: bool = False) -> dict[str, str]:
    """Of what is left, why."""
    machines = places.cloud.control.operator.machines
    shown = machines.undrain(host) if undo else machines.drain(host, None)
    return {one["id"]: one["why"] for one in shown["left"] if one["kind"] == "server"}


def left(places: Places, host: str) -> dict[str, str]:
    shown = places.cloud.control.operator.machines.show(host)
    return {one["id"]: one["why"] for one in shown["left"] if one["kind"] == "server"}


def test_servers_go(two: Places) -> None:
    places, nova = two, two.nova
    zone = {"availability_zone": "nova:fake-1"}
    running, stopped, paused, suspended, resized = (
        two.admin.as_user("admin").boot(networks=[{"uuid": places.network}], **zone) for _ in range(5)
    )
    nova = two.admin
    for server, action, status in (
        (stopped, "os-stop", "SHUTOFF"), (paused, "pause", "PAUSED"), (suspended, "suspend", "SUSPENDED"),
    ):  # fmt: skip
        nova.act(server, action)
        nova.wait(server, status)
    assert nova.act(resized, "resize", {"flavorRef": nova.new_flavor()}).status == 202
    nova.wait(resized, "VERIFY_RESIZE")
    contents = {server: places.content(server) for server in (running, stopped, paused)}
    why = drain(places, "fake-1")
    assert {running, stopped, paused, suspended} <= why.keys()
    places.cloud.wait(lambda: not left(places, "fake-1").keys() & {running, stopped, paused}, 20)
    why = left(places, "fake-1")
    assert "resume or stop it" in why[suspended]
    assert "confirmed or reverted" in why[resized]
    for server, status in ((running, "ACTIVE"), (stopped, "SHUTOFF"), (paused, "PAUSED")):
        nova.wait(server, status)
        assert places.host(server) == "fake-2"
        assert places.content(server) == contents[server]
        assert places.traces(server) == ["fake-2"]
    assert {places.migrations(server)[0]["status"] for server in (running, paused)} == {"completed"}
    assert places.migrations(stopped)[0]["status"] == "confirmed"
    nova.act(suspended, "resume")
    nova.wait(suspended, "ACTIVE")
    nova.act(resized, "confirmResize")
    nova.wait(resized, "ACTIVE")
    drain(places, "fake-1")
    places.cloud.wait(lambda: not left(places, "fake-1"), 20)
    for server in (running, stopped, paused, suspended, resized):
        nova.remove(server)


def test_what_fails_is_told_and_tried_again(two: Places) -> None:
    places = two
    servers = [places.boot() for _ in range(2)]
    host = places.host(servers[0])
    mine = [server for server in servers if places.host(server) == host]
    for one in places.cloud.hosts.values():
        one.fake.faults.fail("PrepareReceive", times=None, code="no-kvm", message="there is no room for it")
    drain(places, host)
    places.cloud.wait(lambda: all("no room for it" in why for why in left(places, host).values()), 20)
    assert left(places, host).keys() == set(mine)
    moves = len(places.migrations(mine[0]))
    places.cloud.control.compute.go_on_draining()
    assert len(places.migrations(mine[0])) == moves, "a move that failed is not tried again by itself"
    for one in places.cloud.hosts.values():
        one.fake.faults.clear()
    drain(places, host)
    places.cloud.wait(lambda: not left(places, host), 20)
    # taken back: nothing goes any more
    [other] = set(places.cloud.hosts) - {host}
    drain(places, host, undo=True)
    assert all(places.host(server) == other for server in servers)
    for server in servers:
        places.remove(server)


def test_many_go_a_few_at_a_time(two: Places) -> None:
    places = two
    zone = {"availability_zone": "nova:fake-1"}
    servers = [two.admin.boot(networks=[{"uuid": places.network}], wait=None, **zone) for _ in range(9)]
    for server in servers:
        two.admin.wait(server, "ACTIVE")
    for one in places.cloud.hosts.values():
        one.fake.compute.moving.seconds = 0.3
    why = drain(places, "fake-1")
    assert len(why) == 9
    most = 0

    def over() -> bool:
        nonlocal most
        states = list(left(places, "fake-1").values())
        most = max(most, sum("on its way" in why for why in states))
        return not states

    places.cloud.wait(over, 20)
    assert 1 <= most <= 4


def test_the_drained_host_has_no_say(two: Places) -> None:
    """What it says while the last of a server is taken away is forgotten with the end of the move."""
    server = two.boot()
    two.nova.act(server, "os-stop")
    two.nova.wait(server, "SHUTOFF")
    source = two.host(server)
    go_on = two.cloud.hosts[source].fake.faults.hang("DeleteDisks")
    drain(two, source)
    two.cloud.wait(lambda: two.cloud.hosts[source].fake.faults.hung, 20)
    two.say(source, server, 4)
    assert source in two.tellers(server)
    go_on.set()
    two.cloud.wait(lambda: two.migrations(server)[0]["status"] == "confirmed")
    assert source not in two.tellers(server)
    two.remove(server)
