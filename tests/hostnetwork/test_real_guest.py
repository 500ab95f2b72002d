"""One real Linux guest on a tap: DHCP, metadata over HTTP, its key, SSH by floating IP, SNAT. Slow."""

import base64
import fcntl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cumulet import guest
from cumulet.agent.contract import FloatingIpDoc, MetadataDoc

from .conftest import ENV, Host, port
from .documents import EGRESS, PING, network_doc, router_doc, tcp

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]


@pytest.fixture
def one_guest_at_a_time() -> Iterator[None]:
    with open(Path(tempfile.gettempdir()) / "guest.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_guest_is_reached_by_ssh_and_reaches_the_world(
    one_guest_at_a_time: None, host: Host, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    assert pytestconfig.cache is not None
    built = guest.build(pytestconfig.cache.mkdir("hostcompute-guest"))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    key = (tmp_path / "key.pub").read_text().strip()
    worker = host.start(bridge_mappings={"public": "br-ex"}, dns_servers=["10.77.0.2"])
    worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24"])
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING, tcp(22)])
    worker.apply(
        MetadataDoc(
            id="server-0",
            generation=1,
            meta_data={"uuid": "server-0", "hostname": "penguin", "public_keys": {"mine": key}},
            network_data={},
            user_data=base64.b64encode(b"#!/bin/sh\necho user data ran\n").decode(),
            ec2={"meta-data": {"hostname": "penguin", "public-keys": {"0": {"_name": "0=mine", "openssh-key": key}}}},
        )
    )
    worker.apply(network_doc([one]))
    worker.apply(
        router_doc(
            floating_ips=[FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.11")]
        )
    )
    worker("plug", one)
    host.sh(
        "setsid qemu-system-x86_64 -machine pc,accel=tcg -cpu qemu64,+rdrand -m 128 -display none -no-user-config"
        f" -nodefaults -drive file={built.disk},if=virtio,snapshot=on,format=qcow2"
        f" -netdev tap,id=n,ifname={one.tap},script=no,downscript=no"
        f" -device virtio-net-pci,netdev=n,mac={one.mac_address},romfile="
        " -serial file:/run/guest.log -pidfile /run/guest.pid >/run/qemu.log 2>&1 &"
    )
    try:
        _wait(host, "user data ran", 240)
        assert "metadata from http://169.254.169.254/openstack" in host.sh("cat /run/guest.log")
        ssh = (
            f"ssh -i {tmp_path}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
            " -o ConnectTimeout=10 cirros@172.31.9.30 "
        )
        deadline = time.monotonic() + 120
        while not host.good(ssh + "true") and time.monotonic() < deadline:
            time.sleep(1)
        assert "10.9.0.11" in host.sh(ssh + "ip -4 addr")
        assert "mtu 1442" in host.sh(ssh + "ip link show eth0")
        assert "penguin" in host.sh(ssh + "hostname")
        routes = host.sh(ssh + "ip route")
        assert "default via 10.9.0.1" in routes
        assert "169.254.169.254 via 10.9.0.2" in routes
        assert host.good(ssh + "ping -c1 10.77.0.2")
        # a restarted agent: the session of a running guest goes on
        talking = subprocess.Popen(
            [*host.enter, "sh", "-c", ssh + "'sleep 4; echo still here'"], stdout=subprocess.PIPE, env=ENV
        )
        worker = host.restart()
        worker("plug", one)
        assert talking.communicate(timeout=60)[0] == b"still here\n"
    finally:
        host.sh("kill $(cat /run/guest.pid)", check=False)


def _wait(host: Host, text: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if text in host.sh("cat /run/guest.log /run/qemu.log", check=False):
            return
        time.sleep(0.5)
    raise AssertionError(host.sh("cat /run/guest.log /run/qemu.log", check=False))
