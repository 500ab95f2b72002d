"""Requests that are wrong by hand, over real HTTP: what no generator thinks of."""

import gzip
import http.client
import json
import socket
import uuid
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.fuzz.asgi import Sent
from tests.fuzz.conftest import Defects
from tests.fuzz.judge import complaints
from tests.support.cloud import Cloud, unique

pytestmark = pytest.mark.usefixtures("no_defects")

# service: a list that everybody may read; how a POST of it looks; where an object stands
PLACES: dict[str, tuple[str, str, Any, str]] = {
    "identity": ("/identity/v3/projects", "/identity/v3/projects", {"project": {"name": "x"}}, "/identity/v3/users/{}"),
    "image": ("/image/v2/images", "/image/v2/images", {"name": "x"}, "/image/v2/images/{}"),
    "placement": ("/placement/resource_providers", "/placement/resource_providers", {"name": "x"},
                  "/placement/resource_providers/{}"),
    "network": ("/network/v2.0/networks", "/network/v2.0/networks", {"network": {"name": "x"}},
                "/network/v2.0/ports/{}"),
    "volume": ("/volume/v3/volumes", "/volume/v3/volumes", {"volume": {"size": 1}}, "/volume/v3/volumes/{}"),
    "compute": ("/compute/v2.1/servers", "/compute/v2.1/os-keypairs", {"keypair": {"name": "x"}},
                "/compute/v2.1/servers/{}"),
}  # fmt: skip
SERVICES = sorted(PLACES)
each_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def no_defects(defects: Defects) -> Any:
    yield
    assert not defects.take()


class Wire:
    """Requests as bytes over a socket; every answer is judged."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        parts = urlsplit(cloud.url)
        self._address = (parts.hostname or "", parts.port or 80)

    def __call__(
        self,
        service: str,
        method: str,
        target: str,
        body: bytes | Any = None,
        *,
        user: str | None = "admin",
        headers: dict[str, str] | None = None,
        content_type: str | None = "application/json",
        judged: bool = True,
    ) -> Sent:
        sent_headers = {"accept": "application/json"}
        if user is not None:
            sent_headers["x-auth-token"] = self.cloud.api(user).token
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None and content_type is not None:
            sent_headers["content-type"] = content_type
        sent = Sent(method, target, {**sent_headers, **(headers or {})}, body or b"")
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        connection._validate_path = lambda url: None  # type: ignore[attr-defined]
        connection.request(method, target, body, sent.headers)
        answer = connection.getresponse()
        sent.status = answer.status
        sent.answer_headers = {name.lower(): value for name, value in answer.getheaders()}
        sent.answer = answer.read()
        connection.close()
        if judged:
            wrong = complaints(service, sent)
            assert not wrong, f"{sent}\n{wrong}"
        return sent

    def raw(self, content: bytes) -> bytes:
        """What comes back until the server closes, or is silent for long."""
        with socket.create_connection(self._address, timeout=10) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while chunk := connection.recv(65536):
                found += chunk
            return found


@pytest.fixture(scope="module")
def wire(cloud: Cloud) -> Wire:
    return Wire(cloud)


# -- bodies ----------------------------------------------------------------------------------------------------

BROKEN = {
    "not json": b"{'a': 1}",
    "cut off": b'{"a": ',
    "trailing": b'{"a": 1} {"b": 2}',
    "empty object": b"{}",
    "a list": b"[]",
    "a number": b"17",
    "a string": b'"x"',
    "null": b"null",
    "not utf-8": b'{"\xff\xfe": 1}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "lone surrogate": b'{"a": "\\ud800"}',
    "NaN": b'{"a": NaN}',
    "deep list": b"[" * 100_000,
    "deep closed": b"[" * 5_000 + b"]" * 5_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "huge number": b'{"a": ' + b"9" * 5_000 + b"}",
    "huge exponent": b'{"a": 1e999999}',
    "compressed": gzip.compress(b'{"a": 1}'),
}


@each_service
@pytest.mark.parametrize("what", BROKEN)
def test_a_body_that_is_no_document_is_400(wire: Wire, service: str, what: str) -> None:
    _, path, _, _ = PLACES[service]
    answer = wire(service, "POST", path, BROKEN[what])
    if (service, what) == ("image", "empty object"):  # an image needs nothing
        assert answer.status == 201
        assert wire(service, "DELETE", f"{path}/{answer.json()['id']}").status == 204
    else:
        assert answer.status == 400, answer


@each_service
def test_a_nul_character_in_a_name_is_400(wire: Wire, service: str) -> None:
    _, path, body, _ = PLACES[service]
    text = json.dumps(body).replace('"x"', '"a\\u0000b"').replace('"size": 1', '"size": 1, "name": "a\\u0000b"')
    assert wire(service, "POST", path, text.encode()).status == 400


@each_service
@pytest.mark.parametrize("key", ["name", "a-field-nobody-knows"])
def test_a_name_too_long(wire: Wire, service: str, key: str) -> None:
    _, path, body, _ = PLACES[service]
    body = json.loads(json.dumps(body))
    inner = body if "name" in body else next(iter(body.values()))
    inner[key] = "x" * 300 if key == "name" else {"deep": ["x"]}
    answer = wire(service, "POST", path, body)
    if key == "name" or service in ("placement", "network", "volume", "compute", "image"):
        assert answer.status == 400, answer
    else:  # keystone keeps what it does not know
        assert answer.status == 201, answer
        wire(service, "DELETE", f"{path}/{answer.json()['project']['id']}")


@each_service
def test_a_key_given_twice_counts_once(wire: Wire, service: str) -> None:
    """The last one, as Python's parser has it; never an error of the server."""
    _, path, _, _ = PLACES[service]
    assert wire(service, "POST", path, b'{"name": 1, "name": 2, "project": 1, "project": 2}').status == 400


