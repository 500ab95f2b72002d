"""Tokens: issue, scopes, validation, revocation, rotation."""

import time
from pathlib import Path
from typing import Any

import pytest
from tests.identity.conftest import Identity

from cumulet.kernel.errors import Unauthorized
from cumulet.kernel.ids import new_hex

ADMIN = {"project": {"name": "admin", "domain": {"id": "default"}}}


def test_a_project_token_carries_everything(identity: Identity) -> None:
    reply = identity.client.post("/auth/tokens", json=identity.auth("admin", "admin-pw", ADMIN))
    token = reply.json()["token"]
    assert reply.headers["vary"] == "X-Auth-Token"
    assert {"admin", "manager", "member", "reader"} == {role["name"] for role in token["roles"]}
    assert token["project"]["name"] == "admin"
    assert token["is_domain"] is False
    assert token["user"]["domain"] == {"id": "default", "name": "Default"}
    assert token["methods"] == ["password"]
    compute = next(entry for entry in token["catalog"] if entry["type"] == "compute")
    assert {e["interface"] for e in compute["endpoints"]} == {"public", "internal", "admin"}
    volume = next(entry for entry in token["catalog"] if entry["type"] == "volumev3")
    assert volume["endpoints"][0]["url"].endswith("/volume/v3/" + identity.boot.admin_project_id)
    bare = identity.client.post("/auth/tokens?nocatalog", json=identity.auth("admin", "admin-pw", ADMIN))
    assert "catalog" not in bare.json()["token"]


def test_scopes(identity: Identity) -> None:
    def issue(scope: Any, user: str = "admin") -> dict[str, Any]:
        reply = identity.client.post("/auth/tokens", json=identity.auth(user, f"{user}-pw", scope))
        assert reply.status_code == 201, reply.text
        return reply.json()["token"]

    assert issue({"system": {"all": True}})["system"] == {"all": True}
    unscoped = issue("unscoped")
    assert not {"roles", "project", "catalog"} & unscoped.keys()
    assert issue(None)["project"]["name"] == "admin"  # the default project
    assert issue({"project": {"id": identity.boot.demo_project_id}}, "demo")["roles"]


@pytest.mark.parametrize(
    "scope,status",
    [
        ({"domain": {"id": "default"}}, 401),
        ({"project": {"name": "admin", "domain": {"id": "default"}}}, 401),
        ({"project": {"id": "f" * 32}}, 401),
        ({"system": {"all": True}}, 401),
        ({"system": {}}, 400),
        ({"project": {"name": "demo"}}, 400),
        ({"project": {"id": "x"}, "domain": {"id": "y"}}, 400),
        ({"OS-TRUST:trust": {"id": "nope"}}, 403),
        ("everything", 400),
    ],
)
def test_refused_scopes(identity: Identity, scope: Any, status: int) -> None:
    reply = identity.client.post("/auth/tokens", json=identity.auth("demo", "demo-pw", scope))
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["code"] == status
    if status == 401:
        assert "www-authenticate" in reply.headers


def by_password(user: dict[str, str]) -> Any:
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}}}


@pytest.mark.parametrize(
    "auth,status",
    [
        ({}, 400),
        ({"auth": {}}, 400),
        ({"auth": {"identity": {"methods": []}}}, 400),
        ({"auth": {"identity": {"methods": ["password"]}}}, 400),
        ({"auth": {"identity": {"methods": ["magic"]}}}, 401),
        ({"auth": {"identity": {"methods": ["token"], "token": {"id": "x" * 200}}}}, 401),
        ({"auth": {"identity": {"methods": ["token"], "token": {"id": "x" * 9000}}}}, 401),
        (by_password({"name": "admin", "password": "x"}), 400),
        (by_password({"id": "nobody", "password": "x"}), 401),
        ({"auth": {"identity": {"methods": "password"}}}, 400),
    ],
)  # fmt: skip
def test_bad_authentication(identity: Identity, auth: Any, status: int) -> None:
    reply = identity.client.post("/auth/tokens", json=auth)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["code"] == status


