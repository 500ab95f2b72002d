"""Servers over HTTP: create, show, list, update, delete; what is refused."""

from typing import Any

import pytest

from tests.compute.helpers import Nova
from tests.support.cloud import unique

NOBODY = "11111111-1111-1111-1111-111111111111"


def test_create_show_delete(nova: Nova) -> None:
    name = unique("first")
    made = nova.post("/servers", {"server": nova.server_body(name=name, metadata={"a": "b"})})
    assert made.status == 202, made.text
    server = made["server"]
    assert set(server) == {"id", "links", "OS-DCF:diskConfig", "security_groups", "adminPass"}
    assert made.headers["Location"] == server["links"][0]["href"]
    shown = nova.wait(server["id"], "ACTIVE")
    assert shown["name"] == name
    assert shown["metadata"] == {"a": "b"}
    assert shown["OS-EXT-STS:power_state"] == 1
    assert shown["OS-EXT-STS:vm_state"] == "active"
    assert shown["OS-SRV-USG:launched_at"]
    assert shown["image"]["id"] == nova.image
    assert shown["hostId"]
    assert "OS-EXT-SRV-ATTR:host" not in shown
    seen = nova.as_user("admin").show(server["id"])
    assert seen["OS-EXT-SRV-ATTR:host"].startswith("fake-")
    assert seen["OS-EXT-SRV-ATTR:instance_name"].startswith("instance-")
    nova.remove(server["id"])
    assert nova.get(f"/servers/{server['id']}").status == 404


def test_others_do_not_see_it(nova: Nova) -> None:
    server_id = nova.boot(wait=None)
    assert nova.as_user("other").get(f"/servers/{server_id}").status == 404
    assert nova.as_user("other").delete(f"/servers/{server_id}").status == 404
    assert nova.as_user("reader").get(f"/servers/{server_id}").status == 200
    refused = nova.as_user("reader").delete(f"/servers/{server_id}")
    assert refused.status == 403
    assert refused["forbidden"]["code"] == 403
    nova.remove(server_id)


def test_several_at_once(nova: Nova) -> None:
    name = unique("many")
    made = nova.post("/servers", {"server": nova.server_body(name=name, min_count=2, return_reservation_id=True)})
    assert made.status == 202, made.text
    assert made.body["reservation_id"].startswith("r-")
    found = nova.get(f"/servers?name={name}&sort_key=display_name&sort_dir=asc")["servers"]
    assert [server["name"] for server in found] == [f"{name}-1", f"{name}-2"]
    for server in found:
        nova.wait(server["id"], "ACTIVE")
        nova.remove(server["id"])


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"name": ""}, 400, "name"),
        ({"name": "x" * 256}, 400, "name"),
        ({"name": " x"}, 400, "name"),
        ({"flavorRef": "nothing"}, 400, "flavorRef"),
        ({"imageRef": NOBODY}, 400, "image"),
        ({"imageRef": "no-uuid"}, 400, "imageRef"),
        ({"imageRef": None}, 400, "Boot sequence"),
        ({"key_name": "nobody"}, 400, "key_name"),
        ({"unknown": 1}, 400, "unknown"),
        ({"metadata": {"a": 1}}, 400, "metadata"),
        ({"metadata": {"a" * 256: "x"}}, 400, "metadata"),
        ({"min_count": 3, "max_count": 2}, 400, "min_count"),
        ({"min_count": 0}, 400, "min_count"),
        ({"user_data": "***"}, 400, "user_data"),
        ({"availability_zone": "mars"}, 400, "availability zone"),
        ({"availability_zone": "nova:fake-1"}, 403, "forced_host"),
        ({"host": "fake-1"}, 403, "requested_destination"),
        ({"accessIPv4": "1.2.3"}, 400, "accessIPv4"),
        ({"accessIPv6": "::x"}, 400, "accessIPv6"),
        ({"networks": "sometimes"}, 400, "networks"),
        ({"networks": [{"uuid": NOBODY}]}, 400, NOBODY),
        ({"networks": [{"uuid": "x"}]}, 400, "network"),
        ({"tags": ["a,b"]}, 400, "a,b"),
        ({"tags": ["x"] * 51}, 400, "tags"),
        ({"block_device_mapping_v2": [{"source_type": "elsewhere"}]}, 400, "source_type"),
        ({"OS-DCF:diskConfig": "MAYBE"}, 400, "diskConfig"),
        ({"config_drive": "maybe"}, 400, "config_drive"),
    ],
)
def test_what_is_refused(nova: Nova, change: dict[str, Any], status: int, word: str) -> None:
    answer = nova.post("/servers", {"server": nova.server_body(**change)})
    assert answer.status == status, answer.text
    assert word in answer.text


def test_versions_know_fields(nova: Nova) -> None:
    assert nova.post("/servers", {"server": nova.server_body(tags=["a"])}, version="2.51").status == 400
    assert nova.post("/servers", {"server": nova.server_body(networks=None)}, version="2.37").status == 400
    assert nova.get("/servers?unknown=1", version="2.74").status == 200
    assert nova.get("/servers?unknown=1", version="2.75").status == 400
    assert nova.get("/servers?status=nonsense", version="2.37")["servers"] == []
    assert nova.get("/servers?status=nonsense", version="2.38").status == 400
    assert nova.get("/servers", version="2.9999").status == 406
    assert nova.get("/servers", version="x").status == 400


