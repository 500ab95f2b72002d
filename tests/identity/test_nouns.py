"""The identity API noun by noun, with what it refuses."""

import hashlib
import hmac
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest
from tests.identity.conftest import Identity

from cumulet.kernel.errors import Unauthorized
from cumulet.kernel.ids import new_hex


def status(identity: Identity, method: str, path: str, token: str, body: Any = None) -> int:
    return identity.ask(method, path, token, json=body).status_code


def test_users_lists_and_filters(identity: Identity, admin: str) -> None:
    tag = new_hex()[:8]
    ids = [identity.make(admin, "user", name=f"{tag}-{i}", enabled=i != 1, colour="red")["id"] for i in range(4)]

    def names(query: str) -> list[str]:
        reply = identity.ask("GET", f"/users?{query}", admin)
        assert reply.status_code == 200, reply.text
        return sorted(user["name"] for user in reply.json()["users"] if user["name"].startswith(tag))

    assert names("name__contains=" + tag) == [f"{tag}-{i}" for i in range(4)]
    assert names(f"name={tag}-2") == [f"{tag}-2"]
    assert names(f"name__startswith={tag}&enabled=false") == [f"{tag}-1"]
    assert names(f"name__icontains={tag.upper()}-3") == [f"{tag}-3"]
    assert names("domain_id=default&unknown=x")
    assert names("domain_id=elsewhere") == []
    shown = identity.ask("GET", f"/users/{ids[0]}", admin).json()["user"]
    assert shown["colour"] == "red"
    assert shown["links"]["self"].endswith(f"/identity/v3/users/{ids[0]}")
    assert "password" not in shown
    met, url = [], f"/users?limit=2&name__startswith={tag}"
    while url:
        page = identity.ask("GET", url, admin).json()
        met += [user["id"] for user in page["users"]]
        url = page["links"]["next"]
    assert sorted(met) == sorted(ids)
    assert identity.ask("GET", "/users?limit=2", admin).json()["truncated"] is True


@pytest.mark.parametrize(
    "noun,body,expected",
    [
        ("user", {}, 400),
        ("user", {"name": ""}, 400),
        ("user", {"name": "x" * 256}, 400),
        ("user", {"name": 1}, 400),
        ("user", {"name": "ok", "enabled": "perhaps"}, 400),
        ("user", {"name": "ok", "domain_id": "f" * 32}, 404),
        ("user", {"name": "ok", "options": {"unknown": True}}, 400),
        ("user", {"name": "admin"}, 409),
        ("project", {"name": "x" * 65}, 400),
        ("project", {"name": "p", "parent_id": "f" * 32}, 400),
        ("project", {"name": "p", "tags": ["a,b"]}, 400),
        ("project", {"name": "p", "tags": ["a"] * 81}, 400),
        ("project", {"name": "p", "is_domain": True, "domain_id": "default"}, 400),
        ("project", {"name": "admin"}, 409),
        ("domain", {"name": "Default"}, 409),
        ("domain", {"name": "d", "explicit_domain_id": "short"}, 400),
        ("group", {"name": ["x"]}, 400),
        ("role", {"name": "admin"}, 409),
        ("role", {"name": "x", "domain_id": "f" * 32}, 404),
        ("service", {"name": "no-type"}, 400),
        ("endpoint", {"interface": "sideways", "url": "http://x", "service_id": "x"}, 400),
        ("endpoint", {"interface": "public", "url": "http://x", "service_id": "x"}, 400),
        ("region", {"id": "RegionOne"}, 409),
        ("region", {"parent_region_id": "nowhere"}, 404),
        ("credential", {"type": "ec2", "blob": "{", "user_id": "u"}, 400),
    ],
)
def test_bad_bodies(identity: Identity, admin: str, noun: str, body: Any, expected: int) -> None:
    reply = identity.ask("POST", f"/{noun}s", admin, json={noun: body})
    assert reply.status_code == expected, reply.text
    assert reply.json()["error"]["code"] == expected