def test_wrong_password_and_disabled_user(identity: Identity, admin: str) -> None:
    assert identity.client.post("/auth/tokens", json=identity.auth("admin", "wrong")).status_code == 401
    user = identity.make(admin, "user", password="secret-1")
    name = user["name"]
    token = identity.token(name, "secret-1")
    assert identity.service.authenticate(token, "req").user_id == user["id"]
    identity.ask("PATCH", f"/users/{user['id']}", admin, json={"user": {"enabled": False}})
    assert identity.client.post("/auth/tokens", json=identity.auth(name, "secret-1")).status_code == 401
    with pytest.raises(Unauthorized):
        identity.service.authenticate(token, "req")
    identity.ask("PATCH", f"/users/{user['id']}", admin, json={"user": {"enabled": True}})
    with pytest.raises(Unauthorized):  # enabling does not bring old tokens back
        identity.service.authenticate(token, "req")


def test_validation_revocation_and_exchange(identity: Identity, admin: str) -> None:
    subject = identity.token("demo", "demo-pw")
    got = identity.ask("GET", "/auth/tokens", admin, headers={"X-Subject-Token": subject})
    assert got.status_code == 200
    assert got.headers["x-subject-token"] == subject
    assert got.json()["token"]["user"]["name"] == "demo"
    assert identity.ask("HEAD", "/auth/tokens", admin, headers={"X-Subject-Token": subject}).status_code == 200
    own = identity.ask("GET", "/auth/tokens", subject, headers={"X-Subject-Token": subject})
    assert own.status_code == 200
    assert identity.ask("GET", "/auth/tokens", subject, headers={"X-Subject-Token": admin}).status_code == 403
    assert identity.ask("GET", "/auth/tokens", admin, headers={"X-Subject-Token": "junk"}).status_code == 404
    assert identity.ask("GET", "/auth/tokens", admin).status_code == 400

    exchange = {"auth": {"identity": {"methods": ["token"], "token": {"id": subject}}, "scope": "unscoped"}}
    second = identity.client.post("/auth/tokens", json=exchange)
    assert second.json()["token"]["methods"] == ["token", "password"]
    assert second.json()["token"]["audit_ids"][1] == got.json()["token"]["audit_ids"][0]
    assert second.json()["token"]["expires_at"] == got.json()["token"]["expires_at"]

    other = identity.another_process()
    assert other.authenticate(subject, "req").user_name == "demo"
    assert identity.ask("DELETE", "/auth/tokens", admin, headers={"X-Subject-Token": subject}).status_code == 204
    for process in (identity.service, other):
        with pytest.raises(Unauthorized):
            process.authenticate(subject, "req")
    assert identity.ask("GET", "/auth/tokens", admin, headers={"X-Subject-Token": subject}).status_code == 404
    assert identity.ask("GET", "/users", subject).status_code == 401
    assert identity.client.post("/auth/tokens", json=exchange).status_code == 401
    other.authenticate(second.headers["x-subject-token"], "req")  # an exchanged token lives on its own


def test_a_known_token_costs_one_read(identity: Identity) -> None:
    token = identity.token()
    identity.service.authenticate(token, "req")
    with identity.db.counting() as statements:
        identity.service.authenticate(token, "req")
    assert statements[0] == 1  # `cumulet bench` says how long it takes


def test_role_changes_are_seen_at_once(identity: Identity, admin: str) -> None:
    user = identity.make(admin, "user", password="secret-1")
    project = identity.make(admin, "project")
    role = identity.make(admin, "role")
    grant = f"/projects/{project['id']}/users/{user['id']}/roles/{role['id']}"
    assert identity.ask("PUT", grant, admin).status_code == 204
    token = identity.token(user["name"], "secret-1", {"project": {"id": project["id"]}})
    assert identity.service.authenticate(token, "req").roles == {role["name"].lower()}
    member = f"/projects/{project['id']}/users/{user['id']}/roles/{identity.boot.roles['member']}"
    identity.ask("PUT", member, admin)
    assert identity.service.authenticate(token, "req").roles == {role["name"], "member", "reader"}
    identity.ask("DELETE", member, admin)
    identity.ask("DELETE", grant, admin)
    with pytest.raises(Unauthorized):
        identity.service.authenticate(token, "req")


def test_a_disabled_or_deleted_project_takes_its_tokens_along(identity: Identity, admin: str) -> None:
    project = identity.make(admin, "project")
    user = identity.make(admin, "user", password="secret-1", default_project_id=project["id"])
    role = identity.boot.roles["member"]
    identity.ask("PUT", f"/projects/{project['id']}/users/{user['id']}/roles/{role}", admin)
    token = identity.token(user["name"], "secret-1")
    assert identity.service.authenticate(token, "req").project_id == project["id"]
    identity.ask("PATCH", f"/projects/{project['id']}", admin, json={"project": {"enabled": False}})
    with pytest.raises(Unauthorized):
        identity.service.authenticate(token, "req")
    identity.ask("PATCH", f"/projects/{project['id']}", admin, json={"project": {"enabled": True}})
    assert identity.service.authenticate(token, "req").project_id == project["id"]
    assert identity.ask("DELETE", f"/projects/{project['id']}", admin).status_code == 204
    with pytest.raises(Unauthorized):
        identity.service.authenticate(token, "req")
    assert "default_project_id" not in identity.ask("GET", f"/users/{user['id']}", admin).json()["user"]


