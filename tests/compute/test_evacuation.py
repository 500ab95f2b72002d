"""Servers of a dead host are made anew elsewhere, and nothing of them runs twice when it comes back."""

from typing import Any

import pytest

from cumulet.services.compute import migrations
from tests.compute.helpers import Nova
from tests.compute.places import Places, failed_action


@pytest.fixture
def three(new_cloud: Any) -> Places:
    return Places(Nova(new_cloud(hosts=3)))


def lose(places: Places, host: str) -> None:
    """The host is dead, and an operator vouches for it."""
    places.cloud.hosts[host].lose()
    places.force_down(host, down=True)


def spared(places: Places, *, but: str) -> None:
    """New volumes come from hosts that live on."""
    control = places.cloud.control
    control.db.write(lambda tx: control.hosts.set_disabled(tx, but, role="storage"))


@pytest.mark.parametrize("version", ["2.94", "2.95", "2.13"])
def test_evacuated_and_cleaned(three: Places, version: str) -> None:
    places, nova, admin = three, three.nova, three.admin
    server = places.boot()
    source, content = places.host(server), places.content(server)
    spared(places, but=source)
    body = {"volumeAttachment": {"volumeId": places.volume()}}
    assert nova.post(f"/servers/{server}/os-volume_attachments", body).status == 200
    places.cloud.wait(lambda: places.exports(server))
    volume = next(iter(places.exports(server)))
    before = fences(places, volume)
    taken = places.allocations(server)
    lose(places, source)
    argument = {"onSharedStorage": False} if version == "2.13" else {}
    answer = admin.act(server, "evacuate", argument, version=version)
    assert answer.status == 200, answer.text
    assert ("adminPass" in (answer.body or {})) == (version == "2.13")
    stopped = version == "2.95"
    places.cloud.wait(lambda: places.host(server) != source)
    nova.wait(server, "SHUTOFF" if stopped else "ACTIVE")
    target = places.host(server)
    assert (target in places.running(server)) is not stopped
    assert places.content(server) != content  # a new disk of the image
    assert set(places.exports(server).values()) == {target}
    assert fences(places, volume) > before
    assert places.port(server)["binding:host_id"] == target
    assert places.allocations(server) == {target: taken[source]}
    [migration] = places.migrations(server)
    assert (migration["status"], migration["migration_type"]) == ("done", "evacuation")
    assert (migration["source_compute"], migration["dest_compute"]) == (source, target)
    assert "compute_rebuild_instance" in places.events(server, "evacuate")
    # the dead host comes back
    places.cloud.hosts[source].start()
    places.force_down(source, down=False)
    places.cloud.wait(lambda: source in places.cloud.up_hosts())
    places.cloud.wait(lambda: places.traces(server) == [target], 20)  # sooner than by period
    places.cloud.wait(lambda: places.migrations(server)[0]["status"] == "completed", 40)
    assert places.running(server) == ([] if stopped else [target])
    places.remove(server)


def fences(places: Places, volume: str) -> int:
    """The newest export of the volume, of all ever made."""
    return max(
        generation
        for host in places.cloud.hosts.values()
        if volume in host.fake.world.state.volumes
        for generation in host.fake.world.state.volumes[volume].fence.values()
    )


def test_a_host_whose_agent_lives(three: Places) -> None:
    """Forced down, though it is not dead: no word of it takes the server back, and it is cleaned when it is vouched
    for again."""
    places = three
    server = places.boot()
    source = places.host(server)
    places.force_down(source, down=True)
    others = [host.fake.faults for name, host in places.cloud.hosts.items() if name != source]
    go_on = [faults.hang("PowerServer") for faults in others]
    assert places.admin.act(server, "evacuate", {}, version="2.94").status == 200
    places.cloud.wait(lambda: any(faults.hung for faults in others))
    places.say(source, server, 1)
    for event in go_on:
        event.set()
    places.cloud.wait(lambda: places.host(server) != source)
    places.nova.wait(server, "ACTIVE")
    assert places.tellers(server) == [places.host(server)]
    places.force_down(source, down=False)
    places.cloud.wait(lambda: places.traces(server) == [places.host(server)], 20)  # sooner than by period
    places.remove(server)


def test_what_is_just_being_attached_on_the_dead_host(three: Places) -> None:
    """It fails there, and is then not the server's: nothing of it is at the other host."""
    places = three
    server = places.boot()
    source, port = places.host(server), places.port(server)["id"]
    hang = places.cloud.faults.hang("AttachPort", host=source)
    body = {"interfaceAttachment": {"net_id": places.network}}
    new = places.nova.post(f"/servers/{server}/os-interface", body)["interfaceAttachment"]["port_id"]
    places.cloud.wait(lambda: places.cloud.hosts[source].fake.faults.hung)
    lose(places, source)
    places.cloud.faults.remove(hang)
    assert places.admin.act(server, "evacuate", {}, version="2.94").status == 200
    places.cloud.wait(lambda: places.host(server) != source)
    places.nova.wait(server, "ACTIVE")
    assert list(places.world(places.host(server)).domains[server].ports) == [port]
    assert places.port(server)["id"] == port
    assert places.cloud.api("admin").get("network", f"/ports/{new}").status == 404
    assert failed_action(places.nova, server, "attach_interface")
    places.cloud.hosts[source].start()
    places.force_down(source, down=False)
    places.cloud.wait(lambda: places.traces(server) == [places.host(server)], 40)
    places.remove(server)


