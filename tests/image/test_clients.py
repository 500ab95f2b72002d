"""Images through openstacksdk and the openstack command."""

import hashlib
import os

import pytest

from tests.support.cloud import unique

pytestmark = pytest.mark.clients
DATA = os.urandom(200_000)


def test_sdk(cloud, tmp_path):
    connection = cloud.connect("demo")
    source = tmp_path / "image.raw"
    source.write_bytes(DATA)
    image = connection.create_image(unique("sdk"), filename=str(source), disk_format="raw", container_format="bare")
    image = connection.image.get_image(image.id)
    assert image.status == "active"
    assert image.hash_value == hashlib.sha512(DATA).hexdigest()
    assert connection.image.download_image(image).content == DATA
    connection.image.add_tag(image, "blue")
    image = connection.image.get_image(image.id)
    changed = connection.image.update_image(image, name="new", os_distro="debian")
    assert (changed.name, changed.os_distro) == ("new", "debian")
    assert image.id in [one.id for one in connection.image.images(tag="blue")]
    project = cloud.api("other").project_id
    connection.image.add_member(image, member_id=project)
    other = cloud.connect("other")
    other.image.update_member(project, image.id, status="accepted")
    assert image.id in [one.id for one in other.image.images()]
    connection.image.deactivate_image(image)
    assert connection.image.get_image(image.id).status == "deactivated"
    connection.image.reactivate_image(image)
    connection.image.delete_image(image, ignore_missing=False)
    assert connection.image.find_image(image.id) is None


def test_command_line(cloud, tmp_path):
    def run(*words):
        return cloud.openstack("demo", *words)

    name = unique("cli")
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(DATA)
    made = run("image", "create", "--file", str(source), "--property", "hw_rng_model=virtio", "--tag", "t", name)
    assert made["name"] == name
    shown = run("image", "show", name)
    assert (shown["status"], shown["checksum"]) == ("active", hashlib.md5(DATA).hexdigest())
    assert shown["properties"]["hw_rng_model"] == "virtio"
    run("image", "save", "--file", str(target), name)
    assert target.read_bytes() == DATA
    run("image", "set", "--property", "os_distro=debian", "--min-disk", "1", "--protected", name)
    shown = run("image", "show", name)
    assert (shown["min_disk"], shown["protected"], shown["properties"]["os_distro"]) == (1, True, "debian")
    run("image", "unset", "--property", "os_distro", "--tag", "t", name)
    assert name in [row["Name"] for row in run("image", "list", "--property", "hw_rng_model=virtio")]
    run("image", "set", "--unprotected", name)
    run("image", "add", "project", name, cloud.api("other").project_id)
    assert len(run("image", "member", "list", name)) == 1
    run("image", "delete", name)
    assert name not in [row["Name"] for row in run("image", "list")]


def test_import(cloud, tmp_path):
    source = tmp_path / "in"
    source.write_bytes(DATA)
    name = unique("import")
    cloud.openstack("demo", "image", "create", "--import", "--file", str(source), "--disk-format", "raw", name)
    cloud.wait(lambda: cloud.openstack("demo", "image", "show", name)["status"] == "active")
    cloud.openstack("demo", "image", "delete", name)
