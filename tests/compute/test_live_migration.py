"""Live migration by the API: where the guest is, who may do it, how it is stopped, and what is left of it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from cumulet.agent.contract import Inventory
from cumulet.emulator.clock import EmulatorClock
from tests.compute.helpers import Nova
from tests.compute.places import Places, failed_action

AUTO = {"host": None, "block_migration": "auto"}


@pytest.fixture
def slow(places: Places) -> Any:
    """Migrations take a minute, until told otherwise."""
    for host in places.cloud.hosts.values():
        host.fake.compute.moving.seconds = 60
    yield places
    for host in places.cloud.hosts.values():
        host.fake.compute.moving.seconds = 0


def migrated(places: Places, server: str, source: str) -> dict[str, Any]:
    def look() -> Any:
        shown = places.admin.show(server)
        return shown if shown["OS-EXT-SRV-ATTR:host"] != source and not shown["OS-EXT-STS:task_state"] else None

    found: dict[str, Any] = places.cloud.wait(look)
    return found


def running(places: Places, server: str) -> dict[str, Any]:
    """The migration once it runs."""

    def look() -> Any:
        found = places.admin.get(f"/servers/{server}/migrations")["migrations"]
        return found[0] if found and found[0]["memory_total_bytes"] else None

    row: dict[str, Any] = places.cloud.wait(look)
    return row


def as_before(places: Places, server: str) -> Callable[[], None]:
    """To be called when the migration has failed."""
    source, content = places.host(server), places.content(server)
    taken, port, exports = places.allocations(server), places.port(server), places.exports(server)

    def check() -> None:
        places.nova.wait(server, "ACTIVE")
        places.cloud.settle()
        assert (places.host(server), places.content(server)) == (source, content)
        assert places.running(server) == places.traces(server) == [source]
        assert places.allocations(server) == taken
        assert places.exports(server) == exports
        after = places.port(server)
        assert (after["binding:host_id"], after["status"]) == (port["binding:host_id"], "ACTIVE")
        for migration in places.migrations(server):
            assert places.allocations(migration["uuid"]) == {}
        assert attachments(places, server) == len(exports)
        assert holders(places, port["id"]) == [source]

    return check


def attachments(places: Places, server: str) -> int:
    rows = places.cloud.api("demo").get("volume", "/attachments/detail", version="3.27")["attachments"]
    return sum(row["instance"] == server for row in rows)


def opened(places: Places, host: str, port: str) -> list[int]:
    """First ports of the rules that the host knows for the port."""
    document = dict.get(places.world(host).documents["port"], port, {"rules": []})
    return [rule.get("port_range_min") for rule in document["rules"]]


def holders(places: Places, port: str) -> list[str]:
    control = places.cloud.control
    found: list[str] = control.db.read(lambda tx: control.desired.holders(tx, "port", port))
    return found


@pytest.mark.parametrize("paused", [False, True])
def test_to_another_host(places: Places, paused: bool) -> None:
    nova, admin = places.nova, places.admin
    server = places.boot(volume=True)
    if paused:
        nova.act(server, "pause")
        nova.wait(server, "PAUSED")
    source, content = places.host(server), places.content(server)
    taken, port = places.allocations(server), places.port(server)
    boots = places.world(source).domains[server].boots
    assert admin.act(server, "os-migrateLive", AUTO).status == 202
    shown = migrated(places, server, source)
    target = places.host(server)
    assert shown["status"] == ("PAUSED" if paused else "ACTIVE")
    assert places.content(server) == content
    assert places.world(target).domains[server].boots == boots
    assert places.running(server) == ([] if paused else [target])
    places.cloud.settle()
    assert places.traces(server) == [target]
    assert set(places.exports(server).values()) == {target}
    assert attachments(places, server) == 1
    volume = next(iter(places.exports(server)))
    assert places.cloud.api("demo").get("volume", f"/volumes/{volume}")["volume"]["status"] == "in-use"
    after = places.port(server)
    assert (after["binding:host_id"], after["status"]) == (target, "ACTIVE")
    assert holders(places, port["id"]) == [target]
    [migration] = places.migrations(server)
    assert (migration["status"], migration["migration_type"]) == ("completed", "live-migration")
    assert places.allocations(server) == {target: taken[source]}
    assert places.allocations(migration["uuid"]) == {}
    events = places.events(server, "live-migration")
    assert {"conductor_live_migrate_instance", "compute_pre_live_migration", "compute_live_migration"} <= set(events)
    if paused:
        nova.act(server, "unpause")
        nova.wait(server, "ACTIVE")
    nova.act(server, "reboot", {"type": "HARD"})
    nova.wait(server, "ACTIVE")
    assert places.running(server) == [target]
    places.remove(server)


def test_while_it_runs(slow: Places) -> None:
    nova, admin = slow.nova, slow.admin
    server = slow.boot(volume=True)
    source, port = slow.host(server), slow.port(server)["id"]
    assert admin.act(server, "os-migrateLive", AUTO).status == 202
    row = running(slow, server)
    assert nova.show(server)["status"] == "MIGRATING"
    assert 0 < row["memory_remaining_bytes"] <= row["memory_total_bytes"] == 64 << 20
    assert row["disk_total_bytes"] == 1 << 30
    one = admin.get(f"/servers/{server}/migrations/{row['id']}")["migration"]
    assert (one["status"], one["source_compute"], one["server_uuid"]) == ("running", source, server)
    assert "dest_compute" in one
    listed = slow.migrations(server)[0]
    assert listed["links"][0]["href"].endswith(f"/servers/{server}/migrations/{row['id']}")
    # the target has all it needs, and the source what it had
    assert sorted(slow.traces(server)) == sorted([source, row["dest_compute"]])
    assert slow.running(server) == [source]
    assert set(holders(slow, port)) == {source, row["dest_compute"]}
    assert slow.port(server)["status"] == "ACTIVE"
    volume = next(iter(slow.exports(server)))
    assert slow.cloud.api("demo").get("volume", f"/volumes/{volume}")["volume"]["status"] == "in-use"
    # a rule that comes meanwhile is told to both
    group = slow.cloud.api("demo").get("network", f"/ports/{port}")["port"]["security_groups"][0]
    rule = {"security_group_id": group, "direction": "ingress", "protocol": "tcp", "port_range_min": 80,
            "port_range_max": 80}  # fmt: skip
    assert slow.cloud.api("demo").post("network", "/security-group-rules", {"security_group_rule": rule}).status == 201
    for host in (source, row["dest_compute"]):
        slow.cloud.wait(lambda host=host: 80 in opened(slow, host, port))
    for action in ("os-stop", "migrate", "os-migrateLive", "reboot"):
        argument = {"os-migrateLive": AUTO, "reboot": {"type": "HARD"}}.get(action)
        assert admin.act(server, action, argument).status == 409
    path = f"/servers/{server}/migrations/{row['id']}/action"
    assert admin.post(path, {"force_complete": None}).status == 202
    migrated(slow, server, source)
    slow.cloud.settle()
    assert slow.events(server, "live_migration_force_complete") == ["compute_live_migration_force_complete"]
    assert slow.migrations(server)[0]["status"] == "completed"
    slow.remove(server)


def test_a_host_is_told_of_what_a_move_left_there(slow: Places) -> None:
    """Only once no move is between it and another: what arrives is not a leftover."""

    def said(host: str) -> list[str]:
        told = Inventory(host=host, servers=[], ports=[], volumes=[], exports=[], moving=[server])
        return list(slow.cloud.bus.call("conductor", told).servers)

    server = slow.boot()
    source = slow.host(server)
    [other, *_] = sorted(set(slow.cloud.hosts) - {source})
    assert said(other) == [server]
    assert slow.admin.act(server, "os-migrateLive", AUTO).status == 202
    target = running(slow, server)["dest_compute"]
    assert (said(source), said(target)) == ([], [])
    number = slow.migrations(server)[0]["id"]
    assert slow.admin.post(f"/servers/{server}/migrations/{number}/action", {"force_complete": None}).status == 202
    migrated(slow, server, source)
    slow.cloud.settle()
    assert said(source) == [server]
    assert slow.running(server) == [target]
    slow.remove(server)
    assert said(target) == [server]


def test_an_export_that_its_host_does_not_let_go_of(slow: Places) -> None:
    """The server has moved, and has its volume once: what is left is removed by that host's next inventory."""
    server = slow.boot(volume=True)
    source = slow.host(server)
    [volume] = slow.exports(server)
    for host in slow.cloud.hosts.values():
        host.fake.faults.fail("UnexportVolume", times=None)
    assert slow.admin.act(server, "os-migrateLive", AUTO).status == 202
    number = running(slow, server)["id"]
    assert slow.admin.post(f"/servers/{server}/migrations/{number}/action", {"force_complete": None}).status == 202
    migrated(slow, server, source)
    slow.cloud.settle()
    shown = slow.cloud.api("demo").get("volume", f"/volumes/{volume}")["volume"]
    assert [one["server_id"] for one in shown["attachments"]] == [server]
    [kept] = [slow.world(name) for name in slow.cloud.hosts if volume in slow.world(name).volumes]
    assert len(kept.volumes[volume].exports) == 2
    for host in slow.cloud.hosts.values():
        host.fake.faults.clear()
        host.restart()
    slow.cloud.wait(lambda: list(kept.volumes[volume].exports) == [shown["attachments"][0]["attachment_id"]])
    slow.remove(server)


