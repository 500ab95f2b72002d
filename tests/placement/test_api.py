"""Every operation answers its success code, and the faults that upstream gives."""

from typing import Any

import pytest

from cumulet.kernel.ids import new_uuid
from tests.placement.conftest import Client


def provider(api: Client, name: str = "", parent: str | None = None) -> str:
    body: dict[str, Any] = {"name": name or new_uuid()}
    if parent:
        body["parent_provider_uuid"] = parent
    return str(api("POST", "/resource_providers", body, expect=200).json()["uuid"])


def stock(api: Client, uuid: str, **totals: int) -> None:
    generation = api.get(f"/resource_providers/{uuid}")["generation"]
    body = {
        "resource_provider_generation": generation,
        "inventories": {name: {"total": total} for name, total in totals.items()},
    }
    api("PUT", f"/resource_providers/{uuid}/inventories", body, expect=200)


def claim(uuid: str, generation: int | None = None, **resources: int) -> dict[str, Any]:
    return {
        "allocations": {uuid: {"resources": resources}} if resources else {},
        "project_id": "project-1",
        "user_id": "user-1",
        "consumer_generation": generation,
        "consumer_type": "INSTANCE",
    }


def code(answer: Any) -> str:
    error = answer.json()["errors"][0]
    assert error["status"] == answer.status_code
    assert error["request_id"].startswith("req-")
    return str(error["code"])


def test_the_version_document_needs_no_token(api: Client) -> None:
    answer = api("GET", "/", user="nobody", expect=200).json()
    (version,) = answer["versions"]
    assert (version["id"], version["min_version"], version["max_version"]) == ("v1.0", "1.0", "1.39")


def test_versions_and_tokens_are_checked(api: Client) -> None:
    assert api("GET", "/resource_providers", user="nobody").status_code == 401
    assert api("GET", "/resource_providers", user="reader").status_code == 403
    assert api("GET", "/resource_providers", user="service").status_code == 200
    answer = api("GET", "/resource_providers", version="1.40")
    assert answer.status_code == 406
    assert answer.json()["errors"][0]["max_version"] == "1.39"
    assert api("GET", "/resource_providers", version="one").status_code == 400
    assert api("GET", "/traits", version="1.5").status_code == 404
    assert api("POST", "/allocations", {}, version="1.12").status_code == 404
    old = api("GET", "/resource_providers/nothing", version="1.22")
    assert "code" not in old.json()["errors"][0]


def test_providers(api: Client) -> None:
    uuid = provider(api, "one")
    shown = api.get(f"/resource_providers/{uuid}")
    assert (shown["name"], shown["generation"], shown["parent_provider_uuid"]) == ("one", 0, None)
    assert {link["rel"] for link in shown["links"]} == {
        "self", "inventories", "usages", "aggregates", "traits", "allocations",
    }  # fmt: skip
    assert "root_provider_uuid" not in api.get(f"/resource_providers/{uuid}", "1.13")
    assert api.get("/resource_providers?name=one")["resource_providers"][0]["uuid"] == uuid
    assert api.get(f"/resource_providers?uuid={new_uuid()}")["resource_providers"] == []
    assert code(api("POST", "/resource_providers", {"name": "one"}, expect=409)) == "placement.duplicate_name"
    api("POST", "/resource_providers", {"name": "x", "uuid": uuid}, expect=409)
    renamed = api("PUT", f"/resource_providers/{uuid}", {"name": "two"}, expect=200).json()
    assert renamed["name"] == "two"
    made = api("POST", "/resource_providers", {"name": "old"}, version="1.19", expect=201)
    assert made.content == b""
    assert made.headers["location"].startswith("http://test/placement/resource_providers/")
    api("DELETE", f"/resource_providers/{uuid}", expect=204)
    assert code(api("GET", f"/resource_providers/{uuid}", expect=404)) == "placement.resource_provider.not_found"
    for bad in (
        {},
        {"name": ""},
        {"name": 1},
        {"name": "x", "more": 1},
        {"name": "x", "uuid": "x"},
        {"name": "n" * 201},
    ):
        api("POST", "/resource_providers", bad, expect=400)
    api("POST", "/resource_providers", {"name": "x", "parent_provider_uuid": None}, version="1.13", expect=400)
    api("GET", "/resource_providers?colour=red", expect=400)
    api("GET", "/resource_providers?in_tree=x", expect=400)


