"""Compute through OpenStack's own clients, unmodified."""

from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.compute.places import Places
from tests.support.cloud import unique

pytestmark = pytest.mark.clients


def test_sdk(nova: Nova) -> None:
    conn = nova.cloud.connect("demo")
    name = unique("sdk")
    server = conn.compute.create_server(name=name, image_id=nova.image, flavor_id=nova.flavor, networks="none")
    server = conn.compute.wait_for_server(server, wait=20, interval=0.05)
    assert server.status == "ACTIVE"
    assert [found.id for found in conn.compute.servers(name=name)] == [server.id]
    assert conn.compute.find_server(name).id == server.id
    conn.compute.set_server_metadata(server, colour="blue")
    assert conn.compute.get_server(server).metadata == {"colour": "blue"}
    conn.compute.stop_server(server)
    conn.compute.wait_for_server(server, status="SHUTOFF", wait=20, interval=0.05)
    conn.compute.start_server(server)
    conn.compute.wait_for_server(server, wait=20, interval=0.05)
    assert conn.compute.get_server_console_output(server)["output"] is not None
    assert [flavor.id for flavor in conn.compute.flavors() if flavor.id == nova.flavor]
    assert conn.compute.get_limits().absolute.instances == 10
    assert {action.action for action in conn.compute.server_actions(server)} >= {"create", "stop", "start"}
    conn.compute.delete_server(server)
    conn.compute.wait_for_delete(server, wait=20, interval=0.05)


def test_command_line(nova: Nova) -> None:
    def openstack(*words: Any, user: str = "demo", parse: bool | None = None) -> Any:
        return nova.cloud.openstack(user, *words, parse=parse)

    name, key, flavor = unique("cli"), unique("key"), unique("flavor")
    openstack("flavor", "create", "--ram", 64, "--vcpus", 1, "--disk", 1, "--property", "a:b=c", flavor, user="admin")
    assert flavor in [row["Name"] for row in openstack("flavor", "list")]
    assert openstack("flavor", "show", flavor)["properties"] == {"a:b": "c"}
    assert "PRIVATE KEY" in openstack("keypair", "create", key, parse=False)
    words = ["server", "create", "--flavor", flavor, "--image", nova.image, "--key-name", key, "--nic", "none"]
    server = openstack("--os-compute-api-version", "2.37", *words, "--property", "k=v", "--wait", name)
    assert server["status"] == "ACTIVE"
    assert [row["Name"] for row in openstack("server", "list", "--name", name)] == [name]
    shown = openstack("server", "show", name)
    assert shown["properties"] == {"k": "v"}
    openstack("server", "set", "--name", name + "-x", server["id"])
    openstack("server", "set", "--property", "p=q", server["id"])
    openstack("server", "stop", server["id"])
    nova.wait(server["id"], "SHUTOFF")
    openstack("server", "start", server["id"])
    nova.wait(server["id"], "ACTIVE")
    openstack("server", "reboot", "--hard", "--wait", server["id"], parse=False)
    openstack("console", "log", "show", server["id"], parse=False)
    image = openstack("server", "image", "create", "--name", unique("snap"), server["id"])
    assert image["id"]
    nova.wait(server["id"], "ACTIVE")
    events = openstack("server", "event", "list", server["id"])
    assert "create" in [row["Action"] for row in events]
    openstack("server", "event", "show", server["id"], events[0]["Request ID"])
    assert openstack("hypervisor", "list", user="admin")
    hosts = [row["Host"] for row in openstack("compute", "service", "list", user="admin")]
    assert "fake-1" in hosts
    openstack("compute", "service", "set", "--disable", "--disable-reason", "x", "fake-2", "nova-compute", user="admin")
    openstack("compute", "service", "set", "--enable", "fake-2", "nova-compute", user="admin")
    assert openstack("availability", "zone", "list", "--compute")
    assert openstack("limits", "show", "--absolute")
    openstack("server", "group", "create", "--policy", "affinity", unique("group"))
    assert openstack("aggregate", "create", unique("agg"), user="admin")["id"]
    openstack("server", "delete", "--wait", server["id"])
    openstack("keypair", "delete", key)
    openstack("flavor", "delete", flavor, user="admin")


