"""Image records over HTTP: create, show, change, list, delete, as clients see them."""

import pytest

from tests.image.conftest import ADMIN, ALICE, BOB, READER


def test_a_new_image_is_queued_and_has_all_attributes(api):
    made = api("POST", "/v2/images", json={"name": "x", "os_distro": "debian", "tags": ["a", "a", "b"], "min_ram": 64})
    assert made.status_code == 201
    body = made.json()
    assert made.headers["location"] == f"http://cloud/image/v2/images/{body['id']}"
    assert made.headers["openstack-image-import-methods"] == "glance-direct"
    assert body["status"] == "queued"
    assert body["visibility"] == "shared"
    assert body["owner"] == "p-alice"
    assert body["os_distro"] == "debian"
    assert sorted(body["tags"]) == ["a", "b"]
    assert body["file"] == f"/v2/images/{body['id']}/file"
    assert body["size"] is None
    assert api.show(body["id"]) == body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "x" * 256}, 400),
        ({"name": 5}, 400),
        ({"visibility": "secret"}, 400),
        ({"visibility": "public"}, 403),
        ({"disk_format": "floppy"}, 400),
        ({"min_disk": -1}, 400),
        ({"min_disk": 2**40}, 400),
        ({"protected": "yes"}, 400),
        ({"id": "7"}, 400),
        ({"owner": "p-bob"}, 403),
        ({"custom": 7}, 400),
        ({"status": "active"}, 403),
        ({"self": "x"}, 403),
        ({"deleted_at": "x"}, 403),
        ({"os_glance_x": "y"}, 403),
        ({"tags": ["x" * 256]}, 400),
        ({"tags": [str(n) for n in range(129)]}, 413),
        ({f"k{n}": "v" for n in range(129)}, 413),
        ([], 400),
    ],
)
def test_what_create_refuses(api, body, status):
    assert api("POST", "/v2/images", json=body).status_code == status


def test_readers_read_and_do_not_create(api):
    made = api.image()
    assert api("GET", f"/v2/images/{made['id']}", token=READER).status_code == 200
    assert api("POST", "/v2/images", token=READER, json={}).status_code == 403
    assert api("DELETE", f"/v2/images/{made['id']}", token=READER).status_code == 403


def test_an_id_is_never_used_twice(api):
    made = api.image()
    assert api("POST", "/v2/images", json={"id": made["id"]}).status_code == 409
    assert api("DELETE", f"/v2/images/{made['id']}").status_code == 204
    assert api("POST", "/v2/images", json={"id": made["id"]}).status_code == 409


def test_faults_take_the_form_the_client_accepts(api):
    fault = api("GET", "/v2/images/none", headers={"Accept": "application/json"})
    assert fault.status_code == 404
    assert fault.json()["code"] == "404 Not Found"
    page = api("GET", "/v2/images/none", headers={"Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "404 Not Found" in page.text


def test_patch_changes_what_may_change(api):
    image = api.image(os_distro="debian")
    changed = api.patch(
        image["id"],
        [
            {"op": "replace", "path": "/name", "value": "two"},
            {"op": "add", "path": "/hw_disk_bus", "value": "scsi"},
            {"op": "remove", "path": "/os_distro"},
            {"op": "replace", "path": "/tags", "value": ["t"]},
            {"op": "add", "path": "/a~1b", "value": "slash"},
        ],
    )
    assert changed.status_code == 200, changed.text
    body = changed.json()
    assert (body["name"], body["hw_disk_bus"], body["tags"], body["a/b"]) == ("two", "scsi", ["t"], "slash")
    assert "os_distro" not in body
    assert api.show(image["id"]) == body


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"op": "replace", "path": "/nothing", "value": "x"}, 409),
        ({"op": "remove", "path": "/nothing"}, 409),
        ({"op": "remove", "path": "/name"}, 403),
        ({"op": "replace", "path": "/status", "value": "active"}, 403),
        ({"op": "replace", "path": "/deleted", "value": "true"}, 403),
        ({"op": "add", "path": "/os_glance_x", "value": "y"}, 403),
        ({"op": "replace", "path": "/owner", "value": "p-bob"}, 403),
        ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
        ({"op": "move", "path": "/name", "value": "x"}, 400),
        ({"op": "replace", "path": "name", "value": "x"}, 400),
        ({"op": "replace", "path": "/", "value": "x"}, 400),
        ({"op": "replace", "path": "/name/", "value": "x"}, 400),
        ({"op": "replace", "path": "/a~2b", "value": "x"}, 400),
        ({"op": "replace", "path": "/name/first", "value": "x"}, 400),
        ({"op": "replace", "path": 7, "value": "x"}, 400),
        ({"op": "replace", "path": "/name"}, 400),
        ({"op": "replace", "path": "/protected", "value": "maybe"}, 400),
        ({"op": "add", "path": "/locations/-", "value": {"url": "file:///x", "metadata": {}}}, 403),
        ("nothing", 400),
    ],
)
def test_what_patch_refuses(api, change, status):
    image = api.image()
    assert api.patch(image["id"], [change]).status_code == status
    assert api.show(image["id"])["name"] == "one"


