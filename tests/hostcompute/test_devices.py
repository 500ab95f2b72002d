"""Volumes, NICs and snapshots of running and stopped servers, on boot sectors that let devices go, or do not."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cumulet.agent import contract as c
from cumulet.agent.compute.libvirtd import qemu_group
from cumulet.agent.image.inspect import inspect
from cumulet.guest import boot_sector
from cumulet.kernel.ids import new_uuid

from .conftest import Host, code_of, port

pytestmark = pytest.mark.host


def volume(connection: c.DiskConnection, **changes: Any) -> c.VolumeAttachment:
    fields = {"attachment_id": new_uuid(), "volume_id": new_uuid(), "device": "/dev/vdb", "connection": connection}
    return c.VolumeAttachment(**(fields | changes))


@pytest.fixture
def file_volume(host: Host, tmp_path: Path) -> c.VolumeAttachment:
    path = host.directory / f"volume-{new_uuid()}"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    return volume(c.DiskConnection(driver="file", path=str(path)))


def tree(host: Host, spec: c.ServerSpec) -> ElementTree.Element:
    return ElementTree.fromstring(host.ask(c.DomainXml(server_id=spec.server_id, instance_name=spec.instance_name)))


def targets(host: Host, spec: c.ServerSpec) -> list[str | None]:
    return sorted(target.get("dev") or "" for target in tree(host, spec).iterfind("./devices/disk/target"))


def attach(host: Host, spec: c.ServerSpec, one: c.VolumeAttachment) -> None:
    host.do(c.AttachVolume(server_id=spec.server_id, instance_name=spec.instance_name, volume=one))


def detach(host: Host, spec: c.ServerSpec, one: c.VolumeAttachment) -> None:
    host.do(c.DetachVolume(server_id=spec.server_id, instance_name=spec.instance_name, volume_id=one.volume_id))


def test_volume_comes_and_goes(host: Host, server: c.ServerSpec, file_volume: c.VolumeAttachment) -> None:
    host.wait_for_console(server, "boot sector")
    for _ in range(2):
        attach(host, server, file_volume)
    assert targets(host, server) == ["vda", "vdb"]
    serials = [disk.findtext("serial") for disk in tree(host, server).iterfind("./devices/disk")]
    assert serials == [None, file_volume.volume_id]
    for _ in range(2):
        detach(host, server, file_volume)
    assert targets(host, server) == ["vda"]
    host.power(server, "stop")
    assert targets(host, server) == ["vda"], "it does not come back with the next start"


def test_volume_stays_over_a_stop(host: Host, server: c.ServerSpec, file_volume: c.VolumeAttachment) -> None:
    attach(host, server, file_volume)
    host.power(server, "stop", grace_seconds=0)
    assert targets(host, server) == ["vda", "vdb"]
    host.power(server, "start")
    assert targets(host, server) == ["vda", "vdb"]
    host.power(server, "stop", grace_seconds=0)
    detach(host, server, file_volume)
    assert targets(host, server) == ["vda"]
    other = volume(file_volume.connection, device="/dev/vda")
    attach(host, server, other)
    assert targets(host, server) == ["vda", "vdb"], "a name that is taken is not taken twice"


def test_half_done_attach_is_completed(host: Host, server: c.ServerSpec, file_volume: c.VolumeAttachment) -> None:
    """Killed between the running and the stored description: the same operation again does the rest."""
    from cumulet.agent.compute import hotplug
    from cumulet.agent.compute.devices import volume_disk

    xml = ElementTree.tostring(volume_disk(file_volume, "vdc"), encoding="unicode")
    hypervisor = host.driver.hypervisor
    hypervisor.call(
        "half", lambda conn: conn.lookupByUUIDString(server.server_id).attachDeviceFlags(xml, hotplug._LIVE)
    )
    attach(host, server, file_volume)
    assert targets(host, server) == ["vda", "vdc"]
    host.power(server, "stop", grace_seconds=0)
    assert targets(host, server) == ["vda", "vdc"]


def test_a_guest_may_refuse(host: Host, file_volume: c.VolumeAttachment) -> None:
    spec = host.create(image=host.deaf_image)
    host.wait_for_console(spec, "deaf")
    attach(host, spec, file_volume)
    assert code_of(lambda: detach(host, spec, file_volume)) == "detach-refused"
    assert targets(host, spec) == ["vda", "vdb"]
    host.power(spec, "stop", grace_seconds=0)
    detach(host, spec, file_volume)
    assert targets(host, spec) == ["vda"]
    host.delete(spec)
    detach(host, spec, file_volume)  # a server that is gone has nothing attached


def test_port_comes_and_goes(host: Host, server: c.ServerSpec) -> None:
    host.wait_for_console(server, "boot sector")
    nic = port()
    names = {"server_id": server.server_id, "instance_name": server.instance_name}
    for _ in range(2):
        host.do(c.AttachPort(port=nic, **names))
    assert [t.get("dev") for t in tree(host, server).iterfind("./devices/interface/target")] == [nic.tap]
    assert host.taps.plugged() == [nic.id]
    details = host.ask(c.Diagnostics(**names))
    assert [one["mac_address"] for one in details["nic_details"]] == [nic.mac_address]
    for _ in range(2):
        host.do(c.DetachPort(port_id=nic.id, mac_address=nic.mac_address, **names))
    assert tree(host, server).find("./devices/interface") is None
    assert host.taps.plugged() == []


def test_grow_a_file_volume(host: Host, server: c.ServerSpec, file_volume: c.VolumeAttachment) -> None:
    attach(host, server, file_volume)
    with Path(file_volume.connection.path or "").open("r+b") as file:
        file.truncate(1 << 30)
    grow = c.ResizeAttachedVolume(
        server_id=server.server_id, instance_name=server.instance_name, volume_id=file_volume.volume_id, size_gb=1
    )
    for _ in range(2):
        host.do(grow)
    assert capacity(host, server, "vdb") == 1 << 30


def capacity(host: Host, spec: c.ServerSpec, target: str) -> int:
    look = lambda conn: conn.lookupByUUIDString(spec.server_id).blockInfo(target)[0]  # noqa: E731
    return int(host.driver.hypervisor.call("size", look))


class StorageDaemon:
    """A qemu-storage-daemon with one exported volume, grown as the volume driver does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket, self._monitor = directory / "nbd.sock", directory / "qmp.sock"
        self.disk = directory / "disk"
        with self.disk.open("wb") as file:
            file.truncate(1 << 20)
        self.process = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=v,filename={self.disk}", "--nbd-server",
             f"addr.type=unix,addr.path={self.socket}", "--export", "nbd,id=e,node-name=v,name=vol,writable=on",
             "--chardev", f"socket,id=m,path={self._monitor},server=on,wait=off", "--monitor", "chardev=m"],
        )  # fmt: skip
        end = time.monotonic() + 10
        while not (self.socket.exists() and self._monitor.exists()):
            assert time.monotonic() < end
            time.sleep(0.02)
        shutil.chown(self.socket, group=qemu_group())
        self.socket.chmod(0o660)

    def grow(self, size: int) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(self._monitor))
            talk = peer.makefile("rw")
            talk.readline()
            for command, arguments in (
                ("qmp_capabilities", {}),
                ("block-export-del", {"id": "e", "mode": "hard"}),
                ("block_resize", {"node-name": "v", "size": size}),
                ("block-export-add", {"type": "nbd", "id": "f", "node-name": "v", "name": "vol", "writable": True}),
            ):
                for _ in range(100):
                    talk.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                    talk.flush()
                    while "event" in (said := json.loads(talk.readline())):
                        pass
                    if "return" in said:
                        break
                    time.sleep(0.02)
                assert "return" in said, said


