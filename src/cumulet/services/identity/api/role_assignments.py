"""/v3/role_assignments: who has which role where, as assigned or as it takes effect."""

from typing import Any

from cumulet.db import Tx
from cumulet.http import Call, Route
from cumulet.kernel.errors import BadInput
from cumulet.services.identity import assignments, store
from cumulet.services.identity.api.support import enforce, flag, service_of
from cumulet.services.identity.assignments import Target
from cumulet.services.identity.store import AssignmentRow

_INHERIT = "OS-INHERIT:inherited_to"


def list_assignments(call: Call) -> dict[str, Any]:
    query = call.query
    include_subtree = flag(call, "include_subtree")
    rule = "identity:list_role_assignments_for_tree" if include_subtree else "identity:list_role_assignments"
    effective = flag(call, "effective")
    user_id, group_id, role_id = query.get("user.id"), query.get("group.id"), query.get("role.id")
    target = _target(call)
    if user_id and group_id:
        raise BadInput("Filter by user.id or by group.id, not by both.")
    if effective and group_id:
        raise BadInput("Effective assignments are those of users; they cannot be filtered by group.id.")
    if include_subtree and (target is None or target[0] != "project"):
        raise BadInput("include_subtree needs scope.project.id.")
    inherited_only = query.get(f"scope.{_INHERIT}") == "projects"
    service = service_of(call)

    def work(tx: Tx) -> list[dict[str, Any]]:
        domain_id = call.ctx.domain_id
        if include_subtree and target is not None:
            project = store.projects.get(tx, target[1])
            domain_id = project.domain_id if project else None
        enforce(call, rule, target={"domain_id": domain_id})
        targets = {target} if target is not None else None
        if include_subtree and target is not None:
            targets = {target} | {("project", row.id) for row in assignments.subtree(tx, target[1])}
        names = _Names(tx) if flag(call, "include_names") else None
        if effective:
            rows = store.all_assignments(tx)
            if inherited_only:
                rows = [row for row in rows if row.inherited]
            listed = [
                _view(call, one.source, one.role_id, names, one)
                for one in assignments.effective(tx, rows)
                if (user_id is None or one.user_id == user_id)
                and (role_id is None or one.role_id == role_id)
                and (targets is None or one.target in targets)
            ]
        else:
            listed = [
                _view(call, row, row.role_id, names, None)
                for row in store.all_assignments(tx)
                if (user_id is None or (row.actor_kind, row.actor_id) == ("user", user_id))
                and (group_id is None or (row.actor_kind, row.actor_id) == ("group", group_id))
                and (role_id is None or row.role_id == role_id)
                and (targets is None or (row.target_kind, row.target_id) in targets)
                and (not inherited_only or row.inherited)
            ]
        return _within(tx, call, listed)

    listed = service.db.read(work)
    url = f"{call.url_base}/role_assignments"
    links = {"self": f"{url}?{query.raw}" if query.raw else url, "previous": None, "next": None}
    return {"role_assignments": listed, "links": links}


def _within(tx: Tx, call: Call, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A caller scoped to a domain sees what concerns that domain."""
    domain_id = call.ctx.domain_id
    if domain_id is None or call.ctx.is_admin:
        return listed
    mine = {row.id for row in store.projects.list(tx, domain_id=domain_id)} | {domain_id}
    return [one for one in listed if one["scope"].get("project", one["scope"].get("domain", {})).get("id") in mine]


def _target(call: Call) -> Target | None:
    found: list[Target] = []
    for kind in ("project", "domain"):
        if call.query.get(f"scope.{kind}.id"):
            found.append((kind, call.query.get(f"scope.{kind}.id")))
    if "scope.system" in call.query:
        found.append(assignments.SYSTEM)
    if len(found) > 1:
        raise BadInput("Filter by one scope: project, domain or system.")
    return found[0] if found else None


class _Names:
    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._projects: dict[str, store.ProjectRow | None] = {}

    def _project(self, id: str | None) -> store.ProjectRow | None:
        if id is None:
            return None
        if id not in self._projects:
            self._projects[id] = store.projects.get(self._tx, id)
        return self._projects[id]

    def domain(self, id: str | None) -> dict[str, Any]:
        row = self._project(id)
        return {"id": id, "name": row.name if row else ""}

    def project(self, id: str) -> dict[str, Any]:
        row = self._project(id)
        return {"id": id, "name": row.name, "domain": self.domain(row.domain_id)} if row else {"id": id, "name": ""}

    def actor(self, kind: str, id: str) -> dict[str, Any]:
        entity: Any = store.users if kind == "user" else store.groups
        row = entity.get(self._tx, id)
        return {"id": id, "name": row.name, "domain": self.domain(row.domain_id)} if row else {"id": id, "name": ""}

    def role(self, id: str) -> dict[str, Any]:
        row = store.roles.get(self._tx, id)
        if row is None:
            return {"id": id, "name": ""}
        shown: dict[str, Any] = {"id": id, "name": row.name}
        if row.domain_id is not None:
            shown["domain"] = self.domain(row.domain_id)
        return shown


def _view(
    call: Call, source: AssignmentRow, role_id: str, names: _Names | None, effective: assignments.Effective | None
) -> dict[str, Any]:
    target = effective.target if effective else (source.target_kind, source.target_id)
    actor = ("user", effective.user_id) if effective else (source.actor_kind, source.actor_id)
    scope: dict[str, Any]
    if target[0] == "system":
        scope = {"system": {"all": True}}
    elif target[0] == "domain":
        scope = {"domain": names.domain(target[1]) if names else {"id": target[1]}}
    else:
        scope = {"project": names.project(target[1]) if names else {"id": target[1]}}
    if source.inherited:
        scope[_INHERIT] = "projects"
    on = "system" if source.target_kind == "system" else f"{source.target_kind}s/{source.target_id}"
    path = f"{on}/{source.actor_kind}s/{source.actor_id}/roles/{source.role_id}"
    if source.inherited:
        path = f"OS-INHERIT/{path}/inherited_to_projects"
    links = {"assignment": f"{call.url_base}/{path}"}
    if effective and source.actor_kind == "group":
        links["membership"] = f"{call.url_base}/groups/{source.actor_id}/users/{effective.user_id}"
    if effective and effective.prior_role_id is not None:
        links["prior_role"] = f"{call.url_base}/roles/{effective.prior_role_id}"
    return {
        "scope": scope,
        actor[0]: names.actor(*actor) if names else {"id": actor[1]},
        "role": names.role(role_id) if names else {"id": role_id},
        "links": links,
    }


ROUTES = [Route(method="GET", path="/role_assignments", handler=list_assignments)]
