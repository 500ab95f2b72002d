"""Servers move between hosts: resize and cold migration with confirm and revert, and the list of moves."""

from typing import Any

import pytest

from cumulet.kernel.errors import Conflict
from cumulet.services.compute import migrations, store
from tests.compute.helpers import Nova
from tests.compute.places import Places, failed_action
from tests.support.cloud import unique


def test_migrate_and_confirm(places: Places) -> None:
    nova, admin = places.nova, places.admin
    server = places.boot(volume=True)
    source, content = places.host(server), places.content(server)
    taken = places.allocations(server)
    assert admin.act(server, "migrate").status == 202
    shown = nova.wait(server, "VERIFY_RESIZE")
    target = places.host(server)
    assert target != source
    assert shown["OS-EXT-STS:vm_state"] == "resized"
    assert places.running(server) == [target]
    assert places.content(server) == content
    assert sorted(places.traces(server)) == sorted([source, target])  # the old disks, to go back to
    assert set(places.exports(server).values()) == {target}
    port = places.port(server)
    assert (port["binding:host_id"], port["status"]) == (target, "ACTIVE")
    [migration] = places.migrations(server)
    assert (migration["source_compute"], migration["dest_compute"]) == (source, target)
    assert (migration["status"], migration["migration_type"]) == ("finished", "migration")
    assert places.allocations(migration["uuid"]) == taken
    assert places.allocations(server) == {target: taken[source]}
    assert nova.act(server, "confirmResize").status == 204
    nova.wait(server, "ACTIVE")
    assert places.traces(server) == [target]
    assert places.allocations(migration["uuid"]) == {}
    assert places.migrations(server)[0]["status"] == "confirmed"
    assert places.events(server, "migrate")[:1] == ["compute_finish_resize"]
    assert places.events(server, "confirmResize") == ["compute_confirm_resize"]
    places.remove(server)


@pytest.mark.parametrize("stopped", [False, True])
def test_resize_and_revert(places: Places, stopped: bool) -> None:
    nova = places.nova
    server = places.boot(volume=True)
    if stopped:
        nova.act(server, "os-stop")
        nova.wait(server, "SHUTOFF")
    source, content, taken = places.host(server), places.content(server), places.allocations(server)
    flavor = nova.new_flavor(vcpus=2, ram=128, disk=2)
    assert nova.act(server, "resize", {"flavorRef": flavor}).status == 202
    nova.wait(server, "VERIFY_RESIZE")
    target = places.host(server)
    assert nova.show(server)["flavor"]["vcpus"] == 2
    assert places.world(target).disks[server].root_gb == 2
    assert places.running(server) == ([] if stopped else [target])
    assert nova.act(server, "revertResize").status == 202
    nova.wait(server, "SHUTOFF" if stopped else "ACTIVE")
    assert places.host(server) == source
    assert places.content(server) == content
    assert nova.show(server)["flavor"]["vcpus"] == 1
    assert places.running(server) == ([] if stopped else [source])
    places.cloud.settle()
    assert places.traces(server) == [source]
    assert places.allocations(server) == taken
    assert set(places.exports(server).values()) == {source}
    assert places.port(server)["binding:host_id"] == source
    assert places.migrations(server)[0]["status"] == "reverted"
    places.remove(server)


def test_a_revert_says_active_only_when_it_is_over(places: Places) -> None:
    """Who waits for that, and asks for the next thing, is not refused because of its last steps."""
    nova, server = places.nova, places.boot()
    source = places.host(server)
    assert places.admin.act(server, "migrate").status == 202
    nova.wait(server, "VERIFY_RESIZE")
    faults = places.cloud.hosts[places.host(server)].fake.faults
    go_on = faults.hang("DeleteDisks")
    assert nova.act(server, "revertResize").status == 202
    places.cloud.wait(lambda: places.running(server) == [source] and places.host(server) == source)
    shown = nova.show(server)
    assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("REVERT_RESIZE", "resize_reverting")
    go_on.set()
    nova.wait(server, "ACTIVE")
    assert places.admin.act(server, "migrate").status == 202
    nova.wait(server, "VERIFY_RESIZE")
    faults.clear()
    places.remove(server)


