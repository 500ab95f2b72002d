"""Subnets and subnet pools: ranges, gateways, pools, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Net, error

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"cidr": "10.0.0.0/33"}, (400, "HTTPBadRequest")),
        ({"cidr": "10.0.0.1/24"}, (400, "HTTPBadRequest")),
        ({"cidr": "nonsense"}, (400, "HTTPBadRequest")),
        ({"cidr": 7}, (400, "HTTPBadRequest")),
        ({"cidr": "2001:db8::/64"}, (400, "InvalidInput")),
        ({"cidr": "224.0.0.0/24"}, (400, "InvalidInput")),
        ({"cidr": "10.0.0.0/31"}, (400, "InvalidInput")),
        ({"cidr": "10.0.0.0/24", "ip_version": 5}, (400, "HTTPBadRequest")),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "10.1.0.1"}, (400, "InvalidInput")),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.255"}, (400, "InvalidInput")),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "x"}, (400, "HTTPBadRequest")),
        (
            {"cidr": "10.0.0.0/24", "allocation_pools": [{"start": "10.0.1.2", "end": "10.0.1.9"}]},
            (400, "OutOfBoundsAllocationPool"),
        ),
        (
            {"cidr": "10.0.0.0/24", "allocation_pools": [{"start": "10.0.0.9", "end": "10.0.0.2"}]},
            (400, "InvalidAllocationPool"),
        ),
        (
            {
                "cidr": "10.0.0.0/24",
                "allocation_pools": [
                    {"start": "10.0.0.2", "end": "10.0.0.9"},
                    {"start": "10.0.0.9", "end": "10.0.0.20"},
                ],
            },
            (409, "OverlappingAllocationPools"),
        ),
        (
            {"cidr": "10.0.0.0/24", "allocation_pools": [{"start": "10.0.0.1", "end": "10.0.0.9"}]},
            (409, "GatewayConflictWithAllocationPools"),
        ),
        ({"cidr": "10.0.0.0/24", "dns_nameservers": ["8.8.8.8", "8.8.8.8"]}, (400, "HTTPBadRequest")),
        (
            {"cidr": "10.0.0.0/24", "dns_nameservers": [f"8.8.8.{n}" for n in range(6)]},
            (400, "DNSNameServersExhausted"),
        ),
        ({"cidr": "10.0.0.0/24", "host_routes": [{"destination": "1.0.0.0/8"}]}, (400, "HTTPBadRequest")),
        ({"cidr": "10.0.0.0/24", "ipv6_ra_mode": "slaac"}, (400, "InvalidInput")),
        ({"cidr": "2001:db8::/80", "ip_version": 6, "ipv6_address_mode": "slaac"}, (400, "InvalidInput")),
        ({"cidr": "10.0.0.0/24", "colour": "blue"}, (400, "HTTPBadRequest")),
        ({"cidr": "10.0.0.0/24", "id": "x"}, (400, "HTTPBadRequest")),
        ({}, (400, "BadRequest")),
        ({"cidr": "10.0.0.0/24", "service_types": ["compute:nova"]}, (403, "PolicyNotAuthorized")),
    ],
)
def test_create_refuses(demo: Net, make: Make, values: dict[str, Any], expected: tuple[int, str]) -> None:
    network = make("demo", "network")
    assert error(demo.post("subnet", **{"network_id": network["id"], "ip_version": 4, **values})) == expected
    assert demo.list("subnet", f"network_id={network['id']}") == []


def test_required_attributes(demo: Net, make: Make) -> None:
    network = make("demo", "network")
    assert error(demo.post("subnet", network_id=network["id"], cidr="10.0.0.0/24")) == (400, "HTTPBadRequest")
    missing = "3e6f6d5c-7d3d-4b5e-9f3e-0f7e3b1c0000"
    assert error(demo.post("subnet", network_id=missing, cidr="10.0.0.0/24", ip_version=4)) == (404, "NetworkNotFound")


def test_overlap_is_refused_within_a_network_only(demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    again = demo.post("subnet", network_id=network["id"], ip_version=4, cidr="10.30.0.128/25")
    assert error(again) == (400, "InvalidInput")
    assert "overlaps with another subnet" in again["NeutronError"]["message"]
    second = make("demo", "network")
    make("demo", "subnet", network_id=second["id"], ip_version=4, cidr="10.30.0.0/24")


def test_subnet_without_gateway_and_with_pools(demo: Net, make: Make) -> None:
    network = make("demo", "network")
    pools = [{"start": "10.0.0.10", "end": "10.0.0.11"}]
    subnet = make(
        "demo",
        "subnet",
        network_id=network["id"],
        ip_version=4,
        cidr="10.0.0.0/24",
        gateway_ip=None,
        enable_dhcp=False,
        allocation_pools=pools,
    )
    assert subnet["gateway_ip"] is None
    assert subnet["allocation_pools"] == pools
    got = [make("demo", "port", network_id=network["id"])["fixed_ips"][0]["ip_address"] for _ in range(2)]
    assert got == ["10.0.0.10", "10.0.0.11"]
    assert error(demo.post("port", network_id=network["id"])) == (409, "IpAddressGenerationFailure")
    outside_pool = make("demo", "port", network_id=network["id"], fixed_ips=[{"ip_address": "10.0.0.99"}])
    assert outside_pool["fixed_ips"][0]["subnet_id"] == subnet["id"]


def test_update(demo: Net, lan: Any) -> None:
    _, subnet = lan
    id = subnet["id"]
    changed = demo.update(
        "subnet",
        id,
        name="new",
        gateway_ip="10.30.0.254",
        allocation_pools=[{"start": "10.30.0.100", "end": "10.30.0.200"}],
        dns_nameservers=["9.9.9.9"],
        host_routes=[{"destination": "10.99.0.0/16", "nexthop": "10.30.0.5"}],
    )
    assert changed["gateway_ip"] == "10.30.0.254"
    assert changed["dns_nameservers"] == ["9.9.9.9"]
    assert changed["revision_number"] == subnet["revision_number"] + 1
    assert error(demo.put("subnet", id, gateway_ip="10.30.0.150")) == (409, "GatewayConflictWithAllocationPools")
    assert error(demo.put("subnet", id, cidr="10.31.0.0/24")) == (400, "HTTPBadRequest")
    assert error(demo.put("subnet", id, name=7)) == (400, "HTTPBadRequest")
    assert demo.update("subnet", id, gateway_ip=None)["gateway_ip"] is None


def test_dhcp_off_takes_the_dhcp_port_away(demo: Net, admin: Net, lan: Any) -> None:
    network, subnet = lan
    query = f"network_id={network['id']}&device_owner=network:dhcp"
    assert len(admin.list("port", query)) == 1
    demo.update("subnet", subnet["id"], enable_dhcp=False)
    assert admin.list("port", query) == []
    demo.update("subnet", subnet["id"], enable_dhcp=True)
    assert len(admin.list("port", query)) == 1


def test_delete_says_what_is_in_the_way(demo: Net, lan: Any, make: Make) -> None:
    network, subnet = lan
    port = make("demo", "port", network_id=network["id"])
    refused = demo.delete("subnet", subnet["id"])
    assert error(refused) == (409, "SubnetInUse")
    assert port["id"] in refused["NeutronError"]["message"]
    demo.delete("port", port["id"])
    assert demo.delete("subnet", subnet["id"]).status == 204
    assert error(demo.delete("subnet", subnet["id"])) == (404, "SubnetNotFound")


def test_slaac_addresses_come_and_go_with_the_subnet(demo: Net, make: Make) -> None:
    network = make("demo", "network")
    port = make("demo", "port", network_id=network["id"], mac_address="fa:16:3e:00:00:01")
    assert port["fixed_ips"] == []
    subnet = make(
        "demo",
        "subnet",
        network_id=network["id"],
        ip_version=6,
        cidr="2001:db8:7::/64",
        ipv6_ra_mode="slaac",
        ipv6_address_mode="slaac",
    )
    assert demo.get("port", port["id"])["fixed_ips"] == [
        {"subnet_id": subnet["id"], "ip_address": "2001:db8:7:0:f816:3eff:fe00:1"}
    ]
    assert demo.delete("subnet", subnet["id"]).status == 204
    assert demo.get("port", port["id"])["fixed_ips"] == []


def test_pool_gives_subnets_out(demo: Net, make: Make) -> None:
    pool = make("demo", "subnetpool", prefixes=["10.64.0.0/22"], default_prefixlen=24, min_prefixlen=23)
    network = make("demo", "network")
    cut = {"network_id": network["id"], "ip_version": 4, "subnetpool_id": pool["id"]}
    assert [make("demo", "subnet", **cut)["cidr"] for _ in range(2)] == ["10.64.0.0/24", "10.64.1.0/24"]
    assert make("demo", "subnet", **cut, prefixlen=23)["cidr"] == "10.64.2.0/23"
    assert error(demo.post("subnet", **cut)) == (400, "SubnetAllocationError")
    assert error(demo.post("subnet", **cut, prefixlen=20)) == (400, "MinPrefixSubnetAllocationError")
    assert error(demo.delete("subnetpool", pool["id"])) == (409, "SubnetPoolDeleteError")
    path = f"/subnetpools/{pool['id']}"
    added = demo.api.put("network", f"{path}/add_prefixes", {"prefixes": ["10.65.0.0/24"]})
    assert added["prefixes"] == ["10.64.0.0/22", "10.65.0.0/24"]
    refused = demo.api.put("network", f"{path}/remove_prefixes", {"prefixes": ["10.64.0.0/24"]})
    assert error(refused) == (409, "IllegalSubnetPoolPrefixUpdate")
    removed = demo.api.put("network", f"{path}/remove_prefixes", {"prefixes": ["10.65.0.0/25"]})
    assert removed["prefixes"] == ["10.64.0.0/22", "10.65.0.128/25"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prefixes": []}, (400, "EmptySubnetPoolPrefixList")),
        ({"prefixes": ["10.0.0.0/8", "2001:db8::/32"]}, (400, "PrefixVersionMismatch")),
        ({"prefixes": ["x"]}, (400, "HTTPBadRequest")),
        (
            {"prefixes": ["10.0.0.0/8"], "min_prefixlen": 30, "max_prefixlen": 20},
            (400, "IllegalSubnetPoolPrefixBounds"),
        ),
        ({"prefixes": ["10.0.0.0/8"], "max_prefixlen": 64}, (400, "IllegalSubnetPoolPrefixBounds")),
        ({"prefixes": ["10.0.0.0/8"], "shared": True}, (403, "PolicyNotAuthorized")),
        ({"prefixes": ["10.0.0.0/8"], "name": ""}, (400, "HTTPBadRequest")),
    ],
)
def test_pool_create_refuses(demo: Net, values: dict[str, Any], expected: tuple[int, str]) -> None:
    assert error(demo.post("subnetpool", **{"name": "pool", **values})) == expected


def test_pool_is_shown_and_changed(demo: Net, other: Net, reader: Net, make: Make) -> None:
    pool = make("demo", "subnetpool", prefixes=["10.64.0.0/22"], default_prefixlen=24)
    assert demo.get("subnetpool", pool["id"]) == pool
    assert reader.get("subnetpool", pool["id"]) == pool
    assert error(other.api.get("network", f"/subnetpools/{pool['id']}")) == (404, "SubnetPoolNotFound")
    changed = demo.update(
        "subnetpool", pool["id"], name="wide", prefixes=["10.64.0.0/22", "10.64.4.0/22"], default_prefixlen=26
    )
    # what lies side by side becomes one
    assert (changed["name"], changed["prefixes"], changed["default_prefixlen"]) == ("wide", ["10.64.0.0/21"], 26)
    assert demo.get("subnetpool", pool["id"]) == changed
    assert changed["revision_number"] > pool["revision_number"]
    assert error(demo.put("subnetpool", pool["id"], prefixes=["10.64.0.0/24"])) == (400, "IllegalSubnetPoolUpdate")
    assert error(demo.put("subnetpool", pool["id"], min_prefixlen=30)) == (400, "IllegalSubnetPoolPrefixBounds")
    assert error(demo.put("subnetpool", pool["id"], shared=True)) == (400, "HTTPBadRequest")
    assert error(other.put("subnetpool", pool["id"], name="mine")) == (404, "SubnetPoolNotFound")
    assert error(reader.put("subnetpool", pool["id"], name="mine")) == (403, "PolicyNotAuthorized")


def test_subnet_is_shown(demo: Net, other: Net, lan: Any) -> None:
    network, subnet = lan
    assert demo.get("subnet", subnet["id"]) == subnet
    assert subnet["network_id"] == network["id"]
    only = demo.api.get("network", f"/subnets/{subnet['id']}?fields=cidr&fields=ip_version")
    assert (only.status, only["subnet"]) == (200, {"cidr": "10.30.0.0/24", "ip_version": 4})
    assert error(other.api.get("network", f"/subnets/{subnet['id']}")) == (404, "SubnetNotFound")
