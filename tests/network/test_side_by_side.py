# ruff: noqa: B023 - what is made in a loop is called in the same round
"""Changes of networks asked for at once: what comes second sees what came first."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cumulet.agent.contract import Applied
from tests.network.conftest import Net
from tests.support.at_once import at_once, rounds, statuses
from tests.support.cloud import Cloud

Make = Callable[..., Any]


def is_there(net: Net, kind: str, id: str) -> bool:
    return net.api.get("network", f"{net.path(kind)}/{id}").status == 200


def interface(net: Net, router: str, verb: str, **body: str) -> Any:
    return net.api.put("network", f"/routers/{router}/{verb}_router_interface", body)


def new_lan(make: Make, cidr: str = "10.30.0.0/24") -> tuple[Any, Any]:
    network = make("demo", "network")
    return network, make("demo", "subnet", network_id=network["id"], ip_version=4, cidr=cidr)


def test_a_network_goes_while_a_port_comes(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network, _ = new_lan(make)
        gone, made = at_once(
            lambda: demo.delete("network", network["id"]), lambda: demo.post("port", network_id=network["id"])
        )
        assert statuses([gone, made]) in ([204, 404], [409, 201])


def test_a_network_goes_while_a_subnet_comes(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network = make("demo", "network")
        asked = {"network_id": network["id"], "ip_version": 4, "cidr": "10.30.0.0/24"}
        gone, made = at_once(lambda: demo.delete("network", network["id"]), lambda: demo.post("subnet", **asked))
        assert statuses([gone, made]) in ([204, 404], [204, 201])
        assert not is_there(demo, "network", network["id"])


def test_a_subnet_goes_while_a_port_comes(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network, subnet = new_lan(make)
        asked = {"network_id": network["id"], "fixed_ips": [{"subnet_id": subnet["id"]}]}
        gone, made = at_once(lambda: demo.delete("subnet", subnet["id"]), lambda: demo.post("port", **asked))
        assert statuses([gone, made]) in ([204, 400], [409, 201])


def test_a_subnet_goes_while_it_becomes_an_interface(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        _, subnet = new_lan(make)
        router = make("demo", "router")
        gone, added = at_once(
            lambda: demo.delete("subnet", subnet["id"]),
            lambda: interface(demo, router["id"], "add", subnet_id=subnet["id"]),
        )
        assert statuses([gone, added]) in ([204, 404], [409, 200])


def test_a_router_goes_while_an_interface_comes(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network, subnet = new_lan(make)
        router = make("demo", "router")
        gone, added = at_once(
            lambda: demo.delete("router", router["id"]),
            lambda: interface(demo, router["id"], "add", subnet_id=subnet["id"]),
        )
        found = statuses([gone, added])
        assert found in ([204, 404], [409, 200])
        legs = demo.list("port", f"network_id={network['id']}&device_owner=network:router_interface")
        assert len(legs) == (found[1] == 200)


def test_a_router_goes_while_a_port_becomes_its_interface(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network, _ = new_lan(make)
        router, port = make("demo", "router"), make("demo", "port", network_id=network["id"])
        gone, added = at_once(
            lambda: demo.delete("router", router["id"]),
            lambda: interface(demo, router["id"], "add", port_id=port["id"]),
        )
        found = statuses([gone, added])
        assert found in ([204, 404], [409, 200])
        assert demo.get("port", port["id"])["device_id"] == (router["id"] if found[1] == 200 else "")


def test_one_subnet_becomes_an_interface_twice(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        _, subnet = new_lan(make)
        router = make("demo", "router")
        answers = at_once(*[lambda: interface(demo, router["id"], "add", subnet_id=subnet["id"])] * 2)
        assert sorted(statuses(answers)) == [200, 400]


def test_overlapping_subnets_become_interfaces(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        router = make("demo", "router")
        subnets = [new_lan(make)[1], new_lan(make, "10.30.0.0/16")[1]]
        answers = at_once(
            *[lambda subnet=one: interface(demo, router["id"], "add", subnet_id=subnet["id"]) for one in subnets]
        )
        assert sorted(statuses(answers)) == [200, 400]


def test_one_port_becomes_an_interface_of_two_routers(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network, _ = new_lan(make)
        port = make("demo", "port", network_id=network["id"])
        routers = [make("demo", "router"), make("demo", "router")]
        answers = at_once(
            *[lambda router=one: interface(demo, router["id"], "add", port_id=port["id"]) for one in routers]
        )
        assert sorted(statuses(answers)) == [200, 409]


def test_a_port_goes_while_it_becomes_an_interface(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network, _ = new_lan(make)
        router, port = make("demo", "router"), make("demo", "port", network_id=network["id"])
        gone, added = at_once(
            lambda: demo.delete("port", port["id"]), lambda: interface(demo, router["id"], "add", port_id=port["id"])
        )
        assert statuses([gone, added]) in ([204, 404], [409, 200])


class Inside:
    """A router between a network of demo's and one outside, a port and floating IPs."""

    def __init__(self, make: Make, admin: Net) -> None:
        self.outside = make("admin", "network", **{"router:external": True})
        make("admin", "subnet", network_id=self.outside["id"], ip_version=4, cidr="198.51.100.0/24", enable_dhcp=False)
        self.network, self.subnet = new_lan(make)
        self.router = make("demo", "router", external_gateway_info={"network_id": self.outside["id"]})
        assert interface(admin, self.router["id"], "add", subnet_id=self.subnet["id"]).status == 200
        self.make = make
        self.port = self.new_port()

    def new_port(self) -> Any:
        return self.make("demo", "port", network_id=self.network["id"])

    def floating_ip(self) -> Any:
        return self.make("demo", "floatingip", floating_network_id=self.outside["id"])


