"""/v3/roles, implied roles, and grants on projects, domains and the system."""

from collections.abc import Callable
from typing import Any

from msgspec import UNSET

from cumulet.http import Call, Route
from cumulet.kernel.errors import BadInput, Conflict, Forbidden, NotFound
from cumulet.kernel.ids import new_hex
from cumulet.services.identity import store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.projects import target_of
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.api.users import group_target, user_target
from cumulet.services.identity.projects import refuse_immutable
from cumulet.services.identity.schema import NewRole, RoleChange, changed_options, chosen, extra_of
from cumulet.services.identity.store import AssignmentRow, RoleRow


def role_target(row: RoleRow | None) -> dict[str, Any]:
    return {} if row is None else {"id": row.id, "name": row.name, "domain_id": row.domain_id}


def _load(call: Call, verb: str) -> RoleRow:
    id = call.params["role_id"]
    row = service_of(call).db.read(lambda tx: store.roles.get(tx, id))
    noun = "domain_role" if row is not None and row.domain_id is not None else "role"
    enforce(call, f"identity:{verb}_{noun}", role=role_target(row))
    return found(row, "role", id)


def list_roles(call: Call) -> dict[str, Any]:
    domain_id = call.query.get("domain_id") or None
    enforce(call, "identity:list_domain_roles" if domain_id else "identity:list_roles")
    equal: dict[str, Any] = {"domain_id": domain_id}
    if "name" in call.query:
        equal["name"] = call.query.get("name")
    rows = service_of(call).db.read(lambda tx: store.roles.list(tx, **equal))
    return collection(call, "roles", [views.role(call, row) for row in rows])


def create_role(call: Call) -> dict[str, Any]:
    new: NewRole = call.body
    enforce(call, "identity:create_domain_role" if new.domain_id else "identity:create_role")

    def work(tx: Any) -> RoleRow:
        store.lock(tx)
        if new.domain_id is not None:
            domain = found(store.projects.get(tx, new.domain_id), "domain", new.domain_id)
            if not domain.is_domain:
                raise NotFound(f"Could not find domain: {new.domain_id}.")
        _name_is_free(tx, new.name, new.domain_id)
        extra = extra_of(call.document, NewRole)
        row = RoleRow(new_hex(), new.name, new.domain_id, new.description, chosen(new.options), extra)
        return store.roles.add(tx, row)

    return {"role": views.role(call, service_of(call).db.write(work))}


def _name_is_free(tx: Any, name: str, domain_id: str | None) -> None:
    if store.roles.one(tx, name=name, domain_id=domain_id) is not None:
        raise Conflict(f"There is a role with the name {name} already.")


def get_role(call: Call) -> dict[str, Any]:
    return {"role": views.role(call, _load(call, "get"))}


def update_role(call: Call) -> dict[str, Any]:
    id = _load(call, "update").id
    change: RoleChange = call.body

    def work(tx: Any) -> RoleRow:
        store.lock(tx)
        row = found(store.roles.get(tx, id), "role", id)
        refuse_immutable(row.options, change, "role")
        if change.domain_id is not UNSET and change.domain_id != row.domain_id:
            raise BadInput("The domain of a role cannot be changed.")
        if change.name is not UNSET and change.name != row.name:
            _name_is_free(tx, change.name, row.domain_id)
            row.name = change.name
        if change.description is not UNSET:
            row.description = change.description
        row.options = changed_options(row.options, change.options)
        row.extra = {**row.extra, **extra_of(call.document, RoleChange)}
        store.bump(tx, "all")
        return store.roles.save(tx, row)

    return {"role": views.role(call, service_of(call).db.write(work))}


def delete_role(call: Call) -> None:
    id = _load(call, "delete").id

    def work(tx: Any) -> None:
        store.lock(tx)
        row = found(store.roles.get(tx, id), "role", id)
        refuse_immutable(row.options, None, "role")
        store.remove_assignments_with(tx, id)
        store.unimply_role(tx, id)
        store.roles.remove(tx, id)
        store.bump(tx, "all")

    service_of(call).db.write(work)


# -- implied roles ---------------------------------------------------------------------------------------------------


def _inference(call: Call, prior: RoleRow, implied: RoleRow) -> dict[str, Any]:
    return {
        "role_inference": {"prior_role": _short(call, prior), "implies": _short(call, implied)},
        "links": {"self": f"{call.url_base}/roles/{prior.id}/implies/{implied.id}"},
    }


def _short(call: Call, row: RoleRow) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "links": {"self": f"{call.url_base}/roles/{row.id}"}}


