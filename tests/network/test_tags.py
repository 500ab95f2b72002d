"""Tags: the same seven calls under every kind of resource that has them."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.network.conftest import Net, error

Make = Callable[..., Any]
# collection in the path: (kind of the object, collection in a list's body)
TAGGED = {
    "networks": ("network", "networks"),
    "subnets": ("subnet", "subnets"),
    "subnetpools": ("subnetpool", "subnetpools"),
    "ports": ("port", "ports"),
    "routers": ("router", "routers"),
    "floatingips": ("floatingip", "floatingips"),
    "security-groups": ("security_group", "security_groups"),
    "security_groups": ("security_group", "security_groups"),
}


@pytest.fixture
def tagged(request: pytest.FixtureRequest, make: Make) -> tuple[str, Any]:
    """(path of one object, the object), of the kind that the parameter names."""
    collection = request.param
    kind = TAGGED[collection][0]
    values: dict[str, Any] = {}
    if kind == "subnet":
        values = {"network_id": make("demo", "network")["id"], "ip_version": 4, "cidr": "10.31.0.0/24"}
    elif kind == "port":
        values = {"network_id": make("demo", "network")["id"]}
    elif kind == "floatingip":
        values = {"floating_network_id": request.getfixturevalue("outside")[0]["id"]}
    elif kind == "subnetpool":
        values = {"prefixes": ["10.0.0.0/8"]}
    made = make("demo", kind, **values)
    return f"/{collection}/{made['id']}", made


every_kind = pytest.mark.parametrize("tagged", TAGGED, indirect=True)


@every_kind
def test_tags_of_everything(demo: Net, tagged: tuple[str, Any]) -> None:
    path, made = tagged
    kind, api = TAGGED[path.split("/")[1]][0], demo.api

    def tags() -> list[str]:
        """As the object itself shows them, which is the same as the list of tags."""
        listed = api.get("network", path + "/tags")
        assert (listed.status, set(listed.body)) == (200, {"tags"})
        shown = api.get("network", path)[kind]["tags"]
        assert sorted(listed["tags"]) == sorted(shown)
        return sorted(shown)

    assert made["tags"] == [] == tags()
    replaced = api.put("network", path + "/tags", {"tags": ["red", "blue"]})
    assert (replaced.status, sorted(replaced["tags"])) == (200, ["blue", "red"])
    added = api.post("network", path + "/tags", {"tags": ["blue", "green"]})
    assert added.status == 200
    assert tags() == ["blue", "green", "red"]
    put = api.put("network", path + "/tags/grey")
    assert put.status == 201
    assert api.put("network", path + "/tags/grey").status == 201  # once more changes nothing
    assert tags() == ["blue", "green", "grey", "red"]
    found = api.get("network", path + "/tags/grey")
    assert (found.status, found.text) == (204, "")
    assert error(api.get("network", path + "/tags/pink")) == (404, "TagNotFound")
    assert api.delete("network", path + "/tags/grey").status == 204
    assert error(api.delete("network", path + "/tags/grey")) == (404, "TagNotFound")
    assert api.put("network", path + "/tags", {"tags": ["one"]}).status == 200
    assert tags() == ["one"]
    assert api.delete("network", path + "/tags").status == 204
    assert tags() == []
    assert api.get("network", path)[kind]["revision_number"] > made["revision_number"]


@every_kind
def test_lists_filter_by_tags(demo: Net, tagged: tuple[str, Any]) -> None:
    path, made = tagged
    collection = path.split("/")[1]
    assert demo.api.put("network", path + "/tags", {"tags": ["a-" + made["id"], "b-" + made["id"]]}).status == 200

    def listed(query: str) -> bool:
        answer = demo.api.get("network", f"/{collection}?id={made['id']}&{query}")
        assert answer.status == 200, answer.text
        return [one["id"] for one in answer[TAGGED[collection][1]]] == [made["id"]]

    a, b = "a-" + made["id"], "b-" + made["id"]
    assert listed(f"tags={a},{b}")
    assert not listed(f"tags={a},c")
    assert listed(f"tags-any={a},c")
    assert not listed(f"not-tags={a},{b}")
    assert listed(f"not-tags={a},c")
    assert not listed(f"not-tags-any={a},c")


@every_kind
def test_tags_of_everything_refuse(demo: Net, other: Net, reader: Net, tagged: tuple[str, Any]) -> None:
    path, _ = tagged
    path += "/tags"
    for body in ({}, {"tags": "red"}, {"tags": [7]}, {"tags": ["a", "a"]}, {"tags": ["x" * 256]}):
        for method in ("PUT", "POST"):
            refused = demo.api.request(method, "network", path, body)
            assert error(refused) == (400, "InvalidInput"), (method, body)
    assert error(demo.api.put("network", f"{path}/{'x' * 256}")) == (400, "InvalidInput")
    for method in ("GET", "PUT", "DELETE"):
        assert other.api.request(method, "network", path + "/red").status == 404
    assert other.api.put("network", path, {"tags": ["mine"]}).status == 404
    assert other.api.delete("network", path).status == 404
    assert reader.api.get("network", path).status == 200
    assert error(reader.api.put("network", path + "/red")) == (403, "PolicyNotAuthorized")
    assert error(reader.api.post("network", path, {"tags": ["red"]})) == (403, "PolicyNotAuthorized")
    assert demo.api.get("network", path)["tags"] == []
