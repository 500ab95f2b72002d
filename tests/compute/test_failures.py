"""Servers when things go wrong: deletes at any time, hosts that fail or are lost, races for quota."""

import threading
import time
from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import Inventory, ServerReport
from cumulet.emulator.clock import EmulatorClock
from tests.compute.helpers import Nova
from tests.compute.places import Places


@pytest.fixture
def own(new_cloud: Any) -> Nova:
    return Nova(new_cloud(hosts=2))


def empty(nova: Nova) -> bool:
    return all(host.fake.empty() for host in nova.cloud.hosts.values())


def allocations(nova: Nova) -> int:
    control = nova.cloud.control

    def work(tx: Any) -> int:
        usages = control.placement.all_usages(tx)
        return sum(amount for used in usages.values() for amount in used.values())

    total: int = control.db.read(work)
    return total


def test_delete_while_building(own: Nova) -> None:
    own.image, own.flavor  # noqa: B018 - made before anything hangs
    for operation in ("CacheImage", "CreateDisks", "DefineServer", "PowerServer"):
        hosts = own.cloud.hosts.values()
        events = [host.fake.faults.hang(operation) for host in hosts]
        server = own.boot(wait=None)
        own.cloud.wait(lambda server=server: own.show(server)["OS-EXT-STS:task_state"] == "spawning")  # type: ignore[misc]
        time.sleep(0.05)
        assert own.delete(f"/servers/{server}").status == 204
        assert own.show(server)["OS-EXT-STS:task_state"] == "deleting"
        assert own.delete(f"/servers/{server}").status == 204
        for event in events:
            event.set()
        own.gone(server)
        for host in hosts:
            host.fake.faults.clear()
    own.cloud.wait(lambda: empty(own) or not any(h.fake.world.leftovers().get("domains") for h in hosts))
    assert allocations(own) == 0


def test_another_host_is_tried(own: Nova) -> None:
    own.image, own.flavor  # noqa: B018
    for host in own.cloud.hosts.values():
        host.fake.faults.fail("DefineServer", times=1)
    first = own.boot(wait="ERROR")  # both hosts fail once
    fault = own.show(first)["fault"]
    assert "Exceeded maximum number of retries" in fault["message"]
    assert "a fault was injected" in own.as_user("admin").show(first)["fault"]["details"]
    assert own.show(first)["hostId"] == ""
    next(iter(own.cloud.hosts.values())).fake.faults.fail("CreateDisks", times=1)
    second = own.boot()
    for server in (first, second):
        own.remove(server)
    assert allocations(own) == 0
    own.cloud.wait(lambda: not any(h.fake.world.leftovers().get("domains") for h in own.cloud.hosts.values()))


def test_a_bad_image_is_not_tried_elsewhere(own: Nova) -> None:
    own.image, own.flavor  # noqa: B018
    for host in own.cloud.hosts.values():
        host.fake.faults.fail("CacheImage", times=None, code="image-invalid", message="not an image")
    server = own.boot(wait="ERROR")
    assert "aborted: not an image" in own.show(server)["fault"]["message"]
    assert sum(host.fake.faults.count("CacheImage") for host in own.cloud.hosts.values()) == 1
    own.remove(server)


def test_delete_with_the_host_down(own: Nova) -> None:
    server = own.boot()
    host = own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    own.cloud.hosts[host].lose()
    admin = own.as_user("admin")
    services = {s["host"]: s for s in admin.get("/os-services?binary=nova-compute")["services"]}
    down = admin.put(f"/os-services/{services[host]['id']}", {"forced_down": True})
    assert down.status == 200, down.text
    assert down["service"]["state"] == "down"
    own.remove(server)
    assert own.cloud.hosts[host].fake.world.leftovers()
    assert admin.put(f"/os-services/{services[host]['id']}", {"forced_down": False}).status == 200
    own.cloud.hosts[host].start()
    own.cloud.wait(lambda: not own.cloud.hosts[host].fake.world.leftovers().get("domains"))