@pytest.fixture
def storage(host: Host) -> Iterator[StorageDaemon]:
    directory = host.directory / f"qsd-{new_uuid()[:8]}"
    directory.mkdir()
    daemon = StorageDaemon(directory)
    yield daemon
    daemon.process.kill()
    daemon.process.wait()


def test_nbd_volume_attach_grow_detach(host: Host, server: c.ServerSpec, storage: StorageDaemon) -> None:
    host.wait_for_console(server, "boot sector")
    one = volume(c.DiskConnection(driver="nbd", uri=f"nbd+unix:///vol?socket={storage.socket}"))
    attach(host, server, one)
    assert capacity(host, server, "vdb") == 1 << 20
    storage.grow(1 << 30)
    grow = c.ResizeAttachedVolume(
        server_id=server.server_id, instance_name=server.instance_name, volume_id=one.volume_id, size_gb=1
    )
    for _ in range(2):
        host.do(grow)
    assert capacity(host, server, "vdb") == 1 << 30
    assert host.state(server) == 1
    detach(host, server, one)
    assert targets(host, server) == ["vda"]


def test_boot_from_volume(host: Host, storage: StorageDaemon) -> None:
    storage.disk.write_bytes(boot_sector("from a volume"))
    one = volume(
        c.DiskConnection(driver="nbd", uri=f"nbd+unix:///vol?socket={storage.socket}"), device="/dev/vda", boot_index=0
    )
    spec = host.create(image=None, root_gb=0, volumes=[one])
    host.wait_for_console(spec, "from a volume")
    names = {"server_id": spec.server_id, "instance_name": spec.instance_name}
    upload = c.Upload(image_id=new_uuid(), disk_format="qcow2", path=str(host.directory / "none"))
    assert code_of(lambda: host.do(c.SnapshotServer(upload=upload, **names))) == "no-disk"
    host.delete(spec)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_snapshot(host: Host, running: bool, form: str, file_volume: c.VolumeAttachment) -> None:
    server = host.create(root_gb=1 if form == "qcow2" else 0)  # 0: as large as the image, which is little to hash
    size = 1 << 30 if form == "qcow2" else 1 << 20
    attach(host, server, file_volume)
    if not running:
        host.power(server, "stop", grace_seconds=0)
    target = host.directory / f"snapshot-{form}-{running}"
    upload = c.Upload(image_id=new_uuid(), disk_format=form, path=str(target))
    operation = c.SnapshotServer(server_id=server.server_id, instance_name=server.instance_name, upload=upload)
    for _ in range(2):
        made = host.do(operation)
    assert made.virtual_size_bytes == size
    assert made.size == target.stat().st_size
    assert inspect(target, form).virtual_size_bytes == size
    disk = host.directory / "flat"
    subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", str(target), str(disk)], check=True)
    with disk.open("rb") as file:
        assert file.read(512) == boot_sector()[:512], "base and overlay in one"
    for path in (disk, target):
        path.unlink()
    assert host.state(server) == (1 if running else 4)
    host.delete(server)