def test_aborted(slow: Places) -> None:
    admin = slow.admin
    server = slow.boot(volume=True)
    check = as_before(slow, server)
    assert admin.act(server, "os-migrateLive", AUTO).status == 202
    row = running(slow, server)
    assert admin.delete(f"/servers/{server}/migrations/{row['id']}").status == 202
    check()
    assert slow.migrations(server)[0]["status"] == "cancelled"
    assert slow.events(server, "live_migration_cancel") == ["compute_live_migration_abort"]
    operator = slow.cloud.control.operator
    row = slow.cloud.db.read(lambda tx: slow.cloud.control.compute.row(tx, server))
    story = operator.explain_server(row, hosts=True, xml=False)["operations"]
    told = {one["action"]: one for one in story}
    assert {"live-migration", "live_migration_cancel", "attach_volume", "create"} <= told.keys()
    assert told["live-migration"]["error"] == "The migration was aborted."
    # a migration that does not run yet
    events = [host.fake.faults.hang("CacheImage") for host in slow.cloud.hosts.values()]
    assert admin.act(server, "os-migrateLive", AUTO).status == 202
    waiting = slow.cloud.wait(lambda: admin.get(f"/servers/{server}/migrations")["migrations"])[0]
    assert waiting["memory_total_bytes"] is None
    path = f"/servers/{server}/migrations/{waiting['id']}"
    assert admin.delete(path, version="2.64").status == 400
    assert admin.post(path + "/action", {"force_complete": None}).status == 400
    assert admin.delete(path).status == 202
    for event in events:
        event.set()
    check()
    assert slow.migrations(server)[0]["status"] == "cancelled"
    for host in slow.cloud.hosts.values():
        host.fake.faults.clear()
    slow.remove(server)