def test_answers_say_when_they_changed(api: Client) -> None:
    uuid = provider(api)
    new, old = api("GET", f"/resource_providers/{uuid}"), api("GET", f"/resource_providers/{uuid}", version="1.14")
    assert new.headers["cache-control"] == "no-cache"
    assert new.headers["last-modified"].endswith("GMT")
    assert "last-modified" not in old.headers


def test_trees(api: Client) -> None:
    root = provider(api)
    child = provider(api, parent=root)
    leaf = provider(api, parent=child)
    other = provider(api)
    assert api.get(f"/resource_providers/{leaf}")["root_provider_uuid"] == root
    listed = api.get(f"/resource_providers?in_tree={child}")["resource_providers"]
    assert {row["uuid"] for row in listed} == {root, child, leaf}
    refused = api("DELETE", f"/resource_providers/{root}", expect=409)
    assert code(refused) == "placement.resource_provider.cannot_delete_parent"
    path = f"/resource_providers/{child}"
    api("PUT", path, {"name": "c", "parent_provider_uuid": other}, version="1.36", expect=400)
    api("PUT", path, {"name": "c", "parent_provider_uuid": leaf}, expect=400)
    api("PUT", path, {"name": "c", "parent_provider_uuid": new_uuid()}, expect=400)
    assert (
        api("PUT", path, {"name": "c", "parent_provider_uuid": other}, expect=200).json()["root_provider_uuid"] == other
    )
    assert api.get(f"/resource_providers/{leaf}")["root_provider_uuid"] == other
    api("PUT", path, {"name": "c", "parent_provider_uuid": None}, expect=200)
    assert api.get(f"/resource_providers/{leaf}")["root_provider_uuid"] == child
    api("POST", "/resource_providers", {"name": "lost", "parent_provider_uuid": new_uuid()}, expect=400)


def test_inventories(api: Client) -> None:
    uuid = provider(api)
    path = f"/resource_providers/{uuid}/inventories"
    made = api("POST", path, {"resource_class": "VCPU", "total": 8}, expect=201)
    assert made.headers["location"].endswith("/inventories/VCPU")
    assert made.json() == {
        "resource_provider_generation": 1, "total": 8, "reserved": 0, "min_unit": 1, "max_unit": 2147483647,
        "step_size": 1, "allocation_ratio": 1.0,
    }  # fmt: skip
    api("POST", path, {"resource_class": "VCPU", "total": 8}, expect=409)
    api("POST", path, {"resource_class": "NOT_THERE", "total": 8}, expect=400)
    changed = api("PUT", path + "/VCPU", {"resource_provider_generation": 1, "total": 4, "reserved": 1}, expect=200)
    assert changed.json()["total"] == 4
    stale = api("PUT", path + "/VCPU", {"resource_provider_generation": 1, "total": 5}, expect=409)
    assert code(stale) == "placement.concurrent_update"
    api("PUT", path + "/MEMORY_MB", {"resource_provider_generation": 2, "total": 5}, expect=400)
    full = {"resource_provider_generation": 2, "total": 4, "reserved": 4}
    api("PUT", path + "/VCPU", full, version="1.25", expect=400)
    api("PUT", path + "/VCPU", full, expect=200)
    both = {"resource_provider_generation": 3, "inventories": {"VCPU": {"total": 4}, "DISK_GB": {"total": 9}}}
    assert set(api("PUT", path, both, expect=200).json()["inventories"]) == {"VCPU", "DISK_GB"}
    assert api.get(path)["resource_provider_generation"] == 4
    assert api.get(path + "/DISK_GB")["total"] == 9
    api("GET", path + "/MEMORY_MB", expect=404)
    api("DELETE", path + "/DISK_GB", expect=204)
    api("DELETE", path + "/DISK_GB", expect=404)
    api("DELETE", path, version="1.4", expect=405)
    api("DELETE", path, expect=204)
    assert api.get(path)["inventories"] == {}
    for bad in ({"total": 0}, {"total": "x"}, {"total": 2**31}, {"total": 1, "min_unit": 0}, {}, {"total": 1, "x": 1}):
        api("POST", path, {"resource_class": "VCPU", **bad}, expect=400)
    api("GET", f"/resource_providers/{new_uuid()}/inventories", expect=404)