@pytest.mark.parametrize(("end", "last"), [("confirmResize", "DeleteDisks"), ("revertResize", "UndefineServer")])
def test_only_its_host_tells_of_a_server_that_moved(places: Places, end: str, last: str) -> None:
    """What the host that it leaves says last is forgotten with the end of the move."""
    nova, server = places.nova, places.boot()
    hosts = [places.host(server)]
    assert places.admin.act(server, "migrate").status == 202
    nova.wait(server, "VERIFY_RESIZE")
    hosts.append(places.host(server))
    assert places.tellers(server) == [hosts[1]]
    stays, left = reversed(hosts) if end == "confirmResize" else hosts
    faults = places.cloud.hosts[left].fake.faults
    go_on = faults.hang(last, times=None, only_if=lambda op: stays == places.host(server))
    assert nova.act(server, end).status in (202, 204)
    places.cloud.wait(lambda: faults.hung)
    places.say(left, server, 4)
    assert places.tellers(server) == sorted(hosts)
    go_on.set()
    nova.wait(server, "ACTIVE")
    assert places.tellers(server) == [stays]
    faults.clear()
    places.remove(server)


def test_a_resize_on_the_spot(new_cloud: Any) -> None:
    places = Places(Nova(new_cloud(hosts=1)))
    nova = places.nova
    flavor = nova.new_flavor(ram=128, disk=3)
    for confirmed in (True, False):
        server = places.boot(volume=True)
        content = places.content(server)
        assert nova.act(server, "resize", {"flavorRef": flavor}).status == 202
        nova.wait(server, "VERIFY_RESIZE")
        world = places.world(places.host(server))
        assert (world.disks[server].root_gb, world.aside[server].root_gb) == (3, 1)
        assert nova.act(server, "confirmResize" if confirmed else "revertResize").status in (202, 204)
        nova.wait(server, "ACTIVE")
        assert world.disks[server].root_gb == (3 if confirmed else 1)
        assert world.disks[server].content == content
        assert server not in world.aside
        places.remove(server)
    other = Nova(new_cloud(hosts=1, configure=lambda s: setattr(s.compute, "allow_resize_to_same_host", False)))
    server = other.boot()
    assert other.act(server, "resize", {"flavorRef": other.new_flavor()}).status == 202
    action = other.cloud.wait(lambda: failed_action(other, server, "resize"))
    assert "No valid host" in action["events"][0]["traceback"] or action["message"]
    assert other.show(server)["status"] == "ACTIVE"


def badly_undone(places: Places, *, lives: bool = True) -> str:
    """A server on the only host, which is said to be down as a resize on the spot is undone: that is skipped."""
    server = places.boot()
    name = places.host(server)
    host, world = places.cloud.hosts[name], places.world(name)
    go_on = host.fake.faults.hang("PowerServer", only_if=lambda op: op.action == "start")
    assert places.nova.act(server, "resize", {"flavorRef": places.nova.new_flavor(ram=128, disk=3)}).status == 202
    places.cloud.wait(lambda: host.fake.faults.hung)
    places.force_down(name, down=True)
    if not lives:
        host.lose()
    places.cloud.wait(lambda: failed_action(places.nova, server, "resize"))
    assert (world.disks[server].root_gb, world.aside[server].root_gb) == (3, 1)
    go_on.set()
    if not lives:
        host.start()
    return server


def tries(places: Places, server: str) -> list[str]:
    """How each try to take a resize back ended, or where it is."""
    control = places.cloud.control
    history = control.db.read(lambda tx: control.sagas.history(tx, "server", server))
    return [past.saga.status for past in history if past.saga.kind == "server.take_back"]


