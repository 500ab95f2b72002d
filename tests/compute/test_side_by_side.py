# ruff: noqa: B023 - what is made in a loop is called in the same round
"""Changes of servers and of what they are made of asked for at once: what comes second sees what came first."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.support.at_once import at_once, rounds, statuses
from tests.support.cloud import Answer, unique

Ask = Callable[[], Answer]


@pytest.fixture
def admin(nova: Nova) -> Nova:
    return nova.as_user("admin")


def network_of(nova: Nova, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    api = nova.cloud.api("demo")
    network = api.post("network", "/networks", {"network": {"name": unique("lan"), **more}})["network"]
    subnet = {"network_id": network["id"], "ip_version": 4, "cidr": "10.70.0.0/24"}
    return network, api.post("network", "/subnets", {"subnet": subnet})["subnet"]


def remove_network(nova: Nova, network: str) -> None:
    api = nova.cloud.api("admin")
    for port in api.get("network", f"/ports?network_id={network}")["ports"]:
        api.delete("network", f"/ports/{port['id']}")
    assert api.delete("network", f"/networks/{network}").status in (204, 404)


def boot(nova: Nova, **more: Any) -> Ask:
    body = {"server": nova.server_body(**more)}
    return lambda: nova.post("/servers", body)


def remove_made(nova: Nova, *answers: Answer) -> None:
    for answer in answers:
        if answer.status == 202:
            nova.remove(answer["server"]["id"])


def test_metadata_and_tags_of_all_are_kept(nova: Nova) -> None:
    server = nova.boot()
    for _ in rounds(nova.cloud):
        nova.put(f"/servers/{server}/metadata", {"metadata": {}})
        answers = at_once(
            *[lambda k=key: nova.post(f"/servers/{server}/metadata", {"metadata": {k: "x"}}) for key in "abc"]
        )
        assert statuses(answers) == [200, 200, 200]
        assert set(nova.show(server)["metadata"]) == {"a", "b", "c"}
        nova.delete(f"/servers/{server}/tags")
        assert sorted(statuses(at_once(*[lambda: nova.put(f"/servers/{server}/tags/red")] * 2))) == [201, 204]
    nova.remove(server)


def test_one_of_two_actions(nova: Nova) -> None:
    server = nova.boot()
    answers = at_once(lambda: nova.act(server, "os-stop"), lambda: nova.act(server, "pause"))
    assert sorted(statuses(answers)) == [202, 409]
    nova.cloud.settle()
    answers = at_once(lambda: nova.delete(f"/servers/{server}"), lambda: nova.act(server, "createImage", {"name": "i"}))
    assert answers[0].status == 204
    assert answers[1].status in (202, 404, 409), answers[1].text
    nova.gone(server)
    assert nova.cloud.settle()


def test_a_server_goes_twice(nova: Nova) -> None:
    for _ in rounds(nova.cloud):
        server = nova.boot()
        assert set(statuses(at_once(*[lambda: nova.delete(f"/servers/{server}")] * 2))) <= {204, 404}
        nova.gone(server)


def test_a_port_goes_while_a_server_takes_it(nova: Nova) -> None:
    network, _ = network_of(nova)
    api = nova.cloud.api("demo")
    for _ in rounds(nova.cloud):
        port = api.post("network", "/ports", {"port": {"network_id": network["id"]}})["port"]["id"]
        gone, made = at_once(lambda: api.delete("network", f"/ports/{port}"), boot(nova, networks=[{"port": port}]))
        assert statuses([gone, made]) in ([204, 400], [403, 202])  # a server's port is not its owner's to delete
        assert api.get("network", f"/ports/{port}").status == (404 if gone.status == 204 else 200)
        remove_made(nova, made)
    remove_network(nova, network["id"])


def test_a_port_is_taken_once(nova: Nova) -> None:
    network, _ = network_of(nova)
    api = nova.cloud.api("demo")
    for _ in rounds(nova.cloud):
        port = api.post("network", "/ports", {"port": {"network_id": network["id"]}})["port"]["id"]
        answers = at_once(*[boot(nova, networks=[{"port": port}])] * 2)
        assert sorted(statuses(answers)) == [202, 409]
        remove_made(nova, *answers)
    remove_network(nova, network["id"])


def test_a_port_changes_while_a_server_takes_it(nova: Nova) -> None:
    network, _ = network_of(nova)
    api = nova.cloud.api("demo")
    for _ in rounds(nova.cloud):
        port = api.post("network", "/ports", {"port": {"network_id": network["id"]}})["port"]["id"]
        changed, made = at_once(
            lambda: api.put("network", f"/ports/{port}", {"port": {"name": "new"}}),
            boot(nova, networks=[{"port": port}]),
        )
        assert statuses([changed, made]) == [200, 202]
        server = made["server"]["id"]
        nova.wait(server, "ACTIVE")
        found = api.get("network", f"/ports/{port}")["port"]
        assert (found["name"], found["device_id"], found["status"]) == ("new", server, "ACTIVE")
        remove_made(nova, made)
    remove_network(nova, network["id"])


def test_a_network_goes_while_a_server_comes(nova: Nova) -> None:
    for _ in rounds(nova.cloud):
        network, _ = network_of(nova)
        gone, made = at_once(
            lambda: nova.cloud.api("demo").delete("network", f"/networks/{network['id']}"),
            boot(nova, networks=[{"uuid": network["id"]}]),
        )
        assert statuses([gone, made]) in ([204, 400], [409, 202])
        remove_made(nova, made)
        remove_network(nova, network["id"])


def test_a_volume_is_taken_once(nova: Nova) -> None:
    api = nova.cloud.api("demo")
    servers = [nova.boot(), nova.boot()]
    made = api.post("volume", "/volumes", {"volume": {"size": 1, "name": unique("volume")}})["volume"]["id"]
    nova.cloud.settle()
    body = {"volumeAttachment": {"volumeId": made}}
    answers = at_once(
        *[lambda s=server: nova.post(f"/servers/{s}/os-volume_attachments", body) for server in servers],
        lambda: api.delete("volume", f"/volumes/{made}"),
    )
    found = statuses(answers)
    assert [status < 300 for status in found].count(True) == 1, [answer.text for answer in answers]
    nova.cloud.settle()
    for server in servers:
        nova.remove(server)
    nova.cloud.settle()
    api.delete("volume", f"/volumes/{made}")
    nova.cloud.settle()


def test_quotas_hold(nova: Nova, admin: Nova) -> None:
    api = nova.cloud.api("demo")
    used = nova.get(f"/os-quota-sets/{api.project_id}/detail")["quota_set"]["instances"]["in_use"]
    path = f"/os-quota-sets/{api.project_id}"
    assert admin.put(path, {"quota_set": {"instances": used + 1}}).status == 200
    answers = at_once(*[boot(nova)] * 4)
    assert sorted(statuses(answers)) == [202, 403, 403, 403]
    remove_made(nova, *answers)
    assert admin.delete(path).status == 202


def test_a_key_pair_is_made_once(nova: Nova) -> None:
    name = unique("key")
    answers = at_once(*[lambda: nova.post("/os-keypairs", {"keypair": {"name": name}}, version="2.60")] * 2)
    assert sorted(statuses(answers)) == [201, 409]
    nova.delete(f"/os-keypairs/{name}")


def test_a_group_goes_while_it_gets_members(nova: Nova) -> None:
    for _ in rounds(nova.cloud):
        body = {"server_group": {"name": unique("group"), "policy": "soft-affinity"}}
        group = nova.post("/os-server-groups", body)["server_group"]["id"]
        hinted = {"server": nova.server_body(), "os:scheduler_hints": {"group": group}}
        gone, made = at_once(lambda: nova.delete(f"/os-server-groups/{group}"), lambda: nova.post("/servers", hinted))
        assert statuses([gone, made]) in ([204, 400], [204, 202])
        assert members_left(nova, group) == 0
        remove_made(nova, made)


def members_left(nova: Nova, group: str) -> int:
    from sqlalchemy import func, select

    from cumulet.services.compute.tables import SERVER_GROUP_MEMBERS as M

    count = select(func.count()).select_from(M).where(M.c.group_id == group)
    return int(nova.cloud.control.db.read(lambda tx: tx.scalar(count)))


def test_servers_that_are_to_be_apart(nova: Nova, admin: Nova) -> None:
    """Also of two projects, whose quotas do not stand in each other's way."""
    for _ in rounds(nova.cloud):
        body = {"server_group": {"name": unique("group"), "policy": "anti-affinity"}}
        group = nova.post("/os-server-groups", body)["server_group"]["id"]
        hints = {"os:scheduler_hints": {"group": group}}
        answers = at_once(
            *[
                lambda n=one: n.post("/servers", {"server": n.server_body(imageRef=nova.image), **hints})
                for one in (nova, admin)
            ]
        )
        assert statuses(answers) == [202, 202]
        nova.cloud.settle()
        ids = [answer["server"]["id"] for answer in answers]
        hosts = {admin.show(id)["OS-EXT-SRV-ATTR:host"] for id in ids}
        assert len(hosts) == 2
        nova.remove(ids[0])
        admin.remove(ids[1])
        nova.delete(f"/os-server-groups/{group}")


