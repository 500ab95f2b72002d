"""Volumes through openstacksdk and the openstack command."""

import pytest

from tests.support.cloud import unique

pytestmark = pytest.mark.clients


def test_sdk(cloud):
    connection = cloud.connect("demo")
    volume = connection.block_storage.create_volume(size=1, name=unique("sdk"), metadata={"a": "b"})
    volume = connection.block_storage.wait_for_status(volume, "available", ["error"], interval=0.05, wait=10)
    assert volume.metadata == {"a": "b"}
    connection.block_storage.extend_volume(volume, 2)
    cloud.wait(lambda: connection.block_storage.get_volume(volume).status == "available")
    assert connection.block_storage.get_volume(volume).size == 2
    snapshot = connection.block_storage.create_snapshot(volume_id=volume.id, name="s")
    connection.block_storage.wait_for_status(snapshot, "available", ["error"], interval=0.05, wait=10)
    backup = connection.block_storage.create_backup(volume_id=volume.id, name="b")
    connection.block_storage.wait_for_status(backup, "available", ["error"], interval=0.05, wait=10)
    assert backup.id in [one.id for one in connection.block_storage.backups()]
    connection.block_storage.delete_backup(backup, ignore_missing=False)
    connection.block_storage.delete_snapshot(snapshot, ignore_missing=False)
    cloud.wait(lambda: connection.block_storage.find_snapshot(snapshot.id) is None)
    connection.block_storage.delete_volume(volume, ignore_missing=False)
    cloud.wait(lambda: connection.block_storage.find_volume(volume.id) is None)


def test_command_line(cloud):
    def run(*words):
        return cloud.openstack("demo", *words)

    name = unique("cli")
    made = run("volume", "create", "--size", "1", "--description", "d", "--property", "a=b", name)
    assert made["size"] == 1
    cloud.wait(lambda: run("volume", "show", name)["status"] == "available")
    run("volume", "set", "--property", "c=d", "--bootable", "--read-only", name)
    run("volume", "set", "--size", "2", name)  # alone: one that is growing takes no flags
    cloud.wait(lambda: run("volume", "show", name)["status"] == "available")
    shown = run("volume", "show", name)
    assert (shown["size"], shown["bootable"]) in [(2, "true"), (2, True)]
    assert shown["properties"]["c"] == "d"
    assert name in [row["Name"] for row in run("volume", "list")]
    run("volume", "snapshot", "create", "--volume", name, f"{name}-s")
    cloud.wait(lambda: run("volume", "snapshot", "show", f"{name}-s")["status"] == "available")
    assert f"{name}-s" in [row["Name"] for row in run("volume", "snapshot", "list")]
    run("volume", "snapshot", "delete", f"{name}-s")
    cloud.wait(lambda: f"{name}-s" not in [row["Name"] for row in run("volume", "snapshot", "list")])
    request = run("volume", "transfer", "request", "create", name)
    run("volume", "transfer", "request", "delete", request["id"])
    run("volume", "backup", "create", "--name", f"{name}-b", name)
    cloud.wait(lambda: run("volume", "backup", "show", f"{name}-b")["status"] == "available")
    run("volume", "backup", "delete", f"{name}-b")
    run("volume", "unset", "--property", "c", name)
    run("volume", "delete", name)
    cloud.wait(lambda: name not in [row["Name"] for row in run("volume", "list")])


def test_administrators_command_line(cloud):
    def run(*words):
        return cloud.openstack("admin", *words)

    name = unique("type")
    assert run("volume", "type", "create", "--property", "volume_backend_name=file", "--private", name)["name"] == name
    run("volume", "type", "set", "--property", "x:y=z", "--project", "demo", name)
    assert "x:y" in run("volume", "type", "show", name)["properties"]
    assert name in [row["Name"] for row in cloud.openstack("demo", "volume", "type", "list")]
    run("volume", "type", "delete", name)
    services = run("volume", "service", "list")
    assert {"cinder-volume", "cinder-scheduler"} <= {row["Binary"] for row in services}
    assert run("volume", "backend", "pool", "list")
    assert run("availability", "zone", "list", "--volume")
    run("quota", "set", "--volumes", "44", "other")
    shown = {row["Resource"]: row["Limit"] for row in run("quota", "show", "--volume", "other")}
    assert shown["volumes"] == 44
    run("quota", "set", "--volumes", "10", "other")
    name = unique("qos")
    run("volume", "qos", "create", "--property", "iops=5", name)
    assert name in [row["Name"] for row in run("volume", "qos", "list")]
    run("volume", "qos", "delete", name)
