"""Ports: addresses, security, bulk, what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Net, error
from tests.support.cloud import Cloud

Make = Callable[..., Any]
NOWHERE = "3e6f6d5c-7d3d-4b5e-9f3e-0f7e3b1c0000"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"fixed_ips": [{"ip_address": "10.31.0.9"}]}, (400, "InvalidIpForNetwork")),
        ({"fixed_ips": [{"ip_address": "10.30.0.0"}]}, (400, "InvalidIpForSubnet")),
        ({"fixed_ips": [{"ip_address": "x"}]}, (400, "HTTPBadRequest")),
        ({"fixed_ips": [{"subnet_id": NOWHERE}]}, (400, "InvalidInput")),
        ({"fixed_ips": [{}]}, (400, "HTTPBadRequest")),
        ({"fixed_ips": "x"}, (400, "HTTPBadRequest")),
        ({"fixed_ips": [{"ip_address": f"10.30.0.{n}"} for n in range(10, 16)]}, (400, "InvalidInput")),
        ({"mac_address": "00:00"}, (400, "HTTPBadRequest")),
        ({"mac_address": "01:00:00:00:00:01"}, (400, "HTTPBadRequest")),
        ({"security_groups": [NOWHERE]}, (404, "SecurityGroupNotFound")),
        ({"security_groups": ["x"]}, (400, "HTTPBadRequest")),
        ({"allowed_address_pairs": [{"mac_address": "fa:16:3e:00:00:09"}]}, (400, "AllowedAddressPairsMissingIP")),
        (
            {"port_security_enabled": False, "allowed_address_pairs": [{"ip_address": "1.2.3.4"}]},
            (409, "AddressPairAndPortSecurityRequired"),
        ),
        ({"admin_state_up": "maybe"}, (400, "HTTPBadRequest")),
        ({"device_owner": "network:dhcp" * 30}, (400, "HTTPBadRequest")),
        ({"binding:host_id": "fake-1"}, (403, "PolicyNotAuthorized")),
        ({"binding:vnic_type": "magic"}, (400, "HTTPBadRequest")),
        ({"status": "ACTIVE"}, (400, "HTTPBadRequest")),
        ({"name": "x" * 256}, (400, "HTTPBadRequest")),
        ({"dns_name": "no spaces"}, (400, "HTTPBadRequest")),
        ({"extra_dhcp_opts": [{"opt_name": "x"}]}, (400, "HTTPBadRequest")),
        ({"tags": ["a,b"] * 2}, (400, "HTTPBadRequest")),
    ],
)
def test_create_refuses(demo: Net, lan: Any, values: dict[str, Any], expected: tuple[int, str]) -> None:
    network, _ = lan
    assert error(demo.post("port", network_id=network["id"], **values)) == expected
    assert demo.list("port", f"network_id={network['id']}&device_owner=") == []


def test_address_and_mac_belong_to_one_port(demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    port = make("demo", "port", network_id=network["id"], fixed_ips=[{"ip_address": "10.30.0.40"}])
    same_ip = demo.post("port", network_id=network["id"], fixed_ips=[{"ip_address": "10.30.0.40"}])
    assert error(same_ip) == (409, "IpAddressAlreadyAllocated")
    same_mac = demo.post("port", network_id=network["id"], mac_address=port["mac_address"])
    assert error(same_mac) == (409, "MacAddressInUse")


def test_freed_address_is_given_again(demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    first = make("demo", "port", network_id=network["id"])["fixed_ips"][0]["ip_address"]
    second = make("demo", "port", network_id=network["id"])
    taken = demo.list("port", f"fixed_ips=ip_address={first}&network_id={network['id']}")
    assert demo.delete("port", taken[0]["id"]).status == 204
    assert make("demo", "port", network_id=network["id"])["fixed_ips"][0]["ip_address"] == first
    assert second["fixed_ips"][0]["ip_address"] != first


def test_bulk_is_all_or_nothing(demo: Net, lan: Any) -> None:
    network, _ = lan
    good = [{"network_id": network["id"], "name": f"bulk-{n}", "tags": ["many"]} for n in range(20)]
    answer = demo.api.post("network", "/ports", {"ports": good})
    assert answer.status == 201
    addresses = {p["fixed_ips"][0]["ip_address"] for p in answer["ports"]}
    assert len(addresses) == 20
    assert [p["name"] for p in answer["ports"]] == [p["name"] for p in good]
    assert all(p["tags"] == ["many"] for p in answer["ports"])
    bad = [{"network_id": network["id"], "name": "half"}, {"network_id": NOWHERE}]
    assert error(demo.api.post("network", "/ports", {"ports": bad})) == (404, "NetworkNotFound")
    assert demo.list("port", "name=half") == []
    for port in answer["ports"]:
        assert demo.delete("port", port["id"]).status == 204


@pytest.mark.parametrize("body", [{}, {"ports": []}, {"ports": [1]}, {"port": None}, {"port": [], "x": 1}, [], "x"])
def test_senseless_bodies(demo: Net, body: Any) -> None:
    assert demo.api.post("network", "/ports", body).status == 400


def test_security_follows_port_security(demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    port = make("demo", "port", network_id=network["id"])
    assert len(port["security_groups"]) == 1
    refused = demo.put("port", port["id"], port_security_enabled=False)
    assert error(refused) == (409, "PortSecurityPortHasSecurityGroup")
    off = demo.update("port", port["id"], port_security_enabled=False, security_groups=[])
    assert (off["port_security_enabled"], off["security_groups"]) == (False, [])
    bare = make("demo", "port", network_id=network["id"], port_security_enabled=False)
    assert bare["security_groups"] == []


def test_update(demo: Net, lan: Any, make: Make) -> None:
    network, subnet = lan
    port = make("demo", "port", network_id=network["id"])
    group = make("demo", "security_group")
    changed = demo.update(
        "port",
        port["id"],
        name="changed",
        description="text",
        admin_state_up=False,
        device_id="somewhere",
        device_owner="test:thing",
        security_groups=[group["id"]],
        allowed_address_pairs=[{"ip_address": "10.30.0.0/25"}],
        extra_dhcp_opts=[{"opt_name": "bootfile-name", "opt_value": "x"}],
        fixed_ips=[{"subnet_id": subnet["id"]}, {"subnet_id": subnet["id"], "ip_address": "10.30.0.200"}],
        dns_name="host",
    )
    assert changed["security_groups"] == [group["id"]]
    assert changed["allowed_address_pairs"] == [{"mac_address": port["mac_address"], "ip_address": "10.30.0.0/25"}]
    assert {ip["ip_address"] for ip in changed["fixed_ips"]} == {port["fixed_ips"][0]["ip_address"], "10.30.0.200"}
    assert changed["dns_assignment"][0]["fqdn"] == "host.openstacklocal."
    assert changed["extra_dhcp_opts"] == [{"opt_name": "bootfile-name", "opt_value": "x", "ip_version": 4}]
    cleared = demo.update(
        "port", port["id"], extra_dhcp_opts=[{"opt_name": "bootfile-name", "opt_value": None}], fixed_ips=[]
    )
    assert (cleared["extra_dhcp_opts"], cleared["fixed_ips"]) == ([], [])
    assert error(demo.put("port", port["id"], network_id=network["id"])) == (400, "HTTPBadRequest")
    assert error(demo.delete("security_group", group["id"])) == (409, "SecurityGroupInUse")


def test_filters(demo: Net, lan: Any, make: Make) -> None:
    network, subnet = lan
    group = make("demo", "security_group")
    one = make("demo", "port", network_id=network["id"], fixed_ips=[{"ip_address": "10.30.0.71"}], tags=["red"])
    two = make("demo", "port", network_id=network["id"], security_groups=[group["id"]], admin_state_up=False)
    here = f"network_id={network['id']}&"

    def ids(query: str) -> set[str]:
        return {port["id"] for port in demo.list("port", here + query)}

    assert ids(f"name={one['name']}") == {one["id"]}
    assert ids(f"id={one['id']}&id={two['id']}") == {one["id"], two["id"]}
    assert ids("fixed_ips=ip_address%3D10.30.0.71") == {one["id"]}
    assert ids("fixed_ips=ip_address_substr%3D.0.71") == {one["id"]}
    assert {one["id"], two["id"]} <= ids(f"fixed_ips=subnet_id%3D{subnet['id']}")
    assert ids(f"security_groups={group['id']}") == {two["id"]}
    assert ids("admin_state_up=False") == {two["id"]}
    assert ids("tags=red") == {one["id"]}
    assert one["id"] not in ids("not-tags=red")
    assert ids(f"mac_address={one['mac_address'].upper()}") == {one["id"]}
    assert demo.api.get("network", "/ports?colour=red").status == 400
    assert demo.api.get("network", "/ports?admin_state_up=maybe").status == 400
    listed = demo.list("port", here + "fields=id&fields=name&device_owner=")
    assert all(set(port) == {"id", "name"} for port in listed)


def test_pages_and_sorting(demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        make("demo", "port", network_id=network["id"], name=name)
    path = f"/ports?network_id={network['id']}&device_owner=&sort_key=name&sort_dir=desc&limit=2"
    seen = []
    url: str | None = path
    while url is not None:
        answer = demo.api.get("network", url)
        seen += [port["name"] for port in answer["ports"]]
        links = {link["rel"]: link["href"] for link in answer.body.get("ports_links", [])}
        url = links["next"].partition("/v2.0")[2] if "next" in links else None
    assert seen == names[::-1]
    first = demo.api.get("network", path)["ports"]
    back = demo.api.get("network", f"{path}&page_reverse=True&marker={first[1]['id']}")["ports"]
    assert [port["name"] for port in back] == ["e"]
    assert error(demo.api.get("network", f"/ports?limit=1&marker={NOWHERE}")) == (404, "PortNotFound")
    for wrong in ("limit=-1", "limit=x", "sort_key=colour", "sort_key=name&sort_dir=up", "sort_dir=asc"):
        assert demo.api.get("network", f"/ports?{wrong}").status == 400, wrong


def test_if_match(demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    port = make("demo", "port", network_id=network["id"])
    path = f"/ports/{port['id']}"
    stale = {"If-Match": f"revision_number={port['revision_number'] + 7}"}
    refused = demo.api.put("network", path, {"port": {"name": "x"}}, headers=stale)
    assert error(refused) == (412, "RevisionNumberConstraintFailed")
    assert demo.api.delete("network", path, headers=stale).status == 412
    fresh = {"If-Match": f"revision_number={port['revision_number']}"}
    assert demo.api.put("network", path, {"port": {"name": "x"}}, headers=fresh).status == 200
    assert demo.api.put("network", path, {"port": {"name": "x"}}, headers={"If-Match": "x"}).status == 400


def test_who_may_see_and_change(demo: Net, other: Net, admin: Net, reader: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    port = make("demo", "port", network_id=network["id"])
    assert "binding:host_id" not in port
    assert admin.get("port", port["id"])["binding:vif_type"] == "unbound"
    assert error(other.api.get("network", f"/ports/{port['id']}")) == (404, "PortNotFound")
    assert error(other.put("port", port["id"], name="mine")) == (404, "PortNotFound")
    assert error(other.delete("port", port["id"])) == (404, "PortNotFound")
    assert error(other.post("port", network_id=network["id"])) == (404, "NetworkNotFound")
    assert reader.get("port", port["id"])["id"] == port["id"]
    assert error(reader.put("port", port["id"], name="x")) == (403, "PolicyNotAuthorized")
    assert error(reader.delete("port", port["id"])) == (403, "PolicyNotAuthorized")
    assert error(reader.post("port", network_id=network["id"])) == (403, "PolicyNotAuthorized")
    foreign = demo.post("port", network_id=network["id"], project_id=other.api.project_id)
    assert foreign.status == 400
    assert port["id"] not in {p["id"] for p in other.list("port")}


def test_binding_by_an_administrator(admin: Net, demo: Net, lan: Any, make: Make) -> None:
    network, _ = lan
    port = make("demo", "port", network_id=network["id"])
    bound = admin.update("port", port["id"], **{"binding:host_id": "fake-1"})
    assert bound["binding:vif_type"] in ("ovs", "bridge")
    assert bound["binding:vif_details"]["port_filter"] is True
    assert error(admin.put("port", port["id"], mac_address="fa:16:3e:00:11:22")) == (409, "PortBound")
    failed = admin.update("port", port["id"], **{"binding:host_id": "no-such-host"})
    assert (failed["binding:vif_type"], failed["status"]) == ("binding_failed", "DOWN")
    free = admin.update("port", port["id"], **{"binding:host_id": ""})
    assert (free["binding:vif_type"], free["binding:host_id"]) == ("unbound", "")


def test_tags(demo: Net, lan: Any) -> None:
    network, _ = lan
    path = f"/networks/{network['id']}/tags"
    assert demo.api.put("network", path, {"tags": ["a", "b"]})["tags"] == ["a", "b"]
    assert demo.api.put("network", f"{path}/c").status == 201
    assert demo.api.get("network", f"{path}/c").status == 204
    assert demo.api.delete("network", f"{path}/a").status == 204
    assert error(demo.api.get("network", f"{path}/a")) == (404, "TagNotFound")
    assert sorted(demo.api.post("network", path, {"tags": ["b", "d"]})["tags"]) == ["b", "c", "d"]
    assert network["id"] in {n["id"] for n in demo.list("network", "tags=b,c")}
    assert demo.list("network", "tags=b,nope") == []
    assert demo.api.put("network", path, {"tags": "a"}).status == 400
    assert demo.api.put("network", f"/networks/{NOWHERE}/tags", {"tags": []}).status == 404
    assert demo.api.delete("network", path).status == 204
    assert demo.api.get("network", path)["tags"] == []


def test_two_at_once_do_not_get_one_address(demo: Net, lan: Any) -> None:
    network, _ = lan
    answer = demo.api.post("network", "/ports", {"ports": [{"network_id": network["id"]}] * 2})
    assert answer.status == 201, answer.text
    assert len({port["fixed_ips"][0]["ip_address"] for port in answer["ports"]}) == 2
    for port in answer["ports"]:
        demo.delete("port", port["id"])


def test_addresses_given_back_are_given_out_first_and_no_hint_hides_a_free_one(
    cloud: Cloud, admin: Net, demo: Net, lan: Any, make: Make
) -> None:
    network, subnet = lan

    def port() -> Any:
        return make("demo", "port", network_id=network["id"])

    def position(made: Any) -> int:
        return int(made["fixed_ips"][0]["ip_address"].rpartition(".")[2])

    ports = [port() for _ in range(4)]
    first = position(ports[0])
    assert [position(one) for one in ports] == [first, first + 1, first + 2, first + 3]
    for one in (ports[2], ports[1]):
        admin.delete("port", one["id"])
    assert [position(port()) for _ in range(3)] == [first + 1, first + 2, first + 4]
    frontiers = cloud.control.network.frontiers
    admin.delete("port", ports[0]["id"])
    make("demo", "port", network_id=network["id"], fixed_ips=[{"ip_address": ports[0]["fixed_ips"][0]["ip_address"]}])
    frontiers.given_back([(subnet["id"], first)])  # a hint that is not true any more does not hide those behind it
    admin.delete("port", ports[3]["id"])
    assert position(port()) == first + 3
    frontiers.taken(subnet["id"], 253, searched=True)  # as if another process had given all of them back
    assert position(port()) == 254
    assert [position(port()) for _ in range(2)] == [first + 5, first + 6]


def test_pages_have_ones_own_and_others_in_ones_networks(demo: Net, make: Make, cloud: Cloud) -> None:
    network = make("demo", "network")["id"]
    other = cloud.api("other").project_id
    names = {f"p{number}" for number in range(7)}
    for name in names:  # projects on both sides of one's own, in the order of ids
        project = {"p1": other, "p4": "0" * 32, "p5": "f" * 32}.get(name, demo.api.project_id)
        make("admin", "port", name=name, network_id=network, project_id=project)
    elsewhere = make("other", "network")["id"]
    make("other", "port", network_id=elsewhere)
    for order in ("", "&sort_key=name&sort_dir=desc"):
        seen: list[str] = []
        path = f"/ports?limit=2&device_owner={order}"
        page = demo.api.get("network", path)["ports"]
        while page:
            seen += [port["name"] for port in page if port["network_id"] == network]
            assert elsewhere not in {port["network_id"] for port in page}
            page = demo.api.get("network", f"{path}&marker={page[-1]['id']}")["ports"]
        assert sorted(seen) == sorted(names)
        assert seen == sorted(names, reverse=True) or not order
