"""/v3/projects and /v3/domains."""

from typing import Any

import msgspec

from cumulet.http import Call, Route
from cumulet.kernel.errors import BadInput, NotFound
from cumulet.services.identity import assignments, projects, store
from cumulet.services.identity.api import views
from cumulet.services.identity.api.support import collection, enforce, found, service_of
from cumulet.services.identity.schema import (
    DomainChange,
    NewDomain,
    NewProject,
    ProjectChange,
    ProjectTags,
    Tag,
    extra_of,
)
from cumulet.services.identity.store import ProjectRow

_TAG_FILTERS = ("tags", "tags-any", "not-tags", "not-tags-any")


def target_of(row: ProjectRow | None) -> dict[str, Any]:
    return {} if row is None else {"id": row.id, "domain_id": row.domain_id}


def _load(call: Call, rule: str) -> ProjectRow:
    id = call.params["project_id"]
    row = service_of(call).db.read(lambda tx: store.projects.get(tx, id))
    enforce(call, rule, project=target_of(row))
    return found(row, "project", id)


def own_domain(call: Call) -> str | None:
    """Where things go when the request names no domain."""
    return call.ctx.domain_id or call.ctx.project_domain_id or call.ctx.user_domain_id


# -- projects --------------------------------------------------------------------------------------------------


def list_projects(call: Call) -> dict[str, Any]:
    enforce(call, "identity:list_projects", target={"domain_id": call.ctx.domain_id})
    wants_domains = (call.query.get("is_domain") or "").lower() in ("1", "true")
    equal: dict[str, Any] = {"is_domain": wants_domains}
    for name in ("domain_id", "name", "parent_id"):
        if name in call.query:
            equal[name] = call.query.get(name)
    if call.ctx.domain_id is not None and not call.ctx.is_admin and not wants_domains:
        equal["domain_id"] = call.ctx.domain_id
    rows = service_of(call).db.read(lambda tx: store.projects.list(tx, **equal))
    rows = [row for row in rows if _tags_match(call, set(row.tags))]
    return collection(call, "projects", [views.project(call, row) for row in rows], exact=("enabled",), paged=True)


def _tags_match(call: Call, tags: set[str]) -> bool:
    asked = {name: set(call.query.get(name).split(",")) for name in _TAG_FILTERS if call.query.get(name)}
    return (
        asked.get("tags", set()) <= tags
        and ("tags-any" not in asked or bool(asked["tags-any"] & tags))
        and ("not-tags" not in asked or not asked["not-tags"] <= tags)
        and ("not-tags-any" not in asked or not asked["not-tags-any"] & tags)
    )


def create_project(call: Call) -> dict[str, Any]:
    new: NewProject = call.body
    domain_id = new.domain_id or own_domain(call)
    enforce(call, "identity:create_project", project={"domain_id": domain_id})
    extra = extra_of(call.document, NewProject)
    row = service_of(call).db.write(lambda tx: projects.create(tx, new, extra, own_domain(call)))
    return {"project": views.project(call, row)}


def get_project(call: Call) -> dict[str, Any]:
    row = _load(call, "identity:get_project")
    view = views.project(call, row)
    db = service_of(call).db
    wanted = {name for name in ("parents_as_list", "subtree_as_list", "parents_as_ids", "subtree_as_ids")
              if name in call.query}  # fmt: skip
    for side in ("parents", "subtree"):
        if {f"{side}_as_list", f"{side}_as_ids"} <= wanted:
            raise BadInput(f"Use either {side}_as_list or {side}_as_ids.")
    if wanted & {"parents_as_list", "parents_as_ids"}:
        above = db.read(lambda tx: assignments.ancestors(tx, row))
        if "parents_as_list" in wanted:
            mine = _visible(call, above)
            view["parents"] = [{"project": views.project(call, parent)} for parent in mine]
        else:
            nested: dict[str, Any] | None = None
            for parent in reversed(above):
                nested = {parent.id: nested}
            view["parents"] = nested
    if wanted & {"subtree_as_list", "subtree_as_ids"}:
        below = db.read(lambda tx: assignments.subtree(tx, row.id))
        if "subtree_as_list" in wanted:
            view["subtree"] = [{"project": views.project(call, child)} for child in _visible(call, below)]
        else:
            view["subtree"] = _nested(row.id, below)
    return {"project": view}


def _visible(call: Call, rows: list[ProjectRow]) -> list[ProjectRow]:
    """Those of the rows on which the caller has a role."""

    def work(tx: Any) -> set[str]:
        return {target[1] for target in assignments.targets_of(tx, call.ctx.user_id or "")}

    mine = service_of(call).db.read(work)
    return [row for row in rows if row.id in mine and not row.is_domain]


def _nested(parent_id: str, rows: list[ProjectRow]) -> dict[str, Any] | None:
    children = [row for row in rows if row.parent_id == parent_id]
    return {row.id: _nested(row.id, rows) for row in children} or None


def update_project(call: Call) -> dict[str, Any]:
    row = _load(call, "identity:update_project")
    return {"project": views.project(call, _update(call, row, ProjectChange))}


def _update(call: Call, row: ProjectRow, kind: type[msgspec.Struct]) -> ProjectRow:
    extra = extra_of(call.document, kind)

    return service_of(call).db.write(lambda tx: projects.update(tx, _fresh(tx, row), call.body, extra))


def _fresh(tx: Any, row: ProjectRow) -> ProjectRow:
    """As it is now, and stays while its writer has the lock."""
    store.lock(tx)
    return found(store.projects.get(tx, row.id), "domain" if row.is_domain else "project", row.id)