def test_traits(api: Client) -> None:
    assert "COMPUTE_ARCH_X86_64" in api.get("/traits")["traits"]
    made = api("PUT", "/traits/CUSTOM_RED", expect=201)
    assert made.headers["location"] == "http://test/placement/traits/CUSTOM_RED"
    api("PUT", "/traits/CUSTOM_RED", expect=204)
    api("GET", "/traits/CUSTOM_RED", expect=204)
    api("GET", "/traits/CUSTOM_BLUE", expect=404)
    api("PUT", "/traits/RED", expect=400)
    api("PUT", "/traits/HW_CPU_X86_AVX", expect=400)
    assert api.get("/traits?name=startswith:CUSTOM_")["traits"] == ["CUSTOM_RED"]
    assert api.get("/traits?name=in:CUSTOM_RED,HW_CPU_X86_AVX")["traits"] == ["CUSTOM_RED", "HW_CPU_X86_AVX"]
    api("GET", "/traits?name=RED", expect=400)
    api("GET", "/traits?associated=perhaps", expect=400)
    uuid = provider(api)
    path = f"/resource_providers/{uuid}/traits"
    body = {"traits": ["CUSTOM_RED", "HW_CPU_X86_AVX"], "resource_provider_generation": 0}
    assert api("PUT", path, body, expect=200).json()["resource_provider_generation"] == 1
    assert code(api("PUT", path, body, expect=409)) == "placement.concurrent_update"
    api("PUT", path, {"traits": ["CUSTOM_NONE"], "resource_provider_generation": 1}, expect=400)
    assert api.get(path)["traits"] == ["CUSTOM_RED", "HW_CPU_X86_AVX"]
    assert api.get("/traits?associated=true")["traits"] == ["CUSTOM_RED", "HW_CPU_X86_AVX"]
    api("DELETE", "/traits/CUSTOM_RED", expect=409)
    api("DELETE", path, expect=204)
    api("DELETE", "/traits/CUSTOM_RED", expect=204)
    api("DELETE", "/traits/CUSTOM_RED", expect=404)
    api("DELETE", "/traits/HW_CPU_X86_AVX", expect=400)


def test_resource_classes(api: Client) -> None:
    assert {"VCPU", "MEMORY_MB"} <= {row["name"] for row in api.get("/resource_classes")["resource_classes"]}
    made = api("POST", "/resource_classes", {"name": "CUSTOM_GOLD"}, expect=201)
    assert made.headers["location"].endswith("/resource_classes/CUSTOM_GOLD")
    api("POST", "/resource_classes", {"name": "CUSTOM_GOLD"}, expect=409)
    api("POST", "/resource_classes", {"name": "GOLD"}, expect=400)
    assert api.get("/resource_classes/CUSTOM_GOLD")["name"] == "CUSTOM_GOLD"
    api("GET", "/resource_classes/CUSTOM_TIN", expect=404)
    api("PUT", "/resource_classes/CUSTOM_TIN", expect=201)
    api("PUT", "/resource_classes/CUSTOM_TIN", expect=204)
    api("PUT", "/resource_classes/CUSTOM_TIN", {"name": "CUSTOM_ZINC"}, version="1.6", expect=200)
    api("PUT", "/resource_classes/VCPU", {"name": "CUSTOM_X"}, version="1.6", expect=400)
    uuid = provider(api)
    stock(api, uuid, CUSTOM_GOLD=3)
    api("DELETE", "/resource_classes/CUSTOM_GOLD", expect=409)
    api("DELETE", "/resource_classes/VCPU", expect=400)
    api("DELETE", "/resource_classes/CUSTOM_ZINC", expect=204)
    api("DELETE", "/resource_classes/CUSTOM_ZINC", expect=404)


