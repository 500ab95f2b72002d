"""Role `all` with the real drivers in a pretend host: a server on libvirt, adopted by the next life of the process."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet.guest import boot_sector_qcow2
from tests.support import leftovers
from tests.support.cloud import unique
from tests.support.patience import eventually
from tests.support.pretend import PretendHosts
from tests.support.processes import Processes

_LOCK = Path(tempfile.gettempdir()) / "guest.lock"
pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machine() -> Iterator[tuple[PretendHosts, Processes]]:
    hosts = PretendHosts("rol")
    hosts.up()
    directory = leftovers.directory("cumulet-real-")
    directory.chmod(0o755)  # QEMU's own user passes through
    processes = Processes(directory, within=lambda *command: _in_host(hosts, *command))
    settings = processes.settings
    settings.host.name = "h1"
    settings.compute.driver = "libvirt"
    settings.compute.virt_type = "qemu"
    settings.network.driver = "real"
    settings.storage.driver = "file"
    settings.network.external_cidr = "172.24.4.0/24"
    with open(_LOCK, "w") as lock, hosts.inside("h1"):  # one guest at a time on a shared machine
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            processes.start("all", seconds=120)
            processes.make_accounts()
            yield hosts, processes
        finally:
            processes.stop()
    hosts.down()
    shutil.rmtree(directory, ignore_errors=True)


def _in_host(hosts: PretendHosts, *command: str) -> list[str]:
    return hosts.command("h1", *command)


class Cloud:
    def __init__(self, processes: Processes) -> None:
        self.user = processes.api("demo")
        admin = processes.api("admin")
        flavor = {"name": unique("tiny"), "vcpus": 1, "ram": 64, "disk": 1}
        self.flavor = admin.post("compute", "/flavors", {"flavor": flavor})["flavor"]["id"]
        image = {"name": unique("image"), "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        self.image = admin.post("image", "/images", image)["id"]
        headers = {"content-type": "application/octet-stream"}
        admin.put("image", f"/images/{self.image}/file", data=boot_sector_qcow2(), headers=headers)
        network = self.user.post("network", "/networks", {"network": {"name": unique("net")}})
        self.network = network["network"]["id"]
        subnet = {"network_id": self.network, "cidr": "10.9.0.0/24", "ip_version": 4}
        assert self.user.post("network", "/subnets", {"subnet": subnet}).status == 201

    def create(self) -> str:
        body = {
            "name": unique("server"),
            "imageRef": self.image,
            "flavorRef": self.flavor,
            "networks": [{"uuid": self.network}],
        }
        made = self.user.post("compute", "/servers", {"server": body}, version="2.90")
        assert made.status == 202, made.text
        return str(made["server"]["id"])

    def status(self, server_id: str) -> str | None:
        answer = self.user.get("compute", f"/servers/{server_id}")
        return None if answer.status == 404 else str(answer["server"]["status"])

    def console(self, server_id: str) -> str:
        answer = self.user.post("compute", f"/servers/{server_id}/action", {"os-getConsoleOutput": {}})
        return str(answer["output"])

    def delete(self, server_id: str) -> None:
        assert self.user.delete("compute", f"/servers/{server_id}").status == 204
        eventually(lambda: self.status(server_id) is None, 60)


def qemus(hosts: PretendHosts) -> list[str]:
    listed = hosts.output("h1", "ps", "-eo", "pid,args").splitlines()
    return [line.split()[0] for line in listed if "qemu-system" in line and "guest=" in line]


def taps(hosts: PretendHosts) -> list[str]:
    listed = hosts.output("h1", "ip", "-br", "link").splitlines()
    return [line.split()[0] for line in listed if line.startswith("tap")]


def test_a_server_outlives_the_control_plane(machine: tuple[PretendHosts, Processes]) -> None:
    hosts, processes = machine
    cloud = Cloud(processes)
    server_id = cloud.create()
    eventually(lambda: cloud.status(server_id) == "ACTIVE", 90)
    eventually(lambda: "boot sector" in cloud.console(server_id), 120)
    (guest,) = qemus(hosts)
    for stop in (processes.kill, processes.terminate):
        stop("all")
        assert qemus(hosts) == [guest]
        assert len(taps(hosts)) >= 1
        processes.start("all", seconds=120)
        assert cloud.status(server_id) == "ACTIVE"
    assert qemus(hosts) == [guest]
    cloud.delete(server_id)
    assert qemus(hosts) == []


@pytest.mark.parametrize("task_state", ["networking", "spawning"])
def test_killed_in_the_middle_of_a_create(machine: tuple[PretendHosts, Processes], task_state: str) -> None:
    hosts, processes = machine
    cloud = Cloud(processes)
    server_id = cloud.create()

    def reached() -> bool:
        server = cloud.user.get("compute", f"/servers/{server_id}")["server"]
        return server["OS-EXT-STS:task_state"] in (task_state, "spawning", None)

    eventually(reached, 120)
    processes.kill("all")
    processes.start("all", seconds=120)
    eventually(lambda: cloud.status(server_id) == "ACTIVE", 90)
    assert len(qemus(hosts)) == 1
    cloud.delete(server_id)
    assert qemus(hosts) == []
