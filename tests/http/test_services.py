"""Every service keeps the conventions of its OpenStack counterpart: faults, headers, version documents, ids."""

import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

SERVICES = ("compute", "identity", "image", "network", "placement", "volume")
BASE = {
    "compute": "/compute/v2.1",
    "identity": "/identity/v3",
    "image": "/image/v2",
    "network": "/network/v2.0",
    "placement": "/placement",
    "volume": "/volume/v3",
}
MISSING = {  # something that can be asked for and is not there
    "compute": "/servers/{}",
    "identity": "/users/{}",
    "image": "/images/{}",
    "network": "/networks/{}",
    "placement": "/resource_providers/{}",
    "volume": "/volumes/{}",
}
REQUEST_ID = re.compile(r"req-[0-9a-f-]{36}\Z")


class Asker:
    def __init__(self, cloud: Any) -> None:
        self._client = httpx.Client(base_url=cloud.url, timeout=30)
        self.tokens = {user: cloud.api(user).token for user in ("admin", "demo")}
        self.project_id = cloud.api("demo").project_id

    def __call__(self, method: str, path: str, user: str | None = "demo", **more: Any) -> httpx.Response:
        headers = {"Accept": "application/json", **more.pop("headers", {})}
        if user is not None:
            headers["X-Auth-Token"] = self.tokens.get(user, user)
        return self._client.request(method, path, headers=headers, **more)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def ask(cloud: Any) -> Iterator[Asker]:
    asker = Asker(cloud)
    yield asker
    asker.close()


def message(service: str, body: Any) -> str:
    """The text of a fault; fails when the fault has another service's form."""
    if service in ("compute", "volume"):
        (inner,) = body.values()
        assert isinstance(inner["code"], int)
        return inner["message"]
    if service == "identity":
        return body["error"]["message"]
    if service == "network":
        assert set(body["NeutronError"]) == {"type", "message", "detail"}
        return body["NeutronError"]["message"]
    if service == "placement":
        assert REQUEST_ID.match(body["errors"][0]["request_id"])
        return body["errors"][0]["detail"]
    assert set(body) >= {"message", "code", "title"}
    return body["message"]


@pytest.mark.parametrize("service", SERVICES)
def test_missing_things_are_404_in_the_services_own_form(ask: Asker, service: str) -> None:
    path = BASE[service] + MISSING[service].format(uuid.uuid4())
    reply = ask("GET", path, "admin")
    assert reply.status_code == 404
    assert message(service, reply.json())
    assert REQUEST_ID.match(reply.headers["x-openstack-request-id"])


@pytest.mark.parametrize("service", SERVICES)
def test_who_is_not_known_is_401_before_anything_else(ask: Asker, service: str) -> None:
    for path in (MISSING[service].format("x"), "/there/is/nothing/here"):
        for user in (None, "junk", "gAAAAA" + "x" * 150):
            reply = ask("GET", BASE[service] + path, user)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"].startswith("Keystone uri=")
            if service == "image":
                assert reply.json()["code"] == "401 Unauthorized"
                assert "x-openstack-request-id" not in reply.headers
            else:
                assert reply.json()["error"]["code"] == 401


@pytest.mark.parametrize("service", SERVICES)
def test_paths_that_do_not_exist(ask: Asker, service: str) -> None:
    reply = ask("GET", BASE[service] + "/there/is/nothing/here")
    assert reply.status_code == 404
    if service == "identity":
        assert reply.headers["content-type"].startswith("text/html")
    elif service in ("compute", "volume"):
        assert reply.json()["code"] == "404 Not Found"
    elif service == "network":
        assert reply.json()["NeutronError"]["type"] == "HTTPNotFound"
    else:
        assert message(service, reply.json())


@pytest.mark.parametrize("service", SERVICES)
def test_wrong_methods(ask: Asker, service: str) -> None:
    method = "PATCH" if service in ("compute", "volume", "placement") else "POST"
    reply = ask(method, BASE[service] + MISSING[service].format(uuid.uuid4()), "admin", json={})
    if service in ("compute", "volume"):
        assert reply.status_code == 404
    else:
        assert reply.status_code == 405
        if service != "network":
            assert "GET" in reply.headers["allow"]