def delete_project(call: Call) -> None:
    row = _load(call, "identity:delete_project")
    service_of(call).db.write(lambda tx: projects.delete(tx, _fresh(tx, row)))


# -- tags ----------------------------------------------------------------------------------------------------------


def list_tags(call: Call) -> dict[str, Any]:
    row = _load(call, "identity:list_project_tags")
    return {"tags": row.tags, "links": collection(call, "tags", [])["links"]}


def _set_tags(call: Call, row: ProjectRow, change: Any) -> list[str]:
    def work(tx: Any) -> list[str]:
        fresh = _fresh(tx, row)
        fresh.tags = sorted(change(set(fresh.tags)))
        if len(fresh.tags) > 80:
            raise BadInput("A project has at most 80 tags.")
        store.projects.save(tx, fresh)
        return fresh.tags

    return service_of(call).db.write(work)


def replace_tags(call: Call) -> dict[str, Any]:
    row = _load(call, "identity:update_project_tags")
    tags = _set_tags(call, row, lambda old: set(call.body.tags))
    return {"tags": tags, "links": collection(call, "tags", [])["links"]}


def delete_tags(call: Call) -> None:
    _set_tags(call, _load(call, "identity:delete_project_tags"), lambda old: set())


def get_tag(call: Call) -> None:
    row = _load(call, "identity:get_project_tag")
    if call.params["value"] not in row.tags:
        raise NotFound(f"Could not find project tag: {call.params['value']}.")


def add_tag(call: Call) -> None:
    row = _load(call, "identity:create_project_tag")
    tag = call.params["value"]
    try:
        msgspec.convert(tag, Tag)
    except msgspec.ValidationError as error:
        raise BadInput(f"Invalid tag {tag!r}: {error}") from None
    _set_tags(call, row, lambda old: old | {tag})


def delete_tag(call: Call) -> None:
    row = _load(call, "identity:delete_project_tag")
    tag = call.params["value"]
    if tag not in row.tags:
        raise NotFound(f"Could not find project tag: {tag}.")
    _set_tags(call, row, lambda old: old - {tag})


# -- domains -----------------------------------------------------------------------------------------------------


def _load_domain(call: Call, rule: str) -> ProjectRow:
    id = call.params["domain_id"]
    row = service_of(call).db.read(lambda tx: store.projects.get(tx, id))
    if row is not None and not row.is_domain:
        row = None
    enforce(call, rule, domain={"id": row.id} if row else {})
    return found(row, "domain", id)


def list_domains(call: Call) -> dict[str, Any]:
    enforce(call, "identity:list_domains", domain={"id": call.ctx.domain_id} if call.ctx.domain_id else {})
    equal: dict[str, Any] = {"is_domain": True}
    if "name" in call.query:
        equal["name"] = call.query.get("name")
    rows = service_of(call).db.read(lambda tx: store.projects.list(tx, **equal))
    if call.ctx.domain_id is not None and not call.ctx.is_admin:
        rows = [row for row in rows if row.id == call.ctx.domain_id]
    return collection(call, "domains", [views.domain(call, row) for row in rows], exact=("enabled",), paged=True)


def create_domain(call: Call) -> dict[str, Any]:
    extra = extra_of(call.document, NewDomain)
    row = service_of(call).db.write(lambda tx: projects.create_domain(tx, call.body, extra))
    return {"domain": views.domain(call, row)}


def get_domain(call: Call) -> dict[str, Any]:
    return {"domain": views.domain(call, _load_domain(call, "identity:get_domain"))}


def update_domain(call: Call) -> dict[str, Any]:
    row = _load_domain(call, "identity:update_domain")
    return {"domain": views.domain(call, _update(call, row, DomainChange))}


def delete_domain(call: Call) -> None:
    row = _load_domain(call, "identity:delete_domain")
    service_of(call).db.write(lambda tx: projects.delete(tx, _fresh(tx, row)))


_PROJECT, _TAGS, _DOMAIN = "/projects/{project_id}", "/projects/{project_id}/tags", "/domains/{domain_id}"
ROUTES = [
    Route(method="GET", path="/projects", handler=list_projects),
    Route(method="POST", path="/projects", handler=create_project, body=NewProject, body_key="project", success=201,
          strict=False),
    Route(method="GET", path=_PROJECT, handler=get_project),
    Route(method="PATCH", path=_PROJECT, handler=update_project, body=ProjectChange, body_key="project", strict=False),
    Route(method="DELETE", path=_PROJECT, handler=delete_project, success=204),
    Route(method="GET", path=_TAGS, handler=list_tags),
    Route(method="PUT", path=_TAGS, handler=replace_tags, body=ProjectTags),
    Route(method="DELETE", path=_TAGS, handler=delete_tags, success=204),
    Route(method="GET", path=_TAGS + "/{value}", handler=get_tag, success=204),
    Route(method="PUT", path=_TAGS + "/{value}", handler=add_tag, success=201),
    Route(method="DELETE", path=_TAGS + "/{value}", handler=delete_tag, success=204),
    Route(method="GET", path="/domains", handler=list_domains),
    Route(method="POST", path="/domains", handler=create_domain, body=NewDomain, body_key="domain", success=201,
          policy="identity:create_domain", strict=False),
    Route(method="GET", path=_DOMAIN, handler=get_domain),
    Route(method="PATCH", path=_DOMAIN, handler=update_domain, body=DomainChange, body_key="domain", strict=False),
    Route(method="DELETE", path=_DOMAIN, handler=delete_domain, success=204),
]  # fmt: skip
