"""/v3/users/{user_id}/application_credentials and access_rules."""

import secrets
from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.clock import parse_iso
from cumulet.kernel.errors import BadInput, Conflict, Forbidden
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import assignments, store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.schema import NewAccessRule, NewApplicationCredential, RoleRef
from cumulet.services.identity.store import AccessRuleRow, ApplicationCredentialRow


def _view(call: Call, tx: Tx, row: ApplicationCredentialRow) -> dict[str, Any]:
    roles = {role.id: role for id in row.roles if (role := store.roles.get(tx, id)) is not None}
    rules = [rule for id in row.access_rules or [] if (rule := store.access_rules.get(tx, id)) is not None]
    return views.application_credential(call, row, roles, rules)


def _admit(call: Call, rule: str) -> str:
    user_id = call.params["user_id"]
    enforce(call, rule, user={"id": user_id})
    return user_id


def listing(call: Call) -> dict[str, Any]:
    user_id = _admit(call, "identity:list_application_credentials")

    def work(tx: Tx) -> list[dict[str, Any]]:
        found(store.users.get(tx, user_id), "user", user_id)
        return [_view(call, tx, row) for row in store.application_credentials.list(tx, user_id=user_id)]

    return collection(call, "application_credentials", service_of(call).db.read(work), exact=("name",))


def _one(tx: Tx, call: Call) -> ApplicationCredentialRow:
    id = call.params["application_credential_id"]
    row = store.application_credentials.get(tx, id)
    return found(row if row is None or row.user_id == call.params["user_id"] else None, "application credential", id)


def show(call: Call) -> dict[str, Any]:
    _admit(call, "identity:get_application_credential")
    return {"application_credential": service_of(call).db.read(lambda tx: _view(call, tx, _one(tx, call)))}


def _unrestricted_only(call: Call) -> None:
    """A restricted application credential makes or deletes no others."""
    if "application_credential" not in call.ctx.methods or call.ctx.token is None:
        return
    credential = service_of(call).resolve(call.ctx.token).application_credential
    if credential is not None and not credential.unrestricted:
        raise Forbidden("A restricted application credential cannot manage application credentials.")


def create(call: Call) -> dict[str, Any]:
    user_id = _admit(call, "identity:create_application_credential")
    _unrestricted_only(call)
    new: NewApplicationCredential = call.body
    if call.ctx.project_id is None:
        raise BadInput("An application credential is made with a token scoped to its project.")
    expires_at = _expiry(new.expires_at, service_of(call).db.clock.now())
    secret = new.secret or secrets.token_urlsafe(64)
    service = service_of(call)
    hashed = service.passwords.hash(secret)
    project_id = call.ctx.project_id

    def work(tx: Tx) -> dict[str, Any]:
        store.lock(tx)
        found(store.users.get(tx, user_id), "user", user_id)
        found(store.projects.get(tx, project_id), "project", project_id)
        if store.application_credentials.one(tx, user_id=user_id, name=new.name) is not None:
            raise Conflict(f"There is an application credential with the name {new.name} already.")
        row = ApplicationCredentialRow(
            new_hex(),
            user_id,
            project_id,
            new.name,
            hashed,
            new.description,
            expires_at,
            bool(new.unrestricted),
            _roles(tx, call, new.roles),
            None if new.access_rules is None else [_rule(tx, user_id, rule) for rule in new.access_rules],
        )
        return _view(call, tx, store.application_credentials.add(tx, row))

    return {"application_credential": {**service.db.write(work), "secret": secret}}


def _expiry(text: str | None, now: int) -> int | None:
    if text is None:
        return None
    try:
        expires_at = parse_iso(text)
    except (ValueError, OverflowError):
        raise BadInput(f"expires_at {text!r} is not a time.") from None
    if expires_at <= now:
        raise BadInput("expires_at lies in the past.")
    return expires_at