def test_the_project_tree(identity: Identity, admin: str) -> None:
    top = identity.make(admin, "project", tags=["x"])
    middle = identity.make(admin, "project", parent_id=top["id"])
    low = identity.make(admin, "project", parent_id=middle["id"])
    assert low["domain_id"] == "default"
    shown = identity.ask("GET", f"/projects/{low['id']}?parents_as_ids", admin).json()["project"]
    assert shown["parents"] == {middle["id"]: {top["id"]: {"default": None}}}
    shown = identity.ask("GET", f"/projects/{top['id']}?subtree_as_ids", admin).json()["project"]
    assert shown["subtree"] == {middle["id"]: {low["id"]: None}}
    body = {"project": {"enabled": False}}
    assert status(identity, "PATCH", f"/projects/{top['id']}", admin, body) == 403
    assert status(identity, "PATCH", f"/projects/{low['id']}", admin, body) == 200
    assert status(identity, "DELETE", f"/projects/{top['id']}", admin) == 403
    assert status(identity, "PATCH", f"/projects/{low['id']}", admin, {"project": {"parent_id": top["id"]}}) == 403
    assert status(identity, "PATCH", f"/projects/{low['id']}", admin, {"project": {"domain_id": "x"}}) == 400
    at = low["id"]
    identity.ask("PATCH", f"/projects/{low['id']}", admin, json={"project": {"enabled": True}})
    chain = [at]
    for expected in (201, 201, 403):
        reply = identity.ask("POST", "/projects", admin, json={"project": {"name": new_hex(), "parent_id": at}})
        assert reply.status_code == expected
        if expected == 201:
            at = reply.json()["project"]["id"]
            chain.append(at)
    for id in reversed(chain):
        assert status(identity, "DELETE", f"/projects/{id}", admin) == 204
    assert identity.ask("GET", "/projects?tags=x", admin).json()["projects"][0]["id"] == top["id"]
    assert top["id"] not in {p["id"] for p in identity.ask("GET", "/projects?not-tags=x", admin).json()["projects"]}
    tags = f"/projects/{top['id']}/tags"
    assert status(identity, "PUT", tags + "/new", admin) == 201
    assert identity.ask("GET", tags, admin).json()["tags"] == ["new", "x"]
    assert status(identity, "GET", tags + "/gone", admin) == 404
    assert identity.ask("PUT", tags, admin, json={"tags": ["b", "a"]}).json()["tags"] == ["a", "b"]
    assert status(identity, "DELETE", tags, admin) == 204
    assert status(identity, "GET", tags + "/a", admin) == 404


def test_immutable_things_stay(identity: Identity, admin: str) -> None:
    role = identity.make(admin, "role", options={"immutable": True})
    path = f"/roles/{role['id']}"
    assert status(identity, "DELETE", path, admin) == 403
    assert status(identity, "PATCH", path, admin, {"role": {"name": "other"}}) == 403
    assert status(identity, "PATCH", path, admin, {"role": {"options": {"immutable": False}}}) == 200
    assert status(identity, "DELETE", path, admin) == 204
    assert status(identity, "DELETE", f"/roles/{identity.boot.roles['member']}", admin) == 403


def test_a_domain_takes_its_content_along(identity: Identity, admin: str) -> None:
    domain = identity.make(admin, "domain")
    user = identity.make(admin, "user", domain_id=domain["id"])
    group = identity.make(admin, "group", domain_id=domain["id"])
    project = identity.make(admin, "project", domain_id=domain["id"])
    child = identity.make(admin, "project", parent_id=project["id"])
    role = identity.make(admin, "role", domain_id=domain["id"])
    identity.ask("PUT", f"/groups/{group['id']}/users/{user['id']}", admin)
    identity.ask("PUT", f"/domains/{domain['id']}/groups/{group['id']}/roles/{role['id']}", admin)
    assert status(identity, "DELETE", f"/domains/{domain['id']}", admin) == 403
    identity.ask("PATCH", f"/domains/{domain['id']}", admin, json={"domain": {"enabled": False}})
    assert status(identity, "DELETE", f"/domains/{domain['id']}", admin) == 204
    for path in (f"users/{user['id']}", f"groups/{group['id']}", f"projects/{child['id']}", f"roles/{role['id']}"):
        assert status(identity, "GET", f"/{path}", admin) == 404