def test_deleted_on_the_way(slow: Places) -> None:
    server = slow.boot(volume=True)
    assert slow.admin.act(server, "os-migrateLive", AUTO).status == 202
    running(slow, server)
    slow.remove(server)
    [migration] = slow.migrations(server)
    assert migration["status"] == "cancelled"
    assert slow.allocations(migration["uuid"]) == {}
    assert attachments(slow, server) == 0


_PREPARING = ("ExportVolume", "PlugPorts", "PrepareReceive")


@pytest.mark.parametrize(
    ("operation", "after"), [*itertools.product(_PREPARING, (False, True)), ("MigrateServer", False)]
)
def test_one_that_fails_leaves_all_as_before(places: Places, operation: str, after: bool) -> None:
    server = places.boot(volume=True)
    check = as_before(places, server)
    for host in places.cloud.hosts.values():
        host.fake.faults.fail(operation, after=after)
    assert places.admin.act(server, "os-migrateLive", AUTO).status == 202
    places.cloud.wait(lambda: failed_action(places.nova, server, "live-migration"))
    for host in places.cloud.hosts.values():
        host.fake.faults.clear()
    check()
    assert places.migrations(server)[0]["status"] == "failed"
    places.remove(server)


def test_a_source_that_says_no_though_the_guest_went(places: Places) -> None:
    """The target is asked, and keeps it."""
    server = places.boot(volume=True)
    source = places.host(server)
    places.cloud.hosts[source].fake.faults.fail("MigrateServer", after=True)
    assert places.admin.act(server, "os-migrateLive", AUTO).status == 202
    migrated(places, server, source)
    target = places.host(server)
    places.cloud.settle()
    assert places.running(server) == places.traces(server) == [target]
    assert set(places.exports(server).values()) == {target}
    assert places.migrations(server)[0]["status"] == "completed"
    places.remove(server)


