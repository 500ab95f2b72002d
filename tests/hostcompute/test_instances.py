"""Servers' files: made whole, made once, gone whole."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from cumulet.agent import contract as c
from cumulet.agent.compute.configdrive import contents
from cumulet.agent.compute.instances import Instances
from cumulet.agent.errors import DriverError
from cumulet.agent.image.cache import ImageCache
from cumulet.guest import boot_sector, boot_sector_qcow2
from cumulet.kernel.ids import new_uuid

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

DOC = c.MetadataDoc(
    id="s",
    generation=1,
    meta_data={"uuid": "u-1", "hostname": "web", "project_id": "p", "random_seed": "r", "devices": []},
    network_data={"links": []},
    vendor_data={"v": 1},
    user_data="IyEvYmluL3NoCg==",
    ec2={"meta-data": {"instance-id": "i-1"}},
)


@pytest.fixture
def instances(tmp_path: Path) -> Instances:
    cache = ImageCache(tmp_path / "images")
    cache.start()
    instances = Instances(tmp_path / "servers", tmp_path / "run", cache)
    instances.start()
    return instances


def image(tmp_path: Path, form: str = "qcow2", data: bytes | None = None) -> c.ImageSource:
    data = boot_sector_qcow2() if data is None else data
    path = tmp_path / f"image-{new_uuid()}"
    path.write_bytes(data)
    return c.ImageSource(image_id=new_uuid(), disk_format=form, size=len(data), path=str(path))


def spec(**changes: object) -> c.ServerSpec:
    base = c.ServerSpec(
        server_id=new_uuid(),
        name="n",
        instance_name="i",
        generation=1,
        project_id="p",
        user_id="u",
        vcpus=1,
        memory_mb=64,
        root_gb=1,
    )
    return msgspec.structs.replace(base, **changes)


def create(instances: Instances, server: c.ServerSpec) -> dict[str, Path]:
    instances.create(server, lambda: None)
    return {path.name: path for path in instances.folder(server.server_id).iterdir()}


def info(path: Path) -> dict[str, object]:
    return dict(json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", str(path)])))


def test_all_kinds_of_disks_once(instances: Instances, tmp_path: Path) -> None:
    kernel, ramdisk = image(tmp_path, "aki", b"kernel"), image(tmp_path, "ari", b"ramdisk")
    server = spec(image=image(tmp_path), ephemeral_gb=1, swap_mb=8, kernel=kernel, ramdisk=ramdisk)
    made = create(instances, server)
    assert sorted(made) == ["disk", "disk.eph0", "disk.swap", "kernel", "ramdisk"]
    about = info(made["disk"])
    assert about["virtual-size"] == 1 << 30
    assert Path(str(about["backing-filename"])).parent == instances.cache.directory
    assert made["disk.eph0"].stat().st_size == 1 << 30
    for name, kind in (("disk.eph0", "ext4"), ("disk.swap", "swap")):
        told = subprocess.check_output(["blkid", "-p", "-o", "value", "-s", "TYPE", str(made[name])], text=True)
        assert told.strip() == kind
    assert made["kernel"].read_bytes() == b"kernel"
    before = {name: path.lstat() for name, path in made.items() if not path.is_symlink()}
    again = create(instances, server)
    assert {name: path.lstat() for name, path in again.items() if not path.is_symlink()} == before
    files = instances.files(server.server_id)
    assert (files.root, files.swap) == (made["disk"], made["disk.swap"])
    assert set(instances.bases_in_use()) == set(instances.cache.directory.iterdir())


def test_sizes(instances: Instances, tmp_path: Path) -> None:
    as_image = create(instances, spec(image=image(tmp_path), root_gb=0))
    assert info(as_image["disk"])["virtual-size"] == 1 << 20
    path = tmp_path / "large"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "2G"], check=True)
    large = image(tmp_path, data=path.read_bytes())
    with pytest.raises(DriverError) as caught:
        create(instances, spec(image=large, root_gb=1))
    assert caught.value.code == "image-too-large"
    assert create(instances, spec()) == {}, "a server that boots from a volume has no root disk"


def test_iso_is_shown_as_it_is(instances: Instances, tmp_path: Path) -> None:
    data = boot_sector()[:0x8001] + b"CD001" + bytes(100_000)
    server = spec(image=image(tmp_path, "iso", data))
    made = create(instances, server)
    assert sorted(made) == ["disk.iso"]
    files = instances.files(server.server_id)
    assert files.root_is_cdrom
    assert set(instances.bases_in_use()) == set(instances.cache.directory.iterdir())


def test_delete(instances: Instances, tmp_path: Path) -> None:
    server = spec(image=image(tmp_path))
    create(instances, server)
    for _ in range(2):
        instances.delete(server.server_id)
    assert list(instances.directory.iterdir()) == []
    # killed within an earlier delete
    create(instances, server)
    left = instances.directory / f".gone-{server.server_id}"
    left.mkdir()
    (left / "x").touch()
    instances.delete(server.server_id)
    assert list(instances.directory.iterdir()) == []
    with pytest.raises(DriverError):
        instances.delete("../../etc")


def test_leftovers_go_at_start(instances: Instances, tmp_path: Path) -> None:
    server = spec(image=image(tmp_path))
    made = create(instances, server)
    (made["disk"].parent / "disk.swap.part").touch()
    gone = instances.directory / ".gone-x"
    gone.mkdir()
    assert instances.ids() == [server.server_id]
    instances.start()
    assert [p.name for p in made["disk"].parent.iterdir()] == ["disk"]
    assert not gone.exists()


def test_config_drive_contents() -> None:
    files = contents(DOC, "secret")
    latest = json.loads(files["openstack/latest/meta_data.json"])
    assert (latest["uuid"], latest["admin_pass"]) == ("u-1", "secret")
    assert "admin_pass" not in json.loads(contents(DOC)["openstack/latest/meta_data.json"])
    first = json.loads(files["openstack/2012-08-10/meta_data.json"])
    assert "random_seed" not in first
    assert files["openstack/latest/user_data"] == b"#!/bin/sh\n"
    assert json.loads(files["openstack/latest/network_data.json"]) == {"links": []}
    assert "openstack/2012-08-10/network_data.json" not in files
    assert json.loads(files["ec2/latest/meta-data.json"]) == {"instance-id": "i-1"}


@pytest.mark.skipif(shutil.which("genisoimage") is None, reason="needs genisoimage")
def test_config_drive(instances: Instances) -> None:
    server = spec(config_drive=True, metadata=DOC)
    made = create(instances, server)
    label = subprocess.check_output(["blkid", "-p", "-o", "value", "-s", "LABEL", str(made["disk.config"])], text=True)
    assert label.strip() == "config-2"
    listing = subprocess.check_output(["isoinfo", "-R", "-f", "-i", str(made["disk.config"])], text=True).splitlines()
    assert "/openstack/latest/meta_data.json" in listing
    assert os.stat(made["disk.config"]).st_mode & 0o777 == 0o600


def test_files_moved_aside_are_kept_with_what_they_stand_on(instances: Instances, tmp_path: Path) -> None:
    """An operator had them moved; the image below them must not be forgotten."""
    made = spec(image=image(tmp_path))
    instances.create(made, lambda: None)
    (base,) = set(instances.bases_in_use())
    target = instances.put_aside(made.server_id)
    assert instances.put_aside(made.server_id) == target  # done again, nothing more
    assert (target / "disk").exists()
    assert instances.ids() == []
    assert instances.set_aside() == [made.server_id]
    assert set(instances.bases_in_use()) == {base}
    instances.start()  # the next life leaves them
    assert instances.set_aside() == [made.server_id]
    instances.create(made, lambda: None)
    assert instances.put_aside(made.server_id).name == f"{made.server_id}.2"