def look_again(places: Places) -> None:
    places.cloud.control.compute.clear_after_moves()
    assert places.cloud.settle()


@pytest.mark.parametrize("lives", [True, False])
def test_a_resize_on_the_spot_whose_host_is_down_as_it_is_undone(new_cloud: Any, lives: bool) -> None:
    """The host is told when it is back: the server is what it was, on the disks it had."""
    places = Places(Nova(new_cloud(hosts=1)))
    server = badly_undone(places, lives=lives)
    [name] = places.cloud.hosts
    world = places.world(name)
    content = world.aside[server].content
    places.force_down(name, down=False)
    places.cloud.wait(lambda: server not in world.aside, 60)
    assert (world.disks[server].root_gb, world.disks[server].content) == (1, content)
    places.cloud.wait(lambda: places.running(server))
    assert places.nova.wait(server, "ACTIVE")["flavor"]["disk"] == 1
    assert world.domains[server].spec.memory_mb == 64
    look_again(places)
    assert tries(places, server).count("finished") == 1  # and no more
    places.remove(server)


def test_what_nobody_takes_back(new_cloud: Any) -> None:
    """A server that was deleted, and one that moved since; they are not made anew, nor started."""
    places = Places(Nova(new_cloud(hosts=1)))
    [name] = places.cloud.hosts
    world, control = places.world(name), places.cloud.control
    moved = badly_undone(places)
    later = control.db.write(lambda tx: migrations.begin(tx, store.server(tx, moved), "migration", None, (1, 1), name))
    control.db.write(lambda tx: migrations.set_status(tx, later, "confirmed"))
    places.force_down(name, down=False)
    places.cloud.wait(lambda: name in places.cloud.up_hosts())
    look_again(places)
    assert (tries(places, moved), moved in world.aside) == ([], True)
    deleted = badly_undone(places)
    places.nova.delete(f"/servers/{deleted}")
    places.nova.gone(deleted)
    places.force_down(name, down=False)
    places.cloud.wait(lambda: name in places.cloud.up_hosts())
    look_again(places)
    assert tries(places, deleted) == []
    assert control.db.read(control.compute.moves.left_undone)[0].object_id == deleted


def test_taking_back_is_given_up(new_cloud: Any) -> None:
    """A server that is undefined again and again would be worse than one with disks beside its own."""
    places = Places(Nova(new_cloud(hosts=1)))
    server = badly_undone(places)
    [name] = places.cloud.hosts
    places.cloud.hosts[name].fake.faults.fail("RevertDisks", times=None)
    places.force_down(name, down=False)
    places.cloud.wait(lambda: name in places.cloud.up_hosts())
    for _ in range(5):
        look_again(places)
    assert tries(places, server) == ["failed"] * 3


def test_a_revert_on_the_spot_whose_host_is_down_as_it_is_undone(new_cloud: Any) -> None:
    """The server still waits for its confirmation, and its host is to have it: reverted again, it is what it was."""
    places = Places(Nova(new_cloud(hosts=1)))
    server = places.boot()
    name = places.host(server)
    host, world = places.cloud.hosts[name], places.world(name)
    assert places.nova.act(server, "resize", {"flavorRef": places.nova.new_flavor(ram=128, disk=3)}).status == 202
    places.nova.wait(server, "VERIFY_RESIZE")
    go_on = host.fake.faults.hang("RevertDisks")
    assert places.nova.act(server, "revertResize").status == 202
    places.cloud.wait(lambda: host.fake.faults.hung)
    places.force_down(name, down=True)
    host.lose()
    places.cloud.wait(lambda: failed_action(places.nova, server, "revertResize"))
    go_on.set()
    assert server not in world.domains
    host.start()
    host.agent._take_stock()  # while it is said to be down
    assert places.cloud.settle()
    places.force_down(name, down=False)
    places.cloud.wait(lambda: server in world.domains, 60)
    assert places.cloud.settle()
    assert places.nova.show(server)["status"] == "VERIFY_RESIZE"
    assert world.domains[server].spec.memory_mb == 128
    assert places.nova.act(server, "revertResize").status == 202
    assert places.nova.wait(server, "ACTIVE")["flavor"]["disk"] == 1
    assert (world.disks[server].root_gb, world.domains[server].spec.memory_mb) == (1, 64)
    assert server not in world.aside
    places.remove(server)