@pytest.mark.parametrize("by", ["delete", "evacuate"])
def test_cut_short_when_the_guest_had_left(new_cloud: Any, by: str) -> None:
    """The migration is over all the same: it holds nothing of its source, and the server has its volume once."""
    places = Places(Nova(new_cloud(hosts=3)))
    admin, hosts, control = places.admin, places.cloud.hosts, places.cloud.control
    server = places.boot(volume=True)
    source = places.host(server)
    go_on = [host.fake.faults.hang("EndReceive") for host in hosts.values()]
    assert admin.act(server, "os-migrateLive", AUTO).status == 202
    places.cloud.wait(lambda: any(host.fake.faults.hung for host in hosts.values()))
    target = places.host(server)
    assert target != source
    if by == "delete":
        hosts[target].fake.faults.fail("UndefineServer", times=None)
        assert places.nova.delete(f"/servers/{server}").status == 204
    else:
        control.db.write(lambda tx: control.hosts.set_forced_down(tx, target, True))
        assert admin.act(server, "evacuate", {}, version="2.94").status == 200
    for event in go_on:
        event.set()
    if by == "delete":
        places.cloud.wait(lambda: admin.show(server)["status"] == "ERROR")
    else:  # it begins when the migration that it cuts short has ended
        ended = ("done", "completed")
        places.cloud.wait(lambda: places.migrations(server, migration_type="evacuation")[0]["status"] in ended)
        places.cloud.wait(lambda: admin.show(server)["OS-EXT-STS:task_state"] is None)
    [live] = places.migrations(server, migration_type="live-migration")
    assert live["status"] == "completed"
    assert places.allocations(live["uuid"]) == {}
    assert set(places.tellers(server)) <= {places.host(server)}
    control.db.write(lambda tx: control.hosts.set_forced_down(tx, target, False))
    hosts[target].fake.faults.clear()
    if by == "evacuate":
        [volume] = places.exports(server)
        shown = places.cloud.api("demo").get("volume", f"/volumes/{volume}")["volume"]
        assert len(shown["attachments"]) == 1
    places.nova.remove(server)
    for host in hosts.values():
        host.restart()  # an inventory, in which its remains are
    places.cloud.wait(lambda: not places.traces(server))