def _roles(tx: Tx, call: Call, asked: list[RoleRef] | None) -> list[str]:
    """Roles the caller's own token has; all of those assigned to it by default."""
    mine = assignments.roles_on(tx, call.ctx.user_id or "", ("project", call.ctx.project_id or ""))
    mine = {id for id in mine if (row := store.roles.get(tx, id)) is not None and row.name.lower() in call.ctx.roles}
    if not asked:
        return sorted(mine)
    chosen = []
    for ref in asked:
        row = store.roles.get(tx, ref.id) if ref.id else store.roles.one(tx, name=ref.name or "", domain_id=None)
        if row is None or row.id not in mine:
            raise BadInput(f"The role {ref.id or ref.name} is not one of the caller's.")
        chosen.append(row.id)
    return chosen


def _rule(tx: Tx, user_id: str, new: NewAccessRule) -> str:
    """The user's rule of this content or id; made when it is new."""
    if new.id is not None:
        row = store.access_rules.get(tx, new.id)
        if row is None or row.user_id != user_id:
            raise BadInput(f"Could not find access rule: {new.id}.")
        return row.id
    if new.service is None or new.path is None or new.method is None:
        raise BadInput("An access rule names service, path and method.")
    row = store.access_rules.one(tx, user_id=user_id, service=new.service, path=new.path, method=new.method)
    if row is None:
        row = store.access_rules.add(tx, AccessRuleRow(new_hex(), user_id, new.service, new.path, new.method))
    return row.id


def delete(call: Call) -> None:
    user_id = _admit(call, "identity:delete_application_credential")
    _unrestricted_only(call)

    def work(tx: Tx) -> None:
        store.application_credentials.remove(tx, _one(tx, call).id)
        store.bump(tx, f"user:{user_id}")

    service_of(call).db.write(work)


# -- access rules ------------------------------------------------------------------------------------------------------


def list_rules(call: Call) -> dict[str, Any]:
    user_id = _admit(call, "identity:list_access_rules")
    rows = service_of(call).db.read(lambda tx: store.access_rules.list(tx, user_id=user_id))
    return collection(
        call, "access_rules", [_rule_view(call, row) for row in rows], exact=("service", "path", "method")
    )


def _rule_view(call: Call, row: AccessRuleRow) -> dict[str, Any]:
    link = f"{call.url_base}/users/{row.user_id}/access_rules/{row.id}"
    return {**views.access_rule(row), "links": {"self": link}}


def _one_rule(tx: Tx, call: Call) -> AccessRuleRow:
    id = call.params["access_rule_id"]
    row = store.access_rules.get(tx, id)
    return found(row if row is None or row.user_id == call.params["user_id"] else None, "access rule", id)


def show_rule(call: Call) -> dict[str, Any]:
    _admit(call, "identity:get_access_rule")
    return {"access_rule": _rule_view(call, service_of(call).db.read(lambda tx: _one_rule(tx, call)))}


def delete_rule(call: Call) -> None:
    user_id = _admit(call, "identity:delete_access_rule")

    def work(tx: Tx) -> None:
        store.lock(tx)
        row = _one_rule(tx, call)
        users = store.application_credentials.list(tx, user_id=user_id)
        if any(row.id in (credential.access_rules or ()) for credential in users):
            raise Forbidden("An application credential uses this access rule.")
        store.access_rules.remove(tx, row.id)

    service_of(call).db.write(work)


_MANY = "/users/{user_id}/application_credentials"
_RULES = "/users/{user_id}/access_rules"
ROUTES = [
    Route(method="GET", path=_MANY, handler=listing),
    Route(method="POST", path=_MANY, handler=create, body=NewApplicationCredential,
          body_key="application_credential", success=201, slow=True),
    Route(method="GET", path=_MANY + "/{application_credential_id}", handler=show),
    Route(method="DELETE", path=_MANY + "/{application_credential_id}", handler=delete, success=204),
    Route(method="GET", path=_RULES, handler=list_rules),
    Route(method="GET", path=_RULES + "/{access_rule_id}", handler=show_rule),
    Route(method="DELETE", path=_RULES + "/{access_rule_id}", handler=delete_rule, success=204),
]  # fmt: skip