def test_patch_speaks_the_old_draft_and_refuses_plain_json(api):
    image = api.image()
    assert api.patch(image["id"], [{"replace": "/name", "value": "old"}], draft="2.0").json()["name"] == "old"
    assert api.patch(image["id"], [{"add": "/name", "value": "x"}], draft="2.0").status_code == 409
    plain = api("PATCH", f"/v2/images/{image['id']}", json=[])
    assert plain.status_code == 415
    assert "openstack-images-v2.1-json-patch" in plain.headers["accept-patch"]
    assert api.patch(image["id"], {"op": "add"}).status_code == 400


def test_protected_images_stay(api):
    image = api.image(protected=True)
    assert api("DELETE", f"/v2/images/{image['id']}").status_code == 403
    api.patch(image["id"], [{"op": "replace", "path": "/protected", "value": False}])
    assert api("DELETE", f"/v2/images/{image['id']}").status_code == 204
    assert api("GET", f"/v2/images/{image['id']}").status_code == 404


def test_others_see_what_they_may(api):
    private = api.image(visibility="private")["id"]
    community = api.image(visibility="community")["id"]
    public = api.image(token=ADMIN, visibility="public")["id"]
    assert api("GET", f"/v2/images/{private}", token=BOB).status_code == 404
    assert api("DELETE", f"/v2/images/{private}", token=BOB).status_code == 404
    assert api("GET", f"/v2/images/{community}", token=BOB).status_code == 200
    assert api("DELETE", f"/v2/images/{public}", token=BOB).status_code == 403
    listed = [i["id"] for i in api("GET", "/v2/images", token=BOB).json()["images"]]
    assert listed == [public]
    found = api("GET", "/v2/images?visibility=community", token=BOB).json()["images"]
    assert [i["id"] for i in found] == [community]
    assert len(api("GET", "/v2/images?visibility=all", token=BOB).json()["images"]) == 2
    assert len(api("GET", "/v2/images", token=ADMIN).json()["images"]) == 2
    assert api("GET", "/v2/images", token=None).status_code == 401


def test_tags_are_added_and_removed(api):
    image = api.image()["id"]
    assert api("PUT", f"/v2/images/{image}/tags/blue").status_code == 204
    assert api("PUT", f"/v2/images/{image}/tags/blue").status_code == 204
    assert api.show(image)["tags"] == ["blue"]
    assert api("DELETE", f"/v2/images/{image}/tags/blue").status_code == 204
    assert api("DELETE", f"/v2/images/{image}/tags/blue").status_code == 404
    assert api("PUT", f"/v2/images/{image}/tags/{'x' * 256}").status_code == 400


def test_pages_follow_each_other_and_lose_nothing(api):
    made = [api.image(name=f"n{n}", colour="red" if n % 2 else "blue")["id"] for n in range(7)]
    seen, path = [], "/v2/images?limit=3&sort_key=name&sort_dir=asc"
    first = api("GET", path).json()
    assert first["first"] == "/v2/images?limit=3&sort_key=name&sort_dir=asc"
    while path:
        page = api("GET", path).json()
        seen += [image["id"] for image in page["images"]]
        path = page.get("next")
    assert seen == made
    newest = api("GET", "/v2/images?limit=2").json()["images"]
    assert [i["id"] for i in newest] == [made[6], made[5]]
    reds = api("GET", "/v2/images?colour=red&limit=2&sort=name:asc").json()
    assert [i["id"] for i in reds["images"]] == [made[1], made[3]]
    more = api("GET", reds["next"]).json()
    assert [i["id"] for i in more["images"]] == [made[5]]


@pytest.mark.parametrize(
    "query",
    ["limit=-1", "limit=x", "marker=nope", "sort_key=owner", "sort_dir=up", "sort=name:up", "visibility=odd",
     "member_status=odd", "os_hidden=odd", "protected=odd", "size_min=x", "created_at=gt:yesterday", "name=gt:a",
     "name=in:%22a", "changes-since=2020-01-01", "sort=name&sort_key=name"],
)  # fmt: skip
def test_bad_list_queries(api, query):
    assert api("GET", f"/v2/images?{query}").status_code == 400