def test_assignments_effective_inherited_and_by_group(identity: Identity, admin: str) -> None:
    domain = identity.make(admin, "domain")
    project = identity.make(admin, "project", domain_id=domain["id"])
    user = identity.make(admin, "user", domain_id=domain["id"], password="pw-pw-pw")
    group = identity.make(admin, "group", domain_id=domain["id"])
    identity.ask("PUT", f"/groups/{group['id']}/users/{user['id']}", admin)
    role, implied = identity.make(admin, "role"), identity.make(admin, "role")
    assert status(identity, "PUT", f"/roles/{role['id']}/implies/{implied['id']}", admin) == 201
    path = f"/OS-INHERIT/domains/{domain['id']}/groups/{group['id']}/roles/{role['id']}/inherited_to_projects"
    assert status(identity, "PUT", path, admin) == 204
    assert status(identity, "HEAD", path, admin) == 204

    def listed(query: str) -> list[dict[str, Any]]:
        return identity.ask("GET", f"/role_assignments?{query}", admin).json()["role_assignments"]

    assert listed(f"user.id={user['id']}") == []
    plain = listed(f"group.id={group['id']}")
    assert plain[0]["scope"]["OS-INHERIT:inherited_to"] == "projects"
    real = listed(f"user.id={user['id']}&effective&include_names")
    assert {(a["role"]["name"], a["scope"]["project"]["name"]) for a in real} == {
        (role["name"], project["name"]),
        (implied["name"], project["name"]),
    }
    assert all(a["user"]["domain"]["name"] == domain["name"] for a in real)
    scope = {"project": {"id": project["id"]}}
    body = identity.auth("x", "pw-pw-pw", scope)
    body["auth"]["identity"]["password"]["user"] = {"id": user["id"], "password": "pw-pw-pw"}
    reply = identity.client.post("/auth/tokens", json=body)
    assert {r["name"] for r in reply.json()["token"]["roles"]} == {role["name"], implied["name"]}
    token = reply.headers["x-subject-token"]
    assert identity.service.authenticate(token, "r").project_id == project["id"]
    assert status(identity, "DELETE", f"/groups/{group['id']}/users/{user['id']}", admin) == 204
    with pytest.raises(Unauthorized):
        identity.service.authenticate(token, "r")
    assert status(identity, "GET", "/role_assignments?effective&group.id=x", admin) == 400
    assert status(identity, "DELETE", path, admin) == 204
    assert status(identity, "DELETE", path, admin) == 404


def test_domain_managers_stay_in_their_domain(identity: Identity, admin: str) -> None:
    domain = identity.make(admin, "domain")
    user = identity.make(admin, "user", domain_id=domain["id"], password="pw-pw-pw")
    manager = identity.boot.roles["manager"]
    identity.ask("PUT", f"/domains/{domain['id']}/users/{user['id']}/roles/{manager}", admin)
    body = identity.auth("x", "x", {"domain": {"id": domain["id"]}})
    body["auth"]["identity"]["password"]["user"] = {"id": user["id"], "password": "pw-pw-pw"}
    token = identity.client.post("/auth/tokens", json=body).headers["x-subject-token"]
    made = identity.make(token, "user")
    assert made["domain_id"] == domain["id"]
    project = identity.make(token, "project")
    listed = identity.ask("GET", "/users", token).json()["users"]
    assert {u["id"] for u in listed} == {user["id"], made["id"]}
    assert [p["id"] for p in identity.ask("GET", "/projects", token).json()["projects"]] == [project["id"]]
    assert status(identity, "POST", "/users", token, {"user": {"name": "x", "domain_id": "default"}}) == 403
    assert status(identity, "GET", f"/users/{identity.boot.admin_user_id}", token) == 403
    grant = f"/projects/{project['id']}/users/{made['id']}/roles/"
    assert status(identity, "PUT", grant + identity.boot.roles["member"], token) == 204
    assert status(identity, "PUT", grant + identity.boot.roles["admin"], token) == 403
    assert status(identity, "PUT", f"/system/users/{made['id']}/roles/{manager}", token) == 403


