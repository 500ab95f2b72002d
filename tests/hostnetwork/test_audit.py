"""What an audit finds on a real host when things are taken away or planted by hand, and that it is mended."""

import shutil
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import FirewallRule, FloatingIpDoc, GroupDoc, NetworkDoc, PortDoc, RouterDoc, Segment

from .conftest import HERE, NET, SUBNET, Guest, Host, Worker, port
from .documents import EGRESS, EXTERNAL, PING, network_doc, router_doc, until

pytestmark = pytest.mark.host
TUNNEL = Segment(network_type="vxlan", segmentation_id=5001, mtu=1450, peers=["10.78.0.1", "10.78.0.2"])
FLOATING = FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.11")
GROUP = GroupDoc(id="some-group", generation=1, members=["10.9.0.77"])
FROM_GROUP = FirewallRule(direction="ingress", ethertype="IPv4", protocol="tcp", remote_group_id=GROUP.id)
STRANGER = "99999999-9999-4999-8999-999999999999"
DHCP, ROUTER = f"/run/cumulet-test/dhcp/{NET}", router_doc().id
IN_DHCP, IN_ROUTER = f"ip netns exec qdhcp-{NET}", f"ip netns exec qrouter-{ROUTER}"


class Documented:
    """A host with one guest's port, its network and a router, and an auditor who knows nothing else."""

    def __init__(self, worker: Worker, segment: Segment) -> None:
        self.worker = worker
        self.port: PortDoc = port("one", "10.9.0.11", rules=[*EGRESS, PING, FROM_GROUP], segment=segment)
        self.network: NetworkDoc = network_doc([self.port], segment)
        made = router_doc(floating_ips=[FLOATING])
        (leg,) = made.interfaces
        inside = msgspec.structs.replace(leg, port=msgspec.structs.replace(leg.port, segment=segment))
        self.router: RouterDoc = msgspec.structs.replace(made, interfaces=[inside])
        self.documents: dict[str, list[Any]] = {
            "port": [self.port], "group": [GROUP], "network": [self.network], "router": [self.router]
        }  # fmt: skip
        worker.apply(GROUP)
        worker("plug", self.port)
        worker.apply(self.network)
        worker.apply(self.router)

    def audit(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.worker("audit", msgspec.to_builtins(self.documents)).get("drift", [])
        return found

    def mend(self, one: dict[str, Any]) -> None:
        """As the agent does."""
        document = one.get("document")
        item = {"kind": one["kind"], "id": one["id"], "problem": one["problem"], "generation": 1 << 62}
        if document is None:
            assert self.worker("mend", item), one
            return
        self.worker("distrust", item | {"document": document})
        kind, id = document
        (doc,) = [doc for doc in self.documents[kind] if doc.id == id]
        self.worker("plug" if kind == "port" else "apply", *([doc] if kind == "port" else [kind, doc]))

    def mended(self, found: list[dict[str, Any]]) -> None:
        """What missed or differed first, as the doctor does; what was over by then is left."""
        done = 0
        for one in sorted(found, key=lambda one: one["problem"] == "unknown"):
            if not done or told([one])[0] in told(self.audit()):
                self.mend(one)
                done += 1
        assert self.audit() == []


def told(found: list[dict[str, Any]]) -> list[str]:
    return [f"{one['kind']}-{one['problem']} {one['id']}" for one in found]


def planted(on: Documented, host: Host, plants: dict[str, tuple[str, str]]) -> None:
    """Each command is found as what it is (alone, unless it takes others along: ``…``), and mended; the next audit has
    nothing to say."""
    assert on.audit() == []
    for name, (command, expected) in plants.items():
        host.sh(command)
        found = on.audit()
        assert [one for one in told(found) if one.startswith(expected)], f"{name}: {found}"
        assert len(found) == 1 or name.endswith("…"), f"{name}: {found}"
        on.mended(found)


def network_plants(tap: str, guest: PortDoc) -> dict[str, tuple[str, str]]:
    """Whatever the mechanism."""
    qg = f"qg-{router_doc().gateway.port.id[:11]}"  # type: ignore[union-attr]
    qr = f"qr-{router_doc().interfaces[0].port.id[:11]}"
    sg = "bridge cumulet_sg"
    return {
        "a filter is emptied": (f"nft flush chain {sg} o-{tap}", f"chain-missing {guest.id}"),
        "a rule lets everything in": (f"nft insert rule {sg} i-{tap} accept", f"chain-different {guest.id}"),
        "a rule is gone": (
            f"nft delete rule {sg} o-{tap} handle "
            f"$(nft -a list chain {sg} o-{tap} | grep return | grep -m1 -o 'handle [0-9]*$' | cut -d' ' -f2)",
            f"chain-different {guest.id}",
        ),
        "the way to a filter is gone": (
            f"nft delete element {sg} to_port '{{ \"{tap}\" : goto i-{tap} }}'", f"chain-different {guest.id}"
        ),
        "a chain of nobody": (f"nft add chain {sg} evil; nft add rule {sg} evil accept", "chain-unknown evil"),
        "a filter of no port": (
            f"nft add chain {sg} o-tapgone; nft add rule {sg} o-tapgone drop comment '\"cumulet x\"'",
            "chain-unknown tapgone",
        ),
        "all filters are passed over": (f"nft flush chain {sg} forward", "filter-table-different cumulet_sg"),
        "connections are not tracked": ("nft flush table inet cumulet_track", "filter-table-different cumulet_track"),
        "the host is reachable": ("nft delete table netdev cumulet_guard", "filter-table-different cumulet_guard"),
        "a member of a group": (
            f"nft add element {sg} $(nft list sets bridge | grep -o 'g4-[0-9a-f]*') '{{ 10.9.0.66 }}'",
            f"group-different {GROUP.id}",
        ),
        "another DHCP host": (f"echo fa:16:3e:de:ad:00,evil,10.9.0.66 >> {DHCP}/host", f"dhcp-host-different {NET}"),
        "other DHCP options": (f"sed -i s/10.9.0.1/10.9.0.66/ {DHCP}/opts", f"dhcp-host-different {NET}"),
        "an old lease": (
            f"echo '1000 fa:16:3e:00:00:98 10.9.0.98 old *' >> {DHCP}/leases",
            f"lease-expired {NET}/fa:16:3e:00:00:98",
        ),
        "dnsmasq is dead": (
            f"pid=$(cat {DHCP}/pid); kill -9 $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done",
            f"dnsmasq-missing {NET}",
        ),
        "a stale pid file": (f"echo 1 > {DHCP}/pid", f"dnsmasq-missing {NET}"),
        "dnsmasq started otherwise": (
            f"kill $(cat {DHCP}/pid); sleep 0.3; {IN_DHCP} dnsmasq --conf-file= --pid-file={DHCP}/pid"
            f" --bind-interfaces --except-interface=lo --dhcp-range=10.9.0.100,10.9.0.200",
            f"dnsmasq-different {NET}",
        ),
        "a DHCP server's address": (
            f"{IN_DHCP} ip addr add 10.9.0.3/24 dev $({IN_DHCP} ls /proc/sys/net/ipv4/neigh | grep ns-)",
            f"namespace-different qdhcp-{NET}",
        ),
        "a router does not forward": (
            f"{IN_ROUTER} sysctl -qw net.ipv4.ip_forward=0", f"namespace-different qrouter-{ROUTER}"
        ),
        "a router's way out": (f"{IN_ROUTER} ip route del default", f"namespace-different qrouter-{ROUTER}"),
        "a route to nowhere": (
            f"{IN_ROUTER} ip route add 192.0.2.0/24 via 10.9.0.66 proto static", f"namespace-different qrouter-{ROUTER}"
        ),
        "another gateway's MAC": (
            f"{IN_ROUTER} ip link set {qr} address fa:16:3e:00:00:66", f"namespace-different qrouter-{ROUTER}"
        ),
        "a floating IP's address": (
            f"{IN_ROUTER} ip addr del 172.31.9.30/32 dev {qg}", f"namespace-different qrouter-{ROUTER}"
        ),
        "a floating IP goes elsewhere": (
            f"{IN_ROUTER} nft 'delete element ip cumulet_router floating_in {{ 172.31.9.30 : 10.9.0.11 }};"
            " add element ip cumulet_router floating_in { 172.31.9.30 : 10.9.0.66 }'",
            f"translation-different {ROUTER}",
        ),
        "no translation out": (
            f"{IN_ROUTER} nft flush chain ip cumulet_router postrouting", f"translation-different {ROUTER}"
        ),
        "no translation at all": (f"{IN_ROUTER} nft delete table ip cumulet_router", f"translation-different {ROUTER}"),
        "a namespace of nobody": (
            f"ip netns add qrouter-{STRANGER}; touch /run/cumulet-test/namespaces/qrouter-{STRANGER}",
            f"namespace-unknown qrouter-{STRANGER}",
        ),
        "a device of nobody": (
            f"ip link add tap99999999-99 type veth; ip link set tap99999999-99 alias cumulet:port:{STRANGER}",
            "device-unknown tap99999999-99",
        ),
        "a bridge of no network": (
            f"ip link add brq99999999-99 type bridge; ip link set brq99999999-99 alias cumulet:network:{STRANGER}",
            "device-unknown brq99999999-99",
        ),
        "a tap is down": (f"ip link set {tap} down", f"forwarding-different {guest.id}"),
        "a tap is off its bridge": (f"ip link set {tap} nomaster", f"forwarding-different {guest.id}"),
        "a router's leg is cut…": (
            f"ip link del tap{router_doc().interfaces[0].port.id[:11]}", f"namespace-different qrouter-{ROUTER}"
        ),
        "a namespace is gone…": (
            f"kill -9 $(cat {DHCP}/pid); ip netns del qdhcp-{NET}", f"namespace-missing qdhcp-{NET}"
        ),
    }  # fmt: skip


def test_linux_bridges(host: Host, external: str) -> None:
    on = Documented(host.start(bridge_mappings={"public": "br-ex"}), TUNNEL)
    guest, brq = on.port, f"brq{NET[:11]}"
    fdb = "vxlan-5001 00:00:00:00:00:00"
    plants = network_plants(guest.tap, guest) | {
        "an entry to a stranger": (
            "bridge fdb append 00:00:00:00:00:00 dev vxlan-5001 dst 192.0.2.66",
            f"forwarding-unknown {fdb} 192.0.2.66",
        ),
        "one guest's frames to a stranger": (
            "bridge fdb append fa:16:3e:00:00:66 dev vxlan-5001 dst 192.0.2.66",
            "forwarding-unknown vxlan-5001 fa:16:3e:00:00:66 192.0.2.66",
        ),
        "no entry to a peer": (
            "bridge fdb del 00:00:00:00:00:00 dev vxlan-5001 dst 10.78.0.2",
            f"forwarding-missing {fdb} 10.78.0.2",
        ),
        "a tunnel is gone": ("ip link del vxlan-5001", "tunnel-missing vxlan-5001"),
        "a tunnel is off its bridge": ("ip link set vxlan-5001 nomaster", "tunnel-different vxlan-5001"),
        "a stranger on the bridge": (
            f"ip link add evil type veth; ip link set evil master {brq}", "device-unknown evil"
        ),
        "filters are blind": (
            f"echo 0 > /sys/class/net/{brq}/bridge/nf_call_iptables", f"filter-table-different {brq}"
        ),
    }  # fmt: skip
    planted(on, host, plants)
    assert host.good("ip link show evil"), "what is not ours is taken off the bridge, and no more"


@pytest.fixture
def switched(host: Host) -> Iterator[Host]:
    host.sh(
        f"bash {HERE}/ovs-start.sh; ip addr replace 10.78.0.1/24 dev eth1; ip addr flush dev eth2; ip link set eth2 up;"
        "ovs-vsctl add-br br-ex -- set bridge br-ex datapath_type=netdev -- add-port br-ex eth2"
    )
    yield host
    host.stop()
    host.sh(
        f"for b in $(ovs-vsctl list-br); do ovs-vsctl del-br $b; done; bash {HERE}/ovs-start.sh stop;"
        "ip addr replace 10.78.0.1/24 dev eth1"
    )


@pytest.mark.skipif(not shutil.which("ovs-vswitchd"), reason="Open vSwitch is not installed")
def test_open_vswitch(switched: Host) -> None:
    host = switched
    settings = {"mechanism": "openvswitch", "tunnel_nic": "eth1", "bridge_mappings": {"public": "br-ex"}}
    on = Documented(host.start(**settings), TUNNEL)
    guest = on.port
    qvo, qbr = f"qvo{guest.id[:11]}", f"qbr{guest.id[:11]}"
    tag = host.sh(f"ovs-vsctl get port {qvo} tag").strip()
    ofctl = "ovs-ofctl -O OpenFlow14"
    plants = {
        "a flow is gone": (f"{ofctl} del-flows br-tun table=22,dl_vlan={tag}", "flow-missing br-tun table=22"),
        "all flows of a bridge but one…": (
            f"{ofctl} del-flows br-ex; {ofctl} add-flow br-ex priority=0,actions=NORMAL", "flow-missing br-ex "
        ),
        "a flow goes elsewhere": (
            f"{ofctl} --strict mod-flows br-tun table=22,priority=1,dl_vlan={tag},actions=drop",
            "flow-different br-tun table=22",
        ),
        "a flow of nobody": (
            f"{ofctl} add-flow br-int cookie=0x66,priority=100,dl_dst=fa:16:3e:00:00:66,actions=drop",
            "flow-unknown br-int priority=100,dl_dst=fa:16:3e:00:00:66",
        ),
        "another tag": (f"ovs-vsctl set port {qvo} tag=99", f"forwarding-different {guest.id}"),
        "no tag": (f"ovs-vsctl clear port {qvo} tag", f"forwarding-different {guest.id}"),
        "not in the switch": (f"ovs-vsctl del-port {qvo}", f"forwarding-different {guest.id}"),
        "a stranger in the switch": (
            "ip link add evil type veth peer name evil2; ovs-vsctl add-port br-int evil", "switch-port-unknown evil"
        ),
        "a tunnel is gone": ("ovs-vsctl del-port vxlan-0a4e0002", "tunnel-missing vxlan-0a4e0002"),
        "a tunnel leads elsewhere": (
            "ovs-vsctl set interface vxlan-0a4e0002 options:remote_ip=192.0.2.66", "tunnel-different vxlan-0a4e0002"
        ),
        "a tunnel to a stranger": (
            "ovs-vsctl add-port br-tun vxlan-c0000242 -- set interface vxlan-c0000242 type=vxlan"
            " options:remote_ip=192.0.2.66 options:key=flow",
            "tunnel-unknown vxlan-c0000242",
        ),
        "bridges that are not joined…": (
            "ovs-vsctl del-port patch-tun", "switch-missing patch-tun"
        ),
        "a patch that leads elsewhere": (
            "ovs-vsctl set interface phy-br-ex options:peer=elsewhere", "switch-different phy-br-ex"
        ),
        "a bridge that forwards as it likes…": (
            "ovs-vsctl set bridge br-int fail_mode=standalone", "switch-different br-int"
        ),
        "a stranger on a port's bridge": (
            f"ip link add evil3 type veth; ip link set evil3 master {qbr}", "device-unknown evil3"
        ),
        "a port's bridge without a port": (
            f"ip link add qbr99999999-99 type bridge; ip link set qbr99999999-99 alias cumulet:hybrid:{STRANGER}",
            "device-unknown qbr99999999-99",
        ),
        "half of a port's wire": (f"ip link set qvb{guest.id[:11]} down", f"forwarding-different {guest.id}"),
        "br-int is gone…": ("ovs-vsctl del-br br-int", "switch-missing br-int"),
    }  # fmt: skip
    planted(on, host, plants)


def test_what_packets_taught_the_switch_is_no_drift_and_mending_loses_none(switched: Host, hosts: list[Host]) -> None:
    """A ping through the switch goes on while flows of others are mended."""
    host = switched
    settings = {"mechanism": "openvswitch", "tunnel_nic": "eth1", "bridge_mappings": {"public": "br-ex"}}
    on = Documented(host.start(**settings), TUNNEL)
    guest = Guest(host, on.port, adopt=True)
    guest.set_address(SUBNET)
    guest.ping("10.9.0.1", 2)
    assert on.audit() == []
    host.sh(
        "ovs-ofctl -O OpenFlow14 add-flow br-tun 'table=20,hard_timeout=300,priority=1,vlan_tci=1/0xfff,"
        "dl_dst=fa:16:3e:00:00:01,actions=load:0->NXM_OF_VLAN_TCI[],output:vxlan-0a4e0002'"
    )
    assert on.audit() == []
    guest.sh("ping -q -i0.05 -c60 -W1 10.9.0.1 >/tmp/pinged 2>&1 &")
    for _ in range(3):
        host.sh("ovs-ofctl -O OpenFlow14 add-flow br-int priority=100,dl_dst=fa:16:3e:00:00:66,actions=drop")
        on.mended(on.audit())
    until(lambda: "received" in host.sh("cat /tmp/pinged"))
    assert "60 received" in host.sh("cat /tmp/pinged")


def test_what_no_document_asks_for_is_told_and_goes_by_an_operators_word(host: Host, external: str) -> None:
    on = Documented(host.start(bridge_mappings={"public": "br-ex"}), TUNNEL)
    on.documents = {"port": [on.port], "network": [], "router": []}
    assert sorted(told(on.audit())) == [
        f"dnsmasq-unknown {NET}", f"namespace-unknown qdhcp-{NET}", f"namespace-unknown qrouter-{ROUTER}"
    ]  # fmt: skip
    names = host.sh("ip netns list")
    assert f"qdhcp-{NET}" in names  # looking removes nothing
    for one in on.audit():
        on.mend(one)
    assert "qdhcp-" not in host.sh("ip netns list")
    assert "qrouter-" not in host.sh("ip netns list")
    assert EXTERNAL
