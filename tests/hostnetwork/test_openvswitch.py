"""Two hosts on Open vSwitch, datapath in user space: the same documents, the same filters."""

import shutil
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest

from cumulet.agent.contract import FloatingIpDoc, PortDoc, RouterPort, Segment

from .conftest import ENV, HERE, NET, SUBNET, Failed, Guest, Host, port, uuid
from .documents import (
    EGRESS,
    FLAT,
    PING,
    changed,
    metadata_doc,
    network_doc,
    outside,
    reaches,
    router_doc,
    server,
    tcp,
    until,
)
from .steps import killed_at_every_step

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not shutil.which("ovs-vswitchd"), reason="Open vSwitch is not installed"),
]
PEERS = ["10.78.0.1", "10.78.0.2"]
ADDRESSES = {"eth1": "10.78.0.{}/24"}


@pytest.fixture
def switched(hosts: list[Host]) -> Iterator[list[Host]]:
    for host in hosts:
        host.sh(f"bash {HERE}/ovs-start.sh")
        host.sh(f"ip addr replace 10.78.0.{host.index}/24 dev eth1; ip addr flush dev eth2; ip link set eth1 up")
    yield hosts
    for host in hosts:
        host.stop()
        host.sh(
            f"for b in $(ovs-vsctl list-br); do ovs-vsctl del-br $b; done; bash {HERE}/ovs-start.sh stop;"
            f"ip addr replace 10.78.0.{host.index}/24 dev eth1"
        )


def settings(**more: object) -> dict[str, object]:
    return {"mechanism": "openvswitch", "tunnel_nic": "eth1", **more}


def guest_port(host: Host, segment: Segment, **more: object) -> PortDoc:
    return port(f"on {host.name}", f"10.9.0.{20 + host.index}", segment=segment, **more)


@pytest.mark.parametrize("kind", ["vxlan", "gre"])
def test_networks_span_hosts_by_tunnels(switched: list[Host], kind: str) -> None:
    segment = Segment(network_type=kind, segmentation_id=5001, mtu=1450, peers=PEERS)  # type: ignore[arg-type]
    workers = [h.start(**settings()) for h in switched]
    assert workers[0]("why").startswith("openvswitch")
    ports = [
        guest_port(switched[0], segment, rules=[*EGRESS, PING, tcp(80)]),
        guest_port(switched[1], segment, rules=EGRESS),
    ]
    guests = [Guest(h, p) for h, p in zip(switched, ports, strict=True)]
    for worker, doc, guest in zip(workers, ports, guests, strict=True):
        worker("plug", doc)
        guest.set_address(SUBNET)
        server(guest)
    assert guests[1].ping("10.9.0.21", 3)
    assert not guests[0].ping("10.9.0.22")
    assert reaches(guests[1], "10.9.0.21")
    assert not reaches(guests[0], "10.9.0.22")
    # DHCP over the tunnel, metadata in the same namespace
    doc = network_doc(ports, segment=segment)
    workers[0].apply(doc)
    workers[0].apply(metadata_doc(1))
    lease = guests[1].dhcp()
    assert lease["ip"] == "10.9.0.22"
    assert lease["mtu"] == "1450"
    guests[1].sh("ip route replace 169.254.169.254/32 via 10.9.0.2")
    get = "busybox wget -q -O - http://169.254.169.254/latest/meta-data/instance-id"
    assert guests[1].sh(get) == "i-00000001"
    # again: nothing
    workers[0].apply(doc)
    assert workers[0].changes() == []
    workers[0]("plug", ports[0])
    assert workers[0].changes() == []
    # the host itself is out of reach
    guests[0].sh("ip route replace default via 10.9.0.22")
    assert not guests[0].ping("10.77.0.2")
    # gone
    for worker, doc_ in zip(workers, ports, strict=True):
        worker("unplug", doc_.id)
    workers[0]("remove", "network", NET, 9)
    for host in switched:
        assert not [n for n in host.sh("ls /sys/class/net").split() if n.startswith(("qbr", "qvo", "qvb", "tap"))]
        assert f"{kind}-" not in host.sh("ovs-vsctl list-ports br-tun")
        assert "dl_vlan" not in host.sh("ovs-ofctl dump-flows br-tun table=22")
    workers[1]("cleanup_all")
    assert switched[1].sh("ovs-vsctl list-br") == ""
    assert "10.78.0.2/24" in switched[1].sh("ip -br addr show dev eth1")


