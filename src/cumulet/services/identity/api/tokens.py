"""/v3/auth: tokens, and what the caller may have a token for."""

from typing import Any

from cumulet.http import Call, Reply, Route
from cumulet.kernel.clock import iso
from cumulet.kernel.errors import BadInput, NotFound, Unauthorized
from cumulet.services.identity import assignments, store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, enforce, service_of
from cumulet.services.identity.authn import Resolved
from cumulet.services.identity.schema import Auth
from cumulet.services.identity.store import ProjectRow


def _ref(row: ProjectRow) -> dict[str, Any]:
    return {"id": row.id, "name": row.name}


def token_view(call: Call, found: Resolved, *, with_catalog: bool = True) -> dict[str, Any]:
    payload, user = found.payload, found.user
    token: dict[str, Any] = {
        "methods": list(payload.methods),
        "user": {
            "domain": _ref(found.user_domain),
            "id": user.id,
            "name": user.name,
            "password_expires_at": iso(user.password_expires_at, zone="", micros=True),
        },
        "audit_ids": list(payload.audit_ids),
        "expires_at": iso(payload.expires_at, micros=True),
        "issued_at": iso(payload.issued_at, micros=True),
    }
    if found.project is not None:
        domain = found.project_domain or found.project
        token["project"] = {"domain": _ref(domain), **_ref(found.project)}
        token["is_domain"] = found.project.is_domain
    elif found.domain is not None:
        token["domain"] = _ref(found.domain)
    elif found.system:
        token["system"] = {"all": True}
    if payload.scope[0]:
        token["roles"] = [{"id": role.id, "name": role.name} for role in found.roles]
        if with_catalog:
            project_id = found.project.id if found.project else None
            service = service_of(call)
            token["catalog"] = service.db.read(lambda tx: service.catalog(tx, project_id, user.id))
    if found.application_credential is not None:
        credential = found.application_credential
        shown: dict[str, Any] = {
            "id": credential.id,
            "name": credential.name,
            "restricted": not credential.unrestricted,
        }
        if found.access_rules is not None:
            shown["access_rules"] = [views.access_rule(row) for row in found.access_rules]
        token["application_credential"] = shown
    if found.trust is not None:
        trust = found.trust
        token["OS-TRUST:trust"] = {
            "id": trust.id,
            "impersonation": trust.impersonation,
            "trustee_user": {"id": trust.trustee_user_id},
            "trustor_user": {"id": trust.trustor_user_id},
        }
    return {"token": token}


def issue(call: Call) -> Reply:
    token, found = service_of(call).authn.issue(call.body)
    body = token_view(call, found, with_catalog="nocatalog" not in call.query)
    return Reply(body, status=201, headers={"x-subject-token": token})


def _subject(call: Call) -> tuple[str, Resolved]:
    token = call.headers.get("x-subject-token")
    if not token:
        raise BadInput("The header X-Subject-Token is missing.")
    try:
        return token, service_of(call).resolve(token)
    except Unauthorized:
        raise NotFound("Failed to validate token") from None


def _admitted(call: Call, rule: str) -> tuple[str, Resolved]:
    """A token that is not valid is a 404 for everybody."""
    token, found = _subject(call)
    enforce(call, rule, token={"user_id": found.user.id})
    return token, found


def validate(call: Call) -> Reply:
    token, found = _admitted(call, "identity:validate_token")
    body = token_view(call, found, with_catalog="nocatalog" not in call.query)
    return Reply(body, headers={"x-subject-token": token})


def check(call: Call) -> Reply:
    token, found = _admitted(call, "identity:check_token")
    return Reply(token_view(call, found, with_catalog=False), headers={"x-subject-token": token})


def revoke(call: Call) -> None:
    token, _ = _admitted(call, "identity:revoke_token")
    service_of(call).revoke(token)


def my_projects(call: Call) -> dict[str, Any]:
    rows = _mine(call, "project")
    return collection(call, "projects", [views.project(call, row) for row in rows if not row.is_domain])


def my_domains(call: Call) -> dict[str, Any]:
    return collection(call, "domains", [views.domain(call, row) for row in _mine(call, "domain")])


def _mine(call: Call, kind: str) -> list[ProjectRow]:
    def work(tx: Any) -> list[ProjectRow]:
        ids = {target[1] for target in assignments.targets_of(tx, call.ctx.user_id or "") if target[0] == kind}
        rows = [store.projects.get(tx, id) for id in sorted(ids)]
        return [row for row in rows if row is not None and row.enabled]

    return service_of(call).db.read(work)


def my_system(call: Call) -> dict[str, Any]:
    def work(tx: Any) -> bool:
        return assignments.SYSTEM in assignments.targets_of(tx, call.ctx.user_id or "")

    system = [{"all": True}] if service_of(call).db.read(work) else []
    return collection(call, "system", system)


def my_catalog(call: Call) -> dict[str, Any]:
    if not (call.ctx.project_id or call.ctx.domain_id or call.ctx.system_scope):
        raise NotFound("An unscoped token has no catalog.")
    service = service_of(call)
    entries = service.db.read(lambda tx: service.catalog(tx, call.ctx.project_id, call.ctx.user_id))
    return collection(call, "catalog", entries)


ROUTES = [
    Route(
        method="POST",
        path="/auth/tokens",
        handler=issue,
        body=Auth,
        body_key="auth",
        auth=False,
        success=201,
        slow=True,
    ),
    Route(method="GET", path="/auth/tokens", handler=validate),
    Route(method="HEAD", path="/auth/tokens", handler=check),
    Route(method="DELETE", path="/auth/tokens", handler=revoke, success=204),
    Route(method="GET", path="/auth/projects", handler=my_projects, policy="identity:get_auth_projects"),
    Route(method="GET", path="/auth/domains", handler=my_domains, policy="identity:get_auth_domains"),
    Route(method="GET", path="/auth/system", handler=my_system, policy="identity:get_auth_system"),
    Route(method="GET", path="/auth/catalog", handler=my_catalog, policy="identity:get_auth_catalog"),
    Route(method="GET", path="/OS-FEDERATION/projects", handler=my_projects, policy="identity:get_auth_projects"),
    Route(method="GET", path="/OS-FEDERATION/domains", handler=my_domains, policy="identity:get_auth_domains"),
]
