"""Servers on a real libvirt: made, found, stopped, killed, deleted. Boot sectors: they need no operating system."""

import os
import shutil
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cumulet.agent import contract as c
from cumulet.kernel.ids import new_uuid
from tests.support import leftovers

from .conftest import Host, code_of, kill, learned, port

pytestmark = pytest.mark.host


def test_create_and_delete(host: Host) -> None:
    nic = port()
    spec = host.create(ports=[nic], swap_mb=4, ephemeral_gb=1)
    assert host.reports.wait_for(spec.server_id, 1) == ""
    assert "boot sector" in host.wait_for_console(spec, "boot sector")
    found = host.driver.inventory()
    assert spec.server_id in [server.server_id for server in found.servers]
    assert nic.id in found.ports
    tree = ElementTree.fromstring(host.ask(c.DomainXml(server_id=spec.server_id, instance_name=spec.instance_name)))
    assert [t.get("dev") for t in tree.iterfind("./devices/disk/target")] == ["vda", "vdb", "vdc"]
    assert tree.find(f"./devices/interface/target[@dev='{nic.tap}']") is not None
    for _ in range(2):  # deleting twice is nothing
        host.delete(spec)
    assert spec.server_id not in [server.server_id for server in host.driver.inventory().servers]
    assert not host.driver.instances.folder(spec.server_id).exists()
    assert host.taps.plugged() == []


def test_every_step_may_be_repeated(host: Host) -> None:
    spec = host.create(ports=[port()])
    pid = host.qemu_pid(spec)
    assert host.do(c.CacheImage(image=host.image)).hit
    for step in (
        c.CreateDisks(server=spec),
        c.PlugPorts(server_id=spec.server_id, ports=spec.ports),
        c.DefineServer(server=spec),
    ):
        host.do(step)
    host.power(spec, "start")
    assert host.qemu_pid(spec) == pid, "the guest went on"
    host.delete(spec)


def test_stop_by_the_power_button_and_start(host: Host, server: c.ServerSpec) -> None:
    host.wait_for_console(server, "boot sector")
    for _ in range(2):
        host.power(server, "stop", grace_seconds=120)
    assert host.reports.wait_for(server.server_id, 4) == "shutdown by the guest"  # it heard the button
    host.power(server, "start")
    assert host.reports.wait_for(server.server_id, 1) == ""


def test_a_deaf_guest_is_forced_off(host: Host) -> None:
    spec = host.create(image=host.deaf_image)
    host.wait_for_console(spec, "deaf")
    host.power(spec, "stop", grace_seconds=0.5)
    assert host.reports.wait_for(spec.server_id, 4) == "destroyed"
    host.delete(spec)


def test_reboots(host: Host, server: c.ServerSpec) -> None:
    host.wait_for_console(server, "boot sector")
    first = host.qemu_pid(server)
    host.power(server, "soft_reboot", grace_seconds=60)
    second = host.qemu_pid(server)
    host.power(server, "hard_reboot")
    assert len({first, second, host.qemu_pid(server)}) == 3
    assert host.state(server) == 1


def test_pause_and_suspend(host: Host, server: c.ServerSpec) -> None:
    for _ in range(2):
        host.power(server, "pause")
    host.reports.wait_for(server.server_id, 3)
    for _ in range(2):
        host.power(server, "unpause")
    host.reports.wait_for(server.server_id, 1)
    host.wait_for_console(server, "boot sector")
    log = host.ask(c.ConsoleLog(server_id=server.server_id))
    for _ in range(2):
        host.power(server, "suspend")
    assert host.reports.wait_for(server.server_id, 4) == "saved"
    for _ in range(2):
        host.power(server, "resume")
    host.reports.wait_for(server.server_id, 1)
    time.sleep(0.5)
    assert host.ask(c.ConsoleLog(server_id=server.server_id)) == log, "it went on instead of booting"
    host.power(server, "stop", grace_seconds=0)
    assert code_of(lambda: host.power(server, "pause")) == "not-running"


def test_a_dead_qemu_is_reported(host: Host, server: c.ServerSpec) -> None:
    host.reports.wait_for(server.server_id, 1)
    os.kill(host.qemu_pid(server), signal.SIGKILL)
    assert host.reports.wait_for(server.server_id, 4) == "crashed"