def test_a_volume_that_its_host_does_not_let_go_of_is_free_once_the_server_is_deleted(own: Nova) -> None:
    api = own.cloud.api("demo")
    server = own.boot()
    volume = api.post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]

    def shows(status: str) -> bool:
        return bool(api.get("volume", f"/volumes/{volume}")["volume"]["status"] == status)

    own.cloud.wait(lambda: shows("available"))
    body = {"volumeAttachment": {"volumeId": volume}}
    assert own.post(f"/servers/{server}/os-volume_attachments", body).status == 200
    own.cloud.wait(lambda: shows("in-use"))
    for host in own.cloud.hosts.values():
        host.fake.faults.fail("UnexportVolume", times=None)
    own.remove(server)
    assert shows("available")
    assert "attachment-without-server" not in {
        one["code"] for one in own.cloud.control.operator.audit(fix=False)["findings"]
    }
    for host in own.cloud.hosts.values():
        host.fake.faults.clear()
        host.restart()  # an inventory, in which the export is
    own.cloud.wait(lambda: not any(host.fake.world.leftovers().get("exports") for host in own.cloud.hosts.values()))
    assert api.delete("volume", f"/volumes/{volume}").status == 202


def test_a_volume_that_the_guest_let_go_of_is_free(own: Nova) -> None:
    """Though its host does not let go of it: the server does not have it any more. Its export goes later."""
    api, server = own.cloud.api("demo"), own.boot()
    volume = api.post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]

    def shows(status: str) -> bool:
        return bool(api.get("volume", f"/volumes/{volume}")["volume"]["status"] == status)

    own.cloud.wait(lambda: shows("available"))
    path = f"/servers/{server}/os-volume_attachments"
    assert own.post(path, {"volumeAttachment": {"volumeId": volume}}).status == 200
    own.cloud.wait(lambda: shows("in-use"))
    for host in own.cloud.hosts.values():
        host.fake.faults.fail("UnexportVolume", times=None)
    assert own.delete(f"{path}/{volume}").status == 202
    own.cloud.wait(lambda: shows("available"))
    assert own.get(path)["volumeAttachments"] == []
    for host in own.cloud.hosts.values():
        host.fake.faults.clear()
        host.restart()  # an inventory, in which the export is
    own.cloud.wait(lambda: not any(host.fake.world.leftovers().get("exports") for host in own.cloud.hosts.values()))
    own.remove(server)


def test_a_volume_that_goes_with_its_server_goes_once_its_host_lets_it(new_cloud: Any) -> None:
    clock = EmulatorClock()
    own = Nova(new_cloud(hosts=2, clock=clock))
    own.cloud.control.reconcilers.stop()
    api = own.cloud.api("demo")
    disk = {"source_type": "blank", "destination_type": "volume", "volume_size": 1, "delete_on_termination": True,
            "boot_index": -1}  # fmt: skip
    image = {"source_type": "image", "uuid": own.image, "destination_type": "local", "boot_index": 0,
             "delete_on_termination": True}  # fmt: skip
    server = own.boot(block_device_mapping_v2=[image, disk])
    (volume,) = (one["id"] for one in api.get("volume", "/volumes")["volumes"])
    path = f"/volumes/{volume}"
    delete_again = own.cloud.control.volume.delete_again
    for host in own.cloud.hosts.values():
        host.fake.faults.fail("UnexportVolume", times=None)
    own.remove(server)
    own.cloud.wait(lambda: api.get("volume", path)["volume"]["status"] == "error_deleting")
    assert delete_again() == "1 begun"  # its host still exports it
    own.cloud.wait(lambda: api.get("volume", path)["volume"]["status"] == "error_deleting")
    assert delete_again() is None, "it was tried a moment ago"
    for host in own.cloud.hosts.values():
        host.fake.faults.clear()
        host.restart()  # an inventory, in which the export is
    own.cloud.wait(lambda: not any(host.fake.world.leftovers().get("exports") for host in own.cloud.hosts.values()))
    clock.advance(minutes=2)
    own.cloud.wait(delete_again)
    own.cloud.wait(lambda: api.get("volume", path).status == 404)


