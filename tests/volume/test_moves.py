"""Volumes move between storage hosts: what is asked and refused, what is seen meanwhile, and what a death leaves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cumulet.services.volume import store
from tests.support.cloud import unique
from tests.volume.conftest import Volumes

IN_USE = {"status": "in-use", "attach_status": "attached"}


def backend(host: str) -> str:
    return f"{host}@file#file"


def host_of(admin: Volumes, volume: str) -> str:
    return str(admin.show(volume)["os-vol-host-attr:host"].partition("@")[0])


def elsewhere(cloud: Any, host: str) -> str:
    return next(name for name in cloud.hosts if name != host)


def holders(cloud: Any, volume: str) -> dict[str, str]:
    """Which hosts have it, and what is in it there."""
    worlds = {name: host.fake.world.state.volumes for name, host in cloud.hosts.items()}
    return {name: there[volume].content for name, there in worlds.items() if volume in there}


def copies(cloud: Any, volume: str) -> list[str]:
    found: list[str] = cloud.control.db.read(lambda tx: store.copies_of(tx, volume))
    return found


def migrate(admin: Volumes, volume: str, host: str, **more: Any) -> Any:
    return admin.action(volume, "os-migrate_volume", {"host": backend(host), **more})


def moved(admin: Volumes, volume: str) -> dict[str, Any]:
    """How it ended."""

    def over() -> Any:
        shown = admin.show(volume)
        return shown if shown["migration_status"] in ("success", "error") else None

    found: dict[str, Any] = admin.cloud.wait(over)
    return found


@contextmanager
def under_way(cloud: Any, target: str, operation: str = "FetchVolume", **how: Any) -> Iterator[Callable[[], None]]:
    """The next move hangs there until the block ends."""
    faults = cloud.hosts[target].fake.faults
    release = faults.hang(operation, **how)
    try:
        yield lambda: cloud.wait(lambda: faults.hung)
    finally:
        release.set()


def test_a_volume_moves_with_what_it_holds(cloud, volumes, admin):
    volume = volumes.create()
    source = host_of(admin, volume)
    target, before = elsewhere(cloud, source), holders(cloud, volume)
    answer = migrate(admin, volume, target)
    assert (answer.status, answer.text) == (202, "")
    shown = moved(admin, volume)
    assert shown["migration_status"] == shown["os-vol-mig-status-attr:migstat"] == "success"
    assert (shown["status"], shown["os-vol-host-attr:host"]) == ("available", backend(target))
    assert holders(cloud, volume) == {target: before[source]}
    assert copies(cloud, volume) == []
    assert "migration_status" not in volumes.show(volume)
    # and back, with other names for the same host
    for name in (source, f"{target}@file"):
        assert admin.action(volume, "os-migrate_volume", {"host": name}, version="3.0").status == 202
        assert moved(admin, volume)["os-vol-host-attr:host"] == backend(name.partition("@")[0])
    assert holders(cloud, volume) == {target: before[source]}


def test_what_is_refused(cloud, volumes, admin):
    volume = volumes.create()
    own = host_of(admin, volume)
    target = elsewhere(cloud, own)
    assert volumes.action(volume, "os-migrate_volume", {"host": backend(target)}).status == 403
    assert admin.action(new_id(), "os-migrate_volume", {"host": backend(target)}).status == 404
    for wrong in (
        {},
        {"host": None},
        {"host": ""},
        {"host": "nowhere@file#file"},
        {"host": f"{target}@lvm#pool"},
        {"host": backend(own)},
        {"host": backend(target), "colour": "red"},
        {"host": backend(target), "lock_volume": "perhaps"},
        {"host": backend(target), "cluster": "c"},
        {"cluster": "c"},
    ):
        refused = admin.action(volume, "os-migrate_volume", wrong)
        assert refused.status == 400, wrong
        assert list(refused.body) == ["badRequest"]
    cluster = {"host": backend(target), "cluster": "c"}
    assert admin.action(volume, "os-migrate_volume", cluster, version="3.15").status == 400
    snapshot = volumes.snapshot(volume)
    assert "snapshots" in migrate(admin, volume, target).text
    assert volumes.call("DELETE", f"/snapshots/{snapshot}").status == 202
    volumes.gone(f"/snapshots/{snapshot}")
    body = {"attachment": {"volume_uuid": volume}}
    attachment = volumes.ok("POST", "/attachments", body)["attachment"]["id"]
    assert migrate(admin, volume, target).status == 400
    volumes.ok("POST", f"/attachments/{attachment}/action", {"os-complete": {}})
    assert "detach it" in migrate(admin, volume, target).text
    volumes.ok("DELETE", f"/attachments/{attachment}")
    connector = {"connector": {"host": "client"}}
    assert volumes.action(volume, "os-initialize_connection", connector).status == 200
    assert "terminate" in migrate(admin, volume, target).text
    assert volumes.action(volume, "os-terminate_connection", connector).status == 202
    hosts, db = cloud.control.hosts, cloud.control.db
    db.write(lambda tx: hosts.set_disabled(tx, target, "no", role="storage"))
    try:
        assert "No available service" in migrate(admin, volume, target).text
    finally:
        db.write(lambda tx: hosts.set_disabled(tx, target, disabled=False, role="storage"))
    shown = admin.show(volume)
    assert (shown["status"], shown["migration_status"]) == ("available", None)


def new_id() -> str:
    from cumulet.kernel.ids import new_uuid

    return new_uuid()


@pytest.mark.parametrize("lock", [False, True])
def test_while_it_moves_nobody_touches_it(cloud, volumes, admin, lock):
    volume = volumes.create()
    source = host_of(admin, volume)
    target = elsewhere(cloud, source)
    with under_way(cloud, target) as begun:
        assert migrate(admin, volume, target, lock_volume=lock, force_host_copy=True).status == 202
        begun()
        shown = admin.show(volume)
        assert (shown["status"], shown["migration_status"]) == ("maintenance" if lock else "available", "migrating")
        assert host_of(admin, volume) == source
        assert copies(cloud, volume) == [target]
        assert volumes.call("DELETE", f"/volumes/{volume}").status == 400
        assert volumes.call("DELETE", f"/volumes/{volume}?force=true").status in (400, 403)
        assert migrate(admin, volume, target).status == 400
        for name, argument in (
            ("os-extend", {"new_size": 2}),
            ("os-reserve", {}),
            ("os-attach", {"instance_uuid": new_id(), "mountpoint": "/dev/vdb"}),
            ("os-initialize_connection", {"connector": {"host": "client"}}),
            ("os-terminate_connection", {"connector": {"host": target}}),
            ("os-volume_upload_image", {"image_name": "i", "force": True}),
            ("os-update_readonly_flag", {"readonly": True}),
            ("revert", {"snapshot_id": new_id()}),
        ):
            assert volumes.action(volume, name, argument).status == 400, name
        assert admin.action(volume, "os-reset_status", {"migration_status": "none"}).status == 400
        assert admin.action(volume, "os-force_delete").status == 400
        for path, body in (
            ("/snapshots", {"snapshot": {"volume_id": volume}}),
            ("/backups", {"backup": {"volume_id": volume}}),
            ("/attachments", {"attachment": {"volume_uuid": volume}}),
            ("/volumes", {"volume": {"size": 1, "source_volid": volume}}),
            ("/os-volume-transfer", {"transfer": {"volume_id": volume}}),
        ):
            assert volumes.call("POST", path, body).status == 400, path
    shown = moved(admin, volume)
    assert (shown["status"], shown["migration_status"]) == ("available", "success")
    assert list(holders(cloud, volume)) == [target]
    assert volumes.action(volume, "os-extend", {"new_size": 2}).status == 202
    volumes.until(f"/volumes/{volume}", "volume", "available")


def test_a_copy_of_it_is_made_first(cloud, volumes, admin):
    volume = volumes.create()
    source = host_of(admin, volume)
    with under_way(cloud, source, "CreateVolume"):
        clone = volumes.create(None, source_volid=volume)
        refused = migrate(admin, volume, elsewhere(cloud, source))
        assert refused.status == 400
        assert "being made of" in refused.text
    volumes.until(f"/volumes/{clone}", "volume", "available")


@pytest.mark.parametrize("lock", [False, True])
def test_what_fails_leaves_it_where_it_was(cloud, volumes, admin, lock):
    volume = volumes.create()
    source = host_of(admin, volume)
    target, before = elsewhere(cloud, source), holders(cloud, volume)
    for after in (False, True):
        cloud.hosts[target].fake.faults.fail("FetchVolume", code="no-space", message="full", after=after)
        assert migrate(admin, volume, target, lock_volume=lock).status == 202
        shown = moved(admin, volume)
        assert (shown["status"], shown["migration_status"]) == ("available", "error")
        assert host_of(admin, volume) == source
        assert holders(cloud, volume) == before
        assert copies(cloud, volume) == []
    assert migrate(admin, volume, target).status == 202  # one that failed may be tried again
    assert moved(admin, volume)["migration_status"] == "success"


def test_what_the_source_cannot_delete_goes_later(cloud, volumes, admin):
    volume = volumes.create()
    source = host_of(admin, volume)
    target = elsewhere(cloud, source)
    cloud.hosts[source].fake.faults.fail("DeleteVolume", message="busy")
    assert migrate(admin, volume, target).status == 202
    assert moved(admin, volume)["migration_status"] == "success"
    assert (host_of(admin, volume), copies(cloud, volume)) == (target, [source])
    refused = migrate(admin, volume, source)
    assert refused.status == 400
    assert "old copy" in refused.text
    assert not findings(cloud, volume)
    cloud.hosts[source].agent._take_stock()
    cloud.wait(lambda: list(holders(cloud, volume)) == [target])
    assert copies(cloud, volume) == [source]
    cloud.hosts[source].agent._take_stock()
    assert copies(cloud, volume) == []
    assert migrate(admin, volume, source).status == 202
    assert moved(admin, volume)["migration_status"] == "success"


def test_what_an_older_inventory_does_not_have_may_have_come_since(cloud, volumes, admin):
    volume = volumes.create()
    host = elsewhere(cloud, host_of(admin, volume))
    control, agent = cloud.control, cloud.hosts[host].agent
    before = agent._inventory()
    control.db.write(lambda tx: store.note_copy(tx, volume, host))
    control.db.write(lambda tx: control.volume.on_inventory(tx, before))
    assert copies(cloud, volume) == [host]
    control.db.write(lambda tx: control.volume.on_inventory(tx, agent._inventory()))
    assert copies(cloud, volume) == []


def findings(cloud: Any, volume: str) -> list[str]:
    found = cloud.control.operator.audit(fix=False)["findings"]
    return [one["code"] for one in found if volume in one["message"]]


class Two:
    def __init__(self, cloud: Any) -> None:
        self.cloud, self.admin = cloud, Volumes(cloud, "admin")
        self.volume = self.admin.create()
        self.source = host_of(self.admin, self.volume)
        self.target = elsewhere(cloud, self.source)
        self.content = holders(cloud, self.volume)[self.source]

    def lose(self, host: str) -> None:
        """It is dead, and an operator vouches for it."""
        self.cloud.hosts[host].lose()
        self.cloud.control.operator.machines.set_down(host, down=True)

    def bring_back(self, host: str) -> None:
        self.cloud.control.operator.machines.set_down(host, down=False)
        self.cloud.hosts[host].start()
        self.cloud.wait(lambda: host in self.cloud.up_hosts(), 20)

    def is_sound(self, host: str) -> None:
        """One valid copy, on ``host``, and nobody knows of another."""

        def compared() -> bool:
            for one in self.cloud.hosts.values():
                one.agent._take_stock()
            return list(holders(self.cloud, self.volume)) == [host] and not copies(self.cloud, self.volume)

        self.cloud.wait(compared, 20)
        assert holders(self.cloud, self.volume) == {host: self.content}
        assert host_of(self.admin, self.volume) == host
        self.cloud.settle()
        assert not findings(self.cloud, self.volume)


@pytest.fixture
def two(new_cloud: Callable[..., Any]) -> Two:
    return Two(new_cloud(hosts=2))


def test_a_source_that_dies_at_the_end_is_cleaned_up(two):
    """It has made its copy public, the target has it, and then the source is no more."""
    with under_way(two.cloud, two.target, after=True) as begun:
        assert migrate(two.admin, two.volume, two.target).status == 202
        begun()
        two.lose(two.source)
    assert moved(two.admin, two.volume)["migration_status"] == "success"
    assert copies(two.cloud, two.volume) == [two.source]
    two.bring_back(two.source)
    two.is_sound(two.target)


def test_a_source_that_dies_at_the_end_is_cleaned_up_though_the_volume_is_gone(two):
    with under_way(two.cloud, two.target, after=True) as begun:
        assert migrate(two.admin, two.volume, two.target).status == 202
        begun()
        two.lose(two.source)
    assert moved(two.admin, two.volume)["migration_status"] == "success"
    assert two.cloud.api("admin").delete("volume", f"/volumes/{two.volume}").status == 202
    two.cloud.wait(lambda: two.target not in holders(two.cloud, two.volume))
    assert two.cloud.hosts[two.source].fake.world.state.volumes[two.volume].exports
    two.bring_back(two.source)

    def compared() -> bool:
        two.cloud.hosts[two.source].agent._take_stock()
        return not (holders(two.cloud, two.volume) or copies(two.cloud, two.volume))

    two.cloud.wait(compared, 20)
    assert not findings(two.cloud, two.volume)


def test_a_target_that_dies_with_its_copy_is_cleaned_up(two):
    with under_way(two.cloud, two.target, after=True) as begun:
        assert migrate(two.admin, two.volume, two.target, lock_volume=True).status == 202
        begun()
        two.lose(two.target)
        shown = moved(two.admin, two.volume)
    assert (shown["status"], shown["migration_status"]) == ("available", "error")
    assert copies(two.cloud, two.volume) == [two.target]
    two.bring_back(two.target)
    two.is_sound(two.source)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["ExportVolume", "FetchVolume", "UnexportVolume", "DeleteVolume"])
@pytest.mark.parametrize("after", [False, True])
def test_a_control_plane_that_is_killed_goes_on(two, operation, after):
    host = two.target if operation == "FetchVolume" else two.source
    with under_way(two.cloud, host, operation, after=after) as begun:
        assert migrate(two.admin, two.volume, two.target).status == 202
        begun()
        two.cloud.kill_conductor()
    two.cloud.start_conductor()
    assert moved(two.admin, two.volume)["migration_status"] == "success"
    two.is_sound(two.target)


def test_a_delete_of_its_server_comes_first(cloud, volumes, admin):
    """What deletes without asking (a server that took its volume along) preempts the move."""
    volume = volumes.create()
    target = elsewhere(cloud, host_of(admin, volume))
    control = cloud.control
    with under_way(cloud, target) as begun:
        assert migrate(admin, volume, target).status == 202
        begun()
        control.db.write(lambda tx: control.volume.delete_on_termination(tx, volume))
    volumes.gone(f"/volumes/{volume}")
    cloud.settle()
    assert holders(cloud, volume) == {}
    assert copies(cloud, volume) == []


def test_a_status_is_set_by_hand(cloud, volumes, admin):
    volume = volumes.create()
    for status, shown in (("migrating", "migrating"), ("none", None), ("error", "error"), ("none", None)):
        assert admin.action(volume, "os-reset_status", {"migration_status": status}).status == 202
        assert admin.show(volume)["migration_status"] == shown


def test_stuck_is_told_and_mended(cloud, volumes, admin):
    volume = volumes.create()
    cloud.control.db.write(lambda tx: store.VOLUMES.change(tx, volume, migration_status="migrating"))
    assert findings(cloud, volume) == ["volume-stuck"]
    cloud.control.operator.audit(fix=True)
    assert findings(cloud, volume) == []
    assert admin.show(volume)["migration_status"] == "error"


@pytest.mark.clients
def test_clients(cloud, admin):
    volume = admin.create(name=(name := unique("moves")))
    source = host_of(admin, volume)
    target = elsewhere(cloud, source)
    connection = cloud.connect("admin")
    connection.block_storage.migrate_volume(volume, host=backend(target), lock_volume=True)
    found = cloud.wait(lambda: (v := connection.block_storage.get_volume(volume)).migration_status == "success" and v)
    assert found.host == backend(target)
    cloud.openstack("admin", "volume", "migrate", "--host", backend(source), name)
    cloud.wait(lambda: cloud.openstack("admin", "volume", "show", name)["os-vol-host-attr:host"] == backend(source))
    assert moved(admin, volume)["migration_status"] == "success"
