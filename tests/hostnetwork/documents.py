"""Documents, and small things that guests and the world outside do, for the tests of this folder."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import msgspec

from cumulet.agent.contract import (
    DhcpHost,
    FirewallRule,
    FixedIp,
    MetadataDoc,
    NetworkDoc,
    PortDoc,
    RouterDoc,
    RouterPort,
    Segment,
    SubnetDoc,
)

from .conftest import ENV, LOCAL, NET, SUBNET, Guest, mac, port, uuid

EGRESS = [FirewallRule(direction="egress", ethertype=e) for e in ("IPv4", "IPv6")]
PING = FirewallRule(direction="ingress", ethertype="IPv4", protocol="icmp")
EXTERNAL = uuid("external")
EXTERNAL_SUBNET = SubnetDoc(
    id=uuid("external subnet"), cidr="172.31.9.0/24", ip_version=4, gateway_ip="172.31.9.1", enable_dhcp=False
)
FLAT = Segment(network_type="flat", physical_network="public", mtu=1500)


def changed(doc: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(doc, generation=doc.generation + 1, **fields)


def tcp(port_number: int, **more: Any) -> FirewallRule:
    return FirewallRule(
        direction="ingress", ethertype="IPv4", protocol="tcp", port_range_min=port_number, port_range_max=port_number,
        **more,
    )  # fmt: skip


def network_doc(guests: list[PortDoc], segment: Segment = LOCAL, **more: Any) -> NetworkDoc:
    dhcp_port = port("dhcp", "10.9.0.2", segment=segment, device_owner="network:dhcp")
    values: dict[str, Any] = {
        "id": NET,
        "generation": 1,
        "segment": segment,
        "subnets": [SUBNET],
        "dhcp_port": dhcp_port,
        "hosts": [
            DhcpHost(port_id=p.id, mac_address=p.mac_address, hostname=f"guest{i}", fixed_ips=p.fixed_ips)
            for i, p in enumerate(guests)
        ],
        "metadata": {p.fixed_ips[0].ip_address: f"server-{i}" for i, p in enumerate(guests)},
        **more,
    }
    return NetworkDoc(**values)


def router_doc(**more: Any) -> RouterDoc:
    inside = port("router inside", "10.9.0.1", device_owner="network:router_interface")
    outside = PortDoc(
        id=uuid("router outside"),
        generation=1,
        network_id=EXTERNAL,
        segment=FLAT,
        mac_address=mac("router outside"),
        fixed_ips=[FixedIp(subnet_id=EXTERNAL_SUBNET.id, ip_address="172.31.9.20")],
        device_owner="network:router_gateway",
    )
    values: dict[str, Any] = {
        "id": uuid("router"),
        "generation": 1,
        "gateway": RouterPort(port=outside, subnets=[EXTERNAL_SUBNET]),
        "interfaces": [RouterPort(port=inside, subnets=[SUBNET])],
        **more,
    }
    return RouterDoc(**values)


def metadata_doc(number: int = 0) -> MetadataDoc:
    return MetadataDoc(
        id=f"server-{number}",
        generation=1,
        meta_data={"uuid": f"server-{number}", "hostname": "guest0.openstacklocal", "random_seed": "x"},
        network_data={"links": [], "networks": [], "services": []},
        user_data="aGVsbG8K",
        ec2={
            "meta-data": {"instance-id": "i-00000001", "public-keys": {"0": {"_name": "0=key", "openssh-key": "ssh"}}}
        },
    )


def server(guest: Guest, number: int = 80) -> None:
    guest.sh(f"setsid busybox nc -ll -p {number} -e echo hello >/dev/null 2>&1 & sleep 0.2")


def reaches(guest: Guest, address: str, number: int = 80) -> bool:
    return "hello" in guest.sh(f"busybox timeout 2 busybox nc -w 1 {address} {number} </dev/null", check=False)


def outside(script: str) -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", f"{ENV['TH_PREFIX']}-ul", "sh", "-c", script], capture_output=True, check=False
    )
    return done.returncode == 0


def until(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