@pytest.mark.parametrize("returns", [True, False])
def test_a_move_is_confirmed_though_the_host_it_left_is_dead(new_cloud: Any, returns: bool) -> None:
    """Once an operator vouches for that; else the host could not be removed before the server is gone."""
    places = Places(Nova(new_cloud(hosts=2)))
    nova = places.nova
    server = places.boot()
    source = places.host(server)
    assert places.admin.act(server, "migrate").status == 202
    nova.wait(server, "VERIFY_RESIZE")
    host = places.cloud.hosts[source]
    host.lose()
    places.unheard_of(source)
    assert nova.act(server, "confirmResize").status == 409
    places.force_down(source, down=True)
    machines = places.cloud.control.operator.machines
    with pytest.raises(Conflict, match="1 server"):
        machines.remove(source)
    assert nova.act(server, "confirmResize").status == 204
    assert nova.wait(server, "ACTIVE")["OS-EXT-STS:vm_state"] == "active"
    assert places.migrations(server)[0]["status"] == "confirmed"
    assert set(places.allocations(server)) == {places.host(server)}
    assert source in places.traces(server)
    if returns:
        host.start()
        places.force_down(source, down=False)
        places.cloud.wait(lambda: places.traces(server) == [places.host(server)])
    else:
        machines.remove(source)
    assert places.running(server) == [places.host(server)] != [source]


def test_a_server_booted_from_a_volume(places: Places) -> None:
    nova = places.nova
    device = {
        "boot_index": 0, "uuid": nova.image, "source_type": "image", "destination_type": "volume", "volume_size": 1,
        "delete_on_termination": True,
    }  # fmt: skip
    server = places.boot(imageRef=None, block_device_mapping_v2=[device])
    source = places.host(server)
    flavor = nova.new_flavor(disk=0, ram=96)
    assert nova.act(server, "resize", {"flavorRef": flavor}).status == 202
    nova.wait(server, "VERIFY_RESIZE")
    target = places.host(server)
    assert set(places.exports(server).values()) == {target}
    assert nova.act(server, "confirmResize").status == 204
    nova.wait(server, "ACTIVE")
    if target != source:
        assert places.traces(server) == [target]
    places.remove(server)


def test_what_is_refused(places: Places) -> None:
    nova, admin = places.nova, places.admin
    server = places.boot()

    def refused(action: str, argument: Any = None, *, by: Nova = nova, **more: Any) -> tuple[int, str]:
        answer = by.act(server, action, argument, **more)
        kind = next(iter(answer.body))
        return answer.status, answer.body[kind]["message"]

    assert refused("resize", {"flavorRef": nova.flavor}) == (400, "When resizing, instances must change flavor!")
    assert refused("resize", {"flavorRef": "none"}) == (400, "Flavor none could not be found.")
    assert refused("resize", {"flavorRef": nova.new_flavor(disk=0)}) == (
        400,
        "Server disk was unable to be resized because: Resize to zero disk flavor is not allowed.",
    )
    assert refused("resize", {"flavorRef": nova.new_flavor(ram=60_000)})[0] == 403
    assert refused("resize", {})[0] == 400
    for action in ("confirmResize", "revertResize"):
        message = f"Cannot '{action}' instance {server} while it is in vm_state active"
        assert refused(action) == (409, message)
    assert refused("migrate")[0] == 403
    host = places.host(server)
    assert refused("migrate", {"host": host}, by=admin) == (
        400,
        "Cannot migrate to the host where the server exists.",
    )
    assert refused("migrate", {"host": "nowhere"}, by=admin) == (400, "Compute host nowhere could not be found.")
    assert refused("migrate", {"host": host}, by=nova.as_user("manager"))[0] == 403
    nova.act(server, "lock")
    assert refused("resize", {"flavorRef": nova.new_flavor()}) == (409, f"Instance {server} is locked")
    nova.act(server, "unlock")
    nova.act(server, "pause")
    nova.wait(server, "PAUSED")
    assert refused("resize", {"flavorRef": nova.new_flavor()}) == (
        409,
        f"Cannot 'resize' instance {server} while it is in vm_state paused",
    )
    places.remove(server)
    assert places.migrations(server) == []


