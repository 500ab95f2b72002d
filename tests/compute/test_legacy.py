"""Calls of the base version that ended with 2.36 and 2.44."""

from tests.compute.helpers import Nova
from tests.support.cloud import unique


def test_security_groups(nova: Nova) -> None:
    body = {"name": unique("group"), "description": "d"}
    made = nova.post("/os-security-groups", {"security_group": body}, version="2.1")
    assert made.status == 200, made.text
    group = made["security_group"]
    assert (group["rules"], group["description"]) == ([], "d")
    rule = {
        "parent_group_id": group["id"],
        "ip_protocol": "tcp",
        "from_port": 22,
        "to_port": "22",
        "cidr": "10.0.0.0/8",
    }
    added = nova.post("/os-security-group-rules", {"security_group_rule": rule}, version="2.1")
    assert added.status == 200, added.text
    shown = added["security_group_rule"]
    assert (shown["from_port"], shown["ip_range"], shown["group"]) == (22, {"cidr": "10.0.0.0/8"}, {})
    by_group = {
        "parent_group_id": group["id"],
        "ip_protocol": "tcp",
        "from_port": 1,
        "to_port": 2,
        "group_id": group["id"],
    }
    other = nova.post("/os-security-group-rules", {"security_group_rule": by_group}, version="2.1")
    assert other["security_group_rule"]["group"]["name"] == group["name"]
    path = f"/os-security-groups/{group['id']}"
    assert len(nova.get(path, version="2.1")["security_group"]["rules"]) == 2
    assert nova.delete(f"/os-security-group-rules/{shown['id']}", version="2.1").status == 202
    assert nova.put(path, {"security_group": {"name": "n", "description": "e"}}, version="2.1").status == 200
    assert group["id"] in [g["id"] for g in nova.get("/os-security-groups", version="2.1")["security_groups"]]
    assert nova.as_user("other").get(path, version="2.1").status == 404
    assert nova.get("/os-security-groups/x", version="2.1").status == 400
    assert nova.delete(path, version="2.1").status == 202
    assert nova.get(path, version="2.1").status == 404
    assert nova.get("/os-security-groups", version="2.36").status == 404


def test_fixed_ips(nova: Nova) -> None:
    api = nova.cloud.api("demo")
    network = api.post("network", "/networks", {"network": {"name": unique("net")}})["network"]
    subnet = {"network_id": network["id"], "cidr": "10.7.0.0/24", "ip_version": 4}
    assert api.post("network", "/subnets", {"subnet": subnet}).status == 201
    server = nova.boot(networks=[{"uuid": network["id"]}])
    assert nova.act(server, "addFixedIp", {"networkId": network["id"]}, version="2.1").status == 202
    addresses = nova.show(server)["addresses"][network["name"]]
    assert len(addresses) == 2
    gone = {"address": addresses[0]["addr"]}
    assert nova.act(server, "removeFixedIp", gone, version="2.1").status == 202
    assert len(nova.show(server)["addresses"][network["name"]]) == 1
    assert nova.act(server, "removeFixedIp", gone, version="2.1").status == 400
    assert nova.act(server, "addFixedIp", {"networkId": network["id"]}, version="2.44").status == 404
    nova.remove(server)
    assert api.delete("network", f"/networks/{network['id']}").status == 204


def test_floating_ips_of_a_server(nova: Nova) -> None:
    api, admin = nova.cloud.api("demo"), nova.cloud.api("admin")
    outside = admin.post("network", "/networks", {"network": {"name": unique("ext"), "router:external": True}})[
        "network"
    ]
    subnet = {"network_id": outside["id"], "cidr": "198.51.100.0/24", "ip_version": 4, "enable_dhcp": False}
    assert admin.post("network", "/subnets", {"subnet": subnet}).status == 201
    network = api.post("network", "/networks", {"network": {"name": unique("net")}})["network"]
    inside = {"network_id": network["id"], "cidr": "10.7.0.0/24", "ip_version": 4}
    inside = api.post("network", "/subnets", {"subnet": inside})["subnet"]
    gateway = {"network_id": outside["id"]}
    router = api.post("network", "/routers", {"router": {"name": unique("r"), "external_gateway_info": gateway}})[
        "router"
    ]
    path = f"/routers/{router['id']}"
    assert api.put("network", path + "/add_router_interface", {"subnet_id": inside["id"]}).status == 200
    server = nova.boot(networks=[{"uuid": network["id"]}])
    (fixed,) = nova.show(server)["addresses"][network["name"]]
    floating = nova.post("/os-floating-ips", {"pool": outside["name"]}, version="2.1")["floating_ip"]
    one = f"/os-floating-ips/{floating['id']}"
    body = {"address": floating["ip"]}

    assert nova.act(server, "addFloatingIp", body, version="2.44").status == 404
    assert nova.act(server, "addFloatingIp", {"address": "192.0.2.1"}, version="2.43").status == 404
    assert nova.act(server, "addFloatingIp", {}, version="2.43").status == 400
    nowhere = {**body, "fixed_address": "10.7.0.250"}
    assert nova.act(server, "addFloatingIp", nowhere, version="2.43").status == 400
    assert nova.as_user("other").act(server, "addFloatingIp", body, version="2.43").status == 404
    assert nova.act(server, "removeFloatingIp", body, version="2.43").status == 409  # not yet the server's
    added = nova.act(server, "addFloatingIp", {**body, "fixed_address": fixed["addr"]}, version="2.43")
    assert (added.status, added.text) == (202, "")
    shown = nova.get(one, version="2.1")["floating_ip"]
    assert (shown["instance_id"], shown["fixed_ip"]) == (server, fixed["addr"])
    addresses = nova.show(server)["addresses"][network["name"]]
    assert {(a["addr"], a["OS-EXT-IPS:type"]) for a in addresses} == {
        (fixed["addr"], "fixed"), (floating["ip"], "floating"),
    }  # fmt: skip
    removed = nova.act(server, "removeFloatingIp", body, version="2.43")
    assert (removed.status, removed.text) == (202, "")
    assert nova.get(one, version="2.1")["floating_ip"]["instance_id"] is None
    assert len(nova.show(server)["addresses"][network["name"]]) == 1
    assert nova.act(server, "removeFloatingIp", body, version="2.44").status == 404

    assert nova.delete(one, version="2.1").status == 202
    nova.remove(server)
    assert api.put("network", path + "/remove_router_interface", {"subnet_id": inside["id"]}).status == 200
    assert api.delete("network", path).status == 204
    assert api.delete("network", f"/networks/{network['id']}").status == 204
    assert admin.delete("network", f"/networks/{outside['id']}").status == 204
