# ruff: noqa: B023 - what is made in a loop is called in the same round
"""Changes of users, projects and what is given to them that are asked for at once."""

from typing import Any

import pytest
from tests.identity.conftest import Identity
from tests.support.at_once import at_once

from cumulet.kernel.ids import new_hex

ROUNDS = range(3)


@pytest.fixture
def ask(identity: Identity, admin: str) -> Any:
    def asked(method: str, path: str, body: Any = None) -> Any:
        return identity.ask(method, path, admin, json=body) if body is not None else identity.ask(method, path, admin)

    return asked


def made(ask: Any, kind: str, **more: Any) -> str:
    answer = ask("POST", f"/{kind}s", {kind: {"name": new_hex(), **more}})
    assert answer.status_code == 201, answer.text
    found: str = answer.json()[kind]["id"]
    return found


def codes(answers: list[Any]) -> list[int]:
    found = [answer.status_code for answer in answers]
    assert max(found) < 500, [answer.text for answer in answers]
    return found


@pytest.mark.parametrize("kind", ["user", "project", "group"])
def test_changes_of_all_are_kept(ask: Any, kind: str) -> None:
    for _ in ROUNDS:
        path = f"/{kind}s/{made(ask, kind)}"
        answers = at_once(
            lambda: ask("PATCH", path, {kind: {"name": "a" + new_hex()}}),
            lambda: ask("PATCH", path, {kind: {"one": "1"}}),
            lambda: ask("PATCH", path, {kind: {"two": "2"}}),
        )
        assert codes(answers) == [200, 200, 200]
        found = ask("GET", path).json()[kind]
        assert (found["name"][0], found["one"], found["two"]) == ("a", "1", "2")


@pytest.mark.parametrize("gone", ["user", "project", "role", "group"])
def test_what_goes_while_it_gets_a_role(ask: Any, gone: str) -> None:
    for _ in ROUNDS:
        ids = {kind: made(ask, kind) for kind in ("user", "project", "role", "group")}
        actor = "group" if gone == "group" else "user"
        path = f"/projects/{ids['project']}/{actor}s/{ids[actor]}/roles/{ids['role']}"
        answers = at_once(lambda: ask("DELETE", f"/{gone}s/{ids[gone]}"), lambda: ask("PUT", path))
        assert codes(answers) in ([204, 404], [204, 204])
        left = ask("GET", f"/role_assignments?{actor}.id={ids[actor]}").json()["role_assignments"]
        assert left == []


def test_a_group_goes_while_it_gets_a_member(ask: Any) -> None:
    for _ in ROUNDS:
        group, user = made(ask, "group"), made(ask, "user")
        answers = at_once(
            lambda: ask("DELETE", f"/groups/{group}"), lambda: ask("PUT", f"/groups/{group}/users/{user}")
        )
        assert codes(answers) in ([204, 404], [204, 204])
        assert ask("GET", f"/users/{user}/groups").json()["groups"] == []


def test_a_user_goes_while_it_gets_an_ec2_credential(ask: Any) -> None:
    for _ in ROUNDS:
        user, project = made(ask, "user"), made(ask, "project")
        body = {"tenant_id": project}
        answers = at_once(
            lambda: ask("DELETE", f"/users/{user}"), lambda: ask("POST", f"/users/{user}/credentials/OS-EC2", body)
        )
        assert codes(answers) in ([204, 404], [204, 201])
        assert ask("GET", f"/credentials?user_id={user}").json()["credentials"] == []


def test_a_domain_goes_while_a_project_comes(ask: Any) -> None:
    for _ in ROUNDS:
        domain = made(ask, "domain", enabled=False)
        answers = at_once(
            lambda: ask("DELETE", f"/domains/{domain}"),
            lambda: ask("POST", "/users", {"user": {"name": new_hex(), "domain_id": domain}}),
        )
        assert codes(answers) in ([204, 404], [204, 201])
        assert ask("GET", f"/users?domain_id={domain}").json()["users"] == []


def test_a_token_is_revoked_twice(identity: Identity, admin: str) -> None:
    for _ in ROUNDS:
        token = identity.token()
        answers = at_once(
            *[lambda: identity.ask("DELETE", "/auth/tokens", admin, headers={"X-Subject-Token": token})] * 2
        )
        assert set(codes(answers)) <= {204, 404}


def test_a_trust_is_used_as_often_as_it_may_be(identity: Identity, admin: str) -> None:
    user = identity.ask("GET", "/users?name=admin", admin).json()["users"][0]["id"]
    project = identity.ask("GET", "/projects?name=admin", admin).json()["projects"][0]["id"]
    mine = identity.token(scope={"project": {"id": project}})
    body = {
        "trustor_user_id": user, "trustee_user_id": user, "project_id": project, "impersonation": True,
        "remaining_uses": 1, "roles": [{"name": "admin"}],
    }  # fmt: skip
    for deleted in (False, True):
        reply = identity.ask("POST", "/OS-TRUST/trusts", mine, json={"trust": body})
        assert reply.status_code == 201, reply.text
        trust = reply.json()["trust"]["id"]
        scope = {"OS-TRUST:trust": {"id": trust}}
        calls = [
            lambda scope=scope: identity.client.post("/auth/tokens", json=identity.auth("admin", "admin-pw", scope))
        ]
        if deleted:
            calls.append(lambda trust=trust: identity.ask("DELETE", f"/OS-TRUST/trusts/{trust}", mine))
        else:
            calls *= 3
        found = codes(at_once(*calls))
        # 401: it was gone before it was looked for, 403: when it was to be used
        assert sorted(found) in (([204, 401], [204, 403], [201, 204]) if deleted else ([201, 403, 403],))
        left = identity.ask("GET", f"/OS-TRUST/trusts/{trust}", mine)
        assert left.status_code == (404 if deleted else 200)
        assert deleted or left.json()["trust"]["remaining_uses"] == 0