def test_restarts_of_switch_and_agent(switched: list[Host]) -> None:
    segment = Segment(network_type="vxlan", segmentation_id=5001, mtu=1450, peers=PEERS)
    workers = [h.start(**settings()) for h in switched]
    ports = [guest_port(h, segment, rules=[*EGRESS, PING]) for h in switched]
    guests = [Guest(h, p) for h, p in zip(switched, ports, strict=True)]
    for worker, doc, guest in zip(workers, ports, guests, strict=True):
        worker("plug", doc)
        guest.set_address(SUBNET)
    assert guests[0].ping("10.9.0.22", 3)
    pinging = subprocess.Popen(
        [*switched[0].enter, "ip", "netns", "exec", guests[0].ns, "ping", "-q", "-i0.01", "-c250", "-W1", "10.9.0.22"],
        stdout=subprocess.PIPE, text=True, env=ENV,
    )  # fmt: skip
    time.sleep(0.3)
    worker = switched[0].restart()
    guarded = switched[0].sh("nft list table netdev cumulet_guard")
    assert "eth1" in guarded, "the host's own stack sees no tunnel packets, before the first port is wired again, too"
    worker("plug", ports[0])
    assert [c for c in worker.changes() if c[0] == "ip"] == []
    out = pinging.communicate()[0]
    assert "250 received" in out, out
    switched[0].sh(f"bash {HERE}/ovs-start.sh restart")
    deadline = time.monotonic() + 60
    while not guests[0].ping("10.9.0.22") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert guests[0].ping("10.9.0.22", 2)
    # a port that goes while the switch is dead is not there when it comes back
    switched[0].sh("kill -9 $(cat /run/openvswitch/ovs-vswitchd.pid); sleep 0.2")
    worker("unplug", ports[0].id)
    switched[0].sh(f"bash {HERE}/ovs-start.sh start-switch")
    assert "qvo" not in switched[0].sh("ovs-vsctl list-ports br-int")


def test_documents_that_name_a_network_go_in_any_order(switched: list[Host]) -> None:
    """The last to let go of a network is a router that keeps others, or a port that an earlier life unplugged."""
    host = switched[0]
    segment = Segment(network_type="vxlan", segmentation_id=5001, mtu=1450, peers=PEERS[:1])
    worker = host.start(**settings())

    def told_apart() -> str:
        return host.sh("ovs-ofctl dump-flows br-tun | grep tun_id=0x1389 || true")

    def leg(name: str, address: str) -> RouterPort:
        inside = port(name, address, segment=segment, device_owner="network:router_interface")
        return RouterPort(port=inside, subnets=[SUBNET])

    other = leg("other", "10.9.0.1")
    other = msgspec.structs.replace(
        other,
        port=msgspec.structs.replace(
            other.port, network_id=uuid("other"), segment=msgspec.structs.replace(segment, segmentation_id=5002)
        ),
    )
    router = router_doc(gateway=None, interfaces=[leg("router inside", "10.9.0.254"), other])
    worker.apply(network_doc([], segment=segment))
    worker.apply(router)
    assert told_apart()
    worker("remove", "network", NET, 9)
    assert told_apart(), "the router is on it"
    worker.apply(changed(router, interfaces=[other]))
    assert not told_apart()

    one = guest_port(host, segment, rules=EGRESS)
    worker("plug", one)
    assert told_apart()
    worker.kill()
    host.sh(f"rm $(find /var/lib/cumulet-test /run/cumulet-test -name {one.id}.json)")
    host.sh(f"ovs-vsctl del-port br-int qvo{one.id[:11]}")
    assert told_apart()
    host.restart()
    until(lambda: not told_apart())
    assert "tun_id=0x138a" in host.sh("ovs-ofctl dump-flows br-tun"), "the router's other network is there as before"