def test_application_credentials_and_access_rules(identity: Identity, admin: str) -> None:
    user = identity.service.find_user("demo")
    assert user is not None
    demo = identity.token("demo", "demo-pw")
    base = f"/users/{user.id}/application_credentials"
    rule = {"service": "identity", "method": "GET", "path": "/v3/users/*"}
    body = {"application_credential": {"name": new_hex(), "access_rules": [rule], "roles": [{"name": "reader"}]}}
    made = identity.ask("POST", base, demo, json=body).json()["application_credential"]
    assert [role["name"] for role in made["roles"]] == ["reader"]
    shown = identity.ask("GET", f"{base}/{made['id']}", demo).json()["application_credential"]
    assert "secret" not in shown
    proof = {"id": made["id"], "secret": made["secret"]}
    login = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": proof}}}
    reply = identity.client.post("/auth/tokens", json=login)
    assert reply.json()["token"]["application_credential"]["restricted"] is True
    token = reply.headers["x-subject-token"]
    assert {role["name"] for role in reply.json()["token"]["roles"]} == {"reader"}
    assert status(identity, "GET", f"/users/{user.id}", token) == 200
    assert status(identity, "GET", f"/users/{user.id}/groups", token) == 401
    assert status(identity, "GET", "/regions", token) == 401
    login["auth"]["scope"] = "unscoped"
    rules = made["access_rules"]
    listed = identity.ask("GET", f"/users/{user.id}/access_rules", demo).json()["access_rules"]
    assert rules[0]["id"] in {one["id"] for one in listed}
    assert status(identity, "DELETE", f"/users/{user.id}/access_rules/{rules[0]['id']}", demo) == 403
    wrong = {**proof, "secret": "x"}
    login = {"auth": {"identity": {"methods": ["application_credential"], "application_credential": wrong}}}
    assert identity.client.post("/auth/tokens", json=login).status_code == 401
    assert status(identity, "DELETE", f"{base}/{made['id']}", demo) == 204
    with pytest.raises(Unauthorized):
        identity.service.authenticate(token, "r")
    assert status(identity, "DELETE", f"/users/{user.id}/access_rules/{rules[0]['id']}", demo) == 204
    for bad in ({"roles": [{"name": "admin"}]}, {"expires_at": "2001-01-01T00:00:00"}, {"expires_at": "soon"},
                {"access_rules": [{"path": "/x"}]}):  # fmt: skip
        body = {"application_credential": {"name": new_hex(), **bad}}
        assert status(identity, "POST", base, demo, body) == 400, bad
    assert status(identity, "GET", base, identity.token()) == 200
    other = f"/users/{identity.boot.admin_user_id}/application_credentials"
    assert status(identity, "GET", other, demo) == 403


def test_trusts_lend_roles(identity: Identity, admin: str) -> None:
    trustee = identity.make(admin, "user", password="pw-pw-pw")
    demo_user = identity.service.find_user("demo")
    assert demo_user is not None
    demo = identity.token("demo", "demo-pw")
    trust = {
        "trustor_user_id": demo_user.id,
        "trustee_user_id": trustee["id"],
        "project_id": identity.boot.demo_project_id,
        "impersonation": True,
        "remaining_uses": 1,
        "roles": [{"name": "reader"}],
    }
    made = identity.ask("POST", "/OS-TRUST/trusts", demo, json={"trust": trust}).json()["trust"]
    use = identity.auth(trustee["name"], "pw-pw-pw", {"OS-TRUST:trust": {"id": made["id"]}})
    reply = identity.client.post("/auth/tokens", json=use)
    token = reply.json()["token"]
    assert token["user"]["id"] == demo_user.id
    assert {role["name"] for role in token["roles"]} == {"reader"}
    assert token["OS-TRUST:trust"]["trustee_user"]["id"] == trustee["id"]
    assert identity.client.post("/auth/tokens", json=use).status_code == 403  # used up
    lent = reply.headers["x-subject-token"]
    assert identity.service.authenticate(lent, "r").user_id == demo_user.id
    too_much = {**trust, "roles": [{"name": "admin"}]}
    assert status(identity, "POST", "/OS-TRUST/trusts", demo, {"trust": too_much}) == 403
    foreign = {**trust, "trustor_user_id": identity.boot.admin_user_id}
    assert status(identity, "POST", "/OS-TRUST/trusts", demo, {"trust": foreign}) == 403
    assert status(identity, "GET", f"/OS-TRUST/trusts/{made['id']}", identity.token(trustee["name"], "pw-pw-pw")) == 200
    assert status(identity, "DELETE", f"/OS-TRUST/trusts/{made['id']}", demo) == 204
    with pytest.raises(Unauthorized):
        identity.service.authenticate(lent, "r")


