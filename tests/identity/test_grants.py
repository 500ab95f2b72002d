"""Grants of every kind, and the small operations on nouns that other tests only make and delete."""

from typing import Any

import pytest
from tests.identity.conftest import Identity

KINDS = [(actor, target, False) for actor in ("user", "group") for target in ("project", "domain", "system")]
KINDS += [(actor, target, True) for actor in ("user", "group") for target in ("project", "domain")]


@pytest.mark.parametrize("actor,target,inherited", KINDS)
def test_grant_check_list_revoke(identity: Identity, admin: str, actor: str, target: str, inherited: bool) -> None:
    who = identity.make(admin, actor)["id"]
    on = "system" if target == "system" else f"{target}s/{identity.make(admin, target)['id']}"
    role = identity.make(admin, "role")
    roles = f"/{on}/{actor}s/{who}/roles"
    path, end = (f"/OS-INHERIT{roles}", "/inherited_to_projects") if inherited else (roles, "")
    one = f"{path}/{role['id']}{end}"

    def status(method: str, at: str) -> int:
        return identity.ask(method, at, admin).status_code

    assert status("GET", one) == 404
    assert status("DELETE", one) == 404
    for _ in range(2):
        assert status("PUT", one) == 204
    assert status("GET", one) == 204
    assert status("HEAD", one) == 204
    listed = identity.ask("GET", path + end, admin).json()
    assert [row["name"] for row in listed["roles"]] == [role["name"]]
    if inherited:
        assert identity.ask("GET", roles, admin).json()["roles"] == []
    assert status("PUT", f"{path}/nowhere{end}") == 404
    assert status("PUT", one.replace(who, "f" * 32)) == 404
    demo = identity.token("demo", "demo-pw")
    assert identity.ask("PUT", one, demo).status_code == 403
    assert identity.ask("GET", path + end, demo).status_code == 403
    assert status("DELETE", one) == 204
    assert status("GET", one) == 404


def show(identity: Identity, token: str, path: str, key: str) -> Any:
    reply = identity.ask("GET", path, token)
    assert reply.status_code == 200, reply.text
    return reply.json()[key]


def change(identity: Identity, token: str, path: str, key: str, **values: Any) -> Any:
    reply = identity.ask("PATCH", path, token, json={key: values})
    assert reply.status_code == 200, reply.text
    return reply.json()[key]


@pytest.mark.parametrize(
    "noun,made,changed",
    [
        ("domain", {}, {"name": "renamed-domain", "description": "new"}),
        ("project", {}, {"name": "renamed-project", "tags": ["t"]}),
        ("user", {"email": "a@b.c"}, {"name": "renamed-user", "email": "d@e.f"}),
        ("group", {}, {"name": "renamed-group", "description": "new"}),
        ("role", {}, {"name": "renamed-role", "description": "new"}),
        ("service", {"type": "t"}, {"type": "u", "description": "new", "enabled": False}),
        ("region", {}, {"description": "new"}),
    ],
)
def test_show_and_change(identity: Identity, admin: str, noun: str, made: Any, changed: Any) -> None:
    row = identity.make(admin, noun, **made)
    path = f"/{noun}s/{row['id']}"
    assert show(identity, admin, path, noun) == row
    assert identity.ask("HEAD", path, admin).status_code == 200
    after = change(identity, admin, path, noun, **changed)
    assert {**row, **changed} == after == show(identity, admin, path, noun)


