"""What goes to nft, dnsmasq, radvd and metadata clients, from documents alone: no root, no host."""

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from cumulet.agent.network import announce, dhcp_files, external, metadata_tree, names, nat, ovs_flows, rules
from cumulet.agent.network.store import DocumentStore

from .conftest import LOCAL, NET, SUBNET, mac, port, uuid


def rule(**more: object) -> FirewallRule:
    return msgspec.convert({"direction": "ingress", "ethertype": "IPv4", **more}, FirewallRule)


@pytest.mark.parametrize(
    "given_rule, text",
    [
        (rule(), "ether type ip"),
        (rule(protocol="tcp", port_range_min=22, port_range_max=22), "ether type ip meta l4proto 6 th dport 22"),
        (rule(protocol="17", port_range_min=1, port_range_max=9), "ether type ip meta l4proto 17 th dport 1-9"),
        (rule(protocol="tcp", port_range_min=1, port_range_max=65535), "ether type ip meta l4proto 6"),
        (
            rule(protocol="icmp", port_range_min=8, port_range_max=0),
            "ether type ip meta l4proto 1 icmp type 8 icmp code 0",
        ),
        (rule(protocol="icmp", ethertype="IPv6"), "ether type ip6 meta l4proto 58"),
        (
            rule(protocol="ipv6-icmp", ethertype="IPv6", port_range_min=128),
            "ether type ip6 meta l4proto 58 icmpv6 type 128",
        ),
        (rule(remote_ip_prefix="10.1.2.3/8"), "ether type ip ip saddr 10.0.0.0/8"),
        (rule(remote_ip_prefix="0.0.0.0/0", protocol="vrrp"), "ether type ip meta l4proto 112"),
        (rule(direction="egress", remote_ip_prefix="10.0.0.0/8"), "ether type ip ip daddr 10.0.0.0/8"),
        (rule(remote_ip_prefix="fd00::/64"), None),
        (rule(protocol="any"), "ether type ip"),
    ],
)
def test_a_rule_as_a_match(given_rule: FirewallRule, text: str | None) -> None:
    assert rules.match(given_rule) == text


def test_addresses_a_guest_may_use() -> None:
    doc = port(
        "a",
        "10.9.0.11",
        mac_address="FA:16:3E:00:00:01",
        allowed_address_pairs=[
            {"ip_address": "10.9.0.11"},
            {"ip_address": "10.8.0.0/16"},
            {"ip_address": "fd00::5", "mac_address": "fa:16:3e:00:00:02"},
        ],
    )
    assert rules.addresses(doc) == {
        "fa:16:3e:00:00:01": (["10.8.0.0/16", "10.9.0.11"], ["fe80::f816:3eff:fe00:1"]),
        "fa:16:3e:00:00:02": ([], ["fd00::5", "fe80::f816:3eff:fe00:2"]),
    }


def test_ports_of_the_network_itself_and_open_ports_are_not_filtered() -> None:
    assert rules.filtered(port("a", "10.9.0.11"))
    assert not rules.filtered(port("a", "10.9.0.11", port_security_enabled=False))
    assert not rules.filtered(port("a", "10.9.0.11", device_owner="network:dhcp"))


def test_group_sets_split_by_version_and_do_not_overlap() -> None:
    assert rules.group_sets("g", ["10.9.0.5", "10.9.0.0/24", "fd00::1"]) == {
        names.group_set("g", 4): ["10.9.0.0/24"],
        names.group_set("g", 6): ["fd00::1"],
    }


addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
firewall_rules = st.builds(
    FirewallRule,
    direction=st.sampled_from(["ingress", "egress"]),
    ethertype=st.sampled_from(["IPv4", "IPv6"]),
    protocol=st.none() | st.sampled_from(["tcp", "udp", "icmp", "ipv6-icmp", "sctp", "ah", "0", "255", "vrrp"]),
    port_range_min=st.none() | st.integers(0, 255),
    port_range_max=st.none() | st.just(255),
    remote_ip_prefix=st.none() | addresses,
)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nft"), reason="needs nft and the right to use it")
@settings(deadline=None, max_examples=40)
@given(st.lists(firewall_rules, max_size=8), st.lists(addresses, max_size=4), st.lists(addresses, max_size=4))
def test_nft_takes_every_port(found: list[FirewallRule], fixed: list[str], members: list[str]) -> None:
    """``nft -c`` checks and changes nothing."""
    doc = port(
        "a",
        None,
        fixed_ips=[FixedIp(subnet_id="s", ip_address=a) for a in fixed],
        rules=[*found, rule(remote_group_id="g")],
    )
    script = rules.base() + "".join(rules.group(n, m) for n, m in rules.group_sets("g", members).items())
    script += rules.port_chains(doc, "tap0") + rules.no_port_chains("tap0")
    done = subprocess.run(["nft", "-c", "-f", "-"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr + script


def test_tracking_knows_own_and_shared_bridges() -> None:
    text = rules.tracking({"brq1": 20000, "br-ex": 0})
    assert 'ct zone set iifname map { "brq1" : 20000 }' in text
    assert 'oifname != { "br-ex" } accept' in text
    assert rules.tracking({}).endswith("delete table inet cumulet_track\n")


def network(**more: object) -> NetworkDoc:
    values = {
        "id": NET,
        "generation": 1,
        "segment": LOCAL,
        "subnets": [SUBNET],
        "dhcp_port": port("dhcp", "10.9.0.2"),
        "hosts": [
            DhcpHost(
                port_id="p1",
                mac_address="fa:16:3e:00:00:01",
                hostname="web",
                fixed_ips=[FixedIp(subnet_id=SUBNET.id, ip_address="10.9.0.11")],
            )
        ],
        **more,
    }
    return NetworkDoc(**values)  # type: ignore[arg-type]


def files(doc: NetworkDoc) -> dhcp_files.Files:
    return dhcp_files.build(doc, "ns-x", Path("/run/x"), ["9.9.9.9"], 3600)


def test_dnsmasq_files() -> None:
    found = files(network())
    assert f"--dhcp-range=set:subnet-{SUBNET.id},10.9.0.0,static,255.255.255.0,3600s" in found.argv
    assert "--dhcp-option-force=option:mtu,1442" in found.argv
    assert "--server=9.9.9.9" in found.argv
    assert found.hosts == "fa:16:3e:00:00:01,web.openstacklocal,10.9.0.11\n"
    assert found.names == "10.9.0.11\tweb.openstacklocal web\n"
    tag = f"tag:subnet-{SUBNET.id}"
    assert found.options.splitlines() == [
        f"{tag},option:dns-server,10.9.0.2",
        f"{tag},option:router,10.9.0.1",
        f"{tag},option:classless-static-route,169.254.169.254/32,10.9.0.2,0.0.0.0/0,10.9.0.1",
        f"{tag},249,169.254.169.254/32,10.9.0.2,0.0.0.0/0,10.9.0.1",
    ]


def test_an_option_cannot_start_another_line() -> None:
    host = msgspec.structs.replace(
        network().hosts[0], extra_dhcp_opts=[{"opt_name": "tftp-server", "opt_value": "a\ntag:x,3,6.6.6.6"}]
    )
    assert files(network(hosts=[host])).options.splitlines()[-1] == "tag:port-p1,option:tftp-server,a tag:x,3,6.6.6.6"


def test_what_changes_only_a_host_keeps_the_command_line() -> None:
    assert files(network(hosts=[])).argv == files(network()).argv


def test_dhcpv6_modes() -> None:
    def six(mode: str | None) -> NetworkDoc:
        subnet = SubnetDoc(id="s6", cidr="fd00:9::/64", ip_version=6, gateway_ip="fd00:9::1", dhcp_ip="fd00:9::2",
                           ipv6_address_mode=mode, ipv6_ra_mode=mode)  # fmt: skip
        host = msgspec.structs.replace(network().hosts[0], fixed_ips=[FixedIp(subnet_id="s6", ip_address="fd00:9::11")])
        return network(subnets=[subnet], hosts=[host])

    assert files(six("dhcpv6-stateful")).hosts == "fa:16:3e:00:00:01,web.openstacklocal,[fd00:9::11]\n"
    assert files(six("dhcpv6-stateless")).hosts == ""
    assert "option6:dns-server,[fd00:9::2]" in files(six("dhcpv6-stateless")).options
    assert dhcp_files.served(six("slaac")) == []


def router(**more: object) -> RouterDoc:
    gateway = RouterPort(
        port=PortDoc(
            id=uuid("gw"), generation=1, network_id="ext", segment=Segment(network_type="local"), mac_address=mac("gw"),
            fixed_ips=[FixedIp(subnet_id="e", ip_address="172.31.9.20")],
        ),
        subnets=[SubnetDoc(id="e", cidr="172.31.9.0/24", ip_version=4, gateway_ip="172.31.9.1")],
    )  # fmt: skip
    inside = RouterPort(port=port("in", "10.9.0.1"), subnets=[SUBNET])
    values = {"id": uuid("r"), "generation": 1, "gateway": gateway, "interfaces": [inside], **more}
    return RouterDoc(**values)  # type: ignore[arg-type]


def test_router_ruleset() -> None:
    floating = [
        FloatingIpDoc(id=str(i), floating_ip_address=f"172.31.9.{30 + i}", fixed_ip_address="10.9.0.11") for i in (0, 1)
    ]
    text = nat.ruleset(router(floating_ips=floating))
    assert "elements = { 172.31.9.30 : 10.9.0.11, 172.31.9.31 : 10.9.0.11 }" in text
    assert "elements = { 10.9.0.11 : 172.31.9.30 }" in text  # outbound: one of them
    assert f'oifname "{names.gateway_device(uuid("gw"))}" snat to 172.31.9.20' in text
    assert "snat to 172.31.9.20" not in nat.ruleset(router(enable_snat=False))
    assert "snat" not in nat.ruleset(router(gateway=None))
    assert nat.ruleset_digest(router()) != nat.ruleset_digest(router(floating_ips=floating))


def test_radvd_only_where_asked() -> None:
    assert nat.radvd(router()) == ""
    subnet = SubnetDoc(id="s6", cidr="fd00:9::/64", ip_version=6, ipv6_ra_mode="dhcpv6-stateful")
    leg = RouterPort(port=port("in", None), subnets=[subnet])
    text = nat.radvd(router(interfaces=[leg]))
    assert "AdvManagedFlag on;" in text
    assert "AdvAutonomous off;" in text
    assert "prefix fd00:9::/64" in text
    assert "AdvLinkMTU 1442;" in text


META = MetadataDoc(
    id="s",
    generation=1,
    meta_data={"uuid": "s", "random_seed": "r", "project_id": "p", "devices": []},
    network_data={"links": []},
    user_data="aGk=",
    ec2={
        "meta-data": {
            "instance-id": "i-1",
            "block-device-mapping": {"ami": "vda"},
            "public-keys": {"0": {"_name": "0=k", "openssh-key": "x"}},
        }
    },
)


@pytest.mark.parametrize(
    "path, body",
    [
        ("/latest", "meta-data/\nuser-data"),
        ("/latest/meta-data/", "block-device-mapping/\ninstance-id\npublic-keys/"),
        ("/2009-04-04/meta-data/public-keys", "0=k"),
        ("/latest/meta-data/public-keys/0/openssh-key", "x"),
        ("/latest/user-data", "hi"),
        ("/openstack/latest/user_data", "hi"),
        ("/openstack/2012-08-10", "meta_data.json\nuser_data"),
        ("/openstack/2012-08-10/meta_data.json", '{"uuid": "s"}'),
        ("/openstack/2012-08-10/network_data.json", None),
        ("/openstack/latest/network_data.json", '{"links": []}'),
        ("/openstack/latest/vendor_data2.json", "{}"),
        ("/openstack/1999-01-01/meta_data.json", None),
        ("/latest/meta-data/none", None),
        ("/nothing", None),
    ],
)
def test_metadata_paths(path: str, body: str | None) -> None:
    found = metadata_tree.answer(META, path)
    assert (None if found is None else found[1].decode()) == body


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/openstack/2013-10-17/password", True),
        ("/openstack/latest/password/", True),
        ("/openstack/2012-08-10/password", False),
        ("/openstack/nothing/password", False),
        ("/openstack/latest/meta_data.json", False),
        ("/latest/meta-data/password", False),
    ],
)
def test_metadata_takes_a_password_in_one_place(path: str, taken: bool) -> None:
    assert metadata_tree.is_password(path) is taken