def test_a_host_that_is_asked_for(places: Places) -> None:
    server = places.boot()
    for other in sorted(set(places.cloud.hosts) - {places.host(server)}):
        assert places.admin.act(server, "migrate", {"host": other}).status == 202
        places.nova.wait(server, "VERIFY_RESIZE")
        assert places.host(server) == other
        assert places.nova.act(server, "confirmResize").status == 204
        places.nova.wait(server, "ACTIVE")
    assert places.admin.act(server, "migrate", version="2.55").status == 202
    places.nova.wait(server, "VERIFY_RESIZE")
    places.remove(server)  # with the old disks


def test_a_smaller_disk(places: Places) -> None:
    nova = places.nova
    server = places.boot(flavorRef=nova.new_flavor(disk=2))
    assert nova.act(server, "resize", {"flavorRef": nova.flavor}).status == 202
    action = places.cloud.wait(lambda: failed_action(nova, server, "resize"))
    assert action["message"]
    shown = nova.wait(server, "ACTIVE")
    assert shown["flavor"]["disk"] == 2
    assert places.migrations(server)[0]["status"] == "error"
    places.remove(server)


@pytest.mark.parametrize("operation", ["OfferDisks", "FetchDisks", "DefineServer", "PlugPorts", "ExportVolume"])
def test_a_move_that_fails_leaves_all_as_before(places: Places, operation: str) -> None:
    server = places.boot(volume=True)
    source, content = places.host(server), places.content(server)
    taken, port = places.allocations(server), places.port(server)
    for name, host in places.cloud.hosts.items():
        if name != source or operation in ("OfferDisks", "ExportVolume"):
            host.fake.faults.fail(operation, after=operation == "DefineServer")
    assert places.admin.act(server, "migrate").status == 202
    places.cloud.wait(lambda: failed_action(places.nova, server, "migrate"))
    for host in places.cloud.hosts.values():
        host.fake.faults.clear()
    places.nova.wait(server, "ACTIVE")
    places.cloud.settle()
    assert (places.host(server), places.content(server)) == (source, content)
    assert places.running(server) == [source]
    assert places.traces(server) == [source]
    assert places.allocations(server) == taken
    assert set(places.exports(server).values()) == {source}
    after = places.port(server)
    assert (after["binding:host_id"], after["status"]) == (port["binding:host_id"], port["status"])
    assert places.migrations(server)[0]["status"] == "error"
    places.remove(server)


def test_deleted_on_the_way(places: Places) -> None:
    for operation in ("FetchDisks", "PowerServer"):
        server = places.boot(volume=True)
        events = [host.fake.faults.hang(operation) for host in places.cloud.hosts.values()]
        assert places.admin.act(server, "migrate").status == 202
        places.cloud.wait(lambda s=server: places.nova.show(s)["status"] == "RESIZE")
        assert places.nova.delete(f"/servers/{server}").status == 204
        for event in events:
            event.set()
        for host in places.cloud.hosts.values():
            host.fake.faults.clear()
        places.nova.gone(server)
        places.cloud.settle()
        assert places.traces(server) == []
        assert places.allocations(server) == {}
        [migration] = places.migrations(server)
        assert places.allocations(migration["uuid"]) == {}


