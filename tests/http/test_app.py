"""The ASGI layer, driven in process by httpx."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from cumulet.http import (
    Call,
    GlanceFaults,
    HttpApp,
    KeystoneFaults,
    Microversions,
    NeutronFaults,
    NovaFaults,
    PlacementFaults,
    Reply,
    Route,
    ServiceApi,
    Since,
    Until,
    page_of,
)
from cumulet.kernel.context import RequestContext
from cumulet.kernel.errors import Conflict, NotFound, QuotaExceeded, Unauthorized

PROJECT = "a" * 32


class Thing(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=8)]
    size: int = 1
    tags: Annotated[list[str] | None, Since("2.5")] = None
    old: Annotated[str | None, Until("2.3")] = None


class ThingBody(msgspec.Struct, forbid_unknown_fields=True):
    thing: Thing
    hints: dict[str, Any] | None = None


class Resize(msgspec.Struct, forbid_unknown_fields=True):
    flavor: str


class Listing(msgspec.Struct, forbid_unknown_fields=True):
    limit: int | None = None
    all: bool = False
    tag: list[str] = []


DATABASE = {
    "409": IntegrityError("INSERT", {}, Exception("secret")),
    "400": DataError("INSERT", {}, Exception("secret")),
    "503": OperationalError("INSERT", {}, Exception("secret")),
}


def show(call: Call) -> Any:
    if call.params["id"] == "missing":
        raise NotFound("No such thing: missing")
    if call.params["id"] == "boom":
        raise RuntimeError("secret text")
    if call.params["id"] in DATABASE:
        raise DATABASE[call.params["id"]]
    if call.params["id"] == "full":
        raise QuotaExceeded("No room")
    return {"thing": {"id": call.params["id"], "href": call.url_base, "project": call.ctx.project_id}}


def create(call: Call) -> Any:
    return {"thing": call.body}


def create_wrapped(call: Call) -> Any:
    return Reply({"got": call.body}, status=203, headers={"Location": "x\r\nset-cookie: evil"})


def listing(call: Call) -> Any:
    return {"args": call.args, "page": repr(page_of(call.query, sort_keys={"name"}))}


def resize(call: Call) -> None:
    if call.body.flavor == "taken":
        raise Conflict("taken")


def stop(call: Call) -> Any:
    return {"stop": call.body}


def upload(call: Call) -> Any:
    return {"size": sum(len(chunk) for chunk in call.stream)}


class Closing:
    closed = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    def close(self) -> None:
        Closing.closed += 1


def download(call: Call) -> Any:
    return Reply(stream=Closing(), media_type="application/octet-stream")


def versions(call: Call) -> Any:
    return Reply({"versions": [call.url_root]}, status=300)


ROUTES = [
    Route(method="GET", path="/things/{id}", handler=show),
    Route(method="GET", path="/things", handler=listing, query=Listing),
    Route(method="GET", path="/things/detail", handler=listing, policy="things:detail"),
    Route(method="POST", path="/things", handler=create, body=Thing, body_key="thing", success=201),
    Route(method="POST", path="/lax", handler=create, body=Thing, body_key="thing", strict=False),
    Route(method="POST", path="/wrapped", handler=create_wrapped, body=ThingBody, max_body_bytes=1000),
    Route(method="POST", path="/things/{id}/action", action="resize", handler=resize, body=Resize, success=202),
    Route(method="POST", path="/things/{id}/action", action="stop", handler=stop, success=202),
    Route(method="POST", path="/things/{id}/action", action="new", handler=stop, min_version="2.5"),
    Route(method="GET", path="/gone", handler=listing, max_version="2.3"),
    Route(method="PUT", path="/things/{id}/file", handler=upload, stream="request",
          media_types=("application/octet-stream",)),
    Route(method="GET", path="/things/{id}/file", handler=download, stream="response"),
]  # fmt: skip
ROOT = [Route(method="GET", path="/", handler=versions, auth=False)]
RULES = {"things:detail": "role:admin", "owner": "project_id:%(project_id)s"}


def authenticate(token: str, request_id: str) -> RequestContext:
    if token == "broken":
        raise RuntimeError("no database")
    if token not in ("user", "admin"):
        raise Unauthorized("bad token")
    return RequestContext(request_id=request_id, user_id="u", project_id=PROJECT, roles=frozenset({token}))


def make(name: str, faults: Any, **more: Any) -> ServiceApi:
    return ServiceApi(
        name=name, prefix="/" + name, service=None, routes=ROUTES, root_routes=ROOT, faults=faults, rules=RULES, **more
    )


APP = HttpApp(
    [
        make(
            "compute",
            NovaFaults(),
            version_prefix="/v2.1",
            project_in_path=True,
            microversions=Microversions("compute", (2, 1), (2, 9), legacy_header="x-openstack-nova-api-version"),
            request_id_headers=("x-openstack-request-id", "x-compute-request-id"),
        ),
        make("identity", KeystoneFaults(), version_prefix="/v3", head_as_get=True, strip_trailing_slash=True),
        make("network", NeutronFaults(), version_prefix="/v2.0", strip_json_suffix=True),
        make("image", GlanceFaults(), version_prefix="/v2"),
        make("placement", PlacementFaults(), microversions=Microversions("placement", (1, 0), (1, 39))),
    ],
    authenticate=authenticate,
)


def ask(method: str, path: str, token: str | None = "user", **more: Any) -> httpx.Response:
    headers = dict(more.pop("headers", {}))
    if token is not None:
        headers["X-Auth-Token"] = token

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app=APP, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://cloud:8000") as client:
            return await client.request(method, path, headers=headers, **more)

    return asyncio.run(go())


def test_answers_with_ids_versions_and_links() -> None:
    reply = ask("GET", "/compute/v2.1/things/1")
    assert reply.json()["thing"]["href"] == "http://cloud:8000/compute/v2.1"
    assert reply.headers["x-openstack-request-id"] == reply.headers["x-compute-request-id"]
    assert reply.headers["openstack-api-version"] == "compute 2.1"
    assert reply.headers["x-openstack-nova-api-version"] == "2.1"
    assert "OpenStack-API-Version" in reply.headers.get_list("vary")
    reply = ask("GET", f"/compute/v2.1/{PROJECT}/things/1")
    assert reply.json()["thing"]["href"] == f"http://cloud:8000/compute/v2.1/{PROJECT}"
    assert ask("GET", "/compute/", token=None).status_code == 300


def test_another_project_in_the_path_is_refused() -> None:
    assert ask("GET", f"/compute/v2.1/{'b' * 32}/things/1").status_code == 400


@pytest.mark.parametrize(
    "service,unrouted,shape",
    [
        ("compute/v2.1", 404, "title"),
        ("identity/v3", 404, None),
        ("network/v2.0", 404, "NeutronError"),
        ("image/v2", 404, "title"),
        ("placement", 404, "errors"),
    ],
)
def test_fault_shapes(service: str, unrouted: int, shape: str | None) -> None:
    reply = ask("GET", f"/{service}/nothing/here/at/all")
    assert reply.status_code == unrouted
    if shape:
        assert shape in reply.json()
    else:
        assert "html" in reply.headers["content-type"]
    assert ask("GET", f"/{service}/nothing/here", token=None).status_code == 401
    refused = ask("GET", f"/{service}/things/1", token="nobody")
    assert refused.status_code == 401
    assert "Keystone uri=" in refused.headers["www-authenticate"]
    wrong = ask("PATCH", f"/{service}/things/1")
    assert wrong.status_code == (404 if service.startswith("compute") else 405)
    assert ask("GET", f"/{service}/things/missing").status_code == 404
    assert ask("GET", f"/{service}/things/detail").status_code == 403
    assert ask("GET", f"/{service}/things/detail", token="admin").status_code == 200
    broken = ask("GET", f"/{service}/things/boom")
    assert broken.status_code == 500
    assert "secret" not in broken.text
    assert ask("GET", f"/{service}/things/1", token="broken").status_code == 500


@pytest.mark.parametrize("status", ["409", "400", "503"])
def test_what_the_database_refuses_is_no_500(status: str) -> None:
    reply = ask("GET", f"/compute/v2.1/things/{status}")
    assert reply.status_code == int(status)
    assert "secret" not in reply.text


def test_quota_status_is_the_services() -> None:
    found = {
        name: ask("GET", f"/{name}/things/full").status_code for name in ("compute/v2.1", "network/v2.0", "image/v2")
    }
    assert found == {"compute/v2.1": 403, "network/v2.0": 409, "image/v2": 413}


@pytest.mark.parametrize(
    "asked,status,used",
    [
        ("compute 2.9", 200, "2.9"),
        ("compute latest", 200, "2.9"),
        ("volume 3.1, compute 2.4", 200, "2.4"),
        ("volume 3.1", 200, "2.1"),
        ("compute 2.10", 406, None),
        ("compute two", 400, None),
        ("compute 2.01", 400, None),
    ],
)
def test_microversions(asked: str, status: int, used: str | None) -> None:
    reply = ask("GET", "/compute/v2.1/things/1", headers={"OpenStack-API-Version": asked})
    assert reply.status_code == status
    if used:
        assert reply.headers["openstack-api-version"] == f"compute {used}"
    if status == 406:
        assert reply.json()["computeFault"]["code"] == 406


def test_the_new_header_wins_over_the_legacy_one() -> None:
    both = {"OpenStack-API-Version": "compute 2.4", "X-OpenStack-Nova-API-Version": "2.3"}
    assert ask("GET", "/compute/v2.1/things/1", headers=both).headers["x-openstack-nova-api-version"] == "2.4"


def test_placement_names_its_range() -> None:
    reply = ask("GET", "/placement/things/1", headers={"OpenStack-API-Version": "placement 1.99"})
    assert reply.json()["errors"][0]["max_version"] == "1.39"


def test_routes_outside_their_version_are_not_there() -> None:
    newer = {"OpenStack-API-Version": "compute 2.5"}
    assert ask("GET", "/compute/v2.1/gone", headers=newer).status_code == 404
    assert ask("GET", "/compute/v2.1/gone").status_code == 200
    body = {"new": None}
    assert ask("POST", "/compute/v2.1/things/1/action", json=body).status_code == 404
    assert ask("POST", "/compute/v2.1/things/1/action", json=body, headers=newer).status_code == 200


@pytest.mark.parametrize(
    "body,word",
    [
        ({"thing": {"name": "x", "size": "big"}}, "thing.size"),
        ({"thing": {"name": "x", "colour": 1}}, "colour"),
        ({"thing": {"name": "x"}, "more": 1}, "more"),
        ({"thing": {"name": "far too long"}}, "thing.name"),
        ({"thing": {"size": 1}}, "name"),
        ({"thing": {"name": "x", "tags": []}}, "tags"),
        ({"thing": None}, "thing"),
        ({"other": {}}, "thing"),
        ([], "thing"),
        ({"thing": {"name": "a\0b"}}, "NUL"),
        ({"thing": {"name": "x", "size": 10**30}}, ""),
    ],
)
def test_bad_bodies_name_the_field(body: Any, word: str) -> None:
    reply = ask("POST", "/compute/v2.1/things", json=body)
    assert reply.status_code == 400
    assert word in reply.json()["badRequest"]["message"]


def test_fields_come_and_go_with_versions() -> None:
    tagged = {"thing": {"name": "x", "tags": ["a"]}}
    old = {"thing": {"name": "x", "old": "a"}}
    newer = {"OpenStack-API-Version": "compute 2.5"}
    assert ask("POST", "/compute/v2.1/things", json=tagged, headers=newer).status_code == 201
    assert ask("POST", "/compute/v2.1/things", json=old).status_code == 201
    assert ask("POST", "/compute/v2.1/things", json=old, headers=newer).status_code == 400


def test_lenient_bodies_take_numbers_as_text() -> None:
    body = {"thing": {"name": "x", "size": "12"}}
    assert ask("POST", "/compute/v2.1/lax", json=body).json()["thing"]["size"] == 12
    assert ask("POST", "/compute/v2.1/things", json=body).status_code == 400


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"thing": {"name": "\\ud800"}}', b""])
def test_malformed_json(content: bytes) -> None:
    reply = ask("POST", "/compute/v2.1/things", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 400


def test_media_types() -> None:
    reply = ask("POST", "/compute/v2.1/things", content=b"<a/>", headers={"content-type": "text/xml"})
    assert reply.status_code == 415
    assert "badMediaType" in reply.json()
    reply = ask("POST", "/identity/v3/things", content=b"<a/>", headers={"content-type": "text/xml"})
    assert reply.status_code == 400


def test_actions() -> None:
    path = "/compute/v2.1/things/1/action"
    assert ask("POST", path, json={"resize": {"flavor": "a"}}).status_code == 202
    assert ask("POST", path, json={"stop": None}).json() == {"stop": None}
    assert ask("POST", path, json={"resize": {"flavor": "taken"}}).json()["conflictingRequest"]["code"] == 409
    for bad in ({"nope": None}, {"resize": {}}, {"resize": None}, {}, {"stop": 1, "resize": {}}, []):
        assert ask("POST", path, json=bad).status_code == 400, bad


def test_sizes_are_limited() -> None:
    big = {"thing": {"name": "x"}, "hints": {"a": "x" * 2000}}
    reply = ask("POST", "/compute/v2.1/wrapped", json=big)
    assert reply.status_code == 413
    assert reply.headers["retry-after"]
    assert ask("GET", "/compute/v2.1/things", headers={"X-Big": "x" * 40_000}).status_code == 431
    assert ask("GET", "/compute/v2.1/things?a=" + "x" * 20_000).status_code == 414


def test_headers_cannot_be_split() -> None:
    reply = ask("POST", "/compute/v2.1/wrapped", json={"thing": {"name": "x"}})
    assert reply.status_code == 203
    assert "set-cookie" not in reply.headers


def test_query_structs() -> None:
    reply = ask("GET", "/compute/v2.1/things?limit=3&all=true&tag=a&tag=b")
    assert reply.json()["args"] == {"limit": 3, "all": True, "tag": ["a", "b"]}
    for bad in ("limit=x", "unknown=1", "all=maybe", "limit=-1", "sort_key=colour", "sort_key=name&sort_dir=up"):
        assert ask("GET", f"/compute/v2.1/things?{bad}").status_code == 400, bad


def test_streams() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"y" * 10_000

    async def body() -> Any:
        for chunk in chunks():
            yield chunk

    headers = {"content-type": "application/octet-stream"}
    reply = ask("PUT", "/image/v2/things/1/file", content=body(), headers=headers)
    assert reply.json() == {"size": 1_000_000}
    Closing.closed = 0
    assert len(ask("GET", "/image/v2/things/1/file").content) == 10_000
    assert Closing.closed == 1


def test_paths() -> None:
    assert ask("GET", "/identity/v3/things/1/").status_code == 200
    assert ask("HEAD", "/identity/v3/things/1").content == b""
    assert ask("HEAD", "/network/v2.0/things/1").status_code == 405
    assert ask("GET", "/network/v2.0/things/1.json").json()["thing"]["id"] == "1"
    assert ask("GET", "/identity/v3/things/a%2Fb").json()["thing"]["id"] == "a/b"
    assert ask("GET", "/identity/v3/things/a%00b").status_code == 400
    assert ask("GET", "/identity/v3/things/%ff").status_code == 400
    assert ask("GET", "/nowhere").status_code == 404


def test_global_request_id_is_kept() -> None:
    mine = "req-" + "0" * 8 + "-0000-0000-0000-" + "0" * 12
    reply = ask("GET", "/compute/v2.1/things/1", headers={"X-OpenStack-Request-ID": mine})
    assert reply.headers["x-openstack-request-id"] != mine


def test_openapi_is_made_from_the_routes() -> None:
    found = ask("GET", "/openapi/compute.json", token=None).json()
    action = found["paths"]["/compute/v2.1/things/{id}/action"]["post"]
    assert len(action["requestBody"]["content"]["application/json"]["schema"]["oneOf"]) == 3
    assert {p["name"] for p in found["paths"]["/compute/v2.1/things"]["get"]["parameters"]} >= {"limit", "all", "tag"}


def test_slow_requests_do_not_starve_quick_ones() -> None:
    release = threading.Event()

    def wait(call: Call) -> dict[str, bool]:
        return {"released": release.wait(10)}

    routes = [
        Route(method="GET", path="/slow", handler=wait, auth=False, slow=True),
        Route(method="GET", path="/quick", handler=lambda call: {"quick": True}, auth=False),
    ]
    api = ServiceApi(name="x", prefix="/x", service=None, routes=routes, faults=NovaFaults())
    app = HttpApp([api], authenticate=authenticate, threads=2, slow_threads=2)

    async def go() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
            waiting = [asyncio.create_task(client.get("/x/slow")) for _ in range(6)]
            await asyncio.sleep(0.05)
            quick = await asyncio.wait_for(client.get("/x/quick"), 5)
            release.set()
            return [quick, *await asyncio.gather(*waiting)]

    assert [reply.status_code for reply in asyncio.run(go())] == [200] * 7
    app.close()