def test_metadata_listings() -> None:
    found = metadata_tree.answer(META, "/openstack")
    assert found
    assert found[1].decode().splitlines() == [*metadata_tree.OPENSTACK, "latest"]
    files = metadata_tree.answer(META, "/openstack/latest/")
    assert files
    assert files[1].decode().split() == [
        "meta_data.json", "user_data", "password", "vendor_data.json", "network_data.json", "vendor_data2.json"
    ]  # fmt: skip


def test_device_names_fit() -> None:
    for make in (names.bridge, names.tap, names.dhcp_device, names.router_device, names.gateway_device,
                 names.hybrid_bridge, names.hybrid_inner, names.hybrid_outer):  # fmt: skip
        assert len(make(uuid("x"))) <= 15
    assert names.fixed_mac("x") == names.fixed_mac("x") != names.fixed_mac("y")
    assert len(names.group_set("x" * 300, 4)) < 32


def test_masquerade_text() -> None:
    text = external.ruleset("br-ex", ["172.24.4.1/24", "fd00::1/64"], True)
    assert 'ip saddr 172.24.4.0/24 ip daddr != 172.24.4.0/24 oifname != "br-ex" masquerade' in text
    assert "ip6 saddr fd00::/64" in text
    assert "masquerade" not in external.ruleset("br-ex", ["172.24.4.1/24"], False)


