"""/v3/OS-TRUST/trusts: a user lends roles to another."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.clock import iso, parse_iso
from cumulet.kernel.errors import BadInput, Forbidden, NotFound
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import assignments, store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.schema import NewTrust
from cumulet.services.identity.store import RoleRow, TrustRow


def _view(call: Call, tx: Tx, row: TrustRow, *, with_roles: bool = True) -> dict[str, Any]:
    url = f"{call.url_base}/OS-TRUST/trusts/{row.id}"
    shown: dict[str, Any] = {
        "id": row.id,
        "trustor_user_id": row.trustor_user_id,
        "trustee_user_id": row.trustee_user_id,
        "project_id": row.project_id,
        "impersonation": row.impersonation,
        "expires_at": iso(row.expires_at, micros=True),
        "remaining_uses": row.remaining_uses,
        "redelegation_count": row.redelegation_count,
        "redelegated_trust_id": row.redelegated_trust_id,
        "deleted_at": None,
        "links": {"self": url},
    }
    if with_roles:
        shown["roles"] = [views.role(call, role) for role in _roles_of(tx, row)]
        shown["roles_links"] = {"self": f"{url}/roles", "next": None, "previous": None}
    return shown


def _roles_of(tx: Tx, row: TrustRow) -> list[RoleRow]:
    return [role for id in row.roles if (role := store.roles.get(tx, id)) is not None]


def _alive(row: TrustRow | None, now: int) -> TrustRow | None:
    if row is None or row.deleted_at is not None or (row.expires_at is not None and row.expires_at <= now):
        return None
    return row


def _load(call: Call, rule: str) -> TrustRow:
    id = call.params["trust_id"]
    row = service_of(call).db.read(lambda tx: _alive(store.trusts.get(tx, id), tx.now))
    row = found(row, "trust", id)  # unlike other nouns, 404 comes before 403 here
    enforce(call, rule, trust={"trustor_user_id": row.trustor_user_id, "trustee_user_id": row.trustee_user_id})
    return row


def listing(call: Call) -> dict[str, Any]:
    trustor, trustee = call.query.get("trustor_user_id"), call.query.get("trustee_user_id")
    if trustor is None and trustee is None:
        enforce(call, "identity:list_trusts")
    if trustor is not None:
        enforce(call, "identity:list_trusts_for_trustor", trust={"trustor_user_id": trustor})
    if trustee is not None:
        enforce(call, "identity:list_trusts_for_trustee", trust={"trustee_user_id": trustee})
    equal = {name: call.query.get(name) for name in ("trustor_user_id", "trustee_user_id") if name in call.query}

    def work(tx: Tx) -> list[dict[str, Any]]:
        rows = [row for row in store.trusts.list(tx, **equal) if _alive(row, tx.now) is not None]
        return [_view(call, tx, row, with_roles=False) for row in rows]

    return collection(call, "trusts", service_of(call).db.read(work))


def create(call: Call) -> dict[str, Any]:
    new: NewTrust = call.body
    enforce(call, "identity:create_trust", trust={"trustor_user_id": new.trustor_user_id})
    if "application_credential" in call.ctx.methods or (new.allow_redelegation or new.redelegated_trust_id):
        raise Forbidden("Trusts cannot be made with an application credential, and cannot be lent on.")
    service = service_of(call)
    expires_at = None
    if new.expires_at is not None:
        try:
            expires_at = parse_iso(new.expires_at)
        except (ValueError, OverflowError):
            raise BadInput(f"expires_at {new.expires_at!r} is not a time.") from None
        if expires_at <= service.db.clock.now():
            raise BadInput("expires_at lies in the past.")
    if call.ctx.token is not None and service.resolve(call.ctx.token).trust is not None:
        raise Forbidden("A token of a trust cannot make another trust.")

    def work(tx: Tx) -> dict[str, Any]:
        store.lock(tx)
        for user_id in (new.trustor_user_id, new.trustee_user_id):
            found(store.users.get(tx, user_id), "user", user_id)
        if new.project_id is not None:
            found(store.projects.get(tx, new.project_id), "project", new.project_id)
        elif new.roles:
            raise BadInput("Roles are lent on a project; project_id is missing.")
        if new.project_id is not None and not new.roles:
            raise Forbidden("At least one role has to be named.")
        target = ("project", new.project_id or "")
        mine = assignments.roles_on(tx, new.trustor_user_id, target) if new.project_id is not None else set()
        lent = []
        for ref in new.roles:
            role = store.roles.get(tx, ref.id) if ref.id else store.roles.one(tx, name=ref.name or "", domain_id=None)
            if role is None:
                raise NotFound(f"Could not find role: {ref.id or ref.name}.")
            if role.id not in mine:
                raise Forbidden(f"The trustor does not have the role {role.name} on this project.")
            lent.append(role.id)
        row = TrustRow(
            new_hex(),
            new.trustor_user_id,
            new.trustee_user_id,
            new.project_id,
            new.impersonation,
            expires_at,
            new.remaining_uses,
            False,
            0,
            None,
            lent,
            None,
        )
        return _view(call, tx, store.trusts.add(tx, row))

    return {"trust": service.db.write(work)}


def show(call: Call) -> dict[str, Any]:
    row = _load(call, "identity:get_trust")
    return {"trust": service_of(call).db.read(lambda tx: _view(call, tx, row))}


def delete(call: Call) -> None:
    row = _load(call, "identity:delete_trust")

    def work(tx: Tx) -> None:
        store.trusts.remove(tx, row.id)
        store.bump(tx, f"user:{row.trustor_user_id}", f"user:{row.trustee_user_id}")

    service_of(call).db.write(work)


def list_roles(call: Call) -> dict[str, Any]:
    row = _load(call, "identity:list_roles_for_trust")
    rows = service_of(call).db.read(lambda tx: _roles_of(tx, row))
    return collection(call, "roles", [views.role(call, role) for role in rows])


def show_role(call: Call) -> dict[str, Any]:
    row, role_id = _load(call, "identity:get_role_for_trust"), call.params["role_id"]
    role = service_of(call).db.read(lambda tx: store.roles.get(tx, role_id) if role_id in row.roles else None)
    return {"role": views.role(call, found(role, "role", role_id))}


_ONE = "/OS-TRUST/trusts/{trust_id}"
ROUTES = [
    Route(method="GET", path="/OS-TRUST/trusts", handler=listing),
    Route(method="POST", path="/OS-TRUST/trusts", handler=create, body=NewTrust, body_key="trust", success=201),
    Route(method="GET", path=_ONE, handler=show),
    Route(method="DELETE", path=_ONE, handler=delete, success=204),
    Route(method="GET", path=_ONE + "/roles", handler=list_roles),
    Route(method="GET", path=_ONE + "/roles/{role_id}", handler=show_role),
]  # fmt: skip