def test_filters(api):
    one = api.image(name="a,b", tags=["x", 'quo"te'], protected=True)["id"]
    two = api.image(name="c", tags=["x"], os_hidden=True)["id"]

    def ids(query):
        return [i["id"] for i in api("GET", f"/v2/images?{query}").json()["images"]]

    assert ids("name=a,b") == [one]
    assert ids("name=in:%22a,b%22,z") == [one]
    assert ids(f"id=in:{one},{two}") == [one]
    assert ids("os_hidden=true") == [two]
    assert ids("tag=x") == [one]
    assert ids("tag=quo%22te&tag=x") == [one]
    assert ids("tag=te") == []
    assert ids("protected=true") == [one]
    assert ids("status=queued&disk_format=in:raw,qcow2") == [one]
    assert ids("created_at=gt:2001-01-01T00:00:00Z") == [one]
    assert ids("created_at=lt:2001-01-01T00:00:00Z") == []
    assert ids("no_such=thing") == []


def test_schemas_versions_and_infos(api):
    assert api("GET", "/v2/schemas/image").json()["name"] == "image"
    assert set(api("GET", "/v2/schemas/images").json()["properties"]) >= {"images", "first", "next", "schema"}
    assert api("GET", "/v2/schemas/nothing").status_code == 404
    root = api("GET", "/", token=None)
    assert root.status_code == 300
    assert root.json()["versions"][0]["status"] == "CURRENT"
    assert api("GET", "/versions", token=None).status_code == 200
    assert api("GET", "/v2/info/import").json()["import-methods"]["value"] == ["glance-direct"]
    assert api("GET", "/v2/info/stores").status_code == 404
    assert api("GET", "/v2/info/usage").json() == {"usage": {}}


def test_members_share_an_image(api):
    image = api.image()["id"]
    members = f"/v2/images/{image}/members"
    assert api("GET", f"/v2/images/{image}", token=BOB).status_code == 404
    added = api("POST", members, json={"member": "p-bob"})
    assert added.status_code == 200
    assert added.json()["status"] == "pending"
    assert api("POST", members, json={"member": "p-bob"}).status_code == 409
    assert api("POST", members, token=BOB, json={"member": "p-x"}).status_code == 403
    assert api("POST", members, json={"member": ""}).status_code == 400
    assert api("POST", members, json={"other": 1}).status_code == 400
    assert api("GET", f"/v2/images/{image}", token=BOB).status_code == 200
    assert api("GET", "/v2/images", token=BOB).json()["images"] == []
    assert len(api("GET", "/v2/images?member_status=pending", token=BOB).json()["images"]) == 1
    assert api("PUT", f"{members}/p-bob", json={"status": "accepted"}).status_code == 403
    assert api("PUT", f"{members}/p-bob", token=BOB, json={"status": "maybe"}).status_code == 400
    assert api("PUT", f"{members}/p-bob", token=BOB, json={"status": "accepted"}).json()["status"] == "accepted"
    assert len(api("GET", "/v2/images", token=BOB).json()["images"]) == 1
    assert [m["member_id"] for m in api("GET", members, token=BOB).json()["members"]] == ["p-bob"]
    for token in (ALICE, BOB):
        shown = api("GET", f"{members}/p-bob", token=token)
        assert shown.status_code == 200
        assert shown.json().keys() == {"image_id", "member_id", "status", "created_at", "updated_at", "schema"}
        assert (shown.json()["image_id"], shown.json()["status"]) == (image, "accepted")
        assert shown.json()["schema"] == "/v2/schemas/member"
    assert api("GET", f"{members}/p-none").status_code == 404
    assert api("GET", f"{members}/p-bob", token="eve/p-eve/member,reader").status_code == 404
    assert api("DELETE", f"{members}/p-bob", token=BOB).status_code == 403
    assert api("DELETE", f"{members}/p-bob").status_code == 204
    assert api("GET", f"{members}/p-bob").status_code == 404
    private = api.image(visibility="private")["id"]
    assert api("POST", f"/v2/images/{private}/members", json={"member": "p-bob"}).status_code == 403


def test_only_admins_see_tasks(api):
    assert api("GET", "/v2/tasks", token=ALICE).status_code == 403
    assert api("GET", "/v2/tasks", token=ADMIN).json()["tasks"] == []
    assert api("DELETE", "/v2/tasks/x", token=ADMIN).status_code == 405


