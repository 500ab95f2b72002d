"""Ports as servers use them (`NetworkService`), and the reconcilers."""

from collections.abc import Callable
from typing import Any

import pytest

from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import BadInput, CloudError, Conflict, Forbidden, NotFound, QuotaExceeded
from cumulet.kernel.ids import new_uuid
from cumulet.services.network.public import NetworkChoice, NetworkService
from cumulet.services.network.reconcilers import reconcile_documents, reconcile_ports, reconcile_scheduling
from tests.network.conftest import Net
from tests.support.cloud import Cloud

Make = Callable[..., Any]


@pytest.fixture
def service(cloud: Cloud) -> NetworkService:
    return cloud.control.network


@pytest.fixture
def ctx(demo: Net) -> RequestContext:
    return RequestContext(
        request_id="req-test", project_id=demo.api.project_id, user_id="u", roles=frozenset({"member", "reader"})
    )


@pytest.fixture
def choose(cloud: Cloud, service: NetworkService, ctx: RequestContext) -> Callable[..., Any]:
    return lambda asked, count=1, **more: cloud.db.read(
        lambda tx: service.validate_requests(tx, ctx, asked, count, **more)
    )


@pytest.fixture
def server(cloud: Cloud, service: NetworkService, ctx: RequestContext) -> Any:
    """``server(choices, groups=…)``: (server id, port ids)."""
    made = []

    def create(choices: list[NetworkChoice], groups: tuple[str, ...] = ()) -> tuple[str, list[str]]:
        id = new_uuid()
        made.append(id)
        ports = cloud.db.write(
            lambda tx: service.create_server_ports(tx, ctx, id, choices, "host", "nova", security_groups=groups)
        )
        return id, ports

    yield create
    for id in made:
        cloud.db.write(lambda tx, id=id: service.release_server_ports(tx, id))