@pytest.fixture
def inside(make: Make, admin: Net) -> Inside:
    return Inside(make, admin)


def test_two_floating_ips_for_one_address(cloud: Cloud, demo: Net, inside: Inside) -> None:
    for _ in rounds(cloud):
        port = inside.new_port()
        ips = [inside.floating_ip(), inside.floating_ip()]
        answers = at_once(*[lambda ip=one: demo.put("floatingip", ip["id"], port_id=port["id"]) for one in ips])
        assert sorted(statuses(answers)) == [200, 409]


def test_one_floating_ip_for_two_ports(cloud: Cloud, demo: Net, inside: Inside) -> None:
    """Both are done, one after the other."""
    for _ in rounds(cloud):
        ip, ports = inside.floating_ip(), [inside.new_port(), inside.new_port()]
        answers = at_once(*[lambda port=one: demo.put("floatingip", ip["id"], port_id=port["id"]) for one in ports])
        assert statuses(answers) == [200, 200]
        first, last = sorted((one["floatingip"] for one in answers), key=lambda one: one["revision_number"])
        assert first["revision_number"] < last["revision_number"]
        assert demo.get("floatingip", ip["id"])["port_id"] == last["port_id"]


def test_a_port_goes_while_it_gets_a_floating_ip(cloud: Cloud, demo: Net, inside: Inside) -> None:
    for _ in rounds(cloud):
        ip, port = inside.floating_ip(), inside.new_port()
        gone, given = at_once(
            lambda: demo.delete("port", port["id"]), lambda: demo.put("floatingip", ip["id"], port_id=port["id"])
        )
        assert statuses([gone, given]) in ([204, 404], [204, 200])
        found = demo.get("floatingip", ip["id"])
        assert (found["port_id"], found["router_id"], found["status"]) == (None, None, "DOWN")


def test_an_address_goes_while_it_gets_a_floating_ip(cloud: Cloud, demo: Net, inside: Inside) -> None:
    for _ in rounds(cloud):
        ip, port = inside.floating_ip(), inside.new_port()
        changed, given = at_once(
            lambda: demo.put("port", port["id"], fixed_ips=[]),
            lambda: demo.put("floatingip", ip["id"], port_id=port["id"]),
        )
        assert statuses([changed, given]) in ([200, 400], [200, 200])
        assert demo.get("floatingip", ip["id"])["port_id"] is None


def test_an_interface_goes_while_a_floating_ip_needs_it(cloud: Cloud, demo: Net, inside: Inside) -> None:
    for _ in rounds(cloud):
        ip, port = inside.floating_ip(), inside.new_port()
        gone, given = at_once(
            lambda: interface(demo, inside.router["id"], "remove", subnet_id=inside.subnet["id"]),
            lambda: demo.put("floatingip", ip["id"], port_id=port["id"]),
        )
        assert statuses([gone, given]) in ([200, 404], [409, 200])
        if gone.status == 200:
            assert interface(demo, inside.router["id"], "add", subnet_id=inside.subnet["id"]).status == 200


def test_a_gateway_goes_while_a_floating_ip_needs_it(cloud: Cloud, demo: Net, inside: Inside) -> None:
    gateway = {"network_id": inside.outside["id"]}
    for _ in rounds(cloud):
        ip, port = inside.floating_ip(), inside.new_port()
        gone, given = at_once(
            lambda: demo.put("router", inside.router["id"], external_gateway_info=None),
            lambda: demo.put("floatingip", ip["id"], port_id=port["id"]),
        )
        assert statuses([gone, given]) in ([200, 404], [409, 200])
        if gone.status == 200:
            demo.update("router", inside.router["id"], external_gateway_info=gateway)