@pytest.mark.parametrize("of", ["apply", "remove"])
def test_killed_before_any_step_the_next_life_does_the_rest(switched: list[Host], of: str) -> None:
    host = switched[0]
    segment = Segment(network_type="vxlan", segmentation_id=5001, mtu=1450, peers=PEERS[1:])
    host.start(**settings())
    one = guest_port(host, segment, rules=[*EGRESS, PING])
    inside = port("router inside", "10.9.0.254", segment=segment, device_owner="network:router_interface")
    router = router_doc(gateway=None, interfaces=[RouterPort(port=inside, subnets=[SUBNET])])
    assert killed_at_every_step(host, [one, router], of=of) > 15


def test_router_to_a_flat_network(switched: list[Host]) -> None:
    host = switched[0]
    host.sh(
        "ovs-vsctl add-br br-ex -- set bridge br-ex datapath_type=netdev -- add-port br-ex eth2; ip link set eth2 up"
    )
    subprocess.run(
        ["ip", "netns", "exec", f"{ENV['TH_PREFIX']}-ul", "ip", "addr", "replace", "172.31.9.1/24", "dev", "sw-eth2"],
        check=True,
    )
    # a real NIC's frames are whole
    subprocess.run(
        ["ip", "netns", "exec", f"{ENV['TH_PREFIX']}-ul", "ethtool", "-K", "sw-eth2", "tx", "off"], check=True
    )
    worker = host.start(**settings(bridge_mappings={"public": "br-ex"}))
    local = Segment(network_type="local", mtu=1450)
    one = guest_port(host, local, rules=[*EGRESS, PING, tcp(80)])
    guest = Guest(host, one)
    worker("plug", one)
    guest.set_address(SUBNET)
    server(guest)
    doc = router_doc(
        floating_ips=[FloatingIpDoc(id="f", floating_ip_address="172.31.9.30", fixed_ip_address="10.9.0.21")]
    )
    worker.apply(doc)
    assert guest.ping("172.31.9.1", 2)
    assert outside("ping -c2 -W1 172.31.9.30")
    assert outside("busybox nc -w 2 172.31.9.30 80 </dev/null | grep -q hello")
    worker.apply(doc)
    assert worker.changes() == []
    worker.apply(changed(doc, floating_ips=[]))
    assert not outside("ping -c1 -W1 172.31.9.30")
    worker("cleanup_all")
    assert host.sh("ovs-vsctl list-br").split() == ["br-ex"]
    assert host.sh("ovs-vsctl list-ports br-ex").split() == ["eth2"]


def test_vlan_networks_and_the_single_machine(switched: list[Host]) -> None:
    """Two hosts on one provider wire; a third network with another VLAN hears nothing."""
    workers = []
    guests = []
    for host in switched:
        host.sh("ovs-vsctl add-br br-vlan -- set bridge br-vlan datapath_type=netdev -- add-port br-vlan eth2;"
                "ip link set eth2 up")  # fmt: skip
        worker = host.start(**settings(bridge_mappings={"wire": "br-vlan", "public": "br-ex"}))
        vlan = Segment(network_type="vlan", physical_network="wire", segmentation_id=101, mtu=1450)
        doc = guest_port(host, vlan, rules=[*EGRESS, PING])
        guest = Guest(host, doc)
        worker("plug", doc)
        guest.set_address(SUBNET)
        workers.append(worker)
        guests.append(guest)
    assert guests[0].ping("10.9.0.22", 2)
    other = msgspec.structs.replace(vlan, segmentation_id=102)
    workers[1].apply(changed(guests[1].port, segment=other))
    assert not guests[0].ping("10.9.0.22")
    with pytest.raises(Failed, match="Open vSwitch bridge"):
        workers[0].apply(port("x", None, segment=FLAT))
    made = workers[0]("ensure_external_bridge", "br-ex", ["172.31.9.1/24"])
    assert any("Open vSwitch" in c["what"] for c in made["changes"])
    workers[0].apply(router_doc())
    assert switched[0].good("ping -c2 -W1 172.31.9.20")
    workers[0]("cleanup_all")
    workers[0]("remove_host_changes")
    assert switched[0].sh("ovs-vsctl list-br").split() == ["br-vlan"]
