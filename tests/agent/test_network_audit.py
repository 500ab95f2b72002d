"""What the network driver finds on its host that is not as documents say: from files, /proc and stand-ins for the
kernel; no root, no namespaces. Against a real kernel: tests/hostnetwork."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cumulet.agent.contract import (
    DhcpHost,
    Drift,
    FixedIp,
    MendItem,
    NetworkDoc,
    PortDoc,
    RouterDoc,
    Segment,
    SubnetDoc,
)
from cumulet.agent.network import dhcp_files, inside, links, linuxbridge, names, openvswitch, ovs_flows, scratch
from cumulet.agent.network.audit import NetworkAudit
from cumulet.agent.network.config import NetworkConfig
from cumulet.agent.network.dhcp import DhcpServers
from cumulet.agent.network.driver import NetworkDriver
from cumulet.agent.network.linuxbridge import LinuxBridge
from cumulet.agent.network.openvswitch import OpenVSwitch
from cumulet.agent.network.router import Routers
from cumulet.agent.network.store import DocumentStore
from cumulet.agent.network.wiring import Wiring

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


def test_a_dnsmasq_that_died_is_started_at_once_and_told_if_it_stays_away(
    servers: DhcpServers, running: "subprocess.Popen[bytes]"
) -> None:
    asked: list[tuple[str, list[str]]] = []
    hooks = SimpleNamespace(reapply=lambda kind, ids: asked.append((kind, ids)))
    driver: Any = SimpleNamespace(_networks=servers, _hooks=hooks, _silent=set())
    servers._w.store.put(document())
    assert NetworkDriver._missing_daemons(driver) == []
    assert asked == []
    running.kill()
    running.wait()
    assert NetworkDriver._missing_daemons(driver) == []
    assert asked == [("network", [NETWORK])]
    (warning,) = NetworkDriver._missing_daemons(driver)
    assert warning["code"] == "dnsmasq-down"
    servers._w.store.drop(NetworkDoc, NETWORK)
    assert NetworkDriver._missing_daemons(driver) == [], "what is over is not told any more"


def test_none_is_missed_where_none_is_to_be(servers: DhcpServers) -> None:
    servers._w.store.put(document(dhcp=False))
    assert servers.silent() == []


# -- a host of stand-ins ---------------------------------------------------------------------------------------------


class Kernel:
    """Namespaces, filters and wires as the driver's parts see them."""

    def __init__(self) -> None:
        self.namespaces: list[str] = []
        self.filters = scratch.Table()
        self.words: dict[str, str] = {}  # port -> what is wrong with its wire
        self.around: dict[str, str] = {}
        self.strange: list[Drift] = []
        self.removed: list[str] = []

    def ours(self, prefix: str) -> list[str]:
        return [name for name in self.namespaces if name.startswith(prefix)]

    def serving(self) -> list[str]:
        return self.namespaces

    def held(self) -> scratch.Table:
        return self.filters

    def wanted(self, ports: list[PortDoc], members: Any) -> scratch.Table:
        return filters(*(names.tap(port.id) for port in ports))

    def around_astray(self) -> dict[str, str]:
        return self.around

    def filtered_devices(self) -> list[str]:
        return sorted(name[2:] for name in self.filters.chains if name.startswith("o-"))

    def drop(self, chain: str) -> None:
        self.removed.append(chain)

    def remove(self, device: str) -> bool:
        self.removed.append(device)
        return True

    def astray(self, ports: list[PortDoc]) -> list[tuple[PortDoc, str]]:
        return [(port, self.words[port.id]) for port in ports if port.id in self.words]

    def audit(self, ports: list[PortDoc]) -> list[Drift]:
        return self.strange

    def mend(self, item: MendItem) -> str | None:
        return None