def test_views_by_version(nova: Nova) -> None:
    server_id = nova.boot(tags=["one"], description="text")
    first = nova.show(server_id, version="2.1")
    assert first["flavor"]["id"] == nova.flavor
    for name in ("locked", "description", "tags", "server_groups", "locked_reason", "pinned_availability_zone"):
        assert name not in first
    assert nova.show(server_id, version="2.9")["locked"] is False
    assert nova.show(server_id, version="2.19")["description"] == "text"
    assert nova.show(server_id, version="2.26")["tags"] == ["one"]
    assert nova.show(server_id, version="2.47")["flavor"]["ram"] == 64
    assert nova.show(server_id, version="2.71")["server_groups"] == []
    assert nova.show(server_id, version="2.96")["pinned_availability_zone"] is None
    assert "OS-EXT-STS:vm_state" not in nova.put(f"/servers/{server_id}", {"server": {}}, version="2.74")["server"]
    assert "OS-EXT-STS:vm_state" in nova.put(f"/servers/{server_id}", {"server": {}}, version="2.75")["server"]
    nova.remove(server_id)


def test_update(nova: Nova) -> None:
    server_id = nova.boot()
    changed = nova.put(f"/servers/{server_id}", {"server": {"name": "new", "accessIPv4": "192.0.2.1"}})
    assert changed.status == 200, changed.text
    assert (changed["server"]["name"], changed["server"]["accessIPv4"]) == ("new", "192.0.2.1")
    assert nova.put(f"/servers/{server_id}", {"server": {"name": ""}}).status == 400
    assert nova.put(f"/servers/{server_id}", {"server": {"status": "ERROR"}}).status == 400
    nova.remove(server_id)


def test_list_pages_sorts_and_filters(nova: Nova) -> None:
    prefix = unique("list")
    ids = [nova.boot(name=f"{prefix}-{n}", metadata={}, tags=[f"t{n}", "all"]) for n in range(4)]

    def names(query: str, **more: Any) -> list[str]:
        found = nova.get(f"/servers?name={prefix}&{query}", **more)
        assert found.status == 200, found.text
        return [server["name"][-1] for server in found["servers"]]

    assert names("") == ["3", "2", "1", "0"]
    assert names("sort_key=display_name&sort_dir=asc") == ["0", "1", "2", "3"]
    page = nova.get(f"/servers?name={prefix}&limit=3")
    assert len(page["servers"]) == 3
    link = page["servers_links"][0]
    assert link["rel"] == "next"
    assert f"marker={ids[1]}" in link["href"]
    assert names(f"limit=3&marker={ids[1]}") == ["0"]
    assert nova.get(f"/servers?marker={NOBODY}").status == 400
    assert nova.get("/servers?limit=-1").status == 400
    assert nova.get("/servers?sort_key=shoe_size").status == 400
    assert nova.get("/servers?sort_key=host").status == 403
    assert names("status=ACTIVE") == ["3", "2", "1", "0"]
    assert names("status=SHUTOFF") == []
    assert names(f"image={nova.image}") == ["3", "2", "1", "0"]
    assert names(f"flavor={nova.flavor}") == ["3", "2", "1", "0"]
    assert names("flavor=other") == []
    assert names("tags=t1,all") == ["1"]
    assert names("tags-any=t1,t2") == ["2", "1"]
    assert names("not-tags-any=t1,t2,t3") == ["0"]
    assert nova.get(f"/servers?name={prefix}-[01]$")["servers"].__len__() == 2
    assert nova.get("/servers?name=(a%2B)%2B").status == 400
    assert nova.get("/servers?name=(").status == 400
    assert nova.get("/servers?all_tenants=1").status == 403
    assert nova.as_user("admin").get(f"/servers?all_tenants=1&name={prefix}")["servers"].__len__() == 4
    assert nova.as_user("admin").get(f"/servers/detail?all_tenants=1&host=fake-9&name={prefix}")["servers"] == []
    since = nova.show(ids[3])["created"]
    nova.remove(ids[3])
    gone = nova.get(f"/servers/detail?changes-since={since}&name={prefix}")["servers"]
    assert {server["status"] for server in gone} >= {"DELETED"}
    for server_id in ids[:3]:
        nova.remove(server_id)


def test_no_host_is_an_error_later(nova: Nova) -> None:
    flavor = nova.new_flavor(ram=2_000_000)
    limits = nova.as_user("admin").put(
        f"/os-quota-sets/{nova.cloud.api('demo').project_id}", {"quota_set": {"ram": -1}}
    )
    assert limits.status == 200, limits.text
    server_id = nova.boot(flavorRef=flavor, wait="ERROR")
    shown = nova.show(server_id)
    assert shown["fault"]["code"] == 500
    assert "No valid host was found" in shown["fault"]["message"]
    assert "details" not in shown["fault"]
    assert "fake-1" in nova.as_user("admin").show(server_id)["fault"]["details"]
    nova.remove(server_id)
