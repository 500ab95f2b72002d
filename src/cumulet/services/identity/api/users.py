"""/v3/users and /v3/groups."""

from typing import Any

from cumulet.http import Call, Route
from cumulet.kernel.errors import BadInput, NotFound, Unauthorized
from cumulet.services.identity import assignments, store, users
from cumulet.services.identity.api import views
from cumulet.services.identity.api.projects import own_domain
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.schema import (
    AuthUser,
    GroupChange,
    NewGroup,
    NewUser,
    PasswordChange,
    UserChange,
    extra_of,
)
from cumulet.services.identity.store import GroupRow, UserRow


def user_target(row: UserRow | None) -> dict[str, Any]:
    return {} if row is None else {"id": row.id, "domain_id": row.domain_id}


def group_target(row: GroupRow | None) -> dict[str, Any]:
    return {} if row is None else {"id": row.id, "domain_id": row.domain_id}


def load_user(call: Call, rule: str) -> UserRow:
    id = call.params["user_id"]
    row = service_of(call).db.read(lambda tx: store.users.get(tx, id))
    enforce(call, rule, user=user_target(row))
    return found(row, "user", id)


def _fresh(tx: Any, id: str) -> UserRow:
    """As it is now, and stays while its writer has the lock."""
    store.lock(tx)
    return found(store.users.get(tx, id), "user", id)


# -- users ---------------------------------------------------------------------------------------------------------


def list_users(call: Call) -> dict[str, Any]:
    enforce(call, "identity:list_users", target={"domain_id": call.ctx.domain_id})
    equal = {name: call.query.get(name) for name in ("domain_id", "name") if name in call.query}
    if call.ctx.domain_id is not None and not call.ctx.is_admin:
        equal["domain_id"] = call.ctx.domain_id
    rows = service_of(call).db.read(lambda tx: store.users.list(tx, **equal))
    return collection(call, "users", [views.user(call, row) for row in rows], exact=("enabled",), paged=True)


def create_user(call: Call) -> dict[str, Any]:
    new: NewUser = call.body
    enforce(call, "identity:create_user", user={"domain_id": new.domain_id or own_domain(call)})
    service = service_of(call)
    hashed = service.passwords.hash(new.password) if new.password is not None else None
    extra = extra_of(call.document, NewUser)
    row = service.db.write(lambda tx: users.create(tx, new, extra, hashed, own_domain(call)))
    return {"user": views.user(call, row)}


def get_user(call: Call) -> dict[str, Any]:
    return {"user": views.user(call, load_user(call, "identity:get_user"))}


def update_user(call: Call) -> dict[str, Any]:
    row = load_user(call, "identity:update_user")
    change: UserChange = call.body
    service = service_of(call)
    hashed = service.passwords.hash(change.password) if isinstance(change.password, str) else None
    extra = extra_of(call.document, UserChange)
    row = service.db.write(lambda tx: users.update(tx, _fresh(tx, row.id), change, extra, hashed))
    return {"user": views.user(call, row)}


def delete_user(call: Call) -> None:
    row = load_user(call, "identity:delete_user")
    service_of(call).db.write(lambda tx: users.delete(tx, _fresh(tx, row.id)))


def change_password(call: Call) -> None:
    """For the user itself, who proves it with the old password; needs no token."""
    service, user_id = service_of(call), call.params["user_id"]
    change: PasswordChange = call.body
    row = service.db.read(lambda tx: store.users.get(tx, user_id))
    if not service.passwords.matches(row.password_hash if row else None, change.original_password):
        raise Unauthorized("The request you have made requires authentication.")
    service.authn.check_password(AuthUser(id=user_id, password=change.original_password))
    assert row is not None
    if row.options.get("lock_password"):
        raise BadInput("This user may not change its password.")
    if not change.password:
        raise BadInput("The new password is empty.")
    hashed = service.passwords.hash(change.password)
    update = UserChange(password=change.password)
    service.db.write(lambda tx: users.update(tx, _fresh(tx, user_id), update, {}, hashed))


def groups_of_user(call: Call) -> dict[str, Any]:
    row = load_user(call, "identity:list_groups_for_user")
    rows = service_of(call).db.read(lambda tx: store.groups_of(tx, row.id))
    return collection(call, "groups", [views.group(call, group) for group in rows], exact=("name", "domain_id"))


def projects_of_user(call: Call) -> dict[str, Any]:
    row = load_user(call, "identity:list_user_projects")

    def work(tx: Any) -> list[store.ProjectRow]:
        ids = {id for kind, id in assignments.targets_of(tx, row.id) if kind == "project"}
        loaded = [store.projects.get(tx, id) for id in sorted(ids)]
        return [project for project in loaded if project is not None]

    rows = service_of(call).db.read(work)
    listed = [views.project(call, project) for project in rows]
    return collection(call, "projects", listed, exact=("name", "enabled", "domain_id"))


# -- groups ---------------------------------------------------------------------------------------------------------


def _load_group(call: Call, rule: str) -> GroupRow:
    id = call.params["group_id"]
    row = service_of(call).db.read(lambda tx: store.groups.get(tx, id))
    enforce(call, rule, group=group_target(row))
    return found(row, "group", id)