def test_a_floating_ip_goes_twice(cloud: Cloud, demo: Net, inside: Inside) -> None:
    for _ in rounds(cloud):
        ip = inside.floating_ip()
        assert sorted(statuses(at_once(*[lambda: demo.delete("floatingip", ip["id"])] * 2))) == [204, 404]


def test_an_outside_network_goes_while_it_is_used(cloud: Cloud, demo: Net, admin: Net, make: Make) -> None:
    for _ in rounds(cloud):
        outside = make("admin", "network", **{"router:external": True})
        make("admin", "subnet", network_id=outside["id"], ip_version=4, cidr="198.51.100.0/24", enable_dhcp=False)
        router = make("demo", "router")
        gone, used = at_once(
            lambda: admin.delete("network", outside["id"]),
            lambda: demo.put("router", router["id"], external_gateway_info={"network_id": outside["id"]}),
        )
        assert statuses([gone, used]) in ([204, 404], [409, 200])
        if used.status == 200:
            demo.update("router", router["id"], external_gateway_info=None)


def test_a_network_is_outside_no_more_while_it_is_used(cloud: Cloud, demo: Net, admin: Net, make: Make) -> None:
    for _ in rounds(cloud):
        outside = make("admin", "network", **{"router:external": True})
        make("admin", "subnet", network_id=outside["id"], ip_version=4, cidr="198.51.100.0/24", enable_dhcp=False)
        router = make("demo", "router")
        changed, used = at_once(
            lambda: admin.put("network", outside["id"], **{"router:external": False}),
            lambda: demo.put("router", router["id"], external_gateway_info={"network_id": outside["id"]}),
        )
        assert statuses([changed, used]) in ([200, 404], [200, 400], [409, 200])
        if used.status == 200:
            demo.update("router", router["id"], external_gateway_info=None)


