"""One host, Linux bridges: guests, security groups, DHCP, metadata, routers, restarts, clean-up."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import (
    DhcpHost,
    FirewallRule,
    FixedIp,
    FloatingIpDoc,
    MetadataDoc,
    NetworkDoc,
    PortDoc,
    Route,
    RouterDoc,
    RouterPort,
    Segment,
    SubnetDoc,
)
from cumulet.agent.network import rules

from .conftest import ENV, HERE, LOCAL, NET, SUBNET, Failed, Guest, Host, mac, port, uuid

pytestmark = pytest.mark.host

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


def test_two_guests_reach_each_other_as_their_groups_say(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    two = port("two", "10.9.0.12", rules=[*EGRESS, tcp(80)])
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    assert worker.seconds < 1
    worker("plug", two)
    for guest in (first, second):
        guest.set_address(SUBNET)
        server(guest)
    assert host.sh(f"cat /sys/class/net/{one.tap}/master/ifalias").strip() == f"cumulet:network:{NET}"
    assert host.sh(f"cat /sys/class/net/brq{NET[:11]}/mtu /sys/class/net/{one.tap}/mtu").split() == ["1442", "1442"]
    assert second.ping("10.9.0.11")
    assert not first.ping("10.9.0.12")
    assert reaches(first, "10.9.0.12")
    assert not reaches(second, "10.9.0.11")
    assert worker("list", "port") == sorted([one.id, two.id])
    # the same document again: no command that changes anything
    worker("plug", one)
    assert worker.changes() == []
    # an older one: ignored
    worker.apply(changed(one, rules=EGRESS))
    assert not second.ping("10.9.0.11")
    worker("plug", one)
    assert not second.ping("10.9.0.11")
    # unplugged: tap, bridge, chains gone
    worker("unplug", one.id)
    worker("unplug", two.id)
    worker("unplug", two.id)
    assert worker("list", "port") == []
    assert "brq" not in host.sh("ip -br link")
    assert "tap" not in host.sh("nft list ruleset")


def test_a_removed_rule_cuts_its_connections(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=[*EGRESS])
    two = port("two", "10.9.0.12", rules=[*EGRESS, tcp(80), PING])
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    worker("plug", two)
    for guest in (first, second):
        guest.set_address(SUBNET)
    second.sh("setsid busybox nc -l -p 80 -e cat >/dev/null 2>&1 & sleep 0.2")
    talk = (
        "mkfifo /run/in; (exec 3>/run/in; echo a >&3; sleep 1.5; echo b >&3; sleep 1) & "
        "busybox timeout 4 busybox nc 10.9.0.12 80 </run/in; rm /run/in"
    )
    assert first.sh(talk, check=False).split()[1:] == ["a", "b"]
    second.sh("setsid busybox nc -l -p 80 -e cat >/dev/null 2>&1 & sleep 0.2")
    running = subprocess.Popen(
        [*host.enter, "ip", "netns", "exec", first.ns, "sh", "-c", talk], stdout=subprocess.PIPE, text=True, env=ENV
    )
    time.sleep(0.8)
    worker.apply(changed(two, rules=[*EGRESS, PING]))
    assert running.communicate()[0].split() == ["a"]
    assert first.ping("10.9.0.12")


def test_remote_groups_follow_their_members(host: Host) -> None:
    worker = host.start()
    group = "web servers"
    rule = FirewallRule(direction="ingress", ethertype="IPv4", protocol="icmp", remote_group_id=group)
    one = port("one", "10.9.0.11", rules=EGRESS)
    two = port("two", "10.9.0.12", rules=[*EGRESS, rule], groups={group: ["10.9.0.99"]})
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    worker("plug", two)
    for guest in (first, second):
        guest.set_address(SUBNET)
    assert not first.ping("10.9.0.12")
    two = changed(two, groups={group: ["10.9.0.99", "10.9.0.11"]})
    worker.apply(two)
    assert first.ping("10.9.0.12")
    # only the set was touched
    assert [c for c in worker.changes() if "chain" in c[-1]] == []
    two = changed(two, groups={group: []})
    worker.apply(two)
    assert not first.ping("10.9.0.12")
    worker.apply(changed(two, rules=EGRESS, groups={}))
    assert "set g4" not in host.sh("nft list ruleset")


def test_spoofing_is_stopped_and_allowed_pairs_honoured(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=EGRESS)
    two = port("two", "10.9.0.12", port_security_enabled=False)
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    worker("plug", two)
    for guest in (first, second):
        guest.set_address(SUBNET)
    assert first.ping("10.9.0.12")
    first.sh("ip addr add 10.9.0.66/24 dev eth0")
    assert not first.good("ping -c1 -W1 -I 10.9.0.66 10.9.0.12")
    second.sh("ip neigh flush all")
    assert not second.ping("10.9.0.66")
    worker.apply(changed(one, allowed_address_pairs=[{"ip_address": "10.9.0.64/30"}]))
    assert first.good("ping -c1 -W1 -I 10.9.0.66 10.9.0.12")
    first.sh("ip link set eth0 address fa:16:3e:99:99:99")
    second.sh("ip neigh flush all")
    assert not first.ping("10.9.0.12")
    # without port security anything goes
    worker.apply(changed(changed(one, port_security_enabled=False)))
    assert first.ping("10.9.0.12")
    second.sh("ip link set eth0 address fa:16:3e:99:99:98; ip addr add 10.9.0.67/24 dev eth0")
    first.sh("ip neigh flush all")
    assert second.good("ping -c1 -W1 -I 10.9.0.67 10.9.0.66")


def test_ipv6_neighbours_and_router_advertisements(host: Host) -> None:
    worker = host.start()
    ping6 = FirewallRule(direction="ingress", ethertype="IPv6", protocol="ipv6-icmp", port_range_min=128)
    six = [FixedIp(subnet_id="six", ip_address="fd00:9::11")]
    one = port("one", None, fixed_ips=six, rules=EGRESS)
    two = port("two", None, fixed_ips=[FixedIp(subnet_id="six", ip_address="fd00:9::12")], rules=[*EGRESS, ping6])
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    worker("plug", two)
    first.sh("ip addr add fd00:9::11/64 dev eth0 nodad")
    second.sh("ip addr add fd00:9::12/64 dev eth0 nodad")
    assert first.ping("fd00:9::12")
    assert not second.ping("fd00:9::11")
    first.sh("ip addr add fd00:9::66/64 dev eth0 nodad")
    assert not first.good("ping -c1 -W1 -I fd00:9::66 fd00:9::12")
    # a rogue router: its advertisement does not arrive
    second.sh("sysctl -qw net.ipv6.conf.eth0.accept_ra=2")
    host.sh(
        "printf 'interface eth0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;"
        " prefix fd00:bad::/64 { }; };' >/run/ra.conf"
    )
    first.sh("sysctl -qw net.ipv6.conf.all.forwarding=1; radvd -C /run/ra.conf -p /run/ra.pid; sleep 5")
    assert "fd00:bad" not in second.sh("ip -6 addr")
    first.sh("kill $(cat /run/ra.pid)")


def test_a_guest_does_not_reach_the_host(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=EGRESS)
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(SUBNET)
    bridge_mac = host.sh(f"cat /sys/class/net/brq{NET[:11]}/address").strip()
    guest.sh(f"ip neigh replace 10.9.0.1 lladdr {bridge_mac} dev eth0")
    assert not guest.ping("10.77.0.1")
    assert host.sh(f"ip -6 addr show dev brq{NET[:11]}").strip() == ""
    # the same when the bridge was there before
    host.sh(f"ip netns del {guest.ns}")
    worker("unplug", one.id)
    for generation in (1, 3):
        worker.apply(network_doc([one], generation=generation))
        worker("remove", "network", NET, generation + 1)
        assert "brq" not in host.sh("ip -br link")
    worker.apply(network_doc([one], generation=5))
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(SUBNET)
    bridge_mac = host.sh(f"cat /sys/class/net/brq{NET[:11]}/address").strip()
    guest.sh(f"ip neigh replace 10.9.0.1 lladdr {bridge_mac} dev eth0")
    assert guest.ping("10.9.0.2")
    assert not guest.ping("10.77.0.1")


def test_dhcp_gives_address_mtu_routes_names(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=EGRESS)
    guest = Guest(host, one)
    worker("plug", one)
    subnet = msgspec.structs.replace(
        SUBNET, dns_nameservers=["9.9.9.9"], host_routes=[Route(destination="10.50.0.0/16", nexthop="10.9.0.7")]
    )
    doc = network_doc([one], subnets=[subnet])
    worker.apply(doc)
    took = worker.seconds
    lease = guest.dhcp()
    assert lease["ip"] == "10.9.0.11"
    assert lease["mask"] == "24"
    assert lease["mtu"] == "1442"
    assert lease["router"] == "10.9.0.1"
    assert lease["dns"] == "9.9.9.9"
    assert lease["domain"] == "openstacklocal"
    assert lease["hostname"] == "guest0"
    assert lease["serverid"] == "10.9.0.2"
    assert lease["staticroutes"] == "10.50.0.0/16 10.9.0.7 169.254.169.254/32 10.9.0.2 0.0.0.0/0 10.9.0.1"
    worker.apply(doc)
    assert worker.changes() == []
    assert took < 2
    # one more host and an option: reloaded, not restarted
    pid = host.sh(f"cat /run/cumulet-test/dhcp/{NET}/pid")
    options = [{"opt_name": "bootfile-name", "opt_value": "boot.img"}, {"opt_name": "150", "opt_value": "10.9.0.3"}]
    doc = changed(doc, hosts=[msgspec.structs.replace(doc.hosts[0], extra_dhcp_opts=options)])
    worker.apply(doc)
    assert host.sh(f"cat /run/cumulet-test/dhcp/{NET}/pid") == pid
    time.sleep(0.2)
    assert guest.dhcp("-O", "bootfile")["bootfile"] == "boot.img"
    # the name server of the network
    assert "10.9.0.11" in guest.sh("ip addr add 10.9.0.11/24 dev eth0; busybox nslookup guest0.openstacklocal 10.9.0.2")
    # an older generation is ignored
    worker.apply(msgspec.structs.replace(doc, generation=1, hosts=[]))
    assert guest.dhcp()["ip"] == "10.9.0.11"
    # an address given to another guest while its lease still runs
    other = port("other", "10.9.0.11", rules=EGRESS)
    newcomer = Guest(host, other)
    worker("plug", other)
    doc = changed(
        doc, hosts=[DhcpHost(port_id=other.id, mac_address=other.mac_address, hostname="n", fixed_ips=other.fixed_ips)]
    )
    worker.apply(doc)
    assert newcomer.dhcp()["ip"] == "10.9.0.11"
    worker("remove", "network", NET, doc.generation)
    assert worker("list", "network") == []
    assert "qdhcp" not in host.sh("ip netns")
    assert not host.good("pgrep dnsmasq")


def test_rogue_dhcp_server_is_not_heard(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=EGRESS, dhcp_servers=["10.9.0.2"])
    two = port("two", "10.9.0.12", rules=EGRESS)
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    worker("plug", two)
    second.set_address(SUBNET)
    second.sh(
        "dnsmasq --conf-file= --port=0 --interface=eth0 --bind-interfaces --pid-file=/run/rogue.pid"
        " --dhcp-range=10.9.0.100,10.9.0.110 --dhcp-leasefile=/run/rogue.leases --dhcp-authoritative"
    )
    assert first.dhcp() == {}
    second.sh("kill $(cat /run/rogue.pid)")


def test_metadata_in_both_forms(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=EGRESS)
    guest = Guest(host, one)
    worker("plug", one)
    worker.apply(metadata_doc())
    worker.apply(network_doc([one]))
    guest.set_address(SUBNET)
    guest.sh("ip route add 169.254.169.254/32 via 10.9.0.2")
    get = "busybox wget -q -O - http://169.254.169.254"
    assert '"uuid": "server-0"' in guest.sh(f"{get}/openstack/latest/meta_data.json")
    assert guest.sh(f"{get}/openstack/latest/user_data") == "hello\n"
    assert guest.sh(f"{get}/latest/meta-data/instance-id") == "i-00000001"
    assert guest.sh(f"{get}/latest/meta-data/public-keys/") == "0=key"
    assert guest.sh(f"{get}/2009-04-04/meta-data/public-keys/0/openssh-key") == "ssh"
    assert guest.sh(f"{get}/openstack").split()[-1] == "latest"
    assert not guest.good(f"{get}/openstack/latest/nothing")
    # another address is another server: none
    guest.sh("ip addr flush dev eth0; ip addr add 10.9.0.12/24 dev eth0; ip route add 169.254.169.254/32 via 10.9.0.2")
    assert not guest.good(f"{get}/latest/meta-data/instance-id")
    # a restarted agent answers from what it kept, without being told anything
    guest.set_address(SUBNET)
    guest.sh("ip route replace 169.254.169.254/32 via 10.9.0.2")
    worker = host.restart()
    assert guest.sh(f"{get}/latest/meta-data/instance-id") == "i-00000001"
    worker("remove", "network", NET, 1)
    assert "qdhcp" not in host.sh("ip netns")
    assert f"tap{port('dhcp', None).id[:11]}" not in host.sh("ip -br link")


@pytest.fixture
def external(host: Host) -> str:
    """An outside world: the other pretend hosts' provider network by eth2 in br-ex; the underlay's sw-eth2 answers."""
    host.sh("ip link add br-ex type bridge; ip link set eth2 master br-ex; ip link set br-ex up; ip link set eth2 up")
    subprocess.run(
        ["ip", "netns", "exec", f"{ENV['TH_PREFIX']}-ul", "ip", "addr", "replace", "172.31.9.1/24", "dev", "sw-eth2"],
        check=True,
    )
    return "172.31.9.1"


def outside(script: str) -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", f"{ENV['TH_PREFIX']}-ul", "sh", "-c", script], capture_output=True, check=False
    )
    return done.returncode == 0


def test_router_translates_and_floating_ips_come_and_go(host: Host, external: str) -> None:
    worker = host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING, tcp(80)])
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(SUBNET)
    server(guest)
    doc = router_doc()
    worker.apply(doc)
    assert worker.seconds < 2
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


def test_kill_and_restart_cut_no_packet(host: Host, external: str) -> None:
    worker = host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    guest = Guest(host, one)
    docs = [one, network_doc([one]), router_doc(
        floating_ips=[FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.11")]
    )]  # fmt: skip
    for doc in docs:
        worker.apply(doc)
    guest.set_address(SUBNET)
    pid = host.sh(f"cat /run/cumulet-test/dhcp/{NET}/pid")
    assert guest.ping(external)
    pinging = subprocess.Popen(
        [*host.enter, "ip", "netns", "exec", guest.ns, "ping", "-q", "-i0.01", "-c250", "-W1", external],
        stdout=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip
    time.sleep(0.3)
    worker = host.restart()
    for doc in docs:
        worker.apply(doc)
        assert [c for c in worker.changes() if c[0] in ("ip", "dnsmasq")] == []
    out = pinging.communicate()[0]
    assert "250 received" in out, out
    assert host.sh(f"cat /run/cumulet-test/dhcp/{NET}/pid") == pid
    # everything again after someone threw our tables away
    host.sh("nft flush ruleset")
    for doc in docs:
        worker.apply(doc)
    assert f"o-{one.tap}" in host.sh("nft list ruleset")
    assert "cumulet_track" in host.sh("nft list tables")
    assert guest.ping(external)


def test_cleanup_leaves_nothing(host: Host, external: str) -> None:
    host.sh("ip link add foreign0 type bridge; ip netns add qdhcp-foreign; nft add table inet foreign")
    before = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    worker = host.start(bridge_mappings={"public": "br-ex"})
    one = port("one", "10.9.0.11", rules=EGRESS)
    worker.apply(one)
    worker.apply(network_doc([one], subnets=[SUBNET]))
    worker.apply(router_doc())
    assert host.good("pgrep dnsmasq")
    assert host.sh("nft list tables") != "table inet foreign\n"
    worker("cleanup_all")
    after = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    assert after == before
    assert not host.good("pgrep dnsmasq")
    assert host.sh("find /run/cumulet-test /var/lib/cumulet-test -type f") == ""
    worker("cleanup_all")
    # and it can begin again
    worker = host.restart()
    worker.apply(one)
    assert worker("list", "port") == [one.id]


def test_a_document_for_an_unknown_physical_network_says_so(host: Host) -> None:
    worker = host.start()
    with pytest.raises(Failed, match="bridge_mappings") as caught:
        worker.apply(port("one", "10.9.0.11", segment=FLAT))
    assert caught.value.code == "no-physical-network"
    assert "tap" not in host.sh("ip -br link")


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


def test_vxlan_between_two_hosts(hosts: list[Host]) -> None:
    segment = Segment(network_type="vxlan", segmentation_id=5001, mtu=1450)
    workers = [h.start() for h in hosts]
    ports = [
        port(
            f"on {h.name}", f"10.9.0.{20 + h.index}", rules=[*EGRESS, PING],
            segment=msgspec.structs.replace(segment, peers=["10.78.0.1", "10.78.0.2"]),
        )
        for h in hosts
    ]  # fmt: skip
    guests = [Guest(h, p) for h, p in zip(hosts, ports, strict=True)]
    for worker, doc, guest in zip(workers, ports, guests, strict=True):
        worker("plug", doc)
        guest.set_address(SUBNET)
    assert guests[0].ping("10.9.0.22")
    workers[0].apply(network_doc(ports, segment=ports[0].segment))
    assert guests[1].dhcp()["ip"] == "10.9.0.22"
    assert guests[0].good("ping -c1 -W1 -M do -s 1422 10.9.0.22")
    # the peer goes
    workers[0].apply(changed(ports[0], segment=segment))
    workers[0].apply(changed(network_doc(ports, segment=segment)))
    assert "dst" not in hosts[0].sh("bridge fdb show dev vxlan-5001 | grep 00:00:00:00:00:00 || true")
    workers[0]("remove", "network", NET, 9)
    workers[0]("unplug", ports[0].id)
    assert "vxlan" not in hosts[0].sh("ip -br link")


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
    _until(lambda: own in guest.sh("ip -6 addr show dev eth0"))
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
    _until(lambda: "fd00:9::77" in second.sh(f"{sys.executable} {HERE}/solicit6.py {two.mac_address}"))
    worker("remove", "router", doc.id, 99)
    assert not host.good("pgrep radvd")


def test_a_down_port_is_down(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING], admin_state_up=False)
    guest = Guest(host, one)
    worker("plug", one)
    assert "state DOWN" in host.sh(f"ip link show {one.tap}")
    worker.apply(changed(one, admin_state_up=True))
    assert "state DOWN" not in host.sh(f"ip link show {one.tap}")
    assert guest.good("true")


def test_vlan_or_a_reason(host: Host) -> None:
    """Where the kernel has no 8021q the document fails with the reason; else ``<nic>.<id>`` joins the bridge."""
    worker = host.start(bridge_mappings={"wire": "eth2"})
    vlan = Segment(network_type="vlan", physical_network="wire", segmentation_id=101, mtu=1450)
    if host.good("ip link add link eth2 name probe type vlan id 5 && ip link del probe"):
        worker.apply(port("one", "10.9.0.11", segment=vlan))
        assert f"brq{NET[:11]}" in host.sh("ip -o link show eth2.101")
    else:
        with pytest.raises(Failed, match="8021q"):
            worker.apply(port("one", "10.9.0.11", segment=vlan))
    # a NIC that carries the host's address is not taken away from it
    host.sh("ip addr add 192.0.2.1/24 dev eth2")
    with pytest.raises(Failed, match=r"192\.0\.2\.1"):
        worker.apply(port("two", "10.9.0.12", network_id=uuid("flat"),
                          segment=Segment(network_type="flat", physical_network="wire")))  # fmt: skip


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


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_it_gets_there_and_leaves_nothing(host: Host, external: str, seed: int) -> None:
    import random

    chance = random.Random(seed)
    before = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    config = {"bridge_mappings": {"public": "br-ex"}}
    worker = host.start(**config)
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    docs = [one, network_doc([one]), router_doc()]
    for doc in docs:
        worker.kill_soon(chance.uniform(0.0, 0.12))
        worker.try_call("apply", doc.kind, doc)
        worker = host.restart()
    for doc in docs:
        worker.apply(doc)
    guest = Guest(host, one, adopt=True)
    assert guest.dhcp()["ip"] == "10.9.0.11"
    guest.set_address(SUBNET)
    assert guest.ping(external)
    for kind, id in (("network", NET), ("router", docs[2].id), ("port", one.id)):
        worker.kill_soon(chance.uniform(0.0, 0.12))
        worker.try_call("remove", kind, id, 9)
        worker = host.restart()
        worker("remove", kind, id, 9)
    worker("cleanup_all")
    host.sh(f"ip netns del {guest.ns}")
    after = host.sh("ip -br link | cut -d@ -f1 | awk '{print $1}' | sort; ip netns list; nft list tables")
    assert after == before
    assert not host.good("pgrep dnsmasq")


def test_a_foreign_firewall_is_told_and_its_cure_cures(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    two = port("two", "10.9.0.12", rules=[*EGRESS, PING])
    guests = [Guest(host, p) for p in (one, two)]
    for doc, guest in zip((one, two), guests, strict=True):
        worker("plug", doc)
        guest.set_address(SUBNET)
    assert worker("facts")["warnings"] == []
    host.sh("nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'")
    # translation by others does not touch bridged packets, dropping by others does
    host.sh("nft 'table ip nat { chain POST { type nat hook postrouting priority 100; masquerade; }; }'")
    assert not guests[0].ping("10.9.0.12")
    (warning,) = host.restart()("facts")["warnings"]
    assert warning["message"].startswith("ip filter FORWARD drops")
    host.sh("; ".join(f"nft '{line.removeprefix('nft ')}'" for line in warning["cure"].split("; ")))
    assert guests[0].ping("10.9.0.12")


def _until(true: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