def list_groups(call: Call) -> dict[str, Any]:
    domain_id = call.ctx.domain_id
    enforce(call, "identity:list_groups", group={"domain_id": domain_id} if domain_id else {})
    equal = {name: call.query.get(name) for name in ("domain_id", "name") if name in call.query}
    if domain_id is not None and not call.ctx.is_admin:
        equal["domain_id"] = domain_id
    rows = service_of(call).db.read(lambda tx: store.groups.list(tx, **equal))
    return collection(call, "groups", [views.group(call, row) for row in rows], paged=True)


def create_group(call: Call) -> dict[str, Any]:
    new: NewGroup = call.body
    enforce(call, "identity:create_group", group={"domain_id": new.domain_id or own_domain(call)})
    extra = extra_of(call.document, NewGroup)
    row = service_of(call).db.write(lambda tx: users.create_group(tx, new, extra, own_domain(call)))
    return {"group": views.group(call, row)}


def get_group(call: Call) -> dict[str, Any]:
    return {"group": views.group(call, _load_group(call, "identity:get_group"))}


def update_group(call: Call) -> dict[str, Any]:
    row = _load_group(call, "identity:update_group")
    extra = extra_of(call.document, GroupChange)

    row = service_of(call).db.write(lambda tx: users.update_group(tx, _fresh_group(tx, row.id), call.body, extra))
    return {"group": views.group(call, row)}


def delete_group(call: Call) -> None:
    row = _load_group(call, "identity:delete_group")
    service_of(call).db.write(lambda tx: users.delete_group(tx, _fresh_group(tx, row.id)))


def _fresh_group(tx: Any, id: str) -> GroupRow:
    store.lock(tx)
    return found(store.groups.get(tx, id), "group", id)


def users_in_group(call: Call) -> dict[str, Any]:
    row = _load_group(call, "identity:list_users_in_group")
    rows = service_of(call).db.read(lambda tx: store.users_in(tx, row.id))
    return collection(call, "users", [views.user(call, user) for user in rows], exact=("name", "enabled", "domain_id"))


def _membership(call: Call, rule: str) -> tuple[str, str]:
    group_id, user_id = call.params["group_id"], call.params["user_id"]

    def work(tx: Any) -> tuple[GroupRow | None, UserRow | None]:
        return store.groups.get(tx, group_id), store.users.get(tx, user_id)

    group, user = service_of(call).db.read(work)
    enforce(call, rule, group=group_target(group), user=user_target(user))
    found(user, "user", user_id)
    found(group, "group", group_id)
    return group_id, user_id


def check_member(call: Call) -> None:
    group_id, user_id = _membership(call, "identity:check_user_in_group")
    if not service_of(call).db.read(lambda tx: store.is_member(tx, group_id, user_id)):
        raise NotFound(f"User {user_id} is not in group {group_id}.")


def add_member(call: Call) -> None:
    group_id, user_id = _membership(call, "identity:add_user_to_group")

    def work(tx: Any) -> None:
        store.lock(tx)
        found(store.groups.get(tx, group_id), "group", group_id)
        _fresh(tx, user_id)
        store.join_group(tx, group_id, user_id)
        store.bump(tx, f"user:{user_id}")

    service_of(call).db.write(work)


def remove_member(call: Call) -> None:
    group_id, user_id = _membership(call, "identity:remove_user_from_group")

    def work(tx: Any) -> None:
        if not store.leave_group(tx, group_id, user_id):
            raise NotFound(f"User {user_id} is not in group {group_id}.")
        store.bump(tx, f"user:{user_id}")

    service_of(call).db.write(work)


_USER, _GROUP, _MEMBER = "/users/{user_id}", "/groups/{group_id}", "/groups/{group_id}/users/{user_id}"
ROUTES = [
    Route(method="GET", path="/users", handler=list_users),
    Route(method="POST", path="/users", handler=create_user, body=NewUser, body_key="user", success=201, strict=False,
          slow=True),
    Route(method="GET", path=_USER, handler=get_user),
    Route(method="PATCH", path=_USER, handler=update_user, body=UserChange, body_key="user", strict=False,
          slow=True),
    Route(method="DELETE", path=_USER, handler=delete_user, success=204),
    Route(method="POST", path=_USER + "/password", handler=change_password, body=PasswordChange, body_key="user",
          auth=False, success=204, slow=True),
    Route(method="GET", path=_USER + "/groups", handler=groups_of_user),
    Route(method="GET", path=_USER + "/projects", handler=projects_of_user),
    Route(method="GET", path="/groups", handler=list_groups),
    Route(method="POST", path="/groups", handler=create_group, body=NewGroup, body_key="group", success=201),
    Route(method="GET", path=_GROUP, handler=get_group),
    Route(method="PATCH", path=_GROUP, handler=update_group, body=GroupChange, body_key="group"),
    Route(method="DELETE", path=_GROUP, handler=delete_group, success=204),
    Route(method="GET", path=_GROUP + "/users", handler=users_in_group),
    Route(method="GET", path=_MEMBER, handler=check_member, success=204),
    Route(method="PUT", path=_MEMBER, handler=add_member, success=204),
    Route(method="DELETE", path=_MEMBER, handler=remove_member, success=204),
]  # fmt: skip