def filters(*devices: str) -> scratch.Table:
    """As the kernel has them for these devices."""
    chains = {name: [f"a rule of {name}"] for device in devices for name in (f"o-{device}", f"i-{device}")}
    leads = {name: [f'"{device}" {name}' for device in devices] for name in ("from_port", "to_port")}
    return scratch.Table(chains={"forward": ["leads"], **chains}, sets=leads, hooks={"forward": "hook"})


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def audit(tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> NetworkAudit:
    wiring: Any = SimpleNamespace(
        config=NetworkConfig(state_dir=tmp_path, run_dir=tmp_path, dns_servers=["192.0.2.53"]),
        store=DocumentStore(tmp_path / "documents"),
        lock=nullcontext(),
        namespaces=kernel,
        firewall=kernel,
        mechanism=kernel,
        metadata=kernel,
    )
    monkeypatch.setattr(links, "exists", lambda device: device != "tapgone")
    monkeypatch.setattr(links, "ours", dict)
    monkeypatch.setattr(inside, "astray", lambda namespace, wanted: list(kernel.words.get(namespace, "").split()))
    return NetworkAudit(wiring, DhcpServers(wiring), Routers(wiring))


MAC = "fa:16:3e:00:00:07"


def served() -> NetworkDoc:
    guest = DhcpHost(
        port_id=PORT, mac_address=MAC, hostname="web", fixed_ips=[FixedIp(subnet_id=SUBNET, ip_address="10.0.0.7")]
    )
    return NetworkDoc(
        id=NETWORK, generation=3, segment=Segment(network_type="local"), subnets=document().subnets,
        dhcp_port=document().dhcp_port, hosts=[guest],
    )  # fmt: skip


def write_files(directory: Path, doc: NetworkDoc) -> None:
    assert doc.dhcp_port is not None
    wanted = dhcp_files.build(doc, names.dhcp_device(doc.dhcp_port.id), directory, ["192.0.2.53"], 86400)
    for name, text in (("host", wanted.hosts), ("opts", wanted.options), ("addn_hosts", wanted.names)):
        (directory / name).write_text(text)


def told(found: list[Drift]) -> list[tuple[str, str, str]]:
    return [(one.kind, one.problem, one.id) for one in found]


def test_dhcp_as_its_document_says_and_not(
    audit: NetworkAudit,
    kernel: Kernel,
    running: "subprocess.Popen[bytes]",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    doc = served()
    documents = {"network": {NETWORK: doc}}
    monkeypatch.setattr(audit._networks, "otherwise_started", lambda doc: False)
    directory = tmp_path / "dhcp" / NETWORK
    kernel.namespaces = [f"qdhcp-{NETWORK}"]
    write_files(directory, doc)
    assert audit.look(documents) == []
    (directory / "host").write_text("fa:16:3e:de:ad:00,evil,10.0.0.66\n")
    (found,) = audit.look(documents)
    assert told([found]) == [("dhcp-host", "different", NETWORK)]
    assert found.document == ("network", NETWORK)
    assert found.message.startswith("host of network")
    write_files(directory, doc)
    monkeypatch.setattr(audit._networks, "otherwise_started", lambda doc: True)
    kernel.words[f"qdhcp-{NETWORK}"] = "strange"
    assert told(audit.look(documents)) == [
        ("namespace", "different", f"qdhcp-{NETWORK}"), ("dnsmasq", "different", NETWORK)
    ]  # fmt: skip
    monkeypatch.setattr(audit._networks, "otherwise_started", lambda doc: False)
    kernel.words.clear()
    now = int(time.time())
    (directory / "leases").write_text(
        f"{now + 500} {MAC} 10.0.0.7 web *\n"  # as reserved
        f"{now - 5000} fa:16:3e:00:00:08 10.0.0.8 old *\n"  # over for long
        f"{now + 500} fa:16:3e:00:00:09 10.0.0.7 thief *\n"  # on another's address
        f"0 fa:16:3e:00:00:0a 10.0.0.10 ever *\n"
        "duid 00:01:00:01\n"
        f"{now - 5000} 123456 fd00::8 six 00:01\n"
    )
    assert told(audit.look(documents)) == [
        ("lease", "expired", f"{NETWORK}/fa:16:3e:00:00:08"),
        ("lease", "expired", f"{NETWORK}/fa:16:3e:00:00:09"),
    ]
    (directory / "leases").unlink()
    running.kill()
    running.wait()
    (found,) = audit.look(documents)
    assert (*told([found])[0], found.document) == ("dnsmasq", "missing", NETWORK, ("network", NETWORK))


def test_a_dnsmasq_of_no_network(
    audit: NetworkAudit, kernel: Kernel, running: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    (found,) = audit.look({"network": {}})
    assert (*told([found])[0], found.document) == ("dnsmasq", "unknown", NETWORK, None)
    assert running.poll() is None  # looking ends nothing
    assert audit.rid(MendItem(kind="dnsmasq", id=NETWORK, problem="unknown", generation=1)) == "the daemon is ended"
    assert running.wait(30) is not None
    assert audit.look({"network": {}}) == []


def test_namespaces(audit: NetworkAudit, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    router = RouterDoc(id="r" * 36, generation=1)
    off = RouterDoc(id="o" * 36, generation=1, admin_state_up=False)
    kernel.namespaces = ["qdhcp-stranger", f"qrouter-{off.id}"]
    documents = {"network": {NETWORK: document(dhcp=False)}, "router": {router.id: router, off.id: off}}
    found = audit.look(documents)
    assert told(found) == [
        ("namespace", "missing", f"qdhcp-{NETWORK}"),
        ("namespace", "missing", f"qrouter-{router.id}"),
        ("namespace", "unknown", "qdhcp-stranger"),
        ("namespace", "unknown", f"qrouter-{off.id}"),
    ]
    assert [one.document for one in found] == [("network", NETWORK), ("router", router.id), None, None]
    taken: list[str] = []
    monkeypatch.setattr(audit._networks, "take_down", taken.append)
    monkeypatch.setattr(audit._routers, "take_down", taken.append)
    for one in found[2:]:
        assert "is removed" in (audit.rid(MendItem(kind=one.kind, id=one.id, problem="unknown", generation=1)) or "")
    assert taken == ["stranger", off.id]
    assert audit.rid(MendItem(kind="namespace", id="other", problem="unknown", generation=1)) is None


def guest_port(**more: Any) -> PortDoc:
    return PortDoc(
        id=PORT, generation=2, network_id=NETWORK, segment=Segment(network_type="vxlan", segmentation_id=7),
        mac_address=MAC, fixed_ips=[FixedIp(subnet_id=SUBNET, ip_address="10.0.0.7")], device_owner="compute:nova",
        **more,
    )  # fmt: skip


def test_filters(audit: NetworkAudit, kernel: Kernel) -> None:
    port, device = guest_port(), names.tap(PORT)
    documents = {"port": {PORT: port}}
    kernel.filters = filters()
    (found,) = audit.look(documents)
    assert (*told([found])[0], found.document) == ("chain", "missing", PORT, ("port", PORT))
    kernel.filters = filters(device)
    assert audit.look(documents) == []
    kernel.filters.chains[f"i-{device}"].insert(0, "let everybody in")
    (found,) = audit.look(documents)
    assert told([found]) == [("chain", "different", PORT)]
    assert found.message.endswith(f"rules of i-{device} are 1 unknown")
    kernel.filters = filters(device)
    kernel.filters.sets["to_port"].clear()
    assert told(audit.look(documents)) == [("chain", "different", PORT)]
    kernel.filters = filters(device, "tapgone")
    kernel.filters.chains["evil"] = []
    found_two = audit.look(documents)
    assert told(found_two) == [("chain", "unknown", "tapgone"), ("chain", "unknown", "evil")]
    said = [audit.rid(MendItem(kind="chain", id=one.id, problem="unknown", generation=1)) for one in found_two]
    assert said == ["the filter is removed", "the chain is removed"]
    assert kernel.removed == ["tapgone", "evil"]
    kernel.filters = filters(device)
    kernel.filters.chains["forward"].clear()
    kernel.around = {"brq1": "blind"}
    assert told(audit.look(documents)) == [
        ("filter-table", "different", "cumulet_sg"), ("filter-table", "different", "brq1")
    ]  # fmt: skip


def test_differences_in_words() -> None:
    assert scratch.differs(["a", "b"], ["a", "b"]) is None
    assert scratch.differs(["a", "b"], ["b", "a"]) == "in another order"
    assert scratch.differs(["a", "b"], ["a", "c", "d"]) == "1 missing and 2 unknown"


def test_wires(audit: NetworkAudit, kernel: Kernel) -> None:
    kernel.filters = filters(names.tap(PORT))
    kernel.words[PORT] = "its tap is on no bridge"
    (found,) = audit.look({"port": {PORT: guest_port()}})
    assert (*told([found])[0], found.document) == ("forwarding", "different", PORT, ("port", PORT))


def test_devices_of_nobody(audit: NetworkAudit, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.filters = filters(names.tap(PORT))
    ours = {
        "brq1": ("network", NETWORK),
        "brq2": ("network", "gone"),
        "tap3": ("port", "gone"),
        "br-ex": ("external", ""),
    }
    monkeypatch.setattr(links, "ours", lambda: ours)
    monkeypatch.setattr(links, "is_tap", lambda device: False)
    monkeypatch.setattr(links, "members", lambda bridge: ["evil", "tap3"] if bridge == "brq1" else [])
    documents = {"port": {PORT: guest_port()}}
    assert told(audit.look(documents)) == [("device", "unknown", name) for name in ("brq2", "tap3", "evil")]
    monkeypatch.setattr(links, "is_tap", lambda device: True)  # who plugs guests tells of theirs
    assert told(audit.look(documents)) == [("device", "unknown", "evil")]


def test_forwarding_of_linux_bridges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = NetworkConfig(state_dir=tmp_path, run_dir=tmp_path, tunnel_ip="192.0.2.1")
    bridge = LinuxBridge(config, DocumentStore(tmp_path / "d"))
    peers = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    segment = Segment(network_type="vxlan", segmentation_id=7, peers=peers, mtu=1450)
    port = msgspec.structs.replace(guest_port(), segment=segment)
    master = names.bridge(NETWORK)
    marks = {master: f"cumulet:network:{NETWORK}", "vxlan-7": f"cumulet:network:{NETWORK}"}
    monkeypatch.setattr(links, "master", lambda device: master)
    monkeypatch.setattr(links, "exists", lambda device: True)
    monkeypatch.setattr(links, "is_up", lambda device: True)
    monkeypatch.setattr(links, "mtu", lambda device: 1450)
    monkeypatch.setattr(links, "alias", lambda device: marks.get(device, f"cumulet:port:{PORT}"))
    flood, learned = "00:00:00:00:00:00", {"mac": MAC, "dst": "192.0.2.2", "state": ""}
    entries = [{"mac": flood, "dst": "192.0.2.2"}, {"mac": flood, "dst": "192.0.2.66", "state": "permanent"}, learned]
    monkeypatch.setattr(linuxbridge, "run", lambda argv, **more: json.dumps(entries))
    assert list(bridge.astray([port])) == []
    assert told(list(bridge.audit([port]))) == [
        ("forwarding", "missing", f"vxlan-7 {flood} 192.0.2.3"),
        ("forwarding", "unknown", f"vxlan-7 {flood} 192.0.2.66"),
    ]
    entries[1]["dst"] = "192.0.2.3"
    assert list(bridge.audit([port])) == []
    monkeypatch.setattr(links, "master", lambda device: None)
    assert list(bridge.astray([port])) == [(port, f"`ip link set dev {names.tap(PORT)} master {master}` is to be done")]
    assert told(list(bridge.audit([port]))) == [("tunnel", "different", "vxlan-7")]


def test_tags_of_open_vswitch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = OpenVSwitch(NetworkConfig(state_dir=tmp_path, run_dir=tmp_path), DocumentStore(tmp_path / "d"), "system")
    switch._tags = {NETWORK: 5}
    held: dict[str, tuple[int, str]] = {}
    monkeypatch.setattr(switch, "_ports", lambda: held)
    monkeypatch.setattr(links.Plan, "words", lambda plan: None)

    def words() -> list[str]:
        return [said for _, said in switch.astray([guest_port()])]

    assert words() == [f"qvo{PORT[:11]} is not in br-int"]
    held[f"qvo{PORT[:11]}"] = (9, NETWORK)
    assert words() == [f"qvo{PORT[:11]} has tag 9 of network {NETWORK}, not 5"]
    held[f"qvo{PORT[:11]}"] = (5, NETWORK)
    assert words() == []


def test_tags_that_somebody_changed_never_join_networks() -> None:
    assert openvswitch._tags([(1, "a"), (2, "b"), (2, "b"), (0, "c")]) == {"a": 1, "b": 2}
    assert openvswitch._tags([(1, "a"), (9, "a"), (1, "a")]) == {"a": 1}
    assert openvswitch._tags([(2, "a"), (2, "b"), (2, "b")]) == {"b": 2}, "a gets a tag of its own"


def test_flows_compared() -> None:
    printed = """\
-priority=3,in_port="int-br-ex",vlan_tci=0x0000/0x1fff actions=drop
+priority=3,in_port="int-br-ex",vlan_tci=0x0000/0x1fff actions=push_vlan:0x8100,NORMAL
+table=4 priority=1,tun_id=0x1389 actions=resubmit(,10)
-table=20 priority=1,vlan_tci=0x0003/0x0fff,dl_dst=fa:16:3e:00:00:01 hard_timeout=300 actions=output:1
-table=20 cookie=0x5 priority=9 actions=drop
"""
    assert ovs_flows.compared(printed) == {
        'priority=3,in_port="int-br-ex",vlan_tci=0x0000/0x1fff': "different",
        "table=4 priority=1,tun_id=0x1389": "missing",
        "table=20 priority=9": "unknown",
    }


def test_forgetting_a_lease_leaves_the_others(
    audit: NetworkAudit, running: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    path = tmp_path / "dhcp" / NETWORK / "leases"
    keep = "99 fa:16:3e:00:00:01 10.0.0.1 a *\n"
    path.write_text(keep + "99 fa:16:3e:00:00:02 10.0.0.2 b *\n")
    item = MendItem(kind="lease", id=f"{NETWORK}/fa:16:3e:00:00:02", problem="expired", generation=1)
    assert audit.rid(item) == "the lease is forgotten"
    assert path.read_text() == keep
    assert running.wait(30) is not None  # it would have written the lease again
    assert audit.rid(item) == "the lease is forgotten"
    assert path.read_text() == keep


def test_a_namespace_made_anew_has_no_old_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody deleted it: its listener and outer devices would pass for wired."""
    gone: list[str] = []
    metadata: Any = SimpleNamespace(stop=gone.append)
    nothing: Any = None
    wiring = Wiring(nothing, nothing, nothing, nothing, nothing, metadata)
    monkeypatch.setattr(links, "delete", gone.append)
    wiring.made_anew("qdhcp-x", [PORT])
    assert gone == ["qdhcp-x", names.tap(PORT)]