def _pair(call: Call) -> tuple[RoleRow, RoleRow]:
    prior, implied = call.params["prior_role_id"], call.params["implied_role_id"]

    def work(tx: Any) -> tuple[RoleRow, RoleRow]:
        return found(store.roles.get(tx, prior), "role", prior), found(store.roles.get(tx, implied), "role", implied)

    return service_of(call).db.read(work)


def list_implied(call: Call) -> dict[str, Any]:
    id = call.params["prior_role_id"]

    def work(tx: Any) -> tuple[RoleRow, list[RoleRow]]:
        prior = found(store.roles.get(tx, id), "role", id)
        rows = [store.roles.get(tx, implied) for implied in store.implied_roles(tx).get(id, [])]
        return prior, [row for row in rows if row is not None]

    prior, rows = service_of(call).db.read(work)
    inference = {"prior_role": _short(call, prior), "implies": [_short(call, row) for row in rows]}
    return {"role_inference": inference, "links": {"self": f"{call.url_base}/roles/{id}/implies"}}


def get_implied(call: Call) -> dict[str, Any]:
    prior, implied = _pair(call)
    known = service_of(call).db.read(store.implied_roles)
    if implied.id not in known.get(prior.id, ()):
        raise NotFound(f"{prior.id} does not imply {implied.id}.")
    return _inference(call, prior, implied)


def create_implied(call: Call) -> dict[str, Any]:
    prior, implied = _pair(call)

    def work(tx: Any) -> None:
        store.lock(tx)
        known = store.implied_roles(tx)
        if implied.name == "admin" and implied.domain_id is None:
            raise Forbidden("No role implies admin.")
        if prior.domain_id is None and implied.domain_id is not None:
            raise Forbidden("A global role cannot imply the role of a domain.")
        if implied.id not in known.get(prior.id, ()):
            store.imply(tx, prior.id, implied.id)
            store.bump(tx, "all")

    service_of(call).db.write(work)
    return _inference(call, prior, implied)


def delete_implied(call: Call) -> None:
    prior, implied = _pair(call)

    def work(tx: Any) -> None:
        if not store.unimply(tx, prior.id, implied.id):
            raise NotFound(f"{prior.id} does not imply {implied.id}.")
        store.bump(tx, "all")

    service_of(call).db.write(work)


def list_inferences(call: Call) -> dict[str, Any]:
    def work(tx: Any) -> tuple[dict[str, list[str]], dict[str, RoleRow]]:
        return store.implied_roles(tx), {row.id: row for row in store.roles.list(tx)}

    known, rows = service_of(call).db.read(work)
    listed = [
        {"prior_role": _short(call, rows[prior]), "implies": [_short(call, rows[id]) for id in implied]}
        for prior, implied in known.items()
    ]
    return {"role_inferences": listed, "links": {"self": f"{call.url_base}/role_inferences"}}


# -- grants ----------------------------------------------------------------------------------------------------------

Handler = Callable[[Call], Any]