def test_one_that_fails(three: Places) -> None:
    places = three
    server = places.boot()
    source, taken = places.host(server), places.allocations(server)
    lose(places, source)
    for name, host in places.cloud.hosts.items():
        if name != source:
            host.fake.faults.fail("DefineServer", times=None)
    assert places.admin.act(server, "evacuate", {}).status == 200
    places.cloud.wait(lambda: failed_action(places.nova, server, "evacuate"))
    places.nova.wait(server, "ACTIVE")
    places.cloud.settle()
    assert places.host(server) == source
    assert places.traces(server) == [source]
    assert places.allocations(server) == taken
    assert places.port(server)["binding:host_id"] == source
    assert places.migrations(server)[0]["status"] == "failed"
    for host in places.cloud.hosts.values():
        host.fake.faults.clear()
    places.force_down(source, down=False)
    places.cloud.hosts[source].start()
    places.cloud.wait(lambda: source in places.cloud.up_hosts())
    places.nova.act(server, "reboot", {"type": "HARD"})
    places.nova.wait(server, "ACTIVE")
    assert places.running(server) == [source]
    places.remove(server)


def test_what_is_refused(three: Places) -> None:
    places, admin = three, three.admin
    server = places.boot()
    host = places.host(server)
    [other, *_] = sorted(set(places.cloud.hosts) - {host})

    def refused(argument: Any, *, by: Nova = admin, **more: Any) -> tuple[int, str]:
        answer = by.act(server, "evacuate", argument, **more)
        assert answer.status >= 400
        return answer.status, answer.body[next(iter(answer.body))]["message"]

    assert refused({}) == (400, f"Compute service of {host} is still in use.")
    assert refused({}, by=places.nova)[0] == 403
    assert refused({"host": host}) == (400, "The target host can't be the same one.")
    assert refused({"host": "nowhere"}) == (404, "Compute host nowhere not found.")
    assert refused({"force": True}, version="2.67") == (400, "Can't force to a non-provided destination")
    assert refused({"force": True})[0] == 400
    assert refused({}, version="2.13")[0] == 400
    assert refused({"onSharedStorage": True, "adminPass": "x"}, version="2.13")[0] == 400
    assert refused({"onSharedStorage": True})[0] == 400
    lose(places, host)
    assert admin.act(server, "evacuate", {"onSharedStorage": True}, version="2.13").status == 200
    places.cloud.wait(lambda: failed_action(places.nova, server, "evacuate"))
    places.nova.wait(server, "ACTIVE")
    assert admin.act(server, "evacuate", {"host": other}).status == 200
    places.cloud.wait(lambda: places.host(server) == other)
    places.nova.wait(server, "SHUTOFF")
    assert places.nova.delete(f"/servers/{server}").status == 204
    places.nova.gone(server)
    places.force_down(host, down=False)
    places.cloud.hosts[host].start()
    places.cloud.wait(lambda: places.traces(server) == [], 20)


@pytest.mark.parametrize("word", ["CacheImage", "UndefineServer"])
def test_asked_for_twice(three: Places, word: str) -> None:
    """The second is refused, whether the server is still to arrive or is being taken from the old host."""
    places, admin = three, three.admin
    server = places.boot()
    source = places.host(server)
    places.force_down(source, down=True)
    faults = [host.fake.faults for host in places.cloud.hosts.values()]
    go_on = [one.hang(word) for one in faults]
    if word == "CacheImage":
        assert admin.act(server, "evacuate", {}, version="2.94").status == 200
        places.cloud.wait(lambda: any(one.hung for one in faults))
    else:  # the source is vouched for again before its last step
        arriving = [one.hang("PowerServer") for one in faults]
        assert admin.act(server, "evacuate", {}, version="2.94").status == 200
        places.cloud.wait(lambda: any(one.hung for one in faults))
        places.force_down(source, down=False)
        for event in arriving:
            event.set()
        places.cloud.wait(lambda: places.host(server) != source)
        places.cloud.wait(lambda: any(one.hung for one in faults))
        places.force_down(places.host(server), down=True)
    again = admin.act(server, "evacuate", {}, version="2.94")
    assert again.status == 409, again.text
    for event in go_on:
        event.set()
    for host in places.cloud.hosts:
        places.force_down(host, down=False)
    places.nova.wait(server, "ACTIVE")
    places.cloud.wait(lambda: [one["status"] for one in places.migrations(server)] in (["done"], ["completed"]))
    places.remove(server)