def test_an_aggregate_goes_while_it_gets_a_host(nova: Nova, admin: Nova) -> None:
    host = admin.get("/os-hypervisors")["hypervisors"][0]["hypervisor_hostname"]
    for _ in rounds(nova.cloud):
        made = admin.post("/os-aggregates", {"aggregate": {"name": unique("aggregate")}})["aggregate"]["id"]
        path = f"/os-aggregates/{made}"
        gone, added = at_once(
            lambda: admin.delete(path), lambda: admin.post(path + "/action", {"add_host": {"host": host}})
        )
        assert statuses([gone, added]) in ([200, 404], [400, 200])
        if added.status == 200:
            admin.post(path + "/action", {"remove_host": {"host": host}})
            assert admin.delete(path).status == 200


# -- placement ---------------------------------------------------------------------------------------------------------


def placement(nova: Nova, method: str, path: str, body: Any = None) -> Answer:
    found: Answer = nova.cloud.api("admin").request(
        method, "placement", path, body, headers={"OpenStack-API-Version": "placement 1.39"}
    )
    return found


def provider(nova: Nova, **more: Any) -> dict[str, Any]:
    made = placement(nova, "POST", "/resource_providers", {"name": unique("provider"), **more})
    assert made.status == 200, made.text
    body: dict[str, Any] = made.body
    return body


