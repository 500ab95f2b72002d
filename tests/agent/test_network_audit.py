"""What the network driver sees of its own daemons: from files and /proc alone, no root, no namespaces."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from cumulet.agent.contract import FixedIp, NetworkDoc, PortDoc, Segment, SubnetDoc
from cumulet.agent.network.dhcp import DhcpServers
from cumulet.agent.network.store import DocumentStore

NETWORK, PORT, SUBNET = "n" * 36, "p" * 36, "s" * 36


def document(*, dhcp: bool = True) -> NetworkDoc:
    segment = Segment(network_type="local")
    port = PortDoc(
        id=PORT, generation=1, network_id=NETWORK, segment=segment, mac_address="fa:16:3e:00:00:01",
        fixed_ips=[FixedIp(subnet_id=SUBNET, ip_address="10.0.0.2")],
    )  # fmt: skip
    subnet = SubnetDoc(id=SUBNET, cidr="10.0.0.0/24", ip_version=4, enable_dhcp=dhcp)
    return NetworkDoc(id=NETWORK, generation=1, segment=segment, subnets=[subnet], dhcp_port=port)


@pytest.fixture
def servers(tmp_path: Path) -> DhcpServers:
    wiring = SimpleNamespace(config=SimpleNamespace(run_dir=tmp_path), store=DocumentStore(tmp_path / "documents"))
    return DhcpServers(wiring)  # type: ignore[arg-type]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Something that looks like the network's dnsmasq."""
    pid_file = tmp_path / "dhcp" / NETWORK / "pid"
    pid_file.parent.mkdir(parents=True)
    process = subprocess.Popen(
        ["dnsmasq", "-c", "import time; print(flush=True); time.sleep(60)", f"--pid-file={pid_file}"],
        executable=sys.executable,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    pid_file.write_text(f"{process.pid}\n")
    yield process
    process.kill()
    process.wait()


def test_a_dnsmasq_that_does_not_run_is_noticed(servers: DhcpServers, running: "subprocess.Popen[bytes]") -> None:
    servers._w.store.put(document())
    assert servers.silent() == []
    running.kill()
    running.wait()
    assert servers.silent() == [NETWORK]


def test_none_is_missed_where_none_is_to_be(servers: DhcpServers) -> None:
    servers._w.store.put(document(dhcp=False))
    assert servers.silent() == []
