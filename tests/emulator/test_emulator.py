"""What an emulated cloud begins with, how it is put back, several of them, and parts that come and go."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from cumulet.emulator import Account, Emulator
from tests.emulator.conftest import Emulated
from tests.support.cloud import Cloud


def inventory(emulated: Emulated) -> dict[str, Any]:
    """Everything a user and an administrator find."""
    demo, admin = emulated.api("demo"), emulated.api("admin")
    paths = {
        "compute": ("/flavors/detail", "/servers/detail", "/os-keypairs"),
        "image": ("/images",),
        "network": ("/networks", "/subnets", "/routers", "/ports", "/security-groups", "/floatingips"),
        "volume": ("/volumes/detail", "/snapshots"),
    }
    found = {path: demo.get(service, path).body for service, some in paths.items() for path in some}
    for service, path in (("identity", "/users"), ("identity", "/projects"), ("compute", "/os-hypervisors")):
        found[path] = admin.get(service, path).body
    return found


def test_it_begins_as_devstack_does(emulated: Emulated) -> None:
    api = emulated.api("demo")
    flavors = {f["name"]: f["ram"] for f in api.get("compute", "/flavors/detail")["flavors"]}
    assert flavors["m1.tiny"] == 512
    assert len(flavors) == 7
    (image,) = api.get("image", "/images")["images"]
    assert (image["name"], image["status"], image["visibility"]) == ("cirros", "active", "public")
    data = api.get("image", f"/images/{image['id']}/file")
    assert len(data.text) > 0
    assert int(data.headers["content-length"]) == image["size"]
    networks = {n["name"]: n["router:external"] for n in api.get("network", "/networks")["networks"]}
    assert networks == {"private": False, "public": True}
    (router,) = api.get("network", "/routers")["routers"]
    assert (router["name"], router["status"]) == ("router1", "ACTIVE")
    assert emulated.api("admin").get("network", "/networks")["networks"][0]["id"]
    assert emulated.api("reader").get("compute", "/servers").status == 200
    assert emulated.api("reader").post("compute", "/servers", {"server": emulated.server_body()}).status == 403


def test_a_server_boots_and_is_reached(emulated: Emulated) -> None:
    server = emulated.boot()
    assert emulated.status(server) == "ACTIVE"
    api = emulated.api()
    port = api.get("network", f"/ports?device_id={server}")["ports"][0]
    assert port["status"] == "ACTIVE"
    public = api.get("network", "/networks?router:external=true")["networks"][0]["id"]
    body = {"floatingip": {"floating_network_id": public, "port_id": port["id"]}}
    made = api.post("network", "/floatingips", body)["floatingip"]
    assert emulated.emulator.settle()
    assert api.get("network", f"/floatingips/{made['id']}")["floatingip"]["status"] == "ACTIVE"


def test_a_reset_puts_everything_back(emulated: Emulated) -> None:
    emulator = emulated.emulator
    before = inventory(emulated)
    demo, admin = emulated.api("demo"), emulated.api("admin")
    emulated.boot()
    assert demo.post("volume", "/volumes", {"volume": {"size": 1}}).status == 202
    image = before["/images"]["images"][0]["id"]
    assert admin.delete("image", f"/images/{image}").status == 204
    assert admin.delete("compute", "/flavors/1").status == 202
    new = demo.post("image", "/images", {"name": "mine", "disk_format": "raw", "container_format": "bare"})["id"]
    sent = demo.put(
        "image", f"/images/{new}/file", data=b"x" * 512, headers={"Content-Type": "application/octet-stream"}
    )
    assert sent.status == 204
    user = before["/users"]["users"][0]["id"]
    assert admin.patch("identity", f"/users/{user}", {"user": {"description": "changed"}}).status == 200
    emulator.add_host("host-9")
    emulator.hosts["host-1"].lose()
    emulator.faults.fail("boot")
    emulator.clock.advance(days=1)
    emulator.clock.freeze()

    emulator.reset()
    assert inventory(emulated) == before  # with the tokens of before, too
    assert emulator.faults.list() == {}
    assert abs(emulator.clock.ahead_seconds) < 60  # not a day
    assert not emulator.clock.frozen
    assert sorted(emulator.up_hosts()) == ["host-1", "host-2"]
    assert emulator.settle()
    assert not any("domains" in host.fake.world.leftovers() for host in emulator.hosts.values())
    files = emulator.control.image.files.listing()
    assert files == {"images": [image], "staging": [], "partial": []}
    assert emulated.status(emulated.boot()) == "ACTIVE"


def test_what_hangs_on_a_host_that_is_lost_has_no_effect_later(emulated: Emulated) -> None:
    emulator = emulated.emulator
    hang = emulator.faults.hang("disk", times=None)
    server = emulated.boot(settle=False)
    host = emulator.wait(lambda: next((h for h in emulator.hosts.values() if h.fake.faults.hung), None))
    host.lose()
    emulator.wait(lambda: not host.fake.faults.hung)
    emulator.faults.remove(hang)
    assert server not in host.fake.world.state.disks
    host.start()  # takes it up again: its journal has it as begun
    emulator.wait(lambda: emulated.status(server) == "ACTIVE")


def test_a_conductor_is_killed_and_another_goes_on(emulated: Emulated) -> None:
    emulator = emulated.emulator
    hang = emulator.faults.hang("boot", times=None)
    server = emulated.boot(settle=False)
    emulator.wait(lambda: any(host.fake.faults.hung for host in emulator.hosts.values()))
    emulator.kill_conductor()
    emulator.faults.remove(hang)
    assert emulated.status(server) == "BUILD"
    emulator.start_conductor()
    emulator.wait(lambda: emulated.status(server) == "ACTIVE")


def test_a_reset_ends_what_is_under_way(emulated: Emulated) -> None:
    emulator = emulated.emulator
    emulator.faults.hang("boot", times=None)
    emulator.faults.delay("volume", 3600, times=None)
    for number in range(3):
        emulated.boot(f"hangs-{number}", settle=False)
        assert emulated.api().post("volume", "/volumes", {"volume": {"size": 1}}).status == 202
    emulator.wait(lambda: sum(host.fake.faults.hung for host in emulator.hosts.values()) == 3)
    begun = time.monotonic()
    emulator.reset()
    assert time.monotonic() - begun < 60  # nobody waits for the hour that a volume takes
    assert emulated.api().get("compute", "/servers")["servers"] == []
    assert emulated.api().get("volume", "/volumes")["volumes"] == []
    assert emulator.settle()
    assert emulated.status(emulated.boot()) == "ACTIVE"


def test_requests_during_a_reset_wait_for_it(emulated: Emulated) -> None:
    import threading

    statuses: list[int] = []
    api = emulated.api()
    url, headers = api.endpoint("compute") + "/servers/detail", {"X-Auth-Token": api.token}
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not stop.is_set():
                statuses.append(session.get(url, headers=headers, timeout=30).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    end, resets = time.monotonic() + 20, 0
    while (len(statuses) < 20 or resets < 5) and time.monotonic() < end:
        emulated.emulator.reset()
        resets += 1
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert len(statuses) >= 20
    assert set(statuses) == {200}


def test_several_clouds_live_in_a_process(new_openstack_cloud: Callable[..., Emulator]) -> None:
    people = [Account("admin", "admin", "admin"), Account("ann", "hers", password="own")]
    one, other = new_openstack_cloud(hosts=1, accounts=people), new_openstack_cloud(hosts=1, accounts=people)
    first, second = Emulated(one), Emulated(other)
    assert first.url != second.url
    body = {"security_group": {"name": "only-here"}}
    assert first.api("ann").post("network", "/security-groups", body).status == 201
    one.clock.advance(days=3)
    names = [g["name"] for g in second.api("ann").get("network", "/security-groups")["security_groups"]]
    assert "only-here" not in names
    assert other.clock.ahead_seconds < 60
    stranger = requests.get(f"{other.url}/network/v2.0/networks", headers={"X-Auth-Token": first.api("ann").token})
    assert stranger.status_code == 401


def test_a_file_keeps_the_cloud(new_openstack_cloud: Callable[..., Emulator], tmp_path: Path) -> None:
    file = tmp_path / "cloud.db"
    first = new_openstack_cloud(file=file, hosts=3)
    clients = Emulated(first)
    server = clients.boot()
    seeded = inventory(clients)
    with pytest.raises(BlockingIOError):
        Emulator(file=file)
    first.stop()

    again = new_openstack_cloud(file=file)  # on another port
    clients = Emulated(again)
    assert sorted(again.up_hosts()) == ["host-1", "host-2", "host-3"]
    assert clients.status(server) == "ACTIVE"
    assert inventory(clients)["/networks"] == seeded["/networks"]
    assert clients.api().post("compute", f"/servers/{server}/action", {"os-stop": None}).status == 202
    assert again.settle()
    assert clients.status(server) == "SHUTOFF"
    again.reset()
    assert clients.api().get("compute", "/servers")["servers"] == []
    assert clients.status(clients.boot()) == "ACTIVE"
    again.stop()
    assert Emulated(new_openstack_cloud(file=file)).api().get("compute", "/servers").body["servers"]


def test_hosts_and_the_conductor_come_and_go(emulated: Emulated) -> None:
    """What an observer sees of it is a boot that takes longer."""
    emulator = emulated.emulator
    emulator.faults.delay("boot", 5)
    server = emulated.boot()
    assert emulated.status(server) == "BUILD"
    emulator.restart_conductor()
    host = next(host for host in emulator.hosts.values() if host.fake.faults.asleep)
    host.fake.faults.clear()
    host.restart()
    emulator.wait(lambda: emulated.status(server) == "ACTIVE")


def test_without_a_conductor_nothing_moves(emulated: Emulated) -> None:
    emulator = emulated.emulator
    emulator.stop_conductor()
    server = emulated.boot(settle=False)
    time.sleep(0.1)
    assert emulated.status(server) == "BUILD"
    emulator.start_conductor()
    emulator.wait(lambda: emulated.status(server) == "ACTIVE")
    emulator.stop_conductor()
    emulator.reset()
    assert emulated.status(emulated.boot()) == "ACTIVE"


def test_a_cloud_without_hosts_says_so(new_openstack_cloud: Callable[..., Emulator]) -> None:
    emulated = Emulated(new_openstack_cloud(hosts=0))
    server = emulated.boot()
    assert emulated.status(server) == "ERROR"
    assert "No valid host" in emulated.server(server)["fault"]["message"]
    emulated.emulator.reset()
    emulated.emulator.add_host("host-1")
    emulated.emulator.wait(lambda: emulated.emulator.up_hosts())
    assert emulated.emulator.settle()
    assert emulated.status(emulated.boot()) == "ACTIVE"


def test_the_control_endpoint_is_the_emulators_alone(cloud: Cloud) -> None:
    found = requests.get(f"{cloud.url}/identity/v3", timeout=10)
    assert found.status_code == 200
    plain = cloud.control.http
    assert "emulator" not in plain._mounts
    assert "emulator" not in plain._mounted
