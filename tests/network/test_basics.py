"""The usual path through the network API with openstacksdk and the `openstack` command."""

from typing import Any

import pytest

from tests.support.cloud import Cloud, unique


@pytest.fixture
def network(cloud: Cloud) -> Any:
    sdk = cloud.connect("demo")
    made = sdk.network.create_network(name=unique("net"))
    yield made
    for port in sdk.network.ports(network_id=made.id):
        if not port.device_owner.startswith("network:"):
            sdk.network.delete_port(port)
    sdk.network.delete_network(made)


@pytest.fixture
def subnet(cloud: Cloud, network: Any) -> Any:
    return cloud.connect("demo").network.create_subnet(
        network_id=network.id, ip_version=4, cidr="10.20.0.0/24", name=unique("subnet")
    )


def test_network_has_upstreams_shape(cloud: Cloud, network: Any) -> None:
    body = cloud.api("demo").get("network", f"/networks/{network.id}")["network"]
    assert body["status"] == "ACTIVE"
    assert body["admin_state_up"] is True
    assert body["mtu"] == 1450
    assert body["subnets"] == []
    assert body["project_id"] == body["tenant_id"] == cloud.api("demo").project_id
    assert "provider:network_type" not in body  # for administrators only
    admin = cloud.api("admin").get("network", f"/networks/{network.id}")["network"]
    assert admin["provider:network_type"] == "vxlan"
    assert admin["provider:segmentation_id"] >= 1


def test_subnet_takes_the_usual_defaults(cloud: Cloud, subnet: Any, network: Any) -> None:
    assert subnet.gateway_ip == "10.20.0.1"
    assert subnet.allocation_pools == [{"start": "10.20.0.2", "end": "10.20.0.254"}]
    assert subnet.is_dhcp_enabled
    assert cloud.connect("demo").network.get_network(network.id).subnet_ids == [subnet.id]


def test_dhcp_port_is_reserved_and_comes_up(cloud: Cloud, subnet: Any, network: Any) -> None:
    ports = list(cloud.connect("admin").network.ports(network_id=network.id, device_owner="network:dhcp"))
    assert len(ports) == 1
    assert ports[0].fixed_ips == [{"subnet_id": subnet.id, "ip_address": "10.20.0.2"}]
    assert ports[0].binding_host_id in cloud.hosts
    cloud.wait(lambda: cloud.connect("admin").network.get_port(ports[0].id).status == "ACTIVE")


def test_port_gets_an_address_and_the_default_group(cloud: Cloud, subnet: Any, network: Any) -> None:
    sdk = cloud.connect("demo")
    port = sdk.network.create_port(network_id=network.id, name=unique("port"))
    assert port.fixed_ips == [{"subnet_id": subnet.id, "ip_address": "10.20.0.3"}]
    assert port.mac_address.startswith("fa:16:3e:")
    assert port.status == "DOWN"
    group = sdk.network.find_security_group("default")
    assert port.security_group_ids == [group.id]
    before = port.revision_number
    updated = sdk.network.update_port(port, name="renamed", fixed_ips=[{"ip_address": "10.20.0.77"}])
    assert updated.name == "renamed"
    assert [ip["ip_address"] for ip in updated.fixed_ips] == ["10.20.0.77"]
    assert updated.revision_number > before


def test_router_and_floating_ip(cloud: Cloud, subnet: Any, network: Any) -> None:
    admin, sdk = cloud.connect("admin"), cloud.connect("demo")
    outside = admin.network.create_network(name=unique("ext"), is_router_external=True)
    admin.network.create_subnet(
        network_id=outside.id, ip_version=4, cidr="203.0.113.0/24", enable_dhcp=False, gateway_ip="203.0.113.1"
    )
    router = sdk.network.create_router(name=unique("r"), external_gateway_info={"network_id": outside.id})
    assert router.external_gateway_info["enable_snat"] is True
    assert router.external_gateway_info["external_fixed_ips"][0]["ip_address"] == "203.0.113.2"
    added = sdk.network.add_interface_to_router(router, subnet_id=subnet.id)
    assert added["subnet_id"] == subnet.id
    port = sdk.network.create_port(network_id=network.id)
    floating = sdk.network.create_ip(floating_network_id=outside.id, port_id=port.id)
    assert floating.fixed_ip_address == port.fixed_ips[0]["ip_address"]
    assert floating.router_id == router.id
    cloud.wait(lambda: sdk.network.get_ip(floating.id).status == "ACTIVE")
    answer = cloud.api("demo").put("network", f"/routers/{router.id}/remove_router_interface", {"subnet_id": subnet.id})
    assert answer.status == 409
    assert answer["NeutronError"]["type"] == "RouterInterfaceInUseByFloatingIP"
    assert cloud.api("demo").delete("network", f"/routers/{router.id}")["NeutronError"]["type"] == "RouterInUse"
    floating = sdk.network.update_ip(floating, port_id=None)
    assert floating.status == "DOWN"
    assert floating.port_id is None
    sdk.network.delete_ip(floating)
    sdk.network.remove_interface_from_router(router, subnet_id=subnet.id)
    sdk.network.delete_router(router)
    admin.network.delete_network(outside)