def test_guests_survive_the_agent_and_are_adopted(host: Host, server: c.ServerSpec) -> None:
    pid = host.qemu_pid(server)
    host.restart()
    host.reports.wait_for(server.server_id, 1)
    assert host.qemu_pid(server) == pid


def test_a_libvirtd_that_dies_is_started_and_found_again(host: Host, server: c.ServerSpec) -> None:
    host.reports.wait_for(server.server_id, 1)
    pid, daemon = host.qemu_pid(server), host.daemon.pid()
    assert daemon is not None
    host.reports.seen.clear()
    os.kill(daemon, signal.SIGKILL)
    host.reports.wait_for(server.server_id, 1, seconds=60)
    assert host.daemon.pid() not in (None, daemon)
    assert host.qemu_pid(server) == pid
    host.daemon.start()  # it runs: nothing to do
    host.power(server, "pause")
    host.reports.wait_for(server.server_id, 3)


def test_absent_servers_are_removed(host: Host) -> None:
    spec = host.create()
    host.driver.remove_absent(c.Absent(servers=[spec.server_id, new_uuid()]))
    assert spec.server_id not in [server.server_id for server in host.driver.inventory().servers]


def test_disks_without_a_domain_are_told(host: Host) -> None:
    spec = host.spec()
    host.do(c.CreateDisks(server=spec))
    found = {server.server_id: server.reason for server in host.driver.inventory().servers}
    assert found[spec.server_id] == "disks only"
    host.do(c.DeleteDisks(server_id=spec.server_id))


def test_what_cannot_be_is_refused(host: Host) -> None:
    spec = host.spec()
    missing = {"server_id": spec.server_id, "instance_name": spec.instance_name}
    assert code_of(lambda: host.power(spec, "start")) == "not-found"
    assert code_of(lambda: host.ask(c.DomainXml(**missing))) == "not-found"
    large = host.make_image("large", b"x" * (2 << 20), "raw")
    with_large = host.spec(image=large, root_gb=1)
    host.do(c.CreateDisks(server=with_large))  # it fits
    host.do(c.DeleteDisks(server_id=with_large.server_id))
    host.do(c.CreateDisks(server=spec))
    unplugged = host.spec(ports=[port()], server_id=spec.server_id, instance_name=spec.instance_name)
    host.do(c.DefineServer(server=unplugged))
    assert code_of(lambda: host.power(unplugged, "start")) == "no-tap"
    assert code_of(lambda: host.ask(c.Diagnostics(**missing))) == "not-running"
    host.delete(spec)


def test_what_is_told_of_the_host(host: Host) -> None:
    facts = host.driver.facts()
    assert facts.virt_type == "qemu"
    assert facts.resources["memory_mb"] > 500
    assert facts.resources["hypervisor_version"] > 1_000_000
    assert 1.0 <= (facts.speed_factor or 0) <= 50


def test_the_facts_of_a_host_cost_little(host: Host) -> None:
    """They are asked for at every heartbeat. The quickest of several: the machine may be busy with other things."""
    host.driver.facts()

    def seconds() -> float:
        begun = time.monotonic()
        host.driver.facts()
        return time.monotonic() - begun

    assert min(seconds() for _ in range(10)) < 0.05


def test_destroying_all_leaves_nothing(host: Host, pytestconfig: pytest.Config) -> None:
    directory = leftovers.directory("hc-")
    other = Host(directory, learned(pytestconfig))
    running, stopped = other.create(), other.create()
    other.power(stopped, "stop", grace_seconds=0)
    guest, daemon = other.qemu_pid(running), other.daemon.pid()
    assert daemon is not None
    other.driver.stop()
    os.kill(daemon, signal.SIGKILL)  # the worst case: guests without their daemon
    try:
        for _ in range(2):
            other.new_driver().cleanup_all()
        for pid in (guest, daemon):
            assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes(), (
                "a zombie"
            )
        assert not other.config.state.exists()
        assert not other.config.run.exists()
        assert host.daemon.pid() is not None  # another's daemon still has what it mounted
        assert host.daemon.running()
    finally:
        kill(guest)
        shutil.rmtree(directory)