class Grants:
    """Handlers for one pair of actor (user, group) and target (project, domain, system); ``inherited`` ones stand
    under OS-INHERIT."""

    def __init__(self, actor: str, target: str, *, inherited: bool = False) -> None:
        self._actor = actor
        self._target = target
        self._inherited = inherited

    def _rule(self, verb: str) -> str:
        if self._target != "system":
            return f"identity:{verb}_grant" + ("s" if verb == "list" else "")
        return f"identity:{verb}_system_grant{'s' if verb == 'list' else ''}_for_{self._actor}"

    def _admit(self, call: Call, verb: str) -> tuple[str, str, str | None]:
        actor_id = call.params[f"{self._actor}_id"]
        target_id = "system" if self._target == "system" else call.params[f"{self._target}_id"]
        role_id = call.params.get("role_id")

        def work(tx: Any) -> tuple[Any, Any, Any]:
            entity: Any = store.users if self._actor == "user" else store.groups
            target = None if self._target == "system" else store.projects.get(tx, target_id)
            return entity.get(tx, actor_id), target, store.roles.get(tx, role_id)

        actor, target, role = service_of(call).db.read(work)
        if self._target == "domain" and target is not None and not target.is_domain:
            target = None
        targets: dict[str, Any] = {"role": role_target(role)}
        targets[self._actor] = user_target(actor) if self._actor == "user" else group_target(actor)
        if self._target != "system":
            targets[self._target] = target_of(target)
        enforce(call, self._rule(verb), **targets)
        if role_id is not None:
            found(role, "role", role_id)
        if verb != "revoke":
            found(actor, self._actor, actor_id)
        if self._target != "system":
            found(target, self._target, target_id)
            if role is not None and role.domain_id is not None and verb == "create":
                domain_id = target.id if target.is_domain else target.domain_id
                if role.domain_id != domain_id:
                    raise Forbidden("A role of a domain can only be assigned within that domain.")
        return actor_id, target_id, role_id

    def _row(self, actor_id: str, target_id: str, role_id: str | None) -> AssignmentRow:
        return AssignmentRow(self._actor, actor_id, self._target, target_id, role_id or "", self._inherited)

    def listing(self, call: Call) -> dict[str, Any]:
        actor_id, target_id, _ = self._admit(call, "list")

        def work(tx: Any) -> list[RoleRow]:
            rows = [
                row
                for row in store.assignments_of(tx, [actor_id])
                if row == self._row(actor_id, target_id, row.role_id)
            ]
            roles = [store.roles.get(tx, row.role_id) for row in rows]
            return [role for role in roles if role is not None]

        rows = service_of(call).db.read(work)
        return collection(call, "roles", [views.role(call, row) for row in rows], exact=("name",))

    def check(self, call: Call) -> None:
        row = self._row(*self._admit(call, "check"))
        if row not in service_of(call).db.read(lambda tx: store.assignments_of(tx, [row.actor_id])):
            raise NotFound(f"Could not find role assignment with role: {row.role_id}.")

    def grant(self, call: Call) -> None:
        row = self._row(*self._admit(call, "create"))

        def work(tx: Any) -> None:
            store.lock(tx)
            self._still_there(tx, row)
            store.add_assignment(tx, row)
            self._bump(tx, row)

        service_of(call).db.write(work)

    def _still_there(self, tx: Any, row: AssignmentRow) -> None:
        entity: Any = store.users if self._actor == "user" else store.groups
        found(entity.get(tx, row.actor_id), self._actor, row.actor_id)
        found(store.roles.get(tx, row.role_id), "role", row.role_id)
        if self._target != "system":
            found(store.projects.get(tx, row.target_id), self._target, row.target_id)

    def revoke(self, call: Call) -> None:
        row = self._row(*self._admit(call, "revoke"))

        def work(tx: Any) -> None:
            if not store.remove_assignment(tx, row):
                raise NotFound(f"Could not find role assignment with role: {row.role_id}.")
            self._bump(tx, row)

        service_of(call).db.write(work)

    def _bump(self, tx: Any, row: AssignmentRow) -> None:
        store.bump(tx, f"user:{row.actor_id}" if row.actor_kind == "user" else "all")

    def routes(self) -> list[Route]:
        on = "/system" if self._target == "system" else f"/{self._target}s/{{{self._target}_id}}"
        path = f"{on}/{self._actor}s/{{{self._actor}_id}}/roles"
        end = ""
        if self._inherited:
            path, end = "/OS-INHERIT" + path, "/inherited_to_projects"
        one = path + "/{role_id}" + end
        return [
            Route(method="GET", path=path + end, handler=self.listing),
            Route(method="GET", path=one, handler=self.check, success=204),
            Route(method="PUT", path=one, handler=self.grant, success=204),
            Route(method="DELETE", path=one, handler=self.revoke, success=204),
        ]


_PRIOR, _ONE = "/roles/{prior_role_id}/implies", "/roles/{prior_role_id}/implies/{implied_role_id}"
ROUTES = [
    Route(method="GET", path="/roles", handler=list_roles),
    Route(method="POST", path="/roles", handler=create_role, body=NewRole, body_key="role", success=201),
    Route(method="GET", path="/roles/{role_id}", handler=get_role),
    Route(method="PATCH", path="/roles/{role_id}", handler=update_role, body=RoleChange, body_key="role"),
    Route(method="DELETE", path="/roles/{role_id}", handler=delete_role, success=204),
    Route(method="GET", path=_PRIOR, handler=list_implied, policy="identity:list_implied_roles"),
    Route(method="GET", path=_ONE, handler=get_implied, policy="identity:get_implied_role"),
    Route(method="HEAD", path=_ONE, handler=get_implied, policy="identity:check_implied_role", success=204),
    Route(method="PUT", path=_ONE, handler=create_implied, policy="identity:create_implied_role", success=201),
    Route(method="DELETE", path=_ONE, handler=delete_implied, policy="identity:delete_implied_role", success=204),
    Route(method="GET", path="/role_inferences", handler=list_inferences,
          policy="identity:list_role_inference_rules"),
]  # fmt: skip
for _actor in ("user", "group"):
    for _target in ("project", "domain", "system"):
        ROUTES += Grants(_actor, _target).routes()
    for _target in ("project", "domain"):
        ROUTES += Grants(_actor, _target, inherited=True).routes()
