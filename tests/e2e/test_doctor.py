"""Drift planted by hand on a whole cloud with a real guest: `cumulet doctor` names each, ``--fix`` repairs it, and the
guest (the same QEMU) runs on. What is planted, and how: tests/support/drift.py. On Open vSwitch: tests/hosts."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import BIN, ROOT, CloudHost, eventually, inside

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]
SCRIPT = ROOT / "tests" / "support" / "drift.py"
AT_ONCE = (
    "domain_of_nobody", "definition_gone", "disk_of_nobody", "tap_of_nobody",
    "volume_of_nobody", "backup_of_nobody", "export_of_nobody", "record_of_no_attachment",
    "dnsmasq_host_gone", "lease_expired", "chain_emptied", "chain_of_nobody", "router_translates_elsewhere",
    "router_forwards_nothing", "namespace_of_nobody", "stray_device_on_a_bridge", "filters_see_no_connections",
    "allocation_of_nobody", "attachment_of_nothing", "port_on_a_dead_host",
)  # fmt: skip
Found = set[tuple[str, str]]


class Patient:
    """``demo-1`` with a volume, its network and router, and a spare port."""

    def __init__(self, host: CloudHost, demo: Any) -> None:
        self.host, self.demo = host, demo
        self.server = demo.compute.find_server("demo-1")
        (self.port,) = demo.network.ports(device_id=self.server.id)
        self.router = demo.network.find_router("router1").id
        self.spare = demo.network.create_port(network_id=self.port.network_id, name="spare").id
        self.volume = demo.create_volume(1, name="of-demo-1", wait=True, timeout=60)
        demo.attach_volume(self.server, self.volume, wait=True, timeout=60)
        self.qemu = self.guests()
        self.known = self.doctor()

    def guests(self) -> list[str]:
        listed = self.host.sh("pgrep -a qemu-system").splitlines()
        return [line.split()[0] for line in listed if self.server.id in line]

    def plant(self, *kinds: str) -> Found:
        facts = {
            "server": self.server.id, "port": self.port.id, "network": self.port.network_id, "router": self.router
        }  # fmt: skip
        words = ["env", f"SPARE_PORT={self.spare}", f"{BIN}/python", str(SCRIPT), "/etc/cumulet/cumulet.toml"]
        return {(code, id) for code, id in json.loads(self.host.run(*words, json.dumps(facts), *kinds).stdout)}

    def findings(self, *arguments: str) -> list[dict[str, Any]]:
        said = self.host.cumulet("doctor", "--json", *arguments, check=False).stdout
        found: list[dict[str, Any]] = json.loads(said)["findings"]
        return found

    def doctor(self) -> Found:
        """All but what is only told."""
        return {(one.get("code", one["message"]), one.get("object_id", "")) for one in self.findings() if worth(one)}

    def healed(self, planted: Found) -> None:
        """Each is found, and nothing else; then repaired; then nothing is found."""
        assert self.doctor() - self.known == planted
        repaired = [one for one in self.findings("--fix") if worth(one) and one.get("code")]
        failed = [one for one in repaired if (one["code"], one["object_id"]) in planted and not one["repaired"]]
        assert failed == []
        assert {(one["code"], one["object_id"]) for one in repaired} >= planted
        eventually("nothing is found", lambda: self.doctor() <= self.known)

    def well(self) -> None:
        assert self.guests() == self.qemu
        assert "demo-1" in self.host.guest("demo-1", "hostname")
        read = self.host.guest("demo-1", "sudo dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | wc -c")
        assert read.strip() == "512"


def worth(one: dict[str, Any]) -> bool:
    return one["severity"] != "info"


@pytest.fixture(scope="module")
def patient(cloud_host: CloudHost, quickstart: str, connect: Any) -> Iterator[Patient]:
    with inside(cloud_host.namespace()):
        demo = connect("demo")
        made = Patient(cloud_host, demo)
        yield made
        demo.detach_volume(made.server, made.volume, wait=True, timeout=60)
        demo.delete_volume(made.volume.id, wait=True, timeout=60)
        demo.network.delete_port(made.spare)
    cloud_host.sh(
        "rm -rf /var/lib/cumulet/compute/servers/.aside /var/lib/cumulet/volumes/volumes/aside"
        " /var/lib/cumulet/volumes/backups/aside; for link in evil qbr0; do ip link del $link 2>/dev/null; done; true"
    )


def test_many_kinds_at_once(patient: Patient) -> None:
    patient.healed(patient.plant(*AT_ONCE))
    patient.well()
    kept = {one["object_id"].split("/")[0] for one in patient.findings() if one.get("code") == "quarantined"}
    assert kept == {"disk", "volume", "backup"}, "what holds data is moved aside"


def test_what_others_hide(patient: Patient) -> None:
    """A dead dnsmasq hides what it holds, a namespace that is gone takes along what ran in it."""
    planted = patient.plant("dnsmasq_dead")  # its agent starts it again with its next heartbeat, and may have
    assert patient.doctor() - patient.known <= planted
    patient.findings("--fix")
    eventually("nothing is found", lambda: patient.doctor() <= patient.known)
    planted = patient.plant("namespace_gone")
    assert planted <= patient.doctor()
    patient.findings("--fix")
    eventually("nothing is found", lambda: patient.doctor() <= patient.known)
    patient.well()
    lease = patient.host.guest("demo-1", "sudo udhcpc -i eth0 -n -q -f -s /bin/true 2>&1")
    assert re.search(r"lease of 10\.64\.0\.\d+ obtained", lease)


def test_a_servers_domain_and_tap_taken_away(patient: Patient) -> None:
    """Of another server: it is rebooted by the repair."""
    demo, host = patient.demo, patient.host
    image, flavor = demo.image.find_image("cumulet-tiny"), demo.compute.find_flavor("m1.nano")
    networks = [{"uuid": patient.port.network_id}]
    server = demo.compute.create_server(name="victim", image_id=image.id, flavor_id=flavor.id, networks=networks)
    try:
        demo.compute.wait_for_server(server, wait=120)
        (port,) = demo.network.ports(device_id=server.id)
        host.sh(f"ip link del tap{port.id[:11]}")
        patient.healed({("port-without-tap", port.id)})
        eventually("it runs", lambda: demo.compute.get_server(server.id).status == "ACTIVE")
        virsh = (
            "import libvirt,sys; c=libvirt.open('qemu+unix:///system?socket=/run/cumulet/compute/libvirt/libvirt-sock')"
        )
        host.run(f"{BIN}/python", "-c", f"{virsh}; d=c.lookupByUUIDString('{server.id}'); d.destroy(); d.undefine()")
        eventually("it is off", lambda: demo.compute.get_server(server.id).status == "SHUTOFF")
        patient.healed({("stopped-server-without-domain", server.id)})
        assert demo.compute.get_server(server.id).status == "SHUTOFF"
        demo.compute.start_server(server.id)
        eventually("it runs", lambda: demo.compute.get_server(server.id).status == "ACTIVE")
        assert patient.doctor() <= patient.known
    finally:
        demo.compute.delete_server(server.id)
        demo.compute.wait_for_delete(server, wait=60)
    patient.well()