@each_service
@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_413(wire: Wire, service: str, chunked: bool) -> None:
    _, path, _, _ = PLACES[service]
    target = f"POST {path} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    target += f"X-Auth-Token: {wire.cloud.api('admin').token}\r\nConnection: close\r\n"
    size = 9_000_000  # more than the largest of any operation
    if chunked:
        block = b"10000\r\n" + b" " * 65536 + b"\r\n"
        content = target.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + block * (size // 65536) + b"0\r\n\r\n"
        try:
            answer = wire.raw(content)
        except (ConnectionResetError, BrokenPipeError):
            return  # it had answered, and closed before all was sent
    else:
        answer = wire.raw(target.encode() + b"Content-Length: %d\r\n\r\n" % size)
    assert answer.split(b" ")[1] == b"413", answer[:300]
    if service in ("compute", "volume"):
        assert b'"overLimit"' in answer


@each_service
@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "x"])
def test_an_unsupported_media_type(wire: Wire, service: str, content_type: str) -> None:
    _, path, body, _ = PLACES[service]
    answer = wire(service, "POST", path, body, content_type=content_type)
    if service == "image":
        assert answer.status in (201, 415), answer
    else:
        assert answer.status == (400 if service == "identity" else 415), answer


@each_service
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json; charset=nonsense"},
        {"content-type": ";;;"},
        {"content-encoding": "br"},
        {"content-encoding": "nonsense"},
        {"accept": "application/xml"},
        {"accept": "nonsense"},
        {"accept-language": "x" * 500},
        {"x-openstack-request-id": "req-nonsense\t"},
        {"openstack-api-version": "x" * 300},
        {"openstack-api-version": f"{'9' * 400}.1"},
        {"openstack-api-version": "compute 2.x,volume 99.99,placement 1.999"},
        {"openstack-api-version": "compute,volume,placement"},
        {"x-openstack-nova-api-version": "99999.1"},
        {"range": "bytes=9-1"},
        {"if-match": '"x"'},
        {"if-modified-since": "never"},
        {"expect": "nonsense"},
        {"cookie": "\xe9=\xff"},
        {"forwarded": "for=1;host=evil"},
        {"x-forwarded-host": "evil/../"},
    ],
    ids=lambda headers: next(iter(headers.items())).__str__()[:40],
)
def test_odd_headers_make_no_failure(wire: Wire, service: str, headers: dict[str, str]) -> None:
    listing, path, _, _ = PLACES[service]
    for method, target, body in (("GET", listing, None), ("POST", path, b"{}")):
        answer = wire(service, method, target, body, headers=headers, judged=headers.get("expect") is None)
        assert answer.status < 500
        assert b"evil" not in answer.answer


@each_service
def test_a_huge_header(wire: Wire, service: str) -> None:
    listing, *_ = PLACES[service]
    answer = wire(service, "GET", listing, headers={"x-nonsense": "x" * 40_000}, judged=False)
    assert answer.status in (400, 431)
    many = {f"x-nonsense-{number}": "x" * 100 for number in range(90)}
    assert wire(service, "GET", listing, headers=many).status in (200, 400, 431)


# -- paths, methods, queries ---------------------------------------------------------------------------------------

ODD_IDS = ("not-a-uuid", "0", "-1", "%00", "a%00b", "%2e%2e", "..", ".", "%2F", "a%2Fb", "%", "%zz", "%ff%fe",
           "%F0%9F%98%80", "x" * 255, "x" * 4000, "a b".replace(" ", "%20"), "%0d%0aX-Evil:1", "*", "'", "%22",
           "null", "None", "{id}", "00000000-0000-0000-0000-000000000000", "<script>".replace("<", "%3C"), "a;b",
           "a,b", "detail%00")  # fmt: skip