def refusal(call: Callable[[], Any], kind: type[CloudError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.type_name


def test_what_a_server_may_ask_for(
    choose: Any, make: Make, lan: Any, outside: Any, admin: Net, demo: Net, cloud: Cloud
) -> None:
    network, _ = lan
    one = NetworkChoice(uuid=network["id"])
    assert choose([one]) == [one]
    assert choose("none") == []
    second = make("demo", "network")
    assert refusal(lambda: choose(None), Conflict) == "NetworkAmbiguous"
    assert refusal(lambda: choose([NetworkChoice(uuid=second["id"])]), BadInput) == "NetworkRequiresSubnet"
    assert refusal(lambda: choose([NetworkChoice(uuid=new_uuid())]), NotFound) == "NetworkNotFound"
    assert refusal(lambda: choose([NetworkChoice(port=new_uuid())]), NotFound) == "PortNotFound"
    foreign = make("other", "network")
    assert refusal(lambda: choose([NetworkChoice(uuid=foreign["id"])]), NotFound) == "NetworkNotFound"
    far = NetworkChoice(uuid=outside[0]["id"])
    assert refusal(lambda: choose([far]), Forbidden) == "ExternalNetworkAttachForbidden"
    assert choose([far], external=True) == [far]
    port = make("demo", "port", network_id=network["id"])
    taken = NetworkChoice(uuid=network["id"], fixed_ip=port["fixed_ips"][0]["ip_address"])
    assert refusal(lambda: choose([taken]), BadInput) == "FixedIpAlreadyInUse"
    twice = [NetworkChoice(port=port["id"])] * 2
    assert refusal(lambda: choose(twice), BadInput) == "PortInUse"
    demo.update("port", port["id"], device_id="somebody")
    assert refusal(lambda: choose([NetworkChoice(port=port["id"])]), Conflict) == "PortInUse"
    assert refusal(lambda: choose([one], 1000), QuotaExceeded) == "PortLimitExceeded"


def test_the_only_network_is_taken(cloud: Cloud, service: NetworkService, make: Make, other: Net) -> None:
    mine = RequestContext(request_id="r", project_id=other.api.project_id, roles=frozenset({"member"}))

    def choose(asked: Any) -> Any:
        return cloud.db.read(lambda tx: service.validate_requests(tx, mine, asked, 1))

    assert choose(None) == []
    assert refusal(lambda: choose("auto"), BadInput) == "UnableToAutoAllocateNetwork"
    network = make("other", "network")
    make("other", "subnet", network_id=network["id"], ip_version=4, cidr="10.1.0.0/24")
    assert choose(None) == [NetworkChoice(uuid=network["id"])]
    assert choose("auto") == [NetworkChoice(uuid=network["id"])]


def test_ports_made_for_a_server_go_with_it_and_others_stay(
    cloud: Cloud, service: NetworkService, server: Any, make: Make, lan: Any, demo: Net, outside: Any
) -> None:
    network, _ = lan
    group = make("demo", "security_group")
    own = make("demo", "port", network_id=network["id"])
    id, ports = server(
        [NetworkChoice(uuid=network["id"], fixed_ip="10.30.0.123"), NetworkChoice(port=own["id"])], (group["name"],)
    )
    assert ports[1] == own["id"]
    made = demo.get("port", ports[0])
    assert (made["device_id"], made["device_owner"], made["dns_name"]) == (id, "compute:nova", "host")
    assert made["security_groups"] == [group["id"]]
    cloud.db.write(lambda tx: service.bind_ports(tx, ports, "fake-1"))
    cloud.wait(lambda: cloud.db.read(lambda tx: service.ports_active(tx, id)))
    docs = cloud.db.read(lambda tx: service.port_docs(tx, "fake-1", ports))
    assert [doc.id for doc in docs] == ports
    router = make("demo", "router", external_gateway_info={"network_id": outside[0]["id"]})
    demo.api.put("network", f"/routers/{router['id']}/add_router_interface", {"subnet_id": lan[1]["id"]})
    floating = make("demo", "floatingip", floating_network_id=outside[0]["id"], port_id=ports[0])
    seen = cloud.db.read(lambda tx: service.addresses(tx, [id, new_uuid()]))
    assert {(a.network, a.addr, a.version, a.type, a.mac_addr) for a in seen[id]} == {
        (network["name"], "10.30.0.123", 4, "fixed", made["mac_address"]),
        (network["name"], floating["floating_ip_address"], 4, "floating", made["mac_address"]),
        (network["name"], own["fixed_ips"][0]["ip_address"], 4, "fixed", own["mac_address"]),
    }
    groups = cloud.db.read(lambda tx: service.security_groups_of(tx, [id]))[id]
    assert {found.name for found in groups} == {group["name"], "default"}
    cloud.db.write(lambda tx: service.release_server_ports(tx, id))
    cloud.db.write(lambda tx: service.release_server_ports(tx, id))
    assert demo.api.get("network", f"/ports/{ports[0]}").status == 404
    left = demo.get("port", own["id"])
    assert (left["device_id"], left["device_owner"], left["status"]) == ("", "", "DOWN")
    assert demo.get("floatingip", floating["id"])["port_id"] is None


def test_binding_where_there_is_no_agent_fails(cloud: Cloud, service: NetworkService, server: Any, lan: Any) -> None:
    _, ports = server([NetworkChoice(uuid=lan[0]["id"])])
    bind = lambda: cloud.db.write(lambda tx: service.bind_ports(tx, ports, "no-such-host"))  # noqa: E731
    assert refusal(bind, Conflict) == "PortBindingFailed"


def test_groups_and_interfaces_of_a_server(
    cloud: Cloud, service: NetworkService, ctx: RequestContext, server: Any, make: Make, lan: Any, demo: Net
) -> None:
    network, _ = lan
    group = make("demo", "security_group")
    id, ports = server([NetworkChoice(uuid=network["id"])])
    cloud.db.write(lambda tx: service.add_security_group(tx, ctx, id, group["name"]))
    assert group["id"] in demo.get("port", ports[0])["security_groups"]
    cloud.db.write(lambda tx: service.remove_security_group(tx, ctx, id, group["id"]))
    assert group["id"] not in demo.get("port", ports[0])["security_groups"]
    nameless = lambda: cloud.db.write(lambda tx: service.add_security_group(tx, ctx, id, "no-such"))  # noqa: E731
    assert refusal(nameless, NotFound) == "SecurityGroupNotFound"
    asked = NetworkChoice(uuid=network["id"])
    more = cloud.db.write(lambda tx: service.attach_interface(tx, ctx, id, asked, "host", "nova", "fake-1"))
    assert demo.get("port", more)["device_id"] == id
    cloud.db.write(lambda tx: service.detach_interface(tx, id, more))
    assert demo.api.get("network", f"/ports/{more}").status == 404
    assert demo.get("port", ports[0])["device_id"] == id


# -- reconcilers ------------------------------------------------------------------------------------------------------


def test_networks_and_routers_wait_for_a_host(new_cloud: Callable[..., Any]) -> None:
    cloud = new_cloud(hosts=0)
    service, demo = cloud.control.network, Net(cloud, "demo")
    network = demo.create("network", name="early")
    subnet = demo.create("subnet", network_id=network["id"], ip_version=4, cidr="10.2.0.0/24")
    router = demo.create("router", name="early")
    demo.api.put("network", f"/routers/{router['id']}/add_router_interface", {"subnet_id": subnet["id"]})
    query = f"network_id={network['id']}"
    assert [p["device_owner"] for p in demo.list("port", query)] == ["network:router_interface"]
    assert reconcile_scheduling(service) == "0 networks and routers given a host, 2 wait for one"
    cloud.add_host("fake-1")
    cloud.wait(lambda: len(demo.list("port", query)) == 2)
    cloud.wait(lambda: {p["status"] for p in demo.list("port", query)} == {"ACTIVE"})
    assert reconcile_scheduling(service) is None


def test_index_of_documents_is_made_right(cloud: Cloud, service: NetworkService, server: Any, lan: Any) -> None:
    _, ports = server([NetworkChoice(uuid=lan[0]["id"])])
    cloud.db.write(lambda tx: service.bind_ports(tx, ports, "fake-1"))
    desired, nobody = cloud.control.desired, new_uuid()
    reconcile_documents(service)
    assert reconcile_documents(service) is None
    cloud.db.write(
        lambda tx: (desired.remove(tx, "fake-1", "port", ports[0]), desired.touch(tx, "fake-2", "port", nobody))
    )
    assert reconcile_documents(service) == "1 documents added, 1 removed"
    assert cloud.db.read(lambda tx: desired.holders(tx, "port", ports[0])) == ["fake-1"]
    assert cloud.db.read(lambda tx: desired.holders(tx, "port", nobody)) == []


def test_ports_of_vanished_servers_are_released(
    cloud: Cloud, service: NetworkService, server: Any, lan: Any, demo: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cumulet.services.network.reconcilers.ports._GRACE_SECONDS", -1)
    gone, ports = server([NetworkChoice(uuid=lan[0]["id"])])
    alive, others = server([NetworkChoice(uuid=lan[0]["id"])])
    summary = reconcile_ports(service, lambda tx, ids: set(ids) - {gone})
    assert summary == "ports of 1 vanished servers released"
    assert demo.api.get("network", f"/ports/{ports[0]}").status == 404
    assert demo.get("port", others[0])["device_id"] == alive