def test_aggregates(api: Client) -> None:
    uuid, aggregate = provider(api), new_uuid()
    path = f"/resource_providers/{uuid}/aggregates"
    assert api.get(path) == {"aggregates": [], "resource_provider_generation": 0}
    body = {"aggregates": [aggregate], "resource_provider_generation": 0}
    assert api("PUT", path, body, expect=200).json() == {"aggregates": [aggregate], "resource_provider_generation": 1}
    assert code(api("PUT", path, body, expect=409)) == "placement.concurrent_update"
    assert api.get(path, "1.18") == {"aggregates": [aggregate]}
    listed = api.get(f"/resource_providers?member_of={aggregate}")["resource_providers"]
    assert [row["uuid"] for row in listed] == [uuid]
    assert api.get(f"/resource_providers?member_of=!{aggregate}")["resource_providers"] == []
    api("GET", "/resource_providers?member_of=x", expect=400)
    assert api("PUT", path, [], version="1.18", expect=200).json() == {"aggregates": []}
    api("PUT", path, [aggregate, aggregate], version="1.18", expect=400)


def test_allocations(api: Client) -> None:
    uuid, consumer = provider(api), new_uuid()
    stock(api, uuid, VCPU=4, MEMORY_MB=1000)
    path = f"/allocations/{consumer}"
    assert api.get(path) == {"allocations": {}}
    api("PUT", path, claim(uuid, 7, VCPU=2), expect=409)
    api("PUT", path, claim(uuid, None, VCPU=2), expect=204)
    shown = api.get(path)
    assert shown["allocations"][uuid]["resources"] == {"VCPU": 2}
    assert (shown["project_id"], shown["consumer_generation"], shown["consumer_type"]) == ("project-1", 1, "INSTANCE")
    assert "project_id" not in api.get(path, "1.11")
    assert code(api("PUT", path, claim(uuid, None, VCPU=2), expect=409)) == "placement.concurrent_update"
    api("PUT", path, claim(uuid, 1, VCPU=4, MEMORY_MB=10), expect=204)
    api("PUT", f"/allocations/{new_uuid()}", claim(uuid, None, VCPU=1), expect=409)
    api("PUT", path, claim(new_uuid(), 2, VCPU=1), expect=400)
    api("PUT", path, claim(uuid, 2, DISK_GB=1), expect=409)
    api("PUT", path, claim(uuid, 2, NOT_THERE=1), expect=400)
    api("PUT", "/allocations/x", claim(uuid, 2, VCPU=1), expect=400)
    on = api.get(f"/resource_providers/{uuid}/allocations")
    assert on["allocations"][consumer] == {"resources": {"MEMORY_MB": 10, "VCPU": 4}, "consumer_generation": 2}
    assert api.get(f"/resource_providers/{uuid}/usages")["usages"] == {"VCPU": 4, "MEMORY_MB": 10}
    assert code(api("DELETE", f"/resource_providers/{uuid}", expect=409)) == "placement.resource_provider.inuse"
    in_use = api("DELETE", f"/resource_providers/{uuid}/inventories/VCPU", expect=409)
    assert code(in_use) == "placement.inventory.inuse"
    api("DELETE", path, expect=204)
    api("DELETE", path, expect=404)
    api("DELETE", f"/resource_providers/{uuid}", expect=204)