def test_a_network_is_shared_no_more_while_others_use_it(cloud: Cloud, admin: Net, other: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network = make("admin", "network", shared=True)
        changed, made = at_once(
            lambda: admin.put("network", network["id"], shared=False),
            lambda: other.post("port", network_id=network["id"]),
        )
        assert statuses([changed, made]) in ([200, 404], [409, 201])


def test_two_default_networks(cloud: Cloud, admin: Net, make: Make) -> None:
    for _ in rounds(cloud):
        networks = [make("admin", "network", **{"router:external": True}) for _ in range(2)]
        answers = at_once(*[lambda one=one: admin.put("network", one["id"], is_default=True) for one in networks])
        assert sorted(statuses(answers)) == [200, 409]
        for one in networks:
            admin.update("network", one["id"], is_default=False)


def test_two_default_pools(cloud: Cloud, admin: Net, make: Make) -> None:
    pools = [make("admin", "subnetpool", prefixes=[f"10.{n}.0.0/16"], default_prefixlen=24) for n in (61, 62)]
    for _ in rounds(cloud):
        answers = at_once(*[lambda one=one: admin.put("subnetpool", one["id"], is_default=True) for one in pools])
        assert sorted(statuses(answers)) == [200, 400]
        for one in pools:
            admin.update("subnetpool", one["id"], is_default=False)


def test_a_group_goes_while_a_port_takes_it(cloud: Cloud, demo: Net, make: Make) -> None:
    network, _ = new_lan(make)
    for _ in rounds(cloud):
        group = make("demo", "security_group")
        gone, made = at_once(
            lambda: demo.delete("security_group", group["id"]),
            lambda: demo.post("port", network_id=network["id"], security_groups=[group["id"]]),
        )
        assert statuses([gone, made]) in ([204, 404], [409, 201])


def test_a_group_goes_while_a_rule_names_it(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        group, mine = make("demo", "security_group"), make("demo", "security_group")
        asked = {"security_group_id": mine["id"], "direction": "ingress", "remote_group_id": group["id"]}
        gone, made = at_once(
            lambda: demo.delete("security_group", group["id"]), lambda: demo.post("security_group_rule", **asked)
        )
        assert statuses([gone, made]) in ([204, 404], [204, 201])
        rules = demo.get("security_group", mine["id"])["security_group_rules"]
        assert [rule for rule in rules if rule["remote_group_id"]] == []


def test_a_rule_is_made_twice(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        group = make("demo", "security_group")
        asked = {"security_group_id": group["id"], "direction": "ingress", "protocol": "tcp"}
        assert sorted(statuses(at_once(*[lambda: demo.post("security_group_rule", **asked)] * 2))) == [201, 409]


def test_a_group_becomes_stateless_while_a_port_takes_it(cloud: Cloud, demo: Net, make: Make) -> None:
    network, _ = new_lan(make)
    for _ in rounds(cloud):
        group = make("demo", "security_group")
        changed, made = at_once(
            lambda: demo.put("security_group", group["id"], stateful=False),
            lambda: demo.post("port", network_id=network["id"], security_groups=[group["id"]]),
        )
        assert statuses([changed, made]) in ([200, 201], [409, 201])


def test_changes_of_one_port_are_all_kept(cloud: Cloud, demo: Net, make: Make) -> None:
    network, _ = new_lan(make)
    for _ in rounds(cloud):
        port = make("demo", "port", network_id=network["id"])
        answers = at_once(
            lambda: demo.put("port", port["id"], name="new name"),
            lambda: demo.put("port", port["id"], description="new words"),
        )
        assert statuses(answers) == [200, 200]
        found = demo.get("port", port["id"])
        assert (found["name"], found["description"]) == ("new name", "new words")


def test_two_changes_of_one_revision(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network = make("demo", "network")
        body, path = {"network": {"name": "x"}}, f"/networks/{network['id']}"
        headers = {"If-Match": f"revision_number={network['revision_number']}"}
        answers = at_once(*[lambda: demo.api.put("network", path, body, headers=headers)] * 2)
        assert sorted(statuses(answers)) == [200, 412]


def test_a_tag_is_put_twice(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network = make("demo", "network")
        path = f"/networks/{network['id']}/tags/red"
        assert statuses(at_once(*[lambda: demo.api.put("network", path)] * 2)) == [201, 201]


def test_a_tag_comes_while_its_network_goes(cloud: Cloud, demo: Net, make: Make) -> None:
    for _ in rounds(cloud):
        network = make("demo", "network")
        gone, put = at_once(
            lambda: demo.delete("network", network["id"]),
            lambda: demo.api.put("network", f"/networks/{network['id']}/tags/red"),
        )
        assert statuses([gone, put]) in ([204, 404], [204, 201])


def test_a_pool_goes_while_a_subnet_is_cut_from_it(cloud: Cloud, demo: Net, make: Make) -> None:
    network = make("demo", "network")
    for _ in rounds(cloud):
        pool = make("demo", "subnetpool", prefixes=["10.60.0.0/16"], default_prefixlen=24)
        asked = {"network_id": network["id"], "ip_version": 4, "subnetpool_id": pool["id"]}
        gone, made = at_once(lambda: demo.delete("subnetpool", pool["id"]), lambda: demo.post("subnet", **asked))
        assert statuses([gone, made]) in ([204, 404], [409, 201])
        if made.status == 201:
            demo.delete("subnet", made["subnet"]["id"])


def test_quotas_hold(cloud: Cloud, demo: Net, admin: Net, make: Make) -> None:
    used = len(demo.list("router", f"project_id={demo.api.project_id}"))
    path = f"/quotas/{demo.api.project_id}"
    assert admin.api.put("network", path, {"quota": {"router": used + 1}}).status == 200
    answers = at_once(*[lambda: demo.post("router", name="one too many")] * 4)
    assert sorted(statuses(answers)) == [201, 409, 409, 409]
    [made] = [answer["router"]["id"] for answer in answers if answer.status == 201]
    demo.delete("router", made)
    assert admin.api.delete("network", path).status == 204


def test_a_host_reports_what_changes(cloud: Cloud, demo: Net, admin: Net, make: Make, caplog: Any) -> None:
    """Who changes a port and then tells its host, and the report of the host, take the rows in one order: neither has
    to be tried again."""
    network, _ = new_lan(make)
    port = make("admin", "port", network_id=network["id"], **{"binding:host_id": "fake-1"})
    assert cloud.settle()
    control = cloud.control

    control.db.write(lambda tx: control.network.ports_wired(tx, "fake-1", [port["id"]], wired=False))
    generation = control.db.read(lambda tx: control.desired.applied(tx, "fake-1", "port", port["id"]))[0]
    began = threading.Event()

    def change(tx: Any) -> None:
        row = control.network.ports.get(tx, port["id"])
        control.network.ports.save(tx, row)
        began.set()
        time.sleep(0.3)
        control.desired.touch(tx, "fake-1", "port", port["id"])

    def report() -> None:
        began.wait()
        applied = Applied(host="fake-1", entries=[("port", port["id"], generation, None)])
        control.db.write(lambda tx: control.desired.report(tx, applied))

    caplog.set_level("INFO", "cumulet.db.database")
    reporting = threading.Thread(target=report)
    reporting.start()
    control.db.write(change)
    reporting.join()
    assert [record for record in caplog.records if "tried again" in record.message] == []
