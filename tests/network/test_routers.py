"""Routers and floating IPs: gateways, interfaces, routes, association, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Net, error

Make = Callable[..., Any]
NOWHERE = "3e6f6d5c-7d3d-4b5e-9f3e-0f7e3b1c0000"


def action(net: Net, where: Any, name: str, /, **body: Any) -> Any:
    return net.api.put("network", f"/routers/{where['id']}/{name}", body)


@pytest.fixture
def routed(demo: Net, make: Make, lan: Any, outside: Any) -> Any:
    """A router between `lan` and `outside`."""
    router = make("demo", "router", external_gateway_info={"network_id": outside[0]["id"]})
    assert action(demo, router, "add_router_interface", subnet_id=lan[1]["id"]).status == 200
    return router


def test_gateway_comes_and_goes(demo: Net, admin: Net, make: Make, outside: Any) -> None:
    router = make("demo", "router")
    assert (router["external_gateway_info"], router["status"], router["routes"]) == (None, "ACTIVE", [])
    changed = demo.update("router", router["id"], external_gateway_info={"network_id": outside[0]["id"]})
    address = changed["external_gateway_info"]["external_fixed_ips"][0]
    assert address["subnet_id"] == outside[1]["id"]
    ports = admin.list("port", f"device_id={router['id']}")
    assert [port["device_owner"] for port in ports] == ["network:router_gateway"]
    assert ports[0]["project_id"] == ""
    assert error(admin.delete("port", ports[0]["id"])) == (409, "ServicePortInUse")
    assert error(admin.put("network", outside[0]["id"], **{"router:external": False})) == (409, "ExternalNetworkInUse")
    assert demo.update("router", router["id"], external_gateway_info={})["external_gateway_info"] is None
    assert admin.list("port", f"device_id={router['id']}") == []


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"network_id": NOWHERE}, (404, "NetworkNotFound")),
        ({"network_id": "x"}, (400, "HTTPBadRequest")),
        ({"network": "x"}, (400, "HTTPBadRequest")),
        ("x", (400, "HTTPBadRequest")),
        ({"enable_snat": True}, (400, "HTTPBadRequest")),
    ],
)
def test_gateway_refuses(demo: Net, make: Make, info: Any, expected: tuple[int, str]) -> None:
    router = make("demo", "router")
    assert error(demo.put("router", router["id"], external_gateway_info=info)) == expected


def test_only_administrators_choose_snat_and_gateway_address(demo: Net, admin: Net, make: Make, outside: Any) -> None:
    router = make("demo", "router")
    chosen = {"network_id": outside[0]["id"], "external_fixed_ips": [{"ip_address": "198.51.100.77"}]}
    refused = demo.put("router", router["id"], external_gateway_info=chosen)
    assert error(refused) == (403, "PolicyNotAuthorized")
    found = admin.update("router", router["id"], external_gateway_info={**chosen, "enable_snat": False})
    assert found["external_gateway_info"]["enable_snat"] is False
    assert found["external_gateway_info"]["external_fixed_ips"][0]["ip_address"] == "198.51.100.77"


def test_gateway_needs_an_external_network(demo: Net, make: Make, lan: Any) -> None:
    refused = demo.post("router", external_gateway_info={"network_id": lan[0]["id"]})
    assert error(refused) == (400, "BadRequest")


def test_interfaces(demo: Net, make: Make, lan: Any) -> None:
    network, subnet = lan
    router = make("demo", "router")
    added = action(demo, router, "add_router_interface", subnet_id=subnet["id"])
    assert added.status == 200
    assert (added["subnet_id"], added["subnet_ids"], added["network_id"]) == (
        subnet["id"], [subnet["id"]], network["id"],
    )  # fmt: skip
    port = demo.get("port", added["port_id"])
    assert port["fixed_ips"] == [{"subnet_id": subnet["id"], "ip_address": "10.30.0.1"}]
    assert (port["device_owner"], port["device_id"]) == ("network:router_interface", router["id"])
    assert error(action(demo, router, "add_router_interface", subnet_id=subnet["id"])) == (400, "BadRequest")
    second = make("demo", "router")
    refused = action(demo, second, "add_router_interface", subnet_id=subnet["id"])
    assert error(refused) == (409, "IpAddressAlreadyAllocated")
    assert error(demo.delete("router", router["id"])) == (409, "RouterInUse")
    assert error(demo.delete("port", port["id"])) == (409, "ServicePortInUse")
    assert error(demo.put("subnet", subnet["id"], gateway_ip="10.30.0.9")) == (409, "GatewayIpInUse")
    assert error(demo.delete("subnet", subnet["id"])) == (409, "SubnetInUse")
    spare = make("demo", "port", network_id=network["id"])
    other_leg = action(demo, second, "add_router_interface", port_id=spare["id"])
    assert other_leg["port_id"] == spare["id"]
    removed = action(demo, router, "remove_router_interface", port_id=port["id"])
    assert removed["port_id"] == port["id"]
    again = action(demo, router, "remove_router_interface", subnet_id=subnet["id"])
    assert error(again) == (404, "RouterInterfaceNotFoundForSubnet")
    assert action(demo, second, "remove_router_interface", subnet_id=subnet["id"]).status == 200
    assert demo.delete("router", router["id"]).status == 204


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "BadRequest")),
        ({"subnet_id": NOWHERE}, (404, "SubnetNotFound")),
        ({"port_id": NOWHERE}, (404, "PortNotFound")),
        ({"subnet_id": "x"}, (400, "HTTPBadRequest")),
        ({"subnet_id": NOWHERE, "port_id": NOWHERE}, (400, "BadRequest")),
    ],
)
def test_interface_refuses(demo: Net, make: Make, body: Any, expected: tuple[int, str]) -> None:
    assert error(action(demo, make("demo", "router"), "add_router_interface", **body)) == expected


def test_subnets_of_one_router_do_not_overlap(demo: Net, make: Make, lan: Any) -> None:
    router = make("demo", "router")
    second = make("demo", "network")
    wide = make("demo", "subnet", network_id=second["id"], ip_version=4, cidr="10.30.0.0/16", gateway_ip="10.30.9.9")
    assert action(demo, router, "add_router_interface", subnet_id=lan[1]["id"]).status == 200
    assert error(action(demo, router, "add_router_interface", subnet_id=wide["id"])) == (400, "BadRequest")


def test_routes(demo: Net, lan: Any, routed: Any) -> None:
    one = {"destination": "10.200.0.0/16", "nexthop": "10.30.0.7"}
    two = {"destination": "10.201.0.0/16", "nexthop": "10.30.0.8"}
    assert demo.update("router", routed["id"], routes=[one])["routes"] == [one]
    assert action(demo, routed, "add_extraroutes", router={"routes": [two]})["router"]["routes"] == [one, two]
    assert action(demo, routed, "remove_extraroutes", router={"routes": [one]})["router"]["routes"] == [two]
    far = {"destination": "10.9.0.0/16", "nexthop": "172.16.0.1"}
    assert error(demo.put("router", routed["id"], routes=[far])) == (400, "InvalidRoutes")
    own = {"destination": "10.9.0.0/16", "nexthop": "10.30.0.1"}
    assert error(demo.put("router", routed["id"], routes=[own])) == (400, "InvalidRoutes")
    refused = action(demo, routed, "remove_router_interface", subnet_id=lan[1]["id"])
    assert error(refused) == (409, "RouterInterfaceInUseByRoute")


def test_floating_ip_life(demo: Net, make: Make, lan: Any, outside: Any, routed: Any) -> None:
    port = make("demo", "port", network_id=lan[0]["id"])
    floating = make("demo", "floatingip", floating_network_id=outside[0]["id"])
    assert (floating["status"], floating["port_id"], floating["port_details"]) == ("DOWN", None, None)
    bound = demo.update("floatingip", floating["id"], port_id=port["id"])
    assert bound["fixed_ip_address"] == port["fixed_ips"][0]["ip_address"]
    assert bound["router_id"] == routed["id"]
    assert bound["port_details"]["mac_address"] == port["mac_address"]
    second = demo.post("floatingip", floating_network_id=outside[0]["id"], port_id=port["id"])
    assert error(second) == (409, "FloatingIPPortAlreadyAssociated")
    clear = demo.put("router", routed["id"], external_gateway_info=None)
    assert error(clear) == (409, "RouterExternalGatewayInUseByFloatingIp")
    assert demo.delete("port", port["id"]).status == 204
    free = demo.get("floatingip", floating["id"])
    assert (free["port_id"], free["fixed_ip_address"], free["router_id"], free["status"]) == (None, None, None, "DOWN")
    assert demo.delete("floatingip", floating["id"]).status == 204
    assert error(demo.delete("floatingip", floating["id"])) == (404, "FloatingIPNotFound")


def test_floating_ip_of_a_chosen_address(demo: Net, admin: Net, make: Make, outside: Any) -> None:
    wanted = {"floating_network_id": outside[0]["id"], "floating_ip_address": "198.51.100.99"}
    assert error(demo.post("floatingip", **wanted)) == (403, "PolicyNotAuthorized")
    assert make("admin", "floatingip", **wanted)["floating_ip_address"] == "198.51.100.99"
    assert error(admin.post("floatingip", **wanted)) == (409, "IpAddressAlreadyAllocated")


def test_floating_ip_refuses(demo: Net, other: Net, make: Make, lan: Any, outside: Any) -> None:
    port = make("demo", "port", network_id=lan[0]["id"])
    there = outside[0]["id"]
    unrouted = demo.post("floatingip", floating_network_id=there, port_id=port["id"])
    assert error(unrouted) == (404, "ExternalGatewayForFloatingIPNotFound")
    assert error(demo.post("floatingip", floating_network_id=lan[0]["id"])) == (400, "BadRequest")
    assert error(demo.post("floatingip", floating_network_id=NOWHERE)) == (404, "NetworkNotFound")
    assert error(demo.post("floatingip", floating_network_id=there, port_id=NOWHERE)) == (404, "PortNotFound")
    assert error(demo.post("floatingip")) == (400, "HTTPBadRequest")
    alone = demo.post("floatingip", floating_network_id=there, fixed_ip_address="10.30.0.9")
    assert error(alone) == (400, "BadRequest")
    foreign = other.post("floatingip", floating_network_id=there, port_id=port["id"])
    assert error(foreign) == (404, "PortNotFound")
    assert demo.list("floatingip", f"floating_network_id={there}") == []


def test_router_belongs_to_its_project(demo: Net, other: Net, reader: Net, make: Make) -> None:
    router = make("demo", "router")
    assert error(other.put("router", router["id"], name="x")) == (404, "RouterNotFound")
    assert error(reader.put("router", router["id"], name="x")) == (403, "PolicyNotAuthorized")
    assert reader.get("router", router["id"])["name"] == router["name"]


def test_external_network_goes_with_idle_floating_ips(admin: Net, demo: Net, outside: Any) -> None:
    floating = demo.create("floatingip", floating_network_id=outside[0]["id"])
    assert admin.delete("network", outside[0]["id"]).status == 204
    assert demo.api.get("network", f"/floatingips/{floating['id']}").status == 404