def test_keys_rotate_under_running_processes(tmp_path: Path) -> None:
    identity = Identity(f"sqlite:///{tmp_path}/identity.db")
    token = identity.token()
    other = identity.another_process()
    other.authenticate(token, "req")
    hour = 3600 * 1_000_000
    assert identity.db.write(lambda tx: identity.service.token_keys.rotate(tx, period=0, keep=hour))
    fresh = identity.token()
    for process in (identity.service, other):  # new keys reach the one that did not rotate, old ones still open
        assert process.authenticate(fresh, "req").user_name == "admin"
        assert process.authenticate(token, "req").user_name == "admin"
    time.sleep(0.01)
    assert identity.db.write(lambda tx: identity.service.token_keys.rotate(tx, period=hour, keep=0))
    with pytest.raises(Unauthorized):
        identity.another_process().authenticate(token, "req")
    identity.service.maintain()
    identity.stop()


def test_what_a_caller_may_get_tokens_for(identity: Identity, admin: str) -> None:
    demo = identity.token("demo", "demo-pw")
    assert [p["name"] for p in identity.ask("GET", "/auth/projects", demo).json()["projects"]] == ["demo"]
    assert identity.ask("GET", "/auth/domains", demo).json()["domains"] == []
    assert identity.ask("GET", "/auth/system", admin).json()["system"] == [{"all": True}]
    assert identity.ask("GET", "/auth/catalog", demo).json()["catalog"]
    unscoped = identity.token("demo", "demo-pw", "unscoped")
    assert identity.ask("GET", "/auth/projects", unscoped).status_code == 200
    assert identity.ask("GET", "/auth/projects").status_code == 401


def test_own_password_change(identity: Identity, admin: str) -> None:
    user = identity.make(admin, "user", password="first-pw")
    token = identity.token(user["name"], "first-pw")
    path = f"/users/{user['id']}/password"

    def change(old: str, new: str) -> int:
        body = {"user": {"original_password": old, "password": new}}
        return identity.ask("POST", path, token, json=body).status_code

    assert change("wrong", "second-pw") == 401
    assert change("first-pw", "second-pw") == 204
    assert identity.ask("GET", f"/users/{user['id']}", token).status_code == 401
    identity.token(user["name"], "second-pw")
    assert identity.client.post("/auth/tokens", json=identity.auth(user["name"], "first-pw")).status_code == 401


def test_multi_factor_rules(identity: Identity, admin: str) -> None:
    options = {"multi_factor_auth_enabled": True, "multi_factor_auth_rules": [["password", "token"]]}
    user = identity.make(admin, "user", password="first-pw", options=options)
    assert identity.client.post("/auth/tokens", json=identity.auth(user["name"], "first-pw")).status_code == 401
    body = {"user": {"options": {"multi_factor_auth_enabled": None}}}
    identity.ask("PATCH", f"/users/{user['id']}", admin, json=body)
    identity.token(user["name"], "first-pw")


def test_bootstrap_is_harmless_when_repeated(identity: Identity) -> None:
    again = identity.service.bootstrap(
        admin_password=new_hex(), demo_password=new_hex(), public_url=identity.url.removesuffix("/identity/v3")
    )
    assert again.created == []
    assert again.admin_user_id == identity.boot.admin_user_id
    identity.token()


def test_version_documents(identity: Identity) -> None:
    root = identity.client.get(identity.url.removesuffix("/v3"))
    assert root.status_code == 300
    assert root.json()["versions"]["values"][0]["id"] == "v3.14"
    assert root.headers["location"].endswith("/identity/v3/")
    assert identity.client.get("").json()["version"]["status"] == "stable"
    home = identity.client.get("", headers={"Accept": "application/json-home"})
    assert home.headers["content-type"] == "application/json-home"
    relation = "https://docs.openstack.org/api/openstack-identity/3/rel/"
    for name in ("auth_tokens", "users", "user", "domain_user_roles", "project_user_role"):
        assert relation + name in home.json()["resources"], name
