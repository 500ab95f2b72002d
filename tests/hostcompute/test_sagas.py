"""Create and delete of a server under the generic saga checks, on a real libvirt: every step fails, is repeated
and is killed around its effect, each undo matters; what remains on the host is what was there before."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cumulet.agent.compute.driver import ComputeDriver
from cumulet.agent.fake import FakeHost
from cumulet.saga import testing
from cumulet.saga.testing import Case
from cumulet.services.compute import store
from cumulet.services.compute.workflows.delete import DeleteParams
from tests.compute.helpers import Nova
from tests.compute.test_sagas import CloudHarness, build_case
from tests.hostcompute.conftest import Host, Taps
from tests.support import cloud as support
from tests.support import leftovers

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

AROUND_EFFECTS = ("before-send", "outcome")  # before a host's work, and between it and the journal


class LibvirtHarness(CloudHarness):
    """Servers on libvirt; networks and volumes on the fake. What is on the host is looked up there, not in a driver."""

    def __init__(self, nova: Nova, host: Host) -> None:
        super().__init__(nova)
        self._host = host

    def new_server(self) -> tuple[str, msgspec.Struct]:
        """With room for it: what earlier rounds left, finished or failed, still holds its allocation."""
        if len(self.nova.get("/servers")["servers"]) >= 15:
            self.clear()
        return super().new_server()

    def clear(self) -> None:
        servers = [server["id"] for server in self.nova.get("/servers")["servers"]]
        for server_id in servers:
            assert self.nova.delete(f"/servers/{server_id}").status == 204
            self.engine.wake("server", server_id)  # the API is that of a control plane that was killed
        for server_id in servers:
            self.nova.gone(server_id, 30)

    def host_state(self) -> Any:
        domains = {path.stem for path in (self._host.daemon.run / "qemu").glob("*.pid")}
        defined = {path.stem for path in self._host.directory.rglob("qemu/instance-*.xml")}
        kept = self._host.config.state / "servers"
        links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        return {
            "running": sorted(domains - {"driver"}),
            "defined": sorted(defined),
            "disks": sorted(path.name for path in kept.iterdir()) if kept.is_dir() else [],
            "taps": sorted(line.split()[0] for line in links.splitlines() if line.startswith("tap")),
        }


@pytest.fixture(scope="module")
def harness(host: Host) -> Iterator[LibvirtHarness]:
    def unlimited(settings: Any) -> None:
        settings.quota.instances = settings.quota.cores = settings.quota.ram_mb = settings.quota.ports = -1

    host.driver.stop()  # the agent's own driver takes its place
    fake = FakeHost("fake-1")
    fake.drivers[0] = ComputeDriver(host.config, Taps())
    directory = leftovers.directory("hs-")
    directory.chmod(0o755)
    cloud = support.Cloud(directory, hosts=0, configure=unlimited).start()
    try:
        cloud.add_host("fake-1", fake=fake)
        cloud.wait(lambda: cloud.up_hosts() == ["fake-1"], 60)
        yield LibvirtHarness(Nova(cloud), host)
    finally:
        cloud.stop()
        shutil.rmtree(directory, ignore_errors=True)
        host.restart()


def case(harness: LibvirtHarness) -> Case:
    return replace(build_case(harness), seconds=60, settle_seconds=2.0)


def test_the_checks_see_what_a_server_is_made_of(harness: LibvirtHarness) -> None:
    harness.running_server()
    assert {what: len(found) for what, found in harness.host_state().items()} == {
        "running": 1,
        "defined": 1,
        "disks": 1,
        "taps": 1,
    }


def test_build_repeats_and_unwinds(harness: LibvirtHarness) -> None:
    testing.check_repeats(harness, case(harness))


def test_every_undo_of_build_matters(harness: LibvirtHarness) -> None:
    from_libvirt = replace(
        case(harness),
        redundant={
            "networking": "its documents are the fake network's here",
            "ports": "the driver takes the taps of a server's documents with them",
            "volumes": "this server has none",
        },
    )
    assert testing.check_undos_matter(harness, from_libvirt) == ["disks", "define"]


def test_build_survives_kills(harness: LibvirtHarness) -> None:
    assert testing.check_crashes(harness, case(harness), AROUND_EFFECTS) >= 8


def test_build_unwinds_over_kills(harness: LibvirtHarness) -> None:
    assert testing.check_crashes_unwinding(harness, case(harness), AROUND_EFFECTS) >= 4


def test_delete_survives_and_leaves_nothing(harness: LibvirtHarness) -> None:
    def prepare(h: LibvirtHarness) -> tuple[str, msgspec.Struct]:
        server_id = h.running_server()
        h.db.write(lambda tx: store.update_server(tx, server_id, deleting=True))
        return server_id, DeleteParams()

    harness.clear()
    empty = harness.host_state()
    assert empty["running"] == empty["disks"] == empty["taps"] == []
    ending = Case("server.delete", prepare, {}, unwinds=False, seconds=60, ctx=harness.ctx)
    testing.check_repeats(harness, ending)
    assert testing.check_crashes(harness, ending, AROUND_EFFECTS) >= 4
    assert harness.host_state() == empty
