"""What hosts are told: documents of ports, networks and routers, and when they change."""

from collections.abc import Callable
from typing import Any

from cumulet.services.network.reconcilers import reconcile_documents
from tests.network.conftest import Net
from tests.support.cloud import Cloud

Make = Callable[..., Any]


def document(cloud: Cloud, host: str, kind: str, id: str) -> Any:
    network = cloud.control.network
    build = getattr(network.documents, kind)
    return cloud.db.read(lambda tx: build(tx, host, id, 7))


def generation(cloud: Cloud, host: str, kind: str, id: str) -> int:
    found = cloud.db.read(lambda tx: cloud.control.desired.applied(tx, host, kind, id))
    return 0 if found is None else int(found[0])


def bind(admin: Net, port: Any, host: str) -> None:
    admin.update("port", port["id"], **{"binding:host_id": host})


def on_server(make: Make, network: Any, server: str, **more: Any) -> Any:
    return make("demo", "port", network_id=network["id"], device_id=server, device_owner="compute:nova", **more)


def test_port_document(cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make) -> None:
    network, _subnet = lan
    remote, group = make("demo", "security_group"), make("demo", "security_group")
    demo.create(
        "security_group_rule",
        security_group_id=group["id"],
        direction="ingress",
        protocol="tcp",
        port_range_min=22,
        port_range_max=23,
        remote_group_id=remote["id"],
    )
    peer = on_server(make, network, "peer", security_groups=[remote["id"]],
                     allowed_address_pairs=[{"ip_address": "10.30.0.240"}])  # fmt: skip
    port = on_server(make, network, "server", security_groups=[group["id"]])
    bind(admin, port, "fake-1")
    doc = document(cloud, "fake-1", "port", port["id"])
    assert (doc.id, doc.generation, doc.mac_address) == (port["id"], 7, port["mac_address"])
    assert [ip.ip_address for ip in doc.fixed_ips] == [port["fixed_ips"][0]["ip_address"]]
    assert (doc.segment.network_type, doc.segment.mtu) == ("vxlan", 1450)
    rule = next(rule for rule in doc.rules if rule.direction == "ingress")
    assert (rule.protocol, rule.port_range_min, rule.port_range_max) == ("tcp", 22, 23)
    assert rule.remote_group_id == remote["id"]
    members = document(cloud, "fake-1", "group", remote["id"]).members
    assert members == sorted([peer["fixed_ips"][0]["ip_address"], "10.30.0.240"])
    assert doc.dhcp_servers == ["10.30.0.2"]
    assert document(cloud, "fake-2", "port", port["id"]) is None


def test_what_changes_a_port_document(cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make) -> None:
    network, subnet = lan
    remote, group = make("demo", "security_group"), make("demo", "security_group")
    port = on_server(make, network, "server", security_groups=[group["id"]])
    assert generation(cloud, "fake-1", "port", port["id"]) == 0
    bind(admin, port, "fake-1")
    last = generation(cloud, "fake-1", "port", port["id"])
    assert last > 0

    def changed() -> bool:
        nonlocal last
        before, last = last, generation(cloud, "fake-1", "port", port["id"])
        return last > before

    rule = demo.create(
        "security_group_rule", security_group_id=group["id"], direction="ingress", remote_group_id=remote["id"]
    )
    assert changed()
    member = on_server(make, network, "member", security_groups=[remote["id"]])
    demo.update("port", member["id"], fixed_ips=[{"ip_address": "10.30.0.99"}])
    admin.delete("port", member["id"])
    assert not changed()  # who is in the group is in a document of its own
    demo.delete("security_group_rule", rule["id"])
    assert changed()
    demo.update("subnet", subnet["id"], dns_nameservers=["9.9.9.9"])
    assert changed()
    demo.update("port", port["id"], admin_state_up=False)
    assert changed()
    make("demo", "security_group")
    assert not changed()
    bind(admin, port, "fake-2")
    assert document(cloud, "fake-1", "port", port["id"]) is None
    holders = cloud.db.read(lambda tx: cloud.control.desired.holders(tx, "port", port["id"]))
    assert holders == ["fake-2"]
    admin.delete("port", port["id"])
    assert cloud.db.read(lambda tx: cloud.control.desired.holders(tx, "port", port["id"])) == []


def test_members_of_a_group_are_told_to_the_hosts_whose_rules_refer_to_it(
    cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make
) -> None:
    network, _ = lan
    remote, group = make("demo", "security_group"), make("demo", "security_group")
    port = on_server(make, network, "server", security_groups=[group["id"]])
    bind(admin, port, "fake-1")
    last = 0

    def changed() -> bool:
        nonlocal last
        before, last = last, generation(cloud, "fake-1", "group", remote["id"])
        return last > before

    assert not changed()
    values = {"direction": "ingress", "remote_group_id": remote["id"]}
    demo.create("security_group_rule", security_group_id=group["id"], **values)
    assert changed()
    member = on_server(make, network, "member", security_groups=[remote["id"]])
    assert changed()
    demo.update("port", member["id"], fixed_ips=[{"ip_address": "10.30.0.98"}])
    assert changed()
    assert document(cloud, "fake-1", "group", remote["id"]).members == ["10.30.0.98"]
    admin.delete("port", member["id"])
    assert changed()
    assert generation(cloud, "fake-2", "group", remote["id"]) == 0
    bind(admin, port, "fake-2")
    assert generation(cloud, "fake-2", "group", remote["id"]) > 0
    reconcile_documents(cloud.control.network)  # nothing on the first host refers to it any more
    assert cloud.db.read(lambda tx: cloud.control.desired.holders(tx, "group", remote["id"])) == ["fake-2"]


