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
