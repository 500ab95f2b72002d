"""Routers, floating IPs, IPv6, and networks shared with the host and the world."""

import sys

import msgspec
import pytest

from cumulet.agent.contract import (
    DhcpHost,
    FixedIp,
    FloatingIpDoc,
    Route,
    RouterPort,
    SubnetDoc,
)
from cumulet.agent.network import rules

from .conftest import HERE, NET, SUBNET, Guest, Host, mac, port
from .documents import (
    EGRESS,
    EXTERNAL,
    EXTERNAL_SUBNET,
    FLAT,
    PING,
    changed,
    metadata_doc,
    network_doc,
    outside,
    router_doc,
    server,
    tcp,
    until,
)

pytestmark = pytest.mark.host


def test_router_translates_and_floating_ips_come_and_go(host: Host, external: str) -> None:
    worker = host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING, tcp(80)])
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(SUBNET)
    server(guest)
    doc = router_doc()
    worker.apply(doc)
    assert guest.ping(external)
    assert outside("ping -c1 -W1 172.31.9.20")
    worker.apply(doc)
    assert worker.changes() == []
    assert not outside("ping -c1 -W1 172.31.9.30")
    floating = FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.11")
    doc = changed(doc, floating_ips=[floating])
    worker.apply(doc)
    assert outside("ping -c1 -W1 172.31.9.30")
    assert outside("busybox nc -w 1 172.31.9.30 80 </dev/null | grep -q hello")
    # from inside to the floating IP of a guest of the same network
    two = port("two", "10.9.0.12", rules=EGRESS)
    neighbour = Guest(host, two)
    worker("plug", two)
    neighbour.set_address(SUBNET)
    assert neighbour.ping("172.31.9.30")
    # its own outbound traffic wears it
    guest.sh("ping -c1 -W1 172.31.9.1")
    tracked = host.sh(f"ip netns exec qrouter-{doc.id} conntrack -L 2>/dev/null")
    assert "dst=172.31.9.30 " in tracked
    doc = changed(doc, floating_ips=[], routes=[Route(destination="10.60.0.0/16", nexthop="10.9.0.11")])
    worker.apply(doc)
    assert "172.31.9.30" not in host.sh(f"ip netns exec qrouter-{doc.id} conntrack -L 2>/dev/null")
    assert not outside("ping -c1 -W1 172.31.9.30")
    routes = host.sh(f"ip -n qrouter-{doc.id} route")
    assert "10.60.0.0/16 via 10.9.0.11" in routes
    assert "default via 172.31.9.1" in routes
    # metadata through the router
    worker.apply(metadata_doc())
    doc = changed(doc, routes=[], metadata={f"{NET}/10.9.0.11": "server-0"})
    worker.apply(doc)
    assert "10.60.0.0" not in host.sh(f"ip -n qrouter-{doc.id} route")
    assert guest.sh("busybox wget -q -O - http://169.254.169.254/latest/meta-data/instance-id") == "i-00000001"
    # nobody outside is answered
    assert not outside("ip route add 169.254.169.254 via 172.31.9.20; busybox nc -w 1 169.254.169.254 80 </dev/null")
    outside("ip route del 169.254.169.254")
    worker.apply(changed(doc, enable_snat=False))
    assert not guest.ping(external)
    worker.apply(changed(changed(doc, admin_state_up=False)))
    assert worker("list", "router") == []
    worker("remove", "router", doc.id, 99)
    assert worker("list", "router") == []
    assert not host.good("ls /sys/class/net/br-ex/brif | grep tap")