def test_a_provider_goes_while_it_gets_a_child(nova: Nova) -> None:
    for _ in rounds(nova.cloud):
        parent = provider(nova)["uuid"]
        gone, made = at_once(
            lambda: placement(nova, "DELETE", f"/resource_providers/{parent}"),
            lambda: placement(
                nova, "POST", "/resource_providers", {"name": unique("child"), "parent_provider_uuid": parent}
            ),
        )
        assert statuses([gone, made]) in ([204, 400], [409, 200])
        if made.status == 200:
            placement(nova, "DELETE", f"/resource_providers/{made['uuid']}")
            placement(nova, "DELETE", f"/resource_providers/{parent}")


def test_two_providers_below_each_other(nova: Nova) -> None:
    for _ in rounds(nova.cloud):
        two = [provider(nova), provider(nova)]

        def below(at: int, two: list[dict[str, Any]] = two) -> Answer:
            body = {"name": two[at]["name"], "parent_provider_uuid": two[1 - at]["uuid"]}
            return placement(nova, "PUT", f"/resource_providers/{two[at]['uuid']}", body)

        answers = at_once(lambda: below(0), lambda: below(1))
        assert sorted(statuses(answers)) == [200, 400]
        for one in two if answers[0].status == 200 else reversed(two):
            assert placement(nova, "DELETE", f"/resource_providers/{one['uuid']}").status == 204


def test_a_name_goes_while_it_is_used(nova: Nova) -> None:
    one = provider(nova)["uuid"]
    for _ in rounds(nova.cloud):
        name = unique("CUSTOM").replace("-", "_").upper()
        for noun, used in (("traits", "traits"), ("resource_classes", "inventories")):
            placement(nova, "PUT", f"/{noun}/{name}")
            now = placement(nova, "GET", f"/resource_providers/{one}")["generation"]
            body: dict[str, Any] = {"resource_provider_generation": now}
            body[used] = [name] if used == "traits" else {name: {"total": 1}}
            gone, taken = at_once(
                lambda noun=noun: placement(nova, "DELETE", f"/{noun}/{name}"),
                lambda used=used, body=body: placement(nova, "PUT", f"/resource_providers/{one}/{used}", body),
            )
            assert statuses([gone, taken]) in ([204, 400], [409, 200])
            placement(nova, "DELETE", f"/resource_providers/{one}/{used}")
            placement(nova, "DELETE", f"/{noun}/{name}")
    placement(nova, "DELETE", f"/resource_providers/{one}")


def test_what_one_consumer_has(nova: Nova) -> None:
    """Two who write the same generation: one has it. One who takes all away at the same time leaves nothing behind."""
    from cumulet.kernel.ids import new_uuid

    two = [provider(nova)["uuid"], provider(nova)["uuid"]]
    for one in two:
        inventories = {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 8}}}
        assert placement(nova, "PUT", f"/resource_providers/{one}/inventories", inventories).status == 200

    def claim(consumer: str, one: str, generation: int | None) -> Answer:
        body = {
            "allocations": {one: {"resources": {"VCPU": 1}}},
            "project_id": "p",
            "user_id": "u",
            "consumer_type": "TEST",
            "consumer_generation": generation,
        }
        return placement(nova, "PUT", f"/allocations/{consumer}", body)

    for _ in rounds(nova.cloud):
        consumer = new_uuid()
        answers = at_once(*[lambda one=one: claim(consumer, one, None) for one in two])
        assert sorted(statuses(answers)) == [204, 409]
        found = placement(nova, "GET", f"/allocations/{consumer}")
        assert len(found["allocations"]) == 1
        generation = found["consumer_generation"]
        gone, claimed = at_once(
            lambda: placement(nova, "DELETE", f"/allocations/{consumer}"), lambda: claim(consumer, two[0], generation)
        )
        assert statuses([gone, claimed]) in ([204, 409], [204, 204])
        assert placement(nova, "GET", f"/allocations/{consumer}")["allocations"] == {}
    for one in two:
        assert placement(nova, "DELETE", f"/resource_providers/{one}").status == 204