@each_service
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "PATCH", "POST"])
def test_odd_ids_are_not_found(wire: Wire, service: str, method: str) -> None:
    *_, place = PLACES[service]
    for odd in ODD_IDS:
        body = b"{}" if method in ("PUT", "PATCH", "POST") else None
        answer = wire(service, method, place.format(odd), body)
        assert 400 <= answer.status < 500 or odd == ".", answer
        assert "x-evil" not in answer.answer_headers


@each_service
def test_a_url_too_long_is_414(wire: Wire, service: str) -> None:
    listing, *_ = PLACES[service]
    assert wire(service, "GET", f"{listing}?x={'y' * 20_000}").status == 414


@each_service
@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "PROPFIND", "LOCK", "DELETE", "HEAD", "PUT"])
def test_methods_nobody_serves(wire: Wire, service: str, method: str) -> None:
    listing, *_ = PLACES[service]
    answer = wire(service, method, listing)
    if method == "HEAD" and service == "identity":
        assert answer.status == 200
    else:
        assert answer.status in (404, 405), answer
    if answer.status == 405:
        assert "allow" in answer.answer_headers


@each_service
def test_a_method_that_is_no_method(wire: Wire, service: str) -> None:
    listing, *_ = PLACES[service]
    for method in ("NONSENSE", "get", "G\x01T", ""):
        answer = wire.raw(f"{method} {listing} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert answer.split(b" ")[1][:1] == b"4", answer


QUERIES = ("limit=-1", "limit=0", "limit=abc", "limit=999999999999999999999999", "limit=1.5", "limit=", "limit=%00",
           "marker=nothing", "marker=", "marker=%00", f"marker={uuid.UUID(int=5)}", "marker=..%2F..",
           "sort_key=nothing", "sort_key=", "sort_dir=sideways", "sort=name:sideways", "sort=:", "sort=,",
           "sort_key=name;drop&sort_dir=asc", "sort_key=id&sort_key=id&sort_dir=asc", "fields=nothing", "fields=",
           "offset=-1", "offset=99999999999999999999", "offset=x", "&&&", "=", "a=%", "%=a", "%ff=%ff",
           "all_tenants=maybe", "changes-since=yesterday", "name=%5B", "name=(", "tags=,", "&".join(["a=b"] * 1500),
           "&".join(f"a{number}=b" for number in range(900)), "limit=1&limit=x")  # fmt: skip


@each_service
@pytest.mark.parametrize("user", ["admin", "demo"])
def test_odd_queries_make_no_failure(wire: Wire, service: str, user: str) -> None:
    listing, *_ = PLACES[service]
    for query in QUERIES:
        for path in {listing, listing + "/detail" if service in ("compute", "volume") else listing}:
            answer = wire(service, "GET", f"{path}?{query}", user=user)
            assert answer.status in (200, 400, 403, 404), answer


@pytest.mark.parametrize("service", ["image", "network", "volume", "compute"])
@pytest.mark.parametrize("query", ["limit=-1", "limit=abc", "limit=1.5"])
def test_a_limit_that_is_no_number_is_400(wire: Wire, service: str, query: str) -> None:
    listing, *_ = PLACES[service]
    assert wire(service, "GET", f"{listing}?{query}", user="demo").status == 400


@pytest.mark.parametrize(("service", "status"), [("image", 404), ("network", 404), ("volume", 404), ("compute", 400)])
def test_a_marker_that_is_not_there(wire: Wire, service: str, status: int) -> None:
    listing, *_ = PLACES[service]
    answer = wire(service, "GET", f"{listing}?marker={uuid.UUID(int=7)}&limit=1", user="demo")
    assert answer.status in (status, 400), answer


# -- who asks ------------------------------------------------------------------------------------------------------


@each_service
@pytest.mark.parametrize(
    "token", [None, "", " ", "nonsense", "x" * 5000, "gAAAAAB" + "A" * 200, "\xe9\xff", "null", "../..", "a b c"]
)
def test_without_a_token_nothing_is_said(wire: Wire, service: str, token: str | None) -> None:
    listing, path, body, place = PLACES[service]
    headers = {} if token is None else {"x-auth-token": token}
    for method, target, content in (
        ("GET", listing, None),
        ("POST", path, json.dumps(body).encode()),
        ("DELETE", place.format("x"), None),
    ):
        answer = wire(service, method, target, content, user=None, headers=headers)
        assert answer.status == 401, answer
        assert answer.answer_headers["www-authenticate"].startswith("Keystone uri=")


@each_service
def test_a_revoked_token_is_401(wire: Wire, cloud: Cloud, service: str) -> None:
    from tests.support.cloud import Api

    own = Api(cloud, "demo")
    listing, *_ = PLACES[service]
    headers = {"x-auth-token": own.token}
    before = wire(service, "GET", listing, user=None, headers=headers)
    assert before.status in (200, 403)
    gone = {"x-auth-token": own.token, "x-subject-token": own.token}
    assert wire("identity", "DELETE", "/identity/v3/auth/tokens", user=None, headers=gone).status == 204
    assert wire(service, "GET", listing, user=None, headers=headers).status == 401


FOREIGN = (
    ("network", "/network/v2.0/networks", {"network": {"name": "mine"}}, "network"),
    ("network", "/network/v2.0/security-groups", {"security_group": {"name": "mine"}}, "security_group"),
    ("network", "/network/v2.0/routers", {"router": {"name": "mine"}}, "router"),
    ("volume", "/volume/v3/volumes", {"volume": {"size": 1}}, "volume"),
    ("image", "/image/v2/images", {"name": "mine", "disk_format": "raw", "container_format": "bare"}, ""),
    ("compute", "/compute/v2.1/os-server-groups", {"server_group": {"name": "g", "policies": ["affinity"]}},
     "server_group"),
)  # fmt: skip


@pytest.mark.parametrize(("service", "path", "body", "key"), FOREIGN, ids=lambda value: str(value)[:30])
def test_another_projects_objects_are_not_there(wire: Wire, service: str, path: str, body: Any, key: str) -> None:
    made = wire(service, "POST", path, body, user="demo").json()
    id = made[key]["id"] if key else made["id"]
    try:
        for method, content in (("GET", None), ("PUT", body), ("DELETE", None)):
            if (method == "PUT" and service in ("image", "compute")) or (method == "PUT" and key == "volume"):
                continue
            answer = wire(service, method, f"{path}/{id}", content, user="other")
            assert answer.status == 404, answer
        assert id.encode() not in wire(service, "GET", path, user="other").answer
        reader = wire(service, "DELETE", f"{path}/{id}", user="reader")
        assert reader.status in (403, 404), reader
    finally:
        if key == "volume":  # one that is being made cannot be deleted
            shown = f"{path}/{id}"
            wire.cloud.wait(lambda: wire(service, "GET", shown, user="demo").json()[key]["status"] == "available")
        assert wire(service, "DELETE", f"{path}/{id}", user="demo").status in (202, 204)


@pytest.mark.parametrize("service", ["compute", "volume"])
def test_another_project_in_the_path(wire: Wire, cloud: Cloud, service: str) -> None:
    listing, *_ = PLACES[service]
    version, _, noun = listing.rpartition("/")
    other = cloud.api("other").project_id
    assert wire(service, "GET", f"{version}/{other}/{noun}", user="demo").status == 400


MISSING_ROLE = (
    ("compute", "POST", "/compute/v2.1/flavors", {"flavor": {"name": "f", "ram": 1, "vcpus": 1, "disk": 1}}),
    ("compute", "GET", "/compute/v2.1/os-hypervisors", None),
    ("compute", "POST", "/compute/v2.1/os-aggregates", {"aggregate": {"name": "a"}}),
    ("volume", "POST", "/volume/v3/types", {"volume_type": {"name": "t"}}),
    ("volume", "GET", "/volume/v3/os-services", None),
    ("network", "POST", "/network/v2.0/networks", {"network": {"router:external": True}}),
    ("image", "POST", "/image/v2/images", {"name": "x", "visibility": "public"}),
    ("placement", "GET", "/placement/resource_providers", None),
    ("identity", "POST", "/identity/v3/users", {"user": {"name": "u"}}),
    ("identity", "POST", "/identity/v3/domains", {"domain": {"name": "d"}}),
)


@pytest.mark.parametrize(("service", "method", "path", "body"), MISSING_ROLE, ids=lambda value: str(value)[:40])
def test_a_missing_role_is_403(wire: Wire, service: str, method: str, path: str, body: Any) -> None:
    assert wire(service, method, path, body, user="demo").status == 403


@pytest.mark.parametrize(
    "cidr", ["10.0.0.0/33", "10.0.0", "x", "", "10.0.0.0/-1", "::/129", "10.0.0.0/0x8", None, 7, []]
)
def test_a_bad_cidr_is_400(wire: Wire, cidr: Any) -> None:
    made = wire("network", "POST", "/network/v2.0/networks", {"network": {"name": unique("n")}}, user="demo").json()
    id = made["network"]["id"]
    body = {"subnet": {"network_id": id, "ip_version": 4, "cidr": cidr}}
    assert wire("network", "POST", "/network/v2.0/subnets", body, user="demo").status == 400
    assert wire("network", "GET", f"/network/v2.0/networks/{id}", user="demo").json()["network"]["subnets"] == []
    wire("network", "DELETE", f"/network/v2.0/networks/{id}", user="demo")