def test_external_bridge_for_a_single_machine(host: Host) -> None:
    worker = host.start(bridge_mappings={"public": "br-ex"})
    host.sh("echo 0 >/proc/sys/net/ipv4/ip_forward")
    made = worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24"])
    assert made["warnings"] == []
    assert any("ip_forward" in c["what"] for c in made["changes"])
    again = worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24"])
    assert again["changes"] == made["changes"]
    assert worker.changes() == []
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(SUBNET)
    worker.apply(router_doc(
        floating_ips=[FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.11")]
    ))  # fmt: skip
    assert host.good("ping -c1 -W1 172.31.9.30")
    assert guest.ping("172.31.9.1")
    assert guest.ping("10.77.0.2")  # another host, masqueraded: it knows no way back to 172.31.9.0/24
    host.sh("nft 'table inet docker { chain f { type filter hook forward priority 0; policy drop; }; }'")
    made = worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24"])
    assert [w["code"] for w in made["warnings"]] == ["forward-policy-drop"]
    host.sh("; ".join(f"nft '{line.removeprefix('nft ')}'" for line in made["warnings"][0]["cure"].split("; ")))
    host.sh("nft delete table inet docker")
    worker("cleanup_all")
    assert worker("remove_host_changes")
    assert "br-ex" not in host.sh("ip -br link")
    assert host.sh("cat /proc/sys/net/ipv4/ip_forward").strip() == "0"
    assert host.sh("nft list tables") == ""
    assert worker("remove_host_changes") == []


def test_external_bridge_with_ipv6_keeps_the_hosts_own_route(host: Host) -> None:
    worker = host.start(bridge_mappings={"public": "br-ex"})
    host.sh("sysctl -qw net.ipv6.conf.all.forwarding=0 net.ipv6.conf.eth0.accept_ra=1")
    worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24", "fd00:31::1/64"])
    look = "sysctl -n net.ipv6.conf.all.forwarding net.ipv6.conf.eth0.accept_ra"
    assert host.sh(look).split() == ["1", "2"]
    worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24", "fd00:31::1/64"])
    assert worker.changes() == []
    worker("remove_host_changes")
    assert host.sh(look).split() == ["0", "1"]


def test_a_filtered_guest_on_the_external_network(host: Host) -> None:
    """The bridge is the host's too: answers of host and world come in, nothing else does."""
    worker = host.start(bridge_mappings={"public": "br-ex"})
    worker("ensure_external_bridge", "br-ex", ["172.31.9.1/24"])
    one = port(
        "one", None, network_id=EXTERNAL, segment=FLAT, rules=EGRESS,
        fixed_ips=[FixedIp(subnet_id=EXTERNAL_SUBNET.id, ip_address="172.31.9.40")],
    )  # fmt: skip
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(EXTERNAL_SUBNET)
    assert guest.ping("172.31.9.1")
    assert guest.ping("10.77.0.2")
    assert not host.good("ping -c1 -W1 172.31.9.40")
    worker.apply(changed(one, rules=[*EGRESS, PING]))
    assert host.good("ping -c1 -W1 172.31.9.40")
    guest.sh("ip addr add 172.31.9.41/24 dev eth0")
    assert not guest.good("ping -c1 -W1 -I 172.31.9.41 172.31.9.1")
    worker("unplug", one.id)
    assert "br-ex" in host.sh("ip -br link")


def test_ipv6_by_advertisement_and_by_dhcp(host: Host) -> None:
    worker = host.start()
    slaac = SubnetDoc(
        id="s6", cidr="fd00:9::/64", ip_version=6, gateway_ip="fd00:9::1", enable_dhcp=True, ipv6_address_mode="slaac",
        ipv6_ra_mode="slaac",
    )  # fmt: skip
    own = rules.link_local(mac("one")).replace("fe80::", "fd00:9::")
    one = port("one", None, fixed_ips=[FixedIp(subnet_id="s6", ip_address=own)], rules=EGRESS)
    guest = Guest(host, one)
    worker("plug", one)
    inside = port("router inside", None, fixed_ips=[FixedIp(subnet_id="s6", ip_address="fd00:9::1")],
                  device_owner="network:router_interface")  # fmt: skip
    doc = router_doc(gateway=None, interfaces=[RouterPort(port=inside, subnets=[slaac])])
    worker.apply(doc)
    worker.apply(doc)
    assert worker.changes() == []
    guest.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=2; ip link set eth0 down; ip link set eth0 up")
    until(lambda: own in guest.sh("ip -6 addr show dev eth0"))
    assert guest.ping("fd00:9::1")
    assert "default via fe80" in guest.sh("ip -6 route")
    pid = host.sh(f"cat /run/cumulet-test/router/{doc.id}/radvd.pid")
    # another mode: told by a reload, not a new process
    stateful = msgspec.structs.replace(
        slaac, ipv6_address_mode="dhcpv6-stateful", ipv6_ra_mode="dhcpv6-stateful", dhcp_ip="fd00:9::2"
    )
    doc = changed(doc, interfaces=[RouterPort(port=inside, subnets=[stateful])])
    worker.apply(doc)
    assert host.sh(f"cat /run/cumulet-test/router/{doc.id}/radvd.pid") == pid
    two = port("two", None, fixed_ips=[FixedIp(subnet_id="s6", ip_address="fd00:9::77")], rules=EGRESS)
    second = Guest(host, two)
    worker("plug", two)
    dhcp_port = port("dhcp", None, fixed_ips=[FixedIp(subnet_id="s6", ip_address="fd00:9::2")],
                     device_owner="network:dhcp")  # fmt: skip
    host_entry = DhcpHost(port_id=two.id, mac_address=two.mac_address, hostname="two", fixed_ips=two.fixed_ips)
    worker.apply(network_doc([], subnets=[stateful], dhcp_port=dhcp_port, hosts=[host_entry]))
    until(lambda: "fd00:9::77" in second.sh(f"{sys.executable} {HERE}/solicit6.py {two.mac_address}"))
    worker("remove", "router", doc.id, 99)
    assert not host.good("pgrep radvd")


def test_a_flat_network_on_a_nic(host: Host, external: str) -> None:
    host.sh("ip link del br-ex")
    worker = host.start(bridge_mappings={"public": "eth2"})
    one = port("one", None, network_id=EXTERNAL, segment=FLAT, rules=EGRESS,
               fixed_ips=[FixedIp(subnet_id=EXTERNAL_SUBNET.id, ip_address="172.31.9.40")])  # fmt: skip
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(EXTERNAL_SUBNET)
    assert guest.ping(external, 2)
    worker("unplug", one.id)
    assert "master" not in host.sh("ip link show eth2")
    assert "brq" not in host.sh("ip -br link")