def test_security_group_and_rules(cloud: Cloud) -> None:
    sdk = cloud.connect("demo")
    group = sdk.network.create_security_group(name=unique("sg"), description="for a test")
    assert len(group.security_group_rules) == 2
    rule = sdk.network.create_security_group_rule(
        security_group_id=group.id, direction="ingress", protocol="tcp", port_range_min=22, port_range_max=22
    )
    assert rule.ether_type == "IPv4"
    twice = cloud.api("demo").post(
        "network",
        "/security-group-rules",
        {
            "security_group_rule": {
                "security_group_id": group.id,
                "direction": "ingress",
                "protocol": "6",
                "port_range_min": 22,
                "port_range_max": 22,
            }
        },
    )
    assert (twice.status, twice["NeutronError"]["type"]) == (409, "SecurityGroupRuleExists")
    sdk.network.delete_security_group_rule(rule)
    sdk.network.delete_security_group(group)
    assert sdk.network.find_security_group(group.id, ignore_missing=True) is None


def test_openstack_command(cloud: Cloud) -> None:
    name = unique("cli")
    made = cloud.openstack("demo", "network", "create", name)
    cloud.openstack("demo", "subnet", "create", "--network", name, "--subnet-range", "10.9.0.0/24", name)
    cloud.openstack("demo", "router", "create", name)
    cloud.openstack("demo", "router", "add", "subnet", name, name)
    port = cloud.openstack("demo", "port", "create", "--network", name, "--fixed-ip", "ip-address=10.9.0.50", name)
    assert port["fixed_ips"][0]["ip_address"] == "10.9.0.50"
    assert name in [row["Name"] for row in cloud.openstack("demo", "network", "list")]
    cloud.openstack("demo", "network", "set", "--tag", "blue", name)
    assert cloud.openstack("demo", "network", "show", name)["tags"] == ["blue"]
    assert [row["ID"] for row in cloud.openstack("demo", "network", "list", "--tags", "blue")] == [made["id"]]
    cloud.openstack("demo", "security", "group", "create", name)
    cloud.openstack("demo", "security", "group", "rule", "create", "--protocol", "icmp", name)
    rules = cloud.openstack("demo", "security", "group", "rule", "list", name)
    assert "icmp" in [rule["IP Protocol"] for rule in rules]
    agents = cloud.openstack("admin", "network", "agent", "list")
    assert {"neutron-dhcp-agent", "neutron-l3-agent"} <= {agent["Binary"] for agent in agents}
    cloud.openstack("demo", "port", "delete", name)
    cloud.openstack("demo", "router", "remove", "subnet", name, name)
    cloud.openstack("demo", "router", "delete", name)
    cloud.openstack("demo", "security", "group", "delete", name)
    cloud.openstack("demo", "network", "delete", name)


def test_network_is_changed(cloud: Cloud, network: Any) -> None:
    demo, path = cloud.api("demo"), f"/networks/{network.id}"
    before = demo.get("network", path)["network"]
    changed = demo.put("network", path, {"network": {"name": "new", "description": "d", "admin_state_up": False}})
    assert changed.status == 200, changed.text
    body = changed["network"]
    assert (body["name"], body["description"], body["admin_state_up"]) == ("new", "d", False)
    assert body["revision_number"] > before["revision_number"]
    assert demo.get("network", path)["network"] == body
    smaller = demo.put("network", path, {"network": {"mtu": 1400, "port_security_enabled": False}})["network"]
    assert (smaller["mtu"], smaller["port_security_enabled"]) == (1400, False)

    def refused(user: str, **values: Any) -> tuple[int, str]:
        answer = cloud.api(user).put("network", path, {"network": values})
        return answer.status, answer["NeutronError"]["type"]

    assert refused("demo", mtu=9999) == (400, "InvalidInput")
    assert refused("demo", status="DOWN") == (400, "HTTPBadRequest")
    assert refused("demo", shared=True) == (403, "PolicyNotAuthorized")
    assert refused("reader", name="mine") == (403, "PolicyNotAuthorized")
    assert refused("other", name="mine") == (404, "NetworkNotFound")
    stale = demo.put("network", path, {"network": {"name": "x"}}, headers={"If-Match": "revision_number=0"})
    assert stale.status == 412
    assert demo.get("network", path)["network"]["name"] == "new"