def test_a_volume_whose_delete_somebody_asked_for_is_left_to_them(own: Nova) -> None:
    api = own.cloud.api("demo")
    volume = api.post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    own.cloud.wait(lambda: api.get("volume", f"/volumes/{volume}")["volume"]["status"] == "available")
    for host in own.cloud.hosts.values():
        host.fake.faults.fail("DeleteVolume")
    assert api.delete("volume", f"/volumes/{volume}").status == 202
    own.cloud.wait(lambda: api.get("volume", f"/volumes/{volume}")["volume"]["status"] == "error_deleting")
    assert own.cloud.control.volume.delete_again() is None
    again = own.cloud.api("admin").post("volume", f"/volumes/{volume}/action", {"os-force_delete": {}})
    assert again.status == 202


def test_a_late_report_of_a_host_where_the_server_is_not_is_forgotten(own: Nova) -> None:
    server = own.boot()
    there = own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    (elsewhere,) = set(own.cloud.hosts) - {there}
    report = ServerReport(server_id=server, host=elsewhere, power_state=4, reason="destroyed", sequence=1 << 40)
    own.cloud.bus.call("conductor", report)
    assert own.show(server)["status"] == "ACTIVE"
    found = own.cloud.control.operator.audit(fix=False)["findings"]
    assert "report-from-elsewhere" not in {one["code"] for one in found}


def test_hard_reboot_and_delete_preempt(own: Nova) -> None:
    server = own.boot()
    host = own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    event = own.cloud.hosts[host].fake.faults.hang("PowerServer")
    assert own.act(server, "reboot", {"type": "SOFT"}).status == 202
    assert own.show(server)["status"] == "REBOOT"
    assert own.act(server, "os-stop").status == 409
    assert own.act(server, "reboot", {"type": "HARD"}).status == 202
    event.set()
    own.wait(server, "ACTIVE")
    event = own.cloud.hosts[host].fake.faults.hang("PowerServer")
    assert own.act(server, "reboot", {"type": "HARD"}).status == 202
    assert own.delete(f"/servers/{server}").status == 204
    event.set()
    own.gone(server)
    server = own.boot()
    host = own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    event = own.cloud.hosts[host].fake.faults.hang("PowerServer")
    assert own.act(server, "reboot", {"type": "SOFT"}).status == 202
    assert own.act(server, "reboot", {"type": "HARD"}).status == 202  # waits for the soft one to end
    assert own.delete(f"/servers/{server}").status == 204
    event.set()
    own.gone(server)


def test_a_hard_reboot_asked_for_again_is_another(own: Nova) -> None:
    """Two actions, one after the other: what came up between them may hang as well."""
    server = own.boot()
    host = own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    event = own.cloud.hosts[host].fake.faults.hang("PowerServer")
    for _ in range(2):
        assert own.act(server, "reboot", {"type": "HARD"}).status == 202
        assert own.show(server)["status"] == "HARD_REBOOT"
    path = f"/servers/{server}/os-instance-actions"
    actions = [one for one in own.get(path)["instanceActions"] if one["action"] == "reboot"]
    assert len({one["request_id"] for one in actions}) == 2
    event.set()

    def ended() -> bool:
        found = [own.get(f"{path}/{one['request_id']}")["instanceAction"] for one in actions]
        events = [event for one in found for event in one["events"]]
        return {event["result"] for event in events} == {"Success"} and all(one["events"] for one in found)

    own.cloud.wait(ended)
    own.wait(server, "ACTIVE")
    own.remove(server)


def test_quota_admits_exactly_ten(own: Nova) -> None:
    body = own.server_body()
    statuses: list[int] = []

    def create() -> None:
        statuses.append(own.post("/servers", {"server": body}).status)

    threads = [threading.Thread(target=create) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202] * 10 + [403] * 10
    refused = own.post("/servers", {"server": body})
    assert refused["forbidden"]["message"] == (
        "Quota exceeded for instances: Requested 1, but already used 10 of 10 instances"
    )
    assert own.post("/servers", {"server": {**body, "min_count": 2}}).status == 403
    used = own.get(f"/os-quota-sets/{own.cloud.api('demo').project_id}/detail")["quota_set"]["instances"]
    assert used == {"limit": 10, "in_use": 10, "reserved": 0}


