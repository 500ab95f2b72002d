"""One host, Linux bridges: guests, security groups, DHCP, metadata, physical networks."""

import select
import subprocess
import time

import msgspec
import pytest

from cumulet.agent.contract import (
    DhcpHost,
    FirewallRule,
    FixedIp,
    GroupDoc,
    Route,
    Segment,
)
from tests.support.patience import eventually

from .conftest import ENV, NET, SUBNET, Failed, Guest, Host, port, uuid
from .documents import (
    EGRESS,
    FLAT,
    PING,
    changed,
    metadata_doc,
    network_doc,
    reaches,
    server,
    tcp,
)

pytestmark = pytest.mark.host


def test_two_guests_reach_each_other_as_their_groups_say(host: Host) -> None:
    worker = host.start()
    one = port("one", "10.9.0.11", rules=[*EGRESS, PING])
    two = port("two", "10.9.0.12", rules=[*EGRESS, tcp(80)])
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
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
    talking = ["busybox", "timeout", "120", "busybox", "nc", "10.9.0.12", "80"]
    connect = [*host.enter, "ip", "netns", "exec", first.ns, *talking]
    for cut in (False, True):
        second.sh("setsid busybox nc -l -p 80 -e cat >/dev/null 2>&1 &")
        eventually(lambda: second.good("ss -Hltn sport = :80 | grep ."))
        with subprocess.Popen(connect, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=ENV) as talk:
            assert talk.stdin is not None
            assert talk.stdout is not None
            talk.stdin.write(b"a\n")
            assert talk.stdout.readline() == b"a\n"
            if cut:
                worker.apply(changed(two, rules=[*EGRESS, PING]))
            talk.stdin.write(b"b\n")
            answered, _, _ = select.select([talk.stdout], [], [], 2 if cut else 60)
            assert (talk.stdout.readline() if answered else b"") == (b"" if cut else b"b\n")
            talk.kill()
    assert first.ping("10.9.0.12")


def test_remote_groups_follow_their_members(host: Host) -> None:
    worker = host.start()
    group = "web servers"
    rule = FirewallRule(direction="ingress", ethertype="IPv4", protocol="icmp", remote_group_id=group)
    one = port("one", "10.9.0.11", rules=EGRESS)
    two = port("two", "10.9.0.12", rules=[*EGRESS, rule])
    who = GroupDoc(id=group, generation=1, members=["10.9.0.99"])
    first, second = Guest(host, one), Guest(host, two)
    worker("plug", one)
    worker("plug", two)
    worker.apply(who)
    for guest in (first, second):
        guest.set_address(SUBNET)
    assert not first.ping("10.9.0.12")
    who = changed(who, members=["10.9.0.99", "10.9.0.11"])
    worker.apply(who)
    assert first.ping("10.9.0.12")
    # only the set was touched
    assert [c for c in worker.changes() if "chain" in c[-1]] == []
    who = changed(who, members=[])
    worker.apply(who)
    assert not first.ping("10.9.0.12")
    worker.apply(changed(two, rules=EGRESS))
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
    post = "busybox wget -q -O - --post-data sealed http://169.254.169.254"
    assert guest.good(f"{post}/openstack/2013-10-17/password")
    assert not guest.good(f"{post}/openstack/2013-10-17/password")  # 409: it has one
    assert not guest.good(f"{post}/openstack/latest/meta_data.json")
    assert worker("asked")[0] == ["password", "server-0", "sealed"]
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


def test_a_document_for_an_unknown_physical_network_says_so(host: Host) -> None:
    worker = host.start()
    with pytest.raises(Failed, match="bridge_mappings") as caught:
        worker.apply(port("one", "10.9.0.11", segment=FLAT))
    assert caught.value.code == "no-physical-network"
    assert "tap" not in host.sh("ip -br link")


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