def test_the_rest(identity: Identity, admin: str) -> None:
    user = identity.make(admin, "user")
    group = identity.make(admin, "group")
    member = f"/groups/{group['id']}/users/{user['id']}"
    identity.ask("PUT", member, admin)
    assert identity.ask("GET", member, admin).status_code == 204
    assert [g["id"] for g in show(identity, admin, f"/users/{user['id']}/groups", "groups")] == [group["id"]]
    demo = identity.token("demo", "demo-pw")
    me = identity.service.find_user("demo")
    assert me is not None
    assert [p["name"] for p in show(identity, demo, f"/users/{me.id}/projects", "projects")] == ["demo"]
    assert show(identity, demo, "/OS-FEDERATION/projects", "projects")
    assert show(identity, demo, "/OS-FEDERATION/domains", "domains") == []

    project = identity.make(admin, "project", tags=["one"])
    tag = f"/projects/{project['id']}/tags/one"
    assert identity.ask("GET", tag, admin).status_code == 204
    assert identity.ask("DELETE", tag, admin).status_code == 204

    prior, implied = identity.make(admin, "role"), identity.make(admin, "role")
    rule = f"/roles/{prior['id']}/implies/{implied['id']}"
    assert identity.ask("GET", rule, admin).status_code == 404
    identity.ask("PUT", rule, admin)
    assert show(identity, admin, rule, "role_inference")["implies"]["id"] == implied["id"]
    assert identity.ask("HEAD", rule, admin).status_code == 204
    assert len(show(identity, admin, f"/roles/{prior['id']}/implies", "role_inference")["implies"]) == 1
    assert identity.ask("DELETE", rule, admin).status_code == 204
    assert identity.ask("PUT", rule.replace(implied["id"], identity.boot.roles["admin"]), admin).status_code == 403

    service = identity.make(admin, "service", type="rest")
    endpoint = identity.make(admin, "endpoint", interface="public", url="http://x", service_id=service["id"])
    path = f"/endpoints/{endpoint['id']}"
    assert show(identity, admin, path, "endpoint") == endpoint
    assert change(identity, admin, path, "endpoint", url="http://y", region_id="RegionOne")["region"] == "RegionOne"

    new = {"service_id": service["id"], "resource_name": "r", "default_limit": 1}
    reply = identity.ask("POST", "/registered_limits", admin, json={"registered_limits": [new]})
    registered = reply.json()["registered_limits"][0]
    path = f"/registered_limits/{registered['id']}"
    assert show(identity, demo, path, "registered_limit") == registered
    assert registered in show(identity, demo, "/registered_limits", "registered_limits")
    assert change(identity, admin, path, "registered_limit", default_limit=7)["default_limit"] == 7
    new = {"service_id": service["id"], "resource_name": "r", "resource_limit": 1, "project_id": project["id"]}
    limit = identity.ask("POST", "/limits", admin, json={"limits": [new]}).json()["limits"][0]
    assert change(identity, admin, f"/limits/{limit['id']}", "limit", resource_limit=2)["resource_limit"] == 2
    reply = identity.ask("PATCH", path, admin, json={"registered_limit": {"resource_name": "other"}})
    assert reply.status_code == 403

    credential = identity.make(admin, "credential", type="totp", blob="x", user_id=user["id"])
    path = f"/credentials/{credential['id']}"
    assert change(identity, admin, path, "credential", blob="y")["blob"] == "y"
    body = {"tenant_id": identity.boot.demo_project_id}
    key = identity.ask("POST", f"/users/{me.id}/credentials/OS-EC2", demo, json=body).json()["credential"]
    path = f"/users/{me.id}/credentials/OS-EC2/{key['access']}"
    assert show(identity, demo, path, "credential")["secret"] == key["secret"]
    identity.ask("DELETE", path, demo)

    document = identity.ask("POST", "/policies", admin, json={"policy": {"type": "t", "blob": "b"}}).json()["policy"]
    assert show(identity, admin, f"/policies/{document['id']}", "policy") == document

    rules = [{"service": "compute", "method": "GET", "path": "/v2.1/servers"}]
    body = {"application_credential": {"name": "with-rules", "access_rules": rules}}
    made = identity.ask("POST", f"/users/{me.id}/application_credentials", demo, json=body).json()
    rule_id = made["application_credential"]["access_rules"][0]["id"]
    assert show(identity, demo, f"/users/{me.id}/access_rules/{rule_id}", "access_rule")["service"] == "compute"

    trust = {
        "trustor_user_id": me.id,
        "trustee_user_id": user["id"],
        "impersonation": False,
        "roles": [{"name": "member"}],
        "project_id": identity.boot.demo_project_id,
        "expires_at": "2999-01-01T00:00:00.000000Z",
    }
    lent = identity.ask("POST", "/OS-TRUST/trusts", demo, json={"trust": trust}).json()["trust"]
    path = f"/OS-TRUST/trusts/{lent['id']}"
    assert [role["name"] for role in show(identity, demo, path + "/roles", "roles")] == ["member"]
    assert show(identity, demo, f"{path}/roles/{lent['roles'][0]['id']}", "role")["name"] == "member"
    assert identity.ask("GET", f"{path}/roles/{identity.boot.roles['admin']}", demo).status_code == 404
    assert len(show(identity, demo, f"/OS-TRUST/trusts?trustor_user_id={me.id}", "trusts")) == 1
    assert identity.ask("GET", "/OS-TRUST/trusts", demo).status_code == 403
    assert identity.ask("DELETE", path, demo).status_code == 204