def test_credentials_are_encrypted_and_private(identity: Identity, admin: str) -> None:
    demo = identity.token("demo", "demo-pw")
    user = identity.service.find_user("demo")
    assert user is not None
    made = identity.make(demo, "credential", name="n", type="totp", blob="top-secret", user_id=user.id)
    assert made["blob"] == "top-secret"
    from cumulet.services.identity import store

    row = identity.db.read(lambda tx: store.credentials.get(tx, made["id"]))
    assert row is not None
    assert "top-secret" not in row.blob
    reader = identity.token(identity.make(admin, "user", password="pw-pw-pw")["name"], "pw-pw-pw")
    assert status(identity, "GET", f"/credentials/{made['id']}", reader) == 403
    assert identity.ask("GET", "/credentials", reader).json()["credentials"] == []
    foreign = {"credential": {"type": "x", "blob": "y", "user_id": identity.boot.admin_user_id}}
    assert status(identity, "POST", "/credentials", demo, foreign) == 403
    assert status(identity, "DELETE", f"/credentials/{made['id']}", demo) == 204


def test_ec2_signatures_become_tokens(identity: Identity, admin: str) -> None:
    user = identity.service.find_user("demo")
    assert user is not None
    demo = identity.token("demo", "demo-pw")
    body = {"tenant_id": identity.boot.demo_project_id}
    made = identity.ask("POST", f"/users/{user.id}/credentials/OS-EC2", demo, json=body).json()["credential"]
    params = {"Action": "X", "SignatureVersion": "2", "SignatureMethod": "HmacSHA256", "AWSAccessKeyId": made["access"]}
    query = "&".join(f"{key}={quote(value, safe='-_~.')}" for key, value in sorted(params.items()))
    text = f"GET\nhost.example\n/services\n{query}"
    signature = b64encode(hmac.new(made["secret"].encode(), text.encode(), hashlib.sha256).digest()).decode()
    signed = {"access": made["access"], "signature": signature, "host": "Host.example:8773", "verb": "GET",
              "path": "/services", "params": params}  # fmt: skip
    reply = identity.ask("POST", "/ec2tokens", admin, json={"credentials": signed})
    assert reply.json()["token"]["user"]["name"] == "demo"
    assert identity.service.authenticate(reply.headers["x-subject-token"], "r").project_id == body["tenant_id"]
    wrong = {"credentials": {**signed, "signature": "x"}}
    assert status(identity, "POST", "/ec2tokens", admin, wrong) == 401
    assert status(identity, "POST", "/ec2tokens", demo, {"credentials": signed}) == 403
    path = f"/users/{user.id}/credentials/OS-EC2/{made['access']}"
    assert status(identity, "DELETE", path, demo) == 204
    assert status(identity, "GET", path, demo) == 404


