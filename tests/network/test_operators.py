"""What administrators see and do: agents, scheduling, quotas, providers, use of addresses; and races on quotas."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Net, error
from tests.support.cloud import Cloud, unique

Make = Callable[..., Any]
NOWHERE = "3e6f6d5c-7d3d-4b5e-9f3e-0f7e3b1c0000"


def test_agents(cloud: Cloud, admin: Net, demo: Net) -> None:
    agents = admin.list("agent")
    of_first = {agent["binary"]: agent for agent in agents if agent["host"] == "fake-1"}
    assert {"neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent"} <= set(of_first)
    assert all(agent["alive"] for agent in of_first.values())
    one = of_first["neutron-dhcp-agent"]
    assert (one["agent_type"], one["topic"], one["availability_zone"]) == ("DHCP agent", "dhcp_agent", "nova")
    assert admin.update("agent", one["id"], admin_state_up=False, description="off")["admin_state_up"] is False
    assert admin.get("agent", one["id"])["description"] == "off"
    admin.update("agent", one["id"], admin_state_up=True, description=None)
    assert {a["binary"] for a in admin.list("agent", "agent_type=L3+agent")} == {"neutron-l3-agent"}
    assert error(admin.put("agent", one["id"], host="x")) == (400, "HTTPBadRequest")
    assert error(admin.put("agent", NOWHERE, description="x")) == (404, "AgentNotFound")
    assert demo.list("agent") == []
    assert demo.api.get("network", f"/agents/{one['id']}").status == 404


def test_dhcp_is_scheduled_and_moved(admin: Net, demo: Net, lan: Any) -> None:
    network, _ = lan
    path = f"/networks/{network['id']}/dhcp-agents"
    serving = admin.api.get("network", path)["agents"]
    assert len(serving) == 1
    agents = admin.list("agent", "binary=neutron-dhcp-agent")
    spare = next(agent for agent in agents if agent["id"] != serving[0]["id"])
    added = admin.api.post("network", f"/agents/{spare['id']}/dhcp-networks", {"network_id": network["id"]})
    assert added.status == 201
    again = admin.api.post("network", f"/agents/{spare['id']}/dhcp-networks", {"network_id": network["id"]})
    assert error(again) == (409, "NetworkHostedByDHCPAgent")
    query = f"network_id={network['id']}&device_owner=network:dhcp"
    assert len(admin.list("port", query)) == 2
    hosted = admin.api.get("network", f"/agents/{spare['id']}/dhcp-networks")["networks"]
    assert network["id"] in {n["id"] for n in hosted}
    assert admin.api.delete("network", f"/agents/{serving[0]['id']}/dhcp-networks/{network['id']}").status == 204
    assert [port["binding:host_id"] for port in admin.list("port", query)] == [spare["host"]]
    assert demo.api.get("network", path).status == 403


def test_router_is_scheduled_and_moved(cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make) -> None:
    router = make("demo", "router")
    assert admin.api.get("network", f"/routers/{router['id']}/l3-agents")["agents"] == []
    added = demo.api.put("network", f"/routers/{router['id']}/add_router_interface", {"subnet_id": lan[1]["id"]})
    port = added["port_id"]
    (agent,) = admin.api.get("network", f"/routers/{router['id']}/l3-agents")["agents"]
    cloud.wait(lambda: demo.get("port", port)["status"] == "ACTIVE")
    spare = next(a for a in admin.list("agent", "binary=neutron-l3-agent") if a["id"] != agent["id"])
    refused = admin.api.post("network", f"/agents/{spare['id']}/l3-routers", {"router_id": router["id"]})
    assert error(refused) == (409, "RouterHostedByL3Agent")
    assert admin.api.delete("network", f"/agents/{agent['id']}/l3-routers/{router['id']}").status == 204
    added = admin.api.post("network", f"/agents/{spare['id']}/l3-routers", {"router_id": router["id"]})
    assert added.status == 201
    hosted = admin.api.get("network", f"/agents/{spare['id']}/l3-routers")
    assert (hosted.status, router["id"] in {one["id"] for one in hosted["routers"]}) == (200, True)
    left = admin.api.get("network", f"/agents/{agent['id']}/l3-routers")
    assert router["id"] not in {one["id"] for one in left["routers"]}
    assert error(demo.api.get("network", f"/agents/{spare['id']}/l3-routers")) == (403, "PolicyNotAuthorized")
    assert error(admin.api.get("network", f"/agents/{NOWHERE}/l3-routers")) == (404, "AgentNotFound")
    cloud.wait(lambda: admin.get("port", port)["binding:host_id"] == spare["host"])
    cloud.wait(lambda: demo.get("port", port)["status"] == "ACTIVE")
    wrong = admin.api.post("network", f"/agents/{spare['id']}/dhcp-networks", {"network_id": lan[0]["id"]})
    assert error(wrong) == (400, "InvalidDHCPAgent")


def test_zones_and_extensions(admin: Net, demo: Net) -> None:
    zones = demo.api.get("network", "/availability_zones")["availability_zones"]
    assert {(zone["name"], zone["resource"]) for zone in zones} == {("nova", "network"), ("nova", "router")}
    assert error(demo.post("network", availability_zone_hints=["mars"])) == (404, "AvailabilityZoneNotFound")
    extensions = demo.api.get("network", "/extensions")["extensions"]
    assert "router" in {extension["alias"] for extension in extensions}
    assert demo.api.get("network", "/extensions/router")["extension"]["alias"] == "router"
    assert demo.api.get("network", "/extensions/warp-drive").status == 404
    assert demo.api.get("network", "/service-providers").body == {"service_providers": []}


def test_quotas(admin: Net, demo: Net, other: Net) -> None:
    project = other.api.project_id
    path = f"/quotas/{project}"
    default = admin.api.get("network", f"{path}/default")["quota"]
    assert (default["network"], default["port"], default["router"]) == (100, 500, 10)
    assert admin.api.put("network", path, {"quota": {"router": 1}})["quota"]["router"] == 1
    assert project in {row["project_id"] for row in admin.api.get("network", "/quotas")["quotas"]}
    router = other.create("router", name="only")
    refused = other.post("router", name="second")
    assert error(refused) == (409, "OverQuota")
    details = admin.api.get("network", f"{path}/details")["quota"]
    assert details["router"] == {"limit": 1, "used": 1, "reserved": 0}
    low = admin.api.put("network", path, {"quota": {"router": 0, "check_limit": True}})
    assert error(low) == (400, "InvalidQuotaValue")
    assert error(admin.api.put("network", path, {"quota": {"router": "x"}})) == (400, "HTTPBadRequest")
    assert error(admin.api.put("network", path, {"quota": {"magic": 1}})) == (400, "HTTPBadRequest")
    assert error(demo.api.put("network", path, {"quota": {"router": 9}})) == (403, "PolicyNotAuthorized")
    assert error(demo.api.get("network", path)) == (403, "PolicyNotAuthorized")
    assert admin.api.delete("network", path).status == 204
    assert admin.api.get("network", path)["quota"]["router"] == 10
    other.delete("router", router["id"])


@pytest.mark.parametrize("word", ["tenant", "project"])
def test_whose_quotas_a_token_means(demo: Net, other: Net, reader: Net, word: str) -> None:
    for user in (demo, other, reader):
        answer = user.api.get("network", f"/quotas/{word}")
        assert answer.status == 200
        assert answer["tenant"]["tenant_id"] == user.api.project_id


def test_twenty_at_once_against_a_quota_of_ten(cloud: Cloud, admin: Net, other: Net) -> None:
    path = f"/quotas/{other.api.project_id}"
    admin.api.put("network", path, {"quota": {"subnetpool": 10}})
    name = unique("race")
    statuses: list[int] = []

    def create() -> None:
        values = {"name": name, "prefixes": ["10.0.0.0/8"]}
        statuses.append(Net(cloud, "other").post("subnetpool", **values).status)

    threads = [threading.Thread(target=create) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pools = other.list("subnetpool", f"name={name}")
    for pool in pools:
        other.delete("subnetpool", pool["id"])
    admin.api.delete("network", path)
    assert sorted(statuses) == [201] * 10 + [409] * 10
    assert len(pools) == 10


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"provider:network_type": "token-ring"}, (400, "InvalidInput")),
        ({"provider:segmentation_id": 5}, (400, "InvalidInput")),
        ({"provider:network_type": "vxlan", "provider:physical_network": "public"}, (400, "InvalidInput")),
        ({"provider:network_type": "vxlan", "provider:segmentation_id": 2**24}, (400, "InvalidInput")),
        ({"provider:network_type": "flat"}, (400, "InvalidInput")),
        ({"provider:network_type": "flat", "provider:physical_network": "moon"}, (400, "InvalidInput")),
        ({"provider:network_type": "vlan", "provider:physical_network": "public", "provider:segmentation_id": 4095},
         (400, "InvalidInput")),
        ({"mtu": 9000}, (400, "InvalidInput")),
        ({"mtu": 20}, (400, "InvalidInput")),
        ({"mtu": -1}, (400, "HTTPBadRequest")),
    ],
)  # fmt: skip
def test_provider_attributes_refuse(admin: Net, values: dict[str, Any], expected: tuple[int, str]) -> None:
    assert error(admin.post("network", **values)) == expected


def test_provider_networks(admin: Net, demo: Net, make: Make) -> None:
    vlan = {"provider:network_type": "vlan", "provider:physical_network": "public", "provider:segmentation_id": 222}
    network = make("admin", "network", **vlan)
    assert {name: network[name] for name in vlan} == vlan
    assert network["mtu"] == 1500
    assert error(admin.post("network", **vlan)) == (409, "VlanIdInUse")
    assert error(demo.post("network", **vlan)) == (403, "PolicyNotAuthorized")
    small = make("admin", "network", **{"provider:network_type": "vxlan", "mtu": 1300})
    assert small["mtu"] == 1300
    assert small["provider:segmentation_id"] > 0
    moved = admin.put("network", small["id"], **{"provider:segmentation_id": small["provider:segmentation_id"] + 1})
    assert error(moved) == (400, "InvalidInput")


def test_shared_network(admin: Net, demo: Net, other: Net, make: Make) -> None:
    network = make("admin", "network", shared=True)
    make("admin", "subnet", network_id=network["id"], ip_version=4, cidr="10.77.0.0/24")
    assert other.get("network", network["id"])["shared"] is True
    port = make("other", "port", network_id=network["id"])
    assert error(other.put("network", network["id"], name="x")) == (403, "PolicyNotAuthorized")
    chosen = other.post("port", network_id=network["id"], fixed_ips=[{"ip_address": "10.77.0.9"}])
    assert error(chosen) == (403, "PolicyNotAuthorized")
    assert error(admin.put("network", network["id"], shared=False)) == (409, "InvalidSharedSetting")
    assert error(demo.post("network", shared=True)) == (403, "PolicyNotAuthorized")
    refused = admin.delete("network", network["id"])
    assert error(refused) == (409, "NetworkInUse")
    assert port["id"] in refused["NeutronError"]["message"]


def test_use_of_addresses(admin: Net, demo: Net, lan: Any, make: Make) -> None:
    make("demo", "port", network_id=lan[0]["id"])
    found = admin.api.get("network", f"/network-ip-availabilities/{lan[0]['id']}")["network_ip_availability"]
    assert (found["total_ips"], found["used_ips"]) == (253, 2)
    assert found["subnet_ip_availability"][0]["cidr"] == "10.30.0.0/24"
    listed = admin.api.get("network", f"/network-ip-availabilities?network_id={lan[0]['id']}")
    assert [n["network_id"] for n in listed["network_ip_availabilities"]] == [lan[0]["id"]]
    assert demo.api.get("network", "/network-ip-availabilities")["network_ip_availabilities"] == []
    assert admin.api.get("network", f"/network-ip-availabilities/{NOWHERE}").status == 404


def test_versions_and_unknown_paths(cloud: Cloud, demo: Net) -> None:
    import requests

    versions = requests.get(f"{cloud.url}/network/", timeout=10).json()["versions"]
    assert versions[0]["id"] == "v2.0"
    assert requests.get(f"{cloud.url}/network/v2.0/networks", timeout=10).status_code == 401
    assert "resources" in demo.api.get("network", "/").body
    assert error(demo.api.get("network", "/warp-drives")) == (404, "HTTPNotFound")
    assert error(demo.api.request("PATCH", "network", "/networks", {})) == (405, "HTTPMethodNotAllowed")
    assert demo.api.get("network", "/networks.json").status == 200
