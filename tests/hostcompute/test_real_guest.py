"""The tiny Linux on the compute driver, once: it boots, reads its config drive, mounts what it is given, lets a volume
go, obeys the guest agent and the power button. Slow: one guest is booted, under a lock shared with other suites."""

import base64
import fcntl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet import guest
from cumulet.agent import contract as c
from cumulet.kernel.ids import new_uuid

from .conftest import Host, outside

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

USER_DATA = b"""#!/bin/sh
echo "user data ran: $(lsblk | grep -c disk) disks"
"""


@pytest.fixture(scope="module")
def one_guest_at_a_time() -> Iterator[None]:
    with open(Path(tempfile.gettempdir()) / "guest.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def built(pytestconfig: pytest.Config) -> guest.GuestImage:
    assert pytestconfig.cache is not None
    with outside():
        return guest.build(pytestconfig.cache.mkdir("hostcompute-guest"))


def source(path: Path, form: str) -> c.ImageSource:
    return c.ImageSource(image_id=new_uuid(), disk_format=form, size=path.stat().st_size, path=str(path))


def test_a_linux_guest(one_guest_at_a_time: None, host: Host, built: guest.GuestImage) -> None:
    path = host.directory / "volume"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    volume = c.VolumeAttachment(
        attachment_id=new_uuid(),
        volume_id=new_uuid(),
        device="/dev/vdb",
        connection=c.DiskConnection(driver="file", path=str(path)),
    )
    metadata = c.MetadataDoc(
        id="s",
        generation=1,
        meta_data={"uuid": new_uuid(), "hostname": "penguin.example", "name": "penguin"},
        network_data={},
        user_data=base64.b64encode(USER_DATA).decode(),
    )
    spec = host.create(
        image=source(built.disk, "qcow2"), memory_mb=128, config_drive=True, metadata=metadata, admin_password="first"
    )
    host.wait_for_console(spec, "metadata from config drive")
    host.wait_for_console(spec, "user data ran: 1 disks")
    log = host.wait_for_console(spec, "login:")
    assert "host=penguin" in log
    names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
    host.wait_for_console(spec, "guest agent")
    host.do(c.SetAdminPassword(user="cirros", password="changed", **names))
    host.do(c.AttachVolume(volume=volume, **names))
    time.sleep(2)
    host.do(c.DetachVolume(volume_id=volume.volume_id, **names))
    host.power(spec, "stop", grace_seconds=120)
    assert host.reports.wait_for(spec.server_id, 4) == "shutdown by the guest"  # it heard the power button
    host.delete(spec)


def test_kernel_ramdisk_and_root_apart(one_guest_at_a_time: None, host: Host, built: guest.GuestImage) -> None:
    spec = host.create(
        image=source(built.root_filesystem, "ami"),
        kernel=source(built.kernel, "aki"),
        ramdisk=source(built.ramdisk, "ari"),
        memory_mb=128,
    )
    host.wait_for_console(spec, "login:")
    host.delete(spec)


def test_the_image_is_the_same_each_time(built: guest.GuestImage) -> None:
    first = built.disk.read_bytes()
    with tempfile.TemporaryDirectory() as folder, outside():
        again = guest.build(folder)
        assert again.built
        assert again.disk.read_bytes() == first
        assert not guest.build(folder).built