def test_moves_by_sdk(places: Places) -> None:
    nova, cloud = places.nova, places.cloud
    conn, admin = cloud.connect("demo"), cloud.connect("admin")
    server = places.boot()
    flavor = nova.new_flavor(ram=128)
    conn.compute.resize_server(server, flavor)
    conn.compute.wait_for_server(conn.compute.get_server(server), status="VERIFY_RESIZE", wait=20, interval=0.05)
    conn.compute.revert_server_resize(server)
    conn.compute.wait_for_server(conn.compute.get_server(server), wait=20, interval=0.05)
    admin.compute.migrate_server(server)
    conn.compute.wait_for_server(conn.compute.get_server(server), status="VERIFY_RESIZE", wait=20, interval=0.05)
    conn.compute.confirm_server_resize(server)
    conn.compute.wait_for_server(conn.compute.get_server(server), wait=20, interval=0.05)
    host = places.host(server)
    admin.compute.live_migrate_server(server, host=None, block_migration="auto")
    cloud.wait(lambda: places.host(server) != host)
    nova.wait(server, "ACTIVE")
    moves = [move for move in admin.compute.migrations() if move.server_id == server]
    assert [move.migration_type for move in moves] == ["live-migration", "migration", "resize"]
    assert list(admin.compute.server_migrations(server)) == []
    places.remove(server)


def test_moves_by_command_line(places: Places) -> None:
    nova, cloud = places.nova, places.cloud

    def openstack(*words: Any, user: str = "admin", parse: bool | None = None, version: str = "2.95") -> Any:
        return cloud.openstack(user, "--os-compute-api-version", version, *words, parse=parse)

    server, flavor = places.boot(), nova.new_flavor(ram=128)
    openstack("server", "resize", "--flavor", flavor, "--wait", server, user="demo", parse=False)
    nova.wait(server, "VERIFY_RESIZE")
    openstack("server", "resize", "confirm", server, user="demo", parse=False)
    nova.wait(server, "ACTIVE")
    openstack("server", "migrate", "--wait", server, parse=False)
    openstack("server", "migration", "revert", server, parse=False)
    nova.wait(server, "ACTIVE")
    openstack("server", "migrate", "--wait", server, parse=False)
    openstack("server", "migration", "confirm", server, parse=False)
    nova.wait(server, "ACTIVE")
    for host in cloud.hosts.values():
        host.fake.compute.moving.seconds = 60
    for command, status in (("abort", "cancelled"), ("force complete", "completed")):
        openstack("server", "migrate", "--live-migration", server, parse=False)
        [row] = cloud.wait(lambda: _running(openstack("server", "migration", "list", "--server", server)))
        openstack("server", "migration", *command.split(), server, row["Id"], parse=False)
        nova.wait(server, "ACTIVE")
        assert openstack("server", "migration", "list", "--server", server)[0]["Status"] == status
    for host in cloud.hosts.values():
        host.fake.compute.moving.seconds = 0
    source = places.host(server)
    [target, *_] = sorted(set(cloud.hosts) - {source})
    openstack("server", "migrate", "--live-migration", "--host", target, "--wait", server, parse=False)
    assert places.host(server) == target
    openstack("compute", "service", "set", "--down", target, "nova-compute", parse=False)
    openstack("server", "evacuate", "--host", source, server, parse=False)
    cloud.wait(lambda: places.host(server) == source)
    nova.wait(server, "SHUTOFF")
    openstack("compute", "service", "set", "--up", target, "nova-compute", parse=False)
    cloud.control.reconcilers.signal("compute.evacuated")
    cloud.wait(lambda: places.traces(server) == [source], 40)
    places.remove(server)


def _running(rows: Any) -> Any:
    return [row for row in rows if row["Status"] == "running"]
