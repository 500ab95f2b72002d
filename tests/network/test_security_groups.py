"""Security groups and their rules."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Net, error
from tests.support.cloud import unique

Make = Callable[..., Any]
NOWHERE = "3e6f6d5c-7d3d-4b5e-9f3e-0f7e3b1c0000"


def test_default_group_is_there_from_the_first_look(other: Net, demo: Net, admin: Net) -> None:
    groups = other.list("security_group", "name=default")
    assert len(groups) == 1
    rules = groups[0]["security_group_rules"]
    assert sorted((rule["direction"], rule["ethertype"]) for rule in rules) == [
        ("egress", "IPv4"), ("egress", "IPv6"), ("ingress", "IPv4"), ("ingress", "IPv6"),
    ]  # fmt: skip
    assert all(rule["remote_group_id"] == groups[0]["id"] for rule in rules if rule["direction"] == "ingress")
    assert error(other.delete("security_group", groups[0]["id"])) == (409, "SecurityGroupCannotRemoveDefault")
    renamed = other.put("security_group", groups[0]["id"], name="mine")
    assert error(renamed) == (409, "SecurityGroupCannotUpdateDefault")
    assert error(other.post("security_group", name="default")) == (409, "SecurityGroupDefaultAlreadyExists")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"direction": "sideways"}, (400, "HTTPBadRequest")),
        ({"ethertype": "IPX"}, (400, "SecurityGroupRuleInvalidEtherType")),
        ({"protocol": "smoke"}, (400, "SecurityGroupRuleInvalidProtocol")),
        ({"protocol": "256"}, (400, "SecurityGroupRuleInvalidProtocol")),
        ({"protocol": "ipv6-icmp", "ethertype": "IPv4"}, (400, "SecurityGroupEthertypeConflictWithProtocol")),
        ({"port_range_min": 22, "port_range_max": 22}, (400, "SecurityGroupProtocolRequiredWithPorts")),
        ({"protocol": "tcp", "port_range_min": 23, "port_range_max": 22}, (400, "SecurityGroupInvalidPortRange")),
        ({"protocol": "tcp", "port_range_min": 22}, (400, "SecurityGroupInvalidPortRange")),
        ({"protocol": "tcp", "port_range_min": 1, "port_range_max": 65536}, (400, "SecurityGroupInvalidPortValue")),
        ({"protocol": "tcp", "port_range_min": "x", "port_range_max": 1}, (400, "SecurityGroupInvalidPortValue")),
        ({"protocol": "icmp", "port_range_min": 300}, (400, "SecurityGroupInvalidIcmpValue")),
        ({"protocol": "icmp", "port_range_max": 3}, (400, "SecurityGroupMissingIcmpType")),
        ({"protocol": "vrrp", "port_range_min": 1, "port_range_max": 2}, (400, "SecurityGroupInvalidProtocolForPort")),
        ({"remote_ip_prefix": "10.0.0.0/33"}, (400, "InvalidCIDR")),
        ({"remote_ip_prefix": "2001:db8::/64"}, (400, "SecurityGroupRuleParameterConflict")),
        ({"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": NOWHERE}, (400, "SecurityGroupMultipleRemoteEntites")),
        ({"remote_group_id": NOWHERE}, (404, "SecurityGroupNotFound")),
        ({"security_group_id": NOWHERE}, (404, "SecurityGroupNotFound")),
        ({"colour": "red"}, (400, "HTTPBadRequest")),
    ],
)
def test_rule_refuses(demo: Net, make: Make, values: dict[str, Any], expected: tuple[int, str]) -> None:
    group = make("demo", "security_group")
    body = {"security_group_id": group["id"], "direction": "ingress", **values}
    assert error(demo.post("security_group_rule", **body)) == expected
    assert len(demo.get("security_group", group["id"])["security_group_rules"]) == 2


def test_rules_are_normalised_and_unique(demo: Net, make: Make) -> None:
    group = make("demo", "security_group")
    base = {"security_group_id": group["id"], "direction": "ingress"}
    rule = demo.create("security_group_rule", **base, protocol="TCP", port_range_min="80", port_range_max=80,
                       remote_ip_prefix="10.0.0.5")  # fmt: skip
    assert (rule["protocol"], rule["port_range_min"], rule["remote_ip_prefix"]) == ("tcp", 80, "10.0.0.5/32")
    assert (rule["normalized_cidr"], rule["belongs_to_default_sg"]) == ("10.0.0.5/32", False)
    twice = demo.post("security_group_rule", **base, protocol=6, port_range_min=80, port_range_max=80,
                      remote_ip_prefix="10.0.0.5/32")  # fmt: skip
    assert error(twice) == (409, "SecurityGroupRuleExists")
    assert rule["id"] in twice["NeutronError"]["message"]
    everywhere = demo.create("security_group_rule", **base, protocol="udp", port_range_min=1, port_range_max=2)
    same = demo.post("security_group_rule", **base, protocol="udp", port_range_min=1, port_range_max=2,
                     remote_ip_prefix="0.0.0.0/0")  # fmt: skip
    assert error(same) == (409, "SecurityGroupRuleExists")
    assert demo.delete("security_group_rule", everywhere["id"]).status == 204
    assert error(demo.delete("security_group_rule", everywhere["id"])) == (404, "SecurityGroupRuleNotFound")
    assert demo.put("security_group_rule", rule["id"], description="x").status == 405


def test_bulk_of_rules_refuses_doubles_within(demo: Net, make: Make) -> None:
    group = make("demo", "security_group")
    one = {"security_group_id": group["id"], "direction": "egress", "protocol": "icmp"}
    answer = demo.api.post("network", "/security-group-rules", {"security_group_rules": [one, one]})
    assert error(answer) == (409, "SecurityGroupRuleExists")
    assert len(demo.get("security_group", group["id"])["security_group_rules"]) == 2


def test_groups_belong_to_projects(demo: Net, other: Net, reader: Net, make: Make) -> None:
    group = make("demo", "security_group")
    assert error(other.api.get("network", f"/security-groups/{group['id']}")) == (404, "SecurityGroupNotFound")
    refused = other.post("security_group_rule", security_group_id=group["id"], direction="ingress")
    assert error(refused) == (404, "SecurityGroupNotFound")
    refused = reader.post("security_group_rule", security_group_id=group["id"], direction="ingress")
    assert error(refused) == (403, "PolicyNotAuthorized")
    assert reader.api.get("network", "/security_groups").status == 200  # the other spelling


def test_remote_group_going_takes_rules_with_it(demo: Net, make: Make) -> None:
    group, remote = make("demo", "security_group"), make("demo", "security_group")
    rule = demo.create(
        "security_group_rule", security_group_id=group["id"], direction="ingress", remote_group_id=remote["id"]
    )
    assert demo.delete("security_group", remote["id"]).status == 204
    left = [rule["id"] for rule in demo.get("security_group", group["id"])["security_group_rules"]]
    assert rule["id"] not in left


@pytest.mark.parametrize(("groups", "rules"), [
    ("/security-groups", "/security-group-rules"), ("/security_groups", "/security_group_rules"),
])  # fmt: skip
def test_both_spellings(demo: Net, other: Net, groups: str, rules: str) -> None:
    """A group and a rule from the first call to the last, as old clients and new ones spell them."""
    name = unique("group")
    made = demo.api.post("network", groups, {"security_group": {"name": name, "description": "d"}})
    assert made.status == 201, made.text
    group = made["security_group"]
    one = f"{groups}/{group['id']}"
    assert (group["name"], group["description"], group["stateful"], group["shared"]) == (name, "d", True, False)
    first = sorted((rule["direction"], rule["ethertype"]) for rule in group["security_group_rules"])
    assert first == [("egress", "IPv4"), ("egress", "IPv6")]
    listed = demo.api.get("network", f"{groups}?name={name}")
    assert [found["id"] for found in listed["security_groups"]] == [group["id"]]
    changed = demo.api.put("network", one, {"security_group": {"name": name + "-2", "description": ""}})
    assert (changed.status, changed["security_group"]["name"]) == (200, name + "-2")
    assert changed["security_group"]["revision_number"] > group["revision_number"]
    assert error(other.api.put("network", one, {"security_group": {"name": "x"}})) == (404, "SecurityGroupNotFound")
    assert error(demo.api.put("network", one, {"security_group": {"id": NOWHERE}})) == (400, "HTTPBadRequest")

    body = {"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp", "port_range_min": 80,
            "port_range_max": 81, "description": "web"}  # fmt: skip
    added = demo.api.post("network", rules, {"security_group_rule": body})
    assert added.status == 201, added.text
    rule = added["security_group_rule"]
    assert {key: rule[key] for key in body} == body
    assert (rule["ethertype"], rule["remote_ip_prefix"], rule["remote_group_id"]) == ("IPv4", None, None)
    shown = demo.api.get("network", f"{rules}/{rule['id']}")
    assert (shown.status, shown["security_group_rule"]) == (200, rule)
    assert error(other.api.get("network", f"{rules}/{rule['id']}")) == (404, "SecurityGroupRuleNotFound")
    found = demo.api.get("network", f"{rules}?security_group_id={group['id']}&direction=ingress")
    assert [one["id"] for one in found["security_group_rules"]] == [rule["id"]]
    of_group = demo.api.get("network", one)["security_group"]
    assert of_group["description"] == ""
    assert rule["id"] in {one["id"] for one in of_group["security_group_rules"]}
    assert error(other.api.delete("network", f"{rules}/{rule['id']}")) == (404, "SecurityGroupRuleNotFound")
    assert demo.api.delete("network", f"{rules}/{rule['id']}").status == 204
    assert error(demo.api.get("network", f"{rules}/{rule['id']}")) == (404, "SecurityGroupRuleNotFound")
    assert error(other.api.delete("network", one)) == (404, "SecurityGroupNotFound")
    assert demo.api.delete("network", one).status == 204
    assert error(demo.api.get("network", one)) == (404, "SecurityGroupNotFound")