def test_allocations_of_old_versions(api: Client) -> None:
    uuid, path = provider(api), f"/allocations/{new_uuid()}"
    stock(api, uuid, VCPU=4)
    body: dict[str, Any] = {"allocations": [{"resource_provider": {"uuid": uuid}, "resources": {"VCPU": 1}}]}
    api("PUT", path, body, version="1.7", expect=204)
    api("PUT", path, body, version="1.8", expect=400)
    api("PUT", path, {**body, "project_id": "p", "user_id": "u"}, version="1.8", expect=204)
    api("PUT", path, {**body, "project_id": "p", "user_id": "u"}, version="1.12", expect=400)
    middle = {"allocations": {uuid: {"resources": {"VCPU": 2}}}, "project_id": "p", "user_id": "u"}
    api("PUT", path, middle, version="1.27", expect=204)
    api("PUT", path, {**middle, "allocations": {}}, version="1.27", expect=400)
    api("PUT", path, middle, version="1.28", expect=400)
    api("PUT", path, {**middle, "consumer_generation": 3}, version="1.28", expect=204)
    api("PUT", path, {**middle, "consumer_generation": 4, "mappings": {"": [uuid]}}, version="1.33", expect=400)
    api("PUT", path, {**middle, "consumer_generation": 4, "mappings": {"": [uuid]}}, version="1.34", expect=204)
    api("PUT", path, {**middle, "consumer_generation": 5, "allocations": {}}, version="1.34", expect=204)
    assert api.get(path) == {"allocations": {}}


def test_many_allocations_are_all_or_nothing(api: Client) -> None:
    uuid, one, two = provider(api), new_uuid(), new_uuid()
    stock(api, uuid, VCPU=4)
    api("POST", "/allocations", {one: claim(uuid, None, VCPU=3), two: claim(uuid, None, VCPU=2)}, expect=409)
    assert api.get(f"/resource_providers/{uuid}/usages")["usages"] == {"VCPU": 0}
    api("POST", "/allocations", {one: claim(uuid, None, VCPU=3), two: claim(uuid, None, VCPU=1)}, expect=204)
    api("POST", "/allocations", {one: claim(uuid, 1), two: claim(uuid, 1, VCPU=4)}, expect=204)
    assert api.get(f"/resource_providers/{uuid}/usages")["usages"] == {"VCPU": 4}
    assert api.get(f"/allocations/{one}") == {"allocations": {}}
    api("POST", "/allocations", {}, expect=400)


def test_usages_of_a_project(api: Client) -> None:
    uuid = provider(api)
    stock(api, uuid, VCPU=9)
    for _ in range(2):
        api("PUT", f"/allocations/{new_uuid()}", claim(uuid, None, VCPU=2), expect=204)
    other = {**claim(uuid, None, VCPU=1), "consumer_type": "MIGRATION", "user_id": "user-2"}
    api("PUT", f"/allocations/{new_uuid()}", other, expect=204)
    grouped = api.get("/usages?project_id=project-1")["usages"]
    assert grouped == {"INSTANCE": {"VCPU": 4, "consumer_count": 2}, "MIGRATION": {"VCPU": 1, "consumer_count": 1}}
    assert api.get("/usages?project_id=project-1", "1.37") == {"usages": {"VCPU": 5}}
    assert api.get("/usages?project_id=project-1&user_id=user-2", "1.37") == {"usages": {"VCPU": 1}}
    assert api.get("/usages?project_id=project-1&consumer_type=all")["usages"] == {
        "all": {"VCPU": 5, "consumer_count": 3}
    }
    assert set(api.get("/usages?project_id=project-1&consumer_type=INSTANCE")["usages"]) == {"INSTANCE"}
    assert api("GET", "/usages?project_id=project-1", user="reader").status_code == 200
    assert api("GET", "/usages?project_id=project-2", user="reader").status_code == 403
    api("GET", "/usages", expect=400)