def test_consoles(host: Host, server: c.ServerSpec) -> None:
    host.wait_for_console(server, "boot sector")
    names = {"server_id": server.server_id, "instance_name": server.instance_name}
    vnc = host.ask(c.ConsoleEndpoint(type="vnc", **names))
    assert vnc["host"] == "127.0.0.1"
    with socket.create_connection((vnc["host"], vnc["port"]), timeout=30) as peer:
        assert peer.recv(3) == b"RFB"
    with socket.create_connection((vnc["host"], vnc["websocket_port"]), timeout=30):
        pass
    serial = host.ask(c.ConsoleEndpoint(type="serial", **names))
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(serial["socket"])
    assert code_of(lambda: host.ask(c.ConsoleEndpoint(type="spice", **names))) == "unsupported"


def test_console_log_is_trimmed(host: Host, server: c.ServerSpec) -> None:
    log = host.wait_for_console(server, "boot sector")
    assert host.ask(c.ConsoleLog(server_id=server.server_id, length=1)) == log.splitlines(keepends=True)[-1]
    assert host.ask(c.ConsoleLog(server_id=server.server_id, length=0)) == ""
    path = host.driver.instances.console_log(server.server_id)
    with path.open("ab") as file:
        file.write(b"a line\n" * 700_000)
    host.driver.instances.trim_console_logs()
    assert path.stat().st_size == 1 << 20
    host.power(server, "hard_reboot")
    host.wait_for_console(server, "a line\n")
    log = host.wait_for_console(server, "boot sector")
    assert log.index("a line") < log.index("boot sector"), "QEMU writes on at the end"
    assert path.stat().st_size < 2 << 20


def test_diagnostics(host: Host, server: c.ServerSpec) -> None:
    host.wait_for_console(server, "boot sector")
    told = host.ask(c.Diagnostics(server_id=server.server_id, instance_name=server.instance_name))
    assert told["state"] == "running"
    assert told["num_disks"] == 1
    assert told["disk_details"][0]["read_bytes"] > 0
    assert told["memory_details"]["maximum"] == 32


def test_password_needs_an_agent(host: Host, server: c.ServerSpec) -> None:
    operation = c.SetAdminPassword(
        server_id=server.server_id, instance_name=server.instance_name, user="root", password="secret"
    )
    assert code_of(lambda: host.do(operation)) == "no-agent"
    host.power(server, "stop", grace_seconds=0)
    assert code_of(lambda: host.do(operation)) == "not-running"