def test_groups_are_kept(places: Places) -> None:
    nova = places.nova
    made = nova.post("/os-server-groups", {"server_group": {"name": unique("g"), "policy": "anti-affinity"}})
    group = made["server_group"]["id"]
    hints = {"os:scheduler_hints": {"group": group}}
    servers = []
    for _ in range(2):
        body = {"server": nova.server_body(networks=[{"uuid": places.network}]), **hints}
        servers.append(nova.post("/servers", body)["server"]["id"])
    for server in servers:
        nova.wait(server, "ACTIVE")
    [free] = set(places.cloud.hosts) - {places.host(server) for server in servers}
    assert places.admin.act(servers[0], "migrate").status == 202
    nova.wait(servers[0], "VERIFY_RESIZE")
    assert places.host(servers[0]) == free
    nova.act(servers[0], "confirmResize")
    nova.wait(servers[0], "ACTIVE")
    assert places.admin.act(servers[0], "migrate", {"host": places.host(servers[1])}).status == 202
    places.cloud.wait(lambda: failed_action(nova, servers[0], "migrate"))
    assert places.host(servers[0]) == free
    for server in servers:
        places.remove(server)


def test_the_list_of_moves(places: Places) -> None:
    nova, admin = places.nova, places.admin
    servers = [places.boot() for _ in range(2)]
    for server in servers:
        assert admin.act(server, "migrate").status == 202
        nova.wait(server, "VERIFY_RESIZE")
    first, second = servers
    mine = [one["instance_uuid"] for one in admin.get("/os-migrations?status=finished")["migrations"]]
    assert mine == [second, first]
    page = admin.get("/os-migrations?status=finished&limit=1")
    assert [one["instance_uuid"] for one in page["migrations"]] == [second]
    assert "marker=" in page["migrations_links"][0]["href"]
    marker = page["migrations"][0]["uuid"]
    rest = admin.get(f"/os-migrations?status=finished&marker={marker}")["migrations"]
    assert [one["instance_uuid"] for one in rest] == [first]
    assert admin.get("/os-migrations?marker=nothing").status == 400
    assert admin.get("/os-migrations?nonsense=1").status == 400
    assert admin.get("/os-migrations?changes-since=yesterday").status == 400
    since = rest[0]["updated_at"]
    assert first in [m["instance_uuid"] for m in admin.get(f"/os-migrations?changes-since={since}")["migrations"]]
    before = admin.get(f"/os-migrations?changes-since={since}&changes-before=2001-01-01T00:00:00")
    assert before.status == 400
    old = admin.get(f"/os-migrations?instance_uuid={first}", version="2.1")["migrations"][0]
    assert "uuid" not in old
    assert "migration_type" not in old
    assert {"source_compute", "dest_compute", "dest_host", "new_instance_type_id"} <= old.keys()
    assert nova.get("/os-migrations").status == 403
    manager = nova.as_user("manager")
    project = places.cloud.api("manager").project_id
    assert manager.get("/os-migrations").status == 403
    seen = manager.get(f"/os-migrations?project_id={project}")
    assert seen.status == 200
    assert {one["source_compute"] for one in seen["migrations"]} <= {None}
    for server in servers:
        assert nova.act(server, "revertResize").status == 202
        nova.wait(server, "ACTIVE")
        places.remove(server)


def test_confirmed_by_itself(places: Places) -> None:
    server = places.boot()
    assert places.admin.act(server, "migrate").status == 202
    places.nova.wait(server, "VERIFY_RESIZE")
    control = places.cloud.control
    assert control.db.write(lambda tx: control.compute.moves.confirm_old(tx, 0)) == 0
    assert control.db.write(lambda tx: control.compute.moves.confirm_old(tx, tx.now + 1)) == 1
    places.nova.wait(server, "ACTIVE")
    assert places.migrations(server)[0]["status"] == "confirmed"
    places.remove(server)