def test_a_new_host_of_a_tunnelled_network_is_a_peer_of_the_others(
    cloud: Cloud, admin: Net, lan: Any, make: Make
) -> None:
    network, _ = lan
    (served,) = {p["binding:host_id"] for p in admin.list("port", f"network_id={network['id']}")}
    elsewhere = next(name for name in ("fake-1", "fake-2") if name != served)
    port = on_server(make, network, "server")
    before = generation(cloud, served, "network", network["id"])
    assert document(cloud, served, "network", network["id"]).segment.peers == []
    bind(admin, port, elsewhere)
    assert generation(cloud, served, "network", network["id"]) > before
    assert document(cloud, served, "network", network["id"]).segment.peers == ["127.0.0.1"]
    assert document(cloud, elsewhere, "port", port["id"]).segment.peers == ["127.0.0.1"]


def test_network_document(cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make) -> None:
    network, _subnet = lan
    (dhcp,) = admin.list("port", f"network_id={network['id']}&device_owner=network:dhcp")
    host = dhcp["binding:host_id"]
    port = on_server(make, network, "server-1", dns_name="web",
                     extra_dhcp_opts=[{"opt_name": "bootfile-name", "opt_value": "x"}])  # fmt: skip
    assert document(cloud, host, "network", network["id"]).hosts == []  # nowhere yet
    bind(admin, port, "fake-1")
    doc = document(cloud, host, "network", network["id"])
    assert (doc.subnets[0].cidr, doc.subnets[0].gateway_ip, doc.subnets[0].dhcp_ip) == (
        "10.30.0.0/24", "10.30.0.1", "10.30.0.2",
    )  # fmt: skip
    assert doc.dhcp_port.id == dhcp["id"]
    assert doc.dns_domain == "openstacklocal"
    (entry,) = doc.hosts
    assert (entry.hostname, entry.mac_address) == ("web", port["mac_address"])
    assert entry.extra_dhcp_opts[0]["opt_name"] == "bootfile-name"
    assert doc.metadata == {port["fixed_ips"][0]["ip_address"]: "server-1"}
    admin.delete("port", port["id"])
    assert document(cloud, host, "network", network["id"]).metadata == {}


def test_router_document(cloud: Cloud, admin: Net, demo: Net, lan: Any, outside: Any, make: Make) -> None:
    network, subnet = lan
    router = make("demo", "router", external_gateway_info={"network_id": outside[0]["id"]})
    demo.api.put("network", f"/routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    port = on_server(make, network, "server-2")
    bind(admin, port, "fake-1")
    floating = make("demo", "floatingip", floating_network_id=outside[0]["id"], port_id=port["id"])
    route = {"destination": "10.99.0.0/16", "nexthop": "10.30.0.66"}
    demo.update("router", router["id"], routes=[route])
    host = cloud.db.read(lambda tx: cloud.control.network.agents.router_host(tx, router["id"]))
    doc = document(cloud, host, "router", router["id"])
    gateway = router["external_gateway_info"]["external_fixed_ips"][0]["ip_address"]
    assert [ip.ip_address for ip in doc.gateway.port.fixed_ips] == [gateway]
    assert doc.gateway.subnets[0].gateway_ip == "198.51.100.1"
    (leg,) = doc.interfaces
    assert [ip.ip_address for ip in leg.port.fixed_ips] == ["10.30.0.1"]
    assert (doc.enable_snat, doc.admin_state_up) == (True, True)
    assert [(r.destination, r.nexthop) for r in doc.routes] == [(route["destination"], route["nexthop"])]
    address = port["fixed_ips"][0]["ip_address"]
    (given,) = doc.floating_ips
    assert (given.floating_ip_address, given.fixed_ip_address) == (floating["floating_ip_address"], address)
    assert doc.metadata == {f"{network['id']}/{address}": "server-2"}
    cloud.wait(lambda: demo.get("floatingip", floating["id"])["status"] == "ACTIVE")
    demo.update("floatingip", floating["id"], port_id=None)
    assert document(cloud, host, "router", router["id"]).floating_ips == []
    other = next(name for name in ("fake-1", "fake-2") if name != host)
    assert document(cloud, other, "router", router["id"]) is None


def test_ports_come_up_and_go_down(cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make) -> None:
    port = on_server(make, lan[0], "server-3")
    network = cloud.control.network
    assert demo.get("port", port["id"])["status"] == "DOWN"
    bind(admin, port, "fake-1")
    cloud.wait(lambda: demo.get("port", port["id"])["status"] == "ACTIVE")
    assert cloud.db.read(lambda tx: network.ports_active(tx, "server-3"))
    cloud.db.write(lambda tx: network.server_power(tx, "server-3", False))
    assert demo.get("port", port["id"])["status"] == "DOWN"
    cloud.db.write(lambda tx: network.server_power(tx, "server-3", True))
    assert demo.get("port", port["id"])["status"] == "ACTIVE"
    demo.update("port", port["id"], admin_state_up=False)
    assert demo.get("port", port["id"])["status"] == "DOWN"