def test_limits(identity: Identity, admin: str) -> None:
    service = identity.make(admin, "service", type="limited")
    new = {"service_id": service["id"], "resource_name": "things", "default_limit": 3}
    reply = identity.ask("POST", "/registered_limits", admin, json={"registered_limits": [new]})
    registered = reply.json()["registered_limits"][0]
    assert status(identity, "POST", "/registered_limits", admin, {"registered_limits": [new]}) == 409
    limit = {"service_id": service["id"], "resource_name": "things", "resource_limit": 9,
             "project_id": identity.boot.demo_project_id}  # fmt: skip
    made = identity.ask("POST", "/limits", admin, json={"limits": [limit]}).json()["limits"][0]
    demo = identity.token("demo", "demo-pw")
    assert [one["id"] for one in identity.ask("GET", "/limits", demo).json()["limits"]] == [made["id"]]
    assert status(identity, "GET", f"/limits/{made['id']}", demo) == 200
    assert status(identity, "POST", "/limits", demo, {"limits": [limit]}) == 403
    assert status(identity, "DELETE", f"/registered_limits/{registered['id']}", admin) == 403
    assert status(identity, "PATCH", f"/limits/{made['id']}", admin, {"limit": {"resource_limit": -2}}) == 400
    assert status(identity, "POST", "/limits", admin, {"limits": [{**limit, "resource_name": "other"}]}) == 403
    assert identity.ask("GET", "/limits/model", demo).json()["model"]["name"] == "flat"
    assert status(identity, "DELETE", f"/limits/{made['id']}", admin) == 204
    assert status(identity, "DELETE", f"/registered_limits/{registered['id']}", admin) == 204


def test_regions_and_endpoints(identity: Identity, admin: str) -> None:
    assert status(identity, "PUT", "/regions/up", admin, {"region": {}}) == 201
    identity.make(admin, "region", id="down", parent_region_id="up")
    assert status(identity, "PATCH", "/regions/up", admin, {"region": {"parent_region_id": "down"}}) == 400
    service = identity.make(admin, "service", type="placed")
    body = {"interface": "public", "url": "http://x/$(project_id)s", "service_id": service["id"], "region": "fresh"}
    made = identity.ask("POST", "/endpoints", admin, json={"endpoint": body}).json()["endpoint"]
    assert made["region_id"] == "fresh"
    assert status(identity, "DELETE", "/regions/fresh", admin) == 403
    bad = {"endpoint": {**body, "url": "http://x/%(password)s"}}
    assert status(identity, "POST", "/endpoints", admin, bad) == 400
    assert status(identity, "PATCH", f"/endpoints/{made['id']}", admin, {"endpoint": {"region_id": "nowhere"}}) == 400
    catalog = identity.ask("GET", "/auth/catalog", admin).json()["catalog"]
    placed = next(entry for entry in catalog if entry["id"] == service["id"])
    assert placed["endpoints"][0]["url"] == f"http://x/{identity.boot.admin_project_id}"
    assert status(identity, "DELETE", f"/services/{service['id']}", admin) == 204
    assert status(identity, "GET", f"/endpoints/{made['id']}", admin) == 404
    assert status(identity, "DELETE", "/regions/up", admin) == 204
    assert status(identity, "GET", "/regions/down", admin) == 404


def test_policy_documents(identity: Identity, admin: str) -> None:
    body = {"policy": {"type": "application/json", "blob": "{'a': 1}", "note": "x"}}
    made = identity.ask("POST", "/policies", admin, json=body).json()["policy"]
    change = {"policy": {"type": "text/plain"}}
    changed = identity.ask("PATCH", f"/policies/{made['id']}", admin, json=change).json()["policy"]
    assert (changed["type"], changed["blob"], changed["note"]) == ("text/plain", "{'a': 1}", "x")
    for blob in (None, {"a": 1}):
        body = {"policy": {"type": "text/plain", "blob": blob}}
        assert status(identity, "POST", "/policies", admin, body) == 400
        assert status(identity, "PATCH", f"/policies/{made['id']}", admin, body) == 400
    assert identity.ask("GET", "/policies?type=text/plain", admin).json()["policies"][0]["id"] == made["id"]
    assert status(identity, "DELETE", f"/policies/{made['id']}", admin) == 204
    assert status(identity, "GET", f"/policies/{made['id']}", admin) == 404