def test_the_reshaper_moves_inventory_and_allocations_together(api: Client) -> None:
    root, consumer = provider(api), new_uuid()
    child = provider(api, parent=root)
    stock(api, root, VCPU=4, MEMORY_MB=100)
    api("PUT", f"/allocations/{consumer}", claim(root, None, VCPU=2, MEMORY_MB=10), expect=204)
    generation = api.get(f"/resource_providers/{root}")["generation"]
    body = {
        "inventories": {
            root: {"resource_provider_generation": generation, "inventories": {"MEMORY_MB": {"total": 100}}},
            child: {"resource_provider_generation": 0, "inventories": {"VCPU": {"total": 4}}},
        },
        "allocations": {
            consumer: {
                **claim(root, 1),
                "allocations": {root: {"resources": {"MEMORY_MB": 10}}, child: {"resources": {"VCPU": 2}}},
            }
        },
    }
    api("POST", "/reshaper", body, expect=403)
    api("POST", "/reshaper", body, user="service", expect=204)
    assert set(api.get(f"/resource_providers/{root}/inventories")["inventories"]) == {"MEMORY_MB"}
    assert api.get(f"/resource_providers/{child}/usages")["usages"] == {"VCPU": 2}
    api("POST", "/reshaper", body, user="service", expect=409)


def candidates(api: Client, query: str, version: str = "1.39") -> Any:
    return api.get("/allocation_candidates?" + query, version)


def test_candidates(api: Client) -> None:
    big, small = provider(api), provider(api)
    stock(api, big, VCPU=8, MEMORY_MB=1000)
    stock(api, small, VCPU=2, MEMORY_MB=1000)
    api("PUT", f"/allocations/{new_uuid()}", claim(small, None, VCPU=1), expect=204)
    found = candidates(api, "resources=VCPU:2,MEMORY_MB:10")
    assert found["allocation_requests"] == [
        {"allocations": {big: {"resources": {"VCPU": 2, "MEMORY_MB": 10}}}, "mappings": {"": [big]}}
    ]
    summary = found["provider_summaries"][big]
    assert summary["resources"]["VCPU"] == {"capacity": 8, "used": 0}
    assert (summary["root_provider_uuid"], summary["traits"]) == (big, [])
    old = candidates(api, "resources=VCPU:1", "1.11")["allocation_requests"]
    parts = {
        (part["resource_provider"]["uuid"], part["resources"]["VCPU"]) for one in old for part in one["allocations"]
    }
    assert parts == {(big, 1), (small, 1)}
    assert set(candidates(api, "resources=VCPU:1", "1.26")["provider_summaries"][big]["resources"]) == {"VCPU"}
    assert len(candidates(api, "resources=VCPU:1&limit=1")["allocation_requests"]) == 1
    for bad in (
        "", "resources=VCPU", "resources=VCPU:0", "resources=VCPU:1,VCPU:2", "resources=NOT_THERE:1", "limit=1",
        "resources=VCPU:1&limit=0", "resources=VCPU:1&required=NOT_THERE", "resources=VCPU:1&colour=red",
        "resources=VCPU:1&member_of=x", "resources1=VCPU:1&resources2=VCPU:1", "resources=VCPU:1&group_policy=x",
        "resources=VCPU:1&in_tree=x", "resources=VCPU:1&same_subtree=_a", "required1=HW_CPU_X86_AVX",
    ):  # fmt: skip
        api("GET", "/allocation_candidates?" + bad, expect=400)
    api("GET", "/allocation_candidates?resources=VCPU:1&required=HW_CPU_X86_AVX", version="1.16", expect=400)


def test_a_ratio_beyond_measure_is_answered(api: Client) -> None:
    uuid = provider(api)
    huge = {"resource_class": "VCPU", "total": 2**31 - 1, "allocation_ratio": 3e38}
    api("POST", f"/resource_providers/{uuid}/inventories", huge, expect=201)
    found = candidates(api, "resources=VCPU:1")
    assert found["provider_summaries"][uuid]["resources"]["VCPU"]["capacity"] == 2**63 - 1