def test_a_volume_that_cannot_be_exported_neither_way(three: Places) -> None:
    """The evacuation fails, and so does giving the volume back to the host that lives: that is tried again."""
    places, admin = three, three.admin
    server = places.boot()
    source = places.host(server)
    spared(places, but=source)
    volume = places.volume()
    body = {"volumeAttachment": {"volumeId": volume}}
    assert places.nova.post(f"/servers/{server}/os-volume_attachments", body).status == 200
    places.cloud.wait(lambda: places.exports(server))
    [world] = [places.world(name) for name in places.cloud.hosts if volume in places.world(name).volumes]
    fault = places.cloud.faults.fail("ExportVolume", times=None)
    places.force_down(source, down=True)
    assert admin.act(server, "evacuate", {}, version="2.94").status == 200
    places.cloud.wait(lambda: [one["status"] for one in places.migrations(server)] == ["failed"])
    assert places.nova.show(server)["OS-EXT-STS:task_state"] is None
    assert (places.exports(server), world.volumes[volume].exports) == ({}, {})
    places.cloud.faults.remove(fault)
    places.force_down(source, down=False)  # a host that comes is a reason to look, as is half a minute
    places.cloud.wait(lambda: places.exports(server) == {volume: source})
    assert len(world.volumes[volume].exports) == 1
    places.remove(server)


def test_one_that_fails_takes_nothing_from_a_host_that_lives(three: Places) -> None:
    """Its guest goes on, with its tap: one made anew would hang on nothing."""
    places = three
    server = places.boot()
    source, port = places.host(server), places.port(server)["id"]
    places.force_down(source, down=True)
    others = [host.fake for name, host in places.cloud.hosts.items() if name != source]
    for fake in others:
        fake.faults.fail("CreateDisks", times=None)
    gone: list[str] = []
    places.world(source).taps.pop = lambda key, *rest: gone.append(key)
    assert places.admin.act(server, "evacuate", {}, version="2.94").status == 200
    places.cloud.wait(lambda: [one["status"] for one in places.migrations(server)] == ["failed"])
    places.cloud.settle()
    assert places.running(server) == [source]
    assert gone == []
    assert places.traces(server) == [source]
    shown = places.port(server)
    assert (shown["binding:host_id"], shown["status"]) == (source, "ACTIVE")
    assert places.world(source).taps == {port: server}
    del places.world(source).taps.pop
    places.force_down(source, down=False)
    places.remove(server)


def test_of_one_that_was_resized(three: Places) -> None:
    """Its host dies before anyone confirmed: the first move counts as confirmed once the server is elsewhere."""
    places, admin = three, three.admin
    server = places.boot()
    first = places.host(server)
    second = migrated(places, server)
    lose(places, second)
    assert admin.act(server, "os-resetState", {"state": "error"}).status == 202
    assert admin.act(server, "evacuate", {"host": first}, version="2.95").status == 400  # there are its old disks
    assert admin.act(server, "evacuate", {}, version="2.95").status == 200
    places.cloud.wait(lambda: places.host(server) != second)
    third = places.host(server)
    assert third not in (first, second)
    nobody_confirmed(places, server)
    places.cloud.hosts[second].start()
    places.force_down(second, down=False)
    places.cloud.wait(lambda: places.traces(server) == [third])
    places.remove(server)


def test_of_one_that_was_reset_while_it_was_resized(three: Places) -> None:
    places, admin = three, three.admin
    server = places.boot()
    first = places.host(server)
    second = migrated(places, server)
    assert admin.act(server, "os-resetState", {"state": "active"}).status == 202
    assert admin.act(server, "migrate", None).status == 202
    third = places.cloud.wait(lambda: (host := places.host(server)) != second and host)
    assert third != first  # there are its old disks
    three.nova.wait(server, "VERIFY_RESIZE")
    control = places.cloud.control
    newest = control.db.read(lambda tx: migrations.resized(tx, server))
    assert newest is not None
    # the older one has waited for long, and is not what waits now
    assert control.db.write(lambda tx: control.compute.moves.confirm_old(tx, newest.updated_at)) == 0
    assert admin.act(server, "os-resetState", {"state": "active"}).status == 202
    nobody_confirmed(places, server)
    places.cloud.wait(lambda: places.traces(server) == [third])
    three.nova.wait(server, "ACTIVE")
    places.remove(server)


def migrated(places: Places, server: str) -> str:
    assert places.admin.act(server, "migrate", None).status == 202
    places.nova.wait(server, "VERIFY_RESIZE")
    return places.host(server)


def nobody_confirmed(places: Places, server: str) -> None:
    """What was moved is confirmed all the same, and nothing of it is left."""

    def confirmed() -> bool:
        places.cloud.control.compute.clear_after_moves()
        return all(move["status"] == "confirmed" for move in moves())

    def moves() -> list[dict[str, Any]]:
        return [move for move in places.migrations(server) if move["migration_type"] == "migration"]

    places.cloud.wait(confirmed)
    assert [places.allocations(move["uuid"]) for move in moves()] == [{}] * len(moves())
    assert set(places.allocations(server)) == {places.host(server)}