def test_nothing_is_imported_by_a_task(api):
    task = {"type": "import", "input": {"import_from": "http://example.org/x", "import_from_format": "raw",
                                        "image_properties": {"disk_format": "raw"}}}  # fmt: skip
    assert api("POST", "/v2/tasks", token=ALICE, json=task).status_code == 403
    refused = api("POST", "/v2/tasks", token=ADMIN, json=task)
    assert refused.status_code == 400
    assert "no import_from location is accepted" in refused.json()["message"]
    assert api("POST", "/v2/tasks", token=ADMIN, json={**task, "type": "export"}).status_code == 400
    assert api("GET", "/v2/tasks", token=ADMIN).json()["tasks"] == []


@pytest.fixture
def namespace(api):
    """A public namespace that administrators fill."""
    made = api("POST", "/v2/metadefs/namespaces", token=ADMIN, json={"namespace": "space", "visibility": "public"})
    assert made.status_code == 201, made.text
    return "/v2/metadefs/namespaces/space"


DEFINITIONS = {
    "objects": {"name": "one", "description": "d", "required": ["q"],
                "properties": {"q": {"title": "Q", "type": "integer", "minimum": 0}}},
    "properties": {"name": "one", "title": "One", "type": "string", "enum": ["a", "b"]},
    "tags": {"name": "one"},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFINITIONS)
def test_definitions_of_a_namespace(api, namespace, kind):
    """One definition from its creation to its end, and all of a kind at once."""
    body, path = DEFINITIONS[kind], f"{namespace}/{kind}"

    def make(name):
        if kind == "tags":
            return api("POST", f"{path}/{name}", token=ADMIN)
        return api("POST", path, token=ADMIN, json={**body, "name": name})

    def names():
        answer = api("GET", path, token=ALICE)
        assert answer.status_code == 200
        listed = answer.json()[kind]
        return sorted(listed) if kind == "properties" else sorted(one["name"] for one in listed)

    made = make("one")
    assert made.status_code == 201, made.text
    assert make("one").status_code == 409
    shown = api("GET", f"{path}/one", token=ALICE)
    assert shown.status_code == 200
    assert shown.json() == made.json()
    assert {key: shown.json()[key] for key in body} == body
    if kind == "objects":
        assert shown.json()["self"] == f"{path}/one"
        assert shown.json()["schema"] == "/v2/schemas/metadefs/object"
    if kind != "properties":
        assert {"created_at", "updated_at"} <= set(shown.json())
    changed = api("PUT", f"{path}/one", token=ADMIN, json={**body, "name": "other"})
    assert changed.status_code == 200, changed.text
    assert changed.json()["name"] == "other"
    assert api("GET", f"{path}/one").status_code == 404
    assert names() == ["other"]
    assert api("PUT", f"{path}/one", token=ADMIN, json=body).status_code == 404
    assert make("one").status_code == 201
    assert api("PUT", f"{path}/other", token=ADMIN, json=body).status_code == 409  # the name is taken
    assert api("PUT", f"{path}/other", token=ADMIN, json={}).status_code == 400
    assert api("PUT", f"{path}/other", token=ADMIN, json={**body, "colour": "red"}).status_code == 400
    assert names() == ["one", "other"]
    for method, end in (("PUT", "/one"), ("DELETE", "/one"), ("DELETE", "")):
        assert api(method, path + end, token=ALICE, json=body).status_code == 403
    assert api("DELETE", f"{path}/one", token=ADMIN).status_code == 204
    assert api("DELETE", f"{path}/one", token=ADMIN).status_code == 404
    assert names() == ["other"]
    assert make("third").status_code == 201
    gone = api("DELETE", path, token=ADMIN)
    assert (gone.status_code, gone.text) == (204, "")
    assert names() == []
    assert api("GET", "/v2/metadefs/namespaces/none/" + kind).status_code == 404