@pytest.mark.parametrize("gone", [False, True])
def test_a_source_that_is_lost(new_cloud: Any, gone: bool) -> None:
    """Lost while it hands over: where the guest is, the target says."""
    clock = EmulatorClock()
    places = Places(Nova(new_cloud(hosts=2, clock=clock)))
    server = places.boot(volume=True)
    source = places.host(server)
    host = places.cloud.hosts[source]
    host.fake.faults.hang("MigrateServer", after=gone)
    check = as_before(places, server)
    assert places.admin.act(server, "os-migrateLive", AUTO).status == 202
    assert host.fake.faults.hanging.acquire(timeout=60)
    host.lose()
    control = places.cloud.control
    control.db.write(lambda tx: control.hosts.set_forced_down(tx, source, True))
    clock.advance(400)
    places.cloud.wait(lambda: places.admin.show(server)["OS-EXT-STS:task_state"] is None)
    assert places.host(server) == (source if not gone else next(iter(set(places.cloud.hosts) - {source})))
    assert places.migrations(server)[0]["status"] == ("completed" if gone else "failed")
    control.db.write(lambda tx: control.hosts.set_forced_down(tx, source, False))
    host.fake.faults.clear()
    host.start()
    places.cloud.wait(lambda: places.traces(server) == [places.host(server)])
    if not gone:
        places.cloud.wait(lambda: places.running(server) == [source])
        check()
    places.remove(server)


def test_what_is_refused(places: Places) -> None:
    nova, admin = places.nova, places.admin
    server = places.boot()
    host = places.host(server)
    others = sorted(set(places.cloud.hosts) - {host})

    def refused(argument: Any, *, by: Nova = admin, **more: Any) -> tuple[int, str]:
        answer = by.act(server, "os-migrateLive", argument, **more)
        assert answer.status != 202
        return answer.status, answer.body[next(iter(answer.body))]["message"]

    assert refused(AUTO, by=nova)[0] == 403
    assert refused({**AUTO, "host": others[0]}, by=nova.as_user("manager"))[0] == 403
    assert refused({**AUTO, "host": "nowhere"}) == (400, "Compute host nowhere could not be found.")
    assert refused({"host": None})[0] == 400
    assert refused({**AUTO, "force": True})[0] == 400  # gone since 2.68
    assert refused({**AUTO, "force": True}, version="2.67") == (400, "Can't force to a non-provided destination")
    assert refused({**AUTO, "host": host, "force": True}, version="2.67") == (
        400,
        f"Unable to migrate instance ({server}) to current host ({host}).",
    )
    old = {"host": None, "block_migration": False, "disk_over_commit": False}
    assert refused(AUTO, version="2.1")[0] == 400
    assert refused({**old, "disk_over_commit": None}, version="2.1")[0] == 400
    assert refused(old, version="2.1")[0] == 400  # its disks are local
    assert refused({"host": None, "block_migration": True}, version="2.1")[0] == 400
    for other in others:
        admin.put(f"/os-services/{service(admin, other)}", {"status": "disabled"})
    try:
        status, message = refused({**old, "block_migration": True}, version="2.1")
        assert status == 400
        assert "No valid host" in message
        assert admin.act(server, "os-migrateLive", AUTO).status == 202
        places.cloud.wait(lambda: failed_action(nova, server, "live-migration"))
        nova.wait(server, "ACTIVE")
        assert places.migrations(server)[0]["status"] == "error"
        # a host that is forced is not asked
        forced = {"host": others[0], "block_migration": True, "disk_over_commit": False}
        assert admin.act(server, "os-migrateLive", forced, version="2.24").status == 202
        migrated(places, server, host)
    finally:
        for other in others:
            admin.put(f"/os-services/{service(admin, other)}", {"status": "enabled"})
    assert admin.delete(f"/servers/{server}/migrations/1").status == 409
    assert admin.get(f"/servers/{server}/migrations/1").status == 404
    assert admin.get(f"/servers/{server}/migrations/one").status == 404
    assert nova.get(f"/servers/{server}/migrations").status == 403
    nova.act(server, "os-stop")
    nova.wait(server, "SHUTOFF")
    assert refused(AUTO) == (
        409,
        f"Cannot 'os-migrateLive' instance {server} while it is in vm_state stopped",
    )
    places.remove(server)


def service(admin: Nova, host: str) -> str:
    found = admin.get(f"/os-services?host={host}&binary=nova-compute")["services"]
    identity: str = found[0]["id"]
    return identity