def test_candidates_by_trait_aggregate_and_tree(api: Client) -> None:
    one, two, aggregate = provider(api), provider(api), new_uuid()
    for uuid in (one, two):
        stock(api, uuid, VCPU=4)
    traits = {"traits": ["HW_CPU_X86_AVX"], "resource_provider_generation": 1}
    api("PUT", f"/resource_providers/{one}/traits", traits, expect=200)
    body = {"aggregates": [aggregate], "resource_provider_generation": 1}
    api("PUT", f"/resource_providers/{two}/aggregates", body, expect=200)

    def who(query: str) -> set[str]:
        found = candidates(api, "resources=VCPU:1&" + query)["allocation_requests"]
        return {uuid for candidate in found for uuid in candidate["allocations"]}

    assert who("required=HW_CPU_X86_AVX") == {one}
    assert who("required=!HW_CPU_X86_AVX") == {two}
    assert who("required=in:HW_CPU_X86_AVX,HW_CPU_X86_AVX2") == {one}
    assert who("root_required=HW_CPU_X86_AVX") == {one}
    assert who(f"member_of={aggregate}") == {two}
    assert who(f"member_of=!{aggregate}") == {one}
    assert who(f"member_of=in:{aggregate},{new_uuid()}") == {two}
    assert who(f"in_tree={one}") == {one}


def test_candidates_of_nested_and_numbered_groups(api: Client) -> None:
    root = provider(api)
    left, right = provider(api, parent=root), provider(api, parent=root)
    stock(api, root, MEMORY_MB=100)
    for uuid in (left, right):
        stock(api, uuid, VCPU=2, SRIOV_NET_VF=2)
    assert candidates(api, "resources=VCPU:1,MEMORY_MB:1", "1.28")["allocation_requests"] == []
    assert len(candidates(api, "resources=VCPU:1,MEMORY_MB:1")["allocation_requests"]) == 2
    two = "resources=MEMORY_MB:1&resources_a=VCPU:1&resources_b=SRIOV_NET_VF:1"
    assert len(candidates(api, two + "&group_policy=none")["allocation_requests"]) == 4
    isolated = candidates(api, two + "&group_policy=isolate")["allocation_requests"]
    assert all(one["mappings"]["_a"] != one["mappings"]["_b"] for one in isolated)
    assert len(isolated) == 2
    together = candidates(api, two + "&group_policy=none&same_subtree=_a,_b")["allocation_requests"]
    assert all(one["mappings"]["_a"] == one["mappings"]["_b"] for one in together)
    assert len(together) == 2
    same = candidates(api, "resources1=VCPU:2&resources2=VCPU:2&group_policy=none")["allocation_requests"]
    assert all(len(one["allocations"]) == 2 for one in same)  # both do not fit on one


def test_candidates_use_sharing_providers(api: Client) -> None:
    host, pool, aggregate = provider(api), provider(api), new_uuid()
    stock(api, host, VCPU=2)
    stock(api, pool, DISK_GB=100)
    api(
        "PUT", f"/resource_providers/{pool}/traits",
        {"traits": ["MISC_SHARES_VIA_AGGREGATE"], "resource_provider_generation": 1}, expect=200,
    )  # fmt: skip
    assert candidates(api, "resources=VCPU:1,DISK_GB:5")["allocation_requests"] == []
    for uuid, generation in ((host, 1), (pool, 2)):
        body = {"aggregates": [aggregate], "resource_provider_generation": generation}
        api("PUT", f"/resource_providers/{uuid}/aggregates", body, expect=200)
    found = candidates(api, "resources=VCPU:1,DISK_GB:5")["allocation_requests"]
    assert [set(one["allocations"]) for one in found] == [{host, pool}]


@pytest.mark.parametrize("body", [None, [], "x", 1, {"name": None}, {"name": {}}, {"traits": 1}])
def test_senseless_bodies_are_refused(api: Client, body: Any) -> None:
    uuid = provider(api)
    for method, path in (
        ("POST", "/resource_providers"), ("PUT", f"/resource_providers/{uuid}"),
        ("PUT", f"/resource_providers/{uuid}/inventories"), ("PUT", f"/resource_providers/{uuid}/traits"),
        ("PUT", f"/resource_providers/{uuid}/aggregates"), ("PUT", f"/allocations/{new_uuid()}"),
        ("POST", "/allocations"), ("POST", "/resource_classes"),
    ):  # fmt: skip
        api(method, path, body, expect=400)