def test_neighbour_advertisement_checksum() -> None:
    import ipaddress

    packet = announce._advertisement(bytes.fromhex("fa163e000001"), ipaddress.IPv6Address("fd00::1"))
    ip = packet[14:]
    pseudo = ip[8:40] + len(ip[40:]).to_bytes(4, "big") + b"\0\0\0\x3a"
    assert announce._checksum(pseudo + ip[40:]) == 0


def test_store_keeps_and_survives_a_torn_file(tmp_path: Path) -> None:
    store = DocumentStore(tmp_path)
    doc = port("a", "10.9.0.11")
    store.put(doc)
    store.put(META)
    again = DocumentStore(tmp_path)
    assert again.get(PortDoc, doc.id) == doc
    (tmp_path / "port" / f"{doc.id}.json").write_text('{"id":')
    third = DocumentStore(tmp_path)
    assert third.get(PortDoc, doc.id) is None
    assert third.get(MetadataDoc, "s") == META
    third.clear()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with pytest.raises(ValueError):
        third.put(msgspec.structs.replace(doc, id="../x"))


def test_route_of_other_subnets_is_on_the_link() -> None:
    second = SubnetDoc(id="zz", cidr="10.10.0.0/24", ip_version=4, dhcp_ip="10.10.0.2", host_routes=[
        Route(destination="0.0.0.0/0", nexthop="10.10.0.9")])  # fmt: skip
    text = files(network(subnets=[SUBNET, second])).options
    assert "10.10.0.0/24,0.0.0.0" in text
    assert "tag:subnet-zz,option:router\n" in text
    assert "0.0.0.0/0,10.10.0.9,169.254.169.254/32,10.10.0.2" in text


def test_flows_of_tunnelled_and_physical_networks() -> None:
    peers = frozenset(["10.0.0.2", "10.0.0.3"])
    networks = {
        "a": ovs_flows.LocalNetwork(1, Segment(network_type="vxlan", segmentation_id=5001), peers),
        "b": ovs_flows.LocalNetwork(2, Segment(network_type="vlan", physical_network="wire", segmentation_id=101)),
        "c": ovs_flows.LocalNetwork(3, Segment(network_type="flat", physical_network="public")),
        "d": ovs_flows.LocalNetwork(4, Segment(network_type="local")),
    }
    found = ovs_flows.flows(networks, {"wire": "br-w", "public": "br-ex"}, {"vxlan": {"10.0.0.2"}, "gre": set()})
    assert sorted(found) == ["br-ex", "br-int", "br-tun", "br-w"]
    # only to peers that have a tunnel by now
    assert (
        "table=22,priority=1,dl_vlan=1,actions=pop_vlan,set_field:0x1389->tun_id,output:vxlan-0a000002"
        in found["br-tun"]
    )
    assert (
        "table=4,priority=1,tun_id=5001,actions=push_vlan:0x8100,set_field:4097->vlan_vid,resubmit(,10)"
        in found["br-tun"]
    )
    assert "table=0,priority=4,in_port=phy-br-w,dl_vlan=2,actions=set_field:4197->vlan_vid,NORMAL" in found["br-w"]
    assert "table=0,priority=4,in_port=phy-br-ex,dl_vlan=3,actions=pop_vlan,NORMAL" in found["br-ex"]
    assert "table=0,priority=3,in_port=int-br-w,dl_vlan=101,actions=set_field:4098->vlan_vid,NORMAL" in found["br-int"]
    # what has no rule of its own stays where it is
    assert "table=0,priority=2,in_port=int-br-ex,actions=drop" in found["br-int"]
    assert not [line for lines in found.values() for line in lines if "4100->vlan_vid" in line or "dl_vlan=4" in line]


def test_flow_differences() -> None:
    before = [
        "table=0,priority=0,actions=drop",
        "table=22,priority=1,dl_vlan=1,actions=output:1",
        "table=1,actions=drop",
    ]
    now = ["table=0,priority=0,actions=drop", "table=22,priority=1,dl_vlan=1,actions=output:2"]
    assert ovs_flows.difference(before, now) == [
        "delete_strict table=1",
        "add table=22,priority=1,dl_vlan=1,actions=output:2",
    ]
    assert ovs_flows.difference(now, now) == []