def test_visible_states_are_what_settle_computes(own: Nova) -> None:
    """Recompute every row from intent, reports and the owner's step."""
    from cumulet.services.compute import state, store
    from cumulet.services.compute.store import ServerQuery

    servers = [own.boot(wait=None) for _ in range(3)]
    own.act(servers[0], "os-stop")
    engine, db = own.cloud.control.sagas, own.cloud.control.db

    def check(tx: Any) -> int:
        for server in sorted(servers):
            tx.lock("server", server)
        rows = ServerQuery().read(tx) or []
        for row in rows:
            owner = engine.owner(tx, "server", row.id)
            task = row.task_state
            if owner is None:
                task = None
            intent = state.Intent(row.goal, row.failed, row.deleting, row.launched_at, row.deleted_at)
            seen = state.visible(intent, store.reported(tx, row.id, row.host), task)
            assert (seen.vm_state, seen.task_state, seen.status) == (row.vm_state, row.task_state, row.status)
            if row.deleted_at is None:
                assert seen.power_state == row.power_state
        return len(rows)

    for step in range(30):
        assert db.write(check) == 3
        if step == 10:
            own.delete(f"/servers/{servers[1]}")
        if step == 15:
            own.act(servers[2], "pause")
        time.sleep(0.01)


def test_an_inventory_that_was_long_on_its_way(own: Nova) -> None:
    """A server that came since is not taken for one that stopped by itself, nor stopped because of that."""
    server = own.boot()
    host = own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]
    bus, tellers = own.cloud.bus, Places(own).tellers
    told = Inventory(host=host, servers=[], ports=[], volumes=[], exports=[], sequence=1)
    for message in (told, msgspec.structs.replace(told, sequence=0)):  # an agent of before does not say when
        bus.call("conductor", message)
        assert own.show(server)["status"] == "ACTIVE"
        assert tellers(server) == [host]
    bus.call("conductor", msgspec.structs.replace(told, sequence=1 << 62))  # the host was started anew
    assert own.show(server)["status"] == "SHUTOFF"
    own.remove(server)


def test_a_server_that_found_no_host(own: Nova) -> None:
    """What only a host can do is refused: it was acknowledged, said it was done, and the server was SHUTOFF nowhere."""
    server = own.boot(flavorRef=own.new_flavor(disk=1_000_000), wait="ERROR")
    volume = own.cloud.api("demo").post("volume", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
    admin = own.as_user("admin")
    actions: list[tuple[str, Any]] = [
        ("os-stop", None),
        ("reboot", {"type": "HARD"}),
        ("rebuild", {"imageRef": own.image}),
    ]
    for action, argument in actions:
        answer = own.act(server, action, argument)
        assert (answer.status, "is not ready" in answer.text) == (409, True), answer.text
    assert admin.act(server, "os-resetState", {"state": "active"}).status == 202
    own.cloud.wait(lambda: own.cloud.api("demo").get("volume", f"/volumes/{volume}")["volume"]["status"] == "available")
    for path, body in (
        ("os-volume_attachments", {"volumeAttachment": {"volumeId": volume}}),
        ("os-interface", {"interfaceAttachment": {}}),
        ("action", {"createImage": {"name": "none"}}),
        ("action", {"pause": None}),
    ):
        answer = own.post(f"/servers/{server}/{path}", body)
        assert (answer.status, "is not ready" in answer.text) == (409, True), answer.text
    own.remove(server)


@pytest.mark.parametrize("disks", [True, False])
def test_a_stopped_server_that_its_host_does_not_have_is_defined_again(own: Nova, disks: bool) -> None:
    """As it is when a move is undone while the host is down."""
    server = own.boot()
    host = own.cloud.hosts[own.as_user("admin").show(server)["OS-EXT-SRV-ATTR:host"]]
    assert own.act(server, "os-stop").status == 202
    own.wait(server, "SHUTOFF")
    with host.fake.world.change() as state:
        before = state.domains.pop(server)
        if not disks:
            state.disks.pop(server)
    host.restart()
    own.cloud.wait(lambda: server in host.fake.world.state.domains)
    assert host.fake.world.state.domains[server].spec.instance_name == before.instance_name
    own.cloud.settle()
    assert own.show(server)["status"] == "SHUTOFF"
    if disks:
        assert own.act(server, "os-start").status == 202
        own.wait(server, "ACTIVE")
    own.remove(server)