@pytest.mark.parametrize("service", SERVICES)
def test_headers_and_urls_without_measure(ask: Asker, service: str) -> None:
    path = BASE[service] + MISSING[service].format("x")
    for reply, status in (
        (ask("GET", path, headers={"X-Long": "x" * 40_000}), 431),
        (ask("GET", path + "?a=" + "x" * 20_000), 414),
    ):
        assert reply.status_code == status
        assert message(service, reply.json())


@pytest.mark.parametrize("service", SERVICES)
def test_nasty_paths_and_queries(ask: Asker, service: str) -> None:
    for segment in ("%00", "%ff", "..%2f..%2fetc", "%F0%9F%92%A9", "a" * 5000, "'; DROP TABLE x", "-1"):
        reply = ask("GET", BASE[service] + MISSING[service].format(segment), "admin")
        assert reply.status_code in (400, 404), (segment, reply.text)
        message(service, reply.json())
    collection = BASE[service] + MISSING[service].rpartition("/")[0]
    for query in ("limit=-1", "limit=x", "limit=99999999999999999999", "marker=%00", "marker=nope", "sort_key=%ff",
                  "name=" + "x" * 4000, "limit=1&limit=2"):  # fmt: skip
        assert ask("GET", f"{collection}?{query}", "admin").status_code < 500, query


def test_version_documents_need_no_token(ask: Asker) -> None:
    expected = {"compute": 200, "identity": 300, "image": 300, "network": 200, "placement": 200, "volume": 300}
    for service, status in expected.items():
        for end in ("/", ""):
            reply = ask("GET", f"/{service}{end}", None)
            assert reply.status_code == status, (service, reply.text)
        versions = reply.json()["versions"]
        listed = versions["values"] if service == "identity" else versions
        assert all({"id", "status", "links"} <= set(version) for version in listed), service
    assert ask("GET", "/compute/v2.1", None).json()["version"]["id"] == "v2.1"
    assert ask("GET", "/compute/v2.1/", None).status_code == 200
    assert ask("GET", "/volume/v3/", None).status_code == 401
    assert ask("GET", "/volume/v3/").status_code == 200
    assert ask("GET", "/network/v2.0/").json()["resources"]
    assert ask("GET", "/image/versions", None).status_code == 200
    assert ask("GET", "/identity/v3", None).json()["version"]["status"] == "stable"


@pytest.mark.parametrize("service,word", [("compute", "compute"), ("volume", "volume"), ("placement", "placement")])
def test_microversions(ask: Asker, service: str, word: str) -> None:
    path = BASE[service] + MISSING[service].format(uuid.uuid4())

    def version(text: str) -> httpx.Response:
        return ask("GET", path, "admin", headers={"OpenStack-API-Version": f"{word} {text}"})

    highest = version("latest").headers["openstack-api-version"]
    assert highest.startswith(word + " ")
    assert "openstack-api-version" in version("latest").headers["vary"].lower()
    beyond = version("99.99")
    assert beyond.status_code == 406
    message(service, beyond.json())
    assert version("two").status_code == 400
    assert "openstack-api-version" in ask("GET", path, "admin").headers


@pytest.mark.parametrize("service", ["compute", "volume"])
def test_the_project_in_the_path(ask: Asker, service: str) -> None:
    collection = MISSING[service].rpartition("/")[0]
    assert ask("GET", f"{BASE[service]}/{ask.project_id}{collection}").status_code == 200
    assert ask("GET", f"{BASE[service]}{collection}").status_code == 200
    assert ask("GET", f"{BASE[service]}/{'b' * 32}{collection}").status_code == 400


@pytest.mark.parametrize("service", SERVICES)
def test_bodies_that_are_not_json(ask: Asker, service: str) -> None:
    collection = BASE[service] + MISSING[service].rpartition("/")[0]
    for content in (b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"a": ' * 3000):
        reply = ask("POST", collection, "admin", content=content, headers={"Content-Type": "application/json"})
        assert reply.status_code == 400, (content[:20], reply.text)
        message(service, reply.json())
    reply = ask("POST", collection, "admin", content=b"<x/>", headers={"Content-Type": "application/xml"})
    assert reply.status_code in ((400,) if service == "identity" else (415,)), reply.text


@pytest.mark.parametrize("service", SERVICES)
def test_openapi_covers_every_route(ask: Asker, cloud: Any, service: str) -> None:
    document = ask("GET", f"/openapi/{service}.json", None).json()
    api = next(api for api in cloud.control.apis if api.name == service)
    for route in api.routes:
        path = api.prefix + api.version_prefix + route.path
        assert route.method.lower() in document["paths"][path], path