def test_what_a_namespace_is_for(api, namespace):
    path = namespace + "/resource_types"
    body = {"name": "OS::Test::Thing", "prefix": "hw_", "properties_target": "image"}
    assert api("GET", path).json() == {"resource_type_associations": []}
    assert api("POST", path, json=body).status_code == 403
    made = api("POST", path, token=ADMIN, json=body)
    assert made.status_code == 201, made.text
    assert {key: made.json()[key] for key in body} == body
    assert api("POST", path, token=ADMIN, json=body).status_code == 409
    assert api("POST", path, token=ADMIN, json={"prefix": "x"}).status_code == 400
    listed = api("GET", path, token=BOB)
    assert listed.status_code == 200
    assert listed.json()["resource_type_associations"] == [made.json()]
    known = [one["name"] for one in api("GET", "/v2/metadefs/resource_types").json()["resource_types"]]
    assert "OS::Test::Thing" in known
    found = api("GET", "/v2/metadefs/namespaces?resource_types=OS::Test::Thing").json()["namespaces"]
    assert [one["namespace"] for one in found] == ["space"]
    # a property by the name that it has on that kind of resource
    assert api("POST", namespace + "/properties", token=ADMIN, json=DEFINITIONS["properties"]).status_code == 201
    query = "?resource_type=OS::Test::Thing"
    assert api("GET", f"{namespace}/properties/hw_one{query}").json()["title"] == "One"
    assert api("GET", f"{namespace}/properties/one{query}").status_code == 404
    assert api("GET", f"{namespace}/properties/hw_one").status_code == 404
    assert api("DELETE", path + "/OS::Test::Thing").status_code == 403
    assert api("DELETE", path + "/OS::Test::Thing", token=ADMIN).status_code == 204
    assert api("DELETE", path + "/OS::Test::Thing", token=ADMIN).status_code == 404
    assert api("GET", path).json() == {"resource_type_associations": []}


def test_tags_of_a_namespace_are_set_together(api, namespace):
    path = namespace + "/tags"
    for tags, status in (([{"name": "a"}, {"name": "a"}], 409), ([{}], 400), ("a", 400)):
        assert api("POST", path, token=ADMIN, json={"tags": tags}).status_code == status, tags
    made = api("POST", path, token=ADMIN, json={"tags": [{"name": "a"}, {"name": "b"}]})
    assert (made.status_code, made.json()) == (201, {"tags": [{"name": "a"}, {"name": "b"}]})
    more = api("POST", path, token=ADMIN, json={"tags": [{"name": "c"}]}, headers={"X-Openstack-Append": "true"})
    assert more.status_code == 201
    assert {one["name"] for one in api("GET", path).json()["tags"]} == {"a", "b", "c"}
    assert api("POST", path, json={"tags": []}).status_code == 403


def test_metadata_definitions(api):
    base = "/v2/metadefs/namespaces"
    body = {
        "namespace": "ns",
        "visibility": "public",
        "protected": True,
        "resource_type_associations": [{"name": "OS::Nova::Flavor"}],
        "tags": [{"name": "t"}],
        "properties": {"p": {"title": "P", "type": "string"}},
        "objects": [{"name": "o", "properties": {"q": {"title": "Q", "type": "integer"}}}],
    }
    assert api("POST", base, json=body).status_code == 403
    made = api("POST", base, token=ADMIN, json=body)
    assert made.status_code == 201, made.text
    assert api("POST", base, token=ADMIN, json=body).status_code == 409
    assert api("POST", base, token=ADMIN, json={"visibility": "public"}).status_code == 400
    assert api("POST", base, token=ADMIN, json={"namespace": "x", "visibility": "odd"}).status_code == 400
    shown = api("GET", base + "/ns").json()
    assert shown["properties"]["p"]["title"] == "P"
    assert [one["name"] for one in shown["objects"]] == ["o"]
    assert "ns" in [one["namespace"] for one in api("GET", base).json()["namespaces"]]
    assert api("DELETE", base + "/ns", token=ADMIN).status_code == 403
    assert api("POST", base + "/ns/tags/u", token=ADMIN).status_code == 201
    assert {one["name"] for one in api("GET", base + "/ns/tags").json()["tags"]} == {"t", "u"}
    assert api("POST", base + "/ns/tags", token=ADMIN, json={"tags": [{"name": "v"}]}).status_code == 201
    assert [one["name"] for one in api("GET", base + "/ns/tags").json()["tags"]] == ["v"]
    changed = api("PUT", base + "/ns/objects/o", token=ADMIN, json={"name": "o2"})
    assert changed.json()["name"] == "o2"
    assert api("GET", base + "/ns/objects/o").status_code == 404
    added = api("POST", base + "/ns/properties", token=ADMIN, json={"name": "r", "title": "R", "type": "string"})
    assert added.status_code == 201
    assert api("DELETE", base + "/ns/properties/r", token=ADMIN).status_code == 204
    renamed = api("PUT", base + "/ns", token=ADMIN, json={"namespace": "ns2", "visibility": "private"})
    assert renamed.json()["protected"] is False
    assert api("GET", base + "/ns2").status_code == 404
    assert api("GET", base + "/ns2/objects", token=ADMIN).json()["objects"][0]["name"] == "o2"
    assert api("GET", "/v2/metadefs/resource_types").json()["resource_types"]
    assert api("GET", "/v2/schemas/metadefs/resource_type").json()["name"] == "resource_type_association"
    assert api("DELETE", base + "/ns2", token=ADMIN).status_code == 204
